"""What each user's connections may cost a server, and what is done at the bound. Takes the time, does no I/O.

Theory. Everything that a server keeps for its peers is charged to the uid of the connection that caused it, and given
back when it is over, so that one user at a bound is stopped and no other notices. Bytes are of two kinds:

    kept     frames that have begun, counted whole as soon as their header is known; frames not yet taken; the
             arguments of waiting calls; items of arguments that no handler has taken yet
    unread   answers and items that the peer has not read

Nobody is cut off for reaching the bound; what happens is that less is begun, step by step:

    choked   unread bytes reach half the bound, until they fall to a quarter: of the connections that leave something
             unread none is read, and none of their calls starts
    full     kept and unread bytes reach the bound: a connection that itself keeps something is read only in the middle
             of a frame, whose room is counted already, or if its running calls have streams, for these may wait for
             just that
    over     they reach twice the bound, until they fall to seven quarters: the same for all connections. Up to here one
             faulty connection does not stop the others of its user
    closed   unread bytes reach three halves of the bound, until they fall to the bound: nothing is read, nothing starts

A frame that was begun can always be completed. A completed call only moves from one kind of kept bytes to another.
Calls that wait go on being started, which frees their arguments, unless too much is unread; that is for the peer to
read, and whoever does not is cut off after the time for slow readers. So a full account comes free by what the server
does, or by what the peer is due to do within a time limit; see docs/design/decisions.md for the cases.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, NamedTuple

from hostline.limits import CONNECTION_BURST
from hostline.protocol.serving.admission import Group

__all__ = ["Account", "Bounds", "Holding", "Quotas", "Refusal", "share_of"]


def share_of(count: int) -> int:
    """Return how many of `count` common places one user may have: all but an eighth, but at least one is left over."""
    return count - max(1, count // 8) if count > 1 else count


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of one server.

    Attributes:
        connections: In all.
        connections_per_uid: Of one user.
        connection_rate_per_uid: New ones of one user in a second; None for no bound.
        buffered_per_uid: Bytes kept for one user.
        descriptors_per_uid: Descriptors kept for one user.
    """

    connections: int
    connections_per_uid: int
    connection_rate_per_uid: float | None
    buffered_per_uid: int
    descriptors_per_uid: int


class Refusal(NamedTuple):
    """Why a new connection is sent away.

    Attributes:
        is_passing: Whether another try a moment later may succeed.
        reason: In words, without the service's name.
    """

    is_passing: bool
    reason: str


def owner_in_words(uid: int) -> str:
    """Return whose account it is: a uid's, or that of all who came over `tcp:` and so have none."""
    return f"uid {uid}" if uid >= 0 else "whoever holds the tcp: key"


