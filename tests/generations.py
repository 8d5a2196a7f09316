"""Generations of one server, and a load that counts what their restarts do to its calls."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import os
import random
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

import hostline
from tests.serving import AsyncLine


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


class Load:
    """Eight clients, four blocking and four asyncio, whose calls each append an id of their own.

    Attributes:
        answered: Ids whose call returned.
        failed: What the others raised.
        refused: What a bare connect raised: these clients would try again, others would not.
    """

    def __init__(self, address: str, loop: str, **options: Any) -> None:
        self.answered: list[str] = []
        self.failed: dict[str, BaseException] = {}
        self.connected = 0
        self.refused: list[OSError] = []
        self._address = address
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
        self._threads.append(threading.Thread(target=self._come_and_go))
        for thread in self._threads:
            thread.start()

    def _come_and_go(self) -> None:
        while not self._stop.wait(0.0005):
            with socket.socket(socket.AF_UNIX) as sock:
                try:
                    sock.connect(self._address)
                    self.connected += 1
                except OSError as error:
                    self.refused.append(error)

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
        found = [f"a connect was refused: {error!r}" for error in self.refused]
        found += [f"{ident} failed: {error!r}" for ident, error in self.failed.items()]
        found += [f"{ident} was run {count} times" for ident, count in runs.items() if count > 1]
        found += [f"{ident} was answered and not run" for ident in self.answered if ident not in runs]
        known = {*self.answered, *self.failed}
        found += [f"{ident} was run and never answered" for ident in runs if ident not in known]
        return found
