"""Several worker processes on one socket: real forks, real signals, on asyncio's loop and on uvloop.

The decisions alone, with a clock of the test's own, are in `tests/protocol/test_supervision.py`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import fcntl
import itertools
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hostline
from hostline.aio.serving.workers.scoreboard import Scoreboard, resident_memory
from hostline.cli.exits import ExitCode
from hostline.errors import LocalProtocolError, PeerRefusedError, SocketError, UnavailableError
from hostline.limits import MAX_WORKERS
from hostline.protocol.serving.accepting import leaves_to_others
from hostline.rpc.builtin import CallCounts, Stats
from hostline.unix.address import parse_address
from hostline.unix.listening import listening_socket
from tests.cli.running import COMMAND, Running, abstract_name, environment
from tests.cli.running import hostline as command
from tests.leaks import wait_until
from tests.second_user import NOBODY, run_as
from tests.serving import AsyncLine, RawClient, ServerProcess, descriptor_count, loop_names

SERVICE = """
import os, asyncio, hostline
changing = hostline.Service("changing")

@changing.method(inline=True, idempotent=True)
def version() -> int:
    return {version}

@changing.method
async def charge(number: int) -> int:
    await asyncio.sleep(0.001)
    with open(os.environ["JOURNAL"], "a") as file:
        file.write(f"{{number}}\\n")
    return os.getpid()
