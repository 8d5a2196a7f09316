"""What payloads hold: both directions, every bound, and every malformed form refused as the right error."""

from __future__ import annotations

import datetime
import decimal
import enum
import math
import struct
import uuid
from typing import Annotated, Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.golden import frame_bytes, names, vectors

from hostline.errors import InvalidArgumentError, InvalidResultError, LocalProtocolError, RemoteProtocolError
from hostline.limits import (
    DEFAULT_MAX_FRAME_SIZE,
    HARD_MAX_FRAME_SIZE,
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_HELLO_SIZE,
    MIN_MAX_FRAME_SIZE,
)
from hostline.wire.attached import FD_CODE, pack_buffer, pack_fd, reading, unpack_buffer, unpack_fd
from hostline.wire.codec import (
    FEATURES,
    MAGIC,
    VERSION,
    ClientHello,
    ErrorCode,
    Failure,
    Farewell,
    GoawayCode,
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
    encode_item,
    encode_reply,
    hello_version,
    result_decoder,
    split_call,
)
from hostline.wire.frame import HEADER_SIZE, Flag, Frame, FrameDecoder, Kind

encode = msgspec.msgpack.encode


def one(data: bytes | bytearray) -> Frame:
    """Return the frame that the bytes are."""
    count = int.from_bytes(data[6:8], "little")
    decoder = FrameDecoder(HARD_MAX_FRAME_SIZE, max_fds=count)
    decoder.expect_frames()
    (frame,) = decoder.receive_data(bytes(data), [object()] * count)
    return frame


def a_client(**fields: Any) -> bytes:
    return MAGIC + encode({"version": 1, "program": "p"} | fields)


def a_server(**fields: Any) -> bytes:
    return MAGIC + encode({"version": 1, "service": "s", "methods": []} | fields)


# --- golden vectors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", vectors("frames"), ids=names("frames"))
def test_the_parts_of_a_golden_frame_are_the_frame(vector: dict[str, Any]) -> None:
    assert "".join(part for part, _ in vector["parts"]) == vector["hex"]
    assert all(meaning for _, meaning in vector["parts"])


@pytest.mark.parametrize("vector", vectors("frames"), ids=names("frames"))
def test_a_golden_frame_is_decoded_into_what_it_says(vector: dict[str, Any]) -> None:
    frame, expected = one(bytes.fromhex(vector["hex"])), vector["decoded"]
    header = {"kind": Kind(frame.kind).name, "flags": frame.flags, "call_id": frame.call_id, "method": frame.method}
    assert header == {key: expected[key] for key in header}
    if frame.kind == Kind.HELLO:
        hello = decode_hello(frame.payload, ClientHello if expected["hello"] == "client" else ServerHello)
        assert msgspec.to_builtins(hello) == expected["value"]
    elif frame.kind == Kind.CALL:
        time_left, payload, is_named, context = split_call(frame)
        assert context == expected.get("context")
        assert time_left == (None if expected["time_left"] is None else expected["time_left"] / 1e6)
        arguments = reading(Places(), lambda: decode_result(payload, Any))
        assert arguments == ([expected["args"], expected["keywords"]] if is_named else expected["args"])
    elif frame.kind in (Kind.REPLY, Kind.ITEM):
        assert reading(Places(), lambda: decode_result(frame.payload, Any)) == expected["value"]
    elif frame.kind == Kind.CREDIT:
        assert decode_credit(frame.payload) == expected["value"]
    elif frame.kind == Kind.ERROR:
        assert decode_failure(frame.payload) == Failure(*expected["value"])
    elif frame.kind == Kind.GOAWAY:
        assert decode_farewell(frame.payload) == Farewell(*expected["value"])
    else:
        assert frame.payload == b""


