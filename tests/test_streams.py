"""One contract for streams: both faces, both loops, handlers on the loop and in worker threads."""

from __future__ import annotations

import asyncio
import functools
import gc
import select
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest

import hostline
from hostline.errors import (
    CallCancelledError,
    ClosedError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    InvalidResultError,
    LocalProtocolError,
    RemoteError,
    UnavailableError,
)
from hostline.limits import MAX_CALLS_PER_CONNECTION, STREAM_CREDIT
from hostline.wire.codec import ErrorCode, MethodEntry, decode_failure, encode_call, encode_credit, encode_item
from hostline.wire.frame import Kind, encode_frame
from tests.leaks import wait_until
from tests.serving import (
    AsyncLine,
    Conversation,
    RawClient,
    ScriptedServer,
    ServerThread,
    Stage,
    loop_names,
    resident_bytes,
    stages,
    takes_less_than,
)

MIB = 1 << 20
KINDS = ("task", "worker")


class Empty(Exception):
    """As the service declares it."""


class Point(msgspec.Struct):
    x: int
    y: int


class World:
    """A service that streams in every way, and what its handlers saw."""

    def __init__(self) -> None:
        self.service = hostline.Service("streaming")
        self.journal: list[str] = []
        self.sent = 0
        self.taken = 0
        self.gate = threading.Event()
        for kind in KINDS:
            for function in self._tasks() if kind == "task" else self._workers():
                name = f"{function.__name__}_{kind}"
                self.service.method(name=name, raises=Empty)(function)
        self.service.method(inline=True)(echo)

    def _tasks(self) -> list[Callable[..., Any]]:
        async def count(to: int, size: int = 0) -> AsyncIterator[bytes]:
            try:
                for number in range(to):
                    self.sent = number + 1
                    yield b"%d" % number + b"x" * size
            finally:
                self.journal.append("count is over")

        async def fail(after: int, how: str) -> AsyncIterator[int]:
            for number in range(after):
                yield number
            raise Empty("no more") if how == "declared" else ValueError("a secret")

        async def total(numbers: AsyncIterator[int], plus: int = 0) -> int:
            try:
                async for number in numbers:
                    self.taken += 1
                    plus += number
            finally:
                self.journal.append("total is over")
            return plus

        async def first(items: AsyncIterator[Any]) -> Any:
            async for item in items:
                return item
            return None

        async def stubborn(items: AsyncIterator[bytes]) -> int:
            while not self.gate.is_set():  # noqa: ASYNC110 - the gate is opened from another thread
                await asyncio.sleep(0.005)
            return sum([len(item) async for item in items])

        async def move(points: AsyncIterator[Point], by: int) -> AsyncIterator[Point]:
            async for point in points:
                yield Point(point.x + by, point.y + by)

        return [count, fail, total, first, stubborn, move]

    def _workers(self) -> list[Callable[..., Any]]:
        def count(to: int, size: int = 0) -> Iterator[bytes]:
            try:
                for number in range(to):
                    self.sent = number + 1
                    yield b"%d" % number + b"x" * size
            finally:
                self.journal.append("count is over")

        def fail(after: int, how: str) -> Iterator[int]:
            yield from range(after)
            raise Empty("no more") if how == "declared" else ValueError("a secret")

        def total(numbers: Iterator[int], plus: int = 0) -> int:
            try:
                for number in numbers:
                    self.taken += 1
                    plus += number
            finally:
                self.journal.append("total is over")
            return plus

        def first(items: Iterator[Any]) -> Any:
            return next(items, None)

        def stubborn(items: Iterator[bytes]) -> int:
            self.gate.wait(20)
            return sum(len(item) for item in items)

        def move(points: Iterator[Point], by: int) -> Iterator[Point]:
            return (Point(point.x + by, point.y + by) for point in points)  # an iterator that is no generator function

        return [count, fail, total, first, stubborn, move]


def echo(value: int) -> int:
    return value


@pytest.fixture(params=stages())
def stage(request: pytest.FixtureRequest, sock_dir: Path) -> Iterator[Stage]:
    made = Stage(*request.param, sock_dir)
    yield made
    made.close()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.gate.set()


def read(line: Any, method: str, *args: Any, upto: int | None = None, **options: Any) -> list[Any]:
    """Iterate a stream to its end, or up to a number of items and leave, and return the items."""
    items: list[Any] = []
    if isinstance(line, AsyncLine):

        async def iterate() -> None:
            async with line.line.stream(method, *args, **options) as stream:
                async for item in stream:
                    items.append(item)
                    if len(items) == upto:
                        return

        line.on_loop.run(iterate(), 20)
        return items
    with line.line.stream(method, *args, **options) as stream:
        for item in stream:
            items.append(item)
            if len(items) == upto:
                return items
    return items


