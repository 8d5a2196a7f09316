"""Where channels come from, for asyncio: listen, connect, pair. What they do is in `channel.py`.

The twin of `sync/channels/opening.py`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Literal, Self

from hostline.aio.channels.channel import Channel
from hostline.aio.sockets import Listener, connect_socket, listen, socketpair
from hostline.clock import Deadline
from hostline.errors import ClosedError, SocketError
from hostline.limits import DEFAULT_CONNECT_TIMEOUT, DEFAULT_MAX_FDS
from hostline.protocol.channels.messages import Messages
from hostline.unix.address import Address, SocketType
from hostline.unix.credentials import Peers

__all__ = ["Channel", "ChannelListener", "channelpair", "connect_channel", "listen_channel"]


class ChannelListener:
    """Accept channels at one address; made by `listen_channel`.

    Attributes:
        listener: The `Listener` underneath.
        max_message_size: Bytes that one message of an accepted channel may have.
    """

    __slots__ = ("__weakref__", "listener", "max_message_size")

    def __init__(self, listener: Listener, *, max_message_size: int | None = None) -> None:
        """Take over a listener.

        Args:
            listener: Of type stream or seqpacket; it is this object's from now on.
            max_message_size: Bytes that one message may have, as for `listen_channel`.

        Raises:
            ValueError: The size is not positive, or beyond the hard limit.
        """
        self.max_message_size = Messages(listener.type, max_message_size).max_message_size
        self.listener = listener

    @property
    def type(self) -> SocketType:
        """The socket's type: `stream` or `seqpacket`."""
        return self.listener.type

    @property
    def address(self) -> str:
        """How the address is written."""
        return self.listener.address

    async def accept(self, *, timeout: float | None = None) -> Channel:
        """Return the next channel of a peer that is admitted.

        Nothing waits for what the peer says: whether it speaks channels shows at the first send or receive.

        Args:
            timeout: Seconds to wait; None waits without limit.

        Raises:
            SocketTimeoutError: Nobody who is admitted connected in time.
            ClosedError: This side was closed, perhaps while waiting.
        """
        deadline = Deadline.after(timeout)
        while True:
            connection = await self.listener.accept(timeout=deadline.left())
            try:
                return Channel(connection, max_message_size=self.max_message_size)
            except SocketError:
                connection.close()  # what goes wrong with one ends that one only

    async def __aiter__(self) -> AsyncIterator[Channel]:
        """Accept until this side is closed."""
        while True:
            try:
                channel = await self.accept()
            except ClosedError:
                return
            yield channel

    def fileno(self) -> int:
        """Return the descriptor's number; it stays this object's own.

        Raises:
            ClosedError: It was closed.
        """
        return self.listener.fileno()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self.listener.is_closed

    def close(self) -> None:
        """Close and unlink the socket file; accepted channels live on."""
        self.listener.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def listen_channel(
    address: str | os.PathLike[str] | Address,
    type: Literal["stream", "seqpacket"] = "stream",
    *,
    mode: int | None = None,
    owner: int | str | None = None,
    group: int | str | None = None,
    backlog: int | None = None,
    allow: Peers | None = None,
    max_message_size: int | None = None,
    max_fds: int = DEFAULT_MAX_FDS,
) -> ChannelListener:
    """Listen at an address for channels: whole messages, and no calls.

    Args:
        address: `/run/x.sock`, `payments`, `unix:@name`, `fd:3`, `systemd:NAME`, ...
        type: `stream` or `seqpacket`; both ends need the same.
        mode: Permission bits of the socket file; 0600 unless given.
        owner: User name or id that the file is given to.
        group: Group name or id that the file is given to.
        backlog: Connections that wait to be accepted; as many as the host allows unless given.
        allow: Who is admitted; by default those whom the file's mode admits.
        max_message_size: Bytes that one message may have: 1 MiB unless given, and on seqpacket 64 KiB; a packet holds
            about 200 KiB at most.
        max_fds: Descriptors that one message may bring; none unless asked for.

    Returns:
        A `ChannelListener`; closing it unlinks the socket file.

    Raises:
        ValueError: Options that cannot be kept.
        HostlineError: As from `listen`.
    """
    if type not in ("stream", "seqpacket"):
        raise ValueError(f"channel type {type!r} is none of stream, seqpacket")
    listener = listen(address, type, mode=mode, owner=owner, group=group, backlog=backlog, allow=allow, max_fds=max_fds)
    try:
        return ChannelListener(listener, max_message_size=max_message_size)
    except BaseException:
        listener.close()
        raise


async def connect_channel(
    address: str | os.PathLike[str] | Address,
    type: Literal["stream", "seqpacket"] = "stream",
    *,
    server: Peers | None = None,
    max_message_size: int | None = None,
    max_fds: int = DEFAULT_MAX_FDS,
    timeout: float | None = DEFAULT_CONNECT_TIMEOUT,
) -> Channel:
    """Connect to a listener of channels, and check who it is before a byte is sent.

    Returns before the other side has accepted; the first send waits for that.

    Args:
        address: `/run/x.sock`, `payments`, `unix:@name`, ...
        type: `stream` or `seqpacket`; both ends need the same.
        server: Which users' servers are trusted: this user's and root's unless given.
        max_message_size: Bytes that one message may have: 1 MiB unless given, and on seqpacket 64 KiB; a packet holds
            about 200 KiB at most.
        max_fds: Descriptors that one message may bring; none unless asked for.
        timeout: Seconds to wait for a place in a full backlog; None waits without limit.

    Raises:
        ValueError: Options that cannot be kept.
        HostlineError: As from `connect_socket`.
    """
    if type not in ("stream", "seqpacket"):
        raise ValueError(f"channel type {type!r} is none of stream, seqpacket")
    connection = await connect_socket(address, type, server=server, max_fds=max_fds, timeout=timeout)
    try:
        return Channel(connection, max_message_size=max_message_size)
    except BaseException:
        connection.close()
        raise


def channelpair(
    type: Literal["stream", "seqpacket"] = "stream",
    *,
    max_message_size: int | None = None,
    max_fds: int = DEFAULT_MAX_FDS,
) -> tuple[Channel, Channel]:
    """Return two connected channels, without any address.

    Args:
        type: `stream` or `seqpacket`.
        max_message_size: Bytes that one message may have: 1 MiB unless given, and on seqpacket 64 KiB; a packet holds
            about 200 KiB at most.
        max_fds: Descriptors that one message may bring; none unless asked for.

    Raises:
        ValueError: Options that cannot be kept.
        SocketError: This process has no free descriptors.
    """
    if type not in ("stream", "seqpacket"):
        raise ValueError(f"channel type {type!r} is none of stream, seqpacket")
    one, other = socketpair(type, max_fds=max_fds)
    try:
        return (
            Channel(one, max_message_size=max_message_size),
            Channel(other, max_message_size=max_message_size),
        )
    except BaseException:
        one.close()
        other.close()
        raise
