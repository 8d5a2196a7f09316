"""The error tree. Every class also inherits the builtin that a Python reader would catch.

    HostlineError
    +-- AddressError (ValueError)              the address cannot be used as written
    |   +-- PathTooLongError                   it does not fit into sun_path and no way round works
    +-- SocketError (OSError)                  the kernel refused: operation, socket type, address, errno
    |   +-- AddressInUseError                  a live server holds the path (pid and command, where known)
    |   +-- NotASocketError                    the path is an ordinary file, a directory, a symlink, ...
    |   +-- UnsafeDirectoryError (PermissionError)   others could replace the socket file
    |   +-- AddressNotFoundError (FileNotFoundError)
    |   +-- ConnectRefusedError (ConnectionRefusedError)   a socket file with nobody behind it
    |   +-- AccessDeniedError (PermissionError)            the kernel says no to this user
    |   +-- ConnectTimeoutError (TimeoutError)             the backlog stayed full until the deadline
    |   +-- PeerGoneError (ConnectionError)                the other side vanished
    |   +-- SocketTimeoutError (TimeoutError)              send, receive or accept reached its deadline
    |   +-- MessageTooLongError                            larger than the kernel, or a channel, carries
    +-- ClosedError (ConnectionError)          this side closed it, or the process forked
    +-- EndOfStream (EOFError)                 the other side ended cleanly
    +-- TruncatedError (ValueError)            a packet or its descriptors did not fit; nothing was kept
    +-- DescriptorError (OSError)              a descriptor is missing, unwanted or of the wrong kind
    +-- InvalidMessageError (ValueError)       a channel's message cannot be encoded, or is of another type
    +-- PeerRefusedError (PermissionError)     identity: the rules do not admit this peer, or this server
    +-- WorkersFailedError (RuntimeError)      worker processes cannot be started, or can never accept again
    +-- NoCredentialsError (PermissionError)   the peer came over tcp:, and the kernel does not say who it is
    +-- ProtocolError (ValueError)
    |   +-- LocalProtocolError                 this program used the connection wrongly
    |   +-- RemoteProtocolError                the peer broke the protocol
    +-- CallError                              one call failed; the connection lives
        +-- DeadlineExceededError (TimeoutError)
        +-- OverloadedError                    retryable: no slot and no place in the queue
        +-- UnavailableError (ConnectionError) the server is going away or is gone; `is_safe_to_repeat` says more
        +-- MethodNotFoundError (LookupError)
        +-- InvalidArgumentError (ValueError)
        +-- InvalidResultError (ValueError)    the reply is not of the type that the caller expects
        +-- CallCancelledError                 cancelled at the server
        +-- MethodDeniedError (PermissionError)
        +-- SlowSubscriberError                retryable: a topic that disconnects had too much waiting for us
        +-- InternalError (RuntimeError)       the handler failed in a way it does not declare
        +-- RemoteError                        the handler's declared exception, by name and message

Texts are lower case without a final stop and show the value beside the bound. A peer never sees the text of an
undeclared exception. `OSError`s are turned into these in one place, `unix/oserrors.py`.
"""

from __future__ import annotations

import os
from typing import Any

__all__ = [
    "AccessDeniedError",
    "AddressError",
    "AddressInUseError",
    "AddressNotFoundError",
    "CallCancelledError",
    "CallError",
    "ClosedError",
    "ConnectRefusedError",
    "ConnectTimeoutError",
    "DeadlineExceededError",
    "DescriptorError",
    "EndOfStream",
    "HostlineError",
    "InternalError",
    "InvalidArgumentError",
    "InvalidMessageError",
    "InvalidResultError",
    "LocalProtocolError",
    "MessageTooLongError",
    "MethodDeniedError",
    "MethodNotFoundError",
    "NoCredentialsError",
    "NotASocketError",
    "OverloadedError",
    "PathTooLongError",
    "PeerGoneError",
    "PeerRefusedError",
    "ProtocolError",
    "RemoteError",
    "RemoteProtocolError",
    "SlowSubscriberError",
    "SocketError",
    "SocketTimeoutError",
    "TruncatedError",
    "UnavailableError",
    "UnsafeDirectoryError",
    "WorkersFailedError",
]


class HostlineError(Exception):
    """Base of every error that hostline raises on purpose.

    Attributes:
        sent_count: After a `send_many`, how many messages were sent as a whole before this ended it; elsewhere None.
    """

    sent_count: int | None = None


# --- addresses and sockets ---------------------------------------------------------------------------


class AddressError(HostlineError, ValueError):
    """Report an address that cannot be used as written.

    Attributes:
        address: What was given.
        reason: What is wrong with it, and what to write instead.
    """

    def __init__(self, address: object, reason: str) -> None:
        super().__init__(address, reason)
        self.address = address
        self.reason = reason

    def __str__(self) -> str:
        return f"address {self.address!r}: {self.reason}"


class PathTooLongError(AddressError):
    """Report a socket path that the kernel's address field cannot hold."""


