"""Sockets without waiting: open, connect, accept. Both faces and the servers above stand on these.

Knows the three socket types and what the kernel answers; knows no event loop and no frames. `connect_blocking` is the
one call that waits, because only the kernel can wait for a place in a full backlog.

Facts this rests on (unix(7), connect(2), and tried out on Linux 6.18): a non-blocking connect to a full backlog is
answered `EAGAIN`, and there is nothing to poll for afterwards; a blocking one queues and obeys `SO_SNDTIMEO`;
Python's own `connect`, when a signal interrupts it, polls and reports a success that never was. A connect follows
symbolic links, as the kernel does; a bind never does.
"""

from __future__ import annotations

import errno
import math
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from hostline.clock import Deadline, monotonic
from hostline.errors import ConnectTimeoutError, PeerRefusedError, SocketError
from hostline.unix.address import AbstractAddress, Address, PathAddress, SocketType, reachable
from hostline.unix.credentials import Peer, Peers, read_peer
from hostline.unix.options import (
    check_target,
    checked_max_fds,
    checked_type,
    disallow_fds,
    mark_packets,
    set_kernel_timeout,
)
from hostline.unix.oserrors import printable, translate

__all__ = [
    "Accepted",
    "accept_one",
    "accept_peer",
    "backlog_full",
    "check_connect_options",
    "check_listen_options",
    "check_server",
    "connect_blocking",
    "has_hung_up",
    "is_connected",
    "kernel_address",
    "open_socket",
    "prepare_connection",
    "socketpair",
    "try_connect",
]

# The longest SO_SNDTIMEO asked for at once, in seconds, far from overflow; whoever has longer asks again.
_LONGEST_WAIT = 3600.0


def open_socket(socket_type: SocketType, *, max_fds: int = 0) -> socket.socket:
    """Return a new non-blocking, close-on-exec socket that takes descriptors only if asked to.

    Args:
        socket_type: `stream`, `seqpacket` or `datagram`.
        max_fds: Descriptors that one message may bring; at 0 the kernel is told to refuse them.

    Returns:
        The socket; it is the caller's.

    Raises:
        ValueError: The type is none of the three.
        SocketError: This process has no free descriptor, or this platform lacks the type.
    """
    kernel_type = checked_type(socket_type)
    checked_max_fds(max_fds)
    try:
        sock = socket.socket(socket.AF_UNIX, kernel_type)
    except OSError as error:
        raise translate(error, "socket", socket_type, "") from error
    sock.setblocking(False)
    prepare_connection(sock, socket_type, max_fds)
    return sock


def prepare_connection(sock: socket.socket, socket_type: SocketType, max_fds: int) -> None:
    """Set what `recv_message` relies on: marked packets, and no descriptors unless asked for.

    Args:
        sock: A new or an accepted socket; it stays the caller's.
        socket_type: Its type.
        max_fds: Descriptors that one message may bring.
    """
    if socket_type == "seqpacket":
        mark_packets(sock)
    if max_fds == 0:
        disallow_fds(sock)


def socketpair(socket_type: SocketType, *, max_fds: int = 0) -> tuple[socket.socket, socket.socket]:
    """Return two connected non-blocking sockets, close-on-exec; both are the caller's.

    Raises:
        ValueError: The type is none of the three.
        SocketError: This process has no free descriptors.
    """
    kernel_type = checked_type(socket_type)
    checked_max_fds(max_fds)
    try:
        pair = socket.socketpair(socket.AF_UNIX, kernel_type)
    except OSError as error:
        raise translate(error, "socketpair", socket_type, "") from error
    for sock in pair:
        sock.setblocking(False)
        prepare_connection(sock, socket_type, max_fds)
    return pair


def check_listen_options(socket_type: SocketType, *, allow: Peers | None, credentials: bool) -> None:
    """Refuse options of a listener that its type cannot keep.

    Raises:
        ValueError: A rule about peers on datagrams, or credentials of single messages on connections.
    """
    if socket_type == "datagram" and allow is not None:
        raise ValueError("allow= needs connections; with credentials=True each datagram says who sent it")
    if socket_type != "datagram" and credentials:
        raise ValueError("credentials=True is for datagrams; a connection has its peer")


def check_connect_options(socket_type: SocketType, *, server: Peers | None) -> None:
    """Refuse a rule about the server where the kernel does not say who it is.

    Raises:
        ValueError: A rule about the server of datagrams.
    """
    if socket_type == "datagram" and server is not None and not server.is_anyone:
        raise ValueError("server= needs a connection; the kernel does not say who receives datagrams")


