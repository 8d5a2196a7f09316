"""gRPC, blocking and asyncio: generic handlers with msgspec as the serializer, over `unix:` addresses and loopback TCP.

Protocol buffers are left out: generated code would need a compiler's step, and msgspec is no slower. One way is
gRPC's own kind of it, a client's stream that is answered once; it has no batches.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from time import perf_counter_ns
from typing import Any

import msgspec

from hostline.bench.peers.shared import CONNECT_SIZE, CallDriver, SharedLoop, require, stop_signal, times_of
from hostline.bench.subject import Door, Subject

WORKLOADS = frozenset({"latency", "transfer", "pipelined", "one-way", "connect"})
SERVICE = "hostline.bench"
# What the quick start of gRPC has.
THREADS = 10
_MAX_SIZE = 1 << 26
# The limit of a message's size (4 MB by default) is raised; a channel that is opened anew really connects, instead of
# sharing the connection of another one in this process; no proxy is asked about loopback. gRPC itself sets TCP_NODELAY.
OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_SIZE),
    ("grpc.max_send_message_length", _MAX_SIZE),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]


class Item(msgspec.Struct):
    """What a call sends and gets back."""

    id: int
    name: str
    text: str


_encode = msgspec.msgpack.encode
_decode_item = msgspec.msgpack.Decoder(Item).decode
_decode_int = msgspec.msgpack.Decoder(int).decode
# What the fields, their names and lengths take beside the text.
_OVERHEAD = len(_encode(Item(7, "ping", "")))


def _target(door: Door) -> str:
    return f"{door.host}:{door.port}" if door.transport == "tcp" else f"unix:{door.path}"


def _handlers(echo: Any, take: Any, count: Any) -> Any:
    import grpc

    unary = {"request_deserializer": _decode_item, "response_serializer": _encode}
    methods = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo, **unary),
        "Take": grpc.unary_unary_rpc_method_handler(take, **unary),
        "Count": grpc.stream_unary_rpc_method_handler(count, **unary),
    }
    return (grpc.method_handlers_generic_handler(SERVICE, methods),)


def _methods(channel: Any) -> tuple[Any, Any, Any]:
    """Return the callables Echo, Take and Count of a channel of either kind."""

    def method(kind: Any, name: str, decode: Any) -> Any:
        return kind(f"/{SERVICE}/{name}", request_serializer=_encode, response_deserializer=decode)

    return (
        method(channel.unary_unary, "Echo", _decode_item),
        method(channel.unary_unary, "Take", _decode_int),
        method(channel.stream_unary, "Count", _decode_int),
    )


class _ItemDriver(CallDriver):
    overhead = _OVERHEAD

    def value(self, text: str) -> Item:
        return Item(7, "ping", text)

    def text_of(self, value: Item) -> str:
        return value.text


# --- blocking ------------------------------------------------------------------------------------------


def serve(door: Door) -> None:
    """Serve in a pool of threads, as gRPC's blocking server does."""
    import grpc

    handlers = _handlers(
        lambda item, _context: item,
        lambda item, _context: len(item.text),
        lambda items, _context: sum(1 for _ in items),
    )
    server = grpc.server(futures.ThreadPoolExecutor(THREADS), handlers=handlers, options=OPTIONS)
    port = server.add_insecure_port(_target(door))
    server.start()
    try:
        door.ready(port if door.transport == "tcp" else 0)
        server.wait_for_termination()
    finally:
        server.stop(None).wait()


class ChannelDriver(_ItemDriver):
    """A blocking channel."""

    def __init__(self, door: Door) -> None:
        import grpc

        self.door = door
        self.channel = grpc.insecure_channel(_target(door), options=OPTIONS)
        self.call_echo, self.call_take, self.count = _methods(self.channel)
        self.start_echo = _methods(self.channel)[0].future

    def pipelined(self, size: int, count: int, window: int) -> int:
        """Keep `window` calls under way as futures."""
        value, begin_call, ahead = self.sized(size)[0], self.start_echo, min(window, count)
        under_way: deque[Any] = deque()
        begin = perf_counter_ns()
        for _ in range(ahead):
            under_way.append(begin_call(value))
        for _ in range(count - ahead):
            under_way.popleft().result()
            under_way.append(begin_call(value))
        for call in under_way:
            call.result()
        return perf_counter_ns() - begin

    def one_way(self, size: int, count: int, is_batched: bool) -> int:
        """Stream messages to the server, which answers once, with their number."""
        if is_batched:
            raise AttributeError("one_way in batches")
        value = self.sized(size)[0]
        values: Iterator[Item] = (value for _ in range(count))
        begin = perf_counter_ns()
        arrived = self.count(values)
        duration = perf_counter_ns() - begin
        require(arrived, count, "messages arrived")
        return duration

    def connected(self) -> ChannelDriver:
        """Open one more channel, which connects with its first call."""
        return ChannelDriver(self.door)

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()


