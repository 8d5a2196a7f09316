"""Bounds on what a payload may become once decoded: levels of nesting and number of elements.

The size of a frame bounds neither: a mebibyte of one-byte empty maps decodes to seventy mebibytes of dictionaries.
Declared types bound most payloads by themselves; the walk here is for those with `Any` or open-ended containers
in them, and is skipped where the size alone proves the bound. Source: the MessagePack specification.
"""

from __future__ import annotations

import enum
import sys
from typing import Final

from hostline.errors import RemoteProtocolError
from hostline.limits import MAX_DEPTH, MAX_ELEMENTS

__all__ = ["SHALLOW", "Extent", "check_budget"]

# Levels of nesting that no thread's C stack minds. The decoder stops at Python's own recursion limit; a program that
# has raised it far beyond this would crash on what a declared type skips (a megabyte of `[[[[` in an unknown field).
SHALLOW: Final = 10_000


class Extent(enum.IntEnum):
    """How much of a payload's form its declared type leaves to the sender.

    FIXED: nothing, a struct of scalars. LONG: how many values, as in a list of numbers. DEEP: how many levels as
    well, as in `Any` and in types that contain themselves.
    """

    FIXED = 0
    LONG = 1
    DEEP = 2


# Every byte that cannot open a container. What is left after deleting these is an upper bound for the nesting.
_NOT_CONTAINERS: Final = bytes(b for b in range(256) if not (0x80 <= b <= 0x9F or 0xDC <= b <= 0xDF))

# Bytes after the head that carry no element of their own: fixed-size scalars and the width of length fields.
_FIXED: Final = {
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8,
    0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8, 0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip
_SIZED: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bin and str
_EXTENSION: Final = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_CONTAINER: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # width of the count, elements each


def check_budget(
    payload: bytes | memoryview,
    extent: Extent = Extent.DEEP,
    *,
    max_depth: int = MAX_DEPTH,
    max_elements: int = MAX_ELEMENTS,
) -> None:
    """Refuse a MessagePack payload that nests too deep or holds too many elements.

    Args:
        payload: One or more encoded values.
        extent: What the declared type leaves to the sender; the rest needs no look.
        max_depth: Levels of arrays and maps allowed.
        max_elements: Values allowed in all, keys counted as well.

    Raises:
        RemoteProtocolError: A bound is broken, or the bytes are not MessagePack.
    """
    size = len(payload)
    if extent is Extent.DEEP:
        if size <= max_elements and len(bytes(payload).translate(None, _NOT_CONTAINERS)) <= max_depth:
            return
    elif (extent is Extent.FIXED or size <= max_elements) and (size <= SHALLOW or sys.getrecursionlimit() <= SHALLOW):
        return
    _walk(payload, max_depth, max_elements)


def _walk(payload: bytes | memoryview, max_depth: int, max_elements: int) -> None:
    """Count without recursion and without building a value.

    One loop of branches, because each byte of a hostile payload passes here: over 60 lines as functions would cost
    a call for every element.
    """
    size = len(payload)
    at = 0
    elements = 0
    open_counts: list[int] = []  # elements still to come on each open level
    while at < size:
        head = payload[at]
        at += 1
        elements += 1
        if elements > max_elements:
            raise RemoteProtocolError(f"payload has more than max_elements {max_elements} values")
        children = -1  # not a container
        if head <= 0x7F or head >= 0xE0:
            pass
        elif head <= 0x8F:
            children = (head & 0x0F) * 2
        elif head <= 0x9F:
            children = head & 0x0F
        elif head <= 0xBF:
            at += head & 0x1F
        elif head in _FIXED:
            at += _FIXED[head]
        elif head in _SIZED:
            width = _SIZED[head]
            at += width + int.from_bytes(payload[at : at + width], "big")
        elif head in _EXTENSION:
            width = _EXTENSION[head]
            at += width + 1 + int.from_bytes(payload[at : at + width], "big")
        elif head in _CONTAINER:
            width, each = _CONTAINER[head]
            children = int.from_bytes(payload[at : at + width], "big") * each
            at += width
        else:
            raise RemoteProtocolError(f"byte {head:#04x} at offset {at - 1} is not MessagePack")
        if elements + children > max_elements:
            raise RemoteProtocolError(f"payload has more than max_elements {max_elements} values")
        if open_counts:
            open_counts[-1] -= 1
        if children >= 0:
            if len(open_counts) >= max_depth:
                raise RemoteProtocolError(f"payload nests deeper than max_depth {max_depth} levels")
            open_counts.append(children)
        while open_counts and not open_counts[-1]:
            open_counts.pop()
    if at > size or open_counts:
        raise RemoteProtocolError(f"payload of {size} bytes ends in the middle of a value")
