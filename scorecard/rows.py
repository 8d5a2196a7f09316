"""What a row is, what it finds, and the list of all rows."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scorecard.ground import Ground

# Modules that hold rows.
THEMES = (
    "identity",
    "descriptors",
    "names",
    "restart",
    "traffic",
    "memory",
    "fuzz",
    "calls",
    "soak",
    "fallback",
    "returned",
)


class Skipped(Exception):
    """A row cannot run here; the text says what is missing."""


@dataclass
class Verdict:
    """What one row found.

    Attributes:
        numbers: What was measured, as JSON.
        claims: Each part of the criterion in words, and whether it held.
        control: What was measured of something that must miss the criterion; None where a row has no such thing.
        has_control_failed: Whether the control missed the criterion, as it must.
        notes: What a reader of the numbers should know: parts of the row that this run left out, and why.
    """

    numbers: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, bool] = field(default_factory=dict)
    control: dict[str, Any] | None = None
    has_control_failed: bool | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def has_passed(self) -> bool:
        return bool(self.claims) and all(self.claims.values())

    @property
    def misses(self) -> list[str]:
        return [claim for claim, holds in self.claims.items() if not holds]


@dataclass(frozen=True)
class Row:
    """One row: what it promises, by which criterion, at which sizes.

    Attributes:
        limit: Seconds of a run at each size, `ci` and `full`, after which it counts as hung.
    """

    name: str
    title: str
    criterion: str
    run: Callable[[Ground], Verdict]
    ci: Mapping[str, Any]
    full: Mapping[str, Any]
    limit: Mapping[str, float]

    @property
    def number(self) -> int:
        return int(self.name[1:])


ROWS: dict[str, Row] = {}


def row(
    name: str,
    title: str,
    criterion: str,
    *,
    ci: Mapping[str, Any],
    full: Mapping[str, Any],
    ci_limit: float = 90.0,
    full_limit: float = 4 * 3600.0,
) -> Callable[[Callable[[Ground], Verdict]], Callable[[Ground], Verdict]]:
    """Enter a function into the scorecard."""

    def enter(function: Callable[[Ground], Verdict]) -> Callable[[Ground], Verdict]:
        if name in ROWS:
            raise ValueError(f"row {name} is entered twice")
        ROWS[name] = Row(name, title, criterion, function, ci, full, {"ci": ci_limit, "full": full_limit})
        return function

    return enter


def load() -> dict[str, Row]:
    """Return all rows in the order of their numbers; HOSTLINE_SCORECARD_ROWS names a module with more of them."""
    for theme in THEMES:
        importlib.import_module(f"scorecard.{theme}")
    if more := os.environ.get("HOSTLINE_SCORECARD_ROWS"):
        importlib.import_module(more)
    return dict(sorted(ROWS.items(), key=lambda item: item[1].number))
