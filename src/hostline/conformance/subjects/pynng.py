"""pynng: a Rep0 socket on `ipc://`, a Req0 socket that asks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pynng

from hostline.conformance.subjects import run_subject


def serve(path: str, ready: Callable[[], None]) -> None:
    """Answer until SIGTERM leaves the `with`; the short timeout lets Python see the signal."""
    with pynng.Rep0(listen=f"ipc://{path}", recv_timeout=50) as server:
        ready()
        while True:
            try:
                server.recv()
            except pynng.Timeout:
                continue
            server.send(str(os.getpid()).encode())


def ask(path: str, timeout: float) -> str:
    """Send a request and wait for the reply."""
    limit = int(timeout * 1000)
    with pynng.Req0(dial=f"ipc://{path}", send_timeout=limit, recv_timeout=limit) as client:
        client.send(b"who")
        answer: bytes = client.recv()
        return answer.decode()


def connect(path: str, timeout: float) -> int | None:
    """Send a request with timeouts: connections are not handed out."""
    ask(path, timeout)
    return None


def is_timeout(error: BaseException) -> bool:
    """Recognise pynng's own error."""
    return isinstance(error, pynng.Timeout)


if __name__ == "__main__":
    sys.exit(run_subject(sys.modules[__name__], sys.argv[1:]))
