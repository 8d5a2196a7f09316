"""A socket's type, and the options that decide what may ride beside a message's bytes: descriptors, credentials, marks.

Sets them and says whether the kernel could; what the messages then carry is read by `ancillary.py`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import sys
import termios

from hostline.errors import AddressError
from hostline.limits import HARD_MAX_FDS, LARGE_SEND_BUFFER
from hostline.unix.address import Address, InheritedAddress, LoopbackAddress, SocketType
from hostline.unix.oserrors import translate

__all__ = [
    "allow_credentials",
    "allow_fds",
    "arrived_size",
    "check_target",
    "check_unix",
    "checked_max_fds",
    "checked_type",
    "disallow_fds",
    "forget_options",
    "largest_packet",
    "mark_packets",
    "set_kernel_timeout",
    "unread_by_peer",
    "widen",
]

_IS_LINUX = sys.platform == "linux"

_TIMEVAL = struct.Struct("@ll")
_LONGEST_TIMEVAL = 1e6  # seconds

# Linux numbers that Python's socket module lacks.
_SO_PASSRIGHTS = 83  # Linux 6.16
_SO_PASSPIDFD = 76  # Linux 6.5
_SO_PASSSEC = 34
_SO_TIMESTAMP = 29
_SO_TIMESTAMPNS = 35


def check_unix(address: Address | str = "unix:") -> None:
    """Refuse an address of loopback TCP, and every address where there are no Unix sockets.

    Args:
        address: What is to be bound or connected.

    Raises:
        AddressError: The text says what to use instead.
    """
    if isinstance(address, LoopbackAddress):
        raise AddressError(address.text, "tcp: is for services and their clients, which prove its key; use a path")
    if not hasattr(socket, "AF_UNIX"):
        text = address if isinstance(address, str) else address.text
        raise AddressError(text, "there are no Unix sockets here (no AF_UNIX); services can use tcp:NAME or tcp:PATH")


def check_target(address: Address) -> None:
    """Refuse an address that a Unix socket cannot be connected to.

    Raises:
        AddressError: It is of loopback TCP, or an inherited listening socket.
    """
    check_unix(address)
    if isinstance(address, InheritedAddress):
        raise AddressError(address.text, "is a listening socket that this process inherited; connect to its path")


def forget_options(sock: socket.socket) -> None:
    """Switch off what an inherited socket may have been given: credentials, labels and time stamps with every message.

    They would take the control room meant for descriptors, and a receive would look truncated.
    """
    if not _IS_LINUX:
        return
    for option in (socket.SO_PASSCRED, _SO_PASSSEC, _SO_PASSPIDFD, _SO_TIMESTAMP, _SO_TIMESTAMPNS):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, 0)
        except OSError:
            continue  # this kernel does not know the option, so that nobody can have set it


def disallow_fds(sock: socket.socket) -> bool:
    """Have the kernel refuse descriptors sent to this socket, so that the sender gets an error.

    Accepted sockets inherit it from their listener.

    Returns:
        Whether the kernel can (Linux 6.16 and later). Elsewhere receives without room for descriptors keep them out.
    """
    if not _IS_LINUX:
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True


def allow_fds(sock: socket.socket) -> None:
    """Take `disallow_fds` back: from now on descriptors may be sent to this socket."""
    if _IS_LINUX:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 1)
        except OSError:
            pass  # this kernel does not know the option, so that nothing was disallowed


KERNEL_TYPES: dict[str, int] = {
    "stream": socket.SOCK_STREAM,
    "seqpacket": socket.SOCK_SEQPACKET,
    "datagram": socket.SOCK_DGRAM,
}


def checked_type(socket_type: SocketType) -> int:
    """Return what the kernel calls a socket type.

    Raises:
        ValueError: The type is none of the three.
        AddressError: There are no Unix sockets here.
    """
    check_unix()
    try:
        return KERNEL_TYPES[socket_type]
    except KeyError:
        raise ValueError(f"socket type {socket_type!r} is none of stream, seqpacket, datagram") from None


def checked_max_fds(max_fds: int) -> int:
    """Return a bound on descriptors in one message, if the kernel can keep it.

    Raises:
        ValueError: It is negative, or more than one message can carry.
    """
    if not 0 <= max_fds <= HARD_MAX_FDS:
        raise ValueError(f"max_fds of {max_fds} must lie between 0 and {HARD_MAX_FDS}")
    return max_fds


def mark_packets(sock: socket.socket) -> bool:
    """Have the kernel mark every packet that arrives, so that an empty one is not taken for the end.

    Returns:
        Whether the kernel can; where not, `recv_message` asks whether the other side has ended.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True


def set_kernel_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """Set how long the kernel waits by itself in a call on a blocking socket.

    Args:
        sock: The socket.
        option: `SO_SNDTIMEO`, which also bounds a wait in a full backlog, or `SO_RCVTIMEO`.
        seconds: How long; infinity is for ever, and what is over already the shortest time there is.
    """
    if seconds > _LONGEST_TIMEVAL:
        value = _TIMEVAL.pack(0, 0)
    else:
        value = _TIMEVAL.pack(*divmod(max(1, int(seconds * 1e6)), 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, option, value)


def largest_packet(sock: socket.socket) -> int:
    """Return how many bytes the kernel carries in one packet from this socket, as its send buffer is now."""
    # unix_dgram_sendmsg, which seqpacket shares, keeps 32 bytes of the buffer for itself.
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - (32 if _IS_LINUX else 0)


def allow_credentials(sock: socket.socket) -> None:
    """Have the kernel attach the sender's credentials to every datagram; call it before `bind`.

    A datagram that was queued earlier would come without them.

    Raises:
        SocketError: This platform has no credentials on datagrams.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    except (OSError, AttributeError) as error:
        reason = error if isinstance(error, OSError) else OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        raise translate(reason, "setsockopt", "datagram", "") from error


def widen(sock: socket.socket) -> bool:
    """Let the kernel take more of what is sent at once, as far as any process may; whether that changed anything.

    With the usual buffer two processes that pass a mebibyte on wait for each other again and again, with more less
    often. Every Linux allows twice as much; over TCP the kernel finds the size by itself.
    """
    if sock.family != socket.AF_UNIX:
        return False
    before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    if before >= 2 * LARGE_SEND_BUFFER:  # Linux doubles what it is told
        return False
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGE_SEND_BUFFER)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > before


def unread_by_peer(sock: socket.socket) -> int:
    """Return what was sent and not yet read by the peer, in bytes of the kernel's memory; 0 where it does not tell.

    Args:
        sock: A connected socket.
    """
    if not _IS_LINUX:
        return 0
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0])


def arrived_size(sock: socket.socket) -> int:
    """Return how many bytes have arrived and are not read; 0 where the system does not say."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))[0])
    except OSError:
        return 0
