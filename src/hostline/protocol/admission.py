"""Which call runs now, which waits, and which is turned away.

At most `concurrency` calls run; behind them at most `queue` wait; the next is refused at once, for a queue without
a bound turns overload into timeouts for everybody. Waiting calls are taken from the connections in turn, one
each, so that a connection with a thousand calls waiting delays another's single call by one place, not a thousand.
Nor can it fill the queue for everybody: when there is no place left, one who has nothing waiting takes the place of
the newest call of whoever has most.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

__all__ = ["Admission", "Verdict"]


class Verdict(enum.Enum):
    """What is to be done with a call that arrived."""

    RUN = "run"
    WAIT = "wait"
    OVERLOADED = "overloaded"


class Admission:
    """Count running calls and keep the waiting ones.

    Args:
        concurrency: Calls that run at once, at least 1.
        queue: Calls that may wait, 0 or more.
        on_displaced: Called with a waiting call that lost its place to another; it is out of the books.

    Raises:
        ValueError: A bound is out of range.
    """

    def __init__(self, concurrency: int, queue: int, on_displaced: Callable[[Any], None] = lambda _: None) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency of {concurrency} must be at least 1")
        if queue < 0:
            raise ValueError(f"queue of {queue} must be 0 or more")
        self.concurrency = concurrency
        self.queue = queue
        self.running_count = 0
        self.waiting_count = 0
        self._on_displaced = on_displaced
        self._waiting: OrderedDict[Hashable, OrderedDict[int, Any]] = OrderedDict()
        self._held: dict[Hashable, OrderedDict[int, Any]] = {}

    def arrive(self, owner: Hashable, call_id: int, item: Any) -> Verdict:
        """Decide about a new call; on WAIT it is kept under its owner and id."""
        held = self._held.get(owner)
        if held is None and self.running_count < self.concurrency and not self._waiting:
            self.running_count += 1
            return Verdict.RUN
        if self.waiting_count >= self.queue and not self._make_room(owner):
            return Verdict.OVERLOADED
        calls = self._waiting.setdefault(owner, OrderedDict()) if held is None else held
        calls[call_id] = item
        self.waiting_count += 1
        return Verdict.WAIT

    def _make_room(self, owner: Hashable) -> bool:
        """Take a place from whoever has most, for an owner who has none; False if all have one or none."""
        if owner in self._waiting or self._held.get(owner):
            return False  # also keeps the search below from being paid for by every call of a flood
        owners = (calls for waiting in (self._waiting, self._held) for calls in waiting.values())
        most = max(owners, key=len, default=OrderedDict())
        if len(most) < 2:
            return False
        _, displaced = most.popitem(last=True)
        self.waiting_count -= 1
        self._on_displaced(displaced)
        return True

    def finish(self) -> None:
        """Give a slot back; `next` says what runs in it."""
        self.running_count -= 1

    def next(self) -> Any | None:
        """Return a waiting call that runs now, its slot taken, or None if there is no slot or nobody waits."""
        if not self._waiting or self.running_count >= self.concurrency:
            return None
        owner, calls = self._waiting.popitem(last=False)
        _, item = calls.popitem(last=False)
        if calls:
            self._waiting[owner] = calls  # to the end of the line: the owners take turns
        self.waiting_count -= 1
        self.running_count += 1
        return item

    def hold(self, owner: Hashable) -> None:
        """Start none of an owner's waiting calls until `resume`: it does not read the answers it has."""
        if owner not in self._held:
            self._held[owner] = self._waiting.pop(owner, OrderedDict())

    def resume(self, owner: Hashable) -> None:
        """Let an owner's calls run again; `next` says which do."""
        calls = self._held.pop(owner, None)
        if calls:
            self._waiting[owner] = calls

    def withdraw(self, owner: Hashable, call_id: int) -> Any | None:
        """Take a waiting call out; None if it does not wait (any more)."""
        for waiting in (self._waiting, self._held):
            calls = waiting.get(owner)
            if calls and call_id in calls:
                item = calls.pop(call_id)
                self.waiting_count -= 1
                if not calls and waiting is self._waiting:
                    del waiting[owner]
                return item
        return None

    def withdraw_all(self, owner: Hashable) -> list[Any]:
        """Take out everything that waits for one owner, as when its connection ends."""
        waiting, held = self._waiting.pop(owner, None), self._held.pop(owner, None)
        calls: OrderedDict[int, Any] = waiting or held or OrderedDict()
        self.waiting_count -= len(calls)
        return list(calls.values())
