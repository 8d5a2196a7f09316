"""`hostline run`: listening sockets, made safely, for a program in any language."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from hostline.cli.exits import UsageError, checked_values, signals_held
from hostline.cli.options import SocketKind, account, as_type, parse_mode
from hostline.cli.terminal import escape

if TYPE_CHECKING:
    from hostline.unix.listening import Bound

__all__ = ["EXAMPLES", "Wanted", "run", "wanted_sockets"]

EXAMPLES = """\b
Examples:
  hostline run -l /tmp/web.sock -- uvicorn --fd 3 app:app
  hostline run -l ./api.sock --mode 0660 --group web -- gunicorn app:app
  hostline run -l ./a.sock -l unix:@b --type stream --type seqpacket --name a --name b -- ./daemon
"""

T = TypeVar("T")


_Command = Annotated[
    list[str], typer.Argument(metavar="COMMAND", help="The program and its arguments.", show_default=False)
]
_Listen = Annotated[
    list[str],
    typer.Option("--listen", "-l", metavar="ADDRESS", help="Listen here; may be repeated.", show_default=False),
]
_Kind = Annotated[
    list[SocketKind] | None,
    typer.Option("--type", metavar="TYPE", help="stream, seqpacket or datagram.", show_default="stream"),
]
_Name = Annotated[
    list[str] | None,
    typer.Option("--name", metavar="NAME", help="Its name in LISTEN_FDNAMES.", show_default="from the address"),
]
_Mode = Annotated[
    list[str] | None,
    typer.Option("--mode", metavar="OCTAL", help="Permission bits of the socket file.", show_default="0600"),
]
_Owner = Annotated[
    list[str] | None,
    typer.Option("--owner", metavar="USER", help="User name or id that the file is given to.", show_default=False),
]
_Group = Annotated[
    list[str] | None,
    typer.Option("--group", metavar="GROUP", help="Group name or id that the file is given to.", show_default=False),
]
_Backlog = Annotated[
    list[int] | None,
    typer.Option(
        "--backlog",
        metavar="N",
        help="Connections that wait to be accepted.",
        show_default="as many as the host allows",
    ),
]
_AllowFds = Annotated[
    bool,
    typer.Option("--allow-fds", help="Let clients send descriptors; otherwise the kernel refuses them, if it can."),
]


def run(
    command: _Command,
    listen: _Listen,
    kind: _Kind = None,
    name: _Name = None,
    mode: _Mode = None,
    owner: _Owner = None,
    group: _Group = None,
    backlog: _Backlog = None,
    allow_fds: _AllowFds = False,
) -> int:
    """Run a program with listening sockets that are made safely.

    The sockets are its descriptors 3, 4, ... in order, by the convention of systemd (LISTEN_FDS, LISTEN_FDNAMES,
    LISTEN_PID). The other options belong to -l by their order: the second --mode to the second -l. Given once,
    an option counts for every -l that can have it. Signals are passed on; the exit code is the program's, and the
    socket files are removed at its end.
    """
    wanted = wanted_sockets(
        listen,
        types=[SocketKind.STREAM] if kind is None else kind,
        names=name or (),
        modes=[parse_mode(text) for text in mode or ()],
        owners=[account(text) for text in owner or ()],
        groups=[account(text) for text in group or ()],
        backlogs=backlog or (),
    )
    from hostline.unix.activation import run_with_sockets

    with _listening(wanted, allows_fds=allow_fds) as bounds:
        for one in wanted:
            if _is_abstract(one.address):
                text = f"note: every local process can connect to {one.address}, unless the program checks its peers"
                print(escape(text, keep=""), file=sys.stderr)
        with checked_values():
            return run_with_sockets(bounds, [one.name for one in wanted], command)


@dataclass(frozen=True)
class Wanted:
    """Hold what is asked of one socket."""

    address: str
    type: SocketKind
    name: str
    mode: int | None
    owner: int | str | None
    group: int | str | None
    backlog: int | None


def wanted_sockets(
    addresses: Sequence[str],
    *,
    types: Sequence[SocketKind],
    names: Sequence[str],
    modes: Sequence[int],
    owners: Sequence[int | str | None],
    groups: Sequence[int | str | None],
    backlogs: Sequence[int],
) -> list[Wanted]:
    """Return each socket with its options, which were given not at all, once for all, or once for each.

    Raises:
        UsageError: There are more or fewer of an option.
    """
    count = len(addresses)
    kinds = [kind or SocketKind.STREAM for kind in _spread("--type", types, [True] * count)]
    # What a socket cannot have is left out for it where an option was given once for all.
    has_file = [not _is_abstract(address) for address in addresses]
    has_backlog = [kind is not SocketKind.DATAGRAM for kind in kinds]
    wanted_names = _spread("--name", names, [True] * count)
    columns = zip(
        addresses,
        kinds,
        [name or _name_of(address) for name, address in zip(wanted_names, addresses, strict=True)],
        _spread("--mode", modes, has_file),
        _spread("--owner", owners, has_file),
        _spread("--group", groups, has_file),
        _spread("--backlog", backlogs, has_backlog),
        strict=True,
    )
    return [Wanted(*column) for column in columns]


def _is_abstract(address: str) -> bool:
    return address.removeprefix("unix:").startswith("@")


def _spread(option: str, given: Sequence[T], applies: Sequence[bool]) -> Sequence[T | None]:
    count = len(applies)
    if len(given) == 1:
        return [given[0] if can or count == 1 else None for can in applies]
    if given and len(given) != count:
        raise UsageError(
            f"{option} was given {len(given)} times for {count} sockets: give it once, or once for each -l"
        )
    return given or [None] * count


def _name_of(address: str) -> str:
    """Return a name for LISTEN_FDNAMES: `web` for ./web.sock, unix:@web and web."""
    last = os.path.basename(address.rpartition(":")[2].lstrip("@")).removesuffix(".sock")
    return re.sub(r"[^A-Za-z0-9._-]", "_", last)[:255] or "unknown"


@contextlib.contextmanager
def _listening(wanted: Sequence[Wanted], *, allows_fds: bool) -> Iterator[list[Bound]]:
    """Make the listening sockets; at the end, or when one of them cannot be made, they and their files go."""
    from hostline.limits import HARD_MAX_FDS
    from hostline.unix.address import parse_address
    from hostline.unix.listening import listening_socket

    with contextlib.ExitStack() as stack:
        bounds = []
        for one in wanted:
            with signals_held(), checked_values():
                bound = listening_socket(
                    parse_address(one.address),
                    as_type(one.type),
                    mode=one.mode,
                    owner=one.owner,
                    group=one.group,
                    backlog=one.backlog,
                    max_fds=HARD_MAX_FDS if allows_fds else 0,
                )
                stack.callback(bound.close)
            bounds.append(bound)
        yield bounds
