"""The streams of one call at the server.

Items of its result go out as fast as its caller takes them; items of an argument wait until the handler takes them. A
handler runs on the loop or in a worker thread; each of the two classes here serves both, so that its waiting is
done under a lock. The credit is counted by protocol/flow.py.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hostline.errors import CallError, InvalidArgumentError, InvalidResultError
from hostline.limits import ITEMS_PER_TURN, LOW_WATER
from hostline.protocol.flow import Allowance, item_cost
from hostline.protocol.outgoing import close_attached
from hostline.rpc.attachments import UnclaimedError, read_attached
from hostline.unix.passing.descriptors import close_all
from hostline.wire.codec import decode_result, encode_item
from hostline.wire.frame import Frame
from hostline.wire.schema import Parameter

if TYPE_CHECKING:
    from hostline.aio.serving.running import RunningCall

__all__ = ["Inlet", "Outlet", "TaskInlet", "WorkerInlet"]


class _Gate:
    """Let one handler wait, on the loop or in a thread, until something changed or the call has ended."""

    def __init__(self, call: RunningCall, loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.loop = loop
        self.changed = threading.Condition()
        self.reason: CallError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def end(self, reason: CallError | None) -> None:
        """Let nobody wait any more: the call is over."""
        with self.changed:
            self.reason = reason or CallError(f"{self.call.method.name} is over")
        self.wake()

    def let_go(self) -> None:
        """Hold nothing of the handler any more: where the reason was raised leads to all that it held."""
        if self.reason is not None:
            self.reason.__traceback__ = None

    def wake(self) -> None:
        """Wake whoever waits; on the loop."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        with self.changed:
            self.changed.notify_all()

    def call_soon(self, function: Callable[..., None], *args: Any) -> None:
        """Have the loop call a function, from a worker thread."""
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            pass  # the loop is closed: the grace time is over and nobody waits

    async def wait(self) -> None:
        """Wait on the loop for the next change.

        Raises:
            RuntimeError: Another task waits already.
        """
        if self._waiter is not None:
            raise RuntimeError(f"{self.call.method.name}: one stream is iterated by one task at a time")
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class Outlet(_Gate):
    """Send the items of a result."""

    def __init__(self, call: RunningCall, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(call, loop)
        self.allowance = Allowance()
        self._is_held = False
        self._count = 0
        self._handed_over = 0  # bytes of a worker's items that the loop has not taken yet

    def grant(self, amount: int) -> None:
        """Take credit from the caller.

        Raises:
            RemoteProtocolError: It is more than anybody may grant.
        """
        with self.changed:
            self.allowance.grant(amount)
        self.wake()

    def hold(self, is_held: bool) -> None:
        """Send nothing while the caller leaves what it has unread, whatever credit it grants."""
        self._is_held = is_held
        if not is_held:
            self.wake()

    async def send(self, item: Any) -> None:
        """Send one item, once there is credit; on the loop."""
        frame = self._encode(item)
        try:
            while not self._may_send() and self.reason is None:
                await self.wait()
        except BaseException:
            close_attached(frame)
            raise
        if self.reason is not None:
            close_attached(frame)
            raise self.reason
        self._pay(frame)
        self.call.calls.push_item(self.call, frame)
        self._count += 1
        if self._count % ITEMS_PER_TURN == 0:
            await asyncio.sleep(0)

    def send_from_thread(self, item: Any) -> None:
        """Send one item, once there is credit; in a worker thread.

        Raises:
            CallError: The call is over.
        """
        frame = self._encode(item)
        with self.changed:
            while not self._may_send() and self.reason is None:
                self.changed.wait()
            if self.reason is not None:
                close_attached(frame)
                raise self.reason
            self._pay(frame)
            self._handed_over += len(frame)
        self.call_soon(self._push, frame)

    def _push(self, frame: bytearray) -> None:
        """Queue what a worker thread handed over; on the loop."""
        self.call.calls.push_item(self.call, frame)
        with self.changed:
            was_full = self._handed_over >= LOW_WATER
            self._handed_over -= len(frame)
        if was_full and self._handed_over < LOW_WATER:
            self.wake()

    def _may_send(self) -> bool:
        # Whatever credit there is, a thread is held back before it runs far ahead of the loop.
        return self.allowance.may_send and not self._is_held and self._handed_over < LOW_WATER

    def _pay(self, frame: bytearray) -> None:
        self.allowance.take(item_cost(frame))

    def _encode(self, item: Any) -> bytearray:
        calls, method = self.call.calls, self.call.method
        item, attach = calls.attachments(method, item)
        return encode_item(self.call.call_id, item, calls.max_reply_size, InvalidResultError, attach)


class Inlet(_Gate):
    """Keep the items of an argument until the handler takes them; see the two classes below.

    Attributes:
        annotation: The type of the items.
        failure: What was raised to the handler for an item of the wrong type, or None.
    """

    def __init__(self, call: RunningCall, loop: asyncio.AbstractEventLoop, parameter: Parameter) -> None:
        super().__init__(call, loop)
        self.failure: InvalidArgumentError | None = None
        self.annotation = parameter.annotation
        self._name = parameter.name
        self._frames: deque[Frame] = deque()
        self._count = 0
        self._is_complete = False

    def deliver(self, frame: Frame) -> None:
        """Take an item that has arrived."""
        with self.changed:
            self._frames.append(frame)
        self.wake()

    def end(self, reason: CallError | None) -> None:
        """Let nobody wait any more, and close the descriptors of items that nobody takes."""
        super().end(reason)
        with self.changed:
            frames = list(self._frames)
            self._frames.clear()
        for frame in frames:
            close_all(frame.fds)
            self.call.calls.release_fds(frame.fd_count)

    def let_go(self) -> None:
        """Also of the failure that was raised to it, which leads back here."""
        super().let_go()
        self.failure = None

    def complete(self) -> None:
        """Note that the caller has sent all."""
        with self.changed:
            self._is_complete = True
        self.wake()

    def _decode(self, frame: Frame) -> Any:
        self._count += 1
        annotation = self.annotation
        try:
            if not frame.fds:
                return decode_result(frame.payload, annotation)
            return read_attached(frame.fds, annotation, lambda: decode_result(frame.payload, annotation))
        except (InvalidResultError, UnclaimedError) as error:
            text = str(error).removeprefix("result ")
            self.failure = InvalidArgumentError(f"argument `{self._name}`: item {self._count} {text}")
            raise self.failure from error


class TaskInlet(Inlet):
    """Iterate an argument's items with `async for`."""

    def __aiter__(self) -> TaskInlet:
        return self

    async def __anext__(self) -> Any:
        while self.reason is None and not self._frames:
            if self._is_complete:
                raise StopAsyncIteration
            await self.wait()
        if self.reason is not None:
            raise self.reason
        frame = self._frames.popleft()
        self.call.calls.item_taken(self.call, frame.cost, frame.fd_count)
        return self._decode(frame)


class WorkerInlet(Inlet):
    """Iterate an argument's items with `for`, in a worker thread."""

    def __iter__(self) -> WorkerInlet:
        return self

    def __next__(self) -> Any:
        with self.changed:
            while self.reason is None and not self._frames:
                if self._is_complete:
                    raise StopIteration
                self.changed.wait()
            if self.reason is not None:
                raise self.reason
            frame = self._frames.popleft()
        self.call_soon(self.call.calls.item_taken, self.call, frame.cost, frame.fd_count)
        return self._decode(frame)