@pytest.mark.parametrize("vector", vectors("frames"), ids=names("frames"))
def test_a_golden_frame_is_what_the_encoder_makes_of_what_it_says(vector: dict[str, Any]) -> None:
    said = vector["decoded"]
    call_id, value = said["call_id"], said.get("value")
    match said["kind"]:
        case "HELLO":
            made: bytes | bytearray = encode_hello(
                msgspec.convert(value, ClientHello if said["hello"] == "client" else ServerHello)
            )
        case "CALL":
            time_left = None if said["time_left"] is None else said["time_left"] / 1e6
            has_items = bool(said["flags"] & Flag.STREAM)
            args = tuple(map(attached, said["args"]))
            attach = Attachments()
            made = encode_call(
                call_id, said["method"], args, said["keywords"], time_left, has_items=has_items, attach=attach,
                context=said.get("context"),
            )  # fmt: skip
        case "REPLY":
            made = encode_reply(call_id, attached(value), attach=Attachments())
        case "ITEM":
            made = encode_item(call_id, attached(value), attach=Attachments())
        case "CREDIT":
            made = encode_credit(call_id, value)
        case "ERROR":
            made = encode_failure(call_id, *value)
        case "GOAWAY":
            made = encode_farewell(*value)
        case kind:
            made = struct.pack("<IBBHII", 0, Kind[kind], 0, 0, call_id, 0)
    assert made.hex() == vector["hex"]


class Elsewhere:
    """Stand for a descriptor or a buffer."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.said = said


def attached(value: Any) -> Any:
    is_elsewhere = isinstance(value, dict) and value.keys() <= {"fd", "buffer"}
    return Elsewhere(value) if is_elsewhere else value


class Attachments:
    """Take what stands for a descriptor or a buffer out of a golden frame's values."""

    def __init__(self) -> None:
        self.fds: list[Any] = []

    pieces: list[memoryview] = []  # noqa: RUF012 - nothing is ever put into it

    def take_out(self, value: Elsewhere) -> msgspec.msgpack.Ext:
        self.fds.append(value)
        return pack_fd(value.said["fd"]) if "fd" in value.said else pack_buffer(*value.said["buffer"])

    def discard(self) -> None:
        self.fds = []


class Places:
    """Put it back."""

    def find(self, code: int, data: memoryview) -> dict[str, Any]:
        return {"fd": unpack_fd(data)} if code == FD_CODE else {"buffer": list(unpack_buffer(data))}


class Colour(enum.Enum):
    RED = "red"


class Point(msgspec.Struct):
    x: int
    y: int


class Pair(NamedTuple):
    first: int
    second: int


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    tricks: list[str]


UTC = datetime.UTC
NAMES_IN_VALUES = {
    "datetime": datetime.datetime, "date": datetime.date, "time": datetime.time, "timedelta": datetime.timedelta,
    "UTC": UTC, "UUID": uuid.UUID, "Decimal": decimal.Decimal,
    "Colour": Colour, "Point": Point, "Pair": Pair, "Cat": Cat,
}  # fmt: skip


@pytest.mark.parametrize("vector", vectors("values"), ids=[v["what"] for v in vectors("values")])
def test_a_golden_value_is_its_bytes_in_both_directions(vector: dict[str, str]) -> None:
    value = eval(vector["python"], NAMES_IN_VALUES)
    reply = encode_reply(1, value)
    assert reply[HEADER_SIZE:].hex() == vector["hex"]
    expected = Cat | Dog if isinstance(value, Cat) else type(value)
    assert decode_result(bytes.fromhex(vector["hex"]), expected) == value


# --- hello -------------------------------------------------------------------------------------------


def test_a_hello_says_what_it_was_made_of() -> None:
    mine = ClientHello(program="p", max_frame_size=2048)
    assert decode_hello(one(encode_hello(mine)).payload, ClientHello) == mine
    theirs = ServerHello(service="s", methods=[MethodEntry("a"), MethodEntry("b", True)])
    assert decode_hello(one(encode_hello(theirs)).payload, ServerHello) == theirs


def test_what_a_hello_leaves_out_is_as_in_version_one() -> None:
    hello = decode_hello(a_client(), ClientHello)
    assert (hello.version, tuple(hello.features), hello.max_frame_size) == (VERSION, FEATURES, DEFAULT_MAX_FRAME_SIZE)


def test_what_a_later_version_adds_to_a_hello_is_ignored() -> None:
    hello = decode_hello(
        a_server(features=["teleport"], mood=[1, {"x": 2}], methods=[["a", True, False, True, True, False, "new"]]),
        ServerHello,
    )
    assert hello.features == ["teleport"]
    assert hello.methods == [MethodEntry("a", True, False, True, True)]


@pytest.mark.parametrize("payload", [b"", b"hostlin", b"HOSTLINE\x80", b"\x80"])
def test_a_hello_without_the_magic_bytes_is_refused(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="does not speak hostline"):
        hello_version(payload)
    with pytest.raises(RemoteProtocolError, match="does not speak hostline"):
        decode_hello(payload, ClientHello)


