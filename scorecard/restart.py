"""R7: a server is restarted again and again while eight clients call it."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.generations import Load, Program
from tests.leaks import wait_until

import hostline
from scorecard.ground import Ground, charges
from scorecard.rows import Verdict, row


def restart(ground: Ground, name: str, restarts: int, *, is_naive: bool) -> tuple[list[str], dict[str, Any]]:
    """Restart a loaded server so often; returns what the load complains of, and figures."""
    directory = ground.directory / name
    directory.mkdir()
    address, journal = str(directory / "s"), directory / "journal"
    old = Program(address, journal, loop=ground.loop).ready()
    with ended(old) as generations:
        first_count = old.fd_count()
        load = Load(address, ground.loop)
        begin = time.monotonic()
        try:
            for _ in range(restarts):
                old = (
                    naive_next(ground, address, journal, old, load)
                    if is_naive
                    else next_one(ground, address, journal, old)
                )
                generations.append(old)
        finally:
            seconds = time.monotonic() - begin
            load.finish()
        complaints = load.complaints(journal)
        if not is_naive:
            wait_until(lambda: old.fd_count() == first_count, 10)
            with hostline.connect(address, max_size=1) as line:
                wait_until(lambda: not any(charges(line).values()), 10)
                ground.charge(**charges(line))
                ground.servers += 1
            wait_until(lambda: old.fd_count() == first_count, 10)  # that line's own end is seen a moment later
        figures = {
            "restarts": restarts,
            "seconds_of_restarts": round(seconds, 1),
            "calls": len(load.answered),
            "failed": len(load.failed),
            "connects": load.connected,
            "refused": len(load.refused),
            "run_twice_or_lost": len(complaints) - len(load.failed) - len(load.refused),
            "descriptor_delta": old.fd_count() - first_count,
        }
        old.process.terminate()
        old.wait()
    return complaints, figures


@contextlib.contextmanager
def ended(first: Program) -> Iterator[list[Program]]:
    """Hold generations, and end those that still run."""
    generations = [first]
    try:
        yield generations
    finally:
        for program in generations:
            program.close()


def next_one(ground: Ground, address: str, journal: Path, old: Program) -> Program:
    """Let the next generation take over."""
    new = Program(address, journal, "--takeover", loop=ground.loop).ready()
    if (code := old.wait()) != 0:
        new.close()
        raise AssertionError(f"the old server ended with {code}")
    old.close()
    return new


def naive_next(ground: Ground, address: str, journal: Path, old: Program, load: Load) -> Program:
    """Stop the old one, then start the next, as without a takeover."""
    answered = len(load.answered)
    wait_until(lambda: len(load.answered) > answered + 100)
    old.process.send_signal(signal.SIGTERM)
    old.wait()
    return Program(address, journal, loop=ground.loop).ready()


@row(
    "R7",
    "Restarts under load",
    "a server that is taken over by the next again and again, under eight clients and one that connects without"
    " pause: 0 failed calls, 0 refused connects, 0 calls run twice, as many descriptors as at first. Control: stop,"
    " then start",
    ci={"restarts": 200, "control_restarts": 3},
    full={"restarts": 1000, "control_restarts": 10},
    ci_limit=300.0,
)
def restarts(ground: Ground) -> Verdict:
    complaints, figures = restart(ground, "takeover", ground.size["restarts"], is_naive=False)
    naive, naive_figures = restart(ground, "naive", ground.size["control_restarts"], is_naive=True)
    verdict = Verdict(
        {**figures, "first_complaints": complaints[:3]},
        {
            "0 failed calls": figures["failed"] == 0,
            "0 refused connects": figures["refused"] == 0,
            "0 calls lost or run twice": figures["run_twice_or_lost"] == 0,
            "descriptors as at first": figures["descriptor_delta"] == 0,
            "there was load": figures["calls"] > 10 * ground.size["restarts"],
        },
        naive_figures,
        bool(naive),
    )
    verdict.notes.append("the listening socket is handed over directly; systemd's descriptor store is not tried")
    return verdict
