"""Topics: every subscriber gets every item or is told what it lost, and nobody waits for the slowest."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest

import hostline
from hostline import Published
from hostline.errors import (
    ClosedError,
    DeadlineExceededError,
    InternalError,
    SlowSubscriberError,
    UnavailableError,
)
from tests.leaks import wait_until
from tests.serving import RawClient, ServerThread, Stage, resident_bytes, stages, takes_less_than

MIB = 1 << 20
KINDS = ("task", "worker")


class Price(msgspec.Struct):
    symbol: str
    cents: int
    note: str = ""


class World:
    """A service with one topic, subscribed to in every way."""

    def __init__(self, **options: Any) -> None:
        self.prices = hostline.Topic(Price, **options)
        self.service = service = hostline.Service("market")
        service.topic("prices", self.prices)
        prices = self.prices

        @service.method
        async def watch_task(symbol: str) -> AsyncIterator[Price]:
            async for price in prices.subscribe(where=lambda price: price.symbol == symbol):
                yield price

        @service.method
        def watch_worker(symbol: str) -> Iterator[Price]:
            yield from prices.subscribe(where=lambda price: price.symbol == symbol)

        @service.method
        def returned(symbol: str) -> Iterator[Price]:
            return prices.subscribe(where=lambda price: price.symbol == symbol)

        @service.method
        async def wrong_task() -> AsyncIterator[Price]:
            async for price in prices.subscribe(where=lambda price: price.nothing):  # type: ignore[attr-defined]
                yield price

        @service.method
        def wrong_worker() -> Iterator[Price]:
            yield from prices.subscribe(where=lambda price: price.nothing)  # type: ignore[attr-defined]

        @service.method
        def publish(symbol: str, cents: int) -> int:
            return prices.publish(Price(symbol, cents))

        @service.method(inline=True)
        def publish_inline(symbol: str, cents: int) -> int:
            return prices.publish(Price(symbol, cents))

    def wait_for(self, count: int) -> None:
        assert wait_until(lambda: self.prices.subscriber_count == count), self.prices

    def is_exact(self, subscribers: int = 1) -> bool:
        """Whether every item is counted once for each of so many subscribers that were there all the time."""
        stats = self.prices.stats()
        return stats.published * subscribers == stats.delivered + stats.dropped + stats.unread + stats.waiting


@pytest.fixture(params=stages())
def stage(request: pytest.FixtureRequest, sock_dir: Path) -> Iterator[Stage]:
    face, loop = request.param
    made = Stage(face, loop, sock_dir)
    yield made
    made.close()


class Reader:
    """A stream of either face, read from the test's own thread."""

    def __init__(self, line: Any, method: str, *args: Any, **options: Any) -> None:
        self.line = line
        self.stream: Any = None
        if line.is_async:

            async def open_() -> None:
                self.stream = line.line.stream(method, *args, **options)

            line.on_loop.run(open_())
        else:
            self.stream = line.line.stream(method, *args, **options)

    def next(self) -> Any:
        if not self.line.is_async:
            return next(self.stream)

        async def step() -> Any:
            try:
                return await anext(self.stream)
            except StopAsyncIteration:
                return StopIteration

        item = self.line.on_loop.run(step())
        if item is StopIteration:
            raise StopIteration
        return item

    def begin(self) -> Callable[[], Any]:
        """Ask for the next item in the background; returns what waits for it."""
        box: list[Any] = []

        def run() -> None:
            try:
                box.append(self.next())
            except BaseException as error:
                box.append(error)

        thread = threading.Thread(target=run)
        thread.start()

        def wait() -> Any:
            thread.join(15)
            assert box, "nothing came"
            if isinstance(box[0], BaseException):
                raise box[0]
            return box[0]

        return wait

    def rest(self, items: list[Any] | None = None) -> list[Any]:
        items = [] if items is None else items
        while True:
            try:
                items.append(self.next())
            except StopIteration:
                return items

    def close(self) -> None:
        if self.line.is_async:
            self.line.on_loop.run(self.stream.aclose())
        else:
            self.stream.close()


