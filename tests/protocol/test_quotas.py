"""What one user's connections may cost: charges to the unit, states in order, and everything back to zero."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hostline.limits import CONNECTION_BURST
from hostline.protocol.serving.admission import Admission, Group, Verdict
from hostline.protocol.serving.quotas import Bounds, Holding, Quotas, share_of


def bounds(**changes: Any) -> Bounds:
    usual: dict[str, Any] = {
        "connections": 10,
        "connections_per_uid": 5,
        "connection_rate_per_uid": None,
        "buffered_per_uid": 1000,
        "descriptors_per_uid": 8,
    }
    return Bounds(**(usual | changes))


# --- connections ---------------------------------------------------------------------------------------


def test_connections_are_bounded_in_all_and_for_each_user() -> None:
    quotas = Quotas(bounds())
    for number in range(5):
        assert quotas.refusal(1, 0.0) is None
        quotas.open(f"a{number}", 1)
    refusal = quotas.refusal(1, 0.0)
    assert refusal is not None
    assert (refusal.is_passing, refusal.reason) == (False, "uid 1 has 5 connections, its most: max_connections_per_uid")
    assert quotas.refusal(2, 0.0) is None
    for number in range(5):
        quotas.open(f"b{number}", 2)
    refusal = quotas.refusal(3, 0.0)
    assert refusal is not None
    assert "has 10 connections, its most: max_connections" in refusal.reason


def test_a_burst_of_connections_is_let_in_and_then_so_many_a_second() -> None:
    quotas = Quotas(bounds(connection_rate_per_uid=10.0))
    burst = 10 * CONNECTION_BURST
    assert [quotas.refusal(1, 0.0) is None for _ in range(burst + 2)] == [True] * burst + [False] * 2
    refusal = quotas.refusal(1, 0.0)
    assert refusal is not None
    assert refusal.is_passing
    assert refusal.reason == "uid 1 makes more than 10 connections a second, its most: max_connection_rate_per_uid"
    assert quotas.refusal(2, 0.0) is None, "another user has a rate of its own"
    assert [quotas.refusal(1, 0.1) is None for _ in range(2)] == [True, False]
    assert [quotas.refusal(1, 1.1) is None for _ in range(12)] == [True] * 10 + [False] * 2
    assert sum(quotas.refusal(1, 1000.0) is None for _ in range(burst + 5)) == burst, "no more than a burst is saved up"


def test_rates_of_users_that_left_are_forgotten() -> None:
    quotas = Quotas(bounds(connection_rate_per_uid=10.0))
    for uid in range(1000):
        assert quotas.refusal(uid, float(uid)) is None
    assert len(quotas._buckets) <= 3


def test_the_log_has_one_line_a_second() -> None:
    quotas = Quotas(bounds())
    assert quotas.log_line("full", 0.0) == "full"
    assert [quotas.log_line("full", 0.5) for _ in range(3)] == [None] * 3
    assert quotas.log_line("full", 1.0) == "full (3 more were sent away since the last such line)"
    assert quotas.log_line("full", 2.0) == "full"


# --- bytes ---------------------------------------------------------------------------------------------


def opened(quotas: Quotas, count: int, uid: int = 1) -> list[Holding]:
    return [quotas.open(f"{uid}.{number}", uid) for number in range(count)]


def test_at_the_bound_only_begun_frames_and_those_that_hold_nothing_are_read() -> None:
    holder, other, begun = opened(Quotas(bounds()), 3)
    account = holder.account
    account.settle(holder, 600, 0)
    assert not account.is_full
    account.settle(begun, 400, 0)
    assert account.is_full
    assert not account.may_read(holder, False)
    assert account.may_read(begun, True)
    assert account.may_read(other, False), "it holds nothing itself"
    assert account.ready() == [], "still full"
    account.settle(begun, 399, 0)
    assert account.ready() == [holder]
    assert account.ready() == []


def test_at_twice_the_bound_nothing_is_begun_until_it_falls_to_seven_quarters() -> None:
    holder, other = opened(Quotas(bounds()), 2)
    account = holder.account
    assert account.settle(holder, 2000, 0)
    assert not account.may_read(other, False)
    assert account.may_read(holder, True)
    assert not account.settle(holder, 1800, 0)
    assert not account.may_read(other, False)
    assert account.settle(holder, 1750, 0)
    assert account.ready(True) == [other]
    assert account.may_read(other, False)


def test_unread_bytes_choke_at_half_the_bound_and_close_at_three_halves() -> None:
    holder, other = opened(Quotas(bounds()), 2)
    account = holder.account
    seen = []
    for unread in (499, 500, 251, 250, 500, 1499, 1500, 1001, 1000, 0):
        changed = account.settle(holder, 0, unread)
        seen.append((changed, account.is_choked, account.is_closed))
        if unread == 1500:
            assert not account.may_read(other, True), "closed: not even a begun frame"
    assert seen == [
        (False, False, False),
        (True, True, False),
        (False, True, False),
        (True, False, False),
        (True, True, False),
        (False, True, False),
        (True, True, True),
        (False, True, True),
        (True, True, False),
        (True, False, False),
    ]


def test_one_user_at_every_bound_leaves_another_untouched() -> None:
    quotas = Quotas(bounds(connection_rate_per_uid=1.0))
    [greedy] = opened(quotas, 1, uid=1)
    greedy.account.settle(greedy, 5000, 5000)
    assert greedy.charge_descriptors(8)
    while quotas.refusal(1, 0.0) is None:
        pass
    [modest] = opened(quotas, 1, uid=2)
    account = modest.account
    assert quotas.refusal(2, 0.0) is None
    assert not any((account.is_full, account.is_over, account.is_choked, account.is_closed))
    assert account.may_read(modest, False)
    assert modest.charge_descriptors(8)


def test_descriptors_are_bounded_and_come_back_with_the_connection() -> None:
    quotas = Quotas(bounds())
    one, other = opened(quotas, 2)
    assert one.charge_descriptors(5)
    assert not other.charge_descriptors(4)
    assert other.charge_descriptors(3)
    one.release_descriptors(2)
    assert one.account.descriptors == 6
    quotas.close(one)
    assert other.account.descriptors == 3
    quotas.close(other)
    assert quotas.accounts == {}


def test_an_account_is_forgotten_when_its_last_call_has_ended_too() -> None:
    quotas = Quotas(bounds())
    admission = Admission(1, 1)
    [holding] = opened(quotas, 1)
    account = holding.account
    admission.arrive(holding, 1, "call", account.calls)
    quotas.close(holding)
    assert quotas.accounts == {1: account}, "a handler still runs for it"
    admission.finish(account.calls)
    quotas.forget(account)
    assert quotas.accounts == {}


class Charges(RuleBasedStateMachine):
    """Whatever is charged and given back, the accounts are the sums of what their connections hold."""

    def __init__(self) -> None:
        super().__init__()
        self.quotas = Quotas(bounds(connections=100, connections_per_uid=100))
        self.holdings: list[Holding] = []

    @rule(uid=st.integers(1, 3))
    def open(self, uid: int) -> None:
        self.holdings.append(self.quotas.open(object(), uid))

    @precondition(lambda self: self.holdings)
    @rule(data=st.data(), kept=st.integers(0, 1500), unread=st.integers(0, 1500))
    def settle(self, data: st.DataObject, kept: int, unread: int) -> None:
        holding = data.draw(st.sampled_from(self.holdings))
        account = holding.account
        before = (account.is_over, account.is_choked, account.is_closed)
        changed = account.settle(holding, kept, unread)
        assert changed is (before != (account.is_over, account.is_choked, account.is_closed))
        account.ready(changed)

    @precondition(lambda self: self.holdings)
    @rule(data=st.data(), is_begun=st.booleans())
    def read(self, data: st.DataObject, is_begun: bool) -> None:
        holding = data.draw(st.sampled_from(self.holdings))
        account = holding.account
        if not account.may_read(holding, is_begun):
            assert account.kept + account.unread >= 1000
            assert holding in account.line
        else:
            assert holding not in account.line

    @precondition(lambda self: self.holdings)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        holding = data.draw(st.sampled_from(self.holdings))
        self.holdings.remove(holding)
        self.quotas.close(holding)

    @invariant()
    def sums_agree(self) -> None:
        assert set(self.quotas.accounts) == {holding.account.uid for holding in self.holdings}
        assert self.quotas.connections == len(self.holdings)
        for uid, account in self.quotas.accounts.items():
            of_it = [holding for holding in self.holdings if holding.account.uid == uid]
            assert account.connections == len(of_it)
            assert (account.kept, account.unread) == (sum(h.kept for h in of_it), sum(h.unread for h in of_it))
            assert set(account.line) <= set(of_it)
            assert account.is_full is (account.kept + account.unread >= 1000)
            if not account.is_full and account.line:
                assert account.ready(), "somebody who waits is told"


TestCharges = Charges.TestCase
TestCharges.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# --- calls by user -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "share"), [(1, 1), (2, 1), (7, 6), (8, 7), (64, 56), (1000, 875)])
def test_a_share_leaves_something_over(count: int, share: int) -> None:
    assert share_of(count) == share


def test_users_take_turns_however_many_connections_each_has() -> None:
    admission, many, one = Admission(1, 1000), Group(), Group()
    for connection in range(50):
        admission.arrive(f"c{connection}", 1, f"many {connection}", many)
    admission.arrive("single", 1, "one 1", one)
    admission.arrive("single", 2, "one 2", one)
    started = []
    for _ in range(5):
        admission.finish(one if started and started[-1].startswith("one") else many)
        started.append(admission.next())
    assert started == ["many 1", "one 1", "many 2", "one 2", "many 3"]


def test_a_full_queue_is_shared_out_between_users() -> None:
    displaced: list[str] = []
    admission, greedy, modest = Admission(1, 10, displaced.append), Group(), Group()
    for connection in range(11):
        admission.arrive(f"c{connection}", 1, f"greedy {connection}", greedy)
    assert admission.arrive("c99", 1, "too many", greedy) is Verdict.OVERLOADED
    verdicts = [admission.arrive("m", number, f"modest {number}", modest) for number in range(6)]
    assert verdicts == [Verdict.WAIT] * 5 + [Verdict.OVERLOADED]
    assert len(displaced) == 5
    assert all(name.startswith("greedy") for name in displaced)
    assert (greedy.waiting_count, modest.waiting_count, admission.waiting_count) == (5, 5, 10)


def test_calls_that_never_end_keep_a_share_of_the_slots_free() -> None:
    admission, greedy, modest = Admission(8, 100, share=7), Group(), Group()
    verdicts = [admission.arrive("g", number, number, greedy) for number in range(9)]
    assert verdicts == [Verdict.RUN] * 7 + [Verdict.WAIT] * 2
    assert admission.next() is None
    assert admission.arrive("m", 1, "modest", modest) is Verdict.RUN
    admission.finish(modest)
    assert admission.next() is None, "greedy has its share"
    admission.finish(greedy)
    assert admission.next() == 7


def test_calls_of_one_user_are_bounded() -> None:
    admission, greedy, modest = Admission(2, 100, max_calls=5), Group(), Group()
    verdicts = [admission.arrive("g", number, number, greedy) for number in range(6)]
    assert verdicts == [Verdict.RUN] * 2 + [Verdict.WAIT] * 3 + [Verdict.LIMITED]
    assert admission.arrive("m", 1, "modest", modest) is Verdict.WAIT
    assert Admission(10, 100, max_calls=3).share == 3


def test_nothing_of_a_held_group_starts() -> None:
    admission, held, other = Admission(1, 10), Group(), Group()
    admission.arrive("o", 0, "running", other)
    admission.arrive("h", 1, "held 1", held)
    admission.hold_group(held, True)
    admission.hold("h", held)
    admission.finish(other)
    assert admission.next() is None
    assert admission.arrive("h2", 1, "held 2", held) is Verdict.WAIT
    assert admission.arrive("o", 1, "other", other) is Verdict.RUN
    admission.finish(other)
    admission.hold_group(held, False)
    assert admission.next() == "held 2", "its one owner is held for itself"
    admission.resume("h", held)
    admission.finish(held)
    assert admission.next() == "held 1"
