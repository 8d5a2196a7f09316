"""Decide which worker process is started, stopped or killed, and when. Takes the time as an argument, does no I/O.

There are as many seats as workers were asked for. A seat whose worker ends gets another one: at once if that one had
lived a while, else after a pause that doubles, so that a worker which dies at its start is no busy loop. Where the
first start failed in every seat before any worker became ready, it ends: what fails everywhere fails again.

A reload starts a second worker for each seat beside the first. Once all of these are ready, the first ones are told to
stop; if one of them ends before that, the new ones are stopped instead, and the first go on as if nothing had been.
"""

from __future__ import annotations

import enum
import math
import random
from dataclasses import dataclass
from typing import NamedTuple

from hostline.limits import (
    WORKER_KILL_MARGIN,
    WORKER_RESTART_FIRST,
    WORKER_RESTART_LONGEST,
    WORKER_SETTLED,
)
from hostline.protocol.retry import Backoff

__all__ = ["Command", "Order", "Supervision"]


class Order(enum.Enum):
    """What is to be done: fork a worker, tell one to stop, or kill one that did not."""

    START = "start"
    STOP = "stop"
    KILL = "kill"


class Command(NamedTuple):
    """One thing to be done now.

    Attributes:
        order: What.
        seat: The worker's seat, from 0 on.
        pid: The worker's process; 0 for one that is to be started.
        restarts: How often the seat's worker ended and another was started, this start among them.
    """

    order: Order
    seat: int
    pid: int = 0
    restarts: int = 0


class _State(enum.Enum):
    STARTING = "starting"
    SERVING = "serving"
    STOPPING = "stopping"


@dataclass(slots=True)
class _Worker:
    pid: int
    seat: int
    generation: int
    started_at: float
    state: _State = _State.STARTING
    kill_at: float = math.inf


class _Seat:
    """What is remembered of one seat from one worker to the next."""

    __slots__ = ("backoff", "is_restart", "number", "restarts", "start_at")

    def __init__(self, number: int) -> None:
        self.number = number
        self.restarts = 0
        self.is_restart = False
        self.start_at = 0.0  # when the next worker is to be started; infinite while none is
        self.backoff: Backoff | None = None


