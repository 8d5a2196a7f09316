"""What waits to be sent on a connection: descriptors leave with their own frame, or are closed."""

from __future__ import annotations

import os

from hostline.protocol.outgoing import Outgoing
from hostline.rpc.attachments import Attachments
from hostline.unix.passing.descriptors import Fd
from hostline.unix.passing.memory import Buffer
from hostline.wire.attached import Attached, Scattered
from hostline.wire.codec import encode_failure, encode_reply
from hostline.wire.frame import HEADER_SIZE, Kind, encode_frame


def attached(call_id: int, size: int = 10, kind: Kind = Kind.ITEM) -> Attached:
    frame = Attached(encode_frame(kind, call_id, bytes(size)))
    frame.fds = [Fd(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))]
    return frame


def leave(outgoing: Outgoing) -> list[tuple[bytes, int]]:
    """Send everything; return what went in each message, and with how many descriptors."""
    messages = []
    while outgoing.size:
        fds = len(outgoing.fds())
        data = b"".join(outgoing.buffers())
        outgoing.sent(len(data))
        messages.append((data, fds))
    assert outgoing.sent_total == outgoing.queued_total
    return messages


def test_the_end_of_a_stream_becomes_its_failure_and_descriptors_behind_it_keep_their_frames() -> None:
    outgoing = Outgoing()
    lost, second, other = attached(1), attached(1, 20), attached(2, kind=Kind.REPLY)
    end, failure = encode_frame(Kind.END, 1), encode_failure(1, "overloaded", "", "too many")
    for frame in (lost, encode_frame(Kind.END, 3), second, end, other):
        outgoing.append(frame)
    assert not outgoing.replace_end(4, failure)
    assert outgoing.replace_end(1, failure)
    outgoing.replace_first(b"")
    assert not lost.fds
    assert leave(outgoing) == [(encode_frame(Kind.END, 3), 0), (bytes(second) + failure, 1), (bytes(other), 1)]


def test_a_frame_that_looks_like_the_end_is_left_alone() -> None:
    outgoing = Outgoing()
    item = encode_frame(Kind.ITEM, 1, encode_frame(Kind.END, 1))
    for frame in (attached(1), item):
        outgoing.append(frame)
    assert not outgoing.replace_end(1, b"")


def test_a_descriptor_that_fails_to_close_changes_nothing() -> None:
    """As files of a network do, with EIO, when what was written to them is lost."""
    outgoing = Outgoing()
    frames = [attached(1), attached(2), attached(3)]
    sizes = [len(frame) for frame in frames]
    for frame in frames:
        os.close(frame.fds[0].fileno())
        outgoing.append(frame)
    outgoing.sent(HEADER_SIZE)
    assert outgoing.size == sum(sizes) - HEADER_SIZE
    outgoing.sent(sizes[0] - HEADER_SIZE)
    outgoing.replace_first(b"")
    outgoing.clear()
    assert not any(frame.fds for frame in frames)


def large(memory: bytearray) -> Scattered:
    frame = encode_reply(1, Buffer(memory), 1 << 20, Attachments(1 << 20, may_pass=False))
    assert isinstance(frame, Scattered)
    return frame


def test_a_large_buffer_is_sent_from_where_it_is_as_the_same_bytes() -> None:
    memory = bytearray(os.urandom(400_000))
    outgoing = Outgoing()
    frame = large(memory)
    before, after = encode_frame(Kind.PONG), encode_frame(Kind.PING)
    for one in (before, frame, after):
        outgoing.append(one)
    assert outgoing.size == len(before) + len(frame) + len(after)
    pieces = [piece for piece in frame.pieces if piece.obj is memory]
    assert [len(piece) for piece in pieces] == [len(memory)]
    reply = encode_reply(1, bytes(memory))
    assert b"".join(data for data, _ in leave(outgoing)) == before + reply + after


def test_what_waits_is_our_own_once_it_was_copied() -> None:
    memory = bytearray(os.urandom(400_000))
    whole = bytes(encode_reply(1, bytes(memory)))
    outgoing = Outgoing()
    outgoing.append(large(memory))
    for count in (len(outgoing.buffers()[0]), 150_000):
        outgoing.sent(count)
    sent = outgoing.sent_total
    outgoing.own()
    memory[:] = bytes(len(memory))
    memory.append(0)  # nothing holds a view of it any more
    assert b"".join(data for data, _ in leave(outgoing)) == whole[sent:]


def test_a_piece_that_was_copied_is_not_taken_for_the_end_of_a_stream() -> None:
    """What stands behind a large buffer is as long as the caller likes, and says what the caller likes."""
    end = encode_frame(Kind.END, 7)
    attach = Attachments(1 << 20, False)
    values = (Buffer(bytes(400_000)), b"\0\0" + end[4:])  # with its own head, 16 bytes that have the END's kind and id
    frame = encode_reply(1, values, attach=attach)
    assert isinstance(frame, Scattered)
    assert len(frame.pieces[-1]) == HEADER_SIZE
    whole = b"".join(frame.pieces)
    outgoing = Outgoing()
    outgoing.append(frame)
    outgoing.own()
    assert not outgoing.replace_end(7, b"something else")
    assert b"".join(data for data, _ in leave(outgoing)) == whole


def test_nothing_is_offered_once_all_was_forgotten() -> None:
    outgoing = Outgoing()
    outgoing.append(large(bytearray(400_000)))
    outgoing.clear()
    assert outgoing.buffers() == []
