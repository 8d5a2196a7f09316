"""When a call may be repeated, and how long to wait before the next try to reach a server.

A call is repeated only where that cannot run it twice: no byte of it was sent, or the server's farewell rules it
out, or the method is declared idempotent.
"""

from __future__ import annotations

import random

from hostline.limits import RECONNECT_FIRST, RECONNECT_LONGEST

__all__ = ["Backoff", "may_repeat"]


def may_repeat(*, was_sent: bool, is_ruled_out: bool, is_idempotent: bool) -> bool:
    """Say whether a call whose connection ended may be made again.

    Args:
        was_sent: Whether at least one byte of it left.
        is_ruled_out: Whether the server said that it does not run it.
        is_idempotent: Whether running it twice does no harm.
    """
    return not was_sent or is_ruled_out or is_idempotent


class Backoff:
    """Give the pauses between tries: doubled each time up to a bound, each jittered between half and whole.

    Args:
        first: The first pause in seconds.
        longest: The bound in seconds.
        rng: Source of the jitter; a fixed one makes a test repeatable.
    """

    def __init__(
        self, first: float = RECONNECT_FIRST, longest: float = RECONNECT_LONGEST, rng: random.Random | None = None
    ) -> None:
        self._next = min(first, longest)
        self._longest = longest
        self._rng = rng or random.Random()

    def pause(self) -> float:
        """Return the next pause in seconds."""
        pause, self._next = self._next, min(self._next * 2, self._longest)
        return pause * (0.5 + self._rng.random() / 2)
