"""Frames: a header of 16 bytes and a payload, as docs/reference/wire.md defines them.

    offset  size  field
    0       4     length of the payload in bytes, little-endian like all integers here
    4       1     kind
    5       1     flags
    6       2     count of descriptors that ride on this frame
    8       4     call id (0: the frame is about the connection)
    12      4     method number (calls only, otherwise 0)

The decoder knows the form of frames and their bounds. Which frame may come when is for protocol/connection/.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, Final

import hostline.wire.header as header
from hostline.errors import LocalProtocolError, RemoteProtocolError
from hostline.limits import (
    DEFAULT_MAX_FRAME_SIZE,
    FD_COST,
    HARD_MAX_FRAME_SIZE,
    LARGE_FRAME,
    MAX_HELLO_SIZE,
    MIN_MAX_FRAME_SIZE,
)
from hostline.wire.arriving import Arriving
from hostline.wire.attached import close_owners
from hostline.wire.header import HEADER, HEADER_SIZE

__all__ = [
    "FLAGS",
    "HEADER",
    "HEADER_SIZE",
    "Flag",
    "Frame",
    "FrameDecoder",
    "Kind",
    "Payload",
    "check_frame_size",
    "encode_frame",
]


class Kind(enum.IntEnum):
    """What a frame is. ITEM, END and CREDIT belong to streams: only between sides that both name that feature."""

    HELLO = 1
    CALL = 2
    REPLY = 3
    ERROR = 4
    ITEM = 5
    END = 6
    CANCEL = 7
    CREDIT = 8
    PING = 9
    PONG = 10
    GOAWAY = 11


class Flag(enum.IntFlag):
    """Flags of a CALL: the time left stands first; some arguments are named; one is a stream; a context comes along."""

    DEADLINE = 1
    NAMED = 2
    STREAM = 4
    CONTEXT = 8


# The flags that each kind may carry; any other bit is a violation, so that a later version can give it a meaning.
FLAGS: Final[dict[int, int]] = {
    int(k): int(Flag.DEADLINE | Flag.NAMED | Flag.STREAM | Flag.CONTEXT) if k is Kind.CALL else 0 for k in Kind
}


# Frames about the connection as a whole have call id 0, all others name a call; these have no payload. Whatever a field
# may not hold is a violation, for the same reason as unknown flags.
_ABOUT_CONNECTION: Final = frozenset({Kind.HELLO, Kind.PING, Kind.PONG, Kind.GOAWAY})
_WITH_FDS: Final = frozenset({Kind.CALL, Kind.REPLY, Kind.ITEM})
_WITHOUT_PAYLOAD: Final = frozenset({Kind.END, Kind.CANCEL, Kind.PING, Kind.PONG})

# Plain integers for the hot path: arithmetic on enum members costs ten times as much.
_HELLO: Final = int(Kind.HELLO)
_CALL: Final = int(Kind.CALL)
_ITEM: Final = int(Kind.ITEM)
_SIZE: Final = HEADER_SIZE
_LARGE: Final = LARGE_FRAME + HEADER_SIZE
_FLAGS: Final = tuple(FLAGS.get(kind, 0) for kind in range(12))


# Of a large frame it is a view of the memory that it was received in.
Payload = bytes | memoryview


class Frame:
    """One decoded frame.

    Attributes:
        kind: A `Kind` as a plain integer.
        flags: `Flag` bits.
        fd_count: Descriptors announced by the header.
        call_id: The call it is about, or 0.
        method: The method's number, for calls.
        payload: The bytes after the header; of a large frame, a read-only view of the memory it was received in.
        fds: Owners of the descriptors that came with it.
    """

    __slots__ = ("call_id", "fd_count", "fds", "flags", "kind", "method", "payload")

    def __init__(
        self,
        kind: int,
        flags: int,
        fd_count: int,
        call_id: int,
        method: int,
        payload: Payload,
        fds: Sequence[Any] = (),
    ) -> None:
        self.kind = kind
        self.flags = flags
        self.fd_count = fd_count
        self.call_id = call_id
        self.method = method
        self.payload = payload
        self.fds = fds

    @property
    def cost(self) -> int:
        """What an ITEM takes of its stream's credit beside the header, in bytes."""
        return len(self.payload) + FD_COST * self.fd_count

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frame):
            return NotImplemented
        return self._values() == other._values()

    __hash__ = None  # type: ignore[assignment]

    def _values(self) -> tuple[Any, ...]:
        return self.kind, self.flags, self.fd_count, self.call_id, self.method, self.payload, list(self.fds)

    def __repr__(self) -> str:
        return f"Frame{self._values()}"


