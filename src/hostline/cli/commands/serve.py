"""`hostline serve`: serve a service that a Python module declares."""

from __future__ import annotations

import enum
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hostline.cli.exits import CommandError, ExitCode, UsageError, checked_values
from hostline.cli.options import Group, Mode, Owner, account, parse_mode, time_limit
from hostline.cli.terminal import escape
from hostline.limits import (
    DEFAULT_CONCURRENCY,
    DEFAULT_GRACE,
    DEFAULT_PING_TIMEOUT,
    DEFAULT_QUEUE,
    DEFAULT_THREADS,
    MAX_BUFFERED_PER_UID,
    MAX_CALLS_PER_UID,
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_UID,
    MAX_DESCRIPTORS_PER_UID,
    METRICS_TAKEOVER_WAIT,
    USUAL_MAX_FRAME_SIZE,
)

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from hostline.aio.serving.server import Server

__all__ = ["EXAMPLES", "serve"]

EXAMPLES = """\b
Examples:
  hostline serve payments:payments
  hostline serve ./payments.py:payments --concurrency 10 --loop uvloop
  hostline serve shop.orders:orders --address /run/shop/orders.sock --mode 0660 --group shop
  hostline serve ./payments.py:payments --takeover       the new version, in place of the one that runs
  hostline serve ./payments.py:payments --workers 4      kill -HUP brings new code
  hostline serve shop.orders:orders --address fd:3       on a socket that systemd opened
  hostline serve payments:payments --log-format json --access-log --metrics /run/shop/metrics.sock
"""


class LoopKind(enum.StrEnum):
    """Event loops that a service runs on."""

    ASYNCIO = "asyncio"
    UVLOOP = "uvloop"


class LogFormat(enum.StrEnum):
    """How a record is written."""

    TEXT = "text"
    JSON = "json"


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
_MaxFrame = Annotated[
    int, typer.Option("--max-frame-size", metavar="BYTES", help="Largest call, result or item, 16777216 at most.")
]
_Workers = Annotated[
    int,
    typer.Option("--workers", metavar="N", help="Processes that serve; SIGHUP replaces them by new ones."),
]
_MaxConnections = Annotated[int, typer.Option("--max-connections", metavar="N", min=1, help="Connections at once.")]
_MaxConnectionsPerUid = Annotated[
    int,
    typer.Option("--max-connections-per-uid", metavar="N", min=1, help="Connections at once of one user."),
]
_MaxRate = Annotated[
    float | None,
    typer.Option(
        "--max-connection-rate-per-uid",
        metavar="N",
        help="New connections of one user in a second; inf is no bound.",
        show_default="200 where several users are admitted",
    ),
]
_MaxCalls = Annotated[
    int, typer.Option("--max-calls-per-uid", metavar="N", min=1, help="Calls of one user that run or wait.")
]
_MaxBuffered = Annotated[
    int, typer.Option("--max-buffered-per-uid", metavar="BYTES", min=1, help="Bytes kept for one user.")
]
_MaxDescriptors = Annotated[
    int,
    typer.Option(
        "--max-descriptors-per-uid", metavar="N", min=0, help="Descriptors of one user that wait for handlers."
    ),
]
_IdleTimeout = Annotated[
    float | None,
    typer.Option(
        "--idle-timeout",
        metavar="SECONDS",
        help="Seconds after which a connection without calls is closed.",
        show_default="never",
    ),
]
_PingInterval = Annotated[
    float | None,
    typer.Option(
        "--ping-interval",
        metavar="SECONDS",
        help="Seconds between pings to each client, to find those that are stopped.",
        show_default="no pings",
    ),
]
_PingTimeout = Annotated[
    float,
    typer.Option(
        "--ping-timeout", metavar="SECONDS", help="Seconds without a sign of life after which a client is cut off."
    ),
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
_LogFormat = Annotated[LogFormat, typer.Option("--log-format", help="Sentences, or one JSON object a line.")]
_AccessLog = Annotated[bool, typer.Option("--access-log", help="Log each finished call, at level info.")]
_Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="ADDRESS",
        help="Serve metrics for Prometheus over HTTP, on a Unix socket or at 127.0.0.1:PORT.",
        show_default=False,
    ),
]
_MetricsMode = Annotated[
    str | None,
    typer.Option(
        "--metrics-mode",
        metavar="OCTAL",
        help="Permission bits of the metrics' socket file.",
        show_default="0600",
    ),
]
_MetricsGroup = Annotated[
    str | None,
    typer.Option("--metrics-group", metavar="GROUP", help="Group of the metrics' socket file.", show_default=False),
]


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
    max_frame_size: _MaxFrame = USUAL_MAX_FRAME_SIZE,
    max_connections: _MaxConnections = MAX_CONNECTIONS,
    max_connections_per_uid: _MaxConnectionsPerUid = MAX_CONNECTIONS_PER_UID,
    max_connection_rate_per_uid: _MaxRate = None,
    max_calls_per_uid: _MaxCalls = MAX_CALLS_PER_UID,
    max_buffered_per_uid: _MaxBuffered = MAX_BUFFERED_PER_UID,
    max_descriptors_per_uid: _MaxDescriptors = MAX_DESCRIPTORS_PER_UID,
    idle_timeout: _IdleTimeout = None,
    ping_interval: _PingInterval = None,
    ping_timeout: _PingTimeout = DEFAULT_PING_TIMEOUT,
    takeover: _Takeover = False,
    no_offer: _NoOffer = False,
    workers: _Workers = 1,
    loop: _Loop = LoopKind.ASYNCIO,
    log_level: _LogLevel = LogLevel.INFO,
    log_format: _LogFormat = LogFormat.TEXT,
    access_log: _AccessLog = False,
    metrics: _Metrics = None,
    metrics_mode: _MetricsMode = None,
    metrics_group: _MetricsGroup = None,
) -> None:
    """Serve a service that a Python module declares.

    It runs until SIGTERM, Ctrl-C or a successor with --takeover; calls that run then are finished first. The working
    directory is searched for the module. The socket file has mode 0600, and only you and root are admitted, unless
    --mode says otherwise.
    \f
    More than 60 lines, because each option is one.
    """  # noqa: D301 - a form feed: the help ends there
    permissions = None if mode is None else parse_mode(mode)
    limit = time_limit(grace, "--grace")
    from hostline.aio.serving.workers.supervising import check_workers
    from hostline.cli.loading import load_service

    with checked_values():
        check_workers(workers)
    loop_factory = _loop_factory(loop)
    _start_logging(log_level, log_format)
    watched = _Watched(metrics, metrics_mode, metrics_group, takeover)
    if workers == 1:
        service = load_service(target)
        with checked_values(), watched:
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
                max_frame_size=max_frame_size,
                max_connections=max_connections,
                max_connections_per_uid=max_connections_per_uid,
                max_connection_rate_per_uid=max_connection_rate_per_uid,
                max_calls_per_uid=max_calls_per_uid,
                max_buffered_per_uid=max_buffered_per_uid,
                max_descriptors_per_uid=max_descriptors_per_uid,
                idle_timeout=idle_timeout,
                ping_interval=ping_interval,
                ping_timeout=ping_timeout,
                takeover=takeover,
                offer_takeover=not no_offer,
                access_log=access_log,
                loop_factory=loop_factory,
                on_start=watched.start,
            )
        return
    if takeover:
        reason = "--takeover is for one process; several are renewed in place: kill -HUP the supervisor"
        raise CommandError(reason, ExitCode.USAGE)
    from hostline.aio.serving.service import run_in_workers
    from hostline.cli.forked import loaded_here, name_in_child
    from hostline.rpc.settings import ServerSettings
    from hostline.rpc.takeover.asking import Wanted
    from hostline.unix.address import parse_address

    name = name_in_child(target)
    with checked_values():
        settings = ServerSettings(
            concurrency, queue, threads, limit, max_frame_size, max_connections=max_connections,
            max_connections_per_uid=max_connections_per_uid, max_connection_rate_per_uid=max_connection_rate_per_uid,
            max_calls_per_uid=max_calls_per_uid, max_buffered_per_uid=max_buffered_per_uid,
            max_descriptors_per_uid=max_descriptors_per_uid, idle_timeout=idle_timeout, ping_interval=ping_interval,
            ping_timeout=ping_timeout, access_log=access_log,
        )  # fmt: skip
        where = parse_address(name if address is None else address)
        wanted = Wanted(where, "stream", permissions, account(owner), account(group), backlog)
        with watched:
            watched.listen()
            run_in_workers(
                name, lambda: loaded_here(target), wanted, count=workers, settings=settings,
                loop_factory=loop_factory, on_start=watched.start,
            )  # fmt: skip


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


