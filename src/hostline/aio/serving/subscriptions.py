"""One subscriber of a topic, and how a handler waits for its items: on the loop or in a worker thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import msgspec

from hostline.errors import SlowSubscriberError
from hostline.limits import ITEMS_PER_TURN
from hostline.protocol.subscriptions import SubscriberQueue
from hostline.rpc.context import current_context

if TYPE_CHECKING:
    from hostline.aio.serving.topics import Topic

__all__ = ["Published", "Subscriber", "Subscription"]

T = TypeVar("T")


class Published(msgspec.Struct, Generic[T], frozen=True):
    """One item as a topic's own method streams it.

    Attributes:
        value: The item.
        dropped: Items that this subscriber lost since the item before: with `drop_oldest` those just before this one,
            with `drop_new` those behind what waited then.
    """

    value: T
    dropped: int = 0


class Subscriber(Generic[T]):
    """What a topic knows of one subscriber; beside the `Subscription`, which the topic must not keep alive.

    Attributes:
        topic: What it is subscribed to; its lock guards everything here.
        queue: What waits.
        where: Which items are wanted.
        wake: Wakes whoever waits for an item.
        is_over: Whether nothing new comes; what waits is still handed out.
        reason: What is raised instead.
        context: Of the call that is served, if it is one.
        is_whole_call: Whether that call does nothing else, and fails with the subscription.
    """

    __slots__ = ("__weakref__", "context", "is_over", "is_whole_call", "queue", "reason", "topic", "wake", "where")

    def __init__(self, topic: Topic[T], queue: SubscriberQueue[T], where: Callable[[T], object] | None) -> None:
        self.topic = topic
        self.queue = queue
        self.where = where
        self.wake: Callable[[], None] | None = None
        self.is_over = False
        self.reason: BaseException | None = None
        self.context = current_context()
        self.is_whole_call = False

    def end(self, reason: BaseException | None = None) -> None:
        """Hand nothing more out than what waits, or raise `reason` at once; from any thread."""
        with self.topic.lock:
            self.is_over = True
            self.reason = self.reason or reason
            wake, self.wake = self.wake, None
        if reason is not None:
            self.leave()  # at once: the handler may be somewhere else, waiting for its caller to read
        if wake is not None:
            wake()

    def overrun(self) -> None:
        """Disconnect it, by its topic's policy."""
        topic = self.topic
        error = SlowSubscriberError(
            f"subscriber of {topic.name} was too slow: {topic.max_queue} items waited, "
            f"{topic.max_queue + 1} were dropped; subscribe again"
        )
        self.end(error)
        if self.is_whole_call and self.context is not None:
            self.context.fail(error)

    def leave(self) -> None:
        """Take the subscriber off the topic's list."""
        self.topic.forget(self)
        if self.context is not None:
            self.context.forget(self.end)


class Subscription(Generic[T]):
    """Iterate the items of a topic, with `async for` on a loop or `for` in a thread; made by `Topic.subscribe`.

    It ends after what waits when the topic is closed or the server stops, and by the exception that ends the call when
    it is iterated by a handler. A block (`with`), or letting go of it, takes it off the topic.
    """

    def __init__(self, subscriber: Subscriber[T]) -> None:
        self._subscriber = subscriber
        self._count = 0

    @property
    def dropped(self) -> int:
        """Items lost so far by the topic's policy."""
        return self._subscriber.queue.dropped

    @property
    def waiting(self) -> int:
        """Items that wait."""
        return self._subscriber.queue.waiting

    def published(self) -> _WithDrops[T]:
        """Return the same, each item with the number of those lost before it, to be iterated instead."""
        return _WithDrops(self)

    def fail_call(self) -> None:
        """Have the call fail at once if the policy disconnects it, also while it waits for its caller to read."""
        self._subscriber.is_whole_call = True

    def close(self) -> None:
        """Leave the topic; what waits is let go, and whoever waits for an item comes to the end. Safe to repeat."""
        self._subscriber.leave()
        self._subscriber.end()

    def _take(self, wake: Callable[[], None] | None = None) -> tuple[T, int] | None:
        """Return the next item, or None: `wake` is called when there may be one, if it is given.

        Raises:
            StopIteration: The subscription has ended.
        """
        subscriber = self._subscriber
        with subscriber.topic.lock:
            reason = subscriber.reason
            taken = subscriber.queue.take() if reason is None else None
            if taken is None and not subscriber.is_over:
                if subscriber.wake is not None:
                    raise RuntimeError(f"one subscription of {subscriber.topic.name} is iterated by two at a time")
                subscriber.wake = wake
                return None
        if taken is None:
            self.close()
            raise StopIteration if reason is None else reason
        return taken

    async def next_on_loop(self) -> tuple[T, int]:
        """Wait on the loop for the next item, and how many were lost before it."""
        self._count += 1
        if self._count % ITEMS_PER_TURN == 0:
            await asyncio.sleep(0)  # where there is always one more, the others on the loop get their turn
        try:
            while (taken := self._take()) is None:
                loop = asyncio.get_running_loop()
                waiter = loop.create_future()
                if (taken := self._take(_Wake(loop, waiter))) is not None:
                    break
                try:
                    await waiter
                except asyncio.CancelledError:
                    self._subscriber.wake = None  # a wait with a timeout may be followed by another one
                    raise
        except StopIteration:
            raise StopAsyncIteration from None
        return taken

    def next_in_thread(self) -> tuple[T, int]:
        """Wait in a thread for the next item, and how many were lost before it."""
        while (taken := self._take()) is None:
            came = threading.Event()
            try:
                if (taken := self._take(came.set)) is not None:
                    break
                came.wait()
            finally:
                if self._subscriber.wake == came.set:
                    self._subscriber.wake = None  # an exception of a signal handler ended the wait
        return taken

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        return (await self.next_on_loop())[0]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return self.next_in_thread()[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Called wherever the collector happens to run, perhaps while this very thread holds the topic's lock.
        subscriber: Subscriber[T] | None = getattr(self, "_subscriber", None)
        if subscriber is not None:
            subscriber.topic.abandon(subscriber)

    def __repr__(self) -> str:
        return f"<Subscription of {self._subscriber.topic.name}: {self.waiting} wait, {self.dropped} dropped>"


class _WithDrops(Generic[T]):
    """Iterate a subscription, each item as `Published`."""

    def __init__(self, subscription: Subscription[T]) -> None:
        self._subscription = subscription

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Published[T]:
        return Published(*await self._subscription.next_on_loop())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Published[T]:
        return Published(*self._subscription.next_in_thread())


class _Wake:
    """Wake a task, from its own thread or from another one."""

    __slots__ = ("_loop", "_thread", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> None:
        self._loop = loop
        self._waiter = waiter
        self._thread = threading.get_ident()

    def __call__(self) -> None:
        if threading.get_ident() == self._thread:
            self._set()
            return
        try:
            self._loop.call_soon_threadsafe(self._set)
        except RuntimeError:
            pass  # the loop is closed, and nobody waits

    def _set(self) -> None:
        if not self._waiter.done():
            self._waiter.set_result(None)
