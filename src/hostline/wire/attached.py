"""Values that travel beside a frame's payload: in the payload stands an extension that says where.

    code  data                                    stands for
    1     index, 1 byte                           the frame's descriptor with that index
    2     index, 1 byte; size in bytes, 8 bytes   the bytes in the sealed memory behind that descriptor

This floor knows neither descriptors nor memory. A floor above says which types are such values (`attach_type`), takes
them out of what is encoded (`Attach`), and puts them back where they were (`Detach`). Which frame is being encoded or
decoded is remembered here, for msgspec calls a hook without saying for whom.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, Protocol, TypeVar

import msgspec

__all__ = [
    "BUFFER_CODE",
    "FD_CODE",
    "Attach",
    "Attached",
    "Detach",
    "attach_type",
    "attached_schema",
    "decoder_for",
    "encode_into",
    "encode_plain",
    "is_attached",
    "pack_buffer",
    "pack_fd",
    "reading",
    "unpack_buffer",
    "unpack_fd",
]

FD_CODE: Final = 1
BUFFER_CODE: Final = 2

_INDEX: Final = struct.Struct("<B")
_INDEX_AND_SIZE: Final = struct.Struct("<BQ")

T = TypeVar("T")


class Attached(bytearray):
    """A frame, and the descriptors that ride on its first byte.

    Attributes:
        fds: Owners of the descriptors; whoever drops the frame closes them.
    """

    fds: list[Any]


class Attach(Protocol):
    """Take values out of what is encoded for one frame."""

    fds: list[Any]

    def take_out(self, value: Any) -> Any:
        """Return what stands in the payload for a value that msgspec cannot encode.

        Raises:
            TypeError: It cannot be sent.
        """
        ...

    def discard(self) -> None:
        """Close what was taken out: the frame will not be sent."""
        ...


class Detach(Protocol):
    """Put the values of one received frame in their places."""

    def find(self, code: int, data: memoryview) -> Any:
        """Return the value that an extension stands for.

        Raises:
            ValueError: There is none.
        """
        ...


# What is encoded and decoded now.
_attach: Final[ContextVar[Attach | None]] = ContextVar("attach", default=None)
_detach: Final[ContextVar[Detach | None]] = ContextVar("detach", default=None)

# Types whose values travel beside the payload: how each is made of what was decoded, and its JSON Schema.
_types: Final[dict[type, tuple[Callable[[Any], Any], dict[str, Any]]]] = {}


def attach_type(cls: type, convert: Callable[[Any], Any], schema: dict[str, Any]) -> None:
    """Have values of a type travel beside the payload.

    Args:
        cls: The type, as handlers and callers write it.
        convert: Makes such a value of what was decoded; raises ValueError for anything else.
        schema: Its JSON Schema.
    """
    _types[cls] = (convert, schema)


def is_attached(cls: type) -> bool:
    """Say whether values of a type travel beside the payload."""
    return cls in _types


def attached_schema(cls: type) -> dict[str, Any]:
    """Return the JSON Schema of such a type.

    Raises:
        TypeError: It is no such type.
    """
    if cls not in _types:
        raise TypeError(f"Generating JSON schema for custom types requires a schema: {cls.__qualname__} has none")
    return {**_types[cls][1]}


def _take_out(value: Any) -> Any:
    attach = _attach.get()
    if attach is not None:
        return attach.take_out(value)
    declared = next((cls for cls in _types if isinstance(value, cls)), None)
    name = (declared or type(value)).__qualname__
    if declared is not None or hasattr(value, "fileno"):
        raise TypeError(f"type {name} cannot be sent here: descriptors and buffers are not declared for it")
    raise TypeError(f"Encoding objects of type {name} is unsupported")


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=_take_out)
encode_plain: Final = _encoder.encode_into  # without anything that could be taken out, and as fast as msgspec


def encode_into(value: Any, buffer: bytearray, offset: int, attach: Attach | None = None) -> None:
    """Encode a value behind `offset` bytes of a buffer; what is attached is left with `attach`.

    Raises:
        Exception: Whatever msgspec, or an object that is read, raises.
    """
    if attach is None:
        encode_plain(value, buffer, offset)
        return
    token = _attach.set(attach)
    try:
        encode_plain(value, buffer, offset)
    except BaseException:
        attach.discard()
        raise
    finally:
        _attach.reset(token)


def _convert(cls: type, value: Any) -> Any:
    if cls not in _types:
        raise TypeError(f"type {cls.__qualname__} is not supported: nothing can be decoded into it")
    return _types[cls][0](value)


def _find(code: int, data: memoryview) -> Any:
    detach = _detach.get()
    if detach is None or code not in (FD_CODE, BUFFER_CODE):
        return msgspec.msgpack.Ext(code, bytes(data))
    return detach.find(code, data)


def decoder_for(annotation: Any) -> msgspec.msgpack.Decoder[Any]:
    """Return the decoder for a type, with attached values among the types it may hold."""
    return msgspec.msgpack.Decoder(annotation, dec_hook=_convert, ext_hook=_find)


def reading(detach: Detach, decode: Callable[[], T]) -> T:
    """Decode one frame's payload, its attached values at hand."""
    token = _detach.set(detach)
    try:
        return decode()
    finally:
        _detach.reset(token)


def pack_fd(index: int) -> msgspec.msgpack.Ext:
    """Return what stands in a payload for the frame's descriptor with that index."""
    return msgspec.msgpack.Ext(FD_CODE, _INDEX.pack(index))


def unpack_fd(data: memoryview) -> int:
    """Return the index; raises ValueError if it is malformed."""
    if len(data) != _INDEX.size:
        raise ValueError(f"descriptor's place of {len(data)} bytes, where {_INDEX.size} belongs")
    index: int = _INDEX.unpack(data)[0]
    return index


def pack_buffer(index: int, size: int) -> msgspec.msgpack.Ext:
    """Return what stands in a payload for `size` bytes of memory behind the frame's descriptor with that index."""
    return msgspec.msgpack.Ext(BUFFER_CODE, _INDEX_AND_SIZE.pack(index, size))


def unpack_buffer(data: memoryview) -> tuple[int, int]:
    """Return the index and the size in bytes; raises ValueError if they are malformed."""
    if len(data) != _INDEX_AND_SIZE.size:
        raise ValueError(f"buffer's place of {len(data)} bytes, where {_INDEX_AND_SIZE.size} belong")
    index, size = _INDEX_AND_SIZE.unpack(data)
    return index, size
