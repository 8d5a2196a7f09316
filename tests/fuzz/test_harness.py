"""The fuzz tests find what they are for: planted faults are caught, named with their input, and can be played again."""

from __future__ import annotations

import random
import re
import time
from typing import Any

import pytest
from tests.fuzz import harness, test_connections, test_frames, test_payloads
from tests.fuzz.harness import SHARES, Case, Outcome, Tally, check_memory, check_tally, count_of, fuzz

from hostline.errors import RemoteProtocolError
from hostline.limits import STREAM_CREDIT
from hostline.protocol.connection import Answer, ClientConnection, ServerConnection, State
from hostline.wire.frame import Frame, FrameDecoder

COUNT = 3000


class Careless(FrameDecoder):
    """Looks at a byte that is perhaps not there."""

    def receive_data(self, data: bytes) -> list[Frame]:
        frames = super().receive_data(data)
        for frame in frames:
            if frame.kind == 3:
                frame.payload[0]
        return frames


class Generous(FrameDecoder):
    """Takes one byte more than it should."""

    def __init__(self, max_frame_size: int) -> None:
        super().__init__(max_frame_size + 1)


class Forgetful(FrameDecoder):
    """Loses what is left over when a read ends within a header."""

    def receive_data(self, data: bytes) -> list[Frame]:
        frames = super().receive_data(data)
        if 0 < len(self._buffer) < 3:
            self._buffer.clear()
        return frames


class Hoarder(FrameDecoder):
    """Makes room for what a header names before the header is judged."""

    def receive_data(self, data: bytes) -> list[Frame]:
        self.room = bytearray(min(int.from_bytes(data[:4], "little"), 64 << 20))
        return super().receive_data(data)


class Reopened(ServerConnection):
    """Goes on after a violation."""

    def receive_data(self, data: bytes) -> list[Frame]:
        try:
            return super().receive_data(data)
        except RemoteProtocolError:
            self._enter(State.OPEN)
            raise


class Twice(ServerConnection):
    """Forgets that a call is in flight when it is cancelled."""

    def receive_data(self, data: bytes) -> list[Frame]:
        events = super().receive_data(data)
        self.in_flight -= {frame.call_id for frame in events if frame.kind == 7}
        return events


class Lavish(ServerConnection):
    """Charges no item."""

    def _take_item(self, frame: Frame, events: list[Frame]) -> None:
        window = self._windows.get(frame.call_id)
        if window is not None:
            window.left = STREAM_CREDIT
        super()._take_item(frame, events)


class Endless(ServerConnection):
    """Takes items of a stream that has ended."""

    def _take_end(self, frame: Frame, events: list[Frame]) -> None:
        window = self._windows.get(frame.call_id)
        super()._take_end(frame, events)
        if window is not None:
            self._windows[frame.call_id] = window


class Strict(ClientConnection):
    """Refuses items that crossed the cancellation of their call."""

    def _take_item(self, frame: Frame, answers: list[Answer]) -> None:
        if frame.call_id in self._cancelled:
            raise RemoteProtocolError("an item that nobody waits for")
        super()._take_item(frame, answers)


class Loser(ClientConnection):
    """Drops the calls that were answered in the same read as a violation."""

    def receive_data(self, data: bytes) -> list[Answer]:
        before = set(self.in_flight)
        try:
            return super().receive_data(data)
        except RemoteProtocolError:
            for call_id in sorted(before)[:1]:
                del self.in_flight[call_id]
            raise


@pytest.mark.parametrize("decoder", [Careless, Generous, Forgetful])
def test_a_planted_fault_in_the_decoder_is_caught(decoder: Any) -> None:
    """A stray IndexError, a bound that is off by one, and bytes lost between two reads."""
    with pytest.raises((IndexError, AssertionError)) as caught:
        fuzz("frames", test_frames.make, lambda case: test_frames.check(case, decoder), COUNT)
    assert "HOSTLINE_FUZZ_SEED=" in caught.value.__notes__[-1]


@pytest.mark.parametrize("server", [Reopened, Twice, Lavish, Endless])
def test_a_planted_fault_in_the_server_is_caught(server: Any) -> None:
    """One that lives on after a violation, one that loses a call, and two that let a stream go too far."""
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        fuzz(
            "server", test_connections.make_for_server, lambda case: test_connections.check_server(case, server), COUNT
        )


