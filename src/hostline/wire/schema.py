"""The schema of a method, read from its signature: how its arguments are decoded, checked and described.

For each function two msgspec structs are made whose fields are the parameters: one laid out as an array for
arguments by position, one as a map for arguments by name. So a whole argument list is decoded and checked in one
call, before the handler runs, and a wrong one is named. JSON Schema comes from msgspec as well.

More than 400 lines, because what a signature means for decoding, for errors and for bounds must not drift apart.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from hostline.errors import InvalidArgumentError, RemoteProtocolError
from hostline.wire.attached import attached_schema, decoder_for, in_place_type, is_attached, settled
from hostline.wire.budget import SHALLOW, Extent, check_budget

__all__ = [
    "Parameter",
    "Signature",
    "check_decodable",
    "extent_of",
    "holds_attached",
    "item_type",
    "json_schemas",
    "types_inside",
]

_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_PATH: Final = re.compile(r" - at ((?:`key` in )*)`\$(?:\[(\d+)\]|\.(\w+))([^`]*)`\Z")
_GOT_LENGTH: Final = re.compile(r"`array` of .*length.*, got (?:length )?(\d+)")


class Parameter(msgspec.Struct, frozen=True):
    """Describe one parameter of a method."""

    name: str
    annotation: Any
    is_required: bool
    is_positional: bool
    is_named: bool
    is_stream: bool = False


# What a stream is written as: something to be iterated, by `for` in a `def` and by `async for` in an `async def`.
_BLOCKING_STREAMS: Final = (collections.abc.Iterator, collections.abc.Generator)
_ASYNC_STREAMS: Final = (collections.abc.AsyncIterator, collections.abc.AsyncGenerator, collections.abc.AsyncIterable)


def item_type(annotation: Any) -> tuple[Any, bool] | None:
    """Return the type of a stream's items and whether it is asynchronous; None for what is no stream.

    `Iterator[T]`, `Generator[T, None, None]`, `AsyncIterator[T]`, `AsyncIterable[T]` and `AsyncGenerator[T, None]` are
    streams; without a type in brackets their items are of any type.

    Args:
        annotation: A parameter's or a result's.
    """
    origin = typing.get_origin(annotation) or annotation
    if origin not in _BLOCKING_STREAMS and origin not in _ASYNC_STREAMS:
        return None
    return next(iter(typing.get_args(annotation)), Any), origin in _ASYNC_STREAMS


class Signature:
    """Decode and describe the arguments and the result of one function.

    Args:
        function: The handler, fully annotated.
        injected: Types of parameters that the server fills in and the caller never sends.

    Attributes:
        parameters: What the caller may send, in order.
        injected: Names of the parameters that the server fills in, by their type.
        returns: The annotated result type; of a stream, that of its items.
        streams_result: Whether the result is a stream.
        stream: The parameter that is one, or None; its annotation is that of its items.
        takes_attached: Whether an argument may hold descriptors or buffers.
        gives_attached: Whether the result may.

    Raises:
        TypeError: A parameter lacks an annotation, is variadic, or has a type that msgspec cannot decode.
    """

    def __init__(self, function: Callable[..., Any], injected: tuple[type, ...] = ()) -> None:
        name = getattr(function, "__qualname__", repr(function))
        self.parameters: list[Parameter] = []
        self.is_stream_async = False  # whether the parameter that is a stream is for `async for`
        self.injected: dict[type, str] = {}
        self._injected_at: dict[str, int] = {}
        hints = _hints(name, function)
        for parameter in inspect.signature(function).parameters.values():
            self._add(name, parameter, hints, injected)
        result = item_type(hints.get("return", Any))
        self.streams_result = result is not None
        self.returns: Any = hints.get("return", Any) if result is None else result[0]
        self.stream: Parameter | None = next((p for p in self.parameters if p.is_stream), None)
        self._build(name)

    def _add(self, owner: str, parameter: inspect.Parameter, hints: dict[str, Any], injected: tuple[type, ...]) -> None:
        where = f"method {owner}: parameter {parameter.name!r}"
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise TypeError(f"{where} is variadic; name each argument, or take a list or dict")
        if parameter.name not in hints:
            raise TypeError(f"{where} has no annotation; give its type, or typing.Any")
        annotation = hints[parameter.name]
        if (filled := _injected_type(where, annotation, injected)) is not None:
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                raise TypeError(f"{where} is filled in by name; it cannot be positional-only")
            if filled in self.injected:
                raise TypeError(f"{where} is a second {filled.__name__}; {self.injected[filled]!r} is one already")
            self.injected[filled] = parameter.name
            self._injected_at[parameter.name] = sum(p.is_positional for p in self.parameters) + len(self._injected_at)
            return
        stream = item_type(annotation)
        if stream is not None:
            annotation, self.is_stream_async = stream
            if any(p.is_stream for p in self.parameters):
                raise TypeError(f"{where} is a second stream; a call has one at most")
            if parameter.default is not inspect.Parameter.empty:
                raise TypeError(f"{where} is a stream; it cannot have a default")
        try:
            check_decodable(annotation)
        except TypeError as error:
            raise TypeError(f"{where}: {error}") from error
        self.parameters.append(
            Parameter(
                name=parameter.name,
                annotation=annotation,
                is_required=parameter.default is inspect.Parameter.empty,
                is_positional=parameter.kind in _POSITIONAL,
                is_named=parameter.kind is not inspect.Parameter.POSITIONAL_ONLY,
                is_stream=stream is not None,
            )
        )

    def _build(self, owner: str) -> None:
        positional = [p for p in self.parameters if p.is_positional]
        named = [p for p in self.parameters if p.is_named]
        positional_only = [p for p in self.parameters if not p.is_named]
        self._positional = tuple(p.name for p in positional)
        self._positional_only = tuple(p.name for p in positional_only)
        self._required_named_only = tuple(p.name for p in self.parameters if p.is_required and not p.is_positional)
        try:
            sent = [p.annotation for p in self.parameters if not p.is_stream]
            self._extent = max((extent_of(annotation) for annotation in sent), default=Extent.FIXED)
            self._array = _decoder(_fields(positional), is_array=True)
            self._array_in_place = _in_place_decoder(positional)
            self._extent_in_place = max((extent_of(in_place_type(each)) for each in sent), default=Extent.FIXED)
            self._head = _decoder(_fields(positional_only, all_optional=True), is_array=True)
            self._map = _decoder(_fields(named, all_optional=True), is_array=False)
            items = [] if self.stream is None else [self.stream.annotation]
            for annotation in (self.returns, *items):
                if annotation is not Any:
                    decoder_for(annotation)
            self.takes_attached = any(holds_attached(p.annotation) for p in self.parameters)
            self.gives_attached = holds_attached(self.returns)
        except TypeError as error:
            raise TypeError(f"method {owner}: {error}") from error

    def decode(self, payload: bytes | memoryview, is_named: bool = False) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of one call, checked against their types.

        Args:
            payload: The arguments as `wire.codec.split_call` returns them.
            is_named: Whether the payload holds named arguments as well.

        Returns:
            Positional arguments and keyword arguments for the function.

        Raises:
            InvalidArgumentError: An argument is missing, unknown, given twice or of the wrong type; the text
                names it, down to the field inside.
            Exception: Whatever a type's own check raises beside ValueError and TypeError, which refuse the value.
        """
        try:
            if type(payload) is memoryview and not is_named and (values := self._decode_in_place(payload)) is not None:
                return values, {}
            if self._extent or len(payload) > SHALLOW:
                check_budget(payload, self._extent)
            if is_named:
                return self._decode_named(payload)
            values = _without_unset(self._array.decode(payload))
        except msgspec.ValidationError as error:
            raise InvalidArgumentError(self._explain(str(error))) from error
        except InvalidArgumentError:
            raise
        except (RemoteProtocolError, msgspec.DecodeError, RecursionError, ValueError, TypeError) as error:
            raise InvalidArgumentError(f"arguments cannot be decoded: {error}") from error
        if self._required_named_only:
            raise InvalidArgumentError(f"argument `{self._required_named_only[0]}` is missing: pass it by name")
        return values, {}

    def inject(
        self, name: str, value: Any, args: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put the value of an injected parameter among the arguments that `decode` returned.

        It takes its place between the positional ones if the caller's arguments reach beyond it, so a caller counts as
        if it were not there.
        """
        index = self._injected_at[name]
        if len(args) > index:
            return (*args[:index], value, *args[index:]), keywords
        return args, {**keywords, name: value}

    def place_stream(
        self, items: Any, args: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put the items of the argument that is a stream in its place, where the caller sent None."""
        if self.stream is None:
            return args, keywords
        if self.stream.name in keywords:
            return args, {**keywords, self.stream.name: items}
        index = self._positional.index(self.stream.name)
        return (*args[:index], items, *args[index + 1 :]), keywords

    def _decode_in_place(self, payload: memoryview) -> tuple[Any, ...] | None:
        """Return the arguments of a large call, buffers where they are, or None: they are for the usual decoder."""
        if self._array_in_place is None or self._required_named_only:
            return None
        check_budget(payload, self._extent_in_place)
        try:
            values = self._array_in_place.decode(payload)
        except msgspec.ValidationError:
            return None  # what travels beside the frame, or a violation
        return tuple([settled(value, payload) for value in _without_unset(values)])

    def _decode_named(self, payload: bytes | memoryview) -> tuple[tuple[Any, ...], dict[str, Any]]:
        pieces, named = _split_mixed(payload)
        if len(pieces) > len(self._positional):
            raise InvalidArgumentError(self._too_many(len(pieces)))
        for name in named:
            if name in self._positional[: len(pieces)]:
                raise InvalidArgumentError(f"argument `{name}` is given twice, by position and by name")
            if name in self._positional_only:
                raise InvalidArgumentError(f"argument `{name}` is taken by position only")
        # Positional-only arguments are decoded by place, everything else by name.
        count = len(self._positional_only)
        head = _without_unset(self._head.decode(msgspec.msgpack.encode(pieces[:count])))
        rest = dict(zip(self._positional[count:], pieces[count:], strict=False)) | named
        decoded = self._map.decode(msgspec.msgpack.encode(rest))
        keywords = {p.name: v for p in self.parameters if p.is_named and (v := getattr(decoded, p.name)) is not UNSET}
        self._require(len(head), keywords)
        return head, keywords

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
        if match := _PATH.search(text):
            keys, index, name, inside = match.groups()
            if index is not None:
                name = self._positional[int(index)] if int(index) < len(self._positional) else index
            return f"argument `{name}`: {text[: match.start()]} - at {keys}`{name}{inside}`"
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


# The bounds keep a megabyte of one-byte arguments from becoming a million objects before they are counted.
_Pieces = Annotated[list[msgspec.Raw], msgspec.Meta(max_length=1000)]
_Named = Annotated[dict[str, msgspec.Raw], msgspec.Meta(max_length=1000)]
_mixed_decoder: Final = msgspec.msgpack.Decoder(tuple[_Pieces, msgspec.Raw])
_named_decoder: Final = msgspec.msgpack.Decoder(_Named)


def _split_mixed(payload: bytes | memoryview) -> tuple[list[msgspec.Raw], dict[str, msgspec.Raw]]:
    """Take the array of arguments by position and the map of those by name apart, each argument still encoded."""
    try:
        pieces, rest = _mixed_decoder.decode(payload)
        named = _named_decoder.decode(rest)
    except msgspec.DecodeError as error:
        raise InvalidArgumentError(f"arguments are not an array of an array and a map: {error}") from error
    if len(named) != (count := _map_count(bytes(rest))):
        raise InvalidArgumentError(f"an argument is given twice: {count} by name, {len(named)} of them different")
    return pieces, named


def _map_count(encoded: bytes) -> int:
    """Return how many pairs an encoded map says it has."""
    if encoded[0] <= 0x8F:
        return encoded[0] & 0x0F
    return int.from_bytes(encoded[1 : 3 if encoded[0] == 0xDE else 5], "big")


def _hints(owner: str, function: Callable[..., Any]) -> dict[str, Any]:
    """Return the resolved annotations of whatever can be called."""
    target: Any = function
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target):
        target = type(target).__call__
    try:
        return typing.get_type_hints(target, include_extras=True)
    except NameError as error:
        hint = "a type that an annotation names must be known at the module's top level"
        raise TypeError(f"method {owner}: annotation cannot be resolved: {error}; {hint}") from error
    except (AttributeError, SyntaxError, TypeError) as error:
        raise TypeError(f"method {owner}: annotation cannot be resolved: {error}") from error


