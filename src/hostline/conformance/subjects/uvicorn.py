"""uvicorn: `--uds`, run from a program. It brings no client."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from hostline.conformance.subjects import run_subject


async def _application(
    scope: dict[str, Any], _receive: Callable[[], Awaitable[Any]], send: Callable[[dict[str, Any]], Awaitable[None]]
) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(os.getpid()).encode()})


def serve(path: str, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM, which uvicorn handles itself."""
    server = uvicorn.Server(uvicorn.Config(_application, uds=path, lifespan="off", log_level="warning"))

    def announce() -> None:
        while not server.started:
            time.sleep(0.005)
        ready()

    threading.Thread(target=announce, daemon=True).start()
    server.run()


if __name__ == "__main__":
    sys.exit(run_subject(sys.modules[__name__], sys.argv[1:]))
