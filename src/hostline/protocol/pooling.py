"""Which pooled connection serves a call: decided here, carried out by the face.

Connections are lent last in, first out: the one used last is warm in the caches and the others grow old enough to
be closed. The rules hold the counts; the lock and the waiting are the face's. Age is looked at whenever somebody
acquires or releases: a pool that nobody touches closes nothing by itself.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Pool", "PoolSettings"]

Member = TypeVar("Member")


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Bound a pool.

    Attributes:
        min_size: Connections kept open however long they are unused.
        max_size: Connections open at once; a further caller waits for one.
        idle_lifetime: Seconds after which an unused connection above `min_size` is closed, by the next use of the pool.

    Raises:
        ValueError: The bounds contradict each other.
    """

    min_size: int
    max_size: int
    idle_lifetime: float

    def __post_init__(self) -> None:
        if not 0 <= self.min_size <= self.max_size or self.max_size < 1:
            raise ValueError(
                f"pool of min_size {self.min_size} and max_size {self.max_size}: "
                "needs 0 <= min_size <= max_size and max_size >= 1"
            )
        if not self.idle_lifetime > 0:
            raise ValueError(f"idle_lifetime of {self.idle_lifetime} seconds must be above 0")


class Pool(Generic[Member]):
    """Count and order connections.

    Attributes:
        size: Connections that are lent, idle or being opened.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self.settings = settings
        self.size = 0
        self._idle: list[tuple[float, Member]] = []  # oldest first

    @property
    def idle_count(self) -> int:
        """Connections that nobody uses."""
        return len(self._idle)

    def acquire(self, now: float) -> tuple[Member | None, list[Member]]:
        """Return the connection used last, or None if none is idle, and those that have been idle too long.

        None means: see `may_open`. The others are to be closed.
        """
        idle = self._idle
        if not idle:
            return None, []
        if idle[0][0] > now - self.settings.idle_lifetime:
            return idle.pop()[1], []
        expired = self.expire(now)
        return (idle.pop()[1] if idle else None), expired

    def may_open(self) -> bool:
        """Say whether one more may be opened; if so its place is taken, and `discard` gives it back."""
        if self.size >= self.settings.max_size:
            return False
        self.size += 1
        return True

    def release(self, member: Member, now: float) -> list[Member]:
        """Put a clean connection back; returns those that have been idle too long, to be closed."""
        self._idle.append((now, member))
        oldest = now - self.settings.idle_lifetime
        return self.expire(now) if self._idle[0][0] <= oldest else []

    def discard(self) -> None:
        """Give back the place of a connection that is dirty, broken or was never opened."""
        self.size -= 1

    def expire(self, now: float) -> list[Member]:
        """Return the connections idle for longer than allowed, above the minimum, to be closed."""
        idle = self._idle
        oldest = now - self.settings.idle_lifetime
        if not idle or idle[0][0] > oldest:
            return []
        count = 0
        while count < len(idle) and idle[count][0] <= oldest and self.size - count > self.settings.min_size:
            count += 1
        expired = [member for _, member in idle[:count]]
        del idle[:count]
        self.size -= count
        return expired

    def drain(self) -> list[Member]:
        """Take out every idle connection, to be closed."""
        members = [member for _, member in self._idle]
        self.size -= len(members)
        self._idle.clear()
        return members

    def restore(self, idle: Collection[Member], lent_count: int, now: float) -> None:
        """Set the counts right after an exception struck in the middle of a change.

        Args:
            idle: Every connection that nobody uses.
            lent_count: Connections that are lent or being opened.
            now: The age of those that were on their way back counts from here.
        """
        kept = [(since, member) for since, member in self._idle if member in idle]
        known = [member for _, member in kept]
        self._idle = kept + [(now, member) for member in idle if member not in known]
        self.size = len(self._idle) + lent_count
