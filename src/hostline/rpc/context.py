"""What a handler may know of the call it serves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from hostline.clock import NEVER, Deadline
from hostline.errors import CallCancelledError, CallError, DeadlineExceededError, UnavailableError
from hostline.unix.credentials import Peer

__all__ = ["Context", "StoppedError", "Stopping", "current_context", "enter_context"]


# Held while a context's event is made.
_making: Final = threading.Lock()


class Stopping:
    """Tell those who listen, once, that the server is stopping; from any thread."""

    def __init__(self) -> None:
        self.has_begun = False
        self._listeners: set[Callable[..., object]] = set()

    def listen(self, listener: Callable[..., object]) -> None:
        """Have `listener` called when the server stops; at once if it does already."""
        self._listeners.add(listener)
        if self.has_begun:
            listener()

    def forget(self, listener: Callable[..., object]) -> None:
        """Call it no more."""
        self._listeners.discard(listener)

    def begin(self) -> None:
        """Call everyone; called by the server."""
        self.has_begun = True
        for listener in self._listeners.copy():
            listener()


class StoppedError(UnavailableError):
    """Say, inside the library, that a handler ended because the server stops; callers see `UnavailableError`."""


class Context:
    """Tell a handler who calls, how much time is left, and whether the answer is still wanted.

    A handler asks for it by annotating a parameter with `Context`; the caller does not send it. An `async def`
    handler is cancelled when the call ends early; a `def` handler, which cannot be, looks here.

    Attributes:
        peer: The caller's credentials as the kernel gave them when it connected.
        method: The method's name.
        call_id: The caller's number for this call, unique on its connection.
        deadline: When the caller stops waiting, on the monotonic clock of this process.
    """

    __slots__ = ("_ended", "_fail", "_listeners", "_reason", "_stopping", "call_id", "deadline", "method", "peer")

    def __init__(
        self, peer: Peer, method: str, call_id: int, deadline: Deadline = NEVER, stopping: Stopping | None = None
    ) -> None:
        self.peer = peer
        self.method = method
        self.call_id = call_id
        self.deadline = deadline
        self._ended: threading.Event | None = None  # made by whoever waits for it first
        self._reason: CallError | None = None
        self._stopping = stopping
        self._fail: Callable[[CallError], object] | None = None
        self._listeners: tuple[Callable[..., object], ...] = ()

    @property
    def time_left(self) -> float:
        """Seconds until the caller stops waiting; `math.inf` without a deadline."""
        return self.deadline.remaining()

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody wants the answer any more: cancelled, past its deadline, or the caller is gone."""
        return self._reason is not None or self.deadline.has_passed()

    def wait_cancelled(self, timeout: float) -> bool:
        """Sleep for up to `timeout` seconds, less if the call ends before; returns `is_cancelled`.

        The way for a `def` handler to pause: it wakes as soon as the work has become pointless.
        """
        ended = self._ended
        if ended is None:
            with _making:  # a handler's threads may all wait here: for the same event
                ended = self._ended
                if ended is None:
                    ended = self._ended = threading.Event()
        if self._reason is None:  # looked at after the event is there for `end`, which looks for it after the reason is
            ended.wait(max(0.0, min(timeout, self.time_left, threading.TIMEOUT_MAX)))
        return self.is_cancelled

    def raise_if_cancelled(self) -> None:
        """Leave the handler if nobody wants the answer any more.

        Raises:
            DeadlineExceededError: The deadline passed.
            CallCancelledError: The caller cancelled, or is gone.
        """
        if self._reason is not None:
            raise self._reason
        if self.deadline.has_passed():
            raise DeadlineExceededError(f"deadline of {self.method} passed")

    def end(self, reason: CallError | None = None) -> None:
        """Tell the handler that the answer is not wanted any more; called by the server."""
        self._reason = reason or CallCancelledError(f"{self.method} was cancelled")
        if self._ended is not None:
            self._ended.set()
        for listener in self._listeners:
            listener(self._reason)

    @property
    def is_server_stopping(self) -> bool:
        """Whether the server finishes what runs and takes nothing new: a handler without an end should come to one."""
        return self._stopping is not None and self._stopping.has_begun

    def fail_with(self, fail: Callable[[CallError], object]) -> None:
        """Take what fails the call while its handler runs; called by the server."""
        self._fail = fail

    def fail(self, error: CallError) -> None:
        """Answer the call with an error now, and end its handler; from any thread."""
        if self._fail is not None:
            self._fail(error)

    def listen(self, listener: Callable[..., object]) -> None:
        """Have `listener` called when the call ends early, with the reason, or when the server stops, with nothing."""
        self._listeners += (listener,)
        if self._stopping is not None:
            self._stopping.listen(listener)
        if self._reason is not None:
            listener(self._reason)

    def forget(self, listener: Callable[..., object]) -> None:
        """Call it no more."""
        self._listeners = tuple(each for each in self._listeners if each != listener)
        if self._stopping is not None:
            self._stopping.forget(listener)

    def __repr__(self) -> str:
        left = "" if self.deadline.is_never else f" time_left={self.time_left:.3f}"
        return f"<Context {self.method} call_id={self.call_id}{left} peer={self.peer!r}>"


_current: Final[ContextVar[Context | None]] = ContextVar("hostline_call", default=None)


def current_context() -> Context | None:
    """Return the context of the call that this handler serves, where the server set it; None elsewhere."""
    return _current.get()


def enter_context(context: Context | None) -> None:
    """Note which call this task, or this worker thread, serves from now on; called by the server."""
    _current.set(context)
