"""Decide who may try to connect next, and when, while a backlog is full. Takes the time as an argument, does no I/O.

On an event loop the kernel offers nothing to wait for: a non-blocking connect to a full backlog fails and leaves no
trace. So somebody has to try again and again, and it must not be everybody. One line for each address: the first in
line tries, with a jittered pause that grows while the server stands still; the others wait behind it, in the order
they came.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from hostline.limits import CONNECT_RETRY_FIRST, CONNECT_RETRY_LONGEST
from hostline.protocol.retry import Backoff

__all__ = ["ConnectLine"]

Waiter = TypeVar("Waiter")


class ConnectLine(Generic[Waiter]):
    """Hold the line of those who wait for one server's backlog.

    A waiter is whatever the face uses to wake it; it must be hashable and stand in the line once.
    """

    __slots__ = ("_backoff", "_pauses", "_waiters")

    def __init__(self, first: float = CONNECT_RETRY_FIRST, longest: float = CONNECT_RETRY_LONGEST) -> None:
        """Begin with an empty line.

        Args:
            first: Seconds of the first pause, at most; the pauses double and are jittered between half and whole.
            longest: Seconds that no pause exceeds.
        """
        self._pauses = (first, longest)
        self._backoff: Backoff | None = None
        self._waiters: OrderedDict[Waiter, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiters)

    def join(self, waiter: Waiter) -> None:
        """Put a waiter at the end of the line."""
        self._waiters[waiter] = None

    def is_first(self, waiter: Waiter) -> bool:
        """Say whether it is this waiter's turn to try."""
        return bool(self._waiters) and next(iter(self._waiters)) == waiter

    def next_pause(self) -> float:
        """Return the seconds that the first in line waits after it tried in vain."""
        if self._backoff is None:
            self._backoff = Backoff(*self._pauses)
        return self._backoff.pause()

    def leave(self, waiter: Waiter, *, has_connected: bool) -> Waiter | None:
        """Take a waiter out of the line, wherever it stands.

        Args:
            waiter: Who leaves: connected, given up, failed or cancelled.
            has_connected: Whether it got through, so that there may be room for more and the pauses begin anew.

        Returns:
            Who is first now and has to be woken to try at once, or None: nobody waits, or the first is unchanged.
        """
        was_first = self.is_first(waiter)
        self._waiters.pop(waiter, None)
        if has_connected:
            self._backoff = None
        return next(iter(self._waiters), None) if was_first else None
