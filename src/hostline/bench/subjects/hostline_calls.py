"""hostline's typed calls: a Service, the blocking client, and the asyncio client on both loops."""

from __future__ import annotations

import asyncio
import functools
import os
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from time import perf_counter_ns
from typing import Any

import msgspec

from hostline.bench.subject import Door, Driver, Subject, WrongAnswerError, file_to_pass, timed
from hostline.bench.subjects.hostline_aio import loop_factory

__all__ = ["SUBJECTS", "Ping", "ping"]

# Bytes of a Ping that are not its text, as it is encoded.
OVERHEAD = 26
# Calls that are collected before they are sent, if a batch is measured.
COLLECTED = 2048
# One user's connections here, with 10,000 idle ones and those that work.
MAX_CONNECTIONS = 20_000


class Ping(msgspec.Struct):
    """What the calls carry: three fields, of which the text makes up the size."""

    id: int
    name: str
    text: str


def ping(size: int) -> Ping:
    """Return a Ping of about `size` bytes encoded."""
    return Ping(7, "ping", "x" * max(size - OVERHEAD, 0))


def _address(door: Door) -> str:
    return f"tcp:{door.path}" if door.transport == "tcp" else door.path


def _confirm(got: int, expected: int, of_what: str) -> None:
    if got != expected:
        raise WrongAnswerError(f"the server confirmed {got} {of_what}, not {expected}")


# --- the server -----------------------------------------------------------------------------------------


def _service(handler: str) -> Any:
    """Return the service; `handler` says how `echo` runs: "inline" on the loop, as a "task", or in a "thread"."""
    from hostline.aio.serving.service import Service
    from hostline.unix.passing.descriptors import Fd
    from hostline.unix.passing.memory import Buffer

    service = Service("bench")

    def echo(value: Ping) -> Ping:
        return value

    async def echo_in_task(value: Ping) -> Ping:
        return value

    if handler == "task":
        service.method(name="echo")(echo_in_task)
    else:
        service.method(name="echo", inline=handler == "inline")(echo)

    @service.method(inline=True)
    def take(data: bytes) -> int:
        return len(data)

    def take_buffer(data: Any) -> int:
        return len(data)

    def close_fds(fds: Any) -> int:
        for fd in fds:
            fd.close()
        return len(fds)

    # Annotations are looked up in the module's globals, where these are not.
    take_buffer.__annotations__["data"] = Buffer
    close_fds.__annotations__["fds"] = list[Fd]
    service.method(inline=True)(take_buffer)
    service.method(inline=True)(close_fds)

    @service.method
    async def count(messages: AsyncIterator[Ping]) -> int:
        total = 0
        async for _ in messages:
            total += 1
        return total

    return service


def _serve(door: Door, style: str, handler: str) -> None:
    _service(handler).run(
        _address(door),
        max_connections=MAX_CONNECTIONS,
        max_connections_per_uid=MAX_CONNECTIONS,
        max_calls_per_uid=MAX_CONNECTIONS,
        loop_factory=loop_factory(style),
        on_start=lambda _server: door.ready(),
    )


# --- the blocking client --------------------------------------------------------------------------------


