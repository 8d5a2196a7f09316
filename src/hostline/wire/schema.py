"""The schema of a method, read from its signature: how its arguments are decoded, checked and described.

For each function two msgspec structs are made whose fields are the parameters: one laid out as an array for
arguments by position, one as a map for arguments by name. So a whole argument list is decoded and checked in one
call, before the handler runs, and a wrong one is named. JSON Schema comes from msgspec as well.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from hostline.errors import InvalidArgumentError, RemoteProtocolError
from hostline.wire.budget import check_budget

__all__ = ["Parameter", "Signature", "is_open_ended", "json_schemas"]

_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_ARRAY_PATH: Final = re.compile(r"at `\$\[(\d+)\]([^`]*)`")
_MAP_PATH: Final = re.compile(r"at `\$\.([^`]*)`")
_GOT_LENGTH: Final = re.compile(r"`array` of .*length.*, got (?:length )?(\d+)")


class Parameter(msgspec.Struct, frozen=True):
    """Describe one parameter of a method."""

    name: str
    annotation: Any
    is_required: bool
    is_positional: bool
    is_named: bool


class Signature:
    """Decode and describe the arguments and the result of one function.

    Args:
        function: The handler, fully annotated.
        injected: Types of parameters that the server fills in and the caller never sends.

    Attributes:
        parameters: What the caller may send, in order.
        injected: Names of the parameters that the server fills in, by their type.
        returns: The annotated result type.

    Raises:
        TypeError: A parameter lacks an annotation, is variadic, or has a type that msgspec cannot decode.
    """

    def __init__(self, function: Callable[..., Any], injected: tuple[type, ...] = ()) -> None:
        name = getattr(function, "__qualname__", repr(function))
        self.parameters: list[Parameter] = []
        self.injected: dict[type, str] = {}
        try:
            hints = typing.get_type_hints(function, include_extras=True)
        except NameError as error:
            raise TypeError(f"method {name}: annotation cannot be resolved: {error}") from error
        for parameter in inspect.signature(function).parameters.values():
            self._add(name, parameter, hints, injected)
        self.returns: Any = hints.get("return", Any)
        self._build(name)

    def _add(self, owner: str, parameter: inspect.Parameter, hints: dict[str, Any], injected: tuple[type, ...]) -> None:
        where = f"method {owner}: parameter {parameter.name!r}"
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise TypeError(f"{where} is variadic; name each argument, or take a list or dict")
        if parameter.name not in hints:
            raise TypeError(f"{where} has no annotation; give its type, or typing.Any")
        annotation = hints[parameter.name]
        if annotation in injected:
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                raise TypeError(f"{where} is filled in by name; it cannot be positional-only")
            self.injected[annotation] = parameter.name
            return
        self.parameters.append(
            Parameter(
                name=parameter.name,
                annotation=annotation,
                is_required=parameter.default is inspect.Parameter.empty,
                is_positional=parameter.kind in _POSITIONAL and not self.injected,
                is_named=parameter.kind is not inspect.Parameter.POSITIONAL_ONLY,
            )
        )

    def _build(self, owner: str) -> None:
        positional = [p for p in self.parameters if p.is_positional]
        named = [p for p in self.parameters if p.is_named]
        self._positional = tuple(p.name for p in positional)
        self._required_named_only = tuple(p.name for p in self.parameters if p.is_required and not p.is_positional)
        self._is_open_ended = any(is_open_ended(p.annotation) for p in self.parameters)
        try:
            by_position = msgspec.defstruct(
                "Arguments", _fields(positional), array_like=True, forbid_unknown_fields=True
            )
            by_name = msgspec.defstruct(
                "Arguments", _fields(named, all_optional=True), kw_only=True, forbid_unknown_fields=True
            )
            self._array = msgspec.msgpack.Decoder(by_position)
            self._map = msgspec.msgpack.Decoder(by_name)
            if self.returns is not Any:
                msgspec.msgpack.Decoder(self.returns)
        except TypeError as error:
            raise TypeError(f"method {owner}: {error}") from error

    def decode(self, payload: bytes, is_named: bool = False) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of one call, checked against their types.

        Args:
            payload: The arguments as `wire.codec.split_call` returns them.
            is_named: Whether the payload holds named arguments as well.

        Returns:
            Positional arguments and keyword arguments for the function.

        Raises:
            InvalidArgumentError: An argument is missing, unknown, given twice or of the wrong type; the text
                names it, down to the field inside.
        """
        try:
            if self._is_open_ended:
                check_budget(payload)
            if is_named:
                return self._decode_named(payload)
            values = msgspec.structs.astuple(self._array.decode(payload))
        except msgspec.ValidationError as error:
            raise InvalidArgumentError(self._explain(str(error))) from error
        except InvalidArgumentError:
            raise
        except (RemoteProtocolError, msgspec.DecodeError, RecursionError, ValueError) as error:
            raise InvalidArgumentError(f"arguments cannot be decoded: {error}") from error
        if self._required_named_only:
            raise InvalidArgumentError(f"argument `{self._required_named_only[0]}` is missing: pass it by name")
        while values and values[-1] is UNSET:
            values = values[:-1]
        return values, {}

    def _decode_named(self, payload: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        pieces, named = _mixed_decoder.decode(payload)
        if len(pieces) > len(self._positional):
            raise InvalidArgumentError(self._too_many(len(pieces)))
        given = dict(zip(self._positional, pieces, strict=False))
        for name in named:
            if name in given:
                raise InvalidArgumentError(f"argument `{name}` is given twice, by position and by name")
        positional_only = [p.name for p in self.parameters if not p.is_named]
        for name in positional_only:
            if name in named:
                raise InvalidArgumentError(f"argument `{name}` is taken by position only")
        # Positional-only arguments are decoded by place, everything else by name.
        head = self._decode_head(pieces[: len(positional_only)])
        rest = {name: raw for name, raw in given.items() if name not in positional_only} | named
        decoded = self._map.decode(msgspec.msgpack.encode(rest))
        keywords = {p.name: v for p in self.parameters if p.is_named and (v := getattr(decoded, p.name)) is not UNSET}
        self._require(len(head), keywords)
        return head, keywords

    def _decode_head(self, pieces: list[msgspec.Raw]) -> tuple[Any, ...]:
        values = []
        for parameter, raw in zip(self.parameters, pieces, strict=False):
            try:
                values.append(msgspec.msgpack.decode(raw, type=parameter.annotation))
            except msgspec.ValidationError as error:
                text = str(error).replace("`$", f"`{parameter.name}")
                raise InvalidArgumentError(f"argument `{parameter.name}`: {text}") from error
        return tuple(values)

    def _require(self, head_count: int, keywords: dict[str, Any]) -> None:
        for index, parameter in enumerate(self.parameters):
            is_there = index < head_count if not parameter.is_named else parameter.name in keywords
            if parameter.is_required and not is_there:
                raise InvalidArgumentError(f"argument `{parameter.name}` is missing")

    def _too_many(self, count: int) -> str:
        taken = ", ".join(self._positional) or "none"
        return f"{count} arguments by position exceed the {len(self._positional)} the method takes ({taken})"

    def _explain(self, text: str) -> str:
        """Turn msgspec's `$[0].price` or `$.order.price` into the argument's name and the field inside it."""
        if match := _ARRAY_PATH.search(text):
            index = int(match[1])
            name = self._positional[index] if index < len(self._positional) else str(index)
            return f"argument `{name}`: {text[: match.start()]}at `{name}{match[2]}`"
        if match := _MAP_PATH.search(text):
            name = re.split(r"[.\[]", match[1], maxsplit=1)[0]
            return f"argument `{name}`: {text[: match.start()]}at `{match[1]}`"
        if match := re.search(r"unknown field `([^`]*)`", text):
            known = ", ".join(p.name for p in self.parameters if p.is_named) or "none"
            return f"argument `{match[1]}` is unknown: the method takes {known}"
        if match := _GOT_LENGTH.search(text):
            return self._explain_length(int(match[1]))
        return f"arguments: {text}"

    def _explain_length(self, count: int) -> str:
        if count > len(self._positional):
            return self._too_many(count)
        required = [p.name for p in self.parameters if p.is_positional and p.is_required]
        missing = required[count] if count < len(required) else "?"
        return f"argument `{missing}` is missing"


_mixed_decoder: Final = msgspec.msgpack.Decoder(tuple[list[msgspec.Raw], dict[str, msgspec.Raw]])


def _fields(parameters: list[Parameter], all_optional: bool = False) -> list[Any]:
    fields: list[Any] = []
    for parameter in parameters:
        if parameter.is_required and not all_optional:
            fields.append((parameter.name, parameter.annotation))
        else:
            # UNSET instead of the default: the function itself fills it in, so a default of any kind works.
            fields.append((parameter.name, typing.Union[parameter.annotation, UnsetType], UNSET))  # noqa: UP007 - `|` fails on strings
    return fields


def is_open_ended(annotation: Any, _seen: frozenset[Any] = frozenset()) -> bool:
    """Say whether a type lets the sender choose how many values, or how many levels, a payload has.

    Scalars and structs of scalars do not; `Any`, containers without a fixed length and types that contain
    themselves do.
    """
    if annotation in _SCALARS:
        return False
    try:
        info = msgspec.inspect.type_info(annotation)
    except TypeError:
        return True
    return _is_open(info, ())


_SCALARS: Final[frozenset[Any]] = frozenset({int, float, str, bytes, bool, None, type(None)})


def _is_open(info: msgspec.inspect.Type, above: tuple[type, ...]) -> bool:
    inspect_ = msgspec.inspect
    if isinstance(info, inspect_.UnionType):
        return any(_is_open(t, above) for t in info.types)
    if isinstance(
        info, (inspect_.AnyType, inspect_.RawType, inspect_.CollectionType, inspect_.DictType, inspect_.CustomType)
    ):
        return not isinstance(info, inspect_.CustomType)
    if isinstance(info, inspect_.TupleType):
        return any(_is_open(t, above) for t in info.item_types)
    cls = getattr(info, "cls", None)
    fields = getattr(info, "fields", None)
    if cls is None or fields is None:
        return False
    if cls in above:
        return True
    return any(_is_open(field.type, (*above, cls)) for field in fields)


def json_schemas(types_: list[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the JSON Schema of each type, and the definitions they refer to by `#/$defs/NAME`."""
    schemas, components = msgspec.json.schema_components(types_, ref_template="#/$defs/{name}")
    return list(schemas), dict(components)
