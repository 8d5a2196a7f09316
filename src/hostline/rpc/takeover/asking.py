"""The next server's side: ask whoever serves an address for its socket, or listen there where nobody does.

The steps are a generator that says what to wait for and until when (`Wait`) and is resumed after it: `listen_blocking`
here drives it with poll, `aio/serving/takeover.py` on an event loop.
"""

from __future__ import annotations

import logging
import os
import select
import selectors
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from hostline.clock import monotonic, poll_milliseconds
from hostline.errors import AddressInUseError, AddressNotFoundError, HostlineError
from hostline.limits import TAKEOVER_PAUSE, TAKEOVER_RETRY, TAKEOVER_TIMEOUT
from hostline.protocol.takeover import VERSION, Ask, Code, Give, Ready, Refused, Taker, TakerState
from hostline.rpc.takeover.talk import Talk
from hostline.rpc.watching.fields import event
from hostline.unix.address import AbstractAddress, Address, PathAddress, SocketType
from hostline.unix.credentials import Peers
from hostline.unix.handing import Successor, has_ended, own
from hostline.unix.holders import Holder, in_use
from hostline.unix.listening import Bound, checked_backlog, listening_socket
from hostline.unix.oserrors import printable
from hostline.unix.passing.descriptors import Fd, close_all

__all__ = ["Wait", "Wanted", "listen_blocking", "taking_over"]

logger: Final = logging.getLogger("hostline")

T = TypeVar("T")


class Wait(NamedTuple):
    """Say what to wait for: until `fd` is readable, where there is one, or until `until`, in monotonic seconds."""

    fd: int | None
    until: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """Say what is to listen where; the options are those of `listening_socket`."""

    address: Address
    socket_type: SocketType = "stream"
    mode: int | None = None
    owner: int | str | None = None
    group: int | str | None = None
    backlog: int | None = None
    max_fds: int = 0
    credentials: bool = False

    def listen(self) -> Bound:
        """Listen as if there were no takeover."""
        return listening_socket(
            self.address, self.socket_type, mode=self.mode, owner=self.owner, group=self.group, backlog=self.backlog,
            max_fds=self.max_fds, credentials=self.credentials,
        )  # fmt: skip


def listen_blocking(
    wanted: Wanted, service: str, prepare: Callable[[Bound], T], timeout: float = TAKEOVER_TIMEOUT
) -> T:
    """Take an address over from whoever serves it, or listen there where nobody does; waits in this thread.

    Args:
        wanted: What is to listen where.
        service: The name of the service, which both must agree on.
        prepare: As for `taking_over`.
        timeout: Seconds for all of it.

    Raises:
        HostlineError: As from `taking_over`.
    """
    steps = taking_over(wanted, service, prepare, timeout)
    try:
        while True:
            wait = next(steps)
            poller = select.poll()
            if wait.fd is not None:
                poller.register(wait.fd, select.POLLIN)
            poller.poll(poll_milliseconds(max(0.0, wait.until - monotonic())))
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()


