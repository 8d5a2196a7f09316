"""The blocking client: a pool of connections, each with one call at a time, read in the caller's own thread.

No helper thread and no hand-off stand between the call and the socket. Who gets which connection is for pool.py, what
may be repeated or waited for is decided below (protocol/retry.py); this module waits and obeys.

More than 400 lines, most of them the signatures and docstrings of what people call.
"""

from __future__ import annotations

import math
import os
import socket
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar, overload

from hostline.clock import Deadline, monotonic
from hostline.errors import (
    AddressNotFoundError,
    ClosedError,
    ConnectRefusedError,
    ConnectTimeoutError,
    HostlineError,
    SocketTimeoutError,
    UnavailableError,
)
from hostline.limits import (
    DEFAULT_CONNECT_TIMEOUT,
    DEFAULT_PING_TIMEOUT,
    MAX_CALLS_PER_CONNECTION,
    POOL_IDLE_LIFETIME,
    POOL_MAX_SIZE,
    POOL_MIN_SIZE,
    RECONNECT_TIMEOUT,
    USUAL_MAX_FRAME_SIZE,
)
from hostline.protocol.pooling import PoolSettings
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
from hostline.rpc.watching.tracing import CallSpan, hooks
from hostline.sync.batch import Batch
from hostline.sync.caller import Caller
from hostline.sync.interface import Interface
from hostline.sync.loopback import proven_socket
from hostline.sync.pool import Loan, SharedPool
from hostline.sync.streams import Stream
from hostline.unix.address import Address, LoopbackAddress
from hostline.unix.credentials import Peer, Peers
from hostline.unix.sockets import backlog_full, check_server, connect_blocking

__all__ = ["Line", "connect"]

T = TypeVar("T")

# What a server that is about to come back looks like to somebody who tries to reach it.
_ABSENT: Final = (AddressNotFoundError, ConnectRefusedError, UnavailableError)


# Seconds that a thread in a full backlog waits in the kernel before it looks whether its line was closed. Each slice
# queues anew, behind the others: short enough for a close, long enough that hardly anybody loses their place.
_BACKLOG_SLICE: Final = 1.0


