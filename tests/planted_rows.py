"""Rows that end as no row of the scorecard should, for the test of those who judge them."""

from __future__ import annotations

import subprocess
import time

from scorecard.ground import Ground
from scorecard.rows import Skipped, Verdict, row

NO_SIZE: dict[str, int] = {}


@row("R901", "Fails", "no claim of it holds", ci=NO_SIZE, full=NO_SIZE)
def fails(ground: Ground) -> Verdict:
    return Verdict({"measured": 7}, {"seven is eight": False, "seven is seven": True})


@row("R902", "Proves nothing", "its control meets the criterion", ci=NO_SIZE, full=NO_SIZE)
def proves_nothing(ground: Ground) -> Verdict:
    return Verdict({}, {"all is well": True}, {"naive": "as good"}, False)


@row("R903", "Cannot run", "never runs", ci=NO_SIZE, full=NO_SIZE)
def cannot_run(ground: Ground) -> Verdict:
    raise Skipped("needs a second moon")


@row("R904", "Leaves a process", "ends before what it started", ci=NO_SIZE, full=NO_SIZE)
def leaves_a_process(ground: Ground) -> Verdict:
    subprocess.Popen(["sleep", "60"])
    return Verdict({}, {"all is well": True})


@row("R905", "Hangs", "never ends", ci=NO_SIZE, full=NO_SIZE, ci_limit=4.0)
def hangs(ground: Ground) -> Verdict:
    time.sleep(60)
    return Verdict({}, {"all is well": True})


@row("R906", "Raises", "an error is a miss", ci=NO_SIZE, full=NO_SIZE)
def raises(ground: Ground) -> Verdict:
    raise RuntimeError("the row itself broke")


@row("R907", "Claims nothing", "a verdict without a claim is none", ci=NO_SIZE, full=NO_SIZE)
def claims_nothing(ground: Ground) -> Verdict:
    return Verdict({"measured": 1})
