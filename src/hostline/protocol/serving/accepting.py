"""Decide what an accept loop does when `accept` fails. Takes the errno and the time, does no I/O.

A process without a free descriptor cannot accept, and its listening socket stays readable: a loop that only tries
again spins and logs without end. This one rests, has a line for the log once a second, and goes on early when a
descriptor came back. The connections that wait meanwhile stay in the kernel's backlog; those that are open are not
touched.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import NamedTuple

from hostline import limits
from hostline.unix.oserrors import printable

__all__ = ["AcceptDecision", "Accepting", "leaves_to_others"]

# The process or the host lacks something that comes back by itself. accept(2) names these four.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# The listening socket itself is of no use any more, for instance because somebody who shares it shut it down.
_FATAL = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})

# One connection failed and the listening socket is fine. accept(2) wants these to be treated like EAGAIN.
_PASSING = frozenset({errno.EINTR, errno.ECONNABORTED, errno.EPROTO, errno.EAGAIN})


class AcceptDecision(NamedTuple):
    """Say what to do after a failed accept.

    Attributes:
        rest_until: Monotonic time before which accept is not tried, unless `Accepting.rest_until` moves forward; the
            present time means at once.
        log: A line to log as a warning, or None.
        is_fatal: The listening socket itself is unusable; raise what the kernel said.
    """

    rest_until: float
    log: str | None = None
    is_fatal: bool = False


class Accepting:
    """Hold what one listener's accept loop has to remember.

    Attributes:
        rest_until: Monotonic time before which accept is not tried; 0.0 when the loop is not resting.
    """

    __slots__ = ("_failures", "_next_log", "_rest", "address", "rest_until")

    def __init__(self, address: str, *, rest: float = limits.ACCEPT_REST) -> None:
        """Begin without a rest.

        Args:
            address: How the listener is written; the log shows it escaped.
            rest: Seconds of a rest, and the shortest time between two lines in the log.
        """
        self.address = address
        self.rest_until = 0.0
        self._rest = rest
        self._failures = 0
        self._next_log = 0.0

    @property
    def is_resting(self) -> bool:
        """Whether a rest was begun and not ended."""
        return self.rest_until > 0.0

    def failed(self, number: int | None, now: float) -> AcceptDecision:
        """Decide about a failed accept.

        Args:
            number: The errno.
            now: The present monotonic time.
        """
        if number in _PASSING:
            return AcceptDecision(now)
        if number is None or number in _FATAL:
            return AcceptDecision(now, is_fatal=True)
        # What is left is a shortage, or a refusal that we do not know, as of a security module: it may end too.
        self._failures += 1
        self.rest_until = now + self._rest
        return AcceptDecision(self.rest_until, self._log_line(number, now))

    def succeeded(self) -> None:
        """Note an accepted connection: the shortage is over."""
        self.rest_until = 0.0

    def descriptor_returned(self) -> bool:
        """Note that this process closed a descriptor.

        Returns:
            Whether the loop was resting and should try again now.
        """
        if not self.rest_until:
            return False
        self.rest_until = 0.0
        return True

    def _log_line(self, number: int | None, now: float) -> str | None:
        if now < self._next_log:
            return None
        self._next_log = now + self._rest
        failures, self._failures = self._failures, 0
        name = errno.errorcode.get(number or 0, str(number))
        times = f", {failures} times since the last such line" if failures > 1 else ""
        until = "until descriptors come back" if number in _EXHAUSTED else "meanwhile"
        return (
            f"accept on {printable(self.address)}: {os.strerror(number or 0).lower()} ({name}){times}; "
            f"new connections wait in the backlog {until}"
        )


def leaves_to_others(own: int, others: Iterable[int]) -> bool:
    """Say whether a process leaves a new connection to those that accept on the same socket, for a moment.

    Args:
        own: Connections that it has.
        others: Connections of each process that accepts; its own number may be among them.
    """
    return own > min(others, default=own)
