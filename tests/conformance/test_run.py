"""Runs of the table: hostline misses nothing, peers are probed, names are checked, nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from hostline.conformance import (
    Report,
    Step,
    SubjectInfo,
    column_keys,
    list_subjects,
    run,
    run_conformance,
)
from tests.leaks import wait_until

OURS = ["hostline_sync", "hostline_aio", "hostline_service"]
STANDARD_LIBRARY = ["socket", "socketserver", "multiprocessing", "asyncio"]
OPTIONAL = [subject.name for subject, _ in list_subjects() if subject.distribution is not None]


def verdicts(report: Report, name: str) -> dict[str, str]:
    (row,) = [row for row in report.rows if row.name == name]
    return {key: cell.verdict for key, cell in row.cells.items()}


@pytest.mark.parametrize("name", OURS)
def test_hostline_misses_no_row(name: str) -> None:
    report = run_conformance([name])
    assert report.hostline_missed == []
    assert report.exit_code == 0
    assert set(verdicts(report, name)) == set(column_keys())
    (row,) = report.rows
    assert row.cells["mode_022"].observed == row.cells["mode_000"].observed == "0600"
    assert row.cells["long_path"].observed == "works" or sys.platform != "linux"
    assert "names the holder" in row.cells["second_start"].observed
    not_applicable = {key for key, cell in row.cells.items() if cell.verdict == "n/a"}
    assert not_applicable <= ({"inherited", "short_packet", "short_fds"} if name == "hostline_service" else set())


@pytest.mark.parametrize("name", STANDARD_LIBRARY)
def test_the_standard_library_is_probed_whole(name: str) -> None:
    report = run_conformance([name], trials=2)
    assert set(verdicts(report, name)) == set(column_keys())
    assert "error" not in verdicts(report, name).values(), report.rows
    assert report.exit_code == 0, "what a peer misses fails no run"
    (row,) = report.rows
    assert row.version == ".".join(map(str, sys.version_info[:3]))


def test_asyncio_is_seen_to_take_a_live_path() -> None:
    (row,) = run_conformance(["asyncio"], ["second_start", "first_after"]).rows
    assert row.cells["second_start"].observed == "accepted, takes the path"
    assert row.cells["first_after"].verdict == "miss"


def test_a_server_on_a_lent_listener_misses_nothing_that_concerns_its_file() -> None:
    (row,) = run_conformance([str(Path(__file__).with_name("lent.py"))]).rows
    seen = {key: cell.verdict for key, cell in row.cells.items()}
    without = {"full_backlog", "inherited", "short_packet", "short_fds"}
    assert seen == {key: "n/a" if key in without else "ok" for key in column_keys()}, row.cells


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONAL)
def test_an_installed_peer_is_probed_whole(name: str) -> None:
    if {subject.name: version for subject, version in list_subjects()}[name] is None:
        pytest.skip(f"{name} is not installed")
    report = run_conformance([name], trials=2)
    assert "error" not in verdicts(report, name).values(), report.rows


@pytest.mark.timeout(120)
def test_every_subject_answers_its_own_client(sock_dir: Path) -> None:
    for subject, version in list_subjects():
        if version is None or subject.name in ("trio", "uvicorn", "gunicorn"):
            continue  # one has no server, two have no client
        path = str(sock_dir / f"{subject.name[:12]}.s")
        command = [sys.executable, "-m", subject.module]
        with subprocess.Popen([*command, "serve", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
            try:
                assert server.stdout is not None
                assert json.loads(server.stdout.readline())["event"] == "ready"
                asked = subprocess.run([*command, "ask", path, "5"], capture_output=True, check=True, timeout=15)
                assert json.loads(asked.stdout) == {"event": "result", "answer": str(server.pid)}, subject.name
            finally:
                server.terminate()
        assert server.returncode in (0, -signal.SIGTERM), subject.name
        Path(path).unlink(missing_ok=True)


def test_a_subject_run_by_hand_explains_itself_when_misused() -> None:
    command = [sys.executable, "-m", "hostline.conformance.subjects.socket"]
    result = subprocess.run([*command, "juggle"], capture_output=True, text=True, check=False, timeout=15)
    assert result.returncode == 2
    assert "usage: serve PATH" in result.stderr


def test_a_subject_run_by_hand_reports_why_it_does_not_start(sock_dir: Path) -> None:
    (sock_dir / "s").write_text("data")
    command = [sys.executable, "-m", "hostline.conformance.subjects.hostline_sync", "serve", str(sock_dir / "s")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=15)
    assert result.returncode == 1
    assert json.loads(result.stdout)["failure"]["type"] == "NotASocketError"


# --- choosing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"subjects": ["asyncoi"]}, "unknown subject 'asyncoi': there are hostline_sync, "),
        ({"subjects": ["/no/such/file.py"]}, "no file"),
        ({"probes": ["mode"]}, "unknown probe 'mode': there are mode_022, "),
        ({"trials": 0}, "trials of 0 must be at least 1"),
    ],
)
def test_wrong_names_are_refused_with_what_there_is(arguments: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        run_conformance(**arguments)  # type: ignore[arg-type]


def test_only_the_chosen_columns_are_probed_and_reported() -> None:
    steps: list[Step] = []
    report = run_conformance(["socket", "socketserver"], ["first_after", "mode_022"], steps.append)
    assert [column.key for column in report.columns] == ["mode_022", "first_after"], "in the table's order"
    assert [list(row.cells) for row in report.rows] == [["mode_022", "first_after"]] * 2
    assert [(step.subject, step.column, step.done, step.total) for step in steps] == [
        ("socket", "mode, umask 022", 0, 4),
        ("socket", "first server afterwards", 1, 4),
        ("socketserver", "mode, umask 022", 2, 4),
        ("socketserver", "first server afterwards", 3, 4),
    ]


def test_a_missing_package_is_listed_and_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = SubjectInfo("absent", "absent", "hostline.conformance.subjects.absent", "no-such-distribution-here")
    monkeypatch.setattr(run, "SUBJECTS", (absent,))
    report = run_conformance()
    assert report.not_installed == ("absent",)
    assert report.rows == ()
    assert report.exit_code == 0
    assert list_subjects() == [(absent, None)]


# --- when things go wrong -----------------------------------------------------------------------------


def test_a_subject_that_does_not_import_gets_errors_with_the_reason(sock_dir: Path) -> None:
    (sock_dir / "broken.py").write_text("import no_such_module_anywhere\n")
    (row,) = run_conformance([str(sock_dir / "broken.py")], ["mode_022", "stale"]).rows
    assert [cell.verdict for cell in row.cells.values()] == ["error", "error"]
    assert "no_such_module_anywhere" in row.cells["stale"].detail


def test_a_subject_that_kills_its_own_workshop_gets_errors_and_the_run_goes_on(sock_dir: Path) -> None:
    deadly = sock_dir / "deadly.py"
    lines = [
        "import os, signal, time",
        "def serve(path, ready):",
        " os.kill(os.getppid(), signal.SIGKILL)",
        " time.sleep(600)",
    ]
    deadly.write_text("\n".join(lines))
    first, second = run_conformance([str(deadly), "socket"], ["mode_022"]).rows
    assert first.cells["mode_022"].verdict == "error"
    assert second.cells["mode_022"].verdict == "ok"
    assert wait_until(lambda: processes_of(str(deadly)) == [], timeout=5)


def test_a_peers_error_text_cannot_steer_a_terminal(sock_dir: Path) -> None:
    (sock_dir / "rude.py").write_text("def serve(path, ready): raise ValueError('\\x1b]0;owned\\x07\\nsecond line')\n")
    (row,) = run_conformance([str(sock_dir / "rude.py")], ["ordinary"]).rows
    assert row.cells["ordinary"].detail.isprintable()
    assert "owned" in row.cells["ordinary"].detail


def test_a_long_error_text_is_cut_and_breaks_nothing(sock_dir: Path) -> None:
    (sock_dir / "wordy.py").write_text("def serve(path, ready): raise ValueError('\\u2603' * 100_000)\n")
    (row,) = run_conformance([str(sock_dir / "wordy.py")], ["ordinary", "symlink"]).rows
    assert {cell.verdict for cell in row.cells.values()} == {"ok"}


def test_what_a_subject_prints_does_not_disturb_the_judge(sock_dir: Path) -> None:
    lines = [
        "import os",
        "print({'id': 1})",
        "def serve(path, ready):",
        " os.write(1, b'{}' * 9999)",
        " raise OSError('no')",
    ]
    (sock_dir / "loud.py").write_text("\n".join(lines))
    (row,) = run_conformance([str(sock_dir / "loud.py")], ["ordinary"]).rows
    assert row.cells["ordinary"].verdict == "ok"


# --- nothing left -------------------------------------------------------------------------------------


def directories() -> set[str]:
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("hlc-")}


@pytest.fixture
def own_temp(sock_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep other runs on this machine, which come and go, out of what `directories` sees."""
    monkeypatch.setattr(tempfile, "tempdir", str(sock_dir))


