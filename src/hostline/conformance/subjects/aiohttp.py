"""aiohttp: `web.UnixSite` and `UnixConnector`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable

import aiohttp
from aiohttp import web

from hostline.conformance.subjects import run_subject


async def _answer(_request: web.Request) -> web.Response:
    return web.Response(text=str(os.getpid()))


async def _serve(path: str, ready: Callable[[], None]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    application = web.Application()
    application.router.add_get("/", _answer)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.UnixSite(runner, path).start()
        ready()
        await stop.wait()
    finally:
        await runner.cleanup()


async def _get(path: str, timeout: float) -> str:
    limit = aiohttp.ClientTimeout(total=timeout)
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path), timeout=limit) as session,
        session.get("http://localhost/") as response,
    ):
        text: str = await response.text()
        return text


def serve(path: str, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM."""
    asyncio.run(_serve(path, ready))


def ask(path: str, timeout: float) -> str:
    """Send one request."""
    return asyncio.run(_get(path, timeout))


def connect(path: str, timeout: float) -> int | None:
    """Send one request: connections are not handed out on their own."""
    asyncio.run(_get(path, timeout))
    return None


if __name__ == "__main__":
    sys.exit(run_subject(sys.modules[__name__], sys.argv[1:]))
