"""Large frames: received where they stay, in memory that is used again, and never more of it than has come."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from hostline.errors import RemoteProtocolError
from hostline.limits import HARD_MAX_FRAME_SIZE, LARGE_FRAME, WARM_MEMORY
from hostline.wire import arriving
from hostline.wire.frame import HEADER, HEADER_SIZE, Frame, FrameDecoder, Kind, encode_frame

SIZE = 300_000
DATA = random.Random(1).randbytes(SIZE)


@pytest.fixture(autouse=True)
def nothing_is_warm() -> Iterator[None]:
    arriving._used.clear()
    yield
    arriving._used.clear()


def a_decoder(max_fds: int = 0) -> FrameDecoder:
    decoder = FrameDecoder(HARD_MAX_FRAME_SIZE, max_fds)
    decoder.expect_frames()
    return decoder


def receive(decoder: FrameDecoder, stream: bytes, read_size: int = 65_536) -> list[Frame]:
    """Do as the faces do: into `space` where there is one."""
    frames: list[Frame] = []
    rest = memoryview(stream)
    while rest:
        if decoder.space is not None:
            part = decoder.space[: min(len(rest), read_size)]
            part[:] = rest[: len(part)]
            rest = rest[len(part) :]
            frames += decoder.receive_data(part)
        else:
            frames += decoder.receive_data(bytes(rest[:read_size]))
            rest = rest[read_size:]
    return frames


@pytest.mark.parametrize("read_size", [1, 7, 4096, 65_536, 10_000_000])
def test_a_large_frame_between_small_ones_comes_out_whole(read_size: int) -> None:
    size = SIZE if read_size > 7 else LARGE_FRAME + 1
    small = encode_frame(Kind.CALL, 1, b"\x90")
    stream = small + encode_frame(Kind.CALL, 2, DATA[:size], method=5) + small
    frames = receive(a_decoder(), stream, read_size)
    assert [(frame.call_id, frame.method, len(frame.payload)) for frame in frames] == [
        (1, 0, 1),
        (2, 5, size),
        (1, 0, 1),
    ]
    assert frames[1].payload == DATA[:size]


@pytest.mark.parametrize("seed", range(20))
def test_the_same_bytes_give_the_same_frames_however_they_come(seed: int) -> None:
    chance = random.Random(seed)
    sizes = [chance.choice([0, 5, LARGE_FRAME, LARGE_FRAME + 1, 200_000]) for _ in range(8)]
    stream = b"".join(encode_frame(Kind.REPLY, at + 1, DATA[:size]) for at, size in enumerate(sizes))
    decoder = a_decoder()
    frames: list[Frame] = []
    at = 0
    while at < len(stream):
        step = chance.choice([1, 15, 16, 17, 70_000, 131_072])
        space = decoder.space
        if space is not None and chance.random() < 0.5:
            part = space[:step]
            part[:] = stream[at : at + len(part)]
            frames += decoder.receive_data(part)
            at += len(part)
        else:
            frames += decoder.receive_data(stream[at : at + step])
            at += step
    assert [(frame.call_id, bytes(frame.payload)) for frame in frames] == [
        (at + 1, DATA[:size]) for at, size in enumerate(sizes)
    ]
    assert not decoder.is_partial
    assert decoder.frame_count == len(sizes)


def test_the_payload_is_read_only_and_where_it_was_received() -> None:
    decoder = a_decoder()
    assert decoder.receive_data(HEADER.pack(SIZE, Kind.CALL, 0, 0, 1, 0) + DATA[:200_000]) == []
    assert decoder.space is not None
    memory = decoder.space.obj
    (frame,) = receive(decoder, DATA[200_000:])
    assert isinstance(frame.payload, memoryview)
    assert frame.payload.readonly
    assert frame.payload.obj is memory


def test_a_frame_that_is_only_announced_takes_next_to_no_memory() -> None:
    decoder = a_decoder()
    decoder.receive_data(HEADER.pack(HARD_MAX_FRAME_SIZE, Kind.CALL, 0, 0, 1, 0))
    assert decoder.space is not None
    assert len(decoder.space) <= LARGE_FRAME
    assert decoder.reserved_size == HEADER_SIZE + HARD_MAX_FRAME_SIZE, "it is charged as a whole all the same"
    for come in (50_000, 500_000, 5_000_000):
        receive(decoder, bytes(come - decoder.mark[1] + HEADER_SIZE))
        assert len(decoder.space.obj) <= 4 * come


def memory_of(frame: Frame) -> int:
    assert isinstance(frame.payload, memoryview)
    return id(frame.payload.obj)


def test_memory_is_used_again_once_nobody_holds_a_view_of_it() -> None:
    decoder = a_decoder()
    stream = encode_frame(Kind.CALL, 1, DATA)
    (first,) = receive(decoder, stream)
    part = memoryview(first.payload)[100:200]
    memory = memory_of(first)
    del first
    (second,) = receive(decoder, stream)
    assert memory_of(second) != memory, "a part of it is still held"
    assert part == DATA[100:200]
    del part
    (third,) = receive(decoder, stream)
    assert memory_of(third) == memory
    assert second.payload == third.payload == DATA


def test_a_small_frame_does_not_hold_much_memory() -> None:
    receive(a_decoder(), encode_frame(Kind.CALL, 1, bytes(2_000_000)))
    (frame,) = receive(a_decoder(), encode_frame(Kind.CALL, 1, DATA[:70_000]))
    assert isinstance(frame.payload, memoryview)
    assert len(frame.payload.obj) <= 4 * 70_100


def test_what_is_kept_for_the_next_frames_is_bounded() -> None:
    held = [receive(a_decoder(), encode_frame(Kind.CALL, 1, bytes(500_000))) for _ in range(20)]
    assert sum(map(len, arriving._used)) <= WARM_MEMORY
    del held
    receive(a_decoder(), encode_frame(Kind.CALL, 1, bytes(WARM_MEMORY + 1)))
    assert sum(map(len, arriving._used)) <= WARM_MEMORY


class Owner:
    def close(self) -> None:
        pass


@pytest.mark.parametrize("is_last", [False, True])
def test_descriptors_in_the_middle_of_a_large_frame_are_a_violation(is_last: bool) -> None:
    decoder = a_decoder(max_fds=4)
    decoder.receive_data(HEADER.pack(SIZE, Kind.CALL, 0, 0, 1, 0) + DATA[:200_000])
    rest = DATA[200_000:] if is_last else DATA[200_000:210_000]
    with pytest.raises(RemoteProtocolError, match="descriptors came"):
        decoder.receive_data(rest, [Owner()])


def test_descriptors_of_a_large_frame_come_with_it_and_those_behind_it_with_the_next() -> None:
    decoder = a_decoder(max_fds=4)
    first, second = Owner(), Owner()
    large = HEADER.pack(SIZE, Kind.CALL, 0, 1, 1, 0) + DATA
    small = HEADER.pack(1, Kind.CALL, 0, 1, 2, 0) + b"\x90"
    assert decoder.receive_data(large[:100_000], [first]) == []
    frames = decoder.receive_data(large[100_000:] + small, [second])
    assert [(frame.call_id, list(frame.fds)) for frame in frames] == [(1, [first]), (2, [second])]


@pytest.mark.parametrize("before", range(17))
def test_the_large_value_in_a_frame_is_aligned(before: int) -> None:
    value = bytes(before) + b"\xc6" + (100_000).to_bytes(4, "big") + DATA[:100_000]
    (frame,) = receive(a_decoder(), encode_frame(Kind.REPLY, 1, value))
    assert frame.payload == value
    assert isinstance(frame.payload, memoryview)
    whole = memoryview(frame.payload.obj)
    assert bytes(whole).index(value) % 16 == -(before + 5) % 16
