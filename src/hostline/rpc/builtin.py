"""The three methods that every service answers: `hostline.describe`, `hostline.health`, `hostline.stats`.

Their results are plain structs, so that a client in any language can read them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hostline.rpc.service import Method, ServiceBase
from hostline.wire.codec import VERSION
from hostline.wire.schema import json_schemas

__all__ = [
    "CallCounts",
    "Health",
    "MethodDescription",
    "ParameterDescription",
    "ServiceDescription",
    "Stats",
    "describe_service",
]


class ParameterDescription(msgspec.Struct):
    """One parameter: its name, whether it must be given, how it may be given, and its JSON Schema."""

    name: str
    is_required: bool
    is_positional: bool
    is_named: bool
    schema: dict[str, Any]


class MethodDescription(msgspec.Struct):
    """One method: what it does, takes, returns and raises."""

    name: str
    doc: str
    execution: str
    is_idempotent: bool
    parameters: list[ParameterDescription]
    returns: dict[str, Any]
    raises: list[str]


class ServiceDescription(msgspec.Struct):
    """A whole service; `definitions` holds the schemas that others refer to as `#/$defs/NAME`."""

    name: str
    version: str
    doc: str
    protocol_version: int
    methods: list[MethodDescription]
    definitions: dict[str, Any]


class Health(msgspec.Struct):
    """Whether the service takes calls: `ok` or `draining`; and for how many seconds it has run."""

    status: str
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


class Stats(msgspec.Struct):
    """What the service does now and has done: connections, calls, and finished calls by method."""

    service: str
    pid: int
    uptime: float
    connections: int
    connections_total: int
    connections_refused: int
    calls: CallCounts
    methods: dict[str, int]


def describe_service(service: ServiceBase) -> ServiceDescription:
    """Return the description of a service, made from the signatures of its methods."""
    methods = list(service.methods.values())
    types = [type_ for method in methods for type_ in _types_of(method)]
    schemas, definitions = _schemas(types)
    described = []
    for method in methods:
        count = len(method.signature.parameters)
        described.append(_describe(method, schemas[:count], schemas[count]))
        schemas = schemas[count + 1 :]
    return ServiceDescription(service.name, service.version, service.doc, VERSION, described, definitions)


def _types_of(method: Method) -> list[Any]:
    return [parameter.annotation for parameter in method.signature.parameters] + [method.signature.returns]


def _describe(method: Method, parameters: list[dict[str, Any]], returns: dict[str, Any]) -> MethodDescription:
    import inspect

    return MethodDescription(
        name=method.name,
        doc=inspect.getdoc(method.function) or "",
        execution=method.execution.value,
        is_idempotent=method.is_idempotent,
        parameters=[
            ParameterDescription(p.name, p.is_required, p.is_positional, p.is_named, schema)
            for p, schema in zip(method.signature.parameters, parameters, strict=True)
        ],
        returns=returns,
        raises=[error.__name__ for error in method.raises],
    )


def _schemas(types: list[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    try:
        return json_schemas(types)
    except TypeError:
        # One type without a JSON Schema (a map with struct keys, say) must not hide the others.
        schemas: list[dict[str, Any]] = []
        definitions: dict[str, Any] = {}
        for type_ in types:
            try:
                one, more = json_schemas([type_])
            except TypeError as error:
                one, more = [{"description": f"no JSON Schema: {error}"}], {}
            schemas += one
            definitions |= more
        return schemas, definitions
