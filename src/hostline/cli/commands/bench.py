"""`hostline bench`: hostline beside bare sockets, C, Go and other libraries, in one run and in ratios."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from hostline.cli.exits import CommandError, UsageError
from hostline.cli.options import Json
from hostline.cli.terminal import console, escape, is_terminal, plain, print_json

__all__ = ["EXAMPLES", "bench"]

EXAMPLES = """\b
Examples:
  hostline bench --quick                             a coarse answer, in under 30 seconds
  hostline bench                                     everything, in some minutes
  hostline bench latency transfer --only hostline --only grpc
  hostline bench latency --pin 0,1 --rounds 9
  hostline bench --json > results.json
  hostline bench --from results.json --chart results.svg
  hostline bench --list
"""

_Workloads = Annotated[
    list[str] | None,
    typer.Argument(metavar="WORKLOAD", help="Names of workloads; all of them unless given.", show_default=False),
]
_Quick = Annotated[bool, typer.Option("--quick", help="A coarse answer in under 30 seconds, with fewer subjects.")]
_Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="SUBJECT",
        help="Only this subject, or all whose names begin with this word; may be repeated.",
        show_default=False,
    ),
]
_Rounds = Annotated[
    int | None,
    typer.Option("--rounds", metavar="N", min=1, help="Rounds; 5 unless given, 3 with --quick.", show_default=False),
]
_Pin = Annotated[
    str | None,
    typer.Option(
        "--pin",
        metavar="CORES",
        help="Keep every process to these cores, such as 0,1; or free; or alone: one core where one side waits.",
        show_default=False,
    ),
]
_Chart = Annotated[
    Path | None,
    typer.Option(
        "--chart",
        metavar="FILE",
        help="Draw a chart, .svg or .png; of several workloads the others go beside it, such as FILE-transfer.svg.",
        show_default=False,
    ),
]
_From = Annotated[
    Path | None,
    typer.Option(
        "--from", metavar="FILE", help="Show what --json has written, and measure nothing.", show_default=False
    ),
]
_List = Annotated[bool, typer.Option("--list", help="List the workloads and the subjects, and measure nothing.")]


def bench(
    workloads: _Workloads = None,
    quick: _Quick = False,
    only: _Only = None,
    rounds: _Rounds = None,
    pin: _Pin = None,
    json: Json = False,
    chart: _Chart = None,
    from_: _From = None,
    list_: _List = False,
) -> None:
    """Measure hostline beside bare sockets and other libraries.

    Client and server are separate processes; the subjects take turns in every round. What is printed is how many times
    as long each takes as bare C over a Unix socket in the same run: figures of two runs, or of two machines, are not
    comparable. A library or a compiler that is missing is skipped, and the run says what to install.
    """
    if list_:
        _list(is_json=json)
        return
    if chart is not None:
        _check_chart(chart)
    if from_ is None:
        results = _measured(workloads, quick=quick, only=only, rounds=rounds, pin=pin)
    else:
        if quick or rounds is not None or pin is not None:
            raise UsageError("--from measures nothing, so that --quick, --rounds and --pin contradict it")
        results = _selected(_read(from_), workloads, only)
    if json:
        from hostline.bench.results import encode_results

        print_json(encode_results(results).rstrip(b"\n"), is_pretty=is_terminal(sys.stdout))
    else:
        from hostline.bench.table import print_results

        print_results(results, console(), lambda text: escape(text, keep=""))
    if not results.measurements:
        raise CommandError("nothing was measured: every subject was skipped" if from_ is None else "nothing is in it")
    if chart is not None:
        _draw(results, chart, is_told=not json)


# --- measuring, or reading ---------------------------------------------------------------------------


def _measured(
    workloads: list[str] | None, *, quick: bool, only: list[str] | None, rounds: int | None, pin: str | None
) -> Any:
    from hostline.bench.plan import make_plan
    from hostline.bench.run import run

    try:
        plan = make_plan(workloads or None, quick, only or None, rounds=rounds, pin=_cores(pin))
    except ValueError as error:
        raise UsageError(str(error)) from error
    with _progress() as show:
        return run(plan, show)


def _cores(text: str | None) -> list[int] | str:
    if text is None or text in ("free", "alone"):
        return text or "free"
    parts = text.split(",")
    if not all(part.strip().isascii() and part.strip().isdecimal() for part in parts):
        raise UsageError(
            f"--pin {text!r} must be numbers of cores with commas between them, such as 0,1, or free, or alone"
        )
    return [int(part) for part in parts]


@contextmanager
def _progress() -> Iterator[Any]:
    """Yield what shows a step on a terminal; in a pipe it shows nothing."""
    if not is_terminal(sys.stderr):
        yield lambda text, done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console(sys.stderr), transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def show(text: str, done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, description=plain(text))

        yield show


def _read(path: Path) -> Any:
    from hostline.bench.results import decode_results

    try:
        return decode_results(path.read_bytes())
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from error
    except RecursionError as error:
        raise CommandError(f"{path}: not the results of a benchmark: it is nested too deeply") from error


def _selected(results: Any, workloads: list[str] | None, only: list[str] | None) -> Any:
    from hostline.bench.arranged import selected

    try:
        return selected(results, workloads or (), only or ())
    except ValueError as error:
        raise UsageError(str(error)) from error


# --- the chart ---------------------------------------------------------------------------------------


def _check_chart(path: Path) -> None:
    """Complain before the measuring, not after it."""
    from hostline.bench.chart import check

    try:
        check(path)
    except ValueError as error:
        raise UsageError(f"--chart: {error}") from error
    except ModuleNotFoundError as error:
        raise CommandError(str(error)) from error


def _draw(results: Any, path: Path, *, is_told: bool) -> None:
    from hostline.bench.chart import draw

    try:
        written = draw(results, path)
    except OSError as error:
        raise CommandError(f"the chart cannot be written: {error.strerror}: {error.filename}") from error
    if is_told:
        for file in written:
            console().print(escape(f"chart: {file}"), soft_wrap=True)


# --- the list ----------------------------------------------------------------------------------------


def _list(*, is_json: bool) -> None:
    from hostline.bench.arranged import TITLES
    from hostline.bench.plan import WORKLOADS, find_entries

    entries = [(entry.subject, entry.missing()) for entry in find_entries()]
    if is_json:
        import msgspec

        document = {
            "workloads": [{"name": name, "title": TITLES.get(name, "")} for name in WORKLOADS],
            "subjects": [
                {
                    "name": subject.name,
                    "layer": subject.layer,
                    "transport": subject.transport,
                    "style": subject.style,
                    "is_quick": subject.is_quick,
                    "missing": missing,
                }
                for subject, missing in entries
            ],
        }
        print_json(msgspec.json.encode(document), is_pretty=is_terminal(sys.stdout))
        return
    from rich import box
    from rich.table import Table

    out = console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("Workload", "Measures"):
        table.add_column(heading)
    for name in WORKLOADS:
        table.add_row(name, TITLES.get(name, ""))
    out.print(table)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("Subject (--only)", "Layer", "Over", "Style", "Quick", ""):
        table.add_column(heading, no_wrap=heading.startswith("Subject"))
    for subject, missing in sorted(entries, key=lambda entry: ["raw", "framed", "typed"].index(entry[0].layer)):
        quick = "yes" if subject.is_quick else ""
        table.add_row(subject.name, subject.layer, subject.transport, subject.style, quick, plain(missing or ""))
    out.print(table)