"""


@pytest.fixture(params=loop_names())
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stats_of(address: str) -> Stats:
    with hostline.connect(address) as line:
        return line.call("hostline.stats", returns=Stats, timeout=10)


def worker_pids(address: str) -> list[int]:
    with contextlib.suppress(UnavailableError, SocketError):  # it was answered by one that has just gone
        return [worker.pid for worker in stats_of(address).workers if worker.state == "serving"]
    return []


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Workers(ServerProcess):
    """The service program with workers; all are ready when the constructor returns."""

    def __init__(self, address: Path, count: int, *options: str, log: Path | None = None) -> None:
        super().__init__(address, "--workers", str(count), *options, log=log)
        try:
            assert wait_until(lambda: len(self.pids()) == count, 10), "not all workers became ready"
        except BaseException:
            self.kill()
            raise

    def pids(self) -> list[int]:
        return worker_pids(self.address)

    def wait_until_new(self, old: list[int], count: int) -> list[int]:
        """Wait until none of the old ones is left and as many as there should be are there."""
        found: list[int] = []

        def all_new() -> bool:
            found[:] = self.pids()
            return len(found) == count and not set(found) & set(old)

        assert wait_until(all_new, 10), f"{found} instead of {count} that are none of {old}"
        return found

    def finish(self) -> None:
        """Stop it, and require that nothing of it is left."""
        pids = self.pids()
        self.signal(signal.SIGTERM)
        assert self.wait() == 0
        assert [pid for pid in pids if is_alive(pid)] == []
        assert not os.path.exists(self.address)
        self.process.stdout.close()  # type: ignore[union-attr]


@pytest.fixture
def start(sock_dir: Path) -> Iterator[Callable[..., Workers]]:
    """Give `start(count, *options)`; whatever is left of it is ended after the test."""
    started: list[tuple[Workers, list[int]]] = []

    def begin(count: int, *options: str, log: Path | None = None) -> Workers:
        workers = Workers(sock_dir / "s", count, *options, log=log)
        started.append((workers, workers.pids()))
        return workers

    yield begin
    for workers, pids in started:
        if workers.process.poll() is None:
            workers.kill()
        assert wait_until(lambda pids=pids: not any(map(is_alive, pids)), 15), "a worker outlived its supervisor"
        workers.process.stdout.close()  # type: ignore[union-attr]


class Load:
    """Callers in threads and on a loop who go on until told; every failure is kept.

    Args:
        address: Whom they call.
        method: What they call with a number of each call's own.
    """

    def __init__(self, address: str, method: str, loop: str) -> None:
        self.answers: dict[int, Any] = {}
        self.errors: list[BaseException] = []
        self._method = method
        self._numbers = itertools.count(1)
        self._stop = threading.Event()
        self._lines = [hostline.connect(address) for _ in range(4)]
        self._async_lines = [AsyncLine(address, loop=loop) for _ in range(4)]
        self._threads = [threading.Thread(target=self._call, args=(line,)) for line in self._lines]
        for thread in self._threads:
            thread.start()
        self._tasks = [line.on_loop.start(self._call_on_loop(line.line)) for line in self._async_lines]

    def _call(self, line: hostline.Line) -> None:
        while not self._stop.is_set():
            number = next(self._numbers)
            try:
                self.answers[number] = line.call(self._method, number, timeout=10)
            except BaseException as error:
                self.errors.append(error)

    async def _call_on_loop(self, line: Any) -> None:
        while not self._stop.is_set():
            number = next(self._numbers)
            try:
                self.answers[number] = await line.call(self._method, number, timeout=10)
            except Exception as error:
                self.errors.append(error)

    def wait_for_more(self, count: int = 200) -> None:
        """Wait for that many further answers."""
        before = len(self.answers)
        assert wait_until(lambda: len(self.answers) >= before + count, 15)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(15)
        for task in self._tasks:
            task.result(15)
        for line in self._lines:
            line.close()
        for async_line in self._async_lines:
            async_line.close()


# --- calls and numbers ---------------------------------------------------------------------------------


def test_connections_are_shared_evenly_and_every_worker_answers(start: Callable[..., Workers], loop: str) -> None:
    workers = start(4, "--loop", loop)
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(hostline.connect(workers.address)) for _ in range(64)]
        answered = collections.Counter(line.call("pid") for line in lines)
        assert sorted(answered) == sorted(workers.pids())
        assert max(answered.values()) <= 24, answered
    workers.finish()


def test_a_burst_on_an_asyncio_client_reaches_every_worker(start: Callable[..., Workers], loop: str) -> None:
    workers = start(2, "--loop", loop)

    async def main() -> set[int]:
        async with contextlib.AsyncExitStack() as stack:
            connecting = (stack.enter_async_context(hostline.aio.connect(workers.address)) for _ in range(32))
            lines = await asyncio.gather(*connecting)
            return set(await asyncio.gather(*(line.call("pid") for line in lines)))

    assert asyncio.run(main()) == set(workers.pids())
    workers.finish()


def test_stats_through_any_worker_show_all(start: Callable[..., Workers], loop: str) -> None:
    workers = start(3, "--loop", loop)
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(hostline.connect(workers.address)) for _ in range(6)]
        for line in lines:
            for number in range(10):
                line.call("look", number)
        slow = threading.Thread(target=lines[0].call, args=("look", 1, 3.0))
        slow.start()
        for line in lines:
            own = line.call("pid")

            def all_is_told(line: hostline.Line = line, own: int = own) -> bool:
                stats = line.call("hostline.stats", returns=Stats)
                assert stats.pid == own
                told = stats.workers
                return (
                    len(told) == 3
                    and sum(worker.calls.finished for worker in told) >= 60
                    and sum(worker.calls.running for worker in told) == 1
                    and sum(worker.connections for worker in told) >= 6
                )

            assert wait_until(all_is_told, 5), line.call("hostline.stats")
        slow.join()
        stats = lines[0].call("hostline.stats", returns=Stats)
        assert {worker.restarts for worker in stats.workers} == {0}
        for worker in stats.workers:
            assert worker.state == "serving"
            assert 5 << 20 < worker.memory < 500 << 20
            assert 0 < worker.uptime < 60
            if worker.pid == stats.pid:
                assert worker.calls == stats.calls
                assert worker.connections == stats.connections
    workers.finish()


def test_the_command_prints_them_and_one_process_alone_has_none(sock_dir: Path, start: Callable[..., Workers]) -> None:
    workers = start(2)
    told = command("call", workers.address, "hostline.stats").stdout
    assert told.count(b'"memory":') == 2
    workers.finish()
    with ServerProcess(sock_dir / "one") as one:
        stats = stats_of(one.address)
        assert (stats.workers, stats.pid) == ([], one.pid), "one process has no supervisor"
        one.signal(signal.SIGTERM)
        assert one.wait() == 0


def test_stats_of_a_server_that_knows_no_workers_can_be_read() -> None:
    import msgspec

    old = Stats("s", 1, 1.0, 0, 0, 0, CallCounts(), {})
    plain = msgspec.to_builtins(old)
    del plain["workers"]
    assert msgspec.convert(plain, Stats) == old


# --- workers that end ----------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_while_the_others_go_on(
    start: Callable[..., Workers], loop: str, tmp_path: Path
) -> None:
    workers = start(3, "--loop", loop, log=tmp_path / "log")
    before = workers.pids()
    load = Load(workers.address, "look", loop)
    try:
        load.wait_for_more()
        os.kill(before[0], signal.SIGKILL)
        load.wait_for_more()
        assert wait_until(lambda: len(after := workers.pids()) == 3 and before[0] not in after, 10)
        assert {*before[1:]} < {*workers.pids()}
    finally:
        load.stop()
    assert load.errors == []  # `look` may be repeated
    assert sorted(worker.restarts for worker in stats_of(workers.address).workers) == [0, 0, 1]
    log = (tmp_path / "log").read_text()
    assert f"worker {before[0]} was killed by SIGKILL; another starts in 0." in log
    workers.finish()


def test_a_call_whose_worker_dies_fails_as_ever_and_the_next_is_answered(start: Callable[..., Workers]) -> None:
    workers = start(2)
    with hostline.connect(workers.address) as line:
        with pytest.raises(UnavailableError):
            line.call("die", 1)
        assert line.call("look", 2) == 2
    workers.wait_until_new([], 2)
    workers.finish()


def test_the_pauses_grow_while_workers_die_early(start: Callable[..., Workers], tmp_path: Path) -> None:
    workers = start(2, log=tmp_path / "log")
    kept, victim = workers.pids()
    pauses = []
    for _ in range(4):
        os.kill(victim, signal.SIGKILL)
        text = f"worker {victim} was killed by SIGKILL; another starts in "
        assert wait_until(lambda text=text: text in (tmp_path / "log").read_text(), 5)
        pauses.append(float((tmp_path / "log").read_text().split(text)[1].split()[0]))
        assert wait_until(lambda gone=victim: len(now := workers.pids()) == 2 and gone not in now, 10)
        (victim,) = {*workers.pids()} - {kept}
    assert pauses == sorted(pauses)
    assert pauses[-1] >= 0.4  # 0.8 at most, jittered between half and whole
    workers.finish()


@pytest.mark.slow
def test_fifty_restarts_cost_the_supervisor_no_descriptor(start: Callable[..., Workers]) -> None:
    workers = start(2, "--settled", "0")
    before = descriptor_count(workers.pid)
    own = [descriptor_count(pid) for pid in workers.pids()]
    for _ in range(50):
        old = workers.pids()
        os.kill(old[0], signal.SIGKILL)
        assert wait_until(lambda old=old: len(now := workers.pids()) == 2 and old[0] not in now, 5)
    assert sum(worker.restarts for worker in stats_of(workers.address).workers) == 50
    assert descriptor_count(workers.pid) == before
    assert wait_until(lambda: sorted(map(descriptor_count, workers.pids())) == sorted(own), 5)
    workers.finish()


AFTERWARDS = """
import atexit, os, signal, sys, hostline
service = hostline.Service("afterwards")
numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
def state():
    return len(os.listdir("/proc/self/fd")), [signal.getsignal(n) for n in numbers], signal.set_wakeup_fd(-1)
