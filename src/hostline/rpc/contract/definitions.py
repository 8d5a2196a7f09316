"""Classes for the types that a service names: structs, enumerations, and the exceptions it declares."""

from __future__ import annotations

import base64
import binascii
import builtins
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from hostline.rpc.contract.python_types import Shape, TypeWriter, is_small, shape_of
from hostline.rpc.contract.schemas import (
    MAX_DEPTH,
    Schema,
    extension,
    mapping,
    options,
    reference,
    sequence,
    string_kind,
)
from hostline.rpc.contract.source_text import Names, docstring, exploded, literal, statement

__all__ = ["DefinitionWriter", "Field", "fields_of", "is_builtin_error"]

_INDENT: Final = "    "
_ENUM_OWN: Final = ("mro", "name", "value")


class Field(NamedTuple):
    """One field of a struct.

    Attributes:
        wire_name: What it is called in messages; empty in an array.
        name: The identifier it has in the class.
        schema: Its type.
        is_required: Whether it must be given.
    """

    wire_name: str
    name: str
    schema: dict[str, Any]
    is_required: bool


def tag_of(schema: Schema) -> tuple[str | int | None, str]:
    """Return the tag of a struct and the field it stands in; a tag of None for a struct without one.

    A service that is not hostline's own says nothing of tags. There, a first field that can have one value only is one.
    """
    added = extension(schema)
    properties = mapping(schema.get("properties"))
    field = next(iter(properties), "")
    if "tag" in added:
        field = added.get("tag_field", "type")
        tag = added["tag"]
        is_there = field in properties or "fields" in added
    else:
        values = sequence(mapping(properties.get(field)).get("enum"))
        tag = values[0] if len(values) == 1 else None
        is_there = field in sequence(schema.get("required"))
    is_usable = isinstance(tag, str) or is_small(tag)
    return (tag, field) if is_usable and is_there and isinstance(field, str) else (None, "")


def fields_of(schema: Schema) -> list[Field]:
    """Return the fields of a struct, its tag left out."""
    tag, tag_field = tag_of(schema)
    names = Names()
    if shape_of(schema) == Shape.STRUCT:
        required = sequence(schema.get("required"))
        properties = {n: s for n, s in mapping(schema.get("properties")).items() if tag is None or n != tag_field}
        return [Field(n, names.give(n, "field"), mapping(s), n in required) for n, s in properties.items()]
    items = sequence(schema.get("prefixItems"))[0 if tag is None else 1 :]
    least = schema.get("minItems")
    required_count = (least if isinstance(least, int) else 0) - (0 if tag is None else 1)
    wanted = sequence(extension(schema).get("fields"))
    return [
        Field(
            "", names.give(str(wanted[n]) if n < len(wanted) else "", f"field_{n}"), mapping(item), n < required_count
        )
        for n, item in enumerate(items)
    ]


def is_builtin_error(name: str) -> bool:
    """Say whether a declared exception is one of Python's own."""
    cls = getattr(builtins, name, None)
    return isinstance(cls, type) and issubclass(cls, Exception)


