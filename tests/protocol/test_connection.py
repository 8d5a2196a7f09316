"""One connection without I/O: who may say what when, whose answer it is, what a farewell or a violation leaves."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.golden import frame_bytes, names, vectors

from hostline.errors import (
    InvalidArgumentError,
    LocalProtocolError,
    MethodNotFoundError,
    RemoteProtocolError,
)
from hostline.limits import DEFAULT_MAX_FRAME_SIZE, HARD_MAX_FRAME_SIZE, MIN_MAX_FRAME_SIZE
from hostline.protocol.connection import (
    TRANSITIONS,
    ClientConnection,
    Role,
    ServerConnection,
    State,
    check_frame_size,
)
from hostline.wire.codec import (
    FEATURES,
    MAGIC,
    ClientHello,
    ErrorCode,
    GoawayCode,
    MethodEntry,
    ServerHello,
    decode_failure,
    decode_farewell,
    encode_call,
    encode_credit,
    encode_failure,
    encode_farewell,
    encode_hello,
    encode_reply,
    split_call,
)
from hostline.wire.frame import Frame, FrameDecoder, Kind, encode_frame

MAX_ID = 0xFFFF_FFFF
PING = encode_frame(Kind.PING)
PONG = encode_frame(Kind.PONG)


def server_hello(*methods: str, **fields: Any) -> bytes:
    entries = [MethodEntry(name, name.startswith("get")) for name in methods or ("charge", "get")]
    return encode_hello(ServerHello(service="s", methods=entries, **fields))


def an_open_client(**fields: Any) -> ClientConnection:
    client = ClientConnection("p")
    client.receive_data(server_hello(**fields))
    client.data_to_send()
    return client


def a_streaming_client() -> ClientConnection:
    """Return a client of a service whose one method streams both ways."""
    client = ClientConnection("p")
    entries = [MethodEntry("charge", False, True, True)]
    client.receive_data(encode_hello(ServerHello(service="s", methods=entries)))
    client.data_to_send()
    return client


def an_open_server(max_frame_size: int = DEFAULT_MAX_FRAME_SIZE, **fields: Any) -> ServerConnection:
    server = ServerConnection(server_hello(), max_frame_size)
    server.receive_data(encode_hello(ClientHello(program="p", **fields)))
    server.data_to_send()
    return server


def sent(connection: ClientConnection | ServerConnection) -> bytes:
    return b"".join(connection.data_to_send())


def frames(data: bytes) -> list[Frame]:
    decoder = FrameDecoder(HARD_MAX_FRAME_SIZE)
    decoder.expect_frames()
    return decoder.receive_data(data)


def a_call(call_id: int = 1, method: int = 0, *args: Any) -> bytes:
    return bytes(encode_call(call_id, method, args))


def reply(call_id: int, result: Any = None) -> bytes:
    return bytes(encode_reply(call_id, result))


# --- the conversation --------------------------------------------------------------------------------


def play(chunks_of: Any) -> tuple[list[Any], list[Any]]:
    """Play the golden conversation, each frame cut by `chunks_of`; returns what each side made of it."""
    client, server = ClientConnection("example"), ServerConnection(frame_bytes("server_hello"))
    heard_by_client: list[Any] = []
    heard_by_server: list[Any] = []
    for step in vectors("conversation"):
        name = step["frame"]
        data = say(client if step["from"] == "client" else server, name)
        assert data.hex() == frame_bytes(name).hex(), f"{name} is not what is sent"
        for chunk in chunks_of(data):
            if step["from"] == "client":
                heard_by_server += server.receive_data(chunk)
            else:
                heard_by_client += client.receive_data(chunk)
    assert (client.state, server.state) == (State.CLOSING, State.CLOSING)
    assert not client.in_flight
    assert not server.in_flight
    return heard_by_client, heard_by_server


def say(side: Any, name: str) -> bytes:
    """Make a side say one line of the conversation, and return its bytes."""
    order = {"id": 1, "sku": "tea", "quantity": 2, "price": 4.5}
    match name:
        case "call_with_deadline":
            return bytes(side.call("charge", (order,), None, 0.5, "first")[1])
        case "call_by_name":
            return bytes(side.call("charge", (1,), {"currency": "EUR"}, None, "second")[1])
        case "call_to_be_cancelled":
            return bytes(side.call("charge", (order,), None, 30.0, "third")[1])
        case "cancel":
            return bytes(side.cancel(3))
        case "reply_struct":
            side.reply(1, encode_reply(1, {"order": 1, "total": 9.0}))
        case "error_declared":
            side.fail(2, ErrorCode.DECLARED, "OutOfStock", "no tea")
        case "error_cancelled":
            side.fail(3, ErrorCode.CANCELLED, "", "charge was cancelled")
        case "ping":
            side.ping()
        case "goaway_shutdown":
            side.go_away(GoawayCode.SHUTDOWN, "payments is shutting down")
    return sent(side)


def test_both_sides_say_the_golden_conversation_byte_for_byte() -> None:
    answers, calls = play(lambda data: [data])
    assert [(ticket, Kind(frame.kind).name) for ticket, frame in answers] == [("first", "REPLY"), ("second", "ERROR")]
    assert [(Kind(frame.kind).name, frame.call_id) for frame in calls] == [
        ("CALL", 1),
        ("CALL", 2),
        ("CALL", 3),
        ("CANCEL", 3),
    ]


def test_the_conversation_is_the_same_byte_by_byte_and_cut_anywhere() -> None:
    whole = play(lambda data: [data])
    assert play(lambda data: [data[i : i + 1] for i in range(len(data))]) == whole
    for cut in range(1, 170):
        assert play(lambda data, cut=cut: [data[:cut], data[cut:]]) == whole


@given(st.data())
def test_the_whole_of_one_direction_may_arrive_in_any_pieces(data: st.DataObject) -> None:
    stream = b"".join(frame_bytes(s["frame"]) for s in vectors("conversation") if s["from"] == "client")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    server = ServerConnection(frame_bytes("server_hello"))
    heard = [f for a, b in itertools.pairwise([0, *cuts, len(stream)]) for f in server.receive_data(stream[a:b])]
    assert [frame.call_id for frame in heard] == [1, 2, 3, 3]
    assert sent(server)[: len(frame_bytes("server_hello"))] == frame_bytes("server_hello")


# --- violations --------------------------------------------------------------------------------------


def receiver_of(vector: dict[str, Any]) -> ClientConnection | ServerConnection:
    """Return the side that refuses a malformed vector, brought to where the vector says."""
    if vector["receiver"] == "server":
        side: Any = ServerConnection(frame_bytes("server_hello"))
    else:
        side = ClientConnection()
    for name in vector["before"]:
        side.receive_data(frame_bytes(name))
        if name == "server_hello":
            for number in range(vector["calls"]):
                side.call("charge", (), None, None, number)
    side.data_to_send()
    return side  # type: ignore[no-any-return]


@pytest.mark.parametrize("vector", vectors("malformed"), ids=names("malformed"))
def test_what_is_malformed_is_refused_in_words_and_closes_the_connection(vector: dict[str, Any]) -> None:
    side = receiver_of(vector)
    in_flight = set(side.in_flight)
    with pytest.raises(RemoteProtocolError) as caught:
        side.receive_data(bytes.fromhex(vector["hex"]))
    assert str(caught.value) == vector["error"]
    assert side.state is State.CLOSED
    assert set(side.in_flight) == in_flight
    with pytest.raises(RemoteProtocolError, match=f"the {vector['receiver']} is closed|exceeds|is unknown|flags"):
        side.receive_data(PING)


@pytest.mark.parametrize("vector", vectors("malformed"), ids=names("malformed"))
def test_a_server_tells_a_client_what_it_did_wrong_once(vector: dict[str, Any]) -> None:
    side = receiver_of(vector)
    with pytest.raises(RemoteProtocolError):
        side.receive_data(bytes.fromhex(vector["hex"]))
    said = frames(sent(side))
    if isinstance(side, ClientConnection):
        assert said == []
        return
    (goaway,) = said
    farewell = decode_farewell(goaway.payload)
    assert goaway.kind == Kind.GOAWAY
    assert farewell.code == (GoawayCode.VERSION if "version" in vector["error"] else GoawayCode.PROTOCOL) or (
        "malformed" in vector["error"]
    )
    assert farewell.reason == vector["error"]


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("kind", list(Kind))
def test_the_table_is_what_happens(role: Role, state: State, kind: Kind) -> None:
    side, data = in_state(role, state, has_streams=kind in (Kind.ITEM, Kind.END, Kind.CREDIT)), meaningful(role, kind)
    following = TRANSITIONS[role, state].get(kind)
    if following is None:
        with pytest.raises(
            RemoteProtocolError, match=f"{kind.name.lower()} frame is out of place: the {role.value} is"
        ):
            side.receive_data(data)
        assert side.state is State.CLOSED
    else:
        side.receive_data(data)
        assert side.state is following


def in_state(role: Role, state: State, has_streams: bool = False) -> ClientConnection | ServerConnection:
    side: Any = ClientConnection() if role is Role.CLIENT else ServerConnection(server_hello())
    if state is State.OPENING:
        return side  # type: ignore[no-any-return]
    if role is Role.CLIENT:
        side = a_streaming_client() if has_streams else an_open_client()
        side.call("charge", (), None, None, "ticket", has_items=has_streams)
    else:
        side = an_open_server()
        if has_streams:
            side.receive_data(bytes(encode_call(1, 0, (None,), has_items=True)))
    if state is State.CLOSING:
        if role is Role.CLIENT:
            side.receive_data(encode_farewell("shutdown", "", 7))
        else:
            side.go_away("shutdown", "")
    if state is State.CLOSED:
        with pytest.raises(RemoteProtocolError):
            side.receive_data(encode_frame(Kind.CREDIT, 1))
    assert side.state is state
    return side  # type: ignore[no-any-return]


def meaningful(role: Role, kind: Kind) -> bytes:
    """Return a frame of a kind that is refused, if at all, for its place only."""
    match kind:
        case Kind.HELLO:
            return server_hello() if role is Role.CLIENT else encode_hello(ClientHello(program=""))
        case Kind.CALL:
            return a_call()
        case Kind.REPLY:
            return reply(1)
        case Kind.ERROR:
            return encode_failure(1, "internal", "", "")
        case Kind.GOAWAY:
            return encode_farewell("shutdown", "", 7)
        case Kind.PING | Kind.PONG:
            return encode_frame(kind)
        case Kind.CREDIT:
            return encode_credit(1, 1000)
        case _:
            return encode_frame(kind, 1)


def test_a_violation_leaves_every_call_of_the_client_in_flight() -> None:
    """Answers that stood before the violation in the same read are not lost: their callers must hear that it ended."""
    client = an_open_client()
    for number in range(1, 4):
        client.call("charge", (), None, None, f"ticket {number}")
    client.cancel(2)
    with pytest.raises(RemoteProtocolError, match="answer to call 9"):
        client.receive_data(reply(1) + reply(2) + reply(9) + reply(3))
    assert client.in_flight == {1: "ticket 1", 3: "ticket 3"}
    assert not client.is_usable


def test_a_violation_inside_a_frames_payload_closes_the_client_too() -> None:
    for data in (encode_frame(Kind.GOAWAY, payload=b"\xc1"), encode_frame(Kind.HELLO, payload=b"nonsense")):
        client = ClientConnection()
        with pytest.raises(RemoteProtocolError):
            client.receive_data(data)
        assert client.state is State.CLOSED
        assert client.hello is None


# --- hello ---------------------------------------------------------------------------------------------


def test_a_client_introduces_itself_first_and_a_server_answers() -> None:
    client, server = ClientConnection("me", 2048), ServerConnection(server_hello("a", "getb"))
    assert server.data_to_send() == []
    assert not client.is_usable
    server.receive_data(sent(client))
    assert server.client == ClientHello(program="me", max_frame_size=2048)
    assert server.max_reply_size == 2048
    client.receive_data(sent(server))
    assert client.is_usable
    assert client.hello is not None
    assert client.hello.service == "s"
    assert client.methods == ["a", "getb"]
    assert client.is_idempotent("getb")
    assert not client.is_idempotent("a")
    assert not client.is_idempotent("unheard of")


def test_a_refused_client_reads_the_reason_instead_of_a_hello() -> None:
    client = ClientConnection()
    assert client.receive_data(encode_farewell(GoawayCode.REFUSED, "uid 7 is not admitted")) == []
    assert client.state is State.CLOSED
    assert client.farewell is not None
    assert (client.farewell.code, client.farewell.reason) == ("refused", "uid 7 is not admitted")
    assert client.was_not_run(1)


def test_another_version_is_refused_in_words_even_if_nothing_else_fits() -> None:
    alien = encode_frame(Kind.HELLO, payload=MAGIC + msgspec.msgpack.encode({"version": 2, "program": {"new": "form"}}))
    server = ServerConnection(server_hello())
    with pytest.raises(RemoteProtocolError, match="protocol version 2 is not spoken here, only 1"):
        server.receive_data(alien)
    farewell = decode_farewell(frames(sent(server))[0].payload)
    assert (farewell.code, farewell.last_call_id) == ("version", 0)
    client = ClientConnection()
    with pytest.raises(RemoteProtocolError, match="server speaks protocol version 2, this client 1"):
        client.receive_data(alien)


def test_what_stands_behind_a_hello_in_one_read_is_taken_after_it() -> None:
    server = ServerConnection(server_hello())
    heard = server.receive_data(encode_hello(ClientHello(program="p")) + PING + a_call(1) + PING)
    assert [frame.call_id for frame in heard] == [1]
    assert sent(server) == server_hello() + PONG


def test_a_client_uses_only_what_the_server_names() -> None:
    client = an_open_client(features=["unheard of"])
    call_id, data = client.call("charge", (1,), None, 2.5, "t")
    (frame,) = frames(bytes(data))
    assert split_call(frame)[0] is None
    assert client.cancel(call_id) == b""
    assert client.receive_data(reply(call_id)) == []  # it comes all the same, and is dropped
    with pytest.raises(LocalProtocolError, match="does not name the feature 'ping'"):
        client.ping()


@pytest.mark.parametrize("feature", FEATURES)
def test_each_feature_is_used_towards_a_server_that_names_it(feature: str) -> None:
    client = an_open_client(features=[feature])
    call_id, data = client.call("charge", (), None, 2.5, "t")
    assert (data[5] == 1) is (feature == "deadline")
    assert (client.cancel(call_id) != b"") is (feature == "cancel")
    if feature == "ping":
        client.ping()
        assert sent(client) == PING


def test_a_server_pings_only_a_client_that_knows_pings() -> None:
    with pytest.raises(LocalProtocolError, match="does not name the feature 'ping'"):
        an_open_server(features=[]).ping()
    server = an_open_server()
    server.ping()
    assert sent(server) == PING


# --- calls and answers -----------------------------------------------------------------------------------


def test_a_call_names_the_methods_number_and_counts_up() -> None:
    client = an_open_client()
    made = [client.call(name, (1,), None, None, name) for name in ("get", "charge", "get")]
    assert [call_id for call_id, _ in made] == [1, 2, 3]
    assert [frames(bytes(data))[0].method for _, data in made] == [1, 0, 1]
    assert client.in_flight == {1: "get", 2: "charge", 3: "get"}


def test_answers_come_in_any_order_and_each_goes_to_its_ticket() -> None:
    client = an_open_client()
    for ticket in ("a", "b", "c"):
        client.call("charge", (), None, None, ticket)
    answers = client.receive_data(reply(3, "third") + encode_failure(1, "internal", "", "x") + reply(2, "second"))
    assert [(ticket, frame.kind, frame.call_id) for ticket, frame in answers] == [
        ("c", Kind.REPLY, 3),
        ("a", Kind.ERROR, 1),
        ("b", Kind.REPLY, 2),
    ]
    assert client.in_flight == {}


def test_a_method_that_the_service_lacks_is_refused_here_with_a_hint() -> None:
    client = an_open_client()
    with pytest.raises(MethodNotFoundError, match=r"^service 's' has no method 'chrage': did you mean 'charge'\?$"):
        client.call("chrage", (), None, None, "t")
    with pytest.raises(MethodNotFoundError, match=r"^service 's' has no method 'zzz': it has charge, get$"):
        client.call("zzz", (), None, None, "t")
    assert client.in_flight == {}


def test_a_call_that_cannot_be_encoded_leaves_nothing_behind() -> None:
    client = an_open_client(max_frame_size=2048)
    with pytest.raises(InvalidArgumentError, match="cannot be encoded"):
        client.call("charge", (object(),), None, None, "t")
    with pytest.raises(InvalidArgumentError, match="exceed max_frame_size 2048"):
        client.call("charge", (bytes(2048),), None, None, "t")
    assert client.in_flight == {}
    assert client.call("charge", (), None, None, "t")[0] > 0


@pytest.mark.parametrize("state", [State.OPENING, State.CLOSING, State.CLOSED])
def test_only_an_open_connection_takes_calls(state: State) -> None:
    client = in_state(Role.CLIENT, state)
    assert isinstance(client, ClientConnection)
    with pytest.raises(LocalProtocolError, match=f"^connection is {state.value}: it takes no call$"):
        client.call("charge", (), None, None, "t")


def test_what_a_server_claims_to_take_is_bounded_here() -> None:
    client = an_open_client(max_frame_size=1 << 40)
    with pytest.raises(InvalidArgumentError, match=f"exceed max_frame_size {HARD_MAX_FRAME_SIZE}"):
        client.call("charge", (bytes(HARD_MAX_FRAME_SIZE),), None, None, "t")


def test_ids_begin_anew_after_the_last_and_skip_those_in_use() -> None:
    client = an_open_client()
    assert client.call("charge", (), None, None, "first")[0] == 1
    assert client.call("charge", (), None, None, "second")[0] == 2
    client.cancel(2)
    client._last_id = MAX_ID - 1
    assert [client.call("charge", (), None, None, n)[0] for n in range(3)] == [MAX_ID, 3, 4]
    client.receive_data(reply(2) + reply(1))
    client._last_id = MAX_ID
    assert client.call("charge", (), None, None, "again")[0] == 1


def test_a_server_takes_ids_that_begin_anew() -> None:
    server = an_open_server()
    heard = server.receive_data(a_call(MAX_ID) + a_call(1) + a_call(2))
    assert [frame.call_id for frame in heard] == [MAX_ID, 1, 2]
    server.reply(1, reply(1))
    assert server.receive_data(a_call(1))[0].call_id == 1


def test_a_call_is_answered_once() -> None:
    server = an_open_server()
    server.receive_data(a_call(1) + a_call(2))
    server.reply(1, reply(1, "first"))
    server.reply(1, reply(1, "second"))
    server.fail(1, "internal", "", "third")
    server.fail(2, "internal", "", "first")
    server.reply(2, reply(2, "second"))
    server.reply(77, reply(77))
    server.fail(78, "internal", "", "")
    assert [(f.kind, f.call_id) for f in frames(sent(server))] == [(Kind.REPLY, 1), (Kind.ERROR, 2)]
    assert server.in_flight == set()
    assert not server.finish(1)


@pytest.mark.parametrize("letter", ["x", "ä"])
def test_an_error_fits_into_what_the_client_takes(letter: str) -> None:
    client, server = ClientConnection("p", MIN_MAX_FRAME_SIZE), ServerConnection(server_hello())
    server.receive_data(sent(client))
    client.receive_data(sent(server))
    _, data = client.call("charge", (), None, None, "t")
    server.receive_data(bytes(data))
    server.fail(1, ErrorCode.DECLARED, letter * 5000, letter * 5000)
    ((ticket, frame),) = client.receive_data(sent(server))
    assert ticket == "t"
    assert decode_failure(frame.payload).message.endswith("...")
    server.go_away("shutdown", letter * 5000)
    client.receive_data(sent(server))
    assert client.farewell is not None


def test_a_client_of_small_frames_reads_a_long_hello() -> None:
    client = ClientConnection("p", MIN_MAX_FRAME_SIZE)
    client.receive_data(server_hello(*(f"method_number_{number}" for number in range(500))))
    assert len(client.methods) == 500
    client.call("method_number_0", (), None, None, "t")
    with pytest.raises(RemoteProtocolError, match="exceeds max_frame_size 1024"):
        client.receive_data(reply(1, bytes(1024)))


def test_the_largest_frame_of_a_server_is_taken_and_one_byte_more_is_not() -> None:
    server = an_open_server(2048)
    assert len(server.receive_data(encode_frame(Kind.CALL, 1, bytes(2048)))) == 1
    with pytest.raises(RemoteProtocolError, match="call frame of 2049 bytes exceeds max_frame_size 2048"):
        server.receive_data(encode_frame(Kind.CALL, 2, bytes(2049)))


# --- cancelling ------------------------------------------------------------------------------------------


def test_a_cancelled_call_is_gone_for_the_caller_and_its_answer_is_dropped_once() -> None:
    client = an_open_client()
    client.call("charge", (), None, None, "t")
    assert client.cancel(1) == encode_frame(Kind.CANCEL, 1)
    assert client.in_flight == {}
    assert client.cancel(1) == b""
    assert client.receive_data(reply(1)) == []
    with pytest.raises(RemoteProtocolError, match="answer to call 1, which is not in flight"):
        client.receive_data(reply(1))


def test_cancelling_what_was_answered_or_never_made_says_nothing() -> None:
    client = an_open_client()
    client.call("charge", (), None, None, "t")
    client.receive_data(reply(1))
    assert client.cancel(1) == b""
    assert client.cancel(99) == b""
    assert client.cancel(0) == b""


def test_a_cancelled_id_is_not_used_again_before_its_answer() -> None:
    client = an_open_client()
    client.call("charge", (), None, None, "t")
    client.cancel(1)
    client._last_id = MAX_ID
    assert client.call("charge", (), None, None, "t")[0] == 2


def test_a_server_hears_of_cancellations_of_calls_in_flight_only() -> None:
    server = an_open_server()
    cancel = encode_frame(Kind.CANCEL, 1)
    assert server.receive_data(cancel) == []
    heard = server.receive_data(a_call(1) + cancel)
    assert [(frame.kind, frame.call_id) for frame in heard] == [(Kind.CALL, 1), (Kind.CANCEL, 1)]
    server.reply(1, reply(1))
    assert server.receive_data(cancel) == []


# --- pings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [an_open_client, an_open_server])
def test_a_ping_is_answered(side: Any) -> None:
    connection = side()
    assert connection.receive_data(PING) == []
    assert sent(connection) == PONG
    assert connection.receive_data(PONG) == []
    assert sent(connection) == b""


@pytest.mark.parametrize("side", [an_open_client, an_open_server])
def test_a_flood_of_pings_is_answered_once_a_look(side: Any) -> None:
    connection = side()
    for _ in range(100):
        connection.receive_data(PING * 4096)
    assert sent(connection) == PONG
    connection.receive_data(PING)
    assert sent(connection) == PONG


@pytest.mark.parametrize("role", list(Role))
def test_pings_are_sent_between_the_hellos_and_the_end_only(role: Role) -> None:
    for state in (State.OPENING, State.CLOSED):
        with pytest.raises(LocalProtocolError, match=f"^connection is {state.value}: it takes no ping$"):
            in_state(role, state).ping()
    for state in (State.OPEN, State.CLOSING):
        side = in_state(role, state)
        side.data_to_send()
        side.ping()
        assert sent(side) == PING


# --- farewells -------------------------------------------------------------------------------------------


def test_a_farewell_rules_out_what_comes_after_the_last_call() -> None:
    client, server = an_open_client(), an_open_server()
    calls = [bytes(client.call("charge", (), None, None, n)[1]) for n in range(4)]
    server.receive_data(calls[0] + calls[1])
    server.go_away(GoawayCode.SHUTDOWN, "bye")
    assert server.receive_data(calls[2] + calls[3]) == []  # they crossed the farewell
    assert server.in_flight == {1, 2}
    client.receive_data(sent(server))
    assert client.state is State.CLOSING
    assert not client.is_usable
    assert [client.was_not_run(call_id) for call_id in (1, 2, 3, 4)] == [False, False, True, True]
    server.reply(1, reply(1))
    server.reply(2, reply(2))
    assert len(client.receive_data(sent(server))) == 2
    assert list(client.in_flight) == [3, 4]


def test_a_farewell_is_said_once() -> None:
    server = an_open_server()
    server.go_away(GoawayCode.SHUTDOWN, "first")
    server.go_away(GoawayCode.TIMEOUT, "second")
    (goaway,) = frames(sent(server))
    assert decode_farewell(goaway.payload).reason == "first"
    assert server.state is State.CLOSING


def test_without_a_farewell_nothing_is_ruled_out() -> None:
    client = an_open_client()
    client.call("charge", (), None, None, "t")
    assert not client.was_not_run(1)


def test_a_second_farewell_may_lower_the_last_call_and_not_raise_it() -> None:
    client = an_open_client()
    client.receive_data(encode_farewell("shutdown", "", 5))
    client.receive_data(encode_farewell("shutdown", "", 5))
    client.receive_data(encode_farewell("shutdown", "", 2))
    assert client.was_not_run(3)
    with pytest.raises(RemoteProtocolError, match="a second goaway raises last_call_id from 2 to 3"):
        client.receive_data(encode_farewell("shutdown", "", 3))
    assert client.was_not_run(3)


def test_a_late_call_that_the_farewell_does_not_rule_out_is_answered() -> None:
    """Ids that began anew are below the last call: without an answer its caller would wait for ever."""
    server = an_open_server()
    server.receive_data(a_call(MAX_ID) + a_call(1))
    server.go_away(GoawayCode.SHUTDOWN, "bye")
    assert server.receive_data(a_call(2) + a_call(MAX_ID - 1)) == []
    goaway, *errors = frames(sent(server))
    assert decode_farewell(goaway.payload).last_call_id == MAX_ID
    assert [frame.call_id for frame in errors] == [2, MAX_ID - 1]
    assert {decode_failure(frame.payload).code for frame in errors} == {ErrorCode.NOT_RUN}
    assert server.in_flight == {MAX_ID, 1}


def test_an_id_in_flight_is_refused_during_a_farewell_too() -> None:
    server = an_open_server()
    server.receive_data(a_call(1))
    server.go_away(GoawayCode.SHUTDOWN, "bye")
    with pytest.raises(RemoteProtocolError, match="call id 1 is in flight already"):
        server.receive_data(a_call(1))


def test_a_client_that_says_farewell_still_gets_its_answers() -> None:
    server = an_open_server()
    heard = server.receive_data(a_call(1) + encode_farewell("shutdown", "done", 0) + encode_frame(Kind.CANCEL, 1))
    assert [frame.kind for frame in heard] == [Kind.CALL, Kind.CANCEL]
    assert server.state is State.CLOSING
    server.reply(1, reply(1))
    assert [frame.kind for frame in frames(sent(server))] == [Kind.REPLY]


def test_a_violation_names_the_last_call_that_may_have_run() -> None:
    server = an_open_server()
    server.receive_data(a_call(1) + a_call(2))
    with pytest.raises(RemoteProtocolError):
        server.receive_data(encode_frame(Kind.END, 1))
    farewell = decode_farewell(frames(sent(server))[0].payload)
    assert (farewell.code, farewell.last_call_id) == ("protocol", 2)


# --- small things ----------------------------------------------------------------------------------------


def test_data_to_send_is_given_once() -> None:
    client = ClientConnection()
    assert len(client.data_to_send()) == 1
    assert client.data_to_send() == []


def test_a_connection_knows_whether_a_frame_has_begun() -> None:
    server = an_open_server()
    assert not server.is_partial
    server.receive_data(a_call()[:5])
    assert server.is_partial
    server.receive_data(a_call()[5:])
    assert not server.is_partial


def test_the_frame_bound_is_checked_where_faces_look_for_it() -> None:
    assert check_frame_size(4096) == 4096


def test_every_state_of_both_sides_has_a_row() -> None:
    assert set(TRANSITIONS) == set(itertools.product(Role, State))
    assert {state for row in TRANSITIONS.values() for state in row.values()} == set(State) - {State.OPENING}
