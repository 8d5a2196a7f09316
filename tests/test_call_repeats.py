"""Which calls are made again when a connection breaks, over both faces: against servers that follow a script, so that
they break at an exact place, and against processes that are really killed.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hostline
from hostline.errors import (
    DeadlineExceededError,
    InvalidResultError,
    PeerRefusedError,
    RemoteProtocolError,
    SocketTimeoutError,
    UnavailableError,
)
from hostline.limits import MAX_REPEATS
from hostline.wire.codec import (
    ErrorCode,
    GoawayCode,
    MethodEntry,
    ServerHello,
    encode_failure,
    encode_farewell,
    encode_hello,
    encode_reply,
)
from hostline.wire.frame import Kind, encode_frame
from tests.leaks import wait_until
from tests.serving import Conversation, ScriptedServer, ServerProcess, Stage, stages, takes_less_than


@pytest.fixture(params=stages())
def stage(request: pytest.FixtureRequest, sock_dir: Path) -> Iterator[Stage]:
    face, loop = request.param
    made = Stage(face, loop, sock_dir)
    yield made
    made.close()


Act = Callable[[Conversation], None]


@pytest.fixture
def play(stage: Stage) -> Iterator[Callable[..., ScriptedServer]]:
    """Give `play(act, act, ...)`: a scripted server, closed after the lines."""
    servers: list[ScriptedServer] = []

    def start(*acts: Act, **options: Any) -> ScriptedServer:
        servers.append(ScriptedServer(stage.address, *acts, **options))
        return servers[-1]

    yield start
    stage.close()
    for server in servers:
        server.close()


# --- acts ----------------------------------------------------------------------------------------------


def answer(conversation: Conversation) -> None:
    """Answer every call with its id."""
    conversation.greet()
    while True:
        frame = conversation.read_call()
        conversation.send(encode_reply(frame.call_id, "answered"))


def take_and_leave(conversation: Conversation) -> None:
    """Read one call, and be gone."""
    conversation.greet()
    conversation.read_call()


def greet_and_leave(conversation: Conversation) -> None:
    conversation.greet()


def rule_out(conversation: Conversation) -> None:
    """Read one call and say that it will not be run."""
    conversation.greet()
    frame = conversation.read_call()
    conversation.send(encode_farewell(GoawayCode.SHUTDOWN, "leaving", frame.call_id - 1))


def accept_and_leave(conversation: Conversation) -> None:
    """Read one call, say farewell as if it was going to be answered, and be gone."""
    conversation.greet()
    frame = conversation.read_call()
    conversation.send(encode_farewell(GoawayCode.SHUTDOWN, "leaving", frame.call_id))


def accept_and_answer(conversation: Conversation) -> None:
    conversation.greet()
    frame = conversation.read_call()
    conversation.send(encode_farewell(GoawayCode.SHUTDOWN, "leaving", frame.call_id))
    time.sleep(0.05)
    conversation.send(encode_reply(frame.call_id, "answered"))


def answer_and_leave(conversation: Conversation) -> None:
    conversation.greet()
    frame = conversation.read_call()
    conversation.send(encode_reply(frame.call_id, "answered"))


def hold(conversation: Conversation) -> None:
    """Read for ever, answer nothing."""
    conversation.greet()
    while True:
        conversation.read_call()


def call_count(server: ScriptedServer) -> int:
    return sum(len(conversation.calls) for conversation in server.conversations)


# --- what is repeated ----------------------------------------------------------------------------------


def test_a_call_that_may_have_been_run_is_not_repeated(stage: Stage, play: Any) -> None:
    server = play(take_and_leave, answer)
    line = stage.connect()
    with pytest.raises(UnavailableError, match="may or may not have been run") as caught:
        line.call("act")
    assert not caught.value.is_safe_to_repeat
    assert isinstance(caught.value, ConnectionError)
    assert call_count(server) == 1
    assert line.call("act") == "answered"


def test_a_call_that_does_no_harm_twice_is_repeated(stage: Stage, play: Any) -> None:
    server = play(take_and_leave, take_and_leave, answer)
    line = stage.connect()
    assert line.call("again") == "answered"  # the service declares it idempotent
    assert call_count(server) == 3


def test_the_caller_can_say_that_a_call_does_no_harm_twice(stage: Stage, play: Any) -> None:
    server = play(take_and_leave, answer)
    line = stage.connect()
    assert line.call("act", idempotent=True) == "answered"
    assert call_count(server) == 2


def test_even_those_are_repeated_a_few_times_only(stage: Stage, play: Any) -> None:
    server = play(take_and_leave)
    line = stage.connect()
    with pytest.raises(UnavailableError) as caught:
        line.call("again")
    assert not caught.value.is_safe_to_repeat
    assert call_count(server) == 1 + MAX_REPEATS


def test_a_call_that_the_farewell_rules_out_is_repeated(stage: Stage, play: Any) -> None:
    server = play(rule_out, rule_out, rule_out, rule_out, answer)
    line = stage.connect()
    assert line.call("act") == "answered"
    assert call_count(server) == 5


def test_a_call_that_the_farewell_admits_is_waited_for(stage: Stage, play: Any) -> None:
    server = play(accept_and_answer, answer)
    line = stage.connect()
    assert line.call("act") == "answered"
    assert call_count(server) == 1
    assert line.call("act") == "answered"
    assert len(server.conversations) == 2


def test_a_call_that_the_farewell_admits_and_nobody_answers_is_not_repeated(stage: Stage, play: Any) -> None:
    server = play(accept_and_leave, answer)
    line = stage.connect()
    with pytest.raises(UnavailableError) as caught:
        line.call("act")
    assert not caught.value.is_safe_to_repeat
    assert call_count(server) == 1


def test_a_call_of_which_nothing_was_sent_is_repeated(stage: Stage, play: Any) -> None:
    """The connection ended while it was idle: that is the server's business, not the caller's."""
    server = play(greet_and_leave, answer)
    line = stage.connect()
    assert server.conversations[0].has_left.wait(10)
    assert line.call("act") == "answered"
    assert call_count(server) == 1


def test_a_call_of_which_a_part_was_sent_is_not_repeated(stage: Stage, play: Any) -> None:
    went = threading.Event()

    def take_a_part(conversation: Conversation) -> None:
        conversation.greet()
        while not conversation.sock.recv(1000):
            pass
        went.wait(5)

    server = play(take_a_part, answer)
    line = stage.connect()
    future = line.start("act", "x" * 900_000)  # more than the socket holds
    assert wait_until(lambda: len(server.conversations) == 1)
    time.sleep(0.1)
    went.set()
    with pytest.raises(UnavailableError) as caught:
        future.result(5)
    assert not caught.value.is_safe_to_repeat
    assert call_count(server) == 0


def test_an_answer_that_came_before_the_end_counts(stage: Stage, play: Any) -> None:
    server = play(answer_and_leave)
    line = stage.connect()
    for _ in range(10):
        assert line.call("act") == "answered"
        # A call that crosses the close on the wire could not know whether it was run.
        assert server.conversations[-1].has_left.wait(10)
    assert call_count(server) == 10


def test_an_answer_counts_though_a_pong_cannot_leave_any_more(stage: Stage, play: Any) -> None:
    def answer_with_a_ping(conversation: Conversation) -> None:
        conversation.greet()
        frame = conversation.read_call()
        conversation.sock.shutdown(socket.SHUT_RD)  # whoever sends to us now gets EPIPE
        conversation.send(encode_frame(Kind.PING) + encode_reply(frame.call_id, "answered"))

    server = play(answer_with_a_ping)
    line = stage.connect()
    for _ in range(3):
        assert line.call("act") == "answered"
        assert server.conversations[-1].has_left.wait(10)
    assert call_count(server) == 3


def test_a_deadline_is_no_reason_to_repeat(stage: Stage, play: Any) -> None:
    server = play(hold)
    line = stage.connect()
    with takes_less_than(3), pytest.raises(DeadlineExceededError):
        line.call("again", timeout=0.2)
    assert call_count(server) == 1


def test_an_error_is_no_reason_to_repeat(stage: Stage, play: Any) -> None:
    def refuse(conversation: Conversation) -> None:
        conversation.greet()
        for code in (ErrorCode.OVERLOADED, ErrorCode.UNAVAILABLE, "of a later version"):
            frame = conversation.read_call()
            conversation.send(encode_failure(frame.call_id, code, "", "no"))

    server = play(refuse)
    line = stage.connect()
    for error in (hostline.OverloadedError, UnavailableError, hostline.InternalError):
        with pytest.raises(error, match="no"):
            line.call("again")
    assert call_count(server) == 3


# --- servers that are none -----------------------------------------------------------------------------


def test_a_server_that_does_not_greet_is_given_up(stage: Stage, play: Any) -> None:
    released = threading.Event()
    play(lambda _: void(released.wait(10)))
    try:
        with takes_less_than(3), pytest.raises(SocketTimeoutError, match=r"no hello within 0\.2 seconds"):
            stage.connect(connect_timeout=0.2)
    finally:
        released.set()


def void(_: object) -> None:
    """Take a value and give none."""


def test_a_server_that_closes_instead_of_greeting_is_unavailable(stage: Stage, play: Any) -> None:
    play(lambda conversation: void(conversation.read()))
    with pytest.raises(UnavailableError, match="before its hello") as caught:
        stage.connect()
    assert caught.value.is_safe_to_repeat


def test_a_server_that_comes_up_meanwhile_is_waited_for(stage: Stage, play: Any) -> None:
    play(lambda conversation: void(conversation.read()), lambda _: None, answer)
    line = stage.connect(wait=5)
    assert line.call("act") == "answered"


@pytest.mark.parametrize(
    ("greeting", "error", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", RemoteProtocolError, "kind|exceeds"),
        (encode_frame(Kind.HELLO, 0, b"something else"), RemoteProtocolError, "magic"),
        (encode_hello(ServerHello(version=7, service="x", methods=[])), RemoteProtocolError, "version 7"),
        (
            encode_hello(ServerHello(service="x", methods=[MethodEntry("a"), MethodEntry("a")])),
            RemoteProtocolError,
            "twice",
        ),
        (encode_frame(Kind.REPLY, 1, b"\xc0"), RemoteProtocolError, "out of place"),
        (encode_farewell(GoawayCode.REFUSED, "not you"), PeerRefusedError, "not you"),
        (encode_farewell(GoawayCode.VERSION, "too old"), RemoteProtocolError, "too old"),
        (encode_farewell(GoawayCode.LIMIT, "full"), UnavailableError, "full"),
        (encode_farewell(GoawayCode.SHUTDOWN, "closing"), UnavailableError, "closing"),
        (encode_farewell("of a later version", "for a reason"), UnavailableError, "for a reason"),
    ],
)
def test_a_greeting_that_is_none_is_told_apart(
    stage: Stage, play: Any, greeting: bytes, error: type[Exception], words: str
) -> None:
    def greet(conversation: Conversation) -> None:
        conversation.read()
        conversation.send(greeting)
        conversation.read()

    play(greet)
    with takes_less_than(5), pytest.raises(error, match=words):
        stage.connect()


@pytest.mark.parametrize(
    "reply",
    [
        encode_reply(99, "who asked?"),
        encode_frame(Kind.CALL, 1, b"\x90"),
        encode_frame(Kind.HELLO, 0, b"hostline\x80"),
        b"\xff" * 40,
        encode_frame(Kind.ERROR, 1, b"\x00"),
    ],
    ids=["unknown id", "call", "hello", "garbage", "malformed error"],
)
def test_an_answer_that_breaks_the_protocol_ends_that_connection_only(stage: Stage, play: Any, reply: bytes) -> None:
    def disturb(conversation: Conversation) -> None:
        conversation.greet()
        conversation.read_call()
        conversation.send(reply)
        conversation.read()

    server = play(disturb, answer)
    line = stage.connect()
    with takes_less_than(5), pytest.raises(RemoteProtocolError):
        line.call("act", timeout=10)
    assert line.call("act") == "answered"
    assert len(server.conversations) == 2


def test_a_second_answer_to_one_call_ends_the_connection_and_reaches_nobody(stage: Stage, play: Any) -> None:
    def answer_twice(conversation: Conversation) -> None:
        conversation.greet()
        frame = conversation.read_call()
        conversation.send(encode_reply(frame.call_id, "first") + encode_reply(frame.call_id, "second"))
        conversation.read()

    play(answer_twice, answer)
    line = stage.connect()
    try:
        assert line.call("act") == "first"
    except RemoteProtocolError:
        pass  # both came with one read: nothing of this server is believed any more
    assert line.call("act") == "answered"


def test_a_result_that_is_no_message_pack_fails_that_call_only(stage: Stage, play: Any) -> None:
    def garble(conversation: Conversation) -> None:
        conversation.greet()
        conversation.send(encode_frame(Kind.REPLY, conversation.read_call().call_id, b"\xc1\xc1"))
        conversation.send(encode_reply(conversation.read_call().call_id, "answered"))
        conversation.read()

    server = play(garble)
    line = stage.connect()
    with pytest.raises(InvalidResultError):
        line.call("act")
    assert line.call("act") == "answered"
    assert len(server.conversations) == 1


def test_an_answer_in_drips_is_put_together(stage: Stage, play: Any) -> None:
    def drip(conversation: Conversation) -> None:
        conversation.greet()
        frame = conversation.read_call()
        for byte in encode_reply(frame.call_id, "answered"):
            conversation.send(bytes([byte]))
            time.sleep(0.002)
        conversation.read()

    play(drip)
    assert stage.connect().call("act") == "answered"


def test_a_servers_pings_are_answered_while_a_call_waits(stage: Stage, play: Any) -> None:
    def ping(conversation: Conversation) -> None:
        conversation.greet()
        frame = conversation.read_call()
        for _ in range(3):
            conversation.send(encode_frame(Kind.PING))
            assert conversation.read().kind == Kind.PONG
        conversation.send(encode_reply(frame.call_id, "answered"))
        conversation.read()

    play(ping)
    assert stage.connect().call("act") == "answered"


def test_a_late_answer_is_dropped_and_the_next_call_gets_its_own(stage: Stage, play: Any) -> None:
    def late(conversation: Conversation) -> None:
        conversation.greet()
        first = conversation.read_call()
        second = conversation.read_call()
        conversation.send(encode_reply(first.call_id, "late"))
        conversation.send(encode_reply(second.call_id, "answered"))
        conversation.read()

    play(late, answer)
    line = stage.connect()
    with pytest.raises(DeadlineExceededError):
        line.call("act", timeout=0.1)
    assert line.call("act", timeout=5) == "answered"


def test_a_server_that_stops_reading_does_not_hold_a_caller_beyond_its_deadline(stage: Stage, play: Any) -> None:
    released = threading.Event()

    def read_nothing(conversation: Conversation) -> None:
        conversation.greet()
        released.wait(10)

    play(read_nothing)
    line = stage.connect()
    try:
        for _ in range(2):
            with takes_less_than(3), pytest.raises(DeadlineExceededError):
                line.call("act", "x" * 900_000, timeout=0.2)
    finally:
        released.set()


def test_a_server_that_vanishes_while_calls_wait_to_be_sent_ends_them(stage: Stage, play: Any) -> None:
    """Also those that have no deadline and of which nothing could be sent yet."""
    released = threading.Event()

    def read_nothing(conversation: Conversation) -> None:
        conversation.greet()
        released.wait(10)

    play(read_nothing, lambda _: None)
    line = stage.connect(reconnect_timeout=0.1)
    futures = [line.start("act", "x" * 900_000, timeout=math.inf) for _ in range(6)]
    time.sleep(0.3)
    released.set()
    with takes_less_than(5):
        for future in futures:
            with pytest.raises((UnavailableError, hostline.SocketError)):
                future.result(5)


# --- processes that are killed -------------------------------------------------------------------------


@pytest.mark.leaves_files
def test_a_call_in_a_server_that_is_killed_is_not_repeated_unless_that_does_no_harm(
    stage: Stage, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    options = ("--journal", str(journal), "--loop", stage.loop)
    with ServerProcess(stage.address, *options) as first:
        line = stage.connect(reconnect_timeout=15)
        with takes_less_than(5), pytest.raises(UnavailableError) as caught:
            line.call("die", 1, timeout=15)
        assert not caught.value.is_safe_to_repeat
        assert first.wait() == -signal.SIGKILL
    with ServerProcess(stage.address, *options) as second:
        future = line.start("die_once", 2, second.pid, timeout=15)
        assert second.wait() == -signal.SIGKILL
        with ServerProcess(stage.address, *options):
            assert future.result(10) == 2
    assert journal.read_text().split("\n") == ["die 1", "die_once 2", "die_once 2", ""]


@pytest.mark.alone
@pytest.mark.leaves_files
def test_pending_calls_end_soon_after_the_server_is_killed(stage: Stage) -> None:
    with ServerProcess(stage.address, "--loop", stage.loop) as server:
        line = stage.connect(reconnect_timeout=0.1)
        futures = [line.start("charge", number, 30.0, timeout=30) for number in range(5)]
        time.sleep(0.1)
        os.kill(server.pid, signal.SIGKILL)
        with takes_less_than(1):
            for future in futures:
                with pytest.raises(UnavailableError):
                    future.result(5)
