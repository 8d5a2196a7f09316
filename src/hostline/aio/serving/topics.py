"""Publish and subscribe inside a service: a topic hands each item to every subscriber, and waits for none.

What is kept for whom, and what is dropped, is decided below (protocol/subscriptions.py). A subscriber is a handler, on
the loop or in a worker thread, or any other code of the process; what leads to a client is the stream that it serves.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, NamedTuple, TypeVar

from hostline.aio.serving.subscriptions import Published, Subscriber, Subscription
from hostline.errors import ClosedError
from hostline.limits import DEFAULT_MAX_QUEUE
from hostline.protocol.subscriptions import Policy, SubscriberQueue
from hostline.rpc.context import StoppedError, current_context

__all__ = ["Topic", "TopicStats", "topic_handler"]

T = TypeVar("T")


class TopicStats(NamedTuple):
    """Count what became of a topic's items, over all subscribers, those that left included.

    Attributes:
        published: Items published.
        delivered: Items taken by subscribers.
        dropped: Items lost by the policy.
        unread: Items that waited for subscribers when they left.
        waiting: Items that wait now.
        subscribers: Subscribers now.
    """

    published: int
    delivered: int
    dropped: int
    unread: int
    waiting: int
    subscribers: int


class Topic(Generic[T]):
    """Hand items to every subscriber of this process, without waiting for any.

        prices = hostline.Topic(Price, max_queue=1000, policy="drop_oldest")
        service.topic("prices", prices)

        prices.publish(price)

    It needs no running loop and may be made where a module is loaded. Each process has its own: one that was forked
    begins without subscribers.

    Args:
        item_type: The type of an item, as for the result of a method.
        max_queue: Items that may wait for one subscriber.
        policy: What gives way when one more comes: `drop_oldest`, `drop_new`, or with `disconnect` the subscriber.
        name: For messages; that of the type when left out.

    Attributes:
        lock: Guards the counters, the list and all that is known of a subscriber.

    Raises:
        ValueError: `max_queue` is below 1, or the policy is none of these.
    """

    def __init__(
        self,
        item_type: type[T] | Any = Any,
        *,
        max_queue: int = DEFAULT_MAX_QUEUE,
        policy: Policy = "drop_oldest",
        name: str = "",
    ) -> None:
        SubscriberQueue[T](max_queue, policy)  # refuses what is out of range
        self.item_type = item_type
        self.max_queue = max_queue
        self.policy: Policy = policy
        self.name = name or getattr(item_type, "__name__", "") or str(item_type)
        self._begin_anew()
        self._is_closed = False
        _topics.add(self)

    def _begin_anew(self) -> None:
        self._published = self._delivered = self._dropped = self._unread = 0
        self.lock = threading.Lock()
        self._subscribers: tuple[Subscriber[T], ...] = ()
        self._abandoned: deque[Subscriber[T]] = deque()

    def publish(self, item: T) -> int:
        """Hand an item to every subscriber, without waiting; from the loop or any thread, not from a signal handler.

        The item itself is kept, not a copy: do not change it afterwards. What a subscriber's `where` raises is raised
        to that subscriber.

        Returns:
            How many subscribers it waits for now.

        Raises:
            ClosedError: The topic was closed.
        """
        if self._abandoned:
            self._take_abandoned()
        wanting = [each for each in self._subscribers if each.where is None or _wants(each, each.where, item)]
        wakes: list[Callable[[], None]] = []
        overrun: list[Subscriber[T]] = []
        count = 0
        with self.lock:
            if self._is_closed:
                raise ClosedError(f"topic {self.name} was closed")
            self._published += 1
            for subscriber in wanting:
                if subscriber.is_over:
                    continue
                if subscriber.queue.offer(item):
                    count += 1
                elif subscriber.queue.is_overrun:
                    overrun.append(subscriber)
                    continue
                if subscriber.wake is not None:
                    wakes.append(subscriber.wake)
                    subscriber.wake = None
        for wake in wakes:
            wake()
        for subscriber in overrun:
            subscriber.overrun()
        return count

    def subscribe(self, *, where: Callable[[T], object] | None = None) -> Subscription[T]:
        """Begin to keep items for a new subscriber, from this moment on.

        Args:
            where: Tells which items are wanted; called by whoever publishes, so it must be quick.
        """
        self._take_abandoned()
        subscriber = Subscriber(self, SubscriberQueue[T](self.max_queue, self.policy), where)
        with self.lock:
            if self._is_closed:
                subscriber.is_over = True
            else:
                self._subscribers += (subscriber,)
        if subscriber.context is not None:
            subscriber.context.listen(subscriber.end)
        return Subscription(subscriber)

    @property
    def subscriber_count(self) -> int:
        """Subscribers now."""
        self._take_abandoned()
        return len(self._subscribers)

    def stats(self) -> TopicStats:
        """Return the counters."""
        self._take_abandoned()
        with self.lock:
            queues = [each.queue for each in self._subscribers]
            return TopicStats(
                self._published,
                self._delivered + sum(queue.delivered for queue in queues),
                self._dropped + sum(queue.dropped for queue in queues),
                self._unread + sum(queue.unread for queue in queues),
                sum(queue.waiting for queue in queues),
                len(queues),
            )

    def close(self) -> None:
        """Publish nothing more: each subscription ends after what waits for it. Safe to repeat."""
        with self.lock:
            self._is_closed = True
            subscribers = self._subscribers
        for subscriber in subscribers:
            subscriber.end()

    def forget(self, subscriber: Subscriber[T]) -> None:
        """Take a subscriber off the list, and keep what it counted."""
        queue = subscriber.queue
        with self.lock:
            subscriber.is_over = True
            if subscriber in self._subscribers:
                self._subscribers = tuple(each for each in self._subscribers if each is not subscriber)
                queue.leave()
                self._delivered += queue.delivered
                self._dropped += queue.dropped
                self._unread += queue.unread

    def abandon(self, subscriber: Subscriber[T]) -> None:
        """Leave a subscriber to the next look: takes no lock, for the garbage collector calls this at any place."""
        self._abandoned.append(subscriber)

    def _take_abandoned(self) -> None:
        while True:
            try:
                subscriber = self._abandoned.popleft()
            except IndexError:
                return
            subscriber.leave()

    def __repr__(self) -> str:
        return f"<Topic {self.name}: {len(self._subscribers)} subscribers, {self.policy} at {self.max_queue}>"


def _wants(subscriber: Subscriber[T], where: Callable[[T], object], item: T) -> bool:
    try:
        return bool(where(item))
    except Exception as error:  # the subscriber's own code: it hears of it, and the publisher does not
        subscriber.end(error)
        return False


def topic_handler(topic: Topic[Any]) -> Callable[[], AsyncIterator[Published[Any]]]:
    """Return a handler that streams a topic to its caller, with what was dropped."""

    async def subscribe() -> AsyncIterator[Published[Any]]:
        with topic.subscribe() as subscription:
            subscription.fail_call()
            async for item in subscription.published():
                yield item
        context = current_context()
        if context is not None and context.is_server_stopping and not topic._is_closed:
            # Not an end like that of a closed topic: whoever wants to hear more subscribes again.
            raise StoppedError(f"the service stops; subscribe to {topic.name} again")

    subscribe.__annotations__ = {"return": AsyncIterator[Published[topic.item_type]]}  # type: ignore[name-defined]
    subscribe.__doc__ = f"Stream what is published on {topic.name}."
    return subscribe


_topics: weakref.WeakSet[Topic[Any]] = weakref.WeakSet()


def _forget_in_child() -> None:
    for topic in list(_topics):
        topic._begin_anew()


os.register_at_fork(after_in_child=_forget_in_child)
