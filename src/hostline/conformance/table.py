"""The table: what is asked, what was seen, and what follows from it. Plain values, no I/O.

A cell always carries what was observed beside its verdict, so that a reader can disagree with the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["COLUMNS", "Cell", "Column", "Report", "Row", "Verdict", "column_keys"]

Verdict = Literal["ok", "miss", "n/a", "error"]
Group = Literal["file", "starts", "traffic"]


@dataclass(frozen=True, slots=True)
class Cell:
    """Hold one answer.

    Attributes:
        verdict: `ok`, `miss`, `n/a` (the subject has nothing that could be probed) or `error` (the probe
            itself could not be carried out, which says nothing good or bad).
        observed: What was seen, in a few words: `0755`, `steals the path`, `refused, names pid`.
        detail: The full error text or the reason; may be empty.
    """

    verdict: Verdict
    observed: str
    detail: str = ""

    @classmethod
    def ok(cls, observed: str, detail: str = "") -> Cell:
        """Make a cell that meets the demand."""
        return cls("ok", observed, detail)

    @classmethod
    def miss(cls, observed: str, detail: str = "") -> Cell:
        """Make a cell that misses the demand."""
        return cls("miss", observed, detail)

    @classmethod
    def not_applicable(cls, reason: str) -> Cell:
        """Make a cell for a subject that has nothing to probe."""
        return cls("n/a", "-", reason)

    @classmethod
    def error(cls, observed: str, detail: str = "") -> Cell:
        """Make a cell for a probe that could not be carried out."""
        return cls("error", observed, detail)


@dataclass(frozen=True, slots=True)
class Column:
    """Describe one question.

    Attributes:
        key: The name that selects it: `mode_022`.
        title: A heading of one or two words.
        group: `file`, `starts` or `traffic`; wide tables are cut along it.
        demand: What has to be seen for `ok`, as one sentence.
    """

    key: str
    title: str
    group: Group
    demand: str


COLUMNS: tuple[Column, ...] = (
    Column("mode_022", "mode, umask 022", "file", "nobody but the owner may connect to the new socket file"),
    Column("mode_000", "mode, umask 000", "file", "the same under the loosest umask"),
    Column("stale", "stale file", "file", "a server starts over the file of one that was killed"),
    Column(
        "ordinary", "ordinary file", "file", "an ordinary file at the path is kept byte for byte, and the start fails"
    ),
    Column(
        "symlink", "symlink", "file", "a symlink at the path and what it points to are left alone, and the start fails"
    ),
    Column("long_path", "120-byte path", "file", "a path of 120 bytes works, or the error names the limit"),
    Column("second_start", "second start", "starts", "a second server on a live path is refused"),
    Column("first_after", "first server afterwards", "starts", "the first server is still reachable after that"),
    Column(
        "contenders",
        "two contenders",
        "starts",
        "of two starts within milliseconds over a stale file, exactly one succeeds",
    ),
    Column("close_own", "close", "starts", "a clean close removes the socket file"),
    Column("close_foreign", "close, file replaced", "starts", "a clean close leaves a file that is not ours"),
    Column("full_backlog", "full backlog", "traffic", "connect waits without spinning, then raises a timeout"),
    Column("inherited", "received descriptors", "traffic", "descriptors that arrive are not inherited by children"),
    Column("short_packet", "packet too large", "traffic", "a packet larger than asked for is an error, not cut"),
    Column(
        "short_fds", "too many descriptors", "traffic", "descriptors beyond those asked for are an error, none leaks"
    ),
)


def column_keys() -> list[str]:
    """Return the keys of all columns, in order."""
    return [column.key for column in COLUMNS]


@dataclass(frozen=True, slots=True)
class Row:
    """Hold the answers of one subject.

    Attributes:
        name: The subject's name, as given to select it.
        title: How the table calls it.
        version: Its version.
        is_hostline: Whether it is one of hostline's own faces, which must not miss.
        cells: One cell for each selected column, by key.
        seconds: How long its probes took.
    """

    name: str
    title: str
    version: str
    is_hostline: bool
    cells: dict[str, Cell]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """Hold one run.

    Attributes:
        columns: The selected questions, in order.
        rows: One for each subject that ran, in order.
        not_installed: Names of subjects whose package is missing.
        facts: What the run depends on: versions, platform, user, number of trials.
        seconds: How long the run took.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    not_installed: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def hostline_missed(self) -> list[str]:
        """List hostline's own cells that are neither `ok` nor `n/a`, as `subject: column: observed`."""
        return [
            f"{row.title}: {column.title}: {row.cells[column.key].observed}"
            for row in self.rows
            if row.is_hostline
            for column in self.columns
            if row.cells[column.key].verdict not in ("ok", "n/a")
        ]

    @property
    def exit_code(self) -> int:
        """Return 1 if hostline misses a row of its own table, else 0; what peers do never fails a run."""
        return 1 if self.hostline_missed else 0

    def groups(self) -> list[tuple[Group, tuple[Column, ...]]]:
        """Return the selected columns cut into the groups that fit on a screen."""
        names: tuple[Group, ...] = ("file", "starts", "traffic")
        cut = [(name, tuple(column for column in self.columns if column.group == name)) for name in names]
        return [(name, columns) for name, columns in cut if columns]

    def as_json(self) -> dict[str, Any]:
        """Return the whole run as values that `json.dumps` takes."""
        return {
            **self.facts,
            "seconds": round(self.seconds, 3),
            "columns": [
                {"key": column.key, "title": column.title, "group": column.group, "demand": column.demand}
                for column in self.columns
            ],
            "subjects": [
                {
                    "name": row.name,
                    "title": row.title,
                    "version": row.version,
                    "is_hostline": row.is_hostline,
                    "seconds": round(row.seconds, 3),
                    "cells": {
                        key: {"verdict": cell.verdict, "observed": cell.observed, "detail": cell.detail}
                        for key, cell in row.cells.items()
                    },
                }
                for row in self.rows
            ],
            "not_installed": list(self.not_installed),
            "hostline_missed": self.hostline_missed,
        }