# --- connecting --------------------------------------------------------------------------------------


@contextmanager
def kernel_address(address: Address) -> Iterator[bytes]:
    """Yield what `connect` and `sendto` must be given; a path that is too long is reached through its directory.

    Raises:
        AddressError: The address is no place that a Unix socket can be connected to.
        PathTooLongError: There is no way round the limit.
    """
    check_target(address)
    if isinstance(address, PathAddress):
        with reachable(address.path) as raw:
            yield raw
    elif isinstance(address, AbstractAddress):
        yield b"\0" + address.name


def is_connected(sock: socket.socket) -> bool:
    """Say whether the socket has a peer: the only proof of a successful connect."""
    try:
        sock.getpeername()
    except OSError as error:
        return error.errno != errno.ENOTCONN
    return True


def try_connect(sock: socket.socket, address: Address, socket_type: SocketType = "stream") -> bool:
    """Connect a non-blocking socket at once, or say that the backlog is full.

    Args:
        sock: A socket from `open_socket`; it stays the caller's, also on failure.
        address: Where to.
        socket_type: The socket's type, for the error.

    Returns:
        True when it is connected, which was verified; False when the server's backlog is full and it is worth trying
        again a little later.

    Raises:
        AddressNotFoundError: Nothing is there.
        ConnectRefusedError: A socket file with nobody behind it.
        NotASocketError: Something else than a socket is there.
        AccessDeniedError: The kernel denies this user the address.
        SocketError: The socket there is of another type (the text names it), or another refusal.
    """
    try:
        with kernel_address(address) as raw:
            sock.connect(raw)
    except BlockingIOError:
        return False
    except OSError as error:
        if isinstance(error, SocketError):
            raise
        if error.errno == errno.EISCONN:
            return True
        raise _connect_failure(error, address, socket_type) from error
    return is_connected(sock)


def connect_blocking(
    address: Address, socket_type: SocketType, deadline: Deadline, *, max_fds: int = 0
) -> socket.socket:
    """Return a connected socket, waiting in the kernel for a place in a full backlog.

    Args:
        address: Where to.
        socket_type: `stream`, `seqpacket` or `datagram`.
        deadline: When to stop waiting.
        max_fds: Descriptors that one message may bring.

    Returns:
        The socket, blocking and without any timeout set; it is the caller's.

    Raises:
        ConnectTimeoutError: The backlog was still full at the deadline.
        SocketError: As for `try_connect`.
    """
    sock = open_socket(socket_type, max_fds=max_fds)
    try:
        if not try_connect(sock, address, socket_type):
            _wait_for_backlog(sock, address, socket_type, deadline)
        sock.setblocking(True)
    except BaseException:
        sock.close()
        raise
    return sock


def _wait_for_backlog(sock: socket.socket, address: Address, socket_type: SocketType, deadline: Deadline) -> None:
    """Connect in the kernel's queue; after a signal whether that succeeded is looked up, not believed."""
    started = monotonic()
    sock.setblocking(True)
    with kernel_address(address) as raw:
        while True:
            left = deadline.remaining()
            if left <= 0:
                raise backlog_full(address, socket_type, monotonic() - started)
            set_kernel_timeout(sock, socket.SO_SNDTIMEO, min(left, _LONGEST_WAIT))
            try:
                sock.connect(raw)
            except BlockingIOError:
                continue  # SO_SNDTIMEO is over, and with it nearly always the deadline
            except OSError as error:
                if error.errno != errno.EISCONN:
                    raise _connect_failure(error, address, socket_type) from error
            if is_connected(sock):
                break
    set_kernel_timeout(sock, socket.SO_SNDTIMEO, math.inf)


def backlog_full(address: Address, socket_type: SocketType, waited: float) -> ConnectTimeoutError:
    """Return the error for a backlog that stayed full until the deadline.

    Args:
        address: Where to.
        socket_type: The socket's type.
        waited: Seconds since the first try.
    """
    reason = f"the server's backlog stayed full for {waited:.3f} seconds; it accepts too slowly, or not at all"
    return ConnectTimeoutError("connect", socket_type, printable(address.text), errno.EAGAIN, reason)


