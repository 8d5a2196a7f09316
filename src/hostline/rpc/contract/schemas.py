"""Reading JSON Schemas that a peer wrote: each part is what it should be, or is taken for absent.

Knows the shapes that msgspec writes, and `x-hostline` beside them (extensions.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hostline.rpc.attachments import DEFAULT_KINDS
from hostline.rpc.contract.extensions import KEYWORD

__all__ = [
    "MAX_DEPTH",
    "Schema",
    "descriptor_kinds",
    "extension",
    "fd_text",
    "mapping",
    "options",
    "reference",
    "sequence",
    "string_kind",
]

Schema = Mapping[str, Any]

# Levels of a schema that are read; a deeper one comes from a service that means no good.
MAX_DEPTH: Final = 30

_FORMATS: Final = {
    "date-time": "datetime",
    "date": "date",
    "time": "time",
    "partial-time": "time",
    "duration": "timedelta",
    "uuid": "UUID",
    "decimal": "Decimal",
}


def mapping(value: Any) -> dict[str, Any]:
    """Return a map with texts as keys; an empty one for anything else."""
    if not isinstance(value, Mapping):
        return {}
    return {key: item for key, item in value.items() if isinstance(key, str)}


def sequence(value: Any) -> list[Any]:
    """Return a list; an empty one for anything else."""
    return list(value) if isinstance(value, list | tuple) else []


def extension(schema: Schema) -> dict[str, Any]:
    """Return what `x-hostline` says of a schema."""
    return mapping(schema.get(KEYWORD))


def reference(schema: Schema) -> str | None:
    """Return the name of the definition that a schema refers to, or None."""
    target = schema.get("$ref")
    return target.rpartition("/")[2] if isinstance(target, str) else None


def options(schema: Schema) -> list[Schema] | None:
    """Return the members of a union, those of unions inside it among them; None for any other type."""
    found: list[Schema] | None = None
    kinds = schema.get("type")
    if isinstance(schema.get("anyOf"), list):
        found = [mapping(option) for option in schema["anyOf"]]
    elif isinstance(kinds, list):
        found = [{**schema, "type": kind} for kind in kinds]
    if found is None:
        return None
    flat: list[Schema] = []
    for option in found:
        # One level is what msgspec writes: structs with tags are a union of their own inside.
        inner = option.get("anyOf")
        flat += [mapping(member) for member in inner] if isinstance(inner, list) else [option]
    return flat


def string_kind(schema: Schema) -> str:
    """Return what a schema of texts holds: `str`, `bytes`, `Buffer`, `Decimal`, `UUID`, or a class of `datetime`."""
    named = extension(schema).get("type")
    if schema.get("contentEncoding") == "base64":
        return "Buffer" if named == "buffer" else "bytes"
    if named in ("datetime", "time"):
        return str(named)
    format_ = schema.get("format")
    return _FORMATS.get(format_, "str") if isinstance(format_, str) else "str"


def descriptor_kinds(schema: Schema) -> frozenset[str] | None:
    """Return the kinds of descriptor that a schema allows; None if it is no descriptor's."""
    added = extension(schema)
    if added.get("type") != "fd":
        return None
    kinds = added.get("kinds")
    return DEFAULT_KINDS if kinds is None else frozenset(kind for kind in sequence(kinds) if isinstance(kind, str))


def fd_text(kinds: frozenset[str]) -> str:
    """Return a descriptor's type for people: `Fd`, or `Fd (directory)`."""
    return "Fd" if kinds == DEFAULT_KINDS else f"Fd ({' or '.join(sorted(kinds)) or 'of no kind'})"
