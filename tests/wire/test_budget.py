"""The bounds on what a payload becomes: counted without decoding, and counted right."""

from __future__ import annotations

import datetime
import random
import sys
import time
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostline.errors import RemoteProtocolError
from hostline.limits import DEFAULT_MAX_FRAME_SIZE, MAX_DEPTH, MAX_ELEMENTS
from hostline.wire.budget import SHALLOW, Extent, _walk, check_budget

encode = msgspec.msgpack.encode
TRUNCATED = "ends in the middle of a value"


def measure(value: Any) -> tuple[int, int]:
    """Return the elements and the levels of a value, counted the simple way."""
    if isinstance(value, dict):
        inside = [measure(part) for pair in value.items() for part in pair]
    elif isinstance(value, list | tuple):
        inside = [measure(part) for part in value]
    else:
        return 1, 0
    return 1 + sum(count for count, _ in inside), 1 + max((levels for _, levels in inside), default=0)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.binary(max_size=300)
    | st.builds(msgspec.msgpack.Ext, st.integers(0, 127), st.binary(max_size=40))
    | st.datetimes(timezones=st.just(datetime.UTC))
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=20) | st.dictionaries(st.integers(0, 999) | st.text(max_size=5), inner, max_size=18)
    ),
    max_leaves=60,
)


# --- the bounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [b"\x91", b"\x81\x01", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01", b"\xde\x00\x01\x01"])
@pytest.mark.parametrize("last", [b"\x90", b"\x80", b"\xdc\x00\x00", b"\xdf\x00\x00\x00\x00", b"\x91\x01"])
def test_levels_may_reach_max_depth_and_not_one_more(head: bytes, last: bytes) -> None:
    check_budget(head * (MAX_DEPTH - 1) + last)
    with pytest.raises(RemoteProtocolError, match=rf"^payload nests deeper than max_depth {MAX_DEPTH} levels$"):
        check_budget(head * MAX_DEPTH + last)


@pytest.mark.parametrize(
    "item", [b"\x00", b"\xc0", b"\xa0", b"\xc4\x00", b"\xca0000", b"\xd4\x00\x00", b"\x90", b"\x80"]
)
def test_values_may_reach_max_elements_and_not_one_more(item: bytes) -> None:
    def of(count: int) -> bytes:
        return b"\xdd" + count.to_bytes(4, "big") + item * count

    check_budget(of(MAX_ELEMENTS - 1))
    with pytest.raises(RemoteProtocolError, match=rf"^payload has more than max_elements {MAX_ELEMENTS} values$"):
        check_budget(of(MAX_ELEMENTS))


def test_keys_are_values_too() -> None:
    pairs = (MAX_ELEMENTS - 1) // 2
    check_budget(b"\xdf" + pairs.to_bytes(4, "big") + b"\x01\x02" * pairs)
    with pytest.raises(RemoteProtocolError, match="more than max_elements"):
        check_budget(b"\xdf" + (pairs + 1).to_bytes(4, "big") + b"\x01\x02" * (pairs + 1))


@pytest.mark.parametrize("head", [b"\xdd", b"\xdf"])
def test_a_claimed_number_is_refused_before_the_values_come(head: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="more than max_elements 10 values"):
        check_budget(head + b"\xff\xff\xff\xff", max_elements=10, max_depth=0)


def test_several_values_share_one_budget() -> None:
    check_budget(b"\x01" * 10, max_elements=10)
    with pytest.raises(RemoteProtocolError, match="more than max_elements 10 values"):
        check_budget(b"\x01" * 11, max_elements=10)


def test_a_type_that_leaves_only_the_number_open_is_not_checked_for_depth() -> None:
    deep = b"\x91" * 100 + b"\x90"
    check_budget(deep, Extent.LONG)
    check_budget(deep, Extent.FIXED)
    with pytest.raises(RemoteProtocolError, match="nests deeper"):
        check_budget(deep, Extent.DEEP)
    many = b"\xdd\x00\x01\x86\xa1" + b"\x01" * (MAX_ELEMENTS + 1)
    check_budget(many, Extent.FIXED)
    with pytest.raises(RemoteProtocolError, match="more than max_elements"):
        check_budget(many, Extent.LONG)


@pytest.mark.parametrize("extent", [Extent.FIXED, Extent.LONG])
def test_a_raised_recursion_limit_does_not_let_a_peer_overflow_the_stack(extent: Extent) -> None:
    deep = b"\x91" * (SHALLOW * 2) + b"\x90"
    before = sys.getrecursionlimit()
    try:
        check_budget(deep, extent)  # the decoder stops at the recursion limit
        sys.setrecursionlimit(SHALLOW + 1)
        with pytest.raises(RemoteProtocolError, match="nests deeper"):
            check_budget(deep, extent)
        check_budget(encode({"x": bytes(SHALLOW * 2)}), extent)
    finally:
        sys.setrecursionlimit(before)


