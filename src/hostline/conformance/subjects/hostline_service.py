"""hostline's typed calls: a `Service` and a blocking `Line`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from hostline.aio import Service
from hostline.conformance.subjects import run_subject
from hostline.sync import connect as open_line

_service = Service("conformance")


@_service.method
def pid() -> str:
    """Answer with the server's pid."""
    return str(os.getpid())


def serve(path: str, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM, which `run` handles itself."""
    _service.run(path, on_start=lambda _server: ready())


def ask(path: str, timeout: float) -> str:
    """Make one call."""
    with open_line(path, connect_timeout=timeout) as line:
        return str(line.call("pid", returns=str, timeout=timeout))


def connect(path: str, timeout: float) -> int | None:
    """Open a line, which connects at once."""
    open_line(path, connect_timeout=timeout).close()
    return None


if __name__ == "__main__":
    sys.exit(run_subject(sys.modules[__name__], sys.argv[1:]))
