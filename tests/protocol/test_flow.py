"""Credit: what a sender may still send, and when its reader grants more."""

from __future__ import annotations

import pytest

from hostline.errors import RemoteProtocolError
from hostline.limits import MAX_STREAM_CREDIT, STREAM_CREDIT
from hostline.protocol.flow import Allowance, Window
from hostline.wire.frame import HEADER_SIZE


def test_a_sender_may_overdraw_by_one_item() -> None:
    allowance = Allowance()
    allowance.take(STREAM_CREDIT - HEADER_SIZE - 1)
    assert (allowance.left, allowance.may_send) == (1, True)
    allowance.take(1 << 20)
    assert not allowance.may_send
    allowance.grant(1 << 20)
    assert (allowance.left, allowance.may_send) == (1 - HEADER_SIZE, False)
    allowance.grant(HEADER_SIZE)
    assert allowance.may_send


def test_a_stream_that_is_over_sends_nothing_whatever_is_granted() -> None:
    allowance = Allowance()
    allowance.is_over = True
    allowance.grant(1000)
    assert not allowance.may_send


@pytest.mark.parametrize("amount", [0, -1, MAX_STREAM_CREDIT - STREAM_CREDIT + 1, 2**32 - 1])
def test_a_grant_of_nothing_or_of_too_much_is_refused(amount: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"credit of {amount} bytes on top of {STREAM_CREDIT}"):
        Allowance().grant(amount)
    allowance = Allowance()
    allowance.grant(MAX_STREAM_CREDIT - STREAM_CREDIT)
    assert allowance.left == MAX_STREAM_CREDIT


def test_a_reader_grants_back_half_the_credit_at_a_time() -> None:
    window = Window()
    for _ in range(STREAM_CREDIT // 2 // 1016):
        window.arrived(1000)
        assert window.taken(1000) == 0
    window.arrived(1000)
    granted = window.taken(1000)
    assert granted == (STREAM_CREDIT // 2 // 1016 + 1) * 1016
    assert window.left == STREAM_CREDIT
    window.arrived(0)
    assert window.taken(0) == 0


def test_an_empty_item_is_charged_too() -> None:
    window = Window()
    for _ in range(STREAM_CREDIT // HEADER_SIZE):
        window.arrived(0)
    with pytest.raises(RemoteProtocolError, match="item of 0 bytes without credit"):
        window.arrived(0)


def test_what_is_larger_than_the_credit_is_granted_whole() -> None:
    window = Window()
    window.arrived(1 << 20)
    with pytest.raises(RemoteProtocolError, match="item of 5 bytes without credit"):
        window.arrived(5)
    assert window.taken(1 << 20) == (1 << 20) + HEADER_SIZE
    assert window.left == STREAM_CREDIT
