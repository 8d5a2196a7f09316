"""What rows stand on: a directory, servers in processes of their own, those who call them, and what must come back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.leaks import Snapshot, wait_until
from tests.serving import ServerProcess, descriptor_count, loop_factory_named, loop_names

import hostline
from scorecard.rows import Skipped

MIB = 1 << 20

# Seconds that a server gets to give back what its peers left.
SETTLE = 20.0


class Ground:
    """What one run of a row is given.

    Attributes:
        size: The row's numbers for this size.
        is_full: Whether this is the full size.
        loop: The event loop of servers and asyncio clients: `asyncio` or `uvloop`.
        directory: Fresh, short, and ours; other users can pass through it.
        given_back: What was found left over after servers ran; every value must be zero.
        servers: How many servers were looked at for it.
    """

    def __init__(self, size: Mapping[str, Any], *, is_full: bool, loop: str) -> None:
        self.size = dict(size)
        self.is_full = is_full
        self.loop = loop
        self.directory = Path(tempfile.mkdtemp(prefix="hls-"))
        self.directory.chmod(0o755)
        self.address = str(self.directory / "s")
        self.given_back: dict[str, int] = {}
        self.left: list[str] = []
        self.servers = 0
        warm_up_loops()
        self._before = Snapshot.take()

    @property
    def is_root(self) -> bool:
        return os.geteuid() == 0

    def need_root(self, why: str) -> None:
        """Skip the row without root."""
        if not self.is_root:
            raise Skipped(f"needs root: {why}")

    def charge(self, **left: int) -> None:
        """Add what was found left over."""
        for name, count in left.items():
            self.given_back[name] = self.given_back.get(name, 0) + count

    @contextlib.contextmanager
    def serve(self, *options: str, address: str = "", log: Path | None = None) -> Iterator[ServerProcess]:
        """Run `scorecard.service` until the block ends, and look at what it still holds then."""
        where = address or self.address
        loop = ("--loop", self.loop)
        with ServerProcess(where, *loop, *options, log=log, program="scorecard.service") as server:
            with hostline.connect(where, max_size=1) as line:
                line.call("pid")
                before = descriptor_count(server.pid)
            yield server
            self.look_at(server, where, before)
            server.signal(signal.SIGTERM)
            if (code := server.wait(30)) != 0:
                raise AssertionError(f"the server ended with {code}")

    def look_at(self, server: ServerProcess, address: str, before: int) -> None:
        """Ask a server what it still charges, now that all but the one who asks have left."""
        with hostline.connect(address, max_size=1) as line:
            charged: dict[str, int] = {}

            def is_clear() -> bool:
                charged.update(charges(line))
                charged["server_descriptors"] = descriptor_count(server.pid) - before
                return not any(charged.values())

            wait_until(is_clear, SETTLE, 0.02)
        charged["server_children"] = len(children_of(server.pid))
        self.charge(**charged)
        self.servers += 1

    def close(self) -> None:
        """Remove the directory and look at what is left in this process."""
        shutil.rmtree(self.directory, ignore_errors=True)
        found = self._before.what_is_left(5.0)
        self.left += found
        for kind, name in (("descriptor", "descriptors"), ("thread", "threads"), ("child", "children")):
            self.charge(**{f"{name}_left": sum(line.startswith(kind) for line in found)})


def warm_up_loops() -> None:
    """Make what a loop makes once in a process and keeps: libuv has a pipe for signals."""
    for name in loop_names():
        with contextlib.suppress(ImportError), asyncio.Runner(loop_factory=loop_factory_named(name)) as runner:
            runner.run(asyncio.sleep(0))


def charges(line: Any) -> dict[str, int]:
    """Return what a service charges to anybody beside the one who asks on `line`."""
    stats = line.call("hostline.stats", timeout=20)
    own = {"connections": 1, "running": stats["calls"]["running"] and 1}
    found = {"connections": stats["connections"] - 1, "running": stats["calls"]["running"] - own["running"]}
    found |= {
        "waiting": stats["calls"]["waiting"],
        "bytes": 0,
        "descriptors": 0,
        "mapped": 0,
        "users": max(0, len(stats["users"]) - 1),
    }
    for user in stats["users"]:
        found["bytes"] += user["bytes"]
        found["descriptors"] += user["descriptors"]
        found["mapped"] += user["mapped"]
    return found


def children_of(pid: int) -> list[int]:
    """Return the process ids of a process's children."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


# --- measuring -----------------------------------------------------------------------------------------


def p99(delays: Sequence[float]) -> float:
    """Return the delay that one in a hundred exceeds, in milliseconds."""
    if len(delays) < 20:
        raise AssertionError(f"only {len(delays)} calls were timed, which says nothing about one in a hundred")
    return round(statistics.quantiles(delays, n=100)[98] * 1e3, 3)


def ratio(loaded: float, unloaded: float, least: float = 2.0) -> float:
    """Return how many times longer a delay has become.

    Args:
        loaded: Milliseconds beside the load.
        unloaded: Milliseconds without it.
        least: Milliseconds that the unloaded one counts as at least: below it the scheduler of a small machine
            decides, not the server.
    """
    return round(loaded / max(unloaded, least), 2)


class Caller:
    """Calls all the time, in a thread, and remembers how long each call took; its marks divide phases.

    Args:
        address: Whom to call.
        pause: Seconds between two calls.
        method: What is called, with a number that must come back.
        is_newcomer: Whether each call is made on a connection of its own.
    """

    def __init__(
        self, address: str, *, pause: float = 0.002, method: str = "charge", is_newcomer: bool = False
    ) -> None:
        self.address = address
        self.errors: list[str] = []
        self._delays: list[float] = []
        self._pause, self._method, self._is_newcomer = pause, method, is_newcomer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="caller")
        self._thread.start()

    def _run(self) -> None:
        line: Any = None
        try:
            for number in range(1 << 60):
                if self._stop.wait(self._pause):
                    break
                begin = time.perf_counter()
                try:
                    if line is None:
                        line = hostline.connect(self.address, max_size=1)
                    if line.call(self._method, number, timeout=20) != number:
                        self.errors.append(f"call {number} got the answer of another")
                    if self._is_newcomer:
                        line.close()
                        line = None
                except Exception as error:
                    self.errors.append(repr(error))
                    continue
                self._delays.append(time.perf_counter() - begin)
        finally:
            if line is not None:
                line.close()

    def take(self) -> list[float]:
        """Return the delays, in seconds, since this was last asked."""
        taken, self._delays = self._delays, []
        return taken

    def gather(self, count: int, timeout: float = 60.0) -> list[float]:
        """Wait until so many more calls were made, and return their delays in seconds."""
        self.take()
        if not wait_until(lambda: len(self._delays) >= count, timeout):
            raise AssertionError(f"{len(self._delays)} of {count} calls in {timeout} seconds: {self.errors[:3]}")
        return self.take()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(60)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid: int | str) -> int:
    """Return the most resident memory that a process has had since it began or since `forget_peak`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel tells no peak")


def forget_peak(pid: int) -> None:
    """Let the kernel take the peak anew from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def raise_descriptor_limit() -> int:
    """Take as many descriptors as this process may have; return how many."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def in_threads(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run functions at the same time and return what they returned; the first error is raised."""
    results: list[Any] = [None] * len(functions)
    errors: list[BaseException] = []

    def run(place: int) -> None:
        try:
            results[place] = functions[place]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(place,), name=f"row-{place}") for place in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
