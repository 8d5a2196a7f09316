"""What every service tells of itself: descriptions with JSON Schemas that hold, health, and counts."""

from __future__ import annotations

import datetime
import enum
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar

import msgspec
import pytest

from hostline.rpc.builtin import CallCounts, Health, ServiceDescription, Stats, check_health, describe_service
from hostline.rpc.context import Context
from hostline.rpc.service import ServiceBase
from hostline.wire.codec import VERSION

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"


class Order(msgspec.Struct):
    id: Annotated[int, msgspec.Meta(ge=1)]
    sku: str
    tags: list[str] = []


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    tricks: list[str]


class Box(msgspec.Struct, Generic[T]):
    content: T


class Tree(msgspec.Struct):
    children: list[Tree] = []


class Options(TypedDict):
    colour: Colour


class Range(NamedTuple):
    low: int
    high: int


class OutOfStock(Exception):
    """No tea."""


# --- describe ------------------------------------------------------------------------------------------


@pytest.fixture
def described() -> ServiceDescription:
    service = ServiceBase("shop", version="1.2", doc="Sells things.")

    @service.method(idempotent=True, raises=[OutOfStock, KeyError])
    async def price(
        order: Order, where: Literal["here", "there"] = "here", *, at: datetime.date, ctx: Context
    ) -> float:
        """Return the price.

        In full.
        """
        return 0.0

    @service.method(inline=True)
    def pet(animal: Cat | Dog, options: Options, /, within: Range | None = None) -> list[Box[int]]:
        return []

    @service.method
    def anything(value: Any, tree: Tree, blob: bytes, box: Box[Order]) -> None: ...

    return describe_service(service)


def test_a_service_is_described_by_name_version_and_methods(described: ServiceDescription) -> None:
    assert (described.name, described.version, described.doc) == ("shop", "1.2", "Sells things.")
    assert described.protocol_version == VERSION
    assert [method.name for method in described.methods] == ["price", "pet", "anything"]


def test_a_method_is_described_as_it_was_declared(described: ServiceDescription) -> None:
    price, pet, anything = described.methods
    assert price.doc == "Return the price.\n\nIn full."
    assert (price.execution, pet.execution, anything.execution) == ("task", "inline", "worker")
    assert (price.is_idempotent, pet.is_idempotent) == (True, False)
    assert price.raises == ["OutOfStock", "KeyError"]
    assert [(p.name, p.is_required, p.is_positional, p.is_named) for p in price.parameters] == [
        ("order", True, True, True),
        ("where", False, True, True),
        ("at", True, False, True),
    ]
    assert [(p.name, p.is_named) for p in pet.parameters] == [("animal", False), ("options", False), ("within", True)]
    assert anything.returns == {"type": "null"}


def test_a_stream_is_described_by_its_items() -> None:
    service = ServiceBase("streams")

    @service.method
    def ticks(to: int) -> Iterator[Order]:
        yield Order(to, "tea")

    @service.method
    async def total(numbers: AsyncIterator[int], plus: int = 0) -> int:
        return plus

    described = describe_service(service)
    first, second = described.methods
    assert (first.streams_result, second.streams_result) == (True, False)
    assert first.returns == {"$ref": "#/$defs/Order"}
    assert [(p.is_stream, p.schema) for p in (*first.parameters, *second.parameters)] == [
        (False, {"type": "integer"}),
        (True, {"type": "integer"}),
        (False, {"type": "integer"}),
    ]
    assert (first.execution, second.execution) == ("worker", "task")
    assert msgspec.json.decode(msgspec.json.encode(described), type=ServiceDescription) == described


def test_a_description_of_a_service_that_knows_no_streams_is_read() -> None:
    service = ServiceBase("plain")
    service.method(name="m")(len_of)
    plain = msgspec.to_builtins(describe_service(service))
    del plain["methods"][0]["streams_result"], plain["methods"][0]["parameters"][0]["is_stream"]
    assert msgspec.convert(plain, ServiceDescription) == describe_service(service)


def len_of(text: str) -> int:
    return len(text)


