"""What is said when a listening socket changes hands, and from which word on who owns it. Takes messages, does no I/O.

The owner (`Giver`) is asked by its successor (`Taker`) on a channel (`channels/messages.py`) over the control socket:

    taker                      giver
    ask      ------------->              version, pid, service, type
             <-------------    give      version, pid, file, and the descriptors: the socket, and the lock
    ready    ------------->              verified and started
             <-------------    released  from here on it is the taker's
    refused  <------------>    refused   instead of any of these: a code and the reason in words

Exactly one of two living processes owns the socket at any time, because `released` is the turning point and the kernel
decides it: a taker that will wait no longer shuts its side down and then looks once more. Either `released` is there,
and it owns, or the giver's attempt to send it fails, and that one goes on as before. A giver that has ended without a
word owns nothing, so that whoever has its descriptors does; a taker that has ended is nobody's concern.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from hostline.errors import RemoteProtocolError
from hostline.limits import HANDSHAKE_TIMEOUT, TAKEOVER_READY_TIMEOUT

__all__ = [
    "MAX_CONTROL_MESSAGE",
    "VERSION",
    "Ask",
    "Code",
    "Give",
    "Giver",
    "GiverStep",
    "Message",
    "Ready",
    "Refused",
    "Released",
    "Taker",
    "TakerState",
]

VERSION: Final = 1

# Bytes of one message: two numbers, some words. What is said before anybody is known must not be kept for long.
MAX_CONTROL_MESSAGE: Final = 8 << 10


class Ask(msgspec.Struct, frozen=True, tag_field="say", tag="ask"):
    """Ask for the socket. Every version begins with these fields, so that every other can refuse it in words."""

    version: int
    pid: int
    service: str
    type: str


class Give(msgspec.Struct, frozen=True, tag_field="say", tag="give"):
    """Give the descriptors, with what they are; without a socket file device and inode are 0, and no lock comes."""

    version: int
    pid: int
    address: str
    device: int
    inode: int


class Ready(msgspec.Struct, frozen=True, tag_field="say", tag="ready"):
    """Say that all was verified and everything is started, up to accepting."""


class Released(msgspec.Struct, frozen=True, tag_field="say", tag="released"):
    """Say that the socket, the file and the lock are the other side's from here on."""


class Refused(msgspec.Struct, frozen=True, tag_field="say", tag="refused"):
    """Say why it comes to nothing; the connection ends."""

    code: str
    reason: str


Message = Ask | Give | Ready | Released | Refused


class Code:
    """Why a takeover is refused, for programs."""

    VERSION: Final = "version"
    SERVICE: Final = "service"
    BUSY: Final = "busy"
    STOPPING: Final = "stopping"
    DENIED: Final = "denied"
    LATE: Final = "late"
    FAILED: Final = "failed"


class GiverStep(enum.Enum):
    """What an owner is to do about a message."""

    GIVE = "give"
    RELEASE = "release"
    REFUSE = "refuse"
    END = "end"


