"""The states of a connection, for both sides, and which frame may arrive in which.

Theory. A connection has two sides, client and server, and each side is in one of four states:

    OPENING   nothing but a HELLO (or, for the client, a GOAWAY that refuses it) may arrive
    OPEN      calls go one way, replies and errors the other; items of streams and the credit for them both
              ways; CANCEL, PING and PONG at any time
    CLOSING   a GOAWAY was sent or received: what runs is finished, nothing new begins; calls that
              crossed the farewell on the wire may still arrive, and are not run
    CLOSED    nothing may arrive any more

`TRANSITIONS` is the whole machine: for each role and state, the kinds of frame that may arrive and the state that
follows. Whatever is not in it is the peer's violation and leads to CLOSED; sending a GOAWAY leads from OPEN to CLOSING
as receiving one does. What the frames mean is not known here: see connection.py. docs/design/protocol.md draws the
table, docs/reference/wire.md prints it.
"""

from __future__ import annotations

import enum
from typing import Final

from hostline.wire.frame import Kind

__all__ = ["TRANSITIONS", "Role", "State"]


class Role(enum.Enum):
    """Which side of the connection this is."""

    CLIENT = "client"
    SERVER = "server"


class State(enum.Enum):
    """Where one side of a connection stands."""

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


_BOTH_WAYS: Final[tuple[int, ...]] = (Kind.ITEM, Kind.END, Kind.CREDIT, Kind.PING, Kind.PONG)
_ANSWERS: Final[tuple[int, ...]] = (Kind.REPLY, Kind.ERROR, *_BOTH_WAYS)
_REQUESTS: Final[tuple[int, ...]] = (Kind.CALL, Kind.CANCEL, *_BOTH_WAYS)

TRANSITIONS: Final[dict[tuple[Role, State], dict[int, State]]] = {
    (Role.CLIENT, State.OPENING): {Kind.HELLO: State.OPEN, Kind.GOAWAY: State.CLOSED},
    (Role.CLIENT, State.OPEN): dict.fromkeys(_ANSWERS, State.OPEN) | {int(Kind.GOAWAY): State.CLOSING},
    (Role.CLIENT, State.CLOSING): dict.fromkeys(_ANSWERS, State.CLOSING) | {int(Kind.GOAWAY): State.CLOSING},
    (Role.CLIENT, State.CLOSED): {},
    (Role.SERVER, State.OPENING): {Kind.HELLO: State.OPEN},
    (Role.SERVER, State.OPEN): dict.fromkeys(_REQUESTS, State.OPEN) | {int(Kind.GOAWAY): State.CLOSING},
    (Role.SERVER, State.CLOSING): dict.fromkeys(_REQUESTS, State.CLOSING) | {int(Kind.GOAWAY): State.CLOSING},
    (Role.SERVER, State.CLOSED): {},
}
