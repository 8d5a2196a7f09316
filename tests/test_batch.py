"""Batches, over both faces and both loops: one write for many calls, an outcome for each, and no call made twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest

import hostline
from hostline.errors import (
    AddressNotFoundError,
    CallCancelledError,
    ClosedError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    InvalidResultError,
    LocalProtocolError,
    MethodNotFoundError,
    OverloadedError,
    RemoteProtocolError,
    UnavailableError,
)
from hostline.limits import MAX_CALLS_PER_CONNECTION, MAX_REPEATS
from hostline.wire.codec import GoawayCode, MethodEntry, ServerHello, encode_farewell, encode_hello, encode_reply
from hostline.wire.frame import Kind, encode_frame
from tests.leaks import wait_until
from tests.serving import (
    Conversation,
    Journal,
    ScriptedServer,
    ServerProcess,
    Stage,
    held_service,
    resident_bytes,
    stages,
    takes_less_than,
)

MIB = 1 << 20


class Order(msgspec.Struct):
    id: int
    price: float


class Receipt(msgspec.Struct):
    order: int
    total: float


class Empty(Exception):
    """As the service declares it."""


class Shop(hostline.Interface, Protocol):
    def charge(self, order: Order) -> Receipt: ...
    @hostline.raises(Empty)
    def fail(self, how: str) -> None: ...
    def count(self, to: int) -> Iterator[int]: ...


class AsyncShop(hostline.aio.Interface, Protocol):
    async def charge(self, order: Order) -> Receipt: ...
    @hostline.raises(Empty)
    async def fail(self, how: str) -> None: ...
    def count(self, to: int) -> AsyncIterator[int]: ...


def shop() -> hostline.Service:
    service = hostline.Service("shop")

    @service.method(inline=True)
    def charge(order: Order) -> Receipt:
        return Receipt(order.id, order.price * 2)

    @service.method(raises=Empty)
    async def fail(how: str) -> None:
        raise Empty("no more") if how == "declared" else ValueError("a secret")

    @service.method
    def echo(data: bytes) -> bytes:
        return data

    @service.method
    async def pause(seconds: float, context: hostline.Context) -> float:
        left = context.time_left
        await asyncio.sleep(seconds)
        return left

    @service.method
    async def count(to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number
        await asyncio.sleep(60)

    return service


@pytest.fixture(params=stages())
def stage(request: pytest.FixtureRequest, sock_dir: Path) -> Iterator[Stage]:
    face, loop = request.param
    made = Stage(face, loop, sock_dir)
    yield made
    made.close()


@pytest.fixture
def play(stage: Stage) -> Iterator[Callable[..., ScriptedServer]]:
    """Give `play(act, act, ...)`: a scripted server, closed after the lines."""
    servers: list[ScriptedServer] = []

    def start(*acts: Callable[[Conversation], None], **options: Any) -> ScriptedServer:
        servers.append(ScriptedServer(stage.address, *acts, **options))
        return servers[-1]

    yield start
    stage.close()
    for server in servers:
        server.close()


Fill = Callable[[Any], Any]


async def in_batch(line: Any, fill: Fill, **options: Any) -> Any:
    async with line.batch(**options) as batch:
        return fill(batch)


def batched(line: Any, fill: Fill, timeout: float | None = None, **options: Any) -> Any:
    """Fill a batch, send it, and return what `fill` returned."""
    target = getattr(line.line, "line", line.line)
    if line.is_async:
        return line.on_loop.run(in_batch(target, fill, timeout=timeout, **options), 60)
    with target.batch(timeout=timeout, **options) as batch:
        return fill(batch)


def make(count: int, method: str = "act", **options: Any) -> Fill:
    return lambda batch: [batch.call(method, number, **options) for number in range(count)]


def outcome(call: Any) -> Any:
    return call.result() if call.exception() is None else type(call.exception())


# --- what a batch is -----------------------------------------------------------------------------------


def test_each_call_has_its_own_result_or_exception(stage: Stage) -> None:
    stage.serve(shop())
    line = stage.connect()

    def fill(batch: Any) -> list[Any]:
        return [
            batch.call("charge", Order(1, 2.0), returns=Receipt),
            batch.call("charge", "no order"),
            batch.call("chrage", Order(2, 2.0)),
            batch.call("fail", "declared", raises=[Empty]),
            batch.call("fail", how="otherwise"),
            batch.call("charge", Order(3, 2.0), returns=int),
            batch.call("charge", object()),
            batch.call("count", 3),
            batch.invoke("charge", (), {"order": Order(4, 4.0)}, returns=Receipt),
        ]

    calls = batched(line, fill)
    assert [outcome(call) for call in calls] == [
        Receipt(1, 4.0),
        InvalidArgumentError,
        MethodNotFoundError,
        Empty,
        InternalError,
        InvalidResultError,
        InvalidArgumentError,
        LocalProtocolError,
        Receipt(4, 8.0),
    ]
    assert all(call.is_done for call in calls)
    with pytest.raises(Empty, match="no more"):
        calls[3].result()
    with pytest.raises(LocalProtocolError, match="use `stream`"):
        calls[7].result()
    assert line.call("charge", Order(5, 1.0), returns=Receipt) == Receipt(5, 2.0)  # the connection is as good as before


def test_nothing_is_sent_and_nothing_known_before_the_block_ends(stage: Stage) -> None:
    journal, gate = Journal(), threading.Event()
    gate.set()
    server = stage.serve(held_service(journal, gate))
    line = stage.connect()

    def fill(batch: Any) -> Any:
        call = batch.call("task", "a")
        assert not call.is_done
        for ask in (call.result, call.exception, batch.results):
            with pytest.raises(LocalProtocolError, match="before the block of the batch has ended"):
                ask()
        assert "waits" in repr(call)
        assert "open" in repr(batch)
        server.wait_idle()
        assert journal.lines == []
        return batch, call

    batch, call = batched(line, fill)
    assert call.result() == "a"
    assert batch.results() == ["a"]
    assert len(batch) == 1
    with pytest.raises(LocalProtocolError, match="begin another"):
        batch.call("task", "late")


def test_an_exception_in_the_block_leaves_everything_unsent(stage: Stage) -> None:
    journal, gate = Journal(), threading.Event()
    gate.set()
    server = stage.serve(held_service(journal, gate))
    line = stage.connect()
    calls: list[Any] = []

    def fill(batch: Any) -> None:
        calls.append(batch.call("task", "a"))
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        batched(line, fill)
    with pytest.raises(CallCancelledError, match="not sent, for KeyError left"):
        calls[0].result()
    assert line.call("quick", "b") == "b"
    server.wait_idle()
    assert journal.lines == []


def test_an_empty_batch_asks_nobody(stage: Stage, play: Any) -> None:
    server = play(lambda conversation: conversation.greet())
    line = stage.connect()
    assert server.conversations[0].has_left.wait(10)
    assert batched(line, lambda batch: batch.results)() == []
    assert len(server.conversations) == 1


class CountingSocket:
    """A socket that counts its writes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.writes = 0

    def __getattr__(self, name: str) -> Any:
        if name in ("send", "sendmsg"):
            self.writes += 1
        return getattr(self.sock, name)


