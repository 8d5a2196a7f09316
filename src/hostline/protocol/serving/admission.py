"""Which call runs now, which waits, and which is turned away.

At most `concurrency` calls run; behind them at most `queue` wait; the next is refused at once, for a queue without
a bound turns overload into timeouts for everybody. Owners (connections) belong to groups (users). Waiting calls are
taken from the groups in turn, one each, and within a group from its owners in turn: a thousand calls of one connection
delay another's single call by one place, and a thousand connections of one user delay another user's by one place too.

Nor can anybody fill the queue for everybody: when there is no place left, a group that has at least two calls fewer
waiting takes the place of the newest call of the group that has most; within a group, an owner who has nothing waiting
that of the owner who has most. Of the slots a group has `share` at most, so that calls which never end keep nobody else
from running.
"""

from __future__ import annotations

import enum
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

__all__ = ["Admission", "Group", "Verdict"]


class Verdict(enum.Enum):
    """What is to be done with a call that arrived."""

    RUN = "run"
    WAIT = "wait"
    OVERLOADED = "overloaded"
    LIMITED = "limited"  # its group has as many calls as it may


class Group:
    """Hold the calls of one user's connections.

    Attributes:
        running_count: Calls that run.
        waiting_count: Calls that wait, held ones too.
        is_held: Whether none of them starts now.
    """

    __slots__ = ("held", "is_held", "running_count", "waiting", "waiting_count")

    def __init__(self) -> None:
        self.running_count = 0
        self.waiting_count = 0
        self.is_held = False
        self.waiting: OrderedDict[Hashable, OrderedDict[int, Any]] = OrderedDict()
        self.held: dict[Hashable, OrderedDict[int, Any]] = {}

    def largest_owner(self) -> OrderedDict[int, Any]:
        """Return the waiting calls of the owner who has most."""
        owners = (calls for waiting in (self.waiting, self.held) for calls in waiting.values())
        return max(owners, key=len, default=OrderedDict())