class Line:
    """A line to one service.

    For blocking code: usable from many threads and after a fork; each call has a connection of the pool to itself.

    Args:
        settings: Where to and how.
        pool: Bounds of the connection pool.
    """

    def __init__(self, settings: LineSettings, pool: PoolSettings) -> None:
        self._settings = settings
        self._pool_settings = pool
        self._is_closed = False
        self._service = ""  # its name, once it has told it
        self._pool = SharedPool(pool)
        _lines.add(self)

    # --- calls -----------------------------------------------------------------------------------------

    def call(
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
        return self._invoke(method, args, keywords, returns, timeout, raises, idempotent)

    def invoke(
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
        return self._invoke(method, args, keywords, returns, timeout, raises, idempotent)

    def _invoke(
        self,
        method: str,
        args: tuple[Any, ...],
        keywords: dict[str, Any] | None,
        returns: Any,
        timeout: float | None,
        raises: Iterable[type[Exception]],
        idempotent: bool,
    ) -> Any:
        check_returns(returns)
        seconds, deadline = self._settings.deadline(timeout)
        if hooks.tracer is None:
            return self._make(method, args, keywords, returns, raises, idempotent, seconds, deadline, None)
        span = hooks.tracer.call(self._service, method)
        try:
            return self._make(method, args, keywords, returns, raises, idempotent, seconds, deadline, span)
        except BaseException as error:
            if span is not None:
                span.end(error)
            raise
        finally:
            if span is not None:
                span.end()

    def _make(
        self,
        method: str,
        args: tuple[Any, ...],
        keywords: dict[str, Any] | None,
        returns: Any,
        raises: Iterable[type[Exception]],
        idempotent: bool,
        seconds: float,
        deadline: Deadline,
        span: CallSpan | None,
    ) -> Any:
        """Make a call, and make it again where a connection ended and that does no harm."""
        repeats: Repeats | None = None
        while True:
            loan = Loan()
            is_streaming = False
            try:
                connection = self._acquire(loan, method, seconds, deadline)
                is_streaming = connection.protocol.is_streaming(method)
                if not is_streaming:
                    context = None if span is None else span.carrier
                    frame = connection.call(method, args, keywords, seconds, deadline, context)
            except BrokenCallError as error:
                if self._is_closed:
                    raise ClosedError(f"{method}: the line was closed") from error
                repeats = repeats or Repeats(method, idempotent)
                repeats.broke(error, connection.protocol)
                continue
            finally:
                try:
                    self._pool.release(loan)
                except BaseException:  # a signal handler's exception may have come before anything was released
                    self._pool.release(loan)
                    raise
            if is_streaming:
                call = StreamCall(method, args, keywords or {}, returns, tuple(raises), seconds, deadline, span)
                frame = self._stream(call, is_stream=False).answer()
            return read_answer(frame, returns, raises)

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

            with line.stream("ticks", 10, returns=int) as ticks:
                for tick in ticks:
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
        return self._stream(StreamCall(method, args, keywords or {}, returns, tuple(raises), seconds, deadline), True)

    def _stream(self, call: StreamCall, is_stream: bool) -> Stream[Any]:
        pool = self._pool
        begin = partial(self._begin, call, is_stream)
        return Stream(call, begin, pool.release, pool.abandon, lambda: self._is_closed, self._service)

    def _begin(
        self, call: StreamCall, is_stream: bool, loan: Loan, context: Mapping[str, str] | None
    ) -> tuple[Caller, int, Any]:
        """Send a call with streams; returns where, under which id, and what is to be sent for its argument."""
        repeats = Repeats(call.method, is_idempotent=False)
        while True:
            connection = self._acquire(loan, call.method, call.seconds, call.deadline)
            check_kind(call.method, connection.protocol, is_stream)
            args, keywords, items = call.args, call.keywords, None
            if connection.protocol.takes_items(call.method):
                args, keywords, items = take_items_out(call.method, args, keywords)
            try:
                return (
                    connection,
                    connection.start(call.method, args, keywords, call.deadline, items is not None, context),
                    items,
                )
            except BrokenCallError as error:
                self._pool.release(loan)
                if self._is_closed:
                    raise ClosedError(f"{call.method}: the line was closed") from error
                repeats.broke(error, connection.protocol)

    def batch(self, *, timeout: float | None = None, max_in_flight: int = MAX_CALLS_PER_CONNECTION) -> Batch:
        """Collect calls in a block and make them together at its end, with few writes and reads.

            with line.batch(timeout=0.5) as batch:
                first = batch.call("charge", order, returns=Receipt)
                second = batch.call("refund", 7)
            print(first.result(), second.exception())

        They are made on one connection of the pool and answered in any order. Each has its own result or exception,
        as if it had been made alone. They begin in their order; a service may run them at the same time.

        Args:
            timeout: Seconds for all of them, from the end of the block; the line's own for each when left out.
            max_in_flight: Calls that are open at a time: fewer for a service with a short queue.

        Raises:
            ValueError: The timeout is negative or not a number, or `max_in_flight` is not 1 to 256.
        """
        return Batch(self._settings, self, timeout, max_in_flight, self._send_batch, lambda: self._is_closed)

    def _send_batch(self, run: BatchRun) -> None:
        while not run.is_done:
            loan = Loan()
            try:
                self._acquire(loan, run.name, run.seconds, run.deadline).run_batch(run)
            except HostlineError as error:
                run.fail_all(error)
            finally:
                try:
                    self._pool.release(loan)
                except BaseException:  # a signal handler's exception may have come before anything was released
                    self._pool.release(loan)
                    raise

    # --- the pool --------------------------------------------------------------------------------------

    def _acquire(self, loan: Loan, method: str, seconds: float, deadline: Deadline) -> Caller:
        try:
            connection = self._pool.acquire(loan, deadline.remaining())
        except TimeoutError:
            busy = f"all {self._pool_settings.max_size} connections of the pool were busy"
            raise deadline_error(method, seconds, busy) from None
        if connection is not None:
            return connection
        try:
            return self._reopen(loan, deadline)
        except (SocketTimeoutError, ConnectTimeoutError) as error:
            if deadline.has_passed():
                raise deadline_error(method, seconds, f"no connection ({error})") from error
            raise

    def _reopen(self, loan: Loan, deadline: Deadline) -> Caller:
        """Connect again, waiting for a server that restarts; the first error is raised when time is up."""
        settings = self._settings
        patience = Deadline.after(settings.reconnect_timeout).earlier(deadline)
        return self._reach(loan, patience, deadline)

    def _reach(self, loan: Loan, patience: Deadline, deadline: Deadline | None) -> Caller:
        """Connect; while nobody listens, try again with growing pauses until `patience` is over."""
        backoff = Backoff()
        busy = Deadline.after(self._settings.connect_timeout)
        busy = busy if deadline is None else busy.earlier(deadline)
        while True:
            limit = Deadline.after(self._settings.connect_timeout)
            try:
                return self._connect(loan, limit if deadline is None else limit.earlier(deadline))
            except BusyError as error:
                left = max(patience.remaining(), busy.remaining())
                if left <= 0:
                    raise error.as_unavailable() from None
            except _ABSENT:
                left = patience.remaining()
                if left <= 0:
                    raise
            time.sleep(min(backoff.pause(), left))
            if self._is_closed:
                raise ClosedError("the line was closed")

    def _connect(self, loan: Loan, deadline: Deadline) -> Caller:
        try:
            sock, peer = self._connected(deadline)
            connection = Caller(sock, peer, self._settings)
            self._pool.add(loan, connection)  # before the greeting, so that a close interrupts it
            connection.greet(self._settings, deadline)
        except Exception as error:
            self._pool.drop(loan)
            if self._is_closed and isinstance(error, HostlineError):
                raise ClosedError("the line was closed") from error
            raise
        if connection.protocol.hello is not None:
            self._service = connection.protocol.hello.service
        return connection

    def _connected(self, deadline: Deadline) -> tuple[socket.socket, Peer]:
        """Return a new connection and who runs the server: the one step that knows what kind of address it is."""
        settings = self._settings
        if isinstance(settings.address, LoopbackAddress):
            return proven_socket(settings.address, settings.server, deadline, lambda: self._is_closed)
        sock = self._through_backlog(deadline)
        try:
            return sock, check_server(sock, settings.server, settings.address, "stream")
        except BaseException:
            sock.close()
            raise

    def _through_backlog(self, deadline: Deadline) -> socket.socket:
        """Connect, waiting for a place in a full backlog.

        The kernel's wait cannot be ended from another thread, so that it is done in slices between which a close is
        noticed.
        """
        address = self._settings.address
        started = monotonic()
        while True:
            try:
                return connect_blocking(address, "stream", Deadline.after(_BACKLOG_SLICE).earlier(deadline))
            except ConnectTimeoutError:
                if self._is_closed:
                    raise ClosedError("the line was closed") from None
                if deadline.has_passed():
                    raise backlog_full(address, "stream", monotonic() - started) from None

    def open_first(self) -> Caller:
        """Connect, so that a wrong address is told at once.

        Opens the pool's minimum of connections, at least one.
        """
        settings = self._settings
        first: Caller | None = None
        for _ in range(max(1, self._pool_settings.min_size)):
            loan = Loan()
            try:
                self._pool.open(loan)
                connection = self._reach(loan, Deadline.after(settings.wait), None)
            finally:
                self._pool.release(loan)
            first = first or connection
        if first is None:  # pragma: no cover - the range above is never empty
            raise ClosedError("no connection was opened")
        return first

    # --- the end ---------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """The service's address in words."""
        return self._settings.address.text

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    @property
    def pool_size(self) -> int:
        """Connections that are open or being opened."""
        return self._pool.size

    def close(self) -> None:
        """Close the line; calls under way end with `ClosedError`. Safe to repeat.

        A call that waits in a full backlog ends within a second.
        """
        self._is_closed = True
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"{self._pool.size} open, {self._pool.idle_count} idle"
        return f"<Line {self.address}: {state}>"

    def forget_in_child(self) -> None:
        """In a forked child: what is connected is the parent's; close the copies."""
        self._pool.forget_in_child()
        self._pool = SharedPool(self._pool_settings)


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
    min_size: int = POOL_MIN_SIZE,
    max_size: int = POOL_MAX_SIZE,
    idle_lifetime: float = POOL_IDLE_LIFETIME,
    timeout: float | None = None,
    ping_interval: float | None = None,
    ping_timeout: float = DEFAULT_PING_TIMEOUT,
) -> Line: ...


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
    min_size: int = POOL_MIN_SIZE,
    max_size: int = POOL_MAX_SIZE,
    idle_lifetime: float = POOL_IDLE_LIFETIME,
    timeout: float | None = None,
    ping_interval: float | None = None,
    ping_timeout: float = DEFAULT_PING_TIMEOUT,
) -> T: ...


