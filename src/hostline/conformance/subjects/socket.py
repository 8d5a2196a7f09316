"""The standard library's plain socket: what a program gets that does it all by hand, as the HOWTO shows."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable

from hostline.conformance.subjects import Received, run_subject


def serve(path: str, ready: Callable[[], None]) -> None:
    """Bind, listen, answer one connection after the other."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        ready()
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(ConnectionError):
                connection.sendall(str(os.getpid()).encode())


def ask(path: str, timeout: float) -> str:
    """Connect and read."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        client.connect(path)
        return client.recv(64).decode()


def connect(path: str, timeout: float) -> int | None:
    """Connect with a timeout."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(timeout)
    client.connect(path)
    return client.detach()


def receive_fds(path: str, max_fds: int, timeout: float) -> Received:
    """Receive with `socket.recv_fds`, which hands the kernel's flags to its caller."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        client.connect(path)
        data, fds, flags, _ = socket.recv_fds(client, 64, max_fds)
        return Received(data, fds, "the flags" if flags & socket.MSG_CTRUNC else "")


def receive_packet(path: str, size: int, timeout: float) -> Received:
    """Receive a packet with `recv`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(timeout)
        client.connect(path)
        return Received(client.recv(size))


if __name__ == "__main__":
    sys.exit(run_subject(sys.modules[__name__], sys.argv[1:]))
