"""`hostline echo`: a server to try things with. It sends back what it receives, or one fixed answer."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from hostline.cli.exits import checked_values
from hostline.cli.options import Address, Group, Mode, Owner, SocketKind, account, as_type, parse_mode
from hostline.cli.terminal import escape

if TYPE_CHECKING:
    from hostline.aio import Connection, Datagrams, Listener

__all__ = ["EXAMPLES", "echo"]

EXAMPLES = """\b
Examples:
  hostline echo /tmp/x.sock                          then, elsewhere: nc -U /tmp/x.sock
  hostline echo /tmp/x.sock --reply "Message received"
  hostline echo unix:@try --type seqpacket           then: hostline cat unix:@try --type seqpacket
  hostline echo ./log.sock --type datagram --verbose
"""

# Seconds that an answer to a datagram waits for a place in its receiver's queue: one that does not read must not keep
# the others waiting for long.
_DATAGRAM_PATIENCE = 1.0


_Kind = Annotated[SocketKind, typer.Option("--type", help="The socket type.")]
_Reply = Annotated[
    str | None,
    typer.Option(
        "--reply",
        metavar="TEXT",
        help="Print what arrives, answer this text, and close; a line end follows it on a stream.",
        show_default=False,
    ),
]
_Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tell of each client on standard error.")]


def echo(
    address: Address,
    kind: _Kind = SocketKind.STREAM,
    reply: _Reply = None,
    mode: Mode = None,
    owner: Owner = None,
    group: Group = None,
    verbose: _Verbose = False,
) -> None:
    """Serve bytes back: a server to try things with.

    It serves any number of clients, until SIGTERM or Ctrl-C. Packets and datagrams go back one by one; a datagram
    whose sender has no address cannot be answered. With --reply each connection is read once, answered, and closed.
    """
    import asyncio

    permissions = None if mode is None else parse_mode(mode)
    server = _EchoServer(
        reply=None
        if reply is None
        else reply.encode("utf-8", "surrogateescape") + (b"\n" if kind == "stream" else b""),
        is_verbose=verbose,
    )
    asyncio.run(server.run(address, kind, permissions, account(owner), account(group)))


@dataclass
class _EchoServer:
    """Serve one address; an error that ends the server is raised by `run`.

    Attributes:
        reply: The fixed answer, or None: what came is sent back.
        is_verbose: Whether clients are told of.
    """

    reply: bytes | None
    is_verbose: bool

    async def run(
        self, address: str, kind: SocketKind, mode: int | None, owner: int | str | None, group: int | str | None
    ) -> None:
        """Listen and serve until a signal comes.

        Args:
            address: Where.
            kind: The socket type.
            mode: Permission bits of the socket file.
            owner: Who it is given to.
            group: Which group it is given to.
        """
        import asyncio

        from hostline import aio

        _stop_on_signals()
        try:
            with checked_values():
                endpoint = aio.listen(address, as_type(kind), mode=mode, owner=owner, group=group)
            async with endpoint:
                print(f"listening at {escape(endpoint.address, keep='')} ({kind})", file=sys.stderr, flush=True)
                if isinstance(endpoint, aio.Datagrams):
                    await self._datagrams(endpoint)
                else:
                    await self._connections(endpoint)
        except asyncio.CancelledError:
            pass  # by a signal: this is how the server ends

    async def _connections(self, listener: Listener) -> None:
        import asyncio

        # One task for each client; whatever is not a client's own trouble ends all of them and is raised here.
        try:
            async with asyncio.TaskGroup() as clients:
                async for connection in listener:
                    clients.create_task(self._serve(connection))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _serve(self, connection: Connection) -> None:
        from hostline.errors import EndOfStream, HostlineError

        received = 0
        outcome = "ended"
        async with connection:
            self._tell(f"{connection.peer.describe()}: connected")
            try:
                while True:
                    data = await connection.recv(_largest(connection.type))
                    received += len(data)
                    if self.reply is not None:
                        _show(data)
                        await connection.send(self.reply)
                        break
                    await connection.send(data)
            except EndOfStream:
                pass
            except HostlineError as error:
                outcome = str(error)
            self._tell(f"{connection.peer.describe()}: {received} bytes, {outcome}")

    async def _datagrams(self, datagrams: Datagrams) -> None:
        from hostline.errors import ClosedError, HostlineError

        while True:
            try:
                data, sender, _, _ = await datagrams.recv_from()
            except ClosedError:
                raise
            except HostlineError as error:  # one that is too long, or brought descriptors
                self._tell(f"a datagram was dropped: {error}")
                continue
            origin = "a socket without an address" if sender is None else sender.text
            self._tell(f"{len(data)} bytes from {origin}")
            if self.reply is not None:
                _show(data)
            if sender is None:
                continue
            try:
                await datagrams.send(data if self.reply is None else self.reply, sender, timeout=_DATAGRAM_PATIENCE)
            except HostlineError as error:
                self._tell(f"not answered: {error}")

    def _tell(self, text: str) -> None:
        if self.is_verbose:
            print(escape(text, keep=""), file=sys.stderr, flush=True)


def _largest(socket_type: str) -> int:
    from hostline.limits import READ_SIZE
    from hostline.unix.passing.ancillary import MAX_DATAGRAM_SIZE

    return READ_SIZE if socket_type == "stream" else MAX_DATAGRAM_SIZE


def _show(data: bytes) -> None:
    """Print one line for what arrived: escaped wherever it goes, so that it stays one line."""
    text = data.decode("utf-8", "surrogateescape").removesuffix("\n")
    print(f"Received: {escape(text, keep='')}", flush=True)


def _stop_on_signals() -> None:
    """Have SIGTERM and SIGINT cancel the running task."""
    import asyncio
    import signal

    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGTERM, signal.SIGINT):
            task.get_loop().add_signal_handler(number, task.cancel)
