"""Damage with a plan: MessagePack values, headers and streams of frames, changed where a parser may stumble.

Everything takes the random numbers as an argument and is cheap: a few slices for each input.
"""

from __future__ import annotations

import random
from functools import cache, lru_cache
from typing import Any, Final

import msgspec
from tests.golden import vectors

from hostline.limits import (
    DEFAULT_MAX_FRAME_SIZE,
    MAX_HELLO_SIZE,
    MAX_STREAM_CREDIT,
    MIN_MAX_FRAME_SIZE,
    STREAM_CREDIT,
)
from hostline.wire.frame import HEADER, HEADER_SIZE, Kind

# Values, heads and pieces of heads that a decoder has to refuse, bound, or get right.
HOSTILE: Final[tuple[bytes, ...]] = (
    *(bytes([b]) for b in (0x00, 0x01, 0x7F, 0xC0, 0xC1, 0xC2, 0xC3, 0xE0, 0xFF)),
    *(bytes.fromhex(h) for h in ("cc80", "cdffff", "ce7fffffff", "ce80000000", "ceffffffff", "cfffffffffffffffff")),
    *(bytes.fromhex(h) for h in ("d080", "d18000", "d280000000", "d38000000000000000", "cf8000000000000000")),
    # NaN, infinities, the largest number, minus nothing
    *(bytes.fromhex(h) for h in ("ca7fc00000", "cb7ff8000000000000", "cb7ff0000000000000", "cbfff0000000000000")),
    *(bytes.fromhex(h) for h in ("cb7fefffffffffffff", "cb8000000000000000", "ca00000001", "cb", "ca00")),
    # text: empty, invalid UTF-8 (a stray byte, too long a form, a surrogate, cut short), NUL, claimed sizes
    *(bytes.fromhex(h) for h in ("a0", "a1ff", "a2c080", "a3eda080", "a2e282", "a100", "d900", "da0000", "db00000000")),
    *(bytes.fromhex(h) for h in ("d9ff", "daffff", "dbffffffff", "db7fffffff", "db80000000")),
    *(bytes.fromhex(h) for h in ("c400", "c401ff", "c5ffff", "c6ffffffff", "c67fffffff")),
    *(msgspec.msgpack.encode("x" * size) for size in (64, 65, 256, 257)),
    # containers: empty, short, with odd keys, with one key twice, with claimed counts
    *(bytes.fromhex(h) for h in ("90", "91c0", "80", "81a0c0", "8190c0", "8180c0", "81c0c0", "81cb7ff8000000000000c0")),
    *(bytes.fromhex(h) for h in ("82a16101a16102", "dc0000", "dcffff", "dd00000000", "ddffffffff", "dd80000000")),
    *(bytes.fromhex(h) for h in ("dd7fffffff", "dd000186a0", "dd000186a1", "de0000", "deffff")),
    *(bytes.fromhex(h) for h in ("dfffffffff", "df80000000", "de8000")),
    # extensions: timestamps of all three sizes at their edges, unknown types, claimed sizes
    *(bytes.fromhex(h) for h in ("d6ff00000000", "d6ffffffffff", "d7ffffffffffffffffff", "d7ff0000000000000000")),
    *(bytes.fromhex(h) for h in ("c70cff" + "00" * 12, "c70cff" + "ff" * 12, "c70cff000000007fffffffffffffff")),
    *(bytes.fromhex(h) for h in ("d400", "d4ff00", "d505ffff", "c70005", "c700ff", "c8ffff01", "c9ffffffff05", "d8ff")),
    # nesting: at the bound, above it, above what Python's own stack takes
    *(head * depth + b"\xc0" for head in (b"\x91", b"\x81\xa0") for depth in (3, 63, 64, 65, 600)),
    b"\x91" * 2000,
    b"\x91" * 2000 + b"\xc0",
    # texts that dates, times and numbers are made from
    *(
        msgspec.msgpack.encode(text)
        for text in ("2026-13-01", "9999-12-31T23:59:59.999999-23:59", "0001-01-01T00:00:00+23:59", "24:00:00", "-P1D")
    ),
    *(msgspec.msgpack.encode(text) for text in ("P999999999999999999D", "PT1e999S", "P", "NaN", "1e999999999", "1_0")),
    *(msgspec.msgpack.encode(text) for text in ("version", "id", "kind", "type", "x` - at `$[9].y", "$[99999999999]")),
)  # fmt: skip