def test_a_description_travels_as_msgpack_and_as_json(described: ServiceDescription) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(described), type=ServiceDescription) == described
    assert msgspec.json.decode(msgspec.json.encode(described), type=ServiceDescription) == described


def schema_of(described: ServiceDescription, method: str, parameter: str) -> dict[str, Any]:
    """Return a parameter's schema with the definitions it refers to."""
    found = next(m for m in described.methods if m.name == method)
    schema = found.returns if parameter == "->" else next(p for p in found.parameters if p.name == parameter).schema
    return {**schema, "$defs": described.definitions}


@pytest.mark.parametrize(
    ("method", "parameter", "good", "bad"),
    [
        ("price", "order", {"id": 1, "sku": "tea"}, {"id": 0, "sku": "tea"}),
        ("price", "order", {"id": 1, "sku": "tea", "tags": ["a"]}, {"id": 1}),
        ("price", "where", "there", "nowhere"),
        ("price", "at", "2026-01-02", 5),
        ("price", "->", 1.5, "x"),
        ("pet", "animal", {"type": "Cat", "lives": 9}, {"type": "Cow"}),
        ("pet", "options", {"colour": "red"}, {"colour": "green"}),
        ("pet", "within", None, "x"),
        ("pet", "within", [1, 2], [1]),
        ("pet", "->", [{"content": 1}], [{"content": "x"}]),
        ("anything", "tree", {"children": [{"children": []}]}, {"children": [5]}),
        ("anything", "box", {"content": {"id": 1, "sku": "x"}}, {"content": 1}),
        ("anything", "->", None, 1),
    ],
)
def test_the_schemas_hold(described: ServiceDescription, method: str, parameter: str, good: Any, bad: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = schema_of(described, method, parameter)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, schema)


def test_every_schema_is_valid_and_complete(described: ServiceDescription) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    for method in described.methods:
        for name in ["->", *(p.name for p in method.parameters)]:
            schema = schema_of(described, method.name, name)
            jsonschema.Draft202012Validator.check_schema(schema)
            list(jsonschema.Draft202012Validator(schema).iter_errors({"a": 1}))  # a reference to nothing would raise


def test_a_type_without_a_schema_does_not_hide_the_others() -> None:
    service = ServiceBase("shop")

    class Own:
        """Of this program only."""

    def odd(order: Order) -> Any: ...

    odd.__annotations__["return"] = Own
    service.method(odd)
    service.method(name="even")(lambda: None)

    @service.method
    def other(order: Order, orders: list[Order]) -> Order:
        return order

    odd_method, _, other_method = describe_service(service).methods
    assert odd_method.returns["description"].startswith("no JSON Schema: ")
    assert odd_method.parameters[0].schema == {"$ref": "#/$defs/Order"}
    assert other_method.returns == {"$ref": "#/$defs/Order"}
    assert set(describe_service(service).definitions) == {"Order"}


def test_defaults_are_told_where_they_can_be_written() -> None:
    service = ServiceBase("shop")

    own = object()

    def many(a: int = 1, b: Colour = Colour.RED, c: Any = own, d: Any = 1 << 70, e: Any = None) -> None: ...

    service.method(many)
    (method,) = describe_service(service).methods
    assert [p.default for p in method.parameters] == [1, "red", msgspec.UNSET, msgspec.UNSET, None]
    assert [p.is_required for p in method.parameters] == [False] * 5
    travelled = msgspec.json.decode(msgspec.json.encode(describe_service(service)), type=ServiceDescription)
    assert travelled == describe_service(service)


def test_declared_exceptions_are_told_with_what_they_say_of_themselves() -> None:
    service = ServiceBase("shop")

    class Silent(OutOfStock):
        pass

    service.method(name="m", raises=[OutOfStock, Silent])(lambda: None)
    assert describe_service(service).errors == {"OutOfStock": "No tea.", "Silent": ""}


