"""`Fd` owns one descriptor, closes it on every path, and says what it is."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostline.errors import DescriptorError
from hostline.unix.passing import descriptors
from hostline.unix.passing.descriptors import Fd, close_all, kind_of


def is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def null() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def test_close_closes_and_a_second_close_does_nothing() -> None:
    number = null()
    fd = Fd(number)
    assert fd.fileno() == number
    fd.close()
    assert fd.is_closed
    assert not is_open(number)
    fd.close()
    with pytest.raises(DescriptorError):
        fd.fileno()


def test_the_end_of_a_with_block_closes() -> None:
    with Fd(null()) as fd:
        number = fd.fileno()
    assert not is_open(number)


def test_the_last_reference_closes() -> None:
    fd = Fd(null())
    number = fd.fileno()
    del fd
    gc.collect()
    assert not is_open(number)


def test_a_number_closed_behind_its_back_harms_nobody() -> None:
    fd = Fd(null())
    os.close(fd.fileno())
    del fd
    gc.collect()


def test_detach_hands_the_number_on() -> None:
    fd = Fd(null())
    number = fd.detach()
    del fd
    gc.collect()
    assert is_open(number)
    os.close(number)


def test_dup_has_an_owner_of_its_own_and_is_close_on_exec() -> None:
    with Fd(null()) as fd:
        other = fd.dup()
        assert other.fileno() != fd.fileno()
        assert not os.get_inheritable(other.fileno())
    assert is_open(other.fileno())
    other.close()


def test_open_gives_a_file_that_takes_over(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("grüezi\n", encoding="utf-8")
    fd = Fd(os.open(tmp_path / "text", os.O_RDONLY))
    number = fd.fileno()
    with fd.open("r", encoding="utf-8") as file:
        assert file.read() == "grüezi\n"
        assert fd.is_closed
    assert not is_open(number)


def test_open_of_a_directory_fails_and_keeps_the_descriptor(tmp_path: Path) -> None:
    with Fd(os.open(tmp_path, os.O_RDONLY)) as fd:
        with pytest.raises(DescriptorError):
            fd.open()
        assert not fd.is_closed


@pytest.mark.parametrize(
    ("mode", "options", "kind"),
    [
        ("r+b", {}, DescriptorError),
        ("wb", {}, DescriptorError),
        ("r", {"encoding": "bogus"}, LookupError),
        ("r", {"buffering": 0}, ValueError),
        ("rb", {"encoding": "utf-8"}, ValueError),
        ("bogus", {}, ValueError),
    ],
)
def test_an_open_that_fails_at_any_layer_keeps_the_descriptor_and_closes_nothing_else(
    mode: str, options: dict[str, Any], kind: type[Exception], tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    before = len(os.listdir("/dev/fd"))
    readable = os.open(tmp_path, os.O_RDONLY) if mode == "wb" else reader  # a directory; a pipe opens for anything
    with Fd(readable) as fd:
        with pytest.raises(kind):
            fd.open(mode, **options)
        assert fd.fileno() == readable
        assert is_open(readable)
        assert len(os.listdir("/dev/fd")) == before + (readable != reader)
    assert not is_open(readable)
    if readable != reader:
        os.close(reader)


def test_an_open_that_asks_for_more_than_the_descriptor_can_has_an_errno_and_a_reason() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    with Fd(reader) as fd, pytest.raises(DescriptorError, match="not seekable") as caught:
        fd.open("r+b")
    assert caught.value.errno == errno.EINVAL


def test_an_opened_file_is_close_on_exec_has_a_name_and_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with Fd(os.open(path, os.O_RDWR)) as fd, fd.open("wb") as file:
        assert path.read_bytes() == b"before"
        assert not os.get_inheritable(file.fileno())
        assert file.name == f"<fd {file.fileno()}>"


def test_a_closed_one_can_neither_be_duplicated_nor_opened_nor_detached() -> None:
    fd = Fd(null())
    fd.close()
    for use in (fd.dup, fd.open, fd.detach, lambda: fd.kind):
        with pytest.raises(DescriptorError):
            use()


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        Fd(-1)


def test_repr_never_fails() -> None:
    fd = Fd(null())
    assert "character" in repr(fd)
    number = fd.detach()
    assert repr(fd) == "<Fd closed>"
    os.close(number)
    stale = Fd(number)
    assert "not open" in repr(stale)
    stale.detach()


def test_close_all_goes_on_after_a_failure() -> None:
    broken, whole = Fd(null()), Fd(null())
    os.close(broken.fileno())
    number = whole.fileno()
    close_all([broken, whole])
    assert not is_open(number)


@pytest.mark.parametrize(
    "kind", ["regular", "directory", "pipe", "socket", "memfd", "character", "path", "other", "tmpfs", "lookalike"]
)
def test_kind_is_what_the_kernel_says(kind: str, tmp_path: Path) -> None:
    expected = kind
    if kind == "regular":
        fds = [os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)]
    elif kind == "tmpfs":
        # A file of another tmpfs answers for seals as a memfd does, and is none.
        if not os.access("/dev/shm", os.W_OK):
            pytest.skip("no writable /dev/shm")
        name = f"/dev/shm/hostline-test-{os.getpid()}"
        fds = [os.open(name, os.O_CREAT | os.O_RDWR, 0o600)]
        os.unlink(name)
        expected = "regular"
    elif kind == "lookalike":
        # Its link in /proc reads like a memfd's.
        fds = [os.open(tmp_path / "memfd:x (deleted)", os.O_CREAT | os.O_RDWR)]
        expected = "regular"
    elif kind == "directory":
        fds = [os.open(tmp_path, os.O_RDONLY)]
    elif kind == "pipe":
        fds = list(os.pipe())
    elif kind == "socket":
        fds = [sock.detach() for sock in socket.socketpair()]
    elif kind == "memfd":
        fds = [os.memfd_create("test")]
    elif kind == "character":
        fds = [null()]
    elif kind == "path":
        fds = [os.open(tmp_path, os.O_PATH)]
    else:
        fds = [os.eventfd(0)]
    owners = [Fd(fd) for fd in fds]
    try:
        assert {owner.kind for owner in owners} == {expected}
    finally:
        close_all(owners)


def test_kind_of_a_number_that_is_not_open_is_an_error() -> None:
    number = null()
    os.close(number)
    with pytest.raises(DescriptorError, match="not open"):
        kind_of(number)


@pytest.fixture
def memfd_device_forgotten() -> Iterator[None]:
    descriptors._memfd_device.cache_clear()
    yield
    descriptors._memfd_device.cache_clear()


@pytest.mark.usefixtures("memfd_device_forgotten")
def test_a_full_table_is_no_reason_to_call_a_memfd_regular_then_or_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with Fd(os.memfd_create("test", os.MFD_CLOEXEC)) as memfd:
        with monkeypatch.context() as patch:
            patch.setattr(os, "memfd_create", full)
            with pytest.raises(DescriptorError, match="cannot be told") as caught:
                _ = memfd.kind
            assert caught.value.errno == errno.EMFILE
            assert "unknown kind" in repr(memfd)
        assert memfd.kind == "memfd"


@pytest.mark.usefixtures("memfd_device_forgotten")
def test_where_the_kernel_has_no_memfds_a_file_is_regular(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(*_: object) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", missing)
    with Fd(os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)) as fd:
        assert fd.kind == "regular"


def test_nothing_is_left_at_interpreter_exit() -> None:
    program = "import os; from hostline.unix.passing.descriptors import Fd; keep = Fd(os.open(os.devnull, os.O_RDONLY))"
    result = subprocess.run([sys.executable, "-X", "dev", "-W", "error", "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
