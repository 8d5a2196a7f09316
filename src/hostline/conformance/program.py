"""What a subject is, and what its processes do: serve, ask, connect, receive. Judges nothing.

    python -m hostline.conformance.subjects.asyncio serve PATH         by hand; SIGTERM closes it cleanly
    python -m hostline.conformance.subjects.asyncio ask PATH

The table runs the same commands through `foreman.py`.

A subject is a module with any of these functions; a probe whose function is missing gives `n/a`:

    serve(path, ready)                          bind, listen, call ready(), answer until SIGTERM, close cleanly
    ask(path, timeout) -> str                   its own client; the answer is the server's pid
    connect(path, timeout) -> int | None        its own client; the connected descriptor, where it has one to show
    receive_fds(path, max_fds, timeout) -> Received
    receive_packet(path, size, timeout) -> Received
    is_timeout(error) -> bool                   for libraries whose timeout error is no TimeoutError
    name_of(error) -> str                       for libraries with one class for all errors
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType, ModuleType
from typing import Any, NoReturn

__all__ = ["ABILITIES", "Received", "describe_error", "perform", "run_subject"]

ABILITIES = ("serve", "ask", "connect", "receive_fds", "receive_packet")

# Characters of a peer's error text that are kept: an event has to fit into one atomic write to a pipe, 4096 bytes.
TEXT_SIZE = 600

Emit = Callable[..., None]


@dataclass(slots=True)
class Received:
    """Hold what a subject's own receive call returned.

    Attributes:
        data: The bytes.
        fds: The descriptors.
        told: How the caller was told that something was cut off, where it was told without an error.
    """

    data: bytes = b""
    fds: list[int] = field(default_factory=list)
    told: str = ""


def describe_error(error: BaseException) -> dict[str, Any]:
    """Return the facts of an exception that the judge needs; of a group, those of its first leaf."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    number = error.errno if isinstance(error, OSError) else None  # nng's errno is no errno
    return {
        "type": type(error).__name__,
        "errno": errno.errorcode.get(number, str(number)) if number is not None else "",
        "text": str(error)[:TEXT_SIZE],
        "is_timeout": isinstance(error, TimeoutError),
    }


# --- what a command does ------------------------------------------------------------------------------


def _serve(subject: ModuleType, command: dict[str, Any], emit: Emit) -> None:
    def leave(_number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(0)  # `with` and `finally` in the subject then do its clean close

    signal.signal(signal.SIGTERM, leave)
    subject.serve(command["path"], lambda: emit("ready", pid=os.getpid()))


def _ask(subject: ModuleType, command: dict[str, Any], emit: Emit) -> None:
    emit("result", answer=subject.ask(command["path"], command["timeout"])[:TEXT_SIZE])


def _connect(subject: ModuleType, command: dict[str, Any], emit: Emit) -> None:
    began, cpu = time.monotonic(), time.process_time()
    failure: dict[str, Any] | None = None
    fd: int | None = None
    try:
        fd = subject.connect(command["path"], command["timeout"])
    except Exception as error:
        failure = describe_error(error)
        if hasattr(subject, "is_timeout"):
            failure["is_timeout"] = failure["is_timeout"] or bool(subject.is_timeout(error))
        if hasattr(subject, "name_of"):
            failure["type"] = subject.name_of(error)
    emit(
        "result",
        seconds=time.monotonic() - began,
        cpu=time.process_time() - cpu,
        failure=failure,
        is_connected=None if fd is None else _is_connected(fd),
    )


def _is_connected(fd: int) -> bool:
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            sock.getpeername()
        except OSError:
            return False
        return True


def _receive(subject: ModuleType, command: dict[str, Any], emit: Emit) -> None:
    """Receive by the subject's own call; count afterwards which of the marked descriptors are still open here."""
    failure: dict[str, Any] | None = None
    received = Received()
    try:
        if command["do"] == "receive_fds":
            received = subject.receive_fds(command["path"], command["count"], command["timeout"])
        else:
            received = subject.receive_packet(command["path"], command["size"], command["timeout"])
    except Exception as error:
        failure = describe_error(error)
    gc.collect()
    emit(
        "result",
        failure=failure,
        size=len(received.data),
        fds=len(received.fds),
        inheritable=sum(os.get_inheritable(fd) for fd in received.fds),
        told=received.told,
        open=_open_copies(command.get("marker")),
    )


def _open_copies(marker: list[int] | None) -> int:
    if marker is None:
        return 0
    copies = 0
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            status = os.fstat(int(name))
            copies += [status.st_dev, status.st_ino] == marker
    return copies


_ACTIONS: dict[str, Callable[[ModuleType, dict[str, Any], Emit], None]] = {
    "serve": _serve,
    "ask": _ask,
    "connect": _connect,
    "receive_fds": _receive,
    "receive_packet": _receive,
}


def perform(subject: ModuleType, command: dict[str, Any], emit: Emit) -> int:
    """Do one command in this process and return its exit status."""
    if (at := command.get("at")) is not None:
        # Contenders are told a moment rather than released one by one, so that they start together.
        time.sleep(max(0.0, at - time.monotonic() - 0.002))
        while time.monotonic() < at:
            pass
    try:
        _ACTIONS[command["do"]](subject, command, emit)
    except Exception as error:
        emit("failed", failure=describe_error(error))
        return 1
    return 0


# --- by hand ------------------------------------------------------------------------------------------


def run_subject(subject: ModuleType, arguments: list[str]) -> int:
    """Run one subject by hand: `serve PATH`, `ask PATH [SECONDS]`, `connect PATH [SECONDS]`.

    Args:
        subject: The module.
        arguments: What follows its name on the command line.

    Returns:
        The exit status: 0, 1 if the subject raised, 2 for wrong usage.
    """
    if len(arguments) not in (2, 3) or arguments[0] not in ("serve", "ask", "connect"):
        print("usage: serve PATH | ask PATH [SECONDS] | connect PATH [SECONDS]", file=sys.stderr)
        return 2
    seconds = float(arguments[2]) if len(arguments) == 3 else 1.0
    command = {"do": arguments[0], "path": arguments[1], "timeout": seconds}

    def emit(event: str, **facts: Any) -> None:
        print(json.dumps({"event": event, **facts}), flush=True)

    return perform(subject, command, emit)
