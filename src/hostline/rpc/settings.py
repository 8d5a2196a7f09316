"""What a server takes on: the bounds that whoever starts it may choose."""

from __future__ import annotations

from dataclasses import dataclass

from hostline.limits import (
    DEFAULT_CONCURRENCY,
    DEFAULT_GRACE,
    DEFAULT_PING_TIMEOUT,
    DEFAULT_QUEUE,
    DEFAULT_THREADS,
    MAX_BUFFERED_PER_UID,
    MAX_CALLS_PER_UID,
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_UID,
    MAX_DESCRIPTORS_PER_UID,
    USUAL_MAX_FRAME_SIZE,
)
from hostline.protocol.connection import check_frame_size
from hostline.protocol.liveness import check_times

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
        max_connection_rate_per_uid: New connections of one user in a second. When left out 200 where the service admits
            several users, and without a bound where it admits its own and root alone; `math.inf` for no bound.
        max_calls_per_uid: Calls of one user that run or wait; the next is answered `OverloadedError`.
        max_buffered_per_uid: Bytes kept for one user; at this many its connections are not read on.
        max_descriptors_per_uid: Descriptors kept for one user.
        idle_timeout: Seconds after which a connection without calls is closed; None for never.
        ping_interval: Seconds between pings to each client, to find those that are stopped; None for no pings.
        ping_timeout: Seconds without any sign of life after a ping until a client is cut off.
        access_log: Whether each finished call is logged, on the logger `hostline.access`.

    Raises:
        ValueError: A value is out of range.
    """

    concurrency: int = DEFAULT_CONCURRENCY
    queue: int = DEFAULT_QUEUE
    threads: int = DEFAULT_THREADS
    grace: float = DEFAULT_GRACE
    max_frame_size: int = USUAL_MAX_FRAME_SIZE
    max_connections: int = MAX_CONNECTIONS
    max_connections_per_uid: int = MAX_CONNECTIONS_PER_UID
    offer_takeover: bool = True
    max_connection_rate_per_uid: float | None = None
    max_calls_per_uid: int = MAX_CALLS_PER_UID
    max_buffered_per_uid: int = MAX_BUFFERED_PER_UID
    max_descriptors_per_uid: int = MAX_DESCRIPTORS_PER_UID
    idle_timeout: float | None = None
    ping_interval: float | None = None
    ping_timeout: float = DEFAULT_PING_TIMEOUT
    access_log: bool = False

    def __post_init__(self) -> None:
        # Here, though each is checked where it is used too: a bad one must not be found in worker processes only.
        for name in ("concurrency", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of {getattr(self, name)} must be at least 1")
        if self.queue < 0:
            raise ValueError(f"queue of {self.queue} must be 0 or more")
        if not self.grace >= 0:
            raise ValueError(f"grace of {self.grace} seconds must be 0 or more")
        check_frame_size(self.max_frame_size)
        for name in ("max_connections", "max_connections_per_uid", "max_calls_per_uid"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of {getattr(self, name)} must be at least 1, or nobody is ever served")
        rate = self.max_connection_rate_per_uid
        if rate is not None and not rate > 0:
            raise ValueError(
                f"max_connection_rate_per_uid of {rate} a second must be above 0, or nobody ever connects; "
                "math.inf is no bound"
            )
        least = 2 * self.max_frame_size
        if self.max_buffered_per_uid < least:
            raise ValueError(
                f"max_buffered_per_uid of {self.max_buffered_per_uid} bytes must be at least {least}, two frames of "
                f"max_frame_size {self.max_frame_size}: raise the one or lower the other"
            )
        if self.max_descriptors_per_uid < 0:
            raise ValueError(f"max_descriptors_per_uid of {self.max_descriptors_per_uid} must be 0 or more")
        check_times(idle_timeout=self.idle_timeout, ping_interval=self.ping_interval, ping_timeout=self.ping_timeout)
