"""One connection as a state machine, for both sides, without I/O.

States and their order are in states.py. What the frames mean is here: ids tie answers to calls, a farewell tells which
calls were not run, and each side's bounds are kept by the other. Bytes go in, events and bytes to send come out;
waiting, reading and writing is for the faces.

More than 400 lines, because both sides are here: each keeps the rules that the other relies on.
"""

from __future__ import annotations

from typing import Any, Final

from hostline.errors import InvalidArgumentError, LocalProtocolError, MethodNotFoundError, RemoteProtocolError
from hostline.limits import DEFAULT_MAX_FRAME_SIZE, HARD_MAX_FRAME_SIZE
from hostline.protocol.flow import Allowance, Window
from hostline.protocol.states import TRANSITIONS, Role, State
from hostline.wire.codec import (
    VERSION,
    ClientHello,
    ErrorCode,
    Farewell,
    GoawayCode,
    ServerHello,
    decode_credit,
    decode_failure,
    decode_farewell,
    decode_hello,
    encode_call,
    encode_credit,
    encode_failure,
    encode_farewell,
    encode_hello,
    encode_item,
    hello_version,
)
from hostline.wire.frame import HEADER_SIZE, Flag, Frame, FrameDecoder, Kind, check_frame_size, encode_frame

__all__ = [
    "TRANSITIONS",
    "Answer",
    "ClientConnection",
    "Role",
    "ServerConnection",
    "State",
    "check_frame_size",
]

_MAX_CALL_ID: Final = 0xFFFF_FFFF
_NOT_RUN: Final = "the service is leaving; the call was not run"

# What the client gets: the ticket that `call` was given, and the frame that answers it.
Answer = tuple[Any, Frame]

# Plain integers for the hot path: arithmetic on enum members costs ten times as much.
_CALL: Final = int(Kind.CALL)
_REPLY: Final = int(Kind.REPLY)
_ERROR: Final = int(Kind.ERROR)
_ANSWERED: Final = (_REPLY, _ERROR)
_CANCEL: Final = int(Kind.CANCEL)
_HELLO: Final = int(Kind.HELLO)
_ITEM: Final = int(Kind.ITEM)
_END: Final = int(Kind.END)
_CREDIT: Final = int(Kind.CREDIT)
_STREAM: Final = int(Flag.STREAM)
_ABOUT_RUNNING: Final = (_CANCEL, _CREDIT)
_GOAWAY: Final = int(Kind.GOAWAY)
_PING: Final = int(Kind.PING)


class _Connection:
    """Hold what both roles share: the state, the decoder, and the frames that answer by themselves."""

    role: Role

    def __init__(self, max_frame_size: int) -> None:
        self.decoder = FrameDecoder(max_frame_size)
        self._max_frame_size = max_frame_size
        self._enter(State.OPENING)
        self._outgoing: list[bytes | bytearray] = []
        self._has_pong = False
        self._features: frozenset[str] = frozenset()  # what the peer names: nothing else is used towards it

    @property
    def is_partial(self) -> bool:
        """Whether a frame has begun to arrive and is not complete."""
        return self.decoder.is_partial

    @property
    def answers_pings(self) -> bool:
        """Whether the peer has said that it does."""
        return "ping" in self._features and self.state in (State.OPEN, State.CLOSING)

    def data_to_send(self) -> list[bytes | bytearray]:
        """Return the frames to send, in order, and forget them."""
        outgoing = self._outgoing
        if outgoing:
            self._outgoing = []
            self._has_pong = False
        return outgoing

    def ping(self) -> None:
        """Queue a PING.

        Raises:
            LocalProtocolError: The two sides have not greeted each other, the connection is closed, or the peer does
                not know the frame.
        """
        if self.state is not State.OPEN and self.state is not State.CLOSING:
            raise LocalProtocolError(f"connection is {self.state.value}: it takes no ping")
        if "ping" not in self._features:
            raise LocalProtocolError("the peer does not name the feature 'ping'")
        self._outgoing.append(encode_frame(Kind.PING))

    def pong(self) -> None:
        """Queue one PONG for all the PINGs since the last look: a flood of them must not fill our memory."""
        if not self._has_pong:
            self._has_pong = True
            self._outgoing.append(encode_frame(Kind.PONG))

    def _frames(self, data: bytes) -> list[Frame]:
        """Decode, check each frame against the table and move on.

        Raises:
            RemoteProtocolError: The bytes or their order break the protocol; the state is CLOSED afterwards.
        """
        decoder = self.decoder
        try:
            frames = decoder.receive_data(data)
            for frame in frames:
                kind = frame[0]
                following = self._allowed.get(kind)
                if following is not self.state:
                    self._follow(kind, following)
            if self.state is State.CLOSED and decoder.is_partial:
                raise RemoteProtocolError(f"data after the end: the {self.role.value} is closed")
        except RemoteProtocolError:
            self._enter(State.CLOSED)
            raise
        return frames

    def _follow(self, kind: int, following: State | None) -> None:
        if following is None:
            name = Kind(kind).name.lower()
            raise RemoteProtocolError(f"{name} frame is out of place: the {self.role.value} is {self.state.value}")
        self._enter(following)

    def _enter(self, state: State) -> None:
        """Take a state, and the row of the table that goes with it."""
        self.state = state
        self._allowed = TRANSITIONS[self.role, state]
        if state is State.CLOSED:
            self.decoder = FrameDecoder(self._max_frame_size)  # nothing is kept of what came after the end


