"""The pool of one line, shared by threads: lends connections in the order in which the threads came.

Which connection is lent and which is closed is decided below (protocol/pooling.py); this module holds the lock and the
waiting line. What comes back is handed to the first in that line. A plain condition variable would not do: a thread
that calls without a pause takes its own connection again before the one that was woken can, and was seen to keep
others waiting for as long as it ran.

A signal handler may raise anywhere. Who holds what is therefore written down in single assignments, `Caller.loan` and
the set of those who open one; a change that was interrupted is mended from these before the lock is let go.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

from hostline.clock import monotonic
from hostline.errors import ClosedError
from hostline.protocol.pooling import Pool, PoolSettings
from hostline.sync.caller import Caller

__all__ = ["Loan", "SharedPool"]

# Seconds between looks of a thread in the line whether a connection was abandoned, which wakes nobody.
_ABANDONED_CHECK: Final = 0.25


class Loan:
    """What one call has of the pool: nothing yet, a place in the line, the right to open a connection, or one.

    Made before anything is taken, so that whatever was taken is found here.

    Attributes:
        connection: The connection, once there is one.
    """

    __slots__ = ("connection", "wake")

    def __init__(self) -> None:
        self.connection: Caller | None = None
        self.wake: threading.Lock | None = None  # of a thread in the line; released to end its wait


class SharedPool:
    """Lend connections to threads.

    Args:
        settings: The bounds.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self._pool: Pool[Caller] = Pool(settings)
        self._open: set[Caller] = set()
        self._opening: set[Loan] = set()
        self._line: deque[Loan] = deque()
        self._abandoned: deque[Loan] = deque()
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

    def acquire(self, loan: Loan, seconds: float) -> Caller | None:
        """Take a connection, or the right to open one; `release` follows, also when this raises.

        Args:
            loan: A new one, which then holds what was taken.
            seconds: How long to wait.

        Returns:
            A connection, or None: there is room to open one, for `add`.

        Raises:
            TimeoutError: All are busy.
            ClosedError: The pool was closed.
        """
        expired: list[Caller] = []
        if self._abandoned:
            self._take_abandoned()
        with self._lock:
            try:
                if self._is_closed:
                    raise ClosedError("the line is closed")
                if not self._line:
                    connection, expired = self._pool.acquire(monotonic())
                    if connection is not None:
                        loan.connection = connection
                        connection.loan = loan
                    elif self._pool.may_open():
                        self._opening.add(loan)
                    else:
                        self._join(loan)
                    if expired:
                        self._open.difference_update(expired)
                else:
                    self._join(loan)
            except BaseException:  # Control-C, or another signal's exception
                self._mend()
                raise
        for old in expired:
            old.close()
        if loan.wake is not None:
            self._wait(loan, loan.wake, seconds)
        return loan.connection

    def open(self, loan: Loan) -> None:
        """Take the right to open a connection that no call asked for, as for the minimum at the start.

        Raises:
            ClosedError: The pool was closed.
        """
        with self._lock:
            if self._is_closed:
                raise ClosedError("the line is closed")
            self._pool.may_open()
            self._opening.add(loan)

    def add(self, loan: Loan, connection: Caller) -> None:
        """Take note of a connection that is opened by right of `acquire`, so that `close` reaches it.

        Raises:
            ClosedError: The pool was closed meanwhile; so is the connection.
        """
        with self._lock:
            if not self._is_closed:
                loan.connection = connection
                connection.loan = loan
                self._open.add(connection)
                self._opening.discard(loan)
                return
        connection.close()
        raise ClosedError("the line was closed")

    def drop(self, loan: Loan) -> None:
        """Close a connection that was not greeted; the right to open one stays."""
        connection = loan.connection
        if connection is None:
            return
        with self._lock:
            self._opening.add(loan)
            self._open.discard(connection)
            connection.loan = None
        connection.close()
        loan.connection = None

    def release(self, loan: Loan) -> None:
        """Give back whatever the loan holds; a connection that is of no more use is closed. Safe to repeat."""
        with self._lock:
            try:
                expired = self._take_back(loan)
            except BaseException:
                self._mend()
                raise
        for old in expired:
            old.close()
        loan.connection = loan.wake = None

    def close(self) -> None:
        """Close the idle connections, interrupt the busy ones and send away whoever waits. Safe to repeat."""
        self._take_abandoned()
        with self._lock:
            self._is_closed = True
            idle = self._pool.drain()
            self._open.difference_update(idle)
            busy = list(self._open)
            for loan in self._line:
                _wake(loan)
            self._line.clear()
        for connection in idle:
            connection.close()
        for connection in busy:
            connection.interrupt()

    def forget_in_child(self) -> None:
        """In a forked child: what is connected is the parent's; close the copies. The pool is of no use afterwards."""
        for connection in self._open:
            connection.close()

    def abandon(self, loan: Loan) -> None:
        """Leave a loan to whoever comes next: takes no lock, for the garbage collector calls this at any place."""
        self._abandoned.append(loan)
        if self._is_closed and loan.connection is not None:
            loan.connection.close()  # nobody comes next

    def _take_abandoned(self) -> None:
        while True:
            try:
                loan = self._abandoned.popleft()
            except IndexError:
                return
            self.release(loan)

    def _join(self, loan: Loan) -> None:
        wake = threading.Lock()
        wake.acquire()
        loan.wake = wake
        self._line.append(loan)

    def _wait(self, loan: Loan, wake: threading.Lock, seconds: float) -> None:
        ends = monotonic() + seconds
        while not wake.acquire(timeout=max(0.0, min(ends - monotonic(), _ABANDONED_CHECK))) and monotonic() < ends:
            self._take_abandoned()
        with self._lock:
            if loan.connection is not None or loan in self._opening:
                return
            if self._is_closed:
                raise ClosedError("the line was closed")
            self._leave(loan)  # so that nothing is handed to it any more
        raise TimeoutError

    def _take_back(self, loan: Loan) -> list[Caller]:
        """Take what the loan holds, and return what is to be closed; with the lock held."""
        expired: list[Caller] = []
        connection = loan.connection
        if loan.wake is not None:
            self._leave(loan)
        if connection is not None and connection.loan is loan:
            connection.loan = None
            if connection.is_usable and not self._is_closed:
                expired = self._pool.release(connection, monotonic())
            else:
                self._pool.discard()
                expired = [connection]
            if expired:
                self._open.difference_update(expired)
            if self._opening:
                self._opening.discard(loan)
        else:
            if loan in self._opening:
                self._pool.discard()
                self._opening.discard(loan)
            if connection is not None and connection not in self._open:
                expired = [connection]  # taken back before, and interrupted on the way to its close
        if self._line:
            self._serve()
        return expired

    def _serve(self) -> None:
        """Hand what there is to the first in line; with the lock held."""
        while self._line:
            # One that has aged is handed on all the same when somebody stands in line for it.
            connection, _ = self._pool.acquire(0.0)
            first = self._line[0]
            if connection is not None:
                first.connection = connection
                connection.loan = first
            elif self._pool.may_open():
                self._opening.add(first)
            else:
                return
            _wake(first)
            self._line.popleft()

    def _leave(self, loan: Loan) -> None:
        if loan in self._line:
            self._line.remove(loan)

    def _mend(self) -> None:
        """Set the counts right from who holds what, after an exception in the middle of a change; with the lock held.

        What nobody holds is idle, or closed if it is of no more use. Whoever was served leaves the line.
        """
        for connection in [each for each in self._open if each.loan is None]:
            if self._is_closed or not connection.is_usable:
                self._open.discard(connection)
                connection.close()
        self._opening.difference_update([each.loan for each in self._open])
        idle = [each for each in self._open if each.loan is None]
        self._pool.restore(idle, len(self._open) - len(idle) + len(self._opening), monotonic())
        for loan in list(self._line):
            if loan.connection is not None or loan in self._opening:
                _wake(loan)
                self._line.remove(loan)
        self._serve()


def _wake(loan: Loan) -> None:
    if loan.wake is not None and loan.wake.locked():
        loan.wake.release()
