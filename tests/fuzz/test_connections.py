"""Both connections against a second reading of the wire format: conversations damaged with a plan, cut anywhere.

A conversation reaches a connection that greets, is open, or is leaving (by its own farewell or by the peer's); the
step that the connection takes of its own accord is part of the input.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tests.fuzz import mutate
from tests.fuzz.harness import Case, Outcome, check_memory, check_tally, count_of, fuzz, inputs
from tests.fuzz.model import CLIENT_ITEM, NEVER, Step, Story, read, tell_client, tell_server
from tests.golden import frame_bytes

from hostline.errors import LocalProtocolError, RemoteProtocolError
from hostline.limits import DEFAULT_MAX_FRAME_SIZE, MAX_HELLO_SIZE, MIN_MAX_FRAME_SIZE
from hostline.protocol.connection import ClientConnection, ServerConnection, State
from hostline.protocol.serving.admission import Admission, Verdict
from hostline.wire.codec import (
    ClientHello,
    ErrorCode,
    GoawayCode,
    MethodEntry,
    ServerHello,
    decode_credit,
    decode_farewell,
    decode_hello,
    encode_call,
    encode_credit,
    encode_failure,
    encode_farewell,
    encode_hello,
    encode_reply,
)
from hostline.wire.frame import HEADER_SIZE, Kind, encode_frame

PING, PONG = encode_frame(Kind.PING), encode_frame(Kind.PONG)
CLIENT_HELLOS = (
    frame_bytes("client_hello"),
    encode_hello(ClientHello(program="", features=[], max_frame_size=MIN_MAX_FRAME_SIZE)),
)
# Of each sort of method one: plain, with a result that is a stream, with an argument that is one, with both.
STREAMS = [MethodEntry("charge"), MethodEntry("tail", True, True), MethodEntry("put", False, False, True)]
STREAMS.append(MethodEntry("map", False, True, True))
SERVER_HELLOS = (
    frame_bytes("server_hello"),
    encode_hello(ServerHello(service="streams", methods=STREAMS)),
    encode_hello(ServerHello(service="streams", methods=STREAMS[::-1], max_frame_size=MIN_MAX_FRAME_SIZE)),
    encode_hello(ServerHello(service="s", methods=[MethodEntry("m")], features=[], max_frame_size=MIN_MAX_FRAME_SIZE)),
)
ARGUMENTS: tuple[tuple[Any, ...], ...] = ((), (1,), ("tea", [1, 2], {"a": None}), (b"x" * 300,))
ITEMS = tuple(msgspec.msgpack.encode(item) for item in (None, 7, "tea", [1, {"a": 2.5}], b"x" * 300))
DAMAGES = (0, 0, 0, 1, 1, 1, 2, 3)
FRAME_SIZES = (MIN_MAX_FRAME_SIZE, DEFAULT_MAX_FRAME_SIZE)


def step_at(rng: random.Random, frames: list[bytes]) -> int:
    """Return an offset for the connection's own step: mostly between two frames, sometimes within one."""
    at = sum(len(frame) for frame in frames[: rng.randrange(len(frames) + 1)])
    return max(at + rng.choice((0, 0, 0, 0, -1, 1, 7)), 0)


def takes_at(rng: random.Random, frames: list[bytes]) -> int:
    """Return an offset for the program to take the items that have arrived, or none; often one behind a large item."""
    if rng.random() < 0.3:
        return NEVER
    large = [i for i, frame in enumerate(frames) if len(frame) > 20000]
    if large and rng.random() < 0.8:
        return sum(len(frame) for frame in frames[: rng.choice(large) + 1])
    return step_at(rng, frames)


def call_frame(rng: random.Random, call_id: int, has_items: bool = False) -> bytes:
    keywords = {"order": 1} if rng.random() < 0.2 else None
    time_left = 0.5 if rng.random() < 0.3 else None
    method = rng.choice((0, 1, 0xFFFF_FFFF))
    return bytes(encode_call(call_id, method, rng.choice(ARGUMENTS), keywords, time_left, has_items=has_items))


def item_frame(rng: random.Random, call_id: int) -> bytes:
    return encode_frame(Kind.ITEM, call_id, rng.choice(ITEMS))


