"""anyio on its asyncio backend, the default."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable

import anyio
import anyio.abc

from hostline.conformance.subjects import Received, run_subject


async def _answer(stream: anyio.abc.SocketStream) -> None:
    with contextlib.suppress(anyio.BrokenResourceError):  # a client that leaves at once must not end the task group
        async with stream:
            await stream.send(str(os.getpid()).encode())


async def _serve(path: str, ready: Callable[[], None]) -> None:
    async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as group:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            group.start_soon(listener.serve, _answer)
            ready()
            async for _ in signals:
                break
        group.cancel_scope.cancel()


async def _ask(path: str, timeout: float) -> str:
    with anyio.fail_after(timeout):
        async with await anyio.connect_unix(path) as stream:
            answer: bytes = await stream.receive()
            return answer.decode()


async def _connect(path: str, timeout: float) -> int:
    with anyio.fail_after(timeout):
        stream = await anyio.connect_unix(path)
        return os.dup(stream.extra(anyio.abc.SocketAttribute.raw_socket).fileno())


async def _receive_fds(path: str, max_fds: int, timeout: float) -> Received:
    with anyio.fail_after(timeout):
        async with await anyio.connect_unix(path) as stream:
            data, fds = await stream.receive_fds(64, max_fds)
            return Received(data, fds)


async def _receive_packet(path: str, size: int, timeout: float) -> Received:
    with anyio.fail_after(timeout):
        async with await anyio.connect_unix(path, socket.SOCK_SEQPACKET) as stream:
            return Received(await stream.receive(size))


def serve(path: str, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM."""
    anyio.run(_serve, path, ready)


def ask(path: str, timeout: float) -> str:
    """Connect and read."""
    return str(anyio.run(_ask, path, timeout))


def connect(path: str, timeout: float) -> int | None:
    """Connect inside `fail_after`."""
    return int(anyio.run(_connect, path, timeout))


def receive_fds(path: str, max_fds: int, timeout: float) -> Received:
    """Receive with `receive_fds`."""
    received: Received = anyio.run(_receive_fds, path, max_fds, timeout)
    return received


def receive_packet(path: str, size: int, timeout: float) -> Received:
    """Receive from a SOCK_SEQPACKET stream."""
    received: Received = anyio.run(_receive_packet, path, size, timeout)
    return received


if __name__ == "__main__":
    sys.exit(run_subject(sys.modules[__name__], sys.argv[1:]))
