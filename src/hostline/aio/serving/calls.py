"""The calls of one connection: each is checked, given a slot, run in its own way, and answered once.

The session (session.py) reads and writes for it; the server's admission says which calls run.

More than 400 lines, because a call's ways to end must each be known to all the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from hostline.aio.serving.bounds.mapped import bind_arguments, release_buffers
from hostline.aio.serving.running import RunningCall, contained, send_all, send_all_from_thread
from hostline.aio.serving.streams import Outlet, TaskInlet, WorkerInlet
from hostline.aio.serving.watched import WatchedCalls
from hostline.clock import NEVER, Deadline, monotonic
from hostline.errors import (
    CallCancelledError,
    CallError,
    DeadlineExceededError,
    InvalidArgumentError,
    OverloadedError,
    RemoteProtocolError,
)
from hostline.limits import MAX_CALLS_PER_CONNECTION
from hostline.protocol.connection.server import ServerConnection
from hostline.protocol.outgoing import close_attached
from hostline.protocol.serving.admission import Verdict
from hostline.rpc.attachments import Attachments
from hostline.rpc.context import Context, enter_context
from hostline.rpc.dispatch import Invocation, bind, describe_failure, logger
from hostline.rpc.service import Execution, Method
from hostline.rpc.watching.calls import OK
from hostline.rpc.watching.fields import event
from hostline.rpc.watching.tracing import hooks
from hostline.unix.credentials import Peer
from hostline.unix.passing.descriptors import Fd, close_all
from hostline.unix.passing.memory import Buffer
from hostline.wire.attached import Attached
from hostline.wire.codec import ErrorCode, decode_credit, encode_reply, split_call
from hostline.wire.frame import HEADER_SIZE, Flag, Frame, Kind, Payload

if TYPE_CHECKING:
    from hostline.aio.serving.server import Server
    from hostline.aio.serving.session import Session

__all__ = ["Calls"]

_CALL: Final = int(Kind.CALL)
_CREDIT: Final = int(Kind.CREDIT)
_ITEM: Final = int(Kind.ITEM)
_STREAM: Final = int(Flag.STREAM)

# What a handler may return as a buffer beside one.
_BYTES: Final = (bytes, bytearray, memoryview)
_ONE_BUFFER: Final = (Buffer, Buffer | None)

# How a handler ends that was told to: no failure of its own.
_ENDED: Final = (asyncio.CancelledError, DeadlineExceededError, CallCancelledError)


class Calls:
    """Run the calls of one connection.

    Args:
        session: The connection.
        server: What it belongs to.
        protocol: Its state machine, which takes the answers.

    Attributes:
        open: The calls that run or wait, by id.
        account: What is charged to the user who calls.
        held_size: Bytes of arguments of those that wait, and of items that no handler has taken yet.
    """

    __slots__ = ("_loop", "_protocol", "_server", "_session", "_watched", "account", "held_size", "open")

    def __init__(self, session: Session, server: Server, protocol: ServerConnection) -> None:
        self.open: dict[int, RunningCall] = {}
        self.held_size = 0
        self._watched = WatchedCalls(server, session.peer)
        self.account = session.holding.account
        self._session = session
        self._server = server
        self._loop = server.loop
        self._protocol = protocol

    @property
    def peer(self) -> Peer:
        """Who calls."""
        return self._session.peer

    @property
    def max_reply_size(self) -> int:
        """The largest payload that the peer takes, in bytes."""
        return self._protocol.max_reply_size

    # --- frames ------------------------------------------------------------------------------------------

    def is_full(self) -> bool:
        """Whether the peer has as many calls open as it may, and nothing more is read from it until one has ended.

        While one of them has a stream, reading must go on, for the items and the credit that it waits for; a call too
        many is answered at once then.
        """
        return len(self.open) >= MAX_CALLS_PER_CONNECTION and not self._has_streams()

    def _has_streams(self) -> bool:
        return any(call.inlet is not None or call.outlet is not None for call in self.open.values())

    def has_running_streams(self) -> bool:
        """Whether a handler may be waiting for just what is read next."""
        return any(call.context and (call.inlet or call.outlet) for call in self.open.values())

    def arrive(self, frame: Frame) -> None:
        """Take a CALL: answer it, run it, or let it wait."""
        call_id = frame.call_id
        server = self._server
        methods = server.methods
        if frame.method >= len(methods):
            if server.observers:
                self._watched.begin(frame, "", None)
            text = f"method number {frame.method} is not in the hello: 0 to {len(methods) - 1}"
            self.fail(call_id, ErrorCode.NOT_FOUND, text)
            return
        method = methods[frame.method]
        try:
            time_left, payload, is_named, carrier = split_call(frame)
        except RemoteProtocolError as error:
            self._session.violate(error)
            return
        if server.observers or hooks.tracer is not None:
            self._watched.begin(frame, method.name, carrier)
        if method.allow is not None and (reason := method.allow.refusal(self._session.peer)) is not None:
            self.fail(call_id, ErrorCode.DENIED, f"{method.name}: {reason}")
            return
        stream = method.signature.stream
        if (stream is not None) is not bool(frame.flags & _STREAM):
            what = "no argument is a stream" if stream is None else f"argument `{stream.name}` is a stream"
            self.fail(call_id, ErrorCode.INVALID_ARGUMENT, f"{method.name}: {what}")
            return
        if len(self.open) >= MAX_CALLS_PER_CONNECTION:
            server.counts.overloaded += 1
            self.fail(call_id, ErrorCode.OVERLOADED, f"{MAX_CALLS_PER_CONNECTION} calls are open on this connection")
            return
        if frame.fds and not method.signature.takes_attached:
            self._refuse_fds(frame, method)
            return
        if frame.fds and not self._charge_fds(frame):
            self._server.counts.overloaded += 1
            self.fail(call_id, ErrorCode.OVERLOADED, self._server.accounts.descriptors_text(self.account))
            return
        if method.is_inline:
            self._run_inline(method, call_id, payload, is_named, time_left, frame.fds)
            return
        deadline = _deadline(time_left)
        call = RunningCall(self, call_id, method, payload, is_named, deadline, frame.fds)
        if method.signature.streams_result:
            call.outlet = Outlet(call, self._loop)
        if stream is not None:
            inlet = TaskInlet if method.execution is Execution.TASK else WorkerInlet
            call.inlet = inlet(call, self._loop, stream)
        verdict = self._server.admission.arrive(self._session, call_id, call, self.account.calls)
        if verdict is not Verdict.RUN and (refusal := self._refusal(verdict, call)) is not None:
            self._server.counts.overloaded += 1
            close_all(call.take_fds())
            self.fail(call_id, ErrorCode.OVERLOADED, refusal)
            return
        self.open[call_id] = call
        if time_left is not None:
            call.timer = self._loop.call_later(time_left, self._expire, call)
        if verdict is Verdict.RUN:
            self.start(call)

    def _refusal(self, verdict: Verdict, call: RunningCall) -> str | None:
        """Say why a call that cannot run now does not wait either; otherwise charge what it holds, and return None."""
        if verdict is Verdict.OVERLOADED:
            return self._server.overload_text
        if verdict is Verdict.LIMITED:
            return self._server.accounts.calls_text(self.account)
        if self.account.is_full and self.has_running_streams():
            # Read for its streams alone: the account is full, and what waits would only make it fuller.
            self._server.admission.withdraw(self._session, call.call_id, self.account.calls)
            return self._server.accounts.bytes_text(self.account)
        self._hold(call, len(call.payload))
        return None

    def _hold(self, call: RunningCall, size: int) -> None:
        """Charge bytes that wait for a handler, or give them back; the session settles it at the end of its read."""
        call.held += size
        self.held_size += size
        if size < 0:
            self._session.settle()

    def start(self, call: RunningCall) -> None:
        """Run a call that has its slot."""
        if call.held:
            self._hold(call, -len(call.payload))
        if call.deadline.has_passed():  # the loop was busy, and its timer is late
            self._turn_away(call, ErrorCode.DEADLINE, f"deadline of {call.method.name} passed")
            return
        stopping = self._server.stopping
        call.context = Context(self._session.peer, call.method.name, call.call_id, call.deadline, stopping)
        try:
            invocation = bind_arguments(call)
        except (InvalidArgumentError, OverloadedError) as error:
            self._turn_away(call, self._code_for(error), f"{call.method.name}: {error}")
            return
        call.payload = b""
        where = self._watched.context_of(call.call_id) if self._watched.begun else None
        if self.account.is_full and (call.inlet or call.outlet):
            self._loop.call_soon(self._session.read_on)  # the handler may wait for what was not read so far
        if call.method.execution is Execution.TASK:
            run = contained(invocation) if call.outlet is None else send_all(invocation, call.outlet)
            if call.outlet is not None:
                call.context.fail_with(partial(self._fail_soon, call))
            call.task = self._loop.create_task(run, context=where)
            call.task.add_done_callback(partial(self._task_done, call))
            return
        try:
            work = partial(self._run_in_worker, call, invocation)
            self._server.accounts.submit(self.account, work if where is None else partial(where.run, work))
        except RuntimeError as error:
            name = self._server.service.name
            extra = event("no_thread", self.peer, service=name, method=call.method.name, call_id=call.call_id)
            # Not the error itself, which leads to the call and what it holds.
            logger.error("%s cannot start a thread: %s", name, str(error), extra=extra)
            release_buffers(call)
            self._turn_away(call, ErrorCode.OVERLOADED, f"{call.method.name}: the service cannot start a thread")

    def _turn_away(self, call: RunningCall, code: str, message: str) -> None:
        """Answer a call that has its slot and will not run."""
        self._end(call)
        call.let_go()
        self._server.release_slot_soon(self.account)
        self.fail(call.call_id, code, message)

    def _run_inline(
        self, method: Method, call_id: int, payload: Payload, is_named: bool, time_left: float | None, fds: Sequence[Fd]
    ) -> None:
        """Run a handler here and now: no slot, no task, no timer; it ends before anything else happens."""
        if time_left is not None and time_left <= 0:
            self.fail(call_id, ErrorCode.DEADLINE, f"deadline of {method.name} passed")
            return
        context: Context | None = None
        call: RunningCall | None = None
        if method.context_name is not None:
            stopping = self._server.stopping
            context = Context(self._session.peer, method.name, call_id, _deadline(time_left), stopping)
        try:
            if fds:
                call = RunningCall(self, call_id, method, payload, is_named, _deadline(time_left), fds)
                call.context = context
                invocation = bind_arguments(call)
            else:
                invocation = bind(method, payload, is_named, context)
        except (InvalidArgumentError, OverloadedError) as error:
            self.fail(call_id, self._code_for(error), f"{method.name}: {error}")
            return
        try:
            if self._watched.begun and (where := self._watched.context_of(call_id)) is not None:
                result = where.run(invocation.run_instant if method.is_instant else invocation.run)
            elif method.is_instant:
                result = invocation.run_instant()
            else:
                result = invocation.run()
        except KeyboardInterrupt:
            raise  # somebody at the terminal ends the program
        except BaseException as error:
            self._answer_failure(method, call_id, error)
        else:
            self._answer(method, call_id, result)
        if call is not None:
            release_buffers(call)

    def _code_for(self, error: InvalidArgumentError | OverloadedError) -> str:
        """Return the code for a call whose arguments were not taken."""
        if isinstance(error, OverloadedError):
            self._server.counts.overloaded += 1
            return ErrorCode.OVERLOADED
        return ErrorCode.INVALID_ARGUMENT

    def _refuse_fds(self, frame: Frame, method: Method) -> None:
        """Cut off a peer that sends descriptors where the hello said that none are taken."""
        close_all(frame.fds)
        self._session.violate(RemoteProtocolError(f"{len(frame.fds)} descriptors with {method.name}, which takes none"))

    def attachments(self, method: Method, value: Any) -> tuple[Any, Attachments | None]:
        """Return a result or an item as it is to be encoded, and what takes descriptors and buffers out of it."""
        if not method.signature.gives_attached:
            return value, None
        if type(value) in _BYTES and method.signature.returns in _ONE_BUFFER:
            value = Buffer(value)
        return value, Attachments(self._protocol.max_reply_size, self._protocol.takes_descriptors)

    def lose_item(self, call_id: int, error: CallError) -> bool:
        """End a call whose item could not be sent, at once, so that no end of its stream follows; False if it is over.

        Nothing is written here: the session is in the middle of that.
        """
        call = self.open.get(call_id)
        if call is None:
            return False
        self._end(call)
        self._server.count_failure()
        self._protocol.fail(call_id, ErrorCode.OVERLOADED, "", str(error))
        self._session.flush_soon()
        self._loop.call_soon(self._stop, call, error)
        return True

    def _run_in_worker(self, call: RunningCall, invocation: Invocation) -> None:
        """Run a `def` handler; in a worker thread."""
        result: Any = None
        failure: BaseException | None = None
        if call.deadline.has_passed():
            failure = DeadlineExceededError(f"deadline of {call.method.name} passed")
        elif not call.is_ended:
            enter_context(call.context)
            try:
                if call.outlet is None:
                    result = invocation.run()
                else:
                    send_all_from_thread(invocation, call.outlet)
            except BaseException as error:  # SystemExit in a handler must not end a worker silently
                failure = error
            enter_context(None)
        try:
            self._loop.call_soon_threadsafe(self._worker_done, call, result, failure)
        except RuntimeError:
            pass  # the loop is closed: the grace time is over and nobody waits
        finally:
            result = failure = None  # its traceback leads back here, and would keep alive what the handler held

    def _worker_done(self, call: RunningCall, result: Any, failure: BaseException | None) -> None:
        self._finish(call, result, failure)
        self._server.accounts.thread_done(self.account)
        self._server.release_slot(self.account)

    def _task_done(self, call: RunningCall, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self._finish(call, None, asyncio.CancelledError())
        else:
            failure = task.exception()
            self._finish(call, None if failure else task.result(), failure)
        self._server.release_slot(self.account)

    def _finish(self, call: RunningCall, result: Any, failure: BaseException | None) -> None:
        """Take the end of a handler."""
        release_buffers(call)
        self._conclude(call, result, failure)
        call.let_go()

    def _conclude(self, call: RunningCall, result: Any, failure: BaseException | None) -> None:
        if call.is_ended:
            if failure is not None and not isinstance(failure, _ENDED) and not call.was_told(failure):
                # Nobody waits for the answer any more; the log is where a service that always fails late is seen.
                describe_failure(self._server.service.name, call.method, failure, self._session.peer, call.call_id)
            return
        self._end(call)
        if isinstance(failure, DeadlineExceededError) and call.deadline.has_passed():
            self.fail(call.call_id, ErrorCode.DEADLINE, str(failure))  # the handler saw it before our timer did
        elif failure is not None and call.inlet is not None and failure is call.inlet.failure:
            self.fail(call.call_id, ErrorCode.INVALID_ARGUMENT, f"{call.method.name}: {failure}")
        elif failure is not None:
            self._answer_failure(call.method, call.call_id, failure)
        elif call.outlet is not None:
            self._server.count_answer(call.method.name)
            self._protocol.end(call.call_id)
            if self._watched.begun:
                self._watched.end(call.call_id, OK, 0)
        else:
            self._answer(call.method, call.call_id, result)
        self._session.flush_soon()

    def push_item(self, call: RunningCall, frame: bytearray) -> None:
        """Queue an item of a call's result."""
        if call.is_ended:
            close_attached(frame)
        elif not self._charge_unsent(frame):
            self._turn_down(call, self._server.accounts.descriptors_text(self.account))
        else:
            self._protocol.item(call.call_id, frame)
            self._session.note_queued(len(frame))
            self._session.flush_soon()

    def _charge_fds(self, frame: Frame) -> bool:
        """Charge what came with a frame until a handler has it; False, and all is closed, if that is too much."""
        if self._session.holding.charge_descriptors(len(frame.fds)):
            return True
        close_all(frame.fds)
        return False

    def _charge_unsent(self, frame: bytearray) -> bool:
        """Charge what goes with a frame until it has left; False, and all is closed, if that is too much."""
        if type(frame) is not Attached or self._session.holding.charge_descriptors(len(frame.fds)):
            return True
        close_attached(frame)
        return False

    def release_fds(self, count: int) -> None:
        """Take descriptors off the account: a handler has them, or they are closed."""
        if count and not self._session.is_closed:
            self._session.holding.release_descriptors(count)

    def item_taken(self, call: RunningCall, size: int, fd_count: int = 0) -> None:
        """Note that a handler took an item of its argument, for which its caller may send more."""
        self.release_fds(fd_count)
        if not call.is_ended:
            self._hold(call, -size)
            if self._protocol.taken(call.call_id, size):
                self._session.flush_soon()

    def _answer(self, method: Method, call_id: int, result: Any) -> None:
        try:
            if method.signature.gives_attached:
                result, attach = self.attachments(method, result)
                reply = encode_reply(call_id, result, self._protocol.max_reply_size, attach)
            else:
                reply = encode_reply(call_id, result, self._protocol.max_reply_size)
        except Exception as error:  # mostly InvalidResultError, but a result's own code may run and fail in any way
            self._answer_failure(method, call_id, error)
            return
        if not self._charge_unsent(reply):
            self._server.counts.overloaded += 1
            self.fail(call_id, ErrorCode.OVERLOADED, self._server.accounts.descriptors_text(self.account))
            return
        self._server.count_answer(method.name)
        self._protocol.reply(call_id, reply)
        if self._watched.begun:
            self._watched.end(call_id, OK, len(reply) - HEADER_SIZE)
        self._session.note_queued(len(reply))

    def _answer_failure(self, method: Method, call_id: int, error: BaseException) -> None:
        if self._watched.begun:
            self._watched.note(call_id, error)
        if isinstance(error, asyncio.CancelledError):
            self.fail(call_id, ErrorCode.CANCELLED, f"{method.name} was cancelled by the service")
            return
        refusal = describe_failure(self._server.service.name, method, error, self._session.peer, call_id)
        self.fail(call_id, refusal.code, refusal.message, refusal.name)

    def fail(self, call_id: int, code: str, message: str, name: str = "") -> None:
        """Answer a call with an error."""
        self._server.count_failure()
        size = self._protocol.fail(call_id, code, name, message)
        if self._watched.begun:
            self._watched.end(call_id, code, size - HEADER_SIZE)
        self._session.note_queued(size)
        self._session.flush_soon()

    def displace(self, call: RunningCall) -> None:
        """Answer a waiting call whose place was given to another peer."""
        self._server.counts.overloaded += 1
        self._end(call)
        self.fail(call.call_id, ErrorCode.OVERLOADED, self._server.overload_text)

    def _expire(self, call: RunningCall) -> None:
        """The caller's deadline has passed: free it now, and tell the handler."""
        self._abort(call, ErrorCode.DEADLINE, DeadlineExceededError(f"deadline of {call.method.name} passed"))

    def cancel(self, call_id: int) -> None:
        """Take a CANCEL."""
        call = self.open.get(call_id)
        if call is not None:
            self._server.counts.cancelled += 1
            self._abort(call, ErrorCode.CANCELLED, None)

    def _abort(self, call: RunningCall, code: str, reason: CallError | None) -> None:
        self._end(call)
        self.fail(call.call_id, code, str(reason) if reason else f"{call.method.name} was cancelled")
        self._stop(call, reason)

    def _turn_down(self, call: RunningCall, text: str) -> None:
        """Answer a call whose items, of its argument or its result, would make a full account fuller."""
        self._server.counts.overloaded += 1
        self._abort(call, ErrorCode.OVERLOADED, OverloadedError(text))

    def _fail_soon(self, call: RunningCall, error: CallError) -> None:
        """Answer a running call with an error and end its handler; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._fail_now, call, error)
        except RuntimeError:
            pass  # the loop is closed, and the call with it

    def _fail_now(self, call: RunningCall, error: CallError) -> None:
        if not call.is_ended:
            self._end(call)
            self._answer_failure(call.method, call.call_id, error)
            self._stop(call, error)

    def _stop(self, call: RunningCall, reason: CallError | None) -> None:
        """Keep a waiting call from starting, or tell a running one to end; its slot returns when it has."""
        if self._server.admission.withdraw(self._session, call.call_id, self.account.calls) is not None:
            return
        if call.context is not None:
            call.context.end(reason)
        for gate in (call.inlet, call.outlet):
            if gate is not None:
                gate.end(reason or CallCancelledError(f"{call.method.name} was cancelled"))
        if call.task is not None:
            call.task.cancel()

    def _end(self, call: RunningCall) -> None:
        """Take a call off the books: from here on nothing it does is answered."""
        call.is_ended = True
        close_all(call.take_fds())
        self.open.pop(call.call_id, None)
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        if call.held:
            self._hold(call, -call.held)
        if call.context is None:
            call.let_go()  # it never ran, so that no handler's end will do that

    def on_stream(self, frame: Frame) -> None:
        """Take an item, the end of an argument, or credit for a result."""
        call = self.open.get(frame.call_id)
        if call is None:
            close_all(frame.fds)
            return
        if frame.kind == _CREDIT:
            try:
                if call.outlet is None:
                    raise RemoteProtocolError(f"credit for call {frame.call_id}, whose result is no stream")
                call.outlet.grant(decode_credit(frame.payload))
            except RemoteProtocolError as error:
                self._session.violate(error)
        elif call.inlet is not None:
            if frame.kind == _ITEM:
                if frame.fds and not call.method.signature.takes_attached:
                    self._refuse_fds(frame, call.method)
                    return
                if self.account.is_full and call.context is None:
                    close_all(frame.fds)
                    self._turn_down(call, self._server.accounts.bytes_text(self.account))
                    return
                if frame.fds and not self._charge_fds(frame):
                    self._turn_down(call, self._server.accounts.descriptors_text(self.account))
                    return
                self._hold(call, frame.cost)
                call.inlet.deliver(frame)
            else:
                call.inlet.complete()

    def hold_streams(self) -> None:
        """Let the streams of results pause or go on, as the session says."""
        for call in self.open.values():
            if call.outlet is not None:
                call.outlet.hold(self._session.is_held)

    def refuse(self, frames: list[Frame], reason: str) -> None:
        """Answer calls that were read and not taken, so that their caller may repeat them elsewhere."""
        for frame in frames:
            close_all(frame.fds)
            if frame.kind == _CALL:
                self.fail(frame.call_id, ErrorCode.NOT_RUN, reason)

    def abort_all(self, reason: str) -> None:
        """Answer every open call with an error and tell its handler to end."""
        for call in list(self.open.values()):
            code = ErrorCode.NOT_RUN if call.context is None else ErrorCode.UNAVAILABLE
            self._abort(call, code, CallError(reason))
        self._session.flush()

    def forget_all(self) -> None:
        """Cancel everything: the connection is gone, and nobody waits for an answer."""
        for call in list(self.open.values()):
            self._end(call)
            self._stop(call, None)
        self._server.admission.withdraw_all(self._session, self.account.calls)
        self._watched.end_all()


def _deadline(time_left: float | None) -> Deadline:
    return NEVER if time_left is None else Deadline(monotonic() + time_left)
