"""Which pooled connection serves a call: the last used first, never too many, and the unused ones grow old."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hostline.limits import POOL_IDLE_LIFETIME, POOL_MAX_SIZE, POOL_MIN_SIZE
from hostline.protocol.pooling import Pool, PoolSettings


def a_pool(min_size: int = 0, max_size: int = 10, idle_lifetime: float = 10.0) -> Pool[str]:
    return Pool(PoolSettings(min_size, max_size, idle_lifetime))


def opened(pool: Pool[str], *members: str) -> None:
    """Open connections and put them back, one second apart."""
    for _ in members:
        assert pool.may_open()
    for second, member in enumerate(members):
        pool.release(member, float(second))


@pytest.mark.parametrize(
    ("min_size", "max_size", "idle_lifetime", "text"),
    [
        (-1, 1, 1.0, "pool of min_size -1 and max_size 1"),
        (2, 1, 1.0, "pool of min_size 2 and max_size 1"),
        (0, 0, 1.0, "pool of min_size 0 and max_size 0"),
        (0, 1, 0.0, "idle_lifetime of 0.0 seconds must be above 0"),
        (0, 1, -1.0, "idle_lifetime of -1.0 seconds must be above 0"),
        (0, 1, math.nan, "idle_lifetime of nan seconds must be above 0"),
    ],
)
def test_bounds_that_contradict_each_other_are_refused_with_their_values(
    min_size: int, max_size: int, idle_lifetime: float, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        PoolSettings(min_size, max_size, idle_lifetime)


@pytest.mark.parametrize(("min_size", "max_size", "idle_lifetime"), [(0, 1, 0.1), (1, 1, math.inf), (5, 5, 1.0)])
def test_bounds_that_make_sense_are_taken(min_size: int, max_size: int, idle_lifetime: float) -> None:
    assert PoolSettings(min_size, max_size, idle_lifetime).max_size == max_size


def test_the_defaults_make_a_pool() -> None:
    PoolSettings(POOL_MIN_SIZE, POOL_MAX_SIZE, POOL_IDLE_LIFETIME)


@pytest.mark.parametrize("max_size", [1, 2, 10])
def test_at_most_max_size_are_open_at_once(max_size: int) -> None:
    pool = a_pool(max_size=max_size)
    assert [pool.may_open() for _ in range(max_size + 2)] == [True] * max_size + [False] * 2
    assert pool.size == max_size
    pool.discard()
    assert pool.may_open()
    assert not pool.may_open()


def test_the_last_used_is_lent_first() -> None:
    pool = a_pool()
    opened(pool, "a", "b", "c")
    assert [pool.acquire(2.0)[0] for _ in range(4)] == ["c", "b", "a", None]
    assert (pool.size, pool.idle_count) == (3, 0)
    pool.release("a", 5.0)
    assert pool.acquire(5.0) == ("a", [])


def test_an_unused_connection_is_closed_at_its_age_and_not_before() -> None:
    pool = a_pool(idle_lifetime=10.0)
    opened(pool, "old", "newer", "newest")
    assert pool.expire(9.999) == []
    assert pool.expire(10.0) == ["old"]
    assert pool.expire(12.0) == ["newer", "newest"]
    assert (pool.size, pool.idle_count) == (0, 0)


def test_putting_one_back_closes_those_that_grew_old() -> None:
    pool = a_pool(idle_lifetime=10.0)
    opened(pool, "old", "in use")
    assert pool.acquire(2.0) == ("in use", [])
    assert pool.release("in use", 30.0) == ["old"]
    assert pool.acquire(30.0) == ("in use", [])


def test_taking_one_closes_those_that_grew_old_and_never_lends_them() -> None:
    pool = a_pool(idle_lifetime=10.0)
    opened(pool, "old", "newer", "newest")
    assert pool.acquire(11.5) == ("newest", ["old", "newer"])
    pool.release("newest", 12.0)
    assert pool.acquire(1000.0) == (None, ["newest"])
    assert (pool.size, pool.idle_count) == (0, 0)


def test_taking_one_leaves_the_minimum_however_old_it_is() -> None:
    pool = a_pool(min_size=2)
    opened(pool, "a", "b", "c")
    assert pool.acquire(1000.0) == ("c", ["a"])
    assert pool.acquire(1000.0) == ("b", [])


def test_counts_are_restored_from_what_is_idle_and_lent() -> None:
    pool = a_pool()
    opened(pool, "a", "b", "c")
    pool.acquire(2.0)
    pool.restore(["a", "c"], 1, 9.0)  # b went missing, c comes back
    assert (pool.size, pool.idle_count) == (3, 2)
    assert pool.acquire(10.0) == ("c", ["a"])


def test_the_minimum_stays_however_old_it_is() -> None:
    pool = a_pool(min_size=2)
    opened(pool, "a", "b", "c")
    assert pool.expire(1000.0) == ["a"]
    assert pool.expire(2000.0) == []
    assert pool.size == 2


def test_connections_in_use_count_for_the_minimum() -> None:
    pool = a_pool(min_size=1)
    opened(pool, "idle", "in use")
    pool.acquire(2.0)
    assert pool.expire(1000.0) == ["idle"]
    assert pool.size == 1


def test_draining_gives_every_idle_connection_and_keeps_the_count_of_the_others() -> None:
    pool = a_pool(min_size=3)
    opened(pool, "a", "b", "c")
    pool.acquire(2.0)
    assert pool.drain() == ["a", "b"]
    assert (pool.size, pool.idle_count) == (1, 0)
    assert pool.drain() == []


class AgainstAModel(RuleBasedStateMachine):
    """Any order of lending, returning, breaking and growing old keeps the counts right and loses no connection."""

    @initialize(min_size=st.integers(0, 3), extra=st.integers(0, 3), lifetime=st.sampled_from([1.0, 5.0, math.inf]))
    def begin(self, min_size: int, extra: int, lifetime: float) -> None:
        self.settings = PoolSettings(min_size, max(1, min_size + extra), lifetime)
        self.pool: Pool[int] = Pool(self.settings)
        self.now = 0.0
        self.lent: list[int] = []
        self.idle: list[tuple[float, int]] = []
        self.made = 0

    def closed(self, members: list[int]) -> None:
        for member in members:
            since, oldest = self.idle.pop(0)
            assert member == oldest
            assert since <= self.now - self.settings.idle_lifetime

    @rule()
    def acquire(self) -> None:
        member, expired = self.pool.acquire(self.now)
        self.closed(expired)
        if member is not None:
            assert member == self.idle.pop()[1]
            self.lent.append(member)
            return
        assert not self.idle
        may = self.pool.may_open()
        assert may is (len(self.lent) < self.settings.max_size)
        if may:
            self.made += 1
            self.lent.append(self.made)

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(self.lent))
        self.lent.remove(member)
        self.idle.append((self.now, member))
        self.closed(self.pool.release(member, self.now))

    @precondition(lambda self: self.lent)
    @rule()
    def discard(self) -> None:
        self.lent.pop()
        self.pool.discard()

    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0]))
    def grow_old(self, seconds: float) -> None:
        self.now += seconds
        self.closed(self.pool.expire(self.now))
        expired = [since for since, _ in self.idle if since <= self.now - self.settings.idle_lifetime]
        assert not expired or len(self.idle) + len(self.lent) <= self.settings.min_size

    @rule()
    def drain(self) -> None:
        assert self.pool.drain() == [member for _, member in self.idle]
        self.idle.clear()

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "pool"):
            assert self.pool.idle_count == len(self.idle)
            assert self.pool.size == len(self.idle) + len(self.lent) <= self.settings.max_size


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
