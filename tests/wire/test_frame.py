"""Frames: the header's sixteen bytes, every bound at its limit and one beyond, and a stream cut anywhere."""

from __future__ import annotations

import itertools
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostline.errors import LocalProtocolError, RemoteProtocolError
from hostline.limits import DEFAULT_MAX_FRAME_SIZE, HARD_MAX_FRAME_SIZE, MAX_HELLO_SIZE, MIN_MAX_FRAME_SIZE
from hostline.wire.frame import (
    FLAGS,
    HEADER,
    HEADER_SIZE,
    Flag,
    Frame,
    FrameDecoder,
    Kind,
    check_frame_size,
    encode_frame,
)

HELLO = encode_frame(Kind.HELLO, payload=b"x")
EMPTY_KINDS = (Kind.END, Kind.CANCEL, Kind.PING, Kind.PONG)
CONNECTION_KINDS = (Kind.HELLO, Kind.PING, Kind.PONG, Kind.GOAWAY)


def header(
    length: int = 0, kind: int = Kind.CALL, flags: int = 0, fd_count: int = 0, call_id: int = 1, method: int = 0
) -> bytes:
    return struct.pack("<IBBHII", length, kind, flags, fd_count, call_id, method)


def met(max_frame_size: int = DEFAULT_MAX_FRAME_SIZE) -> FrameDecoder:
    """Return a decoder behind the hello."""
    decoder = FrameDecoder(max_frame_size)
    decoder.receive_data(HELLO)
    return decoder


def call_id_for(kind: Kind) -> int:
    return 0 if kind in CONNECTION_KINDS else 7


# --- the header --------------------------------------------------------------------------------------


def test_the_header_has_sixteen_bytes_in_little_endian_order() -> None:
    assert HEADER_SIZE == HEADER.size == 16
    frame = encode_frame(Kind.CALL, 0x01020304, b"abc", flags=Flag.NAMED, method=0x0A0B0C0D)
    assert frame == bytes.fromhex("03000000 02 02 0000 04030201 0d0c0b0a") + b"abc"


def test_an_encoded_frame_is_decoded_into_what_it_was_made_of() -> None:
    (frame,) = met().receive_data(encode_frame(Kind.CALL, 9, b"abc", flags=Flag.DEADLINE, method=4))
    assert frame == Frame(kind=2, flags=1, fd_count=0, call_id=9, method=4, payload=b"abc")
    assert isinstance(frame, Frame)
    assert type(frame.payload) is bytes


def test_a_payload_that_the_header_cannot_name_is_refused_before_it_is_copied() -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return 1 << 32

    with pytest.raises(
        LocalProtocolError, match="payload of 4294967296 bytes exceeds the 4294967295 a frame can carry"
    ):
        encode_frame(Kind.CALL, 1, Long())


@pytest.mark.parametrize("kind", [*range(1, 12)])
def test_every_kind_of_version_one_is_decoded(kind: int) -> None:
    (frame,) = met().receive_data(encode_frame(kind, call_id_for(Kind(kind))))
    assert frame.kind == kind


@pytest.mark.parametrize("kind", [0, 12, 127, 255])
def test_an_unknown_kind_is_refused_by_its_number(kind: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"^frame kind {kind} is unknown: kinds are 1 to 11$"):
        met().receive_data(header(kind=kind))


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("bit", range(8))
def test_a_flag_is_taken_where_it_is_defined_and_refused_everywhere_else(kind: Kind, bit: int) -> None:
    data = header(kind=kind, flags=1 << bit, call_id=call_id_for(kind))
    if FLAGS[kind] & 1 << bit:
        assert met().receive_data(data)[0].flags == 1 << bit
    else:
        name = kind.name.lower()
        with pytest.raises(RemoteProtocolError, match=rf"^flags {1 << bit:#04x} are not defined for {name} frames$"):
            met().receive_data(data)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("count", [1, 253, 0xFFFF])
def test_announced_descriptors_are_refused(kind: Kind, count: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"announces {count} descriptors where none are accepted"):
        met().receive_data(header(kind=kind, fd_count=count, call_id=call_id_for(kind)))


