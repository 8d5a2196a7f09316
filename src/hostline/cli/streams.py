"""The standard streams: all three are there whatever the caller closed, and output that cannot be written says so.

Knows descriptors 0 to 2 and nothing of hostline; it is loaded before everything else that opens a descriptor.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["OutputError", "close_output", "open_missing", "watch_output"]

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


class OutputError(OSError):
    """Report that standard output cannot be written, such as on a full disk; a reader who left is a BrokenPipeError."""


def open_missing() -> None:
    """Open /dev/null for each of the descriptors 0 to 2 that is closed.

    A socket would get the free number otherwise, and what is printed would go to a peer.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, which this one is. A program that is run inherits it, as it does the others.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115 - it stays open


def watch_output() -> None:
    """Have writing to standard output raise `OutputError`, and show what does not fit into its encoding escaped."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        return
    stream.reconfigure(errors="backslashreplace")
    if stream is not sys.__stdout__:
        return  # somebody has put a stream of their own there
    raw = _Output(stream.fileno(), "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Output(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from error


def close_output() -> None:
    """Point standard output to nowhere, so that the interpreter's last flush does not fail once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
