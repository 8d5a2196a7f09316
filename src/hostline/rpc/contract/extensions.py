"""What JSON Schema cannot say of a Python type: added to msgspec's schemas under the keyword `x-hostline`.

Readers that do not know the keyword lose nothing; because of it `hostline stubs` and `hostline diff` are exact. It
says:

    type        datetime, time, frozenset or tuple, where the schema says text or array only; fd for a descriptor, which
                has no schema of its own; buffer for a Buffer, whose schema is that of bytes
    kinds       of descriptor that are taken; absent for regular, memfd, pipe and socket
    tz          whether a datetime or time must have a time zone (true), must not (false); absent for either
    keys        the schema of the keys of a map that are not plain text
    min_length  of bytes, in bytes; the schema counts characters of base64, and so does max_length
    members     of an enumeration: pairs of name and value, in their order
    tag         of a struct: its tag; null for none
    tag_field   of a struct with a tag: where it stands; absent for a struct laid out as an array
    fields      of a struct laid out as an array: the names of its fields

What it says of descriptors and buffers comes with their types (rpc/attachments.py); the rest is added here.
"""

from __future__ import annotations

import datetime
import decimal
import types
import typing
import uuid
from typing import Any, Final

import msgspec
from msgspec import inspect

from hostline.wire.schema import json_schemas

__all__ = ["KEYWORD", "encodable_default", "extended_schemas"]

KEYWORD: Final = "x-hostline"

_NAMED = (
    inspect.StructType,
    inspect.TypedDictType,
    inspect.DataclassType,
    inspect.NamedTupleType,
    inspect.EnumType,
)
_KEY_TYPES: Final[dict[type[inspect.Type], Any]] = {
    inspect.StrType: str,
    inspect.IntType: int,
    inspect.FloatType: float,
    inspect.BoolType: bool,
    inspect.NoneType: None,
    inspect.BytesType: bytes,
    inspect.DateTimeType: datetime.datetime,
    inspect.DateType: datetime.date,
    inspect.TimeType: datetime.time,
    inspect.TimeDeltaType: datetime.timedelta,
    inspect.UUIDType: uuid.UUID,
    inspect.DecimalType: decimal.Decimal,
}


