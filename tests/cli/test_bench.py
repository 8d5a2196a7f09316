"""`hostline bench` as its users start it: what it prints, draws and refuses, and that it ends with nothing left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hostline.bench.plan import WORKLOADS
from hostline.bench.results import decode_results
from hostline.cli.exits import ExitCode
from tests.bench.sample import SAMPLE, sample
from tests.cli.running import COMMAND, Running, environment, hostline, on_terminal, plain
from tests.leaks import wait_until

# One subject that is there on every machine, beside the references.
SMALL = ("bench", "latency", "--quick", "--rounds", "1", "--only", "sockets")


def test_a_run_is_measured_and_printed_and_nothing_else_is_said() -> None:
    done = hostline(*SMALL)
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (ExitCode.OK, b"")
    assert "latency, 64 B: one round trip at a time" in text
    assert re.search(r"^   sockets +unix +[\d.]+x +[\d.,]+", text, re.MULTILINE)
    assert "1 rounds" in text
    assert "\x1b" not in text


def test_json_is_read_again_and_shows_the_same(tmp_path: Path) -> None:
    done = hostline(*SMALL, "--json")
    assert (done.returncode, done.stderr) == (ExitCode.OK, b"")
    results = decode_results(done.stdout)
    assert results.is_quick
    assert results.rounds == 1
    assert {m.workload for m in results.measurements} == {"latency"}
    assert {"64 B", "1 KB", "16 KB"} == {m.case for m in results.measurements}
    file = tmp_path / "results.json"
    file.write_bytes(done.stdout)
    shown = hostline("bench", "--from", file)
    assert shown.returncode == ExitCode.OK
    for measurement in results.measurements:
        assert f"   {measurement.subject} " in shown.stdout.decode()
    assert hostline("bench", "--from", file, "--json").stdout == done.stdout


def test_a_run_that_was_kept_is_drawn_and_selected_from(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="charts need the extra bench")
    picture = tmp_path / "out.svg"
    arguments = ["latency", "transfer", "--only", "hostline", "--chart", picture]
    done = hostline("bench", "--from", SAMPLE, *arguments)
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (ExitCode.OK, b"")
    assert text.endswith(f"chart: {picture}\nchart: {tmp_path / 'out-transfer.svg'}\n")
    assert "grpc" not in text
    assert b">hostline channel<" in picture.read_bytes()
    done = hostline("bench", "--from", SAMPLE, "--json", "--chart", tmp_path / "fds.png", "fds")
    assert {m["workload"] for m in json.loads(done.stdout)["measurements"]} == {"fds"}
    assert (tmp_path / "fds.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_on_a_terminal(columns: int) -> None:
    code, shown = on_terminal("bench", "--from", SAMPLE, columns=columns)
    assert code == ExitCode.OK
    tables = plain(shown).partition("In short")[0]
    assert max(len(line) for line in tables.splitlines()) <= columns
    assert ("p99.9" in tables) == (columns == 120)
    assert "\x1b[31m" not in shown, "what a peer wrote is obeyed"


def test_progress_is_shown_on_a_terminal() -> None:
    code, shown = on_terminal(*SMALL)
    assert code == ExitCode.OK
    assert re.search(r"\d+/\d+ .*latency", plain(shown))


def test_what_there_is_is_listed() -> None:
    text = hostline("bench", "--list").stdout.decode()
    listed = json.loads(hostline("bench", "--list", "--json").stdout)
    assert [workload["name"] for workload in listed["workloads"]] == list(WORKLOADS)
    names = [subject["name"] for subject in listed["subjects"]]
    assert {"C", "sockets", "hostline"} <= set(names)
    assert [name for name in (*names, *WORKLOADS) if name not in text] == []
    assert all(workload["title"] for workload in listed["workloads"])


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], r"unknown workload 'nope'.*latency, transfer"),
        (["--only", "nope"], r"unknown subject 'nope'.*sockets"),
        (["--pin", "a"], r"--pin 'a' must be numbers of cores"),
        (["--pin", "99999"], r"99999"),
        (["--chart", "out.pdf"], r"--chart: chart 'out.pdf' must end in \.svg or \.png"),
        (["--chart", "no/such/out.svg"], r"there is no directory 'no/such'"),
        (["--from", str(SAMPLE), "nope"], r"no workload 'nope' in these results.*latency, transfer"),
        (["--from", str(SAMPLE), "--only", "nope"], r"no subject 'nope' in these results.*iceoryx2"),
        (["--from", str(SAMPLE), "--quick"], r"--from measures nothing"),
        (["--rounds", "0"], r"--rounds"),
    ],
)
def test_a_wrong_command_line_says_what_there_is(arguments: list[str], said: str) -> None:
    done = hostline("bench", *arguments)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, b""), done
    assert re.search(said, " ".join(done.stderr.decode().split()))
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not the results of a benchmark"),
        (b"\xff\x00", "not the results of a benchmark"),
        (b'{"x":' + b"[" * 200_000, "nested too deeply"),
        (b"[]", "not the results of a benchmark"),
        (SAMPLE.read_bytes()[:5000], "not the results of a benchmark"),
        (SAMPLE.read_bytes().replace(b'"ratio": 0.31', b'"ratio": "0.31"'), r"measurements\[9\]\.ratio"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "results.json"
    file.write_bytes(content)
    done = hostline("bench", "--from", file)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (ExitCode.FAILURE, b"", 1), done
    assert re.search(said, done.stderr.decode())
    assert str(file) in done.stderr.decode()


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = hostline("bench", "--from", tmp_path / "none.json")
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (ExitCode.FAILURE, b"", 1), done
    assert b"cannot be read: No such file" in done.stderr


def test_a_run_without_figures_is_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(SAMPLE.read_text().partition('"measurements"')[0] + '"measurements": [], "skipped": []}')
    done = hostline("bench", "--from", file)
    assert done.returncode == ExitCode.FAILURE
    assert b"error: nothing is in it" in done.stderr


def test_without_matplotlib_it_names_the_extra_before_it_measures(tmp_path: Path) -> None:
    program = "import sys; sys.modules['matplotlib'] = None; from hostline.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "bench", "--chart", str(tmp_path / "out.svg")]
    done = subprocess.run(command, capture_output=True, timeout=15, env=environment(), check=False)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (ExitCode.FAILURE, b"", 1)
    assert b"pip install 'hostline[bench]'" in done.stderr
    command = [sys.executable, "-c", program, "bench", "--from", str(SAMPLE)]
    assert subprocess.run(command, capture_output=True, timeout=15, env=environment(), check=False).returncode == 0


# --- the end -----------------------------------------------------------------------------------------


def marked(mark: str) -> list[int]:
    """Return the living processes that have a variable in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are looked for in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to", ["the command", "its group, as a terminal sends it"])
