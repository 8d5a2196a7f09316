"""R13 and R25 to R28: values, forks, signals, cancellations and deaths in the middle of calls."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
from tests.leaks import wait_until
from tests.serving import AsyncLine, RawClient, ServerProcess, loop_factory_named
from tests.test_fork import fork_amid_calls
from tests.test_signals import call_many

import hostline
from hostline.errors import HostlineError, UnavailableError
from scorecard.facts import version_of
from scorecard.ground import Ground, in_threads
from scorecard.rows import Verdict, row

# --- R13 -----------------------------------------------------------------------------------------------

EDGES = (0, -1, 1, 127, 128, 255, 256, -128, -129, 65535, 65536, 2**31, 2**32, 2**63 - 1, -(2**63), 2**64 - 1)


def random_value(rng: random.Random, depth: int = 0) -> Any:
    """Return a value of the kinds that travel untyped, nested at most five deep."""
    kind = rng.randrange(9 if depth < 5 else 7)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return rng.choice(EDGES)
    if kind == 2:
        return rng.choice((0.0, -0.0, math.inf, -math.inf, 5e-324, rng.random() * 10.0 ** rng.randrange(-300, 300)))
    if kind == 3:
        points = (
            rng.choice((rng.randrange(0x80), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000))) for _ in range(20)
        )
        return "".join(map(chr, points))[: rng.randrange(21)]
    if kind == 4:
        return rng.randbytes(rng.choice((0, 1, 31, 32, 255, 256, 4000)))
    if kind in (5, 6):
        return rng.randrange(-1000, 1000)
    if kind == 7:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(6))]
    return {f"k{rng.randrange(100)}": random_value(rng, depth + 1) for _ in range(rng.randrange(6))}


def seen_by_all(value: Any, lines: list[Any]) -> list[bytes]:
    """Return what each line's echo of a value is, in bytes that differ wherever types or signs do."""
    return [msgspec.msgpack.encode(line.call("echo", value, timeout=20)) for line in lines]


@row(
    "R13",
    "Both faces agree",
    "random values that travel there and back through the blocking client, asyncio and uvloop come back as the same"
    " bytes from all, and as what was sent. Control: one that changes 1 into 1.0 must be seen",
    ci={"values": 2000},
    full={"values": 100_000},
)
def faces_agree(ground: Ground) -> Verdict:
    rng, differing = random.Random(13), []
    loops = ["asyncio", *(["uvloop"] if version_of("uvloop") else [])]
    with ground.serve():
        lines: list[Any] = [AsyncLine(ground.address, loop=loop) for loop in loops]
        with hostline.connect(ground.address, max_size=1) as blocking:
            for number in range(ground.size["values"]):
                value = random_value(rng)
                expected = msgspec.msgpack.encode(value)
                found = seen_by_all(value, [blocking, *lines])
                if any(encoded != expected for encoded in found):
                    differing.append(number)
            changed = msgspec.msgpack.encode(float(blocking.call("echo", 1)))
        for line in lines:
            line.close()
    verdict = Verdict(
        {"values": ground.size["values"], "clients": ["blocking", *loops], "differing": len(differing)},
        {"no value differs": not differing},
        {"one_as_a_float_is_seen": changed != msgspec.msgpack.encode(1)},
        changed != msgspec.msgpack.encode(1),
    )
    missing = [name for name in ("varlink", "asyncvarlink") if version_of(name) is None]
    verdict.notes.append(f"not compared with {' and '.join(missing) or 'varlink, whose protocol is another'}")
    return verdict


# --- R25, R26 ------------------------------------------------------------------------------------------


@row(
    "R25",
    "Forks amid calls",
    "a process forks while six threads are in the middle of calls, and its children call on the same line: every"
    " answer on either side is the right one",
    ci={"forks": 120},
    full={"forks": 1000},
)
def forks(ground: Ground) -> Verdict:
    with ground.serve():
        begin = time.monotonic()
        fork_amid_calls(ground.address, ground.size["forks"])
        seconds = time.monotonic() - begin
    return Verdict(
        {"forks": ground.size["forks"], "seconds_forking": round(seconds, 1), "wrong_answers": 0},
        {"every answer was the right one": True},
    )


@row(
    "R26",
    "A signal every millisecond",
    "calls under a timer that interrupts every millisecond: none fails and none is answered wrongly, and the signals"
    " did come",
    ci={"calls": 15_000},
    full={"calls": 100_000},
)
def signals(ground: Ground) -> Verdict:
    with ground.serve():
        seen = call_many(ground.address, ground.size["calls"])
    verdict = Verdict(
        {"calls": ground.size["calls"], "signals": seen, "failed": 0},
        {"every call was answered": True, "signals came": seen > ground.size["calls"] / 100},
    )
    verdict.notes.append("EINTR is made by real signals here, not injected at each system call")
    return verdict