class Account:
    """What is charged to one uid.

    Attributes:
        uid: Whose it is.
        bounds: What is allowed.
        connections: Open now.
        kept: Bytes on their way to a handler.
        unread: Bytes of answers that wait to be read.
        descriptors: Descriptors that arrived and were not taken, or wait to be sent.
        mapped: Bytes of buffers among the arguments of calls that have not ended.
        calls: Calls that run and wait.
        thread_count: Of the calls that run, those that were given to worker threads.
        backlog: Work for threads behind them.
        is_full: See the module's theory, like the next three.
        is_over: The same.
        is_choked: The same.
        is_closed: The same.
        holdings: What its connections hold.
        line: Those of them that are not read now.
    """

    __slots__ = (
        "backlog",
        "bounds",
        "calls",
        "connections",
        "descriptors",
        "holdings",
        "is_choked",
        "is_closed",
        "is_full",
        "is_over",
        "kept",
        "line",
        "mapped",
        "thread_count",
        "uid",
        "unread",
    )

    def __init__(self, uid: int, bounds: Bounds) -> None:
        self.uid = uid
        self.bounds = bounds
        self.connections = 0
        self.kept = 0
        self.unread = 0
        self.descriptors = 0
        self.mapped = 0
        self.calls = Group()
        self.thread_count = 0
        self.backlog: deque[Any] = deque()
        self.is_full = False
        self.is_over = False
        self.is_choked = False
        self.is_closed = False
        self.holdings: set[Holding] = set()
        self.line: OrderedDict[Holding, None] = OrderedDict()

    @property
    def who(self) -> str:
        """Whose it is, in words."""
        return owner_in_words(self.uid)

    @property
    def is_zero(self) -> bool:
        """Whether nothing is charged."""
        calls = self.calls
        return not (
            self.connections
            or self.kept
            or self.unread
            or self.descriptors
            or self.mapped
            or calls.running_count
            or calls.waiting_count
            or self.thread_count
            or self.backlog
        )

    def may_read(self, holding: Holding, is_begun: bool) -> bool:
        """Say whether a connection may be read now; if not, `ready` names it when that may have changed.

        Args:
            holding: What it holds.
            is_begun: Whether it is in the middle of a frame, or has a running call with streams.
        """
        if not self.is_full or (not self.is_closed and (is_begun or (holding.is_zero and not self.is_over))):
            self.line.pop(holding, None)
            return True
        self.line[holding] = None
        return False

    def settle(self, holding: Holding, kept: int, unread: int) -> bool:
        """Charge what a connection holds now instead of what it held before.

        Returns:
            Whether the account's state changed, so that something is to be held or may go on.
        """
        self.kept += kept - holding.kept
        self.unread += unread - holding.unread
        holding.kept, holding.unread = kept, unread
        most = self.bounds.buffered_per_uid
        total = self.kept + self.unread
        if total < most // 2 and not (self.is_over or self.is_choked or self.is_closed):
            self.is_full = False  # far from every bound, as nearly always
            return False
        self.is_full = total >= most
        before = (self.is_over, self.is_choked, self.is_closed)
        self.is_over = total >= 2 * most or (self.is_over and total > 7 * most // 4)
        self.is_choked = self.unread >= most // 2 or (self.is_choked and self.unread > most // 4)
        self.is_closed = self.unread >= 3 * most // 2 or (self.is_closed and self.unread > most)
        return before != (self.is_over, self.is_choked, self.is_closed)

    def ready(self, is_changed: bool = False) -> list[Holding]:
        """Return whose connections are to be read on now: one at a time, for it may fill the account again.

        Args:
            is_changed: Whether the account's state just changed.
        """
        if not self.line:
            return []
        if not self.is_full:
            return [self.line.popitem(last=False)[0]]
        return list(self.line) if is_changed else []  # some may be read all the same: they ask `may_read` again


class Holding:
    """What is charged for one connection.

    Attributes:
        owner: The connection.
        account: To whom.
        kept: Bytes on their way to a handler.
        unread: Bytes that wait to be read.
        descriptors: Descriptors that arrived and were not taken, or wait to be sent.
    """

    __slots__ = ("account", "descriptors", "kept", "owner", "unread")

    def __init__(self, owner: Any, account: Account) -> None:
        self.owner = owner
        self.account = account
        self.kept = 0
        self.unread = 0
        self.descriptors = 0

    @property
    def is_zero(self) -> bool:
        """Whether no bytes are charged."""
        return not (self.kept or self.unread)

    def charge_descriptors(self, count: int) -> bool:
        """Charge descriptors; False, and nothing is charged, if there would be more than a user may have.

        A connection that has none may always have one: those of its user that take nothing must not stop the others.
        """
        account = self.account
        is_first = count == 1 and not self.descriptors
        if account.descriptors + count > account.bounds.descriptors_per_uid and not is_first:
            return False
        account.descriptors += count
        self.descriptors += count
        return True

    def release_descriptors(self, count: int) -> None:
        """Give descriptors back."""
        self.account.descriptors -= count
        self.descriptors -= count


class Quotas:
    """Keep an account for each uid that has anything charged.

    Args:
        bounds: What is allowed.

    Attributes:
        accounts: Those that are not zero, by uid.
        connections: Open now, of all users.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.accounts: dict[int, Account] = {}
        self.connections = 0
        self._buckets: dict[int, tuple[float, float]] = {}  # new connections that are left, and when that was so
        self._next_line = 0.0
        self._unsaid = 0

    def refusal(self, uid: int, now: float) -> Refusal | None:
        """Say why a new connection of a user is sent away; if it is not, it counts as one of this second's.

        Args:
            uid: The user.
            now: The present monotonic time.
        """
        bounds = self.bounds
        if self.connections >= bounds.connections:
            return Refusal(False, f"has {bounds.connections} connections, its most: max_connections")
        account = self.accounts.get(uid)
        if account is not None and account.connections >= bounds.connections_per_uid:
            most = bounds.connections_per_uid
            return Refusal(False, f"{owner_in_words(uid)} has {most} connections, its most: max_connections_per_uid")
        rate = bounds.connection_rate_per_uid
        if rate is not None and not self._take_token(uid, rate, now):
            who = owner_in_words(uid)
            text = f"{who} makes more than {rate:g} connections a second, its most: max_connection_rate_per_uid"
            return Refusal(True, text)
        return None

    def _take_token(self, uid: int, rate: float, now: float) -> bool:
        burst = max(1.0, CONNECTION_BURST * rate)
        left, before = self._buckets.get(uid, (burst, now))
        left = min(burst, left + (now - before) * rate)
        has_one = left >= 1.0
        if uid not in self._buckets:
            self._forget_full_buckets(rate, burst, now)
        self._buckets[uid] = (left - 1.0 if has_one else left, now)
        return has_one

    def _forget_full_buckets(self, rate: float, burst: float, now: float) -> None:
        """Keep no more than is needed: a bucket that is full again is as good as none."""
        full = [uid for uid, (left, before) in self._buckets.items() if left + (now - before) * rate >= burst]
        for uid in full:
            del self._buckets[uid]

    def log_line(self, reason: str, now: float) -> str | None:
        """Return a line for the log about a connection sent away, or None: one a second, so that nobody floods it."""
        if now < self._next_line:
            self._unsaid += 1
            return None
        unsaid, self._unsaid = self._unsaid, 0
        self._next_line = now + 1.0
        return f"{reason} ({unsaid} more were sent away since the last such line)" if unsaid else reason

    def open(self, owner: Any, uid: int) -> Holding:
        """Count a new connection."""
        account = self.accounts.get(uid)
        if account is None:
            account = self.accounts[uid] = Account(uid, self.bounds)
        account.connections += 1
        self.connections += 1
        holding = Holding(owner, account)
        account.holdings.add(holding)
        return holding

    def close(self, holding: Holding) -> bool:
        """Give back everything that a connection was charged; whether the account's state changed."""
        account = holding.account
        changed = account.settle(holding, 0, 0)
        holding.release_descriptors(holding.descriptors)
        account.holdings.discard(holding)
        account.line.pop(holding, None)
        account.connections -= 1
        self.connections -= 1
        self.forget(account)
        return changed

    def forget(self, account: Account) -> None:
        """Forget an account if it is zero."""
        if not account.connections and account.is_zero:
            self.accounts.pop(account.uid, None)
