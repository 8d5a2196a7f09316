"""The demo's other processes, and the private directory they share: started, heard, and always ended.

A child is on a leash: its standard input is a pipe that ends when this process does, however it does. What a child
says on standard output is one event a line; what it says on standard error goes into a log.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from hostline.clock import Deadline

__all__ = ["Child", "ChildError", "Stage", "end_with_parent", "tell_parent"]

# Seconds for a child to start, and to end after SIGTERM before it is killed.
START_TIMEOUT = 20.0
STOP_TIMEOUT = 10.0

# Lines of a child's log that explain its failure.
_LOG_LINES = 12


class ChildError(Exception):
    """Report a child that did not do what was expected of it.

    Attributes:
        log: The last lines that it wrote on standard error.
    """

    def __init__(self, text: str, log: list[str]) -> None:
        super().__init__(text)
        self.log = log


# --- in the child ------------------------------------------------------------------------------------


def tell_parent(event: str, text: str) -> None:
    """Say on standard output what has happened."""
    print(event, text, flush=True)


def end_with_parent() -> None:
    """End this process as by SIGTERM as soon as standard input ends."""

    def watch() -> None:
        # Not sys.stdin: a thread that waits inside of it holds its lock, and the interpreter could not exit.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="leash", daemon=True).start()


# --- in the demo -------------------------------------------------------------------------------------


class Child:
    """One process that was started.

    Args:
        name: For messages.
        module: What `python -m` runs.
        arguments: The words behind it.
        directory: Where its log goes; it is also its working directory.
        environment: Its variables.
    """

    def __init__(
        self, name: str, module: str, arguments: tuple[str, ...], directory: Path, environment: dict[str, str]
    ) -> None:
        self.name = name
        self.command = [sys.executable, "-m", module, *arguments]
        self._log = directory / f"{name}.log"
        self._unread = b""
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [*self.command, "--leash"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=directory,
                env=environment,
                process_group=0,  # Ctrl-C is for the demo, which then ends its children in order
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def expect(self, event: str, timeout: float = START_TIMEOUT) -> str:
        """Wait until the child says that something has happened, and return the rest of that line.

        Raises:
            ChildError: It said something else, ended, or was silent for too long.
        """
        line = self._read_line(Deadline.after(timeout))
        if line is None:
            raise self._error(f"said nothing within {timeout:g} seconds")
        said, _, rest = line.partition(" ")
        if said != event:
            what = f"said {line!r}" if line else "ended"
            raise self._error(f"{what} where {event!r} was expected")
        return rest

    def _read_line(self, deadline: Deadline) -> str | None:
        """Return the next line, an empty text at the end of the output, or None at the deadline."""
        pipe = self._process.stdout
        if pipe is None:
            return ""
        poller = select.poll()
        poller.register(pipe, select.POLLIN)
        while b"\n" not in self._unread:
            if not poller.poll(int(deadline.remaining() * 1000)):
                return None
            data = os.read(pipe.fileno(), 4096)
            if not data:
                return ""
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="backslashreplace")

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float = STOP_TIMEOUT) -> int:
        """Wait until it has ended and return its exit code; a negative one is a signal's number.

        Raises:
            ChildError: It still runs after `timeout` seconds.
        """
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._error(f"still runs after {timeout:g} seconds") from None

    def close(self) -> None:
        """End it, wait for it, and close the pipes; more than once is fine."""
        with contextlib.suppress(ChildError):
            self.terminate()
            self.wait(STOP_TIMEOUT)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def log_lines(self) -> list[str]:
        """Return what it said on standard error."""
        try:
            return self._log.read_text(errors="backslashreplace").splitlines()
        except OSError:
            return []

    def _error(self, what: str) -> ChildError:
        return ChildError(f"{self.name} {what}", self.log_lines()[-_LOG_LINES:])


def _environment() -> dict[str, str]:
    """Return the environment of the children, in which this very hostline is found."""
    environment = dict(os.environ)
    root = Path(os.path.abspath(__file__)).parents[2]
    if root.name not in ("site-packages", "dist-packages"):
        paths = [str(root), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


class Stage:
    """Hold the children and the directories of one run; leaving the context ends and removes them all.

    Attributes:
        directory: Where sockets, journals and logs are; only this user can enter it.
        environment: Variables with which a child finds this very hostline.
        is_quick: Whether the run is to be short.
    """

    def __init__(self, *, is_quick: bool = False) -> None:
        self.is_quick = is_quick
        self.environment = _environment()
        self._children: list[Child] = []
        self._directories: list[Path] = []
        self.directory = self.make_directory("hostline-demo-")

    def make_directory(self, prefix: str, mode: int = 0o700) -> Path:
        """Return a fresh directory; its path is short, because a socket's path may have 107 bytes."""
        place = "/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else None  # noqa: S108 - mkdtemp makes it private
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        self._directories.append(path)
        path.chmod(mode)
        return path

    @property
    def directories(self) -> list[str]:
        """Every directory that was made here."""
        return [str(path) for path in self._directories]

    def start(self, name: str, module: str, *arguments: str) -> Child:
        """Start a child and return at once."""
        child = Child(name, module, arguments, self.directory, self.environment)
        self._children.append(child)
        return child

    def close(self) -> None:
        """End every child, the last one first, and remove the directories; more than once is fine."""
        try:
            while self._children:
                self._children[-1].close()
                self._children.pop()
        finally:
            for path in self._directories:
                shutil.rmtree(path, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
