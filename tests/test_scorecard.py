"""The scorecard runs rows end to end, one JSON line each, and lets nothing pass that did not prove what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scorecard import rows
from scorecard.ground import p99, ratio
from scorecard.markdown import write_table
from scorecard.runner import add_what_others_gave_back, problems

from tests.tree import TREE

# The rows that the project promises to measure.
PROMISED = [*range(1, 16), *range(25, 30), 31, 33]


def scorecard(*arguments: str, **variables: str) -> tuple[int, list[dict[str, Any]], str]:
    """Run the program; returns its exit status, its lines, and its standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "scorecard", *arguments],
        cwd=TREE,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TREE / "src"), str(TREE)]),
            "HOSTLINE_CI": "",
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def planted(*names: str, **variables: str) -> tuple[int, list[dict[str, Any]], str]:
    return scorecard(*names, HOSTLINE_SCORECARD_ROWS="tests.planted_rows", **variables)


@pytest.mark.slow
def test_rows_end_as_json_lines_after_one_of_facts(tmp_path: Path) -> None:
    status, (facts, first, last), errors = scorecard("R33", "r14", "--json", str(tmp_path / "lines"))
    assert (status, errors) == (0, "")
    assert {"hostline", "kernel", "python", "cores", "date", "commit", "uvloop"} <= facts["facts"].keys()
    assert (first["row"], last["row"]) == ("R14", "R33")  # the one that speaks for the others comes last
    for line in (first, last):
        assert line["passed"] is True
        assert line["size"] == "ci"
        assert line["missed"] == []
        assert line["failed_as_it_must"] is True
        assert line["numbers"]
        assert line["criterion"]
        assert line["seconds"] > 0
        assert line["servers"] == 1
        assert set(line["given_back"].values()) == {0}
    assert last["numbers"]["rows_looked_at"] == 1
    assert [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()] == [facts, first, last]


def test_every_promised_row_is_there_and_on_its_page() -> None:
    known = rows.load()
    assert [row.number for row in known.values() if row.number < 900] == PROMISED
    page = (TREE / "docs" / "reference" / "scorecard.md").read_text(encoding="utf-8")
    assert [name for name, row in known.items() if f"| {name} " not in page or row.title not in page] == []
    listing = subprocess.run(
        [sys.executable, "-m", "scorecard", "--list"], cwd=TREE, capture_output=True, text=True, check=True
    )
    assert [line.split()[0] for line in listing.stdout.splitlines()] == [f"R{number}" for number in PROMISED]


def test_both_sizes_of_a_row_measure_the_same() -> None:
    for row in rows.load().values():
        assert row.ci.keys() == row.full.keys(), row.name


def test_a_row_that_is_not_there_is_refused() -> None:
    status, lines, errors = scorecard("R99")
    assert (status, lines) == (2, [])
    assert "no such row: R99" in errors


@pytest.mark.slow
def test_what_did_not_prove_itself_ends_in_status_1() -> None:
    status, (_, *lines), errors = planted("R901", "R902", "R904", "R905", "R906", "R907")
    assert status == 1
    assert [line["row"] for line in lines if line["passed"]] == ["R902"]
    said = [line.removeprefix("scorecard: ") for line in errors.splitlines()]
    assert said[0] == "R901 failed: seven is eight"
    assert said[1] == "R902: the control met the criterion, so that the row proves nothing"
    assert said[2].startswith("R904 failed: something was not given back")
    assert said[3] == "R905 failed: it hung: no result after 4 seconds"
    assert said[4:] == ["R906 failed: RuntimeError: the row itself broke", "R907 failed: no reason given"]


def test_a_row_that_cannot_run_is_skipped_and_never_passed() -> None:
    status, (_, line), _ = planted("R903")
    assert (status, line["outcome"], line["passed"]) == (0, "skipped", False)
    assert line["reason"] == "needs a second moon"
    status, _, errors = planted("R903", HOSTLINE_CI="1")
    assert status == 1
    assert "R903 must run in CI and was skipped" in errors


def test_what_another_row_kept_fails_the_one_about_giving_back() -> None:
    line: dict[str, Any] = {"row": "R33", "numbers": {}, "outcome": "passed", "passed": True}
    add_what_others_gave_back(line, [{"row": "R1", "servers": 1, "given_back": {"bytes": 0}}])
    assert line["passed"] is True
    add_what_others_gave_back(line, [{"row": "R2", "servers": 1, "given_back": {"bytes": 3}}])
    assert line["passed"] is False
    assert problems([line], is_ci=False) == ["R33 failed: kept something: R2"]


def test_a_table_tells_facts_misses_and_controls() -> None:
    lines = [
        {"facts": {"kernel": "6", "cores": 2}},
        {
            "row": "R1", "title": "A | B", "size": "ci", "outcome": "failed",
            "numbers": {"calls": 1000, "of": {"a": [1]}},
            "missed": ["too few"], "control": {"owners": 2},
            "failed_as_it_must": True, "seconds": 1.5,
        },
    ]  # fmt: skip
    text = write_table(lines)
    assert text.startswith("kernel 6, cores 2\n")
    assert "| **failed**<br>too few | calls 1,000, of (a 1) | owners 2: failed | 1.5 |" in text


def test_delays_are_compared_with_more_than_noise() -> None:
    assert p99([0.001] * 100) == 1.0
    with pytest.raises(AssertionError, match="only 3 calls"):
        p99([0.1] * 3)
    assert ratio(4.0, 0.1) == 2.0
    assert ratio(12.0, 4.0) == 3.0
