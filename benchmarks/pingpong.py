"""One call at a time over a Unix socket: C, bare Python sockets, and hostline's typed call, side by side.

    python benchmarks/pingpong.py [--rounds 7] [--count 3000] [--pin 0] [--json]

Every row runs in separate processes, the rows take turns within each round, and only ratios within one run mean
anything: the figure of a row is the median, over the rounds, of its median round trip divided by C's in the same round.
All rows carry 64 bytes of content there and about as many back. Everything ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

import hostline

HERE = Path(__file__).parent
SIZE = 64


class Ping(msgspec.Struct):
    """What the typed rows send: three fields, 64 bytes encoded, as msgspec writes the text below."""

    id: int
    name: str
    text: str


PING = Ping(7, "ping", "x" * 38)

service = hostline.Service("pingpong")


@service.method(inline=True)
def inline(ping: Ping) -> Ping:
    """Give back what came, on the loop itself."""
    return ping


@service.method
async def task(ping: Ping) -> Ping:
    """Give back what came, as a task."""
    return ping


@service.method
def worker(ping: Ping) -> Ping:
    """Give back what came, in a worker thread."""
    return ping


# --- the rows: each returns round trips in nanoseconds -------------------------------------------------


def c_row(binary: Path, path: str, count: int) -> list[int]:
    """Run the C program."""
    output = subprocess.run([binary, path, str(SIZE), str(count)], check=True, capture_output=True, timeout=120).stdout
    return [int(line) for line in output.split()]


def bare_row(path: str, count: int) -> list[int]:
    """Blocking sockets in Python, no frame and no encoding."""
    data = b"x" * SIZE
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)

        def trip() -> None:
            sock.sendall(data)
            sock.recv(65536)

        return measure(trip, count)


def blocking_row(path: str, method: str, count: int) -> list[int]:
    """The blocking client."""
    with hostline.connect(path) as line:
        call = line.call
        return measure(lambda: call(method, PING, returns=Ping, timeout=10.0), count)


def asyncio_row(
    path: str, method: str, count: int, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None
) -> list[int]:
    """The asyncio client, one call at a time."""

    async def run() -> list[int]:
        times = []
        async with hostline.aio.connect(path) as line:
            for index in range(-count // 10, count):
                begin = time.perf_counter_ns()
                await line.call(method, PING, returns=Ping, timeout=10.0)
                if index >= 0:
                    times.append(time.perf_counter_ns() - begin)
        return times

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(run())


def measure(trip: Callable[[], object], count: int) -> list[int]:
    """Time `count` round trips, after a tenth as many to warm up."""
    times = []
    clock = time.perf_counter_ns
    for index in range(-count // 10, count):
        begin = clock()
        trip()
        if index >= 0:
            times.append(clock() - begin)
    return times


# --- the servers ---------------------------------------------------------------------------------------


def serve_bare(path: str) -> None:
    """Send back what comes, one connection at a time, with blocking sockets."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            sock, _ = listener.accept()
            with sock:
                while data := sock.recv(65536):
                    sock.sendall(data)


def serve(kind: str, path: str) -> None:
    """Run one of the servers until it is terminated."""
    if kind == "bare":
        serve_bare(path)
    elif kind == "uvloop":
        import uvloop

        service.run(path, loop_factory=uvloop.new_event_loop)
    else:
        service.run(path)


def start(kind: str, path: str) -> subprocess.Popen[bytes]:
    """Start a server process and wait until it accepts."""
    process = subprocess.Popen([sys.executable, __file__, "--serve", kind, path])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except OSError:
                time.sleep(0.01)
            else:
                return process
    raise SystemExit(f"server {kind} did not start")


# --- the run -------------------------------------------------------------------------------------------


