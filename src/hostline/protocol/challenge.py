"""Prove the key of a loopback address, both sides to each other, before a byte of the protocol is read. Does no I/O.

    client -> server   magic (8), client's nonce (32)
    server -> client   magic (8), server's nonce (32), server's proof (32)
    client -> server   client's proof (32); the hello may follow at once

A proof is HMAC-SHA256 with the key over the role's label, the magic, both nonces and what the connection is bound to
(this start of the server, its host and port). The server proves first: who took the port of a server that ended learns
nothing from a client, and what it learns from a server by asking is worth nothing to it, because the labels differ. The
sizes are fixed, and what a side has not read yet it does not answer: bytes that do not begin with the magic get no byte
in return, so that a browser led to the port reads nothing.

docs/reference/wire.md has it for other languages, tests/vectors/challenge.json the bytes.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from typing import Final, Generic, TypeVar

from hostline.errors import LocalProtocolError, RemoteProtocolError
from hostline.limits import FAILED_PROOF_LOG_INTERVAL, MAX_UNPROVEN, UNPROVEN_GRACE

__all__ = ["CHALLENGE_MAGIC", "NONCE_SIZE", "ClientChallenge", "Lobby", "ServerChallenge"]

# Begins with a byte that no text has, so that no text protocol's first byte is ever taken for it. The last is the
# version of this exchange.
CHALLENGE_MAGIC: Final = b"\xf1hl-key\x01"
NONCE_SIZE: Final = 32
KEY_SIZE: Final = 32
PROOF_SIZE: Final = 32

_SERVER: Final = b"hostline server\n"
_CLIENT: Final = b"hostline client\n"
_ASKED: Final = len(CHALLENGE_MAGIC) + NONCE_SIZE


class _Challenge:
    """Hold what both sides share: the key, the nonces, and bytes of a message that is not complete."""

    __slots__ = ("_buffer", "_is_over", "_key", "_nonce", "_transport", "is_proven", "wanted")

    def __init__(self, key: bytes, transport: bytes, nonce: bytes) -> None:
        """Begin.

        Args:
            key: 32 bytes, the same on both sides.
            transport: What the proofs are bound to.
            nonce: 32 bytes of this side, never used before.

        Raises:
            LocalProtocolError: The key or the nonce has another size.
        """
        if len(key) != KEY_SIZE or len(nonce) != NONCE_SIZE:
            raise LocalProtocolError(f"key of {len(key)} and nonce of {len(nonce)} bytes must have 32 each")
        self._key = key
        self._transport = transport
        self._nonce = nonce
        self._buffer = b""
        self._is_over = False
        self.is_proven = False
        self.wanted = 0

    def _proof(self, label: bytes, client: bytes, server: bytes) -> bytes:
        # Every part but the last has a fixed size, so that no two inputs are written the same.
        message = b"".join((label, CHALLENGE_MAGIC, client, server, self._transport))
        return hmac.digest(self._key, message, "sha256")

    def _whole(self, data: bytes) -> bytes | None:
        """Take bytes; return the message once it is complete."""
        if self._is_over:
            raise RemoteProtocolError("the challenge is over")
        if len(data) > self.wanted:
            self._is_over = True
            raise RemoteProtocolError(f"{len(data)} bytes came where {self.wanted} were wanted")
        self._buffer += data
        self.wanted -= len(data)
        if self.wanted:
            return None
        message, self._buffer = self._buffer, b""
        return message

    def _check_magic(self, start: bytes) -> None:
        """Refuse what does not begin as it must, at the first byte that differs."""
        if not CHALLENGE_MAGIC.startswith(start[: len(CHALLENGE_MAGIC)]):
            self._is_over = True
            if start.startswith(CHALLENGE_MAGIC[:-1]):
                raise RemoteProtocolError(f"version {start[7]} of the challenge is not known, only 1")
            raise RemoteProtocolError("this does not begin as the challenge does")

    def _fail(self, reason: str) -> RemoteProtocolError:
        self._is_over = True
        return RemoteProtocolError(reason)


class ServerChallenge(_Challenge):
    """Prove the key to a client and have it prove the key.

    Attributes:
        wanted: Bytes to be read next, at most; 0 when it is over.
        is_proven: Whether the client has proved the key.
    """

    __slots__ = ("_expected",)

    def __init__(self, key: bytes, transport: bytes, nonce: bytes) -> None:
        super().__init__(key, transport, nonce)
        self._expected: bytes | None = None
        self.wanted = _ASKED

    def receive_data(self, data: bytes) -> bytes:
        """Take what the client sent, `wanted` bytes at most; return what is to be sent.

        Raises:
            RemoteProtocolError: The client does not know the key, or does not speak this; close without a word.
        """
        if self._expected is None and not self._is_over:
            self._check_magic(self._buffer + data[:_ASKED])
        message = self._whole(data)
        if message is None:
            return b""
        if self._expected is None:
            theirs = message[len(CHALLENGE_MAGIC) :]
            if hmac.compare_digest(theirs, self._nonce):
                raise self._fail("the client's nonce is our own")
            self._expected = self._proof(_CLIENT, theirs, self._nonce)
            self.wanted = PROOF_SIZE
            return CHALLENGE_MAGIC + self._nonce + self._proof(_SERVER, theirs, self._nonce)
        self._is_over = True
        if not hmac.compare_digest(message, self._expected):
            raise RemoteProtocolError("the client does not know the key")
        self.is_proven = True
        return b""


class ClientChallenge(_Challenge):
    """Have a server prove the key, then prove it to the server.

    Attributes:
        wanted: Bytes to be read next, at most; 0 when it is over.
        is_proven: Whether the server has proved the key.
    """

    __slots__ = ()

    def __init__(self, key: bytes, transport: bytes, nonce: bytes) -> None:
        super().__init__(key, transport, nonce)
        self.wanted = _ASKED + PROOF_SIZE

    def data_to_send(self) -> bytes:
        """Return what a client begins with; nothing of it is secret."""
        return CHALLENGE_MAGIC + self._nonce

    def receive_data(self, data: bytes) -> bytes:
        """Take what the server sent, `wanted` bytes at most; return what is to be sent, once it has proved the key.

        Raises:
            RemoteProtocolError: The server does not know the key, or does not speak this; close without a word.
        """
        if not self._is_over:
            self._check_magic(self._buffer + data[:_ASKED])
        message = self._whole(data)
        if message is None:
            return b""
        self._is_over = True
        theirs, proof = message[len(CHALLENGE_MAGIC) : _ASKED], message[_ASKED:]
        if hmac.compare_digest(theirs, self._nonce):
            raise RemoteProtocolError("the server's nonce is our own, sent back")
        if not hmac.compare_digest(proof, self._proof(_SERVER, self._nonce, theirs)):
            raise RemoteProtocolError("it does not know the key")
        self.is_proven = True
        return self._proof(_CLIENT, self._nonce, theirs)


Guest = TypeVar("Guest")


class Lobby(Generic[Guest]):
    """Decide how many may be at their proof at once, and who must go for another; count those who fail.

    Everybody may connect to a port. Each has a time that is short, and nobody loses the place before it is over,
    however many come behind: those wait in the kernel's backlog, in order. So a flood makes an honest client wait, and
    does not shut it out.
    """

    __slots__ = ("_grace", "_guests", "_most", "_next_log", "_unsaid", "failures")

    def __init__(self, most: int = MAX_UNPROVEN, grace: float = UNPROVEN_GRACE) -> None:
        """Begin with nobody.

        Args:
            most: Connections at their proof at once.
            grace: Seconds that each has for certain; after them it goes when others come.
        """
        self._most = most
        self._grace = grace
        self._guests: OrderedDict[Guest, float] = OrderedDict()
        self._next_log = 0.0
        self._unsaid = 0
        self.failures = 0

    def __len__(self) -> int:
        return len(self._guests)

    def guests(self) -> list[Guest]:
        """Return who is at the proof now."""
        return list(self._guests)

    def enter(self, guest: Guest, now: float) -> None:
        """Note that somebody has begun."""
        self._guests[guest] = now

    def leave(self, guest: Guest) -> None:
        """Note that somebody is done, or gone."""
        self._guests.pop(guest, None)

    def has_room(self) -> bool:
        """Whether one more may come in without anybody's going."""
        return len(self._guests) < self._most

    def overdue(self, now: float) -> Guest | None:
        """Return who must go so that another may come in, or None: everybody may stay for now."""
        guest, since = next(iter(self._guests.items()))
        return guest if now - since >= self._grace else None

    def room_at(self) -> float:
        """Return when the oldest may be sent away: a monotonic time, at which to accept again."""
        return next(iter(self._guests.values())) + self._grace

    def failed(self, now: float) -> str | None:
        """Count a failed proof; return words for the log, once in a while."""
        self.failures += 1
        self._unsaid += 1
        if now < self._next_log:
            return None
        self._next_log = now + FAILED_PROOF_LOG_INTERVAL
        count, self._unsaid = self._unsaid, 0
        return f"{count} connections" if count > 1 else "a connection"