def processes_of(path: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if any(path in word for word in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


# Starts a server with a child of its own, which holds the socket as a worker process would.
FORKING = """
import os, socket, time
def serve(path, ready):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    if os.fork() == 0:
        time.sleep(600)
    ready()
    time.sleep(600)
"""


@pytest.mark.usefixtures("own_temp")
def test_a_run_leaves_no_process_and_no_file(sock_dir: Path) -> None:
    subject = sock_dir / "forking.py"
    subject.write_text(FORKING)
    before = directories()
    (row,) = run_conformance([str(subject)], ["mode_022", "stale"]).rows
    assert row.cells["mode_022"].verdict == "ok"
    # Killing the server killed its worker too: with that alive, a connect would have been answered.
    assert row.cells["stale"].observed == "fails: OSError EADDRINUSE"
    assert wait_until(lambda: processes_of(str(subject)) == [], timeout=5)
    assert directories() <= before


def test_a_judge_that_is_killed_takes_all_its_processes_with_it(sock_dir: Path) -> None:
    subject = sock_dir / "slow.py"
    subject.write_text("import time\ndef serve(path, ready): time.sleep(600)\n")
    command = [sys.executable, "-m", "hostline.conformance", str(subject), "--probe", "ordinary"]
    environment = {**os.environ, "TMPDIR": str(sock_dir)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as judge:
        # The judge, the process that imported the subject, and the server it forked.
        assert wait_until(lambda: len(processes_of(str(subject))) == 3, timeout=10)
        judge.kill()
    assert wait_until(lambda: processes_of(str(subject)) == [], timeout=5)


def test_a_temporary_directory_with_a_long_name_is_not_used(sock_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = sock_dir / ("long" * 20)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    (row,) = run_conformance(["socket"], ["mode_022", "long_path"]).rows
    assert [cell.verdict for cell in row.cells.values()] == ["ok", "miss"]
