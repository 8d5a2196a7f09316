"""Worker threads: bounded, started when needed, never lost, never in the way of the end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref
from typing import Any

import pytest
from tests.leaks import wait_until
from tests.serving import takes_less_than

from hostline.rpc.workers import Workers


class Busy:
    """Work that waits for its end, and counts how much of it runs at once."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.lock = threading.Lock()
        self.running = 0
        self.most = 0
        self.done = 0

    def __call__(self) -> None:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.gate.wait(10)
        with self.lock:
            self.running -= 1
            self.done += 1


def threads_of(name: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(name)]


def test_no_more_threads_run_than_asked_for_and_all_work_is_done() -> None:
    workers, busy = Workers("few", 3), Busy()
    assert threads_of("few") == []
    for _ in range(20):
        workers.submit(busy)
    assert wait_until(lambda: busy.running == 3)
    assert len(threads_of("few")) == 3
    busy.gate.set()
    assert wait_until(lambda: busy.done == 20)
    assert busy.most == 3
    assert workers.close(timeout=5) == 0
    assert threads_of("few") == []


def test_one_thread_is_enough_for_work_that_comes_one_at_a_time() -> None:
    workers, busy = Workers("single", 8), Busy()
    busy.gate.set()
    for number in range(1, 51):
        workers.submit(busy)
        assert wait_until(lambda wanted=number: busy.done == wanted and workers._free_count == 1)  # type: ignore[misc]
    assert len(threads_of("single")) == 1
    assert workers.close(timeout=5) == 0


def test_after_a_burst_a_second_burst_again_has_every_thread() -> None:
    """A count of idle threads that went wrong in the first burst would leave the second with fewer."""
    workers = Workers("burst", 4)
    for _ in range(10):
        busy = Busy()
        for _ in range(9):
            workers.submit(busy)
        assert wait_until(lambda busy=busy: busy.running == 4)  # type: ignore[misc]
        busy.gate.set()
        assert wait_until(lambda busy=busy: busy.done == 9)  # type: ignore[misc]
    assert workers.close(timeout=5) == 0


@pytest.mark.alone
def test_closing_does_not_wait_for_what_runs() -> None:
    workers, busy = Workers("stuck", 2), Busy()
    workers.submit(busy)
    assert wait_until(lambda: busy.running == 1)
    with takes_less_than(1):
        assert workers.close() == 1
    busy.gate.set()
    assert wait_until(lambda: threads_of("stuck") == [])


def test_without_any_thread_the_work_is_refused_and_with_one_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    workers, busy = Workers("poor", 2), Busy()
    start = threading.Thread.start

    def no_thread(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(RuntimeError):
        workers.submit(busy)
    monkeypatch.setattr(threading.Thread, "start", start)
    workers.submit(busy)
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    workers.submit(busy)
    monkeypatch.setattr(threading.Thread, "start", start)
    busy.gate.set()
    assert wait_until(lambda: busy.done == 2)
    assert workers.close(timeout=5) == 0


def test_a_thread_keeps_nothing_of_the_work_it_did() -> None:
    workers, busy = Workers("clean", 1), Busy()
    busy.gate.set()
    reference = weakref.ref(busy)
    workers.submit(busy)
    del busy
    assert wait_until(lambda: reference() is None)
    assert workers.close(timeout=5) == 0


def test_work_that_never_ends_does_not_keep_the_interpreter() -> None:
    program = (
        "import time; from hostline.rpc.workers import Workers; "
        "workers = Workers('never', 1); workers.submit(lambda: time.sleep(3600)); time.sleep(0.1); workers.close()"
    )
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, timeout=10)
    assert time.monotonic() - started < 8


@pytest.mark.parametrize("count", [0, -1])
def test_a_number_of_threads_below_one_is_a_mistake(count: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Workers("none", count)
