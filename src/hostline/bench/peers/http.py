"""HTTP over a Unix socket: uvicorn serves a minimal ASGI application, httpx asks on a connection that it keeps.

JSON bodies by msgspec. HTTP/1.1 has one call under way on a connection: `pipelined` opens as many connections as calls.
There is nothing one-way.
"""

from __future__ import annotations

import asyncio
from array import array
from time import perf_counter_ns
from typing import Any

import msgspec

from hostline.bench.peers.shared import CONNECT_SIZE, CallDriver, SharedLoop, require, times_of
from hostline.bench.subject import Door, Subject, timed

BASE = "http://localhost"
BACKLOG = 1024
TIMEOUT = 60.0


class Item(msgspec.Struct):
    """What a call sends and gets back."""

    id: int
    name: str
    text: str


_encode = msgspec.json.encode
_decode_item = msgspec.json.Decoder(Item).decode
_decode_int = msgspec.json.Decoder(int).decode
_OVERHEAD = len(_encode(Item(7, "ping", "")))


async def _application(scope: Any, receive: Any, send: Any) -> None:
    chunks, is_more = [], True
    while is_more:
        event = await receive()
        chunks.append(event["body"])
        is_more = event.get("more_body", False)
    item = _decode_item(chunks[0] if len(chunks) == 1 else b"".join(chunks))
    answer = _encode(item if scope["path"] == "/echo" else len(item.text))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def serve(door: Door) -> None:
    """Serve with uvloop and httptools, as uvicorn recommends, without a log of the calls and without lifespan."""
    import uvicorn

    class Server(uvicorn.Server):  # type: ignore[misc]
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            door.ready()

    config = uvicorn.Config(
        _application,
        uds=door.path,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="critical",
        backlog=BACKLOG,
        server_header=False,
        date_header=False,
        timeout_keep_alive=600,
        timeout_graceful_shutdown=1,
    )
    Server(config).run()


class _ItemDriver(CallDriver):
    overhead = _OVERHEAD

    def value(self, text: str) -> Item:
        return Item(7, "ping", text)

    def text_of(self, value: Item) -> str:
        return value.text


class ClientDriver(_ItemDriver):
    """A blocking client with one connection. `trust_env=False`: no proxies, no netrc."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.client = self._client(1)

    def _client(self, kept: int) -> Any:
        import httpx

        limits = httpx.Limits(max_connections=1, max_keepalive_connections=kept, keepalive_expiry=None)
        transport = httpx.HTTPTransport(uds=self.door.path, limits=limits, verify=False, trust_env=False)
        return httpx.Client(transport=transport, base_url=BASE, trust_env=False, timeout=TIMEOUT)

    def call_echo(self, value: Item) -> Item:
        """Post to the path that returns its body."""
        return _decode_item(self.client.post("/echo", content=_encode(value)).content)

    def call_take(self, value: Item) -> int:
        """Post to the path that returns the length of the text."""
        return _decode_int(self.client.post("/take", content=_encode(value)).content)

    def reconnect(self, count: int) -> array[int]:
        """Post on a connection that is closed after each call: a new client would pay for its TLS set-up as well."""
        kept, self.client = self.client, self._client(0)
        try:
            value = self.sized(CONNECT_SIZE)[0]
            return timed(lambda: self.call_echo(value), count)
        finally:
            self.client.close()
            self.client = kept

    def close(self) -> None:
        """Close the client."""
        self.client.close()


class AsyncClientDriver(_ItemDriver):
    """An asyncio client, driven from a blocking caller; the loop runs for a whole method."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.loop = SharedLoop()
        self.client = self._client()
        self.clients = [self.client]

    def _client(self) -> Any:
        import httpx

        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=None)
        transport = httpx.AsyncHTTPTransport(uds=self.door.path, limits=limits, verify=False, trust_env=False)
        return httpx.AsyncClient(transport=transport, base_url=BASE, trust_env=False, timeout=TIMEOUT)

    async def _post(self, client: Any, value: Item) -> Item:
        return _decode_item((await client.post("/echo", content=_encode(value))).content)

    def call_echo(self, value: Item) -> Any:
        """Call once, on the loop."""
        return self.loop.run(self._post(self.client, value))

    def latency(self, size: int, count: int) -> array[int]:
        """Call, one after the other."""
        value = self.sized(size)[0]
        times: array[int] = self.loop.run(times_of(lambda: self._post(self.client, value), count))
        return times

    def transfer(self, size: int, count: int) -> array[int]:
        """Call with large arguments, each acknowledged by its length."""
        value, length = self.sized(size)

        async def operation() -> None:
            answer = await self.client.post("/take", content=_encode(value))
            require(_decode_int(answer.content), length, "characters arrived")

        times: array[int] = self.loop.run(times_of(operation, count))
        return times

    def pipelined(self, size: int, count: int, window: int) -> int:
        """Keep `window` calls under way, on as many connections, which stand before the time begins.

        Each has a client of its own: choosing among the connections of one client takes longer than the call.
        """
        duration: int = self.loop.run(self._pipelined(self.sized(size)[0], count, min(window, count)))
        return duration

    async def _pipelined(self, value: Item, count: int, window: int) -> int:
        while len(self.clients) < window:
            self.clients.append(self._client())
            await self._post(self.clients[-1], value)
        left = iter(range(count))

        async def work(client: Any) -> None:
            for _ in left:
                await self._post(client, value)

        begin = perf_counter_ns()
        await asyncio.gather(*(work(client) for client in self.clients[:window]))
        return perf_counter_ns() - begin

    def close(self) -> None:
        """Close the clients, and the loop with the last user."""
        self.loop.run(self._close())
        self.loop.close()

    async def _close(self) -> None:
        for client in self.clients:
            await client.aclose()


_NEEDS = ("uvicorn", "httpx", "httptools", "uvloop")

SUBJECTS = (
    Subject(
        name="HTTP",
        layer="typed",
        transport="unix",
        style="blocking",
        workloads=frozenset({"latency", "transfer", "connect"}),
        serve=serve,
        drive=ClientDriver,
        needs=_NEEDS,
        is_quick=True,
    ),
    Subject(
        name="HTTP asyncio",
        layer="typed",
        transport="unix",
        style="asyncio",
        workloads=frozenset({"latency", "transfer", "pipelined"}),
        serve=serve,
        drive=AsyncClientDriver,
        needs=_NEEDS,
    ),
)
