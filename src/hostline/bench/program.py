"""What a subject's own process runs: its server, or its client that does what it is told and times it.

    python .../bench/program.py serve|drive JSON

Started by its path, so that `hostline` itself is imported only where it is the subject: a peer's process then holds the
peer and nothing of ours. Commands come as lines of JSON on standard input, answers leave on standard output: a line of
JSON, and behind it the bytes of an array of times if the line says so. Its other side is `processes.py`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import threading
import time
import types
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from hostline.bench.subject import Driver, Subject

# Sizes whose echo is compared before the first round.
CHECKED_SIZES = (64, 1024, 16 << 10)
# Descriptors of this process that the others must not bring down: 10,000 connections and what Python needs.
WANTED_DESCRIPTORS = 1 << 16


class _Crowd:
    """Let many drivers of one subject take turns, for subjects whose driver cannot grow by itself."""

    def __init__(self, connect: Callable[[], Driver]) -> None:
        self._connect = connect
        self.drivers = [connect()]
        self._turn = 0

    def grow(self, clients: int) -> None:
        first = self.drivers[0]
        if first.can_grow:
            first.grow(clients)
            return
        while len(self.drivers) > clients:
            self.drivers.pop().close()
        while len(self.drivers) < clients:
            self.drivers.append(self._connect())

    def latency(self, size: int, count: int) -> array[int]:
        if len(self.drivers) == 1:
            return self.drivers[0].latency(size, count)
        times = array("Q", bytes(8 * count))
        for index in range(count):
            times[index] = self.drivers[(self._turn + index) % len(self.drivers)].latency(size, 1)[0]
        self._turn = (self._turn + count) % len(self.drivers)
        return times

    def close(self) -> None:
        for driver in self.drivers:
            driver.close()


class _Client:
    """Obey the commands of the run with one subject's drivers."""

    def __init__(self, subject: Subject, crowd: _Crowd) -> None:
        from hostline.bench.subject import WrongAnswerError

        self._subject = subject
        self._crowd = crowd
        self._wrong = WrongAnswerError
        self._release: Callable[[], None] | None = None

    def obey(self, command: dict[str, Any]) -> tuple[dict[str, Any], array[int] | None]:
        """Do one command and return its answer."""
        action = command["do"]
        first = self._crowd.drivers[0]
        if action == "check":
            self.check()
        elif action == "grow":
            self._crowd.grow(command["clients"])
        elif action == "hold":
            self._release = first.hold(command["count"])
        elif action == "release":
            if self._release is not None:
                self._release()
                self._release = None
        else:
            return self.measure(action, command)
        return {"pids": first.pids()}, None

    def check(self) -> None:
        """Compare what comes back with what was sent.

        Raises:
            WrongAnswerError: They differ.
        """
        if "latency" not in self._subject.workloads and "kinds" not in self._subject.workloads:
            return
        for size in CHECKED_SIZES:
            sent = os.urandom(size // 2).hex().encode()
            got = self._crowd.drivers[0].echo(sent)
            if got != sent:
                raise self._wrong(f"{size} bytes did not come back as they were sent, but {len(got)} others")

    def measure(self, action: str, command: dict[str, Any]) -> tuple[dict[str, Any], array[int] | None]:
        """Do one share of timed work, without a pause of the garbage collector that an earlier one has earned."""
        work = self._work(action, command)
        pids = self._crowd.drivers[0].pids()
        gc.collect()
        cpu = cpu_seconds(pids)
        begin = time.perf_counter_ns()
        result = work()
        end = time.perf_counter_ns()
        after = cpu_seconds(pids)
        answer = {"begin": begin, "end": end, "pids": pids, "cpu": None}
        if cpu is not None and after is not None:
            answer["cpu"] = after - cpu
        if isinstance(result, int):
            return {**answer, "elapsed": result}, None
        if len(result) != command["count"]:
            raise self._wrong(f"{len(result)} operations were done, not {command['count']}")
        return answer, result

    def _work(self, action: str, command: dict[str, Any]) -> Callable[[], array[int] | int]:
        first = self._crowd.drivers[0]
        size, count = command["size"], command["count"]
        if action == "latency":
            return lambda: self._crowd.latency(size, count)
        if action == "transfer":
            return lambda: first.transfer(size, count)
        if action == "one_way":
            return lambda: first.one_way(size, count, command["is_batched"])
        if action == "pipelined":
            return lambda: first.pipelined(size, count, command["window"])
        if action == "reconnect":
            return lambda: first.reconnect(count)
        if action == "pass_fds":
            return lambda: first.pass_fds(command["fds"], count)
        raise ValueError(f"no action {action!r}")


def cpu_seconds(pids: list[int]) -> float | None:
    """Return the processor time of some processes with all their threads, or None where it cannot be had.

    The clock of another process, as clock_getcpuclockid(3) would name it: nanoseconds, where /proc has hundredths.
    """
    try:
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)
    except (OSError, OverflowError):
        return None


def _drive(subject: Subject, door: Any, out: BinaryIO) -> None:
    """Connect, and obey until standard input ends."""
    crowd = _Crowd(lambda: subject.drive(door))
    client = _Client(subject, crowd)
    _answer(out, {"pids": crowd.drivers[0].pids()}, None)
    for line in sys.stdin.buffer:
        command = json.loads(line)
        signal.alarm(int(command["timeout"]) + 1)  # also when the run is gone: its default action ends this process
        answer, times = client.obey(command)
        signal.alarm(0)
        _answer(out, answer, times)
    crowd.close()


def _answer(out: BinaryIO, answer: dict[str, Any], times: array[int] | None) -> None:
    data = b"" if times is None else times.tobytes()
    out.write(json.dumps({**answer, "bytes": len(data)}).encode() + b"\n" + data)
    out.flush()


def _serve(subject: Subject, door: Any, out: BinaryIO) -> None:
    """Serve until SIGTERM, or until the run is gone."""

    def leave(_number: int, _frame: object) -> None:
        raise SystemExit(0)

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    signal.signal(signal.SIGTERM, leave)
    threading.Thread(target=watch, daemon=True).start()
    door.on_ready = lambda port: _answer(out, {"port": port, "pids": [os.getpid()]}, None)
    subject.serve(door)


def _find(module: str, name: str, is_hostline: bool) -> Subject:
    """Return the subject; what `import hostline` would load stays out, unless hostline is what is measured."""
    if not is_hostline:
        stub = types.ModuleType("hostline")
        stub.__path__ = [str(Path(__file__).resolve().parents[1])]
        sys.modules["hostline"] = stub
    for subject in importlib.import_module(module).SUBJECTS:
        if subject.name == name:
            found: Subject = subject
            return found
    raise ValueError(f"no subject {name!r} in {module}")


def _raise_descriptor_limit() -> None:
    try:
        import resource

        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = hard if hard != resource.RLIM_INFINITY else WANTED_DESCRIPTORS
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, WANTED_DESCRIPTORS), hard))
    except (ImportError, ValueError, OSError):
        pass


def main(arguments: list[str]) -> int:
    """Serve or drive one subject; `arguments` are the role and a JSON object."""
    role, text = arguments
    facts = json.loads(text)
    # Its own directory would be searched first, where modules have common names.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a subject prints is no answer
    if facts["pin"] is not None:
        os.sched_setaffinity(0, facts["pin"])
    _raise_descriptor_limit()
    subject = _find(facts["module"], facts["name"], facts["is_hostline"])
    from hostline.bench.subject import Door

    door = Door(transport=subject.transport, **facts["door"])
    (_serve if role == "serve" else _drive)(subject, door, out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
