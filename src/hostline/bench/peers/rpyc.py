"""RPyC over a Unix socket: plain values, which go by copy; `async_` to have several calls under way.

RPyC has no one-way calls: `async_` sends without waiting, but every call is answered.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from time import perf_counter_ns
from typing import Any

from hostline.bench.peers.shared import CallDriver
from hostline.bench.subject import Door, Subject

Value = tuple[int, str, str]


def _set_up() -> None:
    """Switch off the compression that RPyC applies above 3 KB: made for slow networks, it costs milliseconds here."""
    from rpyc.core.channel import Channel

    Channel.COMPRESSION_THRESHOLD = 1 << 40


def serve(door: Door) -> None:
    """Serve each connection in a thread of its own, RPyC's usual server."""
    import rpyc
    from rpyc.utils.server import ThreadedServer

    _set_up()

    class Bench(rpyc.Service):  # type: ignore[misc]
        def exposed_echo(self, id: int, name: str, text: str) -> Value:
            return id, name, text

        def exposed_take(self, id: int, name: str, text: str) -> int:
            return len(text)

    quiet = logging.getLogger("hostline.bench.rpyc")
    quiet.setLevel(logging.CRITICAL)
    server = ThreadedServer(Bench(), socket_path=door.path, logger=quiet)
    # It listens from here on; `start` would say so by its log alone.
    door.ready()
    with contextlib.closing(server):
        server.start()


class ConnectionDriver(CallDriver):
    """A connection; its methods are looked up once, as each lookup is a call of its own."""

    def __init__(self, door: Door) -> None:
        import rpyc
        from rpyc.utils.factory import unix_connect

        _set_up()
        self.door = door
        self.connection = unix_connect(door.path)
        root = self.connection.root
        self.remote_echo, self.remote_take = root.echo, root.take
        self.later_echo = rpyc.async_(self.remote_echo)

    def value(self, text: str) -> Value:
        """Return what one call sends: a tuple, which RPyC copies."""
        return 7, "ping", text

    def text_of(self, value: Value) -> str:
        """Return the text in a value."""
        return value[2]

    def call_echo(self, value: Value) -> Any:
        """Call the method that returns its arguments."""
        return self.remote_echo(*value)

    def call_take(self, value: Value) -> int:
        """Call the method that returns the length of the text."""
        length: int = self.remote_take(*value)
        return length

    def pipelined(self, size: int, count: int, window: int) -> int:
        """Keep `window` calls under way."""
        value, call, ahead = self.sized(size)[0], self.later_echo, min(window, count)
        under_way: deque[Any] = deque()
        begin = perf_counter_ns()
        for _ in range(ahead):
            under_way.append(call(*value))
        for _ in range(count - ahead):
            under_way.popleft().wait()
            under_way.append(call(*value))
        for result in under_way:
            result.wait()
        return perf_counter_ns() - begin

    def connected(self) -> ConnectionDriver:
        """Connect once more."""
        return ConnectionDriver(self.door)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


SUBJECTS = (
    Subject(
        name="rpyc",
        layer="typed",
        transport="unix",
        style="blocking",
        workloads=frozenset({"latency", "transfer", "pipelined", "connect"}),
        serve=serve,
        drive=ConnectionDriver,
        needs=("rpyc",),
    ),
)
