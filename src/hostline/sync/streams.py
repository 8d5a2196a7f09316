"""Calls with streams: iterate a result's items as they come, send an argument's items as the handler takes them.

All of it happens in the caller's own thread, while it asks for an item: there is no thread that reads ahead. The
credit is counted by protocol/flow.py, so that neither side keeps more than a window of items.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from hostline.errors import ClosedError
from hostline.protocol.connection import Answer
from hostline.rpc.calling import BrokenCallError, StreamCall, deadline_error, read_answer, read_item
from hostline.rpc.watching.tracing import CallSpan, hooks
from hostline.sync.caller import Caller
from hostline.sync.pool import Loan
from hostline.unix.passing.descriptors import close_all
from hostline.wire.frame import Frame, Kind

__all__ = ["Stream"]

T = TypeVar("T")

_ITEM: Final = int(Kind.ITEM)
_END: Final = int(Kind.END)
_CREDIT: Final = int(Kind.CREDIT)
_NONE_LEFT: Final = object()


class Stream(Generic[T]):
    """Iterate the items of a call's result; made by `Line.stream`.

    The call begins with the first item asked for. Leaving the block cancels the handler. A wait that ends by the
    call's deadline or its failure raises, like a call. It belongs to one thread at a time, and until it has ended it
    has a connection of the pool to itself.
    """

    def __init__(
        self,
        call: StreamCall,
        begin: Callable[[Loan, Mapping[str, str] | None], tuple[Caller, int, Any]],
        release: Callable[[Loan], None],
        abandon: Callable[[Loan], None],
        is_closed: Callable[[], bool],
        service: str = "",
    ) -> None:
        self._call = call
        self._begin = begin
        self._release = release
        self._abandon = abandon
        self._is_closed = is_closed
        self._service = service
        self._span: CallSpan | None = None  # its own; `call` has begun one for a call whose result is no stream
        self._loan = Loan()
        self._caller: Caller | None = None
        self._call_id = 0
        self._given: Any = None  # the argument that is a stream, and
        self._items: Iterator[Any] | None = None  # its items, until all of them are sent or none is wanted any more
        self._frames: deque[Frame] = deque()
        self._own_failure: TimeoutError | None = None  # of the argument's iterator
        self._pid = os.getpid()
        self._is_answered = False
        self._is_over = False

    # --- for whoever iterates ----------------------------------------------------------------------------

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._is_over:
            raise StopIteration
        try:
            frame = self._next_frame()
            if frame.kind == _ITEM:
                item: T = read_item(frame, self._call.returns)
                return item
            self._finish()
            if frame.kind != _END:
                read_answer(frame, None, self._call.raises)
        except BaseException as error:
            self._finish()
            self._end_span(error)
            raise
        self._end_span()
        raise StopIteration

    def answer(self) -> Frame:
        """Send the argument's items and return the frame that answers a call whose result is no stream."""
        try:
            return self._next_frame()
        finally:
            self._finish()

    def close(self) -> None:
        """End the call, if it has not ended; the handler is cancelled. Safe to repeat."""
        self._finish()
        self._end_span()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Called wherever the collector happens to run, perhaps while this very thread holds the pool's lock.
        self._end_span()
        if not self._is_over:
            if self._caller is not None and self._pid == os.getpid():
                self._caller.interrupt()  # so that the handler is told at once
            self._abandon(self._loan)

    # --- inside ------------------------------------------------------------------------------------------

    def _next_frame(self) -> Frame:
        """Return the next frame, sending items of the argument meanwhile."""
        call = self._call
        try:
            caller = self._caller
            if caller is None:
                span = call.span
                if span is None and hooks.tracer is not None:
                    self._span = span = hooks.tracer.call(self._service, call.method)
                context = None if span is None else span.carrier
                caller, self._call_id, items = self._begin(self._loan, context)
                self._caller = caller
                self._given = items
                self._items = None if items is None else iter(items)
            while not self._frames:
                self._advance(caller)
            frame = self._frames.popleft()
            if frame.kind == _ITEM:
                credit = caller.protocol.taken(self._call_id, frame.cost)
                if credit and not self._is_answered:
                    self._take(caller.send_and_read(credit, call.deadline))
            return frame
        except TimeoutError as error:
            self._finish()
            if type(error) is not TimeoutError or error is self._own_failure:
                raise  # the connect, or the argument's iterator, says itself what took too long
            raise deadline_error(call.method, call.seconds) from None
        except BrokenCallError as error:
            self._finish()
            if self._is_closed():
                raise ClosedError(f"{call.method}: the line was closed") from error
            raise error.as_unavailable(call.method) from error
        except BaseException:
            self._finish()
            raise

    def _advance(self, caller: Caller) -> None:
        """Send one item if one may be sent, and read what there is; otherwise wait for something to read."""
        try:
            if self._items is not None and caller.protocol.may_send(self._call_id):
                self._take(caller.send_and_read(self._next_item(caller), self._call.deadline))
            else:
                self._take(caller.read(self._call.deadline))
        except BrokenCallError:
            self._take(caller.read_rest())
            if not self._frames:
                raise

    def _next_item(self, caller: Caller) -> bytes | bytearray:
        """Return the frame of the argument's next item, or of its end."""
        try:
            item = next(self._items or iter(()), _NONE_LEFT)
        except TimeoutError as error:
            self._own_failure = error
            raise
        if item is not _NONE_LEFT:
            return caller.protocol.item(self._call_id, item)
        self._items = None
        return caller.protocol.end(self._call_id)

    def _take(self, answers: list[Answer]) -> None:
        for _, frame in answers:
            if frame.kind == _CREDIT:
                continue
            self._frames.append(frame)
            if frame.kind != _ITEM:
                self._is_answered = True
                self._items = None

    def _end_span(self, error: BaseException | None = None) -> None:
        if self._span is not None:
            self._span.end(error)

    def _finish(self) -> None:
        """Let go of everything; a call that has not ended is cancelled."""
        self._is_over = True
        try:
            self._let_go()
        except BaseException:  # a signal handler's exception may have come before the connection was given back
            self._let_go()
            raise

    def _let_go(self) -> None:
        for frame in self._frames:
            close_all(frame.fds)
        caller, self._caller = self._caller, None
        if caller is not None and not self._is_answered:
            caller.cancel(self._call_id)
        items, self._items = self._given, None
        self._given = None
        self._release(self._loan)
        if isinstance(items, Generator):
            items.close()
