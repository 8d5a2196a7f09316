"""What a call promises, claim by claim, over both faces and over servers on both loops.

Each claim runs four times: called from blocking code and from asyncio, served on asyncio's loop and on uvloop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import logging
import math
import os
import threading
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest

import hostline
from hostline.errors import (
    AddressNotFoundError,
    CallCancelledError,
    ClosedError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    InvalidResultError,
    MethodDeniedError,
    MethodNotFoundError,
    OverloadedError,
    PeerRefusedError,
    RemoteError,
)
from tests.leaks import wait_until
from tests.serving import Journal, Stage, held_service, stages, takes_less_than

KINDS = ("task", "thread", "inline")


@pytest.fixture(params=stages())
def stage(request: pytest.FixtureRequest, sock_dir: Path) -> Iterator[Stage]:
    face, loop = request.param
    made = Stage(face, loop, sock_dir)
    yield made
    made.close()


def declare(service: hostline.Service, kind: str, function: Any, **options: Any) -> None:
    """Declare one plain function as a handler of the given kind."""
    if kind == "task":

        async def task(*args: Any, **keywords: Any) -> Any:
            return function(*args, **keywords)

        task.__name__ = function.__name__
        task.__wrapped__ = function  # type: ignore[attr-defined]
        task.__annotations__ = function.__annotations__
        service.method(**options)(task)
    else:
        service.method(inline=kind == "inline", **options)(function)


# --- arguments and results -----------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Order(msgspec.Struct):
    id: int
    sku: str
    price: float = 1.5


class Receipt(msgspec.Struct):
    order: int
    total: float


class Cat(msgspec.Struct, tag=True):
    name: str


class Dog(msgspec.Struct, tag=True):
    name: str
    age: int


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


@pytest.mark.parametrize("kind", KINDS)
def test_handlers_of_every_kind_take_arguments_by_position_and_by_name(stage: Stage, kind: str) -> None:
    service = hostline.Service("sums")

    def add(a: int, b: int = 10, *, c: int = 100) -> list[int]:
        return [a, b, c]

    declare(service, kind, add)
    stage.serve(service)
    line = stage.connect()
    assert line.call("add", 1) == [1, 10, 100]
    assert line.call("add", 1, 2) == [1, 2, 100]
    assert line.call("add", 1, c=3) == [1, 10, 3]
    assert line.call("add", b=5, a=4) == [4, 5, 100]
    assert line.call("add", 1, b=2, c=3) == [1, 2, 3]
    assert line.invoke("add", (7,), {"c": 8}) == [7, 10, 8]


NOW = datetime.datetime(2024, 2, 29, 12, 30, 45, 123456, tzinfo=datetime.UTC)


def echo_int(value: int) -> int:
    return value


def echo_struct(value: Order) -> Order:
    return value


def echo_dataclass(value: Point) -> Point:
    return value


def echo_union(value: Cat | Dog) -> Cat | Dog:
    return value


def echo_optional(value: int | None) -> int | None:
    return value


def echo_enum(value: Colour) -> Colour:
    return value


def echo_datetime(value: datetime.datetime) -> datetime.datetime:
    return value


def echo_bytes(value: bytes) -> bytes:
    return value


def echo_nested(value: dict[str, list[Order]]) -> dict[str, list[Order]]:
    return value


def echo_any(value: Any) -> Any:
    return value


VALUES: dict[Any, list[Any]] = {
    echo_int: [0, -1, 2**63 - 1],
    echo_struct: [Order(1, "tea"), Order(2, "käse \N{SNOWMAN}", 0.1)],
    echo_dataclass: [Point(1), Point(-1, 2)],
    echo_union: [Cat("Tom"), Dog("Rex", 3)],
    echo_optional: [None, 3],
    echo_enum: [Colour.RED],
    echo_datetime: [NOW],
    echo_bytes: [b"", b"\0\xff" * 1000, b"x" * 1_000_000],
    echo_nested: [{}, {"a": [Order(1, "x")], "b": []}],
    echo_any: [None, True, 1.5, "x", [1, [2, {"k": None}]]],
}


def test_values_arrive_as_they_were_sent(stage: Stage) -> None:
    service = hostline.Service("echo")
    for echo in VALUES:
        service.method(echo)
    stage.serve(service)
    line = stage.connect()
    for echo, values in VALUES.items():
        returns = typing.get_type_hints(echo)["return"]
        for value in values:
            assert line.call(echo.__name__, value, returns=returns) == value, echo
            assert line.call(echo.__name__, value=value, returns=returns) == value, echo


def test_a_result_that_nobody_described_arrives_as_plain_values(stage: Stage) -> None:
    service = hostline.Service("plain")
    service.method(name="echo")(echo_struct)
    stage.serve(service)
    assert stage.connect().call("echo", Order(1, "tea")) == {"id": 1, "sku": "tea", "price": 1.5}


WRONG_ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any], list[str]]] = [
    (("one", Order(1, "x")), {}, ["count", "int"]),
    ((1, {"id": 1, "sku": 2}), {}, ["order.sku", "str"]),
    ((1, {"id": 1}), {}, ["order", "sku", "missing"]),
    ((1,), {}, ["order", "missing"]),
    ((), {}, ["count", "missing"]),
    ((1, Order(1, "x"), 3), {}, ["3 arguments", "2"]),
    ((1,), {"oder": Order(1, "x")}, ["oder", "unknown"]),
    ((1,), {"count": 1, "order": Order(1, "x")}, ["count", "twice"]),
    ((1,), {"order": {"id": "x", "sku": "y"}}, ["order.id", "int"]),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_argument_is_named_and_the_handler_does_not_run(stage: Stage, kind: str) -> None:
    service = hostline.Service("strict")
    ran: list[object] = []

    def take(count: int, order: Order) -> int:
        ran.append(count)
        return count

    declare(service, kind, take)
    server = stage.serve(service)
    line = stage.connect()
    for args, keywords, words in WRONG_ARGUMENTS:
        with pytest.raises(InvalidArgumentError) as caught:
            line.invoke("take", args, keywords)
        assert isinstance(caught.value, ValueError)
        for word in [*words, "take"]:
            assert word in str(caught.value), (args, keywords)
    assert ran == []
    assert line.call("take", 1, Order(1, "x")) == 1
    server.wait_idle()


def test_an_argument_that_cannot_be_sent_is_refused_before_anything_is(stage: Stage) -> None:
    service = hostline.Service("strict")
    service.method(name="echo")(echo_any)
    server = stage.serve(service)
    line = stage.connect()
    for value in (object(), "\udc80", 2**70):
        with pytest.raises(InvalidArgumentError, match="cannot be encoded"):
            line.call("echo", value)
    assert server.stats().calls.finished == 0
    assert line.call("echo", 1) == 1


class Fussy(msgspec.Struct):
    value: int

    def __post_init__(self) -> None:
        if self.value == 1:
            raise ValueError("one is not welcome")
        if self.value == 2:
            raise KeyError("secret of the service")


@pytest.mark.parametrize("kind", KINDS)
def test_a_type_that_refuses_its_own_value_refuses_the_call(
    stage: Stage, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = hostline.Service("fussy")

    def take(value: Fussy) -> int:
        return value.value

    declare(service, kind, take)
    server = stage.serve(service, concurrency=1, queue=0)
    line = stage.connect()
    with pytest.raises(InvalidArgumentError, match="one is not welcome"):
        line.call("take", {"value": 1}, timeout=3)
    for _ in range(3):  # a slot that got lost would answer the next call with overload
        with pytest.raises(InternalError) as caught:
            line.call("take", {"value": 2}, timeout=3)
        assert "secret" not in str(caught.value)
    assert "secret of the service" in caplog.text
    assert line.call("take", {"value": 3}) == 3
    server.wait_idle()


# --- context -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_knows_who_calls_and_how_long_they_wait(stage: Stage, kind: str) -> None:
    service = hostline.Service("known")

    def who(word: str, context: hostline.Context) -> list[Any]:
        peer = context.peer
        left = None if context.time_left == math.inf else context.time_left
        return [word, peer.pid, peer.uid, peer.gid, list(peer.groups), left, context.method, context.is_cancelled]

    declare(service, kind, who)
    stage.serve(service)
    line = stage.connect()
    word, pid, uid, gid, groups, left, method, is_cancelled = line.call("who", "x", timeout=7)
    assert (word, pid, uid, gid) == ("x", os.getpid(), os.geteuid(), os.getegid())
    assert set(groups) == set(os.getgroups())
    assert 5 < left <= 7
    assert (method, is_cancelled) == ("who", False)
    assert line.call("who", word="x", timeout=math.inf)[5] is None
    assert 25 < line.call("who", "x")[5] <= 30


def test_each_call_on_a_connection_has_its_own_id(stage: Stage) -> None:
    service = hostline.Service("ids")

    @service.method
    async def number(context: hostline.Context) -> int:
        return context.call_id

    stage.serve(service)
    line = stage.connect()
    numbers = [line.call("number") for _ in range(5)]
    assert len(set(numbers)) == 5


# --- errors --------------------------------------------------------------------------------------------


class OutOfStock(Exception):
    pass


class SoldOut(OutOfStock):
    pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_declared_exception_arrives_by_name_and_message_or_as_the_callers_class(
    stage: Stage, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = hostline.Service("shop")

    def buy(what: str) -> None:
        if what == "coffee":
            raise SoldOut("no coffee before Monday")
        raise OutOfStock(f"no {what} left")

    declare(service, kind, buy, raises=OutOfStock)
    stage.serve(service)
    line = stage.connect()
    with pytest.raises(RemoteError) as caught:
        line.call("buy", "tea")
    assert (caught.value.name, caught.value.message) == ("OutOfStock", "no tea left")
    assert str(caught.value) == "OutOfStock: no tea left"
    with pytest.raises(OutOfStock, match="no tea left") as own:
        line.call("buy", "tea", raises=[OutOfStock])
    assert isinstance(own.value.__cause__, RemoteError)
    with pytest.raises(RemoteError) as caught:
        line.call("buy", "coffee", raises=[ValueError])
    assert caught.value.name == "OutOfStock"  # the name that the method declares, not the subclass
    assert caplog.records == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_undeclared_exception_shows_no_details_to_the_caller_and_all_of_them_in_the_log(
    stage: Stage, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = hostline.Service("leaky")

    def fail() -> None:
        secret = "password is hunter2"
        raise ValueError(secret)

    declare(service, kind, fail, raises=KeyError)
    stage.serve(service)
    line = stage.connect()
    with pytest.raises(InternalError) as caught:
        line.call("fail", raises=[ValueError])
    text = str(caught.value)
    assert "hunter2" not in text
    assert "ValueError" not in text
    assert __file__ not in text
    reference = text.split("reference ")[1].split()[0]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert reference in record.getMessage()
    assert f"pid {os.getpid()}" in record.getMessage()
    assert 'secret = "password is hunter2"' in caplog.text or "ValueError: password is hunter2" in caplog.text
    assert "in fail" in caplog.text


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("this exception has no text")


def deep(level: int = 0) -> int:
    return deep(level + 1)


STRANGE: dict[str, Any] = {
    "SystemExit": lambda: SystemExit(3),
    "StopIteration": lambda: StopIteration("x"),
    "StopAsyncIteration": lambda: StopAsyncIteration("x"),
    "GeneratorExit": lambda: GeneratorExit(),
    "TimeoutError": lambda: TimeoutError("the handler's own"),
    "group": lambda: ExceptionGroup("many", [ValueError("a"), KeyError("b")]),
    "group of exits": lambda: BaseExceptionGroup("many", [GeneratorExit()]),
    "unspeakable": lambda: Unspeakable(),
    "no hello": lambda: hostline.RemoteProtocolError("not the peer's fault"),
    "deadline": lambda: DeadlineExceededError("not the caller's deadline"),
    "unavailable": lambda: hostline.UnavailableError("of another service"),
    "memory": lambda: MemoryError(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_handler_raises_its_caller_gets_an_internal_error_and_the_service_lives(
    stage: Stage, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = hostline.Service("strange")

    def fail(name: str) -> None:
        error: BaseException = STRANGE[name]()
        raise error

    declare(service, kind, fail)
    service.method(name="echo")(echo_int)
    server = stage.serve(service, concurrency=1, queue=0)
    line = stage.connect()
    for name in STRANGE:
        caplog.clear()
        with pytest.raises(InternalError, match=r"internal error in strange\.fail"):
            line.call("fail", name, timeout=3)
        assert line.call("echo", 1, timeout=3) == 1, name
        assert [record.levelno for record in caplog.records] == [logging.ERROR], name
    server.wait_idle()


@pytest.mark.parametrize("kind", ["thread"])
def test_keyboard_interrupt_in_a_worker_is_a_failure_like_any_other(stage: Stage, kind: str) -> None:
    service = hostline.Service("strange")

    def fail() -> None:
        raise KeyboardInterrupt

    declare(service, kind, fail)
    stage.serve(service)
    with pytest.raises(InternalError):
        stage.connect().call("fail", timeout=3)


@pytest.mark.parametrize("kind", KINDS)
def test_endless_recursion_in_a_handler_is_an_internal_error(stage: Stage, kind: str) -> None:
    service = hostline.Service("deep")
    declare(service, kind, deep)
    server = stage.serve(service)
    with pytest.raises(InternalError):
        stage.connect().call("deep", timeout=10)
    server.wait_idle()


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_that_raises_cancelled_error_itself_cancels_its_call(stage: Stage, kind: str) -> None:
    service = hostline.Service("quits")

    def leave() -> None:
        raise asyncio.CancelledError

    declare(service, kind, leave)
    service.method(name="echo")(echo_int)
    server = stage.serve(service, concurrency=1, queue=0)
    line = stage.connect()
    with pytest.raises(CallCancelledError):
        line.call("leave", timeout=3)
    assert line.call("echo", 1, timeout=3) == 1
    server.wait_idle()


TEXTS: dict[str, tuple[str, str | None]] = {
    "empty": ("", ""),
    "huge": ("x" * 1_000_000, None),
    "surrogates": ("file \udc80\udcff.txt", "file \\udc80\\udcff.txt"),
    "control": ("zero \0 and escape \x1b[31m", "zero \0 and escape \x1b[31m"),
    "wide": ("\N{GRINNING FACE}" * 5000, None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_of_a_declared_exception_can_travel(stage: Stage, kind: str) -> None:
    service = hostline.Service("texts")

    def fail(name: str) -> None:
        raise OutOfStock(TEXTS[name][0])

    declare(service, kind, fail, raises=OutOfStock)
    stage.serve(service)
    line = stage.connect()
    for name, (text, expected) in TEXTS.items():
        with pytest.raises(RemoteError) as caught:
            line.call("fail", name)
        message = caught.value.message
        if expected is None:  # cut, and it says so
            assert message.endswith("..."), name
            assert text.startswith(message[:-3]), name
            assert 4000 < len(message.encode()) <= 4096, name
        else:
            assert message == expected, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_declared_exception_without_a_text_still_arrives_by_name(
    stage: Stage, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = hostline.Service("mute")

    def fail() -> None:
        raise Unspeakable

    declare(service, kind, fail, raises=Unspeakable)
    server = stage.serve(service, concurrency=1, queue=0)
    line = stage.connect()
    for _ in range(2):
        with pytest.raises(RemoteError) as caught:
            line.call("fail", timeout=3)
        assert caught.value.name == "Unspeakable"
    server.wait_idle()


class Partial(msgspec.Struct):
    value: int


def unset() -> Partial:
    made = Partial(1)
    del made.value
    return made


def endless() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


class Unreadable:
    @property
    def __dataclass_fields__(self) -> Any:
        raise RuntimeError("the service's own secret")


UNSENDABLE: dict[str, Any] = {
    "object": object,
    "function": lambda: deep,
    "surrogate": lambda: "\udc80",
    "huge number": lambda: 2**70,
    "ring": endless,
    "unset field": unset,
    "property that raises": Unreadable,
    "too large": lambda: b"x" * (2 << 20),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_that_cannot_be_sent_is_an_internal_error_that_keeps_the_value_secret(
    stage: Stage, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = hostline.Service("results")

    def give(name: str) -> Any:
        return UNSENDABLE[name]()

    declare(service, kind, give)
    service.method(name="echo")(echo_int)
    server = stage.serve(service, concurrency=1, queue=0)
    line = stage.connect()
    for name in UNSENDABLE:
        caplog.clear()
        with pytest.raises(InternalError) as caught:
            line.call("give", name, timeout=3)
        assert "results.give" in str(caught.value), name
        assert "secret" not in str(caught.value), name
        assert line.call("echo", 1, timeout=3) == 1, name
        assert len(caplog.records) == 1, name
    server.wait_idle()


def test_a_result_of_another_type_than_expected_is_told_at_the_caller(stage: Stage) -> None:
    service = hostline.Service("types")
    service.method(name="echo")(echo_any)
    stage.serve(service)
    line = stage.connect()
    with pytest.raises(InvalidResultError, match="expected type"):
        line.call("echo", "text", returns=int)
    with pytest.raises(InvalidResultError, match="sku"):
        line.call("echo", {"id": 1}, returns=Order)
    assert line.call("echo", 5, returns=int) == 5


def test_a_result_type_that_nothing_can_be_decoded_into_is_refused_before_the_call(stage: Stage) -> None:
    service = hostline.Service("types")
    ran: list[int] = []
    service.method(name="note")(ran_int(ran))
    stage.serve(service)
    line = stage.connect()
    for wrong in (list[int] | set[int], "int", 3):
        with pytest.raises(TypeError):
            line.call("note", 1, returns=wrong)
    assert ran == []


def ran_int(ran: list[int]) -> Any:
    def note(value: int) -> None:
        ran.append(value)

    return note


def test_an_unknown_method_is_told_with_a_hint_and_without_a_call(stage: Stage) -> None:
    service = hostline.Service("shop")
    service.method(name="charge")(echo_int)
    server = stage.serve(service)
    line = stage.connect()
    with pytest.raises(MethodNotFoundError, match="did you mean 'charge'"):
        line.call("chrage", 1)
    with pytest.raises(LookupError, match="it has charge"):
        line.call("xyz", 1)
    assert server.stats().calls.finished == 0
    assert line.call("charge", 1) == 1


# --- deadlines and cancellation ------------------------------------------------------------------------


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    made = threading.Event()
    yield made
    made.set()


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.mark.parametrize("method", ["task", "thread"])
def test_at_the_deadline_the_caller_is_free_and_the_handler_knows(
    stage: Stage, gate: threading.Event, journal: Journal, method: str
) -> None:
    server = stage.serve(held_service(journal, gate))
    line = stage.connect()
    with takes_less_than(1.5), pytest.raises(DeadlineExceededError, match=r"0\.2 seconds|deadline of") as caught:
        line.call(method, "a", timeout=0.2)
    assert isinstance(caught.value, TimeoutError)
    journal.wait_for("cancelled a")
    assert line.call("quick", "b") == "b"
    server.wait_idle()


def test_at_the_deadline_the_caller_is_free_though_the_handler_hears_nothing(
    stage: Stage, gate: threading.Event, journal: Journal
) -> None:
    server = stage.serve(held_service(journal, gate), concurrency=1)
    line = stage.connect()
    with takes_less_than(1.5), pytest.raises(DeadlineExceededError):
        line.call("stubborn", "a", timeout=0.1)
    assert server.running_count == 1  # its slot is not free before it has ended
    assert line.call("quick", "b") == "b"
    gate.set()
    server.wait_idle()
    assert journal.lines == ["started a", "finished a"]


@pytest.mark.parametrize("method", ["task", "thread", "stubborn"])
def test_a_call_whose_deadline_passes_in_the_queue_never_runs(
    stage: Stage, gate: threading.Event, journal: Journal, method: str
) -> None:
    server = stage.serve(held_service(journal, gate), concurrency=1)
    line = stage.connect()
    first = line.start("stubborn", "first", timeout=10)
    journal.wait_for("started first")
    with takes_less_than(1.5), pytest.raises(DeadlineExceededError):
        line.call(method, "late", timeout=0.1)
    assert wait_until(lambda: server.waiting_count == 0)
    gate.set()
    assert first.result(5) == "first"
    assert line.call("task", "after") == "after"
    assert journal.count("started late") == 0


def test_def_calls_that_wait_for_a_thread_expire_without_running(
    stage: Stage, gate: threading.Event, journal: Journal
) -> None:
    server = stage.serve(held_service(journal, gate), threads=1)
    line = stage.connect()
    first = line.start("stubborn", "first", timeout=10)
    journal.wait_for("started first")
    with pytest.raises(DeadlineExceededError):
        line.call("stubborn", "late", timeout=0.1)
    assert wait_until(lambda: server.stats().calls.failed == 1)  # the server knows it too
    gate.set()
    assert first.result(5) == "first"
    server.wait_idle()
    assert journal.count("started late") == 0


def test_a_timeout_of_zero_fails_and_one_below_is_a_mistake(
    stage: Stage, gate: threading.Event, journal: Journal
) -> None:
    server = stage.serve(held_service(journal, gate))
    line = stage.connect()
    with pytest.raises(DeadlineExceededError):
        line.call("task", "a", timeout=0)
    for wrong in (-1, math.nan):
        with pytest.raises(ValueError, match="timeout"):
            line.call("task", "b", timeout=wrong)
    assert journal.count("started b") == 0
    assert line.call("quick", "c", timeout=1e12) == "c"
    server.wait_idle()


def test_the_lines_own_timeout_holds_where_a_call_names_none(
    stage: Stage, gate: threading.Event, journal: Journal
) -> None:
    stage.serve(held_service(journal, gate))
    line = stage.connect(timeout=0.1)
    with takes_less_than(1.5), pytest.raises(DeadlineExceededError):
        line.call("task", "a")
    with takes_less_than(1.5), pytest.raises(DeadlineExceededError):
        line.call("task", "b")


def test_after_a_deadline_the_next_call_gets_its_own_answer(
    stage: Stage, gate: threading.Event, journal: Journal
) -> None:
    service = hostline.Service("late")

    @service.method
    async def after(seconds: float, label: str) -> str:
        await asyncio.sleep(seconds)
        return label

    @service.method
    def block(seconds: float, label: str) -> str:
        time.sleep(seconds)
        return label

    server = stage.serve(service)
    line = stage.connect()
    for number in range(30):
        name = "after" if number % 2 else "block"
        try:
            assert line.call(name, 0.01, f"late {number}", timeout=0.009 + (number % 3) * 0.001) == f"late {number}"
        except DeadlineExceededError:
            pass
        assert line.call(name, 0.0, f"next {number}") == f"next {number}"
    server.wait_idle()


def test_an_answer_does_not_wait_for_the_deadline_of_another(
    stage: Stage, gate: threading.Event, journal: Journal
) -> None:
    stage.serve(held_service(journal, gate))
    line = stage.connect()
    held = line.start("task", "a", timeout=10)
    journal.wait_for("started a")
    with takes_less_than(2):
        assert line.call("quick", "b") == "b"
    gate.set()
    assert held.result(5) == "a"


# --- concurrency and overload --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["task", "thread"])
def test_so_many_run_so_many_wait_and_the_next_is_refused_at_once(
    stage: Stage, gate: threading.Event, journal: Journal, method: str
) -> None:
    server = stage.serve(held_service(journal, gate), concurrency=2, queue=3)
    line = stage.connect()
    held = [line.start(method, f"{number}", timeout=15) for number in range(5)]
    assert wait_until(lambda: (server.running_count, server.waiting_count) == (2, 3))
    journal.wait_for("started", 2)
    with takes_less_than(1.5), pytest.raises(OverloadedError, match="runs 2 calls and 3 wait") as caught:
        line.call(method, "too many", timeout=15)
    assert caught.value.is_retryable
    assert line.call("quick", "inline needs no slot") == "inline needs no slot"
    assert journal.count("started") == 2
    gate.set()
    assert [future.result(5) for future in held] == ["0", "1", "2", "3", "4"]
    server.wait_idle()
    stats = server.stats()
    assert (stats.calls.overloaded, stats.calls.failed, stats.methods[method]) == (1, 1, 5)
    assert line.call(method, "again") == "again"


def test_without_a_queue_a_second_call_is_refused(stage: Stage, gate: threading.Event, journal: Journal) -> None:
    stage.serve(held_service(journal, gate), concurrency=1, queue=0)
    line = stage.connect()
    held = line.start("task", "a")
    journal.wait_for("started a")
    with pytest.raises(OverloadedError):
        line.call("task", "b")
    gate.set()
    assert held.result(5) == "a"


def test_connections_take_turns_in_the_queue(stage: Stage, gate: threading.Event, journal: Journal) -> None:
    server = stage.serve(held_service(journal, gate), concurrency=1, queue=100)
    greedy, modest = stage.connect(), stage.connect()
    first = greedy.start("stubborn", "first")
    journal.wait_for("started first")
    many = [greedy.start("thread", f"greedy {number}") for number in range(8)]
    assert wait_until(lambda: server.waiting_count == 8)
    one = modest.start("thread", "modest")
    assert wait_until(lambda: server.waiting_count == 9)
    gate.set()
    assert one.result(5) == "modest"
    assert [future.result(5) for future in [first, *many]] == ["first", *(f"greedy {number}" for number in range(8))]
    started = [line.removeprefix("started ") for line in journal.lines if line.startswith("started")]
    # The blocking line has a connection for each of its calls, so that there the turns go round all of them.
    place = started.index("modest")
    assert place <= 2 if stage.is_async else place <= 9
    server.wait_idle()


# --- what every service answers ------------------------------------------------------------------------


def test_every_service_tells_its_health_and_its_numbers(stage: Stage) -> None:
    service = hostline.Service("watched")
    service.method(name="echo")(echo_int)
    server = stage.serve(service)
    line = stage.connect()
    health = line.call("hostline.health")
    assert (health["status"], health["service"], health["pid"]) == ("ok", "watched", os.getpid())
    assert 0 <= health["uptime"] < 60
    line.call("echo", 1)
    with pytest.raises(InvalidArgumentError):
        line.call("echo", "x")
    stats = line.call("hostline.stats")
    assert stats["service"] == "watched"
    assert (stats["connections"], stats["connections_total"], stats["connections_refused"]) == (1, 1, 0)
    assert (stats["calls"]["finished"], stats["calls"]["failed"]) == (3, 1)
    assert stats["calls"]["running"] == stats["calls"]["waiting"] == 0
    assert stats["methods"] == {"hostline.health": 1, "echo": 1}
    server.wait_idle()


def test_describe_carries_json_schemas_of_arguments_and_results(stage: Stage) -> None:
    service = hostline.Service("shop", version="1.2", doc="\n    Sells things.\n    ")

    @service.method(raises=OutOfStock, idempotent=True)
    async def price(order: Order, where: Point | None = None, *, at: datetime.datetime | None = None) -> Receipt:
        """Return the price."""
        return Receipt(order.id, order.price)

    @service.method
    def pet(animal: Cat | Dog, context: hostline.Context) -> list[Colour]:
        return [Colour.RED]

    stage.serve(service)
    described = stage.connect().call("hostline.describe")
    assert (described["name"], described["version"], described["doc"]) == ("shop", "1.2", "Sells things.")
    price_, pet_ = described["methods"]
    assert (price_["name"], price_["doc"], price_["is_idempotent"]) == ("price", "Return the price.", True)
    assert (price_["execution"], price_["raises"]) == ("task", ["OutOfStock"])
    assert [(p["name"], p["is_required"], p["is_positional"]) for p in price_["parameters"]] == [
        ("order", True, True),
        ("where", False, True),
        ("at", False, False),
    ]
    assert [p["name"] for p in pet_["parameters"]] == ["animal"]  # the context is not the caller's business
    schema = {"$defs": described["definitions"], **price_["parameters"][0]["schema"]}
    check_schema(schema, {"id": 1, "sku": "tea"}, is_valid=True)
    check_schema(schema, {"id": "x", "sku": "tea"}, is_valid=False)
    check_schema({"$defs": described["definitions"], **price_["returns"]}, {"order": 1, "total": 1.0}, is_valid=True)
    animal = {"$defs": described["definitions"], **pet_["parameters"][0]["schema"]}
    check_schema(animal, {"type": "Dog", "name": "Rex", "age": 3}, is_valid=True)
    check_schema(animal, {"type": "Cow", "name": "Rex"}, is_valid=False)


def check_schema(schema: dict[str, Any], value: Any, *, is_valid: bool) -> None:
    """Judge a value by a JSON Schema, with as much of the standard as msgspec writes."""
    assert conforms(schema, value, schema["$defs"]) is is_valid


def conforms(schema: dict[str, Any], value: Any, definitions: dict[str, Any]) -> bool:
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        return conforms(definitions[name], value, definitions)
    if "anyOf" in schema:
        return any(conforms(option, value, definitions) for option in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    kinds = {"integer": int, "number": (int, float), "string": str, "object": dict, "array": list, "null": type(None)}
    if not isinstance(value, kinds[schema["type"]]):
        return False
    if schema["type"] != "object":
        return True
    return all(name in value for name in schema.get("required", ())) and all(
        conforms(part, value[name], definitions) for name, part in schema.get("properties", {}).items() if name in value
    )


def test_the_librarys_own_names_cannot_be_taken() -> None:
    service = hostline.Service("greedy")
    with pytest.raises(ValueError, match="the library's own"):
        service.method(name="hostline.health")(echo_int)


# --- interfaces ----------------------------------------------------------------------------------------


class Shop(hostline.Interface, Protocol):
    """The shop, for blocking code."""

    def price(self, order: Order, *, extra: float = 0.0) -> Receipt: ...

    @hostline.raises(OutOfStock)
    def buy(self, what: str) -> None: ...


class AsyncShop(hostline.aio.Interface, Protocol):
    """The shop, for asyncio."""

    async def price(self, order: Order, *, extra: float = 0.0) -> Receipt: ...

    @hostline.raises(OutOfStock)
    async def buy(self, what: str) -> None: ...


class Bigger(Shop, Protocol):
    def sell(self, what: str) -> None: ...


class AsyncBigger(AsyncShop, Protocol):
    async def sell(self, what: str) -> None: ...


class MixedUp(hostline.Interface, Protocol):
    async def price(self, order: Order) -> Receipt: ...


class AsyncMixedUp(hostline.aio.Interface, Protocol):
    def price(self, order: Order) -> Receipt: ...


class Undecodable(hostline.Interface, Protocol):
    def price(self, order: Order) -> list[int] | set[int]: ...


class AsyncUndecodable(hostline.aio.Interface, Protocol):
    async def price(self, order: Order) -> list[int] | set[int]: ...


class Silent(hostline.Interface, Protocol):
    def price(self, order: Order): ...  # type: ignore[no-untyped-def]


class AsyncSilent(hostline.aio.Interface, Protocol):
    async def price(self, order: Order): ...  # type: ignore[no-untyped-def]


class Variadic(hostline.Interface, Protocol):
    def price(self, *orders: Order) -> Receipt: ...


class AsyncVariadic(hostline.aio.Interface, Protocol):
    async def price(self, *orders: Order) -> Receipt: ...


def shop_service() -> hostline.Service:
    service = hostline.Service("shop")

    @service.method
    async def price(order: Order, *, extra: float = 0.0) -> Receipt:
        if order.sku == "slow":
            await asyncio.sleep(20)
        return Receipt(order.id, order.price + extra)

    @service.method(raises=OutOfStock)
    def buy(what: str) -> None:
        raise OutOfStock(what)

    return service


def test_an_interface_calls_by_method_with_types(stage: Stage) -> None:
    stage.serve(shop_service())
    line = stage.connect(interface=stage.interface((Shop, AsyncShop)))
    assert line.stub("price", Order(1, "tea", 2.0)) == Receipt(1, 2.0)
    assert line.stub("price", order=Order(1, "tea", 2.0), extra=1.0) == Receipt(1, 3.0)
    with pytest.raises(OutOfStock, match="tea"):
        line.stub("buy", "tea")
    with pytest.raises(TypeError, match="order"):  # as the function itself would say, and nothing is sent
        line.stub("price", orders=Order(1, "tea"))
    with takes_less_than(3), pytest.raises(DeadlineExceededError):
        line.stub("price", Order(1, "slow"), with_timeout=0.1)


def test_an_interface_with_a_method_that_the_service_lacks_is_refused_at_connect(stage: Stage) -> None:
    server = stage.serve(shop_service())
    with pytest.raises(MethodNotFoundError, match=r"no method sell: it has buy, price"):
        stage.connect(interface=stage.interface((Bigger, AsyncBigger)))
    assert wait_until(lambda: server.connection_count == 0)


def test_an_interface_of_the_other_face_is_refused(stage: Stage) -> None:
    server = stage.serve(shop_service())
    name = "hostline.aio.Interface" if stage.is_async else "hostline.Interface"
    with pytest.raises(TypeError, match=f"does not inherit {name}"):
        stage.connect(interface=stage.interface((AsyncShop, Shop)))
    with pytest.raises(TypeError, match="must be declared with"):
        stage.connect(interface=stage.interface((MixedUp, AsyncMixedUp)))
    assert wait_until(lambda: server.connection_count == 0)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ((Undecodable, AsyncUndecodable), "more than one array-like"),
        ((Silent, AsyncSilent), "has no result annotation"),
        ((Variadic, AsyncVariadic), "variadic"),
    ],
)
def test_an_interface_that_cannot_work_is_refused_at_connect(stage: Stage, pair: Any, words: str) -> None:
    stage.serve(shop_service())
    with pytest.raises(TypeError, match=words):
        stage.connect(interface=stage.interface(pair))


# --- connecting, leaving, coming back ------------------------------------------------------------------


def test_nobody_there_is_told_at_once(stage: Stage) -> None:
    with takes_less_than(2), pytest.raises(AddressNotFoundError) as caught:
        stage.connect()
    assert stage.address in str(caught.value)


def test_a_line_can_wait_for_a_server_that_starts_later(stage: Stage) -> None:
    timer = threading.Timer(0.3, lambda: stage.serve(shop_service()))
    timer.start()
    try:
        line = stage.connect(wait=10)
        assert line.call("price", Order(1, "tea"), returns=Receipt) == Receipt(1, 1.5)
    finally:
        timer.join()


def test_waiting_for_a_server_that_never_starts_ends(stage: Stage) -> None:
    started = time.monotonic()
    with pytest.raises(AddressNotFoundError):
        stage.connect(wait=0.3)
    assert 0.25 < time.monotonic() - started < 3


def test_calls_go_on_after_the_server_was_restarted(stage: Stage) -> None:
    server = stage.serve(shop_service())
    line = stage.connect()
    for _ in range(3):
        assert line.call("price", Order(1, "tea"), returns=Receipt) == Receipt(1, 1.5)
        server.stop()
        server = stage.serve(shop_service())
    assert line.call("price", Order(1, "tea"), returns=Receipt) == Receipt(1, 1.5)


def test_a_call_waits_for_a_server_that_is_just_away(stage: Stage) -> None:
    server = stage.serve(shop_service())
    line = stage.connect()
    assert line.call("price", Order(1, "tea"), returns=Receipt) == Receipt(1, 1.5)
    server.stop()
    timer = threading.Timer(0.4, lambda: stage.serve(shop_service()))
    timer.start()
    try:
        assert line.call("price", Order(2, "tea"), returns=Receipt, timeout=10) == Receipt(2, 1.5)
    finally:
        timer.join()


def test_a_call_to_a_server_that_stays_away_ends_with_its_deadline_or_the_lines_patience(stage: Stage) -> None:
    server = stage.serve(shop_service())
    line = stage.connect(reconnect_timeout=0.5)
    server.stop()
    with takes_less_than(3), pytest.raises(AddressNotFoundError):
        line.call("price", Order(1, "tea"), timeout=20)
    patient = Stage(stage.face, stage.loop, stage.directory)
    server = patient.serve(shop_service())
    try:
        waiting = patient.connect(reconnect_timeout=20)
        server.stop()
        with takes_less_than(3), pytest.raises((DeadlineExceededError, AddressNotFoundError)):
            waiting.call("price", Order(1, "tea"), timeout=0.3)
    finally:
        patient.close()


def test_a_graceful_stop_answers_what_runs_and_what_waits(
    stage: Stage, gate: threading.Event, journal: Journal
) -> None:
    server = stage.serve(held_service(journal, gate), concurrency=1)
    line = stage.connect()
    held = [line.start("task", f"{number}") for number in range(3)]
    assert wait_until(lambda: server.waiting_count == 2)
    stopping = server.on_loop.start(server.server.shutdown(10))
    assert wait_until(lambda: not os.path.exists(stage.address))
    gate.set()
    assert [future.result(5) for future in held] == ["0", "1", "2"]
    stopping.result(5)


def test_calls_that_outlast_the_grace_end_with_an_error_that_promises_nothing(
    stage: Stage, gate: threading.Event, journal: Journal
) -> None:
    server = stage.serve(held_service(journal, gate), concurrency=1)
    line = stage.connect(reconnect_timeout=0.1)
    held = line.start("task", "a")
    journal.wait_for("started a")
    queued = line.start("task", "b")
    assert wait_until(lambda: server.waiting_count == 1)
    with takes_less_than(5):
        server.stop(grace=0.1)
    with pytest.raises(hostline.UnavailableError) as caught:
        queued.result(5)
    assert caught.value.is_safe_to_repeat, "it was never begun"
    with pytest.raises(hostline.UnavailableError) as caught:
        held.result(5)
    assert not caught.value.is_safe_to_repeat
    assert "stopped before the call was done" in str(caught.value)
    assert journal.lines == ["started a", "cancelled a"]


def test_a_closed_line_says_so(stage: Stage) -> None:
    stage.serve(shop_service())
    line = stage.connect()
    if stage.is_async:
        line.on_loop.run(line.line.close())
        line.on_loop.run(line.line.close())
    else:
        line.line.close()
        line.line.close()
    with pytest.raises(ClosedError):
        line.call("price", Order(1, "tea"))
    assert line.line.is_closed
    assert "closed" in repr(line.line)


def test_closing_a_line_ends_the_calls_on_it(stage: Stage, gate: threading.Event, journal: Journal) -> None:
    server = stage.serve(held_service(journal, gate))
    line = stage.connect()
    held = [line.start("task", "a", timeout=15), line.start("thread", "b", timeout=15)]
    journal.wait_for("started", 2)
    with takes_less_than(3):
        if stage.is_async:
            line.on_loop.run(line.line.close())
        else:
            line.line.close()
        for future in held:
            with pytest.raises(ClosedError):
                future.result(5)
    journal.wait_for("cancelled", 2)
    server.wait_idle()


# --- who may call --------------------------------------------------------------------------------------


def test_a_server_run_by_somebody_else_gets_not_one_byte(stage: Stage) -> None:
    server = stage.serve(shop_service())
    with pytest.raises(PeerRefusedError) as caught:
        stage.connect(server=hostline.Peers(uids=[54321]))
    assert isinstance(caught.value, PermissionError)
    assert "nothing was sent" in str(caught.value)
    assert "54321" in str(caught.value)
    assert wait_until(lambda: server.connection_count == 0)


def test_a_refused_peer_is_told_the_reason_in_words(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    server = stage.serve(shop_service(), allow=hostline.Peers(uids=[54321]))
    for _ in range(20):  # also when the farewell races with our own hello
        with pytest.raises(PeerRefusedError) as caught:
            stage.connect()
        assert f"uid {os.geteuid()}" in str(caught.value)
        assert "54321" in str(caught.value)
    assert server.stats().connections_refused == 20
    assert server.connection_count == 0
    assert "refused uid" in caplog.text


def test_a_method_can_be_kept_from_those_who_may_connect(stage: Stage, gate: threading.Event, journal: Journal) -> None:
    service = hostline.Service("doors")
    ran: list[str] = []

    @service.method(allow=hostline.Peers(uids=[54321]))
    async def locked(word: str) -> str:
        ran.append(word)
        return word

    @service.method(allow=hostline.Peers(uids=[os.geteuid()]))
    async def ours(word: str) -> str:
        return word

    stage.serve(service)
    line = stage.connect()
    with pytest.raises(MethodDeniedError, match=r"locked: uid .* is not admitted") as caught:
        line.call("locked", "x")
    assert isinstance(caught.value, PermissionError)
    assert ran == []
    assert line.call("ours", "x") == "x"


# --- sizes ---------------------------------------------------------------------------------------------


def test_frames_are_bounded_in_both_directions_and_the_line_survives(stage: Stage) -> None:
    service = hostline.Service("sizes")

    @service.method
    async def length(data: bytes) -> int:
        return len(data)

    @service.method
    async def make(size: int) -> bytes:
        return b"x" * size

    stage.serve(service, max_frame_size=10_000)
    line = stage.connect(max_frame_size=5_000)
    assert line.call("length", b"x" * 9_900) == 9_900
    with pytest.raises(InvalidArgumentError, match="exceed max_frame_size 10000"):
        line.call("length", b"x" * 10_000)
    assert len(line.call("make", 4_900)) == 4_900
    with pytest.raises(InternalError, match="cannot be sent"):
        line.call("make", 5_000)
    assert line.call("length", b"") == 0


def test_a_server_can_be_given_larger_frames(stage: Stage) -> None:
    service = hostline.Service("sizes")
    service.method(name="echo")(echo_bytes)
    stage.serve(service, max_frame_size=16 << 20)
    line = stage.connect(max_frame_size=16 << 20)
    data = os.urandom(1 << 20) * 15
    assert line.call("echo", data, returns=bytes) == data


# --- inside the service --------------------------------------------------------------------------------


def test_a_def_handler_may_call_its_own_service(stage: Stage) -> None:
    service = hostline.Service("self")

    @service.method
    def countdown(number: int) -> int:
        if number == 0:
            return 0
        with hostline.connect(stage.address) as line:
            return 1 + int(line.call("countdown", number - 1))

    server = stage.serve(service)
    assert stage.connect().call("countdown", 5) == 5
    server.wait_idle()


def test_an_async_handler_may_call_its_own_service(stage: Stage) -> None:
    service = hostline.Service("self")

    @service.method
    async def countdown(number: int) -> int:
        if number == 0:
            return 0
        async with hostline.aio.connect(stage.address) as line:
            return 1 + int(await line.call("countdown", number - 1))

    server = stage.serve(service)
    assert stage.connect().call("countdown", 20) == 20
    server.wait_idle()


# --- addresses -----------------------------------------------------------------------------------------


def test_a_service_can_be_reached_by_every_kind_of_address(stage: Stage) -> None:
    name = f"hl-test-{os.getpid()}-{time.monotonic_ns()}"
    for address in (f"unix:@{name}", f"unix:{stage.address}", name, str(stage.directory / ("d" * 120) / "x.sock")):
        if "/dd" in address:
            os.mkdir(os.path.dirname(address), 0o700)
        with stage.serve(shop_service(), address):
            line = stage.connect(address)
            assert line.call("price", Order(1, "tea"), returns=Receipt) == Receipt(1, 1.5)
            line.close()


def test_a_service_can_be_given_a_listening_socket(stage: Stage) -> None:
    listener = hostline.listen(stage.address)
    with listener:
        fd = os.dup(listener.fileno())
        server = stage.serve(shop_service(), f"fd:{fd}")
        line = stage.connect()
        assert line.call("price", Order(1, "tea"), returns=Receipt) == Receipt(1, 1.5)
        line.close()
        server.stop()
        assert os.path.exists(stage.address)  # the file belongs to whoever made it