class SocketError(HostlineError, OSError):
    """Report a refused system call on a socket.

    Attributes:
        operation: What was tried: `bind`, `connect`, `accept`, `send`, ...
        socket_type: `stream`, `seqpacket` or `datagram`.
        address: The address in words, or an empty string.
        errno: The kernel's number, or None.
        reason: Why, in words; the kernel's own text where nothing better is known.
    """

    def __init__(
        self,
        operation: str,
        socket_type: str,
        address: str,
        errno: int | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(errno, reason or (os.strerror(errno) if errno else "failed"))
        self.operation = operation
        self.socket_type = socket_type
        self.address = address
        self.reason = reason or (os.strerror(errno).lower() if errno else "failed")

    def __str__(self) -> str:
        import errno as names

        where = f" {self.address}" if self.address else ""
        number = f" ({names.errorcode.get(self.errno, self.errno)})" if self.errno else ""
        return f"{self.operation} {self.socket_type}{where}: {self.reason}{number}"

    def __reduce__(self) -> tuple[Any, ...]:
        # OSError's own __reduce__ would call the class with (errno, strerror).
        return (_rebuild, (type(self), dict(self.__dict__), self.errno, self.strerror))


def _rebuild(cls: type[SocketError], attributes: dict[str, Any], errno: int | None, text: str) -> SocketError:
    error = cls.__new__(cls, errno, text)
    OSError.__init__(error, errno, text)
    error.__dict__.update(attributes)
    return error


class AddressInUseError(SocketError):
    """Report that a live server holds the address.

    Attributes:
        pid: The holder's process id, or None where the kernel does not tell.
        command: The holder's command line, or an empty string.
    """

    pid: int | None = None
    command: str = ""


class NotASocketError(SocketError):
    """Report that the path is something else than a socket; it was left untouched."""


class UnsafeDirectoryError(SocketError, PermissionError):
    """Report a directory in which other users could replace the socket file."""


class AddressNotFoundError(SocketError, FileNotFoundError):
    """Report that nothing exists at the address."""


class ConnectRefusedError(SocketError, ConnectionRefusedError):
    """Report a socket file that nobody listens on."""


class AccessDeniedError(SocketError, PermissionError):
    """Report that the kernel denies this user the address."""


class ConnectTimeoutError(SocketError, TimeoutError):
    """Report that the server's backlog stayed full until the deadline."""


class SocketTimeoutError(SocketError, TimeoutError):
    """Report that a send, a receive or an accept reached its deadline."""


class PeerGoneError(SocketError, ConnectionError):
    """Report that the other side vanished."""


class MessageTooLongError(SocketError):
    """Report a packet larger than the kernel carries whole, or a message larger than a channel takes; none was sent."""


class ClosedError(HostlineError, ConnectionError):
    """Report use of something that this process closed, or that belongs to the process it forked from."""


class EndOfStream(HostlineError, EOFError):
    """Report that the other side ended cleanly; a zero-length packet is not an end."""


class TruncatedError(HostlineError, ValueError):
    """Report a packet, or its descriptors, that did not fit; whatever had arrived was closed."""


class DescriptorError(HostlineError, OSError):
    """Report a descriptor that is missing, unwanted, closed or of the wrong kind."""


class InvalidMessageError(HostlineError, ValueError):
    """Report a channel's message that cannot be encoded, or is not what the receiver expects; the channel lives on.

    Attributes:
        data: The received message's bytes, still encoded; empty for one that was to be sent.
    """

    def __init__(self, message: str = "", data: bytes = b"") -> None:
        super().__init__(message)
        self.data = data


class PeerRefusedError(HostlineError, PermissionError):
    """Report that the rules do not admit the peer.

    Attributes:
        reason: Who was refused and what the rule admits.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class WorkersFailedError(HostlineError, RuntimeError):
    """Report that the worker processes of a service cannot do their work, so that starting more of them is no use.

    Attributes:
        service: The service's name.
        reason: What happened; what the workers said of it stands in the log.
    """

    def __init__(self, service: str, reason: str) -> None:
        super().__init__(service, reason)
        self.service = service
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.service}: {self.reason}"


class NoCredentialsError(HostlineError, PermissionError):
    """Report that a peer's credentials were asked for and its connection has none: it came over `tcp:`."""


# --- the protocol ------------------------------------------------------------------------------------


class ProtocolError(HostlineError, ValueError):
    """Base of both sides' protocol errors; raised only as one of them."""


class LocalProtocolError(ProtocolError):
    """Report that this program used the connection wrongly; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """Report that the peer broke the protocol; the connection cannot be used any more."""


# --- calls -------------------------------------------------------------------------------------------


class CallError(HostlineError):
    """Base of the errors of one call; the connection it used is still good.

    Attributes:
        message: What went wrong, in words.
        is_retryable: Whether the same call may succeed a little later.
    """

    is_retryable = False

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class DeadlineExceededError(CallError, TimeoutError):
    """Report that the call's deadline passed first."""


class OverloadedError(CallError):
    """Report that the service had neither a free slot nor a place in its queue."""

    is_retryable = True


class UnavailableError(CallError, ConnectionError):
    """Report that the server went away before it answered.

    Attributes:
        is_safe_to_repeat: Whether it is certain that the call was not run.
    """

    is_retryable = True

    def __init__(self, message: str = "", is_safe_to_repeat: bool = False) -> None:
        super().__init__(message)
        self.is_safe_to_repeat = is_safe_to_repeat


class MethodNotFoundError(CallError, LookupError):
    """Report a method that the service does not have."""


class InvalidArgumentError(CallError, ValueError):
    """Report an argument that the method does not take; the handler did not run."""


class InvalidResultError(CallError, ValueError):
    """Report a reply that is not of the type the caller expects."""


class CallCancelledError(CallError):
    """Report that the server cancelled the call."""


class MethodDeniedError(CallError, PermissionError):
    """Report that the method's rules do not admit this caller."""


class SlowSubscriberError(CallError):
    """Report that a topic disconnected this subscriber, for whom too much waited; the text says how much was lost."""

    is_retryable = True


class InternalError(CallError, RuntimeError):
    """Report that the handler failed in a way it does not declare; the details are in the server's log."""


class RemoteError(CallError):
    """Report the exception that the handler declared and raised.

    Attributes:
        name: The exception's class name at the server.
        message: Its text.
    """

    def __init__(self, name: str, message: str = "") -> None:
        super().__init__(message)
        self.args = (name, message)
        self.name = name

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" if self.message else self.name