def encode_frame(
    kind: int, call_id: int = 0, payload: bytes | bytearray = b"", *, flags: int = 0, method: int = 0
) -> bytes:
    """Return one frame as bytes.

    Raises:
        LocalProtocolError: The payload is longer than the header can say.
    """
    if len(payload) > 0xFFFF_FFFF:
        raise LocalProtocolError(f"payload of {len(payload)} bytes exceeds the {0xFFFF_FFFF} a frame can carry")
    return header.frame(payload, kind, flags, call_id, method)


def check_frame_size(max_frame_size: int) -> int:
    """Return a usable frame bound.

    Raises:
        ValueError: It is not between 1 KiB and the hard limit.
    """
    if not MIN_MAX_FRAME_SIZE <= max_frame_size <= HARD_MAX_FRAME_SIZE:
        raise ValueError(
            f"max_frame_size of {max_frame_size} bytes must lie between {MIN_MAX_FRAME_SIZE} and {HARD_MAX_FRAME_SIZE}"
        )
    return max_frame_size


class FrameDecoder:
    """Cut a byte stream into frames, refusing each header that breaks a bound before anything is kept for it.

    Until `expect_frames` the bound is that of a hello, so a peer that has not introduced itself cannot make
    the other side hold more.

    Descriptors belong to the frame with whose first byte they came. The kernel ends a read where a message with
    descriptors ends, so that those of one read are for one frame, which begins in this read and announces as many.

    Args:
        max_frame_size: Largest payload in bytes after the hello.
        max_fds: Descriptors that one frame may bring.

    Attributes:
        frame_count: Frames completed so far.
        max_fds: As given; it may change between frames.
        space: Where the next bytes are best received, while a large frame is on its way; otherwise None.
    """

    __slots__ = (
        "_arriving",
        "_buffer",
        "_has_met",
        "_held",
        "_limit",
        "_max_frame_size",
        "_needed",
        "frame_count",
        "max_fds",
        "space",
    )

    def __init__(self, max_frame_size: int = DEFAULT_MAX_FRAME_SIZE, max_fds: int = 0) -> None:
        self.max_fds = max_fds
        self._held: Sequence[Any] = ()  # what came with the first byte of the frame that is not complete
        self._max_frame_size = max_frame_size
        self._limit = MAX_HELLO_SIZE
        self._has_met = False
        self._buffer = bytearray()
        self._needed = _SIZE
        self._arriving: Arriving | None = None  # a large frame's payload; its header stands in the buffer then
        self.space: memoryview | None = None
        self.frame_count = 0

    @property
    def is_partial(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return bool(self._buffer)

    @property
    def reserved_size(self) -> int:
        """Bytes of a frame that has begun, as a whole; those of a header until that is known, and 0 without one."""
        return self._needed if self._buffer else 0

    @property
    def mark(self) -> tuple[int, int]:
        """A value that changes whenever something has arrived."""
        come = len(self._buffer)
        return self.frame_count, come if self._arriving is None else come + self._arriving.arrived

    def expect_frames(self) -> None:
        """Apply the full bound: the peer has said hello."""
        self._limit = self._max_frame_size
        self._has_met = True

    def receive_data(self, data: bytes | memoryview, fds: list[Any] | None = None) -> list[Frame]:
        """Return the frames that `data` completes, in order.

        Args:
            data: Bytes as they came from the socket, any number of them, or the part of `space` that was filled.
            fds: Owners of the descriptors that came with them, if any.

        Raises:
            RemoteProtocolError: A header is malformed or breaks a bound, or descriptors came that no frame announced,
                or not those that one did. The decoder is of no use afterwards.
        """
        buffer = self._buffer
        frames: list[Frame] = []
        if self._arriving is not None:
            data = self._fill(self._arriving, data, frames)
            if not data and not fds:
                self.frame_count += len(frames)
                return frames
        is_new = not buffer  # whether what stands first in `data` also begins in this read
        if not is_new:
            buffer += data
            if len(buffer) < self._needed and not fds:
                return []
            data = bytes(buffer)
            buffer.clear()
        come: Any = data  # bytes by now; nothing else has passed `_fill`
        held = self._held
        size = len(come)
        raw = come  # compiled, a pointer: its slices are made in C
        start = 0
        while size - start >= _SIZE:
            length, kind, flags, fd_count, call_id, method = header.unpack(come, start)
            # One look for calls, answers and items, which are nearly all there is; the rest is checked in full.
            if (
                length > self._limit
                or fd_count
                or not _CALL <= kind <= _ITEM
                or not call_id
                or (flags and flags & ~_FLAGS[kind])
                or (method and kind != _CALL)
            ):
                self._check(length, kind, flags, fd_count, call_id, method)
            if fd_count or held:
                if start or is_new:
                    held, fds = fds or (), None
                _match(fd_count, held)
            end = start + _SIZE + length
            if end > size:
                break
            payload = raw[start + _SIZE : end]
            frames.append(Frame(kind, flags, fd_count, call_id, method, payload, held))
            if held:
                held = ()
            start = end
            if kind == _HELLO:
                self.expect_frames()
        self.frame_count += len(frames)
        if start < size:
            self._keep(come, start, held, fds, start > 0 or is_new)
        elif fds:
            raise RemoteProtocolError(f"{len(fds)} descriptors came that no frame announced")
        else:
            self._held = ()
        return frames

    def close_held(self) -> None:
        """Close the descriptors of a frame that will not be completed."""
        close_owners(self._held)
        self._held = ()

    def _keep(self, data: bytes, start: int, held: Sequence[Any], fds: list[Any] | None, is_new: bool) -> None:
        """Hold the rest of `data`, and its descriptors, until its frame is there."""
        self._needed = _SIZE
        end = len(data)
        if end - start >= _SIZE:
            self._needed += header.unpack(data, start)[0]
            if self._needed > _LARGE:
                end = start + _SIZE
        elif is_new and fds:
            held, fds = fds, None  # its header will tell how many it announces
        if fds:
            raise RemoteProtocolError(f"{len(fds)} descriptors came that no frame announced")
        self._held = held
        self._buffer += data[start:end]
        if self._needed > _LARGE:
            self._arriving = arriving = Arriving(self._needed - _SIZE, memoryview(data)[end:])
            self.space = arriving.space

    def _fill(self, arriving: Arriving, data: bytes | memoryview, frames: list[Frame]) -> bytes:
        """Put what belongs to a large frame in its place, add the frame if that completes it, and return the rest."""
        taken = arriving.put(data)
        if arriving.arrived < self._needed - _SIZE:
            self.space = arriving.space
            return b""
        _, kind, flags, fd_count, call_id, method = header.unpack(bytes(self._buffer), 0)
        frames.append(Frame(kind, flags, fd_count, call_id, method, arriving.payload(), self._held))
        self._buffer.clear()
        self._held = ()
        self._arriving = self.space = None
        return bytes(data[taken:]) if taken < len(data) else b""

    def _check(self, length: int, kind: int, flags: int, fd_count: int, call_id: int, method: int) -> None:
        if not 1 <= kind <= 11:
            raise RemoteProtocolError(f"frame kind {kind} is unknown: kinds are 1 to 11")
        name = Kind(kind).name.lower()
        if length > self._limit:
            bound = "max_frame_size" if self._has_met else "max_hello_size"
            raise RemoteProtocolError(f"{name} frame of {length} bytes exceeds {bound} {self._limit}")
        if flags & ~FLAGS[kind]:
            raise RemoteProtocolError(f"flags {flags:#04x} are not defined for {name} frames")
        if fd_count and (kind not in _WITH_FDS or not self.max_fds):
            raise RemoteProtocolError(f"{name} frame announces {fd_count} descriptors where none are accepted")
        if fd_count > self.max_fds:
            raise RemoteProtocolError(f"{name} frame announces {fd_count} descriptors and exceeds {self.max_fds}")
        if length and kind in _WITHOUT_PAYLOAD:
            raise RemoteProtocolError(f"{name} frame has a payload of {length} bytes where none belongs")
        if method and kind != _CALL:
            raise RemoteProtocolError(f"{name} frame names method {method}: only calls do")
        if (call_id != 0) is (kind in _ABOUT_CONNECTION):
            why = "must name a call" if call_id == 0 else "is about the connection, whose id is 0"
            raise RemoteProtocolError(f"{name} frame has call id {call_id}: it {why}")


def _match(announced: int, came: Sequence[Any]) -> None:
    if len(came) != announced:
        raise RemoteProtocolError(f"frame announces {announced} descriptors, and {len(came)} came with it")
