"""The server's side: the ids of calls in flight, and a goodbye that tells what was not run."""

from __future__ import annotations

from typing import Any, Final

from hostline.errors import RemoteProtocolError
from hostline.limits import DEFAULT_MAX_FRAME_SIZE, HARD_MAX_FRAME_SIZE
from hostline.protocol.connection.base import Connection
from hostline.protocol.flow import Window
from hostline.protocol.outgoing import close_attached
from hostline.protocol.states import Role, State
from hostline.wire.codec import (
    VERSION,
    ClientHello,
    ErrorCode,
    GoawayCode,
    decode_credit,
    decode_farewell,
    decode_hello,
    encode_credit,
    encode_failure,
    encode_farewell,
    hello_version,
)
from hostline.wire.frame import Flag, Frame, Kind, encode_frame

__all__ = ["ServerConnection"]

_NOT_RUN: Final = "the service is leaving; the call was not run"

# Plain integers for the hot path: arithmetic on enum members costs ten times as much.
_CALL: Final = int(Kind.CALL)
_CANCEL: Final = int(Kind.CANCEL)
_HELLO: Final = int(Kind.HELLO)
_ITEM: Final = int(Kind.ITEM)
_END: Final = int(Kind.END)
_CREDIT: Final = int(Kind.CREDIT)
_STREAM: Final = int(Flag.STREAM)
_GOAWAY: Final = int(Kind.GOAWAY)
_PING: Final = int(Kind.PING)

# By themselves, for an enumeration's member costs a look-up of its own.
_OPENING: Final = State.OPENING
_OPEN: Final = State.OPEN
_CLOSING: Final = State.CLOSING
_CLOSED: Final = State.CLOSED


class ServerConnection(Connection):
    """Keep the ids of calls in flight, and say goodbye in a way that tells what was not run.

    Args:
        hello: What the service says of itself.
        max_frame_size: Largest payload taken, in bytes.
        max_fds: Descriptors that one frame may bring.
        has_descriptors: Whether this connection can carry descriptors at all: over `tcp:` it cannot.

    Attributes:
        client: What the client said of itself, or None before that.
        in_flight: Ids of calls that are not answered yet.
        last_call_id: The highest id of a call so far.
        max_reply_size: The largest payload that the client takes, in bytes.
    """

    role = Role.SERVER

    def __init__(
        self,
        hello: bytes,
        max_frame_size: int = DEFAULT_MAX_FRAME_SIZE,
        max_fds: int = 0,
        has_descriptors: bool = True,
    ) -> None:
        super().__init__(max_frame_size, max_fds)
        self._has_descriptors = has_descriptors
        self.client: ClientHello | None = None
        self.in_flight: set[int] = set()
        self._windows: dict[int, Window | None] = {}  # of calls with an argument that is a stream; None once it ended
        self.max_reply_size = DEFAULT_MAX_FRAME_SIZE
        self._hello = hello
        self.last_call_id = 0
        self._is_leaving = False
        self._is_client_leaving = False

    def receive_data(self, data: bytes | memoryview, fds: list[Any] | None = None) -> list[Frame]:
        """Return the frames about calls that `data` completes: CALL, CANCEL, and ITEM, END and CREDIT of streams.

        What is about a call that was answered meanwhile is left out.

        Args:
            data: What one read gave.
            fds: Owners of the descriptors that came with it; they are this object's from now on.

        Raises:
            RemoteProtocolError: The client broke the protocol; `data_to_send` then holds a farewell that says how.
        """
        events: list[Frame] = []
        try:
            for frame in self._frames(data, fds):
                kind = frame.kind
                if kind == _CALL:
                    self._admit(frame, events)
                elif kind == _ITEM:
                    self._take_item(frame, events)
                elif kind == _CANCEL:
                    if frame.call_id in self.in_flight:
                        events.append(frame)
                elif kind == _CREDIT:
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
            self._enter(_CLOSED)
            self.go_away(GoawayCode.PROTOCOL, str(error))
            raise
        return events

    @property
    def takes_descriptors(self) -> bool:
        """Whether the client can be sent descriptors."""
        return self._has_descriptors and "descriptors" in self._features

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
        else:
            close_attached(frame)

    def item(self, call_id: int, frame: bytes | bytearray) -> None:
        """Queue an item of a call's result; it is dropped if the call is over."""
        if call_id in self.in_flight:
            self._outgoing.append(frame)
        else:
            close_attached(frame)

    def end(self, call_id: int) -> None:
        """Queue the end of a call's result, which answers the call."""
        if self.finish(call_id):
            self._outgoing.append(encode_frame(Kind.END, call_id))

    def taken(self, call_id: int, size: int) -> bool:
        """Note that the handler took an item that costs `size` bytes; whether CREDIT was queued for it."""
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
            if self.state is _OPEN:
                self._enter(_CLOSING)
            elif self.state is _OPENING:
                self._enter(_CLOSED)

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
        window.arrived(frame.cost)
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

    def _meet(self, payload: bytes | memoryview) -> None:
        version = hello_version(payload)
        if version != VERSION:
            reason = f"protocol version {version} is not spoken here, only {VERSION}"
            self.go_away(GoawayCode.VERSION, reason)
            raise RemoteProtocolError(reason)
        self.client = hello = decode_hello(payload, ClientHello)
        self._features = frozenset(hello.features)
        self.max_reply_size = min(hello.max_frame_size, HARD_MAX_FRAME_SIZE)
        self._outgoing.append(self._hello)
