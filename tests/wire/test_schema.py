"""Arguments: every kind of parameter and type arrives as declared, and what is wrong is named down to the field."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import inspect
import socket
import sys
import tracemalloc
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, NotRequired, Optional, TypedDict, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostline.errors import InvalidArgumentError
from hostline.limits import DEFAULT_MAX_FRAME_SIZE, MAX_DEPTH, MAX_ELEMENTS
from hostline.wire.budget import Extent
from hostline.wire.codec import encode_call, split_call
from hostline.wire.frame import HEADER_SIZE, Frame
from hostline.wire.schema import Signature, extent_of, json_schemas

encode = msgspec.msgpack.encode


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Order(msgspec.Struct):
    id: int
    sku: str
    quantity: int = 1


class Strict(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    first_name: str


class Pair(msgspec.Struct, array_like=True):
    left: int
    right: str


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    tricks: list[str]


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0


class Options(TypedDict):
    colour: str
    size: NotRequired[int]


class Range(NamedTuple):
    low: int
    high: int = 10


T = TypeVar("T")


class Box(msgspec.Struct, Generic[T]):
    content: T


class Tree(msgspec.Struct):
    children: list[Tree] = []


class Chain(msgspec.Struct):
    next: Chain | None = None


UserId = NewType("UserId", int)
Positive = Annotated[int, msgspec.Meta(ge=1)]
Short = Annotated[str, msgspec.Meta(max_length=3)]


class Context:
    """Stands for what the server fills in."""


def call(function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """Send arguments through the wire's form of a call and run the function with what arrives."""
    signature = Signature(function, injected=(Context,))
    frame = Frame(2, 0, 0, 1, 0, b"")
    data = encode_call(1, 0, args, keywords)
    frame = Frame(2, data[5], 0, 1, 0, bytes(data[HEADER_SIZE:]))
    _, payload, is_named, _ = split_call(frame)
    values, named = signature.decode(payload, is_named)
    if (name := signature.injected.get(Context)) is not None:
        values, named = signature.inject(name, Context(), values, named)
    return function(*values, **named)


def refusal(function: Callable[..., Any], *args: Any, **keywords: Any) -> str:
    """Return why arguments are refused."""
    with pytest.raises(InvalidArgumentError) as caught:
        call(function, *args, **keywords)
    return str(caught.value)


# --- parameters --------------------------------------------------------------------------------------


def plain(a: int, b: str = "two", c: float = 3.0) -> Any:
    return a, b, c


def mixed(a: int, b: int = 2, /, c: int = 3, *, d: int = 4, e: int = 5) -> Any:
    return a, b, c, d, e


def named_only(*, d: int, e: int = 5) -> Any:
    return d, e


@pytest.mark.parametrize(
    ("function", "args", "keywords"),
    [
        (plain, (1,), {}),
        (plain, (1, "b"), {}),
        (plain, (1, "b", 0.5), {}),
        (plain, (), {"a": 1}),
        (plain, (), {"c": 0.5, "b": "b", "a": 1}),
        (plain, (1,), {"c": 0.5}),
        (mixed, (1,), {}),
        (mixed, (1, 20), {}),
        (mixed, (1, 20, 30), {}),
        (mixed, (1,), {"c": 30}),
        (mixed, (1, 20), {"e": 50}),
        (mixed, (1, 20, 30), {"d": 40, "e": 50}),
        (named_only, (), {"d": 1}),
        (named_only, (), {"e": 2, "d": 1}),
    ],
)
def test_arguments_reach_the_function_as_in_a_plain_call(
    function: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    assert call(function, *args, **keywords) == function(*args, **keywords)


@pytest.mark.parametrize(
    ("function", "args", "keywords", "text"),
    [
        (plain, (), {}, "argument `a` is missing"),
        (plain, (), {"b": "x"}, "argument `a` is missing"),
        (plain, (1, "b", 0.5, 4), {}, "4 arguments by position exceed the 3 the method takes (a, b, c)"),
        (plain, (1, "b", 0.5, 4), {"x": 1}, "4 arguments by position exceed the 3 the method takes (a, b, c)"),
        (plain, (1,), {"x": 1}, "argument `x` is unknown: the method takes a, b, c"),
        (plain, (1,), {"a": 1}, "argument `a` is given twice, by position and by name"),
        (mixed, (), {}, "argument `a` is missing"),
        (mixed, (), {"c": 1}, "argument `a` is missing"),
        (mixed, (1,), {"a": 1}, "argument `a` is given twice, by position and by name"),
        (mixed, (1,), {"b": 1}, "argument `b` is taken by position only"),
        (mixed, (1, 2, 3, 4), {}, "4 arguments by position exceed the 3 the method takes (a, b, c)"),
        (named_only, (), {}, "argument `d` is missing: pass it by name"),
        (named_only, (1,), {}, "1 arguments by position exceed the 0 the method takes (none)"),
        (named_only, (), {"e": 1}, "argument `d` is missing"),
    ],
)
def test_a_wrong_call_is_refused_as_a_plain_call_would_be_and_says_why(
    function: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any], text: str
) -> None:
    with pytest.raises(TypeError):
        function(*args, **keywords)
    assert refusal(function, *args, **keywords) == text


