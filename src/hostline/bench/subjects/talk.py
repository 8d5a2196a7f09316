"""What the raw and framed subjects say to each other, so that a server knows what is asked of it.

A client that begins sends 16 bytes: what, the size, how many. The server then echoes, acknowledges each or counts all.
Where connections come and go, or many are held (`is_plain_echo`), there is no such header: what comes goes back. The C
and Go programs speak the same.
"""

from __future__ import annotations

import struct

from hostline.bench.subject import Door, WrongAnswerError

__all__ = [
    "ECHO", "FDS", "HEADER", "NUMBER", "ONE_WAY", "TRANSFER", "check_number", "is_plain_echo", "pack_header", "padding",
]  # fmt: skip

HEADER = struct.Struct("<c3xIQ")
NUMBER = struct.Struct("<Q")
ECHO, TRANSFER, ONE_WAY, FDS = b"E", b"T", b"O", b"F"


def pack_header(what: bytes, size: int, count: int) -> bytes:
    """Return the header of `count` messages of `size` bytes."""
    return HEADER.pack(what, size, count)


def is_plain_echo(door: Door) -> bool:
    """Tell whether there are no headers, because connections come and go or many are held."""
    return door.workload in ("connect", "fanin", "idle")


def padding(size: int) -> bytes:
    """Return a message of `size` bytes."""
    return b"x" * size


def check_number(answer: bytes | memoryview, expected: int, of_what: str) -> None:
    """Judge an acknowledgement.

    Raises:
        WrongAnswerError: It says another number.
    """
    got = NUMBER.unpack(answer)[0] if len(answer) == NUMBER.size else None
    if got != expected:
        raise WrongAnswerError(f"the server confirmed {got} {of_what}, not {expected}")