class ClientConnection(_Connection):
    """Number calls, match answers to them, and know which calls were certainly not run.

    Args:
        program: Who calls, for the server's log.
        max_frame_size: Largest payload taken, in bytes.

    Attributes:
        hello: What the server said of itself, or None before that.
        farewell: What the server said at its leaving, or None.
        in_flight: Tickets of calls not answered yet, by id.
    """

    role = Role.CLIENT

    def __init__(self, program: str = "", max_frame_size: int = DEFAULT_MAX_FRAME_SIZE) -> None:
        super().__init__(max_frame_size)
        self.hello: ServerHello | None = None
        self.farewell: Farewell | None = None
        self.in_flight: dict[int, Any] = {}
        self._cancelled: set[int] = set()
        self._windows: dict[int, Window] = {}  # of calls whose result is a stream
        self._allowances: dict[int, Allowance] = {}  # of calls with an argument that is one, until it has ended
        self._methods: dict[str, int] = {}
        self._streaming: frozenset[str] = frozenset()
        self._with_items: frozenset[str] = frozenset()
        self._idempotent: frozenset[str] = frozenset()
        self._last_id = 0
        self._peer_max_frame_size = max_frame_size
        self._outgoing.append(encode_hello(ClientHello(max_frame_size=max_frame_size, program=program)))

    @property
    def is_usable(self) -> bool:
        """Whether a new call may start here."""
        return self.state is State.OPEN

    def receive_data(self, data: bytes) -> list[Answer]:
        """Return the answers that `data` completes, and beside them the ITEMs of streams and the CREDIT for them.

        Raises:
            RemoteProtocolError: The server broke the protocol; all calls without an answer are still in flight.
        """
        answers: list[Answer] = []
        try:
            for frame in self._frames(data):
                kind = frame[0]
                if kind in _ANSWERED:
                    if kind == _ERROR:
                        decode_failure(frame.payload)  # a malformed one is a violation, not one call's failure
                    elif self._windows and frame.call_id in self._windows:
                        raise RemoteProtocolError(f"reply to call {frame.call_id}, whose result is a stream")
                    self._answer(frame, answers)
                elif kind == _ITEM:
                    self._take_item(frame, answers)
                elif kind == _END:
                    if frame.call_id not in self._windows and frame.call_id in self.in_flight:
                        raise RemoteProtocolError(f"end of call {frame.call_id}, whose result is no stream")
                    self._answer(frame, answers)
                elif kind == _CREDIT:
                    self._take_credit(frame, answers)
                elif kind == _HELLO:
                    self._meet(frame.payload)
                elif kind == _PING:
                    self.pong()
                elif kind == _GOAWAY:
                    self._part(decode_farewell(frame.payload))
        except RemoteProtocolError:
            self._enter(State.CLOSED)
            # Nobody gets what came before the violation: these calls end as all the others in flight do.
            self.in_flight.update((frame.call_id, ticket) for ticket, frame in answers)
            raise
        return answers

    def _answer(self, frame: Frame, answers: list[Answer]) -> None:
        """Take the frame that ends a call."""
        call_id = frame.call_id
        ticket = self.in_flight.pop(call_id, None)
        if ticket is None:
            self._late(call_id)
            return
        if self._windows or self._allowances:
            self._forget_streams(call_id)
        answers.append((ticket, frame))

    def _take_item(self, frame: Frame, answers: list[Answer]) -> None:
        window = self._windows.get(frame.call_id)
        if window is not None:
            window.arrived(len(frame.payload))
            answers.append((self.in_flight[frame.call_id], frame))
        elif frame.call_id not in self._cancelled:
            raise RemoteProtocolError(f"item of call {frame.call_id}, whose result is no stream")

    def _take_credit(self, frame: Frame, answers: list[Answer]) -> None:
        allowance = self._allowances.get(frame.call_id)
        amount = decode_credit(frame.payload)
        if allowance is not None:
            allowance.grant(amount)
            answers.append((self.in_flight[frame.call_id], frame))
        elif frame.call_id not in self._cancelled:
            raise RemoteProtocolError(f"credit for call {frame.call_id}, which sends no items")

    def _forget_streams(self, call_id: int) -> None:
        self._windows.pop(call_id, None)
        self._allowances.pop(call_id, None)

    def call(
        self,
        method: str,
        args: tuple[Any, ...],
        keywords: dict[str, Any] | None,
        time_left: float | None,
        ticket: Any,
        has_items: bool = False,
    ) -> tuple[int, bytearray]:
        """Begin a call.

        Args:
            method: The method's name.
            args: Arguments by position.
            keywords: Arguments by name.
            time_left: Seconds until the caller stops waiting, or None.
            ticket: Anything but None; it comes back with the answer, and with each item of a result that is a stream.
            has_items: Whether an argument is a stream, whose items follow; None stands at its place.

        Returns:
            The call's id and the frame to send.

        Raises:
            MethodNotFoundError: The service has no such method.
            InvalidArgumentError: The arguments cannot be encoded.
            LocalProtocolError: The connection does not take calls now.
        """
        if self.state is not State.OPEN:
            raise LocalProtocolError(f"connection is {self.state.value}: it takes no call")
        number = self._methods.get(method)
        if number is None:
            raise MethodNotFoundError(self._unknown(method))
        if "deadline" not in self._features:
            time_left = None  # this server does not know the flag: the caller's own clock is all there is
        call_id = self._next_id()
        frame = encode_call(call_id, number, args, keywords, time_left, self._peer_max_frame_size, has_items)
        self.in_flight[call_id] = ticket
        if method in self._streaming:
            self._windows[call_id] = Window()
        if has_items:
            self._allowances[call_id] = Allowance()
        return call_id, frame

    def may_send(self, call_id: int) -> bool:
        """Say whether an item of a call's argument may be sent now."""
        allowance = self._allowances.get(call_id)
        return allowance is not None and allowance.may_send

    def item(self, call_id: int, item: Any) -> bytearray:
        """Return the frame of one item of a call's argument, and charge it; only where `may_send` says so.

        Raises:
            InvalidArgumentError: It cannot be encoded or exceeds the frame.
            LocalProtocolError: There is no credit for it.
        """
        allowance = self._allowances.get(call_id)
        if allowance is None or not allowance.may_send:
            raise LocalProtocolError(f"call {call_id} may not send an item now")
        frame = encode_item(call_id, item, self._peer_max_frame_size, InvalidArgumentError)
        allowance.take(len(frame) - HEADER_SIZE)
        return frame

    def end(self, call_id: int) -> bytes:
        """Return the frame that ends a call's argument; nothing if the call is over."""
        allowance = self._allowances.get(call_id)
        if allowance is None or allowance.is_over:
            return b""
        allowance.is_over = True
        return encode_frame(Kind.END, call_id)

    def taken(self, call_id: int, size: int) -> bytes:
        """Note that the program took an item whose payload has `size` bytes; returns the CREDIT to send, if any."""
        window = self._windows.get(call_id)
        amount = window.taken(size) if window is not None else 0
        return encode_credit(call_id, amount) if amount else b""

    def streams_result(self, method: str) -> bool:
        """Say whether a method's result is a stream."""
        return method in self._streaming

    def has_method(self, method: str) -> bool:
        """Say whether the service has a method."""
        return method in self._methods

    @property
    def has_streams(self) -> bool:
        """Whether any method of the service has one."""
        return bool(self._streaming or self._with_items)

    def is_streaming(self, method: str) -> bool:
        """Say whether a method's result or one of its arguments is a stream."""
        return method in self._streaming or method in self._with_items

    def takes_items(self, method: str) -> bool:
        """Say whether an argument of a method is a stream."""
        return method in self._with_items

    def cancel(self, call_id: int) -> bytes:
        """Give up a call; returns the frame to send, or nothing if it was answered or the server knows no CANCEL."""
        if self.in_flight.pop(call_id, None) is None:
            return b""
        self._forget_streams(call_id)
        self._cancelled.add(call_id)
        return encode_frame(Kind.CANCEL, call_id) if "cancel" in self._features else b""

    def forget(self, call_id: int) -> None:
        """Take a call off the books that the server's farewell rules out: no answer comes for it."""
        self.in_flight.pop(call_id, None)
        self._forget_streams(call_id)

    def was_not_run(self, call_id: int) -> bool:
        """Say whether the server's farewell rules this call out."""
        return self.farewell is not None and call_id > self.farewell.last_call_id

    def is_idempotent(self, method: str) -> bool:
        """Say whether the service declares that repeating the method does no harm."""
        return method in self._idempotent

    @property
    def methods(self) -> list[str]:
        """The service's methods by number."""
        return list(self._methods)

    def _next_id(self) -> int:
        call_id = self._last_id
        while True:
            call_id = call_id + 1 if call_id < _MAX_CALL_ID else 1
            if call_id not in self.in_flight and call_id not in self._cancelled:
                self._last_id = call_id
                return call_id

    def _late(self, call_id: int) -> None:
        """Take an answer that nobody waits for: to a cancelled call it is welcome once."""
        if call_id not in self._cancelled:
            raise RemoteProtocolError(f"answer to call {call_id}, which is not in flight")
        self._cancelled.remove(call_id)

    def _meet(self, payload: bytes) -> None:
        version = hello_version(payload)
        if version != VERSION:
            raise RemoteProtocolError(f"server speaks protocol version {version}, this client {VERSION}")
        hello = decode_hello(payload, ServerHello)
        if len({entry.name for entry in hello.methods}) != len(hello.methods):
            raise RemoteProtocolError("hello names a method twice")
        self.hello = hello
        self._methods = {entry.name: number for number, entry in enumerate(hello.methods)}
        self._idempotent = frozenset(entry.name for entry in hello.methods if entry.is_idempotent)
        self._streaming = frozenset(entry.name for entry in hello.methods if entry.streams_result)
        self._with_items = frozenset(entry.name for entry in hello.methods if entry.streams_argument)
        self._peer_max_frame_size = min(hello.max_frame_size, HARD_MAX_FRAME_SIZE)
        self._features = frozenset(hello.features)

    def _part(self, farewell: Farewell) -> None:
        before = self.farewell
        if before is not None and farewell.last_call_id > before.last_call_id:
            # Calls that the first farewell ruled out may run elsewhere by now.
            raise RemoteProtocolError(
                f"a second goaway raises last_call_id from {before.last_call_id} to {farewell.last_call_id}"
            )
        self.farewell = farewell

    def _unknown(self, method: str) -> str:
        import difflib

        service = self.hello.service if self.hello else ""
        known = [name for name in self._methods if not name.startswith("hostline.")]
        near = difflib.get_close_matches(method, self._methods, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
        return f"service {service!r} has no method {method!r}: {hint}"


class ServerConnection(_Connection):
    """Keep the ids of calls in flight, and say goodbye in a way that tells what was not run.

    Args:
        hello: What the service says of itself.
        max_frame_size: Largest payload taken, in bytes.

    Attributes:
        client: What the client said of itself, or None before that.
        in_flight: Ids of calls that are not answered yet.
        last_call_id: The highest id of a call so far.
        max_reply_size: The largest payload that the client takes, in bytes.
    """

    role = Role.SERVER

    def __init__(self, hello: bytes, max_frame_size: int = DEFAULT_MAX_FRAME_SIZE) -> None:
        super().__init__(max_frame_size)
        self.client: ClientHello | None = None
        self.in_flight: set[int] = set()
        self._windows: dict[int, Window | None] = {}  # of calls with an argument that is a stream; None once it ended
        self.max_reply_size = DEFAULT_MAX_FRAME_SIZE
        self._hello = hello
        self.last_call_id = 0
        self._is_leaving = False
        self._is_client_leaving = False

    def receive_data(self, data: bytes) -> list[Frame]:
        """Return the frames about calls that `data` completes: CALL, CANCEL, and ITEM, END and CREDIT of streams.

        What is about a call that was answered meanwhile is left out.

        Raises:
            RemoteProtocolError: The client broke the protocol; `data_to_send` then holds a farewell that says how.
        """
        events: list[Frame] = []
        try:
            for frame in self._frames(data):
                kind = frame[0]
                if kind == _CALL:
                    self._admit(frame, events)
                elif kind == _ITEM:
                    self._take_item(frame, events)
                elif kind in _ABOUT_RUNNING:
                    if kind == _CREDIT:
                        decode_credit(frame.payload)  # a malformed one is a violation, whatever it is about
                    if frame.call_id in self.in_flight:
                        events.append(frame)
                elif kind == _END:
                    self._take_end(frame, events)
                elif kind == _HELLO:
                    self._meet(frame.payload)
                elif kind == _PING:
                    self.pong()
                elif kind == _GOAWAY:
                    decode_farewell(frame.payload)
                    self._is_client_leaving = True
        except RemoteProtocolError as error:
            self._enter(State.CLOSED)
            self.go_away(GoawayCode.PROTOCOL, str(error))
            raise
        return events

    def finish(self, call_id: int) -> bool:
        """Take a call out of flight; False if it was answered before, and nothing may be sent for it."""
        if call_id in self.in_flight:
            self.in_flight.remove(call_id)
            if self._windows:
                self._windows.pop(call_id, None)
            return True
        return False

    def reply(self, call_id: int, frame: bytes | bytearray) -> None:
        """Queue the frame that answers a call; the second answer to one call is dropped."""
        if self.finish(call_id):
            self._outgoing.append(frame)

    def item(self, call_id: int, frame: bytes | bytearray) -> None:
        """Queue an item of a call's result; nothing happens if the call is over."""
        if call_id in self.in_flight:
            self._outgoing.append(frame)

    def end(self, call_id: int) -> None:
        """Queue the end of a call's result, which answers the call."""
        if self.finish(call_id):
            self._outgoing.append(encode_frame(Kind.END, call_id))

    def taken(self, call_id: int, size: int) -> bool:
        """Note that the handler took an item whose payload has `size` bytes; whether CREDIT was queued for it."""
        window = self._windows.get(call_id)
        amount = window.taken(size) if window is not None else 0
        if amount:
            self._outgoing.append(encode_credit(call_id, amount))
        return amount > 0

    def fail(self, call_id: int, code: str, name: str, message: str) -> int:
        """Queue an error for a call, and return its bytes; nothing happens if the call was answered."""
        if not self.finish(call_id):
            return 0
        frame = encode_failure(call_id, code, name, message, self.max_reply_size)
        self._outgoing.append(frame)
        return len(frame)

    def go_away(self, code: str, reason: str) -> None:
        """Queue a farewell: calls up to now are answered, later ones are not run.

        Towards a client that has not introduced itself it is the first and the last word: the connection is closed.
        """
        if not self._is_leaving:
            self._is_leaving = True
            self._outgoing.append(encode_farewell(code, reason, self.last_call_id))
            if self.state is State.OPEN:
                self._enter(State.CLOSING)
            elif self.state is State.OPENING:
                self._enter(State.CLOSED)

    def _admit(self, frame: Frame, events: list[Frame]) -> None:
        call_id = frame.call_id
        if call_id in self.in_flight:
            raise RemoteProtocolError(f"call id {call_id} is in flight already")
        if self._is_client_leaving:
            raise RemoteProtocolError(f"call {call_id} after the client's own goaway")
        if self._is_leaving:
            if call_id <= self.last_call_id:  # ids began anew: the farewell does not rule this one out
                self._outgoing.append(encode_failure(call_id, ErrorCode.NOT_RUN, "", _NOT_RUN, self.max_reply_size))
            return
        if call_id > self.last_call_id:
            self.last_call_id = call_id
        self.in_flight.add(call_id)
        if frame.flags & _STREAM:
            self._windows[call_id] = Window()
        events.append(frame)

    def _take_item(self, frame: Frame, events: list[Frame]) -> None:
        call_id = frame.call_id
        if call_id not in self.in_flight:
            return  # it crossed the answer on the wire
        window = self._windows.get(call_id)
        if window is None:
            raise RemoteProtocolError(
                f"item of call {call_id}, which has no stream among its arguments, or whose ended"
            )
        window.arrived(len(frame.payload))
        events.append(frame)

    def _take_end(self, frame: Frame, events: list[Frame]) -> None:
        call_id = frame.call_id
        if call_id in self.in_flight:
            if self._windows.get(call_id) is None:
                raise RemoteProtocolError(
                    f"end of call {call_id}, which has no stream among its arguments, or whose ended"
                )
            self._windows[call_id] = None
            events.append(frame)

    def _meet(self, payload: bytes) -> None:
        version = hello_version(payload)
        if version != VERSION:
            reason = f"protocol version {version} is not spoken here, only {VERSION}"
            self.go_away(GoawayCode.VERSION, reason)
            raise RemoteProtocolError(reason)
        self.client = hello = decode_hello(payload, ClientHello)
        self._features = frozenset(hello.features)
        self.max_reply_size = min(hello.max_frame_size, HARD_MAX_FRAME_SIZE)
        self._outgoing.append(self._hello)
