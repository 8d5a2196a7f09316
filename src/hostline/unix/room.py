"""What to wait for when a datagram was refused because there was no room for it. Never waits itself.

An unconnected socket polls as writable while the receiver's queue is full, as the kernel knows of no receiver. For a
connected one poll(2) looks at that queue. So a second socket is connected to the receiver and polled instead: it is
made when a datagram was refused, and sends nothing.

Tried out on Linux 6.18. It becomes writable when the receiver takes a datagram and when it closes its socket. Nothing
wakes whoever waits for a receiver that shuts down reading, that connects to somebody else, or in whose place another
socket was bound while it lives on: therefore the datagram is tried again after `DATAGRAM_LOOK_AGAIN` all the same. A
receiver that is connected refuses the second socket (`EPERM`), and takes what its peer sends without a look at its
queue; then only the sender's own buffer can be full.
"""

from __future__ import annotations

import os
import random
import select
import socket
import sys
import weakref

from hostline.limits import CONNECT_RETRY_FIRST, CONNECT_RETRY_LONGEST, DATAGRAM_LOOK_AGAIN
from hostline.unix.options import unread_by_peer

__all__ = ["Room"]


class Room:
    """Find out what to wait for until one receiver may have room again; `close` follows on every path.

    Args:
        sock: The datagram socket that sends; it stays the caller's.
        to: Where to, as the kernel takes it.
    """

    __slots__ = ("__weakref__", "_pause", "_sock", "_to", "_was_there", "_watcher")

    def __init__(self, sock: socket.socket, to: bytes) -> None:
        self._sock = sock
        self._to = to
        self._watcher: socket.socket | None = None
        self._was_there = False
        self._pause = CONNECT_RETRY_FIRST
        _rooms.add(self)

    def look(self, left: float) -> tuple[int, float]:
        """Say what to wait for, when a datagram has been refused just now.

        Args:
            left: Seconds until the caller gives up.

        Returns:
            (descriptor, seconds): what becomes writable, or -1 where there is nothing to poll, and for how long to wait
            at most before the next try. No seconds: try again at once.
        """
        if left > 0 and sys.platform == "linux":
            if _is_buffer_full(self._sock):
                return self._sock.fileno(), DATAGRAM_LOOK_AGAIN
            watcher = self._connected()
            if watcher >= 0:
                if not _is_writable(watcher):
                    self._was_there = False
                    return watcher, DATAGRAM_LOOK_AGAIN
                if not self._was_there:  # something was taken since the datagram was refused
                    self._was_there = True
                    return -1, 0.0
        pause, self._pause = self._pause, min(self._pause * 2, CONNECT_RETRY_LONGEST)
        return -1, pause * (0.5 + random.random() / 2)

    def took(self) -> None:
        """Take note that the receiver took something."""
        self._was_there = False
        self._pause = CONNECT_RETRY_FIRST

    def close(self) -> None:
        """Close the second socket, if there is one; safe to repeat."""
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    def _connected(self) -> int:
        """Connect the second socket to whoever receives there now; -1 where that cannot be done."""
        try:
            watcher = self._watcher
            if watcher is None:
                watcher = self._watcher = self._open()
            watcher.connect(self._to)
        except OSError:
            # No free descriptor, or a receiver that has gone or takes nothing from others: the next try tells which.
            self.close()
            return -1
        return watcher.fileno()

    def _open(self) -> socket.socket:
        return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def _is_buffer_full(sock: socket.socket) -> bool:
    """Say whether the sender's own buffer is what is full: of that its socket tells by itself."""
    return unread_by_peer(sock) >= sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def _is_writable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return bool(poller.poll(0))


_rooms: weakref.WeakSet[Room] = weakref.WeakSet()


def _forget_in_child() -> None:
    # The threads that wait are the parent's, and nobody here would close what they had opened.
    for room in list(_rooms):
        room.close()


os.register_at_fork(after_in_child=_forget_in_child)
