"""`python -m scorecard [ROW ...] [--full] [--json FILE] [--list] [--markdown FILE ...]`: one JSON line for each row."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from scorecard import rows
from scorecard.facts import machine_facts
from scorecard.markdown import write_criteria, write_tables
from scorecard.progress import Progress
from scorecard.runner import problems, run_rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 if all rows passed and every control failed."""
    parser = argparse.ArgumentParser(prog="scorecard", description="Measure what hostline promises, row by row.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="R5, R9, ...; all when left out")
    parser.add_argument("--full", action="store_true", help="the sizes of the table instead of those for CI; hours")
    parser.add_argument(
        "--loop", choices=["asyncio", "uvloop"], default="asyncio", help="of servers and asyncio clients"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the lines to this file")
    parser.add_argument("--list", action="store_true", help="list the rows and their criteria, run nothing")
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="print tables of the files of lines that stand in place of rows; without any, of the criteria",
    )
    options = parser.parse_args(arguments)
    if options.markdown:
        print(write_tables(options.rows) if options.rows else write_criteria(rows.load()), end="")
        return 0
    known = rows.load()
    if options.list:
        for row in known.values():
            print(f"{row.name:4} {row.title}: {row.criterion}")
        return 0
    names = [name.upper() for name in options.rows] or list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(known)}")
    return run([known[name] for name in dict.fromkeys(names)], options)


def run(chosen: list[rows.Row], options: argparse.Namespace) -> int:
    """Run the rows, print their lines and say at the end what went wrong."""
    lines: list[dict[str, Any]] = []
    with open(options.json or os.devnull, "w", encoding="utf-8") as file:

        def say(line: dict[str, Any]) -> None:
            text = json.dumps(line)
            print(text, flush=True)
            file.write(f"{text}\n")
            file.flush()

        say({"facts": machine_facts(options.loop)})
        with Progress(chosen) as progress:
            for line in run_rows(chosen, "full" if options.full else "ci", options.loop):
                say(line)
                lines.append(line)
                progress.show(line)
    found = problems(lines, is_ci=os.environ.get("HOSTLINE_CI") == "1")
    for problem in found:
        print(f"scorecard: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
