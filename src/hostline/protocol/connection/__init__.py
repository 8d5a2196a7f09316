"""One connection as a state machine, for both sides, without I/O.

States and their order are in protocol/states.py. What the frames mean is here: ids tie answers to calls, a farewell
tells which calls were not run, and each side's bounds are kept by the other. Bytes go in, events and bytes to send come
out; waiting, reading and writing is for the faces.
"""

from __future__ import annotations

from hostline.protocol.connection.client import Answer, ClientConnection
from hostline.protocol.connection.server import ServerConnection
from hostline.protocol.states import TRANSITIONS, Role, State
from hostline.wire.frame import check_frame_size

__all__ = [
    "TRANSITIONS",
    "Answer",
    "ClientConnection",
    "Role",
    "ServerConnection",
    "State",
    "check_frame_size",
]
