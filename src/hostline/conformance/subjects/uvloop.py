"""uvloop: asyncio's streams on its event loop."""

from __future__ import annotations

import sys
from collections.abc import Callable

import uvloop

from hostline.conformance.subjects import run_subject
from hostline.conformance.subjects.asyncio import ask_stream, connect_stream, serve_streams


def serve(path: str, ready: Callable[[], None]) -> None:
    """Serve on uvloop."""
    uvloop.run(serve_streams(path, ready))


def ask(path: str, timeout: float) -> str:
    """Ask on uvloop."""
    return str(uvloop.run(ask_stream(path, timeout)))


def connect(path: str, timeout: float) -> int | None:
    """Connect on uvloop."""
    return int(uvloop.run(connect_stream(path, timeout)))


if __name__ == "__main__":
    sys.exit(run_subject(sys.modules[__name__], sys.argv[1:]))
