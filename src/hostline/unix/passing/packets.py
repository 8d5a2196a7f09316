"""Many packets or datagrams in one call. Never waits, and knows no frames.

With the compiled core they pass without the interpreter, where none brings descriptors (mmsg.pyx); the rest is here,
and everything where that is not compiled. Both do the same.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hostline.errors import HostlineError
from hostline.unix.oserrors import translate
from hostline.unix.passing.ancillary import (
    MSG_NOSIGNAL,
    Received,
    control_room,
    judge_message,
    recv_message,
    send_failure,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

try:
    from hostline.unix.passing import mmsg
except ImportError:  # not compiled, or not Linux
    _HAS_MMSG = False
else:
    _HAS_MMSG = True

__all__ = ["recv_waiting", "send_packets"]

# Bytes of a path in a socket's address.
_PATH_SIZE = 108


def send_packets(
    sock: socket.socket,
    packets: Sequence[ReadableBuffer],
    *,
    to: str | bytes | None = None,
    flags: int = 0,
    socket_type: str = "seqpacket",
    address: str = "",
) -> int:
    """Send packets or datagrams one after the other until one would have to wait or is refused.

    With the compiled core 64 of them take one system call.

    Args:
        sock: The socket; on a non-blocking one nothing waits.
        packets: The bytes of each; at least one.
        to: As for `send_message`.
        flags: As for `send_message`.
        socket_type: For the error's text.
        address: For the error's text.

    Returns:
        How many were sent, above zero. Why the next one was not shows when it is tried again.

    Raises:
        BlockingIOError: The first would have to wait.
        SocketError: The first was refused, as by `send_message`.
    """
    flags |= MSG_NOSIGNAL
    sent = 0
    try:
        if _HAS_MMSG and sock.gettimeout() in (None, 0.0):
            target = os.fsencode(to) if to is not None else None
            if target is None or len(target) < _PATH_SIZE:
                return mmsg.send_packets(sock.fileno(), list(packets), target, flags)
        if to is None:
            send = sock.send
            for packet in packets:
                send(packet, flags)
                sent += 1
        else:
            for packet in packets:
                sock.sendto(packet, flags, to)
                sent += 1
    except OSError as error:
        if sent:
            return sent
        if isinstance(error, BlockingIOError):
            raise
        raise send_failure(error, sock, 0, socket_type, address) from error
    return sent


def recv_waiting(
    sock: socket.socket,
    size: int,
    max_fds: int,
    max_count: int,
    *,
    socket_type: str,
    has_credentials: bool = False,
    address: str = "",
) -> tuple[list[Received], HostlineError | None]:
    """Receive the packets or datagrams that wait, and do not wait for any.

    With the compiled core up to 64 of them are received in one go, where none may bring descriptors.

    Args:
        sock: The socket.
        size: As for `recv_message`.
        max_fds: As for `recv_message`.
        max_count: How many at most.
        socket_type: `seqpacket` or `datagram`.
        has_credentials: As for `recv_message`.
        address: For the error's text.

    Returns:
        What was received, and the error about the one behind them that ended it, if one did; `recv_message` would
        have raised it. The end is left for the next receive.
    """
    many: list[Received] = []
    try:
        while len(many) < max_count:
            if _HAS_MMSG and not max_fds:
                control_size = control_room(0, socket_type, has_credentials)
                messages, number = mmsg.recv_packets(sock.fileno(), size, control_size, max_count - len(many), 0)
                for message in messages:
                    one = judge_message(sock, message, size, 0, socket_type)
                    if one.is_end:
                        return many, None
                    many.append(one)
                if number:
                    _raise_failure(number, socket_type, address)
            else:
                one = recv_message(
                    sock,
                    size,
                    max_fds,
                    flags=socket.MSG_DONTWAIT,
                    socket_type=socket_type,
                    has_credentials=has_credentials,
                    address=address,
                )
                if one.is_end:
                    break
                many.append(one)
    except BlockingIOError:
        pass
    except HostlineError as error:
        return many, error
    return many, None


def _raise_failure(number: int, socket_type: str, address: str) -> None:
    error = OSError(number, os.strerror(number))
    if isinstance(error, InterruptedError):
        return  # handlers have run by now, and it is tried again
    if isinstance(error, BlockingIOError):
        raise error
    raise translate(error, "recv", socket_type, address) from error
