"""Connect to a service on loopback TCP and prove its key, for blocking code. The twin of `aio/loopback.py`."""

from __future__ import annotations

import secrets
import select
import socket
from collections.abc import Callable
from typing import Final

from hostline.clock import Deadline, monotonic, poll_milliseconds
from hostline.errors import ClosedError, ConnectRefusedError, HostlineError, RemoteProtocolError
from hostline.protocol.challenge import NONCE_SIZE, ClientChallenge
from hostline.unix.credentials import Peer, Peers
from hostline.unix.loopback.address import LoopbackAddress
from hostline.unix.loopback.keyfile import KeyFile, read_key_file
from hostline.unix.loopback.peer import KeyPeer
from hostline.unix.loopback.sockets import (
    begin_connect,
    closed_early,
    finish_connect,
    not_proven,
    open_loopback,
    too_slow,
)

__all__ = ["proven_socket"]

# Seconds between looks whether the line was closed by another thread meanwhile.
_SLICE: Final = 0.25

_FLAGS: Final = getattr(socket, "MSG_NOSIGNAL", 0)


def proven_socket(
    address: LoopbackAddress, server: Peers, deadline: Deadline, is_closed: Callable[[], bool]
) -> tuple[socket.socket, Peer]:
    """Return a connection to a server that has proved its key, and has been sent the proof of ours.

    Args:
        address: Where the key file is.
        server: Whose key file is trusted.
        deadline: When to stop waiting.
        is_closed: Whether nobody wants it any more; asked a few times a second.

    Returns:
        The socket, blocking, which is the caller's; and the peer, of whom nothing but the key is known.

    Raises:
        ConnectTimeoutError: The deadline passed first.
        ConnectRefusedError: The server has ended.
        PeerRefusedError: The key file is not trusted, or what is on the port does not know the key.
        UnavailableError: The server closed the connection before its proof.
        SocketError: Another refusal; see `read_key_file`.
    """
    started = monotonic()
    key = read_key_file(address, server)
    while True:
        try:
            return _proven(address, key, deadline, started, is_closed), KeyPeer()
        except (RemoteProtocolError, ConnectRefusedError) as error:
            # The server may have been started anew since the file was read; then the file has a new key.
            again = read_key_file(address, server)
            if again == key:
                if isinstance(error, RemoteProtocolError):
                    raise not_proven(address, key, error) from error
                raise
            key = again


def _proven(
    address: LoopbackAddress, key: KeyFile, deadline: Deadline, started: float, is_closed: Callable[[], bool]
) -> socket.socket:
    sock = open_loopback(key.host)
    is_connected = False
    try:
        if not begin_connect(sock, key, address):
            _wait(sock, select.POLLOUT, deadline, is_closed)
            finish_connect(sock, key, address)
        is_connected = True
        challenge = ClientChallenge(key.key, key.transport, secrets.token_bytes(NONCE_SIZE))
        _send(sock, challenge.data_to_send(), deadline, is_closed)
        proof = b""
        while challenge.wanted:
            _wait(sock, select.POLLIN, deadline, is_closed)
            data = sock.recv(challenge.wanted)
            if not data:
                raise closed_early(address)
            proof = challenge.receive_data(data)
        _send(sock, proof, deadline, is_closed)
        sock.setblocking(True)
    except BaseException as error:
        sock.close()
        if isinstance(error, HostlineError):
            raise
        if isinstance(error, TimeoutError):
            raise too_slow(address, monotonic() - started, is_connected=is_connected) from None
        if isinstance(error, OSError):
            raise closed_early(address) from error
        raise
    return sock


def _send(sock: socket.socket, data: bytes, deadline: Deadline, is_closed: Callable[[], bool]) -> None:
    while data:
        _wait(sock, select.POLLOUT, deadline, is_closed)
        data = data[sock.send(data, _FLAGS) :]


def _wait(sock: socket.socket, events: int, deadline: Deadline, is_closed: Callable[[], bool]) -> None:
    poll = select.poll()
    poll.register(sock.fileno(), events)
    while not poll.poll(poll_milliseconds(min(deadline.remaining(), _SLICE))):
        if is_closed():
            raise ClosedError("the line was closed")
        if deadline.has_passed():
            raise TimeoutError