SHAPES: list[Callable[..., Any]] = [plain, mixed, named_only]


@given(
    st.sampled_from(SHAPES),
    st.lists(st.sampled_from([1, "x", 0.5]), max_size=5),
    st.dictionaries(st.sampled_from("abcdex"), st.sampled_from([1, "x", 0.5]), max_size=4),
)
def test_a_call_is_taken_if_python_would_take_it_and_the_types_fit(
    function: Callable[..., Any], args: list[Any], keywords: dict[str, Any]
) -> None:
    try:
        bound = inspect.signature(function).bind(*args, **keywords)
    except TypeError:
        refusal(function, *args, **keywords)
        return
    wanted = {name: p.annotation for name, p in inspect.signature(function).parameters.items()}
    fits = all(
        isinstance(value, {"int": int, "str": str, "float": (int, float)}[wanted[name]])
        for name, value in bound.arguments.items()
    )
    if fits:
        assert call(function, *args, **keywords) == function(*args, **keywords)
    else:
        refusal(function, *args, **keywords)


def test_the_function_fills_in_its_own_defaults_whatever_they_are() -> None:
    sentinel = object()

    def function(a: int = sentinel, b: list[int] = [7]) -> Any:  # type: ignore[assignment]  # noqa: B006
        return a, b

    assert call(function) == (sentinel, [7])
    assert call(function, b=[1]) == (sentinel, [1])


def test_an_argument_cannot_be_left_out_by_sending_something() -> None:
    def function(a: int = 1, b: int = 2) -> Any:
        return a, b

    assert "argument `a`: Expected `int`, got `None`" in refusal(function, None, 3)


# --- what the server fills in ------------------------------------------------------------------------


def first(ctx: Context, a: int, b: int = 2) -> Any:
    return type(ctx), a, b


def middle(a: int, ctx: Context, b: int) -> Any:
    return type(ctx), a, b


def middle_with_defaults(a: int = 1, ctx: Context = None, b: int = 2) -> Any:  # type: ignore[assignment]
    return type(ctx), a, b


def last(a: int, b: int = 2, ctx: Context | None = None) -> Any:
    return type(ctx), a, b


def keyword(a: int, b: int = 2, *, ctx: Context) -> Any:
    return type(ctx), a, b


def optional(a: int, ctx: Optional[Context] = None, *, b: int = 2) -> Any:  # noqa: UP045
    return type(ctx), a, b


def behind_positional_only(a: int, b: int, /, ctx: Context) -> Any:
    return type(ctx), a, b


@pytest.mark.parametrize("function", [first, middle, middle_with_defaults, last, keyword, behind_positional_only])
def test_a_caller_counts_positions_as_if_the_context_were_not_there(function: Callable[..., Any]) -> None:
    assert call(function, 10, 20) == (Context, 10, 20)


@pytest.mark.parametrize("function", [first, middle, middle_with_defaults, last, keyword, optional])
def test_the_context_is_there_whatever_is_given_by_name(function: Callable[..., Any]) -> None:
    assert call(function, a=10, b=20) == (Context, 10, 20)
    assert call(function, 10, b=20) == (Context, 10, 20)


