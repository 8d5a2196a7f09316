"""The context that travels with a CALL: a small map of texts, W3C trace context mostly, before the arguments.

What the texts mean is for the programs on both sides; here they are only bounded and found. The map is read by hand,
for what follows it belongs to the method, and msgspec reads a payload whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from hostline.errors import RemoteProtocolError
from hostline.limits import MAX_CONTEXT_ENTRIES, MAX_CONTEXT_SIZE

__all__ = ["encode_context", "split_context"]

_encode: Final = msgspec.msgpack.encode

# The first byte of a map, or a text, whose length follows in 1, 2 or 4 bytes.
_MAP_SIZES: Final = {0xDE: 2, 0xDF: 4}
_STR_SIZES: Final = {0xD9: 1, 0xDA: 2, 0xDB: 4}


def encode_context(context: Mapping[str, str]) -> bytes:
    """Return the map as it stands in a CALL; nothing if it would be empty.

    What the other side would refuse is left out, the last entries first: tracing must not make a call fail.
    """
    taken: dict[str, str] = {}
    size = 3  # the map's own head at its longest
    for key, value in context.items():
        if not key or key != key.lower():
            continue
        try:
            more = len(_encode(key)) + len(_encode(value))
        except UnicodeError:  # a lone surrogate
            continue
        if len(taken) == MAX_CONTEXT_ENTRIES or size + more > MAX_CONTEXT_SIZE:
            break
        taken[key] = value
        size += more
    return _encode(taken) if taken else b""


def split_context(payload: bytes | memoryview) -> tuple[dict[str, str], bytes | memoryview]:
    """Return the map at the beginning of a payload, and what stands behind it.

    Raises:
        RemoteProtocolError: It is no map of texts, or breaks a bound.
    """
    data = bytes(payload[:MAX_CONTEXT_SIZE])
    try:
        count, at = _head(data, 0, 0x80, 0x0F, _MAP_SIZES)
        if count > MAX_CONTEXT_ENTRIES:
            raise RemoteProtocolError(f"call context of {count} entries exceeds {MAX_CONTEXT_ENTRIES}")
        context: dict[str, str] = {}
        for _ in range(count):
            key, at = _text(data, at)
            value, at = _text(data, at)
            if not key or key != key.lower():
                raise RemoteProtocolError(f"call context has the key {key!r}: keys are lower case, and not empty")
            if key in context:
                raise RemoteProtocolError(f"call context has the key {key!r} twice")
            context[key] = value
    except IndexError:
        if len(payload) > MAX_CONTEXT_SIZE:
            raise RemoteProtocolError(f"call context exceeds {MAX_CONTEXT_SIZE} bytes") from None
        raise RemoteProtocolError(f"call context does not fit into the payload of {len(payload)} bytes") from None
    except UnicodeDecodeError:
        raise RemoteProtocolError("call context holds a text that is not UTF-8") from None
    return context, payload[at:]


def _text(data: bytes, at: int) -> tuple[str, int]:
    size, at = _head(data, at, 0xA0, 0x1F, _STR_SIZES)
    if at + size > len(data):
        raise IndexError
    return data[at : at + size].decode("utf-8"), at + size


def _head(data: bytes, at: int, short: int, mask: int, sizes: dict[int, int]) -> tuple[int, int]:
    """Return the length that a value's first bytes give, and where they end; IndexError if there are too few."""
    first = data[at]
    if first & ~mask == short:
        return first & mask, at + 1
    width = sizes.get(first)
    if width is None:
        what = "map" if short == 0x80 else "text"
        raise RemoteProtocolError(f"call context has the byte {first:#04x} where a {what} begins")
    if at + 1 + width > len(data):
        raise IndexError
    return int.from_bytes(data[at + 1 : at + 1 + width], "big"), at + 1 + width
