"""Progress for people: a line for each row on a terminal's standard error, nothing in a pipe."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self

from scorecard.rows import Row

STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


class Progress:
    """Show which row runs and how the others ended."""

    def __init__(self, chosen: list[Row]) -> None:
        self._rest = sorted(chosen, key=lambda row: (row.name == "R33", row.number))
        self._status: Any = None
        self._console: Any = None
        if sys.stderr.isatty():
            from rich.console import Console

            self._console = Console(stderr=True)
            self._status = self._console.status("")

    def _next(self) -> None:
        if self._status is not None and self._rest:
            row = self._rest.pop(0)
            self._status.update(f"{row.name} {row.title} ...")

    def show(self, line: dict[str, Any]) -> None:
        """Say how a row ended."""
        if self._console is not None:
            style = STYLES[line["outcome"]]
            why = "; ".join(line.get("missed") or []) or line.get("reason", "")
            self._console.print(
                f"[{style}]{line['outcome']:8}[/] {line['row']:4} {line['title']}, {line['seconds']} s  ", end=""
            )
            self._console.print(why, markup=False, highlight=False)
            self._next()

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
            self._next()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()