class _Calls(Driver):
    def __init__(self, door: Door, is_buffer: bool = False) -> None:
        from hostline import sync

        self._connect = functools.partial(sync.connect, _address(door))
        self._line: sync.Line = self._connect()
        self._is_buffer = is_buffer

    def echo(self, data: bytes) -> bytes:
        answer: Ping = self._line.call("echo", Ping(1, "check", data.decode()), returns=Ping)
        return answer.text.encode()

    def latency(self, size: int, count: int) -> array[int]:
        call, value = self._line.call, ping(size)
        return timed(lambda: call("echo", value, returns=Ping), count)

    def transfer(self, size: int, count: int) -> array[int]:
        from hostline.unix.passing.memory import Buffer

        call, data = self._line.call, b"x" * size
        if self._is_buffer:
            return timed(lambda: _confirm(call("take_buffer", Buffer(data), returns=int), size, "bytes"), count)
        return timed(lambda: _confirm(call("take", data, returns=int), size, "bytes"), count)

    def pipelined(self, size: int, count: int, window: int) -> int:
        value = ping(size)
        begin = perf_counter_ns()
        for start in range(0, count, COLLECTED):
            with self._line.batch(max_in_flight=window) as batch:
                for _ in range(min(COLLECTED, count - start)):
                    batch.call("echo", value, returns=Ping)
            batch.results()
        return perf_counter_ns() - begin

    def one_way(self, size: int, count: int, is_batched: bool) -> int:
        value = ping(size)
        begin = perf_counter_ns()
        got = self._line.call("count", (value for _ in range(count)), returns=int, timeout=60)
        _confirm(got, count, "messages")
        return perf_counter_ns() - begin

    def reconnect(self, count: int) -> array[int]:
        value, connect = ping(64), self._connect

        def once() -> None:
            with connect() as line:
                line.call("echo", value, returns=Ping)

        return timed(once, count)

    def pass_fds(self, fds: int, count: int) -> array[int]:
        from hostline.unix.passing.descriptors import Fd

        call, file = self._line.call, file_to_pass()
        try:
            fd = Fd(file)
            return timed(lambda: _confirm(call("close_fds", [fd] * fds, returns=int), fds, "descriptors"), count)
        finally:
            os.close(file)

    def hold(self, count: int) -> Callable[[], None]:
        held = [self._connect() for _ in range(count)]

        def release() -> None:
            for line in held:
                line.close()

        return release

    def close(self) -> None:
        self._line.close()


# --- the asyncio client ---------------------------------------------------------------------------------


