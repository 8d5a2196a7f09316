"""Measure one typed call over the Unix socket and over loopback TCP, in turns, within one run."""

from __future__ import annotations

import asyncio
import datetime
import signal
import statistics
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from hostline.aio.client import Line as AsyncLine
from hostline.aio.client import connect as connect_async
from hostline.demo.doors import OWN
from hostline.demo.loopback import AsyncTcpLine, BlockingTcpLine
from hostline.demo.model import Order, Quote
from hostline.demo.report import Step
from hostline.demo.steps.scene import Scene
from hostline.sync.client import Line, connect

__all__ = ["speed"]

# Calls that the asyncio client has under way at once.
_IN_FLIGHT = 64

# Rounds, and seconds of a round on one transport.
_ROUNDS, _ROUNDS_QUICK = 10, 4
_SECONDS, _SECONDS_QUICK = 0.3, 0.12

_UNIX, _TCP = "Unix socket", "loopback TCP"

_ORDER = Order(
    id=4711,
    placed_at=datetime.datetime(2026, 3, 2, 9, 30, tzinfo=datetime.UTC),
    customer="C00417",
    sku="TEA-ASSAM-250",
    quantity=3,
    price_cents=890,
    currency="EUR",
    card="tok_4242",
)


@dataclass
class _Series:
    """The calls of one way of calling.

    Attributes:
        name: Over what, and how.
        times: Seconds of each call.
        seconds: Seconds of all rounds together.
        medians: The p50 of each round.
    """

    name: str
    times: list[float] = field(default_factory=list)
    seconds: float = 0.0
    medians: list[float] = field(default_factory=list)

    def add(self, times: list[float], seconds: float) -> None:
        """Add a round."""
        self.times += times
        self.seconds += seconds
        self.medians.append(statistics.median(times))

    def percentile(self, share: float) -> float:
        """Return the time, in seconds, that this share of the calls did not exceed."""
        ordered = sorted(self.times)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def rate(self) -> float:
        """Calls a second."""
        return len(self.times) / self.seconds

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "name": self.name,
            "calls": len(self.times),
            "p50_us": round(self.percentile(0.50) * 1e6, 1),
            "p99_us": round(self.percentile(0.99) * 1e6, 1),
            "calls_per_second": round(self.rate),
        }


def speed(scene: Scene, step: Step) -> None:
    """Call the same method of the same process over both, in turns."""
    _open_doors(scene)
    own = str(scene.doors_directory / OWN)
    rounds = _ROUNDS_QUICK if scene.is_quick else _ROUNDS
    seconds = _SECONDS_QUICK if scene.is_quick else _SECONDS
    transports = [_UNIX, _TCP] if scene.tcp_port else [_UNIX]
    with scene.screen.progress("calls", rounds * 2) as progress:
        lines: dict[str, Line] = {_UNIX: connect(own)}
        try:
            if scene.tcp_port:
                lines[_TCP] = BlockingTcpLine(scene.tcp_port)
            blocking = _measure(transports, rounds, lambda name: _call_for(lines[name], seconds), progress)
        finally:
            for line in lines.values():
                line.close()
        pipelined = _run_until_signal(
            _measure_pipelined(own, scene.tcp_port, rounds, seconds, lambda done: progress(rounds + done))
        )
    _show(scene, step, {"blocking, one at a time": blocking, f"asyncio, {_IN_FLIGHT} in flight": pipelined})


