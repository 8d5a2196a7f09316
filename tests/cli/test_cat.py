"""`hostline cat`: bytes both ways for all three types, where it ends, and descriptors."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Literal

import pytest

import hostline as library
from hostline.cli.exchange import ConnectionEnd, Exchange, Framing, read_input
from hostline.cli.exits import CommandError, ExitCode
from hostline.cli.received import CopyTarget, describe_descriptor
from tests.cli.running import Running, abstract_name, hostline, on_terminal
from tests.leaks import wait_until

KINDS = ["stream", "seqpacket", "datagram"]


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, sock_dir: Path) -> str:
    return abstract_name() if request.param == "abstract" else str(sock_dir / "x")


# --- bytes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_all_types_go_through_files_and_abstract_names(kind: str, address: str) -> None:
    with Running("echo", address, "--type", kind, ready="listening") as server:
        done = hostline("cat", address, "--type", kind, input=b"one\n\ntwo\n")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"one\n\ntwo\n", b"")
        assert server.stop() == 0


def test_a_large_stream_goes_both_ways_at_once(sock_dir: Path) -> None:
    data = os.urandom(1 << 20) * 8
    with Running("echo", sock_dir / "x", ready="listening") as server:
        assert hostline("cat", sock_dir / "x", input=data).stdout == data
        assert server.stop() == 0


@pytest.mark.parametrize("kind", ["seqpacket", "datagram"])
def test_blocks_of_a_size_are_packets_and_no_line_ends_are_added(kind: str) -> None:
    address = abstract_name()
    with Running("echo", address, "--type", kind, "-v", ready="listening") as server:
        data = bytes(range(256)) * 10
        done = hostline("cat", address, "--type", kind, "--packet-size", "1000", input=data)
        assert (done.returncode, done.stdout) == (0, data)
        if kind == "datagram":
            assert [line.split()[0] for line in server.err.splitlines()[1:]] == ["1000", "1000", "560"]
        assert server.stop() == 0


@pytest.mark.parametrize("kind", ["seqpacket", "datagram"])
def test_a_line_that_no_packet_can_carry_is_an_error(kind: str) -> None:
    address = abstract_name()
    with Running("echo", address, "--type", kind, ready="listening") as server:
        done = hostline("cat", address, "--type", kind, input=b"x" * 4_000_000 + b"\n")
        assert done.returncode == ExitCode.FAILURE, done
        assert b"EMSGSIZE" in done.stderr
        assert server.stop() == 0


def test_datagrams_leave_no_file_behind(sock_dir: Path) -> None:
    address, runtime = abstract_name(), sock_dir / "run"
    runtime.mkdir(0o700)
    with Running("echo", address, "--type", "datagram", ready="listening") as server:
        environment = {"HOSTLINE_RUNTIME_DIR": str(runtime)}
        done = hostline("cat", address, "--type", "datagram", input=b"hello\n", env=environment)
        assert (done.stdout, list(runtime.iterdir())) == (b"hello\n", [])
        assert server.stop() == 0


def test_datagrams_are_answered_also_where_there_is_no_runtime_directory(sock_dir: Path) -> None:
    address = abstract_name()
    with Running("echo", address, "--type", "datagram", ready="listening") as server:
        environment = {"HOSTLINE_RUNTIME_DIR": str(sock_dir / "no" / "such")}
        assert hostline("cat", address, "--type", "datagram", input=b"hello\n", env=environment).stdout == b"hello\n"
        assert server.stop() == 0


@pytest.mark.parametrize("wait", ["inf", "1e308"])
@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_a_wait_without_end_is_ended_by_the_other_side_or_by_ctrl_c(sock_dir: Path, kind: str, wait: str) -> None:
    arguments = (sock_dir / "x", "--type", kind)
    with (
        Running("echo", *arguments, ready="listening") as server,
        Running("cat", *arguments, "--wait", wait, stdin=subprocess.PIPE) as cat,
    ):
        stdin = cat.process.stdin
        assert stdin
        stdin.write(b"hello\n")
        stdin.close()
        cat.wait_for("hello")
        assert (cat.stop(signal.SIGINT) if kind == "datagram" else cat.wait()) == (130 if kind == "datagram" else 0)
        assert cat.err == ""
        assert server.stop() == 0


@pytest.mark.parametrize("kind", ["stream", "seqpacket"])
def test_an_input_that_fails_in_an_unforeseen_way_ends_the_exchange(
    monkeypatch: pytest.MonkeyPatch, kind: Literal["stream", "seqpacket"]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    ours, theirs = library.socketpair(kind)
    with theirs, pytest.raises(AttributeError, match="fileno"):
        Exchange(ConnectionEnd(ours)).run()


def pieces(data: bytes, framing: Framing, has_packets: bool = True) -> list[bytes]:
    readable, writable = os.pipe()
    try:
        os.write(writable, data)
        os.close(writable)
        return list(read_input(readable, framing, has_packets))
    finally:
        os.close(readable)


def test_a_packet_is_a_line_without_its_end_or_a_block() -> None:
    assert pieces(b"", Framing()) == []
    assert pieces(b"a\n\nb", Framing()) == [b"a", b"", b"b"]
    assert pieces(b"a\nb\n", Framing()) == [b"a", b"b"]
    assert pieces(b"abcdefg", Framing(3)) == [b"abc", b"def", b"g"]
    assert pieces(b"a\nb", Framing(), has_packets=False) == [b"a\nb"]


def test_a_line_without_end_is_not_gathered_for_ever(tmp_path: Path) -> None:
    (tmp_path / "zeros").touch()
    os.truncate(tmp_path / "zeros", 1 << 30)
    with (tmp_path / "zeros").open("rb") as file, pytest.raises(CommandError, match="--packet-size"):
        list(read_input(file.fileno(), Framing(), True))


# --- where it ends -----------------------------------------------------------------------------------


def test_the_end_of_the_input_half_closes_and_the_answer_is_still_read(sock_dir: Path) -> None:
    with library.listen(str(sock_dir / "x")) as listener, Running("cat", sock_dir / "x") as cat:
        connection = listener.accept(timeout=10)
        with connection:
            with pytest.raises(library.EndOfStream):
                connection.recv(timeout=10)
            assert cat.process.poll() is None
            connection.send(b"late answer")
        assert (cat.wait(), cat.out) == (0, "late answer")


def test_the_end_of_the_stream_ends_it_though_the_input_goes_on(sock_dir: Path) -> None:
    with library.listen(str(sock_dir / "x")) as listener:
        with Running("cat", sock_dir / "x", stdin=subprocess.PIPE) as cat:
            listener.accept(timeout=10).close()
            assert cat.wait() == 0


def test_a_server_that_only_stops_sending_still_gets_the_input(sock_dir: Path) -> None:
    with library.listen(str(sock_dir / "x")) as listener:
        with Running("cat", sock_dir / "x", stdin=subprocess.PIPE) as cat:
            with listener.accept(timeout=10) as connection:
                connection.send(b"greeting")
                connection.shutdown()
                cat.wait_for("greeting")
                stdin = cat.process.stdin
                assert stdin
                stdin.write(b"hello")
                stdin.close()
                assert b"".join(connection) == b"hello"
            assert cat.wait() == 0


def test_it_waits_for_the_rest_of_the_answer_as_long_as_it_is_told(sock_dir: Path) -> None:
    with library.listen(str(sock_dir / "x")) as listener:
        began = time.monotonic()
        with Running("cat", sock_dir / "x", "--wait", "0.5") as cat:
            with listener.accept(timeout=10) as connection:
                connection.send(b"some")
                assert (cat.wait(), cat.out) == (0, "some")
        assert time.monotonic() - began >= 0.5


def test_a_server_that_vanishes_with_the_input_unread_is_told_of(sock_dir: Path) -> None:
    with library.listen(str(sock_dir / "x")) as listener:
        with Running("cat", sock_dir / "x", stdin=subprocess.PIPE) as cat:
            connection = listener.accept(timeout=10)
            stdin = cat.process.stdin
            assert stdin
            stdin.write(b"hello")
            stdin.flush()
            assert wait_until(lambda: _unread(connection.socket) == 5)
            connection.close()
            assert cat.wait() == ExitCode.UNAVAILABLE
            assert cat.err.startswith("error: recv stream")


def _unread(sock: socket.socket) -> int:
    buffer = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, buffer)
    return buffer[0]


def test_ctrl_d_on_a_terminal_ends_the_input(sock_dir: Path) -> None:
    with Running("echo", sock_dir / "x", ready="listening") as server:
        assert on_terminal("cat", sock_dir / "x", typed=b"hello\n\x04") == (0, "hello\n")
        assert server.stop() == 0


# --- listening ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stream", "seqpacket"])
def test_it_listens_and_talks_to_the_first_that_connects(sock_dir: Path, kind: str) -> None:
    path = sock_dir / "x"
    with Running("cat", path, "--listen", "--type", kind, stdin=subprocess.PIPE, ready="listening") as server:
        with library.connect_socket(str(path), kind) as connection:  # type: ignore[call-overload]
            connection.send(b"hello")
            server.wait_for("hello")
            assert not path.exists()
            stdin = server.process.stdin
            assert stdin
            stdin.write(b"answer\n")
            stdin.flush()
            assert connection.recv(timeout=10) == (b"answer\n" if kind == "stream" else b"answer")
            stdin.close()
        assert server.wait() == 0


def test_listening_for_datagrams_answers_whoever_wrote_last(sock_dir: Path) -> None:
    path = sock_dir / "x"
    with Running("cat", path, "--listen", "--type", "datagram", stdin=subprocess.PIPE, ready="listening") as server:
        stdin = server.process.stdin
        assert stdin
        stdin.write(b"held until somebody writes\n")
        stdin.flush()
        with library.listen(str(sock_dir / "own"), "datagram") as own:
            own.send(b"hello", str(path))
            assert own.recv(timeout=10) == b"held until somebody writes"
        server.wait_for("hello\n")
        assert server.stop() == ExitCode.TERMINATED
    assert not path.exists()


# --- descriptors -------------------------------------------------------------------------------------


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    file = tmp_path / "sent \x1b[31m.txt"
    file.write_bytes(b"some contents")
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_descriptors_go_from_one_cat_to_another(sock_dir: Path, sent: Path, kind: str) -> None:
    address, target = abstract_name(), sock_dir / "copies"
    options = ["--listen", "--type", kind, "--recv-fds", "--copy-fds-to", target]
    with Running("cat", address, *options, stdin=subprocess.PIPE, ready="listening") as receiver:
        command = ["cat", address, "--type", kind, "--wait", "0.1", "--send-fd", sent, "--send-fd", "/dev/null"]
        assert hostline(*command, input=b"take this\n").returncode == 0
        receiver.wait_for("fd-1: not copied")
        assert receiver.out == "take this\n"
        mode = f"{stat.S_IMODE(sent.stat().st_mode):04o}, uid {os.geteuid()}"
        assert receiver.err == (
            f"listening at {address} ({kind})\n"
            f"fd-0: regular file, 13 bytes, read-only, mode {mode}, {sent.parent}/sent \\x1b[31m.txt\n"
            "fd-0: copied 13 bytes to fd-0\n"
            "fd-1: character, read-only, mode 0666, uid 0, /dev/null\n"
            "fd-1: not copied: only files have contents to copy\n"
        )
        receiver.stop()
    assert (target / "fd-0").read_bytes() == b"some contents"
    assert [path.name for path in target.iterdir()] == ["fd-0"]
    assert target.stat().st_mode & 0o777 == 0o700


def test_descriptors_are_sent_without_any_input_too(sock_dir: Path, sent: Path) -> None:
    for kind, data in (("stream", b"\n"), ("seqpacket", b"")):
        path = str(sock_dir / kind)
        with library.listen(path, kind, max_fds=2) as listener:  # type: ignore[call-overload]
            with Running("cat", path, "--type", kind, "--send-fd", sent), listener.accept(timeout=10) as connection:
                received, (fd,) = connection.recv_fds(timeout=10)
                with fd.open() as file:
                    assert (received, file.read()) == (data, b"some contents")


def test_descriptors_are_refused_unless_asked_for(sock_dir: Path, sent: Path) -> None:
    path = sock_dir / "x"
    with Running("cat", path, "--listen", stdin=subprocess.PIPE, ready="listening") as receiver:
        hostline("cat", path, "--send-fd", sent, "--wait", "0.1", input=b"x")
        receiver.wait()
        assert "fd-0" not in receiver.err


def test_a_descriptor_is_described_by_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    uid = os.geteuid()
    with library.Fd(os.open(tmp_path / "file", os.O_RDWR | os.O_APPEND)) as fd:
        os.chmod(tmp_path / "file", 0o640)
        text = describe_descriptor(fd)
        assert text == f"regular file, 3 bytes, read-write, append, mode 0640, uid {uid}, {tmp_path}/file"
        (tmp_path / "file").unlink()
        assert describe_descriptor(fd).endswith("/file (deleted)")
    with library.Fd(os.open(tmp_path, os.O_PATH)) as fd:
        assert describe_descriptor(fd).startswith("path, mode 0700")
    readable, writable = map(library.Fd, os.pipe2(os.O_NONBLOCK))
    with readable, writable:
        assert describe_descriptor(readable).startswith("pipe, read-only, non-blocking, pipe:[")
    with socket.socket(socket.AF_UNIX) as sock, library.Fd(os.dup(sock.fileno())) as fd:
        assert describe_descriptor(fd).startswith("socket (AF_UNIX, SOCK_STREAM), read-write, socket:[")


def test_a_memfd_shows_its_seals() -> None:
    with library.Fd(os.memfd_create("x\x1b", os.MFD_ALLOW_SEALING)) as fd:
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW)
        assert (
            describe_descriptor(fd) == "memfd, 0 bytes, read-write, sealed against grow/write, /memfd:x\\x1b (deleted)"
        )


def test_a_copy_is_bounded_replaces_nothing_and_follows_no_link(tmp_path: Path) -> None:
    target = tmp_path / "copies"
    (tmp_path / "file").write_bytes(b"x" * 100)
    with library.Fd(os.open(tmp_path / "file", os.O_RDONLY)) as fd, CopyTarget(str(target), 99) as copies:
        assert copies.copy(fd, "fd-0") == "not copied: 100 bytes exceed --max-copy 99"
        assert list(target.iterdir()) == []
    with library.Fd(os.open(tmp_path / "file", os.O_RDONLY)) as fd, CopyTarget(str(target), 100) as copies:
        os.lseek(fd.fileno(), 50, os.SEEK_SET)
        assert copies.copy(fd, "fd-0") == "copied 100 bytes to fd-0"
        assert os.lseek(fd.fileno(), 0, os.SEEK_CUR) == 50
        with pytest.raises(CommandError, match="fd-0: it exists already"):
            copies.copy(fd, "fd-0")
        (target / "fd-1").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(CommandError, match="fd-1: it exists already"):
            copies.copy(fd, "fd-1")
        assert not (tmp_path / "elsewhere").exists()
    with library.Fd(os.open(tmp_path / "file", os.O_WRONLY)) as fd, CopyTarget(str(target), 100) as copies:
        assert copies.copy(fd, "fd-2") == "not copied: it was opened for writing only"
    assert (target / "fd-0").read_bytes() == b"x" * 100
    assert (target / "fd-0").stat().st_mode & 0o777 == 0o600
