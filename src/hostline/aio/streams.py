"""Calls with streams: iterate a result's items as they come, send an argument's items as the handler takes them.

The credit that both need is counted by protocol/flow.py, so that neither side keeps more than a window of items.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from hostline.aio.caller import Caller
from hostline.errors import CallCancelledError, ClosedError
from hostline.limits import ITEMS_PER_TURN
from hostline.rpc.calling import BrokenCallError, ExpiredError, StreamCall, deadline_error, read_answer, read_item
from hostline.rpc.watching.tracing import CallSpan, hooks
from hostline.unix.passing.descriptors import close_all
from hostline.wire.frame import Frame, Kind

__all__ = ["Stream"]

T = TypeVar("T")

_ITEM: Final = int(Kind.ITEM)
_END: Final = int(Kind.END)
_CREDIT: Final = int(Kind.CREDIT)


class _Ticket:
    """What the connection gives to a call with streams: its frames, its credit, and how it ended.

    Beside the `Stream`, which the connection must not keep alive: one that nobody holds any more is cancelled.
    """

    def __init__(self) -> None:
        self.frames: deque[Frame] = deque()
        self.failure: BaseException | None = None
        self.is_over = False
        self._frame_came: asyncio.Future[None] | None = None
        self._credit_came: asyncio.Future[None] | None = None

    def done(self) -> bool:
        """Whether nothing that comes is of interest any more."""
        return self.is_over or self.failure is not None

    def set_result(self, frame: Frame) -> None:
        """Take a frame that has come for the call."""
        if frame.kind != _CREDIT:
            self.frames.append(frame)
            _wake(self._frame_came)
        _wake(self._credit_came)  # also when the answer has come: no item is wanted any more

    def set_exception(self, error: BaseException) -> None:
        """Take the end of the connection, of the time, or of the argument's iterator."""
        self.failure = error
        _wake(self._frame_came)
        _wake(self._credit_came)

    async def wait_for_frame(self) -> None:
        """Wait until a frame has come or the call has failed."""
        if self._frame_came is not None and not self._frame_came.done():
            raise RuntimeError("one stream is iterated by one task at a time")
        self._frame_came = asyncio.get_running_loop().create_future()
        await self._frame_came

    async def wait_for_credit(self) -> None:
        """Wait until there is credit, or anything else has come."""
        self._credit_came = asyncio.get_running_loop().create_future()
        await self._credit_came


