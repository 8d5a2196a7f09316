"""pynng: REQ and REP for calls, with contexts to have several under way, PUSH and PULL for one way, over `ipc://`.

pynng can send several messages only one by one, so there are no batches.
"""

from __future__ import annotations

import contextlib
from time import perf_counter_ns
from typing import Any

from hostline.bench.peers.shared import ECHO, Answers, MessageDriver, message_of
from hostline.bench.subject import Door, Subject

# `recv` waits in C and does not hear of signals: the server looks up twice a second, which is free while it is busy.
_LOOK_UP_MS = 500
# Messages that may wait on each side of PUSH and PULL. nng's default of none stops the sender at every message.
_BUFFERED = 1000
# Bytes: by default nng drops what is larger than a megabyte, header included.
_MAX_SIZE = 1 << 24


def _answer(receiver: Any, sender: Any, door: Door) -> None:
    import pynng

    answers = Answers()
    door.ready()
    while True:
        with contextlib.suppress(pynng.Timeout):
            while True:
                answer = answers.to(receiver.recv())
                if answer is not None:
                    sender.send(answer)


def serve_calls(door: Door) -> None:
    """Answer requests on a REP socket."""
    import pynng

    with pynng.Rep0(listen=f"ipc://{door.path}", recv_timeout=_LOOK_UP_MS, recv_max_size=_MAX_SIZE) as server:
        _answer(server, server, door)


class CallsDriver(MessageDriver):
    """A REQ socket."""

    def __init__(self, door: Door) -> None:
        import pynng

        self.door = door
        self.socket = pynng.Req0(dial=f"ipc://{door.path}", block_on_dial=True, recv_max_size=_MAX_SIZE)
        self.contexts: list[Any] = []
        self.send = self.socket.send
        self.recv = self.socket.recv

    def pipelined(self, size: int, count: int, window: int) -> int:
        """Keep `window` requests under way, each in a context of its own: a REQ socket by itself allows one."""
        message, ahead = message_of(ECHO, size), min(window, count)
        while len(self.contexts) < ahead:
            self.contexts.append(self.socket.new_context())
        contexts = self.contexts[:ahead]
        begin = perf_counter_ns()
        for context in contexts:
            context.send(message)
        for index in range(count - ahead):
            context = contexts[index % ahead]
            context.recv()
            context.send(message)
        for index in range(count - ahead, count):
            contexts[index % ahead].recv()
        return perf_counter_ns() - begin

    def connected(self) -> CallsDriver:
        """Connect once more."""
        return CallsDriver(self.door)

    def close(self) -> None:
        """Close the contexts and the socket."""
        for context in self.contexts:
            context.close()
        self.socket.close()


def serve_one_way(door: Door) -> None:
    """Count what comes in on a PULL socket; answers go back on a PUSH socket, in the same private directory."""
    import pynng

    with (
        pynng.Push0(listen=_answers_address(door)) as push,
        pynng.Pull0(
            listen=f"ipc://{door.path}",
            recv_timeout=_LOOK_UP_MS,
            recv_buffer_size=_BUFFERED,
            recv_max_size=_MAX_SIZE,
        ) as pull,
    ):
        _answer(pull, push, door)


def _answers_address(door: Door) -> str:
    return f"ipc://{door.directory}/answers"


class OneWayDriver(MessageDriver):
    """A PUSH socket, which blocks when the buffers are full, and a PULL socket for the answers."""

    def __init__(self, door: Door) -> None:
        import pynng

        self.push = pynng.Push0(dial=f"ipc://{door.path}", block_on_dial=True, send_buffer_size=_BUFFERED)
        self.pull = pynng.Pull0(dial=_answers_address(door), block_on_dial=True, recv_max_size=_MAX_SIZE)
        self.send = self.push.send
        self.recv = self.pull.recv

    def close(self) -> None:
        """Close both sockets."""
        self.push.close()
        self.pull.close()


SUBJECTS = (
    Subject(
        name="pynng REQ/REP",
        layer="framed",
        transport="unix",
        style="blocking",
        workloads=frozenset({"latency", "transfer", "pipelined", "connect"}),
        serve=serve_calls,
        drive=CallsDriver,
        needs=("pynng",),
    ),
    Subject(
        name="pynng PUSH/PULL",
        layer="framed",
        transport="unix",
        style="blocking",
        workloads=frozenset({"one-way"}),
        serve=serve_one_way,
        drive=OneWayDriver,
        needs=("pynng",),
    ),
)