before = state()
pid = os.getpid()
atexit.register(lambda: os.write(1, b"bye from the parent\\n" if os.getpid() == pid else b"bye from a worker\\n"))
def started(server):
    atexit.register(lambda: os.write(1, b"a worker's own\\n"))
    os.write(1, b"ready\\n")
print("once")
service.run(sys.argv[1], workers=2, on_start=started)
print(state() == before, os.getpid() == pid, flush=True)
"""


@pytest.mark.parametrize("is_abstract", [False, True])
def test_run_returns_in_the_parent_alone_with_everything_as_it_was(sock_dir: Path, is_abstract: bool) -> None:
    address = abstract_name() if is_abstract else str(sock_dir / "s")
    with subprocess.Popen(
        [sys.executable, "-c", AFTERWARDS, address],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(),
    ) as server:
        assert server.stdout is not None
        assert sorted(server.stdout.readline() for _ in range(3)) == [b"once\n", b"ready\n", b"ready\n"]
        assert wait_until(lambda: len(worker_pids(address)) == 2, 10)
        server.terminate()
        rest = server.stdout.read().decode().splitlines()
        assert server.wait(10) == 0
    assert rest == ["a worker's own", "a worker's own", "True True", "bye from the parent"]
    listening_socket(parse_address(address)).close()


FAILING = """
import os, sys, hostline
service = hostline.Service("failing")
def fail(server):
    raise RuntimeError("no database")
