"""The judge's side of the processes: start a workshop, send it commands, wait for events, leave nothing behind.

Knows the protocol of `foreman.py` and no probe. Every wait has a bound.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostline.clock import Deadline

__all__ = ["Child", "Failure", "Workshop", "WorkshopError", "printable"]

# Seconds for a peer to be imported: grpc on a loaded machine takes two or three.
IMPORT_TIMEOUT = 30.0

# Seconds between two looks whether a silent workshop still lives.
LOOK_INTERVAL = 0.5

# Seconds for a killed process to be gone.
KILL_TIMEOUT = 5.0


class WorkshopError(RuntimeError):
    """Report that a subject cannot be probed at all: it does not import, or its workshop died."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Hold why a subject's process failed.

    Attributes:
        type: The exception's class name, or `exit` where the process ended without one.
        errno: The symbolic number, or an empty string.
        text: The message.
        is_timeout: Whether it is the subject's own kind of timeout.
    """

    type: str
    errno: str = ""
    text: str = ""
    is_timeout: bool = False

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Failure:
        """Take the facts from an event; texts of peers are made safe to print."""
        texts = {key: printable(facts[key]) for key in ("type", "errno", "text")}
        return cls(**texts, is_timeout=bool(facts["is_timeout"]))

    def __str__(self) -> str:
        return f"{self.type} {self.errno}".strip()

    @property
    def full(self) -> str:
        """The class and the whole message, for a cell's detail."""
        return f"{self.type}: {self.text}"


