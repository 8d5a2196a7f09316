"""Tables of runs, for the documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scorecard.rows import Row

FACTS = ("date", "hostline", "commit", "kernel", "python", "loop", "uvloop", "cores", "load", "uid")


def write_criteria(known: dict[str, Row]) -> str:
    """Return a table of what each row promises, and how much of it at each size."""
    text = "| Row | Promise | Criterion | In CI | Full |\n|---|---|---|---|---|\n"
    for row in known.values():
        cells = [row.name, row.title, cell(row.criterion), cell(words(dict(row.ci))), cell(words(dict(row.full)))]
        text += f"| {' | '.join(cells)} |\n"
    return text


def write_tables(files: list[str]) -> str:
    """Return Markdown of the lines of runs, one table for each file."""
    return "\n".join(write_table([json.loads(line) for line in Path(file).read_text().splitlines()]) for file in files)


def write_table(lines: list[dict[str, Any]]) -> str:
    """Return the facts of a run and a table of its rows."""
    text = ""
    for line in lines:
        if "facts" in line:
            facts = line["facts"]
            text += ", ".join(f"{name} {facts[name]}" for name in FACTS if facts.get(name) is not None) + "\n\n"
            text += (
                "| Row | Size | Outcome | Measured | Control, which must fail | Seconds |\n|---|---|---|---|---|---|\n"
            )
        else:
            cells = [
                f"{line['row']} {line['title']}",
                line["size"],
                f"**{line['outcome']}**" + "".join(f"<br>{cell(miss)}" for miss in line.get("missed") or []),
                cell(line.get("reason") or words(line["numbers"])),
                control(line),
                str(line["seconds"]),
            ]
            text += f"| {' | '.join(cells)} |\n"
    return text


def control(line: dict[str, Any]) -> str:
    """Return what a row's control showed."""
    if "control" not in line:
        return ""
    return f"{cell(words(line['control']))}: {'failed' if line['failed_as_it_must'] else '**met the criterion**'}"


def words(value: Any) -> str:
    """Return a value as a reader likes it: `calls 1,000, errors 0`."""
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {nested(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(words, value)) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def nested(value: Any) -> str:
    """Return a value inside another; a table in a table gets brackets."""
    if isinstance(value, dict):
        return f"({words(value)})" if value else "none"
    return words(value)


def cell(text: str) -> str:
    """Return text that stays within its cell."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
