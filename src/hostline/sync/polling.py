"""Wait with poll, in any number of threads, and be woken when another thread closes.

A descriptor's number may be given to another file the moment it is closed, so that a thread which still waits on the
number would read from somebody else's. Therefore every thread signs in before it touches the socket; `close` wakes
those that are in, and the last to leave closes the descriptor.

A signal handler may raise between any two lines, so signing out must not be a function of ours: Python looks for
signals when one begins, and the call would stay signed in for ever. It is one call of a dict's method, which nothing
comes before. Locks are RLocks for the same reason: a lock that may have been taken, or not yet, can be released only if
it knows whose it is.
"""

from __future__ import annotations

import math
import os
import select
import socket
import threading
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from hostline.clock import Deadline, monotonic, poll_milliseconds
from hostline.errors import ClosedError, HostlineError, LocalProtocolError
from hostline.unix.address import SocketType
from hostline.unix.oserrors import printable, translate, translated

__all__ = ["READABLE", "WRITABLE", "Endpoint", "LockType", "Wakeup", "check_not_held", "is_held", "lock_timeout"]

if TYPE_CHECKING:
    LockType = threading.RLock
else:
    LockType = type(threading.RLock())

READABLE = select.POLLIN
WRITABLE = select.POLLOUT


# Seconds that `close` gives the threads it woke to leave, so that the socket file is gone when it returns.
_LEAVE_TIMEOUT = 1.0


class Wakeup:
    """Wake every thread that polls this descriptor, once and for all."""

    __slots__ = ("_fds",)

    def __init__(self) -> None:
        self._fds: list[int] = []  # the one to poll first, the one to write last
        with translated("make a wakeup", "", ""):
            # In one call of C: when a signal handler raises behind it, the numbers are where `__del__` finds them.
            if hasattr(os, "eventfd"):
                self._fds.extend(map(os.eventfd, (0,), (os.EFD_CLOEXEC | os.EFD_NONBLOCK,)))
            else:
                self._fds.extend(os.pipe())

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._fds[0] if self._fds else -1

    def set(self) -> None:
        """Make the descriptor readable for ever."""
        os.write(self._fds[-1], (1).to_bytes(8, "little"))

    def close(self) -> None:
        """Close the descriptors."""
        fds, self._fds = self._fds, []  # no signal comes between this and the close: none is closed twice
        for fd in fds:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def is_held(lock: LockType) -> bool:
    """Whether this thread holds a lock."""
    return bool(lock._is_owned())  # type: ignore[attr-defined]  # what threading.Condition asks as well


def check_not_held(lock: LockType, what: str) -> None:
    """Refuse to take a lock a second time, which only a signal handler can want: it would wait for itself.

    To be called before the `try` whose `finally` releases the lock, as else the refusal would release it.

    Args:
        lock: The lock.
        what: What its holder does, for the error's text: "sends".

    Raises:
        LocalProtocolError: This thread holds it.
    """
    if is_held(lock):
        raise LocalProtocolError(f"the code that this signal handler interrupted {what} here, and has not done so yet")


def lock_timeout(seconds: float | None) -> float:
    """Return what `acquire` takes for so many seconds; None is for ever."""
    return -1 if seconds is None else min(seconds, threading.TIMEOUT_MAX)


