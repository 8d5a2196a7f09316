"""Files in calls: those that arguments name as `@PATH`, and what the descriptors and buffers of a result hold.

A result's descriptor came from the service, so nothing but the kernel is asked what it is, and it is read at positions
of its own where it has any: the sender's position is shared.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Iterator
from typing import Any, Final

from hostline.cli.exits import CommandError, UsageError
from hostline.cli.terminal import Escaper, escape, is_terminal, write_bytes
from hostline.limits import MAX_BUFFER_SIZE
from hostline.unix.passing.descriptors import Fd

__all__ = ["Files", "fd_summary", "holds_name", "is_readable", "show_content"]

_MARK: Final = "@"
_CHUNK: Final = 1 << 20
_READ_KINDS: Final = ("regular", "memfd", "pipe")


def holds_name(value: Any) -> bool:
    """Say whether arguments hold a text that may name a file; the method's types say whether it does."""
    if isinstance(value, str):
        return value.startswith(_MARK)
    if isinstance(value, dict):
        return any(map(holds_name, value.values()))
    return isinstance(value, list | tuple) and any(map(holds_name, value))


class Files:
    """Open and read the files that arguments name.

    Args:
        may_open: Whether they may name any. What comes from standard input may have been written by somebody who may
            not read these files.
        has_input: Whether standard input is free, for `@-`.

    Attributes:
        has_input: Whether it still is.
    """

    def __init__(self, *, may_open: bool, has_input: bool) -> None:
        self._may_open = may_open
        self.has_input = has_input

    def path(self, text: str) -> str | None:
        """Return the path that a text names, `-` for standard input; None if it names none.

        Raises:
            UsageError: It names one and may not.
        """
        if not text.startswith(_MARK):
            return None
        path = text.removeprefix(_MARK)
        if not self._may_open:
            raise UsageError(
                f"{escape(text)}: standard input may not name files to be opened, unless --input-files is given"
            )
        if not path or "\0" in path:
            raise UsageError(f"{escape(text)} names no file: a file is written @PATH, standard input @-")
        if path == "-":
            if not self.has_input:
                raise UsageError("@-: standard input is used for something else")
            self.has_input = False
        return path

    def open(self, path: str) -> Fd:
        """Return a descriptor of a file, read-only, or of standard input.

        Raises:
            CommandError: It cannot be opened.
        """
        try:
            return Fd(os.dup(sys.stdin.fileno()) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise CommandError(f"{escape(path)} cannot be opened: {error.strerror}") from error

    def read(self, path: str) -> bytes:
        """Return what is in a file, or comes from standard input.

        Raises:
            CommandError: It cannot be read, or is larger than any call takes.
        """
        try:
            with self.open(path) as fd, fd.open("rb") as file:
                data: bytes = file.read(MAX_BUFFER_SIZE + 1)
        except OSError as error:
            raise CommandError(f"{escape(path)} cannot be read: {os.strerror(error.errno or 0)}") from error
        if len(data) > MAX_BUFFER_SIZE:
            raise CommandError(f"{escape(path)} exceeds the {MAX_BUFFER_SIZE} bytes of one argument")
        return data


# --- results -------------------------------------------------------------------------------------------


def fd_summary(fd: Fd) -> str:
    """Return a descriptor in a few words: `<fd regular, 1234 bytes>`."""
    kind = fd.kind
    size = f", {os.fstat(fd.fileno()).st_size} bytes" if kind in ("regular", "memfd") else ""
    return f"<fd {kind}{size}>"


def is_readable(fd: Fd) -> bool:
    """Say whether a descriptor has contents that can be copied: a file, a memfd or a pipe, not for writing only."""
    import fcntl

    is_write_only = fcntl.fcntl(fd.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
    return fd.kind in _READ_KINDS and not is_write_only


def show_content(content: Fd | bytes | memoryview) -> None:
    """Write to standard output what a buffer or a descriptor holds; on a terminal everything it would obey is escaped.

    Args:
        content: Bytes; or a descriptor that is readable, of which a file is read from its start and a pipe to its end.

    Raises:
        CommandError: It cannot be read.
    """
    is_escaped = is_terminal(sys.stdout)
    escaper = Escaper()
    for piece in _pieces(content):
        write_bytes(escaper.feed(bytes(piece)).encode() if is_escaped else piece)
    if is_escaped:
        write_bytes(escaper.feed(b"", is_last=True).encode() + b"\n")


def _pieces(content: Fd | bytes | memoryview) -> Iterator[bytes | memoryview]:
    if not isinstance(content, Fd):
        view = memoryview(content)
        yield from (view[start : start + _CHUNK] for start in range(0, len(view), _CHUNK))
        return
    number, done = content.fileno(), 0
    has_positions = stat.S_ISREG(os.fstat(number).st_mode)
    while True:
        try:
            data = os.pread(number, _CHUNK, done) if has_positions else os.read(number, _CHUNK)
        except BlockingIOError:  # the sender's flag, which is shared
            poll = select.poll()
            poll.register(number, select.POLLIN)
            poll.poll()
            continue
        except OSError as error:
            raise CommandError(f"the result's file cannot be read: {error.strerror} after {done} bytes") from error
        if not data:
            return
        done += len(data)
        yield data
