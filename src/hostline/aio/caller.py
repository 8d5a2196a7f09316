"""One connection of the asyncio client: be greeted, then many calls at once, answers matched by id.

Reads and writes on the loop's `add_reader` and `add_writer`. When the server says farewell, calls that it rules out
end at once, the others are waited for, and no new one begins here.

More than 400 lines, because single calls, batches and streams share one socket in both directions.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from hostline.aio.waiting import must_look_again
from hostline.clock import Deadline, monotonic
from hostline.errors import DescriptorError, OverloadedError, RemoteProtocolError, UnavailableError
from hostline.limits import HIGH_WATER, LEAST_READ_SIZE, LOW_WATER, SECOND_LOOK
from hostline.protocol.connection.client import ClientConnection
from hostline.protocol.liveness import Look
from hostline.protocol.outgoing import Outgoing
from hostline.protocol.reading import next_read_size
from hostline.rpc.attachments import Attachments, send_attached
from hostline.rpc.batch_runs import BatchRun
from hostline.rpc.calling import (
    BrokenCallError,
    ExpiredError,
    LineSettings,
    deadline_error,
    farewell_error,
    program_name,
    wire_time,
)
from hostline.unix.credentials import Peer
from hostline.unix.options import allow_fds, widen
from hostline.unix.passing.descriptors import Fd
from hostline.unix.passing.streams import recv_stream, recv_stream_into
from hostline.wire.frame import Frame, Kind

__all__ = ["Caller"]

_SEND_FLAGS: Final = getattr(socket, "MSG_NOSIGNAL", 0)
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)

_CALL: Final = int(Kind.CALL)

_Answered = asyncio.Future[Frame]


class Caller:
    """One connection: a socket on the loop, its state machine, and the calls in flight."""

    def __init__(self, sock: socket.socket, peer: Peer, settings: LineSettings, on_end: Callable[[], None]) -> None:
        self.peer = peer
        self.protocol = ClientConnection(program_name(), settings.max_frame_size, Attachments, settings.has_descriptors)
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._greeted: asyncio.Future[None] = self._loop.create_future()
        self._outgoing = Outgoing()
        self._starts: dict[int, int] = {}  # where in the byte stream the frame of a call in flight begins
        self._room: asyncio.Event | None = None
        self._liveness = settings.liveness(self.protocol.decoder.mark)
        self._life_timer: asyncio.TimerHandle | None = None
        self._looks_again = must_look_again(self._loop)
        self._second_look: asyncio.TimerHandle | None = None
        self._read_size = LEAST_READ_SIZE
        self._is_wide = False
        self._is_writing = False
        self._is_turn_open = False
        self._is_closed = False
        self._loop.add_reader(self._fd, self._on_readable)
        self._send_outgoing()

    async def greet(self) -> None:
        """Wait for the server's hello.

        Raises:
            PeerRefusedError: The server does not admit us.
            UnavailableError: It is leaving, or closed the connection.
            RemoteProtocolError: It does not speak this protocol.
        """
        await self._greeted

    @property
    def is_closed(self) -> bool:
        """Whether the socket is closed."""
        return self._is_closed

    @property
    def is_usable(self) -> bool:
        """Whether a new call may start here."""
        return not self._is_closed and self.protocol.is_usable

    async def call(
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
            DeadlineExceededError: The deadline passed first; the handler is told.
        """
        answered: _Answered = self._loop.create_future()
        timer = None
        if not deadline.is_never:
            timer = self._loop.call_at(self._loop.time() + deadline.remaining(), _expire, answered)
        call_id = 0
        try:
            while self._outgoing.size > HIGH_WATER:
                await self._wait_for_room(answered)
            if not self.is_usable:
                raise BrokenCallError("the server closed the connection", was_sent=False)
            call_id, frame = self.protocol.call(method, args, keywords, wire_time(deadline), answered, False, context)
            self._starts[call_id] = self._outgoing.queued_total
            self._queue(frame)
            if self._liveness is not None:
                self._watch_life()
            return await answered
        except TimeoutError:
            self._cancel(call_id)
            raise deadline_error(method, seconds) from None
        except asyncio.CancelledError:
            self._cancel(call_id)
            if answered.done() and not answered.cancelled():
                answered.exception()  # looked at: the deadline came in the same turn of the loop, and nobody else will
            raise
        finally:
            self._starts.pop(call_id, None)
            if timer is not None:
                timer.cancel()

    async def run_batch(self, run: BatchRun) -> None:
        """Make calls of a batch here, until none is open and no more can begin; a cancellation cancels them all."""
        changed = asyncio.Event()
        run.on_change = changed.set
        run.begin(self.protocol)
        try:
            while True:
                changed.clear()
                now = monotonic()
                for call_id in (*run.expire(now), *run.take_ended()):
                    self.drop(call_id)
                if self.is_usable:
                    self._begin(run, now)
                if run.is_over() or not (self.is_usable or run.open_ids):
                    return
                # With nothing under way no answer would wake us: then it is the others' calls that fill the socket.
                waiting = changed.wait() if run.open_ids else self.room()
                await self._wait_until(waiting, run.next_deadline)
        finally:
            run.on_change = None
            for call_id in (*run.open_ids, *run.take_ended()):
                self.drop(call_id)

    def _begin(self, run: BatchRun, now: float) -> None:
        """Begin the next calls of a batch, in one write."""
        for entry, frame in run.take(self._outgoing.size, now):
            self._starts[entry.call_id] = self._outgoing.queued_total
            self._outgoing.append(frame)
        if not self._is_writing:
            self._write()
        if run.open_ids:
            self._watch_life()

    async def _wait_until(self, waiting: Coroutine[Any, Any, object], deadline: Deadline) -> None:
        """Wait for something, at most until the deadline."""
        try:
            async with asyncio.timeout(None if deadline.is_never else deadline.remaining()):
                await waiting
        except TimeoutError:
            pass

    async def start(
        self,
        ticket: Any,
        method: str,
        args: tuple[Any, ...],
        keywords: dict[str, Any] | None,
        deadline: Deadline,
        has_items: bool,
        context: Mapping[str, str] | None = None,
    ) -> int:
        """Begin a call with streams.

        What comes for it is given to `ticket.set_result`, an early end to `ticket.set_exception`.

        Returns:
            The call's id, for the methods below.

        Raises:
            BrokenCallError: The connection ended before the call was sent.
            ExpiredError: The server read nothing until the deadline.
        """
        try:
            async with asyncio.timeout(None if deadline.is_never else deadline.remaining()):
                await self.room()
        except TimeoutError:
            raise ExpiredError from None
        if not self.is_usable:
            raise BrokenCallError("the server closed the connection", was_sent=False)
        call_id, frame = self.protocol.call(method, args, keywords, wire_time(deadline), ticket, has_items, context)
        self._starts[call_id] = self._outgoing.queued_total
        self._queue(frame)
        self._outgoing.own()  # the program goes on while it is sent, and what it was given may change
        if self._liveness is not None:
            self._watch_life()
        return call_id

    def item_taken(self, call_id: int, size: int) -> None:
        """Note that the program took an item of a result: the server may send more."""
        data = self.protocol.taken(call_id, size)
        if data and not self._is_closed:
            self._queue(data)

    def send_item(self, call_id: int, item: Any) -> None:
        """Send an item of an argument, where `protocol.may_send` says so."""
        self._queue(self.protocol.item(call_id, item))

    def end_items(self, call_id: int) -> None:
        """End an argument."""
        data = self.protocol.end(call_id)
        if data and not self._is_closed:
            self._queue(data)

    def drop(self, call_id: int) -> None:
        """Give a call with streams up, or forget one that has ended."""
        self._starts.pop(call_id, None)
        self._cancel(call_id)

    async def room(self) -> None:
        """Wait until the server has read most of what is queued, or the connection has ended."""
        while self._outgoing.size > HIGH_WATER:
            if self._room is None:
                self._room = asyncio.Event()
            await self._room.wait()

    async def _wait_for_room(self, answered: _Answered) -> None:
        """Wait until the server has read what is queued; ends early at the deadline."""
        if self._room is None:
            self._room = asyncio.Event()
        room = self._loop.create_task(self._room.wait())
        try:
            await asyncio.wait((room, answered), return_when=asyncio.FIRST_COMPLETED)
        finally:
            room.cancel()
        if answered.done():
            answered.result()

    def _cancel(self, call_id: int) -> None:
        self._outgoing.own()  # the call returns, and what it was given may change
        data = self.protocol.cancel(call_id)
        if data and not self._is_closed:
            self._queue(data)

    # --- pings -------------------------------------------------------------------------------------------

    def _watch_life(self) -> None:
        """Send pings while a call waits."""
        if self._liveness is not None and self._life_timer is None and self.protocol.answers_pings:
            self._liveness.restart(monotonic(), self.protocol.decoder.mark)
            self._wait_for_life()

    def _wait_for_life(self) -> None:
        if self._liveness is not None:
            self._life_timer = self._loop.call_later(max(0.0, self._liveness.next_at - monotonic()), self._look)

    def _look(self) -> None:
        self._life_timer = None
        liveness = self._liveness
        if liveness is None or self._is_closed or not self.protocol.in_flight:
            return
        found = liveness.look(monotonic(), self.protocol.decoder.mark)
        if found is Look.GIVE_UP:
            self._on_readable()  # this loop itself may have been stuck, and what came meanwhile is not read yet
            found = liveness.look(monotonic(), self.protocol.decoder.mark)
        if self._is_closed:
            return
        if found is Look.GIVE_UP:
            self.close(liveness.describe("server"))
            return
        if found is Look.PING:
            self.protocol.ping()
            self._send_outgoing()
        self._wait_for_life()

    # --- reading and writing -----------------------------------------------------------------------------

    def _on_readable(self) -> None:
        has_read = self._read()
        if has_read and self.protocol.decoder.space is not None:
            has_read = self._read()  # a large frame has begun, of which there is mostly more
        if has_read and self._looks_again and self._second_look is None:
            self._second_look = self._loop.call_later(SECOND_LOOK, self._look_again)

    def _look_again(self) -> None:
        self._second_look = None
        self._on_readable()

    def _read(self) -> bool:
        """Read once and do what it says; whether there may be more to read now."""
        if self._is_closed:
            return False
        data: bytes | memoryview | None
        fds: list[Fd] | None = None
        try:
            if (space := self.protocol.decoder.space) is not None:
                self._read_size = LEAST_READ_SIZE  # so that little of the next large frame is read beside its place
                data, fds = recv_stream_into(self._sock, space, self.protocol.max_fds, _DONTWAIT)
                if data is None:
                    return False
            else:
                if self.protocol.max_fds:
                    data, fds = recv_stream(self._sock, self._read_size, self.protocol.max_fds, _DONTWAIT)
                    if data is None:
                        return False
                else:
                    data = self._sock.recv(self._read_size)
                self._read_size = next_read_size(self._read_size, len(data))
        except (BlockingIOError, InterruptedError):
            return False
        except DescriptorError as error:
            self._violated(RemoteProtocolError(error.strerror or str(error)))
            return False
        except OSError:
            data = b""
        if not data:
            self.close("the server closed the connection")
            return False
        try:
            answers = self.protocol.receive_data(data, fds)
        except RemoteProtocolError as error:
            self._violated(error)
            return False
        for ticket, frame in answers:
            if not ticket.done():
                ticket.set_result(frame)
        if not self._greeted.done():
            self._look_for_greeting()
        self._send_outgoing()
        if self.protocol.farewell is not None:
            self._drain()
        return True

    def _violated(self, error: RemoteProtocolError) -> None:
        self.close(str(error), error)

    def _look_for_greeting(self) -> None:
        if self.protocol.farewell is not None:
            self._greeted.set_exception(farewell_error(self.protocol.farewell))
        elif self.protocol.hello is not None:
            if self.protocol.max_fds:
                allow_fds(self._sock)
            self._greeted.set_result(None)

    def _drain(self) -> None:
        """After the server's farewell: end the calls it rules out, and close when the rest is answered."""
        for call_id, ticket in list(self.protocol.in_flight.items()):
            if self.protocol.was_not_run(call_id):
                self.protocol.forget(call_id)
                if not ticket.done():
                    ticket.set_exception(BrokenCallError("the server is leaving", was_sent=True, is_ruled_out=True))
        if not self.protocol.in_flight:
            self.close("the server is leaving")

    def _queue(self, data: bytes | bytearray) -> None:
        """Send the first frame of a turn of the loop at once, and those that follow it together at the turn's end.

        While no other call is under way, nothing is expected to follow.
        """
        self._outgoing.append(data)
        if self._is_writing or self._is_turn_open:
            return
        if len(self.protocol.in_flight) > 1:
            self._is_turn_open = True
            self._loop.call_soon(self._end_turn)
        self._write()

    def _end_turn(self) -> None:
        self._is_turn_open = False
        if not self._is_writing and not self._is_closed:
            self._write()

    def _send_outgoing(self) -> None:
        """Send what the protocol answers by itself; not while the server reads nothing, or its pings would fill us."""
        if self._is_writing:
            return
        if self.protocol.has_data_to_send:
            for data in self.protocol.data_to_send():
                self._queue(data)

    def _write(self) -> None:
        outgoing = self._outgoing
        try:
            while outgoing.size:
                if fds := outgoing.fds():
                    self._send_attached(fds)
                else:
                    outgoing.sent(self._sock.sendmsg(outgoing.buffers(), [], _SEND_FLAGS))
        except (BlockingIOError, InterruptedError):
            if outgoing.size > LOW_WATER and self._widen():
                self._write()
                return
            if not self._is_writing:
                self._is_writing = True
                self._loop.add_writer(self._fd, self._write)
        except OSError:
            # What the server said before it went is still there to be read: the reader closes.
            outgoing.clear()
            self._stop_writing()
        else:
            if self._is_writing:
                self._stop_writing()
                self._send_outgoing()
        if self._room is not None and outgoing.size <= LOW_WATER:
            self._room.set()
            self._room = None

    def _widen(self) -> bool:
        """Have the kernel take more at once, as far as it does; whether that changed anything. It is tried once."""
        if self._is_wide:
            return False
        self._is_wide = True
        return widen(self._sock)

    def _send_attached(self, fds: list[Fd]) -> None:
        """Send a frame with descriptors; if the kernel takes no more of them, its call fails and nothing else."""
        try:
            self._outgoing.sent(send_attached(self._sock, self._outgoing.buffers(), fds))
        except OverloadedError as error:
            kind, call_id = self._outgoing.first()
            ticket = self.protocol.in_flight.get(call_id)
            if kind == _CALL:
                self.protocol.forget(call_id)  # the server never heard of it
                self._outgoing.replace_first(b"")
            else:
                self._outgoing.replace_first(self.protocol.cancel(call_id))
            if ticket is not None and not ticket.done():
                ticket.set_exception(error)

    def _stop_writing(self) -> None:
        if self._is_writing:
            self._is_writing = False
            self._loop.remove_writer(self._fd)

    def close(self, reason: str, error: Exception | None = None) -> None:
        """Close the connection; calls in flight end with what is known of them. Safe to repeat."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._fd)
        self._stop_writing()
        for timer in (self._life_timer, self._second_look):
            if timer is not None:
                timer.cancel()
        if not self._greeted.done():
            self._greeted.set_exception(error or UnavailableError(f"{reason} before its hello", True))
            self._greeted.exception()  # looked at: a caller that was cancelled leaves nobody to do it
        for call_id, ticket in self.protocol.in_flight.items():
            if not ticket.done():
                was_sent = self._starts.get(call_id, 0) < self._outgoing.sent_total
                ruled_out = self.protocol.was_not_run(call_id)
                ticket.set_exception(error or BrokenCallError(reason, was_sent=was_sent, is_ruled_out=ruled_out))
        self.protocol.in_flight.clear()
        self.protocol.close_held()
        self._outgoing.clear()
        if self._room is not None:
            self._room.set()
            self._room = None
        self.peer.close()
        self._sock.close()
        self._on_end()

    def forget_in_child(self) -> None:
        """In a forked child: close the copy of the socket and touch nothing else."""
        self._is_closed = True
        self._sock.close()


def _expire(answered: _Answered) -> None:
    if not answered.done():
        answered.set_exception(TimeoutError())
