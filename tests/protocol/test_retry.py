"""When a call may be made again, and how long to wait before the next try to reach a server."""

from __future__ import annotations

import itertools
import random

import pytest

from hostline.limits import RECONNECT_FIRST, RECONNECT_LONGEST
from hostline.protocol.retry import Backoff, may_repeat


@pytest.mark.parametrize(
    ("was_sent", "is_ruled_out", "is_idempotent"), list(itertools.product((False, True), repeat=3))
)
def test_a_call_is_repeated_only_if_that_cannot_run_it_twice(
    was_sent: bool, is_ruled_out: bool, is_idempotent: bool
) -> None:
    might_have_run = was_sent and not is_ruled_out
    verdict = may_repeat(was_sent=was_sent, is_ruled_out=is_ruled_out, is_idempotent=is_idempotent)
    assert verdict is (is_idempotent or not might_have_run)


class Top(random.Random):
    """Jitter at its upper end."""

    def random(self) -> float:
        return 1.0


class Bottom(random.Random):
    """Jitter at its lower end."""

    def random(self) -> float:
        return 0.0


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(0.01, 0.05, Top())
    assert [backoff.pause() for _ in range(5)] == [0.01, 0.02, 0.04, 0.05, 0.05]


def test_jitter_takes_at_most_half() -> None:
    backoff = Backoff(0.01, 0.05, Bottom())
    assert [backoff.pause() for _ in range(4)] == [0.005, 0.01, 0.02, 0.025]


def test_the_first_pause_does_not_exceed_the_longest_either() -> None:
    assert Backoff(5.0, 1.0, Top()).pause() == 1.0


def test_clients_do_not_return_in_step() -> None:
    assert len({Backoff(1.0, 1.0).pause() for _ in range(50)}) > 40


def test_the_defaults_stay_between_their_bounds() -> None:
    backoff = Backoff()
    pauses = [backoff.pause() for _ in range(50)]
    assert all(RECONNECT_FIRST / 2 <= pause <= RECONNECT_LONGEST for pause in pauses)
    assert max(pauses) > RECONNECT_LONGEST / 2


def test_a_given_source_of_jitter_repeats_itself() -> None:
    one, other = Backoff(rng=random.Random(7)), Backoff(rng=random.Random(7))
    assert [one.pause() for _ in range(9)] == [other.pause() for _ in range(9)]
