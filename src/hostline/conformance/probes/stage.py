"""What every probe stands on: fresh directories, servers of the subject, and a bare look at who holds a path.

The look is made with plain system calls, not with hostline: the judge shares no code with what it judges.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hostline.clock import Deadline
from hostline.conformance.table import Cell
from hostline.conformance.workshop import Child, Failure, Workshop

__all__ = ["Abort", "Probe", "Stage", "Start", "dead_socket", "holder"]

# Seconds for a server to say that it listens, or to fail: gunicorn tries a failing path for five.
START_TIMEOUT = 12.0

# Seconds for a server to be gone after SIGTERM.
CLOSE_TIMEOUT = 8.0

# Seconds for a server that says it listens to be reachable, and for a question to be answered.
ANSWER_TIMEOUT = 5.0

# The umask of every probe but one: the usual default, whatever the user's own is.
USUAL_UMASK = 0o022


class Abort(Exception):
    """End a probe early with the cell that its columns get."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell.observed)
        self.cell = cell


@dataclass(frozen=True, slots=True)
class Probe:
    """Name a probe's columns and the function that fills them."""

    keys: tuple[str, ...]
    run: Callable[[Stage], dict[str, Cell]]


@dataclass(frozen=True, slots=True)
class Start:
    """Hold how a start went.

    Attributes:
        child: The server's process.
        is_ready: It says that it listens.
        failure: Why it does not; None with `is_ready` false means that it neither listened nor failed in time.
    """

    child: Child
    is_ready: bool
    failure: Failure | None

    @property
    def words(self) -> str:
        """Say in a few words how it went."""
        if self.is_ready:
            return "starts"
        return str(self.failure) if self.failure else "neither starts nor fails"

    @property
    def detail(self) -> str:
        """The error in full."""
        return self.failure.full if self.failure else ""


class Stage:
    """Run the probes of one subject in a private directory."""

    def __init__(self, module: str, directory: Path, trials: int) -> None:
        """Start importing the subject.

        Args:
            module: The subject's module.
            directory: A private directory with a short path; the caller removes it.
            trials: How often the contenders race.
        """
        self.trials = trials
        self._module = module
        self._directory = directory
        self._directory.mkdir(mode=0o700)
        self._numbers = itertools.count()
        self._workshops = {USUAL_UMASK: Workshop(module, directory / "w", USUAL_UMASK)}
        self._abilities: frozenset[str] | None = None

    def can(self, ability: str) -> bool:
        """Say whether the subject has that function."""
        if self._abilities is None:
            self._abilities = self._workshops[USUAL_UMASK].abilities()
        return ability in self._abilities

    def need(self, ability: str, otherwise: str) -> None:
        """End the probe as `n/a` unless the subject has that function."""
        if not self.can(ability):
            raise Abort(Cell.not_applicable(otherwise))

    def fresh(self) -> Path:
        """Make a new empty directory, 0700."""
        path = self._directory / str(next(self._numbers))
        path.mkdir(mode=0o700)
        return path

    def begin(self, path: Path, *, umask: int = USUAL_UMASK, at: float | None = None) -> Child:
        """Have a new server start on the path; does not wait for it."""
        self.need("serve", "brings no server")
        if umask not in self._workshops:
            self._workshops[umask] = Workshop(self._module, self._directory / f"w{umask:03o}", umask)
            self._workshops[umask].abilities()
        return self._workshops[umask].start("serve", str(path), at=at)

    def finish(self, *children: Child) -> list[Start]:
        """Wait until each start has gone one way or the other; they share one time limit."""
        deadline = Deadline.after(START_TIMEOUT)
        starts = []
        for child in children:
            event = child.wait("ready", "failed", timeout=deadline.remaining())
            is_ready = event is not None and event["event"] == "ready"
            starts.append(Start(child, is_ready, None if is_ready else child.failure()))
        return starts

    def serve(self, path: Path, *, umask: int = USUAL_UMASK) -> Start:
        """Start a server and wait how it goes."""
        return self.finish(self.begin(path, umask=umask))[0]

    def served(self, path: Path, *, umask: int = USUAL_UMASK) -> Child:
        """Start a server that has to start, on a path where nothing is in its way, and wait until it is reachable."""
        start = self.serve(path, umask=umask)
        if not start.is_ready:
            raise Abort(Cell.error(f"does not start: {start.words}", start.detail))
        if not self.is_held(path, start.child):
            raise Abort(Cell.error("starts, but nobody answers on the path", start.child.log()))
        return start.child

    def is_held(self, path: Path, child: Child) -> bool:
        """Say whether a bare connect to the path reaches that server, waiting briefly for a slow one."""
        deadline = Deadline.after(ANSWER_TIMEOUT)
        while (pid := holder(path)) != child.pid:
            if pid is not None or child.has_exited or deadline.has_passed():
                return False
            time.sleep(0.005)
        return True

    def is_answering(self, path: Path, child: Child) -> bool:
        """Say whether that server, and no other, answers its own client on the path."""
        if holder(path) != child.pid:
            return False
        if not self.can("ask"):
            return True
        client = self._workshops[USUAL_UMASK].start("ask", str(path), timeout=ANSWER_TIMEOUT)
        event = client.wait("result", "failed", timeout=ANSWER_TIMEOUT + 2)
        client.kill()
        # Not compared with the pid: a worker process may answer. The bare connect above has seen whose path it is.
        return event is not None and event["event"] == "result"

    def client(self, do: str, path: Path, **facts: object) -> Child:
        """Have a fresh process do something with the subject's client; does not wait for it."""
        return self._workshops[USUAL_UMASK].start(do, str(path), **facts)

    def close(self) -> None:
        """Kill everything that this subject still runs."""
        with contextlib.ExitStack() as stack:
            for workshop in self._workshops.values():
                stack.callback(workshop.close)


def holder(path: Path) -> int | None:
    """Return the pid of the process that listens on a path by asking the kernel, or None if nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, _reachable(path) as address:
        sock.settimeout(ANSWER_TIMEOUT)
        try:
            sock.connect(address)
        except OSError as error:
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTSOCK, errno.EAGAIN):
                return None
            raise
        if sys.platform == "linux":
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            return int(struct.unpack("3i", credentials)[0])
        # macOS: SOL_LOCAL is 0 and LOCAL_PEERPID is 2.
        return int(struct.unpack("i", sock.getsockopt(0, 2, struct.calcsize("i")))[0])


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """Give an address for a path of any length: a long one through its directory's descriptor."""
    if len(os.fsencode(path)) < 100 or sys.platform != "linux":
        yield str(path)
        return
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def dead_socket(path: Path) -> None:
    """Leave a socket file with nobody behind it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(path))
        sock.listen()
