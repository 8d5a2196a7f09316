"""Worker threads for `def` handlers: a fixed number, started when needed, daemons.

Not `concurrent.futures`: its threads are joined when the interpreter exits, so a handler that never returns would
keep a stopped service from leaving after its grace time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

__all__ = ["Workers"]


class Workers:
    """Run functions in at most `count` threads.

    Args:
        name: Prefix of the threads' names.
        count: Threads at most, at least 1.

    Raises:
        ValueError: `count` is below 1.
    """

    def __init__(self, name: str, count: int) -> None:
        if count < 1:
            raise ValueError(f"threads of {count} must be at least 1")
        self._name = name
        self._count = count
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._free_count = 0  # threads without work, less the work that waits for one
        self._lock = threading.Lock()

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work` in a thread as soon as one is free; it must not raise.

        Raises:
            RuntimeError: There is no thread yet and the system gives none; the work is not kept.
        """
        with self._lock:
            if self._free_count <= 0 and len(self._threads) < self._count:
                self._start_thread()
            self._free_count -= 1
        self._queue.put(work)

    def close(self, timeout: float = 0.0) -> int:
        """Let the threads end after what they run; returns how many still run after `timeout` seconds each."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(timeout)
        return sum(thread.is_alive() for thread in self._threads)

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._run, name=f"{self._name}-{len(self._threads) + 1}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise
            return  # the threads there are come to it later
        self._threads.append(thread)
        self._free_count += 1

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
            del work  # a waiting thread must not keep the last call's arguments alive
            with self._lock:
                self._free_count += 1