def test_the_version_is_read_whatever_else_a_hello_holds() -> None:
    assert hello_version(MAGIC + encode({"version": 7, "program": {"not": "a str"}})) == 7


@pytest.mark.parametrize(
    "payload",
    [
        MAGIC,
        MAGIC + b"\xc1",
        MAGIC + encode([]),
        MAGIC + encode({"program": "p"}),
        a_client(version="1"),
        a_client(version=1.5),
        a_client() + b"\xc0",
        a_client(program=None),
        a_client(features="cancel"),
        a_client(features=[1]),
        a_client(max_frame_size=True),
        MAGIC + encode({"version": 1}),
        MAGIC + b"\x82\xa7version\x01\xa7program\xa2\xff\xfe",
        MAGIC + b"\x81\xa4evil" + b"\x91" * 60_000,
    ],
)
def test_a_malformed_hello_is_refused(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=r"^hello frame is malformed: "):
        decode_hello(payload, ClientHello)


@pytest.mark.parametrize("size", [MIN_MAX_FRAME_SIZE, 1 << 40])
def test_a_peer_may_take_frames_of_any_size_from_the_least_upwards(size: int) -> None:
    assert decode_hello(a_client(max_frame_size=size), ClientHello).max_frame_size == size


@pytest.mark.parametrize("size", [MIN_MAX_FRAME_SIZE - 1, 0, -1])
def test_a_peer_that_takes_next_to_nothing_is_refused(size: int) -> None:
    for payload, role in ((a_client(max_frame_size=size), ClientHello), (a_server(max_frame_size=size), ServerHello)):
        with pytest.raises(RemoteProtocolError, match=r"Expected `int` >= 1024 - at `\$.max_frame_size`"):
            decode_hello(payload, role)


@pytest.mark.parametrize(
    ("field", "good", "bad", "text"),
    [
        ("program", "p" * 256, "p" * 257, "length <= 256"),
        ("features", ["f"] * 64, ["f"] * 65, "length <= 64"),
        ("features", ["f" * 64], ["f" * 65], "length <= 64"),
    ],
)
def test_what_is_kept_of_a_hello_is_bounded(field: str, good: Any, bad: Any, text: str) -> None:
    assert getattr(decode_hello(a_client(**{field: good}), ClientHello), field) == good
    with pytest.raises(RemoteProtocolError, match=text):
        decode_hello(a_client(**{field: bad}), ClientHello)


def test_a_program_name_of_any_form_makes_a_hello_that_is_taken() -> None:
    for program in ("p" * 1000, "\udcff" * 100, "ä" * 300, ""):
        hello = decode_hello(one(encode_hello(ClientHello(program=program))).payload, ClientHello)
        assert len(hello.program.encode()) <= 256
    assert hello.program == ""


def test_a_service_with_too_many_methods_is_refused_at_the_service() -> None:
    def hello_of(count: int, last: int) -> ServerHello:
        entries = [MethodEntry(f"{number:0>122}") for number in range(count)]  # 130 bytes each
        return ServerHello(service="s", methods=[*entries, MethodEntry("m" * last)])

    beside = len(one(encode_hello(hello_of(500, 40))).payload) - 500 * 130 - 40
    count, last = divmod(MAX_HELLO_SIZE - beside, 130)
    if last < 32:  # whose name would have a shorter header
        count, last = count - 1, last + 130
    assert len(one(encode_hello(hello_of(count, last))).payload) == MAX_HELLO_SIZE
    with pytest.raises(LocalProtocolError, match=f"^hello of {MAX_HELLO_SIZE + 1} bytes exceeds max_hello_size 65536"):
        encode_hello(hello_of(count, last + 1))


# --- calls -------------------------------------------------------------------------------------------


def arguments_of(frame: Frame) -> Any:
    return msgspec.msgpack.decode(split_call(frame)[1])


def test_a_call_without_keywords_is_an_array_and_with_them_an_array_and_a_map() -> None:
    plain = one(encode_call(5, 3, (1, "two")))
    assert (plain.call_id, plain.method, plain.flags) == (5, 3, 0)
    assert arguments_of(plain) == [1, "two"]
    named = one(encode_call(5, 3, (1,), {"b": 2}))
    assert (named.flags, arguments_of(named)) == (2, [[1], {"b": 2}])
    assert one(encode_call(5, 3, (1,), {})).flags == 0


