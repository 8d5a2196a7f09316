"""A service under test: served in a thread with its own event loop, so that blocking and asyncio tests can call it.

The server is the real one, on a real socket. Knows nothing of pytest: what it finds wrong is a list of lines.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypedDict, TypeVar, Unpack, overload

from hostline.aio import client as aio_client
from hostline.aio.serving.server import Server
from hostline.aio.serving.service import Service
from hostline.rpc.builtin import Stats
from hostline.sync import client as sync_client
from hostline.unix.address import Address
from hostline.unix.credentials import Peers

__all__ = ["GRACE", "Serve", "ServeOptions", "ServiceThread", "loop_factory"]

T = TypeVar("T")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

# Seconds that running handlers get at the end of a test: what a test leaves unfinished it left by mistake.
GRACE: Final = 2.0
# Seconds for what the server's loop does at once, unless a handler blocks it.
_LOOP_TIMEOUT: Final = 5.0
_INTERVAL: Final = 0.005


class ServeOptions(TypedDict, total=False):
    """The options of `Service.serve`."""

    mode: int | None
    owner: int | str | None
    group: int | str | None
    backlog: int | None
    allow: Peers | None
    concurrency: int
    queue: int
    threads: int
    max_frame_size: int
    max_connections: int
    max_connections_per_uid: int
    max_connection_rate_per_uid: float | None
    max_calls_per_uid: int
    max_buffered_per_uid: int
    max_descriptors_per_uid: int
    idle_timeout: float | None
    ping_interval: float | None
    ping_timeout: float
    takeover: bool
    offer_takeover: bool
    access_log: bool


def loop_factory(name: str) -> LoopFactory:
    """Return what makes an event loop.

    Args:
        name: `asyncio` or `uvloop`.

    Raises:
        ValueError: The name is neither.
        ModuleNotFoundError: uvloop is not installed.
    """
    if name == "asyncio":
        return asyncio.new_event_loop
    if name != "uvloop":
        raise ValueError(f"event loop {name!r} is neither asyncio nor uvloop")
    try:
        import uvloop
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("uvloop is not installed: pip install hostline[uvloop]", name="uvloop") from error
    factory: LoopFactory = uvloop.new_event_loop
    return factory


class ServiceThread:
    """A service on an event loop in a thread of its own; a context manager.

    It accepts connections when the constructor returns, and is stopped by `stop` or the end of the `with`.

    Args:
        service: What is served.
        address: Where.
        loop: `asyncio` or `uvloop`.
        grace: Seconds that running handlers get when it stops.
        **options: Those of `Service.serve`.

    Attributes:
        service: What is served.
        address: Where, to be given to `connect`.
        errors: What handlers raised without declaring it and whatever else the server logged as an error, one text
            each, in order.
        left: After `stop`, what did not end by itself, one text each.

    Raises:
        AddressError: The address, or the mode for it, cannot be used.
        AddressInUseError: A live server holds the address.
    """

    def __init__(
        self,
        service: Service,
        address: str | os.PathLike[str] | Address,
        *,
        loop: str = "asyncio",
        grace: float = GRACE,
        **options: Unpack[ServeOptions],
    ) -> None:
        self.service = service
        self.errors: list[str] = []
        self._grace = grace
        self._is_stopped = False
        self._lines: list[Any] = []
        self.left: list[str] = []
        self._loop = loop_factory(loop)()
        self._loop.set_exception_handler(self._on_loop_error)
        self._thread = threading.Thread(target=self._run, name=f"hostline-test-{service.name}", daemon=True)
        self._log = _ErrorLog(self._thread, self.errors)
        logging.getLogger("hostline").addHandler(self._log)
        self._thread.start()
        try:
            self._server: Server = self._do(self._start(address, options))
        except BaseException:
            self._end_loop()
            raise
        self.address = self._server.address

    # --- calling it ------------------------------------------------------------------------------------

    @overload
    def connect(self, interface: None = None, **options: Any) -> sync_client.Line: ...

    @overload
    def connect(self, interface: Callable[..., T], **options: Any) -> T: ...

    def connect(self, interface: Any = None, **options: Any) -> Any:
        """Open a blocking line, which is closed when the service stops; the arguments are those of `hostline.connect`.

        Args:
            interface: A class that describes the service's methods, or nothing for a `Line`.
            **options: Those of `hostline.connect`.
        """
        line = sync_client.connect(self.address, interface, **options)
        self._lines.append(line)
        return line

    @overload
    def aio_connect(self, interface: None = None, **options: Any) -> aio_client.Connecting[aio_client.Line]: ...

    @overload
    def aio_connect(self, interface: Callable[..., T], **options: Any) -> aio_client.Connecting[T]: ...

    def aio_connect(self, interface: Any = None, **options: Any) -> Any:
        """Open an asyncio line, with `async with` or `await`; the arguments are those of `hostline.aio.connect`.

        The line belongs to the loop that opens it and is closed there, by the caller.

        Args:
            interface: A class that describes the service's methods, or nothing for a `Line`.
            **options: Those of `hostline.aio.connect`.
        """
        return aio_client.connect(self.address, interface, **options)

    def stats(self) -> Stats:
        """Return what the server does now and has done, as `hostline.stats` answers it.

        Raises:
            RuntimeError: It has stopped, or a handler blocks its loop.
        """

        async def stats() -> Stats:
            return self._server.stats()

        answer: Stats = self._do(stats())
        return answer

    # --- the end ---------------------------------------------------------------------------------------

    def stop(self, grace: float | None = None) -> None:
        """Give what runs its time, close the blocking lines, shut the server down and end the thread. Safe to repeat.

        Args:
            grace: Seconds for handlers that run, instead of those given at the start.
        """
        if self._is_stopped:
            return
        self._is_stopped = True
        seconds = self._grace if grace is None else grace
        try:
            self._do(self._wait_idle(seconds), seconds + _LOOP_TIMEOUT)
            # Only now: it cancels the lines' calls, which would then look as if they had ended by themselves.
            self._close_lines()
            self._do(self._shutdown())
        except RuntimeError as error:
            self.left.append(str(error))
        finally:
            self._close_lines()
            self._end_loop()

    def _close_lines(self) -> None:
        while self._lines:
            self._lines.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # --- in its thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            asyncio.set_event_loop(None)

    async def _start(self, address: str | os.PathLike[str] | Address, options: ServeOptions) -> Server:
        return await self.service.serve(address, grace=self._grace, **options)

    async def _wait_idle(self, grace: float) -> None:
        """Wait until no call runs or waits, and note those that still do after the grace."""
        admission = self._server.admission
        deadline = self._loop.time() + grace
        while admission.running_count or admission.waiting_count:
            if self._loop.time() >= deadline:
                running, waiting = admission.running_count, admission.waiting_count
                counts = f"{running} running and {waiting} waiting"
                self.left.append(f"{self.service.name}: calls left {grace:g} s after it was told to stop: {counts}")
                return
            await asyncio.sleep(_INTERVAL)

    async def _shutdown(self) -> None:
        await self._server.shutdown(0)
        if stuck := self._server.admission.running_count:
            self.left.append(f"{self.service.name}: {stuck} handlers did not end when they were cancelled")

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.errors.append(f"{context.get('message')}: {error!r}" if error else str(context.get("message")))

    def _do(self, coroutine: Any, timeout: float = _LOOP_TIMEOUT) -> Any:
        """Run a coroutine on the server's loop."""
        if self._loop.is_closed():
            coroutine.close()
            raise RuntimeError(f"{self.service.name} has stopped")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            if future.done():
                raise  # the coroutine's own
            future.cancel()
            text = f"{self.service.name}: the server's loop did not answer within {timeout:g} s: a handler blocks it"
            raise RuntimeError(text) from None

    def _end_loop(self) -> None:
        logging.getLogger("hostline").removeHandler(self._log)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(1.0)
        if self._thread.is_alive():
            return  # a handler blocks it, which was said; a daemon thread does not keep the tests from ending
        for task in asyncio.all_tasks(self._loop):
            # Reported as a handler that did not end; asyncio need not say it once more.
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


class Serve(Protocol):
    """What `hostline_serve` gives; `pytest --fixtures` explains it."""

    def __call__(
        self,
        service: Service,
        address: str | os.PathLike[str] | Address | None = None,
        *,
        loop: str | None = None,
        grace: float = GRACE,
        check_errors: bool = True,
        check_handlers: bool = True,
        **options: Unpack[ServeOptions],
    ) -> ServiceThread:
        """Serve in a background thread until the test ends."""


class _ErrorLog(logging.Handler):
    """Note the errors that one server logs, told from others' by its thread."""

    def __init__(self, thread: threading.Thread, errors: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._thread = thread
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread.ident:
            error = record.exc_info[1] if record.exc_info else None
            text = record.getMessage()
            self._errors.append(f"{text}: {type(error).__name__}: {error}" if error else text)
