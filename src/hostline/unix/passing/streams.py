"""What a stream has brought, with the descriptors that came beside it: for connections on which bytes are frames.

With the compiled core in C (mmsg.pyx), here in Python; both leave it to ancillary.py to say what may come.
"""

from __future__ import annotations

import socket

from hostline.unix.passing.ancillary import recv_message, recv_message_into
from hostline.unix.passing.descriptors import Fd

__all__ = ["recv_stream", "recv_stream_into"]


def _recv_stream(
    sock: socket.socket, size: int, max_fds: int, flags: int
) -> tuple[bytes, list[Fd] | None] | tuple[None, None]:
    """Return what one read gives, and the descriptors that came with it; None where nothing has come.

    Args:
        sock: A stream socket.
        size: Bytes to take at most.
        max_fds: Descriptors to take at most; at 0 the kernel drops what comes.
        flags: `MSG_DONTWAIT`. In C it may be left out: then the kernel waits as long as `SO_RCVTIMEO` says, and nothing
            has come when that is over or a signal came.

    Returns:
        The bytes, none at the end of the stream, and the descriptors or None.

    Raises:
        DescriptorError: More descriptors than `max_fds` came, or this process has no free one.
        SocketError: The peer is gone, or another refusal of the kernel.
    """
    try:
        data, fds, _, _, _ = recv_message(sock, size, max_fds, flags=flags)
    except BlockingIOError:
        return None, None
    return data, fds or None


def _recv_stream_into(
    sock: socket.socket, space: memoryview, max_fds: int, flags: int
) -> tuple[memoryview, list[Fd] | None] | tuple[None, None]:
    """Read to where it stays, until that is full, nothing is left to be read now, or descriptors came.

    Args:
        sock: A stream socket.
        space: Where to put it; it has room for a byte.
        max_fds: As for `recv_stream`.
        flags: For the first read, as for `recv_stream`; the others do not wait.

    Returns:
        The part of `space` that was filled, empty at the end of the stream, and the descriptors or None. Twice None
        where nothing has come.

    Raises:
        DescriptorError: As from `recv_stream`.
        SocketError: As from `recv_stream`.
    """
    count = 0
    try:
        count, fds = recv_message_into(sock, space, max_fds, flags=flags)
        came = count
        while came and count < len(space) and not fds:  # what brought descriptors is looked at first
            came, fds = recv_message_into(sock, space[count:], max_fds, flags=flags | socket.MSG_DONTWAIT)
            count += came
    except BlockingIOError:
        return (space[:count], None) if count else (None, None)
    return space[:count], fds or None


try:
    from hostline.unix.passing.mmsg import recv_stream, recv_stream_into
except ImportError:  # not compiled, or not Linux
    recv_stream, recv_stream_into = _recv_stream, _recv_stream_into
