"""The same service and the same client over loopback TCP, for the comparison.

hostline has no address for TCP; what stands here lends its server a listening socket, and its clients a connected
one. Over TCP the kernel does not say who is on the other side, so that the rules about peers have to be switched off.
"""

from __future__ import annotations

import asyncio
import socket

from hostline.aio.client import Line as AsyncLine
from hostline.clock import Deadline
from hostline.limits import POOL_IDLE_LIFETIME
from hostline.protocol.pooling import PoolSettings
from hostline.rpc.calling import LineSettings
from hostline.sync.client import Line as BlockingLine
from hostline.unix.address import PathAddress
from hostline.unix.credentials import Peer, Peers, read_peer
from hostline.unix.listening import Bound

__all__ = ["AsyncTcpLine", "BlockingTcpLine", "listen_on_loopback"]

_HOST = "127.0.0.1"


class _TcpAddress(PathAddress):
    """Stand for a port in messages; nothing is ever bound or connected by it."""

    __slots__ = ()

    @classmethod
    def of(cls, port: int) -> _TcpAddress:
        """Return the address of a port on loopback."""
        return cls(f"tcp:{_HOST}:{port}")

    @property
    def text(self) -> str:
        """How it is written."""
        return self.path


def listen_on_loopback() -> tuple[Bound, int]:
    """Return a listening socket for a server, which owns it from then on, and its port.

    Raises:
        OSError: There is no loopback TCP here.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind((_HOST, 0))
        sock.listen()
        _without_delay(sock)  # accepted sockets inherit it
        port: int = sock.getsockname()[1]
    except BaseException:
        sock.close()
        raise
    return Bound(sock, _TcpAddress.of(port), "stream", Peers.anyone()), port


class BlockingTcpLine(BlockingLine):
    """A line for blocking code over loopback TCP.

    Args:
        port: Where the service listens.
    """

    def __init__(self, port: int) -> None:
        super().__init__(LineSettings(_TcpAddress.of(port), Peers.anyone()), PoolSettings(1, 1, POOL_IDLE_LIFETIME))
        self._port = port

    def _connected(self, deadline: Deadline) -> tuple[socket.socket, Peer]:
        sock = socket.create_connection((_HOST, self._port), deadline.remaining())
        sock.setblocking(True)
        _without_delay(sock)
        return sock, read_peer(sock)


class AsyncTcpLine(AsyncLine):
    """A line for asyncio over loopback TCP.

    Args:
        port: Where the service listens.
    """

    def __init__(self, port: int) -> None:
        super().__init__(LineSettings(_TcpAddress.of(port), Peers.anyone()))
        self._port = port

    async def _connected(self, deadline: Deadline) -> tuple[socket.socket, Peer]:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            async with asyncio.timeout(deadline.remaining()):
                await asyncio.get_running_loop().sock_connect(sock, (_HOST, self._port))
            _without_delay(sock)
            return sock, read_peer(sock)
        except BaseException:
            sock.close()
            raise


def _without_delay(sock: socket.socket) -> None:
    """Send small messages at once, as every serious TCP client does."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
