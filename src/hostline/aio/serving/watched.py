"""What is watched of one connection's calls: their spans, and what observers are told when they have ended."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING

from hostline.clock import monotonic
from hostline.rpc.watching.calls import DISCONNECTED, BegunCall, FinishedCall
from hostline.rpc.watching.tracing import hooks
from hostline.unix.credentials import Peer
from hostline.wire.frame import Frame

if TYPE_CHECKING:
    from hostline.aio.serving.server import Server

__all__ = ["WatchedCalls"]


class WatchedCalls:
    """Keep what is to be told of calls that have begun.

    Args:
        server: Whose observers are told.
        peer: Who calls.

    Attributes:
        begun: The calls that are watched, by id; empty unless somebody watches.
    """

    __slots__ = ("_peer", "_server", "begun")

    def __init__(self, server: Server, peer: Peer) -> None:
        self.begun: dict[int, BegunCall] = {}
        self._server = server
        self._peer = peer

    def begin(self, frame: Frame, method: str, carrier: dict[str, str] | None) -> None:
        """Begin to watch a call: somebody wants to know what becomes of it."""
        begun = BegunCall(method, monotonic(), len(frame.payload))
        if hooks.tracer is not None:
            begun.span = hooks.tracer.serve(self._server.service.name, method, frame.call_id, self._peer, carrier)
        self.begun[frame.call_id] = begun

    def context_of(self, call_id: int) -> contextvars.Context | None:
        """Return where the handler of a call is to run: its span is the current one there."""
        begun = self.begun.get(call_id)
        return None if begun is None or begun.span is None else begun.span.context

    def note(self, call_id: int, error: BaseException) -> None:
        """Note what a handler raised."""
        begun = self.begun.get(call_id)
        if begun is not None and begun.span is not None:
            begun.span.note(error)

    def end(self, call_id: int, outcome: str, bytes_out: int) -> None:
        """Tell those who watch what became of a call, once."""
        begun = self.begun.pop(call_id, None)
        if begun is None:
            return
        if begun.span is not None:
            begun.span.end(outcome)
        if self._server.observers:
            seconds = monotonic() - begun.started
            name = self._server.service.name
            self._server.tell(
                FinishedCall(
                    name, begun.method, call_id, self._peer, seconds, outcome, begun.bytes_in, max(bytes_out, 0)
                )
            )

    def end_all(self) -> None:
        """Tell that the connection is gone."""
        for call_id in list(self.begun):
            self.end(call_id, DISCONNECTED, 0)
