"""A service that can be served: the declaration of rpc/service.py with `serve` and `run`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Self

from hostline.aio.serving.server import Server
from hostline.aio.serving.takeover import listen_or_take_over
from hostline.errors import AddressError
from hostline.limits import (
    DEFAULT_CONCURRENCY,
    DEFAULT_GRACE,
    DEFAULT_MAX_FRAME_SIZE,
    DEFAULT_QUEUE,
    DEFAULT_THREADS,
)
from hostline.rpc.service import ServiceBase
from hostline.rpc.settings import ServerSettings
from hostline.rpc.takeover.asking import Wanted
from hostline.unix.address import Address, LoopbackAddress, parse_address
from hostline.unix.credentials import Peers
from hostline.unix.listening import Bound
from hostline.unix.loopback.sockets import loopback_listener

__all__ = ["Service", "Serving"]


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
    """

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
        max_frame_size: int = DEFAULT_MAX_FRAME_SIZE,
        takeover: bool = False,
        offer_takeover: bool = True,
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
            takeover: Take the listening socket over from the server that runs at the address, which then finishes
                what it runs and stops; the file stays as it is. Where none runs, this starts as ever.
            offer_takeover: Whether a successor may do so with this server, through a socket beside its own
                (`ADDRESS.control`).

        Raises:
            AddressError: The address, or the mode for it, cannot be used. Raised when the server starts.
            AddressInUseError: A live server holds the address; with `takeover`, it could not be taken over.
        """
        settings = ServerSettings(concurrency, queue, threads, grace, max_frame_size, offer_takeover=offer_takeover)
        where = parse_address(self.name if address is None else address)

        wanted = Wanted(where, "stream", mode, owner, group, backlog)

        def prepare(bound: Bound) -> Server:
            return Server(self, bound, allow=allow, settings=settings)

        async def make() -> Server:
            if isinstance(where, LoopbackAddress):
                if takeover:
                    raise AddressError(where.text, "a tcp: socket cannot be taken over; stop its server first")
                bound = loopback_listener(where, mode=mode, owner=owner, group=group, backlog=backlog, allow=allow)
            elif takeover:
                return await listen_or_take_over(wanted, self.name, prepare)
            else:
                bound = wanted.listen()
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
        max_frame_size: int = DEFAULT_MAX_FRAME_SIZE,
        takeover: bool = False,
        offer_takeover: bool = True,
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
            takeover: See `serve`.
            offer_takeover: See `serve`.
            loop_factory: Makes the event loop, such as `uvloop.new_event_loop`.
            on_start: Called once the socket accepts connections.

        Raises:
            AddressError: The address, or the mode for it, cannot be used.
            AddressInUseError: A live server holds the address; with `takeover`, it could not be taken over.
        """
        serving = self.serve(
            address, mode=mode, owner=owner, group=group, backlog=backlog, allow=allow, concurrency=concurrency,
            queue=queue, threads=threads, grace=grace, max_frame_size=max_frame_size, takeover=takeover,
            offer_takeover=offer_takeover,
        )  # fmt: skip
        loop = (loop_factory or asyncio.new_event_loop)()
        try:
            # The signals first: a server that can be seen can also be told to stop. And last: what is left is ended.
            with _StopSignals(loop) as signals:
                try:
                    loop.run_until_complete(_run(serving, on_start, signals))
                finally:
                    _end_tasks(loop)
        finally:
            loop.close()


async def _run(serving: Serving, on_start: Callable[[Server], None] | None, signals: _StopSignals) -> None:
    signals.starting = asyncio.current_task()
    try:
        server = await serving
    except asyncio.CancelledError:
        if signals.is_stopped:
            return  # told to stop while it waited for the server that it was to take over
        raise
    signals.server = server
    try:
        if on_start is not None:
            on_start(server)
        await server.wait_closed()
    finally:
        await server.shutdown()


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """End what is left on the loop.

    Not `asyncio.Runner`: it waits without end for a task that swallows its cancellation, so that one such handler
    would keep a stopped service from leaving after its grace time.
    """
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        _, stubborn = loop.run_until_complete(asyncio.wait(left, timeout=1.0))
        for task in stubborn:
            # The server has logged that it leaves these behind; asyncio need not say it once more, as an error.
            task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.run_until_complete(loop.shutdown_asyncgens())


class _StopSignals(contextlib.AbstractContextManager["_StopSignals"]):
    """Turn SIGTERM and SIGINT into a shutdown; the second one ends what still runs."""

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # One of the two is set before the loop turns for the first time, and so before any signal is heard.
        self.starting: asyncio.Task[Any] | None = None
        self.server: Server | None = None
        self.is_stopped = False
        self._loop = loop
        self._before: dict[int, Any] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._is_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._is_main:  # elsewhere Python delivers no signals: the program around decides when to stop
            for number in self._SIGNALS:
                self._before[number] = signal.getsignal(number)
                self._loop.add_signal_handler(number, self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            self._loop.remove_signal_handler(number)
            if handler is not None:  # None: not set from Python, and cannot be set again from here
                signal.signal(number, handler)

    def _stop(self) -> None:
        self.is_stopped = True
        if self.server is None and self.starting is not None:
            self.starting.cancel()
        if self.server is not None:
            grace = 0.0 if self._tasks else None
            self._tasks.append(self._loop.create_task(self.server.shutdown(grace)))
