"""The asyncio client: one connection, many calls at once, answers matched by id.

What may be repeated or waited for is decided below (protocol/connection, protocol/retry.py); this module waits
and obeys. It runs on asyncio's loop and on uvloop.

More than 400 lines, most of them the signatures and docstrings of what people call.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar, overload

from hostline.aio.batch import Batch
from hostline.aio.caller import Caller
from hostline.aio.connecting import connected_socket
from hostline.aio.interface import Interface
from hostline.aio.loopback import proven_socket
from hostline.aio.streams import Stream
from hostline.clock import Deadline
from hostline.errors import (
    AddressNotFoundError,
    ClosedError,
    ConnectRefusedError,
    HostlineError,
    SocketError,
    SocketTimeoutError,
    UnavailableError,
)
from hostline.limits import (
    DEFAULT_CONNECT_TIMEOUT,
    DEFAULT_PING_TIMEOUT,
    MAX_CALLS_PER_CONNECTION,
    RECONNECT_TIMEOUT,
    USUAL_MAX_FRAME_SIZE,
)
from hostline.protocol.retry import Backoff
from hostline.rpc.batch_runs import BatchRun
from hostline.rpc.calling import (
    BrokenCallError,
    BusyError,
    LineSettings,
    Repeats,
    StreamCall,
    check_kind,
    check_returns,
    deadline_error,
    read_answer,
    take_items_out,
)
from hostline.rpc.stubs import bind_interface, check_interface, interface_methods
from hostline.rpc.watching.tracing import hooks
from hostline.unix.address import Address, LoopbackAddress
from hostline.unix.credentials import Peer, Peers
from hostline.unix.sockets import check_server

__all__ = ["Connecting", "Line", "connect"]

T = TypeVar("T")

# What a server that is about to come back looks like to somebody who tries to reach it.
_ABSENT: Final = (AddressNotFoundError, ConnectRefusedError, UnavailableError)


class Line:
    """A line to one service.

    For asyncio: calls share one connection and may all be in flight at once.

    Args:
        settings: Where to and how.
    """

    def __init__(self, settings: LineSettings) -> None:
        self._settings = settings
        self._connection: Caller | None = None
        self._opening: asyncio.Task[Caller] | None = None
        self._callers: set[Caller] = set()  # every connection that is open, also those the server is leaving
        self._is_closed = False
        self._service = ""  # its name, once it has told it
        self._pid = os.getpid()
        _lines.add(self)

    # --- calls -----------------------------------------------------------------------------------------

    async def call(
        self,
        method: str,
        /,
        *args: Any,
        returns: Any = Any,
        timeout: float | None = None,
        raises: Iterable[type[Exception]] = (),
        idempotent: bool = False,
        **keywords: Any,
    ) -> Any:
        """Call a method and return its result.

        Cancelling the task that waits here cancels the handler at the server.

        Args:
            method: The method's name.
            *args: Its arguments by position.
            returns: The type of the result: msgspec structs, dataclasses, unions, ... Plain values when left out.
            timeout: Seconds until the caller stops waiting and the handler is told; the line's own when left
                out, `math.inf` for no limit.
            raises: Exception classes that arrive as themselves when the handler declares and raises them.
            idempotent: Whether repeating the call does no harm, beside what the service declares.
            **keywords: Its arguments by name; for one named like an option here, use `invoke`.

        Raises:
            CallError: The call failed; see its subclasses.
            SocketError: The server could not be reached.
        """
        return await self.invoke(
            method, args, keywords, returns=returns, timeout=timeout, raises=raises, idempotent=idempotent
        )

    async def invoke(
        self,
        method: str,
        args: tuple[Any, ...] = (),
        keywords: dict[str, Any] | None = None,
        *,
        returns: Any = Any,
        timeout: float | None = None,
        raises: Iterable[type[Exception]] = (),
        idempotent: bool = False,
    ) -> Any:
        """Call a method with its arguments given as a tuple and a dict; otherwise as `call`."""
        check_returns(returns)
        seconds, deadline = self._settings.deadline(timeout)
        repeats = Repeats(method, idempotent)
        span = None if hooks.tracer is None else hooks.tracer.call(self._service, method)
        try:
            while True:
                connection = self._connection
                if connection is None or not connection.is_usable:
                    connection = await self._reopen(method, seconds, deadline)
                if connection.protocol.is_streaming(method):
                    call = StreamCall(method, args, keywords or {}, returns, tuple(raises), seconds, deadline, span)
                    frame = await Stream[Any](call, partial(self._begin, call, False), self._has_closed).answer()
                    return read_answer(frame, returns, raises)
                try:
                    context = None if span is None else span.carrier
                    frame = await connection.call(method, args, keywords, seconds, deadline, context)
                except BrokenCallError as error:
                    if self._is_closed:
                        raise ClosedError(f"{method}: the line was closed") from error
                    repeats.broke(error, connection.protocol)
                    continue
                return read_answer(frame, returns, raises)
        except BaseException as error:
            if span is not None:
                span.end(error)
            raise
        finally:
            if span is not None:
                span.end()

    def stream(
        self,
        method: str,
        /,
        *args: Any,
        returns: Any = Any,
        timeout: float | None = None,
        raises: Iterable[type[Exception]] = (),
        **keywords: Any,
    ) -> Stream[Any]:
        """Call a method whose result is a stream, and iterate its items.

            async with line.stream("ticks", 10, returns=int) as ticks:
                async for tick in ticks:
                    ...

        An argument that is a stream is given as an iterator, for `call` as well. The call is never repeated.

        Args:
            method: The method's name.
            *args: Its arguments by position.
            returns: The type of the items. Plain values when left out.
            timeout: Seconds for the whole of it; without limit when left out.
            raises: Exception classes that arrive as themselves when the handler declares and raises them.
            **keywords: Its arguments by name.

        Raises:
            ValueError: The timeout is negative or not a number.
        """
        return self.open_stream(method, args, keywords, returns=returns, timeout=timeout, raises=raises)

    def open_stream(
        self,
        method: str,
        args: tuple[Any, ...] = (),
        keywords: dict[str, Any] | None = None,
        *,
        returns: Any = Any,
        timeout: float | None = None,
        raises: Iterable[type[Exception]] = (),
    ) -> Stream[Any]:
        """Call a method whose result is a stream, its arguments given as a tuple and a dict; otherwise as `stream`."""
        check_returns(returns)
        seconds = math.inf if timeout is None else timeout
        deadline = Deadline.after(seconds)
        call = StreamCall(method, args, keywords or {}, returns, tuple(raises), seconds, deadline)
        return Stream(call, partial(self._begin, call, True), self._has_closed, self._service)

    def _has_closed(self) -> bool:
        return self._is_closed

    async def _begin(
        self, call: StreamCall, is_stream: bool, ticket: Any, context: Mapping[str, str] | None
    ) -> tuple[Caller, int, Any]:
        """Send a call with streams; returns where, under which id, and what is to be sent for its argument."""
        repeats = Repeats(call.method, is_idempotent=False)
        while True:
            connection = self._connection
            if connection is None or not connection.is_usable:
                connection = await self._reopen(call.method, call.seconds, call.deadline)
            check_kind(call.method, connection.protocol, is_stream)
            args, keywords, items = call.args, call.keywords, None
            if connection.protocol.takes_items(call.method):
                args, keywords, items = take_items_out(call.method, args, keywords)
            try:
                has_items = items is not None
                call_id = await connection.start(ticket, call.method, args, keywords, call.deadline, has_items, context)
            except BrokenCallError as error:
                if self._is_closed:
                    raise ClosedError(f"{call.method}: the line was closed") from error
                repeats.broke(error, connection.protocol)
                continue
            return connection, call_id, items

    def batch(self, *, timeout: float | None = None, max_in_flight: int = MAX_CALLS_PER_CONNECTION) -> Batch:
        """Collect calls in a block and make them together at its end, with few writes and reads.

            async with line.batch(timeout=0.5) as batch:
                first = batch.call("charge", order, returns=Receipt)
                second = batch.call("refund", 7)
            print(first.result(), second.exception())

        They are made on the line's connection and answered in any order. Each has its own result or exception, as if it
        had been made alone. They begin in their order; a service may run them at the same time.

        Args:
            timeout: Seconds for all of them, from the end of the block; the line's own for each when left out.
            max_in_flight: Calls that are open at a time: fewer for a service with a short queue.

        Raises:
            ValueError: The timeout is negative or not a number, or `max_in_flight` is not 1 to 256.
        """
        return Batch(self._settings, self, timeout, max_in_flight, self._send_batch, self._has_closed)

    async def _send_batch(self, run: BatchRun) -> None:
        while not run.is_done:
            connection = self._connection
            try:
                if connection is None or not connection.is_usable:
                    connection = await self._reopen(run.name, run.seconds, run.deadline)
            except HostlineError as error:
                run.fail_all(error)
            else:
                await connection.run_batch(run)

    # --- the connection --------------------------------------------------------------------------------

    async def _reopen(self, method: str, seconds: float, deadline: Deadline) -> Caller:
        """Return a new connection, opened once however many calls ask for it, waiting for a server that restarts."""
        if self._is_closed:
            raise ClosedError(f"{method}: the line is closed")
        if self._pid != os.getpid():
            raise ClosedError(f"{method}: the line belongs to process {self._pid}, which this one was forked from")
        if self._opening is None:
            patience = Deadline.after(self._settings.reconnect_timeout)
            self._opening = asyncio.get_running_loop().create_task(self._open(patience))
            self._opening.add_done_callback(self._opened)
        try:
            async with asyncio.timeout(_seconds(deadline)):
                return await asyncio.shield(self._opening)
        except TimeoutError as error:
            if isinstance(error, SocketError) and not deadline.has_passed():
                raise  # the connect had less time than the call
            raise deadline_error(method, seconds, f"no connection ({str(error) or 'still connecting'})") from error
        except asyncio.CancelledError:
            if self._is_closed and self._opening is None:
                raise ClosedError(f"{method}: the line was closed") from None
            raise

    def _opened(self, opening: asyncio.Task[Caller]) -> None:
        self._opening = None
        if not opening.cancelled():
            opening.exception()  # looked at: every caller may have given up meanwhile

    async def _open(self, patience: Deadline) -> Caller:
        """Connect; while nobody listens, try again with growing pauses until `patience` is over."""
        backoff = Backoff()
        busy = Deadline.after(self._settings.connect_timeout)
        while True:
            try:
                return await self._connect(Deadline.after(self._settings.connect_timeout))
            except BusyError as error:
                left = max(busy.remaining(), patience.remaining())
                if left <= 0:
                    raise error.as_unavailable() from None
                await asyncio.sleep(min(backoff.pause(), left))
            except _ABSENT:
                left = patience.remaining()
                if left <= 0:
                    raise
                await asyncio.sleep(min(backoff.pause(), left))

    async def _connect(self, deadline: Deadline) -> Caller:
        settings = self._settings
        sock, peer = await self._connected(deadline)
        try:
            connection = Caller(sock, peer, settings, self._ended)
        except BaseException:
            sock.close()
            raise
        self._callers.add(connection)
        try:
            async with asyncio.timeout(_seconds(deadline)):
                await connection.greet()
        except TimeoutError:
            connection.close("no hello")
            reason = f"connected, but no hello within {settings.connect_timeout:g} seconds"
            raise SocketTimeoutError("connect", "stream", settings.address.text, None, reason) from None
        except BaseException:
            connection.close("not greeted")
            raise
        self._connection = connection
        if connection.protocol.hello is not None:
            self._service = connection.protocol.hello.service
        return connection

    async def _connected(self, deadline: Deadline) -> tuple[socket.socket, Peer]:
        """Return a new connection and who runs the server: the one step that knows what kind of address it is."""
        settings = self._settings
        if isinstance(settings.address, LoopbackAddress):
            return await proven_socket(settings.address, settings.server, deadline)
        sock = await connected_socket(settings.address, "stream", deadline)
        try:
            return sock, check_server(sock, settings.server, settings.address, "stream")
        except BaseException:
            sock.close()
            raise

    def _ended(self) -> None:
        self._callers = {connection for connection in self._callers if not connection.is_closed}

    async def open_first(self) -> Caller:
        """Connect, so that a wrong address is told at once."""
        return await self._open(Deadline.after(self._settings.wait))

    # --- the end ---------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """The service's address in words."""
        return self._settings.address.text

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    async def close(self) -> None:
        """Close the line; calls under way end with `ClosedError`. Safe to repeat."""
        self._is_closed = True
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
        for connection in list(self._callers):
            connection.close("the line was closed")
        self._connection = None
        await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        connection = self._connection
        count = len(connection.protocol.in_flight) if connection else 0
        return f"<Line {self.address}: {'closed' if self._is_closed else f'{count} in flight'}>"

    def forget_in_child(self) -> None:
        """In a forked child: what is connected is the parent's; close the copies."""
        for connection in self._callers:
            connection.forget_in_child()