def test_the_calls_of_a_batch_leave_in_one_write(stage: Stage) -> None:
    stage.serve(shop())
    line = stage.connect()
    caller = line.line._connection if stage.is_async else next(iter(line.line._pool._open))
    caller._sock = counted = CountingSocket(caller._sock)
    calls = batched(line, lambda batch: [batch.call("charge", Order(n, 1.0), returns=Receipt) for n in range(200)])
    assert [call.result().order for call in calls] == list(range(200))
    assert counted.writes == 1
    for number in range(20):
        line.call("charge", Order(number, 1.0))
    assert counted.writes == 21  # so the counter counts


def test_results_come_in_order_whatever_the_order_of_the_answers(stage: Stage) -> None:
    stage.serve(shop(), concurrency=100)
    line = stage.connect()

    def fill(batch: Any) -> Any:
        for number in range(50):
            batch.call("pause", (50 - number) / 1000)
            batch.call("charge", Order(number, 0.5), returns=Receipt)
        return batch

    results = batched(line, fill).results()
    assert [receipt.order for receipt in results[1::2]] == list(range(50))


def test_results_raises_the_first_exception(stage: Stage) -> None:
    stage.serve(shop())
    line = stage.connect()

    def fill(batch: Any) -> Any:
        batch.call("charge", Order(1, 1.0))
        batch.call("nothing")
        batch.call("charge", "wrong")
        return batch

    with pytest.raises(MethodNotFoundError):
        batched(line, fill).results()


