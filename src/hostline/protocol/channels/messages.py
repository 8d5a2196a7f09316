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
"""

from __future__ import annotations

import errno
import struct
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

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
    MAX_PACKET_SIZE,
    READ_SIZE,
)
from hostline.unix.address import SocketType
from hostline.unix.passing.descriptors import Fd, close_all

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["HEADER", "HELLO", "MAGIC", "VERSION", "Hello", "Message", "Messages"]

MAGIC: Final = b"hostchan"
VERSION: Final = 1
HELLO: Final = struct.Struct("<8sHHI")
HEADER: Final = struct.Struct("<IBBH")

_VALUE: Final = 1
_BYTES: Final = 2

_encode_into = msgspec.msgpack.Encoder().encode_into


class Message(NamedTuple):
    """Hold one message as it came.

    Attributes:
        is_bytes: It was sent as plain bytes, not as a value.
        data: Its bytes, still encoded.
        fds: Its descriptors, in the order sent; they belong to whoever holds this.
    """

    is_bytes: bool
    data: bytes
    fds: list[Fd]


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
        hello: What the other side takes; None until it has said so.
        has_sent: Whether a message was encoded: until then a peer that leaves can have missed nothing but a hello.
        was_reset: Whether the kernel said that the other side left something unread.
    """

    __slots__ = (
        "_arrived",
        "_buffer",
        "_has_failed",
        "_held",
        "_is_stream",
        "_needed",
        "_packet_size",
        "_ready",
        "has_sent",
        "hello",
        "max_fds",
        "max_message_size",
        "read_size",
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
        self.read_size = READ_SIZE if self._is_stream else max(HELLO.size, HEADER.size + max_message_size)
        self.hello: Hello | None = None
        self.has_sent = False
        self.was_reset = False
        self._buffer = bytearray()
        self._needed = HELLO.size
        self._arrived: list[Fd] = []  # of the read at hand, not yet given to a message
        self._held: list[Fd] = []  # of the message that is not complete
        self._ready: deque[Message | HostlineError] = deque()
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
        frame = bytearray(HEADER.size)
        try:
            _encode_into(value, frame, HEADER.size)
        except Exception as error:  # also what a half-built object raises when it is read
            raise InvalidMessageError(f"message cannot be encoded: {error}") from error
        size = len(frame) - HEADER.size
        self._check_outgoing(size, fds_count)
        self.has_sent = True
        HEADER.pack_into(frame, 0, size, _VALUE, 0, fds_count)
        return frame

    def encode_bytes(self, data: ReadableBuffer, fds_count: int = 0) -> bytes:
        """Return plain bytes as one message; errors as for `encode`."""
        size = memoryview(data).nbytes
        self._check_outgoing(size, fds_count)
        self.has_sent = True
        return b"".join((HEADER.pack(size, _BYTES, 0, fds_count), data))

    def _check_outgoing(self, size: int, fds_count: int) -> None:
        hello = self.hello
        theirs = HARD_MAX_MESSAGE_SIZE if hello is None else hello.max_message_size
        if size > self.max_message_size or size > theirs or not self._is_stream:
            self._check_size(size, theirs)
        if hello is not None and fds_count > hello.max_fds:
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
        if not self._buffer:
            return ""
        what = "the hello" if self.hello is None else "a message"
        return f"{len(self._buffer)} bytes of {what} of at least {self._needed}"

    def next_message(self) -> Message | None:
        """Return the next message, or None if none is complete.

        Raises:
            RemoteProtocolError: The other side broke the protocol after its last message; nothing more is accepted.
            HostlineError: What `fail_later` was given.
        """
        if not self._ready:
            return None
        first = self._ready.popleft()
        if isinstance(first, HostlineError):
            raise first
        return first

    def fail_later(self, error: HostlineError) -> None:
        """Have the next `next_message` raise this, before what else is ready."""
        self._ready.appendleft(error)

    def receive_data(self, data: bytes, fds: Iterable[Fd] = ()) -> None:
        """Take what one read gave; `next_message` gives what it completes.

        Args:
            data: Some bytes of a stream, or one packet.
            fds: The descriptors that came with them; they are this object's from now on.
        """
        self._arrived = [*fds]
        if not self._has_failed:
            try:
                if self._is_stream:
                    self._receive_stream(data)
                else:
                    self._receive_packet(data)
                if self._arrived:
                    raise RemoteProtocolError(f"{len(self._arrived)} descriptors came that no message announced")
            except RemoteProtocolError as error:
                self._has_failed = True
                self._ready.append(error)
        if self._has_failed:
            self._drop()

    def _receive_stream(self, data: bytes) -> None:
        is_new = not self._buffer  # whether what stands first in `data` also begins in this read
        if not is_new:
            self._buffer += data
            if self.hello is not None and len(self._buffer) < self._needed:
                return
            data = bytes(self._buffer)
            self._buffer.clear()
        start = 0
        if self.hello is None:
            if not self._meet(data):
                self._keep(data, 0, HELLO.size)
                return
            start = HELLO.size
        size = len(data)
        while size - start >= HEADER.size:
            length, kind, zero, count = HEADER.unpack_from(data, start)
            if zero or count or length > self.max_message_size or not _VALUE <= kind <= _BYTES:
                self._check_header(length, kind, zero, count)
            if start or is_new:
                self._claim(count)
            elif len(self._held) != count:
                raise self._mismatch(count, len(self._held))
            end = start + HEADER.size + length
            if end > size:
                self._keep(data, start, HEADER.size + length)
                return
            self._ready.append(Message(kind == _BYTES, data[start + HEADER.size : end], self._held))
            self._held = []
            start = end
        if start < size:
            if start or is_new:  # its header will tell how many it announces
                self._held, self._arrived = self._arrived, []
            self._keep(data, start, HEADER.size)

    def _receive_packet(self, data: bytes) -> None:
        if self.hello is None:
            if not self._meet(data) or len(data) != HELLO.size:
                raise RemoteProtocolError(f"the other side's hello is a packet of {len(data)} bytes, not {HELLO.size}")
            return
        if len(data) < HEADER.size:
            raise RemoteProtocolError(f"packet of {len(data)} bytes is shorter than a header of {HEADER.size}")
        length, kind, zero, count = HEADER.unpack_from(data)
        self._check_header(length, kind, zero, count)
        if len(data) != HEADER.size + length:
            raise RemoteProtocolError(f"packet of {len(data)} bytes announces {length} behind its header")
        self._claim(count)
        self._ready.append(Message(kind == _BYTES, data[HEADER.size :], self._held))
        self._held = []

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
                raise self._mismatch(count, len(self._arrived))
            self._held, self._arrived = self._arrived, []

    @staticmethod
    def _mismatch(announced: int, came: int) -> RemoteProtocolError:
        return RemoteProtocolError(f"message announces {announced} descriptors, and {came} came with it")

    def _keep(self, data: bytes, start: int, needed: int) -> None:
        self._buffer += data[start:] if start else data
        self._needed = needed

    def _drop(self) -> None:
        """Close what belongs to no complete message."""
        close_all(self._arrived)
        close_all(self._held)
        self._arrived, self._held = [], []
        self._buffer = bytearray()

    def close(self) -> None:
        """Drop everything that was not handed out, and close its descriptors."""
        self._has_failed = True
        self._drop()
        while self._ready:
            item = self._ready.popleft()
            if isinstance(item, Message):
                close_all(item.fds)


def _guess(start: bytes) -> str:
    """Say what else the other side may be."""
    if start[4:] == b"\x01\0\0\0":
        return ", as hostline's calls do: a Service and connect() belong together, and channels to each other"
    return ""
