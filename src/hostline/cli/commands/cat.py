"""`hostline cat`: talk to any Unix socket, like `nc -U`, but for all three types and for abstract names."""

from __future__ import annotations

import contextlib
import math
import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hostline.cli.exits import CommandError, UsageError, checked_values, signals_held
from hostline.cli.options import Address, Mode, SocketKind, as_type, parse_mode, server_rule, time_limit
from hostline.cli.terminal import escape

if TYPE_CHECKING:
    from hostline.cli.exchange import End
    from hostline.unix.credentials import Peers
    from hostline.unix.passing.descriptors import Fd

__all__ = ["EXAMPLES", "cat"]

EXAMPLES = """\b
Examples:
  printf 'GET /version HTTP/1.0\\r\\n\\r\\n' | hostline cat /var/run/docker.sock
  logger -s hello; echo '<14>hello' | hostline cat /dev/log --type datagram
  hostline cat unix:@try --type seqpacket
  hostline cat ./x.sock --send-fd report.pdf </dev/null
  hostline cat ./x.sock --listen --recv-fds --copy-fds-to ./received
"""

# Seconds for answers to datagrams after the end of the input: they have no end that could be waited for.
_DATAGRAM_WAIT = 1.0


_Kind = Annotated[SocketKind, typer.Option("--type", help="The socket type.")]
_Listen = Annotated[
    bool, typer.Option("--listen", "-l", help="Listen at the address and talk to the first that connects.")
]
_PacketSize = Annotated[
    int | None,
    typer.Option(
        "--packet-size",
        metavar="BYTES",
        min=1,
        help="Send blocks of this size as packets, and print packets without line ends. Unless given, a packet "
        "is a line.",
        show_default=False,
    ),
]
_Raw = Annotated[bool, typer.Option("--raw", help="Do not escape what is received, on a terminal too.")]
_Wait = Annotated[
    float | None,
    typer.Option(
        "--wait",
        "-w",
        metavar="SECONDS",
        help="After the end of the input, wait so long for the rest of the answer.",
        show_default="until the other side ends; datagrams 1",
    ),
]
_Timeout = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="Seconds to wait for a place in a full backlog.")
]
_SendFd = Annotated[
    list[str] | None,
    typer.Option(
        "--send-fd",
        metavar="FILE",
        help="Open this file and send its descriptor with the first bytes; may be repeated.",
        show_default=False,
    ),
]
_RecvFds = Annotated[bool, typer.Option("--recv-fds", help="Take descriptors, and describe each on standard error.")]
_CopyFdsTo = Annotated[
    str | None,
    typer.Option(
        "--copy-fds-to",
        metavar="DIR",
        help="Take descriptors, and copy what is in files to DIR/fd-0, DIR/fd-1, ...",
        show_default=False,
    ),
]
_MaxCopy = Annotated[
    int, typer.Option("--max-copy", metavar="BYTES", min=0, help="Do not copy files larger than this.")
]
_ServerUser = Annotated[
    list[str] | None,
    typer.Option(
        "--server-user",
        metavar="USER",
        help="Talk only to a server that this user (name or id) runs; may be repeated.",
        show_default="anyone's",
    ),
]