@pytest.mark.parametrize("options", [{"timeout": -1}, {"timeout": float("nan")}, {"max_in_flight": 0}])
def test_bounds_out_of_range_are_refused_at_once(stage: Stage, options: dict[str, Any]) -> None:
    stage.serve(shop())
    line = stage.connect()
    with pytest.raises(ValueError, match=r"timeout|max_in_flight"):
        line.line.batch(**options)
    with pytest.raises(ValueError, match=f"1 to {MAX_CALLS_PER_CONNECTION}"):
        line.line.batch(max_in_flight=MAX_CALLS_PER_CONNECTION + 1)
    with pytest.raises(ValueError, match="timeout"):
        line.line.batch().call("charge", timeout=-1)
    with pytest.raises(TypeError):
        line.line.batch().call("charge", returns=threading.Lock)


# --- many and large ------------------------------------------------------------------------------------


def test_thousands_of_calls_need_neither_more_places_nor_a_queue(stage: Stage) -> None:
    server = stage.serve(shop(), concurrency=4, threads=2)
    line = stage.connect()
    calls = batched(line, lambda batch: [batch.call("echo", b"%d" % n, returns=bytes) for n in range(5_000)], 60)
    assert [call.result() for call in calls] == [b"%d" % n for n in range(5_000)]
    assert server.stats().calls.overloaded == 0


def test_no_more_calls_are_open_than_a_server_takes(stage: Stage, play: Any) -> None:
    def hold(conversation: Conversation) -> None:
        conversation.greet()
        while True:
            conversation.read_call()

    server = play(hold)
    line = stage.connect()
    calls = batched(line, make(1_000), timeout=0.3)
    assert {outcome(call) for call in calls} == {DeadlineExceededError}
    assert len(server.conversations[0].calls) == MAX_CALLS_PER_CONNECTION
    calls = batched(line, make(10), timeout=0.3, max_in_flight=3)
    assert wait_until(lambda: sum(len(each.calls) for each in server.conversations) == MAX_CALLS_PER_CONNECTION + 3)


def test_a_server_that_writes_before_it_reads_on_is_read_while_we_write(stage: Stage, play: Any) -> None:
    """Both directions are larger than the socket's buffers: whoever only writes would wait for ever."""

    def echo(conversation: Conversation) -> None:
        conversation.greet()
        while True:
            frame = conversation.read_call()
            conversation.send(encode_reply(frame.call_id, b"y" * 60_000))

    play(echo)
    line = stage.connect()
    with takes_less_than(30):
        calls = batched(line, lambda batch: [batch.call("act", b"x" * 60_000) for _ in range(200)])
    assert {outcome(call) for call in calls} == {b"y" * 60_000}


