"""What the command's exit codes mean, and the one place where an error becomes a sentence and an exit code.

Knows hostline's errors and no command. docs/reference/command.md shows the same table; a test compares the two.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec

import typer

from hostline import errors
from hostline.cli.streams import OutputError, close_output
from hostline.cli.terminal import escape

__all__ = [
    "CommandError",
    "ExitCode",
    "UsageError",
    "checked_values",
    "exit_code_of",
    "greeted",
    "report",
    "report_output",
    "reported",
    "signals_held",
]

P = ParamSpec("P")


class ExitCode(enum.IntEnum):
    """Name the exit codes of the command; `run` passes on the exit code of what it ran instead.

    Attributes:
        meaning: What happened, in words.
    """

    meaning: str

    def __new__(cls, number: int, meaning: str) -> ExitCode:
        """Make a member with its meaning."""
        member = int.__new__(cls, number)
        member._value_ = number
        member.meaning = meaning
        return member

    OK = 0, "it worked; a server was told to stop and has stopped cleanly"
    FAILURE = 1, "something else went wrong, such as a file that cannot be read, or output that cannot be written"
    USAGE = 2, "the command line, or an address in it, cannot be used as written"
    CANNOT_CONNECT = 3, "no server can be reached at the address"
    REFUSED = 4, "permission: the kernel, the server's rules, or the check of who runs the server said no"
    DEADLINE = 5, "the deadline passed before the answer came"
    UNAVAILABLE = 6, "the server is overloaded, is stopping, or went away; later it may work"
    METHOD_ERROR = 7, "the method raised an error that it declares"
    INTERNAL = 8, "the service failed in a way the method does not declare; its log has the details"
    INVALID_CALL = 9, "there is no such method, or it does not take these arguments; nothing was run"
    PROTOCOL = 10, "what answered does not speak hostline, or broke the protocol"
    CANNOT_LISTEN = 11, "the address cannot be listened on: it is taken, or something else is there"
    CONFORMANCE_MISS = 12, "hostline misses a row of its own conformance table"
    INCOMPATIBLE = 13, "the new version of a service breaks callers of the old one"
    INTERRUPTED = 130, "Ctrl-C (SIGINT), for commands that are no servers"
    BROKEN_PIPE = 141, "whoever read the output has closed it (SIGPIPE)"
    TERMINATED = 143, "SIGTERM, for commands that are no servers"


class CommandError(Exception):
    """Carry what is to be told to the user, and the exit code.

    Args:
        message: A sentence for people, lower case, without a final stop.
        code: How the command ends.
    """

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILURE) -> None:
        super().__init__(message)
        self.code = code


class UsageError(CommandError):
    """Report a command line that cannot be used as written."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.USAGE)


@contextlib.contextmanager
def checked_values() -> Iterator[None]:
    """Turn a `ValueError` of the library, about an option's value such as an unknown user, into a `UsageError`."""
    try:
        yield
    except errors.HostlineError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


# The first class that an error belongs to decides. Every class of the tree meets one of these, `HostlineError` at last.
_CODES: tuple[tuple[tuple[type[BaseException], ...], ExitCode], ...] = (
    ((errors.AddressError,), ExitCode.USAGE),
    (
        (
            errors.PeerRefusedError,
            errors.AccessDeniedError,
            errors.MethodDeniedError,
            errors.NoCredentialsError,
            errors.UnsafeDirectoryError,
        ),
        ExitCode.REFUSED,
    ),
    ((errors.RemoteError,), ExitCode.METHOD_ERROR),
    ((errors.InternalError,), ExitCode.INTERNAL),
    ((errors.MethodNotFoundError, errors.InvalidArgumentError), ExitCode.INVALID_CALL),
    ((errors.ProtocolError, errors.InvalidResultError), ExitCode.PROTOCOL),
    ((errors.DeadlineExceededError,), ExitCode.DEADLINE),
    (
        (
            errors.OverloadedError,
            errors.SlowSubscriberError,
            errors.UnavailableError,
            errors.CallCancelledError,
            errors.PeerGoneError,
            errors.EndOfStream,
        ),
        ExitCode.UNAVAILABLE,
    ),
    ((errors.AddressInUseError,), ExitCode.CANNOT_LISTEN),
    ((errors.HostlineError,), ExitCode.FAILURE),
)

