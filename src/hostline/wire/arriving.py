"""A large frame on its way in, and the memory in which its payload is received.

What arrives is put where it stays: the face reads into `space`, and the payload is handed out as a view of it, without
another copy. Memory that nobody has touched before costs more than that copy, because the kernel makes each page at its
first touch: a mebibyte took 750 us here, a copy 100. So what was used is used again once nobody holds a view of it any
more. New memory is at most four times what has come of a frame: one that is only announced takes next to none.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from hostline.limits import LARGE_FRAME, WARM_MEMORY

__all__ = ["Arriving"]

# Where a payload begins in its memory is chosen so that the one large value in it is aligned as malloc aligns.
_ALIGNMENT: Final = 16
_BIN_32: Final = 0xC6  # MessagePack's head of bytes above 64 KiB; their length follows in 4 bytes
_SEARCHED: Final = 64

# What was used before, also what somebody still holds a view of; the latest at the end. Its operations are atomic, for
# the blocking client's connections are used by several threads.
_used: Final[deque[bytearray]] = deque()


class Arriving:
    """Receive the payload of one large frame.

    Args:
        size: Bytes of the payload.
        head: Those that have come with the header.

    Attributes:
        space: Where what comes next is to be put; never empty before the payload is complete.
        arrived: Bytes of the payload that have come.
    """

    __slots__ = ("_begin", "_memory", "_size", "arrived", "space")

    def __init__(self, size: int, head: memoryview) -> None:
        self._size = size
        self._begin = _offset_for(head, size)
        self.arrived = 0
        self.space = head  # until there is memory
        self._memory = _take(self._begin + size) or bytearray(self._begin + _first_size(size, len(head)))
        self._open_space()
        self.put(head)

    def put(self, data: bytes | memoryview) -> int:
        """Take bytes of the payload, or note those that were received into `space`; returns how many are its own.

        Args:
            data: What came; a part of `space` itself is not copied.
        """
        if type(data) is memoryview and data.obj is self._memory:
            self._note(len(data))
            return len(data)
        view = memoryview(data)
        taken = 0
        while taken < len(view) and self.arrived < self._size:
            piece = view[taken : taken + len(self.space)]
            self.space[: len(piece)] = piece
            self._note(len(piece))
            taken += len(piece)
        return taken

    def _note(self, count: int) -> None:
        self.arrived += count
        if self.arrived == self._size:
            return  # there is no room, and none is asked for
        self.space = self.space[count:]
        if not self.space:
            grown = bytearray(self._begin + min(self._size, 4 * self.arrived))
            grown[: len(self._memory)] = self._memory
            self._memory = grown
            self._open_space()

    def _open_space(self) -> None:
        self.space = memoryview(self._memory)[self._begin + self.arrived : self._begin + self._size]

    def payload(self) -> memoryview:
        """Return the payload, read-only, once all of it has come; its memory is used again when nobody holds it."""
        payload = memoryview(self._memory).toreadonly()[self._begin : self._begin + self._size]
        self.space = payload
        _keep(self._memory)
        return payload


def _first_size(size: int, come: int) -> int:
    return min(size, 4 * max(come, LARGE_FRAME // 4))


def _offset_for(head: memoryview, size: int) -> int:
    """Return how many bytes to leave free before a payload, for the sake of a large value near its begin."""
    at = bytes(head[:_SEARCHED]).find(_BIN_32)
    if at < 0 or int.from_bytes(head[at + 1 : at + 5], "big") < size // 2:
        return 0
    return -(at + 5) % _ALIGNMENT


def _take(size: int) -> bytearray | None:
    """Return memory that was used before and that nobody holds any more, of at least so many bytes, or None."""
    for _ in range(len(_used)):
        try:
            memory = _used.pop()
        except IndexError:
            return None  # another thread was faster
        if size <= len(memory) <= 4 * size and _is_free(memory):
            return memory
        _used.appendleft(memory)
    return None


def _is_free(memory: bytearray) -> bool:
    """Say whether there is no view of some memory: as long as there is one, it cannot change its size."""
    try:
        memory.pop()
    except BufferError:
        return False
    memory.append(0)
    return True


def _keep(memory: bytearray) -> None:
    """Have memory used again, and let go of what was used longest ago."""
    if len(memory) > WARM_MEMORY:
        return
    _used.append(memory)
    total = 0
    for kept in reversed(_used.copy()):
        total += len(kept)
    while total > WARM_MEMORY:
        try:
            total -= len(_used.popleft())
        except IndexError:
            return