def taking_over(
    wanted: Wanted, service: str, prepare: Callable[[Bound], T], timeout: float = TAKEOVER_TIMEOUT
) -> Generator[Wait, None, T]:
    """Take an address over from whoever serves it, or listen there where nobody does.

    Args:
        wanted: What is to listen where.
        service: The name of the service, which both must agree on.
        prepare: Makes ready whatever will accept on the socket, and returns it. Until this generator has returned, the
            socket is the last owner's: nothing may be accepted. If it comes to nothing, what was prepared is dropped.
        timeout: Seconds for all of it.

    Returns:
        What `prepare` returned. The `Bound` that it was given is the owner of the address now.

    Raises:
        AddressInUseError: Whoever serves the address does not offer it, refused, or did not answer in time; it goes on.
        ValueError: As from `listening_socket`.
        HostlineError: As from `listening_socket`, or what was given is not what it should be; its owner goes on.
    """
    address = wanted.address
    checked_backlog(wanted.backlog, wanted.socket_type)
    deadline = monotonic() + timeout
    held_until: float | None = None
    while True:
        if isinstance(address, PathAddress | AbstractAddress):
            asking = _Asking(wanted, address, service, prepare, deadline)
            try:
                if (yield from asking.run()):
                    return asking.result
            finally:
                asking.close()
        else:
            logger.info(
                "%s on %s: an inherited socket outlives its servers; nothing is taken over",
                service,
                address,
                extra=event("takeover_needless", service=service, address=str(address)),
            )
        try:
            bound = wanted.listen()
        except AddressInUseError as error:
            now = monotonic()
            held_until = held_until or min(deadline, now + TAKEOVER_RETRY)
            if now >= held_until:
                error.reason += "; it does not offer itself to be taken over"
                raise
            yield Wait(None, now + TAKEOVER_PAUSE)
            continue
        try:
            result = prepare(bound)
        except BaseException:
            bound.close()
            raise
        logger.info(
            "%s on %s: nobody was there to be taken over",
            service,
            address,
            extra=event("takeover_needless", service=service, address=str(address)),
        )
        return result