def rows(directory: str, count: int, has_uvloop: bool) -> dict[str, Callable[[], list[int]]]:
    """Return the rows by name, in the order they take their turns."""
    bare, plain, fast = (f"{directory}/{kind}.sock" for kind in ("bare", "asyncio", "uvloop"))
    result: dict[str, Callable[[], list[int]]] = {}
    binary = compile_c(directory)
    if binary is not None:
        result["C, blocking sockets"] = lambda: c_row(binary, f"{directory}/c.sock", count)
    result["Python, blocking sockets"] = lambda: bare_row(bare, count)
    result["typed call, inline handler"] = lambda: blocking_row(plain, "inline", count)
    result["typed call, async handler"] = lambda: blocking_row(plain, "task", count)
    result["typed call, handler in a thread"] = lambda: blocking_row(plain, "worker", count)
    result["asyncio client, inline handler"] = lambda: asyncio_row(plain, "inline", count, None)
    if has_uvloop:
        import uvloop

        result["typed call, inline, server on uvloop"] = lambda: blocking_row(fast, "inline", count)
        result["asyncio client, both on uvloop"] = lambda: asyncio_row(fast, "inline", count, uvloop.new_event_loop)
    return result


def compile_c(directory: str) -> Path | None:
    """Compile the C program, or say that there is no compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        print("no C compiler: ratios are to Python's blocking sockets", file=sys.stderr)
        return None
    binary = Path(directory, "pingpong")
    subprocess.run([compiler, "-O2", "-o", binary, HERE / "pingpong.c"], check=True)
    return binary


def run(rounds: int, count: int) -> dict[str, object]:
    """Let the rows take turns and return the figures."""
    try:
        import uvloop  # noqa: F401 - only whether it is there
    except ImportError:
        has_uvloop = False
    else:
        has_uvloop = True
    kinds = ["bare", "asyncio", *(["uvloop"] if has_uvloop else [])]
    with tempfile.TemporaryDirectory(prefix="hl", dir="/tmp") as directory:
        servers = [start(kind, f"{directory}/{kind}.sock") for kind in kinds]
        try:
            table = rows(directory, count, has_uvloop)
            times: dict[str, list[list[int]]] = {name: [] for name in table}
            for number in range(rounds):
                for name, row in table.items():
                    progress(f"round {number + 1} of {rounds}: {name}")
                    times[name].append(sorted(row()))
            progress("")
        finally:
            for server in servers:
                server.terminate()
            for server in servers:
                server.wait(20)
    return figures(times)


def figures(times: dict[str, list[list[int]]]) -> dict[str, object]:
    """Return, for each row, its medians and its ratio to the first row, round by round."""
    base = next(iter(times.values()))
    result = []
    for name, by_round in times.items():
        medians = [quantile(one, 0.5) for one in by_round]
        ratios = [mine / quantile(theirs, 0.5) for mine, theirs in zip(medians, base, strict=True)]
        result.append(
            {
                "row": name,
                "p50_us": statistics.median(medians) / 1000,
                "p99_us": statistics.median(quantile(one, 0.99) for one in by_round) / 1000,
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
            }
        )
    machine = {"python": platform.python_version(), "kernel": platform.release(), "cpus": os.cpu_count()}
    return {"machine": machine, "size": SIZE, "rows": result}


def quantile(ordered: list[int], share: float) -> int:
    """Return the value below which `share` of an ordered list lies."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def progress(text: str) -> None:
    """Show what runs, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def show(report: dict[str, object]) -> None:
    """Print the table."""
    print(f"{'one call at a time, 64 bytes':40} {'p50':>9} {'p99':>9}   {'ratio to the first row':>22}")
    rows_ = report["rows"]
    for row in rows_ if isinstance(rows_, list) else []:
        spread = f"{row['ratio']:5.2f}  ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        print(f"{row['row']:40} {row['p50_us']:6.1f} us {row['p99_us']:6.1f} us   {spread:>22}")
    print("medians over rounds that took turns; on a shared machine only the ratios mean something")


def main() -> None:
    """Run the benchmark, or one of its servers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=3000, help="round trips of one row in one round")
    parser.add_argument("--pin", type=int, help="keep all processes on this one processor")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        try:
            serve(*options.serve)
        except KeyboardInterrupt:
            return
    else:
        if options.pin is not None:
            os.sched_setaffinity(0, {options.pin})
        report = run(options.rounds, options.count)
        print(json.dumps(report, indent=2)) if options.json else show(report)


if __name__ == "__main__":
    main()
