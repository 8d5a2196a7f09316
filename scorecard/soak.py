"""R29: a server in development mode, called and left in every way for a long time."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from tests.serving import RawClient, descriptor_count, resident_bytes

import hostline
from scorecard.ground import Ground, cpu_seconds, in_threads
from scorecard.rows import Verdict, row

# Most that the server may grow in an hour; and what a run of seconds, in which caches still fill, may see at most.
SLOPE = 1 << 20
SHORT_GROWTH = 2 << 20

# Descriptors that it may have at any moment: the loop's, the listener's, and two for each of a few connections.
DESCRIPTORS = 60


def call_steadily(address: str, stop: threading.Event, counts: dict[str, int]) -> None:
    """Call on one line, with values and streams."""
    rng = random.Random(1)
    with hostline.connect(address, max_size=2) as line:
        while not stop.wait(0.002):
            line.call("echo", rng.randbytes(rng.randrange(3000)), timeout=20)
            counts["calls"] += 1
            if rng.random() < 0.1:
                counts["items"] += len(list(line.stream("numbers", 50, timeout=20)))


def come_and_go(address: str, stop: threading.Event, counts: dict[str, int]) -> None:
    """Connect, call and leave; sometimes amid a call or a stream, or without a word."""
    rng = random.Random(2)
    while not stop.wait(0.005):
        counts["connections"] += 1
        if rng.random() < 0.7:
            with hostline.connect(address) as line:
                line.call("echo", 1, timeout=20)
        else:
            with RawClient(address, hello=rng.random() < 0.7) as client:
                if client.methods:
                    client.call(1, "later", 1, 30.0)
                    client.call(2, "numbers", 10_000)


def give_up(address: str, stop: threading.Event, counts: dict[str, int]) -> None:
    """Make calls whose deadline passes."""
    with hostline.connect(address) as line:
        while not stop.wait(0.02):
            try:
                line.call("later", 1, 5.0, timeout=0.01)
            except TimeoutError:
                counts["deadlines"] += 1


def watch(pid: int, stop: threading.Event, seconds: float) -> list[tuple[float, int, int, int]]:
    """Note time, resident bytes, descriptors and threads of a process now and then."""
    samples = []
    begin = time.monotonic()
    while not stop.is_set():
        threads = len(os.listdir(f"/proc/{pid}/task"))
        samples.append((time.monotonic() - begin, resident_bytes(pid), descriptor_count(pid), threads))
        if stop.wait(min(10.0, seconds / 40)) or time.monotonic() - begin > seconds:
            break
    stop.set()
    return samples


@row(
    "R29",
    "A long run",
    "a server under -X dev -W error with calls, streams, deadlines and connections that come and go: memory grows by"
    " less than 1 MiB an hour (in a run under ten minutes by less than 2 MiB over its second half), threads and"
    " descriptors stay, nothing is warned of. Control: connections that stay must be seen in the count of descriptors",
    ci={"seconds": 20},
    full={"seconds": 3600},
)
def soak(ground: Ground) -> Verdict:
    seconds, log = ground.size["seconds"], ground.directory / "log"
    counts = dict.fromkeys(("calls", "items", "connections", "deadlines"), 0)
    stop = threading.Event()
    os.environ |= {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error"}
    with ground.serve(log=log) as server:
        cpu = cpu_seconds(server.pid)
        samples: list[tuple[float, int, int, int]]

        def until_stopped(work: Any) -> None:
            try:
                work(ground.address, stop, counts)
            finally:
                stop.set()

        works = [lambda work=work: until_stopped(work) for work in (call_steadily, come_and_go, give_up)]  # type: ignore[misc]
        samples = in_threads([lambda: watch(server.pid, stop, seconds), *works])[0]
        used = cpu_seconds(server.pid) - cpu
        with contextlib.ExitStack() as held:
            for _ in range(2 * DESCRIPTORS):
                held.enter_context(RawClient(ground.address))
            with_held = descriptor_count(server.pid)
    rest = samples[len(samples) // 2 :]
    slope = statistics.linear_regression([at for at, *_ in rest], [memory for _, memory, *_ in rest]).slope
    quarter = max(1, len(rest) // 4)
    grown = statistics.median(m for _, m, *_ in rest[-quarter:]) - statistics.median(m for _, m, *_ in rest[:quarter])
    said = Path(log).read_text().splitlines()
    is_long = seconds >= 600
    return Verdict(
        {
            "seconds": seconds,
            **counts,
            "server_cpu_percent": round(100 * used / samples[-1][0]),
            "grown_over_second_half_kib": int(grown) >> 10,
            "slope_kib_an_hour": int(slope * 3600) >> 10,
            "most_threads": max(sample[3] for sample in rest),
            "threads_first_half": max(sample[3] for sample in samples[: len(samples) // 2]),
            "most_descriptors": max(sample[2] for sample in rest),
            "log_lines": len(said),
            "first_log_lines": said[:3],
        },
        {
            "memory stays": slope * 3600 < SLOPE if is_long else grown < SHORT_GROWTH,
            "threads stay": max(s[3] for s in rest) <= max(s[3] for s in samples[: len(samples) // 2]),
            "descriptors stay within what is connected": max(s[2] for s in rest) < DESCRIPTORS,
            "nothing was warned of": not any("Warning" in text or "Traceback" in text for text in said),
            "there was load": counts["calls"] > seconds and counts["connections"] > seconds,
        },
        {"descriptors_with_connections_that_stay": with_held},
        with_held >= DESCRIPTORS,
    )
