"""`hostline describe`: what a live service offers."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hostline.cli.exits import greeted
from hostline.cli.options import Address, AnyServer, Json, ServerUsers, Timeout, server_rule, time_limit
from hostline.cli.terminal import console, escape, is_terminal, print_json

if TYPE_CHECKING:
    from hostline.rpc.builtin import MethodDescription, ServiceDescription

__all__ = ["EXAMPLES", "describe", "description_lines"]

EXAMPLES = """\b
Examples:
  hostline describe payments
  hostline describe ./x.sock --json | jq '.methods[].name'
"""


def describe(
    address: Address,
    timeout: Timeout = 5.0,
    server_user: ServerUsers = None,
    any_server: AnyServer = False,
    json: Json = False,
) -> None:
    """Show the methods of a service and their types.

    A method is shown as its def line; = ... is a default that cannot be shown. --json gives everything, JSON Schemas
    included, and is what hostline diff reads.
    """
    service = fetch(address, time_limit(timeout), server_rule(server_user, any_server))
    if json:
        import msgspec

        print_json(msgspec.json.encode(service), is_pretty=is_terminal(sys.stdout))
        return
    out = console()
    for style, line in description_lines(service):
        out.print(escape(line), style=style or None, soft_wrap=True)


def fetch(address: str, timeout: float, server: Any) -> ServiceDescription:
    """Ask a service what it offers.

    Args:
        address: Where it is.
        timeout: Seconds to wait.
        server: Which servers are trusted.
    """
    from hostline import sync
    from hostline.limits import DEFAULT_CONNECT_TIMEOUT, HARD_MAX_FRAME_SIZE
    from hostline.rpc.builtin import ServiceDescription

    connect_timeout = min(timeout, DEFAULT_CONNECT_TIMEOUT)
    with greeted():
        line = sync.connect(
            address, server=server, timeout=timeout, connect_timeout=connect_timeout, max_frame_size=HARD_MAX_FRAME_SIZE
        )
    with line:
        service: ServiceDescription = line.call("hostline.describe", returns=ServiceDescription)
        return service


def description_lines(service: ServiceDescription) -> Iterator[tuple[str, str]]:
    """Yield (style, line): the service, each method with what it does, and the types that they name.

    Args:
        service: What the service says of itself; not escaped.
    """
    from hostline.cli.schemas import definition_text

    count = len(service.methods)
    version = f" {service.version}" if service.version else ""
    yield "bold", f"{service.name}{version}: {count} method{'' if count == 1 else 's'}"
    for line in service.doc.splitlines():
        yield "", line
    for method in service.methods:
        yield "", ""
        yield from _method_lines(method)
    if service.definitions:
        yield "", ""
        yield "bold", "Types"
    for name, schema in service.definitions.items():
        yield "", ""
        for line in _guarded(definition_text, [f"{name} (its schema cannot be read)"], name, schema):
            yield "", f"  {line}"
        for line in (
            inspect.cleandoc(str(schema.get("description", ""))).splitlines() if isinstance(schema, dict) else ()
        ):
            yield "dim", f"      {line}"
    yield from _error_lines(service)


def _error_lines(service: ServiceDescription) -> Iterator[tuple[str, str]]:
    told = {name: doc for name, doc in service.errors.items() if doc.strip()}
    if told:
        yield "", ""
        yield "bold", "Errors"
    for name, doc in told.items():
        yield "", ""
        yield "", f"  {name}"
        for line in doc.splitlines():
            yield "dim", f"      {line}".rstrip()


def _method_lines(method: MethodDescription) -> Iterator[tuple[str, str]]:
    from hostline.cli.schemas import method_text

    yield "cyan", f"  {_guarded(method_text, f'{method.name}(its schema cannot be read)', method)}"
    for line in method.doc.splitlines():
        yield "", f"      {line}".rstrip()
    if method.raises:
        yield "dim", f"      raises {', '.join(method.raises)}"
    if method.is_idempotent:
        yield "dim", "      idempotent: a client may repeat it"


def _guarded(render: Callable[..., Any], otherwise: Any, *args: Any) -> Any:
    """Render what a service wrote; a malformed schema spoils its own line only."""
    try:
        return render(*args)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return otherwise
