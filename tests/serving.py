"""Real servers for the tests of calls, in a thread with its own loop or in a process, and both faces to call them.

The blocking half of a test drives everything: a server runs in its thread, the asyncio line in another, so that one
test speaks for blocking code, asyncio and uvloop alike.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

import hostline
from hostline.aio.serving.server import Server
from hostline.rpc.settings import ServerSettings
from hostline.unix.address import parse_address
from hostline.unix.listening import listening_socket
from hostline.wire.codec import ClientHello, ServerHello, decode_hello, encode_call, encode_hello
from hostline.wire.frame import Frame, FrameDecoder, Kind
from tests.leaks import wait_until

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def loop_factory_named(name: str) -> LoopFactory:
    """Return the factory of `asyncio` or `uvloop`; skip where uvloop is missing, but never in CI."""
    if name == "asyncio":
        return asyncio.new_event_loop
    if os.environ.get("HOSTLINE_CI") != "1":
        pytest.importorskip("uvloop", reason="uvloop is not installed")
    import uvloop

    return uvloop.new_event_loop  # type: ignore[no-any-return]


def loop_names() -> list[str]:
    """Return the loops that HOSTLINE_TEST_LOOP asks for."""
    choice = os.environ.get("HOSTLINE_TEST_LOOP", "both")
    return ["asyncio", "uvloop"] if choice == "both" else [choice]


# --- loops in threads ----------------------------------------------------------------------------------


class LoopThread:
    """An event loop in a thread of its own, fed from the test's thread; collects errors that nobody handled."""

    def __init__(self, factory: LoopFactory = asyncio.new_event_loop, name: str = "test-loop") -> None:
        self.unhandled: list[dict[str, Any]] = []
        self.loop = factory()
        self.loop.set_exception_handler(lambda _, context: self.unhandled.append(context))
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            asyncio.set_event_loop(None)

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        """Begin a coroutine; the future's `cancel` cancels its task."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine: Coroutine[Any, Any, Any], timeout: float = 15.0) -> Any:
        """Run a coroutine to its end."""
        return self.start(coroutine).result(timeout)

    def do(self, function: Callable[[], Any], timeout: float = 15.0) -> Any:
        """Call a plain function on the loop and return its result."""

        async def call() -> Any:
            return function()

        return self.run(call(), timeout)

    def pending_tasks(self) -> list[str]:
        """Return the names and states of the tasks on this loop."""
        return self.do(lambda: [repr(t) for t in asyncio.all_tasks(self.loop) if t is not asyncio.current_task()])

    def close(self) -> None:
        """Stop the loop; fail if a task was left on it or an error went unhandled."""
        if not self._thread.is_alive():
            return
        left: list[str] = []
        wait_until(lambda: not self.pending_tasks(), 1.0)
        left = self.pending_tasks()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        assert not left, f"tasks left on the loop: {left}"
        assert not self.unhandled, f"the loop was told of errors that nobody handled: {self.unhandled}"


# --- servers -------------------------------------------------------------------------------------------


class ServerThread:
    """A service on a loop in a thread.

    Args:
        service: What is served.
        address: Where.
        loop: `asyncio` or `uvloop`.
        settings: The bounds; the other options are those of `Service.serve`.
    """

    def __init__(
        self,
        service: hostline.Service,
        address: str | os.PathLike[str],
        *,
        loop: str = "asyncio",
        settings: ServerSettings | None = None,
        allow: hostline.Peers | None = None,
        **options: Any,
    ) -> None:
        self.address = str(address)
        self.on_loop = LoopThread(loop_factory_named(loop), "test-server")

        async def start() -> Server:
            if settings is None:
                return await service.serve(address, allow=allow, **options)
            server = Server(
                service, listening_socket(parse_address(address), **options), allow=allow, settings=settings
            )
            await server.start()
            return server

        try:
            self.server: Server = self.on_loop.run(start())
        except BaseException:
            self.on_loop.close()
            raise

    def do(self, function: Callable[[Server], Any]) -> Any:
        """Call `function(server)` on the server's loop."""
        return self.on_loop.do(lambda: function(self.server))

    def stats(self) -> Any:
        return self.do(lambda server: server.stats())

    @property
    def connection_count(self) -> int:
        return int(self.do(lambda server: server.connection_count))

    @property
    def running_count(self) -> int:
        return int(self.do(lambda server: server.admission.running_count))

    @property
    def waiting_count(self) -> int:
        return int(self.do(lambda server: server.admission.waiting_count))

    def wait_idle(self, timeout: float = 5.0) -> None:
        """Wait until nothing runs or waits."""
        assert wait_until(lambda: self.running_count == 0 and self.waiting_count == 0, timeout), (
            f"{self.running_count} calls still run and {self.waiting_count} wait"
        )

    def stop(self, grace: float = 2.0) -> None:
        """Shut the server down and end its loop."""
        if not self.on_loop.loop.is_closed():
            try:
                self.on_loop.run(self.server.shutdown(grace))
                assert self.do(lambda server: server.connection_count) == 0
            finally:
                self.on_loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class ServerProcess:
    """A service in a fresh Python process: `python -m PROGRAM ADDRESS OPTIONS...`.

    It accepts connections when the constructor returns.

    Args:
        address: Where it serves.
        options: Of the program.
        log: A file that takes its standard error.
        program: The module, which says `ready` once it accepts.
    """

    def __init__(
        self,
        address: str | os.PathLike[str],
        *options: str,
        log: Path | None = None,
        program: str = "tests.service_program",
    ) -> None:
        self.address = str(address)
        errors = None if log is None else log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", program, self.address, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
            text=True,
        )
        if errors is not None:
            errors.close()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line != "ready\n":
            self.kill()
            raise RuntimeError(f"the server did not start: {line!r}")

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 10.0) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(timeout)

    def kill(self) -> None:
        """End it with SIGKILL and wait."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()


# --- lines of both faces -------------------------------------------------------------------------------


class BlockingLine:
    """The blocking line; calls that are started run in threads."""

    is_async = False

    def __init__(self, address: Any, interface: Any = None, **options: Any) -> None:
        self.line: Any = hostline.connect(address, interface, **options)
        self._threads = concurrent.futures.ThreadPoolExecutor(32, "test-caller")

    def call(self, method: str, /, *args: Any, **options: Any) -> Any:
        return self.line.call(method, *args, **options)

    def start(self, method: str, /, *args: Any, **options: Any) -> concurrent.futures.Future[Any]:
        return self._threads.submit(self.call, method, *args, **options)

    def invoke(self, *args: Any, **options: Any) -> Any:
        return self.line.invoke(*args, **options)

    def stub(self, name: str, *args: Any, with_timeout: float | None = None, **keywords: Any) -> Any:
        """Call a method of the interface."""
        target = self.line if with_timeout is None else self.line.with_timeout(with_timeout)
        return getattr(target, name)(*args, **keywords)

    def close(self) -> None:
        self.line.close()
        self._threads.shutdown(wait=True)


class AsyncLine:
    """The asyncio line on a loop in a thread."""

    is_async = True

    def __init__(self, address: Any, interface: Any = None, *, loop: str, **options: Any) -> None:
        self.on_loop = LoopThread(loop_factory_named(loop), "test-line")

        async def connect() -> Any:
            return await hostline.aio.connect(address, interface, **options)

        try:
            self.line: Any = self.on_loop.run(connect())
        except BaseException:
            self.on_loop.close()
            raise

    def call(self, method: str, /, *args: Any, **options: Any) -> Any:
        return self.on_loop.run(self.line.call(method, *args, **options), 20)

    def start(self, method: str, /, *args: Any, **options: Any) -> concurrent.futures.Future[Any]:
        return self.on_loop.start(self.line.call(method, *args, **options))

    def invoke(self, *args: Any, **options: Any) -> Any:
        return self.on_loop.run(self.line.invoke(*args, **options), 20)

    def stub(self, name: str, *args: Any, with_timeout: float | None = None, **keywords: Any) -> Any:
        """Call a method of the interface."""

        async def call() -> Any:
            target = self.line if with_timeout is None else self.line.with_timeout(with_timeout)
            return await getattr(target, name)(*args, **keywords)

        return self.on_loop.run(call(), 20)

    def close(self) -> None:
        if not self.on_loop.loop.is_closed():
            try:
                self.on_loop.run(self.line.close())
            finally:
                self.on_loop.close()


class Stage:
    """One face against one loop: what it starts is closed in the end, lines before servers."""

    def __init__(self, face: str, loop: str, directory: Path, scheme: str = "") -> None:
        self.face = face
        self.loop = loop
        self.directory = directory
        self.address = f"{scheme}{directory / 's'}"
        self._servers = contextlib.ExitStack()
        self._lines = contextlib.ExitStack()

    @property
    def is_async(self) -> bool:
        return self.face == "aio"

    def serve(self, service: hostline.Service, address: Any = None, **options: Any) -> ServerThread:
        server = ServerThread(service, address or self.address, loop=self.loop, **options)
        self._servers.enter_context(server)
        return server

    def connect(self, address: Any = None, interface: Any = None, **options: Any) -> Any:
        where = address or self.address
        if self.is_async:
            line: Any = AsyncLine(where, interface, loop=self.loop, **options)
        else:
            line = BlockingLine(where, interface, **options)
        self._lines.callback(line.close)
        return line

    def interface(self, of: tuple[Any, Any]) -> Any:
        """Return the blocking or the asyncio one of two interfaces."""
        return of[1] if self.is_async else of[0]

    def close(self) -> None:
        with self._servers, self._lines:
            pass


def stages() -> list[Any]:
    """Return every face with every loop, as parameters."""
    return [pytest.param((face, loop), id=f"{face}-{loop}") for loop in loop_names() for face in ("sync", "aio")]


# --- what handlers tell the test -----------------------------------------------------------------------


class Journal:
    """Lines that handlers write and the test reads, from any thread."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        with self._lock:
            self._lines.append(line)

    @property
    def lines(self) -> list[str]:
        with self._lock:
            return list(self._lines)

    def count(self, start: str) -> int:
        return sum(line.startswith(start) for line in self.lines)

    def wait_for(self, start: str, count: int = 1, timeout: float = 5.0) -> None:
        """Wait until so many lines begin with `start`."""
        assert wait_until(lambda: self.count(start) >= count, timeout, 0.002), (
            f"{count} lines of {start!r} did not come: {self.lines}"
        )