def _seconds(deadline: Deadline) -> float | None:
    """Return the time left as `asyncio.timeout` takes it: None without a deadline."""
    return None if deadline.is_never else deadline.remaining()


class Connecting(Generic[T]):
    """A line about to open: await it, or use it as an async context manager."""

    def __init__(self, open_: Callable[[], Any]) -> None:
        self._open = open_
        self._opened: Any = None

    def __await__(self) -> Generator[Any, None, T]:
        opened: Generator[Any, None, T] = self._open().__await__()
        return opened

    async def __aenter__(self) -> T:
        self._opened = await self._open()
        opened: T = self._opened
        return opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._opened.close()


@overload
def connect(
    address: str | os.PathLike[str] | Address,
    interface: None = None,
    *,
    server: Peers | None = None,
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT,
    wait: float = 0.0,
    reconnect_timeout: float = RECONNECT_TIMEOUT,
    max_frame_size: int = USUAL_MAX_FRAME_SIZE,
    timeout: float | None = None,
    ping_interval: float | None = None,
    ping_timeout: float = DEFAULT_PING_TIMEOUT,
) -> Connecting[Line]: ...


@overload
def connect(
    address: str | os.PathLike[str] | Address,
    interface: Callable[..., T],
    *,
    server: Peers | None = None,
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT,
    wait: float = 0.0,
    reconnect_timeout: float = RECONNECT_TIMEOUT,
    max_frame_size: int = USUAL_MAX_FRAME_SIZE,
    timeout: float | None = None,
    ping_interval: float | None = None,
    ping_timeout: float = DEFAULT_PING_TIMEOUT,
) -> Connecting[T]: ...


