"""Descriptors that a peer sent: what they are, in words, and a bounded copy of what is in them.

Trusts nothing but the kernel: names are made here, contents are read with `pread` up to a bound, and only regular files
and memfds are read at all, because anything else may block or never end.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import sys
from types import TracebackType
from typing import Self

from hostline.cli.exits import CommandError
from hostline.cli.terminal import escape
from hostline.unix.passing.descriptors import Fd

__all__ = ["CopyTarget", "describe_descriptor"]

_ACCESS = {os.O_RDONLY: "read-only", os.O_WRONLY: "write-only", os.O_RDWR: "read-write"}
_FLAGS = {os.O_APPEND: "append", os.O_NONBLOCK: "non-blocking"}
_SEALS = {"F_SEAL_SEAL": "seal", "F_SEAL_SHRINK": "shrink", "F_SEAL_GROW": "grow", "F_SEAL_WRITE": "write"}
_CHUNK = 1 << 20


def describe_descriptor(fd: Fd) -> str:
    """Return what a descriptor is: kind, size, access, flags, and its path as far as it is known.

    The path is the kernel's and may have been chosen by the peer; it is escaped.

    Args:
        fd: The descriptor; it stays the caller's and is not read.
    """
    number = fd.fileno()
    status = os.fstat(number)
    kind = fd.kind
    parts = ["regular file" if kind == "regular" else _socket_text(number) if kind == "socket" else kind]
    if kind in ("regular", "memfd"):
        parts.append(f"{status.st_size} bytes")
    flags = fcntl.fcntl(number, fcntl.F_GETFL)
    if kind != "path":
        parts.append(_ACCESS.get(flags & os.O_ACCMODE, "no access"))
    parts += [name for flag, name in _FLAGS.items() if flags & flag]
    if kind == "memfd":
        parts += _seals(number)
    if kind in ("regular", "directory", "character", "block", "path", "symlink"):
        parts.append(f"mode {stat.S_IMODE(status.st_mode):04o}, uid {status.st_uid}")
    link = _link(number)
    return ", ".join(parts) + (f", {link}" if link else "")


def _socket_text(number: int) -> str:
    with socket.socket(fileno=fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)) as sock:
        family = socket.AddressFamily(sock.family).name if sock.family in list(socket.AddressFamily) else "socket"
        kind = socket.SocketKind(sock.type).name if sock.type in list(socket.SocketKind) else str(sock.type)
        try:
            is_listening = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        except OSError:
            is_listening = False  # not every platform can be asked
    return f"socket ({family}, {kind}{', listening' if is_listening else ''})"


def _seals(number: int) -> list[str]:
    try:
        seals = fcntl.fcntl(number, fcntl.F_GET_SEALS)
    except (OSError, AttributeError):
        return []
    names = [word for name, word in _SEALS.items() if seals & getattr(fcntl, name)]
    return [f"sealed against {'/'.join(names)}"] if names else []


def _link(number: int) -> str:
    if not sys.platform.startswith("linux"):
        return ""
    try:
        return escape(os.readlink(f"/proc/self/fd/{number}"), keep="")
    except OSError:
        return ""


class CopyTarget:
    """A directory that contents are copied into, as `fd-0`, `fd-1`, ...; nothing there is ever replaced.

    Args:
        directory: Its path; made, mode 0700, if it does not exist.
        max_size: Bytes of one copy; a larger file is not copied.
    """

    def __init__(self, directory: str, max_size: int) -> None:
        self._max_size = max_size
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o700)
            self._dirfd = Fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            raise CommandError(f"cannot copy into {escape(directory, keep='')}: {error.strerror}") from error

    def copy(self, fd: Fd, name: str) -> str:
        """Copy what is in a descriptor, and return what came of it in words.

        Args:
            fd: The descriptor; it stays the caller's, and its position is left alone.
            name: The file's name in the directory.

        Raises:
            CommandError: A file of that name exists, or the copy cannot be written.
        """
        if fd.kind not in ("regular", "memfd"):
            return "not copied: only files have contents to copy"
        size = os.fstat(fd.fileno()).st_size
        if size > self._max_size:
            return f"not copied: {size} bytes exceed --max-copy {self._max_size}"
        if fcntl.fcntl(fd.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
            return "not copied: it was opened for writing only"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            target = Fd(os.open(name, flags, 0o600, dir_fd=self._dirfd.fileno()))
        except OSError as error:
            reason = "it exists already" if error.errno == errno.EEXIST else error.strerror
            raise CommandError(f"cannot write {name}: {reason}") from error
        with target:
            return f"copied {self._copy(fd.fileno(), target.fileno(), name)} bytes to {name}"

    def _copy(self, source: int, target: int, name: str) -> int:
        copied = 0
        try:
            # The file may grow or shrink meanwhile: the bound holds, and the end is where it is found.
            while data := os.pread(source, min(_CHUNK, self._max_size - copied), copied):
                copied += len(data)
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(target, rest) :]
        except OSError as error:
            raise CommandError(f"cannot copy to {name}: {error.strerror} after {copied} bytes") from error
        return copied

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._dirfd.close()
