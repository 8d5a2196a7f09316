"""hostline's blocking face: `listen` and `connect_socket`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from hostline.conformance.subjects import Received, run_subject
from hostline.errors import PeerGoneError
from hostline.sync import connect_socket, listen


def serve(path: str, ready: Callable[[], None]) -> None:
    """Answer until SIGTERM leaves the `with`."""
    with listen(path) as listener:
        ready()
        for connection in listener:
            with connection, contextlib.suppress(PeerGoneError):
                connection.send(str(os.getpid()).encode())


def ask(path: str, timeout: float) -> str:
    """Connect and receive."""
    with connect_socket(path, timeout=timeout) as connection:
        return connection.recv(timeout=timeout).decode()


def connect(path: str, timeout: float) -> int | None:
    """Connect with a timeout."""
    with connect_socket(path, timeout=timeout) as connection:
        return os.dup(connection.fileno())


def receive_fds(path: str, max_fds: int, timeout: float) -> Received:
    """Receive on a connection that admits so many descriptors with one message."""
    with connect_socket(path, max_fds=max_fds, timeout=timeout) as connection:
        data, fds = connection.recv_fds(timeout=timeout)
        return Received(data, [fd.detach() for fd in fds])


def receive_packet(path: str, size: int, timeout: float) -> Received:
    """Receive a packet of so many bytes at most."""
    with connect_socket(path, "seqpacket", timeout=timeout) as connection:
        return Received(connection.recv(size, timeout=timeout))


if __name__ == "__main__":
    sys.exit(run_subject(sys.modules[__name__], sys.argv[1:]))