class Supervision:
    """Say what becomes of worker processes; whoever holds it tells it what happened and obeys its commands.

    Args:
        count: Workers, at least 1.
        grace: Seconds that a worker takes at most for what runs when it is told to stop.
        rng: Source of the jitter; a fixed one makes a test repeatable.

    Attributes:
        is_stopping: Whether all is to end.
        failure: Why it ends by itself, or None.
    """

    def __init__(self, count: int, *, grace: float, rng: random.Random | None = None) -> None:
        self.is_stopping = False
        self.failure: str | None = None
        self._grace = grace
        self._rng = rng
        self._seats = [_Seat(number) for number in range(count)]
        self._workers: dict[int, _Worker] = {}
        self._commands: list[Command] = []
        self._generation = 0
        self._is_reloading = False
        self._is_reload_wanted = False
        self._was_ready = False
        self._failed_seats: set[int] = set()

    @property
    def pids(self) -> list[int]:
        """The processes that were started and have not ended."""
        return list(self._workers)

    @property
    def has_ended(self) -> bool:
        """Whether it was to end and every worker has."""
        return self.is_stopping and not self._workers

    @property
    def is_reloading(self) -> bool:
        """Whether new workers are being started to take the place of those there are."""
        return self._is_reloading

    @property
    def ready_count(self) -> int:
        """Workers that accept connections and were not told to stop."""
        return sum(worker.state is _State.SERVING for worker in self._workers.values())

    def next_command(self, now: float) -> Command | None:
        """Return one thing to be done now, or None; a start is answered by `started` or `not_started` before the next.

        Args:
            now: The present monotonic time.
        """
        if self._commands:
            return self._commands.pop(0)
        for seat in self._seats:
            if seat.start_at <= now:
                seat.start_at = math.inf
                seat.restarts += seat.is_restart
                return Command(Order.START, seat.number, 0, seat.restarts)
        for worker in self._workers.values():
            if worker.kill_at <= now:
                worker.kill_at = math.inf
                return Command(Order.KILL, worker.seat, worker.pid)
        return None

    def wake_at(self) -> float:
        """Return the monotonic time at which something is due next; infinite if only an event can change anything."""
        if self._commands:
            return 0.0
        times = [seat.start_at for seat in self._seats]
        times += [worker.kill_at for worker in self._workers.values()]
        return min(times)

    # --- what happened -----------------------------------------------------------------------------------

    def started(self, seat: int, pid: int, now: float) -> None:
        """Note that a worker was forked."""
        self._workers[pid] = _Worker(pid, seat, self._generation, now)

    def not_started(self, seat: int, now: float) -> float:
        """Note that no worker could be forked.

        Returns:
            Seconds until the next try; infinite if there is none, because all ends or the reload was given up.
        """
        if self._is_reloading:
            self._give_reload_up(now)
            return math.inf
        return self._start_again(self._seats[seat], now, has_settled=False, was_ready=False)

    def ready(self, pid: int, now: float) -> bool:
        """Note that a worker accepts connections.

        Returns:
            Whether this was the last of a reload, so that the workers before it are told to stop.
        """
        worker = self._workers.get(pid)
        if worker is None or worker.state is not _State.STARTING:
            return False
        worker.state = _State.SERVING
        self._was_ready = True
        new = [w for w in self._workers.values() if w.generation == self._generation and w.state is _State.SERVING]
        if not self._is_reloading or len(new) < len(self._seats):
            return False
        self._is_reloading = False
        for old in self._workers.values():
            if old.generation < self._generation:
                self._tell(old, now)
        self._begin_wanted_reload(now)
        return True

    def ended(self, pid: int, now: float) -> float:
        """Note that a worker is gone.

        Returns:
            Seconds until another is started in its seat; infinite if none is.
        """
        worker = self._workers.pop(pid)
        seat = self._seats[worker.seat]
        if worker.state is _State.STOPPING:
            self._begin_wanted_reload(now)
            return math.inf
        if self._is_reloading:
            if worker.generation == self._generation:
                self._give_reload_up(now)
            return math.inf  # one of the old: its successor is on the way
        was_ready = worker.state is _State.SERVING
        has_settled = was_ready and now - worker.started_at >= WORKER_SETTLED
        return self._start_again(seat, now, has_settled=has_settled, was_ready=was_ready)

    def reload(self, now: float) -> bool:
        """Start new workers for all seats, to take the place of those there are.

        Returns:
            Whether it begins now; if not, it does as soon as the reload before is done and its old workers are gone.
        """
        if self.is_stopping:
            return False
        self._is_reload_wanted = True
        return self._begin_wanted_reload(now)

    def stop(self, now: float) -> None:
        """Tell every worker to stop; told once more, they end at once what still runs."""
        is_first = not self.is_stopping
        self.is_stopping = True
        self._is_reloading = self._is_reload_wanted = False
        for seat in self._seats:
            seat.start_at = math.inf
        for worker in self._workers.values():
            if not is_first:
                self._commands.append(Command(Order.STOP, worker.seat, worker.pid))
                worker.kill_at = min(worker.kill_at, now + WORKER_KILL_MARGIN)
            elif worker.state is not _State.STOPPING:
                self._tell(worker, now)

    def fail(self, reason: str, now: float) -> None:
        """End it all, because it can never work again."""
        if self.failure is None:
            self.failure = reason
        if not self.is_stopping:
            self.stop(now)

    # --- what follows from it ----------------------------------------------------------------------------

    def _start_again(self, seat: _Seat, now: float, *, has_settled: bool, was_ready: bool) -> float:
        if not self._was_ready and not was_ready:
            self._failed_seats.add(seat.number)
            if len(self._failed_seats) == len(self._seats):
                self.fail(f"none of {len(self._seats)} workers became ready", now)
        if self.is_stopping:
            return math.inf
        pause = 0.0
        if has_settled:
            seat.backoff = None
        else:
            seat.backoff = seat.backoff or Backoff(WORKER_RESTART_FIRST, WORKER_RESTART_LONGEST, self._rng)
            pause = seat.backoff.pause()
        seat.start_at = now + pause
        seat.is_restart = True
        return pause

    def _tell(self, worker: _Worker, now: float) -> None:
        worker.state = _State.STOPPING
        worker.kill_at = now + self._grace + WORKER_KILL_MARGIN
        self._commands.append(Command(Order.STOP, worker.seat, worker.pid))

    def _begin_wanted_reload(self, now: float) -> bool:
        """Begin a reload, unless workers of the one before are still there: each seat has two at most."""
        is_busy = self._is_reloading or any(w.state is _State.STOPPING for w in self._workers.values())
        if not self._is_reload_wanted or is_busy:
            return False
        self._is_reload_wanted = False
        self._is_reloading = True
        self._generation += 1
        for seat in self._seats:
            seat.start_at = now
            seat.is_restart = False
            seat.backoff = None  # what failed before may be what the reload mends
        return True

    def _give_reload_up(self, now: float) -> None:
        """Stop the new workers; the old go on, and count as of this generation from now on."""
        self._is_reloading = False
        kept: set[int] = set()
        for worker in self._workers.values():
            if worker.state is _State.STOPPING:
                continue
            if worker.generation == self._generation:
                self._tell(worker, now)
            else:
                worker.generation = self._generation
                kept.add(worker.seat)
        for seat in self._seats:
            if seat.number in kept:
                seat.start_at = math.inf
            else:
                self._start_again(seat, now, has_settled=False, was_ready=True)
        self._begin_wanted_reload(now)
