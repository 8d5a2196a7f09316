"""Connect to a service on loopback TCP and prove its key, on an event loop. The twin of `sync/loopback.py`."""

from __future__ import annotations

import asyncio
import secrets
import socket

from hostline.clock import Deadline, monotonic
from hostline.errors import ConnectRefusedError, HostlineError, RemoteProtocolError
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


async def proven_socket(address: LoopbackAddress, server: Peers, deadline: Deadline) -> tuple[socket.socket, Peer]:
    """Return a connection to a server that has proved its key, and has been sent the proof of ours.

    Args:
        address: Where the key file is.
        server: Whose key file is trusted.
        deadline: When to stop waiting.

    Returns:
        The socket, non-blocking, which is the caller's; and the peer, of whom nothing but the key is known.

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
            return await _proven(address, key, deadline, started), KeyPeer()
        except (RemoteProtocolError, ConnectRefusedError) as error:
            # The server may have been started anew since the file was read; then the file has a new key.
            again = read_key_file(address, server)
            if again == key:
                if isinstance(error, RemoteProtocolError):
                    raise not_proven(address, key, error) from error
                raise
            key = again


async def _proven(address: LoopbackAddress, key: KeyFile, deadline: Deadline, started: float) -> socket.socket:
    sock = open_loopback(key.host)
    is_connected = False
    try:
        async with asyncio.timeout(deadline.left()):
            if not begin_connect(sock, key, address):
                await _until_writable(sock)
                finish_connect(sock, key, address)
            is_connected = True
            await _challenge(sock, address, ClientChallenge(key.key, key.transport, secrets.token_bytes(NONCE_SIZE)))
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


async def _challenge(sock: socket.socket, address: LoopbackAddress, challenge: ClientChallenge) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, challenge.data_to_send())
    proof = b""
    while challenge.wanted:
        data = await loop.sock_recv(sock, challenge.wanted)
        if not data:
            raise closed_early(address)
        proof = challenge.receive_data(data)
    await loop.sock_sendall(sock, proof)


async def _until_writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    loop.add_writer(sock.fileno(), wake)
    try:
        await waiter
    finally:
        loop.remove_writer(sock.fileno())
