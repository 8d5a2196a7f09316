"""The engine: what fails is skipped and the run goes on, nothing stays behind, and a wrong server is found out."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hostline.bench import processes
from hostline.bench.plan import SHARING, Case, Entry, Plan, find_entries, make_plan
from hostline.bench.results import Results, decode_results, encode_results
from hostline.bench.run import run
from hostline.bench.team import Team
from tests.bench import stand_ins
from tests.leaks import wait_until

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark measures Linux")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes of the stand-ins import them."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Give the ids of all processes that a run started, and see afterwards that none is left."""
    pids: list[int] = []
    init = processes.Process.__init__

    def noting(self: processes.Process, *args: object, **keywords: object) -> None:
        init(self, *args, **keywords)  # type: ignore[arg-type]
        pids.extend(self.pids)

    monkeypatch.setattr(processes.Process, "__init__", noting)
    yield pids
    assert pids
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            try:
                assert os.getsid(int(name)) not in pids, f"process {name} of the run is left"
            except ProcessLookupError:
                continue


def stand_in(*names: str) -> list[Entry]:
    return [Entry(stand_ins.__name__, one) for one in stand_ins.SUBJECTS if one.name in names]


def tiny(plan: Plan, *cases: str, timeout: float = 30.0) -> Plan:
    """Cut a plan down to a few operations a case."""
    chosen = [case for case in plan.cases if not cases or case.name in cases]
    return replace(
        plan,
        cases=tuple(replace(case, seconds=0.002, count=min(case.count, 60)) for case in chosen),
        timeout=timeout,
    )


def run_stand_ins(*names: str, workload: str = "latency", case: str = "64 B", timeout: float = 30.0) -> Results:
    plan = make_plan([workload], True, entries=stand_in(*names), subjects=names, rounds=2)
    return run(tiny(plan, case, timeout=timeout))


def reasons(results: Results) -> dict[str, str]:
    return {skipped.subject: skipped.reason for skipped in results.skipped}


def test_what_crashes_is_skipped_with_its_last_words_and_the_others_go_on(started: list[int]) -> None:
    results = run_stand_ins("good", "raises", "exits")
    assert [one.subject for one in results.measurements] == ["good"]
    assert len(results.measurements[0].rounds) == 2
    assert reasons(results) == {
        "raises": "latency: its server ended: RuntimeError: no server today",
        "exits": "latency, 64 B: its client ended: out of cheese",
    }


def test_what_hangs_is_skipped_after_its_time_and_the_others_go_on(started: list[int]) -> None:
    results = run_stand_ins("good", "silent", "hangs", timeout=6)
    assert [one.subject for one in results.measurements] == ["good"]
    assert reasons(results) == {
        "silent": "latency: its server did not answer within 6 seconds",
        "hangs": "latency, 64 B: its client did not answer within 6 seconds",
    }


def test_what_is_not_installed_is_skipped_with_what_to_install() -> None:
    plan = make_plan(["latency"], True, entries=stand_in("good", "missing"), subjects=["good", "missing"])
    assert [entry.subject.name for entry in plan.entries] == ["good"]
    assert [(one.subject, one.reason) for one in plan.skipped] == [
        ("missing", "no_such_library_here.at_all is not installed: pip install 'hostline[bench]'")
    ]


def test_a_server_that_gives_back_other_bytes_is_found_out(started: list[int]) -> None:
    results = run_stand_ins("good", "alters")
    assert [one.subject for one in results.measurements] == ["good"]
    assert "64 bytes did not come back as they were sent" in reasons(results)["alters"]


def test_a_server_that_counts_too_few_messages_is_found_out(started: list[int]) -> None:
    results = run_stand_ins("good", "loses", workload="throughput", case="one-way 200 B")
    assert [one.subject for one in results.measurements] == ["good"]
    assert "the server confirmed 4 messages, not 5" in reasons(results)["loses"]


def test_an_interrupted_run_leaves_no_process_and_no_file(started: list[int], tmp_path: Path) -> None:
    def interrupt(text: str, done: int, total: int) -> None:
        if "round" in text:
            raise KeyboardInterrupt

    before = set(Path("/tmp").glob("hlb*"))
    with pytest.raises(KeyboardInterrupt):
        run(tiny(make_plan(["latency"], True, entries=stand_in("good"), subjects=["good"])), interrupt)
    assert set(Path("/tmp").glob("hlb*")) <= before