@pytest.mark.parametrize(
    ("seconds", "microseconds"),
    [
        (0.0, 0),
        (1e-6, 1),
        (0.5, 500_000),
        (30.0, 30_000_000),
        (1e9, 10**15),
        (1.9e13, 2**64 - 1),
        (1e300, 2**64 - 1),
        (math.inf, 2**64 - 1),
        (-1.0, 0),
        (-math.inf, 0),
        (math.nan, 2**64 - 1),
    ],
)
def test_any_time_left_travels(seconds: float, microseconds: int) -> None:
    frame = one(encode_call(1, 0, (), None, seconds))
    assert frame.flags == 1
    assert frame.payload[:8] == microseconds.to_bytes(8, "little")
    assert split_call(frame)[0] == microseconds / 1e6


@pytest.mark.parametrize("size", range(8))
def test_a_call_too_short_for_its_time_left_is_a_violation(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"^call payload of {size} bytes has no room for its time left$"):
        split_call(Frame(2, 1, 0, 1, 0, bytes(size)))


def test_a_call_split_is_its_time_its_arguments_and_their_form() -> None:
    assert split_call(Frame(2, 0, 0, 1, 0, b"\x90")) == (None, b"\x90", False, None)
    assert split_call(Frame(2, 2, 0, 1, 0, b"\x92\x90\x80")) == (None, b"\x92\x90\x80", True, None)
    assert split_call(Frame(2, 3, 0, 1, 0, bytes(8) + b"\x92\x90\x80")) == (0.0, b"\x92\x90\x80", True, None)


@pytest.mark.parametrize("time_left", [None, 1.0])
def test_arguments_may_fill_the_frame_and_not_exceed_it(time_left: float | None) -> None:
    bound = 4096
    room = bound - 4 - (0 if time_left is None else 8)  # an array of one, and the head of the bytes
    assert len(one(encode_call(1, 0, (bytes(room),), None, time_left, bound)).payload) == bound
    with pytest.raises(InvalidArgumentError, match=r"^arguments of 4097 bytes exceed max_frame_size 4096: large"):
        encode_call(1, 0, (bytes(room + 1),), None, time_left, bound)


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def unset() -> Point:
    point = Point(1, 2)
    del point.y
    return point


BAD_VALUES = {
    "an object": object(),
    "a function": len,
    "a generator": iter([1]),
    "an int of 65 bits": 2**64,
    "a negative int of 65 bits": -(2**63) - 1,
    "a lone surrogate": "\udc80",
    "an endless list": endless(),
    "a struct without a field": unset(),
    "a key that is a list": {(1, object()): 1},
}


