"""Many messages in one call: what the kernel is offered at once, and exactly how many it has taken. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from hostline.errors import HostlineError
from hostline.protocol.channels.header import HEADER

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["Batch", "Frames", "checked_count", "count_sent", "left_of"]

# Messages offered at once: as many as one sendmsg takes buffers (IOV_MAX).
_MAX_AT_ONCE: Final = 1024


class Batch:
    """Offer many messages to the kernel, and count what it took.

    Attributes:
        is_stream: Whether the messages go back to back, so that the kernel may take a part of one.
    """

    __slots__ = ("_messages", "_offset", "_sent_count", "is_stream")

    def __init__(self, messages: Iterable[ReadableBuffer], *, is_stream: bool) -> None:
        self._messages = [memoryview(message).cast("B") for message in messages]
        self._offset = 0
        self.is_stream = is_stream
        self._sent_count = 0
        if is_stream:
            self.took_bytes(0)  # nothing is to be sent for empty ones at the front

    @property
    def is_done(self) -> bool:
        """Whether every message was taken."""
        return self._sent_count == len(self._messages)

    @property
    def sent_count(self) -> int:
        """Messages that were taken as a whole."""
        return self._sent_count

    @property
    def torn(self) -> str:
        """How much of a message was taken that is not sent as a whole, in words; empty if none is."""
        return f"{self._offset} of {len(self._messages[self._sent_count])} bytes" if self._offset else ""

    def packets(self) -> list[memoryview]:
        """Return what to send next, each as one packet."""
        return self._messages[self._sent_count : self._sent_count + _MAX_AT_ONCE]

    def took_packets(self, count: int) -> None:
        """Note how many of `packets` the kernel took."""
        self._sent_count += count

    def buffers(self) -> list[memoryview]:
        """Return what to send next on a stream in one system call."""
        pieces = self._messages[self._sent_count : self._sent_count + _MAX_AT_ONCE]
        pieces[0] = pieces[0][self._offset :]
        return pieces

    def took_bytes(self, size: int) -> None:
        """Note how many bytes of `buffers` the kernel took."""
        size += self._offset
        while self._sent_count < len(self._messages) and size >= len(self._messages[self._sent_count]):
            size -= len(self._messages[self._sent_count])
            self._sent_count += 1
        self._offset = size


class Frames(Batch):
    """Offer messages of a channel that are encoded back to back, and count what the kernel took as `Batch` does.

    The kernel gets them in few large pieces; nothing is kept for a single message.
    """

    __slots__ = ("_counts",)

    def __init__(self, pieces: Sequence[bytearray], counts: Sequence[int]) -> None:
        """Begin with nothing sent.

        Args:
            pieces: One or more messages each, with their headers.
            counts: How many each piece has.
        """
        self._counts = [*counts]
        super().__init__(pieces, is_stream=True)

    @property
    def is_done(self) -> bool:
        """Whether every message was taken."""
        return not self._messages

    @property
    def torn(self) -> str:
        """How much of a message was taken that is not sent as a whole, in words; empty if none is."""
        _, begin, size = self._at_offset()
        return f"{self._offset - begin} of {size} bytes" if self._offset > begin else ""

    @property
    def sent_count(self) -> int:
        """Messages that were taken as a whole."""
        return self._sent_count + self._at_offset()[0]

    def buffers(self) -> list[memoryview]:
        """Return what to send next on a stream in one system call."""
        pieces = self._messages[:_MAX_AT_ONCE]
        pieces[0] = pieces[0][self._offset :]
        return pieces

    def took_bytes(self, size: int) -> None:
        """Note how many bytes of `buffers` the kernel took."""
        size += self._offset
        messages, counts, sent_count, gone = self._messages, self._counts, self._sent_count, 0
        while gone < len(messages) and size >= len(messages[gone]):
            size -= len(messages[gone])
            sent_count += counts[gone]
            gone += 1
        # At once, for the exception of a signal handler may come at any call, and what was sent is counted then.
        self._messages, self._counts, self._sent_count, self._offset = messages[gone:], counts[gone:], sent_count, size

    def _at_offset(self) -> tuple[int, int, int]:
        """Return how many messages of the first piece lie before the offset, and begin and size of the next one."""
        count = begin = size = 0
        while self._offset:
            size = HEADER.size + HEADER.unpack_from(self._messages[0], begin)[0]
            if begin + size > self._offset:
                break
            count += 1
            begin += size
        return count, begin, size


def left_of(pieces: Iterable[ReadableBuffer], count: int) -> tuple[memoryview, ...]:
    """Return what is left of some pieces once so many bytes of them were sent."""
    left = []
    for piece in pieces:
        view = memoryview(piece).cast("B")
        if count < len(view):
            left.append(view[count:])
        count = max(0, count - len(view))
    return tuple(left)


def count_sent(error: BaseException, sent_count: int) -> None:
    """Write onto whatever ends a `send_many` how many messages were sent: `error.sent_count`."""
    if isinstance(error, HostlineError):
        error.sent_count = sent_count
    else:
        vars(error)["sent_count"] = sent_count  # a cancellation, Ctrl-C


def checked_count(max_count: int) -> int:
    """Return how many messages to receive at most.

    Raises:
        ValueError: It is not positive.
    """
    if max_count < 1:
        raise ValueError(f"max_count of {max_count} messages must be at least 1")
    return max_count
