"""`make bench-check`: what it compares, when it fails, and that its counts notice what became dearer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from benchmarks.guard import __main__ as guard
from benchmarks.guard import comparing, counting
from benchmarks.guard.sequences import ALL, BY_NAME, note

RECORDED = {sequence.name: 1000.0 for sequence in ALL}

Check = Callable[..., tuple[int, str]]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """Give `check(*arguments, recorded=..., **counts)`, with counts that nobody counted; returns status and output."""
    file = tmp_path / "recorded.json"

    def run(*arguments: str, recorded: dict[str, float] | None = RECORDED, **counts: float) -> tuple[int, str]:
        if recorded is not None:
            file.write_text(json.dumps({comparing.key(): {"python": "here", "sequences": recorded}}))
        given = {**RECORDED, **counts}
        monkeypatch.setattr(guard, "count_all", lambda chosen, *_: {one.name: [given[one.name]] for one in chosen})
        status = guard.main([*arguments, "--file", str(file)])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def test_what_costs_what_it_did_passes(check: Check) -> None:
    status, said = check()
    assert status == 0
    assert "FAILED" not in said
    assert said.count("+0.0%") == len(ALL) - 1


@pytest.mark.parametrize(("now", "status"), [(1049.0, 0), (1051.0, 1), (951.0, 0), (500.0, 0)])
def test_five_per_cent_are_allowed(check: Check, now: float, status: int) -> None:
    assert check(call_64=now)[0] == status


def test_a_dearer_sequence_is_named_with_what_to_do(check: Check) -> None:
    status, said = check(call_64=1234.0)
    assert status == 1
    assert "FAILED: call_64 (call and answer of 64 B, no socket) became +23.4% dearer; 5% are allowed" in said
    assert "make bench-check RECORD=1" in said
    assert said.count("FAILED") == 1


def test_a_cheaper_sequence_is_named_too(check: Check) -> None:
    status, said = check(items=900.0)
    assert status == 0
    assert "items (item of a stream, no socket) became -10.0% cheaper: record it" in said


def test_what_is_recorded_is_scaled_by_the_calibration(check: Check) -> None:
    dearer_interpreter = {sequence.name: 1100.0 for sequence in ALL}
    status, said = check(**dearer_interpreter)
    assert status == 0
    assert "scaled by 1.100" in said
    status, said = check(**{**dearer_interpreter, "connect": 1166.0})  # 6 % above 1100
    assert status == 1
    assert "FAILED: connect" in said
    status, said = check(calibration=900.0)  # all others take more than they should beside it
    assert status == 1
    assert said.count("FAILED") == len(ALL) - 1


@pytest.mark.parametrize("calibration", [800.0, 1200.0])
def test_an_interpreter_built_in_another_way_is_not_compared(check: Check, calibration: float) -> None:
    status, said = check(calibration=calibration)
    assert status == 2
    assert "nothing can be compared" in said


def test_without_a_record_nothing_passes(check: Check) -> None:
    status, said = check(recorded=None)
    assert status == 2
    assert f"no counts are recorded for {comparing.key()}" in said
    others = {name: 1000.0 for name in RECORDED if name != "items"}
    status, said = check(recorded=others)
    assert status == 1
    assert "FAILED: items (item of a stream, no socket) is not recorded" in said


def test_recording_makes_it_pass(check: Check) -> None:
    assert check(call_64=2000.0)[0] == 1
    assert check("--record", call_64=2000.0)[0] == 0
    assert check(recorded=None, call_64=2000.0)[0] == 0
    assert check(recorded=None, call_64=2200.0)[0] == 1


def test_recording_one_sequence_leaves_the_others(check: Check) -> None:
    """They were recorded beside another calibration, and stay in proportion to the new one."""
    assert check("call_64", "--record", calibration=1100.0, call_64=5000.0)[0] == 0
    dearer_interpreter = {sequence.name: 1100.0 for sequence in ALL}
    status, said = check(recorded=None, **{**dearer_interpreter, "call_64": 5000.0})
    assert (status, said.count("+0.0%")) == (0, len(ALL) - 1)


def test_each_environment_has_a_record_of_its_own(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check("--record")[0] == 0
    was = comparing.core()
    monkeypatch.setattr(comparing, "core", lambda: "compiled" if was == "pure" else "pure")
    assert check(recorded=None)[0] == 2


def test_without_valgrind_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert guard.main(["call_64"]) == 2
    assert "apt install valgrind" in capsys.readouterr().err


def test_the_record_of_the_tree_is_whole() -> None:
    records = comparing.load()
    assert records
    for name, record in records.items():
        assert set(record["sequences"]) == set(BY_NAME), name


@pytest.mark.parametrize("size", [64, 197, 1024])
def test_a_note_has_its_size(size: int) -> None:
    assert len(msgspec.msgpack.encode(note(size))) == size


# A program that runs the sequences with an answer that takes more work than it needs.
DEARER = f"""
import runpy, sys
from hostline.wire import codec
encode_reply = codec.encode_reply
def dearer(*arguments, **options):
    for _ in range({{rounds}}):
        pass
    return encode_reply(*arguments, **options)
codec.encode_reply = dearer
runpy.run_path({str(counting.PROGRAM[-1])!r}, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.ci_required
def test_a_loop_that_somebody_adds_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        counting.valgrind()
    except counting.CannotCount as error:
        pytest.skip(str(error))
    file, program = tmp_path / "recorded.json", tmp_path / "dearer.py"
    program.write_text(DEARER.format(rounds=2000))

    def run(*arguments: str) -> tuple[int, Any]:
        return guard.main(["call_64", "--file", str(file), *arguments]), capsys.readouterr().out

    assert run("--record")[0] == 0
    status, said = run("--program", str(program))
    assert status == 1, said
    assert "FAILED: call_64" in said
