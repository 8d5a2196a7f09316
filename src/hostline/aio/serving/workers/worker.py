"""A worker process's own side: what its supervisor gives it, and a server that shares the listening socket.

Knows of the other workers only what stands in the table that all write to. How they are started is in `supervising.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Final, NamedTuple

from hostline.aio.serving.server import Server
from hostline.aio.serving.session import Session
from hostline.aio.serving.workers.scoreboard import Row
from hostline.clock import monotonic
from hostline.limits import ACCEPT_YIELD, WORKER_NOTE_INTERVAL
from hostline.protocol.serving.accepting import leaves_to_others
from hostline.rpc.builtin import Stats
from hostline.rpc.service import ServiceBase
from hostline.rpc.settings import ServerSettings
from hostline.rpc.watching.fields import event
from hostline.unix.address import InheritedAddress
from hostline.unix.credentials import Peers
from hostline.unix.listening import Bound
from hostline.unix.sockets import Accepted

__all__ = ["Worker", "WorkerServer"]

logger: Final = logging.getLogger("hostline")


class Worker(NamedTuple):
    """What a worker process works with.

    Attributes:
        bound: The listening socket, which it shares with its supervisor and the other workers.
        row: Its row in the table.
        lifeline: A pipe's reading end, whose other end only the supervisor has.
        tell_ready: Tells the supervisor that this worker accepts.
    """

    bound: Bound
    row: Row
    lifeline: int
    tell_ready: Callable[[], None]


class WorkerServer(Server):
    """Serve in a worker process: as `Server`, and fair to the others, with its numbers in the table.

    It stops when the supervisor is gone: nobody would start another worker, nor end this one.

    Args:
        service: What is served.
        worker: What the supervisor gave.
        allow: As for `Server`.
        settings: As for `Server`.
    """

    _accept_batch = 1  # others are awake as well, and are to get their share of a burst
    _log_level = logging.DEBUG  # the supervisor speaks for all

    def __init__(
        self,
        service: ServiceBase,
        worker: Worker,
        *,
        allow: Peers | None = None,
        settings: ServerSettings | None = None,
    ) -> None:
        super().__init__(service, worker.bound, allow=allow, settings=settings)
        # The file is the supervisor's, and what waits in the backlog when this worker stops is for the others.
        worker.bound.is_inherited = True
        self._row = worker.row
        self._lifeline = worker.lifeline
        self._note_timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to accept; see `Server.start`."""
        await super().start()
        self.loop.add_reader(self._lifeline, self._on_supervisor_gone)
        self._note()
        self._row.tell("serving")

    async def shutdown(self, grace: float | None = None) -> None:
        """Stop; see `Server.shutdown`."""
        self._row.tell("stopping")
        try:
            if not self._is_stopping and grace != 0:
                self._look_away()
                await self._finish_greetings()
            await super().shutdown(grace)
        finally:
            self.loop.remove_reader(self._lifeline)
            if self._note_timer is not None:
                self._note_timer.cancel()

    def stats(self) -> Stats:
        """Return what this worker does and has done, and what is known of all."""
        stats = super().stats()
        self._row.note(stats.connections, stats.calls)
        stats.workers = self._row.board.read(monotonic())
        return stats

    def forget(self, session: Session) -> None:
        """Take a closed session off the books."""
        super().forget(session)
        self._row.connections = self._connected_count()

    def _note(self) -> None:
        self.counts.running = self.admission.running_count
        self.counts.waiting = self.admission.waiting_count
        self._row.note(self.connection_count, self.counts)
        self._note_timer = self.loop.call_later(WORKER_NOTE_INTERVAL, self._note)

    def _connected_count(self) -> int:
        """Return the connections, with those over tcp: that are at their proof."""
        return self.connection_count + (self._door.guest_count if self._door is not None else 0)

    def _on_acceptable(self) -> None:
        if leaves_to_others(self._connected_count(), self._row.board.connections()):
            self.loop.remove_reader(self._bound.sock.fileno())
            self._rest_timer = self.loop.call_later(ACCEPT_YIELD, self._on_nobody_else)
        else:
            super()._on_acceptable()
            self._row.connections = self._connected_count()

    def _on_nobody_else(self) -> None:
        """Take what is still there: the others had their time."""
        self._accept_again()
        super()._on_acceptable()
        self._row.connections = self._connected_count()

    def _welcome(self, accepted: Accepted) -> None:
        super()._welcome(accepted)
        self._row.connections = self._connected_count()

    def _on_supervisor_gone(self) -> None:
        self.loop.remove_reader(self._lifeline)
        logger.error(
            "the supervisor of %s is gone: worker %d stops",
            self.service.name,
            os.getpid(),
            extra=event("supervisor_gone", service=self.service.name, address=self.address, worker_pid=os.getpid()),
        )
        # Nobody else answers those who wait in the backlog now.
        self._bound.is_inherited = isinstance(self._bound.address, InheritedAddress)
        self._ending = self.loop.create_task(self.shutdown())
