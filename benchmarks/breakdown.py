"""Where the time of one call goes: instructions, microseconds and system calls of both sides, module by module.

    python benchmarks/breakdown.py [SITUATION ...] [--core 0] [--loop asyncio] [--pure] [--before SRC] [--json]

Both processes stay on one core, so that one works while the other waits and their times add up to the round trip.
Instructions are counted by valgrind's callgrind, in two runs with different numbers of calls, of which the shorter is
subtracted: start and end are not in it, nor is the kernel. They are the same in each run, to a per cent or two.
Microseconds are the round trip, timed without a profiler, shared out as `perf record` finds the core occupied; they
are this machine's, at this moment. System calls are counted by strace. What of the three is not installed is left out.

`--pure` adds a column for the same source without its compiled core, `--before` one for another source tree (its
`src`); all take turns when the round trip is timed, and the ratios are made within the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import gc
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

import hostline

ROUNDS = 7
WARM = 60  # calls: the interpreter specializes its code after some
WINDOW = 64  # calls under way where they are pipelined
MIB = 1 << 20
PIECE = 0.25  # seconds of one round
LIMIT = 300  # seconds for one process
INTERPRETER = "interpreter"
COLUMNS = ("client", "server")


class Ping(msgspec.Struct):
    """64 bytes, encoded with the text below."""

    id: int
    name: str
    text: str


PING = Ping(7, "ping", "x" * 42)
DATA = memoryview(bytes(range(256)) * (MIB // 256))


def build_service() -> hostline.Service:
    service = hostline.Service("breakdown")

    @service.method(inline=True)
    def inline(ping: Ping) -> Ping:
        return ping

    @service.method
    async def task(ping: Ping) -> Ping:
        return ping

    @service.method(inline=True)
    def take(data: hostline.Buffer) -> int:
        return len(memoryview(data))

    return service


# --- the two processes -----------------------------------------------------------------------------------


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if name != "uvloop":
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def serve(loop: str, path: str) -> None:
    """Serve until terminated."""
    service = build_service()
    gc.freeze()
    gc.disable()
    service.run(path, loop_factory=loop_factory(loop))


@contextmanager
def caller(situation: str, loop: str, path: str) -> Iterator[Callable[[int], None]]:
    """Connect, and give what makes so many calls."""
    if situation == "asyncio":
        with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
            line = runner.run(connected(path))

            async def some(count: int) -> None:
                call = line.call
                for _ in range(count):
                    await call("inline", PING, returns=Ping, timeout=10.0)

            yield lambda count: runner.run(some(count))
            runner.run(line.close())
        return
    with hostline.connect(path, wait=60) as blocking:
        yield lambda count: BLOCKING[situation](blocking, count)


async def connected(path: str) -> hostline.aio.Line:
    return await hostline.aio.connect(path, wait=60)


def blocking_calls(line: hostline.Line, count: int) -> None:
    call = line.call
    for _ in range(count):
        call("inline", PING, returns=Ping, timeout=10.0)


def task_calls(line: hostline.Line, count: int) -> None:
    call = line.call
    for _ in range(count):
        call("task", PING, returns=Ping, timeout=10.0)


def pipelined_calls(line: hostline.Line, count: int) -> None:
    with line.batch(max_in_flight=WINDOW) as batch:
        for _ in range(count):
            batch.call("inline", PING, returns=Ping)
    batch.results()


def buffer_calls(line: hostline.Line, count: int) -> None:
    call = line.call
    for _ in range(count):
        call("take", hostline.Buffer(DATA), returns=int, timeout=10.0)


BLOCKING: dict[str, Callable[[hostline.Line, int], None]] = {
    "blocking": blocking_calls,
    "task": task_calls,
    "pipelined": pipelined_calls,
    "buffer": buffer_calls,
}
# What one is, and how many calls make the shorter of the two counted runs.
SITUATIONS = {
    "blocking": ("a call of 64 bytes, blocking client, inline handler", 300),
    "task": ("a call of 64 bytes, blocking client, async handler", 300),
    "asyncio": ("a call of 64 bytes, asyncio client, inline handler", 300),
    "pipelined": (f"a call of 64 bytes in a batch, {WINDOW} under way, blocking client", 1280),
    "buffer": ("a call with a Buffer of 1 MiB", 40),
}


def call_so_often(situation: str, loop: str, path: str, count: int) -> None:
    """Make some calls: for counting."""
    with caller(situation, loop, path) as calls:
        calls(WARM)
        gc.freeze()
        gc.disable()
        calls(count)


def call_so_long(situation: str, loop: str, path: str) -> None:
    """Call for a while whenever a line with a number of seconds comes, and say what one took, in nanoseconds."""
    with caller(situation, loop, path) as calls:
        some = 10 if situation == "buffer" else 256
        calls(some)
        gc.freeze()
        gc.disable()
        print("ready", flush=True)
        for line in sys.stdin:
            done = 0
            begin = now = time.perf_counter_ns()
            while now - begin < float(line) * 1e9:
                calls(some)
                done += some
                now = time.perf_counter_ns()
            print((now - begin) / done, flush=True)


# --- running them ----------------------------------------------------------------------------------------


class Side:
    """One source to run: which, and how."""

    def __init__(self, name: str, source: str | None, is_pure: bool) -> None:
        self.name = name
        self.environment = {**os.environ, "PYTHONHASHSEED": "0"}
        self.environment.pop("HOSTLINE_PURE_PYTHON", None)
        if source is not None:
            self.environment["PYTHONPATH"] = str(Path(source).resolve())
        if is_pure:
            self.environment["HOSTLINE_PURE_PYTHON"] = "1"


def words(*arguments: object, tool: tuple[str, ...] = ()) -> list[str]:
    return [*tool, sys.executable, str(Path(__file__).resolve()), "--worker", *map(str, arguments)]


@contextmanager
def serving(side: Side, loop: str, path: str, tool: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server, perhaps under a tool, until the block ends."""
    server = subprocess.Popen(
        words("serve", loop, path, tool=tool), env=side.environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        end = time.monotonic() + LIMIT
        while not os.path.exists(path):
            if server.poll() is not None or time.monotonic() > end:
                raise SystemExit("the server did not start")
            time.sleep(0.05)
        yield server
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(LIMIT)


def run_twice(
    side: Side, situation: str, loop: str, counted: str, tool: Callable[[str], tuple[str, ...]]
) -> tuple[list[str], int]:
    """Run one side under a tool that writes a file, with few calls and with three times as many; return the files."""
    few = SITUATIONS[situation][1]
    texts = []
    for count in (few, 3 * few):
        with tempfile.TemporaryDirectory(prefix="hl", dir="/tmp") as directory:
            path, out = f"{directory}/s", f"{directory}/out"
            server_tool = tool(out) if counted == "server" else ()
            client_tool = tool(out) if counted == "client" else ()
            with serving(side, loop, path, server_tool):
                command = words("count", situation, loop, path, count, tool=client_tool)
                subprocess.run(command, env=side.environment, check=True, timeout=LIMIT)
            texts.append(Path(out).read_text(errors="replace"))
    return texts, 2 * few


# --- instructions ----------------------------------------------------------------------------------------


def layer(shared_object: str) -> str:
    """Return who an object file belongs to."""
    name = shared_object.rsplit("/", 1)[-1]
    if found := re.search(r"/hostline/(.+?)\.(?:cpython|abi3)[^/]*$", shared_object):
        return f"hostline {found[1]}"
    if name.startswith(("libpython", "python")) and "/lib-dynload/" not in shared_object:
        return INTERPRETER
    if "/msgspec/" in shared_object or "msgspec" in name:
        return "msgspec"
    if "/uvloop/" in shared_object:
        return "uvloop"
    if "kernel" in shared_object:
        return "kernel"
    if name.startswith(("libc.", "libc-", "libm.", "libpthread", "ld-linux", "linux-vdso", "[")):
        return "C library"
    return name.split(".", 1)[0]


def instructions(side: Side, situation: str, loop: str, counted: str) -> dict[str, float]:
    """Return the instructions of one call by layer."""

    def tool(out: str) -> tuple[str, ...]:
        return ("valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={out}", "--error-exitcode=0")

    (few, many), calls = run_twice(side, situation, loop, counted, tool)
    less, more = self_costs(few), self_costs(many)
    return {name: (more[name] - less.get(name, 0)) / calls for name in more}


def self_costs(text: str) -> dict[str, int]:
    """Return each layer's own cost, of what callgrind wrote: lines of costs belong to the last `ob=`."""
    names: dict[str, str] = {}
    costs: dict[str, int] = collections.Counter()
    current = "?"
    is_callee = False
    for line in text.splitlines():
        if line.startswith(("ob=", "cob=")):
            _, _, value = line.partition("=")
            number, _, name = value.partition(" ")
            if name:
                names[number] = layer(name)
            if line.startswith("ob="):
                current = names[number]
        elif line.startswith("calls="):
            is_callee = True  # the next line has the callee's cost, which counts there
        elif found := re.match(r"[-+*\d]\S* (\d+)$", line):
            if not is_callee:
                costs[current] += int(found[1])
            is_callee = False
    return costs


# --- system calls ----------------------------------------------------------------------------------------


def system_calls(side: Side, situation: str, loop: str, counted: str) -> dict[str, float]:
    """Return the system calls that one call makes."""
    (few, many), calls = run_twice(
        side, situation, loop, counted, lambda out: ("strace", "-f", "-qq", "-c", "-U", "name,calls", "-o", out)
    )
    less, more = (
        {found[1]: int(found[2]) for found in re.finditer(r"^\s*([a-z_0-9]+)\s+(\d+)\s*$", text, re.MULTILINE)}
        for text in (few, many)
    )
    less.pop("total", None)
    more.pop("total", None)
    result = {name: (count - less.get(name, 0)) / calls for name, count in more.items()}
    return {name: value for name, value in result.items() if value > 0.004}


# --- time ------------------------------------------------------------------------------------------------


class Pair:
    """A server and a client that stay for all rounds."""

    def __init__(self, side: Side, situation: str, loop: str, directory: str) -> None:
        self._held = serving(side, loop, f"{directory}/s")
        self.server = self._held.__enter__()
        self.client = subprocess.Popen(
            words("time", situation, loop, f"{directory}/s"), env=side.environment, stdin=-1, stdout=-1, text=True
        )
        if self._line() != "ready":
            raise SystemExit("the client did not start")

    def _line(self) -> str:
        assert self.client.stdout is not None
        return self.client.stdout.readline().strip()

    def work(self, seconds: float) -> float:
        """Call for so long, and return the microseconds of one."""
        assert self.client.stdin is not None
        self.client.stdin.write(f"{seconds}\n")
        self.client.stdin.flush()
        return float(self._line()) / 1000

    def close(self) -> None:
        """End both."""
        self.client.communicate(timeout=LIMIT)
        self._held.__exit__(None, None, None)


def occupation(pair: Pair, core: int) -> dict[str, dict[str, float]] | None:
    """Return which share of the core each layer of each side has while they work; None without perf."""
    with tempfile.TemporaryDirectory(prefix="hl", dir="/tmp") as directory:
        out = f"{directory}/perf"
        record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "20000", "-a", "-C", str(core), "-o", out]
        with subprocess.Popen([*record, "--", "sleep", "1.5"], stderr=subprocess.DEVNULL) as perf:
            while perf.poll() is None:
                pair.work(0.2)
        if perf.returncode != 0:
            return None
        report = subprocess.run(
            ["perf", "script", "-i", out, "-F", "pid,ip,sym,dso"], capture_output=True, text=True, check=False
        ).stdout
    shares: dict[str, dict[str, float]] = {"client": {}, "server": {}}
    pids = {pair.client.pid: "client", pair.server.pid: "server"}
    lines = re.findall(r"^\s*(\d+)\s+[0-9a-f]+ .*\((.*)\)$", report, re.MULTILINE)
    ours = [(pids[int(pid)], layer(name)) for pid, name in lines if int(pid) in pids]
    for column, name in ours:
        shares[column][name] = shares[column].get(name, 0) + 1 / len(ours)
    return shares if ours else None