@pytest.mark.parametrize("function", [first, middle_with_defaults, last, keyword, optional])
def test_the_context_is_there_when_defaults_are_taken(function: Callable[..., Any]) -> None:
    assert call(function, 10) == (Context, 10, 2)


def test_a_context_alone_needs_no_arguments() -> None:
    def alone(ctx: Context) -> Any:
        return type(ctx)

    assert call(alone) is Context
    assert call(middle_with_defaults) == (Context, 1, 2)
    assert call(middle_with_defaults, b=5) == (Context, 1, 5)


@pytest.mark.parametrize("function", [first, middle, last, keyword])
def test_a_caller_cannot_send_the_context(function: Callable[..., Any]) -> None:
    assert refusal(function, 1, b=2, ctx=3) == "argument `ctx` is unknown: the method takes a, b"
    assert refusal(function, 1, 2, 3) == "3 arguments by position exceed the 2 the method takes (a, b)"


def test_a_context_that_cannot_be_filled_in_is_refused_at_declaration() -> None:
    def positional_only(ctx: Context, /, a: int) -> None: ...
    def two(ctx: Context, other: Context) -> None: ...
    def either(ctx: Context | int) -> None: ...

    with pytest.raises(TypeError, match="'ctx' is filled in by name; it cannot be positional-only"):
        Signature(positional_only, (Context,))
    with pytest.raises(TypeError, match="'other' is a second Context; 'ctx' is one already"):
        Signature(two, (Context,))
    with pytest.raises(TypeError, match="'ctx' is filled in by the server: it can be Context and nothing beside it"):
        Signature(either, (Context,))


# --- types -------------------------------------------------------------------------------------------

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
ID = uuid.UUID("12345678-1234-5678-1234-567812345678")

TYPES: list[tuple[Any, Any]] = [
    (None, None),
    (bool, True),
    (int, -(2**63)),
    (int, 2**64 - 1),
    (float, 1.5),
    (float, float("inf")),
    (str, "tea ☕"),
    (bytes, b"\0\xff"),
    (bytearray, bytearray(b"ab")),
    (Any, {"any": [1, None, {"thing": 2.5}]}),
    (list[int], [1, 2]),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (set[int], {1, 2}),
    (frozenset[str], frozenset({"a"})),
    (dict[str, list[int]], {"a": [1]}),
    (dict[int, str], {1: "a"}),
    (Sequence[int], [1, 2]),
    (Mapping[str, int], {"a": 1}),
    (list[dict[str, tuple[int, list[Point]]]], [{"a": (1, [Point(1)])}]),
    (Order, Order(1, "tea", 3)),
    (Strict, Strict("Ada")),
    (Pair, Pair(1, "r")),
    (Point, Point(1, 2.0)),
    (Options, {"colour": "red", "size": 3}),
    (Options, {"colour": "red"}),
    (Range, Range(1, 5)),
    (Colour, Colour.BLUE),
    (Level, Level.HIGH),
    (Literal["on", "off", 3], "off"),
    (Literal["on", "off", 3], 3),
    (Cat | Dog, Cat(9)),
    (Cat | Dog | None, Dog(["sit"])),
    (list[Cat | Dog], [Cat(1), Dog([])]),
    (int | str | None, "x"),
    (int | list[str], ["x"]),
    (Optional[Order], None),  # noqa: UP045
    (datetime.datetime, NOW),
    (datetime.datetime, datetime.datetime(2026, 1, 2)),  # noqa: DTZ001
    (datetime.date, NOW.date()),
    (datetime.time, datetime.time(3, 4, 5)),
    (datetime.timedelta, datetime.timedelta(days=1, microseconds=5)),
    (uuid.UUID, ID),
    (decimal.Decimal, decimal.Decimal("1.50")),
    (Positive, 1),
    (Short, "abc"),
    (UserId, UserId(7)),
    (Box[int], Box(3)),
    (Box[Box[str]], Box(Box("in"))),
    (Tree, Tree([Tree(), Tree([Tree()])])),
    (Chain, Chain(Chain())),
]


