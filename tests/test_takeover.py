"""A restart loses no call: the next server is handed the socket, its file and its lock by the one that runs.

HOSTLINE_RESTARTS=N   restarts of the storm (20, and 200 in CI; 1000 in the full run)
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

import hostline
from hostline.errors import AddressInUseError
from tests.leaks import wait_until
from tests.serving import AsyncLine, loop_names

RESTARTS = int(os.environ.get("HOSTLINE_RESTARTS", "200" if os.environ.get("HOSTLINE_CI") == "1" else "20"))


@pytest.fixture(params=loop_names())
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Program:
    """One generation: `tests.takeover_program` in a fresh Python.

    Attributes:
        log: What it wrote to standard error, once `read_log` was called.
    """

    def __init__(self, address: object, journal: Path, *options: str, loop: str = "asyncio", log: Path | None = None):
        self._log = log or journal.with_suffix(".log")
        with self._log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.takeover_program", str(address), str(journal), "--loop", loop, *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
                text=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def ready(self) -> Self:
        """Wait until it accepts."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "ready\n", f"{line!r}\n{self.log}"
        return self

    def fd_count(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def wait(self, timeout: float = 15.0) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(timeout)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


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


class Load:
    """Eight clients, four blocking and four asyncio, whose calls each append an id of their own.

    Attributes:
        answered: Ids whose call returned.
        failed: What the others raised.
    """

    def __init__(self, address: str, loop: str, **options: Any) -> None:
        self.answered: list[str] = []
        self.failed: dict[str, BaseException] = {}
        self._stop = threading.Event()
        self._lines = [hostline.connect(address, max_size=2, **options) for _ in range(4)]
        self._async_lines = [AsyncLine(address, loop=loop, **options) for _ in range(4)]
        self._threads = [
            threading.Thread(target=self._call_in_thread, args=(line, f"t{index}-{half}"))
            for index, line in enumerate(self._lines)
            for half in range(2)
        ]
        self._tasks = [
            line.on_loop.start(self._call_in_task(line.line, f"a{index}-{part}"))
            for index, line in enumerate(self._async_lines)
            for part in range(4)
        ]
        for thread in self._threads:
            thread.start()

    def _arguments(self, ident: str) -> tuple[Any, ...]:
        method = random.choice(["append", "append_slowly", "append_in_thread"])
        return (method, ident) if method == "append" else (method, ident, random.choice([0.0, 0.0005, 0.003]))

    def _call_in_thread(self, line: Any, name: str) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            ident = f"{name}-{number}"
            try:
                line.call(*self._arguments(ident), returns=int)
                self.answered.append(ident)
            except Exception as error:
                self.failed[ident] = error

    async def _call_in_task(self, line: Any, name: str) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            ident = f"{name}-{number}"
            try:
                await line.call(*self._arguments(ident), returns=int)
                self.answered.append(ident)
            except Exception as error:
                self.failed[ident] = error
                await asyncio.sleep(0)

    def finish(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        for task in self._tasks:
            task.result(30)
        for line in [*self._lines, *self._async_lines]:
            line.close()

    def complaints(self, journal: Path) -> list[str]:
        """Return what was lost, repeated or refused; empty if every call was run once and answered."""
        runs = collections.Counter(line.split()[0] for line in journal.read_text().splitlines())
        found = [f"{ident} failed: {error!r}" for ident, error in self.failed.items()]
        found += [f"{ident} was run {count} times" for ident, count in runs.items() if count > 1]
        found += [f"{ident} was answered and not run" for ident in self.answered if ident not in runs]
        known = {*self.answered, *self.failed}
        found += [f"{ident} was run and never answered" for ident in runs if ident not in known]
        return found


@pytest.mark.slow
@pytest.mark.timeout(60 + 4 * RESTARTS)
def test_restarts_under_load_lose_no_call_and_run_none_twice(start: Any, sock_dir: Path, tmp_path: Path, loop: str) -> None:
    address = str(sock_dir / "s")
    old = start().ready()
    inode = os.stat(address).st_ino
    first_count = old.fd_count()
    load = Load(address, loop, reconnect_timeout=0.0 if os.environ.get("STRICT") else 5.0)
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
    print(f"{RESTARTS} restarts, {len(load.answered)} calls, {len(pids)} generations")
    assert len(pids) > RESTARTS / 2


@pytest.mark.leaves_files
def test_the_same_load_notices_a_naive_restart(start: Any, sock_dir: Path, tmp_path: Path, loop: str) -> None:
    old = start().ready()
    load = Load(str(sock_dir / "s"), loop)
    try:
        for _ in range(3):
            answered = len(load.answered)
            assert wait_until(lambda answered=answered: len(load.answered) > answered + 100)
            old.process.kill()
            old.wait()
            old = start().ready()
    finally:
        load.finish()
    assert load.complaints(tmp_path / "journal")
