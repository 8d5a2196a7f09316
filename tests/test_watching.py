"""Watching a service: the fields of its log lines, the access log, and what observers are told of each call."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import hostline
from hostline.rpc.watching.calls import FinishedCall
from hostline.wire.codec import decode_failure, decode_farewell
from hostline.wire.frame import Flag, Kind, encode_frame
from tests.cli.running import Running
from tests.cli.running import hostline as command
from tests.leaks import wait_until
from tests.serving import RawClient, ServerThread, Stage, stages
from tests.watched import Records, RefusedError, shop


@pytest.fixture
def log() -> Iterator[Records]:
    handler = Records()
    loggers = [logging.getLogger(name) for name in ("hostline", "hostline.access")]
    before = [logger.level for logger in loggers]
    loggers[0].addHandler(handler)
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    yield handler
    loggers[0].removeHandler(handler)
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture(params=stages())
def stage(request: pytest.FixtureRequest, sock_dir: Path) -> Iterator[Stage]:
    face, loop = request.param
    made = Stage(face, loop, sock_dir)
    yield made
    made.close()


# --- the fields of log lines ---------------------------------------------------------------------------


def test_a_failed_handler_is_logged_with_who_called_what_and_the_reference(stage: Stage, log: Records) -> None:
    stage.serve(shop())
    with pytest.raises(hostline.InternalError) as caught:
        stage.connect().call("boom", "tea")
    (record,) = log.of("handler_failed")
    facts = {name: record[name] for name in ("service", "method", "peer_uid", "peer_pid")}
    assert facts == {"service": "shop", "method": "boom", "peer_uid": os.getuid(), "peer_pid": os.getpid()}
    assert record["reference"] in str(caught.value)
    assert record["call_id"] >= 1
    assert record["levelname"] == "ERROR"


def test_the_servers_own_life_is_logged_with_its_name_and_address(sock_dir: Path, log: Records) -> None:
    with ServerThread(shop(), sock_dir / "s"):
        pass
    for event in ("serving", "stopped"):
        (record,) = log.of(event)
        assert (record["service"], record["address"]) == ("shop", str(sock_dir / "s"))


def test_a_refused_peer_and_one_that_breaks_the_protocol_are_events(sock_dir: Path, log: Records) -> None:
    with ServerThread(shop(), sock_dir / "s", allow=hostline.Peers(uids={4_000_000_000})):
        with pytest.raises(hostline.PeerRefusedError):
            hostline.connect(sock_dir / "s")
    (refused,) = log.of("refused")
    assert (refused["peer_uid"], refused["peer_pid"]) == (os.getuid(), os.getpid())
    with ServerThread(shop(), sock_dir / "t") as server, RawClient(server.address) as client:
        client.sock.sendall(b"\xff" * 64)
        client.read_until_end()
    (broke,) = log.of("protocol_violation")
    assert broke["peer_pid"] == os.getpid()
    assert broke["address"] == str(sock_dir / "t")


# --- the access log ------------------------------------------------------------------------------------


def test_each_finished_call_has_one_access_line(stage: Stage, log: Records) -> None:
    stage.serve(shop(), access_log=True)
    line = stage.connect()
    for method in ("task", "thread", "quick"):
        assert line.call(method, 7) == 8
    with pytest.raises(RefusedError):
        line.call("refuse", raises=[RefusedError])
    with pytest.raises(hostline.InternalError):
        line.call("boom", "x")
    with pytest.raises(hostline.InvalidArgumentError):
        line.call("task", "no number")
    with pytest.raises(hostline.DeadlineExceededError):
        line.call("wait", timeout=0.01)
    expected = [
        ("task", "ok"), ("thread", "ok"), ("quick", "ok"), ("refuse", "declared"), ("boom", "internal"),
        ("task", "invalid_argument"), ("wait", "deadline"),
    ]  # fmt: skip
    assert wait_until(lambda: len(log.of("call")) == len(expected))
    told = log.of("call")
    found = [(record["method"], record["outcome"]) for record in told]
    assert found[:6] == expected[:6]
    assert found[6] in (expected[6], ("wait", "cancelled"), ("wait", "disconnected"))  # whichever clock was first
    for record in told:
        assert record["name"] == "hostline.access"
        assert record["levelname"] == "INFO"
        assert 0 <= record["duration"] < 10
        assert record["peer_pid"] == os.getpid()
        assert record["service"] == "shop"
    assert told[0]["bytes_in"] == 2 + 8  # an array of one small int, and the time left
    assert told[0]["bytes_out"] == 1


def test_streams_have_one_access_line_at_their_end(sock_dir: Path, log: Records) -> None:
    with ServerThread(shop(), sock_dir / "s", access_log=True), hostline.connect(sock_dir / "s") as line:
        assert [*line.stream("count", 5)] == [*range(5)]
        assert [*line.stream("count_in_thread", 5)] == [*range(5)]
        assert line.call("total", iter([1, 2, 3])) == 6
        with line.stream("count", 1_000_000) as left:
            next(left)
        assert wait_until(lambda: len(log.of("call")) == 4)
    assert [(record["method"], record["outcome"]) for record in log.of("call")][:3] == [
        ("count", "ok"), ("count_in_thread", "ok"), ("total", "ok"),
    ]  # fmt: skip
    assert log.of("call")[3]["outcome"] in ("cancelled", "disconnected")


def test_a_call_whose_caller_went_and_one_of_no_method_have_a_line_too(sock_dir: Path, log: Records) -> None:
    with ServerThread(shop(), sock_dir / "s", access_log=True) as server:
        with RawClient(server.address) as client:
            client.sock.sendall(encode_frame(Kind.CALL, 1, b"\x90", method=999))
            assert decode_failure(client.read().payload).code == "not_found"
            client.call(2, "wait")
            assert wait_until(lambda: server.running_count == 1)
        assert wait_until(lambda: len(log.of("call")) == 2)
    assert [(record["method"], record["outcome"]) for record in log.of("call")] == [
        ("", "not_found"), ("wait", "disconnected"),
    ]  # fmt: skip


def test_without_it_there_is_no_line_and_nothing_is_kept(sock_dir: Path, log: Records) -> None:
    with ServerThread(shop(), sock_dir / "s") as server, hostline.connect(sock_dir / "s") as line:
        line.call("task", 1)
        assert server.do(lambda server: [session._calls._watched.begun for session in server._sessions]) == [{}]
    assert log.of("call") == []


def test_an_observer_is_told_of_each_call_and_one_that_fails_of_no_more(sock_dir: Path, log: Records) -> None:
    told: list[FinishedCall] = []
    failures: list[FinishedCall] = []

    def fail(call: FinishedCall) -> None:
        failures.append(call)
        raise RuntimeError("no more")

    with ServerThread(shop(), sock_dir / "s") as server, hostline.connect(sock_dir / "s") as line:
        server.do(lambda server: (server.observe(fail), server.observe(told.append)))
        assert [line.call("quick", number) for number in range(3)] == [1, 2, 3]
        server.do(lambda server: server.forget_observer(told.append))
        line.call("quick", 1)
    assert [(call.method, call.outcome) for call in told] == [("quick", "ok")] * 3
    assert len(failures) == 1
    assert len(log.of("observer_failed")) == 1


# --- the context of a call -----------------------------------------------------------------------------


def with_context(client: RawClient, call_id: int, context: bytes) -> bytes:
    return encode_frame(Kind.CALL, call_id, context + b"\x91\x07", flags=Flag.CONTEXT, method=client.methods["quick"])


def test_a_call_with_a_context_is_served_though_nobody_traces(sock_dir: Path) -> None:
    with ServerThread(shop(), sock_dir / "s") as server, RawClient(server.address) as client:
        client.sock.sendall(with_context(client, 1, b"\x81\xabtraceparent\xa3odd"))
        assert client.read().payload == b"\x08"


@pytest.mark.parametrize("context", [b"\x91\x07", b"\x81\xa1A\xa1b", b"\x81\xa1a", b"\xde\xff\xff", b"\x81\xa1a\x01"])
def test_a_malformed_context_ends_the_connection_in_words(sock_dir: Path, context: bytes) -> None:
    with ServerThread(shop(), sock_dir / "s") as server, RawClient(server.address) as client:
        client.sock.sendall(with_context(client, 1, context))
        farewell = client.read_until_end()[-1]
        assert farewell.kind == Kind.GOAWAY
        said = decode_farewell(farewell.payload)
        assert said.code == "protocol"
        assert said.reason.startswith("call context ")


# --- the command ---------------------------------------------------------------------------------------


def test_serve_writes_json_lines_whatever_peers_and_handlers_write(sock_dir: Path) -> None:
    text = 'a"b\n{"level": "info"}\r\x1b[2J\x7f\x85\u2028\udc80é'
    program = sock_dir / "app.py"
    program.write_text("from tests.watched import shop\nshop = shop()\n", encoding="utf-8")
    options = ("--log-format", "json", "--access-log", "-a", sock_dir / "s")
    with Running("serve", f"{program}:shop", *options, ready="serving") as server:
        with hostline.connect(sock_dir / "s") as line, pytest.raises(hostline.InternalError):
            line.call("boom", text.replace("\udc80", ""))
        command("call", sock_dir / "s", "quick", "1")
        assert server.stop() == 0
        lines = server.err.splitlines()
    entries = [json.loads(line) for line in lines]
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert [entry["event"] for entry in entries][:3] == ["serving", "handler_failed", "call"]
    failed = entries[1]
    assert text.replace("\udc80", "") in failed["exception"]
    assert (failed["level"], failed["logger"], failed["method"]) == ("error", "hostline", "boom")
    assert entries[2]["outcome"] == "internal"
    assert {"time", "level", "logger", "message", "event", "service"} <= entries[3].keys()


def test_serve_writes_sentences_and_no_access_log_unless_told_to(sock_dir: Path) -> None:
    program = sock_dir / "app.py"
    program.write_text("from tests.watched import shop\nshop = shop()\n", encoding="utf-8")
    with Running("serve", f"{program}:shop", "-a", sock_dir / "s", ready="serving") as server:
        command("call", sock_dir / "s", "quick", "1")
        assert server.stop() == 0
        assert [line.split(" ", 2)[2] for line in server.err.splitlines()] == [
            f"INFO hostline: serving shop on {sock_dir}/s",
            f"INFO hostline: shop on {sock_dir}/s stopped",
        ]
