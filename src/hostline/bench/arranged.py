"""What tables and charts share: the order of cases, layers and subjects, and how numbers are written. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from hostline.bench.results import Measurement, Results

__all__ = [
    "LAYERS",
    "TITLES",
    "UNITS",
    "Case",
    "arrange",
    "chart_legend",
    "chart_title",
    "in_short",
    "kind_of",
    "machine_line",
    "number",
    "ordered",
    "panel_name",
    "ratio_text",
    "run_line",
    "selected",
    "side_by_side",
]

# What one gets at each layer, from the least.
LAYERS = {"raw": "raw bytes", "framed": "framed messages", "typed": "typed calls"}

# Units as tables and charts name them.
UNITS = {"us": "µs", "1/s": "a second", "KiB": "KiB"}

# What each workload does, as a heading.
TITLES = {
    "latency": "one round trip at a time",
    "transfer": "a large block one way, acknowledged",
    "throughput": "pipelined calls, and messages one way",
    "connect": "connect, one round trip, close",
    "fanin": "many clients of one server",
    "kinds": "stream, seqpacket and datagram",
    "fds": "open files sent along",
}


@dataclass(frozen=True, slots=True)
class Case:
    """Hold what is compared with one another: the same work, done by every subject that can.

    Attributes:
        workload: Its workload, such as `latency`.
        name: Its name within the workload, such as `64 B`.
        unit: `us` of one operation, or `1/s`.
        reference: The subject that ratios are against, or None where there are none.
        measurements: By layer, the fastest first within each.
    """

    workload: str
    name: str
    unit: str
    reference: str | None
    measurements: tuple[Measurement, ...]

    @property
    def layers(self) -> list[tuple[str, list[Measurement]]]:
        """Return the measurements of each layer that has any, in order."""
        names = [*LAYERS, *sorted({m.layer for m in self.measurements} - LAYERS.keys())]
        cut = [(name, [m for m in self.measurements if m.layer == name]) for name in names]
        return [(name, found) for name, found in cut if found]

    @property
    def reference_value(self) -> float | None:
        """Return the figure of the reference itself, in the unit."""
        return next((m.value for m in self.measurements if m.subject == self.reference), None)


def arrange(results: Results) -> list[Case]:
    """Return the cases of a run: workloads as TITLES has them, the cases of each in the order in which they appear."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for measurement in results.measurements:
        groups.setdefault((measurement.workload, measurement.case), []).append(measurement)
    return [
        Case(
            workload,
            name,
            found[0].unit,
            next((m.reference for m in found if m.reference is not None), None),
            tuple(ordered(found)),
        )
        for (workload, name), found in sorted(groups.items(), key=lambda group: _place(group[0][0]))
    ]


def _place(workload: str) -> int:
    known = list(TITLES)
    return known.index(workload) if workload in known else len(known)