class DefinitionWriter:
    """Write the classes of one module.

    Args:
        types: Writes annotations.
        definitions: Of the service.
    """

    def __init__(self, types: TypeWriter, definitions: Mapping[str, Any]) -> None:
        self._types = types
        self._schemas = {name: mapping(schema) for name, schema in definitions.items()}
        self._members = {name: _members(s) for name, s in self._schemas.items() if shape_of(s) == Shape.ENUM}

    def classes(self) -> Iterable[list[str]]:
        """Yield the lines of each class: enumerations first, because defaults name their members."""
        for name, members in self._members.items():
            yield self._enum(name, members)
        for name, schema in self._schemas.items():
            if shape_of(schema) in (Shape.STRUCT, Shape.ARRAY):
                yield self._struct(name, schema)

    def error(self, name: str, identifier: str, doc: str) -> list[str]:
        """Return the lines of an exception's class.

        Args:
            name: What the service calls it; errors are told apart by it.
            identifier: What the module calls it.
            doc: What it means.
        """
        text = docstring(doc, _INDENT) or docstring("The service declares it, and says no more.", _INDENT)
        lines = [statement(f"class {identifier}({self._types.builtin('Exception')}):"), *text]
        if name != identifier and "\0" not in name:  # no class can be called so
            lines += ["", "", statement(f"{identifier}.__name__ = {literal(name)}")]
        return lines

    def _enum(self, name: str, members: list[tuple[str, Any]]) -> list[str]:
        lines = [statement(f"class {self._types.classes[name]}({self._types.of('enum', 'Enum')}):")]
        if text := docstring(str(self._schemas[name].get("description", "")), _INDENT):
            lines += [*text, ""]
        return lines + [statement(f"{_INDENT}{member} = {literal(value)}") for member, value in members]

    def _struct(self, name: str, schema: Schema) -> list[str]:
        fields = fields_of(schema)
        is_array = shape_of(schema) == Shape.ARRAY
        if is_array:
            # Fields of an array have places: nothing before the last one that must be given can be left out.
            last = max((n for n, field in enumerate(fields) if self._default(field) is None), default=-1)
            fields = [field._replace(is_required=n <= last) for n, field in enumerate(fields)]
        tag, tag_field = tag_of(schema)
        arguments = [self._types.of("msgspec", "Struct")]
        if tag is not None:
            arguments.append(f"tag={literal(tag)}")
            if not is_array and tag_field != "type":
                arguments.append(f"tag_field={literal(tag_field)}")
        if is_array:
            arguments.append("array_like=True")
        required = [field.is_required for field in fields]
        if required != sorted(required, reverse=True):
            arguments.append("kw_only=True")
        lines = exploded(f"class {self._types.classes[name]}(", arguments, "):", "")
        text = docstring(str(schema.get("description", "")), _INDENT)
        if fields:
            return [*lines, *text, *([""] if text else []), *(self._field(field) for field in fields)]
        return [*lines, *(text or docstring("It has no fields.", _INDENT))]

    def _field(self, field: Field) -> str:
        annotation = self._types.annotation(field.schema)
        default = self._default(field)
        if default == self._types.of("msgspec", "UNSET"):
            annotation += f" | {self._types.of('msgspec', 'UnsetType')}"
        start = f"{_INDENT}{field.name}: {annotation}"
        is_renamed = field.wire_name not in ("", field.name)
        if default is None and not is_renamed:
            return statement(start)
        if not is_renamed and default is not None and not default.startswith("lambda"):
            return statement(f"{start} = {default}")
        arguments = []
        if default is not None:
            is_made = default.startswith("lambda") or default in ("[]", "{}")
            made = default if default.startswith("lambda") else f"lambda: {default}"
            arguments.append(f"default_factory={made}" if is_made else f"default={default}")
        if is_renamed:
            arguments.append(f"name={literal(field.wire_name)}")
        return statement(f"{start} = {self._types.of('msgspec', 'field')}({', '.join(arguments)})")

    def _default(self, field: Field) -> str | None:
        """Return the expression of a field's default, None for a field that must be given.

        Where the service has a default that it does not tell, the field may be unset: it is not sent then.
        """
        if field.is_required:
            return None
        unset = self._types.of("msgspec", "UNSET") if field.wire_name else None
        if "default" not in field.schema:
            return unset
        value = field.schema["default"]
        written = self.default_text(field.schema, value)
        if written is not None:
            return written
        plain = _nested_literal(value)
        if plain is None:
            return unset
        return f"lambda: {self._types.of('msgspec', 'convert')}({plain}, {self._types.annotation(field.schema)})"

    def default_text(self, schema: Schema, value: Any, *, is_member: bool = False) -> str | None:
        """Return the expression of a default as a program would write it, or None if that is not obvious.

        Args:
            schema: The type it must have.
            value: The default, as JSON has it.
            is_member: Whether the type is a member of a union; unions of unions could go on for ever.
        """
        name = reference(schema)
        if name in self._members:
            found = (member for member, v in self._members[name] if type(v) is type(value) and v == value)
            member = next(found, None)
            return None if member is None else f"{self._types.classes[name]}.{member}"
        schema = self._types.resolved(schema)
        members = options(schema)
        if members is not None:
            if is_member:
                return None
            written = (self.default_text(member, value, is_member=True) for member in members)
            return next((text for text in written if text is not None), None)
        if "enum" in schema:
            is_listed = any(type(v) is type(value) and v == value for v in sequence(schema["enum"]))
            return literal(value) if is_listed and not isinstance(value, float) else None
        return self._plain_default(schema, value)

    def _plain_default(self, schema: Schema, value: Any) -> str | None:
        kind = schema.get("type")
        if kind == "string" and isinstance(value, str):
            text = string_kind(schema)
            if text == "bytes":
                return _bytes_literal(value)
            return literal(value) if text == "str" else None
        if kind == "array" and value == [] and _is_list(schema):
            return "[]"
        if kind == "object" and value == {} and "properties" not in schema:
            return "{}"
        is_fitting = {
            "null": value is None,
            "boolean": isinstance(value, bool),
            "integer": type(value) is int,
            "number": type(value) in (int, float),
            None: value is None or isinstance(value, bool | int | float | str),
        }
        return literal(value) if isinstance(kind, str | None) and is_fitting.get(kind) else None


def _is_list(schema: Schema) -> bool:
    return not schema.get("uniqueItems") and "prefixItems" not in schema and "type" not in extension(schema)


def _members(schema: Schema) -> list[tuple[str, Any]]:
    """Return the members of an enumeration: identifiers and values."""
    values = list(dict.fromkeys(sequence(schema.get("enum"))))
    known = set(values)
    told: dict[Any, str] = {}
    for pair in sequence(extension(schema).get("members")):
        name, value = pair if isinstance(pair, list | tuple) and len(pair) == 2 else (None, None)
        if isinstance(name, str) and type(value) in (int, str) and value in known:
            told.setdefault(value, name)
    names = Names(_ENUM_OWN)
    # A leading underscore means something else in an enumeration.
    ordered = [*told, *(value for value in values if value not in told)]
    return [(names.give(told.get(v, str(v).upper()).strip("_"), "MEMBER"), v) for v in ordered]


def _bytes_literal(text: str) -> str | None:
    try:
        return literal(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return None


def _nested_literal(value: Any, depth: int = 0) -> str | None:
    if depth > MAX_DEPTH:
        return None
    if isinstance(value, list):
        items = [_nested_literal(item, depth + 1) for item in value]
        return None if None in items else f"[{', '.join(filter(None, items))}]"
    if isinstance(value, dict):
        pairs = [(literal(key), _nested_literal(item, depth + 1)) for key, item in value.items()]
        if any(key is None or item is None for key, item in pairs):
            return None
        return "{" + ", ".join(f"{key}: {item}" for key, item in pairs) + "}"
    return literal(value)
