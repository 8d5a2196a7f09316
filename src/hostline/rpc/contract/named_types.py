"""The types that one version of a service names, and which of them hold what travels beside a frame's payload."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from hostline.rpc.contract.schemas import MAX_DEPTH, Schema, extension, mapping, reference

__all__ = ["Types"]


class Types:
    """Hold the types of one version of a service.

    Args:
        definitions: What its schemas refer to.
    """

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = {name: mapping(schema) for name, schema in definitions.items()}

    def resolve(self, schema: Schema) -> Schema:
        """Return what a schema refers to, or itself."""
        for _ in range(MAX_DEPTH):
            name = reference(schema)
            if name is None:
                return schema
            schema = self._definitions.get(name, {"not": {}, "title": name})  # a name that leads nowhere
        return {"not": {}}

    @functools.cached_property
    def _with_attached(self) -> set[str]:
        """Names of the definitions that hold descriptors or buffers, themselves or through others."""
        users: dict[str, set[str]] = {}
        waiting = []
        for name, schema in self._definitions.items():
            is_direct, names = _attached_and_references(schema)
            for used in names:
                users.setdefault(used, set()).add(name)
            if is_direct:
                waiting.append(name)
        found: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += users.get(name, ())
        return found

    def holds_attached(self, schema: Schema) -> bool:
        """Say whether values of a type may hold descriptors or buffers."""
        is_direct, names = _attached_and_references(schema)
        return is_direct or not names.isdisjoint(self._with_attached)


def _attached_and_references(schema: Schema) -> tuple[bool, set[str]]:
    """Say whether a descriptor or a buffer is written out in a schema, and name the definitions it refers to."""
    names: set[str] = set()
    waiting: list[Any] = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, Mapping):
            if extension(part).get("type") in ("fd", "buffer"):
                return True, names
            if (name := reference(part)) is not None:
                names.add(name)
            waiting += [value for key, value in part.items() if key not in ("default", "examples", "enum", "const")]
    return False, names
