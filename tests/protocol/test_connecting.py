"""The line before a full backlog: first come, first served; one tries, with growing pauses."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hostline.protocol.connecting import ConnectLine


def test_only_the_first_may_try_and_the_next_follows_in_order() -> None:
    line: ConnectLine[str] = ConnectLine()
    for name in "abc":
        line.join(name)
    assert [line.is_first(name) for name in "abc"] == [True, False, False]
    assert line.leave("a", has_connected=True) == "b"
    assert line.leave("b", has_connected=False) == "c"
    assert line.leave("c", has_connected=True) is None
    assert len(line) == 0


def test_whoever_gives_up_in_the_middle_wakes_nobody() -> None:
    line: ConnectLine[str] = ConnectLine()
    for name in "abc":
        line.join(name)
    assert line.leave("b", has_connected=False) is None
    assert line.is_first("a")
    assert line.leave("a", has_connected=True) == "c"


def test_leaving_twice_is_harmless() -> None:
    line: ConnectLine[str] = ConnectLine()
    line.join("a")
    line.join("b")
    line.leave("a", has_connected=False)
    assert line.leave("a", has_connected=False) is None
    assert line.is_first("b")


def test_pauses_grow_to_the_bound_and_begin_anew_after_a_success() -> None:
    line: ConnectLine[str] = ConnectLine(first=0.001, longest=0.05)
    line.join("a")
    pauses = [line.next_pause() for _ in range(20)]
    assert 0.0005 <= pauses[0] <= 0.001
    assert all(0.025 <= pause <= 0.05 for pause in pauses[8:])
    line.join("b")
    line.leave("a", has_connected=True)
    assert line.next_pause() <= 0.001


def test_pauses_do_not_begin_anew_when_somebody_gives_up() -> None:
    line: ConnectLine[str] = ConnectLine(first=0.001, longest=0.05)
    for name in "ab":
        line.join(name)
    for _ in range(10):
        line.next_pause()
    line.leave("a", has_connected=False)
    assert line.next_pause() >= 0.025


@settings(database=None)
@given(st.lists(st.tuples(st.sampled_from(["join", "leave"]), st.integers(0, 9), st.booleans())))
def test_there_is_always_exactly_one_first_and_a_new_first_is_always_told(
    steps: list[tuple[str, int, bool]],
) -> None:
    line: ConnectLine[int] = ConnectLine()
    expected: list[int] = []
    told: set[int] = set()  # who knows that it may try
    for action, who, has_connected in steps:
        if action == "join" and who not in expected:
            line.join(who)
            expected.append(who)
            if expected[0] == who:
                told.add(who)  # whoever joins asks is_first at once
        elif action == "leave":
            woken = line.leave(who, has_connected=has_connected)
            if who in expected:
                expected.remove(who)
            told.discard(who)
            if woken is not None:
                told.add(woken)
        assert [who for who in range(10) if line.is_first(who)] == expected[:1]
        assert set(expected[:1]) <= told
        assert len(line) == len(expected)
