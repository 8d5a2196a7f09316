"""When to ask the other side for a sign of life, when to give it up, and when a connection has been idle for too long.

Theory. A process that is stopped, or whose loop is stuck, keeps its sockets open: nothing tells its peer. So whoever
waits sends a PING now and then. Anything that arrives is a sign of life, not the PONG alone. The other side is given up
if nothing at all came for `timeout` seconds after a PING, so that a stopped one is found within `interval + timeout`.

Both classes take the time, and a mark: any value that changes when something has arrived. They never wait; `next_at`
says when to look again.
"""

from __future__ import annotations

import enum
from typing import Any

__all__ = ["Idleness", "Liveness", "Look", "check_times"]


class Look(enum.Enum):
    """What is to be done now."""

    WAIT = "wait"
    PING = "ping"
    GIVE_UP = "give up"


def check_times(**seconds: float | None) -> None:
    """Check times that may be None, each with its name.

    Raises:
        ValueError: One is not above 0.
    """
    for name, value in seconds.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} of {value} seconds must be above 0; None turns it off")


class Liveness:
    """Decide about pings on one connection.

    Args:
        interval: Seconds between two pings.
        timeout: Seconds without any sign of life after a ping until the other side is given up.
        now: The present monotonic time.
        mark: The present mark.

    Attributes:
        next_at: Monotonic time of the next look.
    """

    __slots__ = ("_asked_at", "_interval", "_mark", "_ping_at", "_timeout", "next_at")

    def __init__(self, interval: float, timeout: float, now: float, mark: Any) -> None:
        self._interval = interval
        self._timeout = timeout
        self.restart(now, mark)

    def restart(self, now: float, mark: Any) -> None:
        """Begin anew, as after a time in which nobody waited or could have heard."""
        self._mark = mark
        self._asked_at: float | None = None
        self._ping_at = self.next_at = now + self._interval

    def look(self, now: float, mark: Any) -> Look:
        """Decide what is to be done now; safe to ask too early."""
        if mark != self._mark:
            self._mark = mark
            self._asked_at = None
        found = Look.WAIT
        if self._asked_at is not None and now >= self._asked_at + self._timeout:
            found = Look.GIVE_UP
        elif now >= self._ping_at:
            self._ping_at = now + self._interval
            if self._asked_at is None:
                self._asked_at = now
                found = Look.PING
        self.next_at = self._ping_at
        if self._asked_at is not None:
            self.next_at = min(self.next_at, self._asked_at + self._timeout)
        return found

    def describe(self, whom: str) -> str:
        """Return in words why the other side was given up."""
        return f"no answer to a ping for {self._timeout:g} seconds: the {whom} is stopped or stuck"


class Idleness:
    """Decide when a connection has been idle for too long; found out up to a quarter of the time late.

    Args:
        timeout: Seconds.
        now: The present monotonic time.
        mark: The present mark.

    Attributes:
        next_at: Monotonic time of the next look.
    """

    __slots__ = ("_mark", "_since", "_timeout", "next_at")

    def __init__(self, timeout: float, now: float, mark: Any) -> None:
        self._timeout = timeout
        self._mark = mark
        self._since = now
        self.next_at = now + timeout / 4

    def is_over(self, now: float, mark: Any, is_busy: bool) -> bool:
        """Say whether the connection has been idle for the whole time.

        Args:
            now: The present monotonic time.
            mark: The present mark.
            is_busy: Whether something is under way, whatever arrives.
        """
        if is_busy or mark != self._mark:
            self._mark = mark
            self._since = now
        self.next_at = min(now + self._timeout / 4, self._since + self._timeout)
        return now - self._since >= self._timeout

    def describe(self) -> str:
        """Return in words why the connection ends."""
        return f"idle for {self._timeout:g} seconds"