try:
    service.run(sys.argv[1], workers=3, on_start=fail)
except hostline.WorkersFailedError as error:
    print(f"{type(error).__name__}: {error}")
    print(os.path.exists(sys.argv[1]))
"""


def test_workers_that_all_die_at_their_start_end_with_an_error(sock_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILING, str(sock_dir / "s")], capture_output=True, timeout=15, env=environment()
    )
    assert done.stdout.decode() == "WorkersFailedError: failing: none of 3 workers became ready\nFalse\n"
    assert done.stderr.count(b"RuntimeError: no database") >= 3


def test_the_command_says_so_and_fails(sock_dir: Path) -> None:
    # It can be imported once, to learn its name, and never again.
    (sock_dir / "once.py").write_text(
        "import os, hostline\nonce = hostline.Service('once')\nos.mkdir(os.path.join(os.path.dirname(__file__), 'x'))\n"
    )
    done = command("serve", "./once.py:once", "-a", sock_dir / "s", "--workers", 2, cwd=sock_dir)
    assert done.returncode == ExitCode.FAILURE
    assert done.stderr.decode().endswith("error: once: none of 2 workers became ready\n")
    assert b"FileExistsError" in done.stderr
    assert not (sock_dir / "s").exists()


@pytest.mark.parametrize(("target", "words"), [("nomodule:x", "no module 'nomodule'"), ("./no.py:x", "does not exist")])
def test_what_cannot_be_served_is_said_once(sock_dir: Path, target: str, words: str) -> None:
    done = command("serve", target, "--workers", 4, cwd=sock_dir)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, b"")
    assert words in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


# --- reload --------------------------------------------------------------------------------------------


@pytest.mark.alone  # each worker gets a share of the calls, where none has to wait for a processor
def test_a_reload_brings_new_code_and_no_call_fails(sock_dir: Path, loop: str, tmp_path: Path) -> None:
    (sock_dir / "changing.py").write_text(SERVICE.format(version=1))
    journal = tmp_path / "journal"
    journal.touch()
    options = ("serve", "./changing.py", "-a", sock_dir / "s", "--workers", 3, "--loop", loop)
    address = str(sock_dir / "s")
    env = {"JOURNAL": str(journal)}
    with Running(*options, ready="with 3 workers", cwd=sock_dir, env=env) as server:
        load = Load(address, "charge", loop)
        try:
            for version in (22, 333):
                load.wait_for_more()
                old = worker_pids(address)
                (sock_dir / "changing.py").write_text(SERVICE.format(version=version))
                server.process.send_signal(signal.SIGHUP)
                assert wait_until(lambda old=old: len(now := worker_pids(address)) == 3 and not {*now} & {*old}, 15), (
                    server.err
                )
                with hostline.connect(address) as line:
                    assert line.call("version") == version
                load.wait_for_more()
        finally:
            load.stop()
        assert load.errors == []
        assert {*load.answers.values()} >= {*worker_pids(address)}
        assert {worker.restarts for worker in stats_of(address).workers} == {0}
        assert server.stop() == 0
    assert len(load.answers) > 500
    runs = collections.Counter(map(int, journal.read_text().split()))
    assert {*runs} == {*load.answers}
    assert {*runs.values()} == {1}, "a call was run twice"


def test_a_reload_of_broken_code_leaves_the_old_workers(sock_dir: Path) -> None:
    file = sock_dir / "changing.py"
    file.write_text(SERVICE.format(version=1))
    address = str(sock_dir / "s")
    with Running("serve", file, "-a", address, "--workers", 2, ready="with 2 workers") as server:
        old = worker_pids(address)
        file.write_text("raise RuntimeError('half an edit')\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("the reload is given up, the old ones go on")
        assert worker_pids(address) == old
        with hostline.connect(address) as line:
            assert line.call("version") == 1
        file.write_text(SERVICE.format(version=22))
        server.process.send_signal(signal.SIGHUP)
        assert wait_until(lambda: len(now := worker_pids(address)) == 2 and not {*now} & {*old}, 10), server.err
        with hostline.connect(address) as line:
            assert line.call("version") == 22
        assert server.stop() == 0


def test_new_connections_are_never_refused_in_a_reload(start: Callable[..., Workers], loop: str) -> None:
    workers = start(2, "--loop", loop)
    errors: list[BaseException] = []
    served: set[int] = set()
    stop = threading.Event()

    def connect_and_call() -> None:
        while not stop.is_set():
            try:
                with hostline.connect(workers.address) as line:
                    served.add(line.call("pid"))
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=connect_and_call) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen = set(workers.pids())
    for _ in range(5):
        old = workers.pids()
        workers.signal(signal.SIGHUP)
        seen |= set(workers.wait_until_new(old, 2))
    stop.set()
    for thread in threads:
        thread.join(10)
    assert errors == []
    assert len(seen) == 12
    assert len(served & seen) > 6
    workers.finish()


def test_a_silent_peer_does_not_hold_a_reload_up(start: Callable[..., Workers]) -> None:
    workers = start(2)
    old = workers.pids()
    with RawClient(workers.address, hello=False) as client:
        workers.signal(signal.SIGHUP)
        workers.wait_until_new(old, 2)
        assert b"is shutting down" in client.read().payload
    assert wait_until(lambda: not any(map(is_alive, old)), 10)
    workers.finish()


def test_a_reload_lets_what_runs_finish(start: Callable[..., Workers], loop: str) -> None:
    workers = start(2, "--loop", loop)
    old = workers.pids()
    with hostline.connect(workers.address) as line:
        results: list[int] = []
        slow = threading.Thread(target=lambda: results.append(line.call("charge", 7, 1.0)))
        slow.start()
        assert wait_until(lambda: sum(w.calls.running for w in stats_of(workers.address).workers) == 1, 5)
        workers.signal(signal.SIGHUP)
        seen = set()
        while slow.is_alive():
            seen |= {(worker.pid in old, worker.state) for worker in stats_of(workers.address).workers}
        assert {(True, "stopping"), (False, "serving")} <= seen
        slow.join(10)
        assert results == [7]
        assert line.call("pid") in workers.wait_until_new(old, 2)
    workers.finish()


# --- stopping ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_finishes_what_runs_and_leaves_nothing(
    start: Callable[..., Workers], loop: str, number: int, sock_dir: Path
) -> None:
    workers = start(3, "--loop", loop)
    pids = workers.pids()
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(hostline.connect(workers.address)) for _ in range(6)]
        results: list[int] = []
        threads = [
            threading.Thread(target=lambda n=n, line=line: results.append(line.call("charge", n, 0.7)))
            for n, line in enumerate(lines)
        ]
        for thread in threads:
            thread.start()
        assert wait_until(lambda: sum(w.calls.running for w in stats_of(workers.address).workers) == 6, 5)
        workers.signal(number)
        assert wait_until(lambda: not os.path.exists(workers.address), 5)
        # The name and the lock are free while the last calls end.
        listening_socket(parse_address(workers.address)).close()
        for thread in threads:
            thread.join(10)
        assert sorted(results) == list(range(6))
    assert workers.wait() == 0
    assert not any(map(is_alive, pids))


def test_a_second_signal_ends_what_still_runs(start: Callable[..., Workers]) -> None:
    workers = start(2, "--grace", "600")
    with hostline.connect(workers.address) as line:
        failed: list[BaseException] = []

        def call() -> None:
            try:
                line.call("charge", 1, 600.0, timeout=700)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        assert wait_until(lambda: sum(w.calls.running for w in stats_of(workers.address).workers) == 1, 5)
        workers.signal(signal.SIGTERM)
        assert wait_until(lambda: not os.path.exists(workers.address), 5)
        workers.signal(signal.SIGTERM)
        assert workers.wait() == 0
        thread.join(10)
        assert isinstance(failed[0], UnavailableError)


def test_whoever_waits_in_the_backlog_is_sent_away_in_words(start: Callable[..., Workers]) -> None:
    workers = start(2)
    for pid in workers.pids():
        os.kill(pid, signal.SIGSTOP)  # so that nobody accepts
    with RawClient(workers.address, hello=False) as client:
        workers.signal(signal.SIGTERM)
        text = client.read().payload
        assert b"program is shutting down" in text
        assert client.read_until_end() == []
    for pid in _children_of(workers.pid):
        os.kill(pid, signal.SIGCONT)
    assert workers.wait() == 0


def _children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


@pytest.mark.slow
def test_a_worker_that_hears_nothing_is_killed_after_its_grace(start: Callable[..., Workers], tmp_path: Path) -> None:
    workers = start(2, "--grace", "0.2", log=tmp_path / "log")
    stuck = workers.pids()[0]
    os.kill(stuck, signal.SIGSTOP)
    workers.signal(signal.SIGTERM)
    assert workers.wait() == 0
    assert f"worker {stuck} did not stop and is killed" in (tmp_path / "log").read_text()


@pytest.mark.leaves_files
def test_workers_end_by_themselves_when_their_supervisor_is_killed(
    start: Callable[..., Workers], loop: str, sock_dir: Path
) -> None:
    workers = start(3, "--loop", loop)
    pids = workers.pids()
    with hostline.connect(workers.address) as line:
        results: list[int] = []
        slow = threading.Thread(target=lambda: results.append(line.call("charge", 7, 0.5)))
        slow.start()
        assert wait_until(lambda: sum(w.calls.running for w in stats_of(workers.address).workers) == 1, 5)
        workers.kill()
        slow.join(10)
        assert results == [7]  # they stop as they do after SIGTERM
    assert wait_until(lambda: not any(map(is_alive, pids)), 10)
    with ServerProcess(workers.address) as successor:
        assert successor.process.poll() is None
        successor.signal(signal.SIGTERM)
        assert successor.wait() == 0


def test_what_a_handler_forked_does_not_keep_the_address(start: Callable[..., Workers]) -> None:
    workers = start(2)
    with hostline.connect(workers.address) as line:
        child = line.call("fork_a_sleeper")
    try:
        workers.finish()
        listening_socket(parse_address(workers.address)).close()
    finally:
        os.kill(child, signal.SIGKILL)


# --- terminals -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def on_own_terminal(*arguments: object) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run the command as the leader of a terminal's session, and give the terminal's other end."""
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
    finally:
        os.close(slave)
    try:
        yield process, master
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(OSError):
            os.close(master)


