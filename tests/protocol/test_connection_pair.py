"""A client and a server connection joined by two byte streams: whatever the order, both keep the same books."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hostline.errors import LocalProtocolError, RemoteProtocolError
from hostline.protocol.connection import ClientConnection, ServerConnection, State
from hostline.wire.codec import (
    ErrorCode,
    GoawayCode,
    MethodEntry,
    ServerHello,
    decode_failure,
    encode_failure,
    encode_farewell,
    encode_hello,
    encode_reply,
    split_call,
)
from hostline.wire.frame import Frame, Kind, encode_frame

MAX_ID = 0xFFFF_FFFF
HELLO = encode_hello(ServerHello(service="s", methods=[MethodEntry("m")]))


class ConnectionPair(RuleBasedStateMachine):
    """Play both faces: bytes wait on the way and arrive in pieces of any size, in any order of the two directions."""

    def __init__(self) -> None:
        super().__init__()
        self.client = ClientConnection("p")
        self.server = ServerConnection(HELLO)
        self.to_server = bytearray()
        self.to_client = bytearray()
        self.calls: dict[str, int] = {}  # ticket -> id, as made by the client
        self.cancelled: set[str] = set()
        self.answers: dict[str, Any] = {}
        self.taken: dict[int, str] = {}  # id -> ticket, running at the server
        self.seen: list[str] = []  # tickets in the order in which the server took them
        self.heard_cancels = 0
        self.is_leaving = False
        self.pings = {"client": 0, "server": 0}

    @initialize(last_id=st.sampled_from([0, 0, MAX_ID - 3]))
    def begin(self, last_id: int) -> None:
        self.client._last_id = last_id

    # --- the faces -----------------------------------------------------------------------------------

    def collect(self) -> None:
        """Put what both sides want to send on its way."""
        self.to_server += b"".join(self.client.data_to_send())
        self.to_client += b"".join(self.server.data_to_send())

    @rule(size=st.integers(1, 200))
    def arrive_at_server(self, size: int) -> None:
        self.collect()
        chunk = bytes(self.to_server[:size])
        del self.to_server[:size]
        for frame in self.server.receive_data(chunk):
            self.take(frame)

    def take(self, frame: Frame) -> None:
        if frame.kind == Kind.CANCEL:
            assert frame.call_id in self.taken
            self.heard_cancels += 1
            return
        _, payload, *_ = split_call(frame)
        (ticket,) = msgspec.msgpack.decode(payload)
        assert self.calls[ticket] == frame.call_id
        assert frame.call_id not in self.taken
        self.taken[frame.call_id] = ticket
        self.seen.append(ticket)

    @rule(size=st.integers(1, 200))
    def arrive_at_client(self, size: int) -> None:
        self.collect()
        chunk = bytes(self.to_client[:size])
        del self.to_client[:size]
        for ticket, frame in self.client.receive_data(chunk):
            assert ticket not in self.answers, "answered twice"
            assert ticket not in self.cancelled
            assert self.calls[ticket] == frame.call_id
            if frame.kind == Kind.REPLY:
                assert msgspec.msgpack.decode(frame.payload) == f"re {ticket}"
                self.answers[ticket] = "reply"
            else:
                self.answers[ticket] = decode_failure(frame.payload).code

    # --- what the client does ------------------------------------------------------------------------

    @rule(time_left=st.none() | st.floats(0, 10))
    def call(self, time_left: float | None) -> None:
        ticket = f"ticket {len(self.calls)}"
        if not self.client.is_usable:
            with pytest.raises(LocalProtocolError):
                self.client.call("m", (ticket,), None, time_left, ticket)
            return
        self.collect()
        call_id, data = self.client.call("m", (ticket,), None, time_left, ticket)
        self.calls[ticket] = call_id
        self.to_server += data

    @precondition(lambda self: self.client.in_flight)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        call_id = data.draw(st.sampled_from(sorted(self.client.in_flight)))
        self.cancelled.add(self.client.in_flight[call_id])
        self.to_server += self.client.cancel(call_id)

    @precondition(lambda self: self.client.state in (State.OPEN, State.CLOSING))
    @rule()
    def client_pings(self) -> None:
        self.client.ping()
        self.pings["client"] += 1

    # --- what the server does ------------------------------------------------------------------------

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), is_good=st.booleans())
    def answer(self, data: st.DataObject, is_good: bool) -> None:
        self.finish(data.draw(st.sampled_from(sorted(self.taken))), is_good)

    def finish(self, call_id: int, is_good: bool) -> None:
        ticket = self.taken.pop(call_id)
        if is_good:
            self.server.reply(call_id, encode_reply(call_id, f"re {ticket}"))
        else:
            self.server.fail(call_id, ErrorCode.INTERNAL, "", "")
        self.server.fail(call_id, ErrorCode.INTERNAL, "", "a second answer is dropped")

    @precondition(lambda self: self.server.state in (State.OPEN, State.CLOSING))
    @rule()
    def server_pings(self) -> None:
        self.server.ping()
        self.pings["server"] += 1

    @precondition(lambda self: self.server.client is not None)
    @rule()
    def leave(self) -> None:
        self.server.go_away(GoawayCode.SHUTDOWN, "bye")
        self.is_leaving = True

    # --- what always holds -----------------------------------------------------------------------------

    @invariant()
    def books_agree(self) -> None:
        assert self.server.in_flight == set(self.taken)
        open_tickets = set(self.calls) - set(self.answers) - self.cancelled
        assert set(self.client.in_flight.values()) == open_tickets
        assert State.CLOSED not in (self.client.state, self.server.state)

    @invariant()
    def calls_arrive_in_the_order_in_which_they_were_made(self) -> None:
        made = list(self.calls)
        assert self.seen == made[: len(self.seen)]

    def teardown(self) -> None:
        """Let everything arrive and everything be answered: then nobody waits, but for what the farewell ruled out."""
        for _ in range(1000):
            for call_id in list(self.taken):
                self.finish(call_id, True)
            self.collect()
            if not self.to_server and not self.to_client:
                break
            self.arrive_at_server(4096)
            self.arrive_at_client(4096)
        assert not self.server.in_flight
        for call_id, ticket in self.client.in_flight.items():
            assert self.is_leaving
            assert self.client.was_not_run(call_id)
            assert ticket not in self.seen
        not_run = {t for t, code in self.answers.items() if code == ErrorCode.UNAVAILABLE}
        assert not_run.isdisjoint(self.seen)
        for ticket, call_id in self.calls.items():
            if ticket in self.seen:
                assert not self.client.was_not_run(call_id)


TestConnectionPair = ConnectionPair.TestCase
TestConnectionPair.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


class LyingServer(RuleBasedStateMachine):
    """A server that says frames in any order: the client obeys, or closes in words; its calls never vanish."""

    def __init__(self) -> None:
        super().__init__()
        self.client = ClientConnection("p")
        self.made = 0

    @rule(
        frames=st.lists(
            st.sampled_from(
                [
                    HELLO,
                    *(bytes(encode_reply(call_id, None)) for call_id in range(1, 5)),
                    encode_failure(1, ErrorCode.INTERNAL, "", ""),
                    encode_frame(Kind.ERROR, 2, b"\xc0"),
                    encode_frame(Kind.PING),
                    encode_frame(Kind.PONG),
                    encode_frame(Kind.CALL, 1, b"\x90"),
                    encode_farewell(GoawayCode.SHUTDOWN, "", 2),
                    encode_farewell(GoawayCode.SHUTDOWN, "", 3),
                ]
            ),
            min_size=1,
            max_size=4,
        )
    )
    def say(self, frames: list[bytes]) -> None:
        before = dict(self.client.in_flight)
        try:
            answers = self.client.receive_data(b"".join(frames))
        except RemoteProtocolError:
            assert self.client.state is State.CLOSED
            assert self.client.in_flight == before
        else:
            answered = {frame.call_id: ticket for ticket, frame in answers}
            assert before == self.client.in_flight | answered

    @rule()
    def call(self) -> None:
        if self.client.is_usable:
            self.made += 1
            self.client.call("m", (), None, None, f"ticket {self.made}")

    @precondition(lambda self: self.client.in_flight)
    @rule()
    def cancel(self) -> None:
        self.client.cancel(min(self.client.in_flight))


TestLyingServer = LyingServer.TestCase
TestLyingServer.settings = settings(max_examples=150, stateful_step_count=20, deadline=None)
