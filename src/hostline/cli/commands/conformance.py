"""`hostline conformance`: the same questions about socket hygiene to hostline and to its installed peers."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hostline.cli.exits import ExitCode, UsageError
from hostline.cli.options import Json
from hostline.cli.terminal import console, escape, is_terminal, print_json

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


__all__ = ["EXAMPLES", "conformance"]

EXAMPLES = """\b
Examples:
  hostline conformance                               hostline and every peer that is installed
  hostline conformance hostline_sync asyncio         only these
  hostline conformance ./mine.py                     a server of your own
  hostline conformance --list
  hostline conformance --json > conformance.json
"""

_SIGNS = {"ok": "✓", "miss": "✗", "n/a": "-", "error": "?"}
_PLAIN_SIGNS = {"ok": "ok:", "miss": "MISS:", "n/a": "-", "error": "?"}
_STYLES = {"ok": "green", "miss": "bold red", "n/a": "dim", "error": "yellow"}
# Columns of the first column: with it, six answers stand side by side in 100.
_NAME_WIDTH = 17
_HEADINGS = {
    "file": "The socket file",
    "starts": "Starting and closing",
    "traffic": "Connecting and receiving",
}


_Subjects = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SUBJECT",
        help="Names of subjects, or .py files with a server of your own; all that are installed unless given.",
        show_default=False,
    ),
]
_Probe = Annotated[
    list[str] | None,
    typer.Option("--probe", metavar="KEY", help="Only this question; may be repeated.", show_default=False),
]
_Trials = Annotated[int, typer.Option("--trials", metavar="N", min=1, help="Races of two contenders for a stale file.")]
_Details = Annotated[bool, typer.Option("--details", help="Tell of every miss in full.")]
_Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")]
_List = Annotated[bool, typer.Option("--list", help="List the subjects and the questions, and run nothing.")]


def conformance(
    subjects: _Subjects = None,
    probe: _Probe = None,
    trials: _Trials = 5,
    details: _Details = False,
    json: Json = False,
    markdown: _Markdown = False,
    list_: _List = False,
) -> int | None:
    """Compare hostline's socket hygiene with its peers'.

    The same questions go to hostline and to every peer that is installed, and each answer comes from real processes
    on real sockets. What peers do never fails a run: exit code 12 means that hostline itself misses a row.
    """
    if json and markdown:
        raise UsageError("--json and --markdown contradict each other")
    if list_:
        _list(is_json=json)
        return None
    from hostline.conformance import as_markdown, run_conformance

    try:
        with _progress() as show:
            report = run_conformance(subjects or None, probe or None, show, trials=trials)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if json:
        _print_json(report.as_json())
    elif markdown:
        print(as_markdown(report), end="")
    else:
        _print_report(report, has_details=details)
    return ExitCode.CONFORMANCE_MISS if report.exit_code else None


def _print_json(value: Any) -> None:
    import msgspec

    print_json(msgspec.json.encode(value), is_pretty=is_terminal(sys.stdout))


@contextmanager
def _progress() -> Iterator[Any]:
    """Yield what shows a step on a terminal, or None where standard error is none."""
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console(sys.stderr), transient=True) as progress:
        task = progress.add_task("starting")

        def show(step: Any) -> None:
            description = escape(f"{step.subject}: {step.column}", keep="")
            progress.update(task, completed=step.done, total=step.total, description=description)

        yield show


# --- the report --------------------------------------------------------------------------------------


def _print_report(report: Any, *, has_details: bool) -> None:
    out = console()
    for group, columns in report.groups():
        out.print()
        out.print(_table(report, _HEADINGS[group], columns, _signs(out.encoding)))
    out.print()
    signs = _signs(out.encoding)
    legend = (
        f"{signs['ok']} met   {signs['miss']} missed   {signs['n/a']} nothing to probe   {signs['error']} no answer"
    )
    out.print(legend, style="dim")
    facts = report.facts
    out.print(
        f"hostline {facts['hostline']}, Python {facts['python']}, {facts['system']}, uid {facts['uid']}, "
        f"{facts['trials']} races, {report.seconds:.0f} seconds",
        style="dim",
        soft_wrap=True,
    )
    if report.not_installed:
        out.print(f"not installed: {', '.join(report.not_installed)}", style="dim", soft_wrap=True)
    if has_details:
        _print_details(report, out)
    _print_verdict(report, out)


def _signs(encoding: str) -> dict[str, str]:
    try:
        "".join(_SIGNS.values()).encode(encoding)
    except (LookupError, UnicodeEncodeError):
        return _PLAIN_SIGNS
    return _SIGNS


def _table(report: Any, title: str, columns: tuple[Any, ...], signs: dict[str, str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", max_width=_NAME_WIDTH)
    for column in columns:
        table.add_column(column.title, ratio=1)
    table.expand = True
    for row in report.rows:
        title = row.title if len(row.title) <= _NAME_WIDTH else row.title.replace(".", ".\n", 1)
        name = Text(escape(title, keep="\n"), style="bold" if row.is_hostline else "")
        name.append(f" {escape(row.version, keep='')}", style="dim")
        table.add_row(name, *(_cell(row.cells[column.key], signs) for column in columns))
    return table


def _cell(cell: Any, signs: dict[str, str]) -> Text:
    """Return a cell in a few words: the first part of what was observed; --details has the rest."""
    from rich.text import Text

    words = re.split("[,:;(]", cell.observed)[0].strip()
    shown = signs[cell.verdict] if cell.verdict == "n/a" else f"{signs[cell.verdict]} {words}"
    return Text(escape(shown, keep=""), style=_STYLES[cell.verdict])


def _print_details(report: Any, out: Any) -> None:
    for row in report.rows:
        missed = [c for c in report.columns if row.cells[c.key].verdict in ("miss", "error")]
        if not missed:
            continue
        out.print()
        out.print(escape(f"{row.title} {row.version}".rstrip(), keep=""), style="bold")
        for column in missed:
            cell = row.cells[column.key]
            detail = f" ({cell.detail})" if cell.detail and cell.detail != cell.observed else ""
            out.print(escape(f"  {column.title}: {cell.observed}{detail}", keep=""), soft_wrap=True)


def _print_verdict(report: Any, out: Any) -> None:
    out.print()
    if not any(row.is_hostline for row in report.rows):
        return
    if not report.hostline_missed:
        out.print("hostline misses nothing.", style="green")
    for missed in report.hostline_missed:
        out.print(escape(f"hostline misses {missed}", keep=""), style="bold red", soft_wrap=True)


def _list(*, is_json: bool) -> None:
    from hostline.conformance import COLUMNS, list_subjects

    found = list_subjects()
    if is_json:
        _print_json(
            {
                "subjects": [
                    {"name": subject.name, "title": subject.title, "version": version} for subject, version in found
                ],
                "columns": [
                    {"key": column.key, "title": column.title, "group": column.group, "demand": column.demand}
                    for column in COLUMNS
                ],
            }
        )
        return
    from rich import box
    from rich.table import Table

    out = console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("Subject", "Is", "Version"):
        table.add_column(heading)
    for subject, version in found:
        table.add_row(subject.name, subject.title, "not installed" if version is None else version)
    out.print(table)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("Question (--probe)", "What has to be seen"):
        table.add_column(heading)
    for column in COLUMNS:
        table.add_row(column.key, column.demand)
    out.print(table)