# Operations of a `SocketError` that make or look for a connection, and those that make a listening socket.
_CONNECTING = ("connect", "identify", "open")
_LISTENING = ("bind", "listen", "lock", "probe", "unlink", "chmod", "chown", "use")


def exit_code_of(error: BaseException) -> ExitCode:
    """Return the exit code for an error of hostline's own.

    A failed system call is judged by its operation: `connect` to an absent path and `bind` in an absent directory raise
    the same class.
    """
    code = next((code for classes, code in _CODES if isinstance(error, classes)), ExitCode.FAILURE)
    if isinstance(error, errors.SocketError) and code in (ExitCode.FAILURE, ExitCode.UNAVAILABLE):
        if error.operation in _CONNECTING:
            return ExitCode.CANNOT_CONNECT
        if error.operation in _LISTENING:
            return ExitCode.CANNOT_LISTEN
        if isinstance(error, errors.SocketTimeoutError):
            return ExitCode.DEADLINE
        if isinstance(error, errors.AddressNotFoundError | errors.ConnectRefusedError | errors.NotASocketError):
            return ExitCode.CANNOT_CONNECT  # a datagram is sent to an address without any connect
    return code


def report(error: BaseException) -> ExitCode:
    """Write an error to standard error as `error: ...`, escaped, and return its exit code."""
    code = error.code if isinstance(error, CommandError) else exit_code_of(error)
    text = str(error) or type(error).__name__
    if isinstance(error, errors.RemoteError):
        text = f"the method raised {text}"
    elif isinstance(error, errors.DescriptorError) and error.strerror:
        text = error.strerror  # without the "[Errno 1]" that an OSError begins with
    lines = [f"error: {escape(text)}".replace("\n", "\n       ")]
    if isinstance(error, errors.PeerRefusedError) and "pass server=" in text:
        # The library's advice is for programs.
        lines = [lines[0].partition("; to trust it")[0], "hint: --server-user NAME or --any-server trusts it"]
    lines += [f"hint: {note}" for note in getattr(error, "__notes__", ())]
    with contextlib.suppress(OSError):  # standard error is full or gone: the exit code tells it
        print("\n".join(lines), file=sys.stderr)
    return code


def report_output(error: OutputError) -> ExitCode:
    """Report that standard output cannot be written; what it still holds is dropped."""
    close_output()
    return report(CommandError(f"standard output cannot be written: {error.strerror}"))


@contextlib.contextmanager
def greeted() -> Iterator[None]:
    """Add a hint to the error of a server that cannot even greet; for the connect alone, which waits for its hello."""
    try:
        yield
    except errors.RemoteProtocolError as error:
        if "protocol version" not in str(error):  # that one is hostline, of another age
            error.add_note("what answers there does not speak hostline; hostline cat talks to any Unix socket")
        raise


class _Terminated(BaseException):
    """SIGTERM, raised so that sockets are closed and their files removed on the way out."""


def reported(function: Callable[P, int | None]) -> Callable[P, None]:
    """Wrap a command: its errors become a sentence and an exit code, without a traceback.

    An error that is not hostline's own is a fault of this program, and keeps its traceback.

    Args:
        function: The command; it returns an exit code, or None for 0.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **keywords: P.kwargs) -> None:
        code: int | None
        try:
            with _sigterm_raises():
                code = function(*args, **keywords)
                sys.stdout.flush()
        except BrokenPipeError:
            close_output()
            code = ExitCode.BROKEN_PIPE
        except OutputError as error:
            code = report_output(error)
        except (CommandError, errors.HostlineError) as error:
            code = report(error)
        except KeyboardInterrupt:
            code = ExitCode.INTERRUPTED
        except _Terminated:
            code = ExitCode.TERMINATED
        if code:
            raise typer.Exit(int(code))

    return wrapped


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Have SIGTERM unwind the stack; commands with an event loop replace this by a handler of their own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back for a moment; what came is heard at the end.

    Both raise wherever they find the program. Around a step that makes something which has to be removed again, up to
    the point where somebody will, that would be one instruction too early.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
