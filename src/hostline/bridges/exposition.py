"""A page of text on a socket: a thread that answers HTTP GET for one path, one request at a time, and nothing else.

For scraping metrics. The page comes from a WSGI application, the parsing of requests from the standard library; what is
here is the socket, made as safely as all of hostline's, and the bounds.
"""

from __future__ import annotations

import contextlib
import errno
import http.server
import io
import ipaddress
import logging
import os
import re
import select
import socket
import threading
import weakref
from collections.abc import Callable, Iterable
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self

from hostline.clock import Deadline, monotonic
from hostline.errors import AddressError, AddressInUseError, HostlineError
from hostline.limits import METRICS_BACKLOG, METRICS_REQUEST_SIZE, METRICS_TIMEOUT
from hostline.rpc.watching.fields import event
from hostline.unix.address import LoopbackAddress, parse_address
from hostline.unix.listening import Bound, listening_socket
from hostline.unix.oserrors import translated
from hostline.unix.sockets import accept_peer

__all__ = ["Application", "Exposition", "Listener", "listen"]

logger: Final = logging.getLogger("hostline")

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_TCP: Final = re.compile(r"(?:(\d+\.\d+\.\d+\.\d+|localhost)|\[([0-9a-fA-F:.]+)\]):(\d{1,5})")

# Seconds between two tries to listen, while the server that is being replaced still does; and after accept failed.
_PAUSE: Final = 0.05


class Listener:
    """A listening socket, with its file where it has one, that hands out admitted connections."""

    def __init__(self, sock: socket.socket, address: str, bound: Bound | None = None) -> None:
        self.sock = sock
        self.address = address
        self._bound = bound
        self._rule = None if bound is None else bound.rule  # over TCP nobody is known

    def accept(self) -> socket.socket | None:
        """Return the next connection, or None; a peer whom the file's mode does not admit is closed."""
        if self._rule is None:
            try:
                return self.sock.accept()[0]
            except BlockingIOError:
                return None
        accepted = accept_peer(self.sock, self._rule, "stream")
        if accepted is None:
            return None
        sock, peer, refusal = accepted
        peer.close()
        if refusal is None:
            return sock
        fields = event("refused", peer, address=self.address)
        logger.warning("metrics: refused %s: %s", peer.describe(), refusal, extra=fields)
        sock.close()
        return None

    def close(self) -> None:
        """Close the socket, and unlink the file if it is still ours."""
        if self._bound is not None:
            self._bound.close()
        self.sock.close()

    def abandon(self) -> None:
        """In a forked child: close the socket here, and leave the file to the parent."""
        if self._bound is not None:
            self._bound.abandon()
        self.sock.close()

    def share(self) -> Listener:
        """Return one on the same socket for a forked child; the file, and its end, stay the parent's."""
        shared = Listener(self.sock.dup(), self.address)
        shared._rule = self._rule
        return shared


def listen(
    address: str, *, mode: int | None = None, owner: int | str | None = None, group: int | str | None = None
) -> Listener:
    """Listen for scrapes.

    Args:
        address: A bare name, a path or another address of a Unix socket; or `127.0.0.1:PORT`, `[::1]:PORT` or
            `localhost:PORT`, which every user of the host can read.
        mode: Permission bits of the socket file; 0600 unless given.
        owner: User name or id that the file is given to.
        group: Group name or id that the file is given to.

    Raises:
        AddressError: The address cannot be used.
        AddressInUseError: Somebody listens there.
    """
    if (match := _TCP.fullmatch(address)) is not None:
        if mode is not None or owner is not None or group is not None:
            raise AddressError(address, "a TCP port has no mode and no owner: everybody on this host may read it")
        host = match[1] or match[2]
        return _listen_tcp(address, "127.0.0.1" if host == "localhost" else host, int(match[3]))
    where = parse_address(address)
    if isinstance(where, LoopbackAddress):
        raise AddressError(address, "scrapers do not prove a key: write 127.0.0.1:PORT, which needs none, or a path")
    bound = listening_socket(where, mode=mode, owner=owner, group=group, backlog=METRICS_BACKLOG)
    return Listener(bound.sock, str(bound.address), bound)


