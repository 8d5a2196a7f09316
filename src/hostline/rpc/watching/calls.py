"""What became of each call: told to observers when its answer is queued.

A server without observers and without a tracer keeps no record of any call: two looks at an attribute are the cost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from hostline.rpc.watching.fields import ACCESS_LOGGER, event
from hostline.rpc.watching.tracing import ServedSpan
from hostline.unix.credentials import Peer

__all__ = ["DISCONNECTED", "OK", "BegunCall", "FinishedCall", "Observer", "access_line"]

logger: Final = logging.getLogger("hostline")
access: Final = logging.getLogger(ACCESS_LOGGER)

# The outcome of a call that was answered with its result; of the others it is the error's code, and DISCONNECTED where
# nobody was there any more to be answered.
OK: Final = "ok"
DISCONNECTED: Final = "disconnected"


class FinishedCall(NamedTuple):
    """One call that has its answer.

    Attributes:
        service: The service's name.
        method: The method's name; empty if there is none with the number that came.
        call_id: The caller's number for it.
        peer: Who called.
        seconds: From the arrival of its frame until its answer was queued, the time that it waited included.
        outcome: `ok`, the code of the error it was answered with, or `disconnected`.
        bytes_in: Bytes of the CALL's payload; items of a stream are not counted.
        bytes_out: Bytes of the answer's payload, likewise.
    """

    service: str
    method: str
    call_id: int
    peer: Peer
    seconds: float
    outcome: str
    bytes_in: int
    bytes_out: int


Observer = Callable[[FinishedCall], object]


class BegunCall:
    """What is known of a call that is watched, until it has its answer."""

    __slots__ = ("bytes_in", "method", "span", "started")

    def __init__(self, method: str, started: float, bytes_in: int) -> None:
        self.method = method
        self.started = started
        self.bytes_in = bytes_in
        self.span: ServedSpan | None = None


def access_line(call: FinishedCall) -> None:
    """Log a finished call, on the logger `hostline.access`; an observer."""
    if not access.isEnabledFor(logging.INFO):
        return
    peer = call.peer
    who = f"uid {peer.uid} pid {peer.pid}" if peer.has_credentials else peer.describe()
    extra: dict[str, Any] = event(
        "call", peer, service=call.service, method=call.method, call_id=call.call_id, duration=call.seconds,
        outcome=call.outcome, bytes_in=call.bytes_in, bytes_out=call.bytes_out,
    )  # fmt: skip
    access.info(
        "%s.%s call %d for %s: %s in %.6f s, %d bytes in, %d out",
        call.service, call.method or "?", call.call_id, who, call.outcome, call.seconds, call.bytes_in, call.bytes_out,
        extra=extra,
    )  # fmt: skip
