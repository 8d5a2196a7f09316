"""A program around one server: an event loop of its own, and the signals that end it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from hostline.aio.serving.server import Server

__all__ = ["run_on"]


def run_on(
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None,
    serving: Awaitable[Server],
    on_start: Callable[[Server], None] | None,
    numbers: tuple[signal.Signals, ...],
) -> None:
    """Serve on a loop of its own until one of the signals."""
    loop = (loop_factory or asyncio.new_event_loop)()
    try:
        # The signals first: a server that can be seen can also be told to stop. And last: what is left is ended.
        with _StopSignals(loop, numbers) as signals:
            try:
                loop.run_until_complete(_run(serving, on_start, signals))
            finally:
                _end_tasks(loop)
    finally:
        loop.close()


async def _run(serving: Awaitable[Server], on_start: Callable[[Server], None] | None, signals: _StopSignals) -> None:
    signals.starting = asyncio.current_task()
    try:
        server = await serving
    except asyncio.CancelledError:
        if signals.is_stopped:
            return  # told to stop while it waited for the server that it was to take over
        raise
    signals.server = server
    try:
        if on_start is not None:
            on_start(server)
        await server.wait_closed()
    finally:
        await server.shutdown()


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """End what is left on the loop.

    Not `asyncio.Runner`: it waits without end for a task that swallows its cancellation, so that one such handler
    would keep a stopped service from leaving after its grace time.
    """
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        _, stubborn = loop.run_until_complete(asyncio.wait(left, timeout=1.0))
        for task in stubborn:
            # The server has logged that it leaves these behind; asyncio need not say it once more, as an error.
            task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.run_until_complete(loop.shutdown_asyncgens())


class _StopSignals(contextlib.AbstractContextManager["_StopSignals"]):
    """Turn SIGTERM and SIGINT into a shutdown; the second one ends what still runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, numbers: tuple[signal.Signals, ...]) -> None:
        # One of the two is set before the loop turns for the first time, and so before any signal is heard.
        self.starting: asyncio.Task[Any] | None = None
        self.server: Server | None = None
        self.is_stopped = False
        self._loop = loop
        self._numbers = numbers
        self._before: dict[int, Any] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._is_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._is_main:  # elsewhere Python delivers no signals: the program around decides when to stop
            for number in self._numbers:
                self._before[number] = signal.getsignal(number)
                self._loop.add_signal_handler(number, self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            self._loop.remove_signal_handler(number)
            if handler is not None:  # None: not set from Python, and cannot be set again from here
                signal.signal(number, handler)

    def _stop(self) -> None:
        self.is_stopped = True
        if self.server is None and self.starting is not None:
            self.starting.cancel()
        if self.server is not None:
            grace = 0.0 if self._tasks else None
            self._tasks.append(self._loop.create_task(self.server.shutdown(grace)))