EDGES: Final = (
    0, 1, 2, 15, 16, MIN_MAX_FRAME_SIZE - 1, MIN_MAX_FRAME_SIZE, MIN_MAX_FRAME_SIZE + 1, 0xFFFF, MAX_HELLO_SIZE,
    MAX_HELLO_SIZE + 1, DEFAULT_MAX_FRAME_SIZE - 1, DEFAULT_MAX_FRAME_SIZE, DEFAULT_MAX_FRAME_SIZE + 1,
    0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF,
)  # fmt: skip
_BYTES: Final = (*range(16), 0x20, 0x40, 0x7F, 0x80, 0xFF)
_SCALARS: Final = {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9,
                   0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18, 0xDC: 3, 0xDD: 5, 0xDE: 3, 0xDF: 5}  # fmt: skip
_SIZED: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4}

# What a CREDIT may hold: nothing, little, as much as there is, all that one may have, more, and not 4 bytes at all.
AMOUNTS: Final = (0, 1, STREAM_CREDIT, MAX_STREAM_CREDIT - STREAM_CREDIT, MAX_STREAM_CREDIT - STREAM_CREDIT + 1,
                  MAX_STREAM_CREDIT, MAX_STREAM_CREDIT + 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)  # fmt: skip
CREDITS: Final = (*(amount.to_bytes(4, "little") for amount in AMOUNTS), b"", b"\x01", bytes(3), b"\x01" * 5, bytes(8))

# Sizes of items that use a stream's credit up: but for a byte, to the byte, and with one item that goes beyond.
_ALL: Final = STREAM_CREDIT - HEADER_SIZE
_HALF: Final = STREAM_CREDIT // 2 - HEADER_SIZE
_ITEM_SIZES: Final = (
    (_ALL - 1,), (_ALL,), (_ALL, 0), (_ALL - 1, 0), (_ALL - 1, 1, 1), (_HALF, _HALF), (_HALF, _HALF, 1),
    (_HALF - 1, _HALF + 1, 0), (30000, 30000, 30000), (30000, 30000, 30000, 0), (_ALL - 1, 70000), (70000, 0),
)  # fmt: skip

JUNK: Final = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
    b"\x00",
    b"\xff" * 16,
)


@lru_cache(maxsize=1000)  # or millions of inputs would fill the memory
def marks(payload: bytes, start: int = 0) -> tuple[int, ...]:
    """Return the offsets of every value in a valid payload, containers' heads included, and its end."""
    found: list[int] = []
    at = start
    while at < len(payload):
        found.append(at)
        head = payload[at]
        if 0xA0 <= head <= 0xBF:
            at += 1 + (head & 0x1F)
        elif (width := _SIZED.get(head, 0)) != 0:
            at += 1 + width + int.from_bytes(payload[at + 1 : at + 1 + width], "big") + (0xC7 <= head <= 0xC9)
        else:
            at += _SCALARS.get(head, 1)
    return (*found, len(payload))


def damaged(rng: random.Random, payload: bytes, start: int = 0) -> bytes:
    """Return a valid payload with one thing wrong, or at least other; the bytes before `start` are no MessagePack."""
    at = marks(payload, start)
    i = rng.randrange(len(at) - 1) if len(at) > 1 else 0
    begin, end = at[i], at[min(i + 1, len(at) - 1)]
    choice = rng.randrange(12)
    if choice < 4:  # another value in its place
        return payload[:begin] + rng.choice(HOSTILE) + payload[end:]
    if choice == 4:  # one value too many
        return payload[:begin] + rng.choice(HOSTILE) + payload[begin:]
    if choice == 5:  # one too few
        return payload[:begin] + payload[end:]
    if choice == 6:  # one twice
        return payload[:end] + payload[begin:]
    if choice == 7:  # cut short, at a value's edge or inside it
        return payload[:begin] if rng.random() < 0.5 else payload[: rng.randrange(len(payload) + 1)]
    if choice == 8:  # something behind it
        return payload + rng.choice(HOSTILE)
    if choice == 9 and begin < end:  # another head over the same bytes
        return payload[:begin] + bytes([rng.randrange(256)]) + payload[begin + 1 :]
    if choice == 10 and begin < end:  # a count or a small number that is off by one
        return payload[:begin] + bytes([(payload[begin] + rng.choice((-1, 1))) & 0xFF]) + payload[begin + 1 :]
    return flipped(rng, payload)


def flipped(rng: random.Random, data: bytes) -> bytes:
    """Return the bytes with one to three bits changed."""
    if not data:
        return data
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def frame(kind: int, call_id: int = 0, payload: bytes = b"", flags: int = 0, method: int = 0, fds: int = 0) -> bytes:
    """Return a frame whose length is right and whose other fields are whatever was asked for."""
    return HEADER.pack(len(payload), kind, flags, fds, call_id, method) + payload


