"""Who may say what when a listening socket changes hands, and who owns it afterwards."""

from __future__ import annotations

import itertools

import pytest

from hostline.errors import RemoteProtocolError
from hostline.limits import HANDSHAKE_TIMEOUT, TAKEOVER_READY_TIMEOUT
from hostline.protocol.takeover import (
    VERSION,
    Ask,
    Code,
    Give,
    Giver,
    GiverStep,
    Message,
    Ready,
    Refused,
    Released,
    Taker,
    TakerState,
)

ASK = Ask(VERSION, 4711, "shop", "stream")
GIVE = Give(VERSION, 4710, "/run/x", 1, 2)
REFUSED = Refused(Code.BUSY, "somebody else")
EVERYTHING: list[Message] = [ASK, GIVE, Ready(), Released(), REFUSED]


def given() -> Giver:
    giver = Giver("shop", "stream", 100.0)
    assert giver.take(ASK, 101.0, busy_with=None) is GiverStep.GIVE
    return giver


def test_a_giver_gives_once_and_releases_to_whoever_is_ready() -> None:
    giver = Giver("shop", "stream", 100.0)
    assert giver.deadline == 100.0 + HANDSHAKE_TIMEOUT
    assert not giver.has_given
    assert giver.take(ASK, 101.0, busy_with=None) is GiverStep.GIVE
    assert (giver.has_given, giver.pid) == (True, 4711)
    assert giver.deadline == 101.0 + TAKEOVER_READY_TIMEOUT
    assert giver.take(Ready(), 102.0, busy_with=4711) is GiverStep.RELEASE


@pytest.mark.parametrize("message", [GIVE, Ready(), Released()])
def test_a_giver_that_was_not_asked_refuses_everything_else(message: Message) -> None:
    with pytest.raises(RemoteProtocolError, match="came first"):
        Giver("shop", "stream", 0.0).take(message, 0.0, busy_with=None)


@pytest.mark.parametrize("message", [ASK, GIVE, Released()])
def test_a_giver_that_has_given_takes_ready_and_nothing_else(message: Message) -> None:
    with pytest.raises(RemoteProtocolError, match="came after give"):
        given().take(message, 0.0, busy_with=None)


def test_a_successor_that_declines_is_let_go_at_any_step() -> None:
    for giver in (Giver("shop", "stream", 0.0), given()):
        assert giver.take(REFUSED, 0.0, busy_with=None) is GiverStep.END
        assert giver.refusal is REFUSED


@pytest.mark.parametrize(
    ("ask", "busy_with", "code"),
    [
        (Ask(VERSION + 1, 1, "shop", "stream"), None, Code.VERSION),
        (Ask(0, 1, "shop", "stream"), 5, Code.VERSION),
        (Ask(VERSION, 1, "store", "stream"), None, Code.SERVICE),
        (Ask(VERSION, 1, "shop", "seqpacket"), None, Code.SERVICE),
        (ASK, 4712, Code.BUSY),
    ],
)
def test_a_giver_says_why_not(ask: Ask, busy_with: int | None, code: str) -> None:
    giver = Giver("shop", "stream", 0.0)
    assert giver.take(ask, 0.0, busy_with=busy_with) is GiverStep.REFUSE
    assert giver.refusal.code == code
    assert not giver.has_given


def test_being_late_is_said_with_what_was_missing() -> None:
    assert "no ask came within 5 seconds" in Giver("shop", "stream", 0.0).too_late().reason
    assert "no ready came within 10 seconds" in given().too_late().reason


def test_a_taker_owns_only_what_was_released() -> None:
    taker = Taker()
    taker.take(GIVE)
    assert (taker.state, taker.give) == (TakerState.GIVEN, GIVE)
    taker.is_ready()
    taker.take(Released())
    assert taker.state is TakerState.OWNER
    taker.ended(is_giver_dead=False)
    assert taker.state is TakerState.OWNER


@pytest.mark.parametrize("state", [TakerState.ASKED, TakerState.GIVEN, TakerState.READY])
@pytest.mark.parametrize("is_giver_dead", [True, False])
def test_the_end_leaves_exactly_one_owner(state: TakerState, is_giver_dead: bool) -> None:
    taker = Taker()
    if state is not TakerState.ASKED:
        taker.take(GIVE)
    if state is TakerState.READY:
        taker.is_ready()
    taker.ended(is_giver_dead=is_giver_dead)
    assert (taker.state is TakerState.OWNER) is (is_giver_dead and state is not TakerState.ASKED)
    if state is TakerState.ASKED and is_giver_dead:
        assert taker.refusal.code == Code.STOPPING  # so that it starts anew


def test_a_giver_of_another_version_is_left_alone() -> None:
    taker = Taker()
    taker.take(Give(VERSION + 1, 1, "x", 1, 2))
    assert taker.state is TakerState.REFUSED
    assert taker.refusal.code == Code.VERSION
    assert taker.give is None


def test_no_order_of_messages_makes_an_owner_but_the_right_one() -> None:
    for messages in itertools.product(EVERYTHING, repeat=3):
        taker = Taker()
        for message in messages:
            try:
                taker.take(message)
            except RemoteProtocolError:
                break
        assert taker.state is not TakerState.OWNER, messages  # it was never ready