def test_what_waits_encoded_stays_bounded(stage: Stage, play: Any) -> None:
    """A server that reads nothing, and 1,000 arguments of one mebibyte: one object here, a gibibyte if encoded."""

    def freeze(conversation: Conversation) -> None:
        conversation.greet()
        released.wait(20)

    released = threading.Event()
    play(freeze)
    line = stage.connect()
    data = b"x" * (MIB - 100)
    before = resident_bytes()
    most = 0

    def watch() -> None:
        nonlocal most
        while not released.wait(0.01):
            most = max(most, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        calls = batched(line, lambda batch: [batch.call("act", data) for _ in range(1_000)], timeout=0.5)
    finally:
        released.set()
        watcher.join()
    assert {outcome(call) for call in calls} == {DeadlineExceededError}
    assert most - before < 32 * MIB


def test_a_batch_beside_a_stream_is_not_turned_away(stage: Stage) -> None:
    """With a stream open the server answers a call too many at once, instead of letting it wait in the socket."""
    server = stage.serve(shop(), concurrency=4, threads=2)
    line = stage.connect()

    def fill(batch: Any) -> list[Any]:
        return [batch.call("echo", b"%d" % number) for number in range(1_000)]

    if stage.is_async:

        async def beside() -> list[Any]:
            async with line.line.stream("count", 1, returns=int) as numbers:
                assert await anext(numbers) == 0
                calls: list[Any] = await in_batch(line.line, fill)
                return calls

        calls = line.on_loop.run(beside())
    else:
        with line.line.stream("count", 1, returns=int) as numbers:
            assert next(numbers) == 0
            calls = batched(line, fill)
    assert [call.result() for call in calls] == [b"%d" % number for number in range(1_000)]
    assert server.stats().calls.overloaded == 0


def test_a_short_queue_turns_calls_away_and_a_smaller_window_does_not(stage: Stage) -> None:
    stage.serve(shop(), concurrency=1, queue=1)
    line = stage.connect()

    def pauses(batch: Any) -> list[Any]:
        return [batch.call("pause", 0.001) for _ in range(20)]

    assert {outcome(call) for call in batched(line, pauses)} >= {OverloadedError}
    assert OverloadedError not in {outcome(call) for call in batched(line, pauses, max_in_flight=2)}


def test_descriptors_ride_with_their_own_calls(stage: Stage, tmp_path: Path) -> None:
    service = hostline.Service("files")

    @service.method
    def read(file: hostline.Fd) -> str:
        with os.fdopen(file.detach()) as opened:
            return opened.read()

    @service.method
    def reopen(name: str) -> hostline.Fd:
        return hostline.Fd(os.open(tmp_path / name, os.O_RDONLY))

    stage.serve(service)
    line = stage.connect()
    for number in range(300):
        (tmp_path / str(number)).write_text(f"text {number}")

    def fill(batch: Any) -> list[Any]:
        calls = []
        for number in range(300):
            file = hostline.Fd(os.open(tmp_path / str(number), os.O_RDONLY))
            files.append(file)
            calls.append(batch.call("read", file, returns=str))
            if number % 10 == 0:
                calls.append(batch.call("reopen", str(number), returns=hostline.Fd))
        return calls

    files: list[hostline.Fd] = []
    texts, opened = [], []
    for call in batched(line, fill):
        result = call.result()
        if isinstance(result, str):
            texts.append(result)
        else:
            with os.fdopen(result.detach()) as file:
                opened.append(file.read())
    for file in files:
        file.close()
    assert texts == [f"text {number}" for number in range(300)]
    assert opened == [f"text {number}" for number in range(0, 300, 10)]


def test_descriptors_that_were_never_sent_are_given_back(stage: Stage, play: Any) -> None:
    """The fixtures count descriptors; here a server that reads nothing keeps most of them from leaving."""

    def freeze(conversation: Conversation) -> None:
        assert conversation.read().kind == Kind.HELLO
        entries = [MethodEntry("act", takes_descriptors=True)]
        conversation.send(encode_hello(ServerHello(service="script", methods=entries)))
        released.wait(20)

    released = threading.Event()
    play(freeze)
    line = stage.connect()
    with hostline.Fd(os.open("/dev/null", os.O_RDONLY)) as null:
        calls = batched(line, lambda batch: [batch.call("act", null, b"x" * 50_000) for _ in range(50)], timeout=0.3)
    released.set()
    assert {outcome(call) for call in calls} == {DeadlineExceededError}


# --- deadlines -----------------------------------------------------------------------------------------


def test_a_late_call_is_cancelled_alone(stage: Stage) -> None:
    journal, gate = Journal(), threading.Event()
    server = stage.serve(held_service(journal, gate))
    line = stage.connect()

    def fill(batch: Any) -> list[Any]:
        return [batch.call("task", "first", timeout=0.1), batch.call("quick", "b"), batch.call("task", "second")]

    with takes_less_than(10):
        calls = batched(line, fill, timeout=0.4)
    assert [outcome(call) for call in calls] == [DeadlineExceededError, "b", DeadlineExceededError]
    journal.wait_for("cancelled first")
    journal.wait_for("cancelled second")
    assert journal.lines.index("cancelled first") < journal.lines.index("cancelled second")
    server.wait_idle()
    assert line.call("quick", "c") == "c"
    if not stage.is_async:
        assert line.line.pool_size == 1  # the connection was kept


def test_the_deadline_travels_with_each_call(stage: Stage) -> None:
    stage.serve(shop())
    line = stage.connect(timeout=50)

    def fill(batch: Any) -> list[Any]:
        return [batch.call("pause", 0.0), batch.call("pause", 0.0, timeout=3), batch.call("pause", 0.0, timeout=100)]

    own, short, long = (call.result() for call in batched(line, fill))
    assert (40 < own <= 50, 0 < short <= 3, 80 < long <= 100) == (True, True, True)
    own, short, long = (call.result() for call in batched(line, fill, timeout=20))
    assert (3 < own <= 20, 0 < short <= 3, 3 < long <= 20) == (True, True, True)
    assert batched(line, fill, timeout=float("inf"))[0].result() == float("inf")


def test_the_time_begins_at_the_end_of_the_block(stage: Stage) -> None:
    stage.serve(shop())
    line = stage.connect()

    def fill(batch: Any) -> Any:
        call = batch.call("charge", Order(1, 1.0), timeout=2)
        time.sleep(0.01)
        return call, batch.call("pause", 0.0)

    call, pause = batched(line, fill, timeout=2)
    assert call.exception() is None
    assert pause.result() > 1


# --- what is made again --------------------------------------------------------------------------------


def numbers_of(server: ScriptedServer) -> list[list[int]]:
    """Return the argument of every call that the server read, by connection."""
    return [
        [msgspec.msgpack.decode(frame.payload[8:])[0] for frame in conversation.calls]
        for conversation in server.conversations
    ]


def answering(conversation: Conversation) -> None:
    conversation.greet()
    while True:
        frame = conversation.read_call()
        conversation.send(encode_reply(frame.call_id, "answered"))


def taking(count: int, answered: int = 0, farewell: int | None = None) -> Callable[[Conversation], None]:
    """Read some calls, answer some of them, say that those after the first `farewell` are not run, and be gone."""

    def act(conversation: Conversation) -> None:
        conversation.greet()
        frames = [conversation.read_call() for _ in range(count)]
        if farewell is not None:
            last = frames[farewell - 1].call_id if farewell else 0
            conversation.send(encode_farewell(GoawayCode.SHUTDOWN, "leaving", last))
        for frame in frames[:answered]:
            conversation.send(encode_reply(frame.call_id, "answered"))

    return act


def test_calls_that_may_have_been_run_are_not_made_again(stage: Stage, play: Any) -> None:
    server = play(taking(6, answered=2), answering)
    line = stage.connect()
    calls = batched(line, make(6))
    assert [outcome(call) for call in calls] == ["answered"] * 2 + [UnavailableError] * 4
    assert not any(call.exception().is_safe_to_repeat for call in calls[2:])
    assert line.call("act", 6) == "answered"
    assert numbers_of(server) == [[0, 1, 2, 3, 4, 5], [6]]


def test_calls_that_do_no_harm_twice_are_made_again(stage: Stage, play: Any) -> None:
    server = play(taking(5, answered=1), answering)
    line = stage.connect()

    def fill(batch: Any) -> list[Any]:
        return [
            batch.call("again", 0),
            batch.call("again", 1),
            batch.call("act", 2),
            batch.call("act", 3, idempotent=True),
            batch.call("again", 4),
        ]

    calls = batched(line, fill)
    assert [outcome(call) for call in calls] == ["answered", "answered", UnavailableError, "answered", "answered"]
    assert numbers_of(server) == [[0, 1, 2, 3, 4], [1, 3, 4]]


def test_even_those_are_made_a_few_times_only(stage: Stage, play: Any) -> None:
    server = play(taking(2))
    line = stage.connect()
    assert [outcome(call) for call in batched(line, make(2, "again"))] == [UnavailableError] * 2
    assert numbers_of(server) == [[0, 1]] * (1 + MAX_REPEATS)


def test_calls_that_the_farewell_rules_out_are_made_on_the_next_connection(stage: Stage, play: Any) -> None:
    server = play(taking(6, answered=2, farewell=2), taking(4, answered=1, farewell=1), answering)
    line = stage.connect()
    calls = batched(line, make(6))
    assert [outcome(call) for call in calls] == ["answered"] * 6
    assert numbers_of(server) == [[0, 1, 2, 3, 4, 5], [2, 3, 4, 5], [3, 4, 5]]


def test_calls_that_the_farewell_admits_are_waited_for(stage: Stage, play: Any) -> None:
    def late(conversation: Conversation) -> None:
        conversation.greet()
        frames = [conversation.read_call() for _ in range(4)]
        conversation.send(encode_farewell(GoawayCode.SHUTDOWN, "leaving", frames[1].call_id))
        for frame in frames[:2]:
            time.sleep(0.05)
            conversation.send(encode_reply(frame.call_id, "late"))

    server = play(late, answering)
    line = stage.connect()
    assert [outcome(call) for call in batched(line, make(4))] == ["late", "late", "answered", "answered"]
    assert numbers_of(server) == [[0, 1, 2, 3], [2, 3]]


def test_calls_that_were_never_sent_are_made_on_the_next_connection(stage: Stage, play: Any) -> None:
    server = play(taking(4), answering)
    line = stage.connect()
    calls = batched(line, make(10), max_in_flight=4)
    assert [outcome(call) for call in calls] == [UnavailableError] * 4 + ["answered"] * 6
    assert numbers_of(server) == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]


