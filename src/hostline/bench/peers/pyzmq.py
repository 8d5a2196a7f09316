"""pyzmq: REQ and REP for single calls, DEALER in place of REQ to have several under way, PUSH and PULL for one way.

Each context has its own I/O thread, which is ZeroMQ's way: a message crosses from thread to thread on both sides.
"""

from __future__ import annotations

import contextlib
from time import perf_counter_ns
from typing import Any

from hostline.bench.peers.shared import (
    BATCH,
    COUNT,
    ECHO,
    TOTAL,
    Answers,
    MessageDriver,
    message_of,
    number_in,
    require,
)
from hostline.bench.subject import Door, Subject

# One context for each process, as the guide recommends, with room for a thousand sockets and more.
_MAX_SOCKETS = 4096
_context: Any = None
# libzmq goes on waiting if SIGTERM comes while it looks after connections: servers look up twice a second, which is
# free while they are busy.
_LOOK_UP_MS = 500


def _zmq_context() -> Any:
    global _context
    if _context is None:
        import zmq

        _context = zmq.Context()
        _context.max_sockets = _MAX_SOCKETS
    return _context


def _bind(socket: Any, door: Door) -> int:
    """Bind, and return the port for TCP, where ZeroMQ itself sets TCP_NODELAY."""
    import zmq

    if door.transport != "tcp":
        socket.bind(f"ipc://{door.path}")
        return 0
    socket.bind(f"tcp://{door.host}:*")
    return int(socket.getsockopt(zmq.LAST_ENDPOINT).decode().rsplit(":", 1)[1])


def _connected(kind: int, door: Door) -> Any:
    socket = _zmq_context().socket(kind)
    socket.linger = 0
    socket.connect(f"tcp://{door.host}:{door.port}" if door.transport == "tcp" else f"ipc://{door.path}")
    return socket


# --- calls ---------------------------------------------------------------------------------------------


def serve_calls(door: Door) -> None:
    """Answer requests on a REP socket."""
    import zmq

    answers = Answers()
    with zmq.Context() as context, context.socket(zmq.REP) as server:
        server.linger, server.rcvtimeo = 0, _LOOK_UP_MS
        door.ready(_bind(server, door))
        while True:
            with contextlib.suppress(zmq.Again):
                while True:
                    # Always an answer: REP has to send one before it receives again.
                    server.send(answers.to(server.recv()) or b"")


class CallsDriver(MessageDriver):
    """A REQ socket. Copying is pyzmq's default and the faster way for messages of these sizes."""

    def __init__(self, door: Door) -> None:
        import zmq

        self.door = door
        self.socket = _connected(zmq.REQ, door)
        self.dealer: Any = None

    def exchange(self, message: bytes) -> bytes:
        """Send a request and wait for the reply."""
        self.socket.send(message)
        reply: bytes = self.socket.recv()
        return reply

    def pipelined(self, size: int, count: int, window: int) -> int:
        """Keep `window` requests under way on a DEALER socket: REQ allows one."""
        import zmq

        if self.dealer is None:
            self.dealer = _connected(zmq.DEALER, self.door)
        dealer, message, ahead = self.dealer, [b"", message_of(ECHO, size)], min(window, count)
        begin = perf_counter_ns()
        for _ in range(ahead):
            dealer.send_multipart(message)
        for _ in range(count - ahead):
            dealer.recv_multipart()
            dealer.send_multipart(message)
        for _ in range(ahead):
            dealer.recv_multipart()
        return perf_counter_ns() - begin

    def connected(self) -> CallsDriver:
        """Connect once more, in the same context."""
        return CallsDriver(self.door)

    def close(self) -> None:
        """Close the sockets; the context goes with the process."""
        self.socket.close()
        if self.dealer is not None:
            self.dealer.close()


# --- one way -------------------------------------------------------------------------------------------


def serve_one_way(door: Door) -> None:
    """Count what comes in on a PULL socket; answers go back on a PUSH socket, in the same private directory."""
    import zmq

    answers = Answers()
    with zmq.Context() as context, context.socket(zmq.PULL) as pull, context.socket(zmq.PUSH) as push:
        push.linger, pull.rcvtimeo = 0, _LOOK_UP_MS
        push.bind(_answers_address(door))
        door.ready(_bind(pull, door))
        while True:
            with contextlib.suppress(zmq.Again):
                while True:
                    for message in pull.recv_multipart():  # a batch is one message of many parts
                        answer = answers.to(message)
                        if answer is not None:
                            push.send(answer)


def _answers_address(door: Door) -> str:
    return f"ipc://{door.directory}/answers"


class OneWayDriver(MessageDriver):
    """A PUSH socket, on which `send` blocks at ZeroMQ's own bound of 1,000 messages, and a PULL socket for answers."""

    def __init__(self, door: Door) -> None:
        import zmq

        self.push = _connected(zmq.PUSH, door)
        self.pull = _zmq_context().socket(zmq.PULL)
        self.pull.connect(_answers_address(door))
        self.send = self.push.send
        self.recv = self.pull.recv

    def one_way(self, size: int, count: int, is_batched: bool) -> int:
        """Push messages, each alone or as the parts of larger ones."""
        if not is_batched:
            return super().one_way(size, count, is_batched)
        message, push = message_of(COUNT, size), self.push
        begin = perf_counter_ns()
        for first in range(0, count, BATCH):
            push.send_multipart([message] * min(BATCH, count - first))
        arrived = number_in(self.exchange(TOTAL))
        duration = perf_counter_ns() - begin
        require(arrived, count, "messages arrived")
        return duration

    def close(self) -> None:
        """Close both sockets; the context goes with the process."""
        self.push.close()
        self.pull.close()


def _subjects(transport: str) -> tuple[Subject, Subject]:
    suffix = " over TCP" if transport == "tcp" else ""
    calls = Subject(
        name=f"pyzmq REQ/REP{suffix}",
        layer="framed",
        transport=transport,
        style="blocking",
        workloads=frozenset({"latency", "transfer", "pipelined", "connect", "fanin"}),
        serve=serve_calls,
        drive=CallsDriver,
        needs=("zmq",),
        is_quick=transport == "unix",
    )
    one_way = Subject(
        name=f"pyzmq PUSH/PULL{suffix}",
        layer="framed",
        transport=transport,
        style="blocking",
        workloads=frozenset({"one-way", "batched"}),
        serve=serve_one_way,
        drive=OneWayDriver,
        needs=("zmq",),
        is_quick=transport == "unix",
    )
    return calls, one_way


SUBJECTS = (*_subjects("unix"), *_subjects("tcp"))