# --- results -------------------------------------------------------------------------------------------


def test_items_arrive_in_order_and_the_end_ends_the_loop(stage: Stage, kind: str, world: World) -> None:
    server = stage.serve(world.service)
    line = stage.connect()
    assert read(line, f"count_{kind}", 1000, returns=bytes) == [b"%d" % number for number in range(1000)]
    assert read(line, f"count_{kind}", 0) == []
    assert line.call("echo", 7) == 7
    server.wait_idle()
    assert server.stats().methods[f"count_{kind}"] == 2


def test_items_are_of_the_type_asked_for(stage: Stage, kind: str, world: World) -> None:
    server = stage.serve(world.service)
    line = stage.connect()
    points = [Point(1, 2), Point(3, 4)]
    assert read(line, f"move_{kind}", iter(points), 10, returns=Point) == [Point(11, 12), Point(13, 14)]
    with pytest.raises(InvalidResultError, match="Expected `str`, got `object`"):
        read(line, f"move_{kind}", iter(points), 10, returns=str)
    server.wait_idle()


def test_items_larger_than_the_credit_pass_one_at_a_time(stage: Stage, kind: str, world: World) -> None:
    stage.serve(world.service)
    items = read(stage.connect(), f"count_{kind}", 5, 600_000, returns=bytes)
    assert [len(item) for item in items] == [600_001] * 5


@pytest.mark.parametrize(("how", "error"), [("declared", Empty), ("undeclared", InternalError)])
def test_a_failure_after_some_items_arrives_after_them(
    stage: Stage, kind: str, world: World, how: str, error: type[Exception]
) -> None:
    server = stage.serve(world.service)
    line = stage.connect()
    items: list[Any] = []
    with pytest.raises(error, match="no more" if how == "declared" else "reference") as caught:
        collect(line, items, f"fail_{kind}", 3, how, raises=(Empty,))
    assert items == [0, 1, 2]
    assert "secret" not in str(caught.value)
    with pytest.raises(RemoteError if how == "declared" else InternalError):
        read(line, f"fail_{kind}", 0, how)
    server.wait_idle()


def collect(line: Any, items: list[Any], method: str, *args: Any, **options: Any) -> None:
    """Iterate a stream into a list that is there also if the stream fails."""
    if isinstance(line, AsyncLine):

        async def iterate() -> None:
            async for item in line.line.stream(method, *args, **options):
                items.append(item)  # noqa: PERF401 - what came before a failure is wanted

        line.on_loop.run(iterate(), 20)
    else:
        for item in line.line.stream(method, *args, **options):
            items.append(item)  # noqa: PERF402 - what came before a failure is wanted


def test_a_reader_that_leaves_ends_the_handler(stage: Stage, kind: str, world: World) -> None:
    server = stage.serve(world.service)
    line = stage.connect()
    assert len(read(line, f"count_{kind}", 10**9, upto=3)) == 3
    assert wait_until(lambda: world.journal == ["count is over"])
    server.wait_idle()
    assert line.call("echo", 1) == 1


def test_a_deadline_ends_both_sides(stage: Stage, kind: str, world: World) -> None:
    server = stage.serve(world.service)
    line = stage.connect()
    with takes_less_than(5), pytest.raises(DeadlineExceededError):
        read(line, f"count_{kind}", 10**9, timeout=0.2)
    assert wait_until(lambda: world.journal == ["count is over"])
    server.wait_idle()
    with takes_less_than(5), pytest.raises(DeadlineExceededError):
        read(line, f"move_{kind}", iter_slowly(), 1, timeout=0.2)
    server.wait_idle()
    assert line.call("echo", 1) == 1


def iter_slowly() -> Iterator[Point]:
    while True:
        yield Point(0, 0)
        time.sleep(0.02)