# --- in a service --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["watch_task", "watch_worker", "returned"])
def test_every_subscriber_gets_what_it_asked_for_in_order(stage: Stage, method: str) -> None:
    world = World()
    stage.serve(world.service)
    line = stage.connect()
    readers = [Reader(line, method, symbol, returns=Price) for symbol in ("A", "B", "A")]
    firsts = [reader.begin() for reader in readers]
    world.wait_for(3)
    counts = [line.call("publish", "AB"[number % 2], number) for number in range(10)]
    assert counts == [2, 1] * 5
    got = [[first(), *(reader.next() for _ in range(4))] for first, reader in zip(firsts, readers, strict=True)]
    assert [[price.cents for price in prices] for prices in got] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9], [0, 2, 4, 6, 8]]
    for reader in readers:
        reader.close()
    world.wait_for(0)
    assert world.prices.stats() == (10, 15, 0, 0, 0, 0)


def test_a_topic_makes_its_own_method(stage: Stage) -> None:
    world = World()
    stage.serve(world.service)
    line = stage.connect()
    reader = Reader(line, "prices", returns=Published[Price])
    first = reader.begin()
    world.wait_for(1)
    assert line.call("publish_inline", "A", 1) == 1
    assert first() == Published(Price("A", 1), 0)
    reader.close()
    world.wait_for(0)
    assert line.call("publish_inline", "A", 2) == 0


class Market(hostline.Interface, Protocol):
    def prices(self) -> Iterator[Published[Price]]: ...


class AsyncMarket(hostline.aio.Interface, Protocol):
    def prices(self) -> AsyncIterator[Published[Price]]: ...


def test_the_method_is_typed_for_interfaces_descriptions_and_stubs(stage: Stage) -> None:
    world = World()
    stage.serve(world.service)
    line = stage.connect(interface=stage.interface((Market, AsyncMarket)))
    if stage.is_async:

        async def one() -> Any:
            waiting = asyncio.ensure_future(anext(aiter(line.line.prices())))
            while not world.prices.publish(Price("A", 5)):  # noqa: ASYNC110 - the subscriber is in another thread
                await asyncio.sleep(0.005)
            return await waiting

        item = line.on_loop.run(one())
    else:
        publisher = threading.Thread(target=lambda: wait_until(lambda: world.prices.publish(Price("A", 5))))
        publisher.start()
        with line.line.prices() as prices:
            item = next(prices)
        publisher.join()
    assert item.value == Price("A", 5)


def test_a_generated_client_knows_the_items() -> None:
    from hostline.rpc.builtin import describe_service
    from hostline.rpc.contract.stub_writer import write_stubs

    service = World().service
    text = write_stubs(describe_service(service))
    namespace: dict[str, Any] = {"__name__": "generated"}
    exec(compile(text, "generated", "exec"), namespace)
    assert "def prices(self) -> collections.abc.Iterator[Published_Price_]" in text
    assert "dropped: int = 0" in text
    assert "value: Price" in text


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_new"])
def test_what_a_slow_subscriber_lost_reaches_it_with_the_next_item(stage: Stage, policy: Any) -> None:
    world = World(max_queue=10, policy=policy)
    server = stage.serve(world.service)
    line = stage.connect()
    reader = Reader(line, "prices", returns=Published[Price])
    first = reader.begin()
    world.wait_for(1)
    world.prices.publish(Price("A", 0))
    assert first().value.cents == 0
    note = "x" * 1_000
    for number in range(1, 2_001):
        # On the loop, which thereby gets to send: the credit runs out, the queue fills, and then items are lost.
        server.do(lambda _, number=number: world.prices.publish(Price("A", number, note)))
    lost = world.prices.stats().dropped
    assert lost > 1_000
    assert world.is_exact()
    world.prices.close()
    items = reader.rest()
    assert sum(item.dropped for item in items) == lost
    assert len(items) + lost == 2_000
    cents = [item.value.cents for item in items]
    assert cents == sorted(set(cents))
    if policy == "drop_oldest":
        assert cents[-10:] == list(range(1_991, 2_001))
        before = [item.value.cents - item.dropped - 1 for item in items]
        assert before == [0, *cents[:-1]]  # each gap is just before the item that tells it
    else:
        assert cents == list(range(1, len(items) + 1))
    world.wait_for(0)


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_new"])
def test_a_subscriber_that_never_reads_costs_a_queue_and_no_more(sock_dir: Path, policy: Any) -> None:
    world = World(max_queue=1_000, policy=policy)
    with ServerThread(world.service, sock_dir / "s") as server, RawClient(server.address) as client:
        client.call(1, "prices")
        world.wait_for(1)
        for number in range(10_000):
            world.prices.publish(Price("A", number, "x" * 100))
        before = resident_bytes()
        for number in range(1_000_000):
            world.prices.publish(Price("A", number, "x" * 100))
        assert resident_bytes() - before < 8 * MIB
        stats = world.prices.stats()
        assert stats.published == 1_010_000
        assert stats.dropped > 1_000_000
        assert stats.waiting == 1_000
        assert world.is_exact()
        client.close()
        world.wait_for(0)
        server.wait_idle()
        assert world.is_exact()