def test_a_connection_that_ended_while_idle_costs_no_call(stage: Stage, play: Any) -> None:
    server = play(lambda conversation: conversation.greet(), answering)
    line = stage.connect()
    assert server.conversations[0].has_left.wait(10)
    assert [outcome(call) for call in batched(line, make(5))] == ["answered"] * 5
    assert numbers_of(server)[1] == [0, 1, 2, 3, 4]


def test_answers_that_came_before_the_end_count(stage: Stage, play: Any) -> None:
    """More than one read of them, and the client is still writing when the server goes."""

    def act(conversation: Conversation) -> None:
        conversation.greet()
        frames = [conversation.read_call() for _ in range(3)]
        for frame in frames:
            conversation.send(encode_reply(frame.call_id, b"y" * 50_000))
        conversation.sock.shutdown(socket.SHUT_RD)

    play(act)
    line = stage.connect(reconnect_timeout=0)
    calls = batched(line, lambda batch: [batch.call("act", b"x" * 50_000) for _ in range(100)], timeout=2)
    assert [outcome(call) for call in calls[:3]] == [b"y" * 50_000] * 3


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.leaves_files
def test_no_call_is_run_twice_when_the_server_is_replaced_in_the_middle(
    stage: Stage, how: signal.Signals, tmp_path: Path
) -> None:
    """Real processes, which write down what they run: a stop loses no call of the batch, a kill those under way."""
    count = 10_000
    journal = tmp_path / "journal"
    options = ("--loop", stage.loop, "--journal", str(journal))
    calls: list[Any] = []
    others: list[ServerProcess] = []

    def replace() -> None:
        if wait_until(lambda: calls and calls[100].is_done, 15, 0.002):
            first.signal(how)
            first.wait(15)
            others.append(ServerProcess(stage.address, *options))

    def fill(batch: Any) -> None:
        calls.extend(batch.call("charge", number) for number in range(count))

    with ServerProcess(stage.address, *options) as first:
        line = stage.connect(reconnect_timeout=15)
        replacer = threading.Thread(target=replace)
        replacer.start()
        try:
            batched(line, fill, timeout=18)
        finally:
            replacer.join()
            stage.close()
            for other in others:
                other.kill()
    runs = [int(entry.split()[1]) for entry in journal.read_text().splitlines()]
    assert len(runs) == len(set(runs))
    answered = [number for number, call in enumerate(calls) if outcome(call) == number]
    assert set(answered) <= set(runs)
    failed = {outcome(call) for call in calls} - set(range(count))
    if how is signal.SIGTERM:
        assert len(answered) == count
    else:
        assert failed <= {UnavailableError}
        assert count - len(answered) <= MAX_CALLS_PER_CONNECTION  # the rest was never sent


