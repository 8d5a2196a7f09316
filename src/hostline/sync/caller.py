"""One connection of the blocking client: be greeted, then make calls one at a time, or a batch of them.

Reads in the caller's own thread; a second thread waits for a connection of its own (client.py). After a timeout or a
broken connection it is of no more use.

More than 400 lines: calls, streams and batches each have their own way over the one socket, and share its rules.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Mapping
from typing import Any, Final

from hostline.clock import Deadline, monotonic, poll_milliseconds
from hostline.errors import DescriptorError, OverloadedError, RemoteProtocolError, SocketTimeoutError, UnavailableError
from hostline.limits import LEAST_READ_SIZE, LOW_WATER, READ_SIZE
from hostline.protocol.connection.client import Answer, ClientConnection
from hostline.protocol.liveness import Look
from hostline.protocol.outgoing import Outgoing
from hostline.protocol.reading import next_read_size
from hostline.rpc.attachments import Attachments, send_attached
from hostline.rpc.batch_runs import BatchRun
from hostline.rpc.calling import (
    BrokenCallError,
    LineSettings,
    deadline_error,
    farewell_error,
    program_name,
    wire_time,
)
from hostline.unix.credentials import Peer
from hostline.unix.options import allow_fds, arrived_size, set_kernel_timeout, widen
from hostline.unix.passing.descriptors import Fd, close_all
from hostline.unix.passing.streams import recv_stream, recv_stream_into
from hostline.unix.sockets import has_hung_up
from hostline.wire.attached import Attached, Scattered
from hostline.wire.frame import Frame

try:
    from hostline.unix.passing.mmsg import recv_once, send_once
except ImportError:  # not compiled, or not Linux: whoever waits polls
    _WAITS_IN_KERNEL = False
else:
    _WAITS_IN_KERNEL = True

__all__ = ["Caller"]

# What one send that waits for room may hold: the kernel waits for each of its buffers anew, and this fits into one.
_ONE_BUFFER: Final = 32 << 10

_SEND_FLAGS: Final = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)

# Seconds that a read waits in the kernel by itself (SO_RCVTIMEO), where the deadline leaves so many: the usual answer
# comes within them, and saves the call a poll(2) before its read. Who waits longer polls, to any deadline.
_READ_WAIT: Final = 0.1


class Caller:
    """One pooled connection: a socket, its state machine, and one call or batch at a time, made in the caller's thread.

    Attributes:
        loan: Who uses it, for the pool; None while it is idle.
        peer: Who runs the server.
        protocol: What was said on it so far.
    """

    __slots__ = (
        "_is_cut_off",
        "_is_unasked",
        "_is_wide",
        "_liveness",
        "_poll_in",
        "_read_size",
        "_rest_size",
        "_sock",
        "loan",
        "peer",
        "protocol",
    )

    def __init__(self, sock: socket.socket, peer: Peer, settings: LineSettings) -> None:
        """Take over a connected socket; `greet` comes next.

        Args:
            sock: A connected stream socket; it is this object's from now on, also on failure.
            peer: Who runs the server.
            settings: Of the line.
        """
        self._sock = sock
        self._is_cut_off = True  # until it is greeted
        # The largest answer, and as much again of what may stand before it: a farewell, pings.
        self._rest_size = 2 * (settings.max_frame_size + READ_SIZE)
        self.loan: object | None = None
        self.peer = peer
        try:
            poll = select.poll()
            poll.register(self._sock.fileno(), select.POLLIN)
            self._poll_in = poll.poll
            self.protocol = ClientConnection(
                program_name(), settings.max_frame_size, Attachments, settings.has_descriptors
            )
            self._liveness = settings.liveness(self.protocol.decoder.mark)
            self._is_unasked = False  # whether a ping was due in the middle of a frame, and not sent
            self._read_size = LEAST_READ_SIZE
            self._is_wide = False
            if _WAITS_IN_KERNEL:
                set_kernel_timeout(sock, socket.SO_RCVTIMEO, _READ_WAIT)
        except BaseException:
            sock.close()
            raise

    def greet(self, settings: LineSettings, deadline: Deadline) -> None:
        """Introduce this program and be greeted; after a failure the connection is of no use.

        Args:
            settings: Of the line.
            deadline: When to stop waiting for the greeting.

        Raises:
            PeerRefusedError: The server does not admit us.
            UnavailableError: The server is leaving, or closed the connection.
            SocketTimeoutError: It does not greet.
            RemoteProtocolError: It does not speak this protocol.
        """
        where = settings.address.text
        try:
            for data in self.protocol.data_to_send():
                self._send(data, deadline)
        except BrokenCallError:
            pass  # a server that refuses us may have closed already; its reason is still there to be read
        try:
            while self.protocol.hello is None:
                self._receive(deadline)
                if self.protocol.farewell is not None:
                    raise farewell_error(self.protocol.farewell)
        except BrokenCallError as error:
            raise UnavailableError(f"server at {where} closed the connection before its hello", True) from error
        except TimeoutError:
            reason = f"connected, but no hello within {settings.connect_timeout:g} seconds"
            raise SocketTimeoutError("connect", "stream", where, None, reason) from None
        self._is_cut_off = False
        if self.protocol.max_fds:
            allow_fds(self._sock)

    def call(
        self,
        method: str,
        args: tuple[Any, ...],
        keywords: dict[str, Any] | None,
        seconds: float,
        deadline: Deadline,
        context: Mapping[str, str] | None = None,
    ) -> Frame:
        """Make one call and return the frame that answers it.

        Raises:
            BrokenCallError: The connection ended first.
            DeadlineExceededError: The deadline passed first; the connection is dirty.
        """
        call_id, frame = self.protocol.call(method, args, keywords, wire_time(deadline), True, False, context)
        is_whole = False
        if self._liveness is not None:
            self._liveness.restart(monotonic(), self._mark())
        try:
            self._send(frame, deadline)
            is_whole = True
            while True:
                answers = self._receive(deadline)
                if answers:
                    return answers[0][1]
        except BrokenCallError as error:
            # What the server said before it went can still be read: its farewell may rule the call out.
            answers = self.read_rest()
            if answers:
                return answers[0][1]
            error.was_sent = error.was_sent or is_whole
            error.is_ruled_out = self.protocol.was_not_run(call_id)
            raise
        except TimeoutError:
            if is_whole:
                self._send_cancel(call_id)
            raise deadline_error(method, seconds) from None
        except OverloadedError:
            self.protocol.forget(call_id)
            raise

    def run_batch(self, run: BatchRun) -> None:
        """Make calls of a batch here, until none is open and no more can begin.

        What is to be read is read while there is something to send: a server that gets no room for its answers takes
        no more calls.
        """
        outgoing = Outgoing()
        fd = self._sock.fileno()
        poll = select.poll()
        run.begin(self.protocol)
        if self._liveness is not None:
            self._liveness.restart(monotonic(), self._mark())
        has_cancelled = False
        self._is_cut_off = True  # until it is known that all has left; a signal handler may raise anywhere
        try:
            while True:
                now = monotonic()
                for call_id in run.expire(now):
                    outgoing.append(self.protocol.cancel(call_id))
                    has_cancelled = True
                run.retire()
                for entry, frame in run.take(outgoing.size, now):
                    entry.start = outgoing.queued_total
                    outgoing.append(frame)
                self._send_from(outgoing)
                if run.is_over():
                    # As in `cancel`: descriptors that nobody takes must not wait in the pool.
                    self._is_cut_off = outgoing.size > 0 or (has_cancelled and self.protocol.max_fds > 0)
                    return
                poll.register(fd, select.POLLIN | (select.POLLOUT if outgoing.size else 0))
                try:
                    ready = self._wait(poll, run.next_deadline, is_between_frames=not outgoing.size)
                except TimeoutError:
                    continue  # of one call
                if ready and ready[0][1] & ~select.POLLOUT:
                    self._read_answers(outgoing)
        except (BrokenCallError, RemoteProtocolError) as error:
            run.broke(error, outgoing.sent_total)
        finally:
            outgoing.clear()  # descriptors among the arguments are in here too

    def _send_from(self, outgoing: Outgoing) -> None:
        """Send what there is room for."""
        try:
            while outgoing.size:
                if fds := outgoing.fds():
                    self._send_next_attached(outgoing, fds)
                else:
                    outgoing.sent(self._sock.sendmsg(outgoing.buffers(), [], _SEND_FLAGS))
        except BlockingIOError:
            return
        except OSError as error:
            # What the server said before it went can still be read; what one still says is not read for ever.
            left = self._rest_size
            while left > 0 and (size := self._read_answers(outgoing)):
                left -= size
            raise BrokenCallError("the server closed the connection", was_sent=True) from error

    def _send_next_attached(self, outgoing: Outgoing, fds: list[Fd]) -> None:
        """Send a call with descriptors; if the kernel takes no more of them, it fails and nothing else."""
        try:
            outgoing.sent(send_attached(self._sock, outgoing.buffers(), fds))
        except OverloadedError as error:
            _, call_id = outgoing.first()
            entry = self.protocol.in_flight.get(call_id)
            self.protocol.forget(call_id)  # the server never heard of it
            outgoing.replace_first(b"")
            if entry is not None:
                entry.set_exception(error)

    def _read_answers(self, outgoing: Outgoing) -> int:
        """Read once, give the answers to the batch they belong to, and return how many bytes came."""
        data, fds = self._recv(self.protocol.max_fds, _DONTWAIT)
        if data is None:
            return 0
        if not data:
            raise BrokenCallError("the server closed the connection", was_sent=True)
        for entry, frame in self.protocol.receive_data(data, fds):
            if not entry.done():
                entry.set_result(frame)
        if not outgoing.size:  # not while the server reads nothing, or its pings would fill us
            for reply in self.protocol.data_to_send():
                outgoing.append(reply)
        return len(data)

    def start(
        self,
        method: str,
        args: tuple[Any, ...],
        keywords: dict[str, Any] | None,
        deadline: Deadline,
        has_items: bool,
        context: Mapping[str, str] | None = None,
    ) -> int:
        """Begin a call with streams and return its id, for the methods below.

        Raises:
            BrokenCallError: The connection ended first.
            TimeoutError: The deadline passed first; the connection is dirty.
        """
        if has_hung_up(self._sock.fileno()):
            # Over TCP the first send succeeds all the same, and nobody would know that the call was not run.
            self._is_cut_off = True
            raise BrokenCallError("the server closed the connection", was_sent=False)
        call_id, frame = self.protocol.call(method, args, keywords, wire_time(deadline), True, has_items, context)
        if self._liveness is not None:
            self._liveness.restart(monotonic(), self._mark())
        try:
            self._send(frame, deadline)
        except OverloadedError:
            self.protocol.forget(call_id)
            raise
        return call_id

    def read(self, deadline: Deadline) -> list[Answer]:
        """Wait for something to read, and return the answers and items that it completes."""
        return self._receive(deadline)

    def send_and_read(self, data: bytes | bytearray, deadline: Deadline) -> list[Answer]:
        """Send a frame of a stream, and return what has come meanwhile.

        While the socket has no room, what comes is read: the server may be waiting for just that.
        """
        fd = self._sock.fileno()
        if self._is_cut_off or fd < 0:
            raise BrokenCallError("the connection was cut off", was_sent=True)
        answers: list[Answer] = []
        rest = memoryview(data)
        fds = data.fds if isinstance(data, Attached) else []
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLOUT)
        try:
            while True:
                ready = self._wait(poll, deadline, is_between_frames=False)
                if ready and ready[0][1] & ~select.POLLOUT:
                    # A PONG must not stand in the middle of our frame: it waits for the next look.
                    answers += self._receive(deadline, may_answer=len(rest) in (0, len(data)))
                if not rest:
                    return answers
                sent = self._send_some(rest, fds)
                rest = rest[sent:]
                if sent:
                    close_all(fds)
                    fds = []
                if not rest:
                    return answers
        except OverloadedError:
            raise  # nothing of it was sent
        except (BrokenCallError, TimeoutError):
            self._is_cut_off = True  # perhaps in the middle of a frame: nothing more is sent here
            if answers:
                return answers
            raise
        except BaseException:
            self._is_cut_off = True
            raise
        finally:
            close_all(fds)

    def _send_some(self, data: memoryview, fds: list[Fd]) -> int:
        try:
            if fds:
                return send_attached(self._sock, [data], fds)
            return self._sock.send(data, _SEND_FLAGS)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise BrokenCallError("the server closed the connection", was_sent=True) from error

    def cancel(self, call_id: int) -> None:
        """Give a call with streams up; what still comes for it is not looked at."""
        self._send_cancel(call_id)
        if self.protocol.max_fds:
            self._is_cut_off = True  # descriptors that nobody takes would stay on their way to a pooled connection

    def _send_cancel(self, call_id: int) -> None:
        was_cut_off = self._is_cut_off
        self._is_cut_off = True  # until it is off the books and has left; a signal handler may raise anywhere
        if self._send_best(self.protocol.cancel(call_id)):
            self._is_cut_off = was_cut_off

    @property
    def is_usable(self) -> bool:
        """Whether another call may be made here."""
        protocol = self.protocol
        return protocol.is_usable and not protocol.in_flight and not protocol.is_partial and not self._is_cut_off

    def _send(self, data: bytes | bytearray | memoryview, deadline: Deadline) -> None:
        """Send all of `data`; BrokenCallError tells whether any of it left, TimeoutError that the deadline passed."""
        if type(data) is Attached:
            self._send_attached(data, deadline)
            return
        if type(data) is Scattered:
            self._send_scattered(data, deadline)
            return
        self._send_plain(data, deadline, is_first=True)

    def _send_scattered(self, frame: Scattered, deadline: Deadline) -> None:
        """Send a frame from where its pieces are."""
        outgoing = Outgoing()
        outgoing.append(frame)
        self._widen()
        while outgoing.size:
            try:
                outgoing.sent(self._sock.sendmsg(outgoing.buffers(), [], _SEND_FLAGS))
            except BlockingIOError:
                if self._liveness is not None or not _WAITS_IN_KERNEL:
                    self._wait_for_room(deadline)
                else:
                    self._send_when_room(outgoing, deadline)
            except OSError as error:
                was_sent = outgoing.sent_total > 0
                raise BrokenCallError("the server closed the connection", was_sent=was_sent) from error

    def _widen(self) -> bool:
        """Have the kernel take more at once, as far as it does; whether that changed anything. It is tried once."""
        if self._is_wide:
            return False
        self._is_wide = True
        return widen(self._sock)

    def _send_when_room(self, outgoing: Outgoing, deadline: Deadline) -> None:
        """Send a little as soon as there is room for it: poll(2) says so only when most of the buffer is free."""
        left = deadline.remaining()
        if left <= 0:
            raise TimeoutError
        piece = memoryview(outgoing.buffers()[0])[:_ONE_BUFFER]
        try:
            set_kernel_timeout(self._sock, socket.SO_SNDTIMEO, left)
            outgoing.sent(send_once(self._sock.fileno(), piece, _SEND_FLAGS & ~socket.MSG_DONTWAIT))
        except OSError as error:
            raise BrokenCallError("the server closed the connection", was_sent=outgoing.sent_total > 0) from error

    def _send_attached(self, frame: Attached, deadline: Deadline) -> None:
        """Send a frame with its descriptors, and close those: they have left, or never will."""
        try:
            sent = 0
            while not sent:
                try:
                    sent = send_attached(self._sock, [frame], frame.fds)
                except BlockingIOError:
                    self._wait_for_room(deadline)
                except OSError as error:
                    raise BrokenCallError("the server closed the connection", was_sent=False) from error
        finally:
            close_all(frame.fds)
        if sent < len(frame):
            self._send_plain(memoryview(frame)[sent:], deadline, is_first=False)

    def _wait_for_room(self, deadline: Deadline) -> None:
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLOUT)
        self._wait(poll, deadline, is_between_frames=False)

    def _send_plain(self, data: bytes | bytearray | memoryview, deadline: Deadline, *, is_first: bool) -> None:
        rest: bytes | bytearray | memoryview = data
        while True:
            try:
                sent = self._sock.send(rest, _SEND_FLAGS)
                if sent == len(rest):
                    return
                rest = memoryview(rest)[sent:]
            except BlockingIOError:
                if len(rest) <= LOW_WATER or not self._widen():
                    self._wait_for_room(deadline)
            except OSError as error:
                was_sent = rest is not data or not is_first
                raise BrokenCallError("the server closed the connection", was_sent=was_sent) from error

    def _wait(self, poll: select.poll | None, deadline: Deadline, is_between_frames: bool) -> list[tuple[int, int]]:
        """Poll until something is ready, with pings if they are wanted, which cannot be sent in the middle of a frame.

        Raises:
            TimeoutError: The deadline passed.
            BrokenCallError: The server gives no sign of life.
        """
        wait = self._poll_in if poll is None else poll.poll
        liveness = self._liveness if self.protocol.answers_pings else None
        if liveness is not None and is_between_frames and self._is_unasked:
            self._is_unasked = False
            liveness.restart(monotonic(), self._mark())  # nobody was asked, and the server has read it all meanwhile
        while True:
            left = deadline.remaining()
            if liveness is not None:
                left = min(left, max(0.0, liveness.next_at - monotonic()))
            ready = wait(poll_milliseconds(left))
            if ready:
                return ready
            if deadline.has_passed():
                raise TimeoutError
            if liveness is not None:
                found = liveness.look(monotonic(), self._mark())
                if found is Look.GIVE_UP:
                    raise BrokenCallError(liveness.describe("server"), was_sent=True)
                if found is Look.PING and is_between_frames:
                    self.protocol.ping()
                    self._send_best(b"".join(self.protocol.data_to_send()))
                elif found is Look.PING:
                    self._is_unasked = True

    def _mark(self) -> object:
        """Return what changes when anything has come: while a frame is sent it stays in the socket."""
        return self.protocol.decoder.mark, arrived_size(self._sock)

    def _recv(self, max_fds: int, flags: int = 0) -> tuple[bytes | memoryview | None, list[Fd] | None]:
        """Read once; None if nothing came, and what came with it. Without flags the kernel waits a little for it."""
        data: bytes | None
        fds: list[Fd] | None = None
        try:
            if (space := self.protocol.decoder.space) is not None:
                self._read_size = LEAST_READ_SIZE  # so that little of the next large frame is read beside its place
                return recv_stream_into(self._sock, space, max_fds, flags)
            if max_fds:
                data, fds = recv_stream(self._sock, self._read_size, max_fds, flags)
            elif flags:
                data = self._sock.recv(self._read_size, flags)
            else:
                data = recv_once(self._sock.fileno(), self._read_size)
            if data is not None:
                self._read_size = next_read_size(self._read_size, len(data))
            return data, fds
        except BlockingIOError:
            return None, None
        except DescriptorError as error:
            raise RemoteProtocolError(error.strerror or str(error)) from error
        except OSError as error:
            raise BrokenCallError("the server closed the connection", was_sent=True) from error

    def _wait_for_data(self, deadline: Deadline) -> None:
        if self._liveness is not None:
            self._wait(None, deadline, is_between_frames=True)
        elif not self._poll_in(poll_milliseconds(deadline.remaining())) and deadline.has_passed():
            raise TimeoutError

    def _receive(self, deadline: Deadline, may_answer: bool = True) -> list[Answer]:
        """Wait for bytes and return the answers they complete."""
        protocol = self.protocol
        data: bytes | memoryview | None = None
        fds: list[Fd] | None = None
        if _WAITS_IN_KERNEL and self._liveness is None and deadline.remaining() > _READ_WAIT:
            data, fds = self._recv(protocol.max_fds)  # the kernel waits a little; poll goes on to the deadline
        if data is None:
            self._wait_for_data(deadline)
            data, fds = self._recv(protocol.max_fds, _DONTWAIT)
            if data is None:
                return []
        if not data:
            raise BrokenCallError("the server closed the connection", was_sent=True)
        answers = protocol.receive_data(data, fds)
        try:
            if may_answer and protocol.has_data_to_send:
                for reply in protocol.data_to_send():
                    self._send(reply, deadline)
        except (BrokenCallError, TimeoutError):
            if not answers:
                raise
            self._is_cut_off = True  # no further call here; the answer that came counts all the same
        return answers

    def read_rest(self) -> list[Answer]:
        """Read what is left after the other side closed; what one still sends is not read for ever."""
        answers: list[Answer] = []
        self._is_cut_off = True
        left = self._rest_size
        try:
            while left > 0 and not answers:
                data, fds = recv_stream(self._sock, READ_SIZE, self.protocol.max_fds, _DONTWAIT)
                if not data:
                    break
                left -= len(data)
                answers += self.protocol.receive_data(data, fds)
        except (OSError, RemoteProtocolError):
            pass  # nothing more can be known
        return answers

    def _send_best(self, data: bytes) -> bool:
        """Send something small if there is room for it at once; otherwise the close that follows tells the server."""
        try:
            if self._sock.send(data, _SEND_FLAGS) == len(data):
                return True
        except OSError:
            pass
        self._is_cut_off = True
        return False

    def interrupt(self) -> None:
        """Wake whoever waits on this connection, from another thread."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # gone already

    def close(self) -> None:
        """Close the socket; the server cancels what was in flight."""
        self.protocol.close_held()
        self._sock.close()