def connect(
    address: str | os.PathLike[str] | Address,
    interface: Any = None,
    *,
    server: Peers | None = None,
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT,
    wait: float = 0.0,
    reconnect_timeout: float = RECONNECT_TIMEOUT,
    max_frame_size: int = USUAL_MAX_FRAME_SIZE,
    timeout: float | None = None,
    ping_interval: float | None = None,
    ping_timeout: float = DEFAULT_PING_TIMEOUT,
) -> Any:
    """Open a line to a service.

        async with hostline.aio.connect("payments") as line:
            receipt = await line.call("charge", order, returns=Receipt, timeout=0.5)

    Args:
        address: A bare name, a path or any other address of a stream socket.
        interface: A class that describes the service's methods; an object of it is returned instead of a `Line`.
        server: Who may run the server, checked before a byte is sent; own uid and root when left out.
        connect_timeout: Seconds to connect, also through a full backlog, and to be greeted.
        wait: Seconds to keep trying while nobody listens there yet.
        reconnect_timeout: Seconds a call keeps trying to reach a server that went away, if its deadline allows.
        max_frame_size: Largest payload of one frame taken, in bytes.
        timeout: Seconds for a call that names none, 30 when left out; `math.inf` for no limit.
        ping_interval: Seconds between pings while a call waits, to find a stopped server; no pings when left out.
        ping_timeout: Seconds without any sign of life after a ping until waiting calls end with `UnavailableError`.

    Raises:
        AddressError: The address is malformed.
        SocketError: The server cannot be reached; the subclass says why.
        PeerRefusedError: The server is run by somebody else, or does not admit this user.
        MethodNotFoundError: The service lacks a method of the interface.
        TypeError: The interface is not usable.
    """
    settings = LineSettings.of(
        address, server=server, timeout=timeout, connect_timeout=connect_timeout, wait=wait,
        reconnect_timeout=reconnect_timeout, max_frame_size=max_frame_size, ping_interval=ping_interval,
        ping_timeout=ping_timeout,
    )  # fmt: skip
    methods = interface_methods(interface, Interface) if interface is not None else []

    async def open_() -> Any:
        line = Line(settings)
        try:
            hello = (await line.open_first()).protocol.hello
            if interface is None:
                return line
            if hello is not None:
                check_interface(methods, [entry.name for entry in hello.methods], hello.service)
            return bind_interface(interface, Interface, methods, line, None, is_async=True)
        except BaseException:
            await line.close()
            raise

    return Connecting(open_)


_lines: weakref.WeakSet[Line] = weakref.WeakSet()


def _forget_in_child() -> None:
    for line in list(_lines):
        line.forget_in_child()


os.register_at_fork(after_in_child=_forget_in_child)
