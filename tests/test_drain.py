"""SIGTERM, SIGINT and SIGKILL under load: what was answered was run once, what was run was answered, and who was told
"not run" was told the truth.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import hostline
from hostline.errors import AddressNotFoundError, ConnectRefusedError, UnavailableError
from hostline.limits import MAX_CALLS_PER_CONNECTION
from hostline.wire.codec import ErrorCode, GoawayCode, decode_failure, decode_farewell
from hostline.wire.frame import Kind
from tests.leaks import wait_until
from tests.serving import AsyncLine, BlockingLine, RawClient, ServerProcess, ServerThread, loop_names, takes_less_than


@pytest.fixture(params=loop_names())
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Load:
    """Blocking callers in threads and asyncio callers on a loop, each call with a number of its own.

    Attributes:
        answered: Numbers whose call returned.
        not_run: Numbers whose call failed with the assurance that it was not run.
        unknown: Numbers whose call failed without it.
    """

    def __init__(self, address: str, *, reconnect_timeout: float, loop: str) -> None:
        self.answered: set[int] = set()
        self.not_run: set[int] = set()
        self.unknown: set[int] = set()
        self.errors: list[BaseException] = []
        self._numbers = itertools.count(1)
        self._stop = threading.Event()
        self._blocking = hostline.connect(address, max_size=6, reconnect_timeout=reconnect_timeout)
        self._asynchronous = AsyncLine(address, loop=loop, reconnect_timeout=reconnect_timeout)
        self._threads = [threading.Thread(target=self._call_in_thread) for _ in range(6)]
        for thread in self._threads:
            thread.start()
        self._tasks = [self._asynchronous.on_loop.start(self._call_in_task()) for _ in range(20)]

    def _arguments(self, number: int) -> tuple[str, int, float]:
        """Return the method, an `async def` or a `def`, its number, and the seconds it takes."""
        return random.choice(["charge", "charge_in_thread"]), number, random.choice([0.0, 0.0, 0.001, 0.01])

    def _call_in_thread(self) -> None:
        while not self._stop.is_set():
            number = next(self._numbers)
            try:
                result = self._blocking.call(*self._arguments(number), timeout=20)
            except Exception as error:
                self._note(number, error)
            else:
                self._check(number, result)

    async def _call_in_task(self) -> None:
        while not self._stop.is_set():
            number = next(self._numbers)
            try:
                result = await self._asynchronous.line.call(*self._arguments(number), timeout=20)
            except Exception as error:
                self._note(number, error)
                await asyncio.sleep(0.001)
            else:
                self._check(number, result)

    def _check(self, number: int, result: Any) -> None:
        if result == number:
            self.answered.add(number)
        else:
            self.errors.append(AssertionError(f"call {number} got the answer of {result}"))

    def _note(self, number: int, error: Exception) -> None:
        if isinstance(error, AddressNotFoundError | ConnectRefusedError):
            self.not_run.add(number)
        elif isinstance(error, UnavailableError):
            (self.not_run if error.is_safe_to_repeat else self.unknown).add(number)
        else:
            self.errors.append(error)

    def wait_for_answers(self, count: int) -> None:
        """Wait until so many more calls were answered."""
        wanted = len(self.answered) + count
        assert wait_until(lambda: len(self.answered) >= wanted or self.errors, 15)

    def finish(self) -> None:
        """Stop calling and wait for the calls under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        for task in self._tasks:
            task.result(20)
        self.close()

    def close(self) -> None:
        self._stop.set()
        self._blocking.close()
        self._asynchronous.close()


def runs_of(journal: Path) -> collections.Counter[int]:
    """Return how often each number was run."""
    return collections.Counter(int(line.split()[1]) for line in journal.read_text().splitlines())


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_under_load_loses_nothing_and_runs_nothing_twice(
    sock_dir: Path, journal: Path, loop: str, number: signal.Signals
) -> None:
    address = str(sock_dir / "s")
    with ServerProcess(address, "--loop", loop, "--journal", str(journal)) as server:
        load = Load(address, reconnect_timeout=0.0, loop=loop)
        load.wait_for_answers(500)
        server.signal(number)
        with takes_less_than(5):
            assert server.wait() == 0
        assert not os.path.exists(address)
        load.finish()
    assert load.errors == []
    assert load.unknown == set()
    runs = runs_of(journal)
    assert max(runs.values()) == 1
    assert set(runs) == load.answered  # none lost: what was run was answered, and the other way round
    assert load.not_run.isdisjoint(runs)
    assert load.not_run


def test_restarts_under_load_fail_no_call(sock_dir: Path, journal: Path, loop: str) -> None:
    """Each stopped by SIGTERM and followed by the next: callers see nothing but a short wait."""
    address = str(sock_dir / "s")
    options = ("--loop", loop, "--journal", str(journal))
    server = ServerProcess(address, *options)
    load = Load(address, reconnect_timeout=15.0, loop=loop)
    try:
        for _ in range(4):
            load.wait_for_answers(300)
            server.signal(signal.SIGTERM)
            assert wait_until(lambda: not os.path.exists(address))
            following = ServerProcess(address, *options)  # while the other answers its last calls
            assert server.wait() == 0
            server.kill()
            server = following
        load.wait_for_answers(300)
        load.finish()
    finally:
        server.signal(signal.SIGTERM)
        server.wait()
        server.kill()
        load.close()
    assert load.errors == []
    assert (load.not_run, load.unknown) == (set(), set())
    runs = runs_of(journal)
    assert max(runs.values()) == 1
    assert set(runs) == load.answered


