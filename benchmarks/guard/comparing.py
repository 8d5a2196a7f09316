"""The record of counts, and the arithmetic of comparing with it.

One JSON file holds a record for each environment that counts differently: the version of Python, the kind of machine,
and whether hostline's compiled core is in use. Within one, the builds of the interpreter and of msgspec still differ a
little from machine to machine: a calibration sequence that runs none of hostline's code is counted with the others, and
what was recorded is scaled by how much that one differs here.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from benchmarks.guard.sequences import Sequence

import hostline

RECORDED: Final = Path(__file__).with_name("recorded.json")
CALIBRATION: Final = "calibration"
# The share by which a sequence may become dearer, or cheaper without being recorded.
TOLERANCE: Final = 0.05
# The share by which the calibration may differ: an interpreter that differs by more was built in another way (without
# optimization, say), and its costs are not in proportion.
FARTHEST: Final = 0.15


class NothingToCompare(Exception):
    """There is no record that fits this environment; the text says which is missing and how to make it."""


@dataclass(frozen=True)
class Row:
    """One line of the table: instructions of one operation as recorded, scaled, and as counted now."""

    name: str
    title: str
    recorded: float | None
    now: float

    @property
    def change(self) -> float | None:
        """The share by which it became dearer; below zero, cheaper."""
        return None if self.recorded is None else self.now / self.recorded - 1

    @property
    def is_dearer(self) -> bool:
        """Whether it became dearer than it may."""
        return self.change is not None and self.change > TOLERANCE

    @property
    def is_cheaper(self) -> bool:
        """Whether it became so much cheaper that it should be recorded."""
        return self.change is not None and self.change < -TOLERANCE


def core() -> str:
    """Return "compiled" or "pure": which core `hostline` says it uses."""
    is_compiled = getattr(hostline, "is_compiled", bool)  # versions without a core have no such function
    return "compiled" if is_compiled() else "pure"


def key() -> str:
    """Return the name of this environment's record."""
    version = ".".join(platform.python_version_tuple()[:2])
    return f"{platform.python_implementation()} {version} {platform.machine()} {core()}"


def facts() -> dict[str, str]:
    """Return what else counts depend on; recorded for readers, and compared by the calibration alone."""
    return {
        "python": f"{platform.python_version()}, {platform.python_compiler()}",
        "msgspec": msgspec.__version__,
        "libc": " ".join(platform.libc_ver()),
    }


def load(path: Path = RECORDED) -> dict[str, Any]:
    """Return all records; none if there is no file."""
    if not path.exists():
        return {}
    records: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return records


def save(counts: dict[str, float], path: Path = RECORDED) -> None:
    """Put the counts into this environment's record; sequences that were not counted keep theirs."""
    records = load(path)
    before = records.get(key(), {}).get("sequences", {})
    if len(counts) < len(before) and CALIBRATION in counts:
        # What stays was recorded beside another calibration: bring it to the new one.
        scale = counts[CALIBRATION] / before[CALIBRATION]
        before = {name: count * scale for name, count in before.items()}
    sequences = {name: round(count, 1) for name, count in {**before, **counts}.items()}
    records[key()] = {**facts(), "sequences": sequences}
    path.write_text(json.dumps(records, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def compare(sequences: list[Sequence], counts: dict[str, float], records: dict[str, Any]) -> tuple[list[Row], float]:
    """Return a row for each sequence but the calibration, and the factor by which what was recorded is scaled.

    Raises:
        NothingToCompare: This environment has no record, or the calibration is too far from the recorded one.
    """
    record = records.get(key())
    if record is None:
        there = "".join(f"\n    {name}" for name in sorted(records)) or " nothing"
        raise NothingToCompare(
            f"no counts are recorded for {key()}; recorded are:{there}\nmake bench-check RECORD=1 records these"
        )
    recorded = record["sequences"]
    scale = counts[CALIBRATION] / recorded[CALIBRATION]
    if abs(scale - 1) > FARTHEST:
        was = ", ".join(f"{name} {value}" for name, value in record.items() if name != "sequences")
        here = ", ".join(f"{name} {value}" for name, value in facts().items())
        raise NothingToCompare(
            f"the interpreter and msgspec alone take {scale - 1:+.0%} instructions against the record, more than"
            f" {FARTHEST:.0%}: they were built in another way, and nothing can be compared\n"
            f"    recorded: {was}\n    here:     {here}\nmake bench-check RECORD=1 records these"
        )
    rows = []
    for sequence in sequences:
        if sequence.name != CALIBRATION:
            was = recorded.get(sequence.name)
            rows.append(Row(sequence.name, sequence.title, None if was is None else was * scale, counts[sequence.name]))
    return rows, scale
