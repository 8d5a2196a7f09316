"""A subject: asyncio's own server on a listening socket that hostline lends to it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import hostline


async def _answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(str(os.getpid()).encode())
    writer.close()


async def _serve(path: str, ready: Callable[[], None]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with hostline.listen(path) as listener:
        async with await asyncio.start_unix_server(_answer, sock=listener.socket.dup()):
            ready()
            await stop.wait()


def serve(path: str, ready: Callable[[], None]) -> None:
    asyncio.run(_serve(path, ready))


def ask(path: str, timeout: float) -> str:
    with hostline.connect_socket(path, timeout=timeout) as connection:
        return connection.recv(timeout=timeout).decode()
