"""What a server takes on: the bounds that whoever starts it may choose."""

from __future__ import annotations

from dataclasses import dataclass

from hostline.limits import (
    DEFAULT_CONCURRENCY,
    DEFAULT_GRACE,
    DEFAULT_MAX_FRAME_SIZE,
    DEFAULT_QUEUE,
    DEFAULT_THREADS,
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_UID,
)

__all__ = ["ServerSettings"]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Bound what a server takes on.

    Attributes:
        concurrency: Handlers that run at once.
        queue: Calls that wait behind them; the next is answered `OverloadedError` at once.
        threads: Worker threads for `def` handlers.
        grace: Seconds that running calls get when the server stops.
        max_frame_size: Largest payload of one frame, in bytes.
        max_connections: Connections at once.
        max_connections_per_uid: Connections at once of one user.
        offer_takeover: Whether a successor may take the socket over.
    """

    concurrency: int = DEFAULT_CONCURRENCY
    queue: int = DEFAULT_QUEUE
    threads: int = DEFAULT_THREADS
    grace: float = DEFAULT_GRACE
    max_frame_size: int = DEFAULT_MAX_FRAME_SIZE
    max_connections: int = MAX_CONNECTIONS
    max_connections_per_uid: int = MAX_CONNECTIONS_PER_UID
    offer_takeover: bool = True