@pytest.mark.parametrize("kind", EMPTY_KINDS)
def test_a_payload_where_none_belongs_is_refused_before_it_arrives(kind: Kind) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{kind.name.lower()} frame has a payload of 1 bytes"):
        met().receive_data(header(1, kind, call_id=call_id_for(kind)))


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.CALL])
def test_only_calls_name_a_method(kind: Kind) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{kind.name.lower()} frame names method 1: only calls do"):
        met().receive_data(header(kind=kind, method=1, call_id=call_id_for(kind)))
    assert met().receive_data(header(method=0xFFFFFFFF))[0].method == 0xFFFFFFFF


@pytest.mark.parametrize("kind", CONNECTION_KINDS)
def test_a_frame_about_the_connection_names_no_call(kind: Kind) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{kind.name.lower()} frame has call id 3: it is about the connect"):
        met().receive_data(header(kind=kind, call_id=3))


@pytest.mark.parametrize("kind", [Kind.CALL, Kind.REPLY, Kind.ERROR, Kind.CANCEL, Kind.ITEM, Kind.END, Kind.CREDIT])
def test_a_frame_about_a_call_names_one(kind: Kind) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{kind.name.lower()} frame has call id 0: it must name a call"):
        met().receive_data(header(kind=kind, call_id=0))


# --- bounds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [MIN_MAX_FRAME_SIZE, 4096, DEFAULT_MAX_FRAME_SIZE])
@pytest.mark.parametrize("kind", [Kind.CALL, Kind.REPLY, Kind.ERROR, Kind.GOAWAY])
def test_a_frame_may_have_max_frame_size_and_not_a_byte_more(bound: int, kind: Kind) -> None:
    data = encode_frame(kind, call_id_for(kind), bytes(bound))
    assert len(met(bound).receive_data(data)[0].payload) == bound
    name = kind.name.lower()
    with pytest.raises(
        RemoteProtocolError, match=f"^{name} frame of {bound + 1} bytes exceeds max_frame_size {bound}$"
    ):
        met(bound).receive_data(header(bound + 1, kind, call_id=call_id_for(kind)))


@pytest.mark.parametrize("max_frame_size", [MIN_MAX_FRAME_SIZE, DEFAULT_MAX_FRAME_SIZE])
@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.GOAWAY])
def test_the_first_frame_has_a_bound_of_its_own(max_frame_size: int, kind: Kind) -> None:
    """A client that takes only small answers must still be able to read a service's table of methods."""
    (frame,) = FrameDecoder(max_frame_size).receive_data(encode_frame(kind, payload=bytes(MAX_HELLO_SIZE)))
    assert len(frame.payload) == MAX_HELLO_SIZE
    text = f"^{kind.name.lower()} frame of {MAX_HELLO_SIZE + 1} bytes exceeds max_hello_size {MAX_HELLO_SIZE}$"
    with pytest.raises(RemoteProtocolError, match=text):
        FrameDecoder(max_frame_size).receive_data(header(MAX_HELLO_SIZE + 1, kind, call_id=0))


def test_the_bound_is_wider_at_once_behind_the_hello_in_the_same_read() -> None:
    data = HELLO + encode_frame(Kind.CALL, 1, bytes(MAX_HELLO_SIZE + 1))
    assert [len(frame.payload) for frame in FrameDecoder().receive_data(data)] == [1, MAX_HELLO_SIZE + 1]