# --- hostile servers and ends --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        encode_reply(77_777, "nobody asked"),
        encode_frame(Kind.ERROR, 1, b"\xc1"),
        encode_frame(Kind.ITEM, 1, b"\x01"),
        b"\xff" * 64,
    ],
    ids=["an answer to no call", "a malformed error", "an item", "noise"],
)
def test_a_server_that_breaks_the_protocol_fails_what_was_open(stage: Stage, play: Any, garbage: bytes) -> None:
    def break_it(conversation: Conversation) -> None:
        conversation.greet()
        for _ in range(4):
            conversation.read_call()
        conversation.send(garbage)
        conversation.read()

    server = play(break_it, answering)
    line = stage.connect()
    calls = batched(line, make(8), max_in_flight=4)
    assert [outcome(call) for call in calls] == [RemoteProtocolError] * 4 + ["answered"] * 4
    assert numbers_of(server) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_pings_in_the_middle_of_a_batch_are_answered_between_frames(stage: Stage, play: Any) -> None:
    def ping(conversation: Conversation) -> None:
        conversation.greet()
        for _ in range(100):
            conversation.send(encode_frame(Kind.PING) * 50)
            frame = conversation.read_call()
            conversation.send(encode_reply(frame.call_id, len(frame.payload)))

    play(ping)
    line = stage.connect()
    calls = batched(line, lambda batch: [batch.call("act", b"x" * 50_000) for _ in range(100)])
    assert all(call.result() > 50_000 for call in calls)


