"""The same service over loopback TCP: lent sockets, no delay, nobody known."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hostline.aio.serving.server import Server
from hostline.aio.serving.service import Service
from hostline.clock import Deadline
from hostline.demo.loopback import AsyncTcpLine, BlockingTcpLine, listen_on_loopback
from hostline.rpc.context import Context

service = Service("adder")


@service.method(inline=True)
def add(a: int, b: int) -> int:
    return a + b


@service.method(inline=True)
def who(context: Context) -> tuple[int, int]:
    return context.peer.pid, context.peer.uid


@pytest.fixture
def port() -> Iterator[int]:
    """Serve in a thread with a loop of its own."""
    bound, number = listen_on_loopback()
    loop = asyncio.new_event_loop()
    started, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with Server(service, bound):
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(10)
    yield number
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def test_a_blocking_line_calls_over_tcp(port: int) -> None:
    with BlockingTcpLine(port) as line:
        assert [line.call("add", n, 1, returns=int) for n in range(100)] == list(range(1, 101))
        assert line.address == f"tcp:127.0.0.1:{port}"


def test_over_tcp_the_kernel_names_nobody(port: int) -> None:
    with BlockingTcpLine(port) as line:
        pid, uid = line.call("who")
    assert (pid, uid) == (0, 0xFFFFFFFF)


def test_an_asyncio_line_carries_many_calls_at_once_over_tcp(run_async: Callable[..., Any]) -> None:
    async def scenario() -> None:
        bound, port = listen_on_loopback()
        async with Server(service, bound):
            async with AsyncTcpLine(port) as line:
                assert await asyncio.gather(*(line.call("add", n, n) for n in range(200))) == list(range(0, 400, 2))

    run_async(scenario)


def test_nobody_waits_for_more_bytes_on_either_side() -> None:
    bound, port = listen_on_loopback()
    line = BlockingTcpLine(port)
    here = there = None
    try:
        here, _ = line._connected(Deadline.after(5))
        there, _ = bound.sock.accept()
        for sock in (here, there):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    finally:
        for sock in (here, there):
            if sock is not None:
                sock.close()
        bound.close()
        line.close()
