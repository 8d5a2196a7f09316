"""The client's side: calls are numbered, answers matched to them, and it is known which were certainly not run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from hostline.errors import InvalidArgumentError, LocalProtocolError, MethodNotFoundError, RemoteProtocolError
from hostline.limits import DEFAULT_MAX_FRAME_SIZE, HARD_MAX_FRAME_SIZE, MAX_FDS_PER_FRAME
from hostline.protocol.connection.base import Connection
from hostline.protocol.flow import Allowance, Window, item_cost
from hostline.protocol.states import Role, State
from hostline.wire.attached import Attach
from hostline.wire.codec import (
    VERSION,
    ClientHello,
    Farewell,
    ServerHello,
    decode_credit,
    decode_failure,
    decode_farewell,
    decode_hello,
    encode_call,
    encode_credit,
    encode_hello,
    encode_item,
    hello_version,
    own_features,
)
from hostline.wire.frame import Frame, Kind, encode_frame

__all__ = ["Answer", "ClientConnection"]

_MAX_CALL_ID: Final = 0xFFFF_FFFF

# What the client gets: the ticket that `call` was given, and the frame that answers it.
Answer = tuple[Any, Frame]

# Plain integers for the hot path: arithmetic on enum members costs ten times as much.
_REPLY: Final = int(Kind.REPLY)
_ERROR: Final = int(Kind.ERROR)
_HELLO: Final = int(Kind.HELLO)
_ITEM: Final = int(Kind.ITEM)
_END: Final = int(Kind.END)
_CREDIT: Final = int(Kind.CREDIT)
_GOAWAY: Final = int(Kind.GOAWAY)
_PING: Final = int(Kind.PING)

# By themselves, for an enumeration's member costs a look-up of its own.
_OPEN: Final = State.OPEN
_CLOSED: Final = State.CLOSED


class ClientConnection(Connection):
    """Number calls, match answers to them, and know which calls were certainly not run.

    Args:
        program: Who calls, for the server's log.
        max_frame_size: Largest payload taken, in bytes.
        attachments: Makes what takes descriptors and buffers out of one frame, from the largest payload that the server
            takes and whether descriptors can travel to it.
        has_descriptors: Whether this connection can carry descriptors: over `tcp:` it cannot, and does not offer it.

    Attributes:
        hello: What the server said of itself, or None before that.
        farewell: What the server said at its leaving, or None.
        in_flight: Tickets of calls not answered yet, by id.
    """

    role = Role.CLIENT

    def __init__(
        self,
        program: str = "",
        max_frame_size: int = DEFAULT_MAX_FRAME_SIZE,
        attachments: Callable[[int, bool], Attach] | None = None,
        has_descriptors: bool = True,
    ) -> None:
        super().__init__(max_frame_size)
        self._attachments = attachments
        self._taking: frozenset[str] = frozenset()  # methods whose arguments may hold descriptors or buffers
        self._attaching: set[int] = set()  # calls whose items may
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
        features = own_features(has_descriptors)
        self._outgoing.append(
            encode_hello(ClientHello(features=features, max_frame_size=max_frame_size, program=program))
        )

    @property
    def is_usable(self) -> bool:
        """Whether a new call may start here."""
        return self.state is _OPEN

    def receive_data(self, data: bytes | memoryview, fds: list[Any] | None = None) -> list[Answer]:
        """Return the answers that `data` completes, and beside them the ITEMs of streams and the CREDIT for them.

        Args:
            data: What one read gave.
            fds: Owners of the descriptors that came with it; they are this object's from now on.

        Raises:
            RemoteProtocolError: The server broke the protocol; all calls without an answer are still in flight.
        """
        answers: list[Answer] = []
        try:
            for frame in self._frames(data, fds):
                kind = frame.kind
                if kind == _REPLY:
                    if self._windows and frame.call_id in self._windows:
                        raise RemoteProtocolError(f"reply to call {frame.call_id}, whose result is a stream")
                    self._answer(frame, answers)
                elif kind == _ERROR:
                    decode_failure(frame.payload)  # a malformed one is a violation, not one call's failure
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
            self._enter(_CLOSED)
            # Nobody gets what came before the violation: these calls end as all the others in flight do.
            for ticket, frame in answers:
                self.in_flight[frame.call_id] = ticket
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
            window.arrived(frame.cost)
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
        self._attaching.discard(call_id)

    def call(
        self,
        method: str,
        args: tuple[Any, ...],
        keywords: dict[str, Any] | None,
        time_left: float | None,
        ticket: Any,
        has_items: bool = False,
        context: Mapping[str, str] | None = None,
    ) -> tuple[int, bytearray]:
        """Begin a call.

        Args:
            method: The method's name.
            args: Arguments by position.
            keywords: Arguments by name.
            time_left: Seconds until the caller stops waiting, or None.
            ticket: Anything but None; it comes back with the answer, and with each item of a result that is a stream.
            has_items: Whether an argument is a stream, whose items follow; None stands at its place.
            context: Texts for the server's tracing; not sent to one that does not know them.

        Returns:
            The call's id and the frame to send.

        Raises:
            MethodNotFoundError: The service has no such method.
            InvalidArgumentError: The arguments cannot be encoded.
            LocalProtocolError: The connection does not take calls now.
        """
        if self.state is not _OPEN:
            raise LocalProtocolError(f"connection is {self.state.value}: it takes no call")
        number = self._methods.get(method)
        if number is None:
            raise MethodNotFoundError(self._unknown(method))
        if "deadline" not in self._features:
            time_left = None  # this server does not know the flag: the caller's own clock is all there is
        if context is not None and "context" not in self._features:
            context = None
        call_id = self._next_id()
        attach = self._attach() if method in self._taking else None
        frame = encode_call(
            call_id, number, args, keywords, time_left, self._peer_max_frame_size, has_items, attach, context
        )
        self.in_flight[call_id] = ticket
        if method in self._streaming:
            self._windows[call_id] = Window()
        if has_items:
            self._allowances[call_id] = Allowance()
            if attach is not None:
                self._attaching.add(call_id)
        return call_id, frame

    def _attach(self) -> Attach | None:
        if self._attachments is None:
            return None
        return self._attachments(self._peer_max_frame_size, "descriptors" in self._features)

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
        attach = self._attach() if call_id in self._attaching else None
        frame = encode_item(call_id, item, self._peer_max_frame_size, InvalidArgumentError, attach)
        allowance.take(item_cost(frame))
        return frame

    def end(self, call_id: int) -> bytes:
        """Return the frame that ends a call's argument; nothing if the call is over."""
        allowance = self._allowances.get(call_id)
        if allowance is None or allowance.is_over:
            return b""
        allowance.is_over = True
        return encode_frame(Kind.END, call_id)

    def taken(self, call_id: int, size: int) -> bytes:
        """Note that the program took an item that costs `size` bytes; returns the CREDIT to send, if any."""
        window = self._windows.get(call_id)
        amount = window.taken(size) if window is not None else 0
        return encode_credit(call_id, amount) if amount else b""

    def streams_result(self, method: str) -> bool:
        """Say whether a method's result is a stream."""
        return method in self._streaming

    def has_method(self, method: str) -> bool:
        """Say whether the service has a method."""
        return method in self._methods

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

    def _meet(self, payload: bytes | memoryview) -> None:
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
        self._taking = frozenset(entry.name for entry in hello.methods if entry.takes_descriptors)
        if "descriptors" in self._features and any(entry.gives_descriptors for entry in hello.methods):
            self.decoder.max_fds = MAX_FDS_PER_FRAME

    @property
    def max_fds(self) -> int:
        """Descriptors that one frame may bring: none before the server said that a method gives some."""
        return self.decoder.max_fds

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
