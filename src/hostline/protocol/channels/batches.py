"""Many messages in one call: what the kernel is offered at once, and exactly how many it has taken. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from hostline.errors import HostlineError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["Batch", "checked_count", "count_sent"]

# Messages offered at once: as many as one sendmsg takes buffers (IOV_MAX).
_MAX_AT_ONCE: Final = 1024


class Batch:
    """Offer many messages to the kernel, and count what it took.

    Attributes:
        is_stream: Whether the messages go back to back, so that the kernel may take a part of one.
        sent_count: Messages that were taken as a whole.
    """

    __slots__ = ("_messages", "_offset", "is_stream", "sent_count")

    def __init__(self, messages: Iterable[ReadableBuffer], *, is_stream: bool) -> None:
        self._messages = [memoryview(message).cast("B") for message in messages]
        self._offset = 0
        self.is_stream = is_stream
        self.sent_count = 0
        if is_stream:
            self.took_bytes(0)  # nothing is to be sent for empty ones at the front

    @property
    def is_done(self) -> bool:
        """Whether every message was taken."""
        return self.sent_count == len(self._messages)

    @property
    def torn(self) -> str:
        """How much of a message was taken that is not sent as a whole, in words; empty if none is."""
        return f"{self._offset} of {len(self._messages[self.sent_count])} bytes" if self._offset else ""

    def packets(self) -> list[memoryview]:
        """Return what to send next, each as one packet."""
        return self._messages[self.sent_count : self.sent_count + _MAX_AT_ONCE]

    def took_packets(self, count: int) -> None:
        """Note how many of `packets` the kernel took."""
        self.sent_count += count

    def buffers(self) -> list[memoryview]:
        """Return what to send next on a stream in one system call."""
        pieces = self._messages[self.sent_count : self.sent_count + _MAX_AT_ONCE]
        pieces[0] = pieces[0][self._offset :]
        return pieces

    def took_bytes(self, size: int) -> None:
        """Note how many bytes of `buffers` the kernel took."""
        size += self._offset
        while not self.is_done and size >= len(self._messages[self.sent_count]):
            size -= len(self._messages[self.sent_count])
            self.sent_count += 1
        self._offset = size


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
