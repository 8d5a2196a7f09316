"""What the payloads of frames are decoded into: each decoder gives a value or its one documented error."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import random
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import msgspec
import pytest
from tests.fuzz import mutate
from tests.fuzz.harness import Case, Outcome, check_memory, check_tally, count_of, fuzz
from tests.golden import vectors

from hostline.errors import InvalidArgumentError, InvalidResultError, RemoteProtocolError
from hostline.wire.codec import (
    MAGIC,
    ClientHello,
    MethodEntry,
    ServerHello,
    decode_credit,
    decode_failure,
    decode_farewell,
    decode_hello,
    decode_result,
    encode_call,
    encode_credit,
    encode_failure,
    encode_farewell,
    encode_hello,
    hello_version,
    split_call,
)
from hostline.wire.context import encode_context
from hostline.wire.frame import HEADER_SIZE, Frame, Kind
from hostline.wire.schema import Signature


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Order(msgspec.Struct):
    id: int
    sku: Annotated[str, msgspec.Meta(max_length=64, pattern="^[a-z]+$")]
    quantity: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    price: float = 0.0


class Cat(msgspec.Struct, tag="cat"):
    lives: int


class Dog(msgspec.Struct, tag="dog"):
    name: str
    friends: list[Cat | Dog] = []


@dataclasses.dataclass
class Window:
    since: datetime.datetime
    length: datetime.timedelta
    day: datetime.date
    hour: datetime.time | None = None


def charge(order: Order, currency: str = "EUR") -> None: ...
def scalars(a: int, b: float, c: bool, d: str, e: bytes, f: None) -> None: ...
def times(window: Window, at: datetime.datetime, every: datetime.timedelta = datetime.timedelta(1)) -> None: ...
def exact(total: decimal.Decimal, key: uuid.UUID, colour: Colour, mode: Literal["a", 1] = "a") -> None: ...
def containers(
    a: list[int], b: dict[str, float], c: set[str], d: tuple[int, ...] = (), *, e: frozenset[int] = frozenset()
) -> None: ...
def keyed(
    a: dict[int, str], b: dict[datetime.date, int], c: dict[tuple[int, int], Any], d: dict[float, int]
) -> None: ...
def open_ended(value: Any, more: Any = None, /, extra: dict[Any, Any] | None = None, *, last: Any = 0) -> None: ...
def animals(pets: list[Cat | Dog], best: Cat | Dog | None = None) -> None: ...
def raw(value: msgspec.Raw, data: bytearray, view: memoryview | None = None) -> None: ...
def nothing() -> None: ...


NOW: Final = datetime.datetime(2026, 1, 2, 3, 4, 5, 600000, tzinfo=datetime.UTC)
WINDOW: Final = Window(NOW, datetime.timedelta(seconds=1.5), NOW.date(), NOW.time())
KEYED: Final = ({1: "a"}, {NOW.date(): 1}, {(1, 2): None}, {1.5: 1})

# Functions with arguments, by position and by name, that they take.
SIGNATURES: Final[list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]] = [
    (charge, (Order(1, "tea", 2, 4.5), "EUR"), {}),
    (charge, (Order(1, "tea"),), {"currency": "USD"}),
    (scalars, (1, 2.5, True, "x", b"\x00\xff", None), {}),
    (scalars, (1, 2), {"c": False, "d": "", "e": b"", "f": None}),
    (times, (WINDOW, NOW), {}),
    (times, (WINDOW, NOW, datetime.timedelta(days=3)), {}),
    (exact, (decimal.Decimal("1.50"), uuid.UUID(int=1), Colour.RED, 1), {}),
    (exact, (1,), {"key": uuid.UUID(int=2), "colour": Colour.BLUE}),
    (containers, ([1, 2, 3], {"a": 1.0, "b": 2}, {"x", "y"}, (1, 2)), {}),
    (containers, ([], {}, set()), {"e": frozenset({1, 2})}),
    (keyed, KEYED, {}),
    (open_ended, ([1, {"a": [None, b"x"]}], {}, {"k": 1}), {}),
    (open_ended, (NOW,), {"last": [[[]]], "extra": {1: 2}}),
    (animals, ([Cat(9), Dog("rex", [Dog("b", [Cat(1)])])], Cat(3)), {}),
    (animals, ([],), {"best": None}),
    (raw, (msgspec.Raw(b"\x90"), b"abc", b"x"), {}),
    (nothing, (), {}),
]
DECODERS: Final = {function.__name__: Signature(function) for function, _, _ in SIGNATURES}
ANNOTATIONS: Final = {
    f"{name}.{parameter.name}": parameter.annotation
    for name, signature in DECODERS.items()
    for parameter in signature.parameters
}


def _payload(frame: bytes | bytearray) -> bytes:
    return bytes(frame[HEADER_SIZE:])


# --- codec ---------------------------------------------------------------------------------------------

HELLOS: Final = tuple(
    _payload(encode_hello(hello))
    for hello in (
        ClientHello(program="example"),
        ClientHello(program="é" * 128, features=["x" * 64] * 64, max_frame_size=1024),
        ClientHello(program="", features=[], max_frame_size=0xFFFF_FFFF),
        ServerHello(service="payments", methods=[MethodEntry("charge"), MethodEntry("hostline.health", True)]),
        ServerHello(service="", methods=[], features=["later"]),
        ServerHello(service="many", methods=[MethodEntry(f"m{number}") for number in range(50)]),
        ServerHello(
            service="streams", methods=[MethodEntry("tail", True, True), MethodEntry("put", False, True, True)]
        ),
    )
)
FAILURES: Final = tuple(
    _payload(encode_failure(1, *texts))
    for texts in (("declared", "OutOfStock", "no tea"), ("internal", "", "x" * 5000), ("", "", "é\udc80"))
)
FAREWELLS: Final = tuple(
    _payload(encode_farewell(*words)) for words in (("shutdown", "bye", 3), ("x", "y" * 900, 0xFFFF_FFFF), ("", "", 0))
)
CONTEXTS: Final = tuple(
    encode_context(context) + b"\x91\x01"
    for context in ({"traceparent": "00-" + "a" * 52}, {f"k{n}": "x" * n * 20 for n in range(16)}, {"é": "", "b": "ü"})
)
CREDITS: Final = tuple(_payload(encode_credit(1, amount)) for amount in (0, 1, 0xFFFF_FFFF))
RESULTS: Final = tuple(
    (name, msgspec.msgpack.encode(value))
    for function, args, _ in SIGNATURES
    for name, value in zip((k for k in ANNOTATIONS if k.startswith(f"{function.__name__}.")), args, strict=False)
) + tuple(("open_ended.value", bytes.fromhex(vector["hex"])) for vector in vectors("values"))


def decoded_call(payload: bytes, flags: int) -> Any:
    time_left, rest, is_named, context = split_call(Frame(Kind.CALL, flags, 0, 1, 0, payload))
    assert (time_left is not None) is bool(flags & 1)
    assert time_left is None or 0 <= time_left < 2e13
    assert is_named is bool(flags & 2)
    assert (context is not None) is bool(flags & 8)
    assert payload.endswith(rest)
    if context is None:
        assert len(rest) == len(payload) - 8 * (flags & 1)
    else:
        assert len(context) <= 16
        assert len(payload) - len(rest) - 8 * (flags & 1) <= 4096


def granted(payload: bytes) -> Any:
    amount = decode_credit(payload)
    assert payload == amount.to_bytes(4, "little")


# For each target: how to make a payload and where its MessagePack begins, what decodes it, and its one error.
Kindred = tuple[tuple[bytes, ...], int, Callable[[bytes], Any], type[Exception]]
TARGETS: Final[dict[str, Kindred]] = {
    "version": (HELLOS, 8, hello_version, RemoteProtocolError),
    "client hello": (HELLOS[:3], 8, lambda payload: decode_hello(payload, ClientHello), RemoteProtocolError),
    "server hello": (HELLOS[3:], 8, lambda payload: decode_hello(payload, ServerHello), RemoteProtocolError),
    "failure": (FAILURES, 0, decode_failure, RemoteProtocolError),
    "farewell": (FAREWELLS, 0, decode_farewell, RemoteProtocolError),
    "credit": (CREDITS, 0, granted, RemoteProtocolError),
}
NAMES: Final = (*TARGETS, "call", "result", "result", "result")


def make_payload(rng: random.Random) -> Case:
    """Return a payload, whole or damaged, and in `about` what it is to be decoded as."""
    name = rng.choice(NAMES)
    about: Any = name
    start = 0
    if name == "result":
        wanted, payload = rng.choice(RESULTS)
        about = (name, wanted if rng.random() < 0.8 else rng.choice(tuple(ANNOTATIONS)))
    elif name == "call":
        payload = rng.randbytes(rng.choice((0, 1, 7, 8, 9, 20)))
        about = (name, rng.randrange(16))
        if about[1] & 8 and rng.random() < 0.8:
            head = rng.randbytes(8 * (about[1] & 1))
            payload = head + mutate.damaged(rng, rng.choice(CONTEXTS), 0)
        return Case(payload, (), about)
    else:
        payloads, start, _, _ = TARGETS[name]
        payload = rng.choice(payloads)
    if rng.random() < 0.75:
        payload = mutate.damaged(rng, payload, start)
        if rng.random() < 0.2 and payload[:start] == MAGIC[:start]:
            payload = mutate.flipped(rng, payload)
    return Case(payload, (), about)


def check_payload(case: Case) -> Outcome:
    error: type[Exception]
    try:
        if isinstance(case.about, str):
            _, _, decode, error = TARGETS[case.about]
            decode(case.data)
        elif case.about[0] == "call":
            error = RemoteProtocolError
            decoded_call(case.data, case.about[1])
        else:
            error = InvalidResultError
            decode_result(case.data, ANNOTATIONS[case.about[1]])
    except error as caught:
        reason = str(caught)
    else:
        return Outcome.ACCEPTED
    assert reason
    return Outcome.REFUSED


@pytest.mark.slow
def test_each_payload_is_decoded_or_refused_by_its_one_error() -> None:
    """Hellos, errors, farewells and calls: RemoteProtocolError; results of many types: InvalidResultError."""
    check_tally(fuzz("payloads", make_payload, check_payload, count_of("payloads")), accepted=0.25, refused=0.35)


def test_payloads_are_decoded_in_memory_that_fits_their_size() -> None:
    """A claimed count of 2**31 elements costs nothing that is not there."""
    assert check_memory("payloads", make_payload, check_payload, range(1500)) == 1500


# --- arguments -----------------------------------------------------------------------------------------

CALLS: Final = tuple(
    (function.__name__, bool(keywords), _payload(encode_call(1, 0, args, keywords)))
    for function, args, keywords in SIGNATURES
)


def make_arguments(rng: random.Random) -> Case:
    """Return arguments for one signature, whole, damaged, or meant for another one."""
    name, is_named, payload = rng.choice(CALLS)
    if rng.random() < 0.65:
        payload = mutate.damaged(rng, payload)
        if rng.random() < 0.2:
            payload = mutate.flipped(rng, payload)
    if rng.random() < 0.05:
        name = rng.choice(tuple(DECODERS))
    if rng.random() < 0.05:
        is_named = not is_named
    return Case(payload, (), (name, is_named))


def check_arguments(case: Case) -> Outcome:
    name, is_named = case.about
    signature = DECODERS[name]
    try:
        args, keywords = signature.decode(case.data, is_named)
    except InvalidArgumentError as error:
        reason = str(error)
    else:
        check_taken(signature, args, keywords)
        return Outcome.ACCEPTED
    assert 0 < len(reason) < 1000 + 4 * len(case.data)
    return Outcome.REFUSED


def check_taken(signature: Signature, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Demand that a handler can be called with what came out."""
    known = {parameter.name for parameter in signature.parameters if parameter.is_named}
    assert len(args) + len(keywords) <= len(signature.parameters)
    assert keywords.keys() <= known
    required = sum(parameter.is_required for parameter in signature.parameters)
    assert len(args) + len(keywords) >= required


@pytest.mark.slow
def test_arguments_are_decoded_or_refused_as_invalid_arguments() -> None:
    """Structs, dates, decimals, unions, open types, by position and by name: nothing but InvalidArgumentError."""
    check_tally(fuzz("arguments", make_arguments, check_arguments, count_of("arguments")), accepted=0.3, refused=0.3)


def test_arguments_are_decoded_in_memory_that_fits_their_size() -> None:
    """Open types and named arguments, too, cost in proportion to what has arrived."""
    assert check_memory("arguments", make_arguments, check_arguments, range(1500)) == 1500


@pytest.mark.parametrize("name", [*DECODERS])
def test_each_signature_takes_its_own_arguments(name: str) -> None:
    """The inputs start from calls that are in order."""
    for owner, is_named, payload in CALLS:
        if owner == name:
            DECODERS[name].decode(payload, is_named)