def _run_until_signal(work: Coroutine[Any, Any, list[_Series]]) -> list[_Series]:
    """Run a coroutine in a loop of its own; a signal cancels it, and its handler is called when the loop is closed.

    A handler that raises in the middle of the loop's own work could make the loop forget a task, and wait for it
    for ever.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    received: list[signal.Signals] = []

    async def main() -> list[_Series]:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)

        def stop(number: signal.Signals) -> None:
            received.append(number)
            task.cancel()

        for number, handler in handlers.items():
            if callable(handler):
                loop.add_signal_handler(number, stop, number)
        return await task

    try:
        return asyncio.run(main())
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in received:
            handler = handlers[number]
            if callable(handler):
                handler(number, None)


def _open_doors(scene: Scene) -> None:
    """Start the payment service once more, on two Unix sockets and on TCP, in a directory that others may enter."""
    scene.doors_directory = scene.stage.make_directory("hostline-doors-", 0o755)
    doors = scene.children["doors"] = scene.stage.start("doors", "hostline.demo.doors", str(scene.doors_directory))
    doors.expect("serving")
    port = doors.expect("tcp")
    scene.tcp_port = int(port) if port.isdigit() else 0


def _measure(
    names: list[str], rounds: int, call: Callable[[str], tuple[list[float], float]], progress: Callable[[int], None]
) -> list[_Series]:
    """Return one series for each transport; who begins changes from round to round."""
    series = {name: _Series(name) for name in names}
    for name in names:
        call(name)  # to warm up
    for number in range(rounds):
        for name in names if number % 2 else reversed(names):
            series[name].add(*call(name))
        progress(number + 1)
    return list(series.values())


def _call_for(line: Line, seconds: float) -> tuple[list[float], float]:
    """Call one at a time; returns the seconds of each call and of all."""
    clock = time.perf_counter
    times = []
    began = now = clock()
    end = began + seconds
    while now < end:
        line.call("quote", _ORDER, returns=Quote)
        before, now = now, clock()
        times.append(now - before)
    return times, now - began


async def _measure_pipelined(
    own: str, port: int, rounds: int, seconds: float, progress: Callable[[int], None]
) -> list[_Series]:
    async with connect_async(own) as unix:
        lines = {_UNIX: unix}
        if port:
            lines[_TCP] = AsyncTcpLine(port)
        series = {name: _Series(name) for name in lines}
        try:
            for number in range(-1, rounds):
                for name in list(lines) if number % 2 else reversed(list(lines)):
                    times, spent = await _call_many_for(lines[name], seconds)
                    if number >= 0:  # the first round warms up
                        series[name].add(times, spent)
                progress(number + 1)
        finally:
            for line in lines.values():
                await line.close()
    return list(series.values())


async def _call_many_for(line: AsyncLine, seconds: float) -> tuple[list[float], float]:
    """Keep many calls in flight; returns the seconds of each call and of all."""
    clock = time.perf_counter
    times: list[float] = []
    began = clock()
    end = began + seconds

    async def caller() -> None:
        now = began
        while now < end:  # at least once, however late the loop comes to it
            before = clock()
            await line.call("quote", _ORDER, returns=Quote)
            now = clock()
            times.append(now - before)

    async with asyncio.TaskGroup() as group:
        for _ in range(_IN_FLIGHT):
            group.create_task(caller())
    return times, clock() - began


def _show(scene: Scene, step: Step, found: dict[str, list[_Series]]) -> None:
    screen = scene.screen
    step.facts["series"] = {way: [series.as_json() for series in both] for way, both in found.items()}
    step.facts["ratios"] = {}
    rows = [("", "", "p50", "p99", "calls/s", "calls")]
    for way, both in found.items():
        for series in both:
            p50, p99 = (f"{series.percentile(share) * 1e6:,.0f} us" for share in (0.50, 0.99))
            rows.append((series.name, way, p50, p99, f"{series.rate:,.0f}", f"{len(series.times):,}"))
    screen.table(rows, "llrrrr", has_header=True)
    screen.line()
    for way, both in found.items():
        if len(both) == 2:
            ratio = both[0].percentile(0.5) / both[1].percentile(0.5)
            parts = [unix / tcp for unix, tcp in zip(both[0].medians, both[1].medians, strict=True)]
            step.facts["ratios"][way] = {
                "p50": round(ratio, 3),
                "rounds": [round(part, 3) for part in parts],
                "calls_per_second": round(both[0].rate / both[1].rate, 3),
            }
            screen.text(
                f"- {way}: over the Unix socket a call took {ratio:.2f} times what it took over TCP "
                f"({min(parts):.2f} to {max(parts):.2f} in single rounds).",
                hanging=2,
            )
    if not scene.tcp_port:
        step.skip("There is no loopback TCP here to compare with.")
    screen.text(
        "- This machine is as busy as it is just now: believe ratios within one run, and run it again before believing "
        "even those.",
        hanging=2,
    )
    screen.text(
        "- Over TCP the kernel does not say who calls: the rule about peers is off there, and anybody on this host "
        "could have called.",
        hanging=2,
    )
    screen.line()
    answered = [len(series.times) for both in found.values() for series in both]
    step.check(f"{sum(answered):,} calls answered, none failed", all(answered))
