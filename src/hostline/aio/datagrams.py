"""Datagram sockets for asyncio: whole messages, kept apart, with descriptors and the sender's credentials.

The twin of `sync/datagrams.py`. Delivery is as the kernel gives it: in order and whole, and a sender waits while the
receiver's queue is full (`net.unix.max_dgram_qlen` messages, shared by all senders).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, ClassVar

from hostline.aio.waiting import Endpoint
from hostline.clock import Deadline
from hostline.errors import HostlineError, LocalProtocolError
from hostline.protocol.channels.batches import Batch, checked_count, count_sent
from hostline.unix.address import Address, parse_address
from hostline.unix.listening import Bound
from hostline.unix.passing.ancillary import MAX_DATAGRAM_SIZE, Datagram, recv_datagram, send_message
from hostline.unix.passing.descriptors import HasFileno
from hostline.unix.passing.packets import recv_waiting, send_packets
from hostline.unix.room import Room
from hostline.unix.sockets import is_connected, kernel_address

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["Datagrams"]


class Datagrams(Endpoint):
    """Send and receive datagrams; made by `listen`, `connect_socket` and `socketpair` with `type="datagram"`.

    Attributes:
        type: `datagram`.
        address: Where this socket receives, or where it is connected to; empty for a socket pair.
        max_fds: Descriptors that one datagram may bring.
    """

    __slots__ = ("_bound", "_has_credentials", "_has_peer", "_late", "max_fds")

    _name: ClassVar[str] = "datagram socket"

    def __init__(
        self,
        sock: socket.socket,
        address: str = "",
        *,
        max_fds: int = 0,
        credentials: bool = False,
        bound: Bound | None = None,
    ) -> None:
        """Take over a datagram socket.

        Args:
            sock: The socket; it is this object's from now on.
            address: How its address is written.
            max_fds: Descriptors that one datagram may bring.
            credentials: Whether the kernel was asked for the senders' credentials.
            bound: What owns the socket and its file, where it is bound to one.
        """
        super().__init__(sock, "datagram", address)
        sock.setblocking(False)
        self.max_fds = max_fds
        self._has_credentials = credentials
        self._bound = bound
        self._has_peer = is_connected(sock)
        # What a `recv_many` met behind the datagrams it returned; the next receive raises it.
        self._late: list[HostlineError] = []

    async def send(
        self,
        data: ReadableBuffer,
        to: str | os.PathLike[str] | Address | None = None,
        *,
        fds: Sequence[int | HasFileno] = (),
        timeout: float | None = None,
    ) -> None:
        """Send one datagram; none at all is left of it unless it is sent whole.

        Args:
            data: The bytes; none is legal.
            to: Where to; None on a connected socket. What `recv_from` gave as the sender is the cheapest form.
            fds: Descriptors that go with it; they stay the caller's.
            timeout: Seconds to wait while the receiver's queue is full; None waits without limit.

        Raises:
            LocalProtocolError: The socket is not connected and `to` is missing, or another task is sending.
            AddressNotFoundError: Nothing is at the address.
            ConnectRefusedError: Nobody receives there any more.
            MessageTooLongError: The datagram is larger than the kernel carries.
            SocketTimeoutError: The receiver's queue stayed full.
            ClosedError: This side was closed, perhaps while waiting.
        """
        deadline = Deadline.after(timeout)
        target = None if to is None else parse_address(to)
        if target is None and not self._has_peer:
            raise LocalProtocolError("this datagram socket is not connected: say where to send with to=")
        self._check_writable()
        if target is None:
            await self._send(data, fds, None, self.address, deadline)
        else:
            with kernel_address(target) as raw:
                await self._send(data, fds, raw, target.text, deadline)

    async def send_many(
        self,
        messages: Iterable[ReadableBuffer],
        to: str | os.PathLike[str] | Address | None = None,
        *,
        timeout: float | None = None,
    ) -> int:
        """Send many datagrams to one place, without waiting between them while the receiver keeps up.

        Args:
            messages: The bytes of each.
            to: As for `send`.
            timeout: Seconds until all must have been taken; None waits without limit.

        Returns:
            How many were sent: all of them.

        Raises:
            HostlineError: As from `send`; `sent_count` says how many were sent before it. A cancellation has it too.
        """
        deadline = Deadline.after(timeout)
        batch = Batch(messages, is_stream=False)
        try:
            target = None if to is None else parse_address(to)
            if target is None and not self._has_peer:
                raise LocalProtocolError("this datagram socket is not connected: say where to send with to=")
            self._check_writable()
            with nullcontext() if target is None else kernel_address(target) as raw:
                where = self.address if target is None else target.text
                await self._send_batch(batch, raw, where, deadline)
        except BaseException as error:
            count_sent(error, batch.sent_count)
            raise
        return batch.sent_count

    async def _send(
        self,
        data: ReadableBuffer,
        fds: Sequence[int | HasFileno],
        raw: bytes | None,
        where: str,
        deadline: Deadline,
    ) -> None:
        room: Room | None = None
        try:
            while True:
                try:
                    send_message(self._sock, (data,), fds, to=raw, socket_type="datagram", address=where)
                    return
                except BlockingIOError:
                    pass
                if raw is None:
                    await self._wait_writable(deadline, "send")
                else:
                    room = room or Room(self._sock, raw)
                    await self._wait_for_room(room, deadline, where)
        finally:
            if room is not None:
                room.close()

    async def _send_batch(self, batch: Batch, raw: bytes | None, where: str, deadline: Deadline) -> None:
        room: Room | None = None
        try:
            while not batch.is_done:
                packets = batch.packets()
                try:
                    count = send_packets(self._sock, packets, to=raw, socket_type="datagram", address=where)
                    batch.took_packets(count)
                    if room is not None:
                        room.took()
                    continue
                except BlockingIOError:
                    pass
                if raw is None:
                    await self._wait_writable(deadline, "send")
                else:
                    room = room or Room(self._sock, raw)
                    await self._wait_for_room(room, deadline, where)
        finally:
            if room is not None:
                room.close()

    async def _wait_for_room(self, room: Room, deadline: Deadline, where: str) -> None:
        """Wait until the receiver may have room again, or this socket's own buffer; errors as for `_wait_writable`."""
        fd, seconds = room.look(deadline.remaining())
        if seconds:
            await self._wait_writable(deadline, "send", at_most=seconds, address=where, fd=fd)

    async def recv(self, max_size: int = MAX_DATAGRAM_SIZE, *, timeout: float | None = None) -> bytes:
        """Receive one datagram and return its bytes; none is legal.

        Args:
            max_size: The largest datagram that is taken, in bytes.
            timeout: Seconds to wait; None waits without limit.

        Raises:
            TruncatedError: The datagram is longer; it is lost.
            DescriptorError: It brought descriptors, which only `recv_from` takes; they were closed.
            LocalProtocolError: Another task is receiving.
            SocketTimeoutError: Nothing came in time.
            ClosedError: This side was closed, perhaps while waiting.
        """
        return (await self._receive(max_size, 0, timeout)).data

    async def recv_from(self, max_size: int = MAX_DATAGRAM_SIZE, *, timeout: float | None = None) -> Datagram:
        """Receive one datagram with its sender, its descriptors and, where asked for, its sender's credentials.

        Args:
            max_size: The largest datagram that is taken, in bytes.
            timeout: Seconds to wait; None waits without limit.

        Returns:
            (data, sender, fds, peer). The descriptors belong to the caller.

        Raises:
            TruncatedError: The datagram is longer; it is lost.
            DescriptorError: It brought more descriptors than `max_fds`; they were closed.
            LocalProtocolError: Another task is receiving.
            SocketTimeoutError: Nothing came in time.
            ClosedError: This side was closed, perhaps while waiting.
        """
        return await self._receive(max_size, self.max_fds, timeout)

    async def recv_many(
        self, max_count: int, max_size: int = MAX_DATAGRAM_SIZE, *, timeout: float | None = None
    ) -> list[Datagram]:
        """Receive the datagrams that are there: one at least, `max_count` at most, each as `recv_from` gives it.

        An error about one datagram is raised when it is the first; otherwise those before it are returned, and the
        next receive raises it.

        Args:
            max_count: How many at most.
            max_size: The largest datagram that is taken, in bytes.
            timeout: Seconds to wait for the first; None waits without limit.

        Raises:
            HostlineError: As from `recv_from`.
            ValueError: `max_count` is not positive.
        """
        checked_count(max_count)
        datagrams = [await self._receive(max_size, self.max_fds, timeout)]
        more, error = recv_waiting(
            self._sock,
            max_size,
            self.max_fds,
            max_count - 1,
            socket_type="datagram",
            has_credentials=self._has_credentials,
            address=self.address,
        )
        datagrams += [Datagram(data, sender, fds, peer) for data, fds, _, sender, peer in more]
        if error is not None:
            self._late.append(error)
        return datagrams

    async def _receive(self, max_size: int, max_fds: int, timeout: float | None) -> Datagram:
        deadline = Deadline.after(timeout)
        if self._late:
            raise self._late.pop()
        self._check_readable()
        while True:
            try:
                return recv_datagram(
                    self._sock,
                    max_size,
                    max_fds,
                    has_credentials=self._has_credentials,
                    address=self.address,
                )
            except BlockingIOError:
                await self._wait_readable(deadline, "recv")

    def _release(self) -> None:
        if self._bound is not None:
            self._bound.close()
        super()._release()
