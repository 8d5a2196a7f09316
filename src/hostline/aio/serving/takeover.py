"""Hot restart on an event loop: wait for whoever takes this server's socket over, and for the one that is taken over.

What is said and who owns what is decided below, in protocol/takeover.py and rpc/takeover/.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from hostline.clock import monotonic
from hostline.rpc.takeover.asking import Wanted, taking_over
from hostline.rpc.takeover.offering import Offer
from hostline.unix.listening import Bound

__all__ = ["Offering", "listen_or_take_over"]

T = TypeVar("T")


async def listen_or_take_over(wanted: Wanted, service: str, prepare: Callable[[Bound], T]) -> T:
    """Take an address over from whoever serves it, or listen there where nobody does; the loop goes on meanwhile.

    Args:
        wanted: What is to listen where.
        service: The name of the service.
        prepare: As for `taking_over`.

    Raises:
        HostlineError: As from `taking_over`.
    """
    loop = asyncio.get_running_loop()
    steps = taking_over(wanted, service, prepare)
    try:
        while True:
            fd, until = next(steps)
            woken = asyncio.Event()
            timer = loop.call_later(max(0.0, until - monotonic()), woken.set)
            if fd is not None:
                loop.add_reader(fd, woken.set)
            try:
                await woken.wait()
            finally:
                timer.cancel()
                if fd is not None:
                    loop.remove_reader(fd)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()


class Offering:
    """Offer a server's socket to its successor for as long as it serves.

    Args:
        loop: The server's loop.
        bound: What is offered.
        service: The name of the service.
        on_taken: Called on the loop with the successor's pid, once the socket is that one's.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, bound: Bound, service: str, on_taken: Callable[[int], None]
    ) -> None:
        self._loop = loop
        self._on_taken = on_taken
        self._timer: asyncio.TimerHandle | None = None
        self._offer = Offer.open(bound, service)
        if self._offer is not None:
            loop.add_reader(self._offer.fileno(), self._step)

    def _step(self) -> None:
        offer = self._offer
        if offer is None:
            return
        fd = offer.fileno()
        if offer.step():
            pid = offer.taken_by or 0
            self._stop_waiting(fd)
            self._offer = None
            self._on_taken(pid)
            return
        self._stop_timer()
        if offer.deadline is not None:
            self._timer = self._loop.call_later(max(0.0, offer.deadline - monotonic()), self._step)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_waiting(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        self._stop_timer()

    def close(self) -> None:
        """Stop offering. Safe to repeat."""
        offer, self._offer = self._offer, None
        if offer is not None:
            self._stop_waiting(offer.fileno())
            offer.close()