class Giver:
    """Judge what one successor says to the owner.

    Args:
        service: The service that is offered.
        socket_type: The type of the socket.
        now: Monotonic seconds.

    Attributes:
        deadline: When the successor is refused unless it has gone on by then, in monotonic seconds.
        has_given: Whether the descriptors were sent.
        pid: The successor's process id as it says itself, for people to read; 0 before it does.
        refusal: What to answer after a `REFUSE`; after an `END` what the successor said.
    """

    __slots__ = ("_service", "_type", "deadline", "has_given", "pid", "refusal")

    def __init__(self, service: str, socket_type: str, now: float) -> None:
        self._service = service
        self._type = socket_type
        self.deadline = now + HANDSHAKE_TIMEOUT
        self.has_given = False
        self.pid = 0
        self.refusal = Refused(Code.FAILED, "")

    def take(self, message: Message, now: float, *, busy_with: int | None) -> GiverStep:
        """Say what a message asks for.

        Args:
            message: What the successor said.
            now: Monotonic seconds.
            busy_with: Pid of another successor that has the descriptors, or None.

        Raises:
            RemoteProtocolError: It does not belong here.
        """
        if isinstance(message, Refused):
            self.refusal = message
            return GiverStep.END
        if isinstance(message, Ask) and not self.pid:
            self.pid = message.pid
            refusal = self._judge(message, busy_with)
            if refusal is not None:
                self.refusal = refusal
                return GiverStep.REFUSE
            self.has_given = True
            self.deadline = now + TAKEOVER_READY_TIMEOUT
            return GiverStep.GIVE
        if isinstance(message, Ready) and self.has_given:
            return GiverStep.RELEASE
        raise RemoteProtocolError(f"takeover: {_name(message)} came {'after give' if self.has_given else 'first'}")

    def _judge(self, ask: Ask, busy_with: int | None) -> Refused | None:
        if ask.version != VERSION:
            text = (
                f"takeover version {ask.version} is asked for, and this server speaks {VERSION}: stop it and start anew"
            )
            return Refused(Code.VERSION, text)
        if ask.service != self._service:
            return Refused(Code.SERVICE, f"service {self._service!r} is here, and {ask.service!r} is asked for")
        if ask.type != self._type:
            return Refused(Code.SERVICE, f"a {self._type} socket is here, and {ask.type} is asked for")
        if busy_with is not None:
            return Refused(Code.BUSY, f"pid {busy_with} is taking over at this moment")
        return None

    def too_late(self) -> Refused:
        """Return what a successor is told whose deadline has passed."""
        what = "ready" if self.has_given else "ask"
        seconds = TAKEOVER_READY_TIMEOUT if self.has_given else HANDSHAKE_TIMEOUT
        return Refused(Code.LATE, f"no {what} came within {seconds:g} seconds; the server goes on")


class TakerState(enum.Enum):
    """How far a successor is."""

    ASKED = "asked"
    GIVEN = "given"
    READY = "ready"
    OWNER = "owner"
    REFUSED = "refused"


class Taker:
    """Judge what the owner says to one successor.

    Attributes:
        state: How far it is. Only an `OWNER` may touch what it was given.
        give: What the owner said of the descriptors, once it has.
        refusal: Why it came to nothing, once it is `REFUSED`.
    """

    __slots__ = ("give", "refusal", "state")

    def __init__(self) -> None:
        self.state = TakerState.ASKED
        self.give: Give | None = None
        self.refusal = Refused(Code.FAILED, "")

    def take(self, message: Message) -> None:
        """Take what the owner says.

        Raises:
            RemoteProtocolError: It does not belong here.
        """
        if isinstance(message, Refused):
            self._refuse(message)
        elif isinstance(message, Give) and self.state is TakerState.ASKED:
            if message.version != VERSION:
                text = f"the owner gives by takeover version {message.version}, and this one speaks {VERSION}"
                self._refuse(Refused(Code.VERSION, text))
            else:
                self.give = message
                self.state = TakerState.GIVEN
        elif isinstance(message, Released) and self.state is TakerState.READY:
            self.state = TakerState.OWNER
        else:
            raise RemoteProtocolError(f"takeover: {_name(message)} came where a successor is {self.state.value}")

    def is_ready(self) -> None:
        """Note that `ready` was sent."""
        self.state = TakerState.READY

    def ended(self, *, is_giver_dead: bool) -> None:
        """Note that nothing more can come: the connection ended, or this side will not wait any longer.

        Args:
            is_giver_dead: Whether the owner's process has ended.
        """
        if self.state in (TakerState.OWNER, TakerState.REFUSED):
            return
        if is_giver_dead and self.state is not TakerState.ASKED:
            self.state = TakerState.OWNER
        elif is_giver_dead:
            self._refuse(Refused(Code.STOPPING, "the owner ended before it answered"))
        else:
            self._refuse(Refused(Code.LATE, "the owner did not answer in time, and goes on"))

    def _refuse(self, refusal: Refused) -> None:
        self.state = TakerState.REFUSED
        self.refusal = refusal


def _name(message: Message) -> str:
    return type(message).__name__.lower()
