"""asyncio's streams and uvloop's: frames with their length before them, as asyncio services are written by hand."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from array import array
from collections.abc import Callable
from time import perf_counter_ns

from hostline.bench.peers.shared import (
    BATCH,
    CONNECT_SIZE,
    COUNT,
    ECHO,
    TAKE,
    TOTAL,
    Answers,
    SharedLoop,
    message_of,
    number_in,
    require,
    stop_signal,
    times_of,
)
from hostline.bench.subject import Door, Driver, Subject

WORKLOADS = frozenset({"latency", "transfer", "pipelined", "one-way", "batched", "connect", "fanin"})
_LENGTH = struct.Struct("!I")
# Bytes that a reader holds before it stops reading from the socket. The default of 64 KB would stop and go sixteen
# times for a megabyte.
LIMIT = 1 << 20
# Above this the length goes out alone: copying the content behind it costs more than a second call of the kernel.
JOIN_SIZE = 1 << 16
BACKLOG = 1024

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


async def _recv(reader: asyncio.StreamReader) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return await reader.readexactly(length)


def _write(writer: asyncio.StreamWriter, message: bytes) -> None:
    if len(message) < JOIN_SIZE:
        writer.write(_LENGTH.pack(len(message)) + message)
    else:
        writer.write(_LENGTH.pack(len(message)))
        writer.write(message)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    answers = Answers()
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            answer = answers.to(await _recv(reader))
            if answer is not None:
                _write(writer, answer)
                await writer.drain()
    writer.close()


async def _serve(door: Door) -> None:
    # TCP_NODELAY is what both loops set themselves.
    with stop_signal() as stop:
        if door.transport == "tcp":
            server = await asyncio.start_server(_answer, door.host, 0, limit=LIMIT, backlog=BACKLOG)
        else:
            server = await asyncio.start_unix_server(_answer, door.path, limit=LIMIT, backlog=BACKLOG)
        door.ready(server.sockets[0].getsockname()[1] if door.transport == "tcp" else 0)
        await stop.wait()
        server.close()


class StreamsDriver(Driver):
    """A stream reader and writer, driven from a blocking caller; the loop runs for a whole method."""

    can_grow = True

    def __init__(self, door: Door, loop_factory: LoopFactory | None) -> None:
        self.door = door
        self.loop = SharedLoop(loop_factory)
        self.reader, self.writer = first = self.loop.run(self._connect())
        self.connections = [first]  # `latency` uses them in turn, everything else the first

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.door.transport == "tcp":
            return await asyncio.open_connection(self.door.host, self.door.port, limit=LIMIT)
        return await asyncio.open_unix_connection(self.door.path, limit=LIMIT)

    async def _exchange(self, message: bytes) -> bytes:
        _write(self.writer, message)
        await self.writer.drain()
        return await _recv(self.reader)

    def echo(self, data: bytes) -> bytes:
        """Send data and return what came back."""
        answer: bytes = self.loop.run(self._exchange(ECHO + data))
        return answer[1:]

    def latency(self, size: int, count: int) -> array[int]:
        """Exchange messages, one after the other."""
        message, turns = message_of(ECHO, size), itertools.cycle(self.connections)

        async def operation() -> None:
            reader, writer = next(turns)
            _write(writer, message)
            await writer.drain()
            await _recv(reader)

        times: array[int] = self.loop.run(times_of(operation, count))
        return times

    def grow(self, clients: int) -> None:
        """Open or close connections until there are `clients`."""
        self.loop.run(self._grow(clients))

    async def _grow(self, clients: int) -> None:
        while len(self.connections) > clients:
            await _close(self.connections.pop()[1])
        while len(self.connections) < clients:
            self.connections.append(await self._connect())

    def transfer(self, size: int, count: int) -> array[int]:
        """Send large messages, each acknowledged by its length."""
        message = message_of(TAKE, size)

        async def operation() -> None:
            require(number_in(await self._exchange(message)), size, "bytes arrived")

        times: array[int] = self.loop.run(times_of(operation, count))
        return times

    def pipelined(self, size: int, count: int, window: int) -> int:
        """Keep `window` messages under way: one task, as answers come in the order of the questions."""
        duration: int = self.loop.run(self._pipelined(message_of(ECHO, size), count, min(window, count)))
        return duration

    async def _pipelined(self, message: bytes, count: int, ahead: int) -> int:
        reader, writer = self.reader, self.writer
        begin = perf_counter_ns()
        for _ in range(ahead):
            _write(writer, message)
        for _ in range(count - ahead):
            await _recv(reader)
            _write(writer, message)
        for _ in range(ahead):
            await _recv(reader)
        return perf_counter_ns() - begin

    def one_way(self, size: int, count: int, is_batched: bool) -> int:
        """Send messages that are only counted: each in a write of its own, or many frames in one."""
        duration, arrived = self.loop.run(self._one_way(message_of(COUNT, size), count, BATCH if is_batched else 1))
        require(arrived, count, "messages arrived")
        return int(duration)

    async def _one_way(self, message: bytes, count: int, batch: int) -> tuple[int, int]:
        writer = self.writer
        begin = perf_counter_ns()
        for first in range(0, count, batch):
            if batch == 1:
                _write(writer, message)
            else:
                frames = [_LENGTH.pack(len(message)) + message for _ in range(min(batch, count - first))]
                writer.write(b"".join(frames))
            await writer.drain()
        arrived = number_in(await self._exchange(TOTAL))
        return perf_counter_ns() - begin, arrived

    def reconnect(self, count: int) -> array[int]:
        """Connect, exchange one message, close."""
        message = message_of(ECHO, CONNECT_SIZE)

        async def operation() -> None:
            reader, writer = await self._connect()
            _write(writer, message)
            await _recv(reader)
            await _close(writer)

        times: array[int] = self.loop.run(times_of(operation, count))
        return times

    def close(self) -> None:
        """Close the connections, and the loop with the last driver."""
        self.loop.run(self._grow(0))
        self.loop.close()


def _asyncio_loop() -> LoopFactory:
    return asyncio.new_event_loop


def _uvloop_loop() -> LoopFactory:
    import uvloop

    factory: LoopFactory = uvloop.new_event_loop
    return factory


def _subject(library: str, transport: str, loop_factory: Callable[[], LoopFactory]) -> Subject:
    def serve(door: Door) -> None:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_serve(door))

    def drive(door: Door) -> Driver:
        return StreamsDriver(door, loop_factory())

    return Subject(
        name=f"{library} streams" + (" over TCP" if transport == "tcp" else ""),
        layer="framed",
        transport=transport,
        style=library,
        workloads=WORKLOADS,
        serve=serve,
        drive=drive,
        needs=("uvloop",) if library == "uvloop" else (),
        is_quick=library == "asyncio" and transport == "unix",
    )


SUBJECTS = (
    _subject("asyncio", "unix", _asyncio_loop),
    _subject("asyncio", "tcp", _asyncio_loop),
    _subject("uvloop", "unix", _uvloop_loop),
    _subject("uvloop", "tcp", _uvloop_loop),
)