class Stream(Generic[T]):
    """Iterate the items of a call's result; made by `Line.stream`.

    The call begins with the first item asked for. Leaving the block, or cancelling the task that waits for an item,
    cancels the handler. A wait that ends by the call's deadline or its failure raises, like a call.
    """

    def __init__(
        self,
        call: StreamCall,
        begin: Callable[[_Ticket, Mapping[str, str] | None], Awaitable[tuple[Caller, int, Any]]],
        is_closed: Callable[[], bool],
        service: str = "",
    ) -> None:
        self._call = call
        self._begin = begin
        self._is_closed = is_closed
        self._service = service
        self._span: CallSpan | None = None  # its own; `call` has begun one for a call whose result is no stream
        self._ticket = _Ticket()
        self._loop: asyncio.AbstractEventLoop | None = None  # once the call has begun
        self._caller: Caller | None = None
        self._call_id = 0
        self._timer: asyncio.TimerHandle | None = None
        self._sender: asyncio.Task[None] | None = None

    # --- for whoever iterates ----------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._ticket.is_over:
            raise StopAsyncIteration
        try:
            frame = await self._next_frame()
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
        raise StopAsyncIteration

    async def answer(self) -> Frame:
        """Send the argument's items and return the frame that answers a call whose result is no stream."""
        try:
            return await self._next_frame()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """End the call, if it has not ended; the handler is cancelled. Safe to repeat."""
        self._finish()
        self._end_span()
        if self._sender is not None:
            await asyncio.wait((self._sender,))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # Called wherever the collector happens to run: in another thread, or in the middle of a write on this very
        # connection. So the loop does it, when it gets to it.
        self._end_span()
        if self._loop is not None and not self._ticket.is_over:
            try:
                self._loop.call_soon_threadsafe(
                    _let_go, self._ticket, self._caller, self._call_id, self._timer, self._sender
                )
            except RuntimeError:
                pass  # the loop is closed, and the connection with it

    # --- inside ------------------------------------------------------------------------------------------

    async def _next_frame(self) -> Frame:
        """Return the next frame, in order; also one that came before the connection ended."""
        call, ticket = self._call, self._ticket
        try:
            if self._caller is None:
                await self._open()
            while not ticket.frames:
                if ticket.failure is not None:
                    raise ticket.failure
                await ticket.wait_for_frame()
        except ExpiredError:
            self._finish()
            raise deadline_error(call.method, call.seconds) from None
        except BrokenCallError as error:
            self._finish()
            if self._is_closed():
                raise ClosedError(f"{call.method}: the line was closed") from error
            raise error.as_unavailable(call.method) from error
        except BaseException:
            self._finish()
            raise
        frame = ticket.frames.popleft()
        if frame.kind == _ITEM and self._caller is not None:
            self._caller.item_taken(self._call_id, frame.cost)
        return frame

    async def _open(self) -> None:
        if self._loop is not None:
            raise RuntimeError(f"{self._call.method}: one stream is iterated by one task at a time")
        self._loop = loop = asyncio.get_running_loop()
        deadline = self._call.deadline
        span = self._call.span
        if span is None and hooks.tracer is not None:
            self._span = span = hooks.tracer.call(self._service, self._call.method)
        context = None if span is None else span.carrier
        self._caller, self._call_id, items = await self._begin(self._ticket, context)
        if not deadline.is_never:
            self._timer = loop.call_at(loop.time() + deadline.remaining(), _expire, self._ticket)
        if items is not None:
            self._sender = loop.create_task(_send_items(self._ticket, self._caller, self._call_id, items))

    def _end_span(self, error: BaseException | None = None) -> None:
        if self._span is not None:
            self._span.end(error)

    def _finish(self) -> None:
        """Let go of everything; a call that has not ended is cancelled."""
        _let_go(self._ticket, self._caller, self._call_id, self._timer, self._sender)


def _let_go(
    ticket: _Ticket,
    caller: Caller | None,
    call_id: int,
    timer: asyncio.TimerHandle | None,
    sender: asyncio.Task[None] | None,
) -> None:
    ticket.is_over = True
    for frame in ticket.frames:
        close_all(frame.fds)
    if timer is not None:
        timer.cancel()
    if sender is not None:
        sender.cancel()
    if caller is not None:
        caller.drop(call_id)


async def _send_items(ticket: _Ticket, caller: Caller, call_id: int, items: AsyncIterable[Any] | Iterable[Any]) -> None:
    """Send an argument's items as the handler takes them, until they end or the call does."""
    count = 0
    try:
        if isinstance(items, AsyncIterable):
            async for item in items:
                if not await _send_item(ticket, caller, call_id, item):
                    return
                count += 1
                if count % ITEMS_PER_TURN == 0:
                    await asyncio.sleep(0)
        else:
            for item in items:
                if not await _send_item(ticket, caller, call_id, item):
                    return
                await asyncio.sleep(0)  # it may take its time, and nothing else ran meanwhile
        caller.end_items(call_id)
    except asyncio.CancelledError:
        if not ticket.is_over:  # not by us: the caller's own iterator was cancelled
            ticket.set_exception(CallCancelledError("the iterator of the argument was cancelled"))
        raise
    except Exception as error:  # of the caller's own iterator, or an item that cannot be sent
        ticket.set_exception(error)
    finally:
        if isinstance(items, AsyncGenerator):
            await items.aclose()
        elif isinstance(items, Generator):
            items.close()


async def _send_item(ticket: _Ticket, caller: Caller, call_id: int, item: Any) -> bool:
    """Send one item as soon as the handler takes it; False if the call is over."""
    while not caller.protocol.may_send(call_id):
        if ticket.done() or call_id not in caller.protocol.in_flight:
            return False
        await ticket.wait_for_credit()
    await caller.room()
    if not caller.protocol.may_send(call_id):
        return False
    caller.send_item(call_id, item)
    return True


def _expire(ticket: _Ticket) -> None:
    ticket.set_exception(ExpiredError())


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
