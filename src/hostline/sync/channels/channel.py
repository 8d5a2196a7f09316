"""Channels for blocking code: whole messages, typed on receipt, with descriptors, deadlines and limits, and no calls.

Every method may be used by many threads at the same time, sending and receiving at once included. What travels and what
is refused is decided in `protocol/channels/messages.py`. The twin of `aio/channels/channel.py`.

One class of many lines, because half of them are overloads and documentation.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from hostline.clock import Deadline
from hostline.errors import (
    ClosedError,
    EndOfStream,
    HostlineError,
    PeerGoneError,
    RemoteProtocolError,
    TruncatedError,
)
from hostline.protocol.channels.batches import checked_count, count_sent
from hostline.protocol.channels.messages import Message, Messages
from hostline.protocol.channels.values import plain_bytes, value_reader, without_fds
from hostline.sync.connection import Connection
from hostline.sync.polling import LockType, check_not_held, is_held, lock_timeout
from hostline.unix.address import SocketType
from hostline.unix.credentials import Peer
from hostline.unix.options import largest_packet
from hostline.unix.oserrors import printable, translate
from hostline.unix.passing.ancillary import send_message
from hostline.unix.passing.descriptors import Fd, HasFileno

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["Channel"]

T = TypeVar("T")


class Channel:
    """Send and receive whole messages; made by `ChannelListener.accept`, `connect_channel` and `channelpair`.

    Attributes:
        connection: The socket underneath. Whoever sends or receives on it directly ends the channel.
    """

    __slots__ = ("__weakref__", "_meeting", "_messages", "_pid", "_receiving", "connection")

    def __init__(self, connection: Connection, *, max_message_size: int | None = None) -> None:
        """Take over a connection on which nothing was sent, and introduce this side; nothing waits.

        Args:
            connection: A stream or seqpacket connection; it is this object's from now on.
            max_message_size: Bytes that one message may have, in either direction: 1 MiB unless given, and on seqpacket
                64 KiB; a packet holds about 200 KiB at most.

        Raises:
            ValueError: The size is not positive, or beyond the hard limit.
            SocketError: The kernel refused to send.
        """
        self.connection = connection
        self._messages = Messages(
            connection.type, max_message_size, connection.max_fds, packet_size=largest_packet(connection.socket)
        )
        self._pid = os.getpid()
        self._meeting = threading.RLock()
        self._receiving = threading.RLock()
        hello = self._messages.introduce()
        try:
            send_message(connection.socket, (hello,), flags=socket.MSG_DONTWAIT, socket_type=self.type)
        except PeerGoneError:
            pass  # what it sent before it left can still be received
        except BlockingIOError as error:
            raise translate(error, "send", self.type, self.address) from error

    @property
    def type(self) -> SocketType:
        """The socket's type: `stream` or `seqpacket`."""
        return self.connection.type

    @property
    def address(self) -> str:
        """The server's address; empty for a pair."""
        return self.connection.address

    @property
    def peer(self) -> Peer:
        """Who is on the other side."""
        return self.connection.peer

    @property
    def max_message_size(self) -> int:
        """Bytes that one message may have."""
        return self._messages.max_message_size

    @property
    def max_fds(self) -> int:
        """Descriptors that one message may bring."""
        return self._messages.max_fds

    # --- sending ---------------------------------------------------------------------------------------

    def send(self, value: Any, *, fds: Sequence[int | HasFileno] = (), timeout: float | None = None) -> None:
        """Send a value as one message.

        The first send waits until the other side has introduced itself, which tells what it takes. When a deadline cuts
        a stream off in the middle of a message, the other side cannot tell, so that every later send is refused.

        Args:
            value: Anything that msgspec can encode.
            fds: Descriptors that go with it; they stay the caller's.
            timeout: Seconds until all must have been taken; None waits without limit.

        Raises:
            InvalidMessageError: The value cannot be encoded.
            MessageTooLongError: It is larger than one of the sides, or a packet, takes; nothing was sent.
            DescriptorError: A descriptor cannot be sent, or the other side does not take as many.
            PeerGoneError: The other side has closed.
            RemoteProtocolError: The other side is no channel; this one was closed.
            SocketTimeoutError: The other side did not take it in time.
            LocalProtocolError: An earlier send was cut off in the middle.
            ClosedError: This side was closed, perhaps while waiting.
        """
        deadline = Deadline.after(timeout)
        self._meet_to_send(deadline)
        self.connection.send(self._messages.encode(value, len(fds)), fds=fds, timeout=deadline.left())

    def send_bytes(
        self, data: ReadableBuffer, *, fds: Sequence[int | HasFileno] = (), timeout: float | None = None
    ) -> None:
        """Send plain bytes as one message, for `recv_bytes`.

        Args:
            data: The bytes; none is legal. They are sent from where they are, and may not change until this is done.
            fds: Descriptors that go with it; they stay the caller's.
            timeout: Seconds until all must have been taken; None waits without limit.

        Raises:
            HostlineError: As from `send`.
        """
        deadline = Deadline.after(timeout)
        self._meet_to_send(deadline)
        self.connection._send_pieces(self._messages.bytes_in_place(data, len(fds)), fds, deadline)

    def send_many(self, values: Iterable[Any], *, timeout: float | None = None) -> int:
        """Send many values, each as one message, with as few system calls as the socket's type allows.

        Args:
            values: What `send` takes; all are encoded before the first is sent.
            timeout: Seconds until all must have been taken; None waits without limit.

        Returns:
            How many were sent: all of them.

        Raises:
            HostlineError: As from `send`; `sent_count` says how many were sent as a whole before it.
        """
        deadline = Deadline.after(timeout)
        try:
            self._meet_to_send(deadline)
            batch = self._messages.encode_many(values)
        except BaseException as error:
            count_sent(error, 0)
            raise
        return self.connection._send_all_of(batch, deadline)

    def shutdown(self) -> None:
        """End sending: the other side's iteration ends, and this side may go on receiving.

        Raises:
            PeerGoneError: The other side vanished.
            ClosedError: This side was closed.
        """
        self.connection.shutdown()

    # --- receiving -------------------------------------------------------------------------------------

    @overload
    def recv(self, type: Callable[..., T], *, timeout: float | None = None) -> T: ...

    @overload
    def recv(self, type: Any = Any, *, timeout: float | None = None) -> Any: ...

    def recv(self, type: Any = Any, *, timeout: float | None = None) -> Any:
        """Receive one message's value.

        Args:
            type: What it must be: a struct, a dataclass, a union, ...
            timeout: Seconds to wait; None waits without limit. What had come of a message by then is kept.

        Raises:
            InvalidMessageError: It is of another type, or plain bytes; the next message is intact.
            DescriptorError: It brought descriptors, which only `recv_fds` takes; they were closed.
            TruncatedError: A packet exceeds `max_message_size`; it is lost, the next one is intact.
            EndOfStream: The other side has ended cleanly.
            PeerGoneError: The other side vanished, perhaps in the middle of a message.
            RemoteProtocolError: The other side is no channel, or broke its rules; this one was closed.
            SocketTimeoutError: Nothing came in time.
            ClosedError: This side was closed, perhaps while waiting.
            TypeError: msgspec cannot decode into the type.
        """
        read = value_reader(type)
        return read(without_fds(self._receive(timeout)))

    @overload
    def recv_fds(self, type: Callable[..., T], *, timeout: float | None = None) -> tuple[T, list[Fd]]: ...

    @overload
    def recv_fds(self, type: Any = Any, *, timeout: float | None = None) -> tuple[Any, list[Fd]]: ...

    def recv_fds(self, type: Any = Any, *, timeout: float | None = None) -> tuple[Any, list[Fd]]:
        """Receive one message's value and its descriptors, which belong to the caller and are close-on-exec.

        Args:
            type: As for `recv`.
            timeout: As for `recv`.

        Raises:
            HostlineError: As from `recv`. The descriptors of a message that is refused are closed.
        """
        read = value_reader(type)
        message = self._receive(timeout)
        return read(message), [*message.fds]

    def recv_bytes(self, *, timeout: float | None = None) -> bytes:
        """Receive one message of plain bytes.

        Args:
            timeout: As for `recv`.

        Raises:
            HostlineError: As from `recv`; `InvalidMessageError` for a value.
        """
        return plain_bytes(without_fds(self._receive(timeout)))

    def recv_bytes_fds(self, *, timeout: float | None = None) -> tuple[bytes, list[Fd]]:
        """Receive one message of plain bytes and its descriptors, which belong to the caller and are close-on-exec.

        Args:
            timeout: As for `recv`.

        Raises:
            HostlineError: As from `recv_bytes`. The descriptors of a message that is refused are closed.
        """
        message = self._receive(timeout)
        return plain_bytes(message), [*message.fds]

    @overload
    def recv_many(self, max_count: int, type: Callable[..., T], *, timeout: float | None = None) -> list[T]: ...

    @overload
    def recv_many(self, max_count: int, type: Any = Any, *, timeout: float | None = None) -> list[Any]: ...

    def recv_many(self, max_count: int, type: Any = Any, *, timeout: float | None = None) -> list[Any]:
        """Receive the values of the messages that are there: one at least, `max_count` at most.

        An error about one message is raised when it is the first; otherwise those before it are returned, and the next
        call raises it.

        Args:
            max_count: How many at most.
            type: What each must be, as for `recv`.
            timeout: Seconds to wait for the first; None waits without limit.

        Raises:
            HostlineError: As from `recv`.
            ValueError: `max_count` is not positive.
        """
        checked_count(max_count)
        read = value_reader(type)
        deadline = Deadline.after(timeout)
        self._meet(deadline)
        lock = self._lock("_receiving")
        try:
            self._take(lock, deadline)
            return read.read_ready(self._messages, self._next(deadline, max_count), max_count)
        finally:
            try:
                lock.release()
            except RuntimeError:
                pass  # it was not taken

    @overload
    def messages(self, type: Callable[..., T], *, timeout: float | None = None) -> Iterator[T]: ...

    @overload
    def messages(self, type: Any = Any, *, timeout: float | None = None) -> Iterator[Any]: ...

    def messages(self, type: Any = Any, *, timeout: float | None = None) -> Iterator[Any]:
        """Receive the value of one message after the other until the other side ends cleanly.

        Args:
            type: What each must be, as for `recv`.
            timeout: Seconds to wait for each; None waits without limit.

        Raises:
            HostlineError: As from `recv`, except for `EndOfStream`; a new iteration goes on behind it.
        """
        while True:
            try:
                value = self.recv(type, timeout=timeout)
            except EndOfStream:
                return
            yield value

    def __iter__(self) -> Iterator[Any]:
        """Receive values of any type until the other side ends cleanly."""
        return self.messages()

    # --- reading ---------------------------------------------------------------------------------------

    def _receive(self, timeout: float | None) -> Message:
        deadline = Deadline.after(timeout)
        self._meet(deadline)
        lock = self._lock("_receiving")
        try:
            self._take(lock, deadline)
            return self._next(deadline)
        finally:
            try:
                lock.release()
            except RuntimeError:
                pass  # it was not taken

    def _meet_to_send(self, deadline: Deadline) -> None:
        """Wait as `_meet` does; here an end is no clean one."""
        if self._messages.hello is not None:
            return
        try:
            self._meet(deadline)
        except EndOfStream as end:
            reason = "the other side closed before it introduced itself: it does not admit this user, or is no channel"
            raise PeerGoneError("send", self.type, printable(self.address), errno.EPIPE, reason) from end

    def _meet(self, deadline: Deadline) -> None:
        """Wait until the other side has introduced itself.

        A lock of its own, so that a sender is not held up by a receiver that waits for messages.
        """
        if self._messages.hello is not None:
            return
        lock = self._lock("_meeting")
        try:
            self._take(lock, deadline)
            while self._messages.hello is None:
                self._read(deadline)
                if self._messages.hello is None:
                    self._messages.next_message()  # raises, if it is a stranger
        except RemoteProtocolError:
            self.close()
            raise
        finally:
            try:
                lock.release()
            except RuntimeError:
                pass  # it was not taken

    def _next(self, deadline: Deadline, max_count: int = 1) -> Message:
        """Return the next message, reading as long as there is none; the lock is held."""
        try:
            if self.is_closed:
                raise self._closed()
            while (message := self._messages.next_message()) is None:
                self._read(deadline, max_count)
            return message
        except RemoteProtocolError:
            self.close()
            raise
        finally:
            if self.is_closed:
                self._messages.close()

    def _read(self, deadline: Deadline, max_count: int = 1) -> None:
        """Read once, on seqpacket as many packets as are there and wanted."""
        connection = self.connection
        size = self._messages.read_size
        is_stream = self.type == "stream"
        try:
            if max_count == 1 or is_stream:
                space = self._messages.space
                data, fds, *_ = connection._receive(size, deadline.left(), space, is_marked=is_stream)
                self._messages.receive_data(data, fds)
                connection._is_in_hand = False
                return
            for data, fds in connection.recv_many_fds(max_count, size, timeout=deadline.left()):
                self._messages.receive_data(data, fds)
        except TruncatedError as error:
            most = self.max_message_size
            raise TruncatedError(f"packet exceeds max_message_size {most}; it is lost, the next is intact") from error
        except EndOfStream as end:
            unfinished = self._messages.unfinished
            if unfinished:
                raise self._gone(f"the other side ended after {unfinished}") from end
            if self._messages.was_reset and self._messages.has_sent:
                raise self._gone("the other side ended and left messages unread") from end
            raise
        except PeerGoneError as error:
            if error.errno != errno.ECONNRESET:
                raise
            # The kernel says so once, on seqpacket before the packets that wait; they come, and then the end.
            self._messages.was_reset = True
        except HostlineError:
            connection._is_in_hand = False
            raise
        except BaseException:
            if connection._is_in_hand:
                self.close()  # a signal handler's: what was read is lost, and what follows is not its rest
            raise

    def _gone(self, reason: str) -> PeerGoneError:
        return PeerGoneError("recv", self.type, printable(self.address), errno.ECONNRESET, reason)

    def _lock(self, name: Literal["_meeting", "_receiving"]) -> LockType:
        """Return a lock to be taken in a `try` whose `finally` releases it, so that no signal's exception leaves it."""
        if self._pid != os.getpid():
            # The parent's threads are not here, and may have held a lock at the fork.
            self._meeting, self._receiving = threading.RLock(), threading.RLock()
            self._pid = os.getpid()
        lock: LockType = getattr(self, name)
        check_not_held(lock, "receives")
        return lock

    def _take(self, lock: LockType, deadline: Deadline) -> None:
        if not lock.acquire(timeout=lock_timeout(deadline.left())):
            raise translate(TimeoutError(), "recv", self.type, self.address)

    # --- the end ---------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the descriptor's number, to poll on; messages that were read already do not make it readable.

        Raises:
            ClosedError: It was closed.
        """
        return self.connection.fileno()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called, or the other side broke the rules."""
        return self.connection.is_closed

    def close(self) -> None:
        """Close, and have every call that waits raise `ClosedError`; a second close does nothing."""
        self.connection.close()
        if is_held(self._receiving):
            return  # by the call that this one is part of, or that a signal handler interrupted; it sees to it
        try:
            if self._receiving.acquire(blocking=False):  # otherwise whoever holds it sees to it
                self._messages.close()
        finally:
            try:
                self._receiving.release()
            except RuntimeError:
                pass  # it was not taken

    def _closed(self) -> HostlineError:
        where = f" to {printable(self.address)}" if self.address else ""
        return ClosedError(f"this channel{where} was closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else f"fd {self.connection.fileno()}"
        return f"<Channel {self.type} {printable(self.address)!r} {state}>"
