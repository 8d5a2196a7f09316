"""What waits to be sent on a connection: descriptors leave with their own frame, or are closed."""

from __future__ import annotations

import os

from hostline.protocol.outgoing import Outgoing
from hostline.unix.passing.descriptors import Fd
from hostline.wire.attached import Attached
from hostline.wire.codec import encode_failure
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
