"""Bytes that wait to be sent on one connection, in order, and how many have left.

The face offers `buffers()` to the kernel and reports with `sent` what it took. Nothing is copied: a frame that is
half sent is continued where it stopped. A frame with descriptors begins a message of its own: they ride on its first
byte, and are closed here once that has left.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any, Final

from hostline.wire.attached import Attached, Scattered, close_owners
from hostline.wire.frame import HEADER, HEADER_SIZE, Kind

__all__ = ["Outgoing", "close_attached"]

# The most buffers that one sendmsg takes (IOV_MAX).
_MAX_BUFFERS: Final = 1024

_MAX_HEAD: Final = 4 << 10

# Memory that nobody changes: frames of our own among it.
_OWN: Final = (bytes, Attached)

_END: Final = int(Kind.END)


class Outgoing:
    """Queue frames and keep count.

    Attributes:
        size: Bytes that wait.
        queued_total: Bytes that were ever queued: the place in the stream where the next frame begins.
        sent_total: Bytes that the kernel took.
    """

    __slots__ = ("_attached", "_buffers", "_has_borrowed", "queued_total", "sent_total", "size")

    def __init__(self) -> None:
        self._attached: deque[int] = deque()  # where in the stream frames with descriptors begin
        self._buffers: deque[bytes | bytearray | memoryview] = deque()
        self._has_borrowed = False  # whether there may be memory of the program's own among what waits
        self.size = 0
        self.queued_total = 0
        self.sent_total = 0

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Queue a frame, or the rest of one; the descriptors of an `Attached` are this object's from now on."""
        if type(data) is Attached:
            self._attached.append(self.queued_total)
        if type(data) is Scattered:
            self._buffers += data.pieces
            self._has_borrowed = True
        else:
            self._buffers.append(data)
        self.size += len(data)
        self.queued_total += len(data)

    def own(self) -> None:
        """Copy what waits and is the program's own memory, which may change from here on."""
        if self._has_borrowed:
            self._has_borrowed = False
            for index, buffer in enumerate(self._buffers):
                if type(buffer) is memoryview and type(buffer.obj) not in _OWN:
                    # A view still: a piece of a frame in the form of `bytes` would pass for a frame (`replace_end`).
                    self._buffers[index] = memoryview(bytes(buffer))

    def buffers(self) -> list[bytes | bytearray | memoryview]:
        """Return what to offer next, for one sendmsg.

        What stands before a large buffer goes first: the other side makes room while the rest is copied.
        """
        if self._has_borrowed and len(self._buffers[0]) <= _MAX_HEAD:
            return [self._buffers[0]]
        if not self._attached:
            return list(islice(self._buffers, _MAX_BUFFERS))
        offered: list[bytes | bytearray | memoryview] = []
        for buffer in islice(self._buffers, _MAX_BUFFERS):
            if offered and type(buffer) is Attached:
                break
            offered.append(buffer)
        return offered

    def fds(self) -> list[Any]:
        """Return the descriptors that go with what `buffers` returns."""
        if not self._attached or self._attached[0] != self.sent_total:
            return []
        frame = self._buffers[0]
        return frame.fds if isinstance(frame, Attached) else []

    def first(self) -> tuple[int, int]:
        """Return the kind and the call id of the frame with descriptors that is next."""
        _, kind, _, _, call_id, _ = HEADER.unpack_from(self._buffers[0])
        return kind, call_id

    def replace_first(self, data: bytes) -> None:
        """Send something else instead of the frame with descriptors that is next, and close those."""
        frame = self._buffers.popleft()
        if data:
            self._buffers.appendleft(data)
        grown = len(data) - len(frame)
        self.size += grown
        self.sent_total -= grown  # what is queued behind it keeps its place in the stream
        self._attached.popleft()
        close_attached(frame)

    def replace_end(self, call_id: int, data: bytes) -> bool:
        """Send something else instead of the END of a call that waits behind the next frame; whether there is one.

        What is queued behind it moves in the stream: not for a side that remembers where its frames begin.
        """
        position = self.sent_total
        for index, frame in enumerate(self._buffers):
            if index and type(frame) is bytes and len(frame) == HEADER_SIZE:
                _, kind, _, _, its_call, _ = HEADER.unpack(frame)
                if kind == _END and its_call == call_id:
                    grown = len(data) - len(frame)
                    self._buffers[index] = data
                    self._attached = deque(at + grown if at > position else at for at in self._attached)
                    self.size += grown
                    self.queued_total += grown
                    return True
            position += len(frame)
        return False

    def sent(self, count: int) -> None:
        """Note that the kernel took `count` bytes of what `buffers` returned."""
        buffers = self._buffers
        if self._attached and count and self._attached[0] == self.sent_total:
            self._attached.popleft()
            frame = buffers[0]
            buffers[0] = memoryview(frame)  # what is left of it is bytes like any other
            close_attached(frame)
        self.size -= count
        self.sent_total += count
        if not self.size:
            self._has_borrowed = False
        while count:
            first = buffers[0]
            if count < len(first):
                buffers[0] = memoryview(first)[count:]
                return
            count -= len(first)
            buffers.popleft()

    def clear(self) -> None:
        """Forget what waits: the other side is gone."""
        if self._attached:
            for frame in self._buffers:
                close_attached(frame)
            self._attached.clear()
        self._buffers.clear()
        self._has_borrowed = False
        self.size = 0


def close_attached(frame: object) -> None:
    """Close the descriptors of a frame that will not be sent, or that was."""
    if isinstance(frame, Attached):
        close_owners(frame.fds)
        frame.fds = []
