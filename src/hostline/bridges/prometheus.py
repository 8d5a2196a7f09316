"""Metrics of a service for Prometheus: what `hostline.stats` tells, at each scrape, and how long calls took.

Nothing is counted for it but the durations: the rest is read from the server when somebody asks. Names, units and
labels follow Prometheus' conventions. Needs the extra hostline[prometheus].
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from hostline.aio.serving.server import Server
from hostline.aio.serving.topics import Topic, TopicStats
from hostline.aio.serving.workers.worker import WorkerServer
from hostline.bridges.exposition import Application, Exposition, Listener, listen
from hostline.limits import METRICS_TIMEOUT
from hostline.rpc.builtin import Stats
from hostline.rpc.watching.calls import FinishedCall

try:
    import prometheus_client
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
except ImportError as error:
    raise ModuleNotFoundError(
        "prometheus-client is not installed; the extra hostline[prometheus] brings it: "
        'pip install "hostline[prometheus]"',
        name="prometheus_client",
    ) from error

__all__ = ["BUCKETS", "ServiceCollector", "listen", "serve_metrics"]

T = TypeVar("T")

# Upper ends of the histogram, in seconds: from a quick method on the loop itself up to the default timeout's order.
BUCKETS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip

_COUNTS: Final = {
    "finished": "Calls answered, with a result or an error.",
    "failed": "Calls answered with an error.",
    "overloaded": "Calls refused because too many ran and waited.",
    "cancelled": "Calls that their callers cancelled.",
}
_STATES: Final = {"running": "Calls whose handler runs.", "waiting": "Calls that wait for a slot."}


class ServiceCollector:
    """Collect the metrics of servers, for any registry of prometheus_client.

        REGISTRY.register(ServiceCollector(server))

    Where a service has several worker processes, one of them answers for all with what each has noted: the calls,
    connections and memory of each by `worker`. What only that one knows of itself is then left out.

    Args:
        *servers: What `Service.serve` gives; each has its own `service` label.
        durations: Whether to keep a histogram of the durations of calls, by method and outcome.
    """

    def __init__(self, *servers: Server, durations: bool = True) -> None:
        self._servers = servers
        self._children: dict[tuple[str, str, str], Any] = {}
        self._durations: Any = None
        if durations:
            self._durations = prometheus_client.Histogram(
                "hostline_call_duration_seconds",
                "Time from a call's arrival until its answer was queued, the wait for a slot included.",
                ["service", "method", "outcome"],
                buckets=BUCKETS,
                registry=None,
            )
            for server in servers:
                server.observe(self._observe)

    def close(self) -> None:
        """Observe no more calls. Safe to repeat."""
        for server in self._servers:
            server.forget_observer(self._observe)

    def _observe(self, call: FinishedCall) -> None:
        key = (call.service, call.method, call.outcome)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._durations.labels(*key)
        child.observe(call.seconds)

    def describe(self) -> list[Any]:
        """Return nothing: registering must not scrape."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield the metric families.

        Raises:
            TimeoutError: A server's loop did not answer within 5 seconds: a handler blocks it.
        """
        families = _Families()
        is_shared = False
        for server in self._servers:
            stats, topics = _on_loop(server, lambda server=server: (server.stats(), _topics_of(server)))  # type: ignore[misc]
            if stats.workers:
                is_shared = True
                families.add_workers(stats)
            else:
                families.add(stats)
                families.add_topics(stats.service, topics)
        yield from families.all.values()
        if self._durations is not None and not is_shared:
            yield from self._durations.collect()


class _Families:
    """The metric families of one scrape, by name."""

    def __init__(self) -> None:
        self.all: dict[str, Any] = {}

    def gauge(self, name: str, text: str, value: float, **labels: str) -> None:
        family = self.all.get(name)
        if family is None:
            family = self.all[name] = GaugeMetricFamily(name, text, labels=list(labels))
        family.add_metric(list(labels.values()), value)

    def counter(self, name: str, text: str, value: float, **labels: str) -> None:
        family = self.all.get(name)
        if family is None:
            family = self.all[name] = CounterMetricFamily(name, text, labels=list(labels))
        family.add_metric(list(labels.values()), value)

    def add(self, stats: Stats) -> None:
        """Add what a server in one process does."""
        mine = {"service": stats.service}
        self.gauge("hostline_start_time_seconds", "When the service started.", time.time() - stats.uptime, **mine)
        self.gauge("hostline_open_connections", "Connections open.", stats.connections, **mine)
        self.counter("hostline_connections", "Connections admitted.", stats.connections_total, **mine)
        self.counter("hostline_connections_refused", "Connections refused.", stats.connections_refused, **mine)
        self._add_calls(stats.calls, **mine)
        for method, count in sorted(stats.methods.items()):
            self.counter("hostline_method_results", "Calls answered with a result.", count, **mine, method=method)
        for user in stats.users:
            labels = {**mine, "uid": str(user.uid)}
            self.gauge("hostline_user_connections", "Connections of a user.", user.connections, **labels)
            self.gauge("hostline_user_calls_running", "Calls of a user that run.", user.running, **labels)
            self.gauge("hostline_user_calls_waiting", "Calls of a user that wait.", user.waiting, **labels)
            self.gauge("hostline_user_buffered_bytes", "Bytes kept for a user.", user.bytes, **labels)
            self.gauge("hostline_user_descriptors", "Descriptors kept for a user.", user.descriptors, **labels)
            self.gauge("hostline_user_mapped_bytes", "Buffers in a user's running calls.", user.mapped, **labels)
        total = sum(user.bytes for user in stats.users)
        self.gauge("hostline_buffered_bytes", "Bytes kept for all users.", total, **mine)

    def add_workers(self, stats: Stats) -> None:
        """Add what is known of all worker processes."""
        for worker in stats.workers:
            labels = {"service": stats.service, "worker": str(worker.pid)}
            self.gauge("hostline_start_time_seconds", "When it started.", time.time() - worker.uptime, **labels)
            self.gauge("hostline_open_connections", "Connections open.", worker.connections, **labels)
            self.gauge("hostline_worker_memory_bytes", "Resident memory.", worker.memory, **labels)
            text = "Workers before it in its place that ended without being told to."
            self.counter("hostline_worker_restarts", text, worker.restarts, **labels)
            self._add_calls(worker.calls, **labels)

    def _add_calls(self, counts: Any, **labels: str) -> None:
        for state, text in _STATES.items():
            self.gauge(f"hostline_calls_{state}", text, getattr(counts, state), **labels)
        for name, text in _COUNTS.items():
            self.counter(f"hostline_calls_{name}", text, getattr(counts, name), **labels)

    def add_topics(self, service: str, topics: dict[str, TopicStats]) -> None:
        """Add what became of the items of topics."""
        for name, stats in sorted(topics.items()):
            labels = {"service": service, "topic": name}
            self.counter("hostline_topic_items_published", "Items published.", stats.published, **labels)
            self.counter("hostline_topic_items_delivered", "Items that subscribers took.", stats.delivered, **labels)
            self.counter("hostline_topic_items_dropped", "Items lost by the policy.", stats.dropped, **labels)
            text = "Items that waited for subscribers when they left."
            self.counter("hostline_topic_items_unread", text, stats.unread, **labels)
            self.gauge("hostline_topic_items_waiting", "Items that wait for subscribers.", stats.waiting, **labels)
            self.gauge("hostline_topic_subscribers", "Subscribers.", stats.subscribers, **labels)


def _topics_of(server: Server) -> dict[str, TopicStats]:
    topics: dict[str, Topic[Any]] = getattr(server.service, "topics", {})
    return {name: topic.stats() for name, topic in topics.items()}


def _on_loop(server: Server, look: Callable[[], T]) -> T:
    """Return what `look` finds, on the server's loop: the tables it reads change there."""
    try:
        is_here = asyncio.get_running_loop() is server.loop
    except RuntimeError:
        is_here = False
    if is_here or not server.loop.is_running():
        return look()
    found: concurrent.futures.Future[T] = concurrent.futures.Future()

    def find() -> None:
        if found.set_running_or_notify_cancel():
            try:
                found.set_result(look())
            except BaseException as error:
                found.set_exception(error)

    server.loop.call_soon_threadsafe(find)
    try:
        return found.result(METRICS_TIMEOUT)
    except concurrent.futures.TimeoutError:
        found.cancel()
        reason = f"the loop of {server.service.name} did not answer within {METRICS_TIMEOUT:g} seconds"
        raise TimeoutError(f"{reason}: a handler blocks it") from None


