"""One client's connection at the server: bytes in, calls out to handlers, answers back, all on the loop.

The state machine (protocol/connection.py) says what the bytes mean, the server's admission which calls run. This
module waits, reads, writes and obeys. A session stops reading while its peer has too many calls open or leaves too
many answers unread, so that a flood stays in the flooder's own socket buffer.

More than 400 lines, because reading, running and writing share their state at every step: what is unread decides
what is read and what is run.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from hostline.aio.serving.running import RunningCall, contained
from hostline.aio.waiting import must_look_again
from hostline.clock import NEVER, Deadline, monotonic
from hostline.errors import (
    CallCancelledError,
    CallError,
    DeadlineExceededError,
    InvalidArgumentError,
    RemoteProtocolError,
)
from hostline.limits import (
    FRAME_TIMEOUT,
    FRAMES_PER_TURN,
    HANDSHAKE_TIMEOUT,
    HIGH_WATER,
    LOW_WATER,
    MAX_CALLS_PER_CONNECTION,
    READ_SIZE,
    SLOW_READER_TIMEOUT,
)
from hostline.protocol.admission import Verdict
from hostline.protocol.connection import ServerConnection
from hostline.protocol.outgoing import Outgoing
from hostline.rpc.context import Context
from hostline.rpc.dispatch import Invocation, bind, describe_failure, logger
from hostline.rpc.service import Execution, Method
from hostline.unix.credentials import Peer
from hostline.unix.sockets import has_hung_up
from hostline.wire.codec import ErrorCode, GoawayCode, encode_reply, split_call
from hostline.wire.frame import Frame, Kind

if TYPE_CHECKING:
    from hostline.aio.serving.server import Server

__all__ = ["Session"]

# Never end the process with SIGPIPE, whatever the program did to that signal.
_SEND_FLAGS: Final = getattr(socket, "MSG_NOSIGNAL", 0)

_CALL: Final = int(Kind.CALL)

# How a handler ends that was told to: no failure of its own.
_ENDED: Final = (asyncio.CancelledError, DeadlineExceededError, CallCancelledError)

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
        "_frame_timer",
        "_handshake_timer",
        "_is_closed",
        "_is_draining",
        "_is_flushing",
        "_is_held",
        "_is_paused",
        "_is_writing",
        "_kept",
        "_looks_again",
        "_loop",
        "_outgoing",
        "_protocol",
        "_server",
        "_slow_timer",
        "_sock",
        "_turn",
        "_unflushed",
        "_watched",
        "peer",
    )

    def __init__(self, server: Server, sock: socket.socket, peer: Peer) -> None:
        self.peer = peer
        self._server = server
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = server.loop
        self._protocol = ServerConnection(server.hello, server.max_frame_size)
        self._calls: dict[int, RunningCall] = {}
        self._kept: list[Frame] = []  # read while there was too much open, and not taken yet
        self._outgoing = Outgoing()
        self._is_closed = False
        self._is_draining = False
        self._is_flushing = False
        self._is_held = False
        self._is_paused = False
        self._is_writing = False
        self._looks_again = must_look_again(self._loop)
        self._unflushed = 0  # bytes of answers that the protocol holds
        self._watched = 0  # frames that were complete when the frame timer began
        self._frame_timer: asyncio.TimerHandle | None = None
        self._slow_timer: asyncio.TimerHandle | None = None
        self._check_timer: asyncio.TimerHandle | None = None
        self._turn: asyncio.Handle | None = None  # set while the other connections have theirs
        self._handshake_timer: asyncio.TimerHandle | None = self._loop.call_later(
            HANDSHAKE_TIMEOUT, self._time_out, f"no hello within {HANDSHAKE_TIMEOUT} seconds"
        )
        self._loop.add_reader(self._fd, self._on_readable)

    @property
    def call_count(self) -> int:
        """Calls that run or wait."""
        return len(self._calls)

    # --- reading -------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        if self._read() and self._looks_again:
            self._loop.call_soon(self._on_readable)

    def _read(self) -> bool:
        """Read once and do what it says; whether there may be more to read now."""
        if self._is_paused or self._is_closed:
            return False
        try:
            data = self._sock.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self.close()
            return False
        if not data:
            self.close()
            return False
        try:
            frames = self._protocol.receive_data(data)
        except RemoteProtocolError as error:
            self._violate(error)
            return False
        if self._handshake_timer is not None and self._protocol.client is not None:
            self._handshake_timer.cancel()
            self._handshake_timer = None
        if self._frame_timer is not None or self._protocol.is_partial:
            self._watch_frame()
        if frames:
            self._take(frames)
        self.flush()
        return True

    def _watch_frame(self) -> None:
        """Keep a timer while a frame has begun and is not complete; each frame has its own time."""
        timer = self._frame_timer
        is_partial = self._protocol.is_partial
        if timer is not None and (self._protocol.frame_count != self._watched or not is_partial):
            timer.cancel()
            self._frame_timer = timer = None
        if is_partial and timer is None:
            self._watched = self._protocol.frame_count
            text = f"a frame was not complete within {FRAME_TIMEOUT} seconds"
            self._frame_timer = self._loop.call_later(FRAME_TIMEOUT, self._time_out, text)

    def _take(self, frames: list[Frame]) -> None:
        """Take calls and cancellations in order until the peer has as much open as it may; the rest is kept.

        After `FRAMES_PER_TURN` the others get their turn first.
        """
        for index, frame in enumerate(frames):
            if len(self._calls) >= MAX_CALLS_PER_CONNECTION or self._outgoing.size + self._unflushed > HIGH_WATER:
                self._kept = frames[index:]
                self._pause()
                return
            if index == FRAMES_PER_TURN:
                self._kept = frames[index:]
                self._pause()
                self._turn = self._loop.call_soon(self._take_turn)
                return
            if frame.kind == _CALL:
                self._on_call(frame)
            else:
                self._cancel(frame.call_id)
            if self._is_closed:
                return

    def _take_turn(self) -> None:
        self._turn = None
        self._resume()

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self._loop.remove_reader(self._fd)
            self._check_timer = self._loop.call_later(_PAUSED_CHECK, self._check_paused)
            if self._frame_timer is not None:
                self._frame_timer.cancel()  # it is us now who keep the frame from being complete
                self._frame_timer = None

    def _resume(self) -> None:
        """Read on, if there is room again and the events already read are taken."""
        if not self._is_paused or self._is_closed or self._turn is not None:
            return
        if len(self._calls) >= MAX_CALLS_PER_CONNECTION or self._outgoing.size > LOW_WATER:
            return
        self._is_paused = False
        if self._check_timer is not None:
            self._check_timer.cancel()
            self._check_timer = None
        frames, self._kept = self._kept, []
        self._take(frames)
        self._flush_soon()
        if not self._is_paused and not self._is_closed:
            self._loop.add_reader(self._fd, self._on_readable)
            self._watch_frame()  # with a new timer, for the pause ended the old one

    def _check_paused(self) -> None:
        """See whether a peer that is not being read has gone; if so its calls are cancelled."""
        if has_hung_up(self._fd):
            self.close()
        else:
            self._check_timer = self._loop.call_later(_PAUSED_CHECK, self._check_paused)

    # --- calls ---------------------------------------------------------------------------------------

    def _on_call(self, frame: Frame) -> None:
        call_id = frame.call_id
        methods = self._server.methods
        if frame.method >= len(methods):
            self.fail(
                call_id,
                ErrorCode.NOT_FOUND,
                f"method number {frame.method} is not in the hello: 0 to {len(methods) - 1}",
            )
            return
        method = methods[frame.method]
        try:
            time_left, payload, is_named = split_call(frame)
        except RemoteProtocolError as error:
            self._violate(error)
            return
        if method.allow is not None and (reason := method.allow.refusal(self.peer)) is not None:
            self.fail(call_id, ErrorCode.DENIED, f"{method.name}: {reason}")
            return
        deadline = NEVER if time_left is None else Deadline(monotonic() + time_left)
        if method.execution is Execution.INLINE:
            self._run_inline(method, call_id, payload, is_named, deadline)
            return
        call = RunningCall(self, call_id, method, payload, is_named, deadline)
        verdict = self._server.admission.arrive(self, call_id, call)
        if verdict is Verdict.OVERLOADED:
            self._server.counts.overloaded += 1
            self.fail(call_id, ErrorCode.OVERLOADED, self._server.overload_text)
            return
        self._calls[call_id] = call
        if time_left is not None:
            call.timer = self._loop.call_later(time_left, self._expire, call)
        if verdict is Verdict.RUN:
            self.start(call)

    def start(self, call: RunningCall) -> None:
        """Run a call that has its slot."""
        if call.deadline.has_passed():  # the loop was busy, and its timer is late
            self._turn_away(call, ErrorCode.DEADLINE, f"deadline of {call.method.name} passed")
            return
        call.context = Context(self.peer, call.method.name, call.call_id, call.deadline)
        try:
            invocation = bind(call.method, call.payload, call.is_named, call.context)
        except InvalidArgumentError as error:
            self._turn_away(call, ErrorCode.INVALID_ARGUMENT, f"{call.method.name}: {error}")
            return
        call.payload = b""
        if call.method.execution is Execution.TASK:
            call.task = self._loop.create_task(contained(invocation))
            call.task.add_done_callback(partial(self._task_done, call))
            return
        try:
            self._server.workers.submit(partial(self._run_in_worker, call, invocation))
        except RuntimeError as error:
            logger.error("%s cannot start a thread: %s", self._server.service.name, error)
            self._turn_away(call, ErrorCode.OVERLOADED, f"{call.method.name}: the service cannot start a thread")

    def _turn_away(self, call: RunningCall, code: str, message: str) -> None:
        """Answer a call that has its slot and will not run."""
        self._end(call)
        self._server.release_slot_soon()
        self.fail(call.call_id, code, message)

    def _run_inline(self, method: Method, call_id: int, payload: bytes, is_named: bool, deadline: Deadline) -> None:
        """Run a handler here and now: no slot, no task, no timer; it ends before anything else happens."""
        context = Context(self.peer, method.name, call_id, deadline) if method.context_name else None
        try:
            invocation = bind(method, payload, is_named, context)
        except InvalidArgumentError as error:
            self.fail(call_id, ErrorCode.INVALID_ARGUMENT, f"{method.name}: {error}")
            return
        try:
            result = invocation.run()
        except KeyboardInterrupt:
            raise  # somebody at the terminal ends the program
        except BaseException as error:
            self._answer_failure(method, call_id, error)
        else:
            self._answer(method, call_id, result)

    def _run_in_worker(self, call: RunningCall, invocation: Invocation) -> None:
        """Run a `def` handler; in a worker thread."""
        result: Any = None
        failure: BaseException | None = None
        if call.deadline.has_passed():
            failure = DeadlineExceededError(f"deadline of {call.method.name} passed")
        elif not call.is_ended:
            try:
                result = invocation.run()
            except BaseException as error:  # SystemExit in a handler must not end a worker silently
                failure = error
        try:
            self._loop.call_soon_threadsafe(self._worker_done, call, result, failure)
        except RuntimeError:
            return  # the loop is closed: the grace time is over and nobody waits

    def _worker_done(self, call: RunningCall, result: Any, failure: BaseException | None) -> None:
        self._finish(call, result, failure)
        self._server.release_slot()

    def _task_done(self, call: RunningCall, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self._finish(call, None, asyncio.CancelledError())
        else:
            failure = task.exception()
            self._finish(call, None if failure else task.result(), failure)
        self._server.release_slot()

    def _finish(self, call: RunningCall, result: Any, failure: BaseException | None) -> None:
        if call.is_ended:
            if failure is not None and not isinstance(failure, _ENDED):
                # Nobody waits for the answer any more; the log is where a service that always fails late is seen.
                describe_failure(self._server.service.name, call.method, failure, self.peer, call.call_id)
            return
        self._end(call)
        if isinstance(failure, DeadlineExceededError) and call.deadline.has_passed():
            self.fail(call.call_id, ErrorCode.DEADLINE, str(failure))  # the handler saw it before our timer did
        elif failure is not None:
            self._answer_failure(call.method, call.call_id, failure)
        else:
            self._answer(call.method, call.call_id, result)
        self._flush_soon()

    def _answer(self, method: Method, call_id: int, result: Any) -> None:
        try:
            reply = encode_reply(call_id, result, self._protocol.max_reply_size)
        except Exception as error:  # mostly InvalidResultError, but a result's own code may run and fail in any way
            self._answer_failure(method, call_id, error)
            return
        self._server.count_answer(method.name)
        self._protocol.reply(call_id, reply)
        self._note_queued(len(reply))

    def _note_queued(self, size: int) -> None:
        """Send what is queued once it is much, so that what stays unsent is known before the next call is taken."""
        self._unflushed += size
        if self._unflushed > LOW_WATER:
            self.flush()

    def _answer_failure(self, method: Method, call_id: int, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            self.fail(call_id, ErrorCode.CANCELLED, f"{method.name} was cancelled by the service")
            return
        refusal = describe_failure(self._server.service.name, method, error, self.peer, call_id)
        self.fail(call_id, refusal.code, refusal.message, refusal.name)

    def fail(self, call_id: int, code: str, message: str, name: str = "") -> None:
        """Answer a call with an error."""
        self._server.count_failure()
        self._note_queued(self._protocol.fail(call_id, code, name, message))
        self._flush_soon()

    def displace(self, call: RunningCall) -> None:
        """Answer a waiting call whose place was given to another peer."""
        self._server.counts.overloaded += 1
        self._end(call)
        self.fail(call.call_id, ErrorCode.OVERLOADED, self._server.overload_text)

    def _expire(self, call: RunningCall) -> None:
        """The caller's deadline has passed: free it now, and tell the handler."""
        self._abort(call, ErrorCode.DEADLINE, DeadlineExceededError(f"deadline of {call.method.name} passed"))

    def _cancel(self, call_id: int) -> None:
        call = self._calls.get(call_id)
        if call is not None:
            self._server.counts.cancelled += 1
            self._abort(call, ErrorCode.CANCELLED, None)

    def _abort(self, call: RunningCall, code: str, reason: CallError | None) -> None:
        self._end(call)
        self.fail(call.call_id, code, str(reason) if reason else f"{call.method.name} was cancelled")
        self._stop(call, reason)

    def _stop(self, call: RunningCall, reason: CallError | None) -> None:
        """Keep a waiting call from starting, or tell a running one to end; its slot returns when it has."""
        if self._server.admission.withdraw(self, call.call_id) is not None:
            return
        if call.context is not None:
            call.context.end(reason)
        if call.task is not None:
            call.task.cancel()

    def _end(self, call: RunningCall) -> None:
        """Take a call off the books: from here on nothing it does is answered."""
        call.is_ended = True
        self._calls.pop(call.call_id, None)
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None

    # --- writing -------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        """Write at the end of this turn of the loop, so that answers that come together leave together."""
        if not self._is_flushing and not self._is_closed:
            self._is_flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what can be written now, and wait for room for the rest."""
        self._is_flushing = False
        if self._is_closed:
            return
        buffers = self._protocol.data_to_send()
        self._unflushed = 0
        if len(buffers) == 1 and not self._outgoing.size:
            buffers = self._send_at_once(buffers[0])
        for buffer in buffers:
            self._outgoing.append(buffer)
        if self._outgoing.size and not self._is_writing:
            self._write()
        if self._is_paused or self._is_held or self._is_draining or self._outgoing.size > HIGH_WATER:
            self._regulate()

    def _send_at_once(self, buffer: bytes | bytearray) -> list[bytes | bytearray]:
        """Send one answer without any bookkeeping, as nearly every answer can be; returns it if that did not work."""
        try:
            sent = self._sock.send(buffer, _SEND_FLAGS)
        except OSError:
            return [buffer]  # the ordinary way deals with it
        return [] if sent == len(buffer) else [buffer[sent:]]

    def _on_writable(self) -> None:
        self._write()
        self._regulate()

    def _write(self) -> None:
        outgoing = self._outgoing
        try:
            while outgoing.size:
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

    def _regulate(self) -> None:
        """Hold or resume this peer's calls by how much it leaves unread, and close when it is drained."""
        if self._is_closed:
            return
        if self._outgoing.size > HIGH_WATER:
            self._pause()  # pings want answers too: nothing more is read from a peer that reads nothing
            if not self._is_held:
                self._is_held = True
                self._server.admission.hold(self)
                text = f"answers were left unread for {SLOW_READER_TIMEOUT} seconds"
                self._slow_timer = self._loop.call_later(SLOW_READER_TIMEOUT, self._time_out, text)
        elif self._is_held and self._outgoing.size <= LOW_WATER:
            self._is_held = False
            if self._slow_timer is not None:
                self._slow_timer.cancel()
                self._slow_timer = None
            self._server.admission.resume(self)
            self._server.start_waiting()
        if self._is_paused:
            self._resume()
        if self._is_draining and not self._calls and not self._outgoing.size and not self._kept:
            self.close()

    # --- the end -------------------------------------------------------------------------------------

    def drain(self, code: str, reason: str) -> None:
        """Say goodbye, finish what runs, then close."""
        if not self._is_closed and not self._is_draining:
            self._is_draining = True
            self._protocol.go_away(code, reason)
            self.flush()

    def abort_calls(self, reason: str) -> None:
        """Answer every open call with an error and tell its handler to end."""
        for call in list(self._calls.values()):
            code = ErrorCode.NOT_RUN if call.context is None else ErrorCode.UNAVAILABLE
            self._abort(call, code, CallError(reason))
        self.flush()

    def _violate(self, error: RemoteProtocolError) -> None:
        logger.warning("%s broke the protocol: %s", self.peer.describe(), error)
        self._say_last(GoawayCode.PROTOCOL, str(error))

    def _time_out(self, reason: str) -> None:
        logger.warning("%s was cut off: %s", self.peer.describe(), reason)
        self._say_last(GoawayCode.TIMEOUT, reason)

    def _say_last(self, code: str, reason: str) -> None:
        """Send a farewell if it fits into the socket's buffer, then close."""
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
        for timer in (self._handshake_timer, self._frame_timer, self._slow_timer, self._check_timer, self._turn):
            if timer is not None:
                timer.cancel()
        self._kept.clear()
        self._outgoing.clear()
        for call in list(self._calls.values()):
            self._end(call)
            self._stop(call, None)
        self._server.admission.withdraw_all(self)
        self.peer.close()
        self._sock.close()
        self._server.forget(self)
