"""rpyc: ThreadedServer with `socket_path`, and `unix_connect`."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

import rpyc
from rpyc.core.stream import SocketStream
from rpyc.utils.server import ThreadedServer

from hostline.conformance.subjects import run_subject


class _Service(rpyc.Service):  # type: ignore[misc]
    def exposed_pid(self) -> str:
        return str(os.getpid())


def serve(path: str, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM, then close; `start` blocks, so that it runs beside the wait."""
    server = ThreadedServer(_Service, socket_path=path)
    threading.Thread(target=server.start, daemon=True).start()
    try:
        while not server.active:
            time.sleep(0.005)
        ready()
        while server.active:
            time.sleep(0.02)  # not join: Python 3.13.0 at times sleeps through a signal in it
    finally:
        server.close()


def ask(path: str, timeout: float) -> str:
    """Make one call."""
    with rpyc.connect_stream(SocketStream.unix_connect(path, timeout=timeout)) as connection:
        return str(connection.root.pid())


def connect(path: str, timeout: float) -> int | None:
    """Connect with a timeout."""
    stream = SocketStream.unix_connect(path, timeout=timeout)
    return os.dup(stream.fileno())


if __name__ == "__main__":
    sys.exit(run_subject(sys.modules[__name__], sys.argv[1:]))