def test_an_interrupted_run_leaves_no_process_and_no_file(sock_dir: Path, number: int, to: str) -> None:
    # Subjects inherit no variable that begins with HOSTLINE_.
    mark = f"BENCH_TEST_MARK={sock_dir.name}"
    variables = {"BENCH_TEST_MARK": sock_dir.name, "TMPDIR": str(sock_dir)}
    with Running("bench", "latency", "--rounds", "50", env=variables, start_new_session=True) as command:
        assert wait_until(lambda: len(marked(mark)) >= 8, 15)
        if to == "the command":
            command.process.send_signal(number)
        else:
            os.killpg(command.process.pid, number)
        assert command.wait() == (ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED)
        assert command.out == ""
        assert "Traceback" not in command.err
        assert wait_until(lambda: marked(mark) == [], 5)
        assert list(sock_dir.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_quick_mode_does_every_workload(tmp_path: Path) -> None:
    """It takes under 30 seconds on an idle machine; here it has the time that a busy one needs."""
    command = [*COMMAND, "bench", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, timeout=110, env=environment(), check=False)
    assert (done.returncode, done.stderr) == (ExitCode.OK, b"")
    results = decode_results(done.stdout)
    assert {m.workload for m in results.measurements} == set(WORKLOADS)
    hostlines = {m.workload for m in results.measurements if m.is_hostline}
    assert {"latency", "transfer", "throughput", "connect"} <= hostlines
    assert [m for m in results.measurements if not m.value > 0] == []
    assert [s for s in results.skipped if s.subject.startswith("hostline")] == []
    (tmp_path / "results.json").write_bytes(done.stdout)
    assert hostline("bench", "--from", tmp_path / "results.json").returncode == 0
    assert sample().version
