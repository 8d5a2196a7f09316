"""A worker process's own side: what it is given by its supervisor, and how it says that it accepts.

Knows nothing of the other workers but the table that all write to. How workers are started is in `supervising.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Final

from hostline.aio.serving.scoreboard import Row
from hostline.aio.serving.server import Server
from hostline.clock import monotonic
from hostline.limits import WORKER_NOTE_INTERVAL
from hostline.rpc.builtin import WorkerStats
from hostline.unix.address import InheritedAddress
from hostline.unix.listening import Bound

__all__ = ["Worker"]

logger: Final = logging.getLogger("hostline")


class Worker:
    """Hold what a worker process works with.

    Args:
        bound: The listening socket, which it shares with its supervisor and the other workers.
        row: Its row in the table.
        lifeline: A pipe's reading end, whose other end only the supervisor has.
        tell_ready: Tells the supervisor that this worker accepts.
    """

    def __init__(self, bound: Bound, row: Row, lifeline: int, tell_ready: Callable[[], None]) -> None:
        # The file is the supervisor's, and what waits in the backlog when this worker stops is for the others.
        bound.is_inherited = True
        self.bound = bound
        self._row = row
        self._lifeline = lifeline
        self._tell_ready = tell_ready
        self._server: Server | None = None
        self._stop: asyncio.Task[None] | None = None

    def attach(self, server: Server) -> None:
        """Go with a server that accepts: show its numbers, watch over the supervisor, and tell it that all is ready."""
        self._server = server
        server.read_workers = self._read
        server.loop.add_reader(self._lifeline, self._on_supervisor_gone)
        self._note()
        self._tell_ready()

    def _read(self) -> list[WorkerStats]:
        self._write()
        return self._row.board.read(monotonic())

    def _note(self) -> None:
        if self._server is not None:
            self._write()
            self._server.loop.call_later(WORKER_NOTE_INTERVAL, self._note)

    def _write(self) -> None:
        if self._server is not None:
            self._row.note(self._server.connection_count, self._server.current_counts())

    def _on_supervisor_gone(self) -> None:
        """Stop as after SIGTERM: nobody would start another worker, nor end this one."""
        server = self._server
        if server is None:
            return
        server.loop.remove_reader(self._lifeline)
        logger.error("the supervisor of %s is gone: worker %d stops", server.service.name, os.getpid())
        # Nobody else answers those who wait in the backlog now.
        self.bound.is_inherited = isinstance(self.bound.address, InheritedAddress)
        self._stop = server.loop.create_task(server.shutdown())
