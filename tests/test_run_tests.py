"""tools/run-tests: two steps, and an exit status that neither of them can hide."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.tree import TREE

# Stands in for the interpreter: notes what it is asked, and ends with the status planned for the step.
STUB = """#!/bin/sh
echo "$HOSTLINE_TEST_ALONE: $*"
case $HOSTLINE_TEST_ALONE in without) exit {first} ;; only) exit {second} ;; all) exit {first} ;; esac
"""


def run(tmp_path: Path, first: int, second: int, *words: str) -> tuple[int, list[str]]:
    stub = tmp_path / "python"
    stub.write_text(STUB.format(first=first, second=second))
    stub.chmod(0o755)
    jobs, *rest = words
    done = subprocess.run(
        [TREE / "tools" / "run-tests", jobs, stub, *rest], stdout=subprocess.PIPE, text=True, timeout=20, check=False
    )
    return done.returncode, [line for line in done.stdout.splitlines() if "pytest" in line]


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [(0, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1), (5, 0, 0), (0, 5, 0), (5, 5, 5), (5, 1, 1), (1, 5, 1), (0, 3, 3)],
)
def test_a_failure_of_either_step_counts_and_a_step_without_tests_does_not(
    tmp_path: Path, first: int, second: int, status: int
) -> None:
    code, steps = run(tmp_path, first, second, "auto")
    assert code == status
    assert [step.split(":")[0] for step in steps] == ["without", "only"]


@pytest.mark.parametrize("first", [2, 3, 4, 130])
def test_after_an_interrupt_or_a_wrong_word_the_second_step_does_not_run(tmp_path: Path, first: int) -> None:
    code, steps = run(tmp_path, first, 0, "auto")
    assert (code, len(steps)) == (first, 1)


def test_both_steps_get_the_words_as_they_were_given(tmp_path: Path) -> None:
    _, steps = run(tmp_path, 0, 0, "3", "tests/unix", "-k", "a or b")
    assert all(step.endswith(" tests/unix -k a or b") for step in steps)
    assert ["-n 3 " in steps[0], "-n 0 " in steps[1]] == [True, True]


def test_no_processes_is_one_step(tmp_path: Path) -> None:
    code, steps = run(tmp_path, 1, 0, "0", "-x")
    assert (code, [step.split(":")[0] for step in steps]) == (1, ["all"])