class _Asking(Generic[T]):
    """Ask one owner once.

    Attributes:
        result: What was prepared, once `run` has returned True.
    """

    result: T

    def __init__(
        self,
        wanted: Wanted,
        address: PathAddress | AbstractAddress,
        service: str,
        prepare: Callable[[Bound], T],
        deadline: float,
    ) -> None:
        self._wanted = wanted
        self._address = address
        self._service = service
        self._prepare = prepare
        self._deadline = deadline
        self._taker = Taker()
        self._fds: list[Fd] = []
        self._successor: Successor | None = None
        self._talk: Talk | None = None
        self._bound: Bound | None = None
        self._selector: selectors.BaseSelector | None = None
        self._is_watched = False  # whether the connection is among what wakes

    def run(self) -> Generator[Wait, None, bool]:
        """Ask, and obey; False: there is no owner, or it is going away."""
        wanted = self._wanted
        try:
            self._successor = Successor(
                self._address, wanted.socket_type, mode=wanted.mode, owner=wanted.owner, group=wanted.group
            )
        except AddressNotFoundError:
            return False
        self._talk = yield from self._connect(self._successor)
        if self._talk is None:
            return False
        self._watch(self._talk)
        self._say(Ask(VERSION, os.getpid(), self._service, wanted.socket_type))
        yield from self._wait_while(TakerState.ASKED)
        give = self._taker.give
        if self._taker.state is TakerState.REFUSED or give is None:
            return self._refused()
        fds, self._fds = self._fds, []
        try:
            self._bound = self._successor.adopt(fds, (give.device, give.inode))
            self.result = self._prepare(self._bound)
        except BaseException as error:
            self._say(Refused(Code.FAILED, printable(str(error) or type(error).__name__)))
            raise
        if self._taker.state is TakerState.GIVEN:
            self._taker.is_ready()
            self._say(Ready())
            yield from self._wait_while(TakerState.READY)
        if self._taker.state is not TakerState.OWNER:
            return self._refused()
        own(self._bound, backlog=wanted.backlog, max_fds=wanted.max_fds, credentials=wanted.credentials)
        self._bound = None
        pid = self._talk.peer.pid or give.pid
        extra = event("took_over", service=self._service, address=str(self._address), peer_pid=pid)
        logger.info("%s on %s: taken over from pid %d", self._service, self._address, pid, extra=extra)
        return True

    def _connect(self, successor: Successor) -> Generator[Wait, None, Talk | None]:
        while True:
            try:
                connected = successor.connect()
            except BlockingIOError as error:
                now = monotonic()
                if now >= self._deadline:
                    raise self._in_use("its control socket is busy with others", 0) from error
                yield Wait(None, now + TAKEOVER_PAUSE)
                continue
            except PermissionError as error:
                # Somebody else's: what serves here is theirs too, or they only took the name. Listening will tell.
                logger.warning(
                    "%s: %s offers nothing to this user: %s",
                    self._service,
                    self._address,
                    error,
                    extra=event("takeover_refused", service=self._service, address=str(self._address)),
                )
                return None
            if connected is None:
                return None
            sock, peer = connected
            refusal = Peers.same_user().refusal(peer)
            if refusal is None:
                return Talk(sock, peer, is_taker=True)
            peer.close()
            sock.close()
            logger.warning(
                "%s: what is offered at %s is not taken: %s",
                self._service,
                self._address,
                refusal,
                extra=event("takeover_refused", peer, service=self._service, address=str(self._address)),
            )
            return None

    def _watch(self, talk: Talk) -> None:
        self._selector = selectors.DefaultSelector()
        self._selector.register(talk, selectors.EVENT_READ)
        self._is_watched = True
        pidfd = talk.peer.pidfd
        if pidfd is not None:
            # A child that the owner forked may hold the connection open when the owner is gone.
            self._selector.register(pidfd, selectors.EVENT_READ)

    def _say(self, message: Ask | Ready | Refused) -> None:
        if self._talk is not None:
            try:
                self._talk.send(message)
            except HostlineError:
                pass  # it is gone; what that means is found out by reading

    def _wait_while(self, state: TakerState) -> Generator[Wait, None, None]:
        """Read until the owner has answered, has ended, or the time is over."""
        talk, selector, taker = self._talk, self._selector, self._taker
        if talk is None or selector is None:
            return
        while taker.state is state:
            if monotonic() >= self._deadline or _is_dead(talk):
                self._read(talk, is_last=True)
                taker.ended(is_giver_dead=_is_dead(talk))
                return
            number: int = selector.fileno()  # type: ignore[attr-defined]
            yield Wait(number, self._deadline)
            self._read(talk)
            if talk.has_ended and self._is_watched:
                # Without a word, it seems. A process that dies closes its sockets a moment before it is dead. The end
                # may come together with an answer, and so be seen in one wait and lead to the next.
                self._is_watched = False
                selector.unregister(talk)

    def _read(self, talk: Talk, *, is_last: bool = False) -> None:
        try:
            for message, fds in talk.last_look() if is_last else talk.receive():
                before = self._taker.state
                self._taker.take(message)
                if isinstance(message, Give) and before is TakerState.ASKED and self._taker.give is message:
                    self._fds = fds
                else:
                    close_all(fds)
        except HostlineError as error:
            # What it said is of no use, and it has released nothing: leave, and it goes on.
            self._say(Refused(Code.FAILED, printable(str(error))))
            self._taker.take(Refused(Code.FAILED, str(error)))

    def _refused(self) -> bool:
        """Raise why not; or return False: the owner is going away, so that somebody may listen there soon."""
        refusal = self._taker.refusal
        if refusal.code == Code.STOPPING:
            return False
        pid = self._talk.peer.pid if self._talk is not None else 0
        raise self._in_use(f"pid {pid}, which serves there, was not taken over: {printable(refusal.reason)}", pid)

    def _in_use(self, reason: str, pid: int) -> AddressInUseError:
        return in_use(self._wanted.socket_type, self._address.text, reason, Holder.of(pid))

    def close(self) -> None:
        """Leave: whatever is not owned by now stays the last owner's. Safe to repeat."""
        talk, bound = self._talk, self._bound
        if talk is not None and self._taker.state is TakerState.READY:
            self._read(talk, is_last=True)  # interrupted at the turning point: only this tells whose it is
        if bound is not None:
            if self._taker.state is TakerState.OWNER:
                bound.own()
            bound.close()
        close_all(self._fds)
        if self._selector is not None:
            self._selector.close()
        for left in (talk, self._successor):
            if left is not None:
                left.close()
        self._talk = self._bound = self._selector = self._successor = None


def _is_dead(talk: Talk) -> bool:
    """Whether the owner's process has ended; where the kernel has no pidfd for it, whether its connection has."""
    return talk.has_ended if talk.peer.pidfd is None else has_ended(talk.peer)