def test_disconnecting_answers_the_call_though_it_is_not_read(stage: Stage) -> None:
    world = World(max_queue=10, policy="disconnect")
    server = stage.serve(world.service)
    line = stage.connect()
    reader = Reader(line, "prices", returns=Published[Price])
    first = reader.begin()
    world.wait_for(1)
    world.prices.publish(Price("A", 0))
    assert first().value.cents == 0
    count = 1
    while world.prices.subscriber_count:
        server.do(lambda _, count=count: world.prices.publish(Price("A", count, "x" * 10_000)))
        count += 1
        assert count < 1_000
    server.wait_idle()  # the handler has its place no more
    assert world.is_exact()
    with pytest.raises(SlowSubscriberError, match="10 items waited, 11 were dropped; subscribe again") as caught:
        reader.rest()
    assert caught.value.is_retryable
    second = Reader(line, "prices", returns=Published[Price])
    again = second.begin()
    world.wait_for(1)
    world.prices.publish(Price("B", 1))
    assert again().value.symbol == "B"
    second.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_of_ones_own_is_told_too(stage: Stage, kind: str) -> None:
    world = World(max_queue=3, policy="disconnect")
    server = stage.serve(world.service)
    line = stage.connect()
    reader = Reader(line, f"watch_{kind}", "A", returns=Price)
    first = reader.begin()
    world.wait_for(1)
    # In one turn of the loop; a worker may take some meanwhile, but not more than are published at once.
    server.do(lambda _: [world.prices.publish(Price("A", 0, "x" * 9_000)) for _ in range(500)])
    first_or_error: Any = None
    with pytest.raises(SlowSubscriberError, match="3 items waited"):
        first_or_error = first()
        reader.rest()
    assert first_or_error is None or first_or_error.symbol == "A"
    world.wait_for(0)
    server.wait_idle()


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_that_fails_ends_its_own_subscription(stage: Stage, kind: str) -> None:
    world = World()
    stage.serve(world.service)
    line = stage.connect()
    wrong = Reader(line, f"wrong_{kind}", returns=Price).begin()
    world.wait_for(1)
    right = Reader(line, "watch_task", "A", returns=Price)
    item = right.begin()
    world.wait_for(2)
    assert world.prices.publish(Price("A", 1)) == 1
    assert item() == Price("A", 1)
    with pytest.raises(InternalError):
        wrong()
    world.wait_for(1)
    right.close()


