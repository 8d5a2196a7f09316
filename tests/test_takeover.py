"""A restart loses no call: the next server is handed the socket, its file and its lock by the one that runs.

HOSTLINE_RESTARTS=N   restarts of the storm (20; the scorecard makes 200, and 1000 at full size)
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hostline
from hostline.cli.exits import ExitCode
from hostline.errors import AddressInUseError
from tests.cli.running import Running
from tests.generations import Load, Program
from tests.leaks import wait_until
from tests.serving import loop_names

RESTARTS = int(os.environ.get("HOSTLINE_RESTARTS", "20"))


@pytest.fixture(params=loop_names())
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(sock_dir: Path, tmp_path: Path, loop: str) -> Iterator[Any]:
    """Give `start(*options)`: a program on this loop at `sock_dir / "s"`; all are ended with the test."""
    with contextlib.ExitStack() as stack:

        def begin(*options: str, address: object = None) -> Program:
            where = sock_dir / "s" if address is None else address
            return stack.enter_context(Program(where, tmp_path / "journal", *options, loop=loop))

        yield begin


def serving_pid(line: Any) -> int:
    return int(line.call("append", "pid", returns=int))


# --- the thin thing ------------------------------------------------------------------------------------


@pytest.mark.leaves_files
@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_the_next_server_takes_socket_file_and_lock_over(start: Any, sock_dir: Path, kind: str) -> None:
    address = str(sock_dir / "s") if kind == "path" else f"unix:@{sock_dir.name}"
    old = start(address=address).ready()
    with hostline.connect(address) as line:
        assert serving_pid(line) == old.pid
        before = os.stat(address) if kind == "path" else None
        new = start("--takeover", address=address).ready()
        assert serving_pid(line) == new.pid
        assert old.wait() == 0
        if before is not None:
            after = os.stat(address)
            assert (before.st_ino, before.st_mode, before.st_uid) == (after.st_ino, after.st_mode, after.st_uid)
            assert sorted(os.listdir(sock_dir)) == ["s", "s.control", "s.lock"]
        with pytest.raises(AddressInUseError) as refused:
            hostline.listen(address)
        assert refused.value.pid == new.pid
    assert f"was taken over by pid {new.pid}" in old.log
    assert f"taken over from pid {old.pid}" in new.log
    new.process.terminate()
    assert new.wait() == 0
    assert sorted(os.listdir(sock_dir)) == (["s.lock"] if kind == "path" else [])


def test_where_nobody_serves_a_takeover_is_a_start(start: Any, sock_dir: Path) -> None:
    program = start("--takeover").ready()
    assert "nobody was there to be taken over" in program.log
    program.process.terminate()
    assert program.wait() == 0


# --- restarts under load -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(60 + 4 * RESTARTS)
def test_restarts_under_load_lose_no_call_and_run_none_twice(
    start: Any, sock_dir: Path, tmp_path: Path, loop: str
) -> None:
    address = str(sock_dir / "s")
    old = start().ready()
    inode = os.stat(address).st_ino
    first_count = old.fd_count()
    load = Load(address, loop)
    try:
        for _ in range(RESTARTS):
            new = start("--takeover").ready()
            assert old.wait() == 0, old.log
            old.close()
            old = new
    finally:
        load.finish()
    assert load.complaints(tmp_path / "journal")[:10] == []
    assert len(load.answered) > 10 * RESTARTS
    assert wait_until(lambda: old.fd_count() == first_count), f"{first_count} descriptors became {old.fd_count()}"
    assert os.stat(address).st_ino == inode
    old.process.terminate()
    assert old.wait() == 0
    pids = {line.split()[1] for line in (tmp_path / "journal").read_text().splitlines()}
    print(f"{RESTARTS} restarts, {len(load.answered)} calls, {load.connected} connects, {len(pids)} generations")
    assert len(pids) > RESTARTS / 2


@pytest.mark.leaves_files
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_same_load_notices_a_naive_restart(
    start: Any, sock_dir: Path, tmp_path: Path, loop: str, number: signal.Signals
) -> None:
    old = start().ready()
    load = Load(str(sock_dir / "s"), loop)
    try:
        for _ in range(3):
            answered = len(load.answered)
            assert wait_until(lambda answered=answered: len(load.answered) > answered + 100)
            old.process.send_signal(number)
            old.wait()
            old = start().ready()
    finally:
        load.finish()
    complaints = load.complaints(tmp_path / "journal")
    assert any("refused" in text for text in complaints)
    assert any("failed" in text for text in complaints) or number == signal.SIGTERM


# --- the command ---------------------------------------------------------------------------------------

SHOP = Path(__file__).parent / "cli" / "shop.py"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_command_takes_over_and_says_so(sock_dir: Path, loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed")
    path = sock_dir / "x"
    options = ("serve", f"{SHOP}:shop", "-a", path, "--loop", loop)
    with Running(*options, ready="serving") as old, hostline.connect(str(path)) as line:
        pid = line.call("hostline.stats")["pid"]
        with Running(*options, "--takeover", ready="taken over") as new:
            assert old.wait() == ExitCode.OK
            assert line.call("hostline.stats")["pid"] != pid
            assert f"INFO hostline: shop on {path} was taken over by pid " in old.err
            assert f"INFO hostline: shop on {path}: taken over from pid {pid}" in new.err
            with Running(*options, "--takeover", "--mode", "0660") as wrong:
                assert wrong.wait() == ExitCode.CANNOT_LISTEN
                assert "error: take over stream" in wrong.err
            assert new.stop() == ExitCode.OK
    assert os.listdir(sock_dir) == ["x.lock"]


def test_the_command_can_keep_its_socket_to_itself(sock_dir: Path) -> None:
    path = sock_dir / "x"
    with Running("serve", f"{SHOP}:shop", "-a", path, "--no-offer", ready="serving") as server:
        assert sorted(os.listdir(sock_dir)) == ["x", "x.lock"]
        assert server.stop() == ExitCode.OK


def test_an_inherited_socket_is_neither_offered_nor_taken_over(sock_dir: Path) -> None:
    path = sock_dir / "x"
    command = (sys.executable, "-m", "hostline", "serve", f"{SHOP}:shop", "-a", "fd:3", "--takeover")
    with Running("run", "-l", path, "--", *command, ready="serving") as server:
        assert sorted(os.listdir(sock_dir)) == ["x", "x.lock"]
        assert server.stop() == ExitCode.OK
        assert "an inherited socket outlives its servers" in server.err