def stray_frame(rng: random.Random, call_id: int) -> bytes:
    """Return a frame about a stream that is perhaps none, or not any more."""
    choice = rng.random()
    if choice < 0.35:
        return item_frame(rng, call_id)
    return end_frame(call_id) if choice < 0.6 else mutate.frame(Kind.CREDIT, call_id, rng.choice(mutate.CREDITS))


def end_frame(call_id: int) -> bytes:
    return encode_frame(Kind.END, call_id)


# --- the server's side -----------------------------------------------------------------------------------


def make_for_server(rng: random.Random) -> Case:
    """Return what a client says: a hello, calls with ids that mostly count up, their streams, pings, a farewell."""
    max_frame_size = rng.choice(FRAME_SIZES)
    frames = [rng.choice(CLIENT_HELLOS)]
    call_id = rng.choice((0, 0, 0, 0xFFFF_FFFD))
    streams: list[int] = []
    for _ in range(rng.randrange(11)):
        choice = rng.random()
        if choice < 0.4:
            call_id = call_id + 1 if call_id < 0xFFFF_FFFF else 1
            has_items = rng.random() < 0.5
            named = rng.choice((0, 1, 2, 0xFFFF_FFFF)) if rng.random() < 0.04 else call_id
            frames.append(call_frame(rng, named, has_items))
            if has_items:
                streams.append(call_id)
        elif choice < 0.65 and streams:
            about = rng.choice(streams)
            if choice < 0.6:
                frames.append(item_frame(rng, about))
            else:
                frames.append(end_frame(about))
                streams.remove(about)
        elif choice < 0.67:
            frames.append(stray_frame(rng, rng.choice((call_id, 1, 2, 3, 0xFFFF_FFFF)) or 1))
        elif choice < 0.73:
            amount = rng.choice(mutate.AMOUNTS)
            frames.append(encode_credit(rng.choice((call_id, 1, 2, 0xFFFF_FFFF)) or 1, amount))
        elif choice < 0.82:
            frames.append(encode_frame(Kind.CANCEL, rng.choice((call_id, 1, 2, 0xFFFF_FFFF)) or 1))
        else:
            frames.append(PING if choice < 0.93 else PONG)
    if rng.random() < 0.15 and streams:
        about = rng.choice(streams)
        frames += mutate.items(rng, about, max_frame_size)
        frames += [item_frame(rng, about) for _ in range(rng.randrange(3))]
    if rng.random() < 0.2:
        frames.append(encode_farewell(GoawayCode.SHUTDOWN, "bye"))
        frames += rng.choice(([], [PING], [encode_frame(Kind.CANCEL, 1)], [call_frame(rng, 9)], [end_frame(9)]))
    step = Step(
        step_at(rng, frames),
        has_answers=rng.random() < 0.5,
        has_farewell=rng.random() < 0.3,
        takes_at=takes_at(rng, frames),
    )
    data = mutate.stream(rng, frames, rng.choice(DAMAGES))
    return Case(data, mutate.cuts(rng, len(data)), (max_frame_size, step))


@dataclasses.dataclass
class Heard:
    """What came out of a connection: its events as (kind, call id), what it sent, and why it refused."""

    events: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    sent: bytes = b""
    reason: str | None = None
    granted: dict[int, int] = dataclasses.field(default_factory=dict)

    @property
    def is_refused(self) -> bool:
        return self.reason is not None


def pieces(case: Case) -> Iterator[tuple[int, bytes, bool, bool]]:
    """Yield the reads of a case with their offsets, and whether the step and the taking of items come before each."""
    step: Step = case.about[1]
    size = len(case.data)
    also = tuple(at for at in (step.at, step.takes_at) if at < size)
    for offset, piece in [*Case(case.data, (*case.cuts, *also)).pieces(), (size, b"")]:
        is_due = offset == min(step.at, size) and (piece != b"" or step.at >= size)
        yield offset, piece, is_due, offset == step.takes_at and piece != b""


def note_credit(heard: Heard, frames: bytes) -> None:
    """Add up the credit that a side has sent."""
    for _, frame in read(frames, DEFAULT_MAX_FRAME_SIZE).frames:
        if frame.kind == Kind.CREDIT:
            amount = decode_credit(frame.payload)
            heard.granted[frame.call_id] = heard.granted.get(frame.call_id, 0) + amount