def test_a_slow_reader_holds_back_its_own_stream_only(stage: Stage, kind: str, world: World) -> None:
    """The handler stands still after a window of items, and other calls on the same line do not."""
    server = stage.serve(world.service)
    line = stage.connect()
    held = hold_after_one_item(line, f"count_{kind}", 10**6, 1000)
    try:
        most = STREAM_CREDIT // 1016 + 3
        assert wait_until(lambda: world.sent >= STREAM_CREDIT // 1040 - 1)
        time.sleep(0.1)
        assert world.sent <= most
        for number in range(20):
            assert line.call("echo", number) == number
        assert world.sent <= most
    finally:
        held()
    assert wait_until(lambda: world.journal == ["count is over"])
    server.wait_idle()


def hold_after_one_item(line: Any, method: str, *args: Any) -> Callable[[], None]:
    """Take one item of a stream and no more; returns what ends it."""
    if isinstance(line, AsyncLine):

        async def begin() -> Any:
            stream = line.line.stream(method, *args)
            await anext(stream)
            return stream

        stream = line.on_loop.run(begin())
        return lambda: line.on_loop.run(stream.aclose())
    stream = line.line.stream(method, *args)
    next(stream)
    return stream.close  # type: ignore[no-any-return]


@pytest.mark.slow
def test_memory_stays_bounded_whoever_is_slow(stage: Stage, kind: str, world: World) -> None:
    """A hundred megabytes pass, and neither side keeps more than a window of them."""
    stage.serve(world.service)
    line = stage.connect()
    read(line, f"count_{kind}", 200, 10_000)
    before = resident_bytes()
    total = 0

    def count(item: bytes) -> None:
        nonlocal total
        total += len(item)

    if isinstance(line, AsyncLine):

        async def iterate() -> None:
            async for item in line.line.stream(f"count_{kind}", 10_000, 10_000, returns=bytes):
                count(item)

        line.on_loop.run(iterate(), 60)
    else:
        for item in line.line.stream(f"count_{kind}", 10_000, 10_000, returns=bytes):
            count(item)
    assert total > 100_000_000
    assert resident_bytes() - before < 16 * MIB


# --- arguments -----------------------------------------------------------------------------------------


def test_an_argument_is_iterated_as_it_comes(stage: Stage, kind: str, world: World) -> None:
    server = stage.serve(world.service)
    line = stage.connect()
    assert line.call(f"total_{kind}", iter(range(5000))) == sum(range(5000))
    assert line.call(f"total_{kind}", numbers=iter(range(10)), plus=5) == 50
    assert line.call(f"total_{kind}", iter([]), plus=1) == 1
    assert line.invoke(f"total_{kind}", (iter([1, 2]), 3), {}) == 6
    assert line.call("echo", 1) == 1
    server.wait_idle()


def test_an_asynchronous_iterator_is_sent_as_well(sock_dir: Path, world: World, run_async: Any) -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(100):
            await asyncio.sleep(0)
            yield number

    async def main() -> None:
        async with world.service.serve(sock_dir / "s"), hostline.aio.connect(sock_dir / "s") as line:
            assert await line.call("total_task", numbers()) == sum(range(100))
            stream = line.stream("move_worker", (Point(n, n) async for n in numbers()), 1, returns=Point)
            assert [point.x async for point in stream] == list(range(1, 101))

    run_async(main)


def test_a_slow_handler_holds_its_caller_back(stage: Stage, kind: str, world: World) -> None:
    server = stage.serve(world.service)
    line = stage.connect()
    given = 0

    def items() -> Iterator[bytes]:
        nonlocal given
        for _ in range(500):
            given += 1
            yield b"x" * 1000

    held = line.start(f"stubborn_{kind}", items())
    assert wait_until(lambda: given >= STREAM_CREDIT // 1030 - 1)
    time.sleep(0.1)
    assert given <= STREAM_CREDIT // 1016 + 3
    assert line.call("echo", 1) == 1
    world.gate.set()
    assert held.result(10) == 500_000
    server.wait_idle()


def test_a_handler_may_answer_before_it_has_seen_all(stage: Stage, kind: str, world: World) -> None:
    server = stage.serve(world.service)
    line = stage.connect()
    closed: list[bool] = []

    def endless() -> Iterator[str]:
        try:
            while True:
                yield "x" * 100
        finally:
            closed.append(True)

    with takes_less_than(5):
        assert line.call(f"first_{kind}", endless()) == "x" * 100
    assert line.call(f"first_{kind}", iter(())) is None
    assert wait_until(lambda: closed == [True])
    assert line.call("echo", 1) == 1
    server.wait_idle()


def test_a_handler_without_await_gets_its_argument_too(sock_dir: Path, loop: str) -> None:
    """It may pass the items on to a task of its own."""
    service = hostline.Service("idle")

    async def look(items: AsyncIterator[int]) -> bool:
        return hasattr(items, "__anext__")

    service.method(look)
    with ServerThread(service, sock_dir / "s", loop=loop) as server, hostline.connect(server.address) as line:
        assert line.call("look", iter([1, 2, 3]), timeout=5.0) is True
        server.wait_idle()


def test_an_item_of_the_wrong_type_is_refused_by_name_and_number(stage: Stage, kind: str, world: World) -> None:
    server = stage.serve(world.service)
    line = stage.connect()
    with pytest.raises(InvalidArgumentError, match=r"argument `numbers`: item 3 .*Expected `int`, got `str`"):
        line.call(f"total_{kind}", iter([1, 2, "x", 4]))
    assert world.journal == ["total is over"]
    server.wait_idle()


def test_an_iterator_that_fails_ends_the_call_with_its_own_error(stage: Stage, kind: str, world: World) -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("of the caller")

    server = stage.serve(world.service)
    line = stage.connect()
    with pytest.raises(ZeroDivisionError, match="of the caller"):
        line.call(f"total_{kind}", failing())
    server.wait_idle()
    assert world.journal in ([], ["total is over"])  # it may have been cancelled before it began
    with pytest.raises(InvalidArgumentError, match="item cannot be encoded"):
        line.call(f"total_{kind}", iter([1, object()]))
    server.wait_idle()
    assert line.call("echo", 1) == 1


@pytest.mark.parametrize("args", [([1, 2],), (), (iter([1]), iter([2]))])
def test_what_cannot_be_told_for_the_stream_is_refused_before_anything_is_sent(
    stage: Stage, world: World, args: tuple[Any, ...]
) -> None:
    server = stage.serve(world.service)
    line = stage.connect()
    with pytest.raises(InvalidArgumentError, match="one argument is a stream"):
        line.call("total_task", *args)
    assert server.stats().calls.finished == 0
    assert line.call("echo", 1) == 1


# --- both at once --------------------------------------------------------------------------------------


def test_both_ways_at_once(stage: Stage, kind: str, world: World) -> None:
    server = stage.serve(world.service)
    line = stage.connect()
    points = [Point(number, -number) for number in range(3000)]
    moved = read(line, f"move_{kind}", iter(points), 1, returns=Point)
    assert moved == [Point(point.x + 1, point.y + 1) for point in points]
    server.wait_idle()


def test_many_streams_share_a_line(stage: Stage, world: World) -> None:
    server = stage.serve(world.service)
    line = stage.connect()
    found: dict[int, int] = {}

    def one(number: int) -> None:
        items: list[Any] = []
        collect(line, items, "count_task" if number % 2 else "count_worker", 200 + number)
        found[number] = len(items)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: 200 + number for number in range(8)}
    server.wait_idle()


# --- declared and called rightly -----------------------------------------------------------------------


def test_a_stream_is_not_called_and_one_result_is_not_iterated(stage: Stage, world: World) -> None:
    stage.serve(world.service)
    line = stage.connect()
    with pytest.raises(LocalProtocolError, match=r"iterate `stream\('count_task', ...\)`"):
        line.call("count_task", 1)
    with pytest.raises(LocalProtocolError, match="echo returns one result: use `call`"):
        read(line, "echo", 1)
    with pytest.raises(hostline.MethodNotFoundError):
        read(line, "conut_task", 1)
    assert line.call("echo", 1) == 1


async def generator_without_a_type():  # type: ignore[no-untyped-def]
    yield 1


async def generator_of_one() -> int:  # type: ignore[misc]
    yield 1


async def stream_that_is_none() -> AsyncIterator[int]:
    return aiter([])  # type: ignore[call-overload, no-any-return]


async def two_streams(one: AsyncIterator[int], other: AsyncIterator[int]) -> None: ...


async def blocking_stream(numbers: Iterator[int]) -> None: ...


def asynchronous_stream(numbers: AsyncIterator[int]) -> None: ...


def with_default(numbers: Iterator[int] | None = None) -> None: ...


def of_sockets(items: Iterator[complex]) -> None: ...


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (generator_without_a_type, "annotate its result"),
        (generator_of_one, "annotate its result"),
        (stream_that_is_none, "write it as a generator"),
        (two_streams, "second stream"),
        (blocking_stream, r"must be AsyncIterator\[...\]"),
        (asynchronous_stream, r"must be Iterator\[...\]"),
        (with_default, "not supported"),
        (of_sockets, "not supported"),
    ],
)
def test_a_stream_that_cannot_work_is_refused_where_it_is_declared(function: Any, reason: str) -> None:
    with pytest.raises(TypeError, match=reason):
        hostline.Service("s").method(function)