def cat(
    address: Address,
    kind: _Kind = SocketKind.STREAM,
    listen: _Listen = False,
    mode: Mode = None,
    packet_size: _PacketSize = None,
    raw: _Raw = False,
    wait: _Wait = None,
    timeout: _Timeout = 10.0,
    send_fd: _SendFd = None,
    recv_fds: _RecvFds = False,
    copy_fds_to: _CopyFdsTo = None,
    max_copy: _MaxCopy = 64 << 20,
    server_user: _ServerUser = None,
) -> None:
    """Talk to any Unix socket, as nc -U does.

    Standard input goes in, and what comes back is printed, for all three types and for abstract names. The end of the
    input half-closes the connection; the end of the stream ends the command. What is received is escaped on a terminal
    and passed on as it is in a pipe. Descriptors are refused unless asked for.
    """
    limit = None if wait is None else time_limit(wait, "--wait")
    patience = time_limit(timeout)
    rule = server_rule(server_user, is_anyone=not server_user)
    from hostline.cli.exchange import Exchange, Framing
    from hostline.cli.received import CopyTarget
    from hostline.limits import HARD_MAX_FDS

    takes_fds = recv_fds or copy_fds_to is not None
    max_fds = HARD_MAX_FDS if takes_fds else 0
    with contextlib.ExitStack() as stack:
        fds = [stack.enter_context(_open(file)) for file in send_fd or ()]
        copies = None if copy_fds_to is None else stack.enter_context(CopyTarget(copy_fds_to, max_copy))
        if listen:
            if server_user:
                raise UsageError("--server-user is about a server; with --listen this is the server")
            end = _listen(address, kind, None if mode is None else parse_mode(mode), max_fds, stack)
        else:
            if mode is not None:
                raise UsageError("--mode is about a new socket file; it needs --listen")
            end = _connect(address, kind, rule, max_fds, patience, stack)
        stack.callback(end.close)
        if kind is SocketKind.DATAGRAM and not listen and limit is None:
            limit = _DATAGRAM_WAIT
        if limit == math.inf:
            limit = None
        Exchange(
            end,
            Framing(packet_size),
            is_raw=raw,
            fds=fds,
            wait=limit,
            shows_descriptors=takes_fds,
            copies=copies,
        ).run()


def _open(file: str) -> Fd:
    import os

    from hostline.unix.passing.descriptors import Fd

    try:
        return Fd(os.open(file, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise CommandError(f"--send-fd: cannot open {file}: {error.strerror}") from error


def _listen(address: str, kind: SocketKind, mode: int | None, max_fds: int, stack: contextlib.ExitStack) -> End:
    """Return the connection of the first client, or a datagram socket that answers whoever wrote last."""
    from hostline import sync
    from hostline.cli.exchange import ConnectionEnd, DatagramEnd

    with signals_held(), checked_values():
        endpoint = sync.listen(address, as_type(kind), mode=mode, max_fds=max_fds)
        stack.callback(endpoint.close)
    print(f"listening at {escape(endpoint.address, keep='')} ({kind})", file=sys.stderr, flush=True)
    if isinstance(endpoint, sync.Datagrams):
        return DatagramEnd(endpoint)
    with endpoint:  # the name goes with the first client: there is no second one
        return ConnectionEnd(endpoint.accept())


def _connect(
    address: str, kind: SocketKind, server: Peers | None, max_fds: int, timeout: float, stack: contextlib.ExitStack
) -> End:
    from hostline import sync
    from hostline.cli.exchange import ConnectionEnd, DatagramEnd

    with checked_values():
        if kind is not SocketKind.DATAGRAM:
            connected: Literal["stream", "seqpacket"] = "seqpacket" if kind is SocketKind.SEQPACKET else "stream"
            return ConnectionEnd(
                sync.connect_socket(address, connected, server=server, max_fds=max_fds, timeout=timeout)
            )
        # Connected in any case, so that a wrong address is told at once.
        datagrams = sync.connect_socket(address, "datagram", server=server, max_fds=max_fds, timeout=timeout)
        own_path = _own_path(stack)
        if own_path is None:
            print("note: no answers can be received: there is no directory for a socket of our own", file=sys.stderr)
            return DatagramEnd(datagrams, is_connected=True)
        datagrams.close()
        return DatagramEnd(sync.listen(own_path, "datagram", max_fds=max_fds), address)


def _own_path(stack: contextlib.ExitStack) -> str | None:
    """Return a path to receive datagrams at, in a fresh private directory that goes with the stack; None if none fits.

    A datagram without a sender's address cannot be answered. The directory, because a socket file's lock stays behind.
    """
    import os
    import shutil
    import tempfile

    from hostline.errors import HostlineError
    from hostline.limits import MAX_SUN_PATH
    from hostline.unix.address import runtime_directory

    for find in (runtime_directory, tempfile.gettempdir):
        try:
            with signals_held():
                directory = tempfile.mkdtemp(prefix="cat-", dir=find())
                stack.callback(shutil.rmtree, directory, ignore_errors=True)
        except (HostlineError, OSError):
            continue
        path = os.path.join(directory, "socket")
        if len(os.fsencode(path)) <= MAX_SUN_PATH:
            return path
    return None
