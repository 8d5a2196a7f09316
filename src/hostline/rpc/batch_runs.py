"""The run of a batch: what is sent next, what each answer means to whom, and which calls are made again.

Both faces stand on this; what differs between them is only how they wait. A window of calls is open at a time, never
more than a server takes from one connection, so that whatever the number of calls, neither side holds more than that.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from hostline.clock import NEVER, Deadline
from hostline.errors import ClosedError, HostlineError, LocalProtocolError, UnavailableError
from hostline.limits import HIGH_WATER
from hostline.protocol.connection import ClientConnection
from hostline.rpc.calling import BrokenCallError, LineSettings, Repeats, deadline_error, read_answer
from hostline.rpc.watching.tracing import CallSpan, hooks
from hostline.wire.frame import Frame

__all__ = ["NO_STREAMS", "BatchCall", "BatchEntry", "BatchRun"]

T = TypeVar("T")

NO_STREAMS: Final = "a batch takes calls with one result and no stream among the arguments: use `stream`, or `call`"

_OPEN: Final = "no result before the block of the batch has ended"


class BatchCall(Generic[T]):
    """One call of a batch: its result or its exception, once the block of the batch has ended.

    Attributes:
        method: The method's name.
    """

    __slots__ = ("_error", "_is_done", "_result", "method")

    def __init__(self, method: str) -> None:
        self.method = method
        self._is_done = False
        self._result: Any = None
        self._error: Exception | None = None

    @property
    def is_done(self) -> bool:
        """Whether there is a result or an exception."""
        return self._is_done

    def result(self) -> T:
        """Return the call's result, or raise what the call alone would have raised.

        Raises:
            CallError: The call failed; see its subclasses.
            SocketError: The server could not be reached.
            LocalProtocolError: The block of the batch has not ended yet.
        """
        error = self.exception()
        if error is not None:
            raise error.with_traceback(None)  # one error may be that of many calls: it must not collect their frames
        result: T = self._result
        return result

    def exception(self) -> Exception | None:
        """Return what the call failed with, or None.

        Raises:
            LocalProtocolError: The block of the batch has not ended yet.
        """
        if not self._is_done:
            raise LocalProtocolError(f"{self.method}: {_OPEN}")
        return self._error

    def settle(self, result: Any, error: Exception | None = None) -> None:
        """Take the outcome; called by the batch, and the first one stands."""
        if not self._is_done:
            self._result, self._error = result, error
            self._is_done = True

    def __repr__(self) -> str:
        state = "waits" if not self._is_done else "failed" if self._error is not None else "answered"
        return f"<BatchCall {self.method}: {state}>"


class BatchEntry:
    """What a batch knows of one call until it is answered; the ticket that comes back with the answer.

    Attributes:
        call: What the program holds.
        call_id: Its number on the connection it was sent on last.
        start: Where its frame begins in what is sent on that connection, in bytes; kept by the blocking face.
    """

    __slots__ = (
        "args",
        "call",
        "call_id",
        "ends_at",
        "is_idempotent",
        "keywords",
        "raises",
        "repeats",
        "returns",
        "run",
        "seconds",
        "span",
        "start",
        "timeout",
    )

    def __init__(
        self,
        call: BatchCall[Any],
        args: tuple[Any, ...],
        keywords: dict[str, Any] | None,
        returns: Any,
        timeout: float | None,
        raises: tuple[type[Exception], ...],
        is_idempotent: bool,
    ) -> None:
        self.call = call
        self.args = args
        self.keywords = keywords
        self.returns = returns
        self.timeout = timeout
        self.raises = raises
        self.is_idempotent = is_idempotent
        self.repeats: Repeats | None = None
        self.run: BatchRun | None = None
        self.span: CallSpan | None = None
        self.seconds = math.inf
        self.ends_at = math.inf
        self.call_id = 0
        self.start = 0

    def settle(self, result: Any, error: Exception | None = None) -> None:
        """Give the call its outcome, and let go of its arguments."""
        self.call.settle(result, error)
        if self.span is not None:
            self.span.end(error)
        self.args, self.keywords = (), None

    def done(self) -> bool:
        """Whether nothing that comes is of interest any more."""
        return self.call.is_done

    def set_result(self, frame: Frame) -> None:
        """Take the answer."""
        if self.run is not None:
            self.run.answered(self, frame)

    def set_exception(self, error: Exception) -> None:
        """Take the end of the connection."""
        if self.run is not None:
            self.run.failed(self, error)


class BatchRun:
    """Run the calls of a batch on one connection after another, until each has its outcome.

    Args:
        entries: The calls, in order.
        settings: Of the line.
        timeout: Seconds for all of it; None for the line's own.
        max_in_flight: Calls that are open at a time.
        is_closed: Whether the line was closed.
        now: The present monotonic time.

    Attributes:
        seconds: The longest timeout among the calls, in seconds, for messages.
        deadline: The last of their deadlines.
        on_change: Called when an answer has come or a call has ended otherwise.
    """

    def __init__(
        self,
        entries: list[BatchEntry],
        settings: LineSettings,
        timeout: float | None,
        max_in_flight: int,
        is_closed: Callable[[], bool],
        now: float,
    ) -> None:
        self.name = f"batch of {len(entries)} calls"
        self.on_change: Callable[[], object] | None = None
        self._pending = deque(entries)
        self._open: dict[int, BatchEntry] = {}
        self._again: list[BatchEntry] = []  # ruled out or never sent: made on the next connection
        self._ended: list[int] = []
        self._max_in_flight = max_in_flight
        self._is_closed = is_closed
        self._protocol: ClientConnection | None = None
        for entry in entries:
            entry.run = self
            seconds = settings.timeout if timeout is None else timeout
            if entry.timeout is not None:
                seconds = entry.timeout if timeout is None else min(seconds, entry.timeout)
            entry.seconds, entry.ends_at = seconds, now + seconds
        last = max(entries, key=lambda entry: entry.ends_at)
        self.seconds, self.deadline = last.seconds, Deadline(last.ends_at)
        self._expiring = [(entry.ends_at, number, entry) for number, entry in enumerate(entries)]
        heapq.heapify(self._expiring)

    @property
    def is_done(self) -> bool:
        """Whether every call has its outcome."""
        return not self._pending and not self._open and not self._again

    @property
    def open_ids(self) -> list[int]:
        """The calls under way on this connection, by id."""
        return list(self._open)

    def begin(self, protocol: ClientConnection) -> None:
        """Go to a connection; what the last one left undone comes first."""
        self._protocol = protocol
        self._pending.extendleft(reversed(self._again))
        self._again.clear()
        self._ended.clear()

    def is_over(self) -> bool:
        """Whether nothing more is to be waited for on this connection."""
        return not self._open and not (self._pending and self._protocol is not None and self._protocol.is_usable)

    def take(self, queued_size: int, now: float) -> list[tuple[BatchEntry, bytearray]]:
        """Return the calls to send next, in order, each with its frame.

        A call that cannot be encoded fails alone. When the window is full, it is filled again once half of it is free,
        so that calls leave many at a time.

        Args:
            queued_size: Bytes that wait to be sent on the connection.
            now: The present monotonic time.
        """
        protocol = self._protocol
        if protocol is None or not protocol.is_usable or len(self._open) > self._max_in_flight // 2:
            return []
        # The other calls of an asyncio line count too. With nothing of ours open one is sent whatever they do, or
        # nobody would wake us.
        room = max(self._max_in_flight - len(protocol.in_flight), 0 if self._open else 1)
        taken: list[tuple[BatchEntry, bytearray]] = []
        while self._pending and len(taken) < room and queued_size <= HIGH_WATER:
            entry = self._pending.popleft()
            if entry.call.is_done:
                continue
            method = entry.call.method
            try:
                if protocol.is_streaming(method):
                    raise LocalProtocolError(f"{method}: {NO_STREAMS}")
                left = None if entry.ends_at == math.inf else max(0.0, entry.ends_at - now)
                if hooks.tracer is not None and entry.span is None:
                    entry.span = hooks.tracer.call(protocol.hello.service if protocol.hello else "", method)
                context = None if entry.span is None else entry.span.carrier
                entry.call_id, frame = protocol.call(method, entry.args, entry.keywords, left, entry, False, context)
            except Exception as error:  # of one call; also what a type's own code raises while it is encoded
                entry.settle(None, error)
                continue
            self._open[entry.call_id] = entry
            queued_size += len(frame)
            taken.append((entry, frame))
        return taken

    def answered(self, entry: BatchEntry, frame: Frame) -> None:
        """Take the answer to a call."""
        self._end(entry)
        try:
            entry.settle(read_answer(frame, entry.returns, entry.raises))
        except Exception as error:  # what the call failed with, or what its result cannot be decoded for
            entry.settle(None, error)

    def failed(self, entry: BatchEntry, error: Exception) -> None:
        """Take the end of the connection for one call: it is made again if a call by itself would be."""
        self._end(entry)
        method = entry.call.method
        if not isinstance(error, BrokenCallError) or self._protocol is None:
            entry.settle(None, error)
        elif self._is_closed():
            closed = ClosedError(f"{method}: the line was closed")
            closed.__cause__ = error
            entry.settle(None, closed)
        else:
            entry.repeats = entry.repeats or Repeats(method, entry.is_idempotent)
            try:
                entry.repeats.broke(error, self._protocol)
            except UnavailableError as unavailable:
                entry.settle(None, unavailable)
            else:
                self._again.append(entry)

    def broke(self, error: Exception, sent_total: int) -> None:
        """Take the end of the connection for all calls that are open on it.

        Args:
            error: How it ended.
            sent_total: Bytes that left on it, for `BatchEntry.start`.
        """
        for entry in list(self._open.values()):
            self.failed(entry, self._as_of(entry, error, entry.start < sent_total))

    def retire(self) -> None:
        """After a farewell: take the calls back that it rules out."""
        protocol = self._protocol
        if protocol is not None and protocol.farewell is not None:
            error = BrokenCallError("the server is leaving", was_sent=True)
            for entry in [each for each in self._open.values() if protocol.was_not_run(each.call_id)]:
                protocol.forget(entry.call_id)
                self.failed(entry, self._as_of(entry, error, True))

    def _as_of(self, entry: BatchEntry, error: Exception, was_sent: bool) -> Exception:
        if not isinstance(error, BrokenCallError) or self._protocol is None:
            return error
        is_ruled_out = self._protocol.was_not_run(entry.call_id)
        return BrokenCallError(error.reason, was_sent=was_sent, is_ruled_out=is_ruled_out)

    def expire(self, now: float) -> list[int]:
        """End the calls whose deadline has passed; returns the ids of those to be cancelled at the server."""
        cancelled: list[int] = []
        expiring = self._expiring
        while expiring and (expiring[0][0] <= now or expiring[0][2].call.is_done):
            entry = heapq.heappop(expiring)[2]
            if entry.call.is_done:
                continue
            if self._open.get(entry.call_id) is entry:
                del self._open[entry.call_id]
                cancelled.append(entry.call_id)
            entry.settle(None, deadline_error(entry.call.method, entry.seconds))
        while self._pending and self._pending[0].call.is_done:
            self._pending.popleft()
        if self._again:
            self._again = [entry for entry in self._again if not entry.call.is_done]
        return cancelled

    @property
    def next_deadline(self) -> Deadline:
        """When a call expires next, as of the last look by `expire`."""
        return Deadline(self._expiring[0][0]) if self._expiring else NEVER

    def take_ended(self) -> list[int]:
        """Return the ids of the calls that have ended since the last look."""
        ended, self._ended = self._ended, []
        return ended

    def fail_all(self, error: HostlineError) -> None:
        """Take what keeps every call that is left from being made: no connection, mostly."""
        for entry in (*self._open.values(), *self._again, *self._pending):
            entry.settle(None, error)
        self._open.clear()
        self._again.clear()
        self._pending.clear()

    def _end(self, entry: BatchEntry) -> None:
        if self._open.get(entry.call_id) is entry:
            del self._open[entry.call_id]
            self._ended.append(entry.call_id)
        if self.on_change is not None:
            self.on_change()
