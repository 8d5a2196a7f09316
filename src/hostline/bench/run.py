"""Run a plan: every subject of a case does its share in every round, in an order that is drawn anew for each."""

from __future__ import annotations

import contextlib
import random
import statistics
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from hostline.bench.figures import median_ratio, spread_of
from hostline.bench.machine import machine_facts
from hostline.bench.plan import REFERENCES, Case, Entry, Plan
from hostline.bench.processes import SubjectFailedError
from hostline.bench.results import Measurement, Results, Skipped
from hostline.bench.team import Tally, Team
from hostline.clock import monotonic

__all__ = ["run"]

OnProgress = Callable[[str, int, int], None]


def run(plan: Plan, on_progress: OnProgress = lambda _text, _done, _total: None) -> Results:
    """Do what a plan says.

    Args:
        plan: What `make_plan` returned.
        on_progress: Called with what runs now, how many steps are done, and how many there are.

    Returns:
        The document. A subject that crashed, hung or gave a wrong answer is among its `skipped`.
    """
    began, start = datetime.now(UTC), monotonic()
    facts = machine_facts()
    with tempfile.TemporaryDirectory(prefix="hlb", dir=_short_directory()) as directory:
        runner = _Runner(plan, Path(directory), on_progress)
        runner.run()
    return Results(
        began=began.isoformat(timespec="seconds"),
        seconds=round(monotonic() - start, 1),
        is_quick=plan.is_quick,
        pinned=plan.pinned,
        machine=facts,
        rounds=plan.rounds,
        measurements=runner.measurements,
        skipped=[*plan.skipped, *runner.skipped],
    )


def _short_directory() -> str | None:
    """Return where to put sockets: their paths have 107 bytes."""
    return "/tmp" if len(tempfile.gettempdir()) > 40 and Path("/tmp").is_dir() else None  # noqa: S108 - a private directory is made in it


class _Runner:
    """Hold the state of one run."""

    def __init__(self, plan: Plan, directory: Path, on_progress: OnProgress) -> None:
        self._plan = plan
        self._directory = directory
        self._on_progress = on_progress
        self._entries = list(plan.entries)
        self._done = 0
        # A step for each share, and one for each warm-up.
        self._total = sum(len(plan.entries_of(case)) * (plan.rounds + 1) for case in plan.cases)
        self.measurements: list[Measurement] = []
        self.skipped: list[Skipped] = []

    def run(self) -> None:
        """Prepare, then go through the workloads."""
        tools = self._directory / "tools"
        tools.mkdir(mode=0o700)
        prepared: set[Callable[[str], None]] = set()
        for entry in list(self._entries):
            prepare = entry.subject.prepare
            if prepare is None or prepare in prepared:
                continue
            self._say(f"preparing {entry.subject.name}")
            try:
                prepare(str(tools))
                prepared.add(prepare)
            except Exception as error:  # whatever a compiler or a peer may say
                self._leave_out(entry, f"{type(error).__name__}: {error}")
        for workload, cases in self._plan.stages():
            self._run_stage(workload, cases, tools)

    def _leave_out(self, entry: Entry, reason: str) -> None:
        self.skipped.append(Skipped(entry.subject.name, reason))
        self._entries.remove(entry)

    def _say(self, text: str, steps: int = 0) -> None:
        self._done += steps
        self._on_progress(text, min(self._done, self._total), self._total)

    def _run_stage(self, workload: str, cases: list[Case], tools: Path) -> None:
        teams: list[Team] = []
        base = self._directory / workload
        base.mkdir(mode=0o700)
        try:
            for entry in self._entries:
                if any(case.suits(entry.subject) for case in cases):
                    pin = None if entry.subject.transport == "shm" else self._plan.pinned.get(cases[0].workload)
                    teams.append(Team(entry, base / str(len(teams)), tools, workload, pin))
            self._say(f"{workload}: starting {len(teams)} servers and their clients")
            timeout = self._plan.timeout
            self._each(teams, workload, lambda team: team.start_server())
            self._each(teams, workload, lambda team: team.start_client(timeout))
            self._each(teams, workload, lambda team: team.check(timeout))
            for case in cases:
                self._run_case(case, teams)
        finally:
            with contextlib.ExitStack() as stack:
                for team in teams:
                    stack.callback(team.close)

    def _each(
        self, teams: list[Team], where: str, step: Callable[[Team], None], chosen: list[Team] | None = None
    ) -> None:
        """Take a step with each team; one that fails is closed, skipped and taken off the list."""
        for team in list(teams if chosen is None else chosen):
            try:
                step(team)
            except (SubjectFailedError, OSError) as error:
                team.close()
                teams.remove(team)
                if chosen is not None:
                    chosen.remove(team)
                self.skipped.append(Skipped(team.name, f"{where}: {error}"))

    def _run_case(self, case: Case, teams: list[Team]) -> None:
        chosen = [team for team in teams if case.suits(team.entry.subject)]
        planned, done = len(self._plan.entries_of(case)) * (self._plan.rounds + 1), self._done
        where = f"{case.workload}, {case.name}"
        timeout = self._plan.timeout

        def begin(team: Team) -> None:
            self._say(f"{where}: {team.name} warms up", 1)
            team.begin(case, timeout)

        self._each(teams, where, begin, chosen)
        tallies = {team.name: Tally() for team in chosen}
        for number in range(self._plan.rounds):

            def work(team: Team, number: int = number) -> None:
                self._say(f"{where}: round {number + 1} of {self._plan.rounds}, {team.name}", 1)
                team.work(case, tallies[team.name], timeout)

            order = list(chosen)
            random.Random(f"{self._plan.seed} {where} {number}").shuffle(order)
            self._each(teams, where, work, order)
            chosen = [team for team in chosen if team in order]
        self._each(teams, where, lambda team: team.finish(case, tallies[team.name], timeout), chosen)
        self._note(case, {team: tallies[team.name] for team in chosen})
        self._done = done + planned

    def _note(self, case: Case, tallies: dict[Team, Tally]) -> None:
        """Turn the tallies of a case into measurements."""
        by_name = {team.name: tally for team, tally in tallies.items()}
        reference = next((name for name in REFERENCES if name in by_name), None)
        for team, tally in tallies.items():
            one = self._measurement(case, team, tally)
            if reference is not None:
                one.reference = reference
                one.ratio = median_ratio(tally.rounds, by_name[reference].rounds, case.unit)
            self.measurements.append(one)
        for team, tally in tallies.items():
            if tally.held_kib is not None:
                one = self._measurement(case, team, tally)
                one.case, one.unit = f"{case.name}, memory", "KiB"
                one.rounds, one.value = [tally.held_kib], tally.held_kib
                one.spread, one.cpu_seconds_per_million = None, None
                self.measurements.append(one)

    def _measurement(self, case: Case, team: Team, tally: Tally) -> Measurement:
        subject = team.entry.subject
        return Measurement(
            workload=case.workload,
            case=case.name,
            subject=subject.name,
            layer=subject.layer,
            transport=subject.transport,
            style=subject.style,
            is_hostline=subject.is_hostline,
            unit=case.unit,
            rounds=tally.rounds,
            value=statistics.median(tally.rounds),
            spread=spread_of(tally.times),
            cpu_seconds_per_million=None if tally.cpu is None else tally.cpu / tally.operations * 1e6,
            peak_memory_kib=tally.memory,
        )