def _listen_tcp(address: str, host: str, port: int) -> Listener:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError as error:
        raise AddressError(address, str(error)) from error
    if not ip.is_loopback or port > 0xFFFF:
        raise AddressError(address, "metrics are served on this host only: 127.0.0.1:PORT or [::1]:PORT, up to 65535")
    sock = socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with translated("bind", "stream", address):
            sock.bind((str(ip), port))
            sock.listen(METRICS_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    shown = f"{ip}" if ip.version == 4 else f"[{ip}]"
    return Listener(sock, f"{shown}:{sock.getsockname()[1]}")


class Exposition:
    """Answer GET for one path, from a thread; a context manager.

    Args:
        make_listener: Returns the listening socket; it is this object's from then on.
        application: Makes the page, from a WSGI environment; called in the thread.
        path: The path.
        wait: Seconds to keep trying while the address is in use, in the thread; 0 lets the constructor raise.

    Raises:
        AddressError: The address cannot be used.
        AddressInUseError: Somebody listens there, and `wait` is 0.
    """

    def __init__(
        self, make_listener: Callable[[], Listener], application: Application, path: str = "/metrics", wait: float = 0.0
    ) -> None:
        self._make_listener = make_listener
        self._application = application
        self._path = path
        self._until = monotonic() + wait
        self._is_closing = False
        self._connection: socket.socket | None = None
        self._on_close: list[Callable[[], object]] = []
        self._listener = self._listen(is_last=wait <= 0)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="hostline-metrics", daemon=True)
        self._thread.start()
        _live.add(self)

    @property
    def address(self) -> str | None:
        """Where it listens; None while it waits for the address, and after the end."""
        listener = self._listener
        return None if listener is None else listener.address

    def at_close(self, function: Callable[[], object]) -> None:
        """Have `function` called at the end, in the thread."""
        self._on_close.append(function)

    def stop(self) -> None:
        """Begin to end, without waiting: from any thread, the one that makes the page included. Safe to repeat."""
        self._is_closing = True
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"x", getattr(socket, "MSG_DONTWAIT", 0))
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self, timeout: float = METRICS_TIMEOUT) -> None:
        """End: the socket is closed, its file unlinked. Safe to repeat.

        Args:
            timeout: Seconds to wait for a page that is being made.
        """
        self.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def forget_in_child(self) -> None:
        """In a forked child: its thread is not here, and a listening socket kept open would outlive the parent."""
        self._is_closing = True
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.abandon()
        for sock in (self._wake_reader, self._wake_writer, self._connection):
            if sock is not None:
                sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- in the thread -----------------------------------------------------------------------------------

    def _listen(self, *, is_last: bool) -> Listener | None:
        try:
            return self._make_listener()
        except AddressInUseError:
            if is_last:
                raise
            return None

    def _run(self) -> None:
        try:
            while self._listener is None and not self._is_closing:
                self._rest()
                self._listener = self._listen(is_last=monotonic() >= self._until)
            while not self._is_closing and self._listener is not None:
                self._serve_next(self._listener)
        except HostlineError as error:
            logger.error("metrics are not served: %s", error, extra=event("metrics_failed", reason=str(error)))
        finally:
            listener, self._listener = self._listener, None
            if listener is not None:
                listener.close()
            self._wake_reader.close()
            self._wake_writer.close()
            for function in self._on_close:
                function()

    def _rest(self) -> None:
        select.select([self._wake_reader], [], [], _PAUSE)

    def _serve_next(self, listener: Listener) -> None:
        poll = select.poll()
        poll.register(listener.sock, select.POLLIN)
        poll.register(self._wake_reader, select.POLLIN)
        poll.poll()
        if self._is_closing:
            return
        try:
            sock = listener.accept()
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EBADF):
                self._is_closing = True  # somebody shut it down
            self._rest()  # or descriptors ran out
            return
        if sock is None:
            return
        self._connection = sock
        try:
            self._answer(sock, Deadline.after(METRICS_TIMEOUT))
        except OSError:
            pass  # it is gone, or too slow
        finally:
            self._connection = None
            sock.close()

    def _answer(self, sock: socket.socket, deadline: Deadline) -> None:
        request = b""
        while b"\r\n\r\n" not in request and b"\n\n" not in request:
            if len(request) >= METRICS_REQUEST_SIZE:
                break  # the parser will say so
            sock.settimeout(max(deadline.remaining(), 0.001))
            data = sock.recv(METRICS_REQUEST_SIZE - len(request))
            if not data:
                return
            request += data
        answer = _Handler(request, self._application, self._path).answer
        left = memoryview(answer)
        while left:
            sock.settimeout(max(deadline.remaining(), 0.001))
            left = left[sock.send(left, getattr(socket, "MSG_NOSIGNAL", 0)) :]
        sock.shutdown(socket.SHUT_WR)


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request, in memory: the standard library parses it, and writes the head of the answer."""

    def __init__(self, request: bytes, application: Application, path: str) -> None:
        self._application = application
        self._path = path
        self.rfile = io.BytesIO(request)
        self.wfile = io.BytesIO()
        self.client_address = ("", 0)
        if not request.rstrip(b" ").endswith((b"\r\n\r\n", b"\n\n")) and len(request) >= METRICS_REQUEST_SIZE:
            self.requestline, self.request_version, self.command = "", "HTTP/1.0", ""
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            self.handle_one_request()
        self.answer = self.wfile.getvalue()

    def version_string(self) -> str:
        return "hostline"

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a scrape every few seconds is no news."""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != self._path:
            self.send_error(HTTPStatus.NOT_FOUND, explain=f"there is only {self._path}")
            return
        environment = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": self._path,
            "QUERY_STRING": "",
            "HTTP_ACCEPT": self.headers.get("Accept", ""),
            "HTTP_ACCEPT_ENCODING": self.headers.get("Accept-Encoding", ""),
        }
        begun: list[Any] = []
        try:
            body = b"".join(self._application(environment, lambda *head: begun.extend(head)))
        except Exception as error:  # the page's maker may be anybody's code
            logger.warning("metrics cannot be collected", exc_info=error, extra=event("metrics_failed"))
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain="metrics cannot be collected; see the log")
            return
        self.send_response(int(begun[0].split()[0]))
        for name, value in begun[1]:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


_live: weakref.WeakSet[Exposition] = weakref.WeakSet()


def _forget_in_child() -> None:
    for exposition in list(_live):
        exposition.forget_in_child()
    _live.clear()


os.register_at_fork(after_in_child=_forget_in_child)
