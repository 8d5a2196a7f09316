"""The asyncio line: many calls on one connection, cancelled at any moment, none mixed up."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.serving import Conversation, ScriptedServer, takes_less_than

import hostline
from hostline.errors import (
    AddressNotFoundError,
    ClosedError,
    ConnectTimeoutError,
    DeadlineExceededError,
    OverloadedError,
    SocketTimeoutError,
)
from hostline.limits import HIGH_WATER


class World:
    """A service whose handlers tell what happens to them, on the test's own loop."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.cancelled: list[int] = []
        self.finished: list[int] = []
        self.gate = asyncio.Event()
        self.service = hostline.Service("world")
        self.service.method(inline=True)(self.echo)
        self.service.method(self.pause)
        self.service.method(self.held)
        self.service.method(self.told)

    def echo(self, value: int) -> int:
        return value

    async def pause(self, value: int, turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return value

    async def held(self, value: int) -> int:
        self.started.append(value)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(value)
            raise
        self.finished.append(value)
        return value

    def told(self, value: int, context: hostline.Context) -> int:
        self.started.append(value)
        if context.wait_cancelled(15):
            self.cancelled.append(value)
        return value


async def soon(condition: Any, timeout: float = 5.0) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - conditions of every kind
            await asyncio.sleep(0.001)


# --- many at once --------------------------------------------------------------------------------------


def test_a_thousand_calls_share_one_connection(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        world = World()
        async with (
            world.service.serve(sock_dir / "s", concurrency=2000) as server,
            hostline.aio.connect(sock_dir / "s") as line,
        ):
            calls = [asyncio.create_task(line.call("held", number)) for number in range(200)]
            calls += [asyncio.create_task(line.call("pause", number, number % 10)) for number in range(200, 1000)]
            await soon(lambda: len(world.started) == 200)
            assert f"{len(line._connection.protocol.in_flight)} in flight" in repr(line)
            world.gate.set()
            assert await asyncio.gather(*calls) == list(range(1000))
            assert server.stats().connections_total == 1
            assert line._connection.protocol.in_flight == {}
            assert line._connection._starts == {}

    run_async(main)


def test_answers_arrive_in_any_order_and_find_their_callers(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        world = World()
        async with world.service.serve(sock_dir / "s"), hostline.aio.connect(sock_dir / "s") as line:
            slow = asyncio.create_task(line.call("held", 1))
            await soon(lambda: world.started)
            assert await asyncio.gather(*(line.call("echo", number) for number in range(50))) == list(range(50))
            assert not slow.done()
            world.gate.set()
            assert await slow == 1

    run_async(main)


def test_a_burst_is_answered_or_refused_and_the_line_goes_on(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        world = World()
        async with (
            world.service.serve(sock_dir / "s", concurrency=2, queue=10) as server,
            hostline.aio.connect(sock_dir / "s") as line,
        ):
            results = await asyncio.gather(
                *(line.call("pause", number, 3) for number in range(500)), return_exceptions=True
            )
            answered = [result for result in results if isinstance(result, int)]
            refused = [result for result in results if isinstance(result, OverloadedError)]
            assert len(answered) + len(refused) == 500
            assert len(answered) >= 12
            assert all(result == number for number, result in enumerate(results) if isinstance(result, int))
            assert server.stats().calls.overloaded == len(refused)
            assert await line.call("echo", 1) == 1

    run_async(main)


@pytest.mark.slow  # seconds in asyncio's debug mode, which slow tests go without
def test_large_calls_are_held_back_until_the_server_has_room(run_async: Any, sock_dir: Path) -> None:
    """Hundreds of megabytes to be sent must not become hundreds of megabytes of ours."""
    service = hostline.Service("large")

    @service.method
    async def length(data: bytes) -> int:
        await asyncio.sleep(0.001)
        return len(data)

    async def main() -> None:
        async with service.serve(sock_dir / "s"), hostline.aio.connect(sock_dir / "s") as line:
            most = 0
            data = b"x" * 500_000

            async def watch() -> None:
                nonlocal most
                while True:
                    most = max(most, line._connection._outgoing.size)
                    await asyncio.sleep(0)

            watcher = asyncio.create_task(watch())
            assert await asyncio.gather(*(line.call("length", data) for _ in range(200))) == [500_000] * 200
            watcher.cancel()
            assert HIGH_WATER / 2 < most <= HIGH_WATER + 600_000

    run_async(main)


# --- cancelling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["held", "told"])
def test_cancelling_the_caller_cancels_the_handler(run_async: Any, sock_dir: Path, method: str) -> None:
    async def main() -> None:
        world = World()
        async with world.service.serve(sock_dir / "s") as server, hostline.aio.connect(sock_dir / "s") as line:
            call = asyncio.create_task(line.call(method, 1))
            await soon(lambda: world.started)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await soon(lambda: world.cancelled == [1])
            await soon(lambda: server.admission.running_count == 0)
            assert await line.call("echo", 2) == 2

    run_async(main)


def test_the_callers_own_timeout_cancels_the_handler(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        world = World()
        async with world.service.serve(sock_dir / "s"), hostline.aio.connect(sock_dir / "s") as line:
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.05):
                    await line.call("held", 1, timeout=20)
            assert not isinstance(caught.value, DeadlineExceededError)
            await soon(lambda: world.cancelled == [1])

    run_async(main)


def test_a_failing_task_group_cancels_the_handlers_of_its_other_calls(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        world = World()
        async with world.service.serve(sock_dir / "s"), hostline.aio.connect(sock_dir / "s") as line:
            with pytest.raises(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    for number in range(5):
                        group.create_task(line.call("held", number))
                    await soon(lambda: len(world.started) == 5)
                    group.create_task(line.call("unknown"))
            await soon(lambda: len(world.cancelled) == 5)

    run_async(main)


def test_a_call_cancelled_in_the_queue_never_runs(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        world = World()
        async with (
            world.service.serve(sock_dir / "s", concurrency=1) as server,
            hostline.aio.connect(sock_dir / "s") as line,
        ):
            first = asyncio.create_task(line.call("held", 1))
            second = asyncio.create_task(line.call("held", 2))
            await soon(lambda: server.admission.waiting_count == 1)
            second.cancel()
            await soon(lambda: server.admission.waiting_count == 0)
            world.gate.set()
            assert await first == 1
            assert world.started == [1]
            with pytest.raises(asyncio.CancelledError):
                await second

    run_async(main)


@pytest.mark.slow  # seconds in asyncio's debug mode, which slow tests go without
def test_a_storm_of_cancellations_mixes_nothing_up_and_leaves_nothing(run_async: Any, sock_dir: Path) -> None:
    """Ten thousand calls cancelled at random moments or with deadlines too short, among others that must succeed."""

    async def main() -> None:
        world = World()
        rng = random.Random(7)
        loop = asyncio.get_running_loop()
        async with (
            world.service.serve(sock_dir / "s", concurrency=100, queue=100_000) as server,
            hostline.aio.connect(sock_dir / "s") as line,
        ):
            cancelled = answered = late = 0

            async def one(number: int) -> None:
                nonlocal cancelled, answered, late
                timeout = rng.random() * 0.01 if rng.random() < 0.2 else 30.0
                call = asyncio.ensure_future(line.call("pause", number, rng.randrange(6), timeout=timeout))
                if rng.random() < 0.7:
                    if rng.random() < 0.5:
                        loop.call_later(rng.random() * 0.01, call.cancel)
                    else:
                        for _ in range(rng.randrange(5)):
                            await asyncio.sleep(0)
                        call.cancel()
                try:
                    assert await call == number
                    answered += 1
                except asyncio.CancelledError:
                    cancelled += 1
                except DeadlineExceededError:
                    late += 1

            for _ in range(40):
                await asyncio.gather(*(one(rng.randrange(1 << 40)) for _ in range(250)))
            assert cancelled + answered + late == 10_000
            assert min(cancelled, answered) > 500
            assert line._connection.protocol.in_flight == {}
            assert line._connection._starts == {}
            await soon(lambda: server.admission.running_count == server.admission.waiting_count == 0)
            await soon(lambda: not line._connection.protocol._cancelled)  # every cancelled call was answered once
            assert await line.call("echo", 5) == 5
            assert server.stats().connections_total == 1

    run_async(main)


def test_calls_cancelled_while_the_connection_breaks_make_no_noise(run_async: Any, sock_dir: Path) -> None:
    """The loop must not be told of exceptions that nobody fetched."""

    async def main() -> None:
        world = World()
        async with world.service.serve(sock_dir / "s"), hostline.aio.connect(sock_dir / "s") as line:
            calls = [asyncio.create_task(line.call("held", number)) for number in range(50)]
            await soon(lambda: len(world.started) == 50)
            line._connection.close("the test broke it")
            for call in calls:
                call.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
            del calls, results, call
            gc.collect()

    run_async(main)


def test_calls_cancelled_at_their_very_deadline_make_no_noise(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        world = World()
        loop = asyncio.get_running_loop()
        async with world.service.serve(sock_dir / "s"), hostline.aio.connect(sock_dir / "s") as line:
            for _ in range(20):
                calls = []
                for number in range(20):
                    call = asyncio.create_task(line.call("held", number, timeout=0.01))
                    loop.call_later(0.01, call.cancel)
                    calls.append(call)
                results = await asyncio.gather(*calls, return_exceptions=True)
                assert {type(result) for result in results} <= {asyncio.CancelledError, DeadlineExceededError}
            assert line._connection.protocol.in_flight == {}

    run_async(main)


def test_a_call_whose_deadline_came_while_it_was_cancelled_makes_no_noise(
    run_async: Any, hostline_stalled_peer: Any
) -> None:
    """Before it was sent at all, in one turn of the loop, which was busy."""
    peer = hostline_stalled_peer(["take"])

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with hostline.aio.connect(peer.address) as line:
            before = [asyncio.create_task(line.call("take", bytes(900_000), timeout=30.0)) for _ in range(4)]
            await asyncio.sleep(0)
            call = asyncio.create_task(line.call("take", 1, timeout=0.05))
            await asyncio.sleep(0.01)
            loop.call_later(0.02, call.cancel)
            loop.call_soon(time.sleep, 0.1)
            with pytest.raises((asyncio.CancelledError, DeadlineExceededError)):
                await call
            del call
            for one in before:
                one.cancel()
            await asyncio.gather(*before, return_exceptions=True)
            gc.collect()

    run_async(main)


# --- connecting again ----------------------------------------------------------------------------------


def test_many_calls_after_a_restart_open_one_connection(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        world = World()
        line = None
        async with world.service.serve(sock_dir / "s"):
            line = await hostline.aio.connect(sock_dir / "s")
        async with world.service.serve(sock_dir / "s") as server:
            assert await asyncio.gather(*(line.call("echo", number) for number in range(100))) == list(range(100))
            assert server.stats().connections_total == 1
            await line.close()

    run_async(main)


def test_a_caller_that_gives_up_does_not_stop_the_reconnect_of_the_others(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        world = World()
        async with world.service.serve(sock_dir / "s"):
            line = await hostline.aio.connect(sock_dir / "s", reconnect_timeout=10)
        first = asyncio.create_task(line.call("echo", 1))
        second = asyncio.create_task(line.call("echo", 2, timeout=0.1))
        third = asyncio.create_task(line.call("echo", 3))
        await asyncio.sleep(0.05)
        first.cancel()
        with pytest.raises(DeadlineExceededError, match="no connection"):
            await second
        async with world.service.serve(sock_dir / "s") as server:
            assert await third == 3
            with pytest.raises(asyncio.CancelledError):
                await first
            assert server.stats().connections_total == 1
            await line.close()

    run_async(main)


def test_closing_ends_the_wait_for_a_server_that_went_away(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        world = World()
        async with world.service.serve(sock_dir / "s"):
            line = await hostline.aio.connect(sock_dir / "s", reconnect_timeout=10)
        calls = [asyncio.create_task(line.call("echo", number)) for number in range(5)]
        await asyncio.sleep(0.05)
        with takes_less_than(2):
            await line.close()
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(result) for result in results} == {ClosedError}

    run_async(main)


def test_while_an_old_server_finishes_new_calls_go_to_its_successor(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        old, new = World(), World()
        server = await old.service.serve(sock_dir / "s")
        async with hostline.aio.connect(sock_dir / "s") as line:
            held = [asyncio.create_task(line.call("held", number)) for number in range(3)]
            await soon(lambda: len(old.started) == 3)
            stopping = asyncio.create_task(server.shutdown(10))
            await soon(lambda: not (sock_dir / "s").exists())
            async with new.service.serve(sock_dir / "s"):
                new.gate.set()
                assert await line.call("held", 7) == 7
                assert new.finished == [7]
                assert not any(call.done() for call in held)
                old.gate.set()
                assert await asyncio.gather(*held) == [0, 1, 2]
                await stopping
                assert old.finished == [0, 1, 2]
                assert len(line._callers) == 1  # the old connection is closed and forgotten

    run_async(main)


def test_a_failed_connect_leaves_nothing_open(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        world = World()
        with pytest.raises(AddressNotFoundError):
            await hostline.aio.connect(sock_dir / "s")
        async with world.service.serve(sock_dir / "s") as server:
            for _ in range(5):
                with pytest.raises(hostline.PeerRefusedError):
                    await hostline.aio.connect(sock_dir / "s", server=hostline.Peers(uids=[54321]))
            await soon(lambda: server.connection_count == 0)

    run_async(main)


def test_connecting_can_be_cancelled_at_any_moment(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        world = World()

        async def connect() -> None:
            async with hostline.aio.connect(sock_dir / "s") as line:
                await line.call("echo", 1)

        async with world.service.serve(sock_dir / "s") as server:
            for turns in range(40):
                task = asyncio.create_task(connect())
                for _ in range(turns % 13):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await soon(lambda: server.connection_count == 0)

    run_async(main)


def test_a_full_backlog_is_waited_out_and_then_told(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as crowd:
            listener.bind(str(sock_dir / "s"))
            listener.listen(0)
            crowd.connect(str(sock_dir / "s"))
            with takes_less_than(3), pytest.raises(ConnectTimeoutError):
                await hostline.aio.connect(sock_dir / "s", connect_timeout=0.2)

    run_async(main)


def test_a_connect_that_fails_before_the_deadline_is_not_called_a_deadline(run_async: Any, sock_dir: Path) -> None:
    released = threading.Event()

    def greet_and_close(conversation: Conversation) -> None:
        conversation.greet()

    def say_nothing(_: Conversation) -> None:
        released.wait(10)

    async def main() -> None:
        with ScriptedServer(str(sock_dir / "s"), greet_and_close, say_nothing) as server:
            async with hostline.aio.connect(sock_dir / "s", connect_timeout=0.3, reconnect_timeout=0.1) as line:
                await soon(lambda: server.conversations[0].has_left.is_set())
                with takes_less_than(5), pytest.raises(SocketTimeoutError, match=r"no hello within 0\.3"):
                    await line.call("act", timeout=20)
                with takes_less_than(5), pytest.raises(DeadlineExceededError):
                    await line.call("act", timeout=0.1)
            released.set()

    run_async(main)


def test_a_line_is_awaited_or_entered(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        world = World()
        async with world.service.serve(sock_dir / "s") as server:
            async with hostline.aio.connect(sock_dir / "s") as line:
                assert await line.call("echo", 1) == 1
            assert line.is_closed
            line = await hostline.aio.connect(sock_dir / "s")
            async with line:
                assert await line.call("echo", 2) == 2
            with pytest.raises(ClosedError):
                await line.call("echo", 3)
            await soon(lambda: server.connection_count == 0)

    run_async(main)