class _Watched:
    """The metrics of what is served, if they are asked for."""

    def __init__(self, address: str | None, mode: str | None, group: str | None, takeover: bool) -> None:
        self._address = address
        self._options = {"mode": None if mode is None else parse_mode(mode), "group": account(group)}
        self._wait = METRICS_TAKEOVER_WAIT if takeover else 0.0
        self._bridge: Any = None
        self._listener: Any = None
        self._exposition: Any = None
        if address is None:
            if mode is not None or group is not None:
                raise UsageError("--metrics-mode and --metrics-group are for the socket of --metrics ADDRESS")
            return
        try:
            from hostline.bridges import prometheus
        except ModuleNotFoundError as error:
            raise CommandError(str(error)) from None
        self._bridge = prometheus

    def listen(self) -> None:
        """Listen before workers are forked, which then share the socket."""
        if self._bridge is not None:
            self._listener = self._bridge.listen(self._address, **self._options)

    def start(self, server: Server) -> None:
        """Serve the metrics of a server that has begun to accept."""
        if self._listener is not None:
            self._exposition = self._bridge.serve_metrics(server, self._listener.share)
        elif self._bridge is not None:
            self._exposition = self._bridge.serve_metrics(server, self._address, wait=self._wait, **self._options)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        for each in (self._exposition, self._listener):
            if each is not None:
                each.close()


def _start_logging(level: LogLevel, form: LogFormat) -> None:
    """Log to standard error, unless the module that is served has its own mind (it is imported afterwards)."""
    handler = logging.StreamHandler(sys.stderr)
    if form is LogFormat.JSON:
        from hostline.bridges.json_log import JSONFormatter

        handler.setFormatter(JSONFormatter())
    else:
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=level.value.upper())


class _Formatter(logging.Formatter):
    """Escape whole entries, tracebacks too; in files as well, because a log is read on a terminal sooner or later."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of an entry."""
        return escape(super().format(record))
