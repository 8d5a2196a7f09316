"""Both faces of the raw sockets behind one shape, so that one test speaks for blocking code, asyncio and uvloop.

A scenario is a coroutine function that takes a `Face`. On the blocking face its waiting calls run in threads, which
is also how blocking code meets itself in real programs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hostline.aio import sockets as aio_sockets
from hostline.aio.channels import opening as aio_channels
from hostline.sync import sockets as sync_sockets
from hostline.sync.channels import opening as sync_channels

# Methods that may wait; the others are plain in both faces.
WAITING = {"accept", "send", "send_bytes", "send_many", "recv", "recv_bytes", "recv_bytes_fds", "recv_fds", "recv_from"}
WAITING |= {"recv_into", "recv_many", "recv_many_fds"}

Scenario = Callable[..., Coroutine[Any, Any, Any]]


class InThreads:
    """Make a blocking endpoint awaitable: each waiting call runs in a thread of its own."""

    def __init__(self, endpoint: Any) -> None:
        self.endpoint = endpoint

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.endpoint, name)
        if name not in WAITING:
            return value

        async def call(*args: Any, **options: Any) -> Any:
            result = await asyncio.to_thread(value, *args, **options)
            return InThreads(result) if name == "accept" else result

        return call

    async def __aenter__(self) -> InThreads:
        self.endpoint.__enter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.endpoint.__exit__(*error)

    async def __aiter__(self) -> AsyncIterator[Any]:
        iterator = iter(self.endpoint)
        end = object()
        while (item := await asyncio.to_thread(next, iterator, end)) is not end:
            yield InThreads(item) if hasattr(item, "recv") else item

    def __repr__(self) -> str:
        return repr(self.endpoint)


class Face:
    """One face: `listen`, `connect_socket` and `socketpair` as the scenario sees them, and how to run it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_blocking = name == "sync"
        self.module: ModuleType = sync_sockets if self.is_blocking else aio_sockets
        self.channels: ModuleType = sync_channels if self.is_blocking else aio_channels

    def listen(self, *args: Any, **options: Any) -> Any:
        endpoint = self.module.listen(*args, **options)
        return InThreads(endpoint) if self.is_blocking else endpoint

    async def connect_socket(self, *args: Any, **options: Any) -> Any:
        if self.is_blocking:
            return InThreads(await asyncio.to_thread(self.module.connect_socket, *args, **options))
        return await self.module.connect_socket(*args, **options)

    def socketpair(self, *args: Any, **options: Any) -> tuple[Any, Any]:
        one, other = self.module.socketpair(*args, **options)
        return (InThreads(one), InThreads(other)) if self.is_blocking else (one, other)

    def listen_channel(self, *args: Any, **options: Any) -> Any:
        endpoint = self.channels.listen_channel(*args, **options)
        return InThreads(endpoint) if self.is_blocking else endpoint

    async def connect_channel(self, *args: Any, **options: Any) -> Any:
        if self.is_blocking:
            return InThreads(await asyncio.to_thread(self.channels.connect_channel, *args, **options))
        return await self.channels.connect_channel(*args, **options)

    def channelpair(self, *args: Any, **options: Any) -> tuple[Any, Any]:
        one, other = self.channels.channelpair(*args, **options)
        return (InThreads(one), InThreads(other)) if self.is_blocking else (one, other)

    def run(self, scenario: Scenario, *args: Any) -> Any:
        """Run `scenario(face, *args)` and fail on tasks left over and on errors that only the loop was told of."""
        unhandled: list[dict[str, Any]] = []

        async def main() -> Any:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: unhandled.append(context))
            result = await scenario(self, *args)
            await asyncio.sleep(0)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks still pending: {left}"
            return result

        factory = None
        if self.name == "uvloop":
            import uvloop

            factory = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            result = runner.run(main())
        assert not unhandled, unhandled
        return result


def face_names() -> list[str]:
    """Return the faces to test: the blocking one, and asyncio's on each loop that HOSTLINE_TEST_LOOP names."""
    choice = os.environ.get("HOSTLINE_TEST_LOOP", "both")
    return ["sync", *(["asyncio", "uvloop"] if choice == "both" else [choice])]


def make_face(name: str) -> Face:
    if name == "uvloop" and os.environ.get("HOSTLINE_CI") != "1":
        pytest.importorskip("uvloop", reason="uvloop is not installed")
    return Face(name)


@contextlib.asynccontextmanager
async def connected(
    face: Face, directory: Path, socket_type: str, *, max_fds: int = 0, server_max_fds: int | None = None
) -> AsyncIterator[tuple[Any, Any]]:
    """Give (client, server side), connected through a listener at a socket file."""
    most = max_fds if server_max_fds is None else server_max_fds
    async with face.listen(directory / "pair", socket_type, max_fds=most) as listener:
        client = await face.connect_socket(directory / "pair", socket_type, max_fds=max_fds)
        async with client, await listener.accept(timeout=5) as served:
            yield client, served


async def soon(condition: Callable[[], object], timeout: float = 5.0) -> None:
    """Wait, with a bound, until the condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.002)


@contextlib.contextmanager
def every_millisecond() -> Iterator[list[int]]:
    """Interrupt this (the main) thread with a signal every millisecond; gives a list with one entry for each."""
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        yield seen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