def _connect_failure(error: OSError, address: Address, socket_type: SocketType) -> SocketError:
    failure = translate(error, "connect", socket_type, address.text)
    if error.errno == errno.EPROTOTYPE:
        actual = _actual_type(address, socket_type)
        failure.reason = f"the socket there is of type {actual}: use type={actual!r}"
    return failure


def _actual_type(address: Address, tried: SocketType) -> SocketType:
    """Find out the type of a socket that refused ours.

    A datagram socket does not notice that somebody connects to it, and one of another type refuses without noticing
    either. So only a seqpacket server that was taken for datagrams sees a connection, which ends at once.
    """
    if tried == "datagram":
        return "stream" if _is_of_another_type(address, "seqpacket") else "seqpacket"
    if not _is_of_another_type(address, "datagram"):
        return "datagram"
    return "seqpacket" if tried == "stream" else "stream"


def _is_of_another_type(address: Address, socket_type: SocketType) -> bool:
    try:
        with open_socket(socket_type) as sock, kernel_address(address) as raw:
            sock.connect(raw)
    except OSError as error:
        return error.errno == errno.EPROTOTYPE
    return False


def check_server(sock: socket.socket, rule: Peers, address: Address, socket_type: SocketType) -> Peer:
    """Return who runs the server, if the rule admits them; call it before a byte is sent.

    Args:
        sock: A connected stream or seqpacket socket; it stays the caller's.
        rule: Which servers are trusted.
        address: For the error's text.
        socket_type: For the error's text.

    Raises:
        PeerRefusedError: The server runs as somebody else; the text says who and how to admit them.
        SocketError: The kernel does not say who it is.
    """
    try:
        peer = read_peer(sock)
    except OSError as error:
        raise translate(error, "identify", socket_type, address.text) from error
    refusal = rule.refusal(peer)
    if refusal is None:
        return peer
    raise PeerRefusedError(
        f"the server at {address} runs as {peer.describe()}, and nothing was sent to it: {refusal}; "
        f"to trust it pass server=hostline.Peers(uids=[{peer.uid}])"
    )


# --- accepting ---------------------------------------------------------------------------------------


class Accepted(NamedTuple):
    """Hold one accepted connection.

    Attributes:
        sock: The socket, non-blocking and close-on-exec; it belongs to whoever holds this.
        peer: Who connected.
        refusal: Why the rule does not admit them, in words, or None: they are admitted. Closing is left to the caller,
            who may want to tell the peer first.
    """

    sock: socket.socket
    peer: Peer
    refusal: str | None


def has_hung_up(fd: int) -> bool:
    """Say whether the other side has closed or half-closed, or for a listening socket whether somebody shut it down.

    Args:
        fd: A socket's descriptor, also one that nobody reads now.
    """
    poller = select.poll()
    # POLLHUP comes without being asked for. Of a TCP peer that has closed there is only the other at first.
    poller.register(fd, getattr(select, "POLLRDHUP", 0))
    return bool(poller.poll(0))


def accept_one(listener: socket.socket) -> socket.socket | None:
    """Return the next connection of a non-blocking listening socket, or None when there is none.

    Args:
        listener: The listening socket; it stays the caller's.

    Returns:
        The new socket, non-blocking and close-on-exec; it is the caller's.

    Raises:
        OSError: As the kernel gave it, for `protocol.serving.accepting` to judge.
    """
    while True:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return None
        except ConnectionAbortedError:
            continue  # that client has left again
        sock.setblocking(False)
        return sock


def accept_peer(listener: socket.socket, rule: Peers, socket_type: SocketType, *, max_fds: int = 0) -> Accepted | None:
    """Return the next connection with who is behind it and whether the rule admits them, or None when there is none.

    What goes wrong with one connection ends that connection and nothing else.

    Args:
        listener: A non-blocking listening socket; it stays the caller's.
        rule: Who is admitted.
        socket_type: Its type.
        max_fds: Descriptors that one message may bring.

    Raises:
        OSError: As the kernel gave it for the listening socket, for `protocol.serving.accepting` to judge.
    """
    while True:
        sock = accept_one(listener)
        if sock is None:
            if has_hung_up(listener.fileno()):
                # Without blocking, accept does not tell, and poll goes on calling it readable.
                raise OSError(errno.EINVAL, "somebody shut the listening socket down")
            return None
        try:
            prepare_connection(sock, socket_type, max_fds)
            peer = read_peer(sock)
            return Accepted(sock, peer, rule.refusal(peer))
        except OSError:
            sock.close()
        except BaseException:
            sock.close()
            raise