def test_an_inline_method_cannot_stream() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="inline=True is for one quick answer"):
        hostline.Service("s").method(inline=True)(numbers)


class Blocking(hostline.Interface, Protocol):
    def count_task(self, to: int) -> Iterator[bytes]: ...
    def total_task(self, numbers: Iterator[int], plus: int = 0) -> int: ...


class Asynchronous(hostline.aio.Interface, Protocol):
    def count_task(self, to: int) -> AsyncIterator[bytes]: ...
    async def total_task(self, numbers: Iterator[int], plus: int = 0) -> int: ...


def test_interfaces_stream_too(sock_dir: Path, world: World, run_async: Any) -> None:
    async def main() -> None:
        async with hostline.aio.connect(sock_dir / "s", Asynchronous) as stub:
            assert [item async for item in stub.count_task(3)] == [b"0", b"1", b"2"]
            assert await stub.total_task(iter([1, 2]), plus=3) == 6

    with ServerThread(world.service, sock_dir / "s"):
        with hostline.connect(sock_dir / "s", Blocking) as stub:
            assert list(stub.count_task(3)) == [b"0", b"1", b"2"]
            assert stub.total_task(iter([1, 2]), plus=3) == 6
        run_async(main)


# --- ends ----------------------------------------------------------------------------------------------


