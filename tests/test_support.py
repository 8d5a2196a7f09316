"""The test support itself: leaks are seen, second users are real, both loops run."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.leaks import Snapshot, stray_socket_files
from tests.second_user import NOBODY, Fork

root = pytest.mark.root


def test_a_descriptor_left_open_is_reported() -> None:
    before = Snapshot.take()
    with socket.socket() as sock:
        assert f"descriptor {sock.fileno()} left open" in before.what_is_left(grace=0)[0]
    assert before.what_is_left(grace=0) == []


def test_a_descriptor_closed_by_mistake_is_reported() -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    before = Snapshot.take()
    os.close(fd)
    assert f"descriptor {fd} closed" in before.what_is_left(grace=0)[0]


def test_a_thread_left_running_is_reported_until_it_ends() -> None:
    before = Snapshot.take()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="straggler")
    thread.start()
    assert before.what_is_left(grace=0) == ["thread left running: straggler"]
    stop.set()
    assert before.what_is_left() == []
    thread.join()


def test_a_child_process_left_behind_is_reported() -> None:
    before = Snapshot.take()
    with Fork(os.geteuid(), time.sleep, 10, gid=os.getegid(), groups=None) as child:
        assert any(f"pid {child.pid}" in line for line in before.what_is_left(grace=0))
    assert before.what_is_left(grace=0) == []


def test_a_socket_file_of_hostline_is_told_from_a_planted_one(sock_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as planted, socket.socket(socket.AF_UNIX) as ours:
        planted.bind(str(sock_dir / "planted"))
        ours.bind(str(sock_dir / "ours"))
        (sock_dir / "ours.lock").touch()
        assert stray_socket_files(sock_dir) == [str(sock_dir / "ours")]
        (sock_dir / "ours").unlink()


def test_run_async_runs_functions_and_coroutines(run_async: Any) -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    assert run_async(double, 21) == 42
    assert run_async(double(4)) == 8


def test_run_async_refuses_tasks_left_pending(run_async: Any) -> None:
    async def leave_one() -> asyncio.Task[None]:
        return asyncio.create_task(asyncio.sleep(30), name="straggler")

    with pytest.raises(AssertionError, match="straggler"):
        run_async(leave_one)


def test_run_async_refuses_errors_that_nobody_handled(run_async: Any) -> None:
    async def fail_in_callback() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(0.01)

    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_async(fail_in_callback)


@root
def test_run_as_becomes_the_user_wholly(run_as: Any) -> None:
    assert run_as(NOBODY, lambda: None) is None
    assert run_as(NOBODY, os.getresuid) == (NOBODY, NOBODY, NOBODY)
    assert run_as(NOBODY, os.getgroups) == []
    assert run_as(NOBODY, os.getgroups, groups=(4, 24)) == [4, 24]


@root
def test_run_as_raises_what_the_function_raised(run_as: Any, sock_dir: Path) -> None:
    with pytest.raises(PermissionError):
        run_as(NOBODY, os.listdir, str(sock_dir))


@root
def test_run_as_can_import_what_was_not_imported_before(run_as: Any) -> None:
    def import_late() -> str:
        import wave
        import xmlrpc.client

        return wave.__name__ + xmlrpc.client.__name__

    assert run_as(NOBODY, import_late) == "wavexmlrpc.client"


@root
def test_as_nobody_starts_a_whole_python_with_hostline_importable(as_nobody: Any) -> None:
    program = "import os, ssl, msgspec, hostline.errors; print(os.getresuid(), os.getgroups())"
    process = as_nobody("-c", program)
    output, errors = process.communicate(timeout=15)
    assert (output, errors) == (f"({NOBODY}, {NOBODY}, {NOBODY}) []\n", "")
