"""Probes of connecting and receiving: a full backlog, and descriptors and packets that arrive."""

from __future__ import annotations

import array
import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostline.clock import Deadline
from hostline.conformance.probes.stage import Stage
from hostline.conformance.table import Cell
from hostline.conformance.workshop import Failure

__all__ = ["full_backlog", "inherited", "short_fds", "short_packet"]

# Seconds that a client is given for a full backlog, and how much longer the judge waits before it calls that hanging.
CONNECT_TIMEOUT = 1.0
HANG_MARGIN = 2.5

# Share of the timeout before which an error did not wait, and share of a core above which waiting is spinning. A client
# that sleeps uses one or two per cent, one that spins gets what a loaded machine has left for it.
EARLY = 0.5
SPIN = 0.10

# Seconds for a client to connect to the judge and receive.
RECEIVE_TIMEOUT = 5.0

PACKET_SIZE = 64
ASKED_SIZE = 16
SENT_FDS = 3
ASKED_FDS = 1


def full_backlog(stage: Stage) -> dict[str, Cell]:
    """Have the subject's client connect to a listener whose backlog is full and stays so."""
    return {"full_backlog": _full_backlog(stage)}


def _full_backlog(stage: Stage) -> Cell:
    stage.need("connect", "brings no client")
    if sys.platform != "linux":
        return Cell.not_applicable("only Linux tells a full backlog from a dead server")
    path = stage.fresh() / "s.sock"
    with _full_listener(path):
        client = stage.client("connect", path, timeout=CONNECT_TIMEOUT)
        event = client.wait("result", "failed", timeout=CONNECT_TIMEOUT + HANG_MARGIN)
        if event is None and client.has_exited:
            return Cell.error("client ended without a result", client.log())
        client.kill()
    if event is None:
        cpu = sum(event["cpu"] for event in client.events if event["event"] == "exit")
        spins = f", spins (CPU {cpu / (CONNECT_TIMEOUT + HANG_MARGIN):.0%})" if cpu > SPIN * CONNECT_TIMEOUT else ""
        return Cell.miss(f"still waiting {HANG_MARGIN} s past its timeout{spins}")
    if event["event"] == "failed":
        return Cell.error(*_failed(event))
    return _judge_connect(event)


def _judge_connect(event: dict[str, Any]) -> Cell:
    seconds, cpu = event["seconds"], event["cpu"]
    if event["failure"] is None:
        return Cell.miss("returns unconnected" if event["is_connected"] is False else "claims success")
    failure = Failure.of(event["failure"])
    if seconds < EARLY * CONNECT_TIMEOUT:
        return Cell.miss(f"error at once: {failure}", failure.full)
    if cpu > SPIN * seconds:
        return Cell.miss(f"spins (CPU {cpu / seconds:.0%})", failure.full)
    if not failure.is_timeout:
        return Cell.miss(f"waits {seconds:.1f} s, then {failure}", failure.full)
    return Cell.ok(f"waits {seconds:.1f} s, then {failure.type}", f"CPU {cpu / seconds:.1%} of a core; {failure.full}")


@contextlib.contextmanager
def _full_listener(path: Path) -> Iterator[None]:
    """Listen with the smallest backlog and fill it."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(path))
        listener.listen(0)
        for _ in range(64):
            filler = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            filler.setblocking(False)
            try:
                filler.connect(str(path))
            except BlockingIOError:
                break
        yield


def inherited(stage: Stage) -> dict[str, Cell]:
    """Send a descriptor to the subject's own receive call and look whether children would inherit it."""
    stage.need("receive_fds", "passes no descriptors")
    event = _receive(stage, "receive_fds", socket.SOCK_STREAM, fds=1, count=1)
    if isinstance(event, Cell):
        return {"inherited": event}
    if event["failure"] or event["fds"] != 1:
        return {"inherited": Cell.error(f"{event['fds']} of 1 arrived", str(event["failure"] or ""))}
    return {"inherited": Cell.miss("inheritable") if event["inheritable"] else Cell.ok("close-on-exec")}


def short_packet(stage: Stage) -> dict[str, Cell]:
    """Send a packet larger than the subject asks for."""
    stage.need("receive_packet", "receives no packets of a size of its own")
    event = _receive(stage, "receive_packet", socket.SOCK_SEQPACKET, fds=0, size=ASKED_SIZE)
    if isinstance(event, Cell):
        return {"short_packet": event}
    if event["failure"]:
        failure = Failure.of(event["failure"])
        return {"short_packet": Cell.ok(f"{failure}", failure.full)}
    if event["size"] == PACKET_SIZE:
        return {"short_packet": Cell.ok("delivered whole")}
    if event["told"]:
        return {"short_packet": Cell.ok(f"cut, told by {event['told']}")}
    return {"short_packet": Cell.miss(f"cut to {event['size']} of {PACKET_SIZE} bytes in silence")}


def short_fds(stage: Stage) -> dict[str, Cell]:
    """Send more descriptors with one message than the subject asks for."""
    stage.need("receive_fds", "passes no descriptors")
    event = _receive(stage, "receive_fds", socket.SOCK_STREAM, fds=SENT_FDS, count=ASKED_FDS)
    if isinstance(event, Cell):
        return {"short_fds": event}
    leaked = event["open"] - event["fds"]
    if leaked > 0:
        what = Failure.of(event["failure"]).type if event["failure"] else "silence"
        return {"short_fds": Cell.miss(f"{what}, {leaked} left open")}
    if event["failure"]:
        failure = Failure.of(event["failure"])
        return {"short_fds": Cell.ok(f"{failure}, all closed", failure.full)}
    if event["told"]:
        return {"short_fds": Cell.ok(f"{event['fds']} of {SENT_FDS}, told by {event['told']}")}
    return {"short_fds": Cell.miss(f"{event['fds']} of {SENT_FDS} in silence")}


def _receive(stage: Stage, do: str, kind: socket.SocketKind, *, fds: int, **facts: int) -> dict[str, Any] | Cell:
    """Let the subject connect to a plain listener, send it one message, and return what became of it."""
    directory = stage.fresh()
    path, sample = directory / "s.sock", directory / "sample"
    sample.write_bytes(b"lent")
    status = sample.stat()
    marker = [status.st_dev, status.st_ino]
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        except OSError:
            return Cell.not_applicable("this system has no such sockets")
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(0.05)
        client = stage.client(do, path, timeout=RECEIVE_TIMEOUT, marker=marker, **facts)
        stack.callback(client.kill)
        deadline = Deadline.after(RECEIVE_TIMEOUT)
        while True:
            with contextlib.suppress(TimeoutError):
                connection = stack.enter_context(listener.accept()[0])
                break
            if client.wait("result", "failed", timeout=0) is not None or deadline.has_passed():
                return Cell.error("does not connect", str(client.events[-1:]))
        lent = [stack.enter_context(open(sample, "rb")) for _ in range(fds)]
        # The first byte is the count, which multiprocessing's receive call insists on.
        data = bytes([fds]) if fds else bytes(PACKET_SIZE)
        numbers = array.array("i", [file.fileno() for file in lent])
        connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if fds else [])
        event = client.wait("result", "failed", timeout=RECEIVE_TIMEOUT)
    if event is None:
        return Cell.error("receives nothing", client.log())
    return Cell.error(*_failed(event)) if event["event"] == "failed" else event


def _failed(event: dict[str, Any]) -> tuple[str, str]:
    failure = Failure.of(event["failure"])
    return f"probe failed: {failure}", failure.full
