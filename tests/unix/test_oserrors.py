"""Every refused system call becomes one error of ours, which says what happened and is what a reader would catch."""

from __future__ import annotations

import errno
import os
import pickle
import socket
from pathlib import Path

import pytest

from hostline.errors import (
    AccessDeniedError,
    AddressInUseError,
    AddressNotFoundError,
    ConnectRefusedError,
    ConnectTimeoutError,
    MessageTooLongError,
    NotASocketError,
    PeerGoneError,
    SocketError,
    SocketTimeoutError,
)
from hostline.unix.oserrors import file_kind, printable, translate, translated


@pytest.mark.parametrize(
    ("number", "operation", "ours", "builtin"),
    [
        (errno.ENOENT, "connect", AddressNotFoundError, FileNotFoundError),
        (errno.ENOENT, "bind", AddressNotFoundError, FileNotFoundError),
        (errno.ENOTDIR, "connect", AddressNotFoundError, FileNotFoundError),
        (errno.ECONNREFUSED, "connect", ConnectRefusedError, ConnectionRefusedError),
        (errno.ECONNREFUSED, "send", ConnectRefusedError, ConnectionRefusedError),
        (errno.EACCES, "connect", AccessDeniedError, PermissionError),
        (errno.EPERM, "bind", AccessDeniedError, PermissionError),
        (errno.EROFS, "bind", AccessDeniedError, PermissionError),
        (errno.ENOTSOCK, "accept", NotASocketError, OSError),
        (errno.EPROTOTYPE, "connect", SocketError, OSError),
        (errno.EAGAIN, "connect", ConnectTimeoutError, TimeoutError),
        (errno.EAGAIN, "send", SocketTimeoutError, TimeoutError),
        (errno.EAGAIN, "recv", SocketTimeoutError, TimeoutError),
        (errno.ETIMEDOUT, "connect", ConnectTimeoutError, TimeoutError),
        (errno.EPIPE, "send", PeerGoneError, ConnectionError),
        (errno.ECONNRESET, "recv", PeerGoneError, ConnectionError),
        (errno.ENOTCONN, "send", PeerGoneError, ConnectionError),
        (errno.EMSGSIZE, "send", MessageTooLongError, OSError),
        (errno.EADDRINUSE, "bind", AddressInUseError, OSError),
        (errno.EMFILE, "accept", SocketError, OSError),
        (errno.ENFILE, "socket", SocketError, OSError),
        (errno.EIO, "send", SocketError, OSError),
    ],
)
def test_each_errno_has_its_error(
    number: int, operation: str, ours: type[SocketError], builtin: type[Exception]
) -> None:
    error = translate(OSError(number, os.strerror(number)), operation, "stream", "/run/x.sock")
    assert type(error) is ours
    assert isinstance(error, builtin)
    assert (error.operation, error.socket_type, error.address, error.errno) == (
        operation,
        "stream",
        "/run/x.sock",
        number,
    )
    text = str(error)
    assert text.startswith(f"{operation} stream /run/x.sock: ")
    assert text.endswith(f"({errno.errorcode[number]})")
    assert not text.endswith(".")


def test_a_timeout_of_the_socket_module_is_a_deadline_though_it_has_no_errno() -> None:
    error = translate(TimeoutError("timed out"), "connect", "stream", "/x/y")
    assert type(error) is ConnectTimeoutError
    assert "backlog stayed full" in str(error)


def test_a_wrong_type_names_the_type_that_was_asked_for() -> None:
    error = translate(OSError(errno.EPROTOTYPE, "x"), "connect", "seqpacket", "/x/y")
    assert "not of type seqpacket" in str(error)


def test_the_cause_is_kept_and_our_own_errors_pass_unchanged() -> None:
    with pytest.raises(PeerGoneError) as caught, translated("send", "stream", ""):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert isinstance(caught.value.__cause__, BrokenPipeError)
    assert str(caught.value).startswith("send stream: ")
    ours = NotASocketError("bind", "stream", "/x", None, "mine")
    with pytest.raises(NotASocketError) as caught_again, translated("send", "stream", ""):
        raise ours
    assert caught_again.value is ours
    with pytest.raises(ZeroDivisionError), translated("send", "stream", ""):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("kind", "words"), [("file", "an ordinary file"), ("directory", "a directory"), ("fifo", "a named pipe")]
)
def test_connecting_to_something_else_than_a_socket_says_what_it_is(sock_dir: Path, kind: str, words: str) -> None:
    path = sock_dir / "x"
    {"file": path.touch, "directory": path.mkdir, "fifo": lambda: os.mkfifo(path)}[kind]()
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(NotASocketError, match=words):
        with translated("connect", "stream", str(path)):
            client.connect(str(path))


def test_connecting_to_a_socket_file_with_nobody_behind_it_says_so(sock_dir: Path) -> None:
    path = str(sock_dir / "x")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectRefusedError, match="nobody behind it"):
        with translated("connect", "stream", path):
            client.connect(path)


def test_a_loop_of_links_is_called_that_where_links_are_followed(sock_dir: Path) -> None:
    path = sock_dir / "loop"
    path.symlink_to(path)
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(SocketError, match="too many symbolic links"):
        with translated("connect", "stream", str(path)):
            client.connect(str(path))


def test_what_others_wrote_is_escaped() -> None:
    assert printable("a\x1b[2J\r\n\x9b\u202e\udcff\U000e0001b") == ("a\\x1b[2J\\x0d\\x0a\\x9b\\u202e\\xff\\U000e0001b")
    assert printable(b"caf\xc3\xa9 \xff") == "café \\xff"
    assert len(printable("\x00" * 100_000)) <= 400
    error = translate(OSError(errno.ENOENT, "x"), "connect", "stream", "/tmp/\x1b]0;owned\x07/x")
    assert str(error).isprintable()


def test_kinds_of_files_are_said_in_words(sock_dir: Path) -> None:
    (sock_dir / "link").symlink_to("nowhere")
    assert file_kind((sock_dir / "link").lstat().st_mode) == "a symbolic link"
    assert file_kind(os.stat("/dev/null").st_mode) == "a character device"
    assert file_kind(0) == "a file of an unknown kind"


def test_errors_survive_pickling_with_their_facts() -> None:
    error = translate(OSError(errno.EADDRINUSE, "x"), "bind", "stream", "/x/y")
    assert isinstance(error, AddressInUseError)
    error.pid, error.command = 7, "prog"
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.pid, again.command) == (AddressInUseError, str(error), 7, "prog")
