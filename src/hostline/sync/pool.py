"""The pool of one line, shared by threads: lends connections in the order in which the threads came.

Which connection is lent and which is closed is decided below (protocol/pooling.py); this module holds the lock and the
waiting line. What comes back is handed to the first in that line. A plain condition variable would not do: a thread
that calls without a pause takes its own connection again before the one that was woken can, and was seen to keep
others waiting for as long as it ran.
"""

from __future__ import annotations

import threading
from collections import deque

from hostline.clock import monotonic
from hostline.errors import ClosedError
from hostline.protocol.pooling import Pool, PoolSettings
from hostline.sync.caller import Caller

__all__ = ["SharedPool"]


class _Turn:
    """One thread's place in the line."""

    __slots__ = ("_wake", "connection", "is_served")

    def __init__(self) -> None:
        self.connection: Caller | None = None
        self.is_served = False
        self._wake = threading.Lock()
        self._wake.acquire()

    def serve(self, connection: Caller | None) -> None:
        """Hand over a connection, or the right to open one."""
        self.connection = connection
        self.is_served = True
        self.wake()

    def wake(self) -> None:
        """End the wait."""
        self._wake.release()

    def wait(self, seconds: float) -> None:
        """Wait for that long at most."""
        self._wake.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))


class SharedPool:
    """Lend connections to threads.

    Args:
        settings: The bounds.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self._pool: Pool[Caller] = Pool(settings)
        self._open: set[Caller] = set()
        self._line: deque[_Turn] = deque()
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def size(self) -> int:
        """Connections that are open or being opened."""
        return self._pool.size

    @property
    def idle_count(self) -> int:
        """Connections that nobody uses."""
        return self._pool.idle_count

    @property
    def waiting_count(self) -> int:
        """Threads that wait for a connection."""
        return len(self._line)

    def acquire(self, seconds: float) -> Caller | None:
        """Take a connection, or the right to open one; to be followed by `release`, or by `add` or `discard`.

        Args:
            seconds: How long to wait.

        Returns:
            A connection, or None: there is room to open one.

        Raises:
            TimeoutError: All are busy.
            ClosedError: The pool was closed.
        """
        with self._lock:
            if self._is_closed:
                raise ClosedError("the line is closed")
            if not self._line:
                connection = self._pool.acquire()
                if connection is not None or self._pool.may_open():
                    return connection
            turn = _Turn()
            self._line.append(turn)
        try:
            turn.wait(seconds)
        except BaseException:  # Control-C, or another signal's exception
            if not self._leave(turn):
                self._give_back(turn.connection)
            raise
        if not self._leave(turn):
            return turn.connection
        if self._is_closed:
            raise ClosedError("the line was closed")
        raise TimeoutError

    def add(self, connection: Caller) -> Caller:
        """Take note of a connection that was opened by right of `acquire`.

        Raises:
            ClosedError: The pool was closed meanwhile; so is the connection.
        """
        with self._lock:
            if not self._is_closed:
                self._open.add(connection)
                return connection
            self._pool.discard()
        connection.close()
        raise ClosedError("the line was closed")

    def put(self, connection: Caller) -> None:
        """Put in a new connection that nobody asked for, as for the minimum at the start."""
        with self._lock:
            self._pool.may_open()
            self._open.add(connection)
            self._pool.release(connection, monotonic())

    def release(self, connection: Caller) -> None:
        """Give a connection back; one that is of no more use is closed."""
        with self._lock:
            if connection.is_usable and not self._is_closed:
                expired = self._pool.release(connection, monotonic())
            else:
                self._pool.discard()
                expired = [connection]
            if expired:
                self._open.difference_update(expired)
            if self._line:
                self._serve()
        for old in expired:
            old.close()

    def discard(self) -> None:
        """Give back the right to open a connection."""
        with self._lock:
            self._pool.discard()
            self._serve()

    def close(self) -> None:
        """Close the idle connections, interrupt the busy ones and send away whoever waits. Safe to repeat."""
        with self._lock:
            self._is_closed = True
            idle = self._pool.drain()
            self._open.difference_update(idle)
            busy = list(self._open)
            for turn in self._line:
                turn.wake()
            self._line.clear()
        for connection in idle:
            connection.close()
        for connection in busy:
            connection.interrupt()

    def forget_in_child(self) -> None:
        """In a forked child: what is connected is the parent's; close the copies. The pool is of no use afterwards."""
        for connection in self._open:
            connection.close()

    def _serve(self) -> None:
        """Hand what there is to the first in line; with the lock held."""
        while self._line:
            connection = self._pool.acquire()
            if connection is None and not self._pool.may_open():
                return
            self._line.popleft().serve(connection)

    def _leave(self, turn: _Turn) -> bool:
        """Leave the line; False if the turn was served before."""
        with self._lock:
            if not turn.is_served and not self._is_closed:
                self._line.remove(turn)
            return not turn.is_served

    def _give_back(self, connection: Caller | None) -> None:
        if connection is None:
            self.discard()
        else:
            self.release(connection)
