"""The types that one version of a service names, and which of them hold what travels beside a frame's payload."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

from hostline.rpc.contract.schemas import MAX_DEPTH, Schema, extension, mapping, reference

__all__ = ["Types"]

# Parts of schemas that are looked through for descriptors: about a second of work, more than honest services need.
_MAX_PARTS: Final = 1_000_000
# Keywords with values in them, not schemas.
_VALUES: Final = frozenset({"default", "examples", "enum", "const"})


class Types:
    """Hold the types of one version of a service.

    Args:
        definitions: What its schemas refer to.
    """

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = {name: mapping(schema) for name, schema in definitions.items()}
        self._parts_left = _MAX_PARTS

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
            is_direct, names = self._attached_and_references(schema)
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
        """Say whether values of a type may hold descriptors or buffers; true also of types too large to look at."""
        is_direct, names = self._attached_and_references(schema)
        return is_direct or not names.isdisjoint(self._with_attached)

    def _attached_and_references(self, schema: Schema) -> tuple[bool, set[str]]:
        """Say whether a descriptor or a buffer is written out in a schema, and name the definitions it refers to."""
        names: set[str] = set()
        seen: set[int] = set()
        waiting: list[Any] = [schema]
        while waiting:
            part = waiting.pop()
            if not isinstance(part, list | Mapping) or id(part) in seen:
                continue
            seen.add(id(part))
            self._parts_left -= 1
            if self._parts_left < 0:
                return True, names
            if isinstance(part, list):
                waiting += part
                continue
            if extension(part).get("type") in ("fd", "buffer"):
                return True, names
            if (name := reference(part)) is not None:
                names.add(name)
            waiting += [value for key, value in part.items() if key not in _VALUES]
        return False, names
