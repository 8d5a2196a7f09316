"""Raw Unix sockets for blocking code: listen, connect, send, receive, with descriptors and known peers.

Knows no frames and no calls. The twin of `aio/sockets.py`; what is sent and received is in `connection.py` and
`datagrams.py`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import ClassVar, Literal, overload

from hostline.clock import Deadline, monotonic
from hostline.errors import ClosedError
from hostline.limits import DEFAULT_CONNECT_TIMEOUT, DEFAULT_MAX_FDS
from hostline.protocol.serving.accepting import Accepting
from hostline.rpc.watching.fields import event
from hostline.sync.connection import Connection
from hostline.sync.datagrams import Datagrams
from hostline.sync.polling import READABLE, Endpoint, Wakeup
from hostline.unix import sockets
from hostline.unix.address import Address, SocketType, parse_address
from hostline.unix.credentials import Peers, read_peer
from hostline.unix.listening import Bound, listening_socket
from hostline.unix.options import checked_max_fds
from hostline.unix.oserrors import printable, translate

__all__ = ["Connection", "Datagrams", "Listener", "connect_socket", "listen", "socketpair"]

_log = logging.getLogger("hostline")

# Seconds between two looks whether a descriptor came back, while a listener rests for want of one.
_REST_SLICE = 0.05


class Listener(Endpoint):
    """Accept connections at one address; made by `listen`.

    The socket may be lent through `socket` and `fileno()` to whoever accepts instead, asyncio or a web server; the
    listener goes on owning it and its file. A forked child may accept from it too, and unlinks nothing.

    Attributes:
        type: `stream` or `seqpacket`.
        address: How the address is written.
        allow: Who is admitted.
        max_fds: Descriptors that one message of an accepted connection may bring.
    """

    __slots__ = ("_accepting", "_bound", "allow", "max_fds")

    _name: ClassVar[str] = "listener"

    def __init__(self, bound: Bound, *, allow: Peers | None = None, max_fds: int = 0) -> None:
        """Take over a listening socket.

        Args:
            bound: The socket and its file; they are this object's from now on.
            allow: Who is admitted; by default those whom the file's mode admits.
            max_fds: Descriptors that one message may bring.
        """
        super().__init__(bound.sock, bound.socket_type, bound.address.text, Wakeup())
        self.allow = bound.rule if allow is None else allow
        self.max_fds = max_fds
        self._bound = bound
        self._accepting = Accepting(bound.address.text)

    def accept(self, *, timeout: float | None = None) -> Connection:
        """Return the next connection of a peer that is admitted.

        Others are closed and logged, and the wait goes on. While this process has no free descriptor it rests and
        goes on when one comes back.

        Args:
            timeout: Seconds to wait; None waits without limit.

        Raises:
            SocketTimeoutError: Nobody who is admitted connected in time.
            ClosedError: This side was closed, perhaps while waiting.
        """
        deadline = Deadline.after(timeout)
        place = object()
        try:
            self._enter(place)
            while True:
                connection = self._accept_one()
                if connection is not None:
                    return connection
                if deadline.has_passed():  # also when refused peers keep coming
                    raise translate(TimeoutError(), "accept", self.type, self.address)
                rest = self._accepting.rest_until - monotonic()
                if rest > 0:
                    self._wait(0, deadline, "accept", at_most=min(rest, _REST_SLICE))
                else:
                    self._wait(READABLE, deadline, "accept")
        finally:
            self._users.pop(place, None)
            if self._is_closed:
                self._release_if_free()

    def _accept_one(self) -> Connection | None:
        """Accept and admit one connection, if there is one and no rest is due."""
        if self._accepting.rest_until > monotonic():
            return None
        try:
            accepted = sockets.accept_peer(self._sock, self.allow, self.type, max_fds=self.max_fds)
        except OSError as error:
            decision = self._accepting.failed(error.errno, monotonic())
            if decision.log:
                _log.warning("%s", decision.log, extra=event("accept_failed", address=self.address))
            if decision.is_fatal:
                if self._is_closed:
                    raise self._closed() from error
                raise translate(error, "accept", self.type, self.address) from error
            return None
        if accepted is None:
            return None
        self._accepting.succeeded()
        sock, peer, refusal = accepted
        try:
            if refusal is None:
                on_close = self._accepting.descriptor_returned
                return Connection(sock, self.type, self.address, peer, max_fds=self.max_fds, on_close=on_close)
            _log.info(
                "%s: refused pid %d: %s",
                printable(self.address),
                peer.pid,
                refusal,
                extra=event("refused", peer, address=self.address),
            )
        except BaseException:
            sock.close()
            raise
        peer.close()
        sock.close()
        return None

    def __iter__(self) -> Iterator[Connection]:
        """Accept until this side is closed."""
        while True:
            try:
                connection = self.accept()
            except ClosedError:
                return
            yield connection

    def _release(self) -> None:
        self._bound.close()
        super()._release()


@overload
def listen(
    address: str | os.PathLike[str] | Address,
    type: Literal["stream", "seqpacket"] = "stream",
    *,
    mode: int | None = None,
    owner: int | str | None = None,
    group: int | str | None = None,
    backlog: int | None = None,
    allow: Peers | None = None,
    max_fds: int = DEFAULT_MAX_FDS,
    credentials: bool = False,
) -> Listener: ...


@overload
def listen(
    address: str | os.PathLike[str] | Address,
    type: Literal["datagram"],
    *,
    mode: int | None = None,
    owner: int | str | None = None,
    group: int | str | None = None,
    backlog: int | None = None,
    allow: Peers | None = None,
    max_fds: int = DEFAULT_MAX_FDS,
    credentials: bool = False,
) -> Datagrams: ...


def listen(
    address: str | os.PathLike[str] | Address,
    type: SocketType = "stream",
    *,
    mode: int | None = None,
    owner: int | str | None = None,
    group: int | str | None = None,
    backlog: int | None = None,
    allow: Peers | None = None,
    max_fds: int = DEFAULT_MAX_FDS,
    credentials: bool = False,
) -> Listener | Datagrams:
    """Listen at an address, or receive there if the type is `datagram`.

    Args:
        address: `/run/x.sock`, `payments`, `unix:@name`, `fd:3`, `systemd:NAME`, ...
        type: `stream`, `seqpacket` or `datagram`.
        mode: Permission bits of the socket file; 0600 unless given.
        owner: User name or id that the file is given to.
        group: Group name or id that the file is given to.
        backlog: Connections that wait to be accepted; as many as the host allows unless given.
        allow: Who is admitted; by default those whom the file's mode admits. Not for datagrams, which the kernel
            vouches for one by one at most.
        max_fds: Descriptors that one message may bring; none unless asked for.
        credentials: Whether each datagram comes with its sender's credentials.

    Returns:
        A `Listener`, or `Datagrams`; closing it unlinks the socket file.

    Raises:
        AddressError: The address cannot be used as written.
        AddressInUseError: A live server holds it.
        NotASocketError: Something else than a socket is there; it was left alone.
        ValueError: Options that do not go together.
        SocketError: Another refusal of the kernel.
    """
    checked_max_fds(max_fds)
    sockets.check_listen_options(type, allow=allow, credentials=credentials)
    bound = listening_socket(
        parse_address(address),
        type,
        mode=mode,
        owner=owner,
        group=group,
        backlog=backlog,
        max_fds=max_fds,
        credentials=credentials,
    )
    try:
        if type == "datagram":
            return Datagrams(bound.sock, bound.address.text, max_fds=max_fds, credentials=credentials, bound=bound)
        return Listener(bound, allow=allow, max_fds=max_fds)
    except BaseException:
        bound.close()
        raise


@overload
def connect_socket(
    address: str | os.PathLike[str] | Address,
    type: Literal["stream", "seqpacket"] = "stream",
    *,
    server: Peers | None = None,
    max_fds: int = DEFAULT_MAX_FDS,
    timeout: float | None = DEFAULT_CONNECT_TIMEOUT,
) -> Connection: ...


@overload
def connect_socket(
    address: str | os.PathLike[str] | Address,
    type: Literal["datagram"],
    *,
    server: Peers | None = None,
    max_fds: int = DEFAULT_MAX_FDS,
    timeout: float | None = DEFAULT_CONNECT_TIMEOUT,
) -> Datagrams: ...


def connect_socket(
    address: str | os.PathLike[str] | Address,
    type: SocketType = "stream",
    *,
    server: Peers | None = None,
    max_fds: int = DEFAULT_MAX_FDS,
    timeout: float | None = DEFAULT_CONNECT_TIMEOUT,
) -> Connection | Datagrams:
    """Connect to a server, and check who it is before a byte is sent.

    A full backlog is waited out. A symbolic link at the address is followed, as the kernel does.

    Args:
        address: `/run/x.sock`, `payments`, `unix:@name`, ...
        type: `stream`, `seqpacket` or `datagram`.
        server: Which users' servers are trusted: this user's and root's unless given. The kernel does not say who
            receives datagrams, so that there is nothing to check for them but the file's directory.
        max_fds: Descriptors that one message may bring; none unless asked for.
        timeout: Seconds to wait for a place in a full backlog; None waits without limit.

    Returns:
        A `Connection`, or `Datagrams`, connected.

    Raises:
        ConnectTimeoutError: The backlog stayed full.
        AddressNotFoundError: Nothing is there.
        ConnectRefusedError: A socket file with nobody behind it.
        NotASocketError: Something else than a socket is there.
        AccessDeniedError: The kernel denies this user the address.
        PeerRefusedError: The server runs as a user who is not trusted.
        SocketError: The socket there is of another type (the text names it), or another refusal.
    """
    sockets.check_connect_options(type, server=server)
    target = parse_address(address)
    sock = sockets.connect_blocking(target, type, Deadline.after(timeout), max_fds=max_fds)
    try:
        if type == "datagram":
            return Datagrams(sock, target.text, max_fds=max_fds)
        peer = sockets.check_server(sock, Peers.same_user() if server is None else server, target, type)
        return Connection(sock, type, target.text, peer, max_fds=max_fds)
    except BaseException:
        sock.close()
        raise


@overload
def socketpair(
    type: Literal["stream", "seqpacket"] = "stream", *, max_fds: int = DEFAULT_MAX_FDS
) -> tuple[Connection, Connection]: ...


@overload
def socketpair(type: Literal["datagram"], *, max_fds: int = DEFAULT_MAX_FDS) -> tuple[Datagrams, Datagrams]: ...


def socketpair(
    type: SocketType = "stream", *, max_fds: int = DEFAULT_MAX_FDS
) -> tuple[Connection, Connection] | tuple[Datagrams, Datagrams]:
    """Return two connected ends, without any address.

    Args:
        type: `stream`, `seqpacket` or `datagram`.
        max_fds: Descriptors that one message may bring; none unless asked for.

    Raises:
        SocketError: This process has no free descriptors.
    """
    one, other = sockets.socketpair(type, max_fds=max_fds)
    try:
        if type == "datagram":
            return Datagrams(one, max_fds=max_fds), Datagrams(other, max_fds=max_fds)
        return (
            Connection(one, type, "", read_peer(one), max_fds=max_fds),
            Connection(other, type, "", read_peer(other), max_fds=max_fds),
        )
    except BaseException:
        one.close()
        other.close()
        raise
