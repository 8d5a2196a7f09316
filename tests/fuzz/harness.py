"""The loop of every fuzz test: seeded inputs, a count that is reached, and a failure that can be played again.

HOSTLINE_FUZZ_INPUTS=200000   how many inputs all the tests of this folder make together, at least
HOSTLINE_FUZZ_SEED=1          which inputs these are; each depends on the seed, its target and its index only
"""

from __future__ import annotations

import dataclasses
import enum
import os
import random
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

SEED: Final = int(os.environ.get("HOSTLINE_FUZZ_SEED", "1"), 0)
INPUTS: Final = int(os.environ.get("HOSTLINE_FUZZ_INPUTS", "200000"))

# Of a hundred inputs, how many go to each target.
SHARES: Final = {"frames": 30, "payloads": 25, "arguments": 20, "server": 13, "client": 12}

# Seconds of processor time for one input: to find what hangs or grows with the square, not to measure. Time on the
# wall would blame the code for a machine that pauses.
LONGEST: Final = 1.0

# The most that one input may make the code allocate: bytes for each of its own, and bytes beside that. An empty map
# costs one byte on the wire and 64 in memory, so a decoder that keeps its bounds stays well under this, and one that
# believes a length of 2**31 does not.
MEMORY_PER_BYTE: Final = 150
MEMORY_BESIDE: Final = 256 << 10


class Case(NamedTuple):
    """One input: the bytes, where to cut them into reads, and whatever else the target wants to know."""

    data: bytes
    cuts: tuple[int, ...] = ()
    about: Any = None

    def pieces(self, also: int | None = None) -> list[tuple[int, bytes]]:
        """Return the reads, each with its offset; `also` is one more place to cut at."""
        ends = sorted({*self.cuts, len(self.data), *(() if also is None else (also,))})
        return [(start, self.data[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


class Outcome(enum.Enum):
    """What became of an input; REFUSED_LATE is refused after a part of it was taken."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    REFUSED_LATE = "refused late"


@dataclasses.dataclass
class Tally:
    """Count what became of the inputs of one target."""

    target: str
    counts: dict[Outcome, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(Outcome, 0))

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def share(self, *outcomes: Outcome) -> float:
        return sum(self.counts.get(outcome, 0) for outcome in outcomes) / max(self.total, 1)

    def __str__(self) -> str:
        shares = ", ".join(f"{self.share(outcome):.1%} {outcome.value}" for outcome in Outcome)
        return f"{self.target}: {self.total} inputs, {shares}"


Make = Callable[[random.Random], Case]
Check = Callable[[Case], Outcome]


def count_of(target: str) -> int:
    """Return how many inputs a target gets; rounded up, so that all together are at least those asked for."""
    return -(-INPUTS * SHARES[target] // 100)


def inputs(target: str, indexes: Iterable[int], make: Make, seed: int = SEED) -> Iterable[tuple[int, Case]]:
    """Yield inputs with their indexes; each can be made again without those before it."""
    rng = random.Random()
    base = (seed << 64) + (zlib.crc32(target.encode()) << 32)
    for index in indexes:
        rng.seed(base + index)
        yield index, make(rng)


def fuzz(target: str, make: Make, check: Check, count: int, *, seed: int = SEED) -> Tally:
    """Check `count` inputs and return what became of them.

    Raises:
        BaseException: Whatever `check` raised, with a note that names the seed, the index and the bytes. That includes
            the test's own time limit, so an input that hangs is named as well.
    """
    tally = Tally(target)
    counts = tally.counts
    clock = time.thread_time
    for index, case in inputs(target, range(count), make, seed):
        begin = clock()
        try:
            counts[check(case)] += 1
            took = clock() - begin
            assert took < LONGEST, f"one input took {took:.3f} seconds, more than {LONGEST}"
        except BaseException as error:
            error.add_note(note(target, index, case, seed))
            raise
    return tally


def note(target: str, index: int, case: Case, seed: int) -> str:
    """Return what is needed to play an input again."""
    return (
        f"HOSTLINE_FUZZ_SEED={seed}, input {index} of target {target!r}, cuts {case.cuts!r}, about {case.about!r},"
        f" {len(case.data)} bytes: {case.data.hex()}"
    )


def check_memory(target: str, make: Make, check: Check, indexes: Iterable[int], *, seed: int = SEED) -> int:
    """Measure the peak of some inputs' allocations against their sizes; return how many were measured."""
    cases = list(inputs(target, indexes, make, seed))
    for _, case in cases[:50]:
        check(case)  # what is made once and kept: compiled patterns, names of kinds
    tracemalloc.start()
    try:
        for index, case in cases:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            check(case)
            peak = tracemalloc.get_traced_memory()[1] - before
            bound = MEMORY_BESIDE + MEMORY_PER_BYTE * len(case.data)
            assert peak <= bound, f"peak of {peak} bytes exceeds {bound}; {note(target, index, case, seed)}"
    finally:
        tracemalloc.stop()
    return len(cases)


def check_tally(tally: Tally, *, accepted: float, refused: float, late: float = 0.0) -> None:
    """Demand the whole count, and that neither nearly all inputs were accepted nor nearly all refused at once.

    Args:
        tally: What became of a target's inputs.
        accepted: Least share of inputs that were taken whole.
        refused: Least share of inputs that were refused.
        late: Least share of inputs that were refused after a part was taken.
    """
    print(tally)
    assert tally.total == count_of(tally.target)
    if tally.total < 1000:
        return  # too few for shares to say anything
    assert tally.share(Outcome.ACCEPTED) >= accepted, tally
    assert tally.share(Outcome.REFUSED, Outcome.REFUSED_LATE) >= refused, tally
    assert tally.share(Outcome.REFUSED_LATE) >= late, tally