# --- R27 -----------------------------------------------------------------------------------------------


async def cancel_at_random(address: str, count: int) -> dict[str, Any]:
    """Begin calls and cancel them anywhere; returns how they ended and what the line still holds."""
    rng = random.Random(27)
    ended = {"cancelled": 0, "answered": 0, "wrong": 0, "failed": 0}

    async def one(line: Any, number: int) -> None:
        try:
            answer = await line.call("later", number, rng.choice((0.0, 0.002, 0.01, 0.05)), timeout=20)
            ended["answered" if answer == number else "wrong"] += 1
        except asyncio.CancelledError:
            ended["cancelled"] += 1
            raise
        except HostlineError:
            ended["failed"] += 1

    async with hostline.aio.connect(address) as line:
        numbers = itertools.count()
        while ended["cancelled"] < count:
            tasks = [asyncio.ensure_future(one(line, number)) for number in itertools.islice(numbers, 50)]
            for task in rng.sample(tasks, len(tasks)):
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(rng.choice((0, 0, 0, 0, 0.0005)))
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        right = [await line.call("later", number, 0.0) == number for number in range(100)]
        in_flight = line._connection.protocol.in_flight
        for _ in range(200):
            if not in_flight:
                break
            await asyncio.sleep(0.01)
        return {**ended, "right_afterwards": sum(right), "pending_afterwards": len(in_flight)}