class Endpoint:
    """Hold one socket that several threads use and any of them may close.

    Attributes:
        type: `stream`, `seqpacket` or `datagram`.
        address: How the address is written; empty for a socket pair. Not escaped.
    """

    __slots__ = (
        "__weakref__",
        "_generation",
        "_is_closed",
        "_is_woken",
        "_released",
        "_releaser",
        "_sock",
        "_users",
        "_wakeup",
        "address",
        "type",
    )

    _forks: ClassVar[int] = 0
    _name: ClassVar[str] = "socket"

    def __init__(self, sock: socket.socket, socket_type: SocketType, address: str, wakeup: Wakeup | None) -> None:
        self.type: SocketType = socket_type
        self.address = address
        self._sock = sock
        self._wakeup = wakeup
        self._is_closed = False
        self._is_woken = False
        self._generation = Endpoint._forks
        # The calls that are in, and the thread of each. A dict: its methods are atomic and cost less than a lock.
        self._users: dict[object, int] = {}
        # Held until all is released. An Event takes a lock in Python, which a signal's exception may leave taken.
        self._released: threading.Lock | None = None
        if wakeup is not None:
            self._released = threading.Lock()
            self._released.acquire()
        # One entry, of whoever releases or has released: setdefault is atomic.
        self._releaser: dict[str, object] = {}

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
        """Close, and have every call that waits in another thread raise `ClosedError`; a second close does nothing."""
        if self._generation != Endpoint._forks:
            self._after_fork()
        is_first = not self._is_closed
        try:
            self._close()
        except BaseException:
            # A signal handler's exception: what it struck is done again. At the end of a block nobody else would.
            self._close()
            raise
        # A signal handler may close what its own thread waits for; then the waiting call releases it when it returns.
        if is_first and self._released is not None and threading.get_ident() not in list(self._users.values()):
            if self._released.acquire(timeout=_LEAVE_TIMEOUT):
                self._released.release()
            self._release_if_free()  # where a signal's exception kept the last that left from it

    def _close(self) -> None:
        """Mark it closed, wake whoever is in, and release it if nobody is; what was done already is left as it is."""
        # Sign in like everybody, so that nothing is released while others are being woken. The order matters: whoever
        # signs in after the flag is set sees it, whoever did before is seen and woken.
        place = object()
        try:
            self._users[place] = threading.get_ident()
            if not self._is_woken:
                self._is_closed = True
                if len(self._users) > 1:
                    self._wake()
                self._is_woken = True
        finally:
            self._users.pop(place, None)
            self._release_if_free()

    def _enter(self, place: object) -> None:
        """Sign in: the first thing in a `try` that ends with `finally: self._users.pop(place, None)`.

        After that line goes `if self._is_closed: self._release_if_free()`.

        Args:
            place: A new object, made before the `try`.

        Raises:
            ClosedError: It was closed.
        """
        if self._generation != Endpoint._forks:
            self._after_fork()
        self._users[place] = threading.get_ident()
        if self._is_closed:
            raise self._closed()

    def _release_if_free(self) -> None:
        """Release what is closed once nobody is in it, and once all who were in it have been woken."""
        if self._is_woken and not self._users:
            self._release_once()

    def _wake(self) -> None:
        """Wake the threads that are in; after `_is_closed` was set, and before anything is released."""
        if self._wakeup is not None:
            self._wakeup.set()

    def _release_once(self) -> None:
        """Release, unless another thread is at it: two that leave together may both find nobody in."""
        claim = object()
        try:
            if self._releaser.setdefault("claim", claim) is not claim:
                return
            self._release()
            if self._released is not None:
                try:
                    self._released.release()
                except RuntimeError:
                    pass  # it was, when this was interrupted
        except BaseException:
            if self._releaser.get("claim") is claim:
                self._releaser.clear()  # so that what is left can be released
            raise

    def _release(self) -> None:
        """Close what is owned; called again where it was interrupted."""
        self._sock.close()
        if self._wakeup is not None:
            self._wakeup.close()

    def _after_fork(self) -> None:
        with _fork_lock:
            if self._generation != Endpoint._forks:
                self._forget_parent()
                self._generation = Endpoint._forks

    def _forget_parent(self) -> None:
        """Forget the parent's threads, which are not here, and what would wake them instead of ours."""
        self._users = {}
        if self._wakeup is not None and not self._is_closed:
            stale, self._wakeup = self._wakeup, Wakeup()
            stale.close()

    def _wait(
        self,
        events: int,
        deadline: Deadline,
        operation: str,
        *,
        at_most: float = math.inf,
        address: str | None = None,
        fd: int = -1,
    ) -> None:
        """Wait until the socket is ready, until somebody closes, or until `at_most` seconds are over.

        Args:
            events: `READABLE`, `WRITABLE`, or 0 to wait for the close only.
            deadline: When to give up.
            operation: For the error's text.
            at_most: Seconds after which to return all the same.
            address: For the error's text, where it is not this socket's own.
            fd: What to wait for instead of this socket.

        Raises:
            SocketTimeoutError: The deadline passed first.
            ClosedError: Another thread closed.
        """
        poller = select.poll()
        if events:
            poller.register(self._sock if fd < 0 else fd, events)
        if self._wakeup is not None:
            poller.register(self._wakeup.fileno(), READABLE)
        left = deadline.remaining(monotonic())
        wait = min(left, at_most)
        ready = poller.poll(poll_milliseconds(wait))
        if self._is_closed:
            raise self._closed()
        if not ready and left <= at_most and deadline.has_passed():
            raise translate(TimeoutError(), operation, self.type, self.address if address is None else address)

    def _closed(self) -> HostlineError:
        where = f" to {printable(self.address)}" if self.address else ""
        return ClosedError(f"this {self._name}{where} was closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"fd {self._sock.fileno()}"
        return f"<{type(self).__name__} {self.type} {printable(self.address)!r} {state}>"


_fork_lock = threading.RLock()


def _count_fork() -> None:
    global _fork_lock
    _fork_lock = threading.RLock()  # one of the parent's threads may have held it
    Endpoint._forks += 1


os.register_at_fork(after_in_child=_count_fork)
