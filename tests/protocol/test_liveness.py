"""When to ping, when to give up, when a connection is idle: with times as arguments and nothing waited for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostline.protocol.liveness import Idleness, Liveness, Look, check_times


def test_a_ping_is_due_after_the_interval_and_the_end_after_the_timeout() -> None:
    liveness = Liveness(5.0, 2.0, 100.0, "mark")
    assert liveness.next_at == 105.0
    assert liveness.look(104.9, "mark") is Look.WAIT
    assert liveness.look(105.0, "mark") is Look.PING
    assert liveness.next_at == 107.0
    assert liveness.look(106.9, "mark") is Look.WAIT
    assert liveness.look(107.0, "mark") is Look.GIVE_UP
    assert liveness.describe("server") == "no answer to a ping for 2 seconds: the server is stopped or stuck"


def test_anything_that_comes_is_a_sign_of_life() -> None:
    liveness = Liveness(5.0, 2.0, 0.0, 0)
    assert liveness.look(5.0, 0) is Look.PING
    assert liveness.look(7.0, 1) is Look.WAIT
    assert liveness.look(10.0, 1) is Look.PING
    assert liveness.look(12.0, 1) is Look.GIVE_UP


def test_a_timeout_longer_than_the_interval_is_kept() -> None:
    liveness = Liveness(1.0, 3.5, 0.0, 0)
    assert [liveness.look(float(now), 0) for now in range(1, 5)] == [Look.PING, Look.WAIT, Look.WAIT, Look.WAIT]
    assert liveness.next_at == 4.5
    assert liveness.look(4.5, 0) is Look.GIVE_UP


def test_after_a_restart_nothing_is_owed() -> None:
    liveness = Liveness(1.0, 1.0, 0.0, 0)
    assert liveness.look(1.0, 0) is Look.PING
    liveness.restart(100.0, 0)
    assert liveness.look(100.5, 0) is Look.WAIT
    assert liveness.look(101.0, 0) is Look.PING


@given(
    interval=st.floats(0.1, 10),
    timeout=st.floats(0.1, 10),
    stops=st.floats(0, 50),
    delay=st.floats(0, 0.05),
)
def test_a_stopped_peer_is_found_within_interval_and_timeout(
    interval: float, timeout: float, stops: float, delay: float
) -> None:
    """The peer answers each ping after a moment, until it stops; whoever looks does so when told to."""
    now, mark, answers = 0.0, 0, []
    liveness = Liveness(interval, timeout, now, mark)
    while True:
        now = max(now, liveness.next_at)
        mark += sum(1 for at in answers if at <= now)
        answers = [at for at in answers if at > now]
        found = liveness.look(now, mark)
        if found is Look.GIVE_UP:
            break
        if found is Look.PING and now + delay < stops:
            answers.append(now + delay)
        assert now < stops + 100
    assert stops - max(timeout, delay) - interval - 1 <= now or delay >= timeout
    assert now <= stops + interval + timeout + delay + 1e-6


def test_a_connection_is_idle_when_nothing_was_asked_for_the_whole_time() -> None:
    idleness = Idleness(8.0, 0.0, 0)
    assert idleness.next_at == 2.0
    assert not idleness.is_over(2.0, 1, False)
    assert not idleness.is_over(9.9, 1, False)
    assert idleness.next_at == 10.0
    assert idleness.is_over(10.0, 1, False)
    assert idleness.describe() == "idle for 8 seconds"


def test_a_connection_with_something_under_way_is_not_idle() -> None:
    idleness = Idleness(8.0, 0.0, 0)
    assert not idleness.is_over(100.0, 0, True)
    assert not idleness.is_over(107.0, 0, False)
    assert idleness.is_over(108.0, 0, False)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_times_that_make_no_sense_are_refused_with_name_and_fix(seconds: float) -> None:
    with pytest.raises(ValueError, match=rf"ping_interval of {seconds} seconds must be above 0; None turns it off"):
        check_times(ping_interval=seconds, ping_timeout=1.0)
    check_times(ping_interval=None)
