"""Where a tracer hangs itself on: spans of calls that are made and of calls that are served.

`hooks.tracer` is None until one does (`hostline.bridges.otel.instrument`). It is the whole process's, like the tracers
themselves.
"""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from typing import Final, Protocol

from hostline.unix.credentials import Peer

__all__ = ["CallSpan", "ServedSpan", "Tracer", "hooks"]


class CallSpan(Protocol):
    """The span of a call that this process makes."""

    @property
    def carrier(self) -> Mapping[str, str] | None:
        """What travels with the call."""
        ...

    def end(self, error: BaseException | None = None) -> None:
        """End it, with what the call failed with; the first end counts."""
        ...


class ServedSpan(Protocol):
    """The span of a call that this process serves."""

    @property
    def context(self) -> contextvars.Context:
        """Where the handler runs: the span is the current one in it."""
        ...

    def note(self, error: BaseException) -> None:
        """Note what the handler raised."""
        ...

    def end(self, outcome: str) -> None:
        """End it, with `ok`, the code of the error that the call was answered with, or `disconnected`."""
        ...


class Tracer(Protocol):
    """What makes the spans. It must not raise: a call is not to fail because of its span."""

    def call(self, service: str, method: str) -> CallSpan:
        """Begin the span of a call that is made; its parent is the current one."""
        ...

    def serve(
        self, service: str, method: str, call_id: int, peer: Peer, carrier: Mapping[str, str] | None
    ) -> ServedSpan:
        """Begin the span of a call that is served; its parent is what travelled with the call."""
        ...


class _Hooks:
    __slots__ = ("tracer",)

    def __init__(self) -> None:
        self.tracer: Tracer | None = None


hooks: Final = _Hooks()