def test_what_json_schema_cannot_say_stands_beside_it() -> None:
    service = ServiceBase("shop")
    point = msgspec.defstruct("Point", [("x", int)], array_like=True, tag="p")

    def m(a: Any, b: dict[datetime.datetime, list[datetime.time]], c: Any, d: Cat | None) -> Any: ...

    m.__annotations__ |= {"a": datetime.datetime, "c": point, "return": frozenset[int]}
    service.method(m)
    description = describe_service(service)
    (method,) = description.methods
    schemas = [parameter.schema for parameter in method.parameters]
    moment = {"type": "string", "x-hostline": {"type": "datetime"}}
    assert schemas[0] == moment
    assert schemas[1]["x-hostline"] == {"keys": moment}
    assert schemas[1]["additionalProperties"]["items"] == {"type": "string", "x-hostline": {"type": "time"}}
    assert method.returns["x-hostline"] == {"type": "frozenset"}
    assert description.definitions["Point"]["x-hostline"] == {"tag": "p", "fields": ["x"]}
    assert description.definitions["Cat"]["x-hostline"] == {"tag": "Cat", "tag_field": "type"}


def test_two_classes_of_one_full_name_do_not_hide_the_others() -> None:
    service = ServiceBase("shop")
    inner = msgspec.defstruct("Same", [("x", int)])
    outer = msgspec.defstruct("Same", [("x", inner)])

    def odd(value: Any) -> None: ...

    odd.__annotations__["value"] = outer
    service.method(odd)
    service.method(name="other")(lambda: None)
    assert [method.name for method in describe_service(service).methods] == ["odd", "other"]


def test_two_types_of_one_name_have_two_definitions() -> None:
    service = ServiceBase("shop")
    other = msgspec.defstruct("Order", [("number", str)], module="elsewhere")

    def both(one: Order, two: Any) -> None: ...

    both.__annotations__["two"] = other
    service.method(both)
    (method,) = describe_service(service).methods
    assert method.parameters[0].schema != method.parameters[1].schema
    assert len(describe_service(service).definitions) == 2


def test_a_description_is_made_once_and_again_when_a_method_is_added() -> None:
    service = ServiceBase("shop")
    service.method(name="one")(lambda: None)
    before = describe_service(service)
    assert describe_service(service) is before
    service.method(name="two")(lambda: None)
    assert [method.name for method in describe_service(service).methods] == ["one", "two"]


@pytest.mark.alone
def test_a_description_costs_little_when_it_is_asked_for_often() -> None:
    service = ServiceBase("shop")
    for number in range(50):

        def handler(order: Order, tree: Tree) -> list[Order]:
            return []

        service.method(name=f"m{number}")(handler)
    describe_service(service)
    spent = time.thread_time()
    for _ in range(1000):
        describe_service(service)
    assert time.thread_time() - spent < 0.1


def test_a_service_that_is_gone_is_not_kept_by_its_description() -> None:
    import gc
    import weakref

    service = ServiceBase("shop")
    describe_service(service)
    reference = weakref.ref(service)
    del service
    gc.collect()
    assert reference() is None


def test_an_empty_service_is_described() -> None:
    assert describe_service(ServiceBase("empty")).methods == []


# --- health and stats ----------------------------------------------------------------------------------


def test_a_service_without_checks_is_healthy() -> None:
    assert check_health(ServiceBase("shop"), 12.5) == Health("ok", [], "shop", os.getpid(), 12.5)


def test_a_failing_check_is_told_in_its_own_words_and_the_others_run() -> None:
    service = ServiceBase("shop")
    ran = []

    class Checker:
        def __call__(self) -> None:
            raise LookupError

    @service.health_check
    def database() -> None:
        raise ConnectionError("no route to the database")

    @service.health_check
    def disk() -> None:
        ran.append("disk")

    service.health_check(Checker())
    health = check_health(service, 1.0)
    assert health.status == "failing"
    assert health.problems == ["database: no route to the database", "Checker: LookupError"]
    assert ran == ["disk"]


def test_a_check_that_waits_is_refused() -> None:
    async def later() -> None: ...

    with pytest.raises(TypeError, match="health check later is async"):
        ServiceBase("shop").health_check(later)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "report",
    [
        Health("failing", ["disk: full"], "shop", 1, 2.5),
        Stats("shop", 1, 2.5, 3, 4, 5, CallCounts(1, 2, 3, 4, 5, 6), {"price": 7}),
    ],
)
def test_reports_travel(report: Any) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(report), type=type(report)) == report
