"""R1 and R2: many connections at once, and many that end in every way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from tests.second_user import Fork
from tests.serving import descriptor_count, loop_factory_named, resident_bytes
from tests.test_hostile import Hostile, connected

import hostline
from scorecard.ground import Ground, raise_descriptor_limit
from scorecard.rows import Skipped, Verdict, row

# Most that one connection may cost its server, in bytes of resident memory.
CONNECTION_COST = 12 << 10


@row(
    "R1",
    "Many connections at once",
    "so many live connections, each introduced and its peer known, with 100 calls a second over random ones: 0 errors"
    " and at most 12 KiB of the server's resident memory for each",
    ci={"connections": 1000, "seconds": 10, "rate": 100},
    full={"connections": 9900, "seconds": 600, "rate": 100},
)
def many_connections(ground: Ground) -> Verdict:
    count = ground.size["connections"]
    limit = raise_descriptor_limit()
    if limit < count + 100:
        raise Skipped(f"a process may have {limit} descriptors here, and {count + 100} are needed")
    with ground.serve("--connections", str(count + 100)) as server:
        with hostline.connect(ground.address) as line:
            for number in range(1000):
                line.call("charge", number)
        before = resident_bytes(server.pid)
        with asyncio.Runner(loop_factory=loop_factory_named(ground.loop)) as runner:
            numbers = runner.run(hold_and_call(ground, lambda: resident_bytes(server.pid) - before))
    return Verdict(
        numbers,
        {
            "every connection was held": numbers["connections"] == count,
            "0 errors": not numbers["errors"],
            "the rate was kept, to a half": numbers["calls"] > ground.size["rate"] * ground.size["seconds"] / 2,
            "at most 12 KiB each": numbers["bytes_for_each"] <= CONNECTION_COST,
        },
    )


async def hold_and_call(ground: Ground, grown: Callable[[], int]) -> dict[str, Any]:
    """Open the lines, call over random ones for so many seconds, and close them."""
    count, rate = ground.size["connections"], ground.size["rate"]
    gate = asyncio.Semaphore(64)
    errors: list[str] = []

    async def connect() -> Any:
        async with gate:
            return await hostline.aio.connect(ground.address)

    async def call(line: Any, number: int) -> None:
        try:
            if await line.call("charge", number, timeout=20) != number:
                errors.append("the answer of another")
        except Exception as error:
            errors.append(repr(error))

    begin = time.monotonic()
    lines = await asyncio.gather(*(connect() for _ in range(count)))
    opened = time.monotonic() - begin
    after_opening = grown()
    calls: set[asyncio.Task[None]] = set()
    made = 0
    end = time.monotonic() + ground.size["seconds"]
    while time.monotonic() < end:
        task = asyncio.ensure_future(call(random.choice(lines), made))
        calls.add(task)
        task.add_done_callback(calls.discard)
        made += 1
        await asyncio.sleep(1 / rate)
    await asyncio.gather(*calls)
    held = int((await lines[0].call("hostline.stats"))["connections"])
    memory = grown()
    for line in lines:
        await line.close()
    return {
        "connections": held,
        "seconds_to_open": round(opened, 2),
        "seconds_held": ground.size["seconds"],
        "calls": made,
        "errors": len(errors),
        "first_errors": errors[:3],
        "bytes_for_each": max(memory, after_opening) // count,
    }


# --- R2 ------------------------------------------------------------------------------------------------

# Connections that each killed process has open.
IN_ONE_PROCESS = 5


class Mix(Hostile):
    """A quarter each: behaved, reset, gone within a frame, and killed with several connections open."""

    def run(self, count: int) -> int:
        made = 0
        while made < count:
            for act in (self.behave, self.reset, self.half_a_frame):
                for _ in range(IN_ONE_PROCESS):
                    made += 1
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError), connected(self.address) as sock:
                        act(sock)
            made += self.die(IN_ONE_PROCESS)
        return made

    def die(self, count: int) -> int:
        """Fork, open connections in several states, and be killed."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            held: list[socket.socket] = []
            try:
                for _ in range(count):
                    held.append(connected(self.address))
                    random.choice((self.behave, self.half_a_frame, self.leave_calls_behind))(held[-1])
                os.write(writer, b"x")
                time.sleep(60)
            finally:
                os._exit(1)
        os.close(writer)
        os.read(reader, 1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        return count


def come_and_go(address: str, seed: int, count: int) -> int:
    """Make `count` connections that end in all four ways."""
    return Mix(address, seed).run(count)


@row(
    "R2",
    "As many descriptors after as before",
    "connections that end in four ways, a quarter each: cleanly, by a reset, within a frame, with SIGKILL of their"
    " process: the server has as many descriptors as before. Control: the count while connections are still open must"
    " differ",
    ci={"connections": 10_000},
    full={"connections": 100_000},
)
def descriptors_return(ground: Ground) -> Verdict:
    count = ground.size["connections"]
    with ground.serve("--concurrency", "500") as server, hostline.connect(ground.address, max_size=1) as line:
        line.call("pid")
        before = descriptor_count(server.pid)
        with Fork(os.geteuid(), come_and_go, ground.address, 1, count, gid=os.getegid(), groups=None) as mix:
            made = mix.result(3600)
        after, seconds = settled(lambda: descriptor_count(server.pid), before)
        stats = line.call("hostline.stats")
        with connected(ground.address), connected(ground.address):
            line.call("pid")
            open_ones = descriptor_count(server.pid)
    return Verdict(
        {
            "connections": made,
            "processes_killed": made // IN_ONE_PROCESS // 4,
            "descriptors_before": before,
            "descriptors_after": after,
            "seconds_until_equal": seconds,
            "seen_by_the_server": stats["connections_total"],
        },
        {"descriptors as before": after == before, "the server saw them": stats["connections_total"] >= made},
        {"descriptors_with_two_connections_open": open_ones},
        open_ones != before,
    )


def settled(measure: Callable[[], int], target: int, timeout: float = 20.0) -> tuple[int, float]:
    """Wait until a count is what it should be; returns the last count and how many seconds it took."""
    begin = time.monotonic()
    while (value := measure()) != target and time.monotonic() - begin < timeout:
        time.sleep(0.01)
    return value, round(time.monotonic() - begin, 2)
