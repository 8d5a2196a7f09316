"""Whether one type takes every value of another, judged by their JSON Schemas.

A sender's type must be included in the receiver's: for arguments old callers send and the new service receives, for
results it is the other way round. What cannot be judged counts as not included. A struct's sender sends the fields it
knows and no others; a receiver ignores fields it does not know, unless its type forbids them. Descriptors and buffers
are never ignored: a frame whose descriptors are not all named by a value fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from hostline.rpc.contract.named_types import Types
from hostline.rpc.contract.schemas import (
    MAX_DEPTH,
    Schema,
    descriptor_kinds,
    extension,
    fd_text,
    mapping,
    options,
    reference,
    sequence,
    string_kind,
)

__all__ = ["Types", "differences", "is_equal", "short_text"]

# Keywords that say nothing of which values there are.
_SILENT: Final = frozenset({"title", "description", "default", "examples", "deprecated", "discriminator"})
_KNOWN: Final = _SILENT | {
    "type", "enum", "const", "anyOf", "$ref", "x-hostline", "format", "contentEncoding", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern", "items", "prefixItems",
    "minItems", "maxItems", "uniqueItems", "properties", "required", "additionalProperties", "propertyNames",
    "minProperties", "maxProperties",
}  # fmt: skip
# Comparisons of one pair of types; more than any honest service needs, and a second or two of work.
_MAX_STEPS: Final = 50_000
# What travels as text, so that a receiver of any text takes it; times with a zone travel in a form of their own.
_AS_TEXT: Final = frozenset({"date", "time", "timedelta", "UUID", "Decimal"})


def differences(sent: Schema, sender: Types, received: Schema, receiver: Types) -> list[str]:
    """Return why the receiver would not take every value that may be sent, each reason with its place; none if it does.

    Args:
        sent: The type of what is sent.
        sender: The types it refers to.
        received: The type that must take it.
        receiver: The types that one refers to.
    """
    return list(_Comparison(sender, receiver).walk(sent, received, "", 0))


def is_equal(one: Schema, ones: Types, other: Schema, others: Types) -> bool:
    """Say whether two types take exactly the same values."""
    return not differences(one, ones, other, others) and not differences(other, others, one, ones)


def short_text(schema: Schema) -> str:
    """Return a few words for a type, for a reason."""
    name = reference(schema)
    if name is not None:
        return name
    if (kinds := descriptor_kinds(schema)) is not None:
        return fd_text(kinds)
    if (members := options(schema)) is not None:
        return " | ".join(dict.fromkeys(map(short_text, members)))
    if "enum" in schema or "const" in schema:
        values = _values(schema) or []
        return "one of " + ", ".join(map(repr, values[:5])) + (", ..." if len(values) > 5 else "")
    if schema.get("type") == "string":
        return string_kind(schema)
    if schema.get("type") == "array" and "fields" not in extension(schema):
        inside = mapping(schema.get("items"))
        return f"list of {short_text(inside)}" if inside and "$ref" in inside else "list"
    simple = {"integer": "int", "number": "float", "boolean": "bool", "null": "None", "object": "map"}
    return str(schema.get("title") or simple.get(str(schema.get("type")), "Any" if _is_any(schema) else "this type"))


class _Comparison:
    def __init__(self, sender: Types, receiver: Types) -> None:
        self._sender = sender
        self._receiver = receiver
        # Pairs of definitions that were judged, or are being judged: types may contain themselves.
        self._seen: dict[tuple[str, str], list[str]] = {}
        self._steps = 0

    def walk(self, sent: Schema, received: Schema, path: str, depth: int) -> Iterator[str]:
        """Yield the reasons why `received` does not take all of `sent`."""
        if self._is_too_much(depth):
            yield f"{path}the types are too large to be compared"
            return
        pair = (reference(sent), reference(received))
        if pair[0] is not None and pair[1] is not None:
            yield from (path + reason for reason in self._definitions((pair[0], pair[1]), sent, received, depth))
            return
        yield from self._judge(self._sender.resolve(sent), self._receiver.resolve(received), path, depth + 1)

    def _is_too_much(self, depth: int) -> bool:
        self._steps += 1
        return depth > MAX_DEPTH * 2 or self._steps > _MAX_STEPS

    def _definitions(self, pair: tuple[str, str], sent: Schema, received: Schema, depth: int) -> list[str]:
        if pair not in self._seen:
            self._seen[pair] = []  # meanwhile it is assumed: what is wrong will be found on the way
            before = len(self._seen)
            found = self._judge(self._sender.resolve(sent), self._receiver.resolve(received), "", depth + 1)
            self._seen[pair] = list(found)
            if self._seen[pair]:
                # What was found right meanwhile may have stood on the assumption.
                for later in list(self._seen)[before:]:
                    del self._seen[later]
        return self._seen[pair]

    def _judge(self, sent: Schema, received: Schema, path: str, depth: int) -> Iterator[str]:
        if _is_any(received):
            if self._sender.holds_attached(sent):
                yield f"{path}{short_text(sent)} has no place where the type is Any"
            return
        unknown = [key for schema in (sent, received) for key in schema if key not in _KNOWN]
        if unknown or _is_opaque(sent) or _is_opaque(received):
            if sent != received or "$ref" in repr(sent) or "not" in sent:
                yield f"{path}{short_text(sent)} cannot be compared with {short_text(received)}"
            return
        if _is_any(sent):
            yield f"{path}was anything, is {short_text(received)}"
            return
        if (members := options(sent)) is not None:
            for member in members:
                yield from self._member(member, received, path, depth)
        elif (targets := options(received)) is not None:
            yield from self._any_of(sent, targets, path, depth)
        else:
            yield from self._plain(sent, received, path, depth)

    def _member(self, member: Schema, received: Schema, path: str, depth: int) -> Iterator[str]:
        if options(received) is None:
            yield from self.walk(member, received, path, depth)
        else:
            yield from self._any_of(member, options(received) or [], path, depth)

    def _any_of(self, sent: Schema, targets: list[Schema], path: str, depth: int) -> Iterator[str]:
        if self._is_too_much(depth):
            yield f"{path}the types are too large to be compared"
            return
        resolved = self._sender.resolve(sent)
        if (members := options(resolved)) is not None:
            for member in members:
                yield from self._any_of(member, targets, path, depth + 1)
            return
        if (values := _values(resolved)) is not None and len(values) > 1:
            # Each value may be taken by another member.
            for value in values:
                yield from self._any_of({"enum": [value]}, targets, path, depth)
            return
        attempts = []
        for target in targets:
            found = list(self.walk(sent, target, path, depth))
            if not found:
                return
            if _kind(resolved) == _kind(self._receiver.resolve(target)):
                attempts.append(found)
        # The only member of the same kind is the one that was meant: its reasons say more.
        if len(attempts) == 1:
            yield from attempts[0]
        else:
            yield f"{path}{short_text(sent)} is not among {' | '.join(map(short_text, targets))}"

    def _plain(self, sent: Schema, received: Schema, path: str, depth: int) -> Iterator[str]:
        values = _values(sent)
        if values is not None:
            for value in values:
                if not _takes(received, value):
                    yield f"{path}the value {value!r} is not taken by {short_text(received)}"
            return
        kind, other = _kind(sent), _kind(received)
        if _values(received) is not None or not _is_kind_taken(kind, other, received):
            yield f"{path}{short_text(sent)} is not {short_text(received)}"
        elif kind in ("integer", "number"):
            if other in ("integer", "number"):
                yield from _bound_reasons(sent, received, path)
        elif kind == "array":
            yield from self._arrays(sent, received, path, depth)
        elif kind == "object":
            yield from self._objects(sent, received, path, depth)
        elif kind == "Fd":
            yield from _kind_reasons(sent, received, path)
        elif kind == other:
            yield from _text_reasons(sent, received, path)

    def _arrays(self, sent: Schema, received: Schema, path: str, depth: int) -> Iterator[str]:
        first, wanted = sequence(sent.get("prefixItems")), sequence(received.get("prefixItems"))
        yield from _range_reasons(_size_range(sent, is_sender=True), _size_range(received), "length", path)
        names = sequence(extension(sent).get("fields"))
        offset = len(first) - len(names)
        most = _size_range(sent, is_sender=True)[1]
        for place in range(max(len(first), len(wanted))):
            if most is not None and place >= most:
                break
            where = f"{path}{names[place - offset]}: " if names and place >= offset else f"{path}[{place}]: "
            item = _item_at(sent, first, place)
            yield from self.walk(item, _item_at(received, wanted, place), where, depth)
        if most is None or most > max(len(first), len(wanted)):
            rest, target = mapping(sent.get("items")), mapping(received.get("items"))
            yield from self.walk(rest, target, f"{path}items: ", depth)

    def _objects(self, sent: Schema, received: Schema, path: str, depth: int) -> Iterator[str]:
        fields, wanted = mapping(sent.get("properties")), mapping(received.get("properties"))
        is_struct, is_wanted_struct = "properties" in sent, "properties" in received
        certain, required = sequence(sent.get("required")), sequence(received.get("required"))
        if is_wanted_struct and not is_struct:
            yield f"{path}was a map of any keys, is {short_text(received)}"
            return
        if is_struct and is_wanted_struct:
            for name in required:
                if name not in fields:
                    yield f"{path}{name}: must be given, and is not sent"
                elif name not in certain:
                    yield f"{path}{name}: must be given, and may be left out by the sender"
            for name, schema in fields.items():
                if name in wanted:
                    yield from self.walk(mapping(schema), mapping(wanted[name]), f"{path}{name}: ", depth)
                elif received.get("additionalProperties") is False:
                    yield f"{path}{name}: is not known, and unknown fields are forbidden"
                elif self._sender.holds_attached(mapping(schema)):
                    yield f"{path}{name}: is not known, and descriptors and buffers are not ignored"
            return
        yield from self._maps(sent, received, path, depth)

    def _maps(self, sent: Schema, received: Schema, path: str, depth: int) -> Iterator[str]:
        fields = mapping(sent.get("properties"))
        text: Schema = {"type": "string"}
        keys = extension(sent).get("keys", {**text, **mapping(sent.get("propertyNames"))})
        wanted = extension(received).get("keys", {**text, **mapping(received.get("propertyNames"))})
        sent_keys: Schema = {"enum": list(fields)} if fields else mapping(keys)
        yield from self.walk(sent_keys, mapping(wanted), f"{path}keys: ", depth)
        target = mapping(received.get("additionalProperties"))
        if "properties" in sent:
            for name, schema in fields.items():
                yield from self.walk(mapping(schema), target, f"{path}{name}: ", depth)
            size: tuple[int, int | None] = (len(sequence(sent.get("required"))), len(fields))
        else:
            yield from self.walk(mapping(sent.get("additionalProperties")), target, f"{path}values: ", depth)
            size = (_whole(sent.get("minProperties")) or 0, _whole(sent.get("maxProperties")))
        limits = (_whole(received.get("minProperties")) or 0, _whole(received.get("maxProperties")))
        yield from _range_reasons(size, limits, "size", path)


def _is_any(schema: Schema) -> bool:
    return not any(key not in _SILENT for key in schema) and not _is_opaque(schema)


def _is_opaque(schema: Schema) -> bool:
    """Say whether a schema stands for a type that has none, or is of a form that msgspec does not write."""
    if set(schema) <= _SILENT:
        return str(schema.get("description", "")).startswith("no JSON Schema")
    if descriptor_kinds(schema) is not None:
        return False
    others = schema.get("additionalProperties")
    is_mixed = bool(others) if "properties" in schema else others is False
    is_typed = isinstance(schema.get("type"), str | list) or any(key in schema for key in ("anyOf", "enum", "const"))
    return not is_typed or is_mixed


def _values(schema: Schema) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    return sequence(schema["enum"]) if "enum" in schema else None


def _kind(schema: Schema) -> str:
    if descriptor_kinds(schema) is not None:
        return "Fd"
    kind = str(schema.get("type"))
    return string_kind(schema) if kind == "string" else kind


def _is_kind_taken(kind: str, other: str, received: Schema) -> bool:
    if kind == other:
        return True
    if other == "str":
        has_bounds = any(key in received for key in ("minLength", "maxLength", "pattern", "format"))
        return kind in _AS_TEXT and not has_bounds
    if other == "Buffer":
        return kind == "bytes"  # small ones travel in the same way; a Buffer may come as memory instead
    has_no_bounds = not any(key in received for key in ("minimum", "maximum", "multipleOf"))
    return (kind, other) == ("integer", "number") or ((kind, other) == ("integer", "Decimal") and has_no_bounds)


def _takes(schema: Schema, value: Any) -> bool:
    """Say whether a type takes one value of a literal or an enumeration."""
    values = _values(schema)
    if values is not None:
        return any(type(v) is type(value) and v == value for v in values)
    kind = _kind(schema)
    if isinstance(value, str):
        # A pattern is not run here: it is the other side's, and may take for ever.
        size = (len(value), len(value))
        return kind == "str" and not {"pattern", "format"} & set(schema) and _is_within(size, _length_range(schema))
    if value is None:
        return kind == "null"
    if isinstance(value, bool):
        return kind == "boolean"
    if not isinstance(value, int) or kind not in ("integer", "number"):
        return False
    return not list(_bound_reasons({"type": "integer", "minimum": value, "maximum": value}, schema, ""))


def _bound_reasons(sent: Schema, received: Schema, path: str) -> Iterator[str]:
    for key, strict, sign in (("minimum", "exclusiveMinimum", 1), ("maximum", "exclusiveMaximum", -1)):
        limit = _tightest(received, key, strict, sign)
        if limit is None:
            continue
        own = _tightest(sent, key, strict, sign)
        if own is None or own < limit:
            words = {(1, False): "at least", (1, True): "above", (-1, False): "at most", (-1, True): "below"}
            yield f"{path}must be {words[sign, limit[1]]} {sign * limit[0]}"
    step, own_step = _number(received.get("multipleOf")), _number(sent.get("multipleOf"))
    if step is not None and step != own_step:
        is_point = sent.get("minimum") is not None and sent.get("minimum") == sent.get("maximum")
        is_whole = is_point or (own_step is not None and _is_multiple(own_step, step))
        if not is_whole or (is_point and not _is_multiple(sent["minimum"], step)):
            yield f"{path}must be a multiple of {step:g}"


def _tightest(schema: Schema, key: str, strict: str, sign: int) -> tuple[float, bool] | None:
    """Return a bound so that the tighter one is the greater: the number, negated if upper; whether it is outside."""
    bounds = (_number(schema.get(key)), False), (_number(schema.get(strict)), True)
    return max(((sign * bound, is_out) for bound, is_out in bounds if bound is not None), default=None)


def _is_multiple(value: float, step: float) -> bool:
    return step != 0 and value % step == 0


def _number(value: Any) -> float | int | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def _length_range(schema: Schema) -> tuple[int, int | None]:
    added = extension(schema) if schema.get("contentEncoding") == "base64" else {}
    if added:
        return _whole(added.get("min_length")) or 0, _whole(added.get("max_length"))
    return _whole(schema.get("minLength")) or 0, _whole(schema.get("maxLength"))


def _kind_reasons(sent: Schema, received: Schema, path: str) -> Iterator[str]:
    refused = (descriptor_kinds(sent) or frozenset()) - (descriptor_kinds(received) or frozenset())
    if refused:
        yield f"{path}a descriptor of kind {' or '.join(sorted(refused))} is not taken by {short_text(received)}"


def _text_reasons(sent: Schema, received: Schema, path: str) -> Iterator[str]:
    yield from _range_reasons(_length_range(sent), _length_range(received), "length", path)
    if "pattern" in received and received["pattern"] != sent.get("pattern"):
        yield f"{path}must match the pattern {received['pattern']!r}"
    zone, own_zone = _zone(received), _zone(sent)
    if zone is not None and zone != own_zone:
        yield f"{path}must {'have a' if zone else 'not have a'} time zone"
    if _kind(received) == "str" and "format" in received and received["format"] != sent.get("format"):
        yield f"{path}must have the format {received['format']!r}"


def _zone(schema: Schema) -> bool | None:
    zone = extension(schema).get("tz", {"date-time": True, "time": True}.get(str(schema.get("format"))))
    return zone if isinstance(zone, bool) else None


def _size_range(schema: Schema, *, is_sender: bool = False) -> tuple[int, int | None]:
    most = _whole(schema.get("maxItems"))
    is_closed = schema.get("items") is False or (is_sender and "prefixItems" in schema and "items" not in schema)
    if most is None and is_closed:
        most = len(sequence(schema.get("prefixItems")))  # a struct laid out as an array sends its fields and no more
    return _whole(schema.get("minItems")) or 0, most


def _item_at(schema: Schema, first: list[Any], place: int) -> Schema:
    return mapping(first[place]) if place < len(first) else mapping(schema.get("items"))


def _is_within(size: tuple[int, int | None], limits: tuple[int, int | None]) -> bool:
    return not list(_range_reasons(size, limits, "", ""))


def _range_reasons(size: tuple[int, int | None], limits: tuple[int, int | None], what: str, path: str) -> Iterator[str]:
    if size[0] < limits[0]:
        yield f"{path}{what} must be at least {limits[0]}, and may be {size[0]}"
    if limits[1] is not None and (size[1] is None or size[1] > limits[1]):
        yield f"{path}{what} must be at most {limits[1]}, and may be {'any' if size[1] is None else size[1]}"
