"""What docs/reference/wire.md says of frames and states, written a second time, without buffers and without events.

It sees the whole stream at once and says which frames count and whether a rule is broken. Whether one frame's payload
is well formed is taken from `wire.codec`, which has fuzz tests of its own.
"""

from __future__ import annotations

import dataclasses
from typing import Final, NamedTuple

from hostline.errors import RemoteProtocolError
from hostline.limits import MAX_HELLO_SIZE
from hostline.wire.codec import ClientHello, MethodEntry, ServerHello, decode_failure, decode_farewell, decode_hello
from hostline.wire.frame import Frame

HELLO, CALL, REPLY, ERROR, ITEM, END, CANCEL, CREDIT, PING, PONG, GOAWAY = range(1, 12)

_WITHOUT_ID: Final = (HELLO, PING, PONG, GOAWAY)
_WITHOUT_PAYLOAD: Final = (END, CANCEL, PING, PONG)
_STREAM: Final = 4

CREDIT_AT_FIRST: Final = 65536
MOST_CREDIT: Final = 16777216
NEVER: Final = 1 << 62

# What one item costs that the client sends: a header, the head of a `bin` and these bytes.
CLIENT_ITEM: Final = bytes(1000)
_CLIENT_ITEM_COST: Final = 16 + 3 + len(CLIENT_ITEM)


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
            and (flags == 0 or (kind == CALL and flags < 16))
            and fds == 0
            and (method == 0 or kind == CALL)
            and not (length and kind in _WITHOUT_PAYLOAD)
            and (call_id == 0) == (kind in _WITHOUT_ID)
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
        granted: Bytes of credit that were granted for items, by call id.
    """

    events: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    is_violation: bool = False
    taken: int = 0
    in_flight: set[int] = dataclasses.field(default_factory=set)
    is_open: bool = False
    is_gone: bool = False
    granted: dict[int, int] = dataclasses.field(default_factory=dict)


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
        calls: The client begins so many calls, from id 1, if the server has a method and is not leaving: of its methods
            in turn.
        cancels: The client gives up these ids.
        items: Each of the client's calls with a stream among its arguments sends so many of `CLIENT_ITEM`, or less if
            the credit is used up before that.
        has_ends: The client ends those streams then.
        has_answers: The server answers all calls in flight with an even id.
        has_farewell: The server says farewell.
        takes_at: The offset in bytes behind which the program takes all items that have arrived.
    """

    at: int
    calls: int = 0
    cancels: tuple[int, ...] = ()
    items: int = 0
    has_ends: bool = False
    has_answers: bool = False
    has_farewell: bool = False
    takes_at: int = NEVER


class _Incoming:
    """A stream of items as its reader sees it."""

    def __init__(self) -> None:
        self.left = CREDIT_AT_FIRST
        self.costs: list[int] = []
        self.taken = 0

    def arrive(self, payload: bytes) -> None:
        _demand(self.left > 0)
        self.left -= 16 + len(payload)
        self.costs.append(16 + len(payload))

    def take_all(self) -> int:
        """Take what has arrived, and return how much is granted for it: half the credit or more at a time."""
        granted = 0
        for cost in self.costs:
            self.taken += cost
            if self.taken >= CREDIT_AT_FIRST / 2:
                granted += self.taken
                self.taken = 0
        self.costs.clear()
        self.left += granted
        return granted


def _take_all(story: Story, streams: dict[int, _Incoming]) -> None:
    for call_id, stream in streams.items():
        if call_id in story.in_flight and (granted := stream.take_all()):
            story.granted[call_id] = granted


def tell_server(data: bytes, max_frame_size: int, step: Step) -> Story:
    """Follow a client's stream from a server's place."""
    story = Story()
    reading = read(data, max_frame_size)
    last_id = 0
    streams: dict[int, _Incoming] = {}  # of calls with an argument that is a stream and has not ended
    has_stepped = has_taken = is_leaving = is_client_leaving = False

    def act(end: int) -> None:
        nonlocal has_stepped, has_taken, is_leaving
        is_taking = end > step.takes_at and not has_taken
        has_taken |= is_taking
        if is_taking and step.takes_at <= step.at:
            _take_all(story, streams)
        if end > step.at and not has_stepped:
            has_stepped, is_leaving = True, step.has_farewell
            _demand(story.is_open or not is_leaving)  # a farewell before the greeting is the last word
            if step.has_answers:
                story.in_flight = {call_id for call_id in story.in_flight if call_id % 2}
        if is_taking and step.takes_at > step.at:
            _take_all(story, streams)

    try:
        for end, frame in reading.frames:
            act(end)
            allowed = (CALL, ITEM, END, CANCEL, CREDIT, PING, PONG, GOAWAY) if story.is_open else (HELLO,)
            _demand(frame.kind in allowed)
            if frame.kind == HELLO:
                _demand(decode_hello(frame.payload, ClientHello).version == 1)
                story.is_open = True
            elif frame.kind == CALL:
                _demand(frame.call_id not in story.in_flight and not is_client_leaving)
                if not is_leaving:
                    last_id = max(last_id, frame.call_id)
                    story.in_flight.add(frame.call_id)
                    story.events.append((CALL, frame.call_id))
                    streams.pop(frame.call_id, None)
                    if frame.flags & _STREAM:
                        streams[frame.call_id] = _Incoming()
            elif frame.kind == GOAWAY:
                decode_farewell(frame.payload)
                is_client_leaving = True
            elif frame.kind in (ITEM, END, CANCEL, CREDIT):
                _demand(frame.kind != CREDIT or len(frame.payload) == 4)
                if frame.call_id in story.in_flight:
                    _tell_about_call(frame, streams)
                    story.events.append((frame.kind, frame.call_id))
            story.taken += 1
    except (_Broken, RemoteProtocolError):
        story.is_violation = True
    story.is_violation |= reading.is_violation
    story.is_violation |= step.has_farewell and not has_stepped and not story.is_open and step.at < len(data)
    if not story.is_violation:
        act(len(data))
        if not has_stepped and step.has_answers:
            story.in_flight = {call_id for call_id in story.in_flight if call_id % 2}
    return story


