"""Connect on an event loop, truthfully: wait out a full backlog without spinning, first come first served.

The kernel gives a non-blocking connect to a full backlog nothing to wait for, so that one task for each server tries
again and again and the others stand in line behind it; who may try when is decided in `protocol/connecting.py`.
"""

from __future__ import annotations

import asyncio
import socket
from weakref import WeakKeyDictionary

from hostline.clock import Deadline, monotonic
from hostline.protocol.connecting import ConnectLine
from hostline.unix.address import Address, SocketType
from hostline.unix.sockets import backlog_full, open_socket, try_connect

__all__ = ["connected_socket"]


class _Turn:
    """Wait for a time, or until the one in front has left the line."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """End the wait now."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Wait for that long at most."""
        loop = asyncio.get_running_loop()
        self._future = loop.create_future()
        timer = None if seconds == float("inf") else loop.call_later(seconds, self.wake)
        try:
            await self._future
        finally:
            self._future = None
            if timer is not None:
                timer.cancel()


_Lines = dict[Address, ConnectLine[_Turn]]
_lines: WeakKeyDictionary[asyncio.AbstractEventLoop, _Lines] = WeakKeyDictionary()


async def connected_socket(
    address: Address, socket_type: SocketType, deadline: Deadline, *, max_fds: int = 0
) -> socket.socket:
    """Return a connected socket, waiting in line for a place in a full backlog.

    Args:
        address: Where to.
        socket_type: `stream`, `seqpacket` or `datagram`.
        deadline: When to stop waiting.
        max_fds: Descriptors that one message may bring.

    Returns:
        The socket, non-blocking; it is the caller's.

    Raises:
        ConnectTimeoutError: The backlog was still full at the deadline.
        SocketError: As for `unix.sockets.try_connect`.
    """
    lines = _lines.setdefault(asyncio.get_running_loop(), {})
    sock = open_socket(socket_type, max_fds=max_fds)
    try:
        # Whoever comes while others wait goes behind them, although there might be room at this moment.
        if address in lines or not try_connect(sock, address, socket_type):
            await _stand_in_line(lines, sock, address, socket_type, deadline)
    except BaseException:
        sock.close()
        raise
    return sock


async def _stand_in_line(
    lines: _Lines, sock: socket.socket, address: Address, socket_type: SocketType, deadline: Deadline
) -> None:
    started = monotonic()
    line = lines.setdefault(address, ConnectLine())
    turn = _Turn()
    line.join(turn)
    has_connected = False
    try:
        while not has_connected:
            is_last_try = deadline.has_passed()
            if line.is_first(turn) or is_last_try:
                has_connected = try_connect(sock, address, socket_type)
                if is_last_try and not has_connected:
                    raise backlog_full(address, socket_type, monotonic() - started)
            if not has_connected:
                left = deadline.remaining()
                await turn.wait(min(line.next_pause(), left) if line.is_first(turn) else left)
    finally:
        following = line.leave(turn, has_connected=has_connected)
        if following is not None:
            following.wake()
        elif not line:
            lines.pop(address, None)
