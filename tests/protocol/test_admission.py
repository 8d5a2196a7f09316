"""Which call runs, which waits, which is turned away: bounds to the unit, turns between owners, and nothing lost."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hostline.protocol.serving.admission import Admission, Verdict


def drain(admission: Admission) -> list[Any]:
    """Run everything that waits, one slot at a time."""
    started = []
    while admission.running_count:
        admission.finish()
        while (item := admission.next()) is not None:
            started.append(item)
    return started


@pytest.mark.parametrize(("concurrency", "queue"), [(0, 0), (-1, 5), (1, -1)])
def test_bounds_that_make_no_sense_are_refused_with_their_value(concurrency: int, queue: int) -> None:
    with pytest.raises(ValueError, match=r"must be (at least 1|0 or more)") as caught:
        Admission(concurrency, queue)
    assert str(concurrency if concurrency < 1 else queue) in str(caught.value)


@pytest.mark.parametrize(("concurrency", "queue"), [(1, 0), (1, 1), (3, 2), (64, 1024)])
def test_concurrency_run_queue_wait_and_the_next_is_turned_away(concurrency: int, queue: int) -> None:
    admission = Admission(concurrency, queue)
    verdicts = [admission.arrive("peer", number, number) for number in range(concurrency + queue + 2)]
    assert verdicts == [Verdict.RUN] * concurrency + [Verdict.WAIT] * queue + [Verdict.OVERLOADED] * 2
    assert (admission.running_count, admission.waiting_count) == (concurrency, queue)


def test_a_slot_that_returns_runs_who_waited_longest() -> None:
    admission = Admission(1, 10)
    for number in range(4):
        admission.arrive("peer", number, number)
    assert admission.next() is None
    assert drain(admission) == [1, 2, 3]
    assert (admission.running_count, admission.waiting_count) == (0, 0)


def test_a_new_call_does_not_overtake_those_that_wait() -> None:
    admission = Admission(1, 10)
    admission.arrive("a", 1, "first")
    admission.arrive("b", 1, "second")
    admission.finish()
    assert admission.arrive("c", 1, "third") is Verdict.WAIT
    assert [admission.next(), admission.next()] == ["second", None]


def test_owners_take_turns_however_much_each_has_waiting() -> None:
    admission = Admission(1, 1000)
    admission.arrive("greedy", 0, "running")
    for number in range(1, 100):
        admission.arrive("greedy", number, f"greedy {number}")
    admission.arrive("modest", 1, "modest 1")
    admission.arrive("other", 1, "other 1")
    admission.arrive("modest", 2, "modest 2")
    assert drain(admission)[:6] == ["greedy 1", "modest 1", "other 1", "greedy 2", "modest 2", "greedy 3"]


@pytest.mark.parametrize("is_held", [False, True])
def test_a_full_queue_of_one_owner_has_a_place_for_another(is_held: bool) -> None:
    displaced: list[str] = []
    admission = Admission(1, 4, displaced.append)
    for number in range(5):
        admission.arrive("greedy", number, f"greedy {number}")
    if is_held:
        admission.hold("greedy")
    assert admission.arrive("greedy", 5, "too many") is Verdict.OVERLOADED
    assert admission.arrive("modest", 1, "modest 1") is Verdict.WAIT
    assert displaced == ["greedy 4"]
    assert admission.waiting_count == 4
    assert admission.arrive("modest", 2, "modest 2") is Verdict.OVERLOADED, "who has a place gets no second one"
    admission.resume("greedy")
    assert sorted(drain(admission)) == ["greedy 1", "greedy 2", "greedy 3", "modest 1"]


def test_whoever_has_one_place_keeps_it() -> None:
    displaced: list[str] = []
    admission = Admission(1, 2, displaced.append)
    for owner in "abc":
        admission.arrive(owner, 1, owner)
    assert admission.arrive("d", 1, "d") is Verdict.OVERLOADED
    assert not displaced


def test_the_same_id_of_two_owners_is_two_calls() -> None:
    admission = Admission(1, 10)
    admission.arrive("a", 1, "running")
    admission.arrive("a", 2, "of a")
    admission.arrive("b", 2, "of b")
    assert admission.withdraw("b", 2) == "of b"
    assert drain(admission) == ["of a"]


def test_a_withdrawn_call_gives_its_place_back_and_never_runs() -> None:
    admission = Admission(1, 1)
    admission.arrive("a", 1, "running")
    admission.arrive("a", 2, "waiting")
    assert admission.arrive("b", 1, "late") is Verdict.OVERLOADED
    assert admission.withdraw("a", 2) == "waiting"
    assert admission.withdraw("a", 2) is None
    assert admission.withdraw("a", 1) is None
    assert admission.withdraw("nobody", 1) is None
    assert admission.arrive("b", 1, "late") is Verdict.WAIT
    assert drain(admission) == ["late"]


def test_everything_of_an_owner_can_be_withdrawn() -> None:
    admission = Admission(1, 10)
    admission.arrive("a", 0, "running")
    for number in range(1, 4):
        admission.arrive("a", number, number)
        admission.arrive("b", number, -number)
    assert admission.withdraw_all("a") == [1, 2, 3]
    assert admission.withdraw_all("a") == []
    assert admission.waiting_count == 3
    assert drain(admission) == [-1, -2, -3]


def test_nothing_of_a_held_owner_starts_and_all_of_it_after() -> None:
    admission = Admission(1, 10)
    admission.arrive("slow", 0, "running")
    admission.arrive("slow", 1, "slow 1")
    admission.arrive("quick", 1, "quick 1")
    admission.hold("slow")
    assert admission.arrive("slow", 2, "slow 2") is Verdict.WAIT
    assert admission.waiting_count == 3
    assert drain(admission) == ["quick 1"]
    assert admission.arrive("slow", 3, "slow 3") is Verdict.WAIT, "a slot is free, and still nothing of it starts"
    assert admission.arrive("quick", 2, "quick 2") is Verdict.RUN
    admission.resume("slow")
    assert drain(admission) == ["slow 1", "slow 2", "slow 3"]


def test_holding_twice_loses_nothing() -> None:
    admission = Admission(1, 10)
    admission.arrive("slow", 0, "running")
    admission.arrive("slow", 1, "waiting")
    admission.hold("slow")
    admission.hold("slow")
    admission.resume("slow")
    assert drain(admission) == ["waiting"]
    assert admission.waiting_count == 0


def test_resuming_who_is_not_held_or_has_nothing_is_nothing() -> None:
    admission = Admission(1, 1)
    admission.resume("nobody")
    admission.hold("a")
    admission.resume("a")
    assert admission.arrive("a", 1, "x") is Verdict.RUN


def test_what_waits_of_a_held_owner_can_be_withdrawn() -> None:
    admission = Admission(1, 10)
    admission.arrive("slow", 0, "running")
    admission.arrive("slow", 1, "one")
    admission.hold("slow")
    admission.arrive("slow", 2, "two")
    assert admission.withdraw("slow", 1) == "one"
    assert admission.withdraw_all("slow") == ["two"]
    assert admission.waiting_count == 0
    admission.finish()
    assert admission.arrive("slow", 3, "three") is Verdict.RUN, "an owner that left is not held any more"


class AgainstAModel(RuleBasedStateMachine):
    """The same decisions as a model that is slow and obvious: one list of waiting calls."""

    @initialize(concurrency=st.integers(1, 3), queue=st.integers(0, 5))
    def begin(self, concurrency: int, queue: int) -> None:
        self.displaced: list[tuple[str, int]] = []
        self.admission = Admission(concurrency, queue, self.displaced.append)
        self.waiting: list[tuple[str, int]] = []
        self.held: set[str] = set()
        self.running = 0
        self.last_id = 0

    def start_waiting(self) -> None:
        while (item := self.admission.next()) is not None:
            owner = item[0]
            assert owner not in self.held
            assert item == next(entry for entry in self.waiting if entry[0] == owner), "in order for one owner"
            self.waiting.remove(item)
            self.running += 1

    @rule(owner=st.sampled_from("abc"))
    def arrive(self, owner: str) -> None:
        self.last_id += 1
        item = (owner, self.last_id)
        verdict = self.admission.arrive(owner, self.last_id, item)
        startable = [entry for entry in self.waiting if entry[0] not in self.held]
        if owner not in self.held and self.running < self.admission.concurrency and not startable:
            assert verdict is Verdict.RUN
            self.running += 1
        elif len(self.waiting) < self.admission.queue:
            assert verdict is Verdict.WAIT
            self.waiting.append(item)
        elif self.displaced:
            assert verdict is Verdict.WAIT
            counts = Counter(entry[0] for entry in self.waiting)
            loser = self.displaced.pop()
            assert loser == [entry for entry in self.waiting if entry[0] == loser[0]][-1], "the newest of its owner"
            assert counts[loser[0]] == max(counts.values()) >= 2
            assert counts[owner] == 0
            self.waiting.remove(loser)
            self.waiting.append(item)
        else:
            assert verdict is Verdict.OVERLOADED
            counts = Counter(entry[0] for entry in self.waiting)
            assert counts[owner] or max(counts.values(), default=0) < 2
        assert not self.displaced

    @precondition(lambda self: self.running)
    @rule()
    def finish(self) -> None:
        self.admission.finish()
        self.running -= 1
        self.start_waiting()

    @rule(owner=st.sampled_from("abc"))
    def hold(self, owner: str) -> None:
        self.admission.hold(owner)
        self.held.add(owner)

    @rule(owner=st.sampled_from("abc"))
    def resume(self, owner: str) -> None:
        self.admission.resume(owner)
        self.held.discard(owner)
        self.start_waiting()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.waiting))
        assert self.admission.withdraw(*item) == item
        self.waiting.remove(item)

    @rule(owner=st.sampled_from("abc"))
    def leave(self, owner: str) -> None:
        assert self.admission.withdraw_all(owner) == [entry for entry in self.waiting if entry[0] == owner]
        self.waiting = [entry for entry in self.waiting if entry[0] != owner]
        self.held.discard(owner)

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "admission"):
            assert self.admission.running_count == self.running <= self.admission.concurrency
            assert self.admission.waiting_count == len(self.waiting) <= self.admission.queue
            is_slot_free = self.running < self.admission.concurrency
            assert not (is_slot_free and any(owner not in self.held for owner, _ in self.waiting))


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