def _injected_type(where: str, annotation: Any, injected: tuple[type, ...]) -> type | None:
    """Return the type that the server fills in for an annotation, or None; `T | None` counts as `T`."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return next((cls for cls in injected if annotation is cls), None)
    members = [member for member in typing.get_args(annotation) if member is not types.NoneType]
    found = [cls for cls in injected if cls in members]
    if found and len(members) > 1:
        raise TypeError(f"{where} is filled in by the server: it can be {found[0].__name__} and nothing beside it")
    return found[0] if found else None


def check_decodable(annotation: Any) -> None:
    """Refuse a type whose values cannot be read from the wire: it would be accepted here, and then never match.

    Raises:
        TypeError: Names the type, which may be one inside.
    """
    for info in _walk_types(msgspec.inspect.type_info(annotation)):
        if isinstance(info, msgspec.inspect.CustomType) and not is_attached(info.cls):
            name = f"{info.cls.__module__}.{info.cls.__qualname__}"
            raise TypeError(f"type {name} is not supported: nothing can be decoded into it")


def holds_attached(annotation: Any) -> bool:
    """Say whether a type may hold values that travel beside the payload; untyped values hold none."""
    return any(
        isinstance(info, msgspec.inspect.CustomType) and is_attached(info.cls) for info in types_inside(annotation)
    )


def types_inside(annotation: Any) -> list[msgspec.inspect.Type]:
    """Return what msgspec knows of a type and of every type inside it, each once; nothing of what it does not know."""
    try:
        return _walk_types(msgspec.inspect.type_info(annotation))
    except TypeError:
        return []


def _decoder(fields: list[Any], *, is_array: bool) -> msgspec.msgpack.Decoder[Any]:
    return decoder_for(
        msgspec.defstruct("Arguments", fields, array_like=is_array, kw_only=not is_array, forbid_unknown_fields=True)
    )


def _in_place_decoder(parameters: list[Parameter]) -> msgspec.msgpack.Decoder[Any] | None:
    """Return a decoder that leaves buffers where they are in a large frame, for parameters of which any may be one."""
    changed = [msgspec.structs.replace(p, annotation=in_place_type(p.annotation)) for p in parameters]
    if all(new.annotation is old.annotation for new, old in zip(changed, parameters, strict=True)):
        return None
    return _decoder(_fields(changed), is_array=True)


def _without_unset(arguments: Any) -> tuple[Any, ...]:
    """Return the values of an array of arguments up to the first that was not given."""
    values = msgspec.structs.astuple(arguments)
    while values and values[-1] is UNSET:
        values = values[:-1]
    return values


def _fields(parameters: list[Parameter], all_optional: bool = False) -> list[Any]:
    fields: list[Any] = []
    for parameter in parameters:
        if parameter.is_stream:
            fields.append((parameter.name, None, UNSET) if all_optional else (parameter.name, None))
        elif parameter.is_required and not all_optional:
            fields.append((parameter.name, parameter.annotation))
        else:
            # UNSET instead of the default: the function itself fills it in, so a default of any kind works.
            fields.append((parameter.name, typing.Union[parameter.annotation, UnsetType], UNSET))  # noqa: UP007 - `|` fails on strings
    return fields


def extent_of(annotation: Any) -> Extent:
    """Return how much of a payload's form a type leaves to the sender.

    Scalars and structs of scalars leave nothing; containers without a fixed length leave how many values there are;
    `Any` and types that contain themselves leave the levels as well.
    """
    try:
        info = msgspec.inspect.type_info(annotation)
    except TypeError:
        return Extent.DEEP
    return _extent(info, (), set())


def _extent(info: msgspec.inspect.Type, above: tuple[type, ...], done: set[type]) -> Extent:
    if isinstance(info, (msgspec.inspect.AnyType, msgspec.inspect.RawType, msgspec.inspect.CustomType)):
        return Extent.DEEP
    cls = getattr(info, "cls", None)
    if cls in above:
        return Extent.DEEP
    if cls in done:
        return Extent.FIXED  # counted where it was met first
    least = Extent.LONG if isinstance(info, _CONTAINERS) else Extent.FIXED
    inside = above if cls is None else (*above, cls)
    extent = max((_extent(part, inside, done) for part in _parts(info)), default=least)
    if cls is not None:
        done.add(cls)
    return max(extent, least)


_CONTAINERS: Final = (msgspec.inspect.CollectionType, msgspec.inspect.DictType)


def _parts(info: msgspec.inspect.Type) -> list[msgspec.inspect.Type]:
    """Return the types directly inside a type."""
    if isinstance(info, msgspec.inspect.Metadata):
        return [info.type]
    if isinstance(info, msgspec.inspect.UnionType):
        return list(info.types)
    if isinstance(info, msgspec.inspect.CollectionType):
        return [info.item_type]
    if isinstance(info, msgspec.inspect.DictType):
        return [info.key_type, info.value_type]
    if isinstance(info, msgspec.inspect.TupleType):
        return list(info.item_types)
    return [field.type for field in getattr(info, "fields", ())]


def _walk_types(info: msgspec.inspect.Type) -> list[msgspec.inspect.Type]:
    """Return a type and every type inside it, each once."""
    found: dict[int, msgspec.inspect.Type] = {}
    waiting = [info]
    while waiting:
        one = waiting.pop()
        if id(one) not in found:
            found[id(one)] = one
            waiting += _parts(one)
    return list(found.values())


def json_schemas(types_: list[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the JSON Schema of each type, and the definitions they refer to by `#/$defs/NAME`."""
    schemas, components = msgspec.json.schema_components(
        types_, schema_hook=attached_schema, ref_template="#/$defs/{name}"
    )
    return list(schemas), dict(components)