def taking(annotation: Any) -> Callable[..., Any]:
    """Return functions' argument of a type, as it arrives."""

    def take(value: Any) -> Any:
        return value

    take.__annotations__ = {"value": annotation, "return": Any}
    return take


@pytest.mark.parametrize(("annotation", "value"), TYPES, ids=[f"{a}={v!r}"[:60] for a, v in TYPES])
def test_every_type_arrives_as_itself_by_position_by_name_and_by_default(annotation: Any, value: Any) -> None:
    take = taking(annotation)
    for arrived in (call(take, value), call(take, value=value)):
        assert arrived == value
        assert type(arrived) is type(value)
    take.__defaults__ = (value,)
    assert call(take) == value
    assert call(take, value=value) == value


def test_attrs_classes_are_structs_too() -> None:
    attrs = pytest.importorskip("attrs", reason="attrs is not installed")

    @attrs.define
    class Shelf:
        width: int
        books: list[str] = attrs.field(factory=list)

    take = taking(Shelf)
    assert call(take, Shelf(3, ["a"])) == Shelf(3, ["a"])
    assert refusal(take, {"width": "x"}) == "argument `value`: Expected `int`, got `str` - at `value.width`"


def test_raw_arguments_are_left_as_they_are() -> None:
    assert bytes(call(taking(msgspec.Raw), [1])) == b"\x91\x01"


WRONG: list[tuple[Any, Any, str]] = [
    (int, "x", "argument `value`: Expected `int`, got `str` - at `value`"),
    (int, 1.5, "argument `value`: Expected `int`, got `float` - at `value`"),
    (int, True, "argument `value`: Expected `int`, got `bool` - at `value`"),
    (str, b"x", "argument `value`: Expected `str`, got `bytes` - at `value`"),
    (Order, {"id": 1}, "argument `value`: Object missing required field `sku` - at `value`"),
    (Order, {"id": "1", "sku": "t"}, "argument `value`: Expected `int`, got `str` - at `value.id`"),
    (Strict, {"firstName": "a", "x": 1}, "argument `value`: Object contains unknown field `x` - at `value`"),
    (Strict, {"firstName": 3}, "argument `value`: Expected `str`, got `int` - at `value.firstName`"),
    (list[Order], [{"id": 1, "sku": 2}], "argument `value`: Expected `str`, got `int` - at `value[0].sku`"),
    (dict[str, int], {"a": "b"}, "argument `value`: Expected `int`, got `str` - at `value[...]`"),
    (dict[int, int], {"a": 1}, "argument `value`: Expected `int`, got `str` - at `key` in `value`"),
    (
        list[dict[int, int]],
        [{"a": 1}],
        "argument `value`: Expected `int`, got `str` - at `key` in `value[0]`",
    ),
    (Pair, [1, 2], "argument `value`: Expected `str`, got `int` - at `value[1]`"),
    (tuple[int, str], [1], "argument `value`: Expected `array` of length 2, got 1 - at `value`"),
    (Range, [], "argument `value`: Expected `array` of length 1 to 2, got 0 - at `value`"),
    (Point, {"x": None}, "argument `value`: Expected `int`, got `None` - at `value.x`"),
    (Options, {}, "argument `value`: Object missing required field `colour` - at `value`"),
    (Colour, "green", "argument `value`: Invalid enum value 'green' - at `value`"),
    (Literal["on"], "off", "argument `value`: Invalid enum value 'off' - at `value`"),
    (Cat | Dog, {"lives": 1}, "argument `value`: Object missing required field `type` - at `value`"),
    (Cat | Dog, {"type": "Cow"}, "argument `value`: Invalid value 'Cow' - at `value.type`"),
    (Cat | Dog, {"type": "Dog", "tricks": [1]}, "argument `value`: Expected `str`, got `int` - at `value.tricks[0]`"),
    (int | None, "x", "argument `value`: Expected `int | null`, got `str` - at `value`"),
    (datetime.datetime, "soon", "argument `value`: Invalid RFC3339 encoded datetime - at `value`"),
    (uuid.UUID, "x", "argument `value`: Invalid UUID - at `value`"),
    (decimal.Decimal, "x", "argument `value`: Invalid decimal string - at `value`"),
    (Positive, 0, "argument `value`: Expected `int` >= 1 - at `value`"),
    (list[Positive], [1, 0], "argument `value`: Expected `int` >= 1 - at `value[1]`"),
    (Short, "abcd", "argument `value`: Expected `str` of length <= 3 - at `value`"),
    (Box[int], {"content": "x"}, "argument `value`: Expected `int`, got `str` - at `value.content`"),
]


