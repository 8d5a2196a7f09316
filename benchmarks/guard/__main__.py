"""`make bench-check`: count the instructions of each sequence and compare with what is recorded.

    python -m benchmarks.guard [--record] [--repeat N] [SEQUENCE ...]

Exit status: 0 if nothing became more than 5 % dearer, 1 if something did, 2 if nothing could be compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.guard import comparing, counting
from benchmarks.guard.sequences import ALL, BY_NAME, Sequence


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.guard", description="Compare instruction counts of fixed call sequences with recorded ones."
    )
    parser.add_argument("sequences", nargs="*", metavar="SEQUENCE", help=", ".join(BY_NAME) + "; all when left out")
    parser.add_argument("--record", action="store_true", help="record the counts instead of comparing them")
    parser.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="count N times, and show how far they differ"
    )
    parser.add_argument("--file", type=Path, default=comparing.RECORDED, help="the record (%(default)s)")
    parser.add_argument("--program", help=argparse.SUPPRESS)  # a file that runs sequences: the tests' own
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.sequences if name not in BY_NAME]:
        parser.error(f"no such sequence: {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
    names = {comparing.CALIBRATION, *options.sequences} if options.sequences else set(BY_NAME)
    chosen = [sequence for sequence in ALL if sequence.name in names]
    program = [options.program] if options.program else counting.PROGRAM
    try:
        return run(chosen, options, program)
    except (counting.CannotCount, comparing.NothingToCompare) as error:
        print(f"bench-check: {error}", file=sys.stderr)
        return 2


def run(chosen: list[Sequence], options: argparse.Namespace, program: list[str] | tuple[str, ...]) -> int:
    """Count, then record or compare."""
    began = time.monotonic()
    figures = count_all(chosen, program, options.repeat)
    counts = {name: statistics.median(values) for name, values in figures.items()}
    print(f"{comparing.key()}: instructions of one operation")
    if options.repeat > 1:
        for sequence in chosen:
            values = figures[sequence.name]
            print(f"  {sequence.title:42} {counts[sequence.name]:>11,.0f}   differ by {counting.spread(values):.3%}")
    if options.record:
        comparing.save(counts, options.file)
        print(f"recorded in {options.file}, in {time.monotonic() - began:.0f} s")
        return 0
    rows, scale = comparing.compare(chosen, counts, comparing.load(options.file))
    if doubtful := [row.name for row in rows if row.is_dearer]:
        # A count that something disturbed is one of three.
        again = count_all([BY_NAME[name] for name in doubtful], program, 2)
        counts.update({name: statistics.median([*figures[name], *values]) for name, values in again.items()})
        rows, scale = comparing.compare(chosen, counts, comparing.load(options.file))
    show(rows, scale)
    print(f"in {time.monotonic() - began:.0f} s")
    return judge(rows)


def count_all(chosen: list[Sequence], program: list[str] | tuple[str, ...], runs: int) -> dict[str, list[float]]:
    """Return the counts of each sequence, as many at a time as there are processors.

    Raises:
        CannotCount: One of them failed.
    """
    counting.valgrind()
    counting.warm(chosen[0], program)
    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        try:
            return dict(
                zip(
                    [sequence.name for sequence in chosen],
                    pool.map(lambda sequence: counting.measure(sequence, program, runs), chosen),
                    strict=True,
                )
            )
        finally:
            pool.shutdown(cancel_futures=True)


def show(rows: list[comparing.Row], scale: float) -> None:
    """Print the table."""
    print(f"  {'':42} {'recorded':>11} {'now':>11} {'change':>8}")
    for row in rows:
        was = "-" if row.recorded is None else f"{row.recorded:,.0f}"
        change = "new" if row.change is None else f"{row.change:+.1%}"
        print(f"  {row.title:42} {was:>11} {row.now:>11,.0f} {change:>8}")
    if abs(scale - 1) > 0.001:
        print(f"  recorded counts are scaled by {scale:.3f}: the calibration differs by {scale - 1:+.1%} here")


def judge(rows: list[comparing.Row]) -> int:
    """Say what became dearer or cheaper, and return the exit status."""
    limit = f"{comparing.TOLERANCE:.0%}"
    status = 0
    for row in rows:
        if row.is_dearer:
            print(f"FAILED: {row.name} ({row.title}) became {row.change:+.1%} dearer; {limit} are allowed")
            status = 1
        elif row.is_cheaper:
            print(f"{row.name} ({row.title}) became {row.change:+.1%} cheaper: record it, or it may be lost unseen")
        elif row.change is None:
            print(f"FAILED: {row.name} ({row.title}) is not recorded")
            status = 1
    if status:
        print("make it cheap again; or, if it is worth its price: make bench-check RECORD=1, and the commit says why")
    return status


if __name__ == "__main__":
    sys.exit(main())