def test_closing_the_line_ends_its_streams(stage: Stage, kind: str, world: World) -> None:
    server = stage.serve(world.service)
    line = stage.connect()

    def numbers() -> Iterator[int]:
        while True:
            yield 1
            time.sleep(0.01)

    held = line.start(f"total_{kind}", numbers())
    assert wait_until(lambda: world.taken > 0)
    if isinstance(line, AsyncLine):
        line.on_loop.run(line.line.close())
    else:
        line.line.close()
    with pytest.raises(ClosedError):
        held.result(5)
    assert wait_until(lambda: world.journal == ["total is over"])
    server.wait_idle()


def test_a_server_that_stops_ends_its_streams_after_the_grace(stage: Stage, kind: str, world: World) -> None:
    server = stage.serve(world.service)
    line = stage.connect(reconnect_timeout=0.1)
    held = hold_after_one_item(line, f"count_{kind}", 10**9, 1000)
    with takes_less_than(6):
        server.stop(grace=0.2)
    assert world.journal == ["count is over"]
    held()


def test_a_stream_that_began_is_never_repeated(stage: Stage) -> None:
    def one_item_and_go(conversation: Conversation) -> None:
        from hostline.wire.codec import ServerHello, encode_hello

        assert conversation.read().kind == Kind.HELLO
        entries = [MethodEntry("numbers", True, True)]
        conversation.send(encode_hello(ServerHello(service="script", methods=entries)))
        frame = conversation.read_call()
        conversation.send(bytes(encode_item(frame.call_id, 1)))

    with ScriptedServer(stage.address, one_item_and_go) as server:
        line = stage.connect(reconnect_timeout=0.1)
        items: list[Any] = []
        with pytest.raises(UnavailableError, match="may or may not have been run"):
            collect(line, items, "numbers")
        assert items == [1]
        assert sum(len(conversation.calls) for conversation in server.conversations) == 1
        line.close()


def test_a_ping_in_the_middle_of_an_item_is_answered_behind_it(stage: Stage) -> None:
    """The item is larger than the socket's buffer, so that the ping is read while half of it is sent."""
    size = 900_000

    def ping(conversation: Conversation) -> None:
        from hostline.wire.codec import ServerHello, encode_hello, encode_reply

        assert conversation.read().kind == Kind.HELLO
        entries = [MethodEntry("total", False, False, True)]
        conversation.send(encode_hello(ServerHello(service="script", methods=entries)))
        frame = conversation.read_call()
        assert select.select([conversation.sock], [], [], 10)[0]
        time.sleep(0.1)  # for the client to fill the socket; without it the test proves less, and passes
        conversation.send(encode_frame(Kind.PING))
        time.sleep(0.1)  # and for it to come to the ping
        kinds = []
        while (other := conversation.read()).kind != Kind.END:
            kinds.append((other.kind, len(other.payload) > size))
            if other.kind == Kind.ITEM:
                conversation.send(encode_credit(frame.call_id, len(other.payload) + 16))
        conversation.send(encode_reply(frame.call_id, [is_item for _, is_item in kinds if is_item]))

    with ScriptedServer(stage.address, ping):
        line = stage.connect()
        assert line.call("total", iter([b"x" * size] * 3)) == [True] * 3
        line.close()


def test_a_cancelled_task_cancels_the_handler(sock_dir: Path, world: World, kind: str, run_async: Any) -> None:
    async def main() -> None:
        async with world.service.serve(sock_dir / "s") as server, hostline.aio.connect(sock_dir / "s") as line:

            async def read_slowly() -> None:
                async with line.stream(f"count_{kind}", 10**9) as stream:
                    async for _ in stream:
                        await asyncio.sleep(0.001)

            task = asyncio.ensure_future(read_slowly())
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for _ in range(500):
                if world.journal:
                    break
                await asyncio.sleep(0.01)
            assert world.journal == ["count is over"]
            assert await line.call("echo", 1) == 1
            for _ in range(500):
                if server.admission.running_count == 0:
                    break
                await asyncio.sleep(0.01)
            assert server.admission.running_count == 0

    run_async(main)


