"""Arguments that several commands share, and how their texts become values.

Knows the command line and hostline's names for things; does no work.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from hostline.cli.exits import UsageError

if TYPE_CHECKING:
    from hostline.unix.address import SocketType
    from hostline.unix.credentials import Peers

__all__ = [
    "Address",
    "AnyServer",
    "Group",
    "Json",
    "Mode",
    "Owner",
    "ServerUsers",
    "SocketKind",
    "Timeout",
    "account",
    "as_type",
    "parse_mode",
    "server_rule",
    "time_limit",
]


# The longest time limit that is measured, in seconds: thirty years. Python counts nanoseconds in 64 bits, which end at
# 292 years, and adds the present to what it is given.
_LONGEST_WAIT = 1e9


class SocketKind(enum.StrEnum):
    """The socket types, as `--type` takes them."""

    STREAM = "stream"
    SEQPACKET = "seqpacket"
    DATAGRAM = "datagram"


def as_type(kind: SocketKind) -> SocketType:
    """Return a socket type as the library names it."""
    return kind.value


def parse_mode(text: str) -> int:
    """Return permission bits written in octal: `660`, `0660` or `0o660`.

    Raises:
        UsageError: They are no octal number, or more than permission bits.
    """
    digits = text.removeprefix("0o")
    if not digits.isascii() or not digits.isdecimal() or set(digits) & set("89") or int(digits, 8) > 0o777:
        raise UsageError(f"mode {text!r} must be permission bits in octal, from 0 to 0777, such as 0660")
    return int(digits, 8)


def account(text: str | None) -> int | str | None:
    """Return a user or group as the library takes it: a number where it is written as one, else the name."""
    return int(text) if text is not None and text.isascii() and text.isdecimal() else text


def server_rule(users: Sequence[str] | None, is_anyone: bool, otherwise: Peers | None = None) -> Peers | None:
    """Return which servers are trusted, from `--server-user` and `--any-server`.

    Args:
        users: Names and ids, or none.
        is_anyone: Whether every server is.
        otherwise: The rule where neither was given; None leaves it to the library (this user and root).

    Raises:
        UsageError: Both were given, or there is no such user.
    """
    from hostline.unix.credentials import Peers

    if users and is_anyone:
        raise UsageError("--server-user and --any-server contradict each other")
    if is_anyone:
        return Peers.anyone()
    if not users:
        return otherwise
    accounts = [account(user) for user in users]
    try:
        return Peers(
            uids=[found for found in accounts if isinstance(found, int)],
            users=[found for found in accounts if isinstance(found, str)],
        )
    except ValueError as error:
        raise UsageError(f"--server-user: {error}") from error


def time_limit(seconds: float, option: str = "--timeout") -> float:
    """Return a number of seconds if it is one that can be waited; more than fits into a kernel's clock becomes `inf`.

    Raises:
        UsageError: It is negative or not a number.
    """
    if math.isnan(seconds) or seconds < 0:
        raise UsageError(f"{option} of {seconds:g} seconds must be zero or more; inf waits without limit")
    return seconds if seconds <= _LONGEST_WAIT else math.inf


Address = Annotated[
    str,
    typer.Argument(
        metavar="ADDRESS",
        help="A bare name such as payments, a path with a slash, unix:PATH, unix:@NAME (abstract), or tcp:NAME.",
        show_default=False,
    ),
]
Mode = Annotated[
    str | None,
    typer.Option(
        "--mode", metavar="OCTAL", help="Permission bits of the socket file; 0600 unless given.", show_default=False
    ),
]
Owner = Annotated[
    str | None,
    typer.Option("--owner", metavar="USER", help="User name or id that the file is given to.", show_default=False),
]
Group = Annotated[
    str | None,
    typer.Option("--group", metavar="GROUP", help="Group name or id that the file is given to.", show_default=False),
]
ServerUsers = Annotated[
    list[str] | None,
    typer.Option(
        "--server-user",
        metavar="USER",
        help="Trust a server that this user (name or id) runs; may be repeated. Unless given: you and root.",
        show_default=False,
    ),
]
AnyServer = Annotated[bool, typer.Option("--any-server", help="Trust the server whoever runs it.")]
Timeout = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="Seconds to wait for the answer; inf for no limit.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