def _tell_about_call(frame: Frame, streams: dict[int, _Incoming]) -> None:
    """Judge what a client says about a call in flight."""
    if frame.kind in (ITEM, END):
        _demand(frame.call_id in streams)
    if frame.kind == ITEM:
        streams[frame.call_id].arrive(frame.payload)
    elif frame.kind == END:
        del streams[frame.call_id]


@dataclasses.dataclass
class _Calls:
    """A client's calls: what it gave up, which results are streams, what credit is left where an argument is one."""

    given_up: set[int] = dataclasses.field(default_factory=set)
    results: dict[int, _Incoming] = dataclasses.field(default_factory=dict)
    credits: dict[int, int] = dataclasses.field(default_factory=dict)

    def begin(self, step: Step, methods: list[MethodEntry]) -> set[int]:
        """Begin a step's calls and return those that are not given up."""
        for call_id in range(1, step.calls + 1):
            entry = methods[(call_id - 1) % len(methods)]
            if entry.streams_result:
                self.results[call_id] = _Incoming()
            if entry.streams_argument:
                sent = min(step.items, -(-CREDIT_AT_FIRST // _CLIENT_ITEM_COST))
                self.credits[call_id] = CREDIT_AT_FIRST - sent * _CLIENT_ITEM_COST
        self.given_up = set(step.cancels)
        return set(range(1, step.calls + 1)) - self.given_up

    def tell(self, frame: Frame, story: Story) -> None:
        """Judge what a server says about a call."""
        kind, call_id = frame.kind, frame.call_id
        is_answer = kind in (REPLY, ERROR, END)
        if kind == ERROR:
            decode_failure(frame.payload)
        _demand(kind != CREDIT or len(frame.payload) == 4)
        if call_id in self.given_up:
            if is_answer:
                self.given_up.remove(call_id)
            return
        _demand(call_id in story.in_flight)
        if kind == CREDIT:
            amount = int.from_bytes(frame.payload, "little")
            _demand(call_id in self.credits and amount > 0)
            self.credits[call_id] += amount
            _demand(self.credits[call_id] <= MOST_CREDIT)
        elif kind != ERROR:
            _demand((call_id in self.results) == (kind in (ITEM, END)))
        if kind == ITEM:
            self.results[call_id].arrive(frame.payload)
        if is_answer:
            story.in_flight.remove(call_id)
        story.events.append((kind, call_id))


def tell_client(data: bytes, max_frame_size: int, step: Step) -> Story:
    """Follow a server's stream from a client's place."""
    story = Story()
    reading = read(data, max_frame_size)
    calls = _Calls()
    methods: list[MethodEntry] = []
    last_ids = [0xFFFF_FFFF]
    has_stepped = has_taken = is_leaving = False

    try:
        for end, frame in reading.frames:
            if end > step.at and not has_stepped:
                has_stepped = True
                if methods and not is_leaving:
                    story.in_flight = calls.begin(step, methods)
            if end > step.takes_at and not has_taken:
                has_taken = True
                _take_all(story, calls.results)
            allowed = (REPLY, ERROR, ITEM, END, CREDIT, PING, PONG, GOAWAY) if story.is_open else (HELLO, GOAWAY)
            _demand(frame.kind in allowed and not story.is_gone)
            if frame.kind == HELLO:
                hello = decode_hello(frame.payload, ServerHello)
                _demand(hello.version == 1 and len({m.name for m in hello.methods}) == len(hello.methods))
                story.is_open, methods = True, hello.methods
            elif frame.kind == GOAWAY:
                last_id = decode_farewell(frame.payload).last_call_id
                _demand(last_id <= last_ids[-1])
                last_ids.append(last_id)
                is_leaving = True
                story.is_gone = not story.is_open
            elif frame.kind not in (PING, PONG):
                calls.tell(frame, story)
            story.taken += 1
    except (_Broken, RemoteProtocolError):
        story.is_violation = True
    story.is_violation |= reading.is_violation or (story.is_gone and reading.rest > 0)
    if not story.is_violation:
        if not has_stepped and methods and not is_leaving:
            story.in_flight = calls.begin(step, methods)
        if not has_taken and step.takes_at < len(data):
            _take_all(story, calls.results)
    return story