def test_without_a_server_every_call_says_so(stage: Stage) -> None:
    server = stage.serve(shop())
    line = stage.connect(reconnect_timeout=0)
    server.stop()
    calls = batched(line, make(3, "charge"))
    assert [outcome(call) for call in calls] == [AddressNotFoundError] * 3


def test_a_closed_line_says_so(stage: Stage) -> None:
    journal, gate = Journal(), threading.Event()
    stage.serve(held_service(journal, gate))
    line = stage.connect()

    def close() -> None:
        journal.wait_for("started")
        if stage.is_async:
            line.on_loop.run(line.line.close())
        else:
            line.line.close()

    closer = threading.Thread(target=close)
    closer.start()
    calls = batched(line, lambda batch: [batch.call("task", "a"), batch.call("task", "b")])
    closer.join()
    assert [outcome(call) for call in calls] == [ClosedError] * 2
    assert outcome(batched(line, lambda batch: batch.call("task", "c"))) is ClosedError


def test_cancelling_the_task_cancels_every_handler(stage: Stage) -> None:
    if not stage.is_async:
        pytest.skip("blocking code is interrupted instead")
    journal, gate = Journal(), threading.Event()
    server = stage.serve(held_service(journal, gate))
    line = stage.connect()
    calls: list[Any] = []

    def fill(batch: Any) -> None:
        calls.extend(batch.call("task", str(number)) for number in range(5))
        calls.append(batch.call("quick", "answered"))

    future = line.on_loop.start(in_batch(line.line, fill))
    journal.wait_for("started", 5)
    assert line.call("quick", "b") == "b"  # so the batch's own quick one is answered too
    future.cancel()
    journal.wait_for("cancelled", 5)
    server.wait_idle()
    assert wait_until(lambda: all(call.is_done for call in calls))
    assert [outcome(call) for call in calls] == [CallCancelledError] * 5 + ["answered"]
    assert line.call("quick", "c") == "c"
    assert line.on_loop.do(lambda: line.line._connection._starts) == {}


