"""Tables of a run: with rich for terminals and pipes, and in Markdown for a page. Writes to no stream of its own.

Each column is left out where no subject has a figure for it, and the less important ones where there is no room.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hostline.bench.arranged import LAYERS, TITLES, UNITS, Case, arrange, in_short, machine_line, number, ratio_text
from hostline.bench.results import Measurement, Results

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["BEGIN", "END", "as_markdown", "print_results", "write_into"]

BEGIN = "<!-- begin: make bench -->"
END = "<!-- end -->"

# Columns of a terminal from which on a column of figures is shown.
_MEDIUM, _WIDE = 90, 110


@dataclass(frozen=True, slots=True)
class _Column:
    """Describe one column of figures.

    Attributes:
        heading: What stands above it.
        text: Returns a cell; an empty one is not known.
        from_width: How many columns a terminal must have for it to be shown.
    """

    heading: str
    text: Callable[[Measurement], str]
    from_width: int = 0


def _columns(case: Case, *, width: int) -> list[_Column]:
    """Return the columns for which any subject of a case has a figure."""
    reference = case.reference if case.reference is not None else ""
    unit = UNITS.get(case.unit, case.unit)
    columns = [
        _Column("over", lambda m: m.transport),
        _Column("style", lambda m: m.style, from_width=_WIDE),
        _Column(f"x {reference}", lambda m: ratio_text(m.ratio)),
        _Column(f"p50 {unit}" if any(m.spread for m in case.measurements) else unit, lambda m: number(m.value)),
        _Column("rounds", _rounds, from_width=_WIDE),
        _Column("p90", lambda m: number(m.spread.p90) if m.spread else "", from_width=_WIDE),
        _Column("p99", lambda m: number(m.spread.p99) if m.spread else ""),
        _Column("p99.9", lambda m: number(m.spread.p999) if m.spread else "", from_width=_MEDIUM),
        _Column("CPU s/M", _processor),
        _Column("MiB", _memory),
    ]
    return [c for c in columns if width >= c.from_width and any(c.text(m) for m in case.measurements)]


def _rounds(measurement: Measurement) -> str:
    """Return the lowest and the highest round, between which the truth of this machine lies."""
    if len(measurement.rounds) < 2:
        return ""
    return f"{number(min(measurement.rounds))}-{number(max(measurement.rounds))}"


def _processor(measurement: Measurement) -> str:
    seconds = measurement.cpu_seconds_per_million
    return "" if seconds is None else number(seconds)


def _memory(measurement: Measurement) -> str:
    """Return the peak memory of both sides, the client's first."""
    peak = measurement.peak_memory_kib
    sides = [f"{peak[side] / 1024:.0f}" for side in ("client", "server") if side in peak]
    return "+".join(sides)


def _title(case: Case) -> str:
    title = TITLES.get(case.workload)
    return f"{case.workload}, {case.name}" + (f": {title}" if title else "")


# --- on a terminal, and in a pipe --------------------------------------------------------------------


def print_results(results: Results, out: Console, escape: Callable[[str], str]) -> None:
    """Print a run: a table for each case, where hostline stands, what was left out, and on what machine it was.

    Args:
        results: The run.
        out: Where to.
        escape: Makes a text harmless for a terminal: names and reasons may come from a file or from a peer.
    """
    plain = _plain(out.encoding)
    cases = arrange(results)
    for case in cases:
        out.print()
        out.print(_table(case, out.width, lambda text: plain(escape(text))))
    said = [sentence for case in cases if (sentence := in_short(case)) is not None]
    if said:
        out.print()
        out.print("In short, in times of the reference:", style="bold")
        for sentence in said:
            out.print(plain(escape(f"  {sentence}")), soft_wrap=True)
    if results.skipped:
        out.print()
        for skipped in results.skipped:
            out.print(plain(escape(f"skipped: {skipped.subject}: {skipped.reason}")), style="dim", soft_wrap=True)
    out.print()
    out.print(plain(escape(machine_line(results))), style="dim")
    out.print("Compare within this run only.", style="dim")


def _plain(encoding: str) -> Callable[[str], str]:
    """Return what makes a text fit for an encoding."""
    try:
        "µ".encode(encoding)
    except (LookupError, UnicodeEncodeError):
        return lambda text: text.replace("µ", "u")
    return lambda text: text


def _table(case: Case, width: int, clean: Callable[[str], str]) -> Table:
    from rich import box
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    columns = _columns(case, width=width)
    table = Table(
        title=Text(clean(_title(case)), style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("", min_width=28, overflow="fold")
    for column in columns:
        is_word = column.heading in ("over", "style")
        table.add_column(Text(clean(column.heading)), justify="left" if is_word else "right", no_wrap=True)
    for place, (layer, found) in enumerate(case.layers):
        if place:
            table.add_section()
        table.add_row(Text(clean(LAYERS.get(layer, layer)), style="dim"))
        for measurement in found:
            style = "bold green" if measurement.is_hostline else ""
            name = Padding(Text(clean(measurement.subject), style=style), (0, 0, 0, 2))
            table.add_row(name, *(Text(clean(column.text(measurement)), style=style) for column in columns))
    return table


# --- on a page ---------------------------------------------------------------------------------------


def as_markdown(results: Results, charts: Callable[[str], str | None] = lambda workload: None) -> str:
    """Return a run as Markdown: for each workload its chart and a table for each case, hostline in bold.

    Args:
        results: The run.
        charts: Returns the path of a workload's chart, as the page links it; None for a workload without.
    """
    parts = [f"{_escape(machine_line(results))}."]
    workload = ""
    for case in arrange(results):
        if case.workload != workload:
            workload = case.workload
            parts.append(f"### {_escape(workload)}")
            if (path := charts(workload)) is not None:
                title = TITLES.get(workload, workload)
                parts.append(f"![{_escape(workload)}: {_escape(title)}; the figures are in the tables below]({path})")
        parts.append(f"**{_escape(case.name)}**")
        parts.append("\n".join(_markdown_rows(case)))
    if results.skipped:
        parts.append(
            "Left out: " + "; ".join(f"{_escape(s.subject)}: {_escape(s.reason)}" for s in results.skipped) + "."
        )
    return "\n\n".join(parts) + "\n"


def _markdown_rows(case: Case) -> Iterator[str]:
    columns = _columns(case, width=_WIDE)
    yield "| Subject | layer | " + " | ".join(_escape(column.heading) for column in columns) + " |"
    yield "|---|---" + "".join("|---" if column.heading in ("over", "style") else "|--:" for column in columns) + "|"
    for layer, found in case.layers:
        for measurement in found:
            name = _escape(measurement.subject)
            name = f"**{name}**" if measurement.is_hostline else name
            yield f"| {name} | {_escape(layer)} | " + " | ".join(_escape(c.text(measurement)) for c in columns) + " |"


def write_into(page: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Replace what stands between the two marks of a page.

    Args:
        page: The file.
        text: What is to stand there.
        begin: The first mark.
        end: The second.

    Raises:
        ValueError: The page has no such marks.
    """
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} has no part between {begin!r} and {end!r}")
    new = page.with_name(page.name + ".new")
    new.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")
    os.replace(new, page)


def _escape(text: str) -> str:
    for character in "\\|*_`<>[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
