"""Callers of a service with several processes: each connection has its own, and `hostline.stats` shows them all.

Prints:

    168 primes, counted in 2 processes
    2 workers, 0 restarts, at least ... MiB of memory each
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import hostline

with contextlib.ExitStack() as stack:
    watch = stack.enter_context(hostline.connect("primes"))

    def workers() -> list[dict[str, Any]]:
        return [worker for worker in watch.call("hostline.stats")["workers"] if worker["state"] == "serving"]

    while len(workers()) < 2:  # the first of them accepts before the last is ready
        time.sleep(0.01)

    lines = [stack.enter_context(hostline.connect("primes")) for _ in range(4)]
    answers = [line.call("count", 1_000, returns=tuple[int, int]) for line in lines]
    print(f"{answers[0][0]} primes, counted in {len({pid for _, pid in answers})} processes")

    found = workers()
    restarts = sum(worker["restarts"] for worker in found)
    least = min(worker["memory"] for worker in found) >> 20
    print(f"{len(found)} workers, {restarts} restarts, at least {least} MiB of memory each")
