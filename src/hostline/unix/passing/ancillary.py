"""One message out, one message in, with the descriptors and credentials that ride beside its bytes.

Calls the kernel once and never waits: on a non-blocking socket `BlockingIOError` comes through untouched. Knows no
frames.

More than 400 lines: what is sent and what is received rests on the same rules of the kernel, and they stand once.

Rules of the kernel this rests on (unix(7), cmsg(3), and tried out on Linux 6.18):

- Descriptors belong to the first byte they were sent with. On a stream they end a read early, and descriptors sent
  without any byte are dropped in silence, so that is refused here.
- A receive without room for them (a plain `recv`, or no control buffer) installs nothing: the kernel drops them. With
  room, they sit in our table before any code of ours runs.
- `CMSG_SPACE` rounds up and so lets one more descriptor in than was asked for; `CMSG_LEN` does not.
- The end of a seqpacket stream and an empty packet look alike. With `SO_TIMESTAMPNS` on, every packet carries a control
  message, and the end carries none. The option needs 32 bytes of control room, which descriptors cannot use.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import socket
import struct
import sys
import termios
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hostline.errors import DescriptorError, HostlineError, TruncatedError
from hostline.limits import HARD_MAX_FDS
from hostline.unix.address import AbstractAddress, Address, PathAddress
from hostline.unix.credentials import CREDENTIALS_SIZE, Peer, unpack_credentials
from hostline.unix.oserrors import translate
from hostline.unix.passing.descriptors import Fd, HasFileno, close_all

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = [
    "MAX_DATAGRAM_SIZE",
    "MSG_NOSIGNAL",
    "Datagram",
    "Message",
    "Received",
    "arrived_fds",
    "control_room",
    "judge_message",
    "recv_datagram",
    "recv_message",
    "recv_message_into",
    "send_failure",
    "send_message",
]

_IS_LINUX = sys.platform == "linux"

# A peer that is gone must give an error, never SIGPIPE, whatever the program did to its signal handlers.
MSG_NOSIGNAL: int = getattr(socket, "MSG_NOSIGNAL", 0)
_MSG_CMSG_CLOEXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)

_INT_SIZE = array.array("i").itemsize
_RIGHTS_HEADER = socket.CMSG_LEN(0)
_TIMESTAMP_SPACE = socket.CMSG_SPACE(16) if _IS_LINUX else 0
_CREDENTIALS_SPACE = socket.CMSG_SPACE(CREDENTIALS_SIZE) if _IS_LINUX else 0

# The largest datagram that a sender with the usual buffer (net.core.wmem_default of 212992) can make, rounded up. A
# smaller receive would lose legal messages, and a larger one is paid for with every call.
MAX_DATAGRAM_SIZE = 256 << 10

# What came beside the bytes: level, type, and what it is; for descriptors perhaps their owners already (mmsg.pyx).
Ancillary = Sequence[tuple[int, int, bytes | list[Fd]]]

# What one recvmsg gives: data, ancillary data, flags, and the sender's address.
Message = tuple[bytes, Ancillary, int, Any]

# Buffers that one sendmsg takes (UIO_MAXIOV).
_MAX_BUFFERS = 1024


class Received(NamedTuple):
    """Hold what one receive gave.

    Attributes:
        data: The bytes: one packet whole, or some bytes of a stream.
        fds: The descriptors that came with it, in the order sent; they belong to whoever holds this.
        is_end: The other side ended; `data` is empty then. An empty packet is not an end.
        sender: For a datagram, the address its sender is bound to, or None: it is bound to none, or to a relative path,
            which means another file here. The peer chose it: nothing may be decided by it.
        peer: For a datagram received with credentials, who sent it, or None where the kernel did not know.
    """

    data: bytes
    fds: list[Fd]
    is_end: bool = False
    sender: Address | None = None
    peer: Peer | None = None


class Datagram(NamedTuple):
    """Hold one datagram as `Datagrams.recv_from` gives it.

    Attributes:
        data: The bytes; none is legal.
        sender: As in `Received`.
        fds: As in `Received`.
        peer: As in `Received`; it attributes the datagram and authorises nothing.
    """

    data: bytes
    sender: Address | None
    fds: list[Fd]
    peer: Peer | None


# --- sending -----------------------------------------------------------------------------------------


def send_message(
    sock: socket.socket,
    buffers: Sequence[ReadableBuffer],
    fds: Sequence[int | HasFileno] = (),
    *,
    to: str | bytes | None = None,
    flags: int = 0,
    socket_type: str = "stream",
    address: str = "",
) -> int:
    """Send the buffers as one message, with descriptors on its first byte.

    Args:
        sock: The socket; on a non-blocking one nothing waits.
        buffers: One or more pieces, sent back to back; one message on seqpacket and datagram.
        fds: Numbers, `Fd`s or anything with `fileno()`. They stay the sender's and may be closed once this returns.
        to: Where a datagram goes, as the kernel takes it; None on a connected socket.
        flags: Added to the call: `MSG_DONTWAIT`.
        socket_type: For the rule about empty messages, and for the error's text.
        address: For the error's text.

    Returns:
        The number of bytes sent: all of them on seqpacket and datagram, perhaps fewer on a stream. The descriptors went
        with the first; do not send them again with the rest.

    Raises:
        BlockingIOError: It would have to wait.
        ValueError: Descriptors without a byte on a stream (in its first 1,024 pieces), or more than 253 of them.
        DescriptorError: A descriptor is not open, the receiver takes none, or too many are on their way.
        SocketError: The peer is gone, the packet is too long, or another refusal of the kernel.
    """
    flags |= MSG_NOSIGNAL
    try:
        if not fds:
            if to is None and len(buffers) == 1:
                return sock.send(buffers[0], flags)
            return _sendmsg(sock, _at_most(buffers, socket_type), (), flags, to)
        numbers = _numbers(fds)
        pieces = _at_most(buffers, socket_type)  # cut before the check: bytes behind the cut carry no descriptors
        if socket_type == "stream" and not any(memoryview(piece).nbytes for piece in pieces):
            raise ValueError("descriptors need at least one byte beside them on a stream; the kernel would drop them")
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)]
        return _sendmsg(sock, pieces, ancillary, flags, to)
    except BlockingIOError:
        raise
    except OSError as error:
        if isinstance(error, HostlineError):
            raise
        raise send_failure(error, sock, len(fds), socket_type, address) from error


def _sendmsg(
    sock: socket.socket,
    buffers: Sequence[ReadableBuffer],
    ancillary: Sequence[tuple[int, int, ReadableBuffer]],
    flags: int,
    to: str | bytes | None,
) -> int:
    if to is None:
        return sock.sendmsg(buffers, ancillary, flags)
    return sock.sendmsg(buffers, ancillary, flags, to)


def _at_most(buffers: Sequence[ReadableBuffer], socket_type: str) -> Sequence[ReadableBuffer]:
    """Return no more pieces than one call takes: a stream may send fewer bytes, a packet has to be joined."""
    if len(buffers) <= _MAX_BUFFERS:
        return buffers
    return buffers[:_MAX_BUFFERS] if socket_type == "stream" else [b"".join(buffers)]


def _numbers(fds: Sequence[int | HasFileno]) -> array.array[int]:
    if len(fds) > HARD_MAX_FDS:
        raise ValueError(f"{len(fds)} descriptors in one message exceed the kernel's {HARD_MAX_FDS}")
    numbers = array.array("i", [fd if isinstance(fd, int) else fd.fileno() for fd in fds])
    if min(numbers) < 0:
        raise DescriptorError(errno.EBADF, "a descriptor to be sent is closed")
    return numbers


def send_failure(error: OSError, sock: socket.socket, fds_count: int, socket_type: str, address: str) -> OSError:
    """Return what to raise for a send that failed: three errnos mean something else when descriptors are on board."""
    if fds_count and sock.fileno() >= 0:
        if error.errno == errno.ETOOMANYREFS:
            return DescriptorError(
                error.errno, "too many descriptors of this user are on their way: receivers have not taken earlier ones"
            )
        if error.errno == errno.EPERM:
            return DescriptorError(error.errno, f"the receiver takes no descriptors, and {fds_count} were to be sent")
        if error.errno == errno.EBADF:
            return DescriptorError(error.errno, "a descriptor to be sent is not open")
    return translate(error, "send", socket_type, address)


# --- receiving ---------------------------------------------------------------------------------------


def recv_message(
    sock: socket.socket,
    size: int,
    max_fds: int = 0,
    *,
    flags: int = 0,
    socket_type: str = "stream",
    has_credentials: bool = False,
    address: str = "",
) -> Received:
    """Receive one packet, or what one read of a stream gives, with at most `max_fds` descriptors.

    Received descriptors are close-on-exec from the first instant. After a `DescriptorError` the connection is out of
    step with its peer and has to be closed; after a `TruncatedError` the next packet is intact.

    Args:
        sock: The socket; on a non-blocking one nothing waits.
        size: Bytes to take at most; on a packet socket the largest packet that is taken.
        max_fds: Descriptors to take at most; at 0 nothing is ever installed in this process (on seqpacket that rests on
            `mark_packets`; without it up to four come in and are closed at once).
        flags: Added to the call: `MSG_DONTWAIT`.
        socket_type: `stream`, `seqpacket` or `datagram`.
        has_credentials: `allow_credentials` was called on this socket.
        address: For the error's text.

    Raises:
        BlockingIOError: It would have to wait.
        ValueError: `size` is not positive.
        TruncatedError: The packet is longer than `size`; its descriptors were closed.
        DescriptorError: More descriptors than `max_fds`, or this process's table is full; all that came were closed.
        SocketError: The peer is gone, or another refusal of the kernel.
    """
    if size < 1:
        raise ValueError(f"size of {size} bytes must be at least 1")
    if socket_type == "stream" and not max_fds:
        try:
            data = sock.recv(size, flags)
        except BlockingIOError:
            raise
        except OSError as error:
            raise translate(error, "recv", socket_type, address) from error
        return Received(data, [], not data)
    control_size = control_room(max_fds, socket_type, has_credentials)
    try:
        message = sock.recvmsg(size, control_size, flags | _MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        raise
    except OSError as error:
        raise translate(error, "recv", socket_type, address) from error
    return judge_message(sock, message, size, max_fds, socket_type)


def control_room(max_fds: int, socket_type: str, has_credentials: bool) -> int:
    """Return the bytes of ancillary data to make room for."""
    room = _rights_room(max_fds) if max_fds else 0
    if socket_type == "seqpacket":
        room += _TIMESTAMP_SPACE
    elif socket_type == "datagram" and has_credentials:
        room += _CREDENTIALS_SPACE
    return room


def judge_message(sock: socket.socket, message: Message, size: int, max_fds: int, socket_type: str) -> Received:
    """Return what a message brought, or raise what is wrong with it."""
    data, ancillary, answer, sender = message
    fds: list[Fd] = []
    peer: Peer | None = None
    for _level, kind, value in ancillary:
        if kind == socket.SCM_RIGHTS:
            fds = _take_over(value, fds)
        elif kind == _SCM_CREDENTIALS and isinstance(value, bytes):
            peer = unpack_credentials(value)
    if answer & _TRUNCATED or len(fds) > max_fds:
        close_all(fds)
        raise _receive_failure(answer, len(fds), max_fds, size, socket_type)
    is_end = not data and not ancillary and (socket_type == "stream" or _has_ended(sock, socket_type))
    return Received(data, fds, is_end, _sender(sender) if sender else None, peer)


def recv_message_into(
    sock: socket.socket, space: memoryview, max_fds: int = 0, *, flags: int = 0, address: str = ""
) -> tuple[int, list[Fd]]:
    """Receive what one read of a stream gives into memory; return how many bytes came, 0 at the end, and descriptors.

    Arguments and errors are those of `recv_message`.
    """
    ancillary: list[tuple[int, int, bytes]] = []
    answer = 0
    try:
        if max_fds:
            count, ancillary, answer, _ = sock.recvmsg_into([space], _rights_room(max_fds), flags | _MSG_CMSG_CLOEXEC)
        else:
            count = sock.recv_into(space, 0, flags)
    except BlockingIOError:
        raise
    except OSError as error:
        raise translate(error, "recv", "stream", address) from error
    return count, arrived_fds(ancillary, answer, len(space), max_fds, "stream")


def arrived_fds(ancillary: Ancillary, answer: int, size: int, max_fds: int, socket_type: str) -> list[Fd]:
    """Return the descriptors that came beside some bytes, or close them and raise what is wrong."""
    fds: list[Fd] = []
    for _level, kind, value in ancillary:
        if kind == socket.SCM_RIGHTS:
            fds = _take_over(value, fds)
    if answer & _TRUNCATED or len(fds) > max_fds:
        close_all(fds)
        raise _receive_failure(answer, len(fds), max_fds, size, socket_type)
    return fds


def recv_datagram(
    sock: socket.socket,
    size: int,
    max_fds: int = 0,
    *,
    flags: int = 0,
    has_credentials: bool = False,
    address: str = "",
) -> Datagram:
    """Receive one datagram; arguments and errors are those of `recv_message`."""
    data, fds, _, sender, peer = recv_message(
        sock,
        size,
        max_fds,
        flags=flags,
        socket_type="datagram",
        has_credentials=has_credentials,
        address=address,
    )
    return Datagram(data, sender, fds, peer)


_TRUNCATED = socket.MSG_TRUNC | socket.MSG_CTRUNC
_SCM_CREDENTIALS: int = getattr(socket, "SCM_CREDENTIALS", -1)
_POLLRDHUP: int = getattr(select, "POLLRDHUP", 0x2000)


def _sender(raw: str | bytes) -> Address | None:
    if isinstance(raw, bytes):
        return AbstractAddress(raw[1:])
    return PathAddress(raw) if raw.startswith("/") else None


def _rights_room(max_fds: int) -> int:
    if not _IS_LINUX:
        # Elsewhere descriptors beyond the buffer stay open in this process and nobody learns their numbers: take
        # all that can come, count them, and close them.
        max_fds = HARD_MAX_FDS
    return _RIGHTS_HEADER + max_fds * _INT_SIZE


def _take_over(value: bytes | list[Fd], before: list[Fd]) -> list[Fd]:
    """Return what came before, and owners for the descriptors of one more control message, made if they are not yet.

    Lists are not extended: where memory for that is lacking, CPython 3.11 forgets to let go of what was to be added.
    """
    if isinstance(value, list):
        return before + value if before else value
    numbers = struct.unpack_from(f"{len(value) // _INT_SIZE}i", value)
    fds = [Fd(number) for number in numbers]
    if not _MSG_CMSG_CLOEXEC:
        for number in numbers:
            os.set_inheritable(number, False)
    return before + fds if before else fds


def _receive_failure(answer: int, arrived: int, max_fds: int, size: int, socket_type: str) -> HostlineError:
    if not answer & socket.MSG_CTRUNC and arrived <= max_fds:
        return TruncatedError(f"{socket_type} message is longer than max_size of {size} bytes, and its rest is lost")
    if max_fds == 0:
        return DescriptorError(errno.EPERM, "the peer sent descriptors, and none were asked for (max_fds=0)")
    if arrived < max_fds:
        # The buffer had room, so that the table had none.
        return DescriptorError(
            errno.EMFILE, f"only {arrived} of the descriptors sent could be taken: this process has no more free ones"
        )
    return DescriptorError(errno.EMSGSIZE, f"the peer sent more descriptors than max_fds of {max_fds}")


def _has_ended(sock: socket.socket, socket_type: str) -> bool:
    """Say whether an unmarked empty read was the end: the other side has shut down and nothing is queued any more.

    Where packets are marked this only confirms. Where they cannot be, empty packets at the very end are taken for it.
    """
    if socket_type != "seqpacket":
        return False
    poller = select.poll()
    poller.register(sock, _POLLRDHUP)
    if not poller.poll(0):
        return False
    waiting = bytearray(4)
    fcntl.ioctl(sock, termios.FIONREAD, waiting)
    return waiting == b"\0\0\0\0"