def extended_schemas(types_: list[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the JSON Schema of each type and the definitions they refer to, both with what the keyword adds.

    Raises:
        TypeError: A type has no JSON Schema.
    """
    infos = [inspect.type_info(type_) for type_ in types_]
    parts = _all_parts(infos)
    named = {info.cls: info for info in parts if isinstance(info, _NAMED)}
    keys = [info.key_type for info in parts if isinstance(info, inspect.DictType)]
    schemas, definitions = json_schemas([*types_, *named, *map(_annotation, keys)])
    key_schemas = schemas[len(types_) + len(named) :]
    # By identity: the same object stands in the tree that is walked below.
    extension = _Extension({id(key): schema for key, schema in zip(keys, key_schemas, strict=True)})
    for info, schema in zip([*infos, *keys], [*schemas[: len(infos)], *key_schemas], strict=True):
        extension.extend(info, schema)
    for info, reference in zip(named.values(), schemas[len(types_) :], strict=False):
        extension.extend(info, definitions[reference["$ref"].rpartition("/")[2]])
    return schemas[: len(types_)], definitions


def _all_parts(infos: list[inspect.Type]) -> list[inspect.Type]:
    found: dict[int, inspect.Type] = {}
    waiting = list(reversed(infos))
    while waiting:
        info = waiting.pop()
        if id(info) not in found:
            found[id(info)] = info
            waiting += reversed(_parts(info))
    return list(found.values())


def _parts(info: inspect.Type) -> list[inspect.Type]:
    """Return the types directly inside a type."""
    if isinstance(info, inspect.Metadata):
        return [info.type]
    if isinstance(info, inspect.UnionType):
        return list(info.types)
    if isinstance(info, inspect.CollectionType):
        return [info.item_type]
    if isinstance(info, inspect.TupleType):
        return list(info.item_types)
    if isinstance(info, inspect.DictType):
        return [info.key_type, info.value_type]
    return [field.type for field in getattr(info, "fields", ())]


def _annotation(info: inspect.Type) -> Any:
    """Return the type of a map's keys as it is written; `Any` for one that only few would use as a key."""
    info = _bare(info)
    if isinstance(info, _NAMED):
        return info.cls
    if isinstance(info, inspect.LiteralType):
        return typing.Literal[tuple(info.values)]
    if isinstance(info, inspect.UnionType):
        members = tuple(map(_annotation, info.types))
        return typing.Union[members]  # noqa: UP007 - `|` takes no tuple
    return _KEY_TYPES.get(type(info), Any)


def _bare(info: inspect.Type) -> inspect.Type:
    while isinstance(info, inspect.Metadata):
        info = info.type
    return info


class _Extension:
    """Walk types and their schemas side by side.

    Args:
        keys: Schemas of the keys of maps, by the identity of the key's type.
    """

    def __init__(self, keys: dict[int, dict[str, Any]]) -> None:
        self._keys = keys

    def extend(self, info: inspect.Type, schema: Any) -> None:
        """Add to one schema, and to those inside it, what msgspec left out."""
        info = _bare(info)
        if not isinstance(schema, dict) or "$ref" in schema:
            return  # a definition, which is extended by itself
        if added := self._added(info):
            schema[KEYWORD] = added
        for part, inside in self._inside(info, schema):
            self.extend(part, inside)

    def _added(self, info: inspect.Type) -> dict[str, Any]:
        if isinstance(info, inspect.DateTimeType | inspect.TimeType):
            name = "datetime" if isinstance(info, inspect.DateTimeType) else "time"
            return {"type": name} if info.tz is None else {"type": name, "tz": info.tz}
        if isinstance(info, inspect.FrozenSetType | inspect.VarTupleType):
            return {"type": "frozenset" if isinstance(info, inspect.FrozenSetType) else "tuple"}
        if isinstance(info, inspect.BytesType | inspect.ByteArrayType | inspect.MemoryViewType):
            bounds = {"min_length": info.min_length, "max_length": info.max_length}
            return {name: bound for name, bound in bounds.items() if bound is not None}
        if isinstance(info, inspect.DictType):
            return {} if isinstance(_bare(info.key_type), inspect.StrType) else {"keys": self._keys[id(info.key_type)]}
        if isinstance(info, inspect.EnumType):
            return {"members": [[member.name, member.value] for member in info.cls]}
        if isinstance(info, inspect.StructType):
            added: dict[str, Any] = {"tag": info.tag}
            if info.array_like:
                added["fields"] = [field.name for field in info.fields]
            elif info.tag_field is not None:
                added["tag_field"] = info.tag_field
            return added
        if isinstance(info, inspect.NamedTupleType):
            return {"tag": None, "fields": [field.name for field in info.fields]}
        return {}

    def _inside(self, info: inspect.Type, schema: dict[str, Any]) -> list[tuple[inspect.Type, Any]]:
        """Return the types inside a type beside their schemas."""
        if isinstance(info, inspect.UnionType):
            return _options(info, schema)
        if isinstance(info, inspect.CollectionType):
            return [(info.item_type, schema.get("items"))]
        if isinstance(info, inspect.TupleType):
            return list(zip(info.item_types, schema.get("prefixItems", ()), strict=False))
        if isinstance(info, inspect.DictType):
            return [(info.value_type, schema.get("additionalProperties"))]
        fields = getattr(info, "fields", ())
        if "properties" in schema:
            return [(field.type, schema["properties"].get(field.encode_name)) for field in fields]
        items = schema.get("prefixItems", ())
        return [(field.type, item) for field, item in zip(fields, items[len(items) - len(fields) :], strict=False)]


def _options(info: inspect.UnionType, schema: dict[str, Any]) -> list[tuple[inspect.Type, Any]]:
    """Return the members of a union that are written out beside their schemas: neither structs nor None."""
    plain = []
    for member in info.types:
        bare = _bare(member)
        is_map = isinstance(bare, inspect.StructType) and not bare.array_like
        if not is_map and not isinstance(bare, inspect.NoneType):
            plain.append(member)
    return list(zip(plain, schema.get("anyOf", ()), strict=False))


def encodable_default(value: Any) -> Any:
    """Return a parameter's default as JSON's values, or `msgspec.UNSET` where it has no such form.

    Args:
        value: Any object: defaults are never sent otherwise.
    """
    if isinstance(value, types.EllipsisType):
        return msgspec.UNSET
    try:
        plain = msgspec.to_builtins(value, str_keys=True)
        msgspec.json.encode(plain)
        msgspec.msgpack.encode(plain)
    except Exception:  # whatever an object of the service's own raises: the description matters more than a default
        return msgspec.UNSET
    return plain