@pytest.mark.parametrize(("annotation", "value", "text"), WRONG, ids=[f"{a}={v!r}"[:60] for a, v, _ in WRONG])
def test_a_wrong_argument_is_named_down_to_the_field(annotation: Any, value: Any, text: str) -> None:
    take = taking(annotation)
    assert refusal(take, value) == text
    assert refusal(take, value=value) == text

    def positional_only(value: Any, /, other: int = 1) -> Any: ...
    def has_default(value: Any = None) -> Any: ...

    positional_only.__annotations__ = {"value": annotation, "other": int}
    has_default.__annotations__ = {"value": annotation}
    assert refusal(positional_only, value) == text
    assert refusal(positional_only, value, other=2) == text
    assert refusal(has_default, value) == text


def test_the_second_wrong_argument_is_not_confused_with_the_first() -> None:
    assert refusal(plain, 1, 2) == "argument `b`: Expected `str`, got `int` - at `b`"
    assert refusal(plain, 1, c="x") == "argument `c`: Expected `float`, got `str` - at `c`"
    assert refusal(mixed, 1, "x", d=4) == "argument `b`: Expected `int`, got `str` - at `b`"


class Prime(msgspec.Struct):
    value: int

    def __post_init__(self) -> None:
        if self.value == 4:
            raise ValueError("4 at `$[9]` is not prime")
        if self.value == 5:
            raise KeyError("a bug")


def test_what_a_type_says_of_its_value_reaches_the_caller() -> None:
    def function(a: int, prime: Prime) -> None: ...

    assert refusal(function, 1, {"value": 4}) == "argument `prime`: 4 at `$[9]` is not prime - at `prime`"
    assert refusal(function, 1, prime={"value": 4}) == "argument `prime`: 4 at `$[9]` is not prime - at `prime`"


@pytest.mark.parametrize("keywords", [{}, {"b": 1}])
def test_a_bug_in_a_types_own_check_is_not_the_callers_error(keywords: dict[str, Any]) -> None:
    def function(prime: Prime, b: int = 0) -> None: ...

    with pytest.raises(KeyError, match="a bug"):
        call(function, {"value": 5}, **keywords)


# --- declarations ------------------------------------------------------------------------------------


def refused_declaration(function: Any) -> str:
    with pytest.raises(TypeError) as caught:
        Signature(function, (Context,))
    return str(caught.value)


def test_variadic_parameters_and_missing_annotations_are_refused_by_name() -> None:
    def stars(*args: int) -> None: ...
    def double(**keywords: int) -> None: ...
    def bare(a) -> None: ...  # type: ignore[no-untyped-def]

    assert "parameter 'args' is variadic; name each argument, or take a list or dict" in refused_declaration(stars)
    assert "parameter 'keywords' is variadic" in refused_declaration(double)
    assert "parameter 'a' has no annotation; give its type, or typing.Any" in refused_declaration(bare)


@pytest.mark.parametrize(
    "annotation", [socket.socket, object, complex, range, Iterable[int], Callable[[int], int], type[int]]
)
def test_a_type_that_no_value_can_be_decoded_into_is_refused_by_name(annotation: Any) -> None:
    for form in (annotation, list[annotation], Optional[annotation], Box[annotation]):  # noqa: UP045
        text = refused_declaration(taking(form))
        assert "parameter 'value': type " in text
        assert text.endswith("is not supported: nothing can be decoded into it")


@pytest.mark.parametrize("annotation", [Order | Point, list[int] | set[int], Cat | Order, dict[str, int] | Order])
def test_an_ambiguous_union_is_refused_at_declaration(annotation: Any) -> None:
    assert "parameter 'value': Type unions" in refused_declaration(taking(annotation)) or (
        "parameter 'value': If a type union" in refused_declaration(taking(annotation))
    )


