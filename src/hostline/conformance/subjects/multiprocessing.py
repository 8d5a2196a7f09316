"""The standard library's `multiprocessing.connection`: Listener and Client. Client takes no timeout."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from multiprocessing import reduction
from multiprocessing.connection import Client, Connection, Listener

from hostline.conformance.subjects import Received, run_subject


def serve(path: str, ready: Callable[[], None]) -> None:
    """Accept and answer; leaving the `with` closes the listener."""
    with Listener(path, family="AF_UNIX") as listener:
        ready()
        while True:
            # A connection that was closed at once makes the answer fail, which ends nobody else's.
            with contextlib.suppress(ConnectionError), listener.accept() as connection:
                connection.send_bytes(str(os.getpid()).encode())


def ask(path: str, timeout: float) -> str:
    """Connect and read; the wait for the answer is the only one that takes a timeout."""
    with Client(path, family="AF_UNIX") as connection:
        if not connection.poll(timeout):
            raise TimeoutError("no answer")
        return connection.recv_bytes().decode()


def connect(path: str, timeout: float) -> int | None:
    """Connect; there is nowhere to give the timeout to."""
    connection = Client(path, family="AF_UNIX")
    return os.dup(connection.fileno())


def receive_fds(path: str, max_fds: int, timeout: float) -> Received:
    """Receive with `multiprocessing.reduction`, one handle, as `recv_handle` does."""
    with Client(path, family="AF_UNIX") as connection:
        if not isinstance(connection, Connection):
            raise TypeError("not a socket connection")
        return Received(fds=[reduction.recv_handle(connection) for _ in range(max_fds)])


if __name__ == "__main__":
    sys.exit(run_subject(sys.modules[__name__], sys.argv[1:]))