# --- the count ---------------------------------------------------------------------------------------


@given(trees)
def test_the_walk_counts_what_is_there(value: Any) -> None:
    payload = encode(value)
    elements, levels = measure(value)
    _walk(payload, levels, elements)
    check_budget(payload, max_depth=levels, max_elements=elements)
    for check in (_walk, lambda p, d, e: check_budget(p, max_depth=d, max_elements=e)):
        with pytest.raises(RemoteProtocolError, match="more than max_elements"):
            check(payload, levels, elements - 1)
        if levels:
            with pytest.raises(RemoteProtocolError, match="nests deeper"):
                check(payload, levels - 1, elements)


@given(trees, st.data())
def test_a_truncated_value_is_noticed(value: Any, data: st.DataObject) -> None:
    payload = encode(value)
    cut = data.draw(st.integers(1, len(payload) - 1)) if len(payload) > 1 else 0
    if cut:
        with pytest.raises(RemoteProtocolError, match=TRUNCATED):
            _walk(payload[:cut], 10_000, 1_000_000)


def decoder_says(payload: bytes) -> str:
    """Return whether msgspec finds the form of a payload whole; what values mean is not its form."""
    try:
        msgspec.msgpack.decode(payload)
    except UnicodeDecodeError:
        return "unclear"
    except msgspec.DecodeError as error:
        text = str(error)
        if "truncated" in text:
            return "truncated"
        return "malformed" if "opcode" in text else "unclear"
    return "whole"


@pytest.mark.parametrize("seed", range(4))
def test_the_walk_and_msgspec_agree_on_random_bytes(seed: int) -> None:
    """Mutated payloads: what msgspec decodes the walk accepts, what has no form the walk refuses."""
    rng = random.Random(seed)
    seeds = [
        encode({"id": 1, "items": [1.5, "tea", b"\0" * 40, None, True], "more": {"a": [[], {}, [1]]}}),
        encode([list(range(40)), "x" * 300, {str(i): i for i in range(20)}, 2**40, -(2**40)]),
        b"\xdc\x00\x02\xdf\x00\x00\x00\x01\x01\x02\xc7\x03\x05abc\xd8\x01" + b"e" * 16,
    ]
    counts = {"whole": 0, "truncated": 0, "malformed": 0, "unclear": 0}
    for _ in range(10_000):
        payload = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(4)):
            payload[rng.randrange(len(payload))] = rng.choice((rng.randrange(256), 0xC1))
        if rng.random() < 0.3:
            del payload[rng.randrange(len(payload)) :]
        said = decoder_says(bytes(payload))
        counts[said] += 1
        if said == "whole":
            _walk(bytes(payload), 10_000, 1_000_000)
        elif said == "truncated" and payload:
            with pytest.raises(RemoteProtocolError):
                _walk(bytes(payload), 10_000, 1_000_000)
        elif said == "malformed":
            with pytest.raises(RemoteProtocolError, match=r"is not MessagePack|ends in the middle|more than max_el"):
                _walk(bytes(payload), 10_000, 1_000_000)
    assert min(counts["whole"], counts["truncated"], counts["malformed"]) > 50


def test_the_byte_that_messagepack_never_uses_is_refused_by_its_place() -> None:
    with pytest.raises(RemoteProtocolError, match=r"^byte 0xc1 at offset 2 is not MessagePack$"):
        _walk(b"\x92\x01\xc1", MAX_DEPTH, MAX_ELEMENTS)


# --- the cost ----------------------------------------------------------------------------------------

BOMBS = {
    "a mebibyte of empty maps": b"\xdd\x00\x0f\x00\x00" + b"\x80" * 0xF0000,
    "a mebibyte of levels": b"\x91" * DEFAULT_MAX_FRAME_SIZE,
    "a mebibyte of levels of maps": b"\x81\x01" * (DEFAULT_MAX_FRAME_SIZE // 2),
    "a mebibyte of small numbers": b"\xdd\x00\x0f\x00\x00" + b"\x01" * 0xF0000,
    "as many values as allowed": b"\xdd\x00\x01\x86\x9f" + b"\x80" * (MAX_ELEMENTS - 1),
    "heads that claim four billion": b"\xdd\xff\xff\xff\xff" * 200_000,
    "nested claims": b"\xdd\x00\x00\xff\xff" * 200_000,
    "a mebibyte of bytes": encode([bytes(DEFAULT_MAX_FRAME_SIZE)]),
}


@pytest.mark.alone
@pytest.mark.parametrize("payload", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_judged_in_little_time_and_no_memory(payload: bytes) -> None:
    def judge() -> None:
        try:
            check_budget(payload)
        except RemoteProtocolError:
            pass

    spent = time.thread_time()
    judge()
    assert time.thread_time() - spent < 0.2
    tracemalloc.start()
    try:
        judge()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
