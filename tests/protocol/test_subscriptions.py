"""What waits for a subscriber: bounded, in order, and every loss told with the next item."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostline.protocol.subscriptions import POLICIES, Policy, SubscriberQueue


def drain(queue: SubscriberQueue[int]) -> list[tuple[int, int]]:
    taken = []
    while (each := queue.take()) is not None:
        taken.append(each)
    return taken


def test_the_oldest_gives_way() -> None:
    queue: SubscriberQueue[int] = SubscriberQueue(3, "drop_oldest")
    assert [queue.offer(number) for number in range(5)] == [True] * 5
    assert drain(queue) == [(2, 2), (3, 0), (4, 0)]
    assert queue.take() is None


def test_the_new_one_gives_way() -> None:
    queue: SubscriberQueue[int] = SubscriberQueue(3, "drop_new")
    assert [queue.offer(number) for number in range(5)] == [True, True, True, False, False]
    assert drain(queue) == [(0, 2), (1, 0), (2, 0)]


def test_the_subscriber_gives_way() -> None:
    queue: SubscriberQueue[int] = SubscriberQueue(3, "disconnect")
    assert [queue.offer(number) for number in range(5)] == [True, True, True, False, False]
    assert queue.is_overrun
    assert drain(queue) == []
    assert queue.dropped == 5


@pytest.mark.parametrize(("size", "policy"), [(0, "drop_new"), (-1, "drop_new"), (1, "drop"), (1, "")])
def test_what_is_out_of_range_is_refused(size: int, policy: Any) -> None:
    with pytest.raises(ValueError, match=r"max_queue|policy"):
        SubscriberQueue(size, policy)


@given(st.sampled_from(POLICIES), st.integers(1, 5), st.lists(st.sampled_from("ot"), max_size=60), st.booleans())
def test_every_item_is_counted_once_and_every_loss_is_told(
    policy: Policy, size: int, steps: list[str], leaves: bool
) -> None:
    queue: SubscriberQueue[int] = SubscriberQueue(size, policy)
    offered, taken, told = 0, [], 0
    for step in steps:
        if step == "o":
            queue.offer(offered)
            offered += 1
        elif (each := queue.take()) is not None:
            taken.append(each[0])
            told += each[1]
        assert queue.waiting <= size
        assert offered == queue.delivered + queue.dropped + queue.waiting
    if leaves:
        waiting = queue.waiting
        queue.leave()
        assert queue.unread == waiting
    else:
        for number, lost in drain(queue):
            taken.append(number)
            told += lost
        if policy != "disconnect":
            assert told == queue.dropped
    assert taken == sorted(set(taken))
    assert offered == queue.delivered + queue.dropped + queue.unread
