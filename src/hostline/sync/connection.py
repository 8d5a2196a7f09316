"""One connected stream or seqpacket socket for blocking code.

Every method may be used by many threads at the same time, sending and receiving at once included. The twin of
`aio/connection.py`.

One class of many lines, because each call signs out and unlocks where it stands (polling.py says why).
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Final, cast

from hostline.clock import Deadline
from hostline.errors import DescriptorError, EndOfStream, HostlineError, LocalProtocolError, SocketError
from hostline.limits import READ_SIZE
from hostline.protocol.channels.batches import Batch, checked_count, count_sent, left_of
from hostline.sync.polling import READABLE, WRITABLE, Endpoint, check_not_held, lock_timeout
from hostline.unix.address import SocketType
from hostline.unix.credentials import Peer
from hostline.unix.oserrors import translate
from hostline.unix.passing.ancillary import Received, recv_message, recv_message_into, send_message
from hostline.unix.passing.descriptors import Fd, HasFileno, close_all
from hostline.unix.passing.packets import recv_waiting, send_packets

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["Connection"]

# Bytes of a stream that the kernel takes whole or not at all, as they fit into one of its buffers, however small
# SO_SNDBUF is. Of more a signal may cut off a part, and when its handler raises nobody learns how much that was.
_ATOMIC_SIZE: Final = 2048
_UNKNOWN_PART: Final = "an unknown part, when a signal handler raised"

# After these it is known that the call which raised them sent nothing.
_KNOWN: Final = (HostlineError, ValueError, TypeError)


class Connection(Endpoint):
    """Send and receive on one connected stream or seqpacket socket.

    Made by `Listener.accept`, `connect_socket` and `socketpair`.

    Attributes:
        type: `stream` or `seqpacket`.
        address: The server's address; empty for a socket pair.
        peer: Who is on the other side.
        max_fds: Descriptors that one message may bring.
    """

    __slots__ = ("_is_in_hand", "_late", "_on_close", "_send_lock", "_torn", "max_fds", "peer")

    _name: ClassVar[str] = "connection"

    def __init__(
        self,
        sock: socket.socket,
        socket_type: SocketType,
        address: str,
        peer: Peer,
        *,
        max_fds: int = 0,
        on_close: Callable[[], object] | None = None,
    ) -> None:
        """Take over a connected socket.

        Args:
            sock: The socket; it is this object's from now on.
            socket_type: Its type.
            address: How the server's address is written.
            peer: Who is on the other side.
            max_fds: Descriptors that one message may bring.
            on_close: Called once when the descriptor was closed.
        """
        super().__init__(sock, socket_type, address, None)
        # A call without a timeout then waits in the kernel, which takes one system call instead of three.
        sock.setblocking(True)
        self.peer = peer
        self.max_fds = max_fds
        self._on_close = on_close
        self._send_lock = threading.RLock()
        self._torn = ""
        # Whether bytes may have been taken from the kernel that a channel has not noted yet.
        self._is_in_hand = False
        # What a `recv_many` met behind the messages it returned; the next receive raises it.
        self._late: list[HostlineError] = []

    def send(self, data: ReadableBuffer, *, fds: Sequence[int | HasFileno] = (), timeout: float | None = None) -> None:
        """Send all of the data: on seqpacket as one packet.

        When a deadline or a signal handler's exception cuts a stream off in the middle of the data, the other side
        cannot tell, so that every later send is refused.

        Args:
            data: The bytes; none is legal, and on seqpacket an empty packet.
            fds: Descriptors that go with the first byte; they stay the caller's.
            timeout: Seconds until all must have been taken; None waits without limit.

        Raises:
            PeerGoneError: The other side has closed.
            MessageTooLongError: The packet is larger than the kernel carries.
            SocketTimeoutError: The other side did not take it in time.
            DescriptorError: A descriptor cannot be sent, or the other side takes none.
            LocalProtocolError: An earlier send was cut off in the middle.
            ClosedError: This side was closed, perhaps while waiting.
        """
        self._send_pieces((data,), fds, Deadline.after(timeout))

    def _send_pieces(
        self, pieces: Sequence[ReadableBuffer], fds: Sequence[int | HasFileno], deadline: Deadline
    ) -> None:
        """Send some pieces as `send` sends one: as one packet, or one behind the other."""
        place = object()
        try:
            self._enter(place)
            check_not_held(self._send_lock, "sends")
            try:
                if not self._send_lock.acquire(timeout=lock_timeout(deadline.left())):
                    raise translate(TimeoutError(), "send", self.type, self.address)
                self._send_all(pieces, fds, deadline)
            finally:
                try:
                    self._send_lock.release()
                except RuntimeError:
                    pass  # it was not taken
        finally:
            self._users.pop(place, None)
            if self._is_closed:
                self._release_if_free()

    def _send_all(self, pieces: Sequence[ReadableBuffer], fds: Sequence[int | HasFileno], deadline: Deadline) -> None:
        if self._torn:
            raise LocalProtocolError(f"an earlier send was cut off after {self._torn}: close the connection")
        first = pieces[0]
        size = len(first) if type(first) is bytes else memoryview(first).nbytes
        if len(pieces) > 1:
            size += sum(memoryview(piece).nbytes for piece in pieces[1:])
        rest = pieces
        flags = 0 if deadline.is_never else socket.MSG_DONTWAIT
        sent = 0
        is_unsure = False
        try:
            while True:
                if self._is_closed:
                    raise self._closed()
                try:
                    is_unsure = size > _ATOMIC_SIZE and self.type == "stream"
                    sent += send_message(
                        self._sock, rest, fds, flags=flags, socket_type=self.type, address=self.address
                    )
                    is_unsure = False
                except BlockingIOError:
                    is_unsure = False
                    self._wait(WRITABLE, deadline, "send")
                    continue
                if sent >= size:
                    return
                rest = left_of(pieces, sent)
                fds = ()
        except _KNOWN as error:
            is_unsure = False
            if self._is_closed and isinstance(error, SocketError):
                raise self._closed() from error
            raise
        finally:
            if is_unsure:
                self._torn = _UNKNOWN_PART
            elif 0 < sent < size:
                self._torn = f"{sent} of {size} bytes"

    def send_many(self, messages: Iterable[ReadableBuffer], *, timeout: float | None = None) -> int:
        """Send many messages: on seqpacket each as one packet, on a stream one behind the other.

        A stream takes up to 1,024 of them with one system call. Packets need one each, and there is no waiting between
        them while the other side keeps up.

        Args:
            messages: The bytes of each.
            timeout: Seconds until all must have been taken; None waits without limit.

        Returns:
            How many were sent: all of them.

        Raises:
            HostlineError: As from `send`; `sent_count` says how many were sent as a whole before it. After Ctrl-C it is
                a lower bound.
        """
        return self._send_all_of(Batch(messages, is_stream=self.type == "stream"), Deadline.after(timeout))

    def _send_all_of(self, batch: Batch, deadline: Deadline) -> int:
        """Send a batch as `send_many` does."""
        place = object()
        try:
            self._enter(place)
            check_not_held(self._send_lock, "sends")
            try:
                if not self._send_lock.acquire(timeout=lock_timeout(deadline.left())):
                    raise translate(TimeoutError(), "send", self.type, self.address)
                try:
                    self._send_batch(batch, deadline)
                finally:
                    self._torn = self._torn or batch.torn
            finally:
                try:
                    self._send_lock.release()
                except RuntimeError:
                    pass  # it was not taken
        except BaseException as error:
            count_sent(error, batch.sent_count)
            raise
        finally:
            self._users.pop(place, None)
            if self._is_closed:
                self._release_if_free()
        return batch.sent_count

    def _send_batch(self, batch: Batch, deadline: Deadline) -> None:
        if self._torn:
            raise LocalProtocolError(f"an earlier send was cut off after {self._torn}: close the connection")
        flags = 0 if deadline.is_never else socket.MSG_DONTWAIT
        unsure: list[memoryview] = []
        try:
            while not batch.is_done:
                if self._is_closed:
                    raise self._closed()
                try:
                    if batch.is_stream:
                        unsure = batch.buffers()
                        batch.took_bytes(send_message(self._sock, unsure, flags=flags, address=self.address))
                        unsure = []
                    else:
                        count = send_packets(self._sock, batch.packets(), flags=flags, address=self.address)
                        batch.took_packets(count)
                except BlockingIOError:
                    unsure = []
                    self._wait(WRITABLE, deadline, "send")
        except _KNOWN as error:
            unsure = []
            if self._is_closed and isinstance(error, SocketError):
                raise self._closed() from error
            raise
        finally:
            if sum(map(len, unsure)) > _ATOMIC_SIZE:
                self._torn = _UNKNOWN_PART

    def recv(self, max_size: int = READ_SIZE, *, timeout: float | None = None) -> bytes:
        """Receive some bytes of a stream, or one packet.

        Args:
            max_size: Bytes at most; on seqpacket the largest packet that is taken.
            timeout: Seconds to wait; None waits without limit.

        Returns:
            At least one byte of a stream; a packet may be empty.

        Raises:
            EndOfStream: The other side has ended cleanly.
            PeerGoneError: The other side vanished.
            SocketTimeoutError: Nothing came in time.
            TruncatedError: The packet is longer than `max_size`; it is lost, the next one is intact.
            DescriptorError: Descriptors came along, which only `recv_fds` takes; everything is closed.
            ClosedError: This side was closed, perhaps while waiting.
        """
        received = self._receive(max_size, timeout)
        if received.fds:
            close_all(received.fds)
            self.close()
            raise DescriptorError(f"{len(received.fds)} descriptors came with the message: receive with recv_fds")
        return received.data

    def recv_into(self, buffer: WriteableBuffer, *, timeout: float | None = None) -> int:
        """Receive some bytes of a stream into memory that is there, which saves large data a copy and new memory.

        Args:
            buffer: Where they are put, from its begin; as many come as it holds, at most.
            timeout: Seconds to wait; None waits without limit.

        Returns:
            How many came: at least one.

        Raises:
            HostlineError: As from `recv`.
            LocalProtocolError: This is no stream; packets are received whole.
            ValueError: The buffer is empty.
        """
        if self.type != "stream":
            raise LocalProtocolError("packets are received whole: use recv")
        space = memoryview(buffer).cast("B")
        if not space:
            raise ValueError("buffer of 0 bytes must hold at least 1")
        received = self._receive(len(space), timeout, space)
        if received.fds:
            close_all(received.fds)
            self.close()
            raise DescriptorError(f"{len(received.fds)} descriptors came with the message: receive with recv_fds")
        return len(received.data)

    def recv_fds(self, max_size: int = READ_SIZE, *, timeout: float | None = None) -> tuple[bytes, list[Fd]]:
        """Receive some bytes of a stream, or one packet, with the descriptors that came along.

        On a stream a read ends behind the bytes that descriptors came with.

        Args:
            max_size: Bytes at most; on seqpacket the largest packet that is taken.
            timeout: Seconds to wait; None waits without limit.

        Returns:
            The bytes and the descriptors, which belong to the caller and are close-on-exec.

        Raises:
            EndOfStream: The other side has ended cleanly.
            PeerGoneError: The other side vanished.
            SocketTimeoutError: Nothing came in time.
            TruncatedError: The packet is longer than `max_size`; it is lost, the next one is intact.
            DescriptorError: More descriptors than `max_fds` came, or this process has no room; everything is closed.
            ClosedError: This side was closed, perhaps while waiting.
        """
        data, fds, *_ = self._receive(max_size, timeout)
        return data, fds

    def recv_many(self, max_count: int, max_size: int = READ_SIZE, *, timeout: float | None = None) -> list[bytes]:
        """Receive the packets that are there: one at least, `max_count` at most.

        An error about one packet is raised when it is the first; otherwise those before it are returned, and the next
        receive raises it.

        Args:
            max_count: How many at most.
            max_size: The largest packet that is taken, in bytes.
            timeout: Seconds to wait for the first; None waits without limit.

        Raises:
            LocalProtocolError: This is a stream, which has no packets.
            HostlineError: As from `recv`.
            ValueError: `max_count` is not positive.
        """
        packets = self.recv_many_fds(max_count, max_size, timeout=timeout)
        for index, (_, fds) in enumerate(packets):
            if fds:
                for _, others in packets[index:]:
                    close_all(others)
                self.close()
                error = DescriptorError(f"{len(fds)} descriptors came with the message: receive with recv_many_fds")
                if not index:
                    raise error
                self._late.append(error)
                return [data for data, _ in packets[:index]]
        return [data for data, _ in packets]

    def recv_many_fds(
        self, max_count: int, max_size: int = READ_SIZE, *, timeout: float | None = None
    ) -> list[tuple[bytes, list[Fd]]]:
        """Receive the packets that are there, each with the descriptors that came along, which are the caller's.

        Args:
            max_count: As for `recv_many`.
            max_size: As for `recv_many`.
            timeout: As for `recv_many`.

        Raises:
            LocalProtocolError: This is a stream, which has no packets.
            HostlineError: As from `recv_fds`.
            ValueError: `max_count` is not positive.
        """
        checked_count(max_count)
        if self.type == "stream":
            raise LocalProtocolError("a stream has no packets to be received one by one: use recv, or a channel")
        received = [self._receive(max_size, timeout)]
        place = object()
        try:
            self._enter(place)
            more, error = recv_waiting(
                self._sock,
                max_size,
                self.max_fds,
                max_count - 1,
                socket_type=self.type,
                address=self.address,
            )
            received += more
            if error is not None:
                self._late.append(error)
            if isinstance(error, DescriptorError):
                self.close()
        except HostlineError as error:  # closed meanwhile
            self._late.append(error)
        finally:
            self._users.pop(place, None)
            if self._is_closed:
                self._release_if_free()
        return [(data, fds) for data, fds, *_ in received]

    def _receive(
        self, max_size: int, timeout: float | None, space: memoryview | None = None, *, is_marked: bool = False
    ) -> Received:
        """Receive what one read gives, on a stream perhaps into memory that is there: its part is the data then.

        Marked, it never waits in the read, and `_is_in_hand` says from its beginning on that bytes may have been taken;
        whoever notes them takes the mark away.
        """
        deadline = Deadline.after(timeout)
        if self._late:
            self._raise_late()
        flags = 0 if timeout is None and not is_marked else socket.MSG_DONTWAIT
        place = object()
        try:
            self._enter(place)
            while True:
                self._is_in_hand = is_marked
                try:
                    if space is not None:
                        received = self._receive_into(space, flags)
                    else:
                        received = recv_message(
                            self._sock, max_size, self.max_fds, flags=flags, socket_type=self.type, address=self.address
                        )
                except BlockingIOError:
                    self._is_in_hand = False
                    self._wait(READABLE, deadline, "recv")
                    continue
                if not received.is_end:
                    return received
                self._is_in_hand = False
                if self._is_closed:
                    raise self._closed()
                raise EndOfStream(f"the other side of {self!r} has ended")
        except DescriptorError:
            self.close()
            raise
        except SocketError as error:
            self._is_in_hand = False
            if self._is_closed:
                raise self._closed() from error
            raise
        finally:
            self._users.pop(place, None)
            if self._is_closed:
                self._release_if_free()

    def _receive_into(self, space: memoryview, flags: int) -> Received:
        count, fds = recv_message_into(self._sock, space, self.max_fds, flags=flags, address=self.address)
        return Received(cast(bytes, space[:count]), fds, not count)

    def _raise_late(self) -> None:
        try:
            error = self._late.pop()
        except IndexError:
            return  # another thread has raised it
        raise error

    def shutdown(self) -> None:
        """End sending: the other side sees the end of the stream, and this side may go on receiving.

        Raises:
            PeerGoneError: The other side vanished.
            ClosedError: This side was closed.
        """
        place = object()
        try:
            self._enter(place)
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                raise translate(error, "shutdown", self.type, self.address) from error
        finally:
            self._users.pop(place, None)
            if self._is_closed:
                self._release_if_free()

    def __iter__(self) -> Iterator[bytes]:
        """Receive until the other side ends cleanly."""
        while True:
            try:
                data = self.recv()
            except EndOfStream:
                return
            yield data

    def _wake(self) -> None:
        # Only with a thread inside, because it also ends a connection that a forked child has gone on using.
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            # The peer has gone, and that has woken them already.
            pass

    def _release(self) -> None:
        super()._release()
        self.peer.close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    def _forget_parent(self) -> None:
        super()._forget_parent()
        self._send_lock = threading.RLock()