@pytest.mark.parametrize("value", BAD_VALUES.values(), ids=BAD_VALUES.keys())
def test_what_cannot_be_encoded_is_our_error_on_both_sides(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^arguments cannot be encoded: ") as argument:
        encode_call(1, 0, (value,))
    with pytest.raises(InvalidArgumentError, match=r"^arguments cannot be encoded: "):
        encode_call(1, 0, (), {"key": value}, 1.0)
    with pytest.raises(InvalidResultError, match=r"^result cannot be encoded: "):
        encode_reply(1, value)
    assert argument.value.__cause__ is not None


# --- replies -----------------------------------------------------------------------------------------


def test_a_result_may_fill_the_frame_and_not_exceed_it() -> None:
    assert len(one(encode_reply(1, bytes(4096 - 3), 4096)).payload) == 4096
    with pytest.raises(InvalidResultError, match=r"^result of 4097 bytes exceeds max_frame_size 4096: large"):
        encode_reply(1, bytes(4097 - 3), 4096)


def test_a_result_of_another_type_is_refused_down_to_the_field() -> None:
    with pytest.raises(InvalidResultError, match=r"^result is not of the expected type: Expected `int`, got `str`"):
        decode_result(encode("x"), int)
    with pytest.raises(InvalidResultError, match=r"at `\$\[1\].y`"):
        decode_result(encode([{"x": 1, "y": 2}, {"x": 1, "y": "no"}]), list[Point])


class Picky(msgspec.Struct):
    value: int

    def __post_init__(self) -> None:
        raise {1: ValueError, 2: TypeError, 3: KeyError, 4: RuntimeError}[self.value]("no thanks")


@pytest.mark.parametrize("value", [1, 2, 3, 4])
def test_whatever_a_type_of_the_caller_raises_is_an_invalid_result(value: int) -> None:
    with pytest.raises(InvalidResultError, match="no thanks"):
        decode_result(encode({"value": value}), Picky)


MALFORMED_RESULTS = {
    "nothing": b"",
    "not MessagePack": b"\xc1",
    "an unfinished array": b"\x92\x01",
    "two values": b"\x01\x02",
    "a str that is not UTF-8": b"\xa2\xff\xfe",
    "a str that ends early": b"\xdb\xff\xff\xff\xffab",
    "an array of four billion": b"\xdd\xff\xff\xff\xff",
    "a map of four billion": b"\xdf\xff\xff\xff\xff",
    "a timestamp of three bytes": b"\xc7\x03\xffabc",
    "a timestamp in the year 292 billion": b"\xc7\x0c\xff\x00\x00\x00\x00\x7f" + b"\xff" * 7,
    "a map for a key": b"\x81\x80\x01",
    "a million levels": b"\x91" * 1_000_000 + b"\xc0",
    "a million levels of maps": b"\x81\x01" * 500_000 + b"\xc0",
    "a million empty maps": b"\xdd\x00\x0f\x00\x00" + b"\x80" * 0xF0000,
}


@pytest.mark.parametrize("payload", MALFORMED_RESULTS.values(), ids=MALFORMED_RESULTS.keys())
@pytest.mark.parametrize("returns", [Any, list[Any], dict[str, Any], Point, list[Point], str, datetime.datetime])
def test_malformed_results_are_invalid_results(payload: bytes, returns: Any) -> None:
    with pytest.raises(InvalidResultError):
        decode_result(payload, returns)


def test_a_set_of_what_cannot_be_in_one_is_an_invalid_result() -> None:
    with pytest.raises(InvalidResultError, match="unhashable"):
        decode_result(encode([{}]), set[Any])


@pytest.mark.parametrize("returns", [Any, list[Any], "list[Recursive]"])
def test_results_of_open_types_are_bounded_in_depth_and_number(returns: Any) -> None:
    returns = list[Recursive] if isinstance(returns, str) else returns

    def nested(levels: int) -> bytes:
        return b"\x91" * (levels - 1) + b"\x90"

    decode_result(nested(MAX_DEPTH), returns)
    with pytest.raises(InvalidResultError, match=f"nests deeper than max_depth {MAX_DEPTH} levels"):
        decode_result(nested(MAX_DEPTH + 1), returns)


class Recursive(msgspec.Struct, array_like=True):
    inner: list[Recursive] | None = None


@pytest.mark.parametrize("returns", [Any, list[int], tuple[int, ...], set[int], dict[int, int]])
def test_results_of_open_types_may_hold_max_elements_and_not_one_more(returns: Any) -> None:
    is_map = returns == dict[int, int]

    def of(count: int) -> bytes:
        head = (b"\xdf" if is_map else b"\xdd") + (count // (2 if is_map else 1)).to_bytes(4, "big")
        return head + b"\x01" * count

    within = MAX_ELEMENTS - 1 - (MAX_ELEMENTS - 1) % (2 if is_map else 1)  # the container is a value as well
    decode_result(of(within), returns)
    with pytest.raises(InvalidResultError, match=f"more than max_elements {MAX_ELEMENTS} values"):
        decode_result(of(within + (2 if is_map else 1)), returns)


def test_a_result_type_that_is_not_hashable_works() -> None:
    assert decode_result(encode([1]), Annotated[list[int], {"of": "mine"}]) == [1]


@pytest.mark.parametrize("returns", [object, complex, list[object], dict[str, range], "nonsense"])
def test_a_result_type_that_nothing_is_decoded_into_is_refused_by_name(returns: Any) -> None:
    with pytest.raises(TypeError, match="is not supported"):
        result_decoder(returns)


# --- errors and farewells ----------------------------------------------------------------------------


def test_a_failure_says_what_it_was_made_of() -> None:
    frame = one(encode_failure(9, ErrorCode.DECLARED, "OutOfStock", "no tea"))
    assert (frame.kind, frame.call_id) == (Kind.ERROR, 9)
    assert decode_failure(frame.payload) == Failure("declared", "OutOfStock", "no tea")


def test_what_a_later_version_adds_to_an_error_or_a_farewell_is_ignored() -> None:
    assert decode_failure(encode(["a", "b", "c", {"new": 1}])) == Failure("a", "b", "c")
    assert decode_farewell(encode(["a", "b", 3, "new"])) == Farewell("a", "b", 3)


@pytest.mark.parametrize("bound", [MIN_MAX_FRAME_SIZE, 2000, DEFAULT_MAX_FRAME_SIZE])
@pytest.mark.parametrize("letter", ["x", "ä", "\U0001f375", "\udcff"])
def test_an_error_is_cut_to_what_the_caller_takes(bound: int, letter: str) -> None:
    frame = one(encode_failure(1, ErrorCode.INVALID_ARGUMENT, letter * 100_000, letter * 100_000, bound))
    assert len(frame.payload) <= min(bound, 5000)
    failure = decode_failure(frame.payload)
    assert failure.name.endswith("...")
    assert failure.message.endswith("...")
    assert len(failure.message) > 100


def test_an_error_of_moderate_length_is_not_cut() -> None:
    assert decode_failure(one(encode_failure(1, "declared", "N" * 200, "m" * 4096)).payload).message == "m" * 4096


@pytest.mark.parametrize("letter", ["x", "ä", "\udcff"])
def test_a_farewell_fits_into_the_smallest_frame_that_a_peer_may_ask_for(letter: str) -> None:
    frame = one(encode_farewell(GoawayCode.PROTOCOL, letter * 10_000, 0xFFFFFFFF))
    assert len(frame.payload) <= MIN_MAX_FRAME_SIZE
    assert decode_farewell(frame.payload).last_call_id == 0xFFFFFFFF


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc0", encode([]), encode(["a", "b"]), encode(["a", "b", None]), encode({"code": "a"}), encode("abc")],
)
def test_malformed_errors_and_farewells_are_violations(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=r"^error frame is malformed"):
        decode_failure(payload)
    with pytest.raises(RemoteProtocolError, match=r"^goaway frame is malformed"):
        decode_farewell(payload)


@pytest.mark.parametrize("call_id", [0, 1, 0xFFFFFFFF])
def test_a_farewell_may_name_any_call_id(call_id: int) -> None:
    assert decode_farewell(one(encode_farewell("shutdown", "", call_id)).payload).last_call_id == call_id


@pytest.mark.parametrize("call_id", [-1, 0x1_0000_0000, 1.5, "3"])
def test_a_farewell_names_nothing_else(call_id: Any) -> None:
    with pytest.raises(RemoteProtocolError, match=r"^goaway frame is malformed"):
        decode_farewell(encode(["shutdown", "", call_id]))


# --- anything --------------------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(trees, max_size=4), st.dictionaries(st.text(max_size=8), trees, max_size=3), st.booleans())
def test_any_arguments_arrive_as_they_were_sent(args: list[Any], keywords: dict[str, Any], has_deadline: bool) -> None:
    frame = one(encode_call(1, 2, tuple(args), keywords, 2.5 if has_deadline else None))
    time_left, payload, is_named, _ = split_call(frame)
    assert time_left == (2.5 if has_deadline else None)
    assert is_named is bool(keywords)
    assert msgspec.msgpack.decode(payload) == ([args, keywords] if keywords else args)


@given(trees)
def test_any_result_arrives_as_it_was_sent(result: Any) -> None:
    assert decode_result(one(encode_reply(1, result)).payload, Any) == result


@given(st.text(), st.text())
def test_any_error_text_arrives_whole_or_cut(name: str, message: str) -> None:
    failure = decode_failure(one(encode_failure(1, "declared", name, message)).payload)
    assert failure.message == message or failure.message.endswith("...")


@given(st.binary(max_size=60))
def test_any_bytes_are_a_payload_or_the_right_error(data: bytes) -> None:
    for read in (decode_failure, decode_farewell, hello_version, lambda d: decode_hello(MAGIC + d, ServerHello)):
        try:
            read(data)
        except RemoteProtocolError:
            pass
    for returns in (Any, Point, list[int], Cat | Dog, datetime.datetime, set[Any]):
        try:
            decode_result(data, returns)
        except InvalidResultError:
            pass


def test_the_golden_hellos_are_the_ones_that_the_code_sends() -> None:
    assert encode_hello(ClientHello(program="example")) == frame_bytes("client_hello")