@pytest.mark.parametrize("annotation", ["Missing", "datetime.missing", "int |", "list[int", "'int' | 3"])
def test_an_annotation_that_cannot_be_resolved_is_refused_with_the_reason(annotation: str) -> None:
    assert "annotation cannot be resolved: " in refused_declaration(taking(annotation))


def test_a_type_of_a_local_scope_works_as_an_object_and_as_text_is_refused_with_the_way_out() -> None:
    class Local(msgspec.Struct):
        x: int

    assert call(taking(Local), Local(1)) == Local(1)

    def by_text(value: Local) -> None: ...  # annotations are text here

    text = refused_declaration(by_text)
    assert "name 'Local' is not defined" in text
    assert "must be known at the module's top level" in text


def test_a_result_type_that_cannot_be_described_is_refused() -> None:
    function = taking(int)
    function.__annotations__["return"] = Order | Point
    assert "Type unions" in refused_declaration(function) or "type union" in refused_declaration(function)


class Shop:
    factor = 2

    def price(self, amount: int) -> int:
        return amount * self.factor

    @classmethod
    def of_class(cls, amount: int) -> int:
        return amount * cls.factor

    @staticmethod
    def static(amount: int) -> int:
        return amount

    def __call__(self, amount: int) -> int:
        return amount + 1


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **keywords: Any) -> Any:
        return function(*args, **keywords)

    return wrapper


def test_whatever_python_can_call_can_be_declared() -> None:
    shop = Shop()
    assert call(shop.price, 3) == 6
    assert call(Shop.of_class, 3) == 6
    assert call(Shop.static, 3) == 3
    assert call(shop, 3) == 4
    assert call(functools.partial(plain, 7), "x") == (7, "x", 3.0)
    assert call(functools.partial(plain, b="x"), 1, c=2.0) == (1, "x", 2.0)
    assert call(decorated(plain), 1, c=2.0) == (1, "two", 2.0)


def test_parameters_are_described_in_order() -> None:
    signature = Signature(mixed)
    assert [(p.name, p.is_required, p.is_positional, p.is_named) for p in signature.parameters] == [
        ("a", True, True, False),
        ("b", False, True, False),
        ("c", False, True, True),
        ("d", False, False, True),
        ("e", False, False, True),
    ]
    assert signature.returns is Any
    assert Signature(middle, (Context,)).injected == {Context: "ctx"}
    assert [p.name for p in Signature(middle, (Context,)).parameters] == ["a", "b"]


# --- hostile payloads ----------------------------------------------------------------------------------


def everything(
    a: int = 1, b: Order | None = None, c: dict[str, Any] | None = None, d: set[Any] | None = None, *, e: str = ""
) -> None: ...


SIGNATURES = [Signature(f) for f in (plain, mixed, named_only, everything, taking(Tree), taking(Any), taking(Pair))]

HOSTILE = {
    "nothing": b"",
    "not MessagePack": b"\xc1",
    "a number": b"\x05",
    "a map": b"\x80",
    "an unfinished array": b"\x92\x01",
    "an array of four billion": b"\xdd\xff\xff\xff\xff",
    "a map of four billion": b"\xdf\xff\xff\xff\xff",
    "something behind": b"\x91\x01\x02",
    "a million levels": b"\x91" * 1_000_000 + b"\xc0",
    "a million levels of maps": b"\x81\x01" * 500_000 + b"\xc0",
    "a million values": b"\xdd\x00\x0f\x00\x00" + b"\x01" * 0xF0000,
    "a million empty maps": b"\xdd\x00\x0f\x00\x00" + b"\x80" * 0xF0000,
    "a str that is not UTF-8": b"\x91\xa2\xff\xfe",
    "pieces without a map": b"\x91\x90",
    "pieces and a number": b"\x92\x90\x05",
    "a number and a map": b"\x92\x05\x80",
    "three pieces": b"\x93\x90\x80\x80",
    "a key that is a number": b"\x92\x90\x81\x01\x02",
    "a key that is not UTF-8": b"\x92\x90\x81\xa2\xff\xfe\x02",
    "a million pieces": b"\x92\xdd\x00\x0f\x00\x00" + b"\x01" * 0xF0000 + b"\x80",
    "many names": b"\x92\x90\xdf\x00\x01\x86\xa0" + b"".join(encode(f"{i}") + b"\x01" for i in range(10**5)),
    "an extension for an argument": b"\x91\xd4\x05a",
    "a timestamp that is none": b"\x91\xc7\x03\xffabc",
}  # fmt: skip


