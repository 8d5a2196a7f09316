"""The caller's side of a call: settings of a line, what an answer means, and what to say when none comes.

Both faces stand on this; what differs between them is only how they wait.

More than 400 lines, because answers, failures and silence are told apart in one place.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from hostline.clock import Deadline, monotonic
from hostline.errors import (
    CallCancelledError,
    DeadlineExceededError,
    HostlineError,
    InternalError,
    InvalidArgumentError,
    InvalidResultError,
    LocalProtocolError,
    MethodDeniedError,
    MethodNotFoundError,
    OverloadedError,
    PeerRefusedError,
    RemoteError,
    RemoteProtocolError,
    SlowSubscriberError,
    UnavailableError,
)
from hostline.limits import (
    DEFAULT_CALL_TIMEOUT,
    DEFAULT_CONNECT_TIMEOUT,
    DEFAULT_PING_TIMEOUT,
    MAX_REPEATS,
    RECONNECT_TIMEOUT,
    USUAL_MAX_FRAME_SIZE,
)
from hostline.protocol.connection import ClientConnection, check_frame_size
from hostline.protocol.liveness import Liveness, check_times
from hostline.protocol.retry import may_repeat
from hostline.rpc.attachments import UnclaimedError, read_attached
from hostline.rpc.watching.tracing import CallSpan
from hostline.unix.address import Address, LoopbackAddress, parse_address
from hostline.unix.credentials import Peers
from hostline.unix.options import check_target
from hostline.wire.codec import (
    ErrorCode,
    Failure,
    Farewell,
    GoawayCode,
    decode_failure,
    decode_result,
    result_decoder,
)
from hostline.wire.frame import Frame, Kind

__all__ = [
    "BrokenCallError",
    "BusyError",
    "ExpiredError",
    "LineSettings",
    "Repeats",
    "StreamCall",
    "check_kind",
    "check_returns",
    "deadline_error",
    "exception_for",
    "farewell_error",
    "program_name",
    "read_answer",
    "read_item",
    "take_items_out",
    "wire_time",
]

_REPLY: Final = int(Kind.REPLY)  # plain, for the hot path


@dataclass(frozen=True, slots=True)
class LineSettings:
    """Hold what a line was told at `connect`.

    Attributes:
        address: Where the service is.
        server: Who may run it; checked before a byte is sent.
        timeout: Seconds for a call that names none.
        connect_timeout: Seconds to connect and to be greeted.
        wait: Seconds to keep trying at first while nobody listens there.
        reconnect_timeout: Seconds a call keeps trying to reach a server that went away.
        max_frame_size: Largest payload taken, in bytes.
        ping_interval: Seconds between pings while a call waits; None for no pings.
        ping_timeout: Seconds without any sign of life after a ping until the server is given up.
    """

    address: Address
    server: Peers
    timeout: float = DEFAULT_CALL_TIMEOUT
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT
    wait: float = 0.0
    reconnect_timeout: float = RECONNECT_TIMEOUT
    max_frame_size: int = USUAL_MAX_FRAME_SIZE
    ping_interval: float | None = None
    ping_timeout: float = DEFAULT_PING_TIMEOUT

    @classmethod
    def of(
        cls,
        address: str | os.PathLike[str] | Address,
        *,
        server: Peers | None,
        timeout: float | None,
        connect_timeout: float,
        wait: float,
        reconnect_timeout: float,
        max_frame_size: int,
        ping_interval: float | None = None,
        ping_timeout: float = DEFAULT_PING_TIMEOUT,
    ) -> LineSettings:
        """Check what the caller gave.

        Raises:
            AddressError: The address is malformed, or is a listening socket.
            ValueError: A number is out of range.
        """
        where = parse_address(address)
        if not isinstance(where, LoopbackAddress):
            check_target(where)
        if not connect_timeout > 0:
            raise ValueError(f"connect_timeout of {connect_timeout} seconds must be above 0: a greeting takes time")
        for name, seconds in (("wait", wait), ("reconnect_timeout", reconnect_timeout), ("timeout", timeout)):
            if seconds is not None and not seconds >= 0:
                raise ValueError(f"{name} of {seconds} seconds must be zero or more")
        check_times(ping_interval=ping_interval, ping_timeout=ping_timeout)
        return cls(
            where,
            server or Peers.same_user(),
            DEFAULT_CALL_TIMEOUT if timeout is None else timeout,
            connect_timeout,
            wait,
            reconnect_timeout,
            check_frame_size(max_frame_size),
            ping_interval,
            ping_timeout,
        )

    def liveness(self, mark: Any) -> Liveness | None:
        """Return what decides about pings on one connection, or None if there are none."""
        if self.ping_interval is None:
            return None
        return Liveness(self.ping_interval, self.ping_timeout, monotonic(), mark)

    @property
    def has_descriptors(self) -> bool:
        """Whether connections to the address can carry descriptors."""
        return not isinstance(self.address, LoopbackAddress)

    def deadline(self, timeout: float | None) -> tuple[float, Deadline]:
        """Return a call's timeout in seconds, the line's own for None, and its deadline.

        Raises:
            ValueError: The timeout is negative or not a number.
        """
        seconds = self.timeout if timeout is None else timeout
        return seconds, Deadline.after(seconds)


class ExpiredError(TimeoutError):
    """Say, inside the faces, that a call's own deadline passed; callers see `DeadlineExceededError`."""


