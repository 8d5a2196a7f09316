"""The 8 bytes before each message of a channel, read and written. `cheader.pxd` is the same for the compiled core.

A compiled module finds these functions in C, under the same name; nothing here is checked, for that is done where the
values come from.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["HEADER", "joined", "new_buffer", "pack_into", "unpack"]

HEADER: Final = struct.Struct("<IBBH")

# (length, kind, 0, count of descriptors) that stand in some bytes at an offset.
unpack: Final = HEADER.unpack_from

# Write the same four into a buffer at an offset.
pack_into: Final = HEADER.pack_into

# A bytearray of some zeros.
new_buffer: Final = bytearray


def joined(data: ReadableBuffer, length: int, kind: int, fd_count: int) -> bytes:
    """Return a header, and the bytes behind it."""
    return b"".join((HEADER.pack(length, kind, 0, fd_count), data))