def printable(text: str) -> str:
    """Escape whatever a terminal could take for a command."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


class Child:
    """Follow one process of a workshop by its events."""

    def __init__(self, workshop: Workshop, ident: int, log: Path) -> None:
        self._workshop = workshop
        self._ident = ident
        self._log = log
        self.pid = 0
        self.events: list[dict[str, Any]] = []

    def wait(self, *kinds: str, timeout: float) -> dict[str, Any] | None:
        """Return the first event of one of the kinds, or None when time is up or the process is gone without one."""
        deadline = Deadline.after(timeout)
        while True:
            for event in self.events:
                if event["event"] in kinds:
                    return event
            if self.has_exited or not self._workshop.pump(deadline):
                return None

    @property
    def has_exited(self) -> bool:
        """Whether the process has been reaped."""
        return any(event["event"] == "exit" for event in self.events)

    def log(self) -> str:
        """Return what the process wrote to standard output and error."""
        try:
            return self._log.read_text(errors="replace")
        except OSError:
            return ""

    def failure(self) -> Failure | None:
        """Return why the process failed, or None while it has not."""
        for event in self.events:
            if event["event"] == "failed":
                return Failure.of(event["failure"])
        if self.has_exited:
            # A program that logs its failure and leaves: the line that says so, without its date and level.
            lines = [re.sub(r"^(\[[^]]*]\s*)+", "", line).strip() for line in self.log().splitlines()]
            telling = [line for line in lines if "failed" in line] or [line for line in lines if line]
            return Failure("exit", text=printable(telling[-1]) if telling else "without a word")
        return None

    def terminate(self, timeout: float) -> bool:
        """Send SIGTERM and return whether the process was gone in time."""
        self._workshop.tell("signal", self._ident, number=int(signal.SIGTERM))
        return self.wait("exit", timeout=timeout) is not None

    def kill(self) -> None:
        """Send SIGKILL to the process and its own children, and wait until it is reaped."""
        if not self.has_exited:
            self._workshop.tell("signal", self._ident, number=int(signal.SIGKILL))
            self.wait("exit", timeout=KILL_TIMEOUT)


class Workshop:
    """Own the process that imported one subject, and through it all processes of that subject."""

    def __init__(self, module: str, directory: Path, umask: int) -> None:
        """Start importing; does not wait for it.

        Args:
            module: The subject's module name, or the path of a `.py` file.
            directory: A private directory for logs, which the caller removes.
            umask: The umask that every process of the subject gets.
        """
        self._module = module
        self._logs = directory
        self._logs.mkdir(mode=0o700)
        self._children: dict[int, Child] = {}
        self._buffer = b""
        self._hello: dict[str, Any] | None = None
        self._is_closed = False
        with open(self._logs / "workshop", "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hostline.conformance.foreman", module, str(directory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(directory),
                umask=umask,
                start_new_session=True,
            )
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipes[1], selectors.EVENT_READ)

    @property
    def _pipes(self) -> tuple[int, int]:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:  # cannot be: both were asked for
            raise WorkshopError("the workshop has no pipes")
        return stdin.fileno(), stdout.fileno()

    def abilities(self) -> frozenset[str]:
        """Return which functions the subject has; waits until it is imported.

        Raises:
            WorkshopError: It does not import.
        """
        deadline = Deadline.after(IMPORT_TIMEOUT)
        while self._hello is None:
            if not self.pump(deadline):
                log = (self._logs / "workshop").read_text(errors="replace").strip().splitlines()
                raise WorkshopError(f"{self._module} does not start: {log[-1] if log else 'no answer'}")
        if self._hello["event"] == "failed":
            raise WorkshopError(f"{self._module} does not import: {Failure.of(self._hello['failure']).full}")
        return frozenset(self._hello["can"])

    def start(self, do: str, path: str, **facts: Any) -> Child:
        """Have a fresh process do one command; does not wait for it."""
        ident = len(self._children) + 1
        child = self._children[ident] = Child(self, ident, self._logs / str(ident))
        self.tell(do, ident, path=path, **facts)
        return child

    def tell(self, do: str, ident: int, **facts: Any) -> None:
        """Write one command."""
        try:
            os.write(self._pipes[0], json.dumps({"do": do, "id": ident, **facts}).encode() + b"\n")
        except BrokenPipeError:
            raise WorkshopError(f"the workshop of {self._module} died") from None

    def pump(self, deadline: Deadline) -> bool:
        """Hand one batch of events to their processes; return False when time is up or nothing can come any more."""
        while not self._selector.select(min(deadline.remaining(), LOOK_INTERVAL)):
            # Its children may hold the pipe open after its death, so that no end of file tells of it.
            if deadline.has_passed() or self._process.poll() is not None:
                return False
        chunk = os.read(self._pipes[1], 65536)
        if not chunk:
            return False
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        for line in lines:
            event = json.loads(line)
            child = self._children.get(event["id"])
            if child is None:
                self._hello = event
            else:
                child.events.append(event)
                child.pid = event.get("pid", child.pid)  # "ready" may overtake "forked": two processes write
        return True

    def close(self) -> None:
        """Kill every process of this subject and the workshop itself; nothing of it runs afterwards."""
        if self._is_closed:
            return
        try:
            with contextlib.suppress(WorkshopError):
                for child in self._children.values():
                    child.kill()
        finally:
            self._is_closed = True
            self._selector.close()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            try:
                self._process.wait(KILL_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._kill_orphans()

    def _kill_orphans(self) -> None:
        """Kill what a workshop that died too early has left, also what it had not told us of.

        Known by its session, whose number is not given to anybody else while one of its processes lives.
        """
        pids = {child.pid for child in self._children.values() if child.pid and not child.has_exited}
        with contextlib.suppress(OSError):
            pids.update(int(name) for name in os.listdir("/proc") if name.isdecimal())
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(pid) == self._process.pid:
                    os.kill(pid, signal.SIGKILL)


def _environment(directory: Path) -> dict[str, str]:
    """Return the environment of a subject: ours without what would steer it, its files inside our directory."""
    steering = ("LISTEN_", "NOTIFY_", "UVICORN_", "GUNICORN_", "PYRO_", "GRPC_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(steering)}
    for name in ("HOME", "XDG_RUNTIME_DIR", "HOSTLINE_RUNTIME_DIR", "TMPDIR"):
        environment[name] = str(directory)
    package = str(Path(__file__).resolve().parents[2])  # a source tree that is not installed works too
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH", "")]))
    return environment
