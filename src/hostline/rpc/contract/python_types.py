"""Annotations for JSON Schemas: what a Python program writes for a type that a service described.

Knows no layout: classes and modules are written elsewhere (definitions.py, stub_writer.py).
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Final

from hostline.rpc.attachments import DEFAULT_KINDS
from hostline.rpc.contract.schemas import (
    MAX_DEPTH,
    Schema,
    descriptor_kinds,
    extension,
    mapping,
    options,
    reference,
    sequence,
    string_kind,
)
from hostline.rpc.contract.source_text import Names, literal
from hostline.unix.passing.descriptors import DescriptorKind

__all__ = ["Shape", "TypeWriter", "is_small", "shape_of"]

_STANDARD: Final = ("builtins", "collections.abc", "datetime", "decimal", "enum", "typing", "uuid")
_OTHERS: Final = ("hostline", "msgspec")
_IN_MODULES: Final = {
    "datetime": "datetime",
    "date": "datetime",
    "time": "datetime",
    "timedelta": "datetime",
    "UUID": "uuid",
    "Decimal": "decimal",
    "Buffer": "hostline",
}
_SIMPLE: Final = {"integer": "int", "number": "float", "boolean": "bool", "string": "str"}


class Shape:
    """Name what a definition becomes."""

    ENUM: Final = "enum"
    STRUCT: Final = "struct"
    ARRAY: Final = "array"
    PLAIN: Final = "plain"  # no class: it is written out where it is used


def is_small(value: Any) -> bool:
    """Say whether a value is a whole number that msgspec takes as a literal or a tag: 64 bits."""
    return type(value) is int and -(2**63) <= value < 2**63


def shape_of(schema: Schema) -> str:
    """Return the shape of a definition."""
    if values := sequence(schema.get("enum")):
        # As msgspec has it: all texts, or all whole numbers. Anything else is a list of literals.
        is_enum = all(isinstance(v, str) for v in values) or all(map(is_small, values))
        return Shape.ENUM if is_enum else Shape.PLAIN
    if schema.get("type") == "object" and isinstance(schema.get("properties"), Mapping):
        # A struct cannot have a field with such a name; a TypedDict can.
        is_odd = any(re.search(r'[\\"\x00-\x1f\x7f]', name) for name in mapping(schema["properties"]))
        return Shape.PLAIN if is_odd else Shape.STRUCT
    if schema.get("type") == "array" and "fields" in extension(schema):
        return Shape.ARRAY
    return Shape.PLAIN


class TypeWriter:
    """Write annotations that mean the same wherever they stand in the module.

    Args:
        definitions: Of the service.
        attributes: Names that fields and methods have. Inside a class they hide what the module calls so: builtins are
            then written as `builtins.list`, and modules are imported under another name.

    Attributes:
        classes: Identifiers of the definitions that become classes.
        names: The module's scope; it gives the identifiers of what else is declared there.
        used: Modules that what was written so far needs.
    """

    def __init__(self, definitions: Mapping[str, Any], attributes: Iterable[str]) -> None:
        self._definitions = {name: mapping(schema) for name, schema in definitions.items()}
        self._attributes = set(attributes)
        self.used: set[str] = set()
        self._is_inside_plain = False
        self.names = Names(self._attributes)
        self._modules = {module: self._module_name(module) for module in (*_STANDARD, *_OTHERS)}
        self.classes = {
            name: self.names.give(name, "Type", avoid_builtins=True)
            for name, schema in self._definitions.items()
            if shape_of(schema) != Shape.PLAIN
        }

    def _module_name(self, module: str) -> str:
        """Return how a module is written: `collections.abc`, or one free identifier where `collections` is taken."""
        package = module.partition(".")[0]
        name = self.names.give(package, package)
        return module if name == package else name

    @property
    def identifiers(self) -> set[str]:
        """What annotations stand on: the names of classes and modules."""
        return {*self.classes.values(), *(name.partition(".")[0] for name in self._modules.values())}

    def imports(self) -> list[str]:
        """Return the import lines for what was used, in the order that linters ask for."""
        lines = []
        for group in (_STANDARD, _OTHERS):
            used = sorted(module for module in group if module in self.used)
            aliases = [(module, self._modules[module]) for module in used]
            lines.append([f"import {m}" if m == alias else f"import {m} as {alias}" for m, alias in aliases])
        standard, others = lines
        return [*standard, *([""] if standard and others else []), *others]

    def of(self, module: str, name: str) -> str:
        """Return how something in a module is written, such as `msgspec.Struct`."""
        self.used.add(module)
        return f"{self._modules[module]}.{name}"

    def builtin(self, name: str) -> str:
        """Return how a builtin is written."""
        return self.of("builtins", name) if name in self._attributes else name

    def definition(self, name: str) -> dict[str, Any]:
        """Return a definition's schema; an empty one for a name that leads nowhere."""
        return self._definitions.get(name, {})

    def resolved(self, schema: Schema) -> Schema:
        """Return what a schema refers to, or itself."""
        name = reference(schema)
        return schema if name is None else self.definition(name)

    def annotation(self, schema: Schema, depth: int = 0) -> str:
        """Return the annotation for a schema."""
        if depth > MAX_DEPTH:
            return self.of("typing", "Any")
        name = reference(schema)
        if name is not None:
            return self.classes.get(name) or self._plain(name, depth)
        kinds = descriptor_kinds(schema)
        if kinds is not None:
            return self._descriptor(kinds)
        members = options(schema)
        if members is not None:
            written = dict.fromkeys(self.annotation(member, depth + 1) for member in members)
            return " | ".join(sorted(written, key=lambda text: text == "None")) or self.of("typing", "Any")
        if "enum" in schema or "const" in schema:
            return self._literals(sequence(schema.get("enum", [schema.get("const")])))
        kind = schema.get("type")
        if kind == "null":
            return "None"
        if kind == "array":
            return self._array(schema, depth)
        if kind == "object":
            return self._map(schema, depth)
        if kind == "string":
            text = string_kind(schema)
            return self.of(_IN_MODULES[text], text) if text in _IN_MODULES else self.builtin(text)
        return self.builtin(_SIMPLE[kind]) if isinstance(kind, str) and kind in _SIMPLE else self.of("typing", "Any")

    def _descriptor(self, kinds: frozenset[str]) -> str:
        plain = self.of("hostline", "Fd")
        known = sorted(kinds.intersection(typing.get_args(DescriptorKind)))  # a newer service may name others
        if not known or kinds == DEFAULT_KINDS:
            return plain
        written = ", ".join(f'"{kind}"' for kind in known)
        return f"{self.of('typing', 'Annotated')}[{plain}, {self.of('hostline', 'fd_kinds')}({written})]"

    def _plain(self, name: str, depth: int) -> str:
        # Written out, but not what is inside it again: a few of them could name each other a million times.
        if self._is_inside_plain:
            return self.of("typing", "Any")
        self._is_inside_plain = True
        try:
            return self.annotation(self.definition(name), depth + 1)
        finally:
            self._is_inside_plain = False

    def _literals(self, values: list[Any]) -> str:
        # Only these can stand in a Literal; the literal of a float or of a container cannot.
        usable = [v for v in values if v is None or isinstance(v, str) or is_small(v)]
        written = dict.fromkeys(text for value in usable if (text := literal(value)) is not None)
        if not written or len(usable) < len(values):
            return self.of("typing", "Any")
        return f"{self.of('typing', 'Literal')}[{', '.join(written)}]"

    def _array(self, schema: Schema, depth: int) -> str:
        first = sequence(schema.get("prefixItems"))
        if first:
            inside = ", ".join(self.annotation(mapping(item), depth + 1) for item in first)
            return f"{self.builtin('tuple')}[{inside}]"
        if schema.get("maxItems") == 0 and "items" not in schema:
            return f"{self.builtin('tuple')}[()]"
        item = self.annotation(mapping(schema.get("items")), depth + 1)
        named = extension(schema).get("type")
        if named == "tuple":
            return f"{self.builtin('tuple')}[{item}, ...]"
        name = ("frozenset" if named == "frozenset" else "set") if schema.get("uniqueItems") else "list"
        return f"{self.builtin(name)}[{item}]"

    def _map(self, schema: Schema, depth: int) -> str:
        keys = extension(schema).get("keys")
        key = self.builtin("str") if keys is None else self.annotation(mapping(keys), depth + 1)
        value = self.annotation(mapping(schema.get("additionalProperties")), depth + 1)
        return f"{self.builtin('dict')}[{key}, {value}]"