@pytest.mark.leaves_files
def test_kills_under_load_run_nothing_twice_and_nobody_is_told_a_lie(sock_dir: Path, journal: Path, loop: str) -> None:
    address = str(sock_dir / "s")
    options = ("--loop", loop, "--journal", str(journal))
    server = ServerProcess(address, *options)
    load = Load(address, reconnect_timeout=15.0, loop=loop)
    try:
        for _ in range(4):
            load.wait_for_answers(200)
            server.kill()
            server = ServerProcess(address, *options)
        load.wait_for_answers(200)
        load.finish()
    finally:
        server.kill()
        load.close()
    assert load.errors == []
    runs = runs_of(journal)
    assert max(runs.values()) == 1
    assert load.answered <= set(runs)
    assert load.not_run.isdisjoint(runs)
    assert set(runs) <= load.answered | load.unknown
    assert load.unknown  # calls that were under way, of which nobody can know


def test_what_waits_in_the_queue_is_still_run(sock_dir: Path, journal: Path, loop: str) -> None:
    address = str(sock_dir / "s")
    with ServerProcess(address, "--loop", loop, "--journal", str(journal), "--concurrency", "1") as server:
        line = AsyncLine(address, loop=loop)
        calls = [line.start("charge", number, 0.005 if number else 1.0) for number in range(30)]
        assert wait_until(lambda: line.call("hostline.stats")["calls"]["waiting"] == 29)
        server.signal(signal.SIGTERM)
        assert [call.result(10) for call in calls] == list(range(30))
        assert server.wait() == 0
        line.close()


def test_a_peer_reads_the_farewell_before_the_end(sock_dir: Path, loop: str) -> None:
    address = str(sock_dir / "s")
    with ServerProcess(address, "--loop", loop) as server, RawClient(address) as idle, RawClient(address) as busy:
        busy.call(1, "charge", 1, 0.3)
        busy.call(2, "pid")
        assert busy.read().call_id == 2  # so the first one runs by now
        server.signal(signal.SIGTERM)
        (farewell,) = idle.read_until_end()
        assert decode_farewell(farewell.payload).code == GoawayCode.SHUTDOWN
        assert [frame.kind for frame in busy.read_until_end()] == [Kind.GOAWAY, Kind.REPLY]
        assert server.wait() == 0


# --- handlers that do not end --------------------------------------------------------------------------


@pytest.fixture(params=["never", "deaf"], ids=["def that never returns", "async def that swallows cancellation"])
def endless(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def started(journal: Path) -> Any:
    """Give `started(line)`, which waits until the journal has a line."""
    return lambda text: wait_until(lambda: journal.exists() and text in journal.read_text())


def test_an_endless_handler_does_not_keep_the_process_beyond_its_grace(
    sock_dir: Path, journal: Path, loop: str, endless: str, started: Any
) -> None:
    address = str(sock_dir / "s")
    options = ("--loop", loop, "--journal", str(journal), "--grace", "0.2")
    with ServerProcess(address, *options) as server:
        line = BlockingLine(address, reconnect_timeout=0.0)
        call = line.start(endless, timeout=60)
        assert started(endless)
        server.signal(signal.SIGTERM)
        with takes_less_than(6), pytest.raises(UnavailableError) as caught:
            call.result(10)
        assert not caught.value.is_safe_to_repeat
        with takes_less_than(6):
            assert server.wait() == 0
        assert not os.path.exists(address)
        assert endless != "deaf" or "deaf to a cancellation" in journal.read_text()
        line.close()


def test_a_second_signal_ends_what_still_runs_at_once(sock_dir: Path, journal: Path, loop: str, started: Any) -> None:
    address = str(sock_dir / "s")
    options = ("--loop", loop, "--journal", str(journal), "--grace", "60")
    with ServerProcess(address, *options) as server:
        line = BlockingLine(address, reconnect_timeout=0.0)
        call = line.start("never", timeout=60)
        assert started("never")
        server.signal(signal.SIGTERM)
        assert wait_until(lambda: not os.path.exists(address))
        time.sleep(0.2)
        assert server.process.poll() is None  # it waits for what runs
        server.signal(signal.SIGINT)
        with takes_less_than(5):
            with pytest.raises(UnavailableError):
                call.result(10)
            assert server.wait() == 0
        line.close()


def test_what_was_read_and_not_taken_when_the_grace_ends_is_answered_and_never_starts(
    sock_dir: Path, loop: str
) -> None:
    service = hostline.Service("held")
    started: list[int] = []

    @service.method
    async def hold(number: int) -> None:
        started.append(number)
        await asyncio.sleep(60)

    count = MAX_CALLS_PER_CONNECTION + 50
    with (
        ServerThread(service, sock_dir / "s", loop=loop, concurrency=1, grace=0.1) as server,
        RawClient(str(sock_dir / "s")) as client,
    ):
        client.sock.sendall(b"".join(client.encode(number, "hold", number) for number in range(1, count + 1)))
        assert wait_until(lambda: server.do(lambda it: any(session._kept for session in it._sessions)))
        server.stop(0.1)
        answers = [frame for frame in client.read_until_end() if frame.kind == Kind.ERROR]
    codes = collections.Counter(decode_failure(frame.payload).code for frame in answers)
    assert codes == {ErrorCode.UNAVAILABLE: 1, ErrorCode.NOT_RUN: count - 1}
    assert started == [1]