class Admission:
    """Count running calls and keep the waiting ones.

    Without groups all owners are of one, whose share is everything.

    Args:
        concurrency: Calls that run at once, at least 1.
        queue: Calls that may wait, 0 or more.
        on_displaced: Called with a waiting call that lost its place to another; it is out of the books.
        share: Calls of one group that run at once; all of them when left out.
        max_calls: Calls of one group that run or wait; without a bound of their own when left out.

    Raises:
        ValueError: A bound is out of range.
    """

    def __init__(
        self,
        concurrency: int,
        queue: int,
        on_displaced: Callable[[Any], None] = lambda _: None,
        *,
        share: int | None = None,
        max_calls: int | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency of {concurrency} must be at least 1")
        if queue < 0:
            raise ValueError(f"queue of {queue} must be 0 or more")
        self.concurrency = concurrency
        self.queue = queue
        self.max_calls = sys.maxsize if max_calls is None else max_calls
        self.share = min(concurrency if share is None else share, self.max_calls)
        self.running_count = 0
        self.waiting_count = 0
        self._on_displaced = on_displaced
        self._common = Group()
        self._line: OrderedDict[Group, None] = OrderedDict()  # whose calls may start, in turn
        self._queued: dict[Group, None] = {}  # who has calls waiting, held ones too

    def arrive(self, owner: Hashable, call_id: int, item: Any, group: Group | None = None) -> Verdict:
        """Decide about a new call; on WAIT it is kept under its owner and id."""
        if group is None:
            group = self._common
        if (
            not self._line
            and self.running_count < self.concurrency
            and group.running_count < self.share
            and not group.is_held
            and owner not in group.held
        ):
            self.running_count += 1
            group.running_count += 1
            return Verdict.RUN
        if group.running_count + group.waiting_count >= self.max_calls:
            return Verdict.LIMITED
        if self.waiting_count >= self.queue and not self._make_room(owner, group):
            return Verdict.OVERLOADED
        calls = group.held.get(owner)
        if calls is None:
            calls = group.waiting.setdefault(owner, OrderedDict())
        calls[call_id] = item
        self.waiting_count += 1
        group.waiting_count += 1
        self._queued[group] = None
        self._line_up(group)
        return Verdict.WAIT

    def _make_room(self, owner: Hashable, group: Group) -> bool:
        """Take a place from whoever has most, for one who has less; False if nobody has."""
        largest = max(self._queued, key=_waiting_count, default=group)
        if largest is group or largest.waiting_count < group.waiting_count + 2:
            if owner in group.waiting or group.held.get(owner):
                return False  # also keeps the search below from being paid for by every call of a flood
            largest = group
            if len(largest.largest_owner()) < 2:
                return False
        _, displaced = self._take_newest(largest)
        self._on_displaced(displaced)
        return True

    def _take_newest(self, group: Group) -> tuple[int, Any]:
        most = group.largest_owner()
        newest = most.popitem(last=True)
        if not most:
            for owner, calls in group.waiting.items():
                if calls is most:
                    del group.waiting[owner]
                    break
        self._waits_less(group, 1)
        return newest

    def _waits_less(self, group: Group, count: int) -> None:
        self.waiting_count -= count
        group.waiting_count -= count
        if not group.waiting_count:
            self._queued.pop(group, None)
        if not group.waiting:
            self._line.pop(group, None)

    def _line_up(self, group: Group) -> None:
        """Put a group whose calls may start into the line, and take one whose calls may not out of it.

        One whose share is everything keeps its place while it has all the slots.
        """
        if group.waiting and not group.is_held and (group.running_count < self.share or self.share == self.concurrency):
            self._line.setdefault(group)
        else:
            self._line.pop(group, None)

    def finish(self, group: Group | None = None) -> None:
        """Give a slot back; `next` says what runs in it."""
        self.running_count -= 1
        if group is None:
            group = self._common
        group.running_count -= 1
        if group.waiting:
            self._line_up(group)

    def next(self) -> Any | None:
        """Return a waiting call that runs now, its slot taken, or None if there is no slot or nobody waits."""
        if not self._line or self.running_count >= self.concurrency:
            return None
        group, _ = self._line.popitem(last=False)
        owner, calls = group.waiting.popitem(last=False)
        _, item = calls.popitem(last=False)
        if calls:
            group.waiting[owner] = calls  # to the end of the line: the owners take turns
        self.running_count += 1
        group.running_count += 1
        self._waits_less(group, 1)
        self._line_up(group)
        return item

    def hold(self, owner: Hashable, group: Group | None = None) -> None:
        """Start none of an owner's waiting calls until `resume`: it does not read the answers it has."""
        group = group or self._common
        if owner not in group.held:
            group.held[owner] = group.waiting.pop(owner, OrderedDict())
            self._line_up(group)

    def resume(self, owner: Hashable, group: Group | None = None) -> None:
        """Let an owner's calls run again; `next` says which do."""
        group = group or self._common
        calls = group.held.pop(owner, None)
        if calls:
            group.waiting[owner] = calls
            self._line_up(group)

    def hold_group(self, group: Group, is_held: bool) -> None:
        """Start none of a group's waiting calls, or let them run again; `next` says which do."""
        group.is_held = is_held
        self._line_up(group)

    def withdraw(self, owner: Hashable, call_id: int, group: Group | None = None) -> Any | None:
        """Take a waiting call out; None if it does not wait (any more)."""
        group = group or self._common
        for waiting in (group.waiting, group.held):
            calls = waiting.get(owner)
            if calls and call_id in calls:
                item = calls.pop(call_id)
                if not calls and waiting is group.waiting:
                    del waiting[owner]
                self._waits_less(group, 1)
                return item
        return None

    def withdraw_all(self, owner: Hashable, group: Group | None = None) -> list[Any]:
        """Take out everything that waits for one owner, as when its connection ends."""
        group = group or self._common
        waiting, held = group.waiting.pop(owner, None), group.held.pop(owner, None)
        calls: OrderedDict[int, Any] = waiting or held or OrderedDict()
        self._waits_less(group, len(calls))
        return list(calls.values())


def _waiting_count(group: Group) -> int:
    return group.waiting_count