def held_service(journal: Journal, gate: threading.Event, name: str = "held") -> hostline.Service:
    """Return a service whose handlers, of all kinds, wait for the gate and say what happens to them."""
    service = hostline.Service(name)

    @service.method
    async def task(label: str) -> str:
        journal.write(f"started {label}")
        try:
            while not gate.is_set():  # noqa: ASYNC110 - the gate is opened from another thread
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            journal.write(f"cancelled {label}")
            raise
        journal.write(f"finished {label}")
        return label

    @service.method
    def thread(label: str, context: hostline.Context) -> str:
        journal.write(f"started {label}")
        while not gate.is_set():
            if context.wait_cancelled(0.005):
                journal.write(f"cancelled {label}")
                context.raise_if_cancelled()
        journal.write(f"finished {label}")
        return label

    @service.method
    def stubborn(label: str) -> str:
        journal.write(f"started {label}")
        gate.wait(15)
        journal.write(f"finished {label}")
        return label

    @service.method(inline=True)
    def quick(label: str) -> str:
        return label

    return service


# --- peers that speak the protocol by hand -------------------------------------------------------------


class RawClient:
    """A client without manners: it sends what the test says and reads only when told to.

    Args:
        address: The path of the socket.
        hello: Whether to introduce itself and read the server's hello.
    """

    def __init__(self, address: str, *, hello: bool = True, receive_buffer: int = 0) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        try:
            if receive_buffer:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.sock.connect(address)
            self.decoder = FrameDecoder(16 << 20)
            self.frames: list[Frame] = []
            self.methods: dict[str, int] = {}
            if hello:
                self.sock.sendall(encode_hello(ClientHello(program="raw", max_frame_size=16 << 20)))
                server = decode_hello(self.read().payload, ServerHello)
                self.methods = {entry.name: number for number, entry in enumerate(server.methods)}
        except BaseException:
            self.sock.close()
            raise

    def encode(self, call_id: int, method: str, *args: Any, time_left: float | None = None) -> bytes:
        """Return a CALL frame."""
        return bytes(encode_call(call_id, self.methods[method], args, None, time_left, 16 << 20))

    def call(self, call_id: int, method: str, *args: Any, time_left: float | None = None) -> None:
        self.sock.settimeout(10)
        self.sock.sendall(self.encode(call_id, method, *args, time_left=time_left))

    def send_some(self, data: bytes) -> int:
        """Send what the socket takes without waiting, and return how much that was."""
        self.sock.settimeout(0)
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    def read(self, timeout: float = 10.0) -> Frame:
        """Return the next frame; EOFError at the end."""
        self.sock.settimeout(timeout)
        while not self.frames:
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError
            self.frames += self.decoder.receive_data(data)
        return self.frames.pop(0)

    def read_until_end(self, timeout: float = 10.0) -> list[Frame]:
        """Return every frame up to the end of the connection."""
        frames = []
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:
                frames.append(self.read(timeout))
        return frames

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ScriptedServer:
    """A server that follows a script: for each connection, in order, `act(conversation)` is called in a thread.

    Args:
        address: Where it listens.
        acts: One for each connection; the last one serves all further connections.
        methods: The names it offers; those that end in `!` are declared idempotent.
    """

    def __init__(
        self, address: str, *acts: Callable[[Conversation], None], methods: Sequence[str] = ("act", "again!")
    ) -> None:
        self.methods = list(methods)
        self.conversations: list[Conversation] = []
        self._acts = acts
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen(64)
        self._errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name="test-script", daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            act = self._acts[min(len(self.conversations), len(self._acts) - 1)]
            conversation = Conversation(sock, self.methods)
            self.conversations.append(conversation)
            thread = threading.Thread(target=self._play, args=(act, conversation), name="test-act", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _play(self, act: Callable[[Conversation], None], conversation: Conversation) -> None:
        try:
            act(conversation)
        except (EOFError, OSError):
            pass  # the client left, which a script need not expect
        except BaseException as error:
            self._errors.append(error)
        finally:
            conversation.sock.close()
            conversation.has_left.set()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(10)
        self._listener.close()
        for conversation in self.conversations:
            with contextlib.suppress(OSError):
                conversation.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        assert not self._errors, self._errors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Conversation:
    """The server's side of one connection, by hand.

    Attributes:
        sock: The connection.
        calls: The calls that were read.
        has_left: Set when the socket is really closed; its `fileno()` is -1 a moment earlier.
    """

    def __init__(self, sock: socket.socket, methods: Sequence[str]) -> None:
        self.sock = sock
        self.has_left = threading.Event()
        self.calls: list[Frame] = []
        self._methods = methods
        self._decoder = FrameDecoder()
        self._frames: list[Frame] = []

    def greet(self) -> None:
        """Read the client's hello and send ours."""
        from hostline.wire.codec import MethodEntry

        assert self.read().kind == Kind.HELLO
        entries = [MethodEntry(name.rstrip("!"), name.endswith("!")) for name in self._methods]
        self.sock.sendall(encode_hello(ServerHello(service="script", methods=entries)))

    def read(self) -> Frame:
        while not self._frames:
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError
            self._frames += self._decoder.receive_data(data)
        return self._frames.pop(0)

    def read_call(self) -> Frame:
        """Return the next CALL."""
        while (frame := self.read()).kind != Kind.CALL:
            pass
        self.calls.append(frame)
        return frame

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)


# --- measuring -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def takes_less_than(seconds: float) -> Iterator[None]:
    """Fail if the block takes longer. Generous bounds only: the machine is shared."""
    started = time.monotonic()
    yield
    taken = time.monotonic() - started
    assert taken < seconds, f"took {taken:.3f} seconds, expected less than {seconds}"


def resident_bytes(pid: int | str = "self") -> int:
    """Return the resident memory of a process."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptor_count(pid: int | str = "self") -> int:
    """Return how many descriptors a process holds."""
    return len(os.listdir(f"/proc/{pid}/fd"))
