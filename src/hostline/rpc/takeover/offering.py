"""The running server's side: offer the listening socket, and give it up to one successor that is ready.

One object with one descriptor to watch, for event loops and for blocking supervisors alike: while `fileno()` is
readable, or `deadline` has passed, call `step`. It costs nothing while nobody asks.
"""

from __future__ import annotations

import logging
import os
import selectors
import weakref
from typing import Any, Final

from hostline.clock import monotonic
from hostline.errors import HostlineError
from hostline.limits import MAX_SUCCESSORS
from hostline.protocol.serving.accepting import Accepting
from hostline.protocol.takeover import VERSION, Code, Give, Giver, GiverStep, Message, Refused, Released
from hostline.rpc.takeover.talk import Talk
from hostline.rpc.watching.fields import event
from hostline.unix.credentials import Peers
from hostline.unix.handing import control_socket
from hostline.unix.listening import Bound
from hostline.unix.oserrors import printable
from hostline.unix.sockets import Accepted, accept_peer

__all__ = ["Offer"]

logger: Final = logging.getLogger("hostline")

# epoll or kqueue, whose one descriptor an event loop can watch.
_Selector = selectors.DefaultSelector


class _Visit:
    """One successor that has called, and how far it is."""

    __slots__ = ("giver", "talk")

    def __init__(self, talk: Talk, giver: Giver) -> None:
        self.talk = talk
        self.giver = giver

    @property
    def pid(self) -> int:
        return self.talk.peer.pid or self.giver.pid