# --- how it ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["watch_task", "watch_worker", "returned"])
@pytest.mark.parametrize("how", ["leaving", "deadline", "closing the line", "dying"])
def test_however_the_call_ends_nothing_stays(stage: Stage, method: str, how: str) -> None:
    world = World()
    server = stage.serve(world.service)
    if how == "dying":
        with RawClient(server.address) as client:
            client.call(1, method, "A")
            world.wait_for(1)
    else:
        line = stage.connect()
        timeout = 0.3 if how == "deadline" else None
        reader = Reader(line, method, "A", returns=Price, timeout=timeout)
        first = reader.begin()
        world.wait_for(1)
        if how == "deadline":
            with pytest.raises(DeadlineExceededError):
                first()
        elif how == "leaving":
            world.prices.publish(Price("A", 1))
            first()
            reader.close()
        else:
            line.on_loop.run(line.line.close()) if stage.is_async else line.line.close()
            with pytest.raises(ClosedError):
                first()
    world.wait_for(0)
    server.wait_idle()
    assert server.do(lambda server: len(server.stopping._listeners)) == 0


@pytest.mark.parametrize("method", ["prices", "watch_task", "watch_worker"])
def test_a_stop_ends_subscriptions_after_what_waits_and_does_not_wait_for_them(stage: Stage, method: str) -> None:
    world = World()
    server = stage.serve(world.service)
    line = stage.connect()
    args = () if method == "prices" else ("A",)
    reader = Reader(line, method, *args)
    first = reader.begin()
    world.wait_for(1)
    for number in range(100):
        world.prices.publish(Price("A", number))
    first()
    with takes_less_than(10):
        stopper = threading.Thread(target=server.stop, kwargs={"grace": 60.0})
        stopper.start()
        if method == "prices":
            items: list[Any] = []
            with pytest.raises(UnavailableError, match="subscribe to Price again"):
                reader.rest(items)
        else:
            items = reader.rest()  # as its handler ends: with the end of the stream
        assert len(items) == 99
        stopper.join()
    world.wait_for(0)


@pytest.mark.parametrize("method", ["prices", "watch_worker"])
@pytest.mark.leaves_files
def test_a_service_leaves_at_sigterm_with_subscribers(stage: Stage, method: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import hostline, sys\n"
        "from collections.abc import Iterator\n"
        "topic = hostline.Topic(int)\n"
        "service = hostline.Service('s')\n"
        "service.topic('prices', topic)\n"
        "@service.method\n"
        "def watch_worker() -> Iterator[int]:\n"
        "    yield from topic.subscribe()\n"
        "@service.method(inline=True)\n"
        "def count() -> int:\n"
        "    return topic.subscriber_count\n"
        "service.run(sys.argv[1], grace=60)\n"
    )
    import subprocess
    import sys

    process = subprocess.Popen([sys.executable, str(program), stage.address])
    try:
        line = stage.connect(wait=10)
        first = Reader(line, method).begin()
        assert wait_until(lambda: line.call("count") == 1)
        with takes_less_than(15):
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            with pytest.raises(UnavailableError if method == "prices" else StopIteration):
                first()
    finally:
        process.kill()
        process.wait()


# --- without a service ---------------------------------------------------------------------------------


