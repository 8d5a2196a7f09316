"""Restart the payment service under load, and account for every call."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from hostline.demo.book import keep_book
from hostline.demo.journal import read_journal
from hostline.demo.model import Placed, Settled
from hostline.demo.processes import Child
from hostline.demo.report import Step
from hostline.demo.steps.scene import Scene
from hostline.errors import CallError, HostlineError, UnavailableError
from hostline.sync.client import Line, connect

__all__ = ["restart"]

# Threads that call, restarts, and seconds of load before each and after the last.
_CALLERS = 6
_RESTARTS, _RESTARTS_QUICK = 3, 1
_SECONDS, _SECONDS_QUICK = 0.8, 0.4

# Seconds that one call may take, a restart included.
_TIMEOUT = 15.0


@dataclass
class _Calls:
    """What the callers saw.

    Attributes:
        acknowledged: The process that answered, by the call's number.
        not_run: Numbers of calls that failed and, it was said, were not run.
        unknown: Numbers of calls that failed and may have been run.
        failures: The texts of these errors.
        longest: Seconds that the slowest answered call took.
    """

    acknowledged: dict[int, int] = field(default_factory=dict)
    not_run: list[int] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    longest: float = 0.0

    @property
    def count(self) -> int:
        """Calls that were made."""
        return len(self.acknowledged) + len(self.not_run) + len(self.unknown)


class _Load:
    """Keep several threads calling until `close`.

    Args:
        line: What they call through; it stays the caller's.
    """

    def __init__(self, line: Line) -> None:
        self.calls = _Calls()
        self._line = line
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._call, name=f"caller-{n}") for n in range(_CALLERS)]
        for thread in self._threads:
            thread.start()

    def _call(self) -> None:
        while not self._is_over.is_set():
            with self._lock:
                number = next(self._numbers)
            began = time.monotonic()
            try:
                settled: Settled = self._line.call("settle", number, returns=Settled, timeout=_TIMEOUT)
            except HostlineError as error:
                self._failed(number, error)
            else:
                with self._lock:
                    self.calls.acknowledged[settled.number] = settled.pid
                    self.calls.longest = max(self.calls.longest, time.monotonic() - began)

    def _failed(self, number: int, error: HostlineError) -> None:
        was_not_run = not isinstance(error, CallError) or (
            isinstance(error, UnavailableError) and error.is_safe_to_repeat
        )
        with self._lock:
            (self.calls.not_run if was_not_run else self.calls.unknown).append(number)
            self.calls.failures.append(str(error))

    def close(self) -> None:
        """Let every thread finish its call, and wait for it."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()


@dataclass
class _Generation:
    """One process that held the address.

    Attributes:
        name: Of its journal.
        child: The process.
        stopped_at: When SIGTERM was sent, on the monotonic clock; infinite for the last one.
        exit_code: What it left; None for the last one.
        numbers: The calls in its journal.
        finished_late: How many of these were finished after SIGTERM.
    """

    name: str
    child: Child
    stopped_at: float = float("inf")
    exit_code: int | None = None
    numbers: list[int] = field(default_factory=list)
    finished_late: int = 0


def restart(scene: Scene, step: Step) -> None:
    """Send SIGTERM to one payment service after the other while callers keep calling."""
    restarts = _RESTARTS_QUICK if scene.is_quick else _RESTARTS
    seconds = _SECONDS_QUICK if scene.is_quick else _SECONDS
    generations = [_Generation("payments", scene.children["payments"])]
    with (
        connect(scene.payments, max_size=_CALLERS) as line,
        scene.screen.progress("restarts", restarts + 1) as progress,
    ):
        load = _Load(line)
        try:
            for number in range(restarts):
                successor = _stand_by(scene, number + 2)
                time.sleep(seconds)
                _replace(generations[-1], successor)
                generations.append(successor)
                progress(number + 1)
            time.sleep(seconds)
        finally:
            load.close()
    scene.children["payments"] = generations[-1].child
    for generation in generations:
        for record in read_journal(scene.journal(generation.name).read_bytes(), kind="settle"):
            generation.numbers.append(record.number)
            generation.finished_late += record.at > generation.stopped_at
    _show(scene, step, generations, load.calls)
    _account(step, generations, load.calls)
    _place_one_more(scene, step)


