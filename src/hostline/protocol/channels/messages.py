"""Messages without calls: what both ends of a channel send, accept and refuse. Takes bytes, does no I/O.

Each side opens with a hello of 16 bytes and does not wait for the other's (integers are little-endian):

    offset  size  field
    0       8     the bytes `hostchan`
    8       2     version, 1
    10      2     descriptors taken with one message at most
    12      4     largest message taken, in bytes

Then come messages, each a header of 8 bytes and its bytes; on seqpacket the hello and each message are one packet:

    0       4     length of the bytes behind the header
    4       1     kind: 1 a value in MessagePack, 2 plain bytes
    5       1     0
    6       2     count of descriptors that ride on the message's first byte

Descriptors are matched exactly: a read of a stream gives those of one message at most and ends within that message's
bytes, so that they belong to the message that begins in the read and announces them. Whatever is announced and did not
come, or came and was not announced, ends the channel.

More than 400 lines: both directions share one hello and its bounds, and are one class in C.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

import hostline.protocol.channels.header as header
from hostline.errors import (
    DescriptorError,
    HostlineError,
    InvalidMessageError,
    MessageTooLongError,
    RemoteProtocolError,
)
from hostline.limits import (
    DEFAULT_MAX_MESSAGE_SIZE,
    DEFAULT_MAX_PACKET_SIZE,
    HARD_MAX_MESSAGE_SIZE,
    LARGE_FRAME,
    MAX_PACKET_SIZE,
    READ_SIZE,
)
from hostline.protocol.channels.batches import Batch, Frames
from hostline.protocol.channels.header import HEADER
from hostline.unix.address import SocketType
from hostline.unix.passing.descriptors import Fd, close_all
from hostline.wire.arriving import Arriving

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["HEADER", "HELLO", "MAGIC", "VERSION", "Hello", "Message", "Messages"]

MAGIC: Final = b"hostchan"
VERSION: Final = 1
HELLO: Final = struct.Struct("<8sHHI")

_VALUE: Final = 1
_BYTES: Final = 2
_SIZE: Final = HEADER.size
_LARGE: Final = LARGE_FRAME + HEADER.size

# Bytes from which on a message leaves from where its sender has it: below, to join it with its header costs less.
_IN_PLACE: Final = 16 << 10
# Bytes of encoded messages from which on the next goes into another buffer: a buffer that grows is copied.
_PIECE: Final = 256 << 10

_NO_FDS: Final = ()

_encode_into = msgspec.msgpack.Encoder().encode_into


class Message:
    """Hold one message as it came.

    Attributes:
        is_bytes: It was sent as plain bytes, not as a value.
        data: Its bytes, still encoded.
        fds: Its descriptors, in the order sent; they belong to whoever holds this.
    """

    __slots__ = ("data", "fds", "is_bytes")

    def __init__(self, is_bytes: bool, data: bytes, fds: Sequence[Fd]) -> None:
        self.is_bytes = is_bytes
        self.data = data
        self.fds = fds


class Hello(NamedTuple):
    """Hold what the other side takes: descriptors with one message, and bytes of one message."""

    max_fds: int
    max_message_size: int


class Messages:
    """Encode the messages of one end and cut what arrives there into messages, in order, errors included.

    Each header is judged before anything is kept for it. What was received before a violation is handed out first.

    Attributes:
        max_message_size: Bytes that one message may have, in either direction.
        max_fds: Descriptors that one message may bring.
        read_size: How many bytes to receive at once.
        space: Where the next bytes are best received, while a large message is on its way; otherwise None.
        hello: What the other side takes; None until it has said so.
        has_sent: Whether a message was encoded: until then a peer that leaves can have missed nothing but a hello.
        was_reset: Whether the kernel said that the other side left something unread.
    """

    __slots__ = (
        "_arrived",
        "_arriving",
        "_buffer",
        "_has_failed",
        "_held",
        "_is_stream",
        "_most",
        "_needed",
        "_packet_size",
        "_ready",
        "_taken",
        "has_sent",
        "hello",
        "max_fds",
        "max_message_size",
        "read_size",
        "space",
        "was_reset",
    )

    def __init__(
        self,
        socket_type: SocketType = "stream",
        max_message_size: int | None = None,
        max_fds: int = 0,
        *,
        packet_size: int = MAX_PACKET_SIZE,
    ) -> None:
        """Begin before either hello.

        Args:
            socket_type: `stream` or `seqpacket`.
            max_message_size: Bytes that one message may have; None for the default of the type.
            max_fds: Descriptors that one message may bring.
            packet_size: The largest packet that this side's socket sends, in bytes.

        Raises:
            ValueError: The size is not positive, or beyond the hard limit.
        """
        self._is_stream = socket_type == "stream"
        if max_message_size is None:
            max_message_size = DEFAULT_MAX_MESSAGE_SIZE if self._is_stream else DEFAULT_MAX_PACKET_SIZE - HEADER.size
        if not 1 <= max_message_size <= HARD_MAX_MESSAGE_SIZE:
            raise ValueError(
                f"max_message_size of {max_message_size} bytes must lie between 1 and {HARD_MAX_MESSAGE_SIZE}"
            )
        self._packet_size = packet_size
        if not self._is_stream:
            max_message_size = min(max_message_size, MAX_PACKET_SIZE - HEADER.size)
        self.max_message_size = max_message_size
        self.max_fds = max_fds
        self.read_size = READ_SIZE if self._is_stream else max(HELLO.size, _SIZE + max_message_size)
        self.hello: Hello | None = None
        self.has_sent = False
        self.was_reset = False
        self._most = max_message_size if self._is_stream else 0  # a larger one is looked at in full
        self._buffer = bytearray()
        self._needed = HELLO.size
        self._arriving: Arriving | None = None  # a large message's bytes; its header stands in the buffer then
        self.space: memoryview | None = None
        self._arrived: Sequence[Fd] = _NO_FDS  # of the read at hand, not yet given to a message
        self._held: Sequence[Fd] = _NO_FDS  # of the message that is not complete
        self._ready: list[Message | HostlineError | None] = []
        self._taken = 0  # how many of them were handed out
        self._has_failed = False

    # --- out -------------------------------------------------------------------------------------------

    def introduce(self) -> bytes:
        """Return this side's hello."""
        return HELLO.pack(MAGIC, VERSION, self.max_fds, self.max_message_size)

    def encode(self, value: Any, fds_count: int = 0) -> bytearray:
        """Return a value as one message.

        Raises:
            InvalidMessageError: The value cannot be encoded.
            MessageTooLongError: It is larger than one of the sides, or a packet, takes.
            DescriptorError: The other side does not take as many descriptors.
        """
        frame = header.new_buffer(_SIZE)
        self._encode(value, frame, 0, fds_count)
        self.has_sent = True
        return frame

    def encode_many(self, values: Iterable[Any]) -> Batch:
        """Return values as so many messages, on a stream back to back; errors as for `encode`."""
        if not self._is_stream:
            return Batch([self.encode(value) for value in values], is_stream=False)
        pieces: list[bytearray] = []
        counts: list[int] = []
        buffer = header.new_buffer(0)
        count = size = 0
        for value in values:
            if size > _PIECE:
                pieces.append(buffer)
                counts.append(count)
                buffer = header.new_buffer(0)
                count = size = 0
            size = self._encode(value, buffer, size, 0)
            count += 1
        if count:
            pieces.append(buffer)
            counts.append(count)
            self.has_sent = True
        return Frames(pieces, counts)

    def _encode(self, value: Any, buffer: bytearray, begin: int, fds_count: int) -> int:
        """Write a value as one message into a buffer that ends where it begins; return where it ends."""
        try:
            _encode_into(value, buffer, begin + _SIZE)
        except Exception as error:  # also what a half-built object raises when it is read
            raise InvalidMessageError(f"message cannot be encoded: {error}") from error
        end = len(buffer)
        self._check_outgoing(end - begin - _SIZE, fds_count)
        header.pack_into(buffer, begin, end - begin - _SIZE, _VALUE, 0, fds_count)
        return end

    def encode_bytes(self, data: ReadableBuffer, fds_count: int = 0) -> bytes:
        """Return plain bytes as one message; errors as for `encode`."""
        size = len(data) if type(data) is bytes else memoryview(data).nbytes
        self._check_outgoing(size, fds_count)
        self.has_sent = True
        return header.joined(data, size, _BYTES, fds_count)

    def bytes_in_place(self, data: ReadableBuffer, fds_count: int = 0) -> tuple[ReadableBuffer, ...]:
        """Return plain bytes as one message, in pieces: a large one stays where it is; errors as for `encode`.

        The memory may not change its size as long as the pieces are there, and should not change at all.
        """
        if type(data) is not bytes:
            data = memoryview(data)
            size = data.nbytes
            if size >= _IN_PLACE:
                data = data.cast("B")
        else:
            size = len(data)
        if size < _IN_PLACE:
            return (self.encode_bytes(data, fds_count),)
        self._check_outgoing(size, fds_count)
        self.has_sent = True
        return HEADER.pack(size, _BYTES, 0, fds_count), data

    def _check_outgoing(self, size: int, fds_count: int) -> None:
        hello = self.hello
        if size > self._most:
            self._check_size(size, HARD_MAX_MESSAGE_SIZE if hello is None else hello.max_message_size)
        if fds_count and hello is not None and fds_count > hello.max_fds:
            raise DescriptorError(
                errno.EPERM, f"{fds_count} descriptors exceed the max_fds {hello.max_fds} that the other side takes"
            )

    def _check_size(self, size: int, theirs: int) -> None:
        """Refuse a size that is too large somewhere, and say where and what to do."""
        kind = "stream" if self._is_stream else "seqpacket"
        packet = self._packet_size - HEADER.size
        if not self._is_stream and size > min(packet, MAX_PACKET_SIZE - HEADER.size):
            packet = min(packet, MAX_PACKET_SIZE - HEADER.size)
            reason = (
                f"message of {size} bytes exceeds the {packet} that one packet carries here; "
                'use type="stream", or send a file that holds it with fds='
            )
        elif size > self.max_message_size:
            reason = f"message of {size} bytes exceeds this side's max_message_size {self.max_message_size}; raise it"
        elif size > theirs:
            reason = f"message of {size} bytes exceeds the other side's max_message_size {theirs}; raise it there"
        else:
            return
        raise MessageTooLongError("send", kind, "", errno.EMSGSIZE, reason)

    # --- in --------------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> str:
        """What of a message or a hello has come and is not complete, in words; empty if there is none."""
        come = len(self._buffer)
        if not come:
            return ""
        if self._arriving is not None:
            come += self._arriving.arrived
        what = "the hello" if self.hello is None else "a message"
        return f"{come} bytes of {what} of at least {self._needed}"

    def next_message(self) -> Message | None:
        """Return the next message, or None if none is complete.

        Raises:
            RemoteProtocolError: The other side broke the protocol after its last message; nothing more is accepted.
            HostlineError: What `fail_later` was given.
        """
        ready = self._ready
        at = self._taken
        if at == len(ready):
            return None
        first = ready[at]
        if at + 1 == len(ready):
            self._ready, self._taken = [], 0  # at once, for the exception of a signal handler may come at any call
        else:
            ready[at] = None  # it is not to live until the last one is handed out
            self._taken = at + 1
        if type(first) is Message:
            return first
        raise first  # type: ignore[misc]  # an error: what was handed out is not looked at again

    def fail_later(self, error: HostlineError) -> None:
        """Have the next `next_message` raise this, before what else is ready."""
        if self._taken:
            self._taken -= 1
            self._ready[self._taken] = error
        else:
            self._ready.insert(0, error)

    def receive_data(self, data: bytes | memoryview, fds: Iterable[Fd] = _NO_FDS) -> None:
        """Take what one read gave; `next_message` gives what it completes.

        Args:
            data: Some bytes of a stream, perhaps the part of `space` that was filled, or one packet.
            fds: The descriptors that came with them; they are this object's from now on.
        """
        self._arrived = [*fds] if fds else _NO_FDS
        if not self._has_failed:
            try:
                if self._is_stream:
                    self._receive_stream(data)
                else:
                    self._receive_packet(bytes(data))
                if self._arrived:
                    raise RemoteProtocolError(f"{len(self._arrived)} descriptors came that no message announced")
            except RemoteProtocolError as error:
                self._has_failed = True
                self._ready.append(error)
        if self._has_failed:
            self._drop()

    def _receive_stream(self, data: bytes | memoryview) -> None:
        start = 0
        if self._arriving is not None:
            data = self._fill(self._arriving, data)
            if not data:
                return
        come: Any = data if type(data) is bytes else bytes(data)
        if self.hello is None:
            if self._buffer:
                self._buffer += come
                come = bytes(self._buffer)
                self._buffer.clear()
            if not self._meet(come):
                self._keep(come, 0, HELLO.size)
                return
            start = HELLO.size
        elif self._buffer:
            start = self._go_on(come)
        size = len(come)
        raw = come  # compiled, a pointer: its slices are made in C
        while size - start >= _SIZE:
            length, kind, zero, count = header.unpack(come, start)
            if zero or count or length > self.max_message_size or not _VALUE <= kind <= _BYTES:
                self._check_header(length, kind, zero, count)
                self._claim(count)
            end = start + _SIZE + length
            if end > size:
                break
            payload = raw[start + _SIZE : end]
            self._ready.append(Message(kind == _BYTES, payload, self._held))
            self._held = _NO_FDS
            start = end
        if start >= size:
            return
        if size - start >= _SIZE:
            self._begin(come, start, length)
            return
        self._held, self._arrived = self._arrived, _NO_FDS  # its header will tell how many it announces
        self._keep(come, start, _SIZE)

    def _begin(self, data: bytes, start: int, length: int) -> None:
        """Hold a message whose header has come, and its end has not."""
        self._needed = _SIZE + length
        if self._needed <= _LARGE:
            self._buffer += data[start:]
            return
        self._buffer += data[start : start + _SIZE]
        self._arriving = arriving = Arriving(length, memoryview(data)[start + _SIZE :])
        self.space = arriving.space

    def _go_on(self, data: bytes) -> int:
        """Add to the message that has begun, without its own space; return how many bytes of `data` belong to it."""
        buffer = self._buffer
        taken = 0
        if len(buffer) < _SIZE:
            taken = min(_SIZE - len(buffer), len(data))
            head = bytes(buffer) + data[:taken]
            if len(head) < _SIZE:
                buffer += data
                return taken
            length, kind, zero, count = header.unpack(head, 0)
            self._check_header(length, kind, zero, count)
            if len(self._held) != count:
                raise _mismatch(count, len(self._held))
            if len(data) - taken < length:
                buffer.clear()
                self._begin(head + data[taken:], 0, length)
                return len(data)
            self._needed = _SIZE + length
            buffer += data[:taken]
        more = min(self._needed - len(buffer), len(data) - taken)
        buffer += data[taken : taken + more]
        if len(buffer) == self._needed:
            self._complete(bytes(buffer[_SIZE:]))
        return taken + more

    def _fill(self, arriving: Arriving, data: bytes | memoryview) -> bytes:
        """Put what belongs to a large message in its place, and return the rest."""
        taken = arriving.put(data)
        if arriving.arrived < self._needed - _SIZE:
            self.space = arriving.space
            return b""
        self._arriving = self.space = None
        self._complete(bytes(arriving.payload()))
        return bytes(data[taken:])

    def _complete(self, data: bytes) -> None:
        """Have the message ready that had begun in an earlier read."""
        message = Message(self._buffer[4] == _BYTES, data, self._held)
        self._held = _NO_FDS
        self._buffer.clear()
        self._ready.append(message)

    def _receive_packet(self, data: bytes) -> None:
        if self.hello is None:
            if not self._meet(data) or len(data) != HELLO.size:
                raise RemoteProtocolError(f"the other side's hello is a packet of {len(data)} bytes, not {HELLO.size}")
            return
        if len(data) < HEADER.size:
            raise RemoteProtocolError(f"packet of {len(data)} bytes is shorter than a header of {HEADER.size}")
        length, kind, zero, count = header.unpack(data, 0)
        self._check_header(length, kind, zero, count)
        if len(data) != HEADER.size + length:
            raise RemoteProtocolError(f"packet of {len(data)} bytes announces {length} behind its header")
        self._claim(count)
        self._ready.append(Message(kind == _BYTES, data[_SIZE:], self._held))
        self._held = _NO_FDS

    def _meet(self, data: bytes) -> bool:
        """Read the hello at the beginning of `data`; say whether it is there as a whole."""
        start = data[: len(MAGIC)]
        if not MAGIC.startswith(start):
            raise RemoteProtocolError(f"the other side is no hostline channel: it begins with {start!r}{_guess(start)}")
        if len(data) < HELLO.size:
            return False
        _, version, max_fds, max_message_size = HELLO.unpack_from(data)
        if version != VERSION:
            raise RemoteProtocolError(f"the other side's channel has version {version}, and this one {VERSION}")
        self.hello = Hello(max_fds, max_message_size)
        self._most = min(self._most, max_message_size)
        return True

    def _check_header(self, length: int, kind: int, zero: int, count: int) -> None:
        if not _VALUE <= kind <= _BYTES:
            raise RemoteProtocolError(f"message kind {kind} is unknown: kinds are {_VALUE} and {_BYTES}")
        if zero:
            raise RemoteProtocolError(f"byte {zero:#04x} in a message's header where 0 belongs")
        if length > self.max_message_size:
            raise RemoteProtocolError(f"message of {length} bytes exceeds max_message_size {self.max_message_size}")
        if count > self.max_fds:
            raise RemoteProtocolError(f"message announces {count} descriptors and exceeds max_fds {self.max_fds}")

    def _claim(self, count: int) -> None:
        """Give the descriptors of this read to the message that announces them."""
        if count:
            if len(self._arrived) != count:
                raise _mismatch(count, len(self._arrived))
            self._held, self._arrived = self._arrived, _NO_FDS

    def _keep(self, data: bytes, start: int, needed: int) -> None:
        self._buffer += data[start:] if start else data
        self._needed = needed

    def _drop(self) -> None:
        """Close what belongs to no complete message."""
        close_all(self._arrived)
        close_all(self._held)
        self._arrived = self._held = _NO_FDS
        self._buffer = bytearray()
        self._arriving = self.space = None

    def close(self) -> None:
        """Drop everything that was not handed out, and close its descriptors."""
        self._has_failed = True
        self._drop()
        ready, self._ready, self._taken = self._ready, [], 0
        for item in ready:
            if type(item) is Message:
                close_all(item.fds)


def _mismatch(announced: int, came: int) -> RemoteProtocolError:
    return RemoteProtocolError(f"message announces {announced} descriptors, and {came} came with it")


def _guess(start: bytes) -> str:
    """Say what else the other side may be."""
    if start[4:] == b"\x01\0\0\0":
        return ", as hostline's calls do: a Service and connect() belong together, and channels to each other"
    return ""
