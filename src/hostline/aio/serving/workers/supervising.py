"""The supervisor of worker processes: it owns the listening socket, forks, waits, and obeys protocol/serving/.

It has no event loop and no thread, and never accepts while the service runs. What wakes it are two pipes: one that
signals write to (SIGCHLD among them), one on which workers say that they are ready. A third, the lifeline, is never
written to: the supervisor alone holds its writing end, so that its end is seen by every worker. All are made once, and
are all that a restarted worker needs, so that the number of descriptors stays as it is.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import math
import os
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

from hostline.aio.serving.workers.scoreboard import Scoreboard
from hostline.aio.serving.workers.worker import Worker
from hostline.clock import monotonic, poll_milliseconds
from hostline.errors import LocalProtocolError, WorkersFailedError
from hostline.limits import DEFAULT_BACKLOG, MAX_WORKERS
from hostline.protocol.serving.supervision import Command, Order, Supervision
from hostline.rpc.watching.fields import event
from hostline.unix.listening import Bound
from hostline.unix.sockets import accept_peer
from hostline.wire.codec import GoawayCode, encode_farewell

__all__ = ["BROKEN_SOCKET", "Supervisor", "check_workers"]

logger: Final = logging.getLogger("hostline")

_STOP: Final = (signal.SIGTERM, signal.SIGINT)
_HEARD: Final = (*_STOP, signal.SIGHUP, signal.SIGCHLD)

# What a worker says when it is ready: its pid, in one write that no other can split.
_PID: Final = struct.Struct("=q")

# The exit code of a worker whose listening socket is of no use any more: it is everybody's.
BROKEN_SOCKET: Final = 117


def check_workers(count: int) -> None:
    """Check a number of worker processes, and that this is a place to fork them from.

    Raises:
        ValueError: There are not so many.
        LocalProtocolError: This is not the main thread, or an event loop runs in it.
    """
    if type(count) is not int or not 1 <= count <= MAX_WORKERS:
        raise ValueError(f"workers of {count!r} must be a number of processes from 1 to {MAX_WORKERS}")
    if count > 1 and threading.current_thread() is not threading.main_thread():
        raise LocalProtocolError("worker processes are forked from the main thread, which hears the signals")
    if count > 1 and asyncio._get_running_loop() is not None:
        raise LocalProtocolError(
            "worker processes are forked before there is an event loop; call run from blocking code"
        )


class Supervisor:
    """Run a service in several processes until it is told to stop.

    Args:
        name: The service's name.
        bound: The listening socket; the supervisor owns it from now on, and closes it.
        count: Worker processes.
        grace: Seconds that a worker takes at most for what runs when it is told to stop.
        work: Serves, in a worker process; called once there, and the process ends with it.
    """

    def __init__(self, name: str, bound: Bound, count: int, *, grace: float, work: Callable[[Worker], None]) -> None:
        self.bound = bound
        self._name = name
        self._count = count
        self._work = work
        self._decisions = Supervision(count, grace=grace)
        self._rows: dict[int, int] = {}  # pid -> its row in the table
        self._free_rows = list(range(2 * count - 1, -1, -1))  # in a reload each seat has two workers
        self._has_announced = False
        self._had_terminal = _has_terminal()
        self._ignores_hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # as nohup has it

    def run(self) -> None:
        """Start the workers, keep them running, and return when all have stopped.

        Raises:
            WorkersFailedError: None became ready, or the listening socket is of no use any more.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self.bound.close)
            self._board = Scoreboard(2 * self._count)
            stack.callback(self._board.close)
            self._heard, self._wakeup = _pipe(stack)
            self._news, self._tell = _pipe(stack)
            self._lifeline, self._alive = _pipe(stack)
            stack.enter_context(self._hearing())
            stack.callback(self._kill_all)
            self._poll = select.poll()
            for fd in (self._heard, self._news):
                self._poll.register(fd, select.POLLIN)
            while True:
                while (command := self._decisions.next_command(monotonic())) is not None:
                    self._obey(command)
                if self._decisions.has_ended:
                    break
                self._wait()
        if self._decisions.failure is not None:
            raise WorkersFailedError(self._name, self._decisions.failure)
        logger.info("%s on %s stopped", self._name, self.bound.address.text, extra=self._event("stopped"))

    def _event(self, name: str, pid: int | None = None, reason: str | None = None) -> dict[str, object]:
        facts = {"worker_pid": pid, "reason": reason}
        told: dict[str, Any] = {key: value for key, value in facts.items() if value is not None}
        return event(name, service=self._name, address=self.bound.address.text, **told)

    def _obey(self, command: Command) -> None:
        if command.order is Order.START:
            self._start(command.seat, command.restarts)
        else:
            if command.order is Order.KILL:
                logger.warning(
                    "%s: worker %d did not stop and is killed",
                    self._name,
                    command.pid,
                    extra=self._event("worker_killed", command.pid),
                )
            with contextlib.suppress(ProcessLookupError):  # somebody in this process waited for every child
                os.kill(command.pid, signal.SIGKILL if command.order is Order.KILL else signal.SIGTERM)

    # --- waiting -----------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Wait until something happens or is due, and take note of it."""
        self._poll.poll(poll_milliseconds(max(0.0, self._decisions.wake_at() - monotonic())))
        for number in _read_all(self._heard):
            if number in _STOP:
                self._stop()
            elif number == signal.SIGHUP:
                self._on_hangup()
        for (pid,) in _PID.iter_unpack(_read_all(self._news)):
            self._on_ready(pid)
        for pid in self._decisions.pids:
            self._reap(pid)

    def _on_ready(self, pid: int) -> None:
        logger.info("%s: worker %d is ready", self._name, pid, extra=self._event("worker_ready", pid))
        if self._decisions.ready(pid, monotonic()):
            logger.info(
                "%s: %d new workers are ready, the old ones stop",
                self._name,
                self._count,
                extra=self._event("reloaded"),
            )
        if not self._has_announced and self._decisions.ready_count == self._count:
            self._has_announced = True
            logger.info(
                "serving %s on %s with %d workers",
                self._name,
                self.bound.address.text,
                self._count,
                extra=self._event("serving"),
            )

    def _reap(self, pid: int) -> None:
        """Take note of a worker's end, if it has ended."""
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # somebody in this process waited for every child
            ended, status = pid, 0
        if not ended:
            return
        row = self._rows.pop(pid)
        self._board.clear(row)
        self._free_rows.append(row)
        was_reloading = self._decisions.is_reloading
        code = os.waitstatus_to_exitcode(status)
        pause = self._decisions.ended(pid, monotonic())
        if code == BROKEN_SOCKET:
            self._decisions.fail("the listening socket is of no use any more", monotonic())
            pause = math.inf
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        if pause < math.inf:
            text = "%s: worker %d %s; another starts in %.1f seconds"
            logger.error(text, self._name, pid, how, pause, extra=self._event("worker_failed", pid, how))
        elif was_reloading and not self._decisions.is_reloading:
            text = "%s: new worker %d %s; the reload is given up, the old ones go on"
            logger.error(text, self._name, pid, how, extra=self._event("reload_failed", pid, how))
        elif code not in (0, -signal.SIGTERM):  # told to stop before it had heard of anything, it ends by SIGTERM
            logger.error("%s: worker %d %s", self._name, pid, how, extra=self._event("worker_failed", pid, how))
        else:
            logger.info("%s: worker %d has stopped", self._name, pid, extra=self._event("worker_stopped", pid))
        if self._decisions.failure is not None:
            self._end_listening()

    # --- signals -----------------------------------------------------------------------------------------

    def _on_hangup(self) -> None:
        """Reload; or stop, as every program does, if the signal came from a terminal that is gone."""
        if self._had_terminal and not _has_terminal():
            if not self._ignores_hangup:
                self._stop()
        elif self._decisions.reload(monotonic()):
            text = "%s: reload: %d new workers start beside the old ones"
            logger.info(text, self._name, self._count, extra=self._event("reload"))
        elif not self._decisions.is_stopping:
            text = "%s: reload: begins when the last one is done and its old workers are gone"
            logger.info(text, self._name, extra=self._event("reload_waits"))

    @contextlib.contextmanager
    def _hearing(self) -> Iterator[None]:
        """Have signals write to a pipe instead of doing what they did before."""
        before: dict[signal.Signals, Any] = {}
        wakeup_before = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        try:
            for number in _HEARD:
                before[number] = signal.signal(number, _ignore)
            yield
        finally:
            for number, handler in before.items():
                if handler is not None:  # None: not set from Python, and cannot be set again from here
                    signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup_before)

    def _stop(self) -> None:
        self._decisions.stop(monotonic())
        self._end_listening()

    def _end_listening(self) -> None:
        """Unlink the name, have the workers stop, and send away whoever waits; the lock is free afterwards."""
        if self.bound.sock.fileno() < 0:
            return
        self.bound.unlink()
        while (command := self._decisions.next_command(monotonic())) is not None:
            self._obey(command)
        if not self.bound.is_inherited:  # a lent socket lives on: its backlog is for the next server
            self._send_away()
        self.bound.close()

    def _send_away(self) -> None:
        """Answer who is in the backlog with a farewell instead of a reset."""
        farewell = encode_farewell(GoawayCode.SHUTDOWN, f"{self._name} is shutting down")
        with contextlib.suppress(OSError):
            # No more than the backlog can hold: an abstract name has no file to unlink, so that others go on coming.
            for _ in range(DEFAULT_BACKLOG):
                accepted = accept_peer(self.bound.sock, self.bound.rule, "stream")
                if accepted is None:
                    break
                sock, peer, _ = accepted
                with sock, contextlib.suppress(OSError):
                    sock.send(farewell, getattr(socket, "MSG_NOSIGNAL", 0))
                peer.close()

    def _kill_all(self) -> None:
        """End what is left when an error ends the supervisor itself."""
        for pid in self._decisions.pids:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    # --- forking -----------------------------------------------------------------------------------------

    def _start(self, seat: int, restarts: int) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full or not there
                stream.flush()  # what it holds would be written by the child too
        row = self._free_rows.pop()
        started_at = monotonic()
        # A signal that reaches the child before it has handlers of its own must not be written to the parent's pipe.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
        try:
            pid = os.fork()
            if pid == 0:
                self._be_worker(row, started_at, restarts, mask)
        except OSError as error:
            self._free_rows.append(row)
            logger.error("%s: a worker cannot be forked: %s", self._name, error, extra=self._event("fork_failed"))
            self._decisions.not_started(seat, monotonic())
        else:
            self._rows[pid] = row
            self._decisions.started(seat, pid, started_at)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _be_worker(self, row: int, started_at: float, restarts: int, mask: Any) -> NoReturn:
        """Be a worker to the end of this process; nothing of the parent's program runs here any more."""
        code = 1
        try:
            atexit._clear()
            signal.set_wakeup_fd(-1)
            # Ctrl-C and a hangup reach the terminal's whole group: the supervisor says what they mean. Ignored by a
            # handler of ours, not by SIG_IGN, which programs that are started from here would inherit.
            for number in _HEARD:
                is_typed = number in (signal.SIGINT, signal.SIGHUP)
                signal.signal(number, _ignore if is_typed else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for fd in (self._heard, self._wakeup, self._news, self._alive):
                os.close(fd)
            # What the service forks must not hold the socket, or the address would look alive after our end.
            os.register_at_fork(after_in_child=self.bound.abandon)
            table = self._board.take(row, started_at, restarts)
            self._work(Worker(self.bound, table, self._lifeline, self._tell_ready))
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            logger.exception(
                "%s: worker %d failed", self._name, os.getpid(), extra=self._event("worker_failed", os.getpid())
            )
        finally:
            _leave(code)

    def _tell_ready(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # the supervisor is gone, which the lifeline tells as well
            os.write(self._tell, _PID.pack(os.getpid()))
        os.close(self._tell)


def _leave(code: int) -> NoReturn:
    """End a worker process: run what it registered for its exit, flush, and go, whatever its threads do."""
    try:
        atexit._run_exitfuncs()
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
    finally:
        os._exit(code)


def _ignore(number: int, frame: object) -> None:
    """Do nothing: the number has been written to the pipe already."""


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for fd in ends:
        stack.callback(os.close, fd)
        os.set_blocking(fd, False)
    return ends


def _read_all(fd: int) -> bytes:
    """Return what is in a pipe."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(fd, 65536):
            data += part
    return data


def _has_terminal() -> bool:
    """Say whether this process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
