"""Large bytes as an argument and as a result: in the frame, and in sealed memory, side by side.

    python benchmarks/buffers.py [--rounds 5] [--seconds 25] [--json]

Both ways run against two servers that differ in `INLINE_BUFFER` alone. They take turns in each round, for each size,
and only ratios within one run mean anything: sealed memory's median divided by the frame's in the same round. Whoever
receives reads one byte of each page, because memory that is mapped is paid for when it is looked at. Frames may hold
16 MiB here, half of it buffers; above that there is sealed memory only. It ends by itself after about `--seconds`, on a
busy machine later.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import hostline
from hostline.limits import HARD_MAX_FRAME_SIZE
from hostline.rpc import attachments

KIB = 1 << 10
MIB = 1 << 20
SIZES = [64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB, MIB, 2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB, 64 * MIB]
LARGEST_INLINE = HARD_MAX_FRAME_SIZE // 2
WAYS = {"frame": LARGEST_INLINE, "sealed": 0}
MOST_CALLS = 200

DATA = memoryview(bytes(range(256)) * (SIZES[-1] // 256))

service = hostline.Service("buffers")


def read(view: hostline.Buffer | memoryview) -> int:
    """Look at one byte of each page."""
    return len(memoryview(view)[::4096].tobytes())


@service.method(inline=True)
def take(data: hostline.Buffer) -> int:
    """Read what came."""
    return read(data)


@service.method(inline=True)
def give(size: int) -> hostline.Buffer:
    """Give so many bytes."""
    return hostline.Buffer(DATA[:size])


def serve(way: str, path: str) -> None:
    """Serve until terminated; results travel one way."""
    attachments.INLINE_BUFFER = WAYS[way]  # type: ignore[misc]
    service.run(path, max_frame_size=HARD_MAX_FRAME_SIZE)


# --- the run -------------------------------------------------------------------------------------------


def calls(line: hostline.Line, way: str, size: int) -> dict[str, Callable[[], object]]:
    """Return the two directions, each as something to be called once."""

    def argument() -> None:
        attachments.INLINE_BUFFER = WAYS[way]  # type: ignore[misc]
        line.call("take", hostline.Buffer(DATA[:size]))

    return {"argument": argument, "result": lambda: read(line.call("give", size, returns=hostline.Buffer))}


def timed(call: Callable[[], object], seconds: float) -> list[int]:
    """Call for so many seconds, at least twice, and return nanoseconds, the shortest first."""
    clock = time.perf_counter_ns
    times: list[int] = []
    call()
    end = clock() + int(seconds * 1e9)
    while len(times) < 2 or (clock() < end and len(times) < MOST_CALLS):
        begin = clock()
        call()
        times.append(clock() - begin)
    return sorted(times)


def run(rounds: int, seconds: float) -> dict[str, object]:
    """Let both ways take turns and return the figures."""
    times: dict[tuple[str, int, str], list[list[int]]] = {}
    share = seconds / rounds / len(SIZES) / 4
    with tempfile.TemporaryDirectory(prefix="hl", dir="/tmp") as directory:
        paths = {way: f"{directory}/{way}" for way in WAYS}
        servers = [subprocess.Popen([sys.executable, __file__, "--serve", *item]) for item in paths.items()]
        lines = {}
        try:
            for way, path in paths.items():
                lines[way] = hostline.connect(path, wait=20, max_frame_size=HARD_MAX_FRAME_SIZE)
            for _ in range(rounds):
                for size in SIZES:
                    for way in WAYS:
                        if way == "frame" and size > LARGEST_INLINE:
                            continue
                        for direction, call in calls(lines[way], way, size).items():
                            times.setdefault((direction, size, way), []).append(timed(call, share))
        finally:
            for line in lines.values():
                line.close()
            for server in servers:
                server.terminate()
            for server in servers:
                server.wait(20)
    return figures(times)


def figures(times: dict[tuple[str, int, str], list[list[int]]]) -> dict[str, object]:
    """Return medians, 95th percentiles and, round by round, the ratio of the two ways."""
    result = []
    for direction in ("argument", "result"):
        for size in SIZES:
            row: dict[str, object] = {"direction": direction, "size": size}
            medians: dict[str, list[float]] = {}
            for way in WAYS:
                by_round = times.get((direction, size, way), [])
                if by_round:
                    medians[way] = [statistics.median(one) for one in by_round]
                    row[f"{way}_p50_us"] = statistics.median(medians[way]) / 1000
                    row[f"{way}_p95_us"] = statistics.median(one[int(len(one) * 0.95)] for one in by_round) / 1000
            if len(medians) == 2:
                ratios = [s / f for s, f in zip(medians["sealed"], medians["frame"], strict=True)]
                row["ratio"], row["ratio_min"], row["ratio_max"] = statistics.median(ratios), min(ratios), max(ratios)
            result.append(row)
    machine = {"python": platform.python_version(), "kernel": platform.release(), "cpus": os.cpu_count()}
    return {"machine": machine, "rows": result}


def show(report: dict[str, object]) -> None:
    """Print the figures as a table."""
    print("microseconds; ratio = sealed memory / frame, median over the rounds (least to most)")
    print(f"{'':9}{'KiB':>7}{'frame p50':>12}{'p95':>10}{'sealed p50':>12}{'p95':>10}   ratio")
    rows = report["rows"]
    assert isinstance(rows, list)
    for row in rows:
        frame = f"{row['frame_p50_us']:12.0f}{row['frame_p95_us']:10.0f}" if "ratio" in row else f"{'-':>12}{'-':>10}"
        ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})" if "ratio" in row else "-"
        sealed = f"{row['sealed_p50_us']:12.0f}{row['sealed_p95_us']:10.0f}"
        print(f"{row['direction']:9}{row['size'] // KIB:7}{frame}{sealed}   {ratio}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    report = run(options.rounds, options.seconds)
    if options.json:
        print(json.dumps(report))
    else:
        show(report)


if __name__ == "__main__":
    main()
