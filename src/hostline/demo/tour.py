"""The demo from its first line to its last: set the stage, go through the steps, clean up, and sum up."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

from hostline._version import __version__
from hostline.demo.processes import ChildError, Stage
from hostline.demo.report import Report, Step
from hostline.demo.screen import Screen, choose_screen
from hostline.demo.steps import guard, handover, restart, speed, trade
from hostline.demo.steps.scene import Scene, own_command
from hostline.errors import HostlineError

__all__ = ["STEPS", "Plan", "perform", "suggestions"]


@dataclass(frozen=True)
class Plan:
    """One step of the demo.

    Attributes:
        name: In one word, for programs.
        title: Its heading.
        sentence: What it shows.
        act: What does it.
    """

    name: str
    title: str
    sentence: str
    act: Callable[[Scene, Step], None]


STEPS = (
    Plan(
        "start",
        "Two services, two processes",
        "Each listens on a Unix socket of its own, in a directory that only this user can enter.",
        trade.start,
    ),
    Plan(
        "orders",
        "5,000 orders, one in fifty malformed",
        "A wrong order is refused before any code of the service runs, by an error that names the field; the others go "
        "through, and the money is counted three times.",
        trade.trade,
    ),
    Plan(
        "speed",
        "The same call over the Unix socket and over loopback TCP",
        "One process serves both; the same typed call, in turns.",
        speed.speed,
    ),
    Plan(
        "file",
        "The socket file",
        "Private from the moment it is visible; a live one is never taken over.",
        guard.guard,
    ),
    Plan(
        "identity",
        "Another user calls",
        "The kernel vouches for who is on the other side, and the service's rule decides, whatever the file's mode "
        "says.",
        guard.identity,
    ),
    Plan(
        "descriptor",
        "A file handed over",
        "The payment service opens its receipts; others read them through the descriptor that came over a socket.",
        handover.handover,
    ),
    Plan(
        "restart",
        "SIGTERM under load",
        "The payment service is replaced while others call it. The call is not idempotent: it may be neither lost nor "
        "run twice.",
        restart.restart,
    ),
)


class _Stopped(KeyboardInterrupt):  # so that asyncio lets it through as well
    """Carry the signal that ends the demo to the place that cleans up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def perform(*, is_quick: bool, is_json: bool) -> int:
    """Run the demo and return its exit code; see `hostline.demo.run`."""
    _fill_standard_descriptors()
    report = Report(_facts(is_quick))
    began = time.monotonic()
    try:
        with _Signals() as signals:
            screen = choose_screen(is_silent=is_json)
            with Stage(is_quick=is_quick) as stage:
                try:
                    _take_steps(stage, screen, report)
                finally:
                    signals.hold()  # nothing disturbs the cleaning up
                    report.facts["directories"] = stage.directories
            signals.release()
            report.facts["seconds"] = round(time.monotonic() - began, 1)
            _conclude(screen, report)
            if is_json:
                print(json.dumps(report.as_json() | {"next": [command for command, _ in suggestions()]}), flush=True)
    except BrokenPipeError:
        # Whoever read the report has seen enough. Nothing more can be said, not even when the interpreter exits.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        return 128 + signal.SIGPIPE
    except _Stopped as stopped:
        name = signal.Signals(stopped.number).name
        with contextlib.suppress(OSError):  # the terminal may be what has gone
            print(f"\nstopped by {name}: every process is ended, and every file removed", file=sys.stderr)
        return 128 + stopped.number
    return 0 if report.ok else 1


def _take_steps(stage: Stage, screen: Screen, report: Report) -> None:
    """Go through the steps; one that breaks off is the last, because those behind it stand on it."""
    facts = report.facts
    screen.line("hostline demo: an order service and a payment service on one host", "title")
    screen.text(f"{facts['system']}, Python {facts['python']}, {facts['processors']} processors", "faint")
    scene = Scene(stage, screen)
    for number, plan in enumerate(STEPS, 1):
        step = Step(plan.name, plan.title, screen)
        report.steps.append(step)
        screen.heading(f"{number}. {plan.title}", plan.sentence)
        began = time.monotonic()
        try:
            plan.act(scene, step)
        except (HostlineError, ChildError, OSError, subprocess.SubprocessError) as error:
            if isinstance(error, BrokenPipeError) and not isinstance(error, HostlineError):
                raise
            step.check(f"broken off: {type(error).__name__}: {error}", False)
            for line in error.log if isinstance(error, ChildError) else ():
                screen.shown(line)
            break
        finally:
            step.seconds = time.monotonic() - began


def _conclude(screen: Screen, report: Report) -> None:
    failed = [check for check in report.checks if not check.ok]
    count, seconds = len(report.checks), report.facts["seconds"]
    screen.line()
    if failed:
        screen.verdict(False, f"{len(failed)} of {count} claims do not hold, after {seconds:.0f} seconds:")
        for check in failed:
            screen.text(f"- {check.claim}", hanging=2)
    else:
        screen.verdict(True, f"all {count} claims hold, after {seconds:.0f} seconds")
    screen.text("Every process is ended, and every file removed.")
    screen.heading("What to try next", "Five commands, in this order; the service ends with: kill %1")
    for command, purpose in suggestions():
        screen.text(f"# {purpose}", "faint")
        screen.line(f"   {command}", "shown")


def suggestions() -> list[tuple[str, str]]:
    """Return commands that work as they are, each with what it does."""
    hostline = shlex.join(own_command())
    charge = '[{"order":1,"cents":890,"currency":"EUR","card":"tok_4242"}]'
    return [
        (f"{hostline} serve hostline.demo.payments:payments &", "serve the payment service, in the background"),
        (f"{hostline} describe payments", "what it offers"),
        (f"{hostline} call payments charge '{charge}'", "call it"),
        (f"{hostline} call payments charge '{charge.replace('890', '-1')}'", "call it wrongly"),
        (f"{hostline} conformance", "what else can go wrong with a socket file, here and in other libraries"),
    ]


def _facts(is_quick: bool) -> dict[str, object]:
    return {
        "hostline": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "processors": os.cpu_count(),
        "uid": os.geteuid(),
        "is_quick": is_quick,
    }


def _fill_standard_descriptors() -> None:
    """Open whatever of standard input, output and error is closed, so that no socket of ours gets its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


class _Signals:
    """Raise the first signal that would end the demo as `_Stopped`, but not while the demo cleans up."""

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._is_held = False
        self._number = 0

    def hold(self) -> None:
        """Raise nothing from now on."""
        self._is_held = True

    def release(self) -> None:
        """Raise what came since `hold`, unless something was raised before."""
        if self._is_held and self._number:
            raise _Stopped(self._number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._number:
            self._number = number
            if not self._is_held:
                raise _Stopped(number)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers, nor is interrupted
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                handler = signal.getsignal(number)
                if handler is not signal.SIG_IGN:
                    self._before[number] = handler
                    signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.hold()
        for number, handler in self._before.items():
            signal.signal(number, handler)
