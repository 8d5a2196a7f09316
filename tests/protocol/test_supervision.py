"""Which worker is started, stopped or killed when: the decisions alone, with a clock of the test's own."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from hostline.limits import (
    WORKER_KILL_MARGIN,
    WORKER_RESTART_FIRST,
    WORKER_RESTART_LONGEST,
    WORKER_SETTLED,
)
from hostline.protocol.serving.supervision import Command, Order, Supervision


class Host:
    """Obey a supervision with processes that are only numbers."""

    def __init__(self, count: int, grace: float = 8.0) -> None:
        self.now = 100.0
        self.decisions = Supervision(count, grace=grace, rng=random.Random(1))
        self.seats: dict[int, int] = {}  # pid -> seat, of those that run
        self.done: list[Command] = []
        self.cannot_fork = 0
        self._next_pid = 0

    def obey(self) -> list[Command]:
        """Do what is due and return it."""
        done = []
        while (command := self.decisions.next_command(self.now)) is not None:
            done.append(command)
            assert len(done) < 1000, "it never ends"
            if command.order is Order.START and self.cannot_fork:
                self.cannot_fork -= 1
                self.decisions.not_started(command.seat, self.now)
            elif command.order is Order.START:
                self._next_pid += 1
                self.seats[self._next_pid] = command.seat
                self.decisions.started(command.seat, self._next_pid, self.now)
                assert max(Counter(self.seats.values()).values()) <= 2, "three workers in one seat"
            else:
                assert self.seats[command.pid] == command.seat, "a signal for a process that is not ours"
        self.done += done
        return done

    def wait(self, seconds: float) -> list[Command]:
        self.now += seconds
        return self.obey()

    def ready(self, *pids: int) -> list[Command]:
        for pid in pids:
            self.decisions.ready(pid, self.now)
        return self.obey()

    def end(self, *pids: int) -> list[Command]:
        for pid in pids:
            del self.seats[pid]
            self.decisions.ended(pid, self.now)
        return self.obey()


def orders(commands: list[Command]) -> list[tuple[str, int]]:
    """Return the orders and, for a start, the seat, else the pid."""
    return [(c.order.value, c.seat if c.order is Order.START else c.pid) for c in commands]


def serving(count: int, grace: float = 8.0) -> Host:
    host = Host(count, grace)
    host.obey()
    host.ready(*range(1, count + 1))
    return host


def test_all_are_started_at_once_and_then_nothing_is_due() -> None:
    host = Host(3)
    assert orders(host.obey()) == [("start", 0), ("start", 1), ("start", 2)]
    assert host.decisions.wake_at() == math.inf
    assert host.ready(1, 2) == []
    assert host.decisions.ready_count == 2
    assert host.wait(1e6) == []


def test_a_worker_that_lived_a_while_is_replaced_at_once() -> None:
    host = serving(2)
    host.wait(WORKER_SETTLED)
    assert host.end(1) == [Command(Order.START, 0, 0, 1)]
    assert host.decisions.pids == [2, 3]


def test_the_pauses_double_up_to_their_bound_and_begin_anew_after_a_while() -> None:
    host = serving(2)
    longest = WORKER_RESTART_FIRST
    for restarts in range(1, 15):
        (pid,) = [pid for pid, seat in host.seats.items() if seat == 0]
        assert host.end(pid) == []
        pause = host.decisions.wake_at() - host.now
        assert longest / 2 <= pause <= longest
        assert host.wait(pause * 0.99) == []
        assert host.wait(pause * 0.0101) == [Command(Order.START, 0, 0, restarts)]
        longest = min(longest * 2, WORKER_RESTART_LONGEST)
    assert longest == WORKER_RESTART_LONGEST
    (pid,) = [pid for pid, seat in host.seats.items() if seat == 0]
    host.ready(pid)
    host.wait(WORKER_SETTLED)
    assert len(host.end(pid)) == 1
    (pid,) = [pid for pid, seat in host.seats.items() if seat == 0]
    host.end(pid)
    assert host.decisions.wake_at() - host.now <= WORKER_RESTART_FIRST


def test_a_worker_that_lived_long_but_was_never_ready_is_no_success() -> None:
    host = serving(2)
    host.end(1)
    host.wait(1)
    host.wait(1000)
    assert host.end(3) == []
    assert host.decisions.wake_at() > host.now


def test_one_seat_alone_never_ends_it_all_while_the_others_still_start() -> None:
    host = Host(2)
    host.obey()
    for _ in range(20):
        (pid,) = [pid for pid, seat in host.seats.items() if seat == 0]
        host.end(pid)
        host.wait(WORKER_RESTART_LONGEST)
    assert host.decisions.failure is None
    assert not host.decisions.is_stopping


def test_if_every_first_start_fails_it_ends_with_a_reason() -> None:
    host = Host(3)
    host.obey()
    host.end(1)
    host.end(2)
    assert host.decisions.failure is None
    host.end(3)
    assert host.decisions.failure == "none of 3 workers became ready"
    assert host.decisions.has_ended
    assert host.wait(1000) == []


def test_those_that_were_started_again_meanwhile_are_stopped_when_it_fails() -> None:
    host = Host(2)
    host.obey()
    host.end(1)
    host.wait(1)
    assert host.decisions.pids == [2, 3]
    assert orders(host.end(2)) == [("stop", 3)]
    assert not host.decisions.has_ended
    host.end(3)
    assert host.decisions.has_ended


def test_after_the_first_was_ready_it_never_gives_up() -> None:
    host = serving(2)
    for _ in range(50):
        host.end(*host.decisions.pids)
        host.wait(WORKER_RESTART_LONGEST)
    assert host.decisions.failure is None
    assert len(host.seats) == 2


def test_what_cannot_be_forked_counts_as_a_failed_start() -> None:
    host = Host(2)
    host.cannot_fork = 2
    host.obey()
    assert host.decisions.failure == "none of 2 workers became ready"
    host = serving(2)
    host.cannot_fork = 3
    host.wait(WORKER_SETTLED)
    host.end(1)
    for _ in range(3):
        host.wait(WORKER_RESTART_LONGEST)
    assert sorted(host.seats.values()) == [0, 1]


# --- stopping ------------------------------------------------------------------------------------------


def test_a_stop_tells_all_and_kills_those_that_outstay_their_grace() -> None:
    host = serving(3, grace=5.0)
    host.decisions.stop(host.now)
    assert orders(host.obey()) == [("stop", 1), ("stop", 2), ("stop", 3)]
    host.end(2)
    assert host.wait(5.0 + WORKER_KILL_MARGIN - 0.01) == []
    assert orders(host.wait(0.01)) == [("kill", 1), ("kill", 3)]
    assert host.wait(1000) == []
    host.end(1, 3)
    assert host.decisions.has_ended


def test_a_second_stop_tells_them_again_and_shortens_the_wait() -> None:
    host = serving(2, grace=math.inf)
    host.decisions.stop(host.now)
    host.obey()
    assert host.decisions.wake_at() == math.inf
    host.decisions.stop(host.now)
    assert orders(host.obey()) == [("stop", 1), ("stop", 2)]
    assert orders(host.wait(WORKER_KILL_MARGIN)) == [("kill", 1), ("kill", 2)]


def test_a_stop_ends_the_pauses_and_a_worker_that_still_starts() -> None:
    host = Host(2)
    host.obey()
    host.ready(1)
    host.end(1)
    host.decisions.stop(host.now)
    assert orders(host.obey()) == [("stop", 2)]
    assert not host.decisions.reload(host.now)
    host.ready(2)  # it was on the way
    assert host.wait(1) == []
    host.end(2)
    assert host.decisions.has_ended
    assert host.wait(1000) == []


# --- reloading -----------------------------------------------------------------------------------------


def test_a_reload_starts_all_before_it_stops_any() -> None:
    host = serving(2)
    assert host.decisions.reload(host.now)
    assert orders(host.obey()) == [("start", 0), ("start", 1)]
    assert host.ready(3) == []
    assert orders(host.ready(4)) == [("stop", 1), ("stop", 2)]
    assert host.end(1, 2) == []
    assert host.decisions.pids == [3, 4]
    assert {c.restarts for c in host.done} == {0}, "a reload is no restart"


def test_a_reload_that_fails_leaves_the_old_ones_as_they_were() -> None:
    host = serving(2)
    host.decisions.reload(host.now)
    host.obey()
    host.ready(3)
    assert orders(host.end(4)) == [("stop", 3)]
    assert not host.decisions.is_reloading
    host.end(3)
    assert host.wait(1000) == []
    assert host.decisions.pids == [1, 2]
    host.decisions.reload(host.now)  # the fault was mended
    host.obey()
    assert orders(host.ready(5, 6)) == [("stop", 1), ("stop", 2)]


def test_a_reload_that_cannot_be_forked_starts_no_further_one() -> None:
    host = serving(3)
    host.decisions.reload(host.now)
    host.cannot_fork = 1
    host.obey()
    assert sorted(host.seats) == [1, 2, 3]
    assert host.decisions.ready_count == 3


def test_an_old_worker_that_ends_during_a_reload_is_not_started_again_unless_the_reload_fails() -> None:
    host = serving(2)
    host.decisions.reload(host.now)
    host.obey()
    assert host.end(1) == []
    assert host.wait(60) == []
    host.end(3)
    assert orders(host.wait(1)) == [("start", 0)]


def test_a_reload_during_a_reload_waits_until_the_old_workers_are_gone() -> None:
    host = serving(2)
    host.decisions.reload(host.now)
    host.obey()
    assert not host.decisions.reload(host.now)
    assert not host.decisions.reload(host.now)
    host.ready(3, 4)
    assert host.end(1) == []
    assert orders(host.end(2)) == [("start", 0), ("start", 1)]
    host.ready(5, 6)
    assert host.end(3, 4) == [], "two that wait are one"


def test_a_stop_during_a_reload_stops_old_and_new() -> None:
    host = serving(2)
    host.decisions.reload(host.now)
    host.obey()
    host.decisions.stop(host.now)
    assert orders(host.obey()) == [("stop", 1), ("stop", 2), ("stop", 3), ("stop", 4)]
    host.end(1, 2, 3, 4)
    assert host.decisions.has_ended


@pytest.mark.parametrize("seed", range(200))
def test_whatever_happens_no_seat_has_three_and_all_is_well_in_the_end(seed: int) -> None:
    rng = random.Random(seed)
    host = serving(3)
    for _ in range(200):
        what = rng.random()
        if what < 0.3 and host.seats:
            host.end(rng.choice(list(host.seats)))
        elif what < 0.6 and host.seats:
            host.ready(rng.choice(list(host.seats)))
        elif what < 0.7:
            host.decisions.reload(host.now)
            host.obey()
        elif what < 0.75:
            host.cannot_fork = rng.randrange(3)
        else:
            host.wait(rng.random() * 5)
    host.cannot_fork = 0
    told = {c.pid for c in host.done if c.order is not Order.START}
    for _ in range(20):
        host.ready(*host.seats)
        told |= {c.pid for c in host.done if c.order is not Order.START}
        host.end(*(pid for pid in list(host.seats) if pid in told))
        host.wait(WORKER_RESTART_LONGEST)
    assert sorted(host.seats.values()) == [0, 1, 2]
    assert host.decisions.ready_count == 3
    host.decisions.stop(host.now)
    host.obey()
    host.end(*list(host.seats))
    assert host.decisions.has_ended
