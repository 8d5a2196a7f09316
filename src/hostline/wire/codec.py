"""What the payloads of frames hold, in MessagePack, by msgspec. docs/reference/wire.md is the text for it.

HELLO     the eight bytes `hostline`, then a map: ClientHello or ServerHello
CALL      [time left in microseconds, 8 bytes, if flag DEADLINE], [a map of texts, if flag CONTEXT: see context.py],
          then an array of arguments, or, if flag NAMED, an array of two: the array of arguments and a map of
          named ones;
          if flag STREAM, one argument is nil and its items follow in frames of their own
REPLY     the result
ITEM      one item of a stream, a result's or an argument's
          (in these three, descriptors and large buffers are extensions: see attached.py)
CREDIT    bytes of items that the other side may send beyond what it may already, 4 bytes
ERROR     an array: code, name, message
GOAWAY    an array: code, reason, the highest call id that is still answered
END, CANCEL, PING, PONG    nothing

More than 400 lines, because both directions of every kind of frame stand beside one another.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar

import msgspec

import hostline.wire.header as header
from hostline.errors import (
    InvalidArgumentError,
    InvalidResultError,
    LocalProtocolError,
    OverloadedError,
    RemoteProtocolError,
)
from hostline.limits import DEFAULT_MAX_FRAME_SIZE, MAX_HELLO_SIZE, MIN_MAX_FRAME_SIZE
from hostline.wire.attached import (
    Attach,
    Attached,
    InPlaceDecoder,
    added_size,
    decoder_for,
    encode_into,
    encode_plain,
    in_place_type,
    joined,
    scattered,
)
from hostline.wire.budget import SHALLOW, Extent, check_budget
from hostline.wire.context import encode_context, split_context
from hostline.wire.frame import Flag, Frame, Kind, encode_frame
from hostline.wire.header import HEADER_SIZE

__all__ = [
    "FEATURES",
    "MAGIC",
    "VERSION",
    "ClientHello",
    "ErrorCode",
    "Failure",
    "Farewell",
    "GoawayCode",
    "MethodEntry",
    "ServerHello",
    "decode_credit",
    "decode_failure",
    "decode_farewell",
    "decode_hello",
    "decode_result",
    "encode_call",
    "encode_credit",
    "encode_failure",
    "encode_farewell",
    "encode_hello",
    "encode_item",
    "encode_reply",
    "hello_version",
    "own_features",
    "result_decoder",
    "split_call",
]

MAGIC: Final = b"hostline"
VERSION: Final = 1

# Names of optional parts both sides know. An unknown name is ignored, so a later version may add to it.
FEATURES: Final[tuple[str, ...]] = ("cancel", "context", "deadline", "descriptors", "ping", "streams")

# Bounds on texts, in bytes of UTF-8. With these, every error and every farewell fits into the smallest
# `max_frame_size` that a peer may name; a hello's features and program are kept as long as its connection.
_MAX_NAME: Final = 200
_MAX_REASON: Final = 700
_MAX_MESSAGE: Final = 4096
_MAX_PROGRAM: Final = 256
_BESIDE_MESSAGE: Final = 256  # code, name and MessagePack's own bytes in an ERROR

_FD_COUNT: Final = struct.Struct("<H")
_FD_COUNT_AT: Final = 6  # its offset in the header
_CREDIT: Final = struct.Struct("<I")
_LONGEST: Final = 1.8e13  # seconds whose microseconds still fit into 64 bits

_FrameSize = Annotated[int, msgspec.Meta(ge=MIN_MAX_FRAME_SIZE)]
_Features = Annotated[list[Annotated[str, msgspec.Meta(max_length=64)]], msgspec.Meta(max_length=64)]

# Plain integers for the hot path: arithmetic on enum members costs ten times as much.
_CALL: Final = int(Kind.CALL)
_REPLY: Final = int(Kind.REPLY)
_DEADLINE: Final = int(Flag.DEADLINE)
_NAMED: Final = int(Flag.NAMED)
_STREAM: Final = int(Flag.STREAM)
_CONTEXT: Final = int(Flag.CONTEXT)
_ITEM: Final = int(Kind.ITEM)
_SIZE: Final = HEADER_SIZE


def own_features(has_descriptors: bool) -> list[str]:
    """Return what this side names in its hello, with or without descriptors."""
    return [name for name in FEATURES if has_descriptors or name != "descriptors"]


class ClientHello(msgspec.Struct, kw_only=True):
    """Introduce the client: protocol version, features, the largest payload it takes in bytes, its program."""

    version: int = VERSION
    features: _Features = msgspec.field(default_factory=lambda: list(FEATURES))
    max_frame_size: _FrameSize = DEFAULT_MAX_FRAME_SIZE
    program: Annotated[str, msgspec.Meta(max_length=_MAX_PROGRAM)]


class MethodEntry(msgspec.Struct, array_like=True, frozen=True):
    """Tell one method's name, whether repeating a call does no harm, and what is special in its arguments and result.

    Either may be a stream, and either may hold descriptors or buffers. The method's number is its place in the list.
    """

    name: str
    is_idempotent: bool = False
    streams_result: bool = False
    streams_argument: bool = False
    takes_descriptors: bool = False
    gives_descriptors: bool = False


class ServerHello(msgspec.Struct, kw_only=True):
    """Introduce the service: protocol version, features, largest payload in bytes, name, methods by number."""

    version: int = VERSION
    features: _Features = msgspec.field(default_factory=lambda: list(FEATURES))
    max_frame_size: _FrameSize = DEFAULT_MAX_FRAME_SIZE
    service: str
    methods: list[MethodEntry]


class ErrorCode:
    """Why one call failed."""

    DEADLINE: Final = "deadline"
    OVERLOADED: Final = "overloaded"
    NOT_FOUND: Final = "not_found"
    INVALID_ARGUMENT: Final = "invalid_argument"
    CANCELLED: Final = "cancelled"
    DENIED: Final = "denied"
    UNAVAILABLE: Final = "unavailable"
    NOT_RUN: Final = "not_run"
    INTERNAL: Final = "internal"
    DECLARED: Final = "declared"


class GoawayCode:
    """Why a connection ends."""

    SHUTDOWN: Final = "shutdown"
    REFUSED: Final = "refused"
    VERSION: Final = "version"
    PROTOCOL: Final = "protocol"
    TIMEOUT: Final = "timeout"
    LIMIT: Final = "limit"
    BUSY: Final = "busy"


class Failure(msgspec.Struct, array_like=True, frozen=True):
    """Hold the payload of an ERROR frame."""

    code: str
    name: str
    message: str


class Farewell(msgspec.Struct, array_like=True, frozen=True):
    """Hold the payload of a GOAWAY frame: calls with an id above `last_call_id` were not run and will not be."""

    code: str
    reason: str
    last_call_id: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]


class _AnyHello(msgspec.Struct):
    """Read the one field that a hello has in every version of the protocol."""

    version: int


Hello = TypeVar("Hello", ClientHello, ServerHello)

_encoder: Final = msgspec.msgpack.Encoder()
_failure_decoder: Final = msgspec.msgpack.Decoder(Failure)
_farewell_decoder: Final = msgspec.msgpack.Decoder(Farewell)
_version_decoder: Final = msgspec.msgpack.Decoder(_AnyHello)
_hello_decoders: Final[dict[type, msgspec.msgpack.Decoder[Any]]] = {
    ClientHello: msgspec.msgpack.Decoder(ClientHello),
    ServerHello: msgspec.msgpack.Decoder(ServerHello),
}


def encode_hello(hello: ClientHello | ServerHello) -> bytes:
    """Return the HELLO frame.

    Raises:
        LocalProtocolError: It is larger than a peer takes: the service has too many methods.
    """
    if isinstance(hello, ClientHello):
        hello = msgspec.structs.replace(hello, program=_cut(hello.program, _MAX_PROGRAM))
    payload = MAGIC + _encoder.encode(hello)
    if len(payload) > MAX_HELLO_SIZE:
        raise LocalProtocolError(
            f"hello of {len(payload)} bytes exceeds max_hello_size {MAX_HELLO_SIZE}: fewer methods, or shorter names"
        )
    return encode_frame(Kind.HELLO, 0, payload)


def hello_version(payload: bytes | memoryview) -> int:
    """Read the protocol version out of a HELLO payload of whatever version.

    Raises:
        RemoteProtocolError: It does not start with the magic bytes, or has no version.
    """
    if payload[: len(MAGIC)] != MAGIC:
        raise RemoteProtocolError("the peer does not speak hostline: its hello lacks the magic bytes")
    version: int = _decode(_version_decoder, payload[len(MAGIC) :], "hello").version
    return version


def decode_hello(payload: bytes | memoryview, expected: type[Hello]) -> Hello:
    """Read a HELLO payload of this version.

    Raises:
        RemoteProtocolError: It does not start with the magic bytes or is malformed.
    """
    hello_version(payload)
    hello: Hello = _decode(_hello_decoders[expected], payload[len(MAGIC) :], "hello")
    return hello


def encode_call(
    call_id: int,
    method: int,
    args: tuple[Any, ...],
    keywords: dict[str, Any] | None = None,
    time_left: float | None = None,
    max_frame_size: int = DEFAULT_MAX_FRAME_SIZE,
    has_items: bool = False,
    attach: Attach | None = None,
    context: Mapping[str, str] | None = None,
) -> bytearray:
    """Return a CALL frame.

    Args:
        call_id: The caller's number for this call, above 0.
        method: The method's number from the server's hello.
        args: Arguments by position; anything msgspec can encode.
        keywords: Arguments by name.
        time_left: Seconds until the caller stops waiting, or None.
        max_frame_size: The largest payload the server takes, in bytes.
        has_items: Whether an argument is a stream, whose items follow; None stands at its place.
        attach: Takes descriptors and buffers out, where the method takes them.
        context: Texts that travel along, lower case keys; what is too much is left out.

    Raises:
        InvalidArgumentError: An argument cannot be encoded, or all of them together exceed the frame.
        OverloadedError: This process has no descriptor or no memory left for what travels beside them.
    """
    flags = 0
    if time_left is None:
        buffer = header.new_buffer(_SIZE)
    else:
        flags = _DEADLINE
        buffer = header.new_buffer(_SIZE + 8)
        left = int(time_left * 1e6) if 0 <= time_left < _LONGEST else _outermost(time_left)
        header.pack_time(buffer, _SIZE, left)
    if context and (extra := encode_context(context)):
        flags |= _CONTEXT
        buffer += extra
    try:
        if keywords:
            flags |= _NAMED
            encode_into((args, keywords), buffer, len(buffer), attach)
        else:
            encode_into(args, buffer, len(buffer), attach)
    except OverloadedError:
        raise  # there is no room for what would travel beside them
    except Exception as error:  # also what a half-built object raises when it is read
        raise InvalidArgumentError(f"arguments cannot be encoded: {error}") from error
    if has_items:
        flags |= _STREAM
    size = len(buffer) - _SIZE
    if attach is not None and attach.pieces:
        size += added_size(attach.pieces)
    if size > max_frame_size and flags & _CONTEXT:  # a call that fits without its context is made without it
        begin = _SIZE + (8 if flags & _DEADLINE else 0)
        del buffer[begin : begin + len(extra)]
        flags &= ~_CONTEXT
        size -= len(extra)
    if size > max_frame_size:
        _drop(attach)
        raise InvalidArgumentError(
            f"arguments of {size} bytes exceed max_frame_size {max_frame_size}: large ones travel as hostline.Buffer"
        )
    header.pack_into(buffer, 0, size, _CALL, flags, 0, call_id, method)
    return _with_descriptors(buffer, attach) if attach is not None else buffer


def _with_descriptors(buffer: bytearray, attach: Attach) -> bytearray:
    """Return a frame together with the descriptors and the large buffers that were taken out of what it holds."""
    if attach.pieces:
        if not attach.fds:
            return scattered(buffer, attach.pieces)
        buffer = joined(buffer, attach.pieces)
    if not attach.fds:
        return buffer
    _FD_COUNT.pack_into(buffer, _FD_COUNT_AT, len(attach.fds))
    frame = Attached(buffer)
    frame.fds = attach.fds
    return frame


def _drop(attach: Attach | None) -> None:
    if attach is not None:
        attach.discard()


def _outermost(time_left: float) -> int:
    """Return the microseconds for a time left that is negative or beyond what 64 bits hold."""
    return 0 if time_left < 0 else 0xFFFF_FFFF_FFFF_FFFF


def split_call(frame: Frame) -> tuple[float | None, bytes | memoryview, bool, dict[str, str] | None]:
    """Return a call's time left in seconds or None, its encoded arguments, whether some are named, and its context.

    Raises:
        RemoteProtocolError: The payload is too short for its flags, or its context is malformed.
    """
    flags, payload = frame.flags, frame.payload
    if not flags:
        return None, payload, False, None
    time_left = None
    if flags & _DEADLINE:
        if len(payload) < 8:
            raise RemoteProtocolError(f"call payload of {len(payload)} bytes has no room for its time left")
        (left,) = header.unpack_time(payload if type(payload) is bytes else bytes(payload[:8]))
        time_left = left / 1e6
        payload = payload[8:]
    context = None
    if flags & _CONTEXT:
        context, payload = split_context(payload)
    return time_left, payload, flags & _NAMED != 0, context


def encode_reply(
    call_id: int, result: Any, max_frame_size: int = DEFAULT_MAX_FRAME_SIZE, attach: Attach | None = None
) -> bytearray:
    """Return a REPLY frame; `attach` takes descriptors and buffers out, where the method gives them.

    Raises:
        InvalidResultError: The result cannot be encoded or exceeds the frame.
    """
    buffer = header.new_buffer(_SIZE)
    try:
        if attach is None:
            encode_plain(result, buffer, _SIZE)
        else:
            encode_into(result, buffer, _SIZE, attach)
    except Exception as error:  # also what a half-built object raises when it is read
        raise InvalidResultError(f"result cannot be encoded: {error}") from error
    size = len(buffer) - _SIZE
    if attach is not None and attach.pieces:
        size += added_size(attach.pieces)
    if size > max_frame_size:
        _drop(attach)
        raise InvalidResultError(
            f"result of {size} bytes exceeds max_frame_size {max_frame_size}: large ones travel as hostline.Buffer"
        )
    header.pack_into(buffer, 0, size, _REPLY, 0, 0, call_id, 0)
    return _with_descriptors(buffer, attach) if attach is not None else buffer


def encode_item(
    call_id: int,
    item: Any,
    max_frame_size: int = DEFAULT_MAX_FRAME_SIZE,
    refusal: type[InvalidArgumentError] | type[InvalidResultError] = InvalidResultError,
    attach: Attach | None = None,
) -> bytearray:
    """Return an ITEM frame.

    Args:
        call_id: The call whose stream it belongs to.
        item: Anything msgspec can encode.
        max_frame_size: The largest payload the other side takes, in bytes.
        refusal: What to raise.
        attach: Takes descriptors and buffers out, where the stream has them.

    Raises:
        InvalidResultError: The item cannot be encoded or exceeds the frame; `refusal` if given.
    """
    buffer = header.new_buffer(_SIZE)
    try:
        encode_into(item, buffer, _SIZE, attach)
    except Exception as error:  # also what a half-built object raises when it is read
        raise refusal(f"item cannot be encoded: {error}") from error
    if attach is not None and attach.pieces:
        buffer = joined(buffer, attach.pieces)  # an item is charged and counted in one piece
        attach.pieces = []
    size = len(buffer) - _SIZE
    if size > max_frame_size:
        _drop(attach)
        raise refusal(f"item of {size} bytes exceeds max_frame_size {max_frame_size}")
    header.pack_into(buffer, 0, size, _ITEM, 0, 0, call_id, 0)
    return _with_descriptors(buffer, attach) if attach is not None else buffer


def encode_credit(call_id: int, amount: int) -> bytes:
    """Return a CREDIT frame that grants `amount` bytes."""
    return encode_frame(Kind.CREDIT, call_id, _CREDIT.pack(amount))


def decode_credit(payload: bytes | memoryview) -> int:
    """Read a CREDIT payload: bytes granted; raises RemoteProtocolError if it is malformed."""
    if len(payload) != _CREDIT.size:
        raise RemoteProtocolError(f"credit payload of {len(payload)} bytes, where 4 belong")
    amount: int = _CREDIT.unpack(payload)[0]
    return amount


@functools.lru_cache(maxsize=1024)
def _cached_decoder(returns: Any) -> tuple[msgspec.msgpack.Decoder[Any] | InPlaceDecoder, Extent]:
    from hostline.wire.schema import check_decodable, extent_of

    check_decodable(returns)
    decoder = decoder_for(returns)
    if in_place_type(returns) is not returns:
        return InPlaceDecoder(returns, decoder, extent_of(in_place_type(returns))), extent_of(returns)
    return decoder, extent_of(returns)


def result_decoder(returns: Any) -> tuple[msgspec.msgpack.Decoder[Any] | InPlaceDecoder, Extent]:
    """Return the decoder for a result type, and how much the type leaves to the sender.

    Raises:
        TypeError: msgspec cannot decode into the type; the message names it.
    """
    try:
        return _cached_decoder(returns)
    except TypeError:  # perhaps only not hashable: Annotated with a dict, say
        return _cached_decoder.__wrapped__(returns)


def decode_result(payload: bytes | memoryview, returns: Any) -> Any:
    """Read a REPLY payload as the type the caller expects.

    Raises:
        InvalidResultError: It is of another type, or not MessagePack.
        TypeError: msgspec cannot decode into the type.
    """
    decoder, extent = result_decoder(returns)
    try:
        if type(payload) is memoryview and type(decoder) is InPlaceDecoder:
            check_budget(payload, decoder.extent)
            try:
                return decoder.decode_in_place(payload)
            except msgspec.ValidationError:
                pass  # not these bytes: what travels beside the frame, or a violation
        if extent or len(payload) > SHALLOW:
            check_budget(payload, extent)
        return decoder.decode(payload)
    except msgspec.ValidationError as error:
        raise InvalidResultError(f"result is not of the expected type: {error}") from error
    except Exception as error:  # the type's own checks may raise anything
        raise InvalidResultError(f"result cannot be decoded: {error}") from error


def encode_failure(
    call_id: int, code: str, name: str, message: str, max_frame_size: int = DEFAULT_MAX_FRAME_SIZE
) -> bytes:
    """Return an ERROR frame; its texts are cut to what the caller takes: they come from exceptions of any length."""
    message = _cut(message, min(_MAX_MESSAGE, max_frame_size - _BESIDE_MESSAGE))
    return encode_frame(Kind.ERROR, call_id, _encoder.encode(Failure(code, _cut(name, _MAX_NAME), message)))


def decode_failure(payload: bytes | memoryview) -> Failure:
    """Read an ERROR payload; raises RemoteProtocolError if it is malformed."""
    failure: Failure = _decode(_failure_decoder, payload, "error")
    return failure


def encode_farewell(code: str, reason: str, last_call_id: int = 0) -> bytes:
    """Return a GOAWAY frame."""
    return encode_frame(Kind.GOAWAY, 0, _encoder.encode(Farewell(code, _cut(reason, _MAX_REASON), last_call_id)))


def decode_farewell(payload: bytes | memoryview) -> Farewell:
    """Read a GOAWAY payload; raises RemoteProtocolError if it is malformed."""
    farewell: Farewell = _decode(_farewell_decoder, payload, "goaway")
    return farewell


def _decode(decoder: msgspec.msgpack.Decoder[Any], payload: bytes | memoryview, what: str) -> Any:
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise RemoteProtocolError(f"{what} frame is malformed: {error}") from error


def _cut(text: str, size: int) -> str:
    # surrogateescape'd names (a path in a message) cannot be encoded as UTF-8; show them escaped instead.
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > size:
        return data[: size - 3].decode("utf-8", "ignore") + "..."
    return data.decode("utf-8")
