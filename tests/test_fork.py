"""Forks on both sides: a line goes on in parent and child, and a server's children keep none of its sockets alive."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hostline
from hostline.errors import ClosedError, UnavailableError
from tests.leaks import wait_until
from tests.second_user import Fork
from tests.serving import ServerProcess, ServerThread, loop_names, takes_less_than

FORKS = int(os.environ.get("HOSTLINE_TEST_FORKS", "1000"))
LIST_SOCKETS = """
import os, stat
found = []
for fd in range(3, 100):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            found.append(fd)
    except OSError:
        pass
print(found)
"""


def in_child(function: Any, *args: Any) -> Fork:
    return Fork(os.geteuid(), function, *args, gid=os.getegid(), groups=None)


@pytest.fixture(params=loop_names())
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(sock_dir: Path, loop: str) -> Iterator[ServerProcess]:
    with ServerProcess(sock_dir / "s", "--loop", loop) as started:
        yield started
        started.signal(signal.SIGTERM)
        assert started.wait() == 0


def call_many(line: hostline.Line, start: int, count: int) -> int:
    """Make calls whose answers can be told apart; returns how many were right."""
    return sum(line.call("look", number, timeout=10) == number for number in range(start, start + count))


# --- clients -------------------------------------------------------------------------------------------


def test_a_line_works_in_the_child_and_goes_on_in_the_parent(server: ServerProcess) -> None:
    with hostline.connect(server.address) as line:
        assert call_many(line, 0, 10) == 10
        with in_child(call_many, line, 1_000_000, 200) as child:
            assert call_many(line, 0, 200) == 200  # at the same time
            assert child.result() == 200
        assert call_many(line, 0, 10) == 10
        assert line.pool_size == 1


def test_a_child_leaves_the_parents_connections_alone(server: ServerProcess) -> None:
    def use_and_close(line: hostline.Line) -> bool:
        line.call("look", 1)
        line.close()
        return line.is_closed

    with hostline.connect(server.address, min_size=3) as line:
        for _ in range(5):
            with in_child(use_and_close, line) as child:
                assert child.result() is True
            assert call_many(line, 0, 5) == 5
        assert line.call("hostline.stats")["connections"] == 3


def test_a_child_of_a_child_works_too(server: ServerProcess) -> None:
    def grow(line: hostline.Line, levels: int) -> int:
        right = call_many(line, levels * 1000, 20)
        if levels:
            with in_child(grow, line, levels - 1) as child:
                right += child.result()
        return right + call_many(line, levels * 1000, 20)

    with hostline.connect(server.address) as line:
        assert grow(line, 4) == 5 * 40


def fork_amid_calls(address: str, forks: int) -> None:
    """Fork again and again while other threads are in the middle of calls, and of taking the pool's lock."""
    stop = threading.Event()
    wrong: list[Any] = []
    counts = [0] * 6

    with hostline.connect(address, max_size=4) as line:

        def work(place: int) -> None:
            number = place * 1_000_000
            while not stop.is_set():
                number += 1
                try:
                    if line.call("look", number, timeout=10) != number:
                        wrong.append(number)
                except Exception as error:
                    wrong.append(error)
                counts[place] += 1

        threads = [threading.Thread(target=work, args=(place,)) for place in range(6)]
        for thread in threads:
            thread.start()
        try:
            for number in range(forks):
                with in_child(call_many, line, 100_000_000 + number * 1000, 3) as child:
                    assert child.result() == 3
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert wrong == []
    assert min(counts) > 0


def test_a_fork_amid_calls_of_other_threads_mixes_no_frames(server: ServerProcess) -> None:
    fork_amid_calls(server.address, 25)


@pytest.mark.slow
def test_a_thousand_forks_amid_calls_mix_no_frames(sock_dir: Path) -> None:
    with ServerProcess(sock_dir / "s") as server:
        fork_amid_calls(server.address, FORKS)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_an_asyncio_line_says_in_the_child_that_it_is_the_parents(
    server: ServerProcess, run_async: Any, loop: str
) -> None:
    async def call(line: Any) -> Any:
        return await line.call("look", 1)

    def use(line: Any) -> str:
        try:
            call(line).send(None)
        except ClosedError as error:
            return str(error)
        return "no error"

    async def main() -> None:
        async with hostline.aio.connect(server.address) as line:
            assert await line.call("look", 1) == 1
            with in_child(use, line) as child:
                text = child.result()
            assert f"belongs to process {os.getpid()}" in text
            assert await asyncio.gather(*(line.call("look", number) for number in range(20))) == list(range(20))

    run_async(main)