def test_a_length_bomb_allocates_nothing() -> None:
    bombs = [header(0xFFFFFFFF, kind, call_id=call_id_for(Kind(kind))) for kind in Kind]
    tracemalloc.start()
    try:
        for bomb in bombs * 100:
            with pytest.raises(RemoteProtocolError, match="4294967295 bytes exceeds"):
                met().receive_data(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_a_header_is_judged_when_it_is_complete_and_not_when_its_payload_is() -> None:
    decoder = met(1024)
    bad = header(1025)
    assert decoder.receive_data(bad[:15]) == []
    with pytest.raises(RemoteProtocolError, match="1025 bytes exceeds"):
        decoder.receive_data(bad[15:])


@pytest.mark.parametrize("size", [MIN_MAX_FRAME_SIZE, DEFAULT_MAX_FRAME_SIZE, HARD_MAX_FRAME_SIZE])
def test_a_usable_frame_bound_is_returned(size: int) -> None:
    assert check_frame_size(size) == size


@pytest.mark.parametrize("size", [-1, 0, MIN_MAX_FRAME_SIZE - 1, HARD_MAX_FRAME_SIZE + 1])
def test_an_unusable_frame_bound_is_refused_with_both_ends(size: int) -> None:
    with pytest.raises(ValueError, match=rf"max_frame_size of {size} bytes must lie between 1024 and 16777216"):
        check_frame_size(size)


# --- the stream --------------------------------------------------------------------------------------


def test_nothing_in_means_nothing_out() -> None:
    decoder = FrameDecoder()
    assert decoder.receive_data(b"") == []
    assert not decoder.is_partial


def test_many_frames_in_one_read_come_out_in_order() -> None:
    data = b"".join(encode_frame(Kind.REPLY, number, b"x" * number) for number in range(1, 200))
    frames = met().receive_data(data)
    assert [(frame.call_id, len(frame.payload)) for frame in frames] == [(number, number) for number in range(1, 200)]


def test_a_frame_that_arrives_byte_by_byte_comes_out_with_its_last_byte() -> None:
    data = encode_frame(Kind.CALL, 1, b"payload", method=2)
    decoder = met()
    for index in range(len(data) - 1):
        assert decoder.receive_data(data[index : index + 1]) == []
        assert decoder.is_partial
    assert decoder.receive_data(data[-1:]) == [Frame(2, 0, 0, 1, 2, b"payload")]
    assert not decoder.is_partial


def test_frames_cut_at_any_two_places_are_the_same_frames() -> None:
    data = HELLO + encode_frame(Kind.CALL, 1, b"one") + encode_frame(Kind.PING) + encode_frame(Kind.CALL, 2, b"three")
    whole = FrameDecoder().receive_data(data)
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            decoder = FrameDecoder()
            frames = decoder.receive_data(data[:first])
            frames += decoder.receive_data(data[first:second])
            frames += decoder.receive_data(data[second:])
            assert frames == whole


def test_a_large_frame_in_small_reads_costs_time_in_proportion() -> None:
    data = encode_frame(Kind.CALL, 1, bytes(1 << 20))
    decoder = met()
    frames = [frame for at in range(0, len(data), 64) for frame in decoder.receive_data(data[at : at + 64])]
    assert [len(frame.payload) for frame in frames] == [1 << 20]


def test_a_finished_frame_leaves_no_buffer_behind() -> None:
    decoder = met()
    data = encode_frame(Kind.CALL, 1, bytes(1 << 20))
    tracemalloc.start()
    try:
        decoder.receive_data(data[: 1 << 19])
        decoder.receive_data(data[1 << 19 :])
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 4096


@st.composite
def frames_of_a_conversation(draw: st.DrawFn) -> list[Frame]:
    frames = []
    for kind in draw(st.lists(st.sampled_from(list(Kind)), max_size=8)):
        payload = b"" if kind in EMPTY_KINDS else draw(st.binary(max_size=40))
        call_id = 0 if kind in CONNECTION_KINDS else draw(st.integers(1, 0xFFFFFFFF))
        flags = draw(st.integers(0, 15)) if kind is Kind.CALL else 0
        method = draw(st.integers(0, 0xFFFFFFFF)) if kind is Kind.CALL else 0
        frames.append(Frame(int(kind), flags, 0, call_id, method, payload))
    return frames


@given(frames_of_a_conversation(), st.lists(st.integers(0, 400), max_size=6))
def test_any_frames_cut_anywhere_come_back(frames: list[Frame], cuts: list[int]) -> None:
    data = b"".join(encode_frame(f.kind, f.call_id, f.payload, flags=f.flags, method=f.method) for f in frames)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    decoder = FrameDecoder()
    found = [f for a, b in itertools.pairwise(places) for f in decoder.receive_data(data[a:b])]
    assert found == frames
    assert not decoder.is_partial


@given(st.binary(max_size=200))
def test_any_bytes_give_frames_or_a_violation(data: bytes) -> None:
    decoder = FrameDecoder()
    try:
        frames = decoder.receive_data(data)
    except RemoteProtocolError:
        return
    assert sum(HEADER_SIZE + len(frame.payload) for frame in frames) <= len(data)
    assert decoder.is_partial is (sum(HEADER_SIZE + len(frame.payload) for frame in frames) < len(data))