def times(sides: list[Side], situation: str, loop: str, core: int) -> dict[str, dict[str, Any]]:
    """Return for each side the round trip in microseconds, its ratio to the first one's, and who has the core."""
    with tempfile.TemporaryDirectory(prefix="hl", dir="/tmp") as directory:
        pairs: dict[str, Pair] = {}
        try:
            for number, side in enumerate(sides):
                os.mkdir(f"{directory}/{number}")
                pairs[side.name] = Pair(side, situation, loop, f"{directory}/{number}")
            rounds = [{name: pair.work(PIECE) for name, pair in pairs.items()} for _ in range(ROUNDS)]
            has_perf = shutil.which("perf") is not None
            shares = {name: occupation(pair, core) if has_perf else None for name, pair in pairs.items()}
        finally:
            for pair in pairs.values():
                pair.close()
    first = sides[0].name
    result: dict[str, dict[str, Any]] = {}
    for side in sides:
        micros = statistics.median(one[side.name] for one in rounds)
        ratios = [one[side.name] / one[first] for one in rounds]
        found = shares[side.name]
        result[side.name] = {
            "microseconds": micros,
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "by_layer": None
            if found is None
            else {column: {name: share * micros for name, share in values.items()} for column, values in found.items()},
        }
    return result


# --- the run ---------------------------------------------------------------------------------------------