def check_held(side: Any, max_frame_size: int) -> None:
    """Demand that no more is kept than one frame that is not complete."""
    assert side.decoder.mark[1] < HEADER_SIZE + max(MAX_HELLO_SIZE, max_frame_size)


def check_closed(side: Any) -> None:
    """Demand that nothing comes out any more and nothing changes, whatever arrives."""
    assert side.state is State.CLOSED
    before = set(side.in_flight)
    for data in (PING, CLIENT_HELLOS[0], SERVER_HELLOS[0], encode_frame(Kind.CALL, 77, b"\x90")):
        with pytest.raises(RemoteProtocolError):
            side.receive_data(data)
        with pytest.raises(RemoteProtocolError):
            side.receive_data(data[:5])
        assert not side.is_partial
    assert side.state is State.CLOSED
    assert not side.data_to_send()
    assert set(side.in_flight) == before
    with pytest.raises(LocalProtocolError):
        side.ping()


def feed_server(server: ServerConnection, case: Case, story: Story) -> Heard:
    """Let a server read a case, take its step on the way, and admit its calls as a face does."""
    max_frame_size, step = case.about
    heard = Heard()
    admission = Admission(concurrency=2, queue=2)
    running: list[int] = []
    items: list[tuple[int, int]] = []
    for _, piece, is_due, is_taking in pieces(case):
        if is_taking:
            before = len(server._outgoing)
            count = sum(server.taken(call_id, size) for call_id, size in items)
            assert len(server._outgoing) == before + count, "it says whether there is something to send"
            items.clear()
        if is_due:
            for call_id in take_step(server, step):
                if admission.withdraw(server, call_id) is None and call_id in running:
                    running.remove(call_id)
                    admission.finish()
        try:
            events = server.receive_data(piece)
        except RemoteProtocolError as error:
            heard.reason = str(error)
            break
        check_held(server, max_frame_size)
        for frame in events:
            heard.events.append((frame.kind, frame.call_id))
            if frame.kind == Kind.CALL and admission.arrive(server, frame.call_id, frame) is Verdict.RUN:
                running.append(frame.call_id)
            elif frame.kind == Kind.ITEM:
                items.append((frame.call_id, len(frame.payload)))
            elif frame.kind == Kind.CANCEL:
                admission.withdraw(server, frame.call_id)
    heard.sent = b"".join(server.data_to_send())
    admission.withdraw_all(server)
    for _ in running:
        admission.finish()
    assert (admission.running_count, admission.waiting_count, admission.next()) == (0, 0, None)
    # One pong a look, one answer for each late call, one farewell: never more than in proportion.
    assert len(heard.sent) <= 2000 + 12 * len(case.data)
    if heard.is_refused:
        check_last_words(heard.sent, step)
        check_closed(server)
    else:
        note_credit(heard, heard.sent)
        assert heard.granted == story.granted
        assert server.in_flight == story.in_flight
        for call_id in tuple(server.in_flight):
            server.fail(call_id, ErrorCode.UNAVAILABLE, "", "over")
            server.fail(call_id, ErrorCode.UNAVAILABLE, "", "over")
        assert not server.in_flight
        assert len(server.data_to_send()) == len(story.in_flight), "each call is answered once"
    return heard


def take_step(server: ServerConnection, step: Step) -> list[int]:
    """Answer calls and say farewell, as the step says; return the ids that were answered."""
    answered = [call_id for call_id in sorted(server.in_flight) if step.has_answers and call_id % 2 == 0]
    for call_id in answered:
        server.reply(call_id, encode_reply(call_id, None))
    if step.has_farewell:
        server.go_away(GoawayCode.SHUTDOWN, "leaving")
    return answered


def check_last_words(sent: bytes, step: Step) -> None:
    """Demand that a server that refuses says why, once, unless it has said farewell before."""
    reading = read(sent, DEFAULT_MAX_FRAME_SIZE)
    assert not reading.is_violation
    assert reading.rest == 0
    farewells = [decode_farewell(frame.payload) for _, frame in reading.frames if frame.kind == Kind.GOAWAY]
    assert len(farewells) == 1
    assert farewells[0].reason
    assert len(sent) >= HEADER_SIZE
    if not step.has_farewell:
        assert farewells[0].code in (GoawayCode.PROTOCOL, GoawayCode.VERSION)
        assert reading.frames[-1][1].kind == Kind.GOAWAY, "the farewell comes last"


