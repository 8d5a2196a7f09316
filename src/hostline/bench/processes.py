"""The processes of one subject, seen from the run: started, asked with a deadline, ended for certain.

Each process leads a session of its own, so that it and what it started can be ended together; when the run itself is
killed they find their standard input closed and go. What runs in them is `program.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostline.bench.program import cpu_seconds
from hostline.bench.subject import Subject
from hostline.clock import Deadline

__all__ = ["Answer", "Process", "SubjectFailedError", "cpu_seconds", "peak_memory", "resident_memory", "signals_held"]

# Seconds that a process gets to go by itself after SIGTERM or the end of its standard input.
GRACE = 2.0
# Characters of a subject's last words that are kept.
REASON_SIZE = 300
# Environment of ours that would steer a subject.
STEERING = ("LISTEN_", "NOTIFY_", "UVICORN_", "GUNICORN_", "PYRO_", "GRPC_")


class SubjectFailedError(Exception):
    """A subject's process crashed, hung or gave a wrong answer; the text says which."""


@dataclass(slots=True)
class Answer:
    """Hold what a process answered.

    Attributes:
        facts: What its line of JSON said.
        times: The nanoseconds behind it, where there were some.
    """

    facts: dict[str, Any]
    times: array[int]


class Process:
    """Own one process of a subject.

    Args:
        role: "serve" or "drive".
        module: Where the subject is.
        subject: Which.
        door: The fields of its Door but for the transport.
        pin: Cores to keep to, or None.
    """

    def __init__(self, role: str, module: str, subject: Subject, door: dict[str, Any], pin: list[int] | None) -> None:
        facts = {
            "module": module,
            "name": subject.name,
            "is_hostline": subject.is_hostline,
            "door": door,
            "pin": pin,
        }
        self._role = role
        self._buffer = b""
        self._log = Path(door["directory"], f"{role}.log")
        program = Path(__file__).with_name("program.py")
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(program), role, json.dumps(facts)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(door["directory"]),
                start_new_session=True,
            )
        self.pids = [self._process.pid]

    @property
    def _pipes(self) -> tuple[int, int]:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:  # cannot be: both were asked for
            raise SubjectFailedError("no pipes")
        return stdin.fileno(), stdout.fileno()

    def tell(self, command: dict[str, Any], timeout: float) -> None:
        """Send one command.

        Raises:
            SubjectFailedError: The process is gone.
        """
        try:
            os.write(self._pipes[0], json.dumps({**command, "timeout": timeout}).encode() + b"\n")
        except BrokenPipeError:
            raise self._failed("is gone") from None

    def answer(self, timeout: float) -> Answer:
        """Wait for the next answer.

        Raises:
            SubjectFailedError: There was none in time, or the process ended.
        """
        deadline = Deadline.after(timeout)
        while b"\n" not in self._buffer:
            self._read(deadline, timeout)
        line, self._buffer = self._buffer.split(b"\n", 1)
        try:
            facts = json.loads(line)
        except ValueError:
            raise self._failed("answered something else than it should") from None
        while len(self._buffer) < facts["bytes"]:
            self._read(deadline, timeout)
        data, self._buffer = self._buffer[: facts["bytes"]], self._buffer[facts["bytes"] :]
        self.pids = facts["pids"]
        return Answer(facts, array("Q", data))

    def ask(self, command: dict[str, Any], timeout: float) -> Answer:
        """Send one command and wait for its answer; errors as for `answer`."""
        self.tell(command, timeout)
        return self.answer(timeout)

    def _read(self, deadline: Deadline, timeout: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._pipes[1], selectors.EVENT_READ)
            if not selector.select(deadline.remaining()):
                raise self._failed(f"did not answer within {timeout:g} seconds")
        chunk = os.read(self._pipes[1], 1 << 16)
        if not chunk:
            raise self._failed("ended")
        self._buffer += chunk

    def _failed(self, what: str) -> SubjectFailedError:
        side = "server" if self._role == "serve" else "client"
        return SubjectFailedError(f"its {side} {what}: {self.last_words()}".rstrip(": "))

    def last_words(self) -> str:
        """Return the last line of the process's standard error, fit for a terminal."""
        with contextlib.suppress(OSError):
            lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
            if lines:
                text = lines[-1][:REASON_SIZE]
                return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
        return ""

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def begin_to_end(self) -> None:
        """Ask the process to go, without waiting."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, BrokenPipeError):
                if self._role == "serve":
                    self._process.terminate()
                elif self._process.stdin is not None:
                    self._process.stdin.close()

    def close(self) -> None:
        """End the process and whatever it started; nothing of it runs afterwards."""
        self.begin_to_end()
        until = time.monotonic() + GRACE
        while not _has_exited(self._process.pid) and time.monotonic() < until:
            time.sleep(0.002)
        # Before it is reaped: until then its number cannot be somebody else's.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until a new process is where somebody will end it.

    By handlers, because a mask would be the new process's too, and would not stop a signal that another thread takes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    with contextlib.ExitStack() as stack:
        stack.callback(_raise_signals, came)
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            if before is not None:
                stack.callback(signal.signal, number, before)
                signal.signal(number, lambda caught, _frame: came.append(caught))
        yield


def _raise_signals(numbers: list[int]) -> None:
    for number in numbers:
        signal.raise_signal(number)


def _has_exited(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _environment(directory: str) -> dict[str, str]:
    """Return the environment of a subject: ours without what would steer it, its files inside its directory."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(STEERING)}
    for name in ("XDG_RUNTIME_DIR", "HOSTLINE_RUNTIME_DIR", "TMPDIR"):
        environment[name] = directory
    package = str(Path(__file__).resolve().parents[2])  # a source tree that is not installed works too
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH", "")]))
    return environment


def _status(pid: int, field: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1])
    return 0


def resident_memory(pids: list[int]) -> int:
    """Return the memory that some processes hold now, in KiB; 0 where the kernel does not tell."""
    return sum(_status(pid, "VmRSS:") for pid in pids)


def peak_memory(pids: list[int]) -> int:
    """Return the most memory that some processes have held since `forget_peak`, in KiB; 0 where it is not told."""
    return sum(_status(pid, "VmHWM:") for pid in pids)


def forget_peak(pids: list[int]) -> None:
    """Let the peak of some processes begin at what they hold now, where the kernel can."""
    for pid in pids:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")