class _AioCalls(Driver):
    can_grow = True

    def __init__(self, door: Door, style: str, is_batch: bool = False) -> None:
        from hostline import aio

        self._connect = aio.connect
        self._address = _address(door)
        self._is_batch = is_batch
        self._runner = asyncio.Runner(loop_factory=loop_factory(style))
        self._lines: list[aio.Line] = []
        self.grow(1)

    def _run(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            return await work(self._lines[0])

        return self._runner.run(run())

    def grow(self, clients: int) -> None:
        async def change() -> None:
            while len(self._lines) > clients:
                await self._lines.pop().close()
            while len(self._lines) < clients:
                self._lines.append(await self._connect(self._address))

        self._runner.run(change())

    def echo(self, data: bytes) -> bytes:
        value = Ping(1, "check", data.decode())
        answer: Ping = self._run(lambda line: line.call("echo", value, returns=Ping))
        return answer.text.encode()

    def _timed(self, operation: Callable[[Any], Awaitable[object]], count: int) -> array[int]:
        times, lines = array("Q", bytes(8 * count)), self._lines

        async def work(_line: Any) -> None:
            clock, number = perf_counter_ns, len(lines)
            for index in range(count):
                line = lines[index % number]
                begin = clock()
                await operation(line)
                times[index] = clock() - begin

        self._run(work)
        return times

    def latency(self, size: int, count: int) -> array[int]:
        value = ping(size)
        return self._timed(lambda line: line.call("echo", value, returns=Ping), count)

    def transfer(self, size: int, count: int) -> array[int]:
        data = b"x" * size

        async def send_one(line: Any) -> None:
            _confirm(await line.call("take", data, returns=int), size, "bytes")

        return self._timed(send_one, count)

    def pipelined(self, size: int, count: int, window: int) -> int:
        value = ping(size)

        async def in_batches(line: Any) -> None:
            for start in range(0, count, COLLECTED):
                async with line.batch(max_in_flight=window) as batch:
                    for _ in range(min(COLLECTED, count - start)):
                        batch.call("echo", value, returns=Ping)
                batch.results()

        async def in_tasks(line: Any) -> None:
            async def some(number: int) -> None:
                for _ in range(number):
                    await line.call("echo", value, returns=Ping)

            shares = [count // window + (index < count % window) for index in range(window)]
            await asyncio.gather(*(some(share) for share in shares))

        begin = perf_counter_ns()
        self._run(in_batches if self._is_batch else in_tasks)
        return perf_counter_ns() - begin

    def one_way(self, size: int, count: int, is_batched: bool) -> int:
        value = ping(size)
        begin = perf_counter_ns()
        got = self._run(lambda line: line.call("count", (value for _ in range(count)), returns=int, timeout=60))
        _confirm(got, count, "messages")
        return perf_counter_ns() - begin

    def reconnect(self, count: int) -> array[int]:
        value = ping(64)

        async def once(_line: Any) -> None:
            async with self._connect(self._address) as line:
                await line.call("echo", value, returns=Ping)

        return self._timed(once, count)

    def hold(self, count: int) -> Callable[[], None]:
        async def connect() -> list[Any]:
            return [await self._connect(self._address) for _ in range(count)]

        async def close(lines: list[Any]) -> None:
            for line in lines:
                await line.close()

        held = self._runner.run(connect())
        return lambda: self._runner.run(close(held))

    def close(self) -> None:
        self.grow(0)
        self._runner.close()


# --- the list -------------------------------------------------------------------------------------------


def _blocking(
    name: str, *workloads: str, transport: str = "unix", server: str = "asyncio", handler: str = "inline",
    is_buffer: bool = False, is_quick: bool = False,
) -> Subject:  # fmt: skip
    return Subject(
        name=name, layer="typed", transport=transport, style="blocking", workloads=frozenset(workloads),
        serve=functools.partial(_serve, style=server, handler=handler),
        drive=functools.partial(_Calls, is_buffer=is_buffer), is_hostline=True, is_quick=is_quick,
        needs=("uvloop",) if server == "uvloop" else (), install="pip install 'hostline[uvloop]'",
    )  # fmt: skip


def _asyncio(
    name: str, style: str, *workloads: str, transport: str = "unix", is_batch: bool = False, is_quick: bool = False
) -> Subject:
    return Subject(
        name=name, layer="typed", transport=transport, style=style, workloads=frozenset(workloads),
        serve=functools.partial(_serve, style=style, handler="inline"),
        drive=functools.partial(_AioCalls, style=style, is_batch=is_batch), is_hostline=True, is_quick=is_quick,
        needs=("uvloop",) if style == "uvloop" else (), install="pip install 'hostline[uvloop]'",
    )  # fmt: skip


SUBJECTS = (
    _blocking(
        "hostline", "latency", "transfer", "pipelined", "one-way", "connect", "fanin", "fds", "idle", is_quick=True
    ),
    _blocking("hostline, buffer", "transfer", is_buffer=True),
    _blocking("hostline, async handler", "latency", handler="task"),
    _blocking("hostline, handler in a thread", "latency", handler="thread"),
    _blocking("hostline, server on uvloop", "latency", "pipelined", "connect", server="uvloop"),
    _blocking("hostline over TCP", "latency", "transfer", "pipelined", "connect", "fanin", transport="tcp"),
    _asyncio(
        "hostline asyncio",
        "asyncio",
        "latency",
        "transfer",
        "pipelined",
        "one-way",
        "connect",
        "fanin",
        "idle",
        is_quick=True,
    ),
    _asyncio("hostline uvloop", "uvloop", "latency", "transfer", "pipelined", "one-way", "connect", "fanin"),
    _asyncio("hostline asyncio, batch", "asyncio", "pipelined", is_batch=True),
    _asyncio("hostline uvloop, batch", "uvloop", "pipelined", is_batch=True),
    _asyncio("hostline asyncio over TCP", "asyncio", "latency", "transfer", "pipelined", transport="tcp"),
)