def compare(story: Story, heard: Heard, is_byte_by_byte: bool) -> None:
    """Demand the model's verdict and events; what stands in one read with a violation may be missing."""
    assert heard.is_refused is story.is_violation
    assert heard.reason != "", "a refusal comes in words"
    if story.is_violation and not is_byte_by_byte:
        assert heard.events == story.events[: len(heard.events)]
    else:
        assert heard.events == story.events


def outcome_of(story: Story) -> Outcome:
    if not story.is_violation:
        return Outcome.ACCEPTED
    return Outcome.REFUSED_LATE if story.taken else Outcome.REFUSED


def check_server(case: Case, server_class: Any = ServerConnection) -> Outcome:
    max_frame_size, step = case.about
    story = tell_server(case.data, max_frame_size, step)
    for cuts in {(), case.cuts}:
        server = server_class(SERVER_HELLOS[0], max_frame_size)
        part = Case(case.data, cuts, case.about)
        compare(story, feed_server(server, part, story), bool(cuts) and len(cuts) == len(case.data) - 1)
    return outcome_of(story)


# --- the client's side -----------------------------------------------------------------------------------


def answer(rng: random.Random, call_id: int, entry: MethodEntry) -> list[bytes]:
    """Return what a server says about one call, in order: credit for its items, items, and the answer."""
    frames: list[bytes] = []
    if entry.streams_argument:
        frames += [encode_credit(call_id, rng.choice((1, 17, 30000))) for _ in range(rng.randrange(3))]
    if rng.random() < 0.2:
        frames.append(encode_failure(call_id, ErrorCode.DECLARED, "OutOfStock", "no tea"))
    elif not entry.streams_result:
        frames.append(bytes(encode_reply(call_id, rng.choice(ARGUMENTS))))
    if not entry.streams_result:
        return frames
    items = [item_frame(rng, call_id) for _ in range(rng.randrange(4))]
    return [*items, *frames] if frames and rng.random() < 0.3 else [*frames[:-1], *items, end_frame(call_id)]


def make_body(rng: random.Random, calls: int, methods: list[MethodEntry], max_frame_size: int) -> list[bytes]:
    """Return what a server says about some of the calls, each in its order, and now and then a stray frame."""
    ids = rng.sample(range(1, calls + 1), rng.randrange(calls + 1))
    entries = {call_id: methods[(call_id - 1) % len(methods)] for call_id in range(1, calls + 1)}
    body = mutate.merged(rng, [answer(rng, call_id, entries[call_id]) for call_id in ids])
    for _ in range(rng.randrange(3)):
        body.insert(rng.randrange(len(body) + 1), rng.choice((PING, PING, PONG)))
    if rng.random() < 0.1:
        body.insert(rng.randrange(len(body) + 1), stray_frame(rng, rng.randrange(1, calls + 2)))
    if rng.random() < 0.03:
        body.insert(rng.randrange(len(body) + 1), bytes(encode_reply(rng.randrange(1, calls + 2), None)))
    streaming = [call_id for call_id, entry in entries.items() if entry.streams_result]
    if rng.random() < 0.15 and streaming:
        body[:0] = mutate.items(rng, rng.choice(streaming), max_frame_size)
    sending = [call_id for call_id, entry in entries.items() if entry.streams_argument]
    if rng.random() < 0.1 and sending:
        body.insert(0, mutate.frame(Kind.CREDIT, rng.choice(sending), rng.choice(mutate.CREDITS)))
    return body