def test_many_threads_publish_and_all_see_one_order() -> None:
    topic = hostline.Topic(tuple, max_queue=100_000)
    subscriptions = [topic.subscribe() for _ in range(3)]

    def work(base: int) -> None:
        for number in range(2_000):
            assert topic.publish((base, number)) == 3

    threads = [threading.Thread(target=work, args=(base,)) for base in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    topic.close()
    seen = [list(subscription) for subscription in subscriptions]
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == 8_000
    for base in range(4):
        assert [number for each, number in seen[0] if each == base] == list(range(2_000))
    assert topic.stats() == (8_000, 24_000, 0, 0, 0, 0)


def test_a_thread_that_waits_is_woken_by_an_item_and_by_the_end() -> None:
    topic = hostline.Topic(int)
    got: list[int] = []
    reader = threading.Thread(target=lambda: got.extend(topic.subscribe()))
    reader.start()
    for number in range(3):
        assert wait_until(lambda number=number: len(got) == number)
        assert wait_until(lambda: topic.subscriber_count == 1)
        topic.publish(number)
    topic.close()
    reader.join(10)
    assert got == [0, 1, 2]
    with pytest.raises(ClosedError, match="topic int was closed"):
        topic.publish(4)
    assert list(topic.subscribe()) == []
    assert topic.subscriber_count == 0


def test_a_thread_is_told_what_was_lost_too() -> None:
    topic = hostline.Topic(int, max_queue=2)
    with topic.subscribe() as subscription:
        assert [topic.publish(number) for number in range(5)] == [1] * 5
        topic.close()
        assert list(subscription.published()) == [Published(3, 3), Published(4, 0)]
        assert subscription.dropped == 3
    assert topic.stats() == (5, 2, 3, 0, 0, 0)


def test_on_a_loop_items_come_from_the_loop_and_from_threads(run_async: Any) -> None:
    topic = hostline.Topic(int)

    async def scenario() -> None:
        with topic.subscribe() as subscription:
            topic.publish(1)
            assert await anext(subscription) == 1
            asyncio.get_running_loop().call_soon(topic.publish, 2)
            assert await anext(subscription) == 2
            publisher = asyncio.create_task(asyncio.to_thread(topic.publish, 3))
            assert await anext(subscription) == 3
            await publisher
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(subscription)
            topic.publish(4)
            assert await anext(subscription) == 4  # a wait that was given up costs nothing
            first = asyncio.create_task(anext(subscription))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="two at a time"):
                await anext(subscription)
            topic.publish(5)
            assert await first == 5
            for number in range(1_000):
                topic.publish(number)
            turns = 0

            async def others() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            task = asyncio.create_task(others())
            assert [await anext(subscription) for _ in range(1_000)] == list(range(1_000))
            assert turns > 5  # the others on the loop got their turn
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert topic.subscriber_count == 0

    run_async(scenario())


def test_what_nobody_holds_any_more_leaves_the_topic() -> None:
    topic = hostline.Topic(int)
    subscription = topic.subscribe()
    assert topic.publish(1) == 1
    assert (subscription.waiting, subscription.dropped, topic.subscriber_count) == (1, 0, 1)
    assert "1 wait" in repr(subscription)
    assert "1 subscribers" in repr(topic)
    del subscription
    gc.collect()
    assert topic.publish(2) == 0
    assert topic.stats() == (2, 0, 0, 1, 0, 0)


def test_closing_a_subscription_wakes_whoever_waits_for_it(run_async: Any) -> None:
    topic = hostline.Topic(int)

    async def scenario() -> None:
        subscription = topic.subscribe()
        waiting = asyncio.create_task(anext(subscription, "over"))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        subscription.close()
        assert await waiting == "over"
        other = topic.subscribe()
        thread = asyncio.create_task(asyncio.to_thread(next, other, "over"))
        while other._subscriber.wake is None:  # noqa: ASYNC110 - it is another thread that waits
            await asyncio.sleep(0.001)
        other.close()
        assert await thread == "over"
        assert topic.subscriber_count == 0

    run_async(scenario())


def test_subscribers_come_and_go_without_a_trace_though_nothing_is_published() -> None:
    topic = hostline.Topic(int)
    for _ in range(1_000):
        topic.subscribe()
        assert len(topic._subscribers) <= 2


def test_a_filter_may_publish_itself() -> None:
    topic = hostline.Topic(int)

    def echo(number: int) -> bool:
        if number < 3:
            topic.publish(number + 1)
        return True

    subscription = topic.subscribe(where=echo)
    topic.publish(1)
    topic.close()
    assert sorted(subscription) == [1, 2, 3]


def test_a_forked_process_begins_without_subscribers() -> None:
    topic = hostline.Topic(int)
    subscription = topic.subscribe()
    with topic.lock:  # as if another thread was publishing
        child = os.fork()
        if not child:
            status = 0 if topic.publish(1) == 0 and topic.stats() == (1, 0, 0, 0, 0, 0) else 1
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert topic.publish(2) == 1
    topic.close()
    assert list(subscription) == [2]


@pytest.mark.parametrize("options", [{"max_queue": 0}, {"policy": "drop"}])
def test_wrong_options_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=r"max_queue|policy"):
        hostline.Topic(int, **options)


def test_a_type_that_cannot_be_served_is_refused_where_it_is_declared() -> None:
    with pytest.raises(TypeError):
        hostline.Service("s").topic("locks", hostline.Topic(len))
