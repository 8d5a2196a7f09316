"""OpenTelemetry spans for the calls that this process makes and serves, with their context crossing the call.

    hostline.bridges.otel.instrument()

A call that is made has a span of kind client, a call that is served one of kind server, its child also in another
process: `traceparent` and what else the configured propagators write travels with the call, towards peers that know how
to take it. In the handler the server span is the current one, whichever way the handler runs. Needs the extra
hostline[otel], and a program that configures the SDK; without one nothing is recorded and nothing is sent.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Mapping
from typing import Any, Final

from hostline._version import __version__
from hostline.rpc.watching.calls import DISCONNECTED, OK
from hostline.rpc.watching.fields import event
from hostline.rpc.watching.tracing import hooks
from hostline.unix.credentials import Peer
from hostline.wire.codec import ErrorCode

try:
    from opentelemetry import context as otel_context
    from opentelemetry import propagate, trace
except ImportError as error:
    raise ModuleNotFoundError(
        'opentelemetry-api is not installed; the extra hostline[otel] brings it: pip install "hostline[otel]"',
        name="opentelemetry",
    ) from error

__all__ = ["instrument", "is_instrumented", "uninstrument"]

logger: Final = logging.getLogger("hostline")

# How a call may end without that being anybody's error.
_NO_ERROR: Final = frozenset({OK, ErrorCode.CANCELLED, DISCONNECTED})


def instrument(*, tracer_provider: Any = None) -> None:
    """Record spans from now on, for the whole process; again to change the provider.

    Call it where the program configures OpenTelemetry, before or after it serves and connects.

    Args:
        tracer_provider: An `opentelemetry.trace.TracerProvider`; the global one when left out.
    """
    hooks.tracer = _Tracer(trace.get_tracer("hostline", __version__, tracer_provider))


def uninstrument() -> None:
    """Record no more spans; those that have begun are ended as they would have been. Safe to repeat."""
    hooks.tracer = None


def is_instrumented() -> bool:
    """Say whether spans are recorded."""
    return hooks.tracer is not None


class _CallSpan:
    """The span of a call that is made."""

    __slots__ = ("_is_over", "_span", "carrier")

    def __init__(self, span: Any) -> None:
        self._span = span
        self._is_over = False
        carrier: dict[str, str] = {}
        if span.get_span_context().is_valid:
            propagate.inject(carrier, context=trace.set_span_in_context(span))
        self.carrier: Mapping[str, str] | None = carrier or None

    def end(self, error: BaseException | None = None) -> None:
        if self._is_over:
            return
        self._is_over = True
        if error is not None:
            _fail(self._span, type(error).__name__, error)
        self._span.end()


class _ServedSpan:
    """The span of a call that is served."""

    __slots__ = ("_error", "_span", "context")

    def __init__(self, span: Any, parent: Any) -> None:
        self._span = span
        self._error: BaseException | None = None
        self.context = contextvars.copy_context()
        self.context.run(otel_context.attach, trace.set_span_in_context(span, parent))

    def note(self, error: BaseException) -> None:
        self._error = error

    def end(self, outcome: str) -> None:
        error, self._error = self._error, None
        if outcome not in _NO_ERROR:
            _fail(self._span, outcome, error)
        elif outcome != OK:
            self._span.set_attribute("hostline.outcome", outcome)
        self._span.end()


def _fail(span: Any, kind: str, error: BaseException | None) -> None:
    try:
        if isinstance(error, Exception):
            span.record_exception(error)
        text = f"{type(error).__name__}: {error}" if error is not None else kind
    except Exception:  # the text of an exception is its own code's
        text = kind
    span.set_attribute("error.type", kind)
    span.set_status(trace.Status(trace.StatusCode.ERROR, text))


class _Tracer:
    """What hangs on hostline's hooks. A sampler or a propagator that raises costs the span, not the call."""

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer

    def call(self, service: str, method: str) -> _CallSpan:
        try:
            return _CallSpan(
                self._tracer.start_span(
                    f"{service}/{method}", kind=trace.SpanKind.CLIENT, attributes=_attributes(service, method)
                )
            )
        except Exception as error:
            _complain(error)
            return _CallSpan(trace.INVALID_SPAN)

    def serve(
        self, service: str, method: str, call_id: int, peer: Peer, carrier: Mapping[str, str] | None
    ) -> _ServedSpan:
        empty = otel_context.Context()  # what is current on the loop now has nothing to do with this call
        try:
            parent = propagate.extract(carrier, context=empty) if carrier else empty
            attributes = _attributes(service, method)
            attributes["hostline.call_id"] = call_id
            if peer.has_credentials:
                attributes["hostline.peer.uid"], attributes["hostline.peer.pid"] = peer.uid, peer.pid
            span = self._tracer.start_span(
                f"{service}/{method}", context=parent, kind=trace.SpanKind.SERVER, attributes=attributes
            )
            return _ServedSpan(span, parent)
        except Exception as error:
            _complain(error)
            return _ServedSpan(trace.INVALID_SPAN, empty)


def _attributes(service: str, method: str) -> dict[str, Any]:
    return {"rpc.system": "hostline", "rpc.service": service, "rpc.method": method}


def _complain(error: Exception) -> None:
    logger.warning("a span could not be begun", exc_info=error, extra=event("tracing_failed"))
