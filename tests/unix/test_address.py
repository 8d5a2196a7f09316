"""What may be written as an address, the private runtime directory, and paths longer than the kernel's field."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostline.errors import AddressError, AddressNotFoundError, PathTooLongError, UnsafeDirectoryError
from hostline.unix.address import (
    AbstractAddress,
    InheritedAddress,
    PathAddress,
    parse_address,
    reachable,
    runtime_directory,
    unique_path,
)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, sock_dir: Path) -> Path:
    directory = sock_dir / "run"
    monkeypatch.setenv("HOSTLINE_RUNTIME_DIR", str(directory))
    return directory


# --- spelling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("/run/app/x.sock", PathAddress("/run/app/x.sock")),
        ("./x.sock", PathAddress("./x.sock")),
        ("../x", PathAddress("../x")),
        (".hidden", PathAddress("./.hidden")),
        ("a/b", PathAddress("./a/b")),
        ("/odd:name/x", PathAddress("/odd:name/x")),
        ("./tcp:1", PathAddress("./tcp:1")),
        ("unix:/run/app/x.sock", PathAddress("/run/app/x.sock")),
        ("unix:///run/app/x.sock", PathAddress("/run/app/x.sock")),
        ("unix:x.sock", PathAddress("./x.sock")),
        ("unix:@name", AbstractAddress(b"name")),
        ("@name", AbstractAddress(b"name")),
        ("@with/slash:and colon", AbstractAddress(b"with/slash:and colon")),
        ("unix:@" + "n" * 107, AbstractAddress(b"n" * 107)),
        ("fd:3", InheritedAddress(fd=3)),
        ("fd:0", InheritedAddress(fd=0)),
        ("systemd:web", InheritedAddress(name="web")),
        (b"x.sock", PathAddress("./x.sock")),
        (b"tcp:1", PathAddress("./tcp:1")),
        (b"/bad\xffname", PathAddress("/bad\udcffname")),
        (Path("x.sock"), PathAddress("./x.sock")),
        (Path("/run/x"), PathAddress("/run/x")),
    ],
)
def test_each_spelling_means_what_the_table_says(written: str | bytes | Path, meant: object) -> None:
    assert parse_address(written) == meant


@pytest.mark.parametrize(
    ("written", "part"),
    [
        ("", "empty"),
        ("unix:", "empty"),
        (b"", "empty"),
        ("a\0b", "NUL"),
        (b"/a\0b", "NUL"),
        ("\0name", "unix:@NAME"),
        ("tcp:10.0.0.1:1", "127.0.0.1"),
        ("http://127.0.0.1:1", "unix:PATH"),
        ("nats://host/x", "unknown scheme nats:"),
        ("http://x/", "unknown scheme http:"),
        ("a:b/c", "./a:b/c"),
        ("unix://host/x", "unix:///"),
        ("x.sock", "./x.sock"),
        ("x.sock", "or x for the name"),
        ("has space", "bare name"),
        ("-dash", "bare name"),
        ("naïve", "bare name"),
        ("n" * 300, "exceeds the limit of 245"),
        ("@", "empty"),
        ("unix:@", "empty"),
        ("@" + "n" * 108, "108 bytes exceeds the limit of 107"),
        ("fd:", "fd:3"),
        ("fd:-1", "fd:3"),
        ("fd:x", "fd:3"),
        ("fd:³", "fd:3"),
        ("systemd:", "LISTEN_FDNAMES"),
        ("/run/", "directory"),
        ("..", "directory"),
        ("/run/.", "directory"),
        (7, "path object"),
        (None, "path object"),
    ],
)
def test_what_is_no_address_is_refused_with_the_way_to_write_it(written: object, part: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(written)  # type: ignore[arg-type]
    assert part in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_parsed_address_is_taken_as_it_is() -> None:
    address = PathAddress("x")
    assert parse_address(address) is address


@given(st.text(min_size=1) | st.binary(min_size=1))
def test_whatever_is_accepted_is_written_back_to_the_same_address(written: str | bytes) -> None:
    try:
        address = parse_address(written)
    except AddressError:
        return
    assert parse_address(address.text) == address
    assert str(address).isprintable()


def test_text_shown_to_people_has_no_control_characters() -> None:
    assert str(PathAddress("/a\x1b[31m\n\udcff")) == "/a\\x1b[31m\\x0a\\xff"
    assert str(AbstractAddress(b"\0x\n")) == "unix:@\\x00x\\x0a"


# --- the runtime directory ---------------------------------------------------------------------------


def test_a_bare_name_is_a_socket_file_in_the_runtime_directory_and_parsing_makes_nothing(runtime: Path) -> None:
    assert parse_address("payments") == PathAddress(f"{runtime}/payments.sock")
    assert parse_address("A.b-c_9") == PathAddress(f"{runtime}/A.b-c_9.sock")
    assert not runtime.exists()


def test_the_runtime_directory_is_made_private(runtime: Path) -> None:
    assert runtime_directory() == str(runtime)
    assert runtime.stat().st_mode & 0o7777 == 0o700
    assert runtime_directory() == str(runtime)


def test_the_runtime_directory_is_chosen_in_the_documented_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTLINE_RUNTIME_DIR", "/nonexistent/one")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent/xdg")
    assert runtime_directory(create=False) == "/nonexistent/one"
    monkeypatch.delenv("HOSTLINE_RUNTIME_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert runtime_directory(create=False) == "/run/hostline"
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    assert runtime_directory(create=False) == "/nonexistent/xdg/hostline"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime_directory(create=False) == "/run/user/4321/hostline"


def test_a_relative_runtime_directory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTLINE_RUNTIME_DIR", "run")
    with pytest.raises(AddressError, match="absolute"):
        parse_address("payments")


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o750, 0o777, 0o1777])
def test_a_runtime_directory_open_to_others_is_refused_with_the_fix(runtime: Path, mode: int) -> None:
    runtime.mkdir()
    runtime.chmod(mode)
    with pytest.raises(UnsafeDirectoryError, match="chmod 0700"):
        parse_address("payments")
    with pytest.raises(PermissionError):
        runtime_directory()


def test_a_symlink_is_no_runtime_directory_even_to_a_good_one(runtime: Path) -> None:
    good = runtime.with_name("good")
    good.mkdir(0o700)
    runtime.symlink_to(good)
    with pytest.raises(UnsafeDirectoryError, match="a symbolic link"):
        runtime_directory()


def test_a_file_is_no_runtime_directory(runtime: Path) -> None:
    runtime.write_text("mine")
    with pytest.raises(UnsafeDirectoryError, match="an ordinary file"):
        runtime_directory()
    assert runtime.read_text() == "mine"


@pytest.mark.root
def test_another_users_directory_is_no_runtime_directory(runtime: Path) -> None:
    runtime.mkdir(0o700)
    os.chown(runtime, 65534, 65534)
    with pytest.raises(UnsafeDirectoryError, match="belongs to uid 65534"):
        runtime_directory()


def test_a_missing_directory_above_is_named_with_the_variables_to_set(
    monkeypatch: pytest.MonkeyPatch, sock_dir: Path
) -> None:
    monkeypatch.setenv("HOSTLINE_RUNTIME_DIR", str(sock_dir / "no" / "run"))
    with pytest.raises(AddressNotFoundError, match="XDG_RUNTIME_DIR"):
        runtime_directory()


def test_unique_paths_differ_fit_and_lie_in_the_runtime_directory(runtime: Path) -> None:
    paths = {unique_path("job") for _ in range(100)}
    assert len(paths) == 100
    for path in paths:
        assert os.path.dirname(path) == str(runtime)
        assert len(path) <= 107
        assert parse_address(path) == PathAddress(path)


def test_a_unique_path_that_cannot_fit_is_an_error_that_names_the_fix(runtime: Path) -> None:
    with pytest.raises(PathTooLongError, match="HOSTLINE_RUNTIME_DIR"):
        unique_path("p" * 100)
    with pytest.raises(AddressError, match="bare name"):
        unique_path("a/b")


# --- paths that do not fit ---------------------------------------------------------------------------


def path_of_length(directory: Path, length: int) -> Path:
    """Make directories below `directory` so that a file `s.sock` in the last has a path of that many bytes."""
    path, left = directory, length - len(os.fsencode(directory)) - len("/s.sock")
    while left > 0:
        part = min(left - 1, 200)
        if 0 < left - 1 - part < 2:  # the rest must hold a slash and a character
            part -= 2
        path /= "d" * part
        left -= part + 1
    path.mkdir(parents=True, exist_ok=True)
    return path / "s.sock"


@pytest.mark.parametrize("length", [90, 103, 104, 106, 107, 108, 109, 120, 255, 256, 1000, 4000])
def test_a_path_of_any_length_can_be_bound_and_connected(sock_dir: Path, length: int) -> None:
    path = str(path_of_length(sock_dir, length))
    assert len(path) == length
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        with reachable(path) as raw:
            server.bind(raw)
        assert os.path.exists(path)
        server.listen()
        with reachable(path) as raw:
            client.connect(raw)
        accepted, _ = server.accept()
        accepted.close()
    if length <= 107:
        assert raw == os.fsencode(path)


def test_a_short_path_is_given_to_the_kernel_as_it_is_written() -> None:
    with reachable("a/b") as raw:
        assert raw == b"a/b"


def test_a_relative_long_path_works_too(sock_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = path_of_length(sock_dir, 400)
    monkeypatch.chdir(sock_dir)
    with socket.socket(socket.AF_UNIX) as server:
        with reachable(str(path.relative_to(sock_dir))) as raw:
            server.bind(raw)
        assert path.is_socket()


@pytest.mark.parametrize("length", [92, 107, 200, 255])
def test_a_last_part_that_fits_no_address_is_refused_naming_length_limit_and_a_shorter_one(
    sock_dir: Path, length: int
) -> None:
    path = sock_dir / ("n" * (length - 5) + ".sock")
    with pytest.raises(PathTooLongError) as caught, reachable(str(path)):
        pass
    text = str(caught.value)
    assert f"last part of {length} bytes exceeds the limit of" in text
    assert f"{sock_dir}/nnnnnnnnnnnn.sock" in text


def test_a_long_path_without_proc_is_refused_with_the_limit(sock_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(path_of_length(sock_dir, 150))
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    with pytest.raises(PathTooLongError, match=r"path of 150 bytes exceeds the limit of 107; .*bare name 's'"):
        with reachable(path):
            pass


def test_a_long_path_in_a_missing_directory_is_not_found(sock_dir: Path) -> None:
    path = str(sock_dir / ("d" * 150) / "x.sock")
    with pytest.raises(AddressNotFoundError), reachable(path):
        pass


def test_the_directory_is_closed_when_the_block_fails(sock_dir: Path) -> None:
    path = str(path_of_length(sock_dir, 150))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ZeroDivisionError), reachable(path):
        raise ZeroDivisionError
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("number", ["2147483648", "99999999999999999999", "9" * 5000])
def test_a_number_too_large_for_a_descriptor_is_no_address(number: str) -> None:
    with pytest.raises(AddressError, match="takes the number of an open descriptor"):
        parse_address(f"fd:{number}")
    assert parse_address("fd:2147483647") == InheritedAddress(fd=0x7FFFFFFF)