def read_until(master: int, text: str, shown: str = "") -> str:
    """Return what a terminal showed up to a text, or to the end."""
    deadline = time.monotonic() + 15
    while text not in shown and time.monotonic() < deadline:
        try:
            shown += os.read(master, 65536).decode()
        except OSError:  # nobody has the other end open any more
            break
    return shown


def test_ctrl_c_ends_once_and_clean(sock_dir: Path) -> None:
    (sock_dir / "changing.py").write_text(SERVICE.format(version=1))
    with on_own_terminal("serve", sock_dir / "changing.py", "-a", sock_dir / "s", "--workers", 3) as (process, master):
        shown = read_until(master, "with 3 workers")
        pids = worker_pids(str(sock_dir / "s"))
        assert len(pids) == 3
        os.write(master, b"\x03")
        shown = read_until(master, "\0", shown)
        assert process.wait(10) == 0
    assert "Traceback" not in shown
    assert "ERROR" not in shown
    assert "WARNING" not in shown
    assert shown.count("has stopped") == 3
    assert not any(map(is_alive, pids))
    assert not (sock_dir / "s").exists()


def test_a_terminal_that_goes_away_stops_it(sock_dir: Path) -> None:
    (sock_dir / "changing.py").write_text(SERVICE.format(version=1))
    with on_own_terminal("serve", sock_dir / "changing.py", "-a", sock_dir / "s", "--workers", 2) as (process, master):
        read_until(master, "with 2 workers")
        pids = worker_pids(str(sock_dir / "s"))
        os.close(master)
        assert process.wait(10) == 0
    assert not any(map(is_alive, pids))
    assert not (sock_dir / "s").exists()


