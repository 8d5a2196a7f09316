"""What docs/reference/wire.md says of frames and states, written a second time, without buffers and without events.

It sees the whole stream at once and says which frames count and whether a rule is broken. Whether one frame's payload
is well formed is taken from `wire.codec`, which has fuzz tests of its own.
"""

from __future__ import annotations

import dataclasses
from typing import Final, NamedTuple

from hostline.errors import RemoteProtocolError
from hostline.limits import MAX_HELLO_SIZE
from hostline.wire.codec import ClientHello, ServerHello, decode_failure, decode_farewell, decode_hello
from hostline.wire.frame import Frame

HELLO, CALL, REPLY, ERROR, ITEM, END, CANCEL, CREDIT, PING, PONG, GOAWAY = range(1, 12)

# For each kind of frame: must its call id be 0, must it be above 0, or is that judged where calls are known.
_IDS: Final = {HELLO: "0", PING: "0", PONG: "0", GOAWAY: "0", ITEM: "+", END: "+", CANCEL: "+", CREDIT: "+"}


class Reading(NamedTuple):
    """The frames of a stream with the offset behind each, whether a header breaks a rule, and the bytes left over."""

    frames: list[tuple[int, Frame]]
    is_violation: bool
    rest: int


def read(data: bytes, max_frame_size: int) -> Reading:
    """Read a stream from its beginning up to its end or its first bad header."""
    frames: list[tuple[int, Frame]] = []
    limit = MAX_HELLO_SIZE
    at = 0
    while len(data) - at >= 16:
        length = int.from_bytes(data[at : at + 4], "little")
        kind, flags = data[at + 4], data[at + 5]
        fds = int.from_bytes(data[at + 6 : at + 8], "little")
        call_id = int.from_bytes(data[at + 8 : at + 12], "little")
        method = int.from_bytes(data[at + 12 : at + 16], "little")
        is_good = (
            HELLO <= kind <= GOAWAY
            and length <= limit
            and (flags == 0 or (kind == CALL and flags < 4))
            and fds == 0
            and (method == 0 or kind == CALL)
            and not (length and kind in (CANCEL, PING, PONG))
            and not (_IDS.get(kind) == "0" and call_id)
            and not (_IDS.get(kind) == "+" and not call_id)
        )
        if not is_good:
            return Reading(frames, True, len(data) - at)
        end = at + 16 + length
        if end > len(data):
            break
        frames.append((end, Frame(kind, flags, 0, call_id, method, data[at + 16 : end])))
        at = end
        if kind == HELLO:
            limit = max_frame_size
    return Reading(frames, False, len(data) - at)


@dataclasses.dataclass
class Story:
    """What one side makes of a stream.

    Attributes:
        events: Frames that its owner hears of, in order, as (kind, call id).
        is_violation: Whether the other side broke a rule.
        taken: Number of frames that were in order.
        in_flight: Calls without an answer at the end.
        is_open: Whether the greeting is done.
        is_gone: Whether nothing may arrive any more, without a rule broken.
    """

    events: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    is_violation: bool = False
    taken: int = 0
    in_flight: set[int] = dataclasses.field(default_factory=set)
    is_open: bool = False
    is_gone: bool = False


class _Broken(Exception):
    """A rule is broken."""


def _demand(condition: bool) -> None:
    if not condition:
        raise _Broken


@dataclasses.dataclass(frozen=True)
class Step:
    """What a side does of its own accord, once the bytes up to an offset have arrived.

    Attributes:
        at: The offset in bytes.
        calls: The client begins so many calls, from id 1, if the server has a method and is not leaving.
        cancels: The client gives up these ids.
        has_answers: The server answers all calls in flight with an even id.
        has_farewell: The server says farewell.
    """

    at: int
    calls: int = 0
    cancels: tuple[int, ...] = ()
    has_answers: bool = False
    has_farewell: bool = False


def tell_server(data: bytes, max_frame_size: int, step: Step) -> Story:
    """Follow a client's stream from a server's place."""
    story = Story()
    reading = read(data, max_frame_size)
    last_id = 0
    has_stepped = is_leaving = is_client_leaving = False
    try:
        for end, frame in reading.frames:
            if end > step.at and not has_stepped:
                has_stepped, is_leaving = True, step.has_farewell
                _demand(story.is_open or not is_leaving)  # a farewell before the greeting is the last word
                if step.has_answers:
                    story.in_flight = {call_id for call_id in story.in_flight if call_id % 2}
            _demand(frame.kind in ((CALL, CANCEL, PING, PONG, GOAWAY) if story.is_open else (HELLO,)))
            if frame.kind == HELLO:
                _demand(decode_hello(frame.payload, ClientHello).version == 1)
                story.is_open = True
            elif frame.kind == CALL:
                _demand(frame.call_id > 0 and frame.call_id not in story.in_flight and not is_client_leaving)
                if not is_leaving:
                    last_id = max(last_id, frame.call_id)
                    story.in_flight.add(frame.call_id)
                    story.events.append((CALL, frame.call_id))
            elif frame.kind == CANCEL and frame.call_id in story.in_flight:
                story.events.append((CANCEL, frame.call_id))
            elif frame.kind == GOAWAY:
                decode_farewell(frame.payload)
                is_client_leaving = True
            story.taken += 1
    except (_Broken, RemoteProtocolError):
        story.is_violation = True
    story.is_violation |= reading.is_violation
    story.is_violation |= step.has_farewell and not has_stepped and not story.is_open and step.at < len(data)
    if not has_stepped and not story.is_violation and step.has_answers:
        story.in_flight = {call_id for call_id in story.in_flight if call_id % 2}
    return story


def tell_client(data: bytes, max_frame_size: int, step: Step) -> Story:
    """Follow a server's stream from a client's place."""
    story = Story()
    reading = read(data, max_frame_size)
    given_up: set[int] = set()
    last_ids = [0xFFFF_FFFF]
    has_stepped = has_methods = is_leaving = False

    def begin_calls() -> None:
        if has_methods and not is_leaving:
            story.in_flight = set(range(1, step.calls + 1)) - set(step.cancels)
            given_up.update(set(step.cancels))

    try:
        for end, frame in reading.frames:
            if end > step.at and not has_stepped:
                has_stepped = True
                begin_calls()
            allowed = (REPLY, ERROR, PING, PONG, GOAWAY) if story.is_open else (HELLO, GOAWAY)
            _demand(frame.kind in allowed and not story.is_gone)
            if frame.kind == HELLO:
                hello = decode_hello(frame.payload, ServerHello)
                _demand(hello.version == 1 and len({m.name for m in hello.methods}) == len(hello.methods))
                story.is_open, has_methods = True, bool(hello.methods)
            elif frame.kind in (REPLY, ERROR):
                if frame.kind == ERROR:
                    decode_failure(frame.payload)
                _demand(frame.call_id in story.in_flight or frame.call_id in given_up)
                if frame.call_id in story.in_flight:
                    story.in_flight.remove(frame.call_id)
                    story.events.append((frame.kind, frame.call_id))
                else:
                    given_up.remove(frame.call_id)
            elif frame.kind == GOAWAY:
                last_id = decode_farewell(frame.payload).last_call_id
                _demand(last_id <= last_ids[-1])
                last_ids.append(last_id)
                is_leaving = True
                story.is_gone = not story.is_open
            story.taken += 1
    except (_Broken, RemoteProtocolError):
        story.is_violation = True
    story.is_violation |= reading.is_violation or (story.is_gone and reading.rest > 0)
    if not has_stepped and not story.is_violation:
        begin_calls()
    return story
