"""The three methods that every service answers: `hostline.describe`, `hostline.health`, `hostline.stats`.

Their results are plain structs, so that a client in any language can read them.
"""

from __future__ import annotations

import inspect
import os
import weakref
from typing import Any

import msgspec

from hostline.rpc.contract.extensions import encodable_default, extended_schemas
from hostline.rpc.service import Method, ServiceBase
from hostline.wire.codec import VERSION

__all__ = [
    "CallCounts",
    "Health",
    "MethodDescription",
    "ParameterDescription",
    "ServiceDescription",
    "Stats",
    "UserStats",
    "WorkerStats",
    "check_health",
    "describe_service",
]


class ParameterDescription(msgspec.Struct):
    """One parameter: its name, whether it must be given, how it may be given, its JSON Schema and its default.

    The default is absent where there is none, or none that can be written as JSON. It is for reading: who leaves an
    argument out sends nothing in its place. The schema of a stream is that of an item.
    """

    name: str
    is_required: bool
    is_positional: bool
    is_named: bool
    schema: dict[str, Any]
    default: Any = msgspec.UNSET
    is_stream: bool = False


class MethodDescription(msgspec.Struct):
    """One method: what it does, takes, returns and raises.

    Where the result is a stream, `returns` is the schema of an item.
    """

    name: str
    doc: str
    execution: str
    is_idempotent: bool
    parameters: list[ParameterDescription]
    returns: dict[str, Any]
    raises: list[str]
    streams_result: bool = False


class ServiceDescription(msgspec.Struct):
    """A whole service.

    `definitions` holds the schemas that others refer to as `#/$defs/NAME`, `errors` what the declared exceptions mean.
    """

    name: str
    version: str
    doc: str
    protocol_version: int
    methods: list[MethodDescription]
    definitions: dict[str, Any]
    errors: dict[str, str] = {}


class Health(msgspec.Struct):
    """Whether the service can do its work: `ok`, or `failing` with the problems; and how many seconds it has run."""

    status: str
    problems: list[str]
    service: str
    pid: int
    uptime: float


class CallCounts(msgspec.Struct):
    """Calls of one service since its start: `finished` counts every answer, `failed` those that were errors."""

    running: int = 0
    waiting: int = 0
    finished: int = 0
    failed: int = 0
    overloaded: int = 0
    cancelled: int = 0


class UserStats(msgspec.Struct):
    """What one user's connections cost the service now; a user who costs nothing is not listed.

    `bytes` are those kept for them: begun frames, arguments of calls that wait, answers that are not read. `mapped` are
    those of buffers in calls that have not ended.
    """

    uid: int
    connections: int
    running: int
    waiting: int
    bytes: int
    descriptors: int
    mapped: int = 0


class WorkerStats(msgspec.Struct):
    """One worker process of a service that has several: what it does now and has done since its start.

    `state` is `starting`, `serving` or `stopping`, `uptime` is in seconds, `memory` is resident bytes (with what it
    shares with the others), `restarts` counts the workers before it in its place that ended without being told to.
    """

    pid: int
    state: str
    uptime: float
    memory: int
    connections: int
    restarts: int
    calls: CallCounts


class Stats(msgspec.Struct):
    """What the service does now and has done: connections, calls, finished calls by method, what each user costs.

    Where a service has several worker processes, these are the numbers of the one that answers, and `workers` has those
    of all, itself among them; the others' are half a second old at most, unless they are kept from noting them.
    """

    service: str
    pid: int
    uptime: float
    connections: int
    connections_total: int
    connections_refused: int
    calls: CallCounts
    methods: dict[str, int]
    workers: list[WorkerStats] = []
    users: list[UserStats] = []


def check_health(service: ServiceBase, uptime: float) -> Health:
    """Run the service's checks.

    Args:
        service: The service.
        uptime: Seconds since it was started.
    """
    problems = []
    for check in service.checks:
        try:
            check()
        except Exception as error:
            name = getattr(check, "__name__", type(check).__name__)
            problems.append(f"{name}: {str(error) or type(error).__name__}")
    return Health("failing" if problems else "ok", problems, service.name, os.getpid(), uptime)


# Made once for each set of methods: the schemas take about a millisecond, and a peer may ask a hundred times a turn.
_descriptions: weakref.WeakKeyDictionary[ServiceBase, tuple[int, ServiceDescription]] = weakref.WeakKeyDictionary()


def describe_service(service: ServiceBase) -> ServiceDescription:
    """Return the description of a service, made from the signatures of its methods."""
    count, description = _descriptions.get(service, (-1, None))
    if description is None or count != len(service.methods):
        description = _description(service)
        _descriptions[service] = (len(service.methods), description)
    return description


def _description(service: ServiceBase) -> ServiceDescription:
    methods = list(service.methods.values())
    types = [type_ for method in methods for type_ in _types_of(method)]
    schemas, definitions = _schemas(types)
    described = []
    for method in methods:
        count = len(method.signature.parameters)
        described.append(_describe(method, schemas[:count], schemas[count]))
        schemas = schemas[count + 1 :]
    errors = {error.__name__: _own_doc(error) for method in reversed(methods) for error in reversed(method.raises)}
    errors = dict(sorted(errors.items()))
    return ServiceDescription(service.name, service.version, service.doc, VERSION, described, definitions, errors)


def _own_doc(error: type[Exception]) -> str:
    """Return what a class says of itself; what its parents say is about them."""
    return inspect.cleandoc(error.__dict__.get("__doc__") or "")


def _types_of(method: Method) -> list[Any]:
    return [parameter.annotation for parameter in method.signature.parameters] + [method.signature.returns]


def _describe(method: Method, parameters: list[dict[str, Any]], returns: dict[str, Any]) -> MethodDescription:
    defaults = _defaults(method)
    return MethodDescription(
        name=method.name,
        doc=inspect.getdoc(method.function) or "",
        execution=method.execution.value,
        is_idempotent=method.is_idempotent,
        parameters=[
            ParameterDescription(
                p.name, p.is_required, p.is_positional, p.is_named, schema, defaults[p.name], p.is_stream
            )
            for p, schema in zip(method.signature.parameters, parameters, strict=True)
        ],
        returns=returns,
        raises=[error.__name__ for error in method.raises],
        streams_result=method.signature.streams_result,
    )


def _defaults(method: Method) -> dict[str, Any]:
    return {
        name: msgspec.UNSET if parameter.default is inspect.Parameter.empty else encodable_default(parameter.default)
        for name, parameter in inspect.signature(method.function).parameters.items()
    }


def _schemas(types: list[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    try:
        return extended_schemas(types)
    except (TypeError, KeyError):
        # One type without a JSON Schema (a result of a class of its own, say) must not hide the others. A KeyError is
        # msgspec's for two classes of the same full name.
        reasons = [_no_schema(type_) for type_ in types]
        schemas, definitions = extended_schemas([type_ for type_, no in zip(types, reasons, strict=True) if no is None])
        rest = iter(schemas)
        return [next(rest) if no is None else no for no in reasons], definitions


def _no_schema(type_: Any) -> dict[str, Any] | None:
    """Return what stands in place of the JSON Schema of a type that has none, or None if it has one."""
    try:
        extended_schemas([type_])
    except (TypeError, KeyError) as error:
        return {"description": f"no JSON Schema: {error}"}
    return None