def test_a_program_started_by_a_client_inherits_no_connection(server: ServerProcess) -> None:
    with hostline.connect(server.address, min_size=3):
        shown = subprocess.run(
            [sys.executable, "-c", LIST_SOCKETS], stdout=subprocess.PIPE, close_fds=False, check=True, text=True
        )
        assert shown.stdout == "[]\n"


# --- servers -------------------------------------------------------------------------------------------


@pytest.mark.leaves_files
def test_a_killed_servers_child_hides_its_death_from_nobody(sock_dir: Path, loop: str) -> None:
    address = str(sock_dir / "s")
    with ServerProcess(address, "--loop", loop) as server:
        with hostline.connect(address, reconnect_timeout=10) as line:
            sleeper = line.call("fork_a_sleeper")
            try:
                # The loop's own two, by which it wakes itself, may stay; the listener and the connections may not.
                assert wait_until(lambda: socket_count(sleeper) <= 2)
                held = threading.Thread(target=expect_unavailable, args=(line,))
                held.start()
                assert wait_until(lambda: line.call("hostline.stats")["calls"]["running"] == 1)
                with takes_less_than(2):
                    server.kill()
                    held.join()
                with takes_less_than(5), ServerProcess(address, "--loop", loop) as following:  # nothing looks alive
                    assert line.call("pid") == following.pid
                    following.signal(signal.SIGTERM)
                    assert following.wait() == 0
            finally:
                os.kill(sleeper, signal.SIGKILL)


def expect_unavailable(line: hostline.Line) -> None:
    with pytest.raises(UnavailableError):
        line.call("charge", 1, 30.0)


def socket_count(pid: int) -> int:
    """Return how many sockets a process holds."""
    count = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            count += os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:")
    return count


def test_a_stopped_servers_child_keeps_nothing_either(sock_dir: Path, loop: str) -> None:
    address = str(sock_dir / "s")
    with ServerProcess(address, "--loop", loop) as server:
        line = hostline.connect(address)
        sleeper = line.call("fork_a_sleeper")
        try:
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
            assert not os.path.exists(address)
            with ServerProcess(address, "--loop", loop) as following:
                assert line.call("pid") == following.pid
                line.close()
                following.signal(signal.SIGTERM)
                assert following.wait() == 0
        finally:
            os.kill(sleeper, signal.SIGKILL)


def test_the_server_goes_on_while_its_children_come_and_go(sock_dir: Path, loop: str) -> None:
    """The children's copies of the loop's own descriptors must not be used to change what the parent watches."""
    service = hostline.Service("forking")

    @service.method
    def fork(word: str) -> str:
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        _, status = os.waitpid(pid, 0)
        return f"{word} {os.waitstatus_to_exitcode(status)}"

    @service.method(inline=True)
    def fork_on_the_loop(word: str) -> str:
        return fork(word)

    with ServerThread(service, sock_dir / "s", loop=loop) as server, hostline.connect(sock_dir / "s") as line:
        for number in range(10):
            for method in ("fork", "fork_on_the_loop"):
                assert line.call(method, f"{number}") == f"{number} 7"
        assert server.connection_count == 1


def test_a_client_and_a_server_in_one_process_survive_a_fork(sock_dir: Path, loop: str) -> None:
    service = hostline.Service("both")

    @service.method
    async def double(number: int) -> int:
        await asyncio.sleep(0.001)
        return 2 * number

    with ServerThread(service, sock_dir / "s", loop=loop) as server, hostline.connect(sock_dir / "s") as line:
        for number in range(5):
            with in_child(lambda: line.call("double", number)) as child:  # noqa: B023 - called at once
                assert line.call("double", 100) == 200
                assert child.result() == 2 * number
        assert wait_until(lambda: server.connection_count == 1)
        started = time.monotonic()
    assert time.monotonic() - started < 5