# --- what cannot be, and who may not ---------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, -1, 10_000, True, 2.0])
def test_a_number_of_workers_that_cannot_be_is_refused(sock_dir: Path, count: Any) -> None:
    service = hostline.Service("s")
    with pytest.raises(ValueError, match=f"workers of {count!r} must be a number of processes from 1 to {MAX_WORKERS}"):
        service.run(sock_dir / "s", workers=count)
    assert not (sock_dir / "s").exists()


@pytest.mark.parametrize("count", [0, -1, 10_000])
def test_the_command_refuses_it_too(sock_dir: Path, count: int) -> None:
    done = command("serve", "nomodule", "--workers", count, cwd=sock_dir)
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.decode() == f"error: workers of {count} must be a number of processes from 1 to {MAX_WORKERS}\n"


def test_the_command_refuses_several_that_are_to_take_over(sock_dir: Path) -> None:
    done = command("serve", "nomodule", "--workers", 2, "--takeover", cwd=sock_dir)
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.decode().startswith("error: --takeover is for one process")


def test_workers_are_refused_in_a_thread_and_on_a_loop(sock_dir: Path) -> None:
    service = hostline.Service("s")
    caught: list[BaseException] = []

    def run() -> None:
        try:
            service.run(sock_dir / "s", workers=2)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert isinstance(caught[0], LocalProtocolError)
    assert "main thread" in str(caught[0])

    async def main() -> None:
        with pytest.raises(LocalProtocolError, match="event loop"):
            service.run(sock_dir / "s", workers=2)

    asyncio.run(main())