def give_up_at_random(address: str, count: int) -> dict[str, Any]:
    """Make blocking calls from threads with deadlines that pass anywhere; returns how they ended."""
    ended = {"gave_up": 0, "answered": 0, "wrong": 0}
    lock = threading.Lock()
    with hostline.connect(address, max_size=4) as line:

        def work(seed: int) -> None:
            rng = random.Random(seed)
            for number in range(seed * 1_000_000, seed * 1_000_000 + count // 8):
                try:
                    answer = line.call("later", number, rng.choice((0.0, 0.002)), timeout=rng.random() * 0.006)
                    outcome = "answered" if answer == number else "wrong"
                except TimeoutError:
                    outcome = "gave_up"
                with lock:
                    ended[outcome] += 1

        in_threads([lambda seed=seed: work(seed) for seed in range(8)])  # type: ignore[misc]
        right = in_threads([lambda number=number: line.call("later", number, 0.01) == number for number in range(4)])  # type: ignore[misc]
        free = wait_until(lambda: line._pool.idle_count == line.pool_size, 5)
        return {**ended, "right_afterwards": sum(right), "all_places_free": free, "connections": line.pool_size}


@row(
    "R27",
    "Cancelled anywhere",
    "calls cancelled at random moments, on a loop by cancelling the task and in threads by deadlines: no answer"
    " reaches another call, nothing is pending afterwards on either side, every place in the pool is free. Control:"
    " while calls are under way the same look must find them",
    ci={"cancels": 5000},
    full={"cancels": 100_000},
)
def cancellations(ground: Ground) -> Verdict:
    count = ground.size["cancels"]
    with ground.serve("--concurrency", "64"):
        with asyncio.Runner(loop_factory=loop_factory_named(ground.loop)) as runner:
            on_loop = runner.run(cancel_at_random(ground.address, count))
            found = runner.run(look_amid_calls(ground.address))
        in_pool = give_up_at_random(ground.address, count // 3)
    return Verdict(
        {"on_a_loop": on_loop, "in_threads": in_pool},
        {
            "no wrong answer": on_loop["wrong"] == in_pool["wrong"] == 0,
            "none failed otherwise": on_loop["failed"] == 0,
            "as many were cancelled, and some were not": on_loop["cancelled"] >= count and on_loop["answered"] > 0,
            "nothing pending on the line": on_loop["pending_afterwards"] == 0,
            "the lines go on": on_loop["right_afterwards"] == 100 and in_pool["right_afterwards"] == 4,
            "every place in the pool is free": in_pool["all_places_free"],
        },
        {"pending_amid_calls": found},
        found > 0,
    )


async def look_amid_calls(address: str) -> int:
    """Return what the look of this row finds while ten calls are under way."""
    async with hostline.aio.connect(address) as line:
        tasks = [asyncio.ensure_future(line.call("later", number, 0.2)) for number in range(10)]
        await asyncio.sleep(0.05)
        found = len(line._connection.protocol.in_flight)
        await asyncio.gather(*tasks)
        return found


# --- R28 -----------------------------------------------------------------------------------------------

# Milliseconds within which a killed server's calls end after a bare socket beside them is told by the kernel: on a busy
# machine a process takes its time to die.
DEATH = 50.0

# Seconds between pings, and without an answer until a stopped server is given up.
PING, PING_TIMEOUT = 0.2, 1.0


def seconds_to_learn(address: str, loop: str, strike: Callable[[], None], face: str, **options: Any) -> float:
    """Begin a call that does not end, strike the server, and return how long the caller took to notice."""
    struck = [0.0]

    def act() -> None:
        time.sleep(0.1)
        struck[0] = time.monotonic()
        strike()

    thread = threading.Thread(target=act, name="striker")

    async def on_loop() -> float:
        async with hostline.aio.connect(address, reconnect_timeout=0.0, **options) as line:
            thread.start()
            try:
                await line.call("later", 1, 30.0, timeout=4)
            except UnavailableError:
                return time.monotonic() - struck[0]
            except HostlineError:
                return math.inf
        return math.inf

    def blocking() -> float:
        with hostline.connect(address, reconnect_timeout=0.0, **options) as line:
            thread.start()
            try:
                line.call("later", 1, 30.0, timeout=4)
            except UnavailableError:
                return time.monotonic() - struck[0]
            except HostlineError:
                return math.inf
        return math.inf

    try:
        if face == "blocking":
            return blocking()
        with asyncio.Runner(loop_factory=loop_factory_named(loop)) as runner:
            return runner.run(on_loop())
    finally:
        thread.join()


@row(
    "R28",
    "The death of a peer",
    "SIGKILL of the server: pending calls end at most 50 ms after a bare socket of the same process is told by the"
    " kernel; SIGSTOP: they end by the ping deadline and half a second. Control: without pings a stopped server must"
    " not be noticed",
    ci={"deaths": 10, "stops": 2},
    full={"deaths": 200, "stops": 20},
)
def deaths(ground: Ground) -> Verdict:
    killed: list[tuple[float, float]] = []
    stopped: list[float] = []
    with_pings = {"ping_interval": PING, "ping_timeout": PING_TIMEOUT}
    for number in range(ground.size["deaths"] + ground.size["stops"]):
        face = ("blocking", "asyncio")[number % 2]
        with ServerProcess(ground.address, "--loop", ground.loop, program="scorecard.service") as server:
            if number < ground.size["deaths"]:
                killed.append(strike_with(ground, server, signal.SIGKILL, face))
            else:
                stopped.append(strike_with(ground, server, signal.SIGSTOP, face, **with_pings)[0])
    with ServerProcess(ground.address, "--loop", ground.loop, program="scorecard.service") as server:
        unnoticed, _ = strike_with(ground, server, signal.SIGSTOP, "blocking")
    deadline = PING + PING_TIMEOUT + 0.5
    behind = max(call - bare for call, bare in killed)
    return Verdict(
        {
            "deaths": len(killed),
            "longest_after_sigkill_ms": milliseconds(max(call for call, _ in killed)),
            "bare_socket_longest_ms": milliseconds(max(bare for _, bare in killed)),
            "longest_behind_bare_socket_ms": milliseconds(behind),
            "stops": len(stopped),
            "longest_after_sigstop_ms": milliseconds(max(stopped)),
            "ping_deadline_ms": milliseconds(deadline),
        },
        {
            "SIGKILL is noticed in time": behind * 1e3 <= DEATH,
            "SIGSTOP is noticed by the ping deadline": max(stopped) <= deadline,
        },
        {"without_pings_noticed_after_ms": milliseconds(unnoticed)},
        unnoticed == math.inf,
    )


def milliseconds(seconds: float) -> float | None:
    """Return seconds in milliseconds; None for never, which JSON has no word for."""
    return None if math.isinf(seconds) else round(seconds * 1e3, 1)


def strike_with(ground: Ground, server: ServerProcess, number: int, face: str, **options: Any) -> tuple[float, float]:
    """Send the server a signal amid a call; returns after how many seconds the caller knew, and a bare socket."""
    struck, told = [0.0], [math.inf]

    def strike() -> None:
        struck[0] = time.monotonic()
        os.kill(server.pid, number)

    with RawClient(ground.address) as bare:

        def wait_for_the_end() -> None:
            bare.sock.settimeout(20)
            with contextlib.suppress(OSError):
                bare.sock.recv(1)
            told[0] = time.monotonic()

        observer = threading.Thread(target=wait_for_the_end, name="observer")
        observer.start()
        try:
            taken = seconds_to_learn(ground.address, ground.loop, strike, face, **options)
        finally:
            if number != signal.SIGKILL:
                server.kill()
            observer.join()
    return taken, told[0] - struck[0]
