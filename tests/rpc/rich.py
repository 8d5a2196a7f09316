"""A service with a method for every kind of type, name and parameter, for what is written from its description."""

from __future__ import annotations

import builtins
import datetime
import decimal
import enum
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec

import hostline


class Colour(enum.Enum):
    """What it looks like."""

    RED = "red"
    UNSET = "light blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class OutOfStock(Exception):
    """None left."""


class Item(msgspec.Struct):
    """Something on a shelf.

    Its label holds "quotes" and \\ backslashes.
    """

    sku: str
    count: Annotated[int, msgspec.Meta(ge=0)] = 1
    label: bytes = b"\x00'\""
    colour: Colour = Colour.UNSET
    tags: list[str] = []
    notes: dict[str, str] = msgspec.field(default_factory=lambda: {"a": "b"})
    since: datetime.date = datetime.date(2024, 2, 29)
    kinds: set[str] = msgspec.field(default_factory=set)
    parent: Item | None = None


class Cat(msgspec.Struct, tag=True):
    lives: int = 9


class Dog(msgspec.Struct, tag="dog"):
    name: str


class Circle(msgspec.Struct, tag=1, tag_field="shape", rename="camel"):
    half_width: float


class Square(msgspec.Struct, tag=2, tag_field="shape", kw_only=True):
    colour: Colour = Colour.RED
    side: float


class Point(msgspec.Struct, array_like=True):
    x: int
    y: int = 0


class Odd(msgspec.Struct):
    from_: int = msgspec.field(name="from")
    with_dash: str = msgspec.field(name="with-dash", default="x")
    list: builtins.list[int] = []
    datetime: float = 0.5


class Options(TypedDict, total=False):
    colour: Colour


class Span(NamedTuple):
    low: int
    high: int = 10


@dataclass
class Entry:
    when: datetime.datetime
    day: datetime.date
    at: datetime.time
    lasts: datetime.timedelta
    id: uuid.UUID
    price: decimal.Decimal


rich = hostline.Service("rich", version="1.0", doc='All there is.\n\nEven """quotes""" and a \\ at the end \\')


@rich.method(idempotent=True)
def add(a: int, b: int = 2, *, scale: float = 1.5) -> float:
    """Add two numbers."""
    return (a + b) * scale


@rich.method(raises=[OutOfStock, KeyError])
def buy(item: Item, note: str | None = None, *, colour: Colour = Colour.RED, level: Level = Level.LOW) -> Item:
    """Buy an item.

    An empty one cannot be bought.
    """
    if not item.count:
        raise OutOfStock("no tea")
    if item.sku == "?":
        raise KeyError(item.sku)
    return msgspec.structs.replace(item, colour=colour, parent=item)


@rich.method
async def pet(animal: Cat | Dog | None, /) -> Cat | Dog | None:
    return animal


@rich.method
def draw(shape: Circle | Square) -> Circle | Square:
    return shape


@rich.method
def move(point: Point, by: Span = Span(1, 2)) -> tuple[Point, Span]:  # noqa: B008 - immutable
    return Point(point.x + by.low, point.y), by


@rich.method
def log(entry: Entry, options: Options) -> tuple[Entry, Options]:
    return entry, options


@rich.method
def maps(
    by_id: dict[uuid.UUID, int],
    by_level: dict[Level, list[Point]],
    by_number: dict[int, frozenset[str]],
    anything: dict[str, Any],
    words: set[Literal["a", "b'", 'c"']],
    pairs: tuple[int, ...],
) -> tuple[
    dict[uuid.UUID, int], dict[Level, list[Point]], dict[int, frozenset[str]], dict[str, Any], set[str], list[int]
]:
    return by_id, by_level, by_number, anything, set(words), list(pairs)


@rich.method(name="list")
def all_odd(odd: Odd) -> list[Odd]:
    return [odd]


@rich.method
def echo(self: int, value: Any) -> Any:
    """Return "it"."""
    return [self, value]


@rich.method(name="shelf.take-one", raises=OutOfStock)
def take_one(place: int, /, name: str = "x", *, line: bytes = b"") -> tuple[int, str, bytes]:
    """Take one."""
    if not place:
        raise OutOfStock
    return place, name, line


@rich.method(name="close")
def close_till() -> None: ...


@rich.method
def nothing() -> None: ...


@rich.method(raises=OutOfStock)
def restock(item: Item, times: int = 2) -> Iterator[Item]:
    """Give an item a few times."""
    if not times:
        raise OutOfStock("no times")
    for _ in range(times):
        yield item


@rich.method
async def count(points: AsyncIterator[Point], /, least: int = 0) -> int:
    """Count points."""
    return sum([1 async for point in points if point.x >= least])


@rich.method
async def shift(by: int, *, points: AsyncIterator[Point]) -> AsyncIterator[Point]:
    async for point in points:
        yield Point(point.x + by, point.y)


@rich.method(name="shelf.all")
async def shelf_all(parts: AsyncIterator[bytes], line: str = "") -> AsyncIterator[bytes]:
    async for part in parts:
        yield part + line.encode()
