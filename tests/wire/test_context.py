"""The context of a call: what travels, what is left out, and what is refused in words."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostline.errors import InvalidArgumentError, RemoteProtocolError
from hostline.wire.codec import encode_call, split_call
from hostline.wire.context import encode_context, split_context
from hostline.wire.frame import Flag, FrameDecoder, Kind

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ARGS = b"\x91\x07"
encode = msgspec.msgpack.encode


@given(st.dictionaries(st.text(min_size=1, max_size=20).map(str.lower), st.text(max_size=60), max_size=16))
def test_any_small_map_of_texts_arrives_as_it_was_sent_and_what_follows_is_left_alone(context: dict[str, str]) -> None:
    encoded = encode_context(context)
    if context:
        context = {key: value for key, value in context.items() if key == key.lower()}  # some have no lower case
    if encoded:
        assert split_context(encoded + ARGS) == (context, ARGS)
    else:
        assert context == {}


@pytest.mark.parametrize("head", [b"\x81", b"\xde\x00\x01", b"\xdf\x00\x00\x00\x01"])
@pytest.mark.parametrize("key", [b"\xa1a", b"\xd9\x01a", b"\xda\x00\x01a", b"\xdb\x00\x00\x00\x01a"])
def test_every_valid_encoding_is_taken(head: bytes, key: bytes) -> None:
    assert split_context(head + key + b"\xa1b" + ARGS) == ({"a": "b"}, ARGS)
    assert split_context(b"\x80" + ARGS) == ({}, ARGS)


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"", "does not fit into the payload of 0 bytes"),
        (b"\x91\x07", "has the byte 0x91 where a map begins"),
        (b"\x81\x01\xa1b", "has the byte 0x01 where a text begins"),
        (b"\x81\xa1a\xc0", "has the byte 0xc0 where a text begins"),
        (b"\x81\xa1a", "does not fit into the payload of 3 bytes"),
        (b"\x81\xa1a\xa5b", "does not fit into the payload of 5 bytes"),
        (b"\xde\x00", "does not fit"),
        (b"\x81\xa0\xa1b", "keys are lower case, and not empty"),
        (b"\x81\xa1A\xa1b", "has the key 'A': keys are lower case"),
        (b"\x82\xa1a\xa1b\xa1a\xa1c", "has the key 'a' twice"),
        (b"\x81\xa1a\xa1\xff", "not UTF-8"),
        (b"\xde\x00\x11", "of 17 entries exceeds 16"),
        (b"\xdf\xff\xff\xff\xff", "of 4294967295 entries exceeds 16"),
        (b"\x81\xa1a\xdb\xff\xff\xff\xff", "does not fit"),
        (b"\x81\xa1a" + encode("x" * 5000), "exceeds 4096 bytes"),
    ],
)
def test_a_malformed_context_is_refused_in_words(payload: bytes, text: str) -> None:
    with pytest.raises(RemoteProtocolError, match=f"^call context .*{text}"):
        split_context(payload)


def test_what_a_peer_would_refuse_is_left_out_and_the_call_goes_on() -> None:
    assert encode_context({}) == b""
    assert split_context(encode_context({"Upper": "x", "": "x", "ok": "1", "bad": "\udc80"}))[0] == {"ok": "1"}
    many = {f"k{number}": "v" for number in range(40)}
    assert list(split_context(encode_context(many))[0]) == [f"k{number}" for number in range(16)]
    long = {"traceparent": PARENT, "baggage": "x" * 5000}
    assert split_context(encode_context(long))[0] == {"traceparent": PARENT}
    full = encode_context({"a": "x" * 4088})
    assert len(full) <= 4096
    assert split_context(full)[1] == b""


def test_arguments_that_only_fit_without_their_context_are_sent_without_it() -> None:
    def flags_of(size: int) -> int:
        frame = encode_call(1, 0, (bytes(size),), None, 1.0, 4096, context={"traceparent": PARENT})
        decoder = FrameDecoder()
        decoder.expect_frames()
        (decoded,) = decoder.receive_data(bytes(frame))
        assert decoded.kind == Kind.CALL
        time_left, payload, _, context = split_call(decoded)
        assert time_left == 1.0
        assert (context is not None) is bool(decoded.flags & Flag.CONTEXT)
        assert msgspec.msgpack.decode(payload) == [bytes(size)]
        return decoded.flags

    assert flags_of(3000) == Flag.DEADLINE | Flag.CONTEXT
    assert flags_of(4096 - 8 - 4) == Flag.DEADLINE
    with pytest.raises(InvalidArgumentError, match=r"^arguments of 4097 bytes exceed max_frame_size 4096"):
        flags_of(4096 - 8 - 3)
