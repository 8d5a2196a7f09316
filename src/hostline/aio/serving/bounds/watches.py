"""The slow watches over one connection: a peer that leaves its answers unread, one that is silent, one that is idle."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hostline.clock import monotonic
from hostline.limits import LOW_WATER
from hostline.protocol.connection import ServerConnection
from hostline.protocol.liveness import Idleness, Liveness, Look
from hostline.protocol.outgoing import Outgoing
from hostline.wire.codec import GoawayCode

if TYPE_CHECKING:
    from hostline.aio.serving.session import Session
    from hostline.rpc.settings import ServerSettings

__all__ = ["QuietWatch", "ReaderWatch"]


class ReaderWatch:
    """Cut a peer off that leaves answers unread for too long; one that reads on, however much there is, stays.

    Args:
        session: The connection.
        outgoing: What waits to be sent on it.
        seconds: Time in which it must have read at least `LOW_WATER` bytes, or what there was.
    """

    __slots__ = ("_due", "_mark", "_outgoing", "_seconds", "_session", "_timer")

    def __init__(self, session: Session, outgoing: Outgoing, seconds: float) -> None:
        self._session = session
        self._outgoing = outgoing
        self._seconds = seconds
        self._begin()

    def _begin(self) -> None:
        self._mark = self._outgoing.sent_total
        self._due = min(LOW_WATER, self._outgoing.size)
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)

    def _look(self) -> None:
        if not self._session.is_held:
            self._session.forget_reader_watch()
        elif self._outgoing.sent_total - self._mark >= self._due:
            self._begin()
        else:
            self._session.time_out(f"answers were left unread for {self._seconds} seconds")

    def cancel(self) -> None:
        """Watch no longer."""
        self._timer.cancel()


class QuietWatch:
    """Ping a silent peer, and say goodbye to an idle one, where the settings want it.

    Args:
        session: The connection.
        protocol: Its state machine.
        settings: The server's.
    """

    __slots__ = ("_idleness", "_liveness", "_protocol", "_session", "_timer")

    def __init__(self, session: Session, protocol: ServerConnection, settings: ServerSettings) -> None:
        now = monotonic()
        self._session = session
        self._protocol = protocol
        self._liveness: Liveness | None = None
        self._idleness: Idleness | None = None
        if settings.ping_interval is not None:
            self._liveness = Liveness(settings.ping_interval, settings.ping_timeout, now, protocol.decoder.mark)
        if settings.idle_timeout is not None:
            self._idleness = Idleness(settings.idle_timeout, now, protocol.last_call_id)
        self._wait(now)

    def _wait(self, now: float) -> None:
        times = [watch.next_at for watch in (self._liveness, self._idleness) if watch is not None]
        self._timer = asyncio.get_running_loop().call_later(max(0.0, min(times) - now), self._look)

    def _look(self) -> None:
        session, now = self._session, monotonic()
        if self._liveness is not None:
            if not session.is_heard or not self._protocol.answers_pings:
                self._liveness.restart(now, self._protocol.decoder.mark)  # its silence means nothing
            else:
                found = self._liveness.look(now, self._protocol.decoder.mark)
                if found is Look.GIVE_UP:
                    session.read_on()  # this loop may have been stuck itself, and what came meanwhile is not read yet
                    found = self._liveness.look(now, self._protocol.decoder.mark)
                if session.is_closed:
                    return
                if found is Look.GIVE_UP:
                    session.time_out(self._liveness.describe("client"))
                    return
                if found is Look.PING:
                    self._protocol.ping()
                    session.flush_soon()
        if self._idleness is not None and self._idleness.is_over(now, self._protocol.last_call_id, session.is_busy()):
            session.drain(GoawayCode.TIMEOUT, self._idleness.describe())
            return
        self._wait(now)

    def cancel(self) -> None:
        """Watch no longer."""
        self._timer.cancel()
