"""Before the sessions of a loopback listener: everybody may connect to a port, so each proves the key first.

What the bytes mean and who may stay is decided in protocol/challenge.py. Nothing is sent to those who fail, and nothing
of theirs but the fixed size of a proof is ever read.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import socket
from collections.abc import Callable
from typing import Final, Self

from hostline.clock import monotonic
from hostline.errors import RemoteProtocolError
from hostline.limits import HANDSHAKE_TIMEOUT
from hostline.protocol.challenge import NONCE_SIZE, Lobby, ServerChallenge
from hostline.rpc.watching.fields import event
from hostline.unix.listening import Bound
from hostline.unix.loopback.keyfile import KeyFile
from hostline.unix.sockets import accept_one, has_hung_up

__all__ = ["Doorkeeper"]

logger: Final = logging.getLogger("hostline")


class Doorkeeper:
    """Accept the connections of one loopback listener, and admit those that prove its key.

    Args:
        listener: The listening socket; it stays the server's.
        key: What is to be proved.
        name: The service and its address, for the log.
        admit: Called with each socket that has proved the key; it is the callee's from then on.
        on_acceptable: What the loop calls when the listener is readable, to be set anew after a pause.
    """

    def __init__(
        self,
        listener: socket.socket,
        key: KeyFile,
        name: str,
        admit: Callable[[socket.socket], None],
        on_acceptable: Callable[[], None],
    ) -> None:
        self.key = key
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._listener = listener
        self._name = name
        self._admit = admit
        self._on_acceptable = on_acceptable
        self._lobby: Lobby[_Guest] = Lobby()
        self._pause: asyncio.TimerHandle | None = None
        self._is_done = False

    @classmethod
    def of(
        cls, bound: Bound, service: str, admit: Callable[[socket.socket], None], on_acceptable: Callable[[], None]
    ) -> Self | None:
        """Return who keeps the door of a listener, or None where the kernel does."""
        if bound.key is None:
            return None
        return cls(bound.sock, bound.key, f"{service} on {bound.address}", admit, on_acceptable)

    @property
    def refused_count(self) -> int:
        """Connections that did not prove the key."""
        return self._lobby.failures

    def accept(self, most: int) -> None:
        """Accept who waits, so far as there is room for them to prove the key.

        Args:
            most: Connections at most, in this turn of the loop.

        Raises:
            OSError: As the kernel gave it for the listening socket, for `protocol.accepting` to judge.
        """
        for _ in range(most):
            if not self._has_made_room():
                return
            sock = accept_one(self._listener)
            if sock is None:
                if has_hung_up(self._listener.fileno()):
                    raise OSError(errno.EINVAL, "somebody shut the listening socket down")
                return
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                sock.close()  # it has gone already
                continue
            guest = _Guest(self, sock)
            self._lobby.enter(guest, monotonic())
            guest.on_readable()  # an honest client has spoken by now

    def _has_made_room(self) -> bool:
        if self._lobby.has_room():
            return True
        now = monotonic()
        guest = self._lobby.overdue(now)
        if guest is not None:
            guest.on_readable()  # it may have been this loop that took so long
            guest.fail("it took too long while others waited")
            return True
        if self._pause is None:
            self.loop.remove_reader(self._listener.fileno())
            self._pause = self.loop.call_later(max(0.0, self._lobby.room_at() - now), self._resume)
        return False

    def _resume(self) -> None:
        if self._pause is not None and not self._is_done:
            self._pause.cancel()
            self._pause = None
            self.loop.add_reader(self._listener.fileno(), self._on_acceptable)

    def proved(self, guest: _Guest, sock: socket.socket) -> None:
        """Let somebody in."""
        self._lobby.leave(guest)
        self._resume()
        self._admit(sock)

    def failed(self, guest: _Guest, reason: str) -> None:
        """Forget somebody who was closed, and say so in the log once in a while."""
        self._lobby.leave(guest)
        words = self._lobby.failed(monotonic())
        if words is not None:
            logger.warning(
                "%s: %s closed that did not prove the key: %s",
                self._name,
                words,
                reason,
                extra=event("unproven", service=self._name, reason=reason),
            )
        self._resume()

    @property
    def guest_count(self) -> int:
        """Connections that are at the proof now."""
        return len(self._lobby)

    def look_away(self) -> None:
        """Accept no more; those who are at the proof may finish it. Safe to repeat."""
        self._is_done = True
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def close(self) -> None:
        """Close everybody who has not proved the key; before the listener is closed. Safe to repeat."""
        self.look_away()
        for guest in self._lobby.guests():
            self._lobby.leave(guest)
            guest.close()

    def abandon(self) -> None:
        """In a forked child: close the copies of the sockets and touch nothing else."""
        self._is_done = True
        for guest in self._lobby.guests():
            guest.sock.close()


class _Guest:
    """One connection that has not proved the key yet."""

    __slots__ = ("_challenge", "_door", "_fd", "_timer", "sock")

    def __init__(self, door: Doorkeeper, sock: socket.socket) -> None:
        self._door = door
        self._challenge = ServerChallenge(door.key.key, door.key.transport, secrets.token_bytes(NONCE_SIZE))
        self.sock = sock
        self._fd = sock.fileno()
        text = f"no proof within {HANDSHAKE_TIMEOUT} seconds"
        self._timer = door.loop.call_later(HANDSHAKE_TIMEOUT, self.fail, text)
        door.loop.add_reader(self._fd, self.on_readable)

    def on_readable(self) -> None:
        """Read what the proof still lacks, and not a byte more: what follows is for the session."""
        challenge = self._challenge
        try:
            while challenge.wanted and self.sock.fileno() >= 0:
                data = self.sock.recv(challenge.wanted)
                if not data:
                    self.fail("the other side closed")
                    return
                answer = challenge.receive_data(data)
                # A new connection has room for this, or something is wrong with it.
                if answer and self.sock.send(answer, getattr(socket, "MSG_NOSIGNAL", 0)) != len(answer):
                    self.fail("it takes no answer")
                    return
        except (BlockingIOError, InterruptedError):
            return
        except RemoteProtocolError as error:
            self.fail(str(error))
            return
        except OSError as error:
            self.fail((error.strerror or str(error)).lower())
            return
        if challenge.is_proven:
            self._let_go()
            self._door.proved(self, self.sock)

    def _let_go(self) -> None:
        self._timer.cancel()
        self._door.loop.remove_reader(self._fd)

    def fail(self, reason: str) -> None:
        """Close without a word."""
        if self.sock.fileno() >= 0:
            self.close()
            self._door.failed(self, reason)

    def close(self) -> None:
        """Close; safe to repeat."""
        if self.sock.fileno() >= 0:
            self._let_go()
            self.sock.close()
