"""`hostline demo`: two services, a file of orders, and a report."""

from __future__ import annotations

from typing import Annotated

import typer

from hostline.cli.options import Json

__all__ = ["EXAMPLES", "demo"]

EXAMPLES = """\b
Examples:
  hostline demo
  hostline demo --quick
  hostline demo --json > demo.json
"""


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Take less than half of the time.")] = False,
    json: Json = False,
) -> int:
    """See it work, in under a minute.

    An order service and a payment service, two processes on real sockets, a file of orders, and a report that says
    which claims hold; exit code 1 if one does not.
    """
    from hostline.demo import run

    return run(quick=quick, json_output=json)
