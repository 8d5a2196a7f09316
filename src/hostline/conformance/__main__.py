"""The table without the command's libraries: `python -m hostline.conformance`.

`hostline conformance` shows the same in colour; this prints Markdown or JSON, and `--write` renews the table in the
docs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hostline.conformance.markdown import as_markdown, write_into
from hostline.conformance.run import DEFAULT_TRIALS, Step, run_conformance


def main(arguments: list[str]) -> int:
    """Run the table and print it; return 1 if hostline misses a row, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m hostline.conformance", description=__doc__)
    parser.add_argument("subjects", nargs="*", help="names of subjects or .py files; all when left out")
    parser.add_argument("--probe", action="append", metavar="KEY", help="only this column; may be repeated")
    parser.add_argument("--trials", type=int, default=DEFAULT_TRIALS, help="races for a stale file (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="renew the table between the marks of a page")
    given = parser.parse_args(arguments)

    def progress(step: Step) -> None:
        print(f"\r\x1b[K{step.done}/{step.total} {step.subject}: {step.column}", end="", file=sys.stderr, flush=True)

    try:
        report = run_conformance(
            given.subjects or None, given.probe, progress if sys.stderr.isatty() else None, trials=given.trials
        )
    except ValueError as error:
        parser.error(str(error))
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    if given.write:
        write_into(given.write, report)
    elif given.json:
        print(json.dumps(report.as_json(), indent=1))
    else:
        print(as_markdown(report), end="")
    for missed in report.hostline_missed:
        print(f"hostline misses {missed}", file=sys.stderr)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