class _Both:
    """A registry's metrics, and a collector's: what the program measures of itself is on the same page."""

    def __init__(self, registry: Any, collector: ServiceCollector) -> None:
        self._registry = registry
        self._collector = collector

    def collect(self) -> Iterator[Any]:
        yield from self._registry.collect()
        yield from self._collector.collect()


def serve_metrics(
    server: Server,
    address: str | Callable[[], Listener],
    *,
    mode: int | None = None,
    owner: int | str | None = None,
    group: int | str | None = None,
    registry: Any = None,
    wait: float = 0.0,
) -> Exposition:
    """Serve the metrics of a server, and those of a registry, at `GET /metrics`, from a thread of its own.

        async with payments.serve() as server:
            with serve_metrics(server, "/run/shop/metrics.sock", mode=0o660, group="prometheus"):
                await server.wait_closed()

    It ends when it is closed, or when the server begins to stop.

    Args:
        server: What `Service.serve` gives.
        address: A Unix socket's, or `127.0.0.1:PORT`; or what returns a listening socket, from `listen`.
        mode: Permission bits of the socket file; 0600 unless given.
        owner: User name or id that the file is given to.
        group: Group name or id that the file is given to.
        registry: Whose metrics are served beside; `prometheus_client.REGISTRY` when left out, and none in a worker
            process. It must not hold a `ServiceCollector` of this server itself.
        wait: Seconds to keep trying while the address is in use, in the thread.

    Raises:
        AddressError: The address cannot be used.
        AddressInUseError: Somebody listens there, and `wait` is 0.
    """
    own = prometheus_client.CollectorRegistry()
    is_worker = isinstance(server, WorkerServer)  # whichever answers, the page is to be the same
    collector = ServiceCollector(server, durations=not is_worker)
    if registry is None and not is_worker:
        registry = prometheus_client.REGISTRY
    own.register(collector if registry is None else _Both(registry, collector))
    application: Application = prometheus_client.make_wsgi_app(own)

    def make_listener() -> Listener:
        return address() if callable(address) else listen(address, mode=mode, owner=owner, group=group)

    try:
        exposition = Exposition(make_listener, application, wait=wait)
    except BaseException:
        collector.close()
        raise
    exposition.at_close(collector.close)
    server.stopping.listen(exposition.stop)
    exposition.at_close(lambda: server.stopping.forget(exposition.stop))
    return exposition
