"""The standard library's asyncio streams on its own event loop; the uvloop row runs the same code on uvloop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable

from hostline.conformance.subjects import run_subject


async def _answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(str(os.getpid()).encode())
    await writer.drain()
    writer.close()


async def serve_streams(path: str, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = await asyncio.start_unix_server(_answer, path)
    async with server:
        ready()
        await stop.wait()


async def ask_stream(path: str, timeout: float) -> str:
    """Connect and read to the end."""
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_unix_connection(path)
        answer = await reader.read()
        writer.close()
        return answer.decode()


async def connect_stream(path: str, timeout: float) -> int:
    """Connect and return a duplicate of the descriptor."""
    async with asyncio.timeout(timeout):
        _, writer = await asyncio.open_unix_connection(path)
    return os.dup(writer.get_extra_info("socket").fileno())


def serve(path: str, ready: Callable[[], None]) -> None:
    """Serve on asyncio's loop."""
    asyncio.run(serve_streams(path, ready))


def ask(path: str, timeout: float) -> str:
    """Ask on asyncio's loop."""
    return asyncio.run(ask_stream(path, timeout))


def connect(path: str, timeout: float) -> int | None:
    """Connect on asyncio's loop."""
    return asyncio.run(connect_stream(path, timeout))


if __name__ == "__main__":
    sys.exit(run_subject(sys.modules[__name__], sys.argv[1:]))