def make_for_client(rng: random.Random) -> Case:
    """Return what a server says: a hello, answers and streams in any order, farewells that never raise the last id."""
    max_frame_size = rng.choice(FRAME_SIZES)
    hello = rng.choice(SERVER_HELLOS)
    calls = rng.randrange(1, 9)
    cancels = tuple(i for i in range(1, calls + 1) if rng.random() < 0.15)
    body = make_body(rng, calls, decode_hello(hello[HEADER_SIZE:], ServerHello).methods, max_frame_size)
    if rng.random() < 0.3:
        last_id = rng.choice((calls, calls, 0, 0xFFFF_FFFF))
        for at in sorted(rng.sample(range(len(body) + 1), min(len(body) + 1, rng.choice((1, 1, 2))))):
            body.insert(at, encode_farewell(GoawayCode.SHUTDOWN, "bye", last_id))
            last_id = max(last_id - 1, 0) if rng.random() < 0.5 else last_id
        if rng.random() < 0.3:
            rng.shuffle(body)
    if rng.random() < 0.05:
        frames = [encode_farewell(GoawayCode.REFUSED, "no")]  # instead of a hello
    else:
        frames = [hello, *body]
    step = Step(
        len(frames[0]) if rng.random() < 0.9 else step_at(rng, frames),
        calls=calls,
        cancels=cancels,
        items=rng.choice((0, 1, 2, 2, 3, 64, 65, 100)) if rng.random() < 0.2 else 1,
        has_ends=rng.random() < 0.3,
        takes_at=takes_at(rng, frames),
    )
    data = mutate.stream(rng, frames, rng.choice(DAMAGES))
    return Case(data, mutate.cuts(rng, len(data)), (max_frame_size, step))


def begin_calls(client: ClientConnection, step: Step) -> set[str]:
    """Begin the step's calls, send their items and give some up; return the tickets of the others."""
    if client.state is not State.OPEN:
        with pytest.raises(LocalProtocolError):
            client.call("charge", (), None, None, "t")
        return set()
    methods = client.methods
    if not methods:
        return set()
    for number in range(1, step.calls + 1):
        method = methods[(number - 1) % len(methods)]
        has_items = client.takes_items(method)
        call_id, frame = client.call(method, (), None, None, f"t{number}", has_items)
        assert call_id == number
        assert frame[5] == 4 * has_items
        send_items(client, call_id, step, has_items)
    for call_id in step.cancels:
        client.cancel(call_id)
        assert not client.may_send(call_id)
        assert client.end(call_id) == b""
    return {f"t{number}" for number in range(1, step.calls + 1)} - {f"t{number}" for number in step.cancels}


def send_items(client: ClientConnection, call_id: int, step: Step, has_items: bool) -> None:
    """Send the items of one argument as far as its credit goes, and end it if the step says so."""
    sent = 0
    while sent < step.items and client.may_send(call_id):
        frame = client.item(call_id, CLIENT_ITEM)
        assert frame[4] == Kind.ITEM
        sent += 1
    assert has_items or not sent
    if not client.may_send(call_id):
        with pytest.raises(LocalProtocolError):
            client.item(call_id, CLIENT_ITEM)
    if step.has_ends:
        assert client.end(call_id) == (end_frame(call_id) if has_items else b"")
        assert client.end(call_id) == b""
        assert not client.may_send(call_id)


def feed_client(client: ClientConnection, case: Case, story: Story) -> Heard:
    """Let a client read a case and begin its calls on the way; each call is answered or in flight, never both."""
    max_frame_size, step = case.about
    heard = Heard()
    tickets: set[str] = set()
    answered: list[str] = []
    items: list[tuple[int, int]] = []
    client.data_to_send()
    for _, piece, is_due, is_taking in pieces(case):
        if is_taking:
            note_credit(heard, b"".join(client.taken(call_id, size) for call_id, size in items))
            items.clear()
        if is_due:
            tickets = begin_calls(client, step)
        try:
            answers = client.receive_data(piece)
        except RemoteProtocolError as error:
            heard.reason = str(error)
            break
        check_held(client, max_frame_size)
        heard.events += [(frame.kind, frame.call_id) for _, frame in answers]
        assert all(ticket == f"t{frame.call_id}" for ticket, frame in answers)
        answered += [ticket for ticket, frame in answers if frame.kind in (Kind.REPLY, Kind.ERROR, Kind.END)]
        items += [(frame.call_id, len(frame.payload)) for _, frame in answers if frame.kind == Kind.ITEM]
    assert sorted([*answered, *client.in_flight.values()]) == sorted(tickets)
    assert all(client.in_flight[call_id] == f"t{call_id}" for call_id in client.in_flight)
    heard.sent = b"".join(client.data_to_send())
    assert heard.sent in (b"", PONG), "one pong a look, whatever comes"
    if heard.is_refused:
        check_closed(client)
    else:
        assert heard.granted == story.granted
        assert set(client.in_flight) == story.in_flight
        assert {*client._windows, *client._allowances} <= story.in_flight, "nothing is kept of streams that are over"
        if story.is_gone:
            check_closed(client)
        if client.farewell is not None:
            assert not client.is_usable
            assert all(client.was_not_run(i) is (i > client.farewell.last_call_id) for i in client.in_flight)
    return heard


