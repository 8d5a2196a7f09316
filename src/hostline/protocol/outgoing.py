"""Bytes that wait to be sent on one connection, in order, and how many have left.

The face offers `buffers()` to the kernel and reports with `sent` what it took. Nothing is copied: a frame that is
half sent is continued where it stopped.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final

__all__ = ["Outgoing"]

# The most buffers that one sendmsg takes (IOV_MAX).
_MAX_BUFFERS: Final = 1024


class Outgoing:
    """Queue frames and keep count.

    Attributes:
        size: Bytes that wait.
        queued_total: Bytes that were ever queued: the place in the stream where the next frame begins.
        sent_total: Bytes that the kernel took.
    """

    __slots__ = ("_buffers", "queued_total", "sent_total", "size")

    def __init__(self) -> None:
        self._buffers: deque[bytes | bytearray | memoryview] = deque()
        self.size = 0
        self.queued_total = 0
        self.sent_total = 0

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Queue a frame, or the rest of one."""
        self._buffers.append(data)
        self.size += len(data)
        self.queued_total += len(data)

    def buffers(self) -> list[bytes | bytearray | memoryview]:
        """Return what to offer next, for one sendmsg."""
        return list(islice(self._buffers, _MAX_BUFFERS))

    def sent(self, count: int) -> None:
        """Note that the kernel took `count` bytes of what `buffers` returned."""
        self.size -= count
        self.sent_total += count
        buffers = self._buffers
        while count:
            first = buffers[0]
            if count < len(first):
                buffers[0] = memoryview(first)[count:]
                return
            count -= len(first)
            buffers.popleft()

    def clear(self) -> None:
        """Forget what waits: the other side is gone."""
        self._buffers.clear()
        self.size = 0
