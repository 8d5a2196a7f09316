"""The other sides that go wrong: a server that says nothing, a backlog without room, files that are in the way.

Each is the real thing, made of real sockets; what it makes it also takes away. Knows nothing of pytest.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Final, Protocol, Self

from hostline.rpc.service import ServiceBase
from hostline.unix.address import parse_address
from hostline.unix.listening import Bound, listening_socket
from hostline.wire.codec import MethodEntry, ServerHello, encode_hello

__all__ = ["FullBacklog", "Stall", "StalledPeer", "foreign_holder", "make_ordinary_file", "make_stale_file"]

StrPath = str | os.PathLike[str]

# Connections that a backlog of the smallest size may still take; far above what any kernel makes of 0.
_MAX_FILLERS: Final = 64


class StalledPeer:
    """A server that takes every connection and never answers a call; a context manager.

    Without methods it does not even greet, so that `connect` runs into its `connect_timeout`. With methods it says
    hello, offers them, and leaves every call unanswered. It reads nothing.

    Args:
        address: Where it listens.
        methods: The names that it offers, or the service whose methods they are; None to say nothing at all.

    Attributes:
        address: Where it listens.
    """

    def __init__(self, address: StrPath, methods: ServiceBase | Iterable[str] | None = None) -> None:
        self.address = os.fspath(address)
        self._hello = b"" if methods is None else _hello(methods)
        self._connections: list[socket.socket] = []
        self._bound: Bound = listening_socket(parse_address(address))
        self._wakeup, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._accept, name="hostline-stalled-peer", daemon=True)
        self._thread.start()

    @property
    def connection_count(self) -> int:
        """Connections taken so far."""
        return len(self._connections)

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._bound.sock, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while all(key.fileobj is not self._woken for key, _ in selector.select()):
                with contextlib.suppress(OSError):  # whoever came has left again
                    connection, _ = self._bound.sock.accept()
                    self._connections.append(connection)
                    if self._hello:
                        connection.sendall(self._hello)

    def close(self) -> None:
        """Cut every connection, and unlink the socket file. Safe to repeat."""
        if self._thread.is_alive():
            self._wakeup.send(b"\0")
            self._thread.join()
        for sock in (*self._connections, self._wakeup, self._woken):
            sock.close()
        self._bound.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Stall(Protocol):
    """What `hostline_stalled_peer` gives; `pytest --fixtures` explains it."""

    def __call__(self, methods: ServiceBase | Iterable[str] | None = None) -> StalledPeer:
        """Start a server that never answers; it ends with the test."""


def _hello(methods: ServiceBase | Iterable[str]) -> bytes:
    if isinstance(methods, ServiceBase):
        name, entries = methods.name, [method.entry for method in methods.methods.values()]
    elif isinstance(methods, str):
        raise TypeError(f"methods is one text, {methods!r}: write [{methods!r}]")
    else:
        name, entries = "stalled", [MethodEntry(method) for method in methods]
    return bytes(encode_hello(ServerHello(service=name, methods=entries)))


class FullBacklog:
    """An address whose server is alive, accepts nobody and has no room left in its backlog; a context manager.

    A connect waits here until its deadline (on Linux; other kernels refuse it at once).

    Args:
        address: Path of the socket file.

    Attributes:
        address: Where connects wait.
    """

    def __init__(self, address: StrPath) -> None:
        self.address = os.fspath(address)
        self._fillers: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(self.address)
            self._listener.listen(0)
            self._fill()
        except BaseException:
            self.close()
            raise

    def _fill(self) -> None:
        for _ in range(_MAX_FILLERS):
            filler = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._fillers.append(filler)
            filler.setblocking(False)
            failure = filler.connect_ex(self.address)
            if failure in (errno.EAGAIN, errno.ECONNREFUSED):
                self._fillers.pop().close()
                return
            if failure:
                raise OSError(failure, os.strerror(failure), self.address)
        raise RuntimeError(f"the backlog of {self.address} took {_MAX_FILLERS} connections and is not full")

    def accept(self, *, timeout: float = 5.0) -> socket.socket:
        """Throw out what fills the backlog, and return the connection that waited for room.

        Args:
            timeout: Seconds to wait for it.

        Returns:
            The server's end, which now belongs to the caller.

        Raises:
            TimeoutError: Nobody connected.
        """
        self._listener.settimeout(timeout)
        while self._fillers:
            connection, _ = self._listener.accept()
            connection.close()
            self._fillers.pop(0).close()
        return self._listener.accept()[0]

    def close(self) -> None:
        """Close every socket and unlink the file. Safe to repeat."""
        for sock in (*self._fillers, self._listener):
            sock.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


# --- files in the way --------------------------------------------------------------------------------


def make_stale_file(path: StrPath) -> None:
    """Leave a socket file that nobody holds, with its lock file beside it, as a server of hostline does at SIGKILL."""
    listening_socket(parse_address(path)).abandon()


@contextlib.contextmanager
def foreign_holder(path: StrPath) -> Iterator[socket.socket]:
    """Hold a path with the listening socket of a program that knows nothing of hostline's lock.

    Args:
        path: Where; whoever is in the way gets an error here.

    Yields:
        The listening socket, to see whether clients still reach it; it stays this context's own. A file at the path
        is unlinked in the end.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(os.fspath(path))
        sock.listen()
        try:
            yield sock
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def make_ordinary_file(path: StrPath, content: bytes = b"not a socket\n") -> None:
    """Put an ordinary file where a socket file is expected; a server must refuse the path and leave the file alone."""
    with open(path, "xb") as file:
        file.write(content)
