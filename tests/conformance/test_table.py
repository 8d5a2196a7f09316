"""The report: its JSON, its Markdown, the exit status, and the page in the docs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hostline.conformance import COLUMNS, Cell, Report, Row, as_markdown, column_keys, list_subjects
from hostline.conformance.markdown import BEGIN, END, write_into

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "conformance.md"
FACTS = {"hostline": "1", "python": "3", "system": "Linux 6", "uid": 0, "date": "2026-01-01", "trials": 5}


def report(*rows: tuple[str, bool, Cell]) -> Report:
    return Report(
        columns=COLUMNS[:1],
        rows=tuple(Row(name, name, "1.0", is_ours, {"mode_022": cell}, 0.5) for name, is_ours, cell in rows),
        not_installed=("absent",),
        facts=dict(FACTS),
        seconds=1.5,
    )


@pytest.mark.parametrize(
    ("cell", "is_missed"),
    [
        (Cell.ok("0600"), False),
        (Cell.not_applicable("no server"), False),
        (Cell.miss("0777"), True),
        (Cell.error("does not start"), True),
    ],
)
def test_hostline_misses_by_a_miss_and_by_an_error_and_peers_never_fail_a_run(cell: Cell, is_missed: bool) -> None:
    ours, theirs = report(("ours", True, cell)), report(("peer", False, cell))
    assert ours.hostline_missed == ([f"ours: mode, umask 022: {cell.observed}"] if is_missed else [])
    assert ours.exit_code == (1 if is_missed else 0)
    assert (theirs.hostline_missed, theirs.exit_code) == ([], 0)


def test_the_json_says_everything_and_survives_a_round_trip() -> None:
    made = report(("ours", True, Cell.miss("0777", "every local user may connect"))).as_json()
    assert json.loads(json.dumps(made)) == made
    assert made == {
        **FACTS,
        "seconds": 1.5,
        "columns": [
            {
                "key": "mode_022",
                "title": "mode, umask 022",
                "group": "file",
                "demand": "nobody but the owner may connect to the new socket file",
            }
        ],
        "subjects": [
            {
                "name": "ours",
                "title": "ours",
                "version": "1.0",
                "is_hostline": True,
                "seconds": 0.5,
                "cells": {
                    "mode_022": {"verdict": "miss", "observed": "0777", "detail": "every local user may connect"}
                },
            }
        ],
        "not_installed": ["absent"],
        "hostline_missed": ["ours: mode, umask 022: 0777"],
    }


def test_keys_and_names_are_unique_and_every_column_is_in_a_group() -> None:
    names = [subject.name for subject, _ in list_subjects()]
    assert len(set(names)) == len(names)
    assert len(set(column_keys())) == len(COLUMNS)
    whole = Report(columns=COLUMNS, rows=())
    assert [column for _, columns in whole.groups() for column in columns] == list(COLUMNS)


def test_markdown_shows_a_miss_in_bold_and_escapes_what_a_peer_wrote() -> None:
    text = as_markdown(report(("a", False, Cell.miss("x|y `*")), ("b", True, Cell.ok("0600"))))
    assert "| a 1.0 | **x\\|y \\`\\*** |" in text
    assert "| b 1.0 | 0600 |" in text
    assert "Not installed: absent." in text


def test_write_into_replaces_only_what_stands_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_into(page, report(("b", True, Cell.ok("0600"))))
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text
    assert [file.name for file in tmp_path.iterdir()] == ["page.md"]
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no part between"):
        write_into(page, report())


def test_the_page_in_the_docs_explains_every_column_and_holds_a_run() -> None:
    text = PAGE.read_text()
    for column in COLUMNS:
        assert f"`{column.key}`" in text, f"{column.key} is not explained"
        assert f"| {column.title} |" in text.partition(BEGIN)[2], f"{column.key} is not in the run"
    for subject, _ in list_subjects():
        row = re.search(rf"^\| {re.escape(subject.title)} (\S+) \|", text, re.MULTILINE)
        assert row, f"{subject.title} is not in the run"


def test_the_module_prints_json_and_names_what_hostline_misses() -> None:
    command = [sys.executable, "-m", "hostline.conformance", "hostline_sync", "socket", "--probe", "mode_000"]
    result = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, timeout=15)
    assert (result.returncode, result.stderr) == (0, "")
    made = json.loads(result.stdout)
    assert [(row["name"], row["cells"]["mode_000"]["observed"]) for row in made["subjects"]] == [
        ("hostline_sync", "0600"),
        ("socket", "0777"),
    ]
    wrong = subprocess.run([*command[:3], "nobody"], capture_output=True, text=True, check=False, timeout=15)
    assert wrong.returncode == 2
    assert "unknown subject 'nobody'" in wrong.stderr