class Offer:
    """Offer a listening socket to whoever comes next, from `open` to `close`.

        if offer := Offer.open(bound, "payments"):
            while not offer.step():
                poll(offer.fileno(), offer.deadline)    # beside everything else that is waited for
            bound.close()       # only the socket: the file and the lock are another process's now

    Attributes:
        taken_by: Pid of the process that owns the socket now; None as long as this one does.
        deadline: When `step` is to be called at the latest, in monotonic seconds; None for no limit.
    """

    def __init__(self, bound: Bound, service: str, control: Bound) -> None:
        """Take over a control socket; use `open`."""
        self.taken_by: int | None = None
        self._bound = bound
        self._service = service
        self._rule = Peers.same_user()
        self._control: Bound | None = control
        self._accepting = Accepting(control.address.text)
        self._rest_until: float | None = None
        self._visits: list[_Visit] = []
        self._selector = _Selector()
        self._selector.register(control.sock, selectors.EVENT_READ)
        _live.add(self)

    @classmethod
    def open(cls, bound: Bound, service: str) -> Offer | None:
        """Begin to offer; None where that is not possible, which is logged and no reason not to serve.

        Args:
            bound: What is offered; it stays the caller's until `step` says otherwise.
            service: The service's name, which a successor must know.
        """
        control: Bound | None = None
        try:
            control = control_socket(bound)
            return None if control is None else cls(bound, service, control)
        except (HostlineError, OSError, ValueError) as error:
            if control is not None:
                control.close()
            logger.warning(
                "%s on %s cannot be taken over by a successor: %s",
                service,
                bound.address,
                error,
                extra=event("offer_failed", service=service, address=str(bound.address)),
            )
            return None

    def fileno(self) -> int:
        """Return the descriptor to wait for; it stays this object's own."""
        number: int = self._selector.fileno()
        return number

    @property
    def deadline(self) -> float | None:
        """When `step` is to be called at the latest, in monotonic seconds; None for no limit."""
        times = [visit.giver.deadline for visit in self._visits]
        if self._rest_until is not None:
            times.append(self._rest_until)
        return min(times, default=None)

    def step(self) -> bool:
        """Do what can be done without waiting; whether the socket is another process's now.

        If so the `Bound` has let go of its file and its lock; accept no more on its socket, and close it.
        """
        now = monotonic()
        for key, _ in self._selector.select(0):
            if self.taken_by is not None:
                break
            if isinstance(key.data, _Visit):
                self._hear(key.data, now)
            else:
                self._accept(now)
        for visit in [each for each in self._visits if each.giver.deadline <= now]:
            self._refuse(visit, visit.giver.too_late())
        if self._rest_until is not None and self._rest_until <= now and self._control is not None:
            self._rest_until = None
            self._selector.register(self._control.sock, selectors.EVENT_READ)
        return self.taken_by is not None

    # --- successors ------------------------------------------------------------------------------------

    def _accept(self, now: float) -> None:
        while self._control is not None:
            try:
                accepted = accept_peer(self._control.sock, self._rule, "stream")
            except OSError as error:
                self._rest(error, now)
                return
            if accepted is None:
                return
            self._accepting.succeeded()
            self._welcome(accepted, now)

    def _rest(self, error: OSError, now: float) -> None:
        """Look away for a while where descriptors ran out; offer no more where the control socket was shut down."""
        decision = self._accepting.failed(error.errno, now)
        if decision.log:
            logger.warning("%s: %s", self._service, decision.log, extra=self._event("accept_failed"))
        if decision.is_fatal:
            logger.warning(
                "%s on %s cannot be taken over any more: %s",
                self._service,
                self._bound.address,
                error,
                extra=self._event("offer_failed"),
            )
            self._close_control()
        elif self._accepting.is_resting and self._control is not None:
            self._selector.unregister(self._control.sock)
            self._rest_until = self._accepting.rest_until

    def _welcome(self, accepted: Accepted, now: float) -> None:
        try:
            talk = Talk(accepted.sock, accepted.peer, is_taker=False)
        except HostlineError:
            accepted.peer.close()
            accepted.sock.close()
            return
        visit = _Visit(talk, Giver(self._service, self._bound.socket_type, now))
        self._visits.append(visit)
        self._selector.register(talk, selectors.EVENT_READ, visit)
        if accepted.refusal is not None:
            self._refuse(visit, Refused(Code.DENIED, accepted.refusal))
        elif len(self._visits) > MAX_SUCCESSORS:
            self._refuse(visit, Refused(Code.BUSY, f"{MAX_SUCCESSORS} others are taking over at this moment"))

    def _hear(self, visit: _Visit, now: float) -> None:
        """Take what a successor says; one that ends or breaks the rules is forgotten, and this server goes on."""
        try:
            for message, _ in visit.talk.receive():
                self._obey(visit, message, now)
                if visit not in self._visits:
                    return
        except HostlineError as error:  # it breaks the rules, it is gone, or the kernel would not send the descriptors
            self._refuse(visit, Refused(Code.FAILED, str(error)))
            return
        if visit.talk.has_ended:
            self._forget(visit, "it ended")

    def _obey(self, visit: _Visit, message: Message, now: float) -> None:
        busy_with = next((each.pid for each in self._visits if each.giver.has_given), None)
        step = visit.giver.take(message, now, busy_with=busy_with)
        if step is GiverStep.GIVE:
            self._give(visit)
        elif step is GiverStep.RELEASE:
            self._release(visit)
        elif step is GiverStep.REFUSE:
            self._refuse(visit, visit.giver.refusal)
        else:
            self._forget(visit, printable(visit.giver.refusal.reason))

    def _give(self, visit: _Visit) -> None:
        bound = self._bound
        owned = bound.owned()
        device, inode = owned.identity if owned else (0, 0)
        fds = [bound.sock.fileno()] + ([owned.lock_fd] if owned else [])
        logger.info(
            "%s on %s: pid %d takes over",
            self._service,
            bound.address,
            visit.pid,
            extra=self._event("takeover_begins", visit.pid),
        )
        visit.talk.send(Give(VERSION, os.getpid(), str(bound.address), device, inode), fds)

    def _release(self, visit: _Visit) -> None:
        """Give the socket up: from the moment in which `released` is sent, and only if that succeeds."""
        self._close_control()  # the next owner makes its own there
        try:
            visit.talk.send(Released())
        except HostlineError as error:
            self._forget(visit, str(error))
            self._offer_again()
            return
        self.taken_by = visit.pid
        self._bound.give_up()
        self._end(visit)
        self.close()

    def _refuse(self, visit: _Visit, refusal: Refused) -> None:
        logger.warning(
            "%s refused pid %d as its successor: %s",
            self._service,
            visit.pid,
            printable(refusal.reason),
            extra=self._event("takeover_refused", visit.pid),
        )
        try:
            visit.talk.send(refusal)
        except HostlineError:
            pass  # it is gone
        self._end(visit)

    def _event(self, name: str, pid: int | None = None) -> dict[str, object]:
        told: dict[str, Any] = {} if pid is None else {"peer_pid": pid}
        return event(name, service=self._service, address=str(self._bound.address), **told)

    def _forget(self, visit: _Visit, reason: str) -> None:
        if visit.giver.has_given:
            name, address = self._service, self._bound.address
            logger.warning(
                "%s on %s goes on, for pid %d did not take over: %s",
                name,
                address,
                visit.pid,
                reason,
                extra=self._event("takeover_failed", visit.pid),
            )
        self._end(visit)

    def _end(self, visit: _Visit) -> None:
        self._visits.remove(visit)
        self._selector.unregister(visit.talk)
        visit.talk.close()

    # --- the end ---------------------------------------------------------------------------------------

    def _offer_again(self) -> None:
        try:
            self._control = control_socket(self._bound)
        except (HostlineError, OSError) as error:
            logger.warning(
                "%s cannot be taken over by a successor any more: %s",
                self._service,
                error,
                extra=self._event("offer_failed"),
            )
            return
        if self._control is not None:
            self._selector.register(self._control.sock, selectors.EVENT_READ)

    def _close_control(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            if self._rest_until is None:
                self._selector.unregister(control.sock)
            self._rest_until = None
            control.close()

    def close(self) -> None:
        """Stop offering: whoever is taking over is told, and the control socket is unlinked. Safe to repeat."""
        self._close_control()
        reason = "the server is stopping" if self.taken_by is None else f"pid {self.taken_by} has taken over"
        code = Code.STOPPING if self.taken_by is None else Code.BUSY
        for visit in list(self._visits):
            self._refuse(visit, Refused(code, reason))
        self._selector.close()
        _live.discard(self)

    def forget_in_child(self) -> None:
        """In a forked child: close the copies; what is offered stays the parent's."""
        if self._control is not None:
            self._control.abandon()
        for visit in self._visits:
            visit.talk.close()
        self._selector.close()


_live: weakref.WeakSet[Offer] = weakref.WeakSet()


def _forget_in_child() -> None:
    for offer in list(_live):
        offer.forget_in_child()
    _live.clear()


os.register_at_fork(after_in_child=_forget_in_child)
