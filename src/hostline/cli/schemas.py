"""JSON for values, values for JSON, and JSON Schemas for people: a line of Python-like text for a type or a method.

Knows what `hostline.describe` gives. Everything in it was written by the service, so that callers escape what they
print of it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args

import msgspec

from hostline.cli.files import Files, fd_summary
from hostline.rpc.attachments import fd_kinds
from hostline.rpc.builtin import MethodDescription, ServiceDescription
from hostline.rpc.contract.schemas import descriptor_kinds, extension, fd_text, mapping, string_kind
from hostline.unix.passing.descriptors import DescriptorKind, Fd
from hostline.unix.passing.memory import Buffer

__all__ = ["ANYTHING", "as_json", "definition_text", "method_text", "type_text", "typed_arguments"]

Schema = Mapping[str, Any]

# What the command takes as a result: descriptors of every kind too, because it looks before it reads.
ANYTHING = Annotated[Any, fd_kinds(*get_args(DescriptorKind))]

# Levels of a schema that are written out; a deeper one comes from a service that means no good.
_MAX_DEPTH = 20


# --- values ------------------------------------------------------------------------------------------


def as_json(value: Any) -> bytes:
    """Return a value that came as MessagePack as JSON: bytes in base64, times as in ISO 8601, descriptors in words.

    A map with keys that JSON cannot have becomes a list of pairs.

    Args:
        value: Plain values: maps, lists, texts, numbers, bytes, times, descriptors.
    """
    try:
        return msgspec.json.encode(value, enc_hook=_plain)
    except TypeError:
        return msgspec.json.encode(_with_pairs(value), enc_hook=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.msgpack.Ext):
        return {"extension": value.code, "data": bytes(value.data)}
    if isinstance(value, Fd):
        return fd_summary(value)
    raise TypeError(f"a key of type {type(value).__name__}")  # nothing else comes out of MessagePack


def _with_pairs(value: Any) -> Any:
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _with_pairs(item) for key, item in value.items()}
        return [[_with_pairs(key), _with_pairs(item)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_with_pairs(item) for item in value]
    return value


def typed_arguments(
    service: ServiceDescription, method: str, args: tuple[Any, ...], keywords: dict[str, Any] | None, files: Files
) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
    """Return the arguments with what JSON lacks in place of texts: descriptors, buffers and bytes, as the method takes.

    Args:
        service: What the service says of itself.
        method: The method's name.
        args: Arguments by position.
        keywords: Arguments by name.
        files: Opens what is named `@PATH`.

    Raises:
        UsageError: A file is named that may not be.
        CommandError: A file cannot be read.
    """
    described = next((candidate for candidate in service.methods if candidate.name == method), None)
    if described is None:
        return args, keywords
    by_name = {parameter.name: parameter.schema for parameter in described.parameters}
    in_order = list(by_name.values())[: len(args)]
    typed = _Arguments(service, files).typed
    new_args = tuple(typed(value, schema, 0) for value, schema in zip(args, in_order, strict=False))
    new_args += args[len(new_args) :]
    return new_args, keywords and {name: typed(value, by_name.get(name, {}), 0) for name, value in keywords.items()}


class _Arguments:
    """Walk arguments and the schemas of their types side by side."""

    def __init__(self, service: ServiceDescription, files: Files) -> None:
        self._definitions = service.definitions
        self._files = files

    def typed(self, value: Any, schema: Schema, depth: int) -> Any:
        """Return one value as its type has it; what does not fit is left for the service to refuse."""
        if depth > _MAX_DEPTH:
            return value
        schema = _resolved(schema, self._definitions)
        if isinstance(value, str):
            return self._from_text(value, [_resolved(option, self._definitions) for option in _options(schema)])
        for option in _options(schema):
            option = _resolved(option, self._definitions)
            if isinstance(value, list):
                first = option.get("prefixItems", ())
                items = mapping(option.get("items"))
                value = [
                    self.typed(item, first[number] if number < len(first) else items, depth + 1)
                    for number, item in enumerate(value)
                ]
            elif isinstance(value, dict):
                fields, others = option.get("properties", {}), mapping(option.get("additionalProperties"))
                value = {key: self.typed(item, fields.get(key, others), depth + 1) for key, item in value.items()}
        return value

    def _from_text(self, text: str, options: list[Schema]) -> Any:
        kinds = {string_kind(option) for option in options if option.get("type") == "string"}
        if any(descriptor_kinds(option) is not None for option in options):
            path = self._files.path(text)
            return text if path is None else self._files.open(path)
        if not kinds & {"bytes", "Buffer"} or kinds - {"bytes", "Buffer"}:
            return text
        path = self._files.path(text)
        data = _from_base64(text) if path is None else self._files.read(path)
        return Buffer(data) if "Buffer" in kinds and isinstance(data, bytes) else data


def _options(schema: Schema) -> Iterator[Schema]:
    yield from schema.get("anyOf", (schema,))


def _from_base64(text: str) -> str | bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return text


def _resolved(schema: Schema, definitions: Mapping[str, Any]) -> Schema:
    name = _reference(schema)
    found = definitions.get(name) if name else schema
    return found if isinstance(found, Mapping) else {}


def _reference(schema: Schema) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]


# --- types for people --------------------------------------------------------------------------------

_SIMPLE = {"integer": "int", "number": "float", "boolean": "bool", "null": "None", "string": "str"}
_BOUNDS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
    "multipleOf": "multiple of",
}


def type_text(schema: Schema, depth: int = 0) -> str:
    """Return a JSON Schema as a Python type is written: `int`, `list[Order]`, `str | None`."""
    if depth > _MAX_DEPTH:
        return "..."
    if "$ref" in schema:
        return _reference(schema)
    if (kinds := descriptor_kinds(schema)) is not None:
        return fd_text(kinds)
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(type_text(option, depth + 1) for option in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in values)
    kind = schema.get("type")
    if isinstance(kind, list):
        return " | ".join(_SIMPLE.get(str(name), str(name)) for name in kind)
    if kind == "array":
        return _array_text(schema, depth)
    if kind == "object":
        return _map_text(schema, depth)
    if kind == "string":
        return string_kind(schema)
    return _SIMPLE.get(str(kind), "Any")


def _array_text(schema: Schema, depth: int) -> str:
    if "prefixItems" in schema:
        return f"tuple[{', '.join(type_text(item, depth + 1) for item in schema['prefixItems'])}]"
    items = schema.get("items")
    told = extension(schema).get("type")
    name = told if told in ("tuple", "frozenset") else "set" if schema.get("uniqueItems") else "list"
    if name == "tuple":
        return f"tuple[{type_text(mapping(items), depth + 1)}, ...]"
    return f"{name}[{type_text(items, depth + 1)}]" if isinstance(items, Mapping) and items else name


def _value_text(value: Any) -> str:
    """Return a default as JSON, but None, True and False as the types beside them are written."""
    if value is None or isinstance(value, bool):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _map_text(schema: Schema, depth: int) -> str:
    keys, values = extension(schema).get("keys"), schema.get("additionalProperties")
    if not keys and not isinstance(values, Mapping):
        return "dict"
    key = type_text(keys, depth + 1) if isinstance(keys, Mapping) else "str"
    return f"dict[{key}, {type_text(mapping(values), depth + 1)}]"


def method_text(method: MethodDescription) -> str:
    """Return a method as its `def` line says it: `charge(order: Order, note: str = "") -> Receipt`.

    What comes item by item is written `stream of int`.
    """
    parts: list[str] = []
    is_after_slash = is_after_star = False
    for parameter in method.parameters:
        if parameter.is_named and not is_after_slash:
            if parts:
                parts.append("/")
            is_after_slash = True
        if not parameter.is_positional and not is_after_star:
            parts.append("*")
            is_after_star = True
        default = "" if parameter.is_required else " = ..."
        if not parameter.is_required and parameter.default is not msgspec.UNSET:
            default = f" = {_value_text(parameter.default)}"
        stream = "stream of " if parameter.is_stream else ""
        parts.append(f"{parameter.name}: {stream}{type_text(parameter.schema)}{default}")
    if parts and not is_after_slash:
        parts.append("/")
    stream = "stream of " if method.streams_result else ""
    return f"{method.name}({', '.join(parts)}) -> {stream}{type_text(method.returns)}"


def definition_text(name: str, schema: Schema) -> list[str]:
    """Return a definition as lines: a class line, then one for each field.

    Args:
        name: Its name.
        schema: Its JSON Schema.
    """
    if "properties" not in schema:
        return [f"{name} = {type_text({k: v for k, v in schema.items() if k != '$ref'})}"]
    lines = [name]
    required = schema.get("required", ())
    for field, field_schema in schema["properties"].items():
        default = ""
        if "default" in field_schema:
            default = f" = {_value_text(field_schema['default'])}"
        elif field not in required:
            default = " = ..."
        bounds = [f"{sign} {field_schema[key]}" for key, sign in _BOUNDS.items() if key in field_schema]
        note = f"  ({', '.join(bounds)})" if bounds else ""
        lines.append(f"    {field}: {type_text(field_schema)}{default}{note}")
    return lines
