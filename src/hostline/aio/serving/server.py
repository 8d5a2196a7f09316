"""The server: one accept loop, its sessions, the slots that all of them share, and a stop that loses nothing.

Stopping: the name is unlinked, so that nobody new comes; connections that wait in the backlog are accepted and sent
away with a farewell instead of a reset; every session says goodbye, naming the last call it answers, and what runs gets
`grace` seconds. A caller whose call came later knows that it was not run. Taken over by a successor: the same, but the
name and the backlog are that one's, which accepts already.

More than 400 lines, because every way to stop has to know how each part was started.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import weakref
from types import TracebackType
from typing import Any, Final, Self

from hostline.aio.serving.bounds.accounts import Accounts
from hostline.aio.serving.doorkeeper import Doorkeeper
from hostline.aio.serving.running import RunningCall
from hostline.aio.serving.session import Session
from hostline.aio.serving.takeover import Offering
from hostline.clock import Deadline, monotonic
from hostline.errors import LocalProtocolError, SocketError
from hostline.limits import ACCEPT_BATCH, DEFAULT_BACKLOG, GREETING_TIMEOUT, MAX_FDS_PER_FRAME
from hostline.protocol.connection import check_frame_size
from hostline.protocol.serving.accepting import Accepting
from hostline.protocol.serving.admission import Admission
from hostline.protocol.serving.quotas import Account
from hostline.rpc.builtin import CallCounts, Health, ServiceDescription, Stats, check_health, describe_service
from hostline.rpc.context import Stopping
from hostline.rpc.service import Method, ServiceBase
from hostline.rpc.settings import ServerSettings
from hostline.rpc.watching.calls import FinishedCall, Observer, access_line
from hostline.rpc.watching.fields import event
from hostline.rpc.workers import Workers
from hostline.unix.credentials import Peer, Peers
from hostline.unix.listening import Bound
from hostline.unix.loopback.peer import KeyPeer
from hostline.unix.oserrors import translate
from hostline.unix.sockets import Accepted, accept_peer
from hostline.wire.codec import GoawayCode, ServerHello, encode_farewell, encode_hello, own_features

__all__ = ["Server"]

logger: Final = logging.getLogger("hostline")


class Server:
    """Serve a service on a listening socket; an async context manager.

    Args:
        service: What is served.
        bound: The listening socket; the server owns it and closes it, which unlinks the file it made.
        allow: Who may connect; the socket's own rule (what its mode says) when left out.
        settings: The bounds.
    """

    # Connections accepted in one turn, and where the log says that it serves and has stopped; a worker has others.
    _accept_batch = ACCEPT_BATCH
    _log_level = logging.INFO

    def __init__(
        self, service: ServiceBase, bound: Bound, *, allow: Peers | None = None, settings: ServerSettings | None = None
    ) -> None:
        self.settings = settings or ServerSettings()
        self.service = service
        self.max_frame_size = check_frame_size(self.settings.max_frame_size)
        self._allow = allow or bound.rule
        # Over tcp: all have one account, so that a user's share would keep places free for nobody.
        self.accounts = Accounts(self, self._allow if bound.key is None else bound.rule)
        self.admission = Admission(
            self.settings.concurrency,
            self.settings.queue,
            _displace,
            share=self.accounts.share,
            max_calls=self.settings.max_calls_per_uid,
        )
        self.workers = Workers(f"hostline-{service.name}", self.settings.threads)
        self.methods: list[Method] = [*service.methods.values(), *self._own_methods()]
        self.hello = encode_hello(
            ServerHello(
                service=service.name,
                features=own_features(bound.key is None),
                methods=[method.entry for method in self.methods],
                max_frame_size=self.max_frame_size,
            )
        )
        takes_fds = any(method.signature.takes_attached for method in self.methods)
        self.has_descriptors = bound.key is None
        self.max_fds = MAX_FDS_PER_FRAME if takes_fds and self.has_descriptors else 0
        self.counts = CallCounts()
        self.observers: tuple[Observer, ...] = (access_line,) if self.settings.access_log else ()
        self.stopping = Stopping()
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.overload_text = (
            f"{service.name} runs {self.settings.concurrency} calls and {self.settings.queue} wait: try again"
        )
        self._bound = bound
        self._accepting = Accepting(bound.address.text)
        self._door = Doorkeeper.of(bound, service.name, self._let_in, self._on_acceptable)
        self._sessions: set[Session] = set()
        self._by_method: dict[str, int] = {}
        self._connections_total = 0
        self._connections_refused = 0
        self._started_at = monotonic()
        self._is_listening = False
        self._is_stopping = False
        self._rest_timer: asyncio.TimerHandle | None = None
        self._failure: SocketError | None = None
        self._offering: Offering | None = None
        self._taken_by: int | None = None
        self._ending: asyncio.Task[None] | None = None
        self._idle: asyncio.Event = asyncio.Event()
        self._closed: asyncio.Event = asyncio.Event()

    @property
    def address(self) -> str:
        """The address in words."""
        return self._bound.address.text

    @property
    def connection_count(self) -> int:
        """Connections open now."""
        return len(self._sessions)

    async def start(self) -> None:
        """Begin to accept.

        Raises:
            LocalProtocolError: It was started before.
        """
        if self._is_listening or self._is_stopping:
            raise LocalProtocolError("server was started before: make a new one")
        self._is_listening = True
        self._started_at = monotonic()
        self.loop.add_reader(self._bound.sock.fileno(), self._on_acceptable)
        _live.add(self)
        if self.settings.offer_takeover and self._door is None:
            self._offering = Offering(self.loop, self._bound, self.service.name, self._taken_over)
        self._log(self._log_level, "serving", "serving %s on %s", self.service.name, self.address)

    async def wait_closed(self) -> None:
        """Wait until the server has stopped.

        Raises:
            SocketError: It stopped because the listening socket was of no use any more.
        """
        await self._closed.wait()
        if self._failure is not None:
            raise self._failure

    async def shutdown(self, grace: float | None = None) -> None:
        """Stop: nobody new, a farewell to everybody, `grace` seconds for what runs, then the end. Safe to repeat.

        Args:
            grace: Seconds, instead of the settings'; 0 cancels what runs at once.
        """
        if self._is_stopping:
            if grace == 0:
                self._idle.set()  # as if all were done: ends the wait for what runs
            await self._closed.wait()
            return
        self._is_stopping = True
        try:
            self._stop_accepting()
            end = "is shutting down" if self._taken_by is None else f"was taken over by pid {self._taken_by}"
            for session in list(self._sessions):
                session.drain(GoawayCode.SHUTDOWN, f"{self.service.name} {end}")
            self.stopping.begin()  # a subscription would never end by itself
            await self._wait_idle(self.settings.grace if grace is None else grace)
            self._abort(f"{self.service.name} stopped before the call was done")
            self._idle.clear()
            await self._wait_idle(1.0)  # cancelled handlers get a moment for their own cleaning up
        finally:
            for session in list(self._sessions):
                session.close()
            self.workers.close()
            if stuck := self.admission.running_count:
                self._log(
                    logging.WARNING, "handlers_left", "%s left %d handlers behind that did not end",
                    self.service.name, stuck,
                )  # fmt: skip
            self._bound.close()
            self._closed.set()
            _live.discard(self)
            self._log(self._log_level, "stopped", "%s on %s stopped", self.service.name, self.address)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.shutdown()

    # --- accepting -------------------------------------------------------------------------------------

    def _on_acceptable(self) -> None:
        for _ in range(self._accept_batch):
            try:
                accepted = self._accept()
            except OSError as error:
                self._rest(error)
                return
            if accepted is None:
                return
            self._accepting.succeeded()
            self._welcome(accepted)

    def _let_in(self, sock: socket.socket) -> None:
        self._accepting.succeeded()
        self._welcome(Accepted(sock, KeyPeer(), None))

    def _accept(self) -> Accepted | None:
        if self._door is not None:
            self._door.accept(self._accept_batch)
            return None
        return accept_peer(self._bound.sock, self._allow, "stream", max_fds=self.max_fds)

    def _rest(self, error: OSError) -> None:
        """Descriptors or memory ran out: look away for a while instead of spinning."""
        decision = self._accepting.failed(error.errno, monotonic())
        if decision.log:
            self._log(logging.WARNING, "accept_failed", "%s: %s", self.service.name, decision.log)
        if decision.is_fatal:
            # Nobody new can come, and nobody could take our place while we hold it: stop, so that somebody does.
            self._failure = translate(error, "accept", "stream", self.address)
            text = "%s stops, for it cannot accept any more: %s"
            self._log(logging.ERROR, "accept_broken", text, self.service.name, self._failure)
            self._ending = self.loop.create_task(self.shutdown())
        elif self._accepting.is_resting:
            self.loop.remove_reader(self._bound.sock.fileno())
            self._rest_timer = self.loop.call_at(self._accepting.rest_until, self._accept_again)

    def _accept_again(self) -> None:
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None
            if not self._is_stopping:
                self.loop.add_reader(self._bound.sock.fileno(), self._on_acceptable)

    def _welcome(self, accepted: Accepted) -> None:
        sock, peer, reason = accepted
        refusal = self._refusal(peer, reason)
        if refusal is not None:
            self._send_away(sock, peer, *refusal)
            return
        self._connections_total += 1
        self._sessions.add(Session(self, sock, peer))

    def _refusal(self, peer: Peer, reason: str | None) -> tuple[str, str] | None:
        """Return the code and the reason why a peer is not served, or None."""
        if self._is_stopping:
            return GoawayCode.SHUTDOWN, f"{self.service.name} is shutting down"
        if reason is not None:
            return GoawayCode.REFUSED, f"{self.service.name}: {reason}"
        refusal = self.accounts.quotas.refusal(peer.account, monotonic())
        if refusal is None:
            return None
        return GoawayCode.BUSY if refusal.is_passing else GoawayCode.LIMIT, f"{self.service.name}: {refusal.reason}"

    def _send_away(self, sock: socket.socket, peer: Peer, code: str, reason: str) -> None:
        """Tell a peer why it is not served; the farewell stays readable after the close."""
        self._connections_refused += 1
        if code == GoawayCode.REFUSED:
            self._log(logging.WARNING, "refused", "refused %s: %s", peer.describe(), reason, peer=peer)
        elif code != GoawayCode.SHUTDOWN and (line := self.accounts.quotas.log_line(reason, monotonic())) is not None:
            self._log(logging.WARNING, "refused", "refused %s: %s", peer.describe(), line, peer=peer)
        with contextlib.suppress(OSError):
            sock.send(encode_farewell(code, reason), getattr(socket, "MSG_NOSIGNAL", 0))
        peer.close()
        sock.close()

    def _stop_accepting(self) -> None:
        """Unlink the name, then send away whoever was already in the backlog."""
        if self._offering is not None:
            self._offering.close()  # whoever is taking over is told, and starts anew
        if self._taken_by is not None:
            return
        self._look_away()
        if self._door is not None:
            self._door.close()
        self._bound.unlink()
        if not self._is_listening or self._bound.is_inherited:
            return  # a lent socket lives on in whoever lent it: its backlog is for the next server
        with contextlib.suppress(OSError):
            # No more than the backlog can hold: an abstract name has no file to unlink, so that others go on coming.
            for _ in range(DEFAULT_BACKLOG if self._door is None else 0):
                accepted = self._accept()
                if accepted is None:
                    break
                self._welcome(accepted)
        self._bound.close()  # and lets go of the lock: a successor may start while the last calls end

    def _look_away(self) -> None:
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None
        if self._door is not None:
            self._door.look_away()
        if self._is_listening:
            self.loop.remove_reader(self._bound.sock.fileno())

    def _taken_over(self, pid: int) -> None:
        """Stop, for the socket is another process's now: who waits in its backlog is served there."""
        self._taken_by = pid
        self._look_away()
        self._bound.close()
        text = "%s on %s was taken over by pid %d"
        self._log(logging.INFO, "taken_over", text, self.service.name, self.address, pid)
        self._ending = self.loop.create_task(self._leave())

    async def _leave(self) -> None:
        await self._finish_greetings()
        await self.shutdown()

    async def _finish_greetings(self) -> None:
        """Greet those who were accepted a moment ago; where somebody else accepts now, and nobody is accepted here.

        A client that was greeted and is told goodbye connects again by itself. One that reads goodbye before the
        greeting, or with it, has its `connect` fail, though another process would have served it.
        """
        # Looked at again and again, once in a server's life, rather than noted at every greeting. Each is asked until
        # it was seen without anything unread for once: those who make many calls always have something on the way.
        greeted: set[Session] = set()
        deadline = Deadline.after(GREETING_TIMEOUT)
        while not deadline.has_passed():
            greeted |= {session for session in self._sessions - greeted if session.has_read_greeting()}
            if self._sessions <= greeted and (self._door is None or not self._door.guest_count):
                return
            await asyncio.sleep(0.002)

    def forget_in_child(self) -> None:
        """In a forked child: close what belongs to the parent.

        A listening socket that a child kept open would look alive after the parent's death, and a connection kept
        open would hide that death from its client.
        """
        if not self._closed.is_set():
            self._bound.abandon()
            if self._door is not None:
                self._door.abandon()
            for session in self._sessions:
                session.abandon()

    # --- what sessions use -----------------------------------------------------------------------------

    def forget(self, session: Session) -> None:
        """Take a closed session off the books."""
        self._sessions.discard(session)
        self.accounts.close(session)
        if self._accepting.descriptor_returned():
            self._accept_again()
        self._check_idle()

    def release_slot(self, account: Account) -> None:
        """Give a slot back and run what waits for it."""
        self.admission.finish(account.calls)
        self.accounts.finished(account)
        self._use_slots()

    def release_slot_soon(self, account: Account) -> None:
        """Give a slot back, and run what waits for it in the loop's next turn.

        A queue full of calls that are turned away would otherwise end each other, each a level deeper in the stack.
        """
        self.admission.finish(account.calls)
        self.accounts.finished(account)
        self.loop.call_soon(self._use_slots)

    def _use_slots(self) -> None:
        self.start_waiting()
        self._check_idle()

    def start_waiting(self) -> None:
        """Run waiting calls while there are slots."""
        while (call := self.admission.next()) is not None:
            running: RunningCall = call
            running.calls.start(running)

    def observe(self, observer: Observer) -> None:
        """Have `observer` called with each call that has its answer, on the loop; it must be quick."""
        if observer not in self.observers:
            self.observers += (observer,)

    def forget_observer(self, observer: Observer) -> None:
        """Call it no more."""
        self.observers = tuple(each for each in self.observers if each != observer)

    def tell(self, call: FinishedCall) -> None:
        """Tell the observers of a call; one that raises is told of no more calls."""
        for observer in self.observers:
            try:
                observer(call)
            except Exception:
                self.forget_observer(observer)
                extra = event("observer_failed", service=self.service.name, address=self.address)
                logger.exception("%s: an observer failed and is told nothing more", self.service.name, extra=extra)

    def _log(self, level: int, name: str, message: str, *args: object, peer: Peer | None = None) -> None:
        fields = event(name, peer, service=self.service.name, address=self.address)
        logger.log(level, message, *args, extra=fields)

    def count_answer(self, method: str) -> None:
        """Count a call that was answered with its result."""
        self.counts.finished += 1
        self._by_method[method] = self._by_method.get(method, 0) + 1

    def count_failure(self) -> None:
        """Count a call that was answered with an error."""
        self.counts.finished += 1
        self.counts.failed += 1

    # --- ending ----------------------------------------------------------------------------------------

    def _check_idle(self) -> None:
        if self._is_stopping and not self._sessions and not self.admission.running_count:
            self._idle.set()

    async def _wait_idle(self, seconds: float) -> None:
        self._check_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    def _abort(self, reason: str) -> None:
        for session in list(self._sessions):
            session.abort_calls(reason)

    # --- the methods of every service ------------------------------------------------------------------

    def _own_methods(self) -> list[Method]:
        def describe() -> ServiceDescription:
            """Return the methods of the service, their parameters, results and errors, with JSON Schemas."""
            return describe_service(self.service)

        def health() -> Health:
            """Return whether the service can do its work."""
            return check_health(self.service, monotonic() - self._started_at)

        def stats() -> Stats:
            """Return what the service does now and has done since its start."""
            return self.stats()

        handlers: dict[str, Any] = {"hostline.describe": describe, "hostline.health": health, "hostline.stats": stats}
        return [Method(f, name=name, inline=True, idempotent=True) for name, f in handlers.items()]

    def stats(self) -> Stats:
        """Return what the service does now and has done since its start."""
        counts = self.counts
        counts.running = self.admission.running_count
        counts.waiting = self.admission.waiting_count
        return Stats(
            service=self.service.name,
            pid=os.getpid(),
            uptime=monotonic() - self._started_at,
            connections=len(self._sessions),
            connections_total=self._connections_total,
            connections_refused=self._connections_refused + (self._door.refused_count if self._door else 0),
            calls=counts,
            methods=dict(self._by_method),
            users=self.accounts.stats(),
        )


def _displace(call: RunningCall) -> None:
    call.calls.displace(call)


_live: weakref.WeakSet[Server] = weakref.WeakSet()


def _forget_in_child() -> None:
    for server in list(_live):
        server.forget_in_child()
    _live.clear()


os.register_at_fork(after_in_child=_forget_in_child)
