"""What a channel accepts and refuses, without sockets: the decoder of messages, values, and the count of batches."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostline.errors import (
    DescriptorError,
    HostlineError,
    InvalidMessageError,
    MessageTooLongError,
    RemoteProtocolError,
)
from hostline.limits import HARD_MAX_MESSAGE_SIZE, LARGE_FRAME
from hostline.protocol.channels.batches import Batch, count_sent, left_of
from hostline.protocol.channels.messages import HEADER, HELLO, MAGIC, VERSION, Message, Messages
from hostline.protocol.channels.values import plain_bytes, value_reader, without_fds
from hostline.unix.passing.descriptors import Fd

GREETING = HELLO.pack(MAGIC, VERSION, 0, 1 << 20)


class Job(msgspec.Struct):
    id: int
    name: str = ""


def header(length: int, kind: int = 2, zero: int = 0, fds: int = 0) -> bytes:
    return HEADER.pack(length, kind, zero, fds)


def frame(data: bytes, kind: int = 2, fds: int = 0) -> bytes:
    return header(len(data), kind, 0, fds) + data


def pipes(count: int) -> list[Fd]:
    found = []
    for _ in range(count):
        one, other = os.pipe()
        os.close(other)
        found.append(Fd(one))
    return found


def drain(messages: Messages) -> tuple[list[tuple[bool, bytes]], str]:
    """Return every message, and the text of the error that ended them."""
    found = []
    while True:
        try:
            message = messages.next_message()
        except RemoteProtocolError as error:
            return found, str(error)
        if message is None:
            return found, ""
        found.append((message.is_bytes, message.data))


def met(**options: Any) -> Messages:
    messages = Messages(**options)
    messages.receive_data(GREETING)
    assert messages.hello is not None
    return messages


# --- the stream --------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from((1, 2)), st.binary(max_size=60)), max_size=8),
    st.binary(max_size=20),
    st.lists(st.integers(1, 40), max_size=20),
)
def test_the_cuts_of_a_stream_change_nothing(parts: list[tuple[int, bytes]], tail: bytes, cuts: list[int]) -> None:
    data = GREETING + b"".join(frame(part, kind) for kind, part in parts) + tail
    whole, single, cut = Messages(), Messages(), Messages()
    whole.receive_data(data)
    for byte in data:
        single.receive_data(bytes((byte,)))
    rest = data
    for size in [*cuts, len(data)]:
        cut.receive_data(rest[:size])
        rest = rest[size:]
    found = drain(whole)
    assert drain(single) == found
    assert drain(cut) == found
    assert found[0][: len(parts)] == [(kind == 2, part) for kind, part in parts]
    assert whole.unfinished == single.unfinished == cut.unfinished


@given(st.binary(max_size=200), st.booleans(), st.sampled_from(("stream", "seqpacket")))
def test_malformed_bytes_are_a_violation_and_nothing_else(data: bytes, has_met: bool, kind: Any) -> None:
    messages = Messages(kind, 100)
    if has_met:
        messages.receive_data(GREETING)
    messages.receive_data(data)
    found, _ = drain(messages)
    assert all(len(part) <= 100 for _, part in found)
    messages.receive_data(data)  # also after a violation
    drain(messages)


@given(st.data())
def test_descriptors_belong_to_the_message_that_announces_them_however_the_reads_fall(data: st.DataObject) -> None:
    """The kernel ends a read within the bytes that descriptors came with, and gives them with the first of these."""
    parts = data.draw(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=30)), max_size=6))
    messages = met(max_fds=3)
    stream: list[tuple[bytes, list[Fd]]] = [(frame(part, fds=count), pipes(count)) for count, part in parts]
    wanted = [[fd.fileno() for fd in fds] for _, fds in stream]
    pending = b""
    for message, fds in stream:
        pieces = [message]
        if len(message) > 1:
            at = data.draw(st.integers(1, len(message) - 1))
            pieces = [message[:at], message[at:]]
        if fds:
            # what was sent before may come in the same read, in front of them
            messages.receive_data(pending + pieces[0], fds)
            pending = b""
            pieces = pieces[1:]
        for piece in pieces:
            pending += piece
            if data.draw(st.booleans()):
                messages.receive_data(pending)
                pending = b""
    messages.receive_data(pending)
    got = []
    while (received := messages.next_message()) is not None:
        got.append([fd.fileno() for fd in received.fds])
        for fd in received.fds:
            fd.close()
    assert got == wanted


def test_a_hello_that_is_a_strangers_is_refused_at_its_first_byte_in_words() -> None:
    messages = Messages()
    messages.receive_data(b"G")
    with pytest.raises(RemoteProtocolError, match="no hostline channel: it begins with b'G'"):
        messages.next_message()


def test_a_client_of_calls_is_told_apart() -> None:
    messages = Messages()
    messages.receive_data(struct.pack("<IBBHII", 60, 1, 0, 0, 0, 0) + b"hostline")
    with pytest.raises(RemoteProtocolError, match="as hostline's calls do"):
        messages.next_message()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (HELLO.pack(MAGIC, 2, 0, 1), "has version 2, and this one 1"),
        (GREETING + header(1, 3), "kind 3 is unknown"),
        (GREETING + header(1, 0), "kind 0 is unknown"),
        (GREETING + header(1, 1, 7), "0x07"),
        (GREETING + header(101), "message of 101 bytes exceeds max_message_size 100"),
        (GREETING + header(0xFFFF_FFFF), "exceeds max_message_size 100"),
        (GREETING + header(1, 2, 0, 3), "announces 3 descriptors and exceeds max_fds 2"),
        (GREETING + header(1, 2, 0, 1), "announces 1 descriptors, and 0 came with it"),
    ],
)
def test_a_violation_is_named_once_its_header_is_there(data: bytes, text: str) -> None:
    messages = Messages("stream", 100, 2)
    messages.receive_data(data)
    assert text in drain(messages)[1]


def test_what_came_before_a_violation_is_handed_out_first() -> None:
    messages = met()
    messages.receive_data(frame(b"good") + header(1, 9))
    assert drain(messages)[0] == [(True, b"good")]


def test_nothing_is_kept_for_a_header_beyond_the_bound() -> None:
    messages = met(max_message_size=1000)
    messages.receive_data(header(HARD_MAX_MESSAGE_SIZE) + bytes(5000))
    assert messages.unfinished == ""
    for _ in range(100):
        messages.receive_data(bytes(1000))
    assert messages.unfinished == ""


def test_unfinished_says_what_is_missing() -> None:
    messages = Messages()
    assert messages.unfinished == ""
    messages.receive_data(MAGIC)
    assert messages.unfinished == "8 bytes of the hello of at least 16"
    messages.receive_data(GREETING[8:] + header(50) + b"x")
    assert messages.unfinished == "9 bytes of a message of at least 58"


# --- large messages ----------------------------------------------------------------------------------

DATA = random.Random(1).randbytes(700_000)


def receive(messages: Messages, stream: bytes, read_size: int = 65_536) -> list[tuple[bool, bytes]]:
    """Do as the faces do: into `space` where there is one."""
    found: list[tuple[bool, bytes]] = []
    rest = memoryview(stream)
    while rest:
        if messages.space is not None:
            part = messages.space[: min(len(rest), read_size)]
            part[:] = rest[: len(part)]
        else:
            part = rest[:read_size]
        rest = rest[len(part) :]
        messages.receive_data(part if messages.space is not None else bytes(part))
        more, error = drain(messages)
        assert not error
        found += more
    return found


@pytest.mark.parametrize("read_size", [1, 7, 4096, 65_536, 10_000_000])
@pytest.mark.parametrize("size", [LARGE_FRAME - 1, LARGE_FRAME, LARGE_FRAME + 1, len(DATA)])
def test_a_large_message_between_small_ones_comes_out_whole(read_size: int, size: int) -> None:
    if read_size < 10 and size > 70_000:
        size = 70_000
    stream = frame(b"a", 1) + frame(DATA[:size]) + frame(b"") + frame(DATA[:size], 1) + frame(b"z")
    messages = met()
    found = receive(messages, stream, read_size)
    assert found == [(False, b"a"), (True, DATA[:size]), (True, b""), (False, DATA[:size]), (True, b"z")]
    assert all(type(data) is bytes for _, data in found)
    assert messages.space is None
    assert messages.unfinished == ""


@given(st.lists(st.integers(0, 200_000), max_size=5), st.lists(st.integers(1, 150_000), max_size=20))
def test_large_messages_come_out_whole_also_of_whoever_ignores_the_space(sizes: list[int], cuts: list[int]) -> None:
    stream = b"".join(frame(DATA[:size]) for size in sizes)
    messages, rest = met(), stream
    for size in [*cuts, len(stream)]:
        messages.receive_data(rest[:size])
        rest = rest[size:]
    assert drain(messages) == ([(True, DATA[:size]) for size in sizes], "")


def test_a_peer_that_announces_much_and_sends_little_takes_little() -> None:
    messages = met(max_message_size=HARD_MAX_MESSAGE_SIZE)
    tracemalloc.start()
    try:
        messages.receive_data(header(HARD_MAX_MESSAGE_SIZE))
        come = 0
        for size in (0, 100, 10_000, 100_000, 400_000):
            receive(messages, DATA[:size])
            come += size
            held, _ = tracemalloc.get_traced_memory()
            assert held <= 4 * max(come, LARGE_FRAME // 4) + 10_000
            assert messages.unfinished == f"{come + 8} bytes of a message of at least {HARD_MAX_MESSAGE_SIZE + 8}"
        messages.close()
        held, _ = tracemalloc.get_traced_memory()
        assert held < 10_000, "what was held for it is given back"
    finally:
        tracemalloc.stop()


def test_descriptors_stay_with_a_large_message_until_all_of_it_is_there() -> None:
    messages = met(max_fds=2)
    first, second = pipes(2)
    data = frame(DATA, fds=1)
    messages.receive_data(data[:50_000], [first])
    assert receive(messages, data[50_000:-1]) == []
    assert messages.space is not None
    messages.space[:1] = data[-1:]
    messages.receive_data(messages.space[:1])
    messages.receive_data(frame(b"next", fds=1), [second])
    for fd, content in ((first, DATA), (second, b"next")):
        message = messages.next_message()
        assert message is not None
        assert (message.data, [*message.fds]) == (content, [fd])
        fd.close()


def test_a_large_message_that_ends_in_a_read_leaves_the_descriptors_of_that_read_to_the_next() -> None:
    messages = met(max_fds=1)
    (fd,) = pipes(1)
    messages.receive_data(frame(DATA)[:50_000])
    messages.receive_data(frame(DATA)[50_000:] + frame(b"next", fds=1), [fd])
    assert drain(messages) == ([(True, DATA), (True, b"next")], "")
    assert not fd.is_closed
    fd.close()


def test_descriptors_in_the_middle_of_a_large_message_end_the_channel_and_free_its_memory() -> None:
    messages = met(max_fds=2)
    held, late = pipes(2)
    messages.receive_data(frame(DATA, fds=1)[:50_000], [held])
    assert messages.space is not None
    messages.receive_data(messages.space[:10], [late])
    assert "no message announced" in drain(messages)[1]
    assert held.is_closed
    assert late.is_closed
    assert messages.space is None
    assert messages.unfinished == ""


# --- descriptors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        frame(b"x"),  # announced by nobody
        frame(b"x", fds=2),  # of another count
        header(1, 9, 0, 1),  # refused for another reason
        b"",  # without any byte
    ],
)
def test_descriptors_that_do_not_fit_are_closed(data: bytes) -> None:
    messages = met(max_fds=2)
    fds = pipes(1)
    messages.receive_data(data, fds)
    drain(messages)
    assert [fd.is_closed for fd in fds] == [True]


def test_descriptors_in_the_middle_of_a_message_are_refused() -> None:
    messages = met(max_fds=2)
    fds = pipes(1)
    messages.receive_data(frame(b"long")[:6])
    messages.receive_data(frame(b"long")[6:-1], fds)
    assert "no message announced" in drain(messages)[1]
    assert fds[0].is_closed


def test_descriptors_with_half_a_header_wait_for_the_other_half() -> None:
    messages = met(max_fds=2)
    fds = pipes(1)
    data = frame(b"late", fds=1)
    messages.receive_data(data[:3], fds)
    messages.receive_data(data[3:])
    message = messages.next_message()
    assert message is not None
    assert message.fds == fds
    fds[0].close()


def test_a_close_closes_what_was_not_handed_out() -> None:
    messages = met(max_fds=1)
    ready, held, late = pipes(3)
    messages.receive_data(frame(b"x", fds=1), [ready])
    messages.receive_data(frame(b"long", fds=1)[:10], [held])
    messages.close()
    messages.receive_data(frame(b"x", fds=1), [late])
    assert [fd.is_closed for fd in (ready, held, late)] == [True] * 3
    assert messages.next_message() is None


# --- packets -----------------------------------------------------------------------------------------


def test_a_packet_is_one_message_exactly() -> None:
    for packet in (b"", b"short", frame(b"x") + b"y", frame(b"xy")[:-1], frame(b"x") + frame(b"y")):
        messages = met(socket_type="seqpacket")
        messages.receive_data(packet)
        assert drain(messages)[1].startswith("packet of"), packet


def test_a_packet_is_no_hello_with_something_behind_it() -> None:
    messages = Messages("seqpacket")
    messages.receive_data(GREETING + b"x")
    assert "hello is a packet of 17 bytes" in drain(messages)[1]


# --- sending -----------------------------------------------------------------------------------------


def test_what_is_encoded_comes_out_again() -> None:
    messages = met()
    messages.receive_data(messages.encode(Job(1, "tea")) + messages.encode_bytes(memoryview(b"plain")))
    first, second = messages.next_message(), messages.next_message()
    assert first is not None
    assert second is not None
    assert value_reader(Job)(first) == Job(1, "tea")
    assert plain_bytes(second) == b"plain"


@pytest.mark.parametrize("size", [0, 100, 16_383, 16_384, 700_000])
@pytest.mark.parametrize("form", [bytes, bytearray, lambda data: memoryview(data + data)[: len(data)]])
def test_plain_bytes_in_pieces_are_those_in_one_and_large_ones_stay_where_they_are(size: int, form: Any) -> None:
    messages = met()
    data = form(DATA[:size])
    pieces = messages.bytes_in_place(data)
    assert b"".join(pieces) == messages.encode_bytes(data) == frame(DATA[:size])
    assert len(pieces) == (2 if size >= 16_384 else 1)
    if len(pieces) == 2 and type(data) is bytearray:
        with pytest.raises(BufferError):
            data.append(0)  # the length was said already
    if len(pieces) == 2 and type(data) is bytes:
        assert pieces[1] is data


def test_large_plain_bytes_are_refused_like_small_ones() -> None:
    messages = Messages("stream", 50_000)
    with pytest.raises(MessageTooLongError, match="50001 bytes exceeds this side's max_message_size 50000"):
        messages.bytes_in_place(bytes(50_001))
    messages.receive_data(HELLO.pack(MAGIC, VERSION, 1, 40_000))
    with pytest.raises(MessageTooLongError, match="40001 bytes exceeds the other side's max_message_size 40000"):
        messages.bytes_in_place(bytearray(40_001))
    with pytest.raises(DescriptorError, match="2 descriptors exceed the max_fds 1"):
        messages.bytes_in_place(bytes(40_000), 2)


def test_the_text_of_a_refused_size_names_side_and_bound() -> None:
    ours = Messages("stream", 100)
    with pytest.raises(MessageTooLongError, match="101 bytes exceeds this side's max_message_size 100"):
        ours.encode_bytes(bytes(101))
    theirs = Messages("stream", 1000)
    theirs.receive_data(HELLO.pack(MAGIC, VERSION, 1, 100))
    with pytest.raises(MessageTooLongError, match="101 bytes exceeds the other side's max_message_size 100"):
        theirs.encode_bytes(bytes(101))
    packets = Messages("seqpacket", packet_size=500)
    with pytest.raises(MessageTooLongError, match="493 bytes exceeds the 492 that one packet carries here; use type="):
        packets.encode_bytes(bytes(493))
    assert packets.encode_bytes(bytes(492))
    with pytest.raises(DescriptorError, match="2 descriptors exceed the max_fds 1 that the other side takes"):
        theirs.encode(None, 2)


@pytest.mark.parametrize("size", [0, -1, HARD_MAX_MESSAGE_SIZE + 1])
def test_a_bound_that_cannot_be_kept_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="max_message_size"):
        Messages("stream", size)


def test_a_value_that_cannot_be_encoded_is_named() -> None:
    with pytest.raises(InvalidMessageError, match="cannot be encoded"):
        Messages().encode(object())


# --- values ------------------------------------------------------------------------------------------


@dataclass
class Point:
    x: float


def message(value: Any, is_bytes: bool = False) -> Message:
    return Message(is_bytes, value if is_bytes else msgspec.msgpack.encode(value), [])


def test_types_of_every_kind_are_read() -> None:
    assert value_reader(Point)(message({"x": 1.5})) == Point(1.5)
    assert value_reader(int | str)(message("a")) == "a"
    assert value_reader(dict[str, list[int]])(message({"a": [1]})) == {"a": [1]}


def test_a_wrong_value_is_refused_with_its_field_and_its_bytes() -> None:
    wrong = message({"id": 1, "name": 2})
    with pytest.raises(InvalidMessageError, match=r"Expected `str`, got `int` - at `\$\.name`") as caught:
        value_reader(Job)(wrong)
    assert caught.value.data == wrong.data
    with pytest.raises(InvalidMessageError, match="receive with recv_bytes"):
        value_reader(Any)(message(b"x", is_bytes=True))
    with pytest.raises(InvalidMessageError, match="receive with recv"):
        plain_bytes(message(1))


def test_values_that_nest_too_deep_or_hold_too_much_are_refused_before_they_are_built() -> None:
    for data in (b"\x91" * 200 + b"\x00", b"\xdc\xff\xff" + b"\x80" * 65535 + b"", b"\x91" * 100_000):
        with pytest.raises(InvalidMessageError):
            value_reader(list[Any])(Message(False, b"\x92" + data + data, []))


def test_the_descriptors_of_a_refused_message_are_closed() -> None:
    for read in (value_reader(int), without_fds, plain_bytes):
        fds = pipes(2)
        with pytest.raises(HostlineError):
            read(Message(False, b"\xa1x", fds))
        assert [fd.is_closed for fd in fds] == [True, True]


def test_a_type_that_cannot_be_read_is_refused_before_anything_is_received() -> None:
    with pytest.raises(TypeError):
        value_reader(int | Job | Point)


# --- batches -----------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=9), max_size=2100), st.data())
def test_a_batch_on_a_stream_counts_whole_messages_whatever_the_kernel_takes(
    parts: list[bytes], data: st.DataObject
) -> None:
    batch = Batch(parts, is_stream=True)
    sent = bytearray()
    while not batch.is_done:
        offered = b"".join(batch.buffers())
        assert offered
        size = data.draw(st.integers(1, len(offered)))
        sent += offered[:size]
        batch.took_bytes(size)
        whole = b"".join(parts[: batch.sent_count])
        assert sent.startswith(whole)
        assert bool(batch.torn) == (len(sent) > len(whole))
    assert sent == b"".join(parts)


@settings(deadline=None)
@given(st.lists(st.sampled_from((0, 1, 40, 300, 70_000, 300_000)), max_size=30), st.data())
def test_encoded_values_are_counted_whatever_the_kernel_takes(sizes: list[int], data: st.DataObject) -> None:
    messages = met()
    values = [DATA[:size] for size in sizes]
    frames = [bytes(messages.encode(value)) for value in values]
    batch = messages.encode_many(iter(values))
    sent = bytearray()
    while not batch.is_done:
        offered = b"".join(batch.buffers())
        size = data.draw(st.integers(1, len(offered)) | st.sampled_from((1, 9, len(frames[0]), len(offered))))
        size = min(size, len(offered))
        sent += offered[:size]
        batch.took_bytes(size)
        whole, count = 0, 0
        while count < len(frames) and whole + len(frames[count]) <= len(sent):
            whole += len(frames[count])
            count += 1
        assert batch.sent_count == count
        assert batch.torn == (f"{len(sent) - whole} of {len(frames[count])} bytes" if len(sent) > whole else "")
    assert sent == b"".join(frames)


def test_one_of_many_that_cannot_be_encoded_or_is_too_large_stops_them_all() -> None:
    messages = Messages("stream", 100)
    with pytest.raises(InvalidMessageError, match="cannot be encoded"):
        messages.encode_many([1, object()])
    with pytest.raises(MessageTooLongError, match="103 bytes"):
        messages.encode_many([1, bytes(101)])
    assert not messages.has_sent
    batch = messages.encode_many([])
    assert batch.is_done
    assert batch.sent_count == 0


@given(st.lists(st.binary(max_size=5), max_size=5), st.integers(0, 25))
def test_what_is_left_of_some_pieces(pieces: list[bytes], count: int) -> None:
    assert b"".join(left_of(pieces, count)) == b"".join(pieces)[count:]


def test_a_batch_of_packets_keeps_empty_ones() -> None:
    batch = Batch([b"a", b"", b"c"], is_stream=False)
    assert batch.packets() == [b"a", b"", b"c"]
    batch.took_packets(1)
    assert batch.packets() == [b"", b"c"]
    assert batch.torn == ""
    batch.took_packets(2)
    assert batch.is_done


def test_the_count_stands_on_every_kind_of_error() -> None:
    for error in (HostlineError("x"), KeyboardInterrupt(), OSError(1, "x")):
        count_sent(error, 3)
        assert vars(error)["sent_count"] == 3
    assert HostlineError().sent_count is None