@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE.keys())
def test_malformed_arguments_are_invalid_arguments_and_cost_little(payload: bytes, is_named: bool) -> None:
    for signature in SIGNATURES:
        text = ""
        tracemalloc.start()
        try:
            signature.decode(payload, is_named)
        except InvalidArgumentError as error:
            text = str(error)
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert len(text) < 500
        assert peak < 20 << 20


def test_a_set_of_what_cannot_be_in_one_is_an_invalid_argument() -> None:
    assert refusal(taking(set[Any]), [{}]) == "arguments cannot be decoded: unhashable type: 'dict'"
    assert "unhashable" in refusal(taking(set[Any]), value=[{}])


@pytest.mark.parametrize("head", [b"\x82", b"\xde\x00\x02", b"\xdf\x00\x00\x00\x02"])
def test_a_name_given_twice_is_refused(head: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="an argument is given twice: 2 by name, 1 of them different"):
        Signature(plain).decode(b"\x92\x90" + head + b"\xa1a\x01\xa1a\x02", True)


def test_up_to_a_thousand_arguments_are_looked_at_one_by_one() -> None:
    pieces = b"\x92\xdc" + (1000).to_bytes(2, "big") + b"\x01" * 1000 + b"\x80"
    with pytest.raises(InvalidArgumentError, match="1000 arguments by position exceed the 3"):
        Signature(plain).decode(pieces, True)
    pieces = b"\x92\xdc" + (1001).to_bytes(2, "big") + b"\x01" * 1001 + b"\x80"
    with pytest.raises(InvalidArgumentError, match="of length <= 1000"):
        Signature(plain).decode(pieces, True)
    names = b"\x92\x90\xde" + (1001).to_bytes(2, "big") + b"".join(encode(f"n{i}") + b"\x01" for i in range(1001))
    with pytest.raises(InvalidArgumentError, match="of length <= 1000"):
        Signature(plain).decode(names, True)


@pytest.mark.parametrize("is_named", [False, True])
def test_open_arguments_are_bounded_in_depth(is_named: bool) -> None:
    around = 2 if is_named else 1  # the arrays of arguments are levels themselves

    def payload(levels: int) -> bytes:
        inner = b"\x91" * (levels - around - 1) + b"\x90"
        return b"\x92\x91" + inner + b"\x80" if is_named else b"\x91" + inner

    signature = Signature(taking(Any))
    signature.decode(payload(MAX_DEPTH), is_named)
    with pytest.raises(InvalidArgumentError, match=f"nests deeper than max_depth {MAX_DEPTH} levels"):
        signature.decode(payload(MAX_DEPTH + 1), is_named)


@pytest.mark.parametrize("annotation", [list[int], Any, tuple[int, ...], Annotated[list[int], msgspec.Meta(title="t")]])
def test_open_arguments_are_bounded_in_number(annotation: Any) -> None:
    def payload(count: int) -> bytes:
        return b"\x91\xdd" + (count - 2).to_bytes(4, "big") + b"\x01" * (count - 2)

    signature = Signature(taking(annotation))
    signature.decode(payload(MAX_ELEMENTS))
    with pytest.raises(InvalidArgumentError, match=f"more than max_elements {MAX_ELEMENTS} values"):
        signature.decode(payload(MAX_ELEMENTS + 1))


def test_a_large_argument_of_bytes_needs_no_budget() -> None:
    data = bytes(DEFAULT_MAX_FRAME_SIZE - 100)
    assert call(taking(bytes), data) == data
    assert call(taking(dict[str, bytes]), {"x": data}) == {"x": data}


