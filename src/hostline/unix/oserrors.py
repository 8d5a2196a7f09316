"""The one place where an `OSError` of a socket becomes an error of hostline's own.

Knows what an errno means for each operation, as unix(7), connect(2), bind(2) and sendmsg(2) say and as Linux does
where they are silent. Knows no addresses beyond their text.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from hostline.errors import (
    AccessDeniedError,
    AddressInUseError,
    AddressNotFoundError,
    ConnectRefusedError,
    ConnectTimeoutError,
    HostlineError,
    MessageTooLongError,
    NotASocketError,
    PeerGoneError,
    SocketError,
    SocketTimeoutError,
)

__all__ = ["file_kind", "printable", "translate", "translated"]

# errno -> class and reason; where the reason is empty, it depends on the operation or is the kernel's own text.
_MEANING: dict[int, tuple[type[SocketError], str]] = {
    errno.ENOENT: (AddressNotFoundError, ""),
    errno.ENOTDIR: (AddressNotFoundError, "a part of the path is not a directory"),
    errno.ECONNREFUSED: (ConnectRefusedError, ""),
    errno.EACCES: (AccessDeniedError, ""),
    errno.EPERM: (AccessDeniedError, ""),
    errno.EROFS: (AccessDeniedError, "the file system is read-only"),
    errno.ENOTSOCK: (NotASocketError, "this is not a socket"),
    errno.EPROTOTYPE: (SocketError, ""),
    errno.EADDRINUSE: (AddressInUseError, "the address is taken"),
    errno.EPIPE: (PeerGoneError, "the other side has closed the connection"),
    errno.ECONNRESET: (PeerGoneError, "the other side went away with data unread or unsent"),
    errno.ENOTCONN: (PeerGoneError, "the socket is not connected, or no longer"),
    errno.ESHUTDOWN: (PeerGoneError, "the connection was shut down"),
    errno.EDESTADDRREQ: (PeerGoneError, "the socket has no peer, or no longer"),
    errno.EMSGSIZE: (MessageTooLongError, "one packet may not be larger than the socket's send buffer"),
    errno.EMFILE: (SocketError, "this process has no free descriptor left (RLIMIT_NOFILE)"),
    errno.ENFILE: (SocketError, "the host has no free descriptor left (fs.file-max)"),
    errno.ETOOMANYREFS: (SocketError, "too many descriptors of this user are sent and not yet received"),
    errno.ELOOP: (NotASocketError, "this is a symbolic link, which is not followed here"),
}

# What the same errno means for one operation.
_REASON: dict[tuple[int, str], str] = {
    (errno.ENOENT, "connect"): "nothing exists there; is the server running?",
    (errno.ENOENT, "bind"): "the directory does not exist",
    (errno.ENOENT, "send"): "nothing exists there",
    (errno.ECONNREFUSED, "connect"): "a socket file with nobody behind it; the server has ended or does not listen yet",
    (errno.ECONNREFUSED, "send"): "nobody receives there any more",
    (errno.EACCES, "connect"): "this user may not: the socket's mode or a directory above it forbids it",
    (errno.EACCES, "send"): "this user may not: the socket's mode or a directory above it forbids it",
    (errno.EACCES, "bind"): "this user may not create a file in that directory",
    (errno.EACCES, "probe"): "this user may not connect to the socket there, so it cannot be told whether it is alive",
    # Other operations do not follow a link; a connect does, as the kernel does, but not for ever.
    (errno.ELOOP, "connect"): "too many symbolic links",
    (errno.ELOOP, "send"): "too many symbolic links",
    (errno.EPERM, "bind"): "the file system does not let this user create a socket",
    (errno.EPERM, "send"): "the receiver does not take descriptors, or receives from one sender only",
    (errno.EPERM, "connect"): "the socket there receives from one sender only",
}

_TIMED_OUT = {
    "connect": (ConnectTimeoutError, "the server's backlog stayed full until the deadline"),
    "accept": (SocketTimeoutError, "nobody connected before the deadline"),
    "send": (SocketTimeoutError, "the other side took nothing more before the deadline"),
    "recv": (SocketTimeoutError, "nothing arrived before the deadline"),
}


def translate(error: OSError, operation: str, socket_type: str, address_text: str) -> SocketError:
    """Return the error of hostline's own that says what a refused system call means.

    Linux answers `ECONNREFUSED` also for a file that is no socket; then the file itself is looked at, so that the
    answer is a `NotASocketError`.

    Args:
        error: What the system call raised; a `TimeoutError` without a number and an `EAGAIN` both mean a deadline.
        operation: `bind`, `listen`, `connect`, `accept`, `send`, `recv`, ...
        socket_type: `stream`, `seqpacket` or `datagram`; empty where no socket was involved.
        address_text: How the address is written, or an empty string.

    Returns:
        The error, not yet raised: write `raise translate(...) from error`.
    """
    number = error.errno
    where = printable(address_text)
    if isinstance(error, TimeoutError | BlockingIOError) or number in (errno.EAGAIN, errno.ETIMEDOUT):
        kind, reason = _TIMED_OUT.get(operation, (SocketTimeoutError, "the deadline passed first"))
        return kind(operation, socket_type, where, number, reason)
    if number == errno.ECONNREFUSED and operation in ("connect", "send"):
        found = _found_instead(address_text)
        if found:
            return NotASocketError(operation, socket_type, where, number, f"this is {found}, not a socket")
    kind, reason = _MEANING.get(number or 0, (SocketError, ""))
    if number == errno.EPROTOTYPE:
        reason = f"the socket there is not of type {socket_type}"
    reason = _REASON.get((number or 0, operation), reason)
    return kind(operation, socket_type, where, number, reason or (error.strerror or str(error)).lower())


@contextmanager
def translated(operation: str, socket_type: str, address_text: str) -> Iterator[None]:
    """Turn every `OSError` of the block into hostline's own, and let those that already are ours pass.

    Args:
        operation: As in `translate`.
        socket_type: As in `translate`.
        address_text: As in `translate`.

    Raises:
        SocketError: The block raised an `OSError`, which is the cause.
    """
    try:
        yield
    except HostlineError:
        raise
    except OSError as error:
        raise translate(error, operation, socket_type, address_text) from error


def printable(text: str | bytes, max_length: int = 400) -> str:
    r"""Return a text that is safe to print: control characters and undecodable bytes become `\x..` or `\u....`.

    Paths, command lines and addresses of peers come from others, and a terminal obeys some bytes.

    Args:
        text: Text, possibly with surrogate escapes, or bytes in the file system's encoding.
        max_length: Characters kept; the rest becomes `...`.
    """
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    shown = "".join(c if c.isprintable() else _escaped(c) for c in text[: max_length + 1])
    return shown if len(shown) <= max_length else shown[: max_length - 3] + "..."


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: one undecodable byte
        code -= 0xDC00
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def file_kind(mode: int) -> str:
    """Return what a file is, in words with an article, from its `st_mode`."""
    for is_kind, name in (
        (stat.S_ISREG, "an ordinary file"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if is_kind(mode):
            return name
    return "a file of an unknown kind"


def _found_instead(address_text: str) -> str:
    """Say what lies at a path that is no socket; an empty string for a socket, an abstract name or nothing at all."""
    if "/" not in address_text:
        return ""
    try:
        mode = os.stat(address_text).st_mode
    except (OSError, ValueError):
        return ""
    return "" if stat.S_ISSOCK(mode) else file_kind(mode)