def check_client(case: Case, client_class: Any = ClientConnection) -> Outcome:
    max_frame_size, step = case.about
    story = tell_client(case.data, max_frame_size, step)
    for cuts in {(), case.cuts}:
        client = client_class("p", max_frame_size)
        part = Case(case.data, cuts, case.about)
        compare(story, feed_client(client, part, story), bool(cuts) and len(cuts) == len(case.data) - 1)
    return outcome_of(story)


# --- the tests -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_keeps_its_books_whatever_a_client_says() -> None:
    """Its events and verdict are the model's, a violation closes it with one farewell, no call stays in its books."""
    tally = fuzz("server", make_for_server, check_server, count_of("server"))
    check_tally(tally, accepted=0.35, refused=0.3, late=0.15)


@pytest.mark.slow
def test_a_client_keeps_its_books_whatever_a_server_says() -> None:
    """Its answers and verdict are the model's, and each call is answered once or still in flight, never both."""
    tally = fuzz("client", make_for_client, check_client, count_of("client"))
    check_tally(tally, accepted=0.35, refused=0.3, late=0.15)


@pytest.mark.parametrize(
    ("target", "make", "check"), [("server", make_for_server, check_server), ("client", make_for_client, check_client)]
)
def test_a_connection_allocates_in_proportion_to_what_has_arrived(target: str, make: Any, check: Any) -> None:
    """No length, count or number of frames in a small input makes a connection keep much."""
    assert check_memory(target, make, check, range(300)) == 300


# The rules that the damage must reach: a part of the words with which each is refused.
RULES = {
    "server": (
        "is unknown: kinds are", "exceeds max_hello_size", "exceeds max_frame_size", "are not defined for call",
        "descriptors where none", "cancel frame has a payload", "names method", "must name a call", "whose id is 0",
        "is in flight already", "after the client's own goaway", "end frame has a payload", "call frame has call id 0",
        "item of call", "end of call", "without credit", "credit payload of", "the server is opening",
        "the server is open", "the server is closing", "lacks the magic bytes", "is not spoken here",
        "hello frame is malformed", "goaway frame is malformed",
    ),
    "client": (
        "is unknown: kinds are", "exceeds max_hello_size", "exceeds max_frame_size", "are not defined for reply",
        "descriptors where none", "ping frame has a payload", "names method", "must name a call", "whose id is 0",
        "which is not in flight", "end frame has a payload", "item of call", "end of call", "reply to call",
        "whose result is a stream", "without credit", "credit payload of", "which sends no items", "credit of 0 bytes",
        "credit of 4294967295 bytes", "a second goaway raises", "the client is opening", "the client is open",
        "the client is closing", "the client is closed", "lacks the magic bytes", "server speaks protocol version",
        "hello frame is malformed", "error frame is malformed", "goaway frame is malformed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("role", [*RULES])
def test_the_inputs_reach_the_rules(role: str) -> None:
    """A few thousand inputs break every rule of the table above, not only those of the first header."""
    reasons: set[str] = set()
    granted_count = 0
    is_server = role == "server"
    for _, case in inputs(role, range(5000), make_for_server if is_server else make_for_client, seed=1):
        size, step = case.about
        if is_server:
            server = ServerConnection(SERVER_HELLOS[0], size)
            heard = feed_server(server, case, tell_server(case.data, size, step))
        else:
            heard = feed_client(ClientConnection("p", size), case, tell_client(case.data, size, step))
        reasons.add(heard.reason or "")
        granted_count += bool(heard.granted)
    assert [rule for rule in RULES[role] if not any(rule in reason for reason in reasons)] == []
    assert granted_count >= 10, "credit comes back"
