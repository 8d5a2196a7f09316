"""Batches of calls as a program fills them: calls are checked and kept, and nothing is sent before the block ends.

How they are then made is for batch_runs.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from hostline.clock import Deadline, monotonic
from hostline.errors import CallCancelledError, ClosedError, HostlineError, LocalProtocolError
from hostline.limits import MAX_CALLS_PER_CONNECTION
from hostline.rpc.batch_runs import NO_STREAMS, BatchCall, BatchEntry, BatchRun
from hostline.rpc.calling import LineSettings, check_returns
from hostline.rpc.stubs import interface_call

__all__ = ["CallQueue"]


class CallQueue:
    """Collect the calls of a batch; the faces' `Batch` sends them at the end of its block.

    Args:
        settings: Of the line.
        line: The line, to tell interfaces of other lines from its own.
        timeout: Seconds for all of it, from the end of the block; the line's own for each call when left out.
        max_in_flight: Calls that are open at a time.

    Raises:
        ValueError: The timeout is negative or not a number, or `max_in_flight` is out of range.
    """

    def __init__(self, settings: LineSettings, line: object, timeout: float | None, max_in_flight: int) -> None:
        Deadline.after(timeout)
        if not 1 <= max_in_flight <= MAX_CALLS_PER_CONNECTION:
            raise ValueError(f"max_in_flight of {max_in_flight} must be 1 to {MAX_CALLS_PER_CONNECTION}")
        self._settings = settings
        self._line = line
        self._timeout = timeout
        self._max_in_flight = max_in_flight
        self._entries: list[BatchEntry] = []
        self._calls: list[BatchCall[Any]] = []
        self._is_over = False
        self._pid = os.getpid()

    def call(
        self,
        method: str,
        /,
        *args: Any,
        returns: Any = Any,
        timeout: float | None = None,
        raises: Iterable[type[Exception]] = (),
        idempotent: bool = False,
        **keywords: Any,
    ) -> BatchCall[Any]:
        """Queue a call; nothing is sent before the block ends, nor are the arguments encoded.

        Args:
            method: The method's name.
            *args: Its arguments by position.
            returns: The type of the result. Plain values when left out.
            timeout: Seconds from the end of the block; never more than the batch's own.
            raises: Exception classes that arrive as themselves when the handler declares and raises them.
            idempotent: Whether repeating the call does no harm, beside what the service declares.
            **keywords: Its arguments by name; for one named like an option here, use `invoke`.

        Raises:
            LocalProtocolError: The block has ended.
            TypeError: Nothing can be decoded into `returns`.
            ValueError: The timeout is negative or not a number.
        """
        return self.invoke(
            method, args, keywords, returns=returns, timeout=timeout, raises=raises, idempotent=idempotent
        )

    def invoke(
        self,
        method: str,
        args: tuple[Any, ...] = (),
        keywords: dict[str, Any] | None = None,
        *,
        returns: Any = Any,
        timeout: float | None = None,
        raises: Iterable[type[Exception]] = (),
        idempotent: bool = False,
    ) -> BatchCall[Any]:
        """Queue a call with its arguments given as a tuple and a dict; otherwise as `call`."""
        if self._is_over:
            raise LocalProtocolError(f"{method}: the block of this batch has ended; begin another")
        check_returns(returns)
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout of {timeout} seconds must be zero or more, or None for the batch's own")
        call: BatchCall[Any] = BatchCall(method)
        self._entries.append(BatchEntry(call, args, keywords, returns, timeout, tuple(raises), idempotent))
        self._calls.append(call)
        return call

    def results(self) -> list[Any]:
        """Return the results of all calls in order, or raise the first exception among them.

        Raises:
            LocalProtocolError: The block has not ended yet.
        """
        return [call.result() for call in self._calls]

    def _submit(self, method: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> BatchCall[Any]:
        """Queue a call of an interface's method, checked like a call of the method itself."""
        line, timeout, found = interface_call(method, args, keywords)
        if line is not self._line:
            raise LocalProtocolError(f"{found.name}: the interface is on another line than the batch")
        if found.streams_result:
            raise LocalProtocolError(f"{found.name}: {NO_STREAMS}")
        return self.invoke(found.name, args, keywords, returns=found.returns, timeout=timeout, raises=found.raises)

    def _leave(self, error: BaseException | None, is_closed: Callable[[], bool]) -> BatchRun | None:
        """End the collecting; returns what is to be run, or None if nothing is to be sent."""
        entries, self._entries = self._entries, []
        self._is_over = True
        if error is not None:
            name = type(error).__name__
            self._settle_rest(CallCancelledError, f"not sent, for {name} left the block of the batch")
        elif self._pid != os.getpid():
            reason = f"the batch belongs to process {self._pid}, which this one was forked from"
            self._settle_rest(ClosedError, reason)
        elif entries:
            return BatchRun(entries, self._settings, self._timeout, self._max_in_flight, is_closed, monotonic())
        return None

    def _abandon(self, error: BaseException) -> None:
        """Give up what has no outcome yet, after a cancellation or a signal."""
        self._settle_rest(CallCancelledError, f"{type(error).__name__} ended the batch before an answer came")

    def _settle_rest(self, kind: type[HostlineError], reason: str) -> None:
        for call in self._calls:
            if not call.is_done:
                call.settle(None, kind(f"{call.method}: {reason}"))

    def __len__(self) -> int:
        return len(self._calls)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._calls)} calls: {'over' if self._is_over else 'open'}>"
