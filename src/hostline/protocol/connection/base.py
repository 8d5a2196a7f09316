"""What both sides of a connection share: the state, the decoder, and the frames that answer by themselves."""

from __future__ import annotations

from typing import Any, Final

from hostline.errors import LocalProtocolError, RemoteProtocolError
from hostline.protocol.outgoing import close_attached
from hostline.protocol.states import TRANSITIONS, Role, State
from hostline.wire.attached import close_owners
from hostline.wire.frame import Frame, FrameDecoder, Kind, encode_frame

__all__ = ["Connection"]

# By themselves, for an enumeration's member costs a look-up of its own.
_OPENING: Final = State.OPENING
_OPEN: Final = State.OPEN
_CLOSING: Final = State.CLOSING
_CLOSED: Final = State.CLOSED


class Connection:
    """Hold what both roles share: the state, the decoder, and the frames that answer by themselves."""

    role = Role.CLIENT  # each side says its own

    def __init__(self, max_frame_size: int, max_fds: int = 0) -> None:
        self.decoder = FrameDecoder(max_frame_size, max_fds)
        self._max_frame_size = max_frame_size
        self._enter(_OPENING)
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
        return "ping" in self._features and self.state in (_OPEN, _CLOSING)

    @property
    def has_data_to_send(self) -> bool:
        """Whether `data_to_send` has anything."""
        return bool(self._outgoing)

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
        if self.state is not _OPEN and self.state is not _CLOSING:
            raise LocalProtocolError(f"connection is {self.state.value}: it takes no ping")
        if "ping" not in self._features:
            raise LocalProtocolError("the peer does not name the feature 'ping'")
        self._outgoing.append(encode_frame(Kind.PING))

    def pong(self) -> None:
        """Queue one PONG for all the PINGs since the last look: a flood of them must not fill our memory."""
        if not self._has_pong:
            self._has_pong = True
            self._outgoing.append(encode_frame(Kind.PONG))

    def _frames(self, data: bytes | memoryview, fds: list[Any] | None) -> list[Frame]:
        """Decode, check each frame against the table and move on.

        Raises:
            RemoteProtocolError: The bytes or their order break the protocol; the state is CLOSED afterwards.
        """
        decoder = self.decoder
        try:
            frames = decoder.receive_data(data, fds)
            for frame in frames:
                kind = frame.kind
                following = self._allowed.get(kind)
                if following is not self.state:
                    self._follow(kind, following)
            if self.state is _CLOSED and decoder.is_partial:
                raise RemoteProtocolError(f"data after the end: the {self.role.value} is closed")
        except RemoteProtocolError:
            decoder.close_held()
            close_owners(fds or ())
            self._enter(_CLOSED)
            raise
        return frames

    def close_held(self) -> None:
        """Close the descriptors of what has arrived in part, or waits to be sent: the connection has ended."""
        self.decoder.close_held()
        for frame in self._outgoing:
            close_attached(frame)

    def _follow(self, kind: int, following: State | None) -> None:
        if following is None:
            name = Kind(kind).name.lower()
            raise RemoteProtocolError(f"{name} frame is out of place: the {self.role.value} is {self.state.value}")
        self._enter(following)

    def _enter(self, state: State) -> None:
        """Take a state, and the row of the table that goes with it."""
        self.state = state
        self._allowed = TRANSITIONS[self.role, state]
        if state is _CLOSED:
            self.decoder = FrameDecoder(self._max_frame_size)  # nothing is kept of what came after the end
