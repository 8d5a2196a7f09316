"""The whole demo, as its users start it: it succeeds, fails, is interrupted, and never leaves anything behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli import running
from tests.cli.running import environment
from tests.leaks import wait_until
from tests.second_user import NOBODY

from hostline.demo import tour

DEMO = (sys.executable, "-m", "hostline.demo", "--quick")
STEPS = ["start", "orders", "speed", "file", "identity", "descriptor", "restart"]


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def check_report(report: dict[str, Any], *, has_root: bool) -> None:
    """Check the shape of the JSON report, and that every claim holds."""
    assert report["ok"] is True, [check for step in report["steps"] for check in step["checks"] if not check["ok"]]
    assert [step["name"] for step in report["steps"]] == STEPS
    steps = {step["name"]: step for step in report["steps"]}
    assert all(set(step) == {"name", "title", "ok", "skipped", "seconds", "checks", "facts"} for step in steps.values())
    orders = steps["orders"]["facts"]
    assert (orders["lines"], orders["good"], orders["malformed"]) == (5_000, 4_900, 100)
    assert orders["charged"] + orders["declined"] == 4_900
    assert [kind["count"] for kind in orders["kinds"]] == [10] * 10
    for both in steps["speed"]["facts"]["series"].values():
        assert [series["name"] for series in both] == ["Unix socket", "loopback TCP"]
        assert all(0 < series["p50_us"] <= series["p99_us"] for series in both)
    assert steps["file"]["facts"]["mode"] == "0600"
    if has_root:
        assert [answer["error"] for answer in steps["identity"]["facts"]["answers"]] == [
            "AccessDeniedError",
            "PeerRefusedError",
        ]
    else:
        assert "Only root" in steps["identity"]["skipped"]
    restart = steps["restart"]["facts"]
    assert restart["calls"] == restart["acknowledged"] == restart["in_journals"] > 0
    assert (restart["lost"], restart["twice"], restart["failures"]) == (0, 0, [])
    assert len(report["next"]) == 5
    assert not any(Path(directory).exists() for directory in report["directories"])
    assert len(report["directories"]) == 2
    assert all(is_gone(pid) for name, pid in steps["start"]["facts"]["pids"].items() if name != "demo")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_demo_succeeds_and_leaves_nothing_behind() -> None:
    demo = subprocess.run(
        [*DEMO, "--json"], stdin=subprocess.DEVNULL, capture_output=True, env=environment(), timeout=100, check=False
    )
    assert (demo.returncode, demo.stderr.decode()) == (0, "")
    check_report(json.loads(demo.stdout), has_root=os.geteuid() == 0)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_on_a_terminal_the_report_is_coloured_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "PATIENCE", 100.0)
    code, shown = running.on_terminal("demo", "--quick", columns=80)
    assert code == 0
    assert "\x1b[32mok" in shown
    assert "orders" in shown
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    report, _, commands = text.partition("What to try next")
    assert [line for part in report.split("\n") for line in part.split("\r") if len(line) > 80] == []
    assert "FAILED" not in report
    assert len([line for line in commands.split("\n") if "hostline" in line]) == 5


# An interpreter that an ordinary user reaches through descriptors only needs them in its own children too.
AS_NOBODY = """
import os, subprocess, sys
fds = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and os.path.isdir(f"/proc/self/fd/{fd}")]
fds = [fd for fd in fds if os.get_inheritable(fd)]
original = subprocess.Popen.__init__
def init(self, *args, **options):
    original(self, *args, **{**options, "pass_fds": fds})
subprocess.Popen.__init__ = init
from hostline.demo import run
sys.exit(run(quick=True, json_output=True))
"""


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_demo_succeeds_for_an_ordinary_user(as_nobody: Callable[..., subprocess.Popen[str]]) -> None:
    demo = as_nobody("-c", AS_NOBODY)
    output, errors = demo.communicate(timeout=100)
    assert (demo.returncode, errors) == (0, "")
    report = json.loads(output)
    assert report["uid"] == NOBODY
    check_report(report, has_root=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_demo_and_everything_it_started(number: signal.Signals) -> None:
    with subprocess.Popen(
        DEMO, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as demo:
        if demo.stdout is None or demo.stderr is None:
            pytest.fail("no pipes")
        said = ""
        while "\n2. " not in said:
            said += demo.stdout.readline()
        demo.send_signal(number)
        said += demo.stdout.read()
        errors = demo.stderr.read()
        assert demo.wait(15) == 128 + number
    assert errors == f"\nstopped by {number.name}: every process is ended, and every file removed\n"
    pids = [int(pid) for pid in re.findall(r"^   (?:payments|orders) +pid (\d+)", said, re.MULTILINE)]
    assert len(pids) == 2
    assert wait_until(lambda: all(map(is_gone, pids)))
    directory = re.search(r"(/\S+/hostline-demo-\w+)/payments\.sock", said)
    assert directory
    assert not Path(directory[1]).exists()


def test_a_reader_who_has_seen_enough_ends_the_demo() -> None:
    with subprocess.Popen(
        DEMO, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as demo:
        if demo.stdout is None or demo.stderr is None:
            pytest.fail("no pipes")
        demo.stdout.readline()
        demo.stdout.close()
        assert demo.stderr.read() == b""
        assert demo.wait(15) == 128 + signal.SIGPIPE


def test_closed_standard_descriptors_are_filled() -> None:
    program = (
        "from hostline.demo import tour; import os; tour._fill_standard_descriptors(); r, w = os.pipe(); os._exit(r)"
    )
    shell = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", shell], env=environment(), check=False).returncode == 3


def test_the_commands_to_try_next_work_as_printed(sock_dir: Path) -> None:
    commands = [shlex.split(command) for command, _ in tour.suggestions()]
    serve, describe, call, wrong, conformance = commands
    variables = environment({"HOSTLINE_RUNTIME_DIR": str(sock_dir)})

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=15, check=False)

    assert serve.pop() == "&"
    with subprocess.Popen(serve, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as service:
        assert wait_until((sock_dir / "payments.sock").exists, 15.0)
        described = run(describe)
        assert described.returncode == 0
        assert "charge(" in described.stdout
        called = run(call)
        assert (called.returncode, json.loads(called.stdout)["cents"]) == (0, 890)
        refused = run(wrong)
        assert refused.returncode != 0
        assert "charge.cents" in refused.stderr
        service.terminate()
        assert service.wait(15) == 0
    assert run([*conformance, "--help"]).returncode == 0
