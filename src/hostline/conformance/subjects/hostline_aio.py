"""hostline's asyncio face: `listen` and `connect_socket`, on asyncio's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable

from hostline.aio import connect_socket, listen
from hostline.conformance.subjects import Received, run_subject
from hostline.errors import PeerGoneError


async def _serve(path: str, ready: Callable[[], None]) -> None:
    async with listen(path) as listener:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, listener.close)
        ready()
        async for connection in listener:
            with contextlib.suppress(PeerGoneError):
                async with connection:
                    await connection.send(str(os.getpid()).encode())


async def _ask(path: str, timeout: float) -> str:
    async with await connect_socket(path, timeout=timeout) as connection:
        return (await connection.recv(timeout=timeout)).decode()


async def _connect(path: str, timeout: float) -> int:
    async with await connect_socket(path, timeout=timeout) as connection:
        return os.dup(connection.fileno())


async def _receive_fds(path: str, max_fds: int, timeout: float) -> Received:
    async with await connect_socket(path, max_fds=max_fds, timeout=timeout) as connection:
        data, fds = await connection.recv_fds(timeout=timeout)
        return Received(data, [fd.detach() for fd in fds])


async def _receive_packet(path: str, size: int, timeout: float) -> Received:
    async with await connect_socket(path, "seqpacket", timeout=timeout) as connection:
        return Received(await connection.recv(size, timeout=timeout))


def serve(path: str, ready: Callable[[], None]) -> None:
    """Answer until SIGTERM closes the listener."""
    asyncio.run(_serve(path, ready))


def ask(path: str, timeout: float) -> str:
    """Connect and receive."""
    return asyncio.run(_ask(path, timeout))


def connect(path: str, timeout: float) -> int | None:
    """Connect with a timeout."""
    return asyncio.run(_connect(path, timeout))


def receive_fds(path: str, max_fds: int, timeout: float) -> Received:
    """Receive on a connection that admits so many descriptors with one message."""
    return asyncio.run(_receive_fds(path, max_fds, timeout))


def receive_packet(path: str, size: int, timeout: float) -> Received:
    """Receive a packet of so many bytes at most."""
    return asyncio.run(_receive_packet(path, size, timeout))


if __name__ == "__main__":
    sys.exit(run_subject(sys.modules[__name__], sys.argv[1:]))
