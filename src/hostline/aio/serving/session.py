"""One client's connection at the server: bytes in, calls out to handlers, answers back, all on the loop.

The state machine (protocol/connection/) says what the bytes mean, the server's admission which calls run. This
module waits, reads, writes and obeys. A session stops reading while its peer has too many calls open or leaves too
many answers unread, so that a flood stays in the flooder's own socket buffer; what all sessions of a user hold
together is bounded in the same way (accounts.py).

More than 400 lines: reading, writing and their limits act on each other at every step.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from hostline.aio.serving.bounds.watches import QuietWatch, ReaderWatch
from hostline.aio.serving.calls import Calls
from hostline.aio.waiting import must_look_again
from hostline.errors import DescriptorError, OverloadedError, RemoteProtocolError
from hostline.limits import (
    FDS_IN_FLIGHT_CHECK,
    FDS_IN_FLIGHT_CHECK_MAX,
    FRAME_TIMEOUT,
    FRAMES_PER_TURN,
    HANDSHAKE_TIMEOUT,
    HIGH_WATER,
    LEAST_READ_SIZE,
    LOW_WATER,
    SECOND_LOOK,
    SIGN_OF_LIFE,
    SLOW_READER_TIMEOUT,
)
from hostline.protocol.connection.server import ServerConnection
from hostline.protocol.outgoing import Outgoing, close_attached
from hostline.protocol.reading import next_read_size
from hostline.rpc.attachments import send_attached
from hostline.rpc.dispatch import logger
from hostline.rpc.watching.fields import event
from hostline.unix.credentials import Peer
from hostline.unix.options import allow_fds, unread_by_peer
from hostline.unix.passing.descriptors import Fd, close_all
from hostline.unix.passing.inflight import FdsInFlight
from hostline.unix.passing.streams import recv_stream, recv_stream_into
from hostline.unix.sockets import has_hung_up
from hostline.wire.attached import Attached, Scattered
from hostline.wire.codec import ErrorCode, GoawayCode, encode_failure
from hostline.wire.frame import Frame, Kind

if TYPE_CHECKING:
    from hostline.aio.serving.server import Server

__all__ = ["Session"]

# Never end the process with SIGPIPE, whatever the program did to that signal.
_SEND_FLAGS: Final = getattr(socket, "MSG_NOSIGNAL", 0)
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)

_CALL: Final = int(Kind.CALL)
_CANCEL: Final = int(Kind.CANCEL)
_ITEM: Final = int(Kind.ITEM)

# Frames that are more than their bytes.
_BESIDE: Final = (Attached, Scattered)

# Seconds between looks whether a peer that is not being read is still there: nothing else would tell.
_PAUSED_CHECK: Final = 0.25


class Session:
    """Serve one connection.

    Args:
        server: What it belongs to.
        sock: The accepted socket, non-blocking; the session owns and closes it.
        peer: Who connected.
    """

    __slots__ = (
        "_calls",
        "_check_timer",
        "_fd",
        "_fds_pause",
        "_fds_sent",
        "_fds_timer",
        "_fds_wait",
        "_frame_timer",
        "_handshake_timer",
        "_is_closed",
        "_is_draining",
        "_is_flushing",
        "_is_in_frame",
        "_is_paused",
        "_is_writing",
        "_kept",
        "_kept_size",
        "_looks_again",
        "_loop",
        "_max_fds",
        "_outgoing",
        "_paused_checks",
        "_protocol",
        "_quiet",
        "_read_size",
        "_reader",
        "_reserved",
        "_second_look",
        "_server",
        "_sock",
        "_turn",
        "_unflushed",
        "_watched",
        "holding",
        "is_held",
        "peer",
    )

    def __init__(self, server: Server, sock: socket.socket, peer: Peer) -> None:
        self.peer = peer
        self._server = server
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = server.loop
        self.holding = server.accounts.open(self, peer.account)
        self._protocol = ServerConnection(server.hello, server.max_frame_size, server.max_fds, server.has_descriptors)
        self._max_fds = server.max_fds
        if server.max_fds:
            allow_fds(sock)
        self._fds_sent = FdsInFlight(sock)
        self._fds_pause = FDS_IN_FLIGHT_CHECK  # seconds until the next look whether it has
        self._fds_timer: asyncio.TimerHandle | None = None  # set while the peer has to take descriptors first
        self._fds_wait: asyncio.TimerHandle | None = None  # until it is cut off for not doing so
        self._calls = Calls(self, server, self._protocol)
        self._kept: list[Frame] = []  # read while there was too much open, and not taken yet
        self._kept_size = 0  # their bytes, at most
        self._reserved = 0  # bytes of the frame that has begun, counted whole
        self._outgoing = Outgoing()
        self._is_closed = False
        self._is_draining = False
        self._is_flushing = False
        self._is_in_frame = False  # whether the last read ended within a frame
        self.is_held = False
        self._is_paused = False
        self._is_writing = False
        self._looks_again = must_look_again(self._loop)
        self._second_look: asyncio.TimerHandle | None = None
        self._read_size = LEAST_READ_SIZE
        self._unflushed = 0  # bytes of answers that the protocol holds
        self._watched = 0  # frames that were complete when the frame timer began
        self._frame_timer: asyncio.TimerHandle | None = None
        self._reader: ReaderWatch | None = None
        self._paused_checks = 0
        self._check_timer: asyncio.TimerHandle | None = None
        self._turn: asyncio.Handle | None = None  # set while the other connections have theirs
        self._handshake_timer: asyncio.TimerHandle | None = self._loop.call_later(HANDSHAKE_TIMEOUT, self._miss_hello)
        settings = server.settings
        is_watched = settings.idle_timeout is not None or settings.ping_interval is not None
        self._quiet = QuietWatch(self, self._protocol, settings) if is_watched else None
        self._loop.add_reader(self._fd, self._on_readable)

    @property
    def is_closed(self) -> bool:
        """Whether the connection is closed."""
        return self._is_closed

    @property
    def is_heard(self) -> bool:
        """Whether the peer is being read."""
        return not self._is_paused

    def is_busy(self) -> bool:
        """Whether anything is under way here."""
        return bool(self._calls.open or self._outgoing.size or self._kept or self._protocol.is_partial)

    def abort_calls(self, reason: str) -> None:
        """Answer every open call with an error and tell its handler to end; what was not taken yet never starts."""
        kept, self._kept = self._kept, []
        self._calls.refuse(kept, reason)
        self._calls.abort_all(reason)

    # --- reading -------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        has_read = self._read()
        if has_read and self._protocol.decoder.space is not None:
            has_read = self._read()  # a large frame has begun, of which there is mostly more
        if (self._is_in_frame or self._frame_timer is not None) and not self._is_paused and not self._is_closed:
            self._watch_frame()
        if has_read and self._looks_again and self._second_look is None:
            self._second_look = self._loop.call_later(SECOND_LOOK, self._look_again)

    def _look_again(self) -> None:
        self._second_look = None
        self._on_readable()

    def _read(self) -> bool:
        """Read once and do what it says; whether there may be more to read now."""
        if self._is_paused or self._is_closed:
            return False
        if self.holding.account.is_full and not self._may_read():
            self._pause()
            return False
        data: bytes | memoryview | None
        fds: list[Fd] | None = None
        try:
            if (space := self._protocol.decoder.space) is not None:
                self._read_size = LEAST_READ_SIZE  # so that little of the next large frame is read beside its place
                data, fds = recv_stream_into(self._sock, space, self._max_fds, _DONTWAIT)
                if data is None:
                    return False
            else:
                if self._max_fds:
                    data, fds = recv_stream(self._sock, self._read_size, self._max_fds, _DONTWAIT)
                    if data is None:
                        return False
                else:
                    data = self._sock.recv(self._read_size)
                self._read_size = next_read_size(self._read_size, len(data))
        except (BlockingIOError, InterruptedError):
            return False
        except DescriptorError as error:
            self.violate(RemoteProtocolError(error.strerror or str(error)))
            return False
        except OSError:
            self.close()
            return False
        if not data:
            self.close()
            return False
        try:
            frames = self._protocol.receive_data(data, fds)
        except RemoteProtocolError as error:
            self.violate(error)
            return False
        if self._handshake_timer is not None and self._protocol.client is not None:
            self._handshake_timer.cancel()
            self._handshake_timer = None
        self._is_in_frame = is_partial = self._protocol.is_partial
        if frames:
            self._take(frames)
            if self._kept:
                self._kept_size = self._reserved + len(data)
        self.flush()
        if is_partial or self.holding.kept or self._kept or self._calls.held_size:
            self.settle()
        return True

    def _may_read(self) -> bool:
        """Whether this peer is read though its user's account is full."""
        is_begun = bool(self._kept) or self._protocol.is_partial or self._calls.has_running_streams()
        return self.holding.account.may_read(self.holding, is_begun)

    def read_on(self) -> None:
        """Read on: the user's account has room again."""
        self._resume()
        self._on_readable()
        self._server.accounts.go_on(self.holding.account)

    def settle(self) -> None:
        """Charge the user what is held for this connection now."""
        if not self._is_closed:
            self._reserved = self._protocol.decoder.reserved_size
            kept = self._reserved + self._kept_size + self._calls.held_size
            self._server.accounts.settle(self, kept, self._outgoing.size)

    def _miss_hello(self) -> None:
        """Cut off a peer that did not introduce itself, unless it is us who did not read it."""
        if self._is_paused:
            self._handshake_timer = self._loop.call_later(HANDSHAKE_TIMEOUT, self._miss_hello)
        else:
            self.time_out(f"no hello within {HANDSHAKE_TIMEOUT} seconds")

    def _watch_frame(self) -> None:
        """Keep a timer while a frame has begun and is not complete; each frame has its own time."""
        timer = self._frame_timer
        is_partial = self._protocol.is_partial
        if timer is not None and (self._protocol.decoder.frame_count != self._watched or not is_partial):
            timer.cancel()
            self._frame_timer = timer = None
        if is_partial and timer is None:
            self._watched = self._protocol.decoder.frame_count
            text = f"a frame was not complete within {FRAME_TIMEOUT} seconds"
            self._frame_timer = self._loop.call_later(FRAME_TIMEOUT, self.time_out, text)

    def _take(self, frames: list[Frame]) -> None:
        """Take calls and cancellations in order until the peer has as much open as it may; the rest is kept.

        After `FRAMES_PER_TURN` the others get their turn first.
        """
        for index, frame in enumerate(frames):
            kind = frame.kind
            if (kind == _CALL and self._calls.is_full()) or self._outgoing.size + self._unflushed > HIGH_WATER:
                self._kept = frames[index:]
                self._pause()
                return
            if index == FRAMES_PER_TURN:
                self._kept = frames[index:]
                self._pause()
                self._turn = self._loop.call_soon(self._take_turn)
                return
            if kind == _CALL:
                self._calls.arrive(frame)
            elif kind == _CANCEL:
                self._calls.cancel(frame.call_id)
            else:
                self._calls.on_stream(frame)
            if self._is_closed:
                return

    def _take_turn(self) -> None:
        self._turn = None
        self._resume()

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self._loop.remove_reader(self._fd)
            self._paused_checks = 0
            self._check_timer = self._loop.call_later(_PAUSED_CHECK, self._check_paused)
            if self._frame_timer is not None:
                self._frame_timer.cancel()  # it is us now who keep the frame from being complete
                self._frame_timer = None

    def _resume(self) -> None:
        """Read on, if there is room again and the events already read are taken."""
        if not self._is_paused or self._is_closed or self._turn is not None:
            return
        if self.is_held or self._outgoing.size > LOW_WATER or self._calls.is_full():
            return
        if self.holding.account.is_full and not self._may_read():
            return
        self._is_paused = False
        if self._check_timer is not None:
            self._check_timer.cancel()
            self._check_timer = None
        frames, self._kept = self._kept, []
        self._take(frames)
        self.flush_soon()
        if self._kept_size:
            if not self._kept:
                self._kept_size = 0
            self.settle()
        if not self._is_paused and not self._is_closed:
            self._loop.add_reader(self._fd, self._on_readable)
            self._watch_frame()  # with a new timer, for the pause ended the old one

    def _check_paused(self) -> None:
        """See whether a peer that is not being read has gone; if so its calls are cancelled."""
        if has_hung_up(self._fd):
            self.close()
            return
        self._check_timer = self._loop.call_later(_PAUSED_CHECK, self._check_paused)
        self._paused_checks += 1
        if self._paused_checks * _PAUSED_CHECK >= SIGN_OF_LIFE and not self._outgoing.size:
            self._paused_checks = 0
            if self._protocol.answers_pings:
                self._protocol.pong()  # unasked: a sign of life, for its pings are not read either
                self.flush_soon()

    # --- writing -------------------------------------------------------------------------------------

    def note_queued(self, size: int) -> None:
        """Send what is queued once it is much, so that what stays unsent is known before the next call is taken."""
        self._unflushed += size
        if self._unflushed > LOW_WATER:
            self.flush()

    def flush_soon(self) -> None:
        """Write at the end of this turn of the loop, so that answers that come together leave together."""
        if not self._is_flushing and not self._is_closed:
            self._is_flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what can be written now, and wait for room for the rest."""
        self._is_flushing = False
        if self._is_closed:
            return
        buffers: Sequence[bytes | bytearray | memoryview] = self._protocol.data_to_send()
        self._unflushed = 0
        if len(buffers) == 1 and not self._outgoing.size and type(buffers[0]) not in _BESIDE:
            buffers = self._send_at_once(buffers[0])
        self._queue(buffers)
        if self._outgoing.size:
            if not self._is_writing and self._fds_timer is None:
                self._write()
            self._outgoing.own()  # the handler's memory may change from here on
            self.settle()
            if self.holding.account.is_choked:
                self.regulate()
        if self._is_paused or self.is_held or self._is_draining or self._outgoing.size > HIGH_WATER:
            self.regulate()

    def _queue(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        for buffer in buffers:
            self._outgoing.append(buffer)

    def _send_at_once(self, buffer: bytes | bytearray | memoryview) -> list[bytes | bytearray | memoryview]:
        """Send one answer without any bookkeeping, as nearly every answer can be; returns it if that did not work."""
        try:
            sent = self._sock.send(buffer, _SEND_FLAGS)
        except OSError:
            return [buffer]  # the ordinary way deals with it
        return [] if sent == len(buffer) else [memoryview(buffer)[sent:]]

    def _on_writable(self) -> None:
        self._write()
        self.settle()
        self.regulate()

    def _write(self) -> None:
        outgoing = self._outgoing
        try:
            while outgoing.size:
                if fds := outgoing.fds():
                    if not self._send_attached(fds):
                        break
                else:
                    outgoing.sent(self._sock.sendmsg(outgoing.buffers(), [], _SEND_FLAGS))
        except (BlockingIOError, InterruptedError):
            if not self._is_writing:
                self._is_writing = True
                self._loop.add_writer(self._fd, self._on_writable)
            return
        except OSError:
            self.close()
            return
        if self._is_writing:
            self._is_writing = False
            self._loop.remove_writer(self._fd)

    def _send_attached(self, fds: list[Fd]) -> bool:
        """Send a frame with descriptors; False if the peer has to take earlier ones first.

        Where the kernel allows this user no more of them, the call fails and nothing else.
        """
        outgoing = self._outgoing
        if not self._fds_sent.has_room(len(fds)):
            self._fds_timer = self._loop.call_later(self._fds_pause, self._send_attached_again)
            self._fds_pause = min(2 * self._fds_pause, FDS_IN_FLIGHT_CHECK_MAX)
            if self._fds_wait is None:
                text = f"descriptors were not taken for {SLOW_READER_TIMEOUT} seconds"
                self._fds_wait = self._loop.call_later(SLOW_READER_TIMEOUT, self.time_out, text)
            return False
        self._fds_pause = FDS_IN_FLIGHT_CHECK
        if self._fds_wait is not None:
            self._fds_wait.cancel()
            self._fds_wait = None
        try:
            outgoing.sent(send_attached(self._sock, outgoing.buffers(), fds))
            self.holding.release_descriptors(len(fds))
            self._fds_sent.count(len(fds))
        except OverloadedError as error:
            kind, call_id = outgoing.first()
            self.holding.release_descriptors(len(fds))
            self._server.counts.overloaded += 1
            failure = encode_failure(call_id, ErrorCode.OVERLOADED, "", str(error), self._protocol.max_reply_size)
            if kind == _ITEM:
                if not self._calls.lose_item(call_id, error):
                    # The handler is done: the end of its stream may be queued, which must not say that this is all.
                    self._queue(self._protocol.data_to_send())
                    outgoing.replace_end(call_id, failure)
                outgoing.replace_first(b"")
            else:
                outgoing.replace_first(failure)
        return True

    def _send_attached_again(self) -> None:
        self._fds_timer = None
        self._on_writable()

    def regulate(self) -> None:
        """Hold or resume this peer's calls by how much it leaves unread, and close when it is drained."""
        if self._is_closed:
            return
        if self._is_behind():
            self._pause()  # pings want answers too: nothing more is read from a peer that reads nothing
            if not self.is_held:
                self.is_held = True
                self._server.admission.hold(self, self.holding.account.calls)
                self._calls.hold_streams()
                if self._reader is None:
                    self._reader = ReaderWatch(self, self._outgoing, SLOW_READER_TIMEOUT)
        elif self.is_held and self._outgoing.size <= LOW_WATER:
            self.is_held = False
            self._server.admission.resume(self, self.holding.account.calls)
            self._calls.hold_streams()
            self._server.start_waiting()
        if self._is_paused:
            self._resume()
        if self._is_draining and not self._calls.open and not self._outgoing.size and not self._kept:
            self.close()

    def _is_behind(self) -> bool:
        """Whether the peer leaves more unread than it may: anything at all if its user leaves too much."""
        size = self._outgoing.size
        return size > HIGH_WATER or (size > 0 and self.holding.account.is_choked)

    def forget_reader_watch(self) -> None:
        """Note that the peer has read what it was due to read."""
        self._reader = None

    # --- the end -------------------------------------------------------------------------------------

    def has_read_greeting(self) -> bool:
        """Say whether the peer has introduced itself, and has read our hello; also if nobody is there any more."""
        if self._is_closed:
            return True
        is_sent = self._protocol.client is not None and not self._outgoing.size and not self._is_flushing
        return is_sent and unread_by_peer(self._sock) == 0

    def drain(self, code: str, reason: str) -> None:
        """Say goodbye, finish what runs, then close."""
        if not self._is_closed and not self._is_draining:
            self._is_draining = True
            self._protocol.go_away(code, reason)
            self.flush()

    def violate(self, error: RemoteProtocolError) -> None:
        """Cut off a peer that broke the protocol, telling it how."""
        self._log("protocol_violation", "%s broke the protocol: %s", error)
        self._say_last(GoawayCode.PROTOCOL, str(error))

    def time_out(self, reason: str) -> None:
        """Cut off a peer whose time is over, telling it which."""
        self._log("cut_off", "%s was cut off: %s", reason)
        self._say_last(GoawayCode.TIMEOUT, reason)

    def _log(self, name: str, message: str, reason: object) -> None:
        fields = event(name, self.peer, service=self._server.service.name, address=self._server.address)
        logger.warning(message, self.peer.describe(), reason, extra=fields)

    def _say_last(self, code: str, reason: str) -> None:
        """Send a farewell if it fits into the socket's buffer, then close."""
        if self._fds_timer is not None:
            # It must not wait behind descriptors that the peer does not take. Nothing of what waits is half sent.
            self._fds_timer.cancel()
            self._fds_timer = None
            self._outgoing.clear()
            for frame in self._protocol.data_to_send():
                close_attached(frame)
        self._protocol.go_away(code, reason)
        self.flush()
        self.close()

    def abandon(self) -> None:
        """In a forked child: close the copy of the socket and touch nothing else."""
        self._is_closed = True
        self._sock.close()

    def close(self) -> None:
        """Close the connection; calls that are open are cancelled. Safe to repeat."""
        if self._is_closed:
            return
        self._is_closed = True
        if not self._is_paused:
            self._loop.remove_reader(self._fd)
        if self._is_writing:
            self._loop.remove_writer(self._fd)
        timers = (self._handshake_timer, self._frame_timer, self._check_timer, self._turn)
        for timer in (*timers, self._fds_timer, self._fds_wait, self._second_look, self._reader, self._quiet):
            if timer is not None:
                timer.cancel()
        for frame in self._kept:
            close_all(frame.fds)
        self._kept.clear()
        self._protocol.close_held()
        self._outgoing.clear()
        self._calls.forget_all()
        self.peer.close()
        self._sock.close()
        self._server.forget(self)