@pytest.mark.parametrize("client", [Loser, Strict])
def test_a_planted_fault_in_the_client_is_caught(client: Any) -> None:
    """A call that is neither answered nor in flight, and a refusal where nothing is wrong."""
    with pytest.raises(AssertionError):
        fuzz(
            "client", test_connections.make_for_client, lambda case: test_connections.check_client(case, client), COUNT
        )


def test_an_error_of_another_class_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A codec that lets one of Python's own errors out."""
    monkeypatch.setitem(
        test_payloads.TARGETS,
        "failure",
        (test_payloads.FAILURES, 0, lambda payload: payload.decode(), RemoteProtocolError),
    )
    with pytest.raises(UnicodeDecodeError):
        fuzz("payloads", test_payloads.make_payload, test_payloads.check_payload, COUNT)


def test_memory_that_is_only_claimed_is_caught() -> None:
    """A decoder that makes room for what a header names."""
    with pytest.raises(AssertionError, match="peak of"):
        check_memory("frames", test_frames.make, lambda case: test_frames.check(case, Hoarder), range(300))


@pytest.mark.alone
def test_an_input_that_takes_long_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor time counts, so a machine that pauses is no failure and a loop that goes on is one."""
    monkeypatch.setattr(harness, "LONGEST", 0.05)

    def spin(case: Case) -> Outcome:
        end = time.thread_time() + 0.06
        while time.thread_time() < end:
            pass
        return Outcome.ACCEPTED

    def rest(case: Case) -> Outcome:
        time.sleep(0.06)
        return Outcome.ACCEPTED

    assert fuzz("frames", test_frames.make, rest, 2).total == 2
    with pytest.raises(AssertionError, match="one input took"):
        fuzz("frames", test_frames.make, spin, 2)


def test_a_failure_names_its_input_and_the_input_can_be_made_again() -> None:
    """The seed and the index are enough, without the inputs before it."""

    def check(case: Case) -> Outcome:
        assert not case.data.startswith(b"\x00")
        return Outcome.ACCEPTED

    with pytest.raises(AssertionError) as caught:
        fuzz("frames", test_frames.make, check, COUNT, seed=5)
    match = re.search(r"SEED=5, input (\d+) of target 'frames'.* bytes: ([0-9a-f]*)", caught.value.__notes__[-1])
    assert match
    ((_, again),) = harness.inputs("frames", [int(match[1])], test_frames.make, 5)
    assert again.data.hex() == match[2]


def test_inputs_differ_by_seed_and_by_index() -> None:
    """Another seed gives other inputs, and few inputs come twice."""
    first = [case for _, case in harness.inputs("server", range(200), test_connections.make_for_server, 1)]
    assert first == [case for _, case in harness.inputs("server", range(200), test_connections.make_for_server, 1)]
    other = [case for _, case in harness.inputs("server", range(200), test_connections.make_for_server, 2)]
    assert first != other
    assert len({case.data for case in first}) > 150


def test_all_targets_together_make_the_inputs_asked_for() -> None:
    """The shares add up, and rounding loses none."""
    assert sum(SHARES.values()) == 100
    assert sum(count_of(target) for target in SHARES) >= harness.INPUTS


def test_a_tally_of_only_refusals_or_of_too_few_is_caught() -> None:
    """A fuzz test whose every input dies at its first byte proves nothing."""
    count = count_of("frames")
    with pytest.raises(AssertionError):
        check_tally(Tally("frames", {Outcome.ACCEPTED: count - 1}), accepted=0.1, refused=0.0)
    if count >= 1000:
        counts = dict.fromkeys(Outcome, 0) | {Outcome.REFUSED: count}
        with pytest.raises(AssertionError):
            check_tally(Tally("frames", counts), accepted=0.1, refused=0.1)


def test_the_cuts_of_a_case_lose_nothing() -> None:
    """Pieces put together are the input, wherever it is cut."""
    rng = random.Random(7)
    for _ in range(200):
        data = rng.randbytes(rng.randrange(40))
        case = Case(data, tuple(rng.randrange(1, 40) for _ in range(3) if data))
        pieces = Case(data, tuple(cut for cut in case.cuts if cut < len(data))).pieces()
        assert b"".join(piece for _, piece in pieces) == data
