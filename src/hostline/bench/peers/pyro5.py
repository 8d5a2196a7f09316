"""Pyro5 over a Unix socket, with serpent, its default, and with msgpack, its faster serializer.

A proxy has one call under way. One-way calls run in a thread each at the server, in a batch one after the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from hostline.bench.peers.shared import BATCH, CallDriver, require
from hostline.bench.subject import Door, Driver, Subject

WORKLOADS = frozenset({"latency", "transfer", "one-way", "batched", "connect"})
OBJECT = "bench"
# Seconds until one-way calls, which nobody answers, must have run.
PATIENCE = 30.0


def _make_object() -> Any:
    from Pyro5.api import expose, oneway

    @expose
    class Bench:
        def __init__(self) -> None:
            self._lock = threading.Lock()
            self._count = 0

        def echo(self, id: int, name: str, text: str) -> tuple[int, str, str]:
            return id, name, text

        def take(self, id: int, name: str, text: str) -> int:
            return len(text)

        @oneway  # type: ignore[untyped-decorator]
        def count(self, id: int, name: str, text: str) -> None:
            with self._lock:
                self._count += 1

        def total(self, is_last: bool) -> int:
            with self._lock:
                count = self._count
                if is_last:
                    self._count = 0
                return count

    return Bench()


def serve(door: Door) -> None:
    """Serve each connection in a thread of Pyro's pool: its default, and measured the faster of its two servers."""
    from Pyro5.api import Daemon

    with Daemon(unixsocket=door.path) as daemon:
        daemon.register(_make_object(), OBJECT)
        door.ready()
        daemon.requestLoop()


class ProxyDriver(CallDriver):
    """A proxy."""

    def __init__(self, door: Door, serializer: str) -> None:
        from Pyro5.api import BatchProxy, Proxy, config

        config.SERIALIZER = serializer
        self.door, self.serializer = door, serializer
        self.proxy = Proxy(f"PYRO:{OBJECT}@./u:{door.path}")
        self.proxy._pyroBind()
        # Looked up once: each `proxy.echo` makes a new object.
        self.remote_echo, self.remote_take, self.remote_count = self.proxy.echo, self.proxy.take, self.proxy.count
        self.batch = BatchProxy(self.proxy)

    def value(self, text: str) -> tuple[int, str, str]:
        """Return what one call sends."""
        return 7, "ping", text

    def text_of(self, value: Any) -> str:
        """Return the text in a value, which msgpack makes a list."""
        text: str = value[2]
        return text

    def call_echo(self, value: Any) -> Any:
        """Call the method that returns its arguments."""
        return self.remote_echo(*value)

    def call_take(self, value: Any) -> int:
        """Call the method that returns the length of the text."""
        length: int = self.remote_take(*value)
        return length

    def one_way(self, size: int, count: int, is_batched: bool) -> int:
        """Make one-way calls, each alone or many in a batch, and ask until all have run."""
        value, call, total = self.sized(size)[0], self.remote_count, self.proxy.total
        begin = perf_counter_ns()
        if is_batched:
            for first in range(0, count, BATCH):
                for _ in range(min(BATCH, count - first)):
                    self.batch.count(*value)
                self.batch(oneway=True)
        else:
            for _ in range(count):
                call(*value)
        limit = time.monotonic() + PATIENCE
        while total(False) < count and time.monotonic() < limit:
            time.sleep(0.0001)
        duration = perf_counter_ns() - begin
        require(total(True), count, "calls ran")
        return duration

    def connected(self) -> ProxyDriver:
        """Connect once more."""
        return ProxyDriver(self.door, self.serializer)

    def close(self) -> None:
        """Close the connection."""
        self.proxy._pyroRelease()


def _drive_with(serializer: str) -> Callable[[Door], Driver]:
    return lambda door: ProxyDriver(door, serializer)


SUBJECTS = tuple(
    Subject(
        name=f"Pyro5 {serializer}",
        layer="typed",
        transport="unix",
        style="blocking",
        workloads=WORKLOADS,
        serve=serve,
        drive=_drive_with(serializer),
        needs=needs,
    )
    for serializer, needs in (("serpent", ("Pyro5",)), ("msgpack", ("Pyro5", "msgpack")))
)
