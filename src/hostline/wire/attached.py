"""Values that travel beside a frame's payload: in the payload stands an extension that says where.

    code  data                                    stands for
    1     index, 1 byte                           the frame's descriptor with that index
    2     index, 1 byte; size in bytes, 8 bytes   the bytes in the sealed memory behind that descriptor

This floor knows neither descriptors nor memory. A floor above says which types are such values (`attach_type`), takes
them out of what is encoded (`Attach`), and puts them back where they were (`Detach`). Which frame is being encoded or
decoded is remembered here, for msgspec calls a hook without saying for whom.
"""

from __future__ import annotations

import secrets
import struct
import types
import typing
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, Final, Protocol, TypeVar

import msgspec

from hostline.wire.budget import Extent

__all__ = [
    "BUFFER_CODE",
    "FD_CODE",
    "Attach",
    "Attached",
    "Detach",
    "InPlaceDecoder",
    "Scattered",
    "added_size",
    "attach_type",
    "attached_schema",
    "close_owners",
    "decoder_for",
    "encode_into",
    "encode_plain",
    "in_place_type",
    "is_attached",
    "joined",
    "pack_buffer",
    "pack_fd",
    "place_for",
    "reading",
    "scattered",
    "settled",
    "unpack_buffer",
    "unpack_fd",
]

FD_CODE: Final = 1
BUFFER_CODE: Final = 2

_INDEX: Final = struct.Struct("<B")
_INDEX_AND_SIZE: Final = struct.Struct("<BQ")

T = TypeVar("T")


class Scattered(bytearray):
    """The begin of a frame, and where the whole of it is: large buffers stay in the memory of whoever sends them.

    Its length is that of the whole. `Outgoing` takes it apart; it is never sent by itself.

    Attributes:
        pieces: The frame, in order.
    """

    pieces: list[memoryview]
    _size: int

    def __len__(self) -> int:
        return self._size


class Attached(bytearray):
    """A frame, and the descriptors that ride on its first byte.

    Attributes:
        fds: Owners of the descriptors; whoever drops the frame closes them.
    """

    fds: list[Any]


def close_owners(fds: Iterable[Any]) -> None:
    """Close descriptors by their owners, also when one of them fails to close: a peer's own file may do that."""
    for fd in fds:
        try:
            fd.close()
        except OSError:
            pass  # the number is free all the same


class Attach(Protocol):
    """Take values out of what is encoded for one frame."""

    fds: list[Any]
    pieces: list[memoryview]  # large buffers that stand in the payload by `place_for` alone

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


# What stands for a large buffer until its frame is taken apart: an extension that never travels, and that nothing in a
# value can look like.
_PLACE: Final = secrets.token_bytes(15)
_PLACE_CODE: Final = 127
_PLACE_HEAD: Final = b"\xd8" + bytes([_PLACE_CODE])  # fixext 16
_PLACE_SIZE: Final = len(_PLACE_HEAD) + 16
_BYTES_HEAD: Final = struct.Struct(">BI")  # bin 32
_BIN_32: Final = 0xC6
_ADDED: Final = _BYTES_HEAD.size - _PLACE_SIZE  # what a buffer's head has more than its place


def place_for(index: int) -> msgspec.msgpack.Ext:
    """Return what stands for a buffer in an encoded value until `scattered` or `joined`."""
    return msgspec.msgpack.Ext(_PLACE_CODE, _PLACE + bytes([index]))


def added_size(pieces: list[memoryview]) -> int:
    """Return how many bytes a payload gains when its buffers are put in their places."""
    total = 0
    for piece in pieces:
        total += piece.nbytes + _ADDED
    return total


def _apart(buffer: bytearray, pieces: list[memoryview]) -> list[memoryview]:
    """Return a frame in order: what was encoded, and the buffers where their places are."""
    whole: list[memoryview] = []
    view = memoryview(buffer)
    begin = 0
    for index, piece in enumerate(pieces):
        at = buffer.find(_PLACE_HEAD + _PLACE + bytes([index]), begin)
        head = bytearray(view[begin:at])
        head += _BYTES_HEAD.pack(_BIN_32, piece.nbytes)
        whole += (memoryview(head), piece)
        begin = at + _PLACE_SIZE
    if begin < len(buffer):
        whole.append(view[begin:])
    return whole


def scattered(buffer: bytearray, pieces: list[memoryview]) -> Scattered:
    """Return a frame whose buffers are left where they are."""
    whole = _apart(buffer, pieces)
    frame = Scattered(whole[0])
    frame.pieces = whole
    frame._size = len(buffer) + added_size(pieces)
    return frame


def joined(buffer: bytearray, pieces: list[memoryview]) -> bytearray:
    """Return a frame with its buffers copied into it."""
    return bytearray().join(_apart(buffer, pieces))


# What is encoded and decoded now.
_attach: Final[ContextVar[Attach | None]] = ContextVar("attach", default=None)
_detach: Final[ContextVar[Detach | None]] = ContextVar("detach", default=None)

# Types whose values travel beside the payload: how each is made of what was decoded, and its JSON Schema.
_types: Final[dict[type, tuple[Callable[[Any], Any], dict[str, Any]]]] = {}
_in_place: Final[dict[type, type]] = {}


def attach_type(cls: type, convert: Callable[[Any], Any], schema: dict[str, Any], in_place: type | None = None) -> None:
    """Have values of a type travel beside the payload.

    Args:
        cls: The type, as handlers and callers write it.
        convert: Makes such a value of what was decoded; raises ValueError for anything else.
        schema: Its JSON Schema.
        in_place: The type that msgspec makes of the same bytes without copying them, if any.
    """
    _types[cls] = (convert, schema)
    if in_place is not None:
        _in_place[cls] = in_place


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
    if attach is None and _attach.get() is None:
        encode_plain(value, buffer, offset)
        return
    token = _attach.set(attach)  # also None: reading a value may make a call, which must not use the outer frame's
    try:
        encode_plain(value, buffer, offset)
    except BaseException:
        if attach is not None:
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


def in_place_type(annotation: Any) -> Any:
    """Return a type into which the values of another, or of its members if it is a union, are decoded without a copy.

    The same type where there is none: for fields of structs and items of lists, msgspec makes bytes of its own first.
    """
    if isinstance(annotation, type) and annotation in _in_place:
        return _in_place[annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = typing.get_args(annotation)
        changed = tuple(in_place_type(member) for member in members)
        return annotation if changed == members else typing.Union[changed]  # noqa: UP007 - made of a tuple
    return annotation


def settled(value: Any, whole: memoryview) -> Any:
    """Return a value that was decoded in place; a small part is copied, or it would keep all of a large frame."""
    if type(value) is memoryview and value.nbytes < whole.nbytes // 2:
        return memoryview(bytes(value))
    return value


class InPlaceDecoder:
    """Decode one buffer, without a copy where a large frame holds it.

    Args:
        annotation: The type.
        decoder: The usual decoder for it, which also says what is wrong with a value.
        extent: How much of a payload's form is left to the sender where it is decoded in place (budget.py).

    Attributes:
        extent: As given.
    """

    __slots__ = ("_in_place", "decode", "extent")

    def __init__(self, annotation: Any, decoder: msgspec.msgpack.Decoder[Any], extent: Extent) -> None:
        self.decode = decoder.decode
        self.extent = extent
        self._in_place = decoder_for(in_place_type(annotation))

    def decode_in_place(self, payload: memoryview) -> Any:
        """Return the value; raises what msgspec raises, also where the usual decoder would find a value."""
        return settled(self._in_place.decode(payload), payload)


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