def with_odd_header(rng: random.Random, data: bytes) -> bytes:
    """Return a frame with one field of its header at an edge; the payload stays, or grows to what the length says."""
    fields = list(HEADER.unpack_from(data))
    payload = data[HEADER_SIZE:]
    place = rng.randrange(6)
    if place == 0:
        length = rng.choice((*EDGES, max(len(payload) - 1, 0), len(payload) + 1))
        fields[0] = length
        if length <= 2 * MAX_HELLO_SIZE and rng.random() < 0.5:
            payload = payload[:length].ljust(length, b"\xc0")
    elif place < 3:
        fields[place] = rng.choice(_BYTES)
    elif place == 3:
        fields[3] = rng.choice((1, 2, 253, 254, 0xFFFF))
    else:
        fields[place] = rng.choice((*EDGES, (fields[place] + 1) & 0xFFFF_FFFF, max(fields[place] - 1, 0)))
    return HEADER.pack(*fields) + payload


def with_odd_payload(rng: random.Random, data: bytes) -> bytes:
    """Return a frame whose payload is damaged and whose length tells the truth about it."""
    fields = HEADER.unpack_from(data)
    payload = damaged(rng, data[HEADER_SIZE:], min(payload_start(fields), len(data) - HEADER_SIZE))
    return HEADER.pack(len(payload), *fields[1:]) + payload


def payload_start(fields: tuple[Any, ...]) -> int:
    """Return how many bytes of a frame's payload come before its MessagePack: magic bytes, time left, or credit."""
    if fields[1] == Kind.CREDIT:
        return 4
    return 8 if fields[1] == Kind.HELLO or (fields[1] == Kind.CALL and fields[2] & 1) else 0


def merged(rng: random.Random, sequences: list[list[bytes]]) -> list[bytes]:
    """Return the frames of all sequences, each in its own order, in a random order among them."""
    turns = [i for i, sequence in enumerate(sequences) for _ in sequence]
    rng.shuffle(turns)
    each = [iter(sequence) for sequence in sequences]
    return [next(each[i]) for i in turns]


def items(rng: random.Random, call_id: int, max_frame_size: int) -> list[bytes]:
    """Return the items of one stream that come near the end of its credit, reach it, or go beyond."""
    if max_frame_size < STREAM_CREDIT:
        size = max_frame_size - HEADER_SIZE  # a whole number of these is the credit
        sizes = (size,) * (STREAM_CREDIT // max_frame_size + rng.choice((-1, 0, 0, 1)))
    else:
        sizes = rng.choice(_ITEM_SIZES)
    return [frame(Kind.ITEM, call_id, _item(size)) for size in sizes]


@cache
def _item(size: int) -> bytes:
    """Return an item of so many bytes: one value, so that damage to it knows its parts."""
    if size < 5:
        return b"\xc0" * size
    return b"\xc6" + (size - 5).to_bytes(4, "big") + bytes(size - 5)


def stream(rng: random.Random, frames: list[bytes], damages: int) -> bytes:
    """Return the frames as one stream, after so many damages to their order, their headers or their payloads."""
    frames = list(frames)
    cut = flip = False
    for _ in range(damages):
        i = rng.randrange(len(frames)) if frames else 0
        choice = rng.randrange(11) if frames else 6
        if choice < 2:
            frames[i] = with_odd_header(rng, frames[i]) if len(frames[i]) >= HEADER_SIZE else frames[i]
        elif choice < 4:
            frames[i] = with_odd_payload(rng, frames[i]) if len(frames[i]) >= HEADER_SIZE else frames[i]
        elif choice == 4:
            del frames[i]
        elif choice == 5:
            frames.insert(rng.randrange(len(frames) + 1), frames[i])
        elif choice == 6:
            frames.insert(i, rng.choice(golden_frames()))
        elif choice == 7:
            j = rng.randrange(len(frames))
            frames[i], frames[j] = frames[j], frames[i]
        elif choice == 8:
            frames.insert(i, rng.choice(JUNK))
        elif choice == 9:
            cut = True
        else:
            flip = True
    data = b"".join(frames)
    if cut and data:
        data = data[: rng.randrange(len(data))]
    return flipped(rng, data) if flip else data


@cache
def golden_frames() -> tuple[bytes, ...]:
    """Return the golden frames and the malformed ones."""
    return tuple(bytes.fromhex(vector["hex"]) for name in ("frames", "malformed") for vector in vectors(name))


def cuts(rng: random.Random, size: int) -> tuple[int, ...]:
    """Return places to cut a stream at: few, many, or between all bytes of a short one."""
    if size < 2:
        return ()
    choice = rng.randrange(8)
    if choice == 0 and size <= 600:
        return tuple(range(1, size))
    return tuple(rng.randrange(1, size) for _ in range(choice))
