"""multiprocessing.connection: what the standard library offers, with `send_bytes` and `recv_bytes`.

`send` and `recv`, which most people call, pickle on top of that: objects cost more than these figures say, and
unpickling runs what the other side wrote.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from hostline.bench.peers.shared import Answers, MessageDriver
from hostline.bench.subject import Door, Subject

WORKLOADS = frozenset({"latency", "transfer", "pipelined", "one-way", "connect", "fanin"})
# Waiting connections; 1, the default, would refuse or delay those who come together.
BACKLOG = 1024


def serve(door: Door) -> None:
    """Serve each connection in a thread of its own, as `Listener` has no other way of serving two."""
    is_tcp = door.transport == "tcp"
    address: Any = (door.host, 0) if is_tcp else door.path
    with Listener(address, "AF_INET" if is_tcp else "AF_UNIX", backlog=BACKLOG) as listener:
        door.ready(listener.address[1] if is_tcp else 0)
        while True:
            connection = listener.accept()
            if is_tcp:
                _set_nodelay(connection)
            threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: Connection[Any, Any]) -> None:
    answers = Answers()
    with contextlib.suppress(EOFError, OSError), connection:
        while True:
            answer = answers.to(connection.recv_bytes())
            if answer is not None:
                connection.send_bytes(answer)


def _set_nodelay(connection: Connection[Any, Any]) -> None:
    # multiprocessing leaves Nagle's algorithm on; over 16 KB header and content go out one by one and wait for it.
    with socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class ConnectionDriver(MessageDriver):
    """A `Connection`, which is blocking and used from one thread."""

    def __init__(self, door: Door) -> None:
        self.door = door
        is_tcp = door.transport == "tcp"
        connection = Client((door.host, door.port) if is_tcp else door.path)
        if is_tcp:
            _set_nodelay(connection)
        self.connection = connection
        self.send = connection.send_bytes
        self.recv = connection.recv_bytes

    def connected(self) -> ConnectionDriver:
        """Connect once more."""
        return ConnectionDriver(self.door)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


SUBJECTS = tuple(
    Subject(
        name=name,
        layer="framed",
        transport=transport,
        style="blocking",
        workloads=WORKLOADS,
        serve=serve,
        drive=ConnectionDriver,
        is_quick=transport == "unix",
    )
    for name, transport in (("multiprocessing", "unix"), ("multiprocessing over TCP", "tcp"))
)
