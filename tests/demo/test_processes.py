"""Children are heard, and end: when told, when the demo ends, and when it is killed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.leaks import wait_until

from hostline.demo.processes import ChildError, Stage
from hostline.sync.client import connect


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_the_stage_is_private_and_leaves_nothing_behind() -> None:
    with Stage() as stage:
        assert stat.S_IMODE(stage.directory.stat().st_mode) == 0o700
        other = stage.make_directory("hl-", 0o755)
        assert stat.S_IMODE(other.stat().st_mode) == 0o755
        address = str(stage.directory / "payments.sock")
        child = stage.start("payments", "hostline.demo.payments", address)
        assert child.expect("serving") == address
        assert is_alive(child.pid)
    assert not is_alive(child.pid)
    assert not stage.directory.exists()
    assert not other.exists()


def test_a_child_that_ends_too_early_is_told_with_its_last_words() -> None:
    with Stage() as stage:
        child = stage.start("payments", "hostline.demo.payments", str(stage.directory / "no" / "x.sock"))
        with pytest.raises(ChildError, match="payments ended where 'serving' was expected") as caught:
            child.expect("serving")
    assert any("payments: " in line for line in caught.value.log)


def test_a_child_that_says_nothing_is_given_up_at_the_deadline() -> None:
    with Stage() as stage:
        child = stage.start("payments", "hostline.demo.payments", str(stage.directory / "x.sock"))
        child.expect("serving")
        with pytest.raises(ChildError, match=r"payments said nothing within 0\.05 seconds"):
            child.expect("waiting", 0.05)


def test_a_child_that_says_something_else_is_quoted() -> None:
    with Stage() as stage:
        child = stage.start("payments", "hostline.demo.payments", str(stage.directory / "x.sock"))
        with pytest.raises(ChildError, match=r"said 'serving .*x\.sock' where 'waiting' was expected"):
            child.expect("waiting")


def test_a_successor_waits_for_the_address_and_then_serves() -> None:
    with Stage() as stage:
        address = str(stage.directory / "x.sock")
        first = stage.start("first", "hostline.demo.payments", address)
        first.expect("serving")
        second = stage.start("second", "hostline.demo.payments", address, "--succeed")
        assert f"pid {first.pid} " in second.expect("waiting")
        first.terminate()
        assert second.expect("serving") == address
        assert first.wait() == 0
        with connect(address) as line:
            assert line.call("hostline.health")["pid"] == second.pid


@pytest.mark.leaves_files
def test_children_end_when_the_demo_is_killed(sock_dir: Path) -> None:
    program = f"""
        import time
        from hostline.demo.processes import Stage
        stage = Stage()
        stage.directory.rmdir()
        from pathlib import Path
        stage.directory = Path({str(sock_dir)!r})
        child = stage.start("payments", "hostline.demo.payments", {str(sock_dir / "x.sock")!r})
        child.expect("serving")
        print(child.pid, flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE) as demo:
        if demo.stdout is None:
            pytest.fail("no pipe")
        pid = int(demo.stdout.readline())
        assert is_alive(pid)
        demo.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not is_alive(pid), 10.0)
