"""The report as Markdown tables, and the part of a page between two marks replaced by them."""

from __future__ import annotations

import os
from pathlib import Path

from hostline.conformance.table import Cell, Report

__all__ = ["BEGIN", "END", "as_markdown", "write_into"]

BEGIN = "<!-- begin: python -m hostline.conformance --write -->"
END = "<!-- end -->"

_HEADINGS = {
    "file": "The socket file",
    "starts": "Starting and closing",
    "traffic": "Connecting and receiving",
}


def as_markdown(report: Report) -> str:
    """Return the run as one table for each group of columns; a miss stands in bold."""
    facts = report.facts
    missing = f" Not installed: {', '.join(report.not_installed)}." if report.not_installed else ""
    parts = [
        (
            f"hostline {facts['hostline']}, Python {facts['python']}, {facts['system']}, uid {facts['uid']}, "
            f"{facts['date']}; {facts['trials']} races; {report.seconds:.0f} seconds.{missing}"
        )
    ]
    for group, columns in report.groups():
        lines = [
            f"### {_HEADINGS[group]}",
            "",
            "| Subject | " + " | ".join(column.title for column in columns) + " |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for row in report.rows:
            cells = " | ".join(_cell(row.cells[column.key]) for column in columns)
            lines.append(f"| {_escape(row.title)} {_escape(row.version)} | {cells} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def write_into(page: Path, report: Report) -> None:
    """Replace what stands between the two marks of a page.

    Args:
        page: The file.
        report: The run.

    Raises:
        ValueError: The page has no such marks.
    """
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no part between {BEGIN!r} and {END!r}")
    new = page.with_name(page.name + ".new")
    new.write_text(f"{before}{begin}\n\n{as_markdown(report)}\n{end}{after}")
    os.replace(new, page)


def _cell(cell: Cell) -> str:
    if cell.verdict == "n/a":
        return "n/a"
    words = _escape(cell.observed)
    return {"ok": words, "miss": f"**{words}**", "error": f"? {words}"}[cell.verdict]


def _escape(text: str) -> str:
    for character in "\\|*_`<>[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