# --- asyncio -------------------------------------------------------------------------------------------


def serve_aio(door: Door) -> None:
    """Serve on asyncio's loop."""
    asyncio.run(_serve_aio(door))


async def _serve_aio(door: Door) -> None:
    import grpc

    async def echo(item: Item, _context: Any) -> Item:
        return item

    async def take(item: Item, _context: Any) -> int:
        return len(item.text)

    async def count(items: AsyncIterator[Item], _context: Any) -> int:
        number = 0
        async for _ in items:
            number += 1
        return number

    with stop_signal() as stop:
        server = grpc.aio.server(handlers=_handlers(echo, take, count), options=OPTIONS)
        port = server.add_insecure_port(_target(door))
        await server.start()
        door.ready(port if door.transport == "tcp" else 0)
        await stop.wait()
        await server.stop(None)


class AioChannelDriver(_ItemDriver):
    """An asyncio channel, driven from a blocking caller; the loop runs for a whole method."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.loop = SharedLoop()
        self.channel = self.loop.run(self._connect())
        self.start_echo, self.start_take, self.count = _methods(self.channel)

    async def _connect(self) -> Any:
        import grpc

        return grpc.aio.insecure_channel(_target(self.door), options=OPTIONS)

    def call_echo(self, value: Item) -> Any:
        """Call once, on the loop."""
        return self.loop.run(self._call(value))

    async def _call(self, value: Item) -> Any:
        return await self.start_echo(value)

    def latency(self, size: int, count: int) -> array[int]:
        """Call, one after the other."""
        value, call = self.sized(size)[0], self.start_echo
        times: array[int] = self.loop.run(times_of(lambda: call(value), count))
        return times

    def transfer(self, size: int, count: int) -> array[int]:
        """Call with large arguments, each acknowledged by its length."""
        (value, length), call = self.sized(size), self.start_take

        async def operation() -> None:
            require(await call(value), length, "characters arrived")

        times: array[int] = self.loop.run(times_of(operation, count))
        return times

    def pipelined(self, size: int, count: int, window: int) -> int:
        """Keep `window` calls under way, in as many tasks."""
        duration: int = self.loop.run(self._pipelined(self.sized(size)[0], count, min(window, count)))
        return duration

    async def _pipelined(self, value: Item, count: int, window: int) -> int:
        left, call = iter(range(count)), self.start_echo

        async def work() -> None:
            for _ in left:
                await call(value)

        begin = perf_counter_ns()
        await asyncio.gather(*(work() for _ in range(window)))
        return perf_counter_ns() - begin

    def one_way(self, size: int, count: int, is_batched: bool) -> int:
        """Stream messages to the server, which answers once, with their number."""
        if is_batched:
            raise AttributeError("one_way in batches")
        duration, arrived = self.loop.run(self._one_way(self.sized(size)[0], count))
        require(arrived, count, "messages arrived")
        return int(duration)

    async def _one_way(self, value: Item, count: int) -> tuple[int, int]:
        begin = perf_counter_ns()
        call = self.count()
        for _ in range(count):
            await call.write(value)
        await call.done_writing()
        arrived = await call
        return perf_counter_ns() - begin, arrived

    def reconnect(self, count: int) -> array[int]:
        """Open a channel, call once, close."""
        value = self.sized(CONNECT_SIZE)[0]

        async def operation() -> None:
            channel = await self._connect()
            await _methods(channel)[0](value)
            await channel.close()

        times: array[int] = self.loop.run(times_of(operation, count))
        return times

    def close(self) -> None:
        """Close the channel, and the loop with the last one."""
        self.loop.run(self.channel.close())
        self.loop.close()


def _subject(name: str, transport: str, style: str, serve: Any, drive: Any) -> Subject:
    return Subject(
        name=name,
        layer="typed",
        transport=transport,
        style=style,
        workloads=WORKLOADS,
        serve=serve,
        drive=drive,
        needs=("grpc",),
        is_quick=name == "grpc",
    )


SUBJECTS = (
    _subject("grpc", "unix", "blocking", serve, ChannelDriver),
    _subject("grpc over TCP", "tcp", "blocking", serve, ChannelDriver),
    _subject("grpc aio", "unix", "asyncio", serve_aio, AioChannelDriver),
    _subject("grpc aio over TCP", "tcp", "asyncio", serve_aio, AioChannelDriver),
)
