"""`hostline serve`: serve a service that a Python module declares."""

from __future__ import annotations

import enum
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hostline.cli.exits import CommandError, checked_values
from hostline.cli.options import Group, Mode, Owner, account, parse_mode, time_limit
from hostline.cli.terminal import escape
from hostline.limits import DEFAULT_CONCURRENCY, DEFAULT_GRACE, DEFAULT_QUEUE, DEFAULT_THREADS

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

__all__ = ["EXAMPLES", "serve"]

EXAMPLES = """\b
Examples:
  hostline serve payments:payments
  hostline serve ./payments.py:payments --concurrency 10 --loop uvloop
  hostline serve shop.orders:orders --address /run/shop/orders.sock --mode 0660 --group shop
  hostline serve ./payments.py:payments --takeover       the new version, in place of the one that runs
  hostline serve shop.orders:orders --address fd:3       on a socket that systemd opened
"""


class LoopKind(enum.StrEnum):
    """Event loops that a service runs on."""

    ASYNCIO = "asyncio"
    UVLOOP = "uvloop"


class LogLevel(enum.StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_Target = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:SERVICE",
        help="A module or a .py file, and the name of the service in it, which may be left out where it is the "
        "only one.",
        show_default=False,
    ),
]
_Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        "-a",
        metavar="ADDRESS",
        help="Where to serve; the service's own name in the runtime directory unless given.",
        show_default=False,
    ),
]
_Backlog = Annotated[
    int | None,
    typer.Option(
        "--backlog",
        metavar="N",
        min=0,
        help="Connections that wait to be accepted.",
        show_default="as many as the host allows",
    ),
]
_Concurrency = Annotated[int, typer.Option("--concurrency", metavar="N", min=1, help="Handlers that run at once.")]
_Queue = Annotated[
    int,
    typer.Option("--queue", metavar="N", min=0, help="Calls that wait behind them; the next is refused at once."),
]
_Threads = Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Worker threads for def handlers.")]
_Grace = Annotated[
    float, typer.Option("--grace", metavar="SECONDS", help="Seconds that running calls get after SIGTERM.")
]
_Loop = Annotated[LoopKind, typer.Option("--loop", help="The event loop.")]
_Takeover = Annotated[
    bool,
    typer.Option(
        "--takeover",
        help="Take the socket over from the server that runs there, which finishes its calls and ends: no call is "
        "lost. Where none runs, start as ever.",
    ),
]
_NoOffer = Annotated[
    bool, typer.Option("--no-offer", help="Do not let a successor take the socket over; no ADDRESS.control is made.")
]
_LogLevel = Annotated[LogLevel, typer.Option("--log-level", help="What is logged, to standard error.")]


def serve(
    target: _Target,
    address: _Address = None,
    mode: Mode = None,
    owner: Owner = None,
    group: Group = None,
    backlog: _Backlog = None,
    concurrency: _Concurrency = DEFAULT_CONCURRENCY,
    queue: _Queue = DEFAULT_QUEUE,
    threads: _Threads = DEFAULT_THREADS,
    grace: _Grace = DEFAULT_GRACE,
    takeover: _Takeover = False,
    no_offer: _NoOffer = False,
    loop: _Loop = LoopKind.ASYNCIO,
    log_level: _LogLevel = LogLevel.INFO,
) -> None:
    """Serve a service that a Python module declares.

    It runs until SIGTERM, Ctrl-C or a successor with --takeover; calls that run then are finished first. The working
    directory is searched for the module. The socket file has mode 0600, and only you and root are admitted, unless
    --mode says otherwise.
    """
    permissions = None if mode is None else parse_mode(mode)
    limit = time_limit(grace, "--grace")
    from hostline.cli.loading import load_service

    loop_factory = _loop_factory(loop)
    _start_logging(log_level)
    service = load_service(target)
    with checked_values():
        service.run(
            address,
            mode=permissions,
            owner=account(owner),
            group=account(group),
            backlog=backlog,
            concurrency=concurrency,
            queue=queue,
            threads=threads,
            grace=limit,
            takeover=takeover,
            offer_takeover=not no_offer,
            loop_factory=loop_factory,
        )


def _loop_factory(kind: LoopKind) -> Callable[[], AbstractEventLoop] | None:
    if kind is LoopKind.ASYNCIO:
        return None
    try:
        import uvloop
    except ImportError:
        message = 'uvloop is not installed; the extra hostline[uvloop] brings it: pip install "hostline[uvloop]"'
        raise CommandError(message) from None
    factory: Any = uvloop.new_event_loop
    return factory  # type: ignore[no-any-return]


def _start_logging(level: LogLevel) -> None:
    """Log to standard error, unless the module that is served has its own mind (it is imported afterwards)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=level.value.upper())


class _Formatter(logging.Formatter):
    """Escape whole entries, tracebacks too; in files as well, because a log is read on a terminal sooner or later."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of an entry."""
        return escape(super().format(record))
