"""The frame decoder against a second reading of the wire format, on streams damaged with a plan."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tests.fuzz import mutate
from tests.fuzz.harness import Case, Outcome, check_memory, check_tally, count_of, fuzz
from tests.fuzz.model import Reading, read
from tests.golden import frame_bytes, vectors

from hostline.errors import RemoteProtocolError
from hostline.limits import DEFAULT_MAX_FRAME_SIZE, MAX_HELLO_SIZE, MIN_MAX_FRAME_SIZE
from hostline.wire.frame import HEADER_SIZE, Frame, FrameDecoder

HELLOS = (frame_bytes("client_hello"), frame_bytes("server_hello"))
SIZES = (MIN_MAX_FRAME_SIZE, MIN_MAX_FRAME_SIZE, 4096, MAX_HELLO_SIZE, DEFAULT_MAX_FRAME_SIZE)


def make(rng: random.Random) -> Case:
    """Return a few golden and fresh frames in any order, whole or damaged; `about` is max_frame_size."""
    max_frame_size = rng.choice(SIZES)
    frames = [rng.choice(HELLOS)] if rng.random() < 0.9 else []
    for _ in range(rng.randrange(5)):
        if rng.random() < 0.3:
            frames.append(rng.choice(mutate.golden_frames()[: len(vectors("frames"))]))
        else:
            payload = rng.randbytes(rng.choice((0, 1, 2, 4, 30, 30, 900 if rng.random() < 0.1 else 3)))
            call_id = rng.choice(mutate.EDGES[1:])
            kind = rng.choice((2, 2, 3, 3, 4, 5, 6, 8))
            frames.append(mutate.frame(kind, call_id, b"" if kind == 6 and rng.random() < 0.9 else payload))
    if rng.random() < 0.05:  # the bound itself, and one byte more
        size = min(max_frame_size, MAX_HELLO_SIZE) + rng.randrange(2)
        frames.append(mutate.frame(rng.choice((2, 3, 4, 5)), 1, bytes(size)))
    data = mutate.stream(rng, frames, rng.choice((0, 1, 1, 2, 3, 4)))
    return Case(data, mutate.cuts(rng, len(data)), max_frame_size)


def held(decoder: Any) -> int:
    """Return how many bytes a decoder keeps for later."""
    return decoder.mark[1]


def feed(decoder: Any, case: Case) -> tuple[list[Frame], bool]:
    """Return the frames that came out, and whether the decoder refused; what it keeps is bounded after each read."""
    frames: list[Frame] = []
    for _, piece in case.pieces():
        try:
            frames += decoder.receive_data(piece)
        except RemoteProtocolError:
            assert not held(decoder), "a decoder that has refused keeps bytes"
            return frames, True
        assert held(decoder) < HEADER_SIZE + max(MAX_HELLO_SIZE, case.about)
        assert decoder.is_partial is (held(decoder) > 0)
    return frames, False


def judge(decoder: Any, case: Case, expected: Reading) -> None:
    """Compare a decoder that reads in pieces with the reading of the whole."""
    frames, is_refused = feed(decoder, case)
    there = [frame for _, frame in expected.frames]
    assert is_refused is expected.is_violation
    # What stands in the same read as a violation does not count, so a refused stream may give fewer.
    assert frames == (there[: len(frames)] if is_refused else there)
    if is_refused:
        if len(case.cuts) == len(case.data) - 1:
            assert len(frames) == len(there), "byte by byte, each good frame comes out before the bad one"
    else:
        assert held(decoder) == expected.rest


def check(case: Case, decoder_class: Any = FrameDecoder) -> Outcome:
    expected = read(case.data, case.about)
    judge(decoder_class(case.about), Case(case.data, (), case.about), expected)
    if case.cuts:
        judge(decoder_class(case.about), case, expected)
    if not expected.is_violation:
        return Outcome.ACCEPTED
    return Outcome.REFUSED_LATE if expected.frames else Outcome.REFUSED


@pytest.mark.slow
def test_the_decoder_gives_frames_or_a_violation_however_the_stream_is_cut() -> None:
    """Whole, in pieces and byte by byte: the same frames, the same verdict, and never more kept than one frame."""
    check_tally(fuzz("frames", make, check, count_of("frames")), accepted=0.35, refused=0.25, late=0.1)


def test_the_decoder_allocates_in_proportion_to_what_has_arrived() -> None:
    """A header that names 4 GiB costs what its own 16 bytes cost."""
    assert check_memory("frames", make, check, range(500)) == 500