def ordered(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Return measurements by layer, the fastest first within each."""
    layers = list(LAYERS)

    def key(m: Measurement) -> tuple[int, bool, float, float, str]:
        layer = layers.index(m.layer) if m.layer in layers else len(layers)
        slow = -m.value if m.unit == "1/s" else m.value
        return layer, m.ratio is None, m.ratio or 0.0, slow, m.subject

    return sorted(measurements, key=key)


def selected(results: Results, workloads: Iterable[str], subjects: Iterable[str]) -> Results:
    """Return a run with only these workloads and subjects; all of them where none is named.

    Args:
        results: The run.
        workloads: Names.
        subjects: Names, or their first words: "grpc" is every subject of grpc. References always stay.

    Raises:
        ValueError: The run has no such workload or subject; the text lists those it has.
    """
    workloads, subjects = list(workloads), list(subjects)
    there = dict.fromkeys(m.workload for m in results.measurements)
    for name in workloads:
        if name not in there:
            raise ValueError(f"no workload {name!r} in these results: there are {', '.join(there)}")
    kept = [m for m in results.measurements if not workloads or m.workload in workloads]
    there = dict.fromkeys(m.subject for m in kept)
    for name in subjects:
        if not any(_is_meant(name, subject) for subject in there):
            raise ValueError(f"no subject {name!r} in these results: there are {', '.join(there)}")
    if subjects:
        kept = [m for m in kept if m.subject == m.reference or any(_is_meant(name, m.subject) for name in subjects)]
    return msgspec.structs.replace(results, measurements=kept)


def _is_meant(wanted: str, name: str) -> bool:
    return name.lower() == wanted.lower() or name.lower().startswith(f"{wanted.lower()} ")


def side_by_side(cases: Sequence[Case], columns: int) -> list[list[Case]]:
    """Return cases in groups that share rows: they have mostly the same subjects, and the same kind of figure."""
    groups: list[list[Case]] = []
    for case in cases:
        for group in groups:
            own, first = ({m.subject for m in each.measurements} for each in (case, group[0]))
            if (
                len(group) < columns
                and kind_of(case) == kind_of(group[0])
                and len(own & first) > 0.7 * len(own | first)
            ):
                group.append(case)
                break
        else:
            groups.append([case])
    return groups


# --- words and numbers -------------------------------------------------------------------------------


def number(value: float) -> str:
    """Return a figure with three digits that count: `6.21`, `31.5`, `472`, `1,850,000`."""
    if not math.isfinite(value) or value <= 0:
        return f"{value:g}"
    places = 2 - math.floor(math.log10(value))
    return f"{round(value, places):,.{max(0, places)}f}"


def ratio_text(ratio: float | None) -> str:
    """Return a ratio with two digits that count: `0.31x`, `1.4x`, `24x`, `120x`."""
    if ratio is None:
        return ""
    if not math.isfinite(ratio) or ratio <= 0:
        return f"{ratio:g}x"
    places = 1 - math.floor(math.log10(ratio))
    return f"{round(ratio, places):,.{max(0, places)}f}x"


def in_short(case: Case) -> str | None:
    """Return where hostline stands in a case, on the highest layer that it is on, in one line; or None."""
    for layer, found in reversed(case.layers):
        ours = [m for m in found if m.is_hostline and m.ratio is not None]
        if not ours:
            continue
        others = [m for m in found if not m.is_hostline and m.ratio is not None and m.subject != case.reference]
        text = f"{case.workload}, {case.name}, {LAYERS.get(layer, layer)}: "
        text += f"{ours[0].subject} {ratio_text(ours[0].ratio)} {case.reference}"
        return f"{text}; the best other, {others[0].subject}, {ratio_text(others[0].ratio)}" if others else text
    return None


def machine_line(results: Results) -> str:
    """Return what a run depends on, in one line."""
    kind = "quick run" if results.is_quick else "full run"
    facts = [f"{key} {value}" for key, value in results.machine.items()]
    run = (
        f"hostline {results.version}, {kind} of {results.began}, {results.rounds} rounds, {results.seconds:.0f} seconds"
    )
    return f"{run}, processes {_pinned_text(results) or 'free'}; {', '.join(facts)}"


def _pinned_text(results: Results) -> str:
    """Return which cores the processes were kept to, in words; nothing if all were free."""
    free = {measurement.workload for measurement in results.measurements} - set(results.pinned)
    cores = [f"core{'s' * (len(each) > 1)} {', '.join(map(str, each))}" for each in results.pinned.values()]
    if not cores:
        return ""
    if not free and len(set(cores)) == 1:
        return f"pinned to {cores[0]}"
    by_core: dict[str, list[str]] = {}
    for name, core in zip(results.pinned, cores, strict=True):
        by_core.setdefault(core, []).append(name)
    return "; ".join(f"{', '.join(names)} on {core}" for core, names in by_core.items()) + "; the rest free"


# --- words of a chart ---------------------------------------------------------------------------------

# What is drawn, and which direction is better, by kind of figure.
_DIRECTIONS = {
    "us": "microseconds: further left is faster",
    "1/s": "how many a second: further right is faster",
    "KiB": "KiB: further left is less",
}


def kind_of(case: Case) -> str:
    """Return what a case is drawn in: "ratio", or its unit where it has no reference."""
    return case.unit if case.reference is None else "ratio"


def chart_title(cases: Sequence[Case]) -> str:
    """Return what is measured, as the heading of a chart."""
    title = TITLES.get(cases[0].workload, cases[0].workload)
    title = title[:1].upper() + title[1:]
    return f"{title}: {cases[0].name}" if len(cases) == 1 else title


def chart_legend(cases: Sequence[Case]) -> str:
    """Return what the bars mean, and which direction is better."""
    kinds = {kind_of(case) for case in cases}
    if "ratio" in kinds:
        return f"How many times as long as {_reference_name(cases)}: further left is faster. Log scale."
    text = "; ".join(_DIRECTIONS.get(kind, kind) for kind in sorted(kinds))
    return f"{text[:1].upper()}{text[1:]}. Log scale."


def panel_name(case: Case, cases: Sequence[Case]) -> str:
    """Return the heading of one case, with its kind of figure where others have another."""
    is_mixed = len({kind_of(other) for other in cases}) > 1 and case.reference is None
    return f"{case.name}, {_DIRECTIONS.get(case.unit, case.unit)}" if is_mixed else case.name


def _reference_name(cases: Sequence[Case]) -> str:
    names = {case.reference for case in cases if case.reference is not None}
    if len(names) > 1:
        return "what is named at the line"
    name = "".join(names)
    return {"C": "bare C over a Unix socket", "sockets": "Python's bare sockets"}.get(name, name)


def run_line(results: Results, cases: Sequence[Case]) -> str:
    """Return what some cases of a run depend on, in a few words."""
    kept = {tuple(results.pinned.get(case.workload, ())) for case in cases}
    if len(kept) == 1:
        cores = ", ".join(map(str, kept.pop()))
        pinned = f", on core {cores}" if cores else ""
    else:
        pinned = f", {text}" if (text := _pinned_text(results)) else ""
    kind = "quick run" if results.is_quick else f"{results.rounds} rounds"
    facts = [results.machine[key] for key in ("cpu", "kernel", "python") if key in results.machine]
    return f"hostline {results.version}, {kind}{pinned}. {', '.join(facts)}"
