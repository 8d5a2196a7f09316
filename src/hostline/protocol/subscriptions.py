"""What waits for one subscriber, and what becomes of an item when too much does.

Theory. A publisher must not wait for its slowest subscriber, so that what waits for each is bounded, and an item too
many is lost by a policy that was chosen beforehand. An item is lost only while others wait. So the next one taken
exists, and with it goes the number of those lost since the one before: nobody misses anything without being told, and
nothing has to be sent only to say so.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, Literal, TypeVar, get_args

__all__ = ["POLICIES", "Policy", "SubscriberQueue"]

T = TypeVar("T")

Policy = Literal["drop_oldest", "drop_new", "disconnect"]
POLICIES: Final[tuple[str, ...]] = get_args(Policy)


class SubscriberQueue(Generic[T]):
    """Keep items for one subscriber, in order.

    At any time every item that was offered is counted once: `delivered + dropped + waiting + unread`.

    Args:
        max_queue: Items that may wait, at least 1.
        policy: What gives way when one more comes: `drop_oldest` of those that wait, `drop_new`, the item itself, or
            with `disconnect` the subscriber, who loses all that waits.

    Attributes:
        delivered: Items taken.
        dropped: Items lost by the policy.
        unread: Items that waited when the subscriber left by itself.
        is_overrun: Whether the subscriber is to be disconnected; nothing is kept for it any more.

    Raises:
        ValueError: An argument is out of range.
    """

    __slots__ = ("_items", "_max_queue", "_policy", "_untold", "delivered", "dropped", "is_overrun", "unread")

    def __init__(self, max_queue: int, policy: Policy) -> None:
        if max_queue < 1:
            raise ValueError(f"max_queue of {max_queue} items must be at least 1")
        if policy not in POLICIES:
            raise ValueError(f"policy {policy!r} is none of {', '.join(POLICIES)}")
        self._items: deque[T] = deque()
        self._max_queue = max_queue
        self._policy = policy
        self._untold = 0
        self.delivered = 0
        self.dropped = 0
        self.unread = 0
        self.is_overrun = False

    @property
    def waiting(self) -> int:
        """Items that wait."""
        return len(self._items)

    def offer(self, item: T) -> bool:
        """Keep an item, or apply the policy; returns whether this item waits now."""
        if self.is_overrun:
            self._drop(1)
            return False
        if len(self._items) < self._max_queue:
            self._items.append(item)
            return True
        if self._policy == "drop_oldest":
            self._items.popleft()
            self._items.append(item)
            self._drop(1)
            return True
        if self._policy == "disconnect":
            self.is_overrun = True
            self._drop(len(self._items))
            self._items.clear()
        self._drop(1)
        return False

    def take(self) -> tuple[T, int] | None:
        """Return the next item, and how many were lost since the one before was taken; None if nothing waits."""
        if not self._items:
            return None
        lost, self._untold = self._untold, 0
        self.delivered += 1
        return self._items.popleft(), lost

    def leave(self) -> None:
        """Let go of what waits: nobody will take it."""
        self.unread += len(self._items)
        self._items.clear()

    def _drop(self, count: int) -> None:
        self.dropped += count
        self._untold += count
