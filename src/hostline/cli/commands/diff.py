"""`hostline diff`: whether a new version of a service breaks the callers of the old one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hostline.cli.commands.describe import fetch
from hostline.cli.exits import CommandError, ExitCode
from hostline.cli.options import AnyServer, Json, ServerUsers, Timeout, server_rule, time_limit
from hostline.cli.terminal import console, is_terminal, plain, print_json

if TYPE_CHECKING:
    from hostline.rpc.builtin import ServiceDescription
    from hostline.rpc.contract.compatibility import Change

__all__ = ["EXAMPLES", "diff"]

EXAMPLES = """\b
Examples:
  hostline describe payments --json > payments.json
  hostline diff payments.json payments
  hostline diff ./old.sock ./new.sock --json | jq .changes
"""

# A description in a file. Four times what fits into the largest frame, because JSON is the longer spelling.
_MAX_FILE = 64 << 20

_Old = Annotated[
    str,
    typer.Argument(
        metavar="OLD", help="The version that callers know: an address, or a file of hostline describe --json."
    ),
]
_New = Annotated[str, typer.Argument(metavar="NEW", help="The version that they will meet: an address or a file.")]


def diff(
    old: _Old,
    new: _New,
    timeout: Timeout = 5.0,
    server_user: ServerUsers = None,
    any_server: AnyServer = False,
    json: Json = False,
) -> int:
    """Say whether a new version of a service breaks old clients.

    OLD and NEW are live services, or files of hostline describe --json. If something breaks, the exit code is 13.
    """
    rule, limit = server_rule(server_user, any_server), time_limit(timeout)
    before, after = (_description(place, limit, rule) for place in (old, new))
    from hostline.rpc.contract.compatibility import compare

    changes = compare(before, after)
    breaking = sum(change.is_breaking for change in changes)
    if json:
        import msgspec

        report = {"is_compatible": not breaking, "old": _title(before), "new": _title(after), "changes": changes}
        print_json(msgspec.json.encode(report), is_pretty=is_terminal(sys.stdout))
    else:
        _print(changes, breaking, before, after)
    return ExitCode.INCOMPATIBLE if breaking else ExitCode.OK


def _description(place: str, timeout: float, server: Any) -> ServiceDescription:
    """Return a description from a file or from a live service.

    A bare name is an address, also where a file has that name, unless it ends in `.json`.
    """
    is_named_so = place.endswith(".json")
    if not is_named_so and not ("/" in place and Path(place).is_file()):
        return fetch(place, timeout, server)
    import msgspec

    from hostline.rpc.builtin import ServiceDescription

    try:
        with open(place, "rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise CommandError(f"{place} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE:
        raise CommandError(f"{place} exceeds {_MAX_FILE} bytes")
    try:
        return msgspec.json.decode(data, type=ServiceDescription)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise CommandError(f"{place} is not what hostline describe --json writes: {error}") from error


def _title(service: ServiceDescription) -> str:
    return f"{service.name} {service.version}".rstrip()


def _print(changes: list[Change], breaking: int, old: ServiceDescription, new: ServiceDescription) -> None:
    out = console()
    if changes:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("Verdict", "Method", "What", "Why"):
            table.add_column(heading, overflow="fold")
        for change in sorted(changes, key=lambda change: not change.is_breaking):
            style = "red" if change.is_breaking else "green"
            texts = [plain(text) for text in (change.method, change.what, change.reason)]
            table.add_row(Text("breaks" if change.is_breaking else "fine", style=style), *map(Text, texts))
        out.print(table)
        out.print()
    verdict = "breaks" if breaking else "does not break"
    others = len(changes) - breaking
    counts = f": {breaking} breaking, {others} compatible" if changes else ": no difference"
    out.print(f"{plain(_title(new))} {verdict} callers of {plain(_title(old))}{counts}", soft_wrap=True)
