"""Whether a new version of a service breaks old callers: every rule, and its truth for values on the wire."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.rpc.rich import rich
from tests.rpc.wire_types import (
    LEAVES,
    Cat,
    Colour,
    Colours,
    Dog,
    Item,
    ItemMore,
    ItemNeeds,
    ItemStrict,
    Pair,
    PairMore,
    Span,
    types_and_values,
)

from hostline.rpc.builtin import ServiceDescription, describe_service
from hostline.rpc.contract.compatibility import Change, compare
from hostline.rpc.contract.extensions import extended_schemas
from hostline.rpc.contract.inclusion import Types, differences
from hostline.rpc.service import ServiceBase


class OutOfStock(Exception):
    """No tea."""


def described(function: Callable[..., Any], **options: Any) -> ServiceDescription:
    service = ServiceBase("shop")
    service.method(name="m", **options)(function)
    return describe_service(service)


def changes(old: Any, new: Any, **options: Any) -> list[Change]:
    return compare(described(old), described(new, **options))


def verdicts(old: Any, new: Any) -> list[tuple[bool, str]]:
    return [(change.is_breaking, change.what) for change in changes(old, new)]


def f(a: int, b: int = 1) -> int:
    return a


# --- methods and parameters ----------------------------------------------------------------------------


def test_a_service_is_compatible_with_itself() -> None:
    assert compare(describe_service(rich), describe_service(rich)) == []


def test_removed_and_added_methods() -> None:
    one, two = ServiceBase("shop"), ServiceBase("shop")
    one.method(name="a")(f)
    two.method(name="b")(f)
    found = compare(describe_service(one), describe_service(two))
    assert [(c.is_breaking, c.method, c.what) for c in found] == [
        (True, "a", "method removed"),
        (False, "b", "method added"),
    ]


def required(a: int, c: int, b: int = 1) -> int: ...  # type: ignore[empty-body]
def optional(a: int, b: int = 1, c: int = 1) -> int: ...  # type: ignore[empty-body]
def keyword(a: int, b: int = 1, *, c: int) -> int: ...  # type: ignore[empty-body]
def removed(a: int) -> int: ...  # type: ignore[empty-body]
def renamed(a: int, c: int = 1) -> int: ...  # type: ignore[empty-body]
def swapped(b: int, a: int) -> int: ...  # type: ignore[empty-body]
def by_place(a: int, b: int = 1, /) -> int: ...  # type: ignore[empty-body]
def by_name(a: int, *, b: int = 1) -> int: ...  # type: ignore[empty-body]
def other_default(a: int, b: int = 2) -> int: ...  # type: ignore[empty-body]
def all_required(a: int, b: int) -> int: ...  # type: ignore[empty-body]
def place_renamed(x: int, y: int = 1, /) -> int: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            f,
            required,
            [(True, "parameter b moved from place 2 to 3"), (True, "required parameter c added")],
        ),
        (f, optional, [(False, "optional parameter c added")]),
        (f, keyword, [(True, "required parameter c added")]),
        (f, removed, [(True, "parameter b removed")]),
        (f, renamed, [(True, "parameter b renamed to c")]),
        (f, by_place, [(True, f"parameter {n} is taken by its place only") for n in "ab"]),
        (by_place, f, [(False, f"parameter {n} is taken by its name too") for n in "ab"]),
        (f, by_name, [(True, "parameter b has no place")]),
        (by_name, f, [(False, "parameter b is taken by its place too")]),
        (f, other_default, [(False, "default of b is 2, was 1")]),
        (f, all_required, [(True, "parameter b must be given")]),
        (all_required, f, [(False, "parameter b may be left out")]),
        (by_place, place_renamed, [(False, "parameter a is called x"), (False, "parameter b is called y")]),
    ],
)
def test_what_happens_to_parameters(old: Any, new: Any, expected: list[tuple[bool, str]]) -> None:
    assert verdicts(old, new) == expected


def test_parameters_that_change_places_are_told_of() -> None:
    found = verdicts(all_required, swapped)
    assert (True, "parameter a moved from place 1 to 2") in found
    assert (True, "parameter b moved from place 2 to 1") in found


def test_promises() -> None:
    one, two = described(f, idempotent=True, raises=OutOfStock), described(f, raises=KeyError)
    assert [(c.is_breaking, c.what) for c in compare(one, two)] == [
        (True, "exception OutOfStock is no longer declared"),
        (False, "exception KeyError is declared"),
        (True, "no longer idempotent"),
    ]
    assert [(c.is_breaking, c.what) for c in compare(described(f), described(f, idempotent=True))] == [
        (False, "idempotent now")
    ]


def test_another_protocol_breaks_and_another_name_does_not() -> None:
    one, two = described(f), msgspec.structs.replace(described(f), protocol_version=99, name="store")
    assert [(c.is_breaking, c.what) for c in compare(one, two)] == [
        (True, "protocol version 1 is 99"),
        (False, "service shop is store"),
    ]


def one_in(a: int) -> int: ...  # type: ignore[empty-body]
def many_in(a: Iterator[int]) -> int: ...  # type: ignore[empty-body]
def many_texts_in(a: Iterator[str]) -> int: ...  # type: ignore[empty-body]
def many_more_in(a: Iterator[int | str]) -> int: ...  # type: ignore[empty-body]


def many_out(a: int) -> Iterator[int]:
    yield a


def many_texts_out(a: int) -> Iterator[str]:
    yield str(a)


def many_more_out(a: int) -> Iterator[int | str]:
    yield a


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (one_in, many_in, [(True, "parameter a is a stream")]),
        (many_in, one_in, [(True, "parameter a is no stream")]),
        (one_in, many_texts_in, [(True, "parameter a is a stream")]),
        (many_in, many_in, []),
        (many_in, many_more_in, [(False, "type of a widened")]),
        (many_more_in, many_in, [(True, "type of a narrowed")]),
        (many_in, many_texts_in, [(True, "type of a changed")]),
        (one_in, many_out, [(True, "result is a stream")]),
        (many_out, one_in, [(True, "result is no stream")]),
        (one_in, many_texts_out, [(True, "result is a stream")]),
        (many_out, many_out, []),
        (many_out, many_more_out, [(True, "result widened")]),
        (many_more_out, many_out, [(False, "result narrowed")]),
        (many_out, many_texts_out, [(True, "result changed")]),
    ],
)
def test_a_stream_is_another_kind_and_its_items_are_judged_as_values_are(
    old: Any, new: Any, expected: list[tuple[bool, str]]
) -> None:
    assert verdicts(old, new) == expected


# --- types -----------------------------------------------------------------------------------------------


class Tree(msgspec.Struct):
    children: list[Tree] = []
    size: int = 0


class TreeOfText(msgspec.Struct):
    children: list[TreeOfText] = []
    size: str = ""


def takes(received: Any, sent: Any) -> list[str]:
    """Return why values of one type are not taken by another."""
    (s,), sender = extended_schemas([sent])
    (r,), receiver = extended_schemas([received])
    return differences(s, Types(sender), r, Types(receiver))


WIDER = [
    (int | str, int),
    (int | None, int),
    (float, int),
    (float | str, int | str),
    (Any, dict[str, Cat]),
    (Colours, Colour),
    (str, Colour),
    (str, Literal["a", "b"]),
    (Literal["a"] | int, Literal["a", 1]),
    (ItemMore, Item),
    (Item, ItemMore),
    (ItemMore, ItemNeeds),
    (dict[str, str | int], ItemMore),
    (PairMore, Pair),
    (Pair, PairMore),
    (Span, tuple[int, int]),
    (tuple[int, ...], tuple[int, int]),
    (list[int], set[int]),
    (set[int], list[int]),
    (Cat | Dog, Cat),
    (Cat | Dog | None, Dog | None),
    (Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(gt=0, le=5)]),
    (Annotated[str, msgspec.Meta(max_length=5)], Annotated[str, msgspec.Meta(max_length=5, pattern="^a")]),
    (Annotated[int, msgspec.Meta(multiple_of=2)], Annotated[int, msgspec.Meta(multiple_of=4)]),
    (Annotated[int, msgspec.Meta(ge=1)], Literal[1, 2]),
    (datetime.datetime, Annotated[datetime.datetime, msgspec.Meta(tz=True)]),
    (str, uuid.UUID),
    (str, datetime.date),
    (decimal.Decimal, int),
    (dict[str, float], dict[str, int]),
    (dict[int | str, int], dict[int, int]),
    (dict[str, int], dict[Literal["a"], int]),
]  # fmt: skip


@pytest.mark.parametrize(("wide", "narrow"), WIDER, ids=repr)
def test_a_wider_type_takes_what_a_narrower_one_sends(wide: Any, narrow: Any) -> None:
    assert takes(wide, narrow) == []


@pytest.mark.parametrize(
    ("received", "sent", "reason"),
    [
        (int, int | str, "str is not int"),
        (int, float, "float is not int"),
        (int, bool, "bool is not int"),
        (float, bool, "bool is not float"),
        (int, Any, "was anything, is int"),
        (str, bytes, "bytes is not str"),
        (str, datetime.datetime, "datetime is not str"),
        (bytes, str, "str is not bytes"),
        (uuid.UUID, str, "str is not UUID"),
        (Colour, Colours, "the value 'blue' is not taken by one of 'red'"),
        (Colour, str, "str is not one of 'red'"),
        (Literal[1], Literal[1, 2], "the value 2 is not taken by one of 1"),
        (Literal[1], Literal["1"], "the value '1' is not taken by one of 1"),
        (ItemNeeds, Item, "count: must be given, and is not sent"),
        (ItemNeeds, ItemMore, "count: must be given, and may be left out by the sender"),
        (ItemStrict, ItemMore, "count: is not known, and unknown fields are forbidden"),
        (Item, dict[str, str], "was a map of any keys, is Item"),
        (dict[str, str], ItemMore, "count: int is not str"),
        (tuple[int, int], tuple[int, ...], "length must be at least 2, and may be 0"),
        (tuple[int, str], tuple[int, int], "[1]: int is not str"),
        (list[str], list[int], "items: int is not str"),
        (Span, tuple[int, int, int], "length must be at most 2"),
        (Cat, Cat | Dog, "type: the value 'Dog' is not taken by one of 'Cat'"),
        (Cat | None, Cat | Dog | None, "type: the value 'Dog' is not taken by one of 'Cat'"),
        (Annotated[int, msgspec.Meta(gt=0)], Annotated[int, msgspec.Meta(ge=0)], "must be above 0"),
        (Annotated[int, msgspec.Meta(le=5)], int, "must be at most 5"),
        (Annotated[int, msgspec.Meta(multiple_of=4)], Annotated[int, msgspec.Meta(multiple_of=2)], "a multiple of 4"),
        (Annotated[int, msgspec.Meta(multiple_of=4)], Literal[4, 6], "the value 6 is not taken"),
        (Annotated[str, msgspec.Meta(pattern="^a")], str, "must match the pattern '^a'"),
        (Annotated[str, msgspec.Meta(pattern="^a")], Literal["b"], "the value 'b' is not taken"),
        (Annotated[str, msgspec.Meta(max_length=1)], uuid.UUID, "UUID is not str"),
        (Annotated[bytes, msgspec.Meta(max_length=4)], Annotated[bytes, msgspec.Meta(max_length=6)], "at most 4"),
        (Annotated[datetime.datetime, msgspec.Meta(tz=True)], datetime.datetime, "must have a time zone"),
        (Annotated[datetime.datetime, msgspec.Meta(tz=False)], datetime.datetime, "must not have a time zone"),
        (dict[str, int], dict[int, int], "keys: int is not str"),
        (dict[str, int], dict[str, float], "values: float is not int"),
        (Annotated[dict[str, int], msgspec.Meta(max_length=1)], dict[str, int], "size must be at most 1"),
        (Tree, TreeOfText, "size: str is not int"),
    ],
    ids=repr,
)
def test_a_type_that_does_not_take_all_says_what_and_where(received: Any, sent: Any, reason: str) -> None:
    assert reason in "\n".join(takes(received, sent))


def test_types_that_contain_themselves_are_compared() -> None:
    assert takes(Tree, Tree) == []
    assert takes(list[Tree] | None, list[Tree]) == []


def method(argument: Any, result: Any) -> ServiceDescription:
    def handler(a: Any) -> Any: ...

    handler.__annotations__ = {"a": argument, "return": result}
    return described(handler)


def test_arguments_may_widen_and_results_may_narrow_but_not_the_other_way_round() -> None:
    narrow, wide = method(Colour, Colours), method(Colours, Colour)
    assert [(c.is_breaking, c.what) for c in compare(narrow, wide)] == [
        (False, "type of a widened"),
        (False, "result narrowed"),
    ]
    found = compare(wide, narrow)
    assert [(c.is_breaking, c.what) for c in found] == [(True, "type of a narrowed"), (True, "result widened")]
    assert found[1].reason == "callers may receive what they do not take: the value 'blue' is not taken by one of 'red'"
    assert [c.what for c in compare(method(int, int), method(str, str))] == ["type of a changed", "result changed"]


def test_a_field_that_results_gain_breaks_only_callers_that_forbid_it() -> None:
    assert not any(c.is_breaking for c in compare(method(int, Item), method(int, ItemMore)))
    assert any(c.is_breaking for c in compare(method(int, ItemStrict), method(int, ItemMore)))
    assert any(c.is_breaking for c in compare(method(int, ItemMore), method(int, ItemStrict))) is False
    assert any(c.is_breaking for c in compare(method(int, ItemNeeds), method(int, Item)))


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"type": "integer"}]},
        {"type": "object", "patternProperties": {"a": {}}},
        {"minimum": 3},
        {"description": "no JSON Schema: of its own"},
        {"type": "object", "additionalProperties": False},
        {"$ref": "#/$defs/nowhere"},
        {"$ref": "#/$defs/itself"},
        {"anyOf": 5},
    ],
)
def test_what_cannot_be_judged_is_not_called_compatible(schema: dict[str, Any]) -> None:
    types = Types({"itself": {"$ref": "#/$defs/itself"}})
    assert differences({"type": "integer"}, Types({}), schema, types)
    assert differences(schema, types, {"type": "integer"}, Types({}))


def test_malformed_schemas_are_judged_without_failing() -> None:
    odd: list[Any] = [
        {"type": 5}, {"type": ["string", 5]}, {"enum": 5}, {"properties": 5, "type": "object"}, {"$ref": 5},
        {"type": "array", "items": 5, "prefixItems": 5, "minItems": "x"}, {"type": "object", "required": 5},
        {"type": "integer", "minimum": "x", "multipleOf": 0}, {"type": "string", "pattern": 5, "x-hostline": 5},
        {"type": "string", "x-hostline": {"tz": 5, "type": []}}, {"anyOf": [5, None]}, {"enum": [{"a": []}, [1]]},
    ]  # fmt: skip
    for one in odd:
        for other in odd:
            differences(one, Types({"a": 5}), other, Types({"a": []}))


def test_types_made_to_take_for_ever_are_given_up() -> None:
    def definition(number: int) -> dict[str, Any]:
        inner = {"$ref": f"#/$defs/{number + 1}"}
        return {"anyOf": [{"type": "array", "items": inner}, {"type": "array", "items": inner, "minItems": 1}]}

    types = Types({str(number): definition(number) for number in range(60)})
    differences({"$ref": "#/$defs/0"}, types, {"$ref": "#/$defs/0"}, types)
    itself = Types({"A": {"anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/A"}]}})
    numbers = {"anyOf": [{"type": "integer"}, {"type": "number"}]}
    assert differences({"$ref": "#/$defs/A"}, itself, numbers, types)
    assert differences(numbers, types, {"$ref": "#/$defs/A"}, itself)
    nested: Any = {"type": "integer"}
    for _ in range(60):
        nested = {
            "anyOf": [{"type": "array", "items": nested}, {"type": "null"}, {"type": "array", "prefixItems": [nested]}]
        }
    assert differences(nested, types, nested, types)


# --- the truth ---------------------------------------------------------------------------------------------


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_judged_compatible_is_taken_on_the_wire(data: st.DataObject) -> None:
    sent, values = data.draw(types_and_values())
    received, _ = data.draw(types_and_values())
    assert takes(sent, sent) == [], "every type takes itself"
    if not takes(received, sent):
        msgspec.msgpack.decode(msgspec.msgpack.encode(data.draw(values)), type=received)


@pytest.mark.parametrize("number", range(len(LEAVES)))
def test_each_pair_of_plain_types_is_judged_truly(number: int) -> None:
    sent, values = LEAVES[number]
    takers = [received for received, _ in LEAVES if not takes(received, sent)]
    assert any(received is sent for received in takers)

    @settings(max_examples=15, deadline=None)
    @given(values)
    def check(value: Any) -> None:
        encoded = msgspec.msgpack.encode(value)
        for received in takers:
            msgspec.msgpack.decode(encoded, type=received)

    check()