def test_a_raised_recursion_limit_does_not_let_a_caller_overflow_the_stack() -> None:
    signature = Signature(taking(Order))
    payload = b"\x91\x81\xa1x" + b"\x91" * 1_000_000 + b"\xc0"
    before = sys.getrecursionlimit()
    with pytest.raises(InvalidArgumentError, match="recursion"):
        signature.decode(payload)
    try:
        sys.setrecursionlimit(2_000_000)
        with pytest.raises(InvalidArgumentError, match="nests deeper"):
            signature.decode(payload)
    finally:
        sys.setrecursionlimit(before)


@given(st.binary(max_size=80), st.booleans())
def test_any_bytes_are_arguments_or_invalid_ones(payload: bytes, is_named: bool) -> None:
    for signature in SIGNATURES:
        try:
            signature.decode(payload, is_named)
        except InvalidArgumentError:
            pass


# --- how open a type is ------------------------------------------------------------------------------


class Ring(msgspec.Struct):
    link: Link | None = None


class Link(msgspec.Struct):
    ring: Ring | None = None


class Wide(msgspec.Struct):
    a: Order
    b: Order
    c: tuple[Order, Order]


@pytest.mark.parametrize(
    ("annotation", "extent"),
    [
        (int, Extent.FIXED),
        (None, Extent.FIXED),
        (str | None, Extent.FIXED),
        (Order, Extent.FIXED),
        (Wide, Extent.FIXED),
        (Point, Extent.FIXED),
        (Options, Extent.FIXED),
        (Range, Extent.FIXED),
        (Colour, Extent.FIXED),
        (Literal["a"], Extent.FIXED),
        (tuple[int, Order], Extent.FIXED),
        (datetime.datetime | int, Extent.FIXED),
        (Annotated[int, msgspec.Meta(title="t")], Extent.FIXED),
        (Annotated[int, {"not": "hashable"}], Extent.FIXED),
        (Box[int], Extent.FIXED),
        (list[int], Extent.LONG),
        (set[Order] | None, Extent.LONG),
        (dict[str, list[dict[str, int]]], Extent.LONG),
        (tuple[int, ...], Extent.LONG),
        (tuple[int, list[int]], Extent.LONG),
        (Annotated[list[int], msgspec.Meta(title="t")], Extent.LONG),
        (Dog, Extent.LONG),
        (Cat | Dog, Extent.LONG),
        (Box[list[int]], Extent.LONG),
        (list, Extent.DEEP),
        (dict, Extent.DEEP),
        (Any, Extent.DEEP),
        (object, Extent.DEEP),
        (msgspec.Raw, Extent.DEEP),
        (list[Any], Extent.DEEP),
        (dict[str, Any], Extent.DEEP),
        (Annotated[Any, msgspec.Meta(title="t")], Extent.DEEP),
        (Box[Any], Extent.DEEP),
        (Box[T], Extent.DEEP),  # type: ignore[valid-type]
        (Tree, Extent.DEEP),
        (Chain, Extent.DEEP),
        (Ring, Extent.DEEP),
        (Link, Extent.DEEP),
        (list[Ring] | None, Extent.DEEP),
        (Cat | Tree, Extent.DEEP),
        ("nonsense", Extent.DEEP),
    ],
)
def test_a_type_leaves_to_the_sender_what_it_leaves(annotation: Any, extent: Extent) -> None:
    assert extent_of(annotation) is extent


def test_many_structs_that_share_parts_are_looked_at_once_each() -> None:
    level: Any = int
    for number in range(40):  # 2^40 paths
        level = msgspec.defstruct(f"Level{number}", [("left", level), ("right", level)])
    assert extent_of(level) is Extent.FIXED


# --- JSON Schema ---------------------------------------------------------------------------------------


def test_schemas_share_their_definitions() -> None:
    schemas, definitions = json_schemas([int, Order, list[Order], Cat | Dog])
    assert schemas[0] == {"type": "integer"}
    assert schemas[1] == {"$ref": "#/$defs/Order"}
    assert schemas[2] == {"type": "array", "items": {"$ref": "#/$defs/Order"}}
    assert set(definitions) == {"Order", "Cat", "Dog"}