def connect(
    address: str | os.PathLike[str] | Address,
    interface: Any = None,
    *,
    server: Peers | None = None,
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT,
    wait: float = 0.0,
    reconnect_timeout: float = RECONNECT_TIMEOUT,
    max_frame_size: int = USUAL_MAX_FRAME_SIZE,
    min_size: int = POOL_MIN_SIZE,
    max_size: int = POOL_MAX_SIZE,
    idle_lifetime: float = POOL_IDLE_LIFETIME,
    timeout: float | None = None,
    ping_interval: float | None = None,
    ping_timeout: float = DEFAULT_PING_TIMEOUT,
) -> Any:
    """Open a line to a service.

    Args:
        address: A bare name, a path or any other address of a stream socket.
        interface: A class that describes the service's methods; an object of it is returned instead of a `Line`.
        server: Who may run the server, checked before a byte is sent; own uid and root when left out.
        connect_timeout: Seconds to connect, also through a full backlog, and to be greeted.
        wait: Seconds to keep trying while nobody listens there yet.
        reconnect_timeout: Seconds a call keeps trying to reach a server that went away, if its deadline allows.
        max_frame_size: Largest payload of one frame taken, in bytes.
        min_size: Connections that the pool keeps.
        max_size: Connections at most; a further caller waits for one.
        idle_lifetime: Seconds after which an unused connection above `min_size` is closed.
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
    line = Line(settings, PoolSettings(min_size, max_size, idle_lifetime))
    try:
        hello = line.open_first().protocol.hello
        if interface is None:
            return line
        if hello is not None:
            check_interface(methods, [entry.name for entry in hello.methods], hello.service)
        return bind_interface(interface, Interface, methods, line, None, is_async=False)
    except BaseException:
        line.close()
        raise


_lines: weakref.WeakSet[Line] = weakref.WeakSet()


def _forget_in_child() -> None:
    for line in list(_lines):
        line.forget_in_child()


os.register_at_fork(after_in_child=_forget_in_child)
