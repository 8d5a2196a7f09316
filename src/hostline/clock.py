"""Time as the lower floors see it: a deadline is a plain value, and the clock is asked only by the faces.

Source of time is the monotonic clock, in seconds. A relative `timeout` becomes an absolute
`Deadline` once, at the edge where the user gave it, and is passed down unchanged.
"""

from __future__ import annotations

import math
import time
from typing import Final

__all__ = ["NEVER", "Deadline", "monotonic", "poll_milliseconds"]

monotonic = time.monotonic

_INF: Final = math.inf


class Deadline:
    """Hold the moment, on the monotonic clock, after which waiting stops; it never changes.

    Attributes:
        at: Absolute monotonic time in seconds; `math.inf` means no deadline.
    """

    __slots__ = ("at",)  # and no dataclass: every call makes one, and a frozen one is three times as dear

    def __init__(self, at: float) -> None:
        self.at = at

    @classmethod
    def after(cls, timeout: float | None, now: float | None = None) -> Deadline:
        """Return the deadline `timeout` seconds from `now`.

        Args:
            timeout: Relative seconds, or None for no deadline.
            now: The present monotonic time; read from the clock when left out.

        Raises:
            ValueError: `timeout` is negative or not a number.
        """
        if timeout is None:
            return NEVER
        if not timeout >= 0:
            raise ValueError(f"timeout of {timeout} seconds must be zero or more, or None for no limit")
        return cls((monotonic() if now is None else now) + timeout)

    def remaining(self, now: float | None = None) -> float:
        """Return the seconds left: never negative, `math.inf` without a deadline."""
        return max(0.0, self.at - (monotonic() if now is None else now))

    def left(self) -> float | None:
        """Return the seconds left as a `timeout` argument: None without a deadline."""
        return None if self.at == _INF else self.remaining()

    def has_passed(self, now: float | None = None) -> bool:
        """Say whether the moment is over."""
        return (monotonic() if now is None else now) >= self.at

    def earlier(self, other: Deadline) -> Deadline:
        """Return the earlier of two deadlines."""
        return self if self.at <= other.at else other

    @property
    def is_never(self) -> bool:
        """Whether there is no deadline at all."""
        return self.at == _INF

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Deadline) and self.at == other.at

    def __hash__(self) -> int:
        return hash(self.at)

    def __repr__(self) -> str:
        return f"Deadline(at={self.at})"


NEVER = Deadline(math.inf)

# What poll(2) takes at most, in milliseconds: a C int, nearly 25 days.
_LONGEST_POLL: Final = 0x7FFF_FFFF


def poll_milliseconds(seconds: float) -> int | None:
    """Return how long to poll: None for ever.

    Rounded up, so that a wait never ends just before its deadline and goes round again. Cut to what poll(2) takes,
    before it becomes an integer: whoever waits longer looks at the deadline and polls again.
    """
    if seconds == _INF:
        return None
    milliseconds = seconds * 1000
    return int(milliseconds) + 1 if milliseconds < _LONGEST_POLL else _LONGEST_POLL
