"""One connection on a control socket: the messages of protocol/takeover.py over a channel's frames, without waiting."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence

import msgspec

from hostline.errors import DescriptorError, PeerGoneError, RemoteProtocolError
from hostline.protocol.channels.messages import Messages
from hostline.protocol.takeover import MAX_CONTROL_MESSAGE, Message
from hostline.unix.credentials import Peer
from hostline.unix.handing import MAX_HANDED_FDS, recv_handed
from hostline.unix.passing.ancillary import recv_message, send_message
from hostline.unix.passing.descriptors import Fd, close_all

__all__ = ["Talk"]

_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class Talk:
    """Exchange messages with one other side.

    Args:
        sock: A connected socket, non-blocking; it belongs to this object from now on.
        peer: Who is there.
        is_taker: Whether descriptors may come.

    Attributes:
        sock: The socket.
        peer: Who is there.
        has_ended: Whether nothing more can come.
    """

    __slots__ = ("_messages", "_receive", "has_ended", "peer", "sock")

    def __init__(self, sock: socket.socket, peer: Peer, *, is_taker: bool) -> None:
        self.sock = sock
        self.peer = peer
        self.has_ended = False
        self._receive = recv_handed if is_taker else recv_message
        self._messages = Messages("stream", MAX_CONTROL_MESSAGE, MAX_HANDED_FDS if is_taker else 0)
        try:
            self._send(self._messages.introduce(), ())
        except PeerGoneError:
            pass  # what it said before it left can still be read

    def fileno(self) -> int:
        """Return the descriptor; it stays this object's own."""
        return self.sock.fileno()

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message as a whole, or not at all; nothing waits, for all that is ever said fits into the buffer.

        Raises:
            PeerGoneError: The other side is gone, or reads nothing.
            SocketError: The kernel refused.
        """
        self._send(self._messages.encode(message, len(fds)), fds)

    def _send(self, frame: bytes | bytearray, fds: Sequence[int]) -> None:
        try:
            sent = send_message(self.sock, (frame,), fds)
        except BlockingIOError:
            sent = 0
        if sent != len(frame):
            self.sock.shutdown(socket.SHUT_RDWR)  # half a message, or silence: either way the last word
            raise PeerGoneError("send", "stream", "", errno.EAGAIN, "the other side reads nothing")

    def receive(self) -> Iterator[tuple[Message, list[Fd]]]:
        """Yield what has come, each with its descriptors, which belong to the caller.

        Raises:
            RemoteProtocolError: The other side says what nobody understands.
            DescriptorError: It sends too many descriptors, or this process has no free ones.
        """
        while not self.has_ended:
            try:
                received = self._receive(self.sock, self._messages.read_size)
            except BlockingIOError:
                return
            except DescriptorError:
                self.has_ended = True  # too many, or no room here; what follows is out of step
                raise
            except OSError:
                self.has_ended = True  # a reset: it left something unread
                return
            if received.is_end:
                self.has_ended = True
                return
            self._messages.receive_data(received.data, received.fds)
            while (found := self._messages.next_message()) is not None:
                try:
                    message = _decoder.decode(found.data)
                except msgspec.MsgspecError as error:
                    close_all(found.fds)
                    raise RemoteProtocolError(f"takeover: a message is not understood: {error}") from error
                yield message, [*found.fds]

    def last_look(self) -> Iterator[tuple[Message, list[Fd]]]:
        """End both ways, then yield what had come by then; from here on the other side's sends fail.

        Raises:
            HostlineError: As for `receive`.
        """
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side has ended already
        yield from self.receive()

    def close(self) -> None:
        """Close the connection and whatever came and was not taken."""
        self._messages.close()
        self.peer.close()
        self.sock.close()
