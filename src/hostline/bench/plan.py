"""Which subjects do which workloads, how often and how much: decided before anything starts."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from hostline.bench.results import Skipped
from hostline.bench.subject import Subject

__all__ = ["REFERENCES", "WORKLOADS", "Case", "Entry", "Plan", "find_entries", "make_plan"]

PACKAGES = ("hostline.bench.subjects", "hostline.bench.peers")
# What the others are measured against: the first that takes part in a case.
REFERENCES = ("C", "sockets")
SIZES = {"64 B": 64, "1 KB": 1024, "16 KB": 16 << 10}
MEGABYTE = 1_000_000
MESSAGE = 200  # a line of a log
WINDOW = 64
# Clients of one server, and the processes that drive them where several do.
CLIENTS = (1, 10, 100, 1_000)
DRIVERS = 4
# Client processes that fill one server with calls.
CALLERS = 2
IDLE = 10_000


@dataclass(frozen=True, slots=True)
class Case:
    """Describe one thing that is measured.

    Attributes:
        workload: What it belongs to.
        name: What tables call it; unique in its workload.
        action: Which method of Driver.
        abilities: What a subject has to be able to do.
        size: Bytes of each message.
        count: Operations in one share at most.
        seconds: What one share takes, about.
        unit: "us" of one operation, or "1/s".
        clients: Connections that are used in turn, over all drivers.
        drivers: Client processes.
        window: Calls under way at once.
        is_batched: Whether one-way messages are sent many at a time.
        fds: Descriptors in each message.
        held: Connections that stand idle beside.
    """

    workload: str
    name: str
    action: str
    abilities: frozenset[str]
    size: int = 64
    count: int = 10_000
    seconds: float = 0.2
    unit: str = "us"
    clients: int = 1
    drivers: int = 1
    window: int = 1
    is_batched: bool = False
    fds: int = 0
    held: int = 0

    def suits(self, subject: Subject) -> bool:
        """Tell whether a subject can do it."""
        if self.drivers > 1 and "fanin" not in self.abilities and "solo" in subject.workloads:
            return False
        return self.abilities <= subject.workloads


@dataclass(frozen=True, slots=True)
class Entry:
    """Hold a subject and the module that has it."""

    module: str
    subject: Subject

    def missing(self) -> str | None:
        """Return why it cannot take part, or None."""
        for need in self.subject.needs:
            program = need.removeprefix("program:")
            if program != need:
                if shutil.which(program) is None:
                    return f"{program} is not on PATH: {self.subject.install}"
            elif not _is_installed(need):
                return f"{need} is not installed: {self.subject.install}"
        return None


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


@dataclass(frozen=True, slots=True)
class Plan:
    """Say what a run does.

    Attributes:
        cases: In their order, the workload's cases together.
        entries: The subjects; each takes part in the cases that it is able to.
        rounds: Rounds of each case.
        is_quick: Whether it is the quick mode.
        pinned: Cores that every process of a workload is kept to, by workload.
        seed: What the order within the rounds is drawn from.
        timeout: Seconds that a subject gets for one share, or to start, before it counts as hung.
        skipped: What cannot take part.
    """

    cases: tuple[Case, ...]
    entries: tuple[Entry, ...]
    rounds: int
    is_quick: bool
    pinned: dict[str, list[int]] = field(default_factory=dict)
    seed: int = 0
    timeout: float = 30.0
    skipped: tuple[Skipped, ...] = field(default=())

    def stages(self) -> list[tuple[str, list[Case]]]:
        """Return the cases that one set of processes does, with the workload that these are told."""
        stages: dict[str, list[Case]] = {}
        for case in self.cases:
            stage = SHARING[0] if self.is_quick and not self.pinned and case.workload in SHARING else case.workload
            stages.setdefault(stage, []).append(case)
        return list(stages.items())

    def entries_of(self, case: Case) -> list[Entry]:
        """Return the subjects of one case."""
        return [entry for entry in self.entries if case.suits(entry.subject)]


def find_entries(packages: Iterable[str] = PACKAGES) -> list[Entry]:
    """Return every subject there is, whether its library is installed or not.

    Args:
        packages: Where to look; each module in them that has SUBJECTS is taken.

    Raises:
        ValueError: Two have one name.
    """
    entries: dict[str, Entry] = {}
    for package in packages:
        path = importlib.import_module(package).__path__
        for info in sorted(pkgutil.iter_modules(path, f"{package}."), key=lambda info: info.name):
            for subject in getattr(importlib.import_module(info.name), "SUBJECTS", ()):
                if subject.name in entries:
                    raise ValueError(f"{info.name} and {entries[subject.name].module} both have {subject.name!r}")
                entries[subject.name] = Entry(info.name, subject)
    return list(entries.values())


def _case(workload: str, name: str, action: str, *abilities: str, **settings: object) -> Case:
    return replace(Case(workload, name, action, frozenset(abilities or {action})), **settings)  # type: ignore[arg-type]


def _latency() -> list[Case]:
    return [_case("latency", name, "latency", size=size, seconds=0.12) for name, size in SIZES.items()]


def _transfer() -> list[Case]:
    # 1,000 of 1 MB each, if five rounds have the time for 200.
    return [_case("transfer", "1 MB", "transfer", size=MEGABYTE, count=200, seconds=0.25)]


def _throughput() -> list[Case]:
    calls = {"size": 64, "count": 100_000, "window": WINDOW, "unit": "1/s", "seconds": 0.2}
    messages = {"size": MESSAGE, "count": 200_000, "unit": "1/s", "seconds": 0.1}
    return [
        _case("throughput", "pipelined", "pipelined", "pipelined", **calls),
        _case("throughput", f"pipelined, {CALLERS} clients", "pipelined", "pipelined", drivers=CALLERS, **calls),
        _case("throughput", "one-way 200 B", "one_way", "one-way", **messages),
        _case("throughput", "one-way 200 B batched", "one_way", "batched", is_batched=True, **messages),
    ]


def _connect() -> list[Case]:
    return [
        _case("connect", "without pool", "reconnect", "connect", seconds=0.1),
        _case("connect", "with pool", "latency", "connect", seconds=0.1),
    ]


def _fanin() -> list[Case]:
    cases = []
    for clients in CLIENTS:
        name = f"{clients:,} client{'s' * (clients > 1)}"
        cases.append(_case("fanin", name, "latency", "fanin", clients=clients, seconds=0.1))
        if clients >= 100:
            name = f"{name}, {DRIVERS} drivers"
            cases.append(
                _case("fanin", name, "latency", "fanin", clients=clients, drivers=DRIVERS, unit="1/s", seconds=0.1)
            )
    cases.append(_case("fanin", f"{IDLE:,} idle", "latency", "idle", clients=10, held=IDLE, seconds=0.1))
    return cases


def _kinds() -> list[Case]:
    cases = [_case("kinds", name, "latency", "kinds", size=size, seconds=0.08) for name, size in SIZES.items()]
    for name, size in SIZES.items():
        settings = {"size": size, "count": 200_000, "seconds": 0.08, "unit": "1/s"}
        cases.append(_case("kinds", f"one-way {name}", "one_way", "kinds", "one-way", **settings))
    return cases


def _fds() -> list[Case]:
    return [
        _case("fds", "1 descriptor", "pass_fds", "fds", fds=1, seconds=0.1),
        _case("fds", "16 descriptors", "pass_fds", "fds", fds=16, seconds=0.1),
    ]


_MAKERS = {
    "latency": _latency,
    "transfer": _transfer,
    "throughput": _throughput,
    "connect": _connect,
    "fanin": _fanin,
    "kinds": _kinds,
    "fds": _fds,
}
WORKLOADS = tuple(_MAKERS)
# Cases that the quick mode leaves out: they take long to set up, or say little more than another.
SLOW = {
    ("fanin", "10 clients"),
    ("fanin", f"100 clients, {DRIVERS} drivers"),
    ("fanin", "1,000 clients"),
    ("fanin", f"1,000 clients, {DRIVERS} drivers"),
    ("fanin", f"{IDLE:,} idle"),
    ("kinds", "16 KB"),
    ("kinds", "one-way 1 KB"),
    ("kinds", "one-way 16 KB"),
    ("throughput", f"pipelined, {CALLERS} clients"),
}
# Workloads that can have the same processes, one after the other: the quick mode's way. Otherwise each has its own, so
# that what one leaves behind in memory and caches is not the next one's.
SHARING = ("latency", "transfer", "throughput", "kinds", "fds")
# Workloads in which one side waits while the other works. Left free, their time is that of a wake-up on another core,
# or of none, as the kernel decides: figures that differ by a factor of four, by chance.
ALTERNATING = frozenset({"latency", "connect", "kinds", "fds"})
# The share of a round that the quick mode gives, and its rounds.
QUICK_SHARE, QUICK_ROUNDS, FULL_ROUNDS = 0.15, 3, 5


def make_plan(
    workloads: Sequence[str] | None = None,
    is_quick: bool = False,
    subjects: Sequence[str] | None = None,
    *,
    rounds: int | None = None,
    pin: list[int] | str = "free",
    seed: int = 0,
    entries: Sequence[Entry] | None = None,
) -> Plan:
    """Return what a run is to do.

    Args:
        workloads: Of WORKLOADS; all of them when left out or empty.
        is_quick: Whether a coarse answer in half a minute will do.
        subjects: Names, or their first words: "grpc" is every subject of grpc. All of them when left out; in the
            quick mode then those that it has time for. The reference always takes part.
        rounds: Rounds of each case; 5, or 3 in the quick mode, when left out.
        pin: Cores to keep every process to; "free" to leave that to the kernel; "alone" to keep those workloads to one
            core in which one side waits for the other.
        seed: What the order within the rounds is drawn from.
        entries: The subjects to choose from; all there are when left out.

    Raises:
        ValueError: There is no such workload, subject or core, or no round.
    """
    names = list(workloads or WORKLOADS)
    for name in names:
        if name not in WORKLOADS:
            raise ValueError(f"unknown workload {name!r}: there are {', '.join(WORKLOADS)}")
    rounds = rounds if rounds is not None else (QUICK_ROUNDS if is_quick else FULL_ROUNDS)
    if rounds < 1:
        raise ValueError(f"{rounds} rounds are none: give at least 1")
    every = find_entries() if entries is None else list(entries)
    chosen = _choose(every, subjects, is_quick)
    cases = tuple(
        replace(case, seconds=case.seconds * QUICK_SHARE) if is_quick else case
        for name in WORKLOADS
        if name in names
        for case in _MAKERS[name]()
        if not (is_quick and (name, case.name) in SLOW)
    )
    wanted = [entry for entry in chosen if any(case.suits(entry.subject) for case in cases)]
    missing = {entry.subject.name: reason for entry in wanted if (reason := entry.missing()) is not None}
    return Plan(
        cases=cases,
        entries=tuple(entry for entry in wanted if entry.subject.name not in missing),
        rounds=rounds,
        is_quick=is_quick,
        pinned=_pinned(pin, {case.workload for case in cases}),
        seed=seed,
        skipped=tuple(Skipped(name, reason) for name, reason in missing.items()),
    )


def _choose(every: list[Entry], subjects: Sequence[str] | None, is_quick: bool) -> list[Entry]:
    """Return the entries that were asked for, and the references."""
    if not subjects:
        return [entry for entry in every if entry.subject.is_quick or not is_quick]
    for wanted in subjects:
        if not any(_is_meant(wanted, entry) for entry in every):
            names = ", ".join(entry.subject.name for entry in every)
            raise ValueError(f"unknown subject {wanted!r}: there are {names}")
    return [
        entry
        for entry in every
        if entry.subject.name in REFERENCES or any(_is_meant(wanted, entry) for wanted in subjects)
    ]


def _is_meant(wanted: str, entry: Entry) -> bool:
    name = entry.subject.name.lower()
    return name == wanted.lower() or name.startswith((f"{wanted.lower()} ", f"{wanted.lower()},"))


def _pinned(pin: list[int] | str, workloads: set[str]) -> dict[str, list[int]]:
    there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if isinstance(pin, str):
        if pin not in ("free", "alone"):
            raise ValueError(f"cannot keep to cores {pin!r}: give numbers, free or alone")
        return {name: there[-1:] for name in WORKLOADS if pin == "alone" and there and name in ALTERNATING & workloads}
    if not pin or not set(pin) <= set(there):
        raise ValueError(f"cannot keep to cores {pin}: this process may use {there}")
    return {name: sorted(set(pin)) for name in WORKLOADS if name in workloads}
