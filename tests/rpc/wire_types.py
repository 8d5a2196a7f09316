"""Types that a service may use, each with a strategy for its values."""

from __future__ import annotations

import datetime
import decimal
import enum
import itertools
import uuid
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from hypothesis import strategies as st


class Colour(enum.Enum):
    RED = "red"


class Colours(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Item(msgspec.Struct):
    sku: str


class ItemMore(msgspec.Struct):
    sku: str
    count: int = 1


class ItemNeeds(msgspec.Struct):
    sku: str
    count: int


class ItemStrict(msgspec.Struct, forbid_unknown_fields=True):
    sku: str


class Pair(msgspec.Struct, array_like=True):
    a: int


class PairMore(msgspec.Struct, array_like=True):
    a: int
    b: int = 1


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    name: str


class Span(NamedTuple):
    low: int
    high: int = 1


LEAVES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers(-5, 5)),
    (float, st.floats(-5, 5, allow_nan=False)),
    (bool, st.booleans()),
    (None, st.none()),
    (str, st.text("ab", max_size=3)),
    (bytes, st.binary(max_size=3)),
    (Colour, st.just(Colour.RED)),
    (Colours, st.sampled_from(Colours)),
    (Literal["red", "a"], st.sampled_from(["red", "a"])),
    (Literal[1, 2], st.sampled_from([1, 2])),
    (datetime.datetime, st.datetimes(timezones=st.none() | st.just(datetime.UTC))),
    (datetime.date, st.dates()),
    (datetime.timedelta, st.timedeltas(datetime.timedelta(-9), datetime.timedelta(9))),
    (datetime.time, st.times(timezones=st.none() | st.just(datetime.UTC))),
    (uuid.UUID, st.uuids()),
    (decimal.Decimal, st.decimals(-5, 5)),
    (Annotated[int, msgspec.Meta(ge=0)], st.integers(0, 5)),
    (Annotated[int, msgspec.Meta(gt=0, le=4)], st.integers(1, 4)),
    (Annotated[int, msgspec.Meta(multiple_of=2)], st.integers(-2, 2).map(lambda n: n * 2)),
    (Annotated[str, msgspec.Meta(max_length=2)], st.text("ab", max_size=2)),
    (Annotated[str, msgspec.Meta(min_length=1, pattern="^a")], st.just("a") | st.just("ab")),
    (Annotated[bytes, msgspec.Meta(max_length=2)], st.binary(max_size=2)),
    (Item, st.builds(Item, st.text("ab", max_size=2))),
    (ItemMore, st.builds(ItemMore, st.text("ab", max_size=2), st.integers(0, 3))),
    (ItemNeeds, st.builds(ItemNeeds, st.text("ab", max_size=2), st.integers(0, 3))),
    (ItemStrict, st.builds(ItemStrict, st.text("ab", max_size=2))),
    (Pair, st.builds(Pair, st.integers(0, 3))),
    (PairMore, st.builds(PairMore, st.integers(0, 3), st.integers(0, 3))),
    (Span, st.builds(Span, st.integers(0, 3), st.integers(0, 3))),
    (Cat, st.builds(Cat, st.integers(0, 3))),
    (Cat | Dog, st.builds(Cat, st.integers(0, 3)) | st.builds(Dog, st.just("a"))),
    (Cat | None, st.builds(Cat, st.integers(0, 3)) | st.none()),
    (int | str, st.integers(0, 3) | st.just("a")),
    (int | float | None, st.integers(0, 3) | st.floats(0, 1) | st.none()),
]  # fmt: skip
NUMBERS = itertools.count()
HASHABLE = LEAVES[:18]
KEYS = [LEAVES[n] for n in (0, 4, 6, 7, 8, 9, 14, 19)]


@st.composite
def types_and_values(draw: st.DrawFn, depth: int = 2) -> tuple[Any, st.SearchStrategy[Any]]:
    form = (
        draw(st.sampled_from(["leaf", "list", "tuple", "set", "dict", "optional", "bounded", "struct"]))
        if depth
        else "leaf"
    )
    if form == "leaf":
        return draw(st.sampled_from(LEAVES))
    if form == "set":
        inner, values = draw(st.sampled_from(HASHABLE))
        return set[inner], st.sets(values, max_size=2)
    inner, values = draw(types_and_values(depth - 1))
    if form == "list":
        return list[inner], st.lists(values, max_size=2)
    if form == "bounded":
        most = draw(st.integers(1, 2))
        return Annotated[list[inner], msgspec.Meta(max_length=most)], st.lists(values, max_size=most)
    if form == "tuple":
        other, others = draw(types_and_values(depth - 1))
        return tuple[inner, other], st.tuples(values, others)
    if form == "dict":
        key, keys = draw(st.sampled_from(KEYS))
        return dict[key, inner], st.dictionaries(keys, values, max_size=2)
    if form == "struct":
        field: Any = ("x", inner) if draw(st.booleans()) else ("x", inner, None)
        cls = msgspec.defstruct(f"S{next(NUMBERS)}", [field], array_like=draw(st.booleans()))
        return cls, values.map(cls)
    return (inner if inner is None else inner | None), st.none() | values