class Interrupted(BaseException):
    """What a signal handler raises."""


def test_a_signal_gives_the_connection_up_and_the_handlers_are_told(stage: Stage) -> None:
    if stage.is_async:
        pytest.skip("a task is cancelled instead")
    journal, gate = Journal(), threading.Event()
    stage.serve(held_service(journal, gate))
    line = stage.connect()
    calls: list[Any] = []

    def interrupt(number: int, frame: Any) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    main = threading.get_ident()

    def send() -> None:
        journal.wait_for("started", 3)
        signal.pthread_kill(main, signal.SIGUSR1)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(Interrupted), line.line.batch() as batch:
            calls += [batch.call("task", str(number)) for number in range(3)]
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)
    journal.wait_for("cancelled", 3)
    assert [outcome(call) for call in calls] == [CallCancelledError] * 3
    assert line.call("quick", "b") == "b"
    assert line.line.pool_size == 1


def test_a_fork_in_the_block_does_not_make_the_calls_twice(stage: Stage) -> None:
    journal, gate = Journal(), threading.Event()
    gate.set()
    stage.serve(held_service(journal, gate))
    if stage.is_async:
        pytest.skip("an asyncio line is of no use in a forked child anyway")
    line = stage.connect()
    with line.line.batch() as batch:
        call = batch.call("task", "once")
        child = os.fork()
        if not child:
            status = 1
            with contextlib.suppress(BaseException):
                batch.__exit__(None, None, None)
                status = 0 if isinstance(call.exception(), ClosedError) else 2
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert call.result() == "once"
    assert journal.count("started once") == 1


def test_many_threads_send_batches_through_one_pool(stage: Stage) -> None:
    if stage.is_async:
        pytest.skip("threads are for the blocking line")
    stage.serve(shop())
    line = stage.connect(max_size=2)
    wrong: list[Any] = []

    def work(base: int) -> None:
        for round_ in range(5):
            ids = [base * 1_000 + round_ * 50 + number for number in range(50)]
            calls = batched(line, lambda batch, ids=ids: [batch.call("charge", Order(n, 1.0)) for n in ids])
            if [call.result()["order"] for call in calls] != ids:
                wrong.append(base)

    threads = [threading.Thread(target=work, args=(base,)) for base in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert line.line.pool_size <= 2


# --- interfaces ----------------------------------------------------------------------------------------


def test_the_methods_of_an_interface_are_submitted_typed(stage: Stage) -> None:
    stage.serve(shop())
    line = stage.connect(interface=stage.interface((Shop, AsyncShop)))
    shop_ = line.line

    def fill(batch: Any) -> list[Any]:
        with pytest.raises(TypeError, match="missing a required argument"):
            batch.submit(shop_.charge)
        with pytest.raises(LocalProtocolError, match="use `stream`"):
            batch.submit(shop_.count, 3)
        with pytest.raises(TypeError, match="no method of an interface"):
            batch.submit(print, 3)
        return [
            batch.submit(shop_.charge, Order(1, 2.0)),
            batch.submit(shop_.charge, order=Order(2, 2.0)),
            batch.submit(shop_.fail, "declared"),
            batch.submit(shop_.with_timeout(0.0).charge, Order(3, 2.0)),
        ]

    calls = batched(line, fill)
    assert [outcome(call) for call in calls] == [Receipt(1, 4.0), Receipt(2, 4.0), Empty, DeadlineExceededError]


def test_an_interface_of_another_line_is_refused(stage: Stage) -> None:
    stage.serve(shop())
    ours = stage.connect(interface=stage.interface((Shop, AsyncShop)))
    theirs = stage.connect(interface=stage.interface((Shop, AsyncShop)))

    def fill(batch: Any) -> None:
        with pytest.raises(LocalProtocolError, match="another line"):
            batch.submit(theirs.line.charge, Order(1, 2.0))

    batched(ours, fill)
