"""Listening sockets that come from the process that started us, and that go to a program which we start.

In: the systemd convention, sd_listen_fds(3). Out: the same convention towards a command in any language. Sockets that
are inherited belong to whoever made them: they are never unlinked and never chmod-ed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import socket
import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hostline.errors import AddressError
from hostline.unix.address import MAX_FD, InheritedAddress, SocketType

if TYPE_CHECKING:
    from hostline.unix.listening import Bound

__all__ = ["FIRST_FD", "inherited_socket", "listen_fds", "run_with_sockets", "socket_problem"]

# SD_LISTEN_FDS_START: 0, 1 and 2 are standard input, output and error.
FIRST_FD = 3

_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")

# Told to the command when we are told. SIGKILL cannot be; SIGTSTP and SIGCONT reach the whole terminal anyway.
_FORWARDED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}

# What a shell answers for a command that is there and cannot be run, and for one that is not there.
_CANNOT_RUN, _NOT_FOUND = 126, 127

_TYPES: dict[int, SocketType] = {
    socket.SOCK_STREAM: "stream",
    socket.SOCK_SEQPACKET: "seqpacket",
    socket.SOCK_DGRAM: "datagram",
}

# The process that asked, and what it was given: the environment is emptied at the first question, so the answer is
# kept. A forked child asks anew and, as its pid is not LISTEN_PID, is told that it has none.
_answer: tuple[int, list[tuple[int, str]]] | None = None

# Descriptor -> the socket that owns it. Two owners of one number would close it twice, the second time a stranger's.
_taken: weakref.WeakValueDictionary[int, socket.socket] = weakref.WeakValueDictionary()

# The descriptors of `_answer` that were given out. Once closed, such a number may be anything, and its name with it.
_spent: set[int] = set()


# --- in ----------------------------------------------------------------------------------------------


def listen_fds(unset: bool = True) -> list[tuple[int, str]]:
    """Return the descriptors that this process was started with, and their names.

    They are made close-on-exec. The variables are removed from the environment, so that programs started from here do
    not take descriptors of theirs for listening sockets; a second call answers the same.

    Args:
        unset: Whether to remove the variables.

    Returns:
        A list of (descriptor, name), in order, from 3 on; the name is `unknown` where none was given. Empty unless
        `LISTEN_PID` is this process.
    """
    global _answer
    if _answer is None or _answer[0] != os.getpid():
        found = _read_environment(os.environ)
        for fd, _ in found:
            os.set_inheritable(fd, False)
        _answer = (os.getpid(), found)
        _spent.clear()
    if unset:
        for variable in _VARIABLES:
            os.environ.pop(variable, None)
    return list(_answer[1])


def _read_environment(environ: Mapping[str, str]) -> list[tuple[int, str]]:
    pid, count = environ.get("LISTEN_PID", ""), environ.get("LISTEN_FDS", "")
    if not _is_number(pid) or int(pid) != os.getpid() or not _is_number(count):
        return []
    names = environ["LISTEN_FDNAMES"].split(":") if environ.get("LISTEN_FDNAMES") else []
    found = []
    for index in range(int(count)):
        fd = FIRST_FD + index
        if not _is_open(fd):
            break  # the number promises more than there is, and may be absurd
        found.append((fd, names[index] if index < len(names) else "unknown"))
    return found


def inherited_socket(address: InheritedAddress, socket_type: SocketType) -> socket.socket:
    """Return an inherited listening socket, checked: a Unix socket of this type, and listening.

    It is made close-on-exec and non-blocking. The descriptor belongs to the returned object from now on; on an error
    it is left as it was.

    Args:
        address: `fd:N` or `systemd:NAME`.
        socket_type: What is expected.

    Raises:
        AddressError: There is no such descriptor, a socket that is still open here owns it, or it is something else;
            or a name whose descriptor was given out before.
    """
    fd = _find(address)
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise AddressError(address.text, f"descriptor {fd} is not {_or_closed(fd)}") from error
    problem = socket_problem(sock, socket_type)
    if problem:
        sock.detach()
        raise AddressError(address.text, f"descriptor {fd} {problem}")
    _taken[fd] = sock
    _spent.add(fd)
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock


def _find(address: InheritedAddress) -> int:
    known = listen_fds()
    if address.fd is not None:
        if not 0 <= address.fd <= MAX_FD:
            raise AddressError(address.text, f"descriptor {address.fd} must be from 0 to {MAX_FD}")
        owner = _taken.get(address.fd)
        if owner is not None and owner.fileno() == address.fd:
            raise AddressError(address.text, f"descriptor {address.fd} is already used by another listener here")
        return address.fd
    matching = [fd for fd, name in known if name == address.name]
    free = [fd for fd in matching if fd not in _spent]
    if len(free) == 1:
        return free[0]
    if free:
        numbers = " or ".join(f"fd:{fd}" for fd in free)
        raise AddressError(address.text, f"{len(free)} inherited sockets have this name; write {numbers}")
    if matching:
        raise AddressError(address.text, "is already used by another listener here, or was until it closed")
    if not known:
        raise AddressError(address.text, "this process was started without sockets (LISTEN_PID is not this process)")
    names = ", ".join(sorted({name for _, name in known}))
    raise AddressError(address.text, f"no inherited socket has this name; there are {names}")


def socket_problem(sock: socket.socket, socket_type: SocketType) -> str:
    """Say why a socket cannot be listened on as asked; an empty string if it can."""
    if sock.family != socket.AF_UNIX:
        return "is not a Unix socket"
    found = _TYPES.get(sock.type, str(sock.type))
    if found != socket_type:
        return f"is a {found} socket where {socket_type} was asked for"
    if socket_type == "datagram":
        return "" if sock.getsockname() else "is not bound to an address"
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen; whoever starts this process must call listen on it, or it is a connection"
    return ""


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def _or_closed(fd: int) -> str:
    return "a socket" if _is_open(fd) else "open"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 10


# --- out ---------------------------------------------------------------------------------------------


def run_with_sockets(bounds: Sequence[Bound], names: Sequence[str], command: Sequence[str]) -> int:
    """Run a command with listening sockets, by the `LISTEN_FDS` convention, and wait for its end.

    The sockets are its descriptors 3, 4, ... in order, blocking, as most programs expect; standard input, output and
    error are ours; nothing else is passed on. SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are forwarded. Call
    it from the main thread of a process that has no other threads.

    Args:
        bounds: What to pass on. They belong to this function: closed, and their socket files unlinked, at the end.
        names: A name for each, for `LISTEN_FDNAMES`.
        command: The program, looked up on PATH, and its arguments.

    Returns:
        The command's exit code; 128 + N if signal N ended it; 127 if there is no such command, 126 if it cannot be run.

    Raises:
        ValueError: A name cannot be passed on, the numbers of names and sockets differ, or the command is empty.
    """
    try:
        if len(names) != len(bounds):
            raise ValueError(f"{len(names)} names for {len(bounds)} sockets")
        if not command:
            raise ValueError("the command is empty")
        for name in names:
            if not (name.isascii() and name.isprintable() and ":" not in name and 0 < len(name) <= 255):
                raise ValueError(f"name {name!r} must be 1 to 255 printable ASCII characters without a colon")
        for bound in bounds:
            # The flag belongs to the open socket, which both processes share; we never accept.
            bound.sock.setblocking(True)
        return _run([bound.sock.fileno() for bound in bounds], names, command)
    finally:
        for bound in bounds:
            bound.close()


def _run(fds: Sequence[int], names: Sequence[str], command: Sequence[str]) -> int:
    """Start the command with these descriptors and wait, forwarding signals."""
    # Blocked from before the fork, so that none is lost between it and the first wait. With SIGCHLD ignored (which is
    # inherited) the kernel would throw the exit code away.
    watched = _FORWARDED | {signal.SIGCHLD}
    old_handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        pid = _spawn(fds, names, command, old_mask)
        while True:
            # First the question, then the wait: the end may have come before SIGCHLD was blocked anywhere.
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            number, is_from_kernel = _next_signal(watched)
            # Ctrl-C reaches the terminal's whole foreground group by itself. Told twice, many programs give up at once.
            # (A hangup is different: it reaches only the session's leader, which may be us.)
            is_typed = is_from_kernel and number in (signal.SIGINT, signal.SIGQUIT)
            if number != signal.SIGCHLD and not (is_typed and os.getpgid(pid) == os.getpgrp()):
                os.kill(pid, number)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        signal.signal(signal.SIGCHLD, old_handler)


def _next_signal(watched: set[signal.Signals]) -> tuple[int, bool]:
    """Wait for a signal; also say whether the kernel sent it (a terminal did), and not a process."""
    if hasattr(signal, "sigwaitinfo"):
        info = signal.sigwaitinfo(watched)
        return info.si_signo, info.si_code > 0  # SI_KERNEL is 128; kill and sigqueue give 0 and less
    return signal.sigwait(watched), False


def _spawn(fds: Sequence[int], names: Sequence[str], command: Sequence[str], mask: set[signal.Signals | int]) -> int:
    """Start the command with `fds` as its descriptors from 3 on; return its pid.

    LISTEN_PID must be the pid of the very process that runs the command, and only that process knows it before exec. So
    this is fork and exec, with nothing but system calls between. A shell in between (`LISTEN_PID=$$ exec ...`) would
    need a shell and loses variables whose names it cannot parse; a second Python in between would need hostline on the
    path of whatever directory and environment the command runs in; posix_spawn cannot close what it does not know of.
    """
    variables = {name: value for name, value in os.environb.items() if os.fsdecode(name) not in _VARIABLES}
    variables[b"LISTEN_FDS"] = b"%d" % len(fds)
    variables[b"LISTEN_FDNAMES"] = ":".join(names).encode("ascii")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        _become(fds, command, variables, mask)
    finally:
        # Only reached when exec failed before it could say so.
        os._exit(_CANNOT_RUN)


def _become(
    fds: Sequence[int], command: Sequence[str], variables: dict[bytes, bytes], mask: set[signal.Signals | int]
) -> None:
    """Turn this forked child into the command; never returns."""
    # Out of the way first: the places 3, 4, ... may be held by sockets that belong at another place.
    above = FIRST_FD + len(fds)
    parked = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]
    for place, fd in enumerate(parked, FIRST_FD):
        os.dup2(fd, place, inheritable=True)
    # Python's own descriptors are close-on-exec; this closes what whoever started us left open.
    os.closerange(above, os.sysconf("SC_OPEN_MAX"))
    variables[b"LISTEN_PID"] = b"%d" % os.getpid()
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores these, and exec would pass that on
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        os.execvpe(command[0], list(command), variables)  # noqa: S606 - no shell is the point
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        reason = error.strerror
        if isinstance(error, PermissionError) and "/" not in command[0] and not shutil.which(command[0], os.F_OK):
            # A directory of PATH that we may not enter; as far as we may look, it is nowhere.
            is_missing, reason = True, os.strerror(errno.ENOENT)
        os.write(2, f"hostline: cannot run {command[0]!r}: {reason}\n".encode("utf-8", "backslashreplace"))
        os._exit(_NOT_FOUND if is_missing else _CANNOT_RUN)