def test_ctrl_c_while_a_process_starts_leaves_none(started: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def interrupted(*args: Any, **keywords: Any) -> subprocess.Popen[bytes]:
        process = start(*args, **keywords)
        signal.raise_signal(signal.SIGINT)  # before anybody has the process to close it
        return process

    handler = signal.getsignal(signal.SIGINT)
    plan = tiny(make_plan(["latency"], True, entries=stand_in("good"), subjects=["good"]))
    monkeypatch.setattr(processes, "subprocess", SimpleNamespace(Popen=interrupted, PIPE=subprocess.PIPE))
    with pytest.raises(KeyboardInterrupt):
        run(plan)
    assert signal.getsignal(signal.SIGINT) == handler


RUN_THAT_HANGS = """
import sys
from dataclasses import replace
from hostline.bench.plan import make_plan
from hostline.bench.run import run
from tests.bench.test_run import stand_in
plan = replace(make_plan(["latency"], True, ["hangs"], entries=stand_in("hangs")), timeout=4)
run(plan, lambda text, done, total: print(text, flush=True))
"""


def test_a_killed_run_leaves_no_process_for_long(sock_dir: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(sock_dir)}

    def of_the_run() -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and str(sock_dir).encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    command = [sys.executable, "-c", RUN_THAT_HANGS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if b"warms up" in line:
                break
        assert len(of_the_run()) == 3
        process.kill()
    wait_until(lambda: not of_the_run(), 30)


def test_progress_counts_up_to_its_end() -> None:
    steps: list[tuple[int, int]] = []
    plan = tiny(make_plan(["latency"], True, entries=stand_in("good"), subjects=["good"], rounds=2))
    run(plan, lambda _text, done, total: steps.append((done, total)))
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert {total for _, total in steps} == {len(plan.cases) * 3}
    assert steps[-1][0] == len(plan.cases) * 3


def test_results_of_a_real_run_survive_json() -> None:
    results = run_stand_ins("good")
    again = decode_results(encode_results(results))
    assert again == results
    (one,) = again.measurements
    assert one.spread is not None
    assert one.spread.p50 <= one.spread.p90 <= one.spread.p99 <= one.spread.p999
    assert one.peak_memory_kib.keys() == {"client", "server"}
    assert all(size > 0 for size in one.peak_memory_kib.values())
    assert one.cpu_seconds_per_million is not None
    assert again.machine["python"].endswith(".".join(map(str, sys.version_info[:3])))


def test_pinned_processes_keep_to_their_cores(tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    (entry,) = stand_in("good")
    team = Team(entry, tmp_path / "0", tmp_path, "latency", [core])
    try:
        team.start_server()
        team.start_client(30)
        team.check(30)
        for process in (team.server, *team._clients):
            assert [os.sched_getaffinity(pid) for pid in process.pids] == [{core}]
    finally:
        team.close()


def test_alone_keeps_only_those_to_one_core_whose_sides_take_turns() -> None:
    last = max(os.sched_getaffinity(0))
    plan = make_plan(["latency", "throughput"], True, ["sockets"], pin="alone")
    assert plan.pinned == {"latency": [last]}
    assert make_plan(["latency", "throughput"], True, ["sockets"], pin=[last]).pinned.keys() == {
        "latency",
        "throughput",
    }
    assert make_plan(["latency"], True, ["sockets"]).pinned == {}
    with pytest.raises(ValueError, match="free or alone"):
        make_plan(["latency"], pin="both")


def test_a_core_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot keep to cores"):
        make_plan(["latency"], pin=[100_000])


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_ratio_is_against_c_and_c_is_always_there() -> None:
    results = run(tiny(make_plan(["latency"], True, ["sockets"], rounds=2), "64 B"))
    by_name = {one.subject: one for one in results.measurements}
    assert by_name.keys() == {"C", "sockets", "sockets over TCP"}
    assert by_name["C"].ratio == 1.0
    assert {one.reference for one in by_name.values()} == {"C"}


OURS = ("hostline.bench.subjects",)


@pytest.mark.slow
@pytest.mark.parametrize("workloads", [SHARING, ("connect",), ("fanin",)], ids=lambda names: names[0])
def test_every_subject_of_our_own_does_what_it_says(workloads: tuple[str, ...], started: list[int]) -> None:
    entries = [entry for entry in find_entries(OURS) if entry.subject.name not in ("Go", "Go over TCP")]
    plan = make_plan(workloads, entries=entries, subjects=[entry.subject.name for entry in entries], rounds=1)
    cases = [replace(case, clients=min(case.clients, 12), held=min(case.held, 20)) for case in plan.cases]
    # As the quick mode does, so that there are fewer processes to start.
    results = run(tiny(replace(plan, cases=tuple(cases), is_quick=True)))
    assert results.skipped == list(plan.skipped)
    measured = {(one.workload, one.case, one.subject) for one in results.measurements if one.unit != "KiB"}
    assert measured == {
        (case.workload, case.name, entry.subject.name) for case in plan.cases for entry in plan.entries_of(case)
    }
    assert all(one.value > 0 for one in results.measurements if one.unit != "KiB")


def test_a_subject_without_a_compiler_is_skipped_and_bare_python_is_the_reference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    plan = make_plan(["latency"], True, ["sockets"], entries=find_entries(OURS), rounds=1)
    assert {one.subject for one in plan.skipped} == {"C"}
    results = run(tiny(plan, "64 B"))
    assert {one.reference for one in results.measurements} == {"sockets"}


def test_a_compiler_that_fails_skips_its_subjects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'pingpong.c:1: no such luck' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    results = run(tiny(make_plan(["latency"], True, ["sockets"], rounds=1), "64 B"))
    assert reasons(results) == {"C": "RuntimeError: cc failed: pingpong.c:1: no such luck"}
    assert {one.subject for one in results.measurements} == {"sockets", "sockets over TCP"}


def test_a_case_says_what_it_needs_of_a_subject() -> None:
    plan = make_plan(is_quick=False)
    for case in plan.cases:
        assert isinstance(case, Case)
        assert plan.entries_of(case), f"nobody does {case.workload}: {case.name}"
