"""`hostline stubs`: a typed module from a live service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hostline.cli.commands.describe import fetch
from hostline.cli.exits import CommandError, checked_values
from hostline.cli.options import Address, AnyServer, ServerUsers, Timeout, server_rule, time_limit
from hostline.cli.terminal import write_bytes

__all__ = ["EXAMPLES", "stubs"]

EXAMPLES = """\b
Examples:
  hostline stubs payments --output payments_client.py
  hostline stubs ./x.sock --name Shop | less
"""

_Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write it there; standard output unless given."),
]
_Name = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="Name of the interface; the service's own unless given."),
]


def stubs(
    address: Address,
    output: _Output = None,
    name: _Name = None,
    timeout: Timeout = 5.0,
    server_user: ServerUsers = None,
    any_server: AnyServer = False,
) -> None:
    """Write a typed Python module that calls a service.

    It holds the service's types and exceptions, and an interface each for blocking code and for asyncio. Nothing that
    the service says of itself can become code in it.
    """
    service = fetch(address, time_limit(timeout), server_rule(server_user, any_server))
    from hostline.rpc.contract.stub_writer import write_stubs

    with checked_values():
        text = write_stubs(service, name)
    if output is None:
        write_bytes(text.encode())
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{output} cannot be written: {error.strerror}") from error