def test_a_forgotten_stream_is_cancelled(stage: Stage, kind: str, world: World) -> None:
    server = stage.serve(world.service)
    line = stage.connect()
    assert len(take_some(line, f"count_{kind}")) == 3
    assert wait_until(lambda: world.journal == ["count is over"])
    server.wait_idle()


def take_some(line: Any, method: str) -> list[Any]:
    """Take three items and drop the stream without closing it."""
    if isinstance(line, AsyncLine):

        async def take() -> list[Any]:
            stream = line.line.stream(method, 10**9)
            return [await anext(stream) for _ in range(3)]

        return line.on_loop.run(take())  # type: ignore[no-any-return]
    stream = line.line.stream(method, 10**9)
    return [next(stream) for _ in range(3)]


# --- callers without manners ---------------------------------------------------------------------------


@pytest.fixture(params=loop_names())
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def begin(client: RawClient, call_id: int, method: str, *args: Any) -> bytes:
    return bytes(encode_call(call_id, client.methods[method], args, has_items=True))


def farewell(client: RawClient) -> str:
    frames = client.read_until_end()
    assert frames, "the server said nothing"
    assert frames[-1].kind == Kind.GOAWAY
    from hostline.wire.codec import decode_farewell

    return str(decode_farewell(frames[-1].payload).reason)


