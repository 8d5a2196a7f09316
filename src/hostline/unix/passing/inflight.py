"""Descriptors that were sent on one connection and that its other side may not have taken yet.

The kernel counts descriptors on their way against the user who sent them, all connections together, and says nothing
of who takes how many. What it does say is how much of its memory the unread bytes of one socket take, and a message
with descriptors never shares its piece of that memory with an earlier one.
"""

from __future__ import annotations

import resource
import socket
from collections import deque

from hostline.limits import FDS_IN_FLIGHT_SHARE, MAX_FDS_IN_FLIGHT, MIN_FDS_IN_FLIGHT
from hostline.unix.options import unread_by_peer

__all__ = ["FdsInFlight", "most_in_flight"]

# The least that the kernel charges for one message: its own two structures take more than this by themselves.
_LEAST = 512


def most_in_flight() -> int:
    """Return how many descriptors may be on their way to one peer: a share of what the kernel allows this user."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(MIN_FDS_IN_FLIGHT, min(MAX_FDS_IN_FLIGHT, allowed // FDS_IN_FLIGHT_SHARE))


class FdsInFlight:
    """Count what one connection may have on its way.

    Args:
        sock: The connection; it stays the caller's.
    """

    __slots__ = ("_counts", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._counts: deque[int] = deque()  # of the messages that may not have been taken

    def has_room(self, count: int) -> bool:
        """Say whether so many more may be sent now; where nothing is on its way, any number may."""
        self._forget_taken()
        on_the_way = sum(self._counts)
        return not on_the_way or on_the_way + count <= most_in_flight()

    def count(self, count: int) -> None:
        """Note that a message with descriptors was sent."""
        self._counts.append(count)

    def _forget_taken(self) -> None:
        if not self._counts:
            return
        most = unread_by_peer(self._sock) // _LEAST  # 0 where nothing is known: then only the kernel's own bound holds
        while len(self._counts) > most:
            self._counts.popleft()
