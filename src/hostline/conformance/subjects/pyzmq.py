"""pyzmq: a REP socket on `ipc://`, a REQ socket that asks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import zmq

from hostline.conformance.subjects import run_subject


def serve(path: str, ready: Callable[[], None]) -> None:
    """Answer until SIGTERM leaves the `with`."""
    with zmq.Context() as context, context.socket(zmq.REP) as server:
        server.bind(f"ipc://{path}")
        ready()
        while True:
            server.recv()
            server.send(str(os.getpid()).encode())


def ask(path: str, timeout: float) -> str:
    """Send a request and wait for the reply; the connection is made behind the scenes."""
    with zmq.Context() as context, context.socket(zmq.REQ) as client:
        client.setsockopt(zmq.LINGER, 0)
        client.setsockopt(zmq.SNDTIMEO, int(timeout * 1000))
        client.setsockopt(zmq.RCVTIMEO, int(timeout * 1000))
        client.connect(f"ipc://{path}")
        client.send(b"who")
        answer: bytes = client.recv()
        return answer.decode()


def connect(path: str, timeout: float) -> int | None:
    """Send a request with timeouts: connections are not handed out."""
    ask(path, timeout)
    return None


def is_timeout(error: BaseException) -> bool:
    """Recognise what pyzmq raises when a timeout option has run out."""
    return isinstance(error, zmq.Again)


if __name__ == "__main__":
    sys.exit(run_subject(sys.modules[__name__], sys.argv[1:]))