def measure(sides: list[Side], situation: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one situation."""
    result: dict[str, Any] = times(sides, situation, options.loop, options.core)
    for side in sides:
        for tool, name, what in (
            ("valgrind", "instructions", instructions),
            ("strace", "system_calls", system_calls),
        ):
            if shutil.which(tool) and not options.only_times:
                result[side.name][name] = {column: what(side, situation, options.loop, column) for column in COLUMNS}
    return result


def show(situation: str, loop: str, result: dict[str, Any]) -> None:
    """Print the tables of one situation."""
    print(f"\n{SITUATIONS[situation][0]}; server{' and client' if situation == 'asyncio' else ''} on {loop}")
    for name, found in result.items():
        spread = f"{found['ratio']:.2f} ({found['ratio_min']:.2f} to {found['ratio_max']:.2f})"
        print(f"\n  {name}: {found['microseconds']:.2f} us, {spread} of the first")
        counts, micros = found.get("instructions"), found["by_layer"]
        columns = [f"{column} {unit}" for column in COLUMNS for unit in ("instr.", "us")]
        print(f"  {'':36}" + "".join(f"{column:>15}" for column in columns))
        layers: collections.Counter[str] = collections.Counter()
        for one in (counts, micros):
            for values in (one or {}).values():
                layers.update({key: value / (sum(values.values()) or 1) for key, value in values.items()})
        for key in ["total", *(key for key, _ in layers.most_common())]:
            cells, is_shown = "", False
            for column in COLUMNS:
                for one, digits in ((counts, 0), (micros, 2)):
                    values = (one or {}).get(column, {})
                    value = sum(values.values()) if key == "total" else values.get(key, 0.0)
                    is_shown = is_shown or value >= (20 if digits == 0 else 0.02)
                    cells += f"{value:15,.{digits}f}" if value else f"{'-':>15}"
            if is_shown:
                print(f"  {key:36}{cells}")
        for column, calls in (found.get("system_calls") or {}).items():
            text = ", ".join(f"{key} {value:.2f}" for key, value in sorted(calls.items(), key=lambda item: -item[1]))
            print(f"  system calls, {column}: {text or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("situations", nargs="*", metavar="SITUATION", help=", ".join(SITUATIONS) + "; all if left out")
    parser.add_argument("--core", type=int, default=0, help="the core that both processes stay on")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--pure", action="store_true", help="also without the compiled core")
    parser.add_argument("--before", metavar="SRC", help="also this other source tree, the directory that is imported")
    parser.add_argument("--only-times", action="store_true", help="count nothing")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        kind, *rest = options.worker
        if kind == "serve":
            serve(*rest)
        elif kind == "count":
            call_so_often(rest[0], rest[1], rest[2], int(rest[3]))
        else:
            call_so_long(*rest)
        return
    if unknown := [name for name in options.situations if name not in SITUATIONS]:
        parser.error(f"no such situation: {', '.join(unknown)}; there are {', '.join(SITUATIONS)}")
    os.sched_setaffinity(0, {options.core})
    sides = [Side("compiled" if hostline.is_compiled() else "pure Python", None, False)]
    if options.pure and hostline.is_compiled():
        sides.append(Side("pure Python", None, True))
    if options.before:
        sides.append(Side("before", options.before, False))
    report = {}
    for situation in options.situations or SITUATIONS:
        report[situation] = measure(sides, situation, options)
        if not options.json:
            show(situation, options.loop, report[situation])
    if options.json:
        print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