def test_items_without_credit_end_the_connection(sock_dir: Path, loop: str, world: World) -> None:
    with ServerThread(world.service, sock_dir / "s", loop=loop) as server, RawClient(str(sock_dir / "s")) as client:
        client.sock.sendall(begin(client, 1, "stubborn_task", None))
        for _ in range(STREAM_CREDIT // 1016 + 1):
            client.sock.sendall(bytes(encode_item(1, b"x" * 997)))
        client.sock.sendall(bytes(encode_item(1, b"one too many")))
        assert "without credit" in farewell(client)
        server.wait_idle()


@pytest.mark.parametrize("amount", [0, 2**32 - 1])
def test_credit_that_nobody_may_have_ends_the_connection(sock_dir: Path, loop: str, world: World, amount: int) -> None:
    with ServerThread(world.service, sock_dir / "s", loop=loop) as server, RawClient(str(sock_dir / "s")) as client:
        client.call(1, "count_task", 10**9, 100)
        client.sock.sendall(encode_credit(1, amount))
        assert f"credit of {amount} bytes" in farewell(client)
        server.wait_idle()


def test_credit_for_a_call_without_a_stream_ends_the_connection(sock_dir: Path, loop: str, world: World) -> None:
    with ServerThread(world.service, sock_dir / "s", loop=loop) as server, RawClient(str(sock_dir / "s")) as client:
        client.sock.sendall(begin(client, 1, "total_task", None) + encode_credit(1, 100))
        assert "whose result is no stream" in farewell(client)
        server.wait_idle()


@pytest.mark.parametrize(("method", "has_items"), [("total_task", False), ("echo", True)])
def test_the_flag_must_say_what_the_method_is(
    sock_dir: Path, loop: str, world: World, method: str, has_items: bool
) -> None:
    with ServerThread(world.service, sock_dir / "s", loop=loop), RawClient(str(sock_dir / "s")) as client:
        client.sock.sendall(bytes(encode_call(1, client.methods[method], (None,), has_items=has_items)))
        failure = decode_failure(client.read().payload)
        assert failure.code == ErrorCode.INVALID_ARGUMENT
        assert "stream" in failure.message


def test_a_caller_with_endless_credit_that_reads_nothing_costs_little(sock_dir: Path, loop: str, world: World) -> None:
    """Credit alone does not make the server keep what its caller leaves unread."""
    with ServerThread(world.service, sock_dir / "s", loop=loop) as server, RawClient(str(sock_dir / "s")) as client:
        before = resident_bytes()
        for number, name in enumerate(("count_task", "count_worker"), 1):
            client.call(number, name, 10**9, 10_000)
            client.sock.sendall(encode_credit(number, 16_000_000))
        time.sleep(0.7)
        assert resident_bytes() - before < 12 * MIB
        first = world.sent
        time.sleep(0.2)
        assert world.sent == first, "the handlers stand still"
        client.close()
        assert wait_until(lambda: server.connection_count == 0)
        server.wait_idle()
        assert set(world.journal) == {"count is over"}  # the second may not even have been read


def test_as_many_streams_as_calls_may_be_open_and_their_items_are_still_read(
    sock_dir: Path, loop: str, world: World
) -> None:
    """A peer at its bound of calls is not read any further, unless one of them waits for what would be read."""
    with ServerThread(world.service, sock_dir / "s", loop=loop) as server, RawClient(str(sock_dir / "s")) as client:
        count = MAX_CALLS_PER_CONNECTION
        client.sock.sendall(b"".join(begin(client, number, "total_task", None) for number in range(1, count + 1)))
        assert wait_until(lambda: server.running_count + server.waiting_count == count)
        client.sock.sendall(begin(client, count + 1, "total_task", None))
        refused = client.read()
        assert (refused.call_id, decode_failure(refused.payload).code) == (count + 1, ErrorCode.OVERLOADED)
        for number in range(1, count + 1):
            client.sock.sendall(bytes(encode_item(number, number)) + encode_frame(Kind.END, number))
        assert sorted(client.read().call_id for _ in range(count)) == list(range(1, count + 1))
        server.wait_idle()


def test_a_handler_that_waits_for_items_is_told_when_its_caller_goes(
    sock_dir: Path, loop: str, world: World, kind: str
) -> None:
    with ServerThread(world.service, sock_dir / "s", loop=loop) as server, RawClient(str(sock_dir / "s")) as client:
        client.sock.sendall(begin(client, 1, f"total_{kind}", None) + bytes(encode_item(1, 5)))
        assert wait_until(lambda: world.taken == 1)
        client.close()
        assert wait_until(lambda: world.journal == ["total is over"])
        server.wait_idle()


def test_a_worker_in_a_stream_hears_why_it_ends(sock_dir: Path, loop: str) -> None:
    service = hostline.Service("asked")
    heard: list[BaseException] = []
    entered: list[bool] = []

    @service.method
    def total(numbers: Iterator[int]) -> int:
        entered.append(True)
        try:
            return sum(numbers)
        except BaseException as error:
            heard.append(error)
            raise

    with ServerThread(service, sock_dir / "s", loop=loop) as server, RawClient(str(sock_dir / "s")) as client:
        client.sock.sendall(begin(client, 1, "total", None))
        assert wait_until(lambda: entered == [True])
        client.sock.sendall(encode_frame(Kind.CANCEL, 1))
        assert wait_until(lambda: [type(error) for error in heard] == [CallCancelledError])
        late = functools.partial(encode_call, 2, client.methods["total"], (None,), time_left=0.5, has_items=True)
        client.sock.sendall(bytes(late()))
        assert wait_until(lambda: [type(error) for error in heard[1:]] == [DeadlineExceededError])
        server.wait_idle()


# --- what a review found -------------------------------------------------------------------------------


def test_more_result_streams_than_calls_may_be_open_all_end(sock_dir: Path, world: World, run_async: Any) -> None:
    """Their credit is read although the connection has as many calls open as it may."""

    async def main() -> None:
        async with world.service.serve(sock_dir / "s"), hostline.aio.connect(sock_dir / "s") as line:

            async def one() -> int:
                return sum([len(item) async for item in line.stream("count_task", 20, 10_000, returns=bytes)])

            done = await asyncio.gather(*(one() for _ in range(MAX_CALLS_PER_CONNECTION)))
            assert set(done) == {20 * 10_000 + sum(len(str(number)) for number in range(20))}

    run_async(main)


def test_items_of_many_calls_in_any_order_are_all_read(sock_dir: Path, loop: str, world: World) -> None:
    with ServerThread(world.service, sock_dir / "s", loop=loop) as server, RawClient(str(sock_dir / "s")) as client:
        count = MAX_CALLS_PER_CONNECTION
        client.sock.sendall(b"".join(begin(client, number, "total_task", None) for number in range(1, count + 1)))
        assert wait_until(lambda: server.running_count + server.waiting_count == count)
        late_first = [*range(65, count + 1), *range(1, 65)]
        client.sock.sendall(
            b"".join(bytes(encode_item(number, 1)) + encode_frame(Kind.END, number) for number in late_first)
        )
        assert sorted(client.read().call_id for _ in range(count)) == list(range(1, count + 1))
        server.wait_idle()


def test_a_stream_collected_inside_the_pool_hangs_nobody(sock_dir: Path, world: World) -> None:
    """The collector may run while this very thread holds the pool's lock."""
    with ServerThread(world.service, sock_dir / "s") as server, hostline.connect(sock_dir / "s", max_size=2) as line:
        pool = line._pool
        acquire = pool._pool.acquire

        def collect_first(now: float) -> Any:
            gc.collect()
            return acquire(now)

        pool._pool.acquire = collect_first  # type: ignore[method-assign]
        for number in range(20):
            stream = line.stream("count_task", 10**9)
            next(stream)
            cycle: list[Any] = [stream]
            cycle.append(cycle)
            del stream, cycle
            assert line.call("echo", number, timeout=5) == number
        server.wait_idle()


def test_a_place_of_a_dropped_stream_is_found_by_whoever_waits(sock_dir: Path, world: World) -> None:
    with ServerThread(world.service, sock_dir / "s"), hostline.connect(sock_dir / "s", max_size=1) as line:
        streams = [line.stream("count_task", 10**9)]
        next(streams[0])
        timer = threading.Timer(0.2, streams.clear)
        timer.start()
        with takes_less_than(4):
            assert line.call("echo", 1, timeout=5) == 1
        timer.join()


def test_a_stream_dropped_in_another_thread_disturbs_nothing(sock_dir: Path, world: World, run_async: Any) -> None:
    async def main() -> None:
        async with world.service.serve(sock_dir / "s") as server, hostline.aio.connect(sock_dir / "s") as line:
            for number in range(20):
                stream = line.stream("count_task", 10**9)
                await anext(stream)
                held = [stream]
                del stream
                calls = [asyncio.ensure_future(line.call("echo", n)) for n in range(20)]
                await asyncio.to_thread(held.clear)
                assert await asyncio.gather(*calls) == list(range(20)), number
            for _ in range(500):
                if server.admission.running_count == 0:
                    break
                await asyncio.sleep(0.01)
            assert server.admission.running_count == 0

    run_async(main)


def test_a_timeout_of_the_callers_own_iterator_is_its_own(stage: Stage, kind: str, world: World) -> None:
    def late() -> Iterator[int]:
        yield 1
        raise TimeoutError("of the sensor")

    server = stage.serve(world.service)
    line = stage.connect()
    with pytest.raises(TimeoutError, match="of the sensor") as caught:
        line.call(f"total_{kind}", late())
    assert type(caught.value) is TimeoutError
    server.wait_idle()


def test_an_iterator_that_was_cancelled_does_not_leave_its_caller_waiting(
    sock_dir: Path, world: World, run_async: Any
) -> None:
    async def main() -> None:
        async with world.service.serve(sock_dir / "s"), hostline.aio.connect(sock_dir / "s") as line:

            async def numbers() -> AsyncIterator[int]:
                yield 1
                raise asyncio.CancelledError

            with takes_less_than(5), pytest.raises(CallCancelledError, match="iterator of the argument"):
                await line.call("total_task", numbers(), timeout=20)

    run_async(main)


def test_a_cancelled_handler_does_not_go_through_what_has_arrived(sock_dir: Path, loop: str, world: World) -> None:
    service = hostline.Service("slow")
    taken: list[int] = []

    @service.method
    def slowly(numbers: Iterator[int]) -> int:
        for number in numbers:
            taken.append(number)
            time.sleep(0.01)
        return len(taken)

    with ServerThread(service, sock_dir / "s", loop=loop) as server, RawClient(str(sock_dir / "s")) as client:
        items = b"".join(bytes(encode_item(1, number)) for number in range(1000))
        client.sock.sendall(begin(client, 1, "slowly", None) + items)
        assert wait_until(lambda: len(taken) > 2)
        client.sock.sendall(encode_frame(Kind.CANCEL, 1))
        with takes_less_than(4):
            server.wait_idle()
        assert len(taken) < 500


def test_a_generator_that_swallows_its_cancellation_gives_its_slot_back(sock_dir: Path, loop: str) -> None:
    service = hostline.Service("stubborn")

    @service.method
    async def on() -> AsyncIterator[bytes]:
        while True:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                pass
            yield b"x" * 1000

    with ServerThread(service, sock_dir / "s", loop=loop) as server, RawClient(str(sock_dir / "s")) as client:
        client.call(1, "on")
        assert client.read().kind == Kind.ITEM
        client.close()
        server.wait_idle()


def test_two_tasks_on_one_stream_are_told_so(sock_dir: Path, world: World, run_async: Any) -> None:
    async def main() -> None:
        async with world.service.serve(sock_dir / "s"), hostline.aio.connect(sock_dir / "s") as line:
            async with line.stream("move_task", never(), 1) as stream:
                first = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0.1)
                with pytest.raises(RuntimeError, match="one task at a time"):
                    await anext(stream)
                first.cancel()
                await asyncio.wait((first,))

    async def never() -> AsyncIterator[Point]:
        await asyncio.sleep(60)
        yield Point(0, 0)

    run_async(main)


def test_an_item_of_the_wrong_type_gives_the_connection_back(sock_dir: Path, world: World) -> None:
    with ServerThread(world.service, sock_dir / "s") as server, hostline.connect(sock_dir / "s", max_size=1) as line:
        kept: list[Exception] = []
        for _ in range(3):
            try:
                for _ in line.stream("count_task", 10**9, returns=int):
                    pass
            except InvalidResultError as error:
                kept.append(error)  # with its traceback, which holds the stream
        assert len(kept) == 3
        assert line.call("echo", 1, timeout=5) == 1
        server.wait_idle()
