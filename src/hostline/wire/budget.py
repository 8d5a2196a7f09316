"""Bounds on what a payload may become once decoded: levels of nesting and number of elements.

The size of a frame bounds neither: a mebibyte of one-byte empty maps decodes to seventy mebibytes of dictionaries.
Declared types bound most payloads by themselves; the walk here is for those with `Any` or open-ended containers
in them, and is skipped where the size alone proves the bound. Source: the MessagePack specification.
"""

from __future__ import annotations

import enum
import sys
from typing import Final

import hostline.wire.header as header
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

# What a head byte says of what follows: which of the forms below, and a number that belongs to it.
_PLAIN: Final = 0  # a scalar, with so many bytes behind its head
_SIZED: Final = 1  # bytes or text, whose size stands in so many bytes
_EXTENSION: Final = 2  # an extension, whose size stands in so many bytes, with one more for its code
_ARRAY: Final = 3  # an array, whose count stands in so many bytes, or in the head
_MAP: Final = 4  # a map, in the same way
_INVALID: Final = 5

_HEADS: Final = {
    **dict.fromkeys(range(0x80), (_PLAIN, 0)), **dict.fromkeys(range(0xE0, 0x100), (_PLAIN, 0)),
    **dict.fromkeys(range(0x80, 0x90), (_MAP, 0)), **dict.fromkeys(range(0x90, 0xA0), (_ARRAY, 0)),
    **{head: (_PLAIN, head & 0x1F) for head in range(0xA0, 0xC0)},
    0xC0: (_PLAIN, 0), 0xC1: (_INVALID, 0), 0xC2: (_PLAIN, 0), 0xC3: (_PLAIN, 0),
    0xC4: (_SIZED, 1), 0xC5: (_SIZED, 2), 0xC6: (_SIZED, 4),
    0xC7: (_EXTENSION, 1), 0xC8: (_EXTENSION, 2), 0xC9: (_EXTENSION, 4),
    0xCA: (_PLAIN, 4), 0xCB: (_PLAIN, 8), 0xCC: (_PLAIN, 1), 0xCD: (_PLAIN, 2), 0xCE: (_PLAIN, 4), 0xCF: (_PLAIN, 8),
    0xD0: (_PLAIN, 1), 0xD1: (_PLAIN, 2), 0xD2: (_PLAIN, 4), 0xD3: (_PLAIN, 8),
    0xD4: (_PLAIN, 2), 0xD5: (_PLAIN, 3), 0xD6: (_PLAIN, 5), 0xD7: (_PLAIN, 9), 0xD8: (_PLAIN, 17),
    0xD9: (_SIZED, 1), 0xDA: (_SIZED, 2), 0xDB: (_SIZED, 4),
    0xDC: (_ARRAY, 2), 0xDD: (_ARRAY, 4), 0xDE: (_MAP, 2), 0xDF: (_MAP, 4),
}  # fmt: skip
_FORMS: Final = bytes(_HEADS[head][0] for head in range(256))
_WIDTHS: Final = bytes(_HEADS[head][1] for head in range(256))

_DEEP: Final = Extent.DEEP
_FIXED: Final = Extent.FIXED


def check_budget(
    payload: bytes | memoryview,
    extent: Extent = Extent.DEEP,
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
    if extent is _DEEP:
        if size <= max_elements and len(bytes(payload).translate(None, _NOT_CONTAINERS)) <= max_depth:
            return
    elif (extent is _FIXED or size <= max_elements) and (size <= SHALLOW or sys.getrecursionlimit() <= SHALLOW):
        return
    _walk(bytes(payload), max_depth, max_elements)


def _walk(payload: bytes, max_depth: int, max_elements: int) -> None:
    """Count without recursion and without building a value.

    One loop of branches, because each value of a hostile payload passes here, and a function would cost a call for
    each.
    """
    size = len(payload)
    at = 0
    elements = 0
    depth = 0
    left = 0  # elements still to come on the innermost open level
    outer: list[int] = []  # and on the others
    while at < size:
        head = payload[at]
        at += 1
        elements += 1
        if elements > max_elements:
            raise RemoteProtocolError(f"payload has more than max_elements {max_elements} values")
        form = _FORMS[head]
        width = _WIDTHS[head]
        children = -1  # not a container
        if form == _PLAIN:
            at += width
        elif form <= _EXTENSION:
            at += width + header.read_big(payload, at, width) + (form == _EXTENSION)
        elif form <= _MAP:
            children = header.read_big(payload, at, width) if width else head & 0x0F
            if form == _MAP:
                children *= 2
            at += width
        else:
            raise RemoteProtocolError(f"byte {head:#04x} at offset {at - 1} is not MessagePack")
        if elements + children > max_elements:
            raise RemoteProtocolError(f"payload has more than max_elements {max_elements} values")
        if depth:
            left -= 1
        if children >= 0:
            if depth >= max_depth:
                raise RemoteProtocolError(f"payload nests deeper than max_depth {max_depth} levels")
            if depth:
                outer.append(left)
            depth += 1
            left = children
        while depth and not left:
            depth -= 1
            left = outer.pop() if depth else 0
    if at > size or depth:
        raise RemoteProtocolError(f"payload of {size} bytes ends in the middle of a value")
