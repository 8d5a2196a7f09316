"""A service that can be served: the declaration of rpc/service.py with `serve` and `run`."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Generator
from dataclasses import replace
from types import TracebackType
from typing import Any, Final

from hostline.aio.serving.program import run_on
from hostline.aio.serving.server import Server
from hostline.aio.serving.takeover import listen_or_take_over
from hostline.aio.serving.topics import Topic, topic_handler
from hostline.aio.serving.workers.supervising import BROKEN_SOCKET, Supervisor, check_workers
from hostline.aio.serving.workers.worker import Worker, WorkerServer
from hostline.errors import AddressError, SocketError
from hostline.limits import (
    DEFAULT_CONCURRENCY,
    DEFAULT_GRACE,
    DEFAULT_PING_TIMEOUT,
    DEFAULT_QUEUE,
    DEFAULT_THREADS,
    MAX_BUFFERED_PER_UID,
    MAX_CALLS_PER_UID,
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_UID,
    MAX_DESCRIPTORS_PER_UID,
    USUAL_MAX_FRAME_SIZE,
)
from hostline.rpc.service import ServiceBase
from hostline.rpc.settings import ServerSettings
from hostline.rpc.takeover.asking import Wanted
from hostline.unix.address import Address, LoopbackAddress, parse_address
from hostline.unix.credentials import Peers
from hostline.unix.listening import Bound
from hostline.unix.loopback.sockets import loopback_listener

__all__ = ["Service", "Serving", "run_in_workers"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Serving:
    """A server about to start: await it, or use it as an async context manager."""

    def __init__(self, make: Callable[[], Awaitable[Server]]) -> None:
        self._make = make
        self._server: Server | None = None

    async def _start(self) -> Server:
        self._server = await self._make()
        await self._server.start()
        return self._server

    def __await__(self) -> Generator[Any, None, Server]:
        return self._start().__await__()

    async def __aenter__(self) -> Server:
        return await self._start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            await self._server.shutdown()


class Service(ServiceBase):
    """A named set of methods, served on a Unix socket.

        payments = hostline.Service("payments")

        @payments.method
        def charge(order: Order) -> Receipt:
            return Receipt(order.id, order.quantity * order.price)

        payments.run()

    Args:
        name: The service's name, also its address unless another is given.
        version: The service's own version, for `describe`.
        doc: What it does, for `describe`.

    Attributes:
        topics: The topics that `topic` declared, by the name of their method.
    """

    def __init__(self, name: str, *, version: str = "", doc: str = "") -> None:
        super().__init__(name, version=version, doc=doc)
        self.topics: dict[str, Topic[Any]] = {}

    def topic(self, name: str, topic: Topic[Any], /, *, allow: Peers | None = None) -> None:
        """Declare a method that streams a topic to whoever calls it, each item as `Published`.

            service.topic("prices", prices)

            for item in line.stream("prices", returns=hostline.Published[Price]):
                ...  # item.value, item.dropped

        Args:
            name: What callers call it.
            topic: What is streamed.
            allow: Who may call it, beside the rule for connecting.

        Raises:
            TypeError: The topic's type cannot be served.
            ValueError: The name is not usable or taken.
        """
        self.method(name=name, allow=allow)(topic_handler(topic))
        self.topics[name] = topic

    def serve(
        self,
        address: str | os.PathLike[str] | Address | None = None,
        *,
        mode: int | None = None,
        owner: int | str | None = None,
        group: int | str | None = None,
        backlog: int | None = None,
        allow: Peers | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        queue: int = DEFAULT_QUEUE,
        threads: int = DEFAULT_THREADS,
        grace: float = DEFAULT_GRACE,
        max_frame_size: int = USUAL_MAX_FRAME_SIZE,
        max_connections: int = MAX_CONNECTIONS,
        max_connections_per_uid: int = MAX_CONNECTIONS_PER_UID,
        max_connection_rate_per_uid: float | None = None,
        max_calls_per_uid: int = MAX_CALLS_PER_UID,
        max_buffered_per_uid: int = MAX_BUFFERED_PER_UID,
        max_descriptors_per_uid: int = MAX_DESCRIPTORS_PER_UID,
        idle_timeout: float | None = None,
        ping_interval: float | None = None,
        ping_timeout: float = DEFAULT_PING_TIMEOUT,
        takeover: bool = False,
        offer_takeover: bool = True,
        access_log: bool = False,
    ) -> Serving:
        """Serve in the running event loop.

            async with payments.serve("payments") as server:
                await server.wait_closed()

        Args:
            address: Where; the service's name in the runtime directory when left out.
            mode: Permission bits of the socket file, 0600 when left out.
            owner: User name or id that owns the file; needs the right to give files away.
            group: Group name or id of the file.
            backlog: Connections the kernel queues before they are accepted.
            allow: Who may connect, instead of what the mode says.
            concurrency: Handlers that run at once.
            queue: Calls that wait behind them; the next is answered `OverloadedError` at once.
            threads: Worker threads for `def` handlers.
            grace: Seconds that running calls get when the server stops.
            max_frame_size: Largest payload of one frame, in bytes.
            max_connections: Connections at once.
            max_connections_per_uid: Connections at once of one user; where several users are admitted no more than a
                quarter of RLIMIT_NOFILE.
            max_connection_rate_per_uid: New connections of one user in a second. When left out 200 where several users
                are admitted, and no bound otherwise; `math.inf` for none.
            max_calls_per_uid: Calls of one user that run or wait; the next is answered `OverloadedError`.
            max_buffered_per_uid: Bytes kept for one user, whose connections are not read on at this many.
            max_descriptors_per_uid: Descriptors of one user that wait for handlers; a call that brings more is answered
                `OverloadedError`.
            idle_timeout: Seconds after which a connection without calls is closed; never when left out.
            ping_interval: Seconds between pings to each client, to find those that are stopped; no pings when left out.
            ping_timeout: Seconds without any sign of life after a ping until a client is cut off.
            takeover: Take the listening socket over from the server that runs at the address, which then finishes
                what it runs and stops; the file stays as it is. Where none runs, this starts as ever.
            offer_takeover: Whether a successor may do so with this server, through a socket beside its own
                (`ADDRESS.control`).
            access_log: Whether each finished call is logged, at level info on the logger `hostline.access`.

        Raises:
            ValueError: A number is out of range.
            AddressError: The address, or the mode for it, cannot be used. Raised when the server starts.
            AddressInUseError: A live server holds the address; with `takeover`, it could not be taken over.
        """
        settings = ServerSettings(
            concurrency, queue, threads, grace, max_frame_size, max_connections=max_connections,
            max_connections_per_uid=max_connections_per_uid, max_connection_rate_per_uid=max_connection_rate_per_uid,
            max_calls_per_uid=max_calls_per_uid, max_buffered_per_uid=max_buffered_per_uid,
            max_descriptors_per_uid=max_descriptors_per_uid, idle_timeout=idle_timeout, ping_interval=ping_interval,
            ping_timeout=ping_timeout, offer_takeover=offer_takeover, access_log=access_log,
        )  # fmt: skip
        wanted = Wanted(self._address(address), "stream", mode, owner, group, backlog)
        return self._serving(wanted, settings, allow, takeover)

    def _address(self, address: str | os.PathLike[str] | Address | None) -> Address:
        return parse_address(self.name if address is None else address)

    def _serving(self, wanted: Wanted, settings: ServerSettings, allow: Peers | None, takeover: bool) -> Serving:
        def prepare(bound: Bound) -> Server:
            return Server(self, bound, allow=allow, settings=settings)

        async def make() -> Server:
            if takeover:
                if isinstance(wanted.address, LoopbackAddress):
                    raise AddressError(wanted.address.text, "a tcp: socket cannot be taken over; stop its server first")
                return await listen_or_take_over(wanted, self.name, prepare)
            bound = _listen(wanted, allow)
            try:
                return prepare(bound)
            except BaseException:
                bound.close()
                raise

        return Serving(make)

    def run(
        self,
        address: str | os.PathLike[str] | Address | None = None,
        *,
        mode: int | None = None,
        owner: int | str | None = None,
        group: int | str | None = None,
        backlog: int | None = None,
        allow: Peers | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        queue: int = DEFAULT_QUEUE,
        threads: int = DEFAULT_THREADS,
        grace: float = DEFAULT_GRACE,
        max_frame_size: int = USUAL_MAX_FRAME_SIZE,
        max_connections: int = MAX_CONNECTIONS,
        max_connections_per_uid: int = MAX_CONNECTIONS_PER_UID,
        max_connection_rate_per_uid: float | None = None,
        max_calls_per_uid: int = MAX_CALLS_PER_UID,
        max_buffered_per_uid: int = MAX_BUFFERED_PER_UID,
        max_descriptors_per_uid: int = MAX_DESCRIPTORS_PER_UID,
        idle_timeout: float | None = None,
        ping_interval: float | None = None,
        ping_timeout: float = DEFAULT_PING_TIMEOUT,
        takeover: bool = False,
        offer_takeover: bool = True,
        access_log: bool = False,
        workers: int = 1,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
        on_start: Callable[[Server], None] | None = None,
    ) -> None:
        """Serve until SIGTERM, SIGINT or a successor comes, finish what runs, and return.

        A second signal ends what still runs at once. The arguments are those of `serve`, and:

        Args:
            address: As for `serve`, like everything not listed here.
            mode: See `serve`.
            owner: See `serve`.
            group: See `serve`.
            backlog: See `serve`.
            allow: See `serve`.
            concurrency: See `serve`.
            queue: See `serve`.
            threads: See `serve`.
            grace: See `serve`.
            max_frame_size: See `serve`.
            max_connections: See `serve`.
            max_connections_per_uid: See `serve`.
            max_connection_rate_per_uid: See `serve`.
            max_calls_per_uid: See `serve`.
            max_buffered_per_uid: See `serve`.
            max_descriptors_per_uid: See `serve`.
            idle_timeout: See `serve`.
            ping_interval: See `serve`.
            ping_timeout: See `serve`.
            takeover: See `serve`.
            offer_takeover: See `serve`.
            access_log: See `serve`.
            workers: Processes that serve, forked before any of them has a loop; each has the bounds above for itself.
                SIGHUP replaces them by new ones without refusing anybody. 1 serves in this process.
            loop_factory: Makes the event loop, such as `uvloop.new_event_loop`.
            on_start: Called once the socket accepts connections; where there are several workers, in each of them.

        Raises:
            AddressError: The address, or the mode for it, cannot be used.
            AddressInUseError: A live server holds the address; with `takeover`, it could not be taken over.
            ValueError: There cannot be so many workers, or they are to take over a socket, which one process does.
            WorkersFailedError: No worker became ready, or none can accept any more.
            LocalProtocolError: Several workers are started from another thread than the main one.
        """
        check_workers(workers)
        settings = ServerSettings(
            concurrency, queue, threads, grace, max_frame_size, max_connections=max_connections,
            max_connections_per_uid=max_connections_per_uid, max_connection_rate_per_uid=max_connection_rate_per_uid,
            max_calls_per_uid=max_calls_per_uid, max_buffered_per_uid=max_buffered_per_uid,
            max_descriptors_per_uid=max_descriptors_per_uid, idle_timeout=idle_timeout, ping_interval=ping_interval,
            ping_timeout=ping_timeout, offer_takeover=offer_takeover, access_log=access_log,
        )  # fmt: skip
        wanted = Wanted(self._address(address), "stream", mode, owner, group, backlog)
        if workers == 1:
            run_on(loop_factory, self._serving(wanted, settings, allow, takeover), on_start, _SIGNALS)
            return
        if takeover:
            raise ValueError(f"takeover with {workers} workers: several processes are renewed by SIGHUP instead")
        run_in_workers(
            self.name, lambda: self, wanted, count=workers, settings=settings, allow=allow, loop_factory=loop_factory,
            on_start=on_start,
        )  # fmt: skip


def _listen(wanted: Wanted, allow: Peers | None) -> Bound:
    if not isinstance(wanted.address, LoopbackAddress):
        return wanted.listen()
    return loopback_listener(
        wanted.address, mode=wanted.mode, owner=wanted.owner, group=wanted.group, backlog=wanted.backlog, allow=allow
    )


def run_in_workers(
    name: str,
    load: Callable[[], Service],
    wanted: Wanted,
    *,
    count: int,
    settings: ServerSettings,
    allow: Peers | None = None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    on_start: Callable[[Server], None] | None = None,
) -> None:
    """Serve in several processes until SIGTERM or SIGINT, finish what runs, and return.

    Args:
        name: The service's name.
        load: Returns the service; called in each worker process, so that what it imports is fresh after a reload.
        wanted: What listens where.
        count: Worker processes.
        settings: The bounds of each worker.
        allow: See `Service.run`.
        loop_factory: See `Service.run`.
        on_start: See `Service.run`.

    Raises:
        WorkersFailedError: No worker became ready, or none can accept any more.
    """
    check_workers(count)
    settings = replace(settings, offer_takeover=False)  # the socket is the supervisor's

    def work(worker: Worker) -> None:
        service = load()

        def started(server: Server) -> None:
            if on_start is not None:
                on_start(server)
            worker.tell_ready()

        async def make() -> Server:
            return WorkerServer(service, worker, allow=allow, settings=settings)

        serving = Serving(make)
        try:
            # SIGINT is the supervisor's: the terminal sends it to all.
            run_on(loop_factory, serving, started, (signal.SIGTERM,))
        except SocketError as error:
            if error.operation != "accept":
                raise
            raise SystemExit(BROKEN_SOCKET) from error

    Supervisor(name, _listen(wanted, allow), count, grace=settings.grace, work=work).run()