def _stand_by(scene: Scene, number: int) -> _Generation:
    """Start a payment service that waits for the address."""
    name = f"payments-{number}"
    child = scene.stage.start(
        name, "hostline.demo.payments", scene.payments, "--journal", scene.journal(name).name, "--succeed"
    )
    child.expect("waiting")
    return _Generation(name, child)


def _replace(old: _Generation, new: _Generation) -> None:
    """Stop one in the middle of its work; the other takes over by itself."""
    old.stopped_at = time.monotonic()
    old.child.terminate()
    new.child.expect("serving")
    old.exit_code = old.child.wait()


def _show(scene: Scene, step: Step, generations: list[_Generation], calls: _Calls) -> None:
    rows = [("payment service", "calls in its journal", "finished after SIGTERM", "exit code")]
    for generation in generations:
        is_last = generation.exit_code is None
        rows.append(
            (
                f"pid {generation.child.pid}",
                f"{len(generation.numbers):,}",
                "(still running)" if is_last else f"{generation.finished_late}",
                "" if is_last else f"{generation.exit_code}",
            )
        )
    scene.screen.table(rows, "lrrr", has_header=True)
    scene.screen.line()
    scene.screen.text(
        f"{_CALLERS} threads made {calls.count:,} numbered calls; {len(calls.acknowledged):,} were answered. "
        f"The slowest took {calls.longest * 1000:,.0f} ms, a restart included."
    )
    for failure in calls.failures[:3]:
        scene.screen.shown(failure)
    scene.screen.line()


def _account(step: Step, generations: list[_Generation], calls: _Calls) -> None:
    """Compare what callers were told with what the journals say."""
    written = Counter(number for generation in generations for number in generation.numbers)
    where = {number: generation.child.pid for generation in generations for number in generation.numbers}
    lost = [number for number in calls.acknowledged if written[number] == 0]
    twice = [number for number, count in written.items() if count > 1]
    misplaced = [number for number, pid in calls.acknowledged.items() if where.get(number) != pid]
    false_promises = [number for number in calls.not_run if written[number]]
    unheard = [number for number in written if number not in calls.acknowledged and number not in calls.unknown]
    step.facts |= {
        "restarts": len(generations) - 1,
        "calls": calls.count,
        "acknowledged": len(calls.acknowledged),
        "not_run": len(calls.not_run),
        "unknown": len(calls.unknown),
        "failures": calls.failures[:10],
        "in_journals": sum(written.values()),
        "lost": len(lost),
        "twice": len(twice),
        "finished_after_sigterm": [generation.finished_late for generation in generations[:-1]],
        "exit_codes": [generation.exit_code for generation in generations[:-1]],
        "longest_ms": round(calls.longest * 1000, 1),
    }
    step.check(
        f"{len(calls.acknowledged):,} answered, {sum(written.values()):,} written: each in exactly one journal, that "
        f"of the process that answered",
        not lost and not misplaced and not unheard and bool(calls.acknowledged),
    )
    step.check(f"{len(lost)} lost, {len(twice)} run twice", not lost and not twice)
    step.check(f"{len(calls.failures)} calls failed", not calls.failures and not false_promises)
    codes = {generation.exit_code for generation in generations[:-1]}
    step.check("each one that got SIGTERM finished its calls and exited with 0", codes == {0})


def _place_one_more(scene: Scene, step: Step) -> None:
    """Show that the order service found the successor by itself."""
    lines = scene.orders_file.read_bytes().splitlines()
    book = keep_book(lines[:1])
    with connect(scene.orders) as line:
        placed: Placed = line.call("place", json.loads(lines[0]), returns=Placed)
    step.check(
        "the order service, which nobody told, places an order with the last one",
        {placed.currency: placed.cents} == dict(book.totals),
    )