def test_a_taken_address_is_refused_before_anything_is_forked(start: Callable[..., Workers]) -> None:
    workers = start(2)
    second = subprocess.run(
        [sys.executable, "-m", "tests.service_program", workers.address, "--workers", "2"],
        capture_output=True,
        timeout=15,
        env=environment(),
    )
    assert second.returncode == 1
    assert f"pid {workers.pid}" in second.stderr.decode()
    assert second.stdout == b""
    workers.finish()


GUARDED = """
import os, sys, hostline
service = hostline.Service("guarded")
@service.method
def look(number: int) -> int:
    return number
service.run(sys.argv[1], workers=2, mode=0o666, allow=hostline.Peers.same_user(),
            on_start=lambda _: os.write(1, b"ready\\n"))
"""


def call_once(address: str) -> Any:
    with hostline.connect(address, server=hostline.Peers.anyone(), timeout=5) as line:
        return line.call("look", 3)


@pytest.mark.root
def test_another_user_is_refused_by_every_worker(sock_dir: Path) -> None:
    sock_dir.chmod(0o755)
    address = str(sock_dir / "s")
    with subprocess.Popen(
        [sys.executable, "-c", GUARDED, address], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
    ) as server:
        assert server.stdout is not None
        assert [server.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
        for _ in range(8):
            with pytest.raises(PeerRefusedError, match="guarded"):
                run_as(NOBODY, call_once, address)
        assert call_once(address) == 3
        server.terminate()
        assert server.wait(10) == 0


def test_a_listening_socket_that_somebody_shut_down_ends_it_all(sock_dir: Path) -> None:
    (sock_dir / "changing.py").write_text(SERVICE.format(version=1))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sock_dir / "s"))
        listener.listen()
        options = ("serve", sock_dir / "changing.py", "-a", f"fd:{listener.fileno()}", "--workers", 2)
        with Running(*options, ready="with 2 workers", pass_fds=[listener.fileno()]) as server:
            listener.shutdown(socket.SHUT_RDWR)
            assert server.wait() == ExitCode.FAILURE
            assert server.err.endswith("error: changing: the listening socket is of no use any more\n")
    assert (sock_dir / "s").exists()  # whoever made it removes it
    (sock_dir / "s").unlink()


# --- the parts -----------------------------------------------------------------------------------------


def test_a_connection_is_left_to_those_who_have_fewer() -> None:
    assert leaves_to_others(3, [3, 2])
    assert not leaves_to_others(2, [3, 2])
    assert not leaves_to_others(0, [])
    assert not leaves_to_others(5, [5, 5, 5])


def test_rows_are_seen_across_a_fork_and_free_again_when_emptied() -> None:
    board = Scoreboard(3)
    try:
        assert board.read(5.0) == []
        pid = os.fork()
        if pid == 0:
            row = board.take(1, 2.0, 7)
            row.note(4, CallCounts(1, 2, 3, 4, 5, 6))
            row.tell("serving")
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        (told,) = board.read(5.0)
        assert (told.pid, told.state, told.uptime, told.connections, told.restarts) == (pid, "serving", 3.0, 4, 7)
        assert told.calls == CallCounts(1, 2, 3, 4, 5, 6)
        assert told.memory > 1 << 20
        assert board.connections() == [4]
        board.clear(1)
        assert board.read(5.0) == []
        assert board.connections() == []
    finally:
        board.close()


def test_resident_memory_is_what_the_kernel_says() -> None:
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = [line for line in file if line.startswith("VmRSS")]
    assert abs(resident_memory() - int(line.split()[1]) * 1024) < 4 << 20
