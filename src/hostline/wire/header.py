"""The 16 bytes before each payload, read and written. `cheader.pxd` is the same for the compiled core.

A compiled module finds these functions in C, under the same name; nothing here is checked, for that is done where the
values come from.
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = [
    "HEADER",
    "HEADER_SIZE",
    "frame",
    "new_buffer",
    "new_tuple",
    "pack_into",
    "pack_time",
    "read_big",
    "unpack",
    "unpack_time",
]

HEADER: Final = struct.Struct("<IBBHII")
HEADER_SIZE: Final = HEADER.size
_TIME: Final = struct.Struct("<Q")

# (length, kind, flags, count of descriptors, call id, method number) that stand in some bytes at an offset.
unpack: Final = HEADER.unpack_from

# Write the same six into a buffer at an offset.
pack_into: Final = HEADER.pack_into

# Eight bytes that stand behind the header of some calls, as a tuple of one.
unpack_time: Final = _TIME.unpack_from
pack_time: Final = _TIME.pack_into

# A bytearray of some zeros.
new_buffer: Final = bytearray

# A tuple of a class, from a plain one: half the price of a NamedTuple's own constructor.
new_tuple: Final = tuple.__new__


def frame(payload: bytes | bytearray, kind: int, flags: int, call_id: int, method: int) -> bytes:
    """Return a header without descriptors, and the payload behind it."""
    return HEADER.pack(len(payload), kind, flags, 0, call_id, method) + payload


def read_big(data: bytes, at: int, width: int) -> int:
    """Return a big-endian integer of a width of 1 to 4 bytes, of as many of them as there are."""
    return int.from_bytes(data[at : at + width], "big")