class BusyError(UnavailableError):
    """Say, inside the faces, that the server takes no new connection just now; callers see `UnavailableError`."""

    def as_unavailable(self) -> UnavailableError:
        """Return what the caller sees."""
        return UnavailableError(str(self), is_safe_to_repeat=True)


class BrokenCallError(HostlineError):
    """Carry, inside the faces, what is known of a call whose connection ended; callers see `UnavailableError`.

    Attributes:
        was_sent: Whether at least one byte of the call left.
        is_ruled_out: Whether the server said that it does not run it.
        reason: How the connection ended.
    """

    def __init__(self, reason: str, *, was_sent: bool, is_ruled_out: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.was_sent = was_sent
        self.is_ruled_out = is_ruled_out

    def as_unavailable(self, method: str) -> UnavailableError:
        """Return what the caller sees."""
        is_safe = not self.was_sent or self.is_ruled_out
        outcome = "it was not run" if is_safe else "it may or may not have been run"
        return UnavailableError(f"{method}: {self.reason}; {outcome}", is_safe_to_repeat=is_safe)


class Repeats:
    """Decide, for one call, whether it is made again after a connection ended.

    Args:
        method: The method's name.
        is_idempotent: Whether the caller says that repeating does no harm.
    """

    __slots__ = ("_count", "_is_idempotent", "_method")

    def __init__(self, method: str, is_idempotent: bool) -> None:
        self._method = method
        self._is_idempotent = is_idempotent
        self._count = 0

    def broke(self, error: BrokenCallError, protocol: ClientConnection) -> None:
        """Return if the call is to be made again.

        Raises:
            UnavailableError: It must not be, or has been often enough.
        """
        is_idempotent = self._is_idempotent or protocol.is_idempotent(self._method)
        if not may_repeat(was_sent=error.was_sent, is_ruled_out=error.is_ruled_out, is_idempotent=is_idempotent):
            raise error.as_unavailable(self._method) from error
        if error.was_sent and not error.is_ruled_out:
            self._count += 1
            if self._count > MAX_REPEATS:
                raise error.as_unavailable(self._method) from error


def check_returns(returns: Any) -> None:
    """Refuse a result type before the call is made, for it would be too late to find out from the answer.

    Raises:
        TypeError: Nothing can be decoded into it; the text names the part.
    """
    if returns is not Any:
        result_decoder(returns)


def read_answer(frame: Frame, returns: Any, raises: Iterable[type[Exception]] = ()) -> Any:
    """Return the result that a REPLY holds, or raise what an ERROR means.

    Args:
        frame: The answer.
        returns: The type of the result.
        raises: Exception classes that arrive as themselves.

    Raises:
        CallError: The call failed; the class says how.
        InvalidResultError: The result is of another type.
    """
    if frame.kind == _REPLY:
        return _decoded(frame, returns) if frame.fds else decode_result(frame.payload, returns)
    raise exception_for(decode_failure(frame.payload), raises)


def read_item(frame: Frame, returns: Any) -> Any:
    """Return one item of a result that is a stream.

    Raises:
        InvalidResultError: It is of another type.
    """
    return _decoded(frame, returns)


def _decoded(frame: Frame, returns: Any) -> Any:
    if not frame.fds:
        return decode_result(frame.payload, returns)
    try:
        return read_attached(frame.fds, returns, lambda: decode_result(frame.payload, returns))
    except UnclaimedError as error:
        raise InvalidResultError(f"result cannot be taken: {error}") from error


class StreamCall(NamedTuple):
    """What a call with streams is to do.

    Attributes:
        method: The method's name.
        args: Arguments by position, the one that is a stream among them.
        keywords: Arguments by name.
        returns: The type of the result, or of its items.
        raises: Exception classes that arrive as themselves.
        seconds: The timeout, for messages.
        deadline: When to give up.
        span: The span of the call, where its maker has begun one already.
    """

    method: str
    args: tuple[Any, ...]
    keywords: dict[str, Any]
    returns: Any
    raises: tuple[type[Exception], ...]
    seconds: float
    deadline: Deadline
    span: CallSpan | None = None


def check_kind(method: str, protocol: ClientConnection, is_stream: bool) -> None:
    """Refuse to iterate one result, or to take a stream for one.

    Raises:
        LocalProtocolError: The method is of the other kind.
    """
    if protocol.streams_result(method) is not is_stream and protocol.has_method(method):
        if is_stream:
            raise LocalProtocolError(f"{method} returns one result: use `call`")
        raise LocalProtocolError(f"{method} returns a stream: iterate `stream({method!r}, ...)`")


def take_items_out(
    method: str, args: tuple[Any, ...], keywords: dict[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Put None in the place of the one argument that is to be iterated, and return it beside the others.

    An argument is to be iterated if it is an iterator: generators, `iter(...)`, files, asynchronous ones too.

    Raises:
        InvalidArgumentError: There is none, or more than one.
    """
    places = [index for index, value in enumerate(args) if _is_iterator(value)]
    names = [name for name, value in (keywords or {}).items() if _is_iterator(value)]
    if len(places) + len(names) != 1:
        count = len(places) + len(names) or "none"
        raise InvalidArgumentError(
            f"{method}: one argument is a stream, and {count} of those given can be iterated once: pass a generator, "
            "or iter(...) of a list"
        )
    rest = dict(keywords or {})
    if names:
        items = rest[names[0]]
        rest[names[0]] = None
        return args, rest, items
    return (*args[: places[0]], None, *args[places[0] + 1 :]), rest, args[places[0]]


def _is_iterator(value: object) -> bool:
    return isinstance(value, Iterator | AsyncIterator)


_BY_CODE: Final[dict[str, Callable[[str], Exception]]] = {
    ErrorCode.DEADLINE: DeadlineExceededError,
    ErrorCode.OVERLOADED: OverloadedError,
    ErrorCode.NOT_FOUND: MethodNotFoundError,
    ErrorCode.INVALID_ARGUMENT: InvalidArgumentError,
    ErrorCode.CANCELLED: CallCancelledError,
    ErrorCode.DENIED: MethodDeniedError,
    ErrorCode.UNAVAILABLE: UnavailableError,
    ErrorCode.NOT_RUN: partial(UnavailableError, is_safe_to_repeat=True),
    ErrorCode.INTERNAL: InternalError,
}


def exception_for(failure: Failure, raises: Iterable[type[Exception]] = ()) -> Exception:
    """Return the exception that a caller raises for an ERROR frame.

    A declared exception becomes the caller's own class of that name, where it listed one; otherwise `RemoteError`.

    Args:
        failure: What the server sent.
        raises: The caller's exception classes.
    """
    make = _BY_CODE.get(failure.code)
    if make is not None:
        return make(failure.message)
    if failure.code != ErrorCode.DECLARED:
        return InternalError(f"{failure.code}: {failure.message}")
    remote = RemoteError(failure.name, failure.message)
    for cls in raises:
        if cls.__name__ == failure.name:
            try:
                error = cls(failure.message)
            except Exception:  # a constructor of another shape: the name and message still arrive
                return remote
            error.__cause__ = remote
            return error
    return SlowSubscriberError(failure.message) if failure.name == SlowSubscriberError.__name__ else remote


def farewell_error(farewell: Farewell) -> Exception:
    """Return the exception for a server that sends a new connection away."""
    if farewell.code == GoawayCode.REFUSED:
        return PeerRefusedError(farewell.reason)
    if farewell.code in (GoawayCode.VERSION, GoawayCode.PROTOCOL):
        return RemoteProtocolError(farewell.reason)
    if farewell.code == GoawayCode.BUSY:
        return BusyError(farewell.reason, is_safe_to_repeat=True)
    return UnavailableError(farewell.reason, is_safe_to_repeat=True)


def deadline_error(method: str, seconds: float, doing: str = "no answer") -> DeadlineExceededError:
    """Return the error for a call whose deadline passed at the caller."""
    return DeadlineExceededError(f"{method}: {doing} within {seconds:g} seconds")


def wire_time(deadline: Deadline) -> float | None:
    """Return the time left in seconds as it travels with a call: None without a deadline."""
    left = deadline.remaining()
    return None if left == math.inf else left


def program_name() -> str:
    """Return how this program introduces itself to a server's log."""
    return f"{os.path.basename(sys.argv[0] if sys.argv else '') or 'python'} pid {os.getpid()}"
