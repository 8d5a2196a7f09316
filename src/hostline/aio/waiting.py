"""Wait for a socket on the running event loop. The asyncio face's one place to wait; on asyncio's loop and on uvloop.

A call first tries, and waits only if it must: a cancelled wait has taken nothing from the kernel, so that nothing is
lost. Handlers are removed before a descriptor is closed, because its number may be given to another file at once.
"""

from __future__ import annotations

import asyncio
import math
import socket
from asyncio import selector_events
from types import TracebackType
from typing import ClassVar, Self

from hostline.clock import Deadline
from hostline.errors import ClosedError, HostlineError, LocalProtocolError
from hostline.unix.address import SocketType
from hostline.unix.oserrors import printable, translate

__all__ = ["Endpoint", "must_look_again"]


def must_look_again(loop: asyncio.AbstractEventLoop) -> bool:
    """Say whether a lasting reader that has read something must try once more by itself, until nothing is left.

    Not where the loop calls again for as long as there is something to read, as asyncio's own does. libuv stops
    watching a descriptor for good when poll(2) reports POLLERR, which a Unix socket does when its peer closes with
    data unread: whoever reads the last bytes then and waits for the end would wait for ever.

    Args:
        loop: The event loop.
    """
    return not isinstance(loop, selector_events.BaseSelectorEventLoop)


class Endpoint:
    """Hold one socket that tasks of one event loop use and any of them may close.

    Attributes:
        type: `stream`, `seqpacket` or `datagram`.
        address: How the address is written; empty for a socket pair. Not escaped.
    """

    __slots__ = ("__weakref__", "_is_closed", "_reader", "_sock", "_writer", "address", "type")

    _name: ClassVar[str] = "socket"

    def __init__(self, sock: socket.socket, socket_type: SocketType, address: str) -> None:
        self.type: SocketType = socket_type
        self.address = address
        self._sock = sock
        self._is_closed = False
        self._reader: asyncio.Future[bool] | None = None
        self._writer: asyncio.Future[bool] | None = None

    @property
    def socket(self) -> socket.socket:
        """The socket itself, lent: it stays this object's, which goes on owning and closing it."""
        return self._sock

    def fileno(self) -> int:
        """Return the descriptor's number; it stays this object's own.

        Raises:
            ClosedError: It was closed.
        """
        number = self._sock.fileno()
        if number < 0:
            raise self._closed()
        return number

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    def close(self) -> None:
        """Close, and have every call that waits in another task raise `ClosedError`; a second close does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        fd = self._sock.fileno()
        for waiter, is_writer in ((self._reader, False), (self._writer, True)):
            if waiter is None:
                continue
            loop = waiter.get_loop()
            if fd >= 0 and not loop.is_closed():
                (loop.remove_writer if is_writer else loop.remove_reader)(fd)
            # A result, not an exception, which nobody would see if the waiting task were cancelled at the same time.
            _wake(waiter)
        self._release()

    def _release(self) -> None:
        """Close what is owned."""
        self._sock.close()

    def _check_readable(self) -> None:
        """Refuse to receive beside another task, or on a closed socket.

        Raises:
            ClosedError: This side was closed.
            LocalProtocolError: Another task waits to receive.
        """
        if self._is_closed:
            raise self._closed()
        if self._reader is not None:
            raise LocalProtocolError(f"another task is receiving on this {self._name}; only one may at a time")

    def _check_writable(self) -> None:
        """Refuse to send beside another task, or on a closed socket.

        Raises:
            ClosedError: This side was closed.
            LocalProtocolError: Another task waits to send.
        """
        if self._is_closed:
            raise self._closed()
        if self._writer is not None:
            raise LocalProtocolError(f"another task is sending on this {self._name}; only one may at a time")

    async def _wait_readable(self, deadline: Deadline, operation: str) -> None:
        """Wait until the socket can be read, or until this side is closed.

        Raises:
            SocketTimeoutError: The deadline passed first.
            ClosedError: Another task closed.
        """
        loop = asyncio.get_running_loop()
        waiter = self._reader = loop.create_future()
        fd = self._sock.fileno()
        loop.add_reader(fd, _wake, waiter)
        try:
            await self._wait(loop, waiter, deadline, operation, math.inf)
        finally:
            if not self._is_closed:
                loop.remove_reader(fd)
            self._reader = None

    async def _wait_writable(
        self,
        deadline: Deadline,
        operation: str,
        *,
        at_most: float = math.inf,
        address: str | None = None,
        fd: int | None = None,
    ) -> None:
        """Wait until the socket can be written, or until this side is closed.

        Args:
            deadline: When to give up.
            operation: For the error's text.
            at_most: Seconds after which this returns all the same.
            address: For the error's text, where it is not this socket's own.
            fd: What to wait for instead of this socket; -1 for nothing but the time and the close.

        Raises:
            SocketTimeoutError: The deadline passed first.
            ClosedError: Another task closed.
        """
        loop = asyncio.get_running_loop()
        own = self._sock.fileno()
        watched = own if fd is None else fd
        waiter = self._writer = loop.create_future()
        try:
            if watched >= 0:
                loop.add_writer(watched, _wake, waiter)
            await self._wait(loop, waiter, deadline, operation, at_most, address)
        finally:
            # After a close the number of our own may be somebody else's, and it was seen to there.
            if watched >= 0 and not (watched == own and self._is_closed) and not loop.is_closed():
                loop.remove_writer(watched)
            self._writer = None

    async def _wait(
        self,
        loop: asyncio.AbstractEventLoop,
        waiter: asyncio.Future[bool],
        deadline: Deadline,
        operation: str,
        at_most: float,
        address: str | None = None,
    ) -> None:
        """Wait for the waiter, for the deadline, or for `at_most` seconds, after which this returns all the same."""
        left = deadline.remaining()
        wait = min(left, at_most)
        timer = None if wait == math.inf else loop.call_later(wait, _time_over, waiter)
        try:
            is_ready = await waiter
        finally:
            if timer is not None:
                timer.cancel()
        if self._is_closed:
            raise self._closed()
        if not is_ready and left <= at_most:
            raise translate(TimeoutError(), operation, self.type, self.address if address is None else address)

    def _closed(self) -> HostlineError:
        where = f" to {printable(self.address)}" if self.address else ""
        return ClosedError(f"this {self._name}{where} was closed")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"fd {self._sock.fileno()}"
        return f"<{type(self).__name__} {self.type} {printable(self.address)!r} {state}>"


def _wake(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(True)


def _time_over(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)
