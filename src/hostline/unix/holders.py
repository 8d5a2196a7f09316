"""Who holds a socket path: by the lock beside it, or by the socket that is bound there.

The lock decides who may touch the socket file. It is never unlinked: a lock on a file whose name somebody else can
create anew protects nothing. Programs that know nothing of it are found by asking the socket.
Sources: flock(2), unix(7).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from hostline.errors import AccessDeniedError, AddressInUseError, NotASocketError, SocketError
from hostline.unix.credentials import read_peer
from hostline.unix.oserrors import file_kind, printable, translate, translated
from hostline.unix.passing.descriptors import Fd, close_all

__all__ = ["Holder", "LockFile", "close_in_child", "fork_held_back", "in_use", "open_fd", "probe", "why_live"]

# First line of the file. What does not begin with it was not written by us and is locked, but never overwritten.
_HEADER = b"hostline lock: stays here on purpose, locked while a server runs\n"

# Times that the lock file may be unlinked, or its holder may die, between two system calls of ours before we give up.
_MAX_ATTEMPTS = 16

# What a connect answers when somebody holds the socket: its backlog is full, it is of another type, or it is a datagram
# socket that receives from one sender only.
_HELD = (errno.EAGAIN, errno.EPROTOTYPE, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Holder:
    """Say who holds an address, for messages only: never decide by it.

    Attributes:
        pid: The process id, or None where nothing tells it.
        command: Its command line, escaped; empty where it cannot be read.
    """

    pid: int | None = None
    command: str = ""

    @classmethod
    def of(cls, pid: int | None) -> Holder:
        """Return the holder with the command line that /proc shows for a process id."""
        return cls(pid, _command_of(pid)) if pid else cls()

    def __str__(self) -> str:
        if not self.pid:
            return "an unknown process"
        return f"pid {self.pid} ({self.command})" if self.command else f"pid {self.pid}"


def in_use(socket_type: str, address_text: str, reason: str, holder: Holder) -> AddressInUseError:
    """Return the error that refuses a live address, with the holder's pid and command as attributes.

    Args:
        socket_type: As asked for.
        address_text: How the address is written.
        reason: Why it counts as live; the holder is named by the caller, where known.
        holder: Who holds it.
    """
    error = AddressInUseError("bind", socket_type, printable(address_text), errno.EADDRINUSE, reason)
    error.pid, error.command = holder.pid, holder.command
    return error


class LockFile:
    """Hold the exclusive lock of one socket file, from `take` to `close` or to the end of the process."""

    __slots__ = ("_fd",)

    def __init__(self, fd: Fd) -> None:
        self._fd = fd

    @classmethod
    def take(cls, dirfd: int, path: str, socket_type: str) -> LockFile:
        """Take the lock of a socket file, without waiting.

        Args:
            dirfd: The socket file's directory; it stays the caller's.
            path: The socket file's path; its last part with `.lock` names the lock in `dirfd`.
            socket_type: For the text of errors.

        Raises:
            AddressInUseError: Somebody holds it; the pid and command are in the text and in the attributes.
            NotASocketError: The lock's name is taken by something else than a file.
            AccessDeniedError: This user may not use the lock, or its owner could take it away.
            SocketError: The file system cannot lock.
        """
        name, text = f"{os.path.basename(path)}.lock", f"{path}.lock"
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                with _fork_gate:
                    fd = _open(dirfd, name)
                    _lock_fds.add(fd)
            except OSError as error:
                raise _refused(error, dirfd, name, text, socket_type) from error
            try:
                if _lock(fd.fileno(), name, dirfd, path, socket_type, attempt == _MAX_ATTEMPTS):
                    _check_owner(fd.fileno(), dirfd, text, socket_type)
                    _write_holder(fd.fileno())
                    return cls(fd)
            except BaseException:
                fd.close()
                raise
            fd.close()
        raise SocketError("lock", socket_type, printable(text), None, "the lock file is replaced again and again")

    @classmethod
    def adopt(cls, fd: Fd, dirfd: int, path: str, socket_type: str) -> LockFile:
        """Return the lock that an open descriptor from its holder stands for: flock belongs to the open file.

        The caller has seen to it that a forked child closes the descriptor (`close_in_child`).

        Args:
            fd: The descriptor; on success it is this object's from now on, on failure it stays the caller's.
            dirfd: The socket file's directory; it stays the caller's.
            path: The socket file's path.
            socket_type: For the text of errors.

        Raises:
            SocketError: It is not this path's lock file, or not its lock.
        """
        name, text = f"{os.path.basename(path)}.lock", f"{path}.lock"
        with translated("take over", socket_type, text):
            status, there = os.fstat(fd.fileno()), os.stat(name, dir_fd=dirfd, follow_symlinks=False)
            if (there.st_dev, there.st_ino) != (status.st_dev, status.st_ino):
                raise SocketError(
                    "take over", socket_type, printable(text), None, "this is not the lock that was given"
                )
            try:
                # Granted at once to the open file that holds it already, and to no other.
                fcntl.flock(fd.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                reason = "the lock that was given does not hold it"
                raise SocketError("take over", socket_type, printable(text), error.errno, reason) from error
        return cls(fd)

    def fileno(self) -> int:
        """Return the descriptor that the lock belongs to; it stays this object's own."""
        return self._fd.fileno()

    def sign(self) -> None:
        """Write into the file that this process holds the lock now, which it did not take itself."""
        status = os.fstat(self._fd.fileno())
        _write_holder(self._fd.fileno(), _pid_by_kernel(status))

    def close(self) -> None:
        """Release the lock, or in a forked child only let go of it; a second close does nothing.

        Where another process was given the descriptor, the lock is that one's and stays.
        """
        self._fd.close()


# flock belongs to the open file, which a fork shares: a child that another thread makes would hold the lock as long as
# it lives. So it closes every descriptor of a lock file, and no fork comes between the opening and the entry here.
_lock_fds: weakref.WeakSet[Fd] = weakref.WeakSet()
_fork_gate = threading.RLock()


@contextmanager
def fork_held_back() -> Iterator[None]:
    """Keep other threads from forking for a moment: a descriptor comes in, and nobody knows its number yet."""
    with _fork_gate:
        yield


def close_in_child(fds: Iterable[Fd]) -> None:
    """Have a forked child close these descriptors, as long as these objects own them."""
    _lock_fds.update(fds)


def _let_go_in_child() -> None:
    _fork_gate.release()
    close_all(list(_lock_fds))


os.register_at_fork(before=_fork_gate.acquire, after_in_parent=_fork_gate.release, after_in_child=_let_go_in_child)


def open_fd(name: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> Fd:
    """Open as `os.open` does, in such a way that no signal handler's exception loses the descriptor.

    Python runs handlers after a call of C; `extend` is one, and has put the number, and then its owner, where they are
    found before it returns.
    """
    numbers: list[int] = []
    owners: list[Fd] = []
    try:
        numbers.extend(map(partial(os.open, dir_fd=dir_fd), (name,), (flags,), (mode,)))
        owners.extend(map(Fd, numbers))
        return owners[0]
    except BaseException:
        if numbers and not owners:
            os.close(numbers[0])
        raise


def _open(dirfd: int, name: str) -> Fd:
    # O_NOFOLLOW: a symlink planted here would have us lock, and write into, a file of the planter's choice.
    # O_NONBLOCK: nor may a planted pipe or device make us wait. Opening without O_CREAT first, because Linux
    # (fs.protected_regular) refuses O_CREAT even to root where another user's file lies in a sticky directory.
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    for _ in range(_MAX_ATTEMPTS):
        try:
            return open_fd(name, flags, dir_fd=dirfd)
        except FileNotFoundError:
            pass
        try:
            fd = open_fd(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=dirfd)
        except FileExistsError:
            continue  # another contender made it between the two calls
        os.fchmod(fd.fileno(), 0o600)  # a umask that takes the owner's bits would lock out our own next start
        return fd
    raise FileExistsError(errno.EEXIST, "the lock file comes and goes")


def _refused(error: OSError, dirfd: int, name: str, text: str, socket_type: str) -> SocketError:
    """Say why the lock could not be opened, and whose it is."""
    if error.errno in (errno.ENXIO, errno.ELOOP, errno.EISDIR, errno.EACCES):
        try:
            status = os.stat(name, dir_fd=dirfd, follow_symlinks=False)
        except OSError:
            return translate(error, "lock", socket_type, text)
        if not stat.S_ISREG(status.st_mode):
            reason = f"the lock's name is taken by {file_kind(status.st_mode)} of uid {status.st_uid}; remove it"
            return NotASocketError("lock", socket_type, printable(text), error.errno, reason)
        reason = f"the lock file belongs to uid {status.st_uid} with mode {status.st_mode & 0o7777:04o}"
        return AccessDeniedError("lock", socket_type, printable(text), error.errno, reason)
    return translate(error, "lock", socket_type, text)


def _lock(fd: int, name: str, dirfd: int, path: str, socket_type: str, is_last: bool) -> bool:
    """Lock an open lock file; return False to try again: its name leads elsewhere now, or its holder has just gone."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        reason = f"the lock's name is taken by {file_kind(status.st_mode)} of uid {status.st_uid}; remove it"
        raise NotASocketError("lock", socket_type, printable(f"{path}.lock"), None, reason)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = _pid_by_kernel(status)
        if pid is None and not is_last:
            return False
        # A lock that the kernel does not list is held from outside our pid namespace, or there is no /proc. One that
        # was handed on is listed under whoever took it first, and the text says so.
        text, taken_by = _holder_by_text(fd)
        holder = Holder.of(pid) if pid and pid != taken_by else text
        reason = f"a running server holds it: {holder}"
        raise in_use(socket_type, path, reason, holder) from error
    except OSError as error:
        raise translate(error, "lock", socket_type, f"{path}.lock") from error
    # Somebody (a cleaner of /tmp) may have unlinked the file between open and flock. A lock on a file without a
    # name excludes nobody who opens the name from now on.
    try:
        there = os.stat(name, dir_fd=dirfd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino)


def _check_owner(fd: int, dirfd: int, text: str, socket_type: str) -> None:
    """Refuse a lock that a stranger could unlink under us.

    In a sticky directory that others may write to, the owner of a file can remove it at any time; the next contender
    would lock a new file while we hold the old one.
    """
    status, directory = os.fstat(fd), os.fstat(dirfd)
    is_shared = directory.st_mode & stat.S_ISVTX and directory.st_mode & 0o022
    if is_shared and status.st_uid not in (0, os.geteuid()):
        reason = f"the lock file belongs to uid {status.st_uid}, who could take it away from us; remove it"
        raise AccessDeniedError("lock", socket_type, printable(text), errno.EPERM, reason)


def _write_holder(fd: int, taken_by: int | None = None) -> None:
    """Leave our pid and command for the next one who is refused, and the pid under which the kernel lists the lock."""
    status = os.fstat(fd)
    try:
        # A hard link could make this name lead to some other file of ours; and a file with other content than ours
        # is another program's lock (Wayland and PostgreSQL use the same name). Both serve as a lock as they are.
        if status.st_nlink != 1 or os.pread(fd, len(_HEADER), 0) not in (b"", _HEADER):
            return
        text = f"pid {os.getpid()}\ncommand {_command_of(os.getpid())}\n"
        text += f"taken-by {taken_by}\n" if taken_by else ""
        os.ftruncate(fd, 0)
        os.pwrite(fd, _HEADER + text.encode("utf-8", "backslashreplace"), 0)
    except OSError:
        # A full disk: the text is for people, the lock itself is held.
        pass


def _pid_by_kernel(status: os.stat_result) -> int | None:
    """Return who holds a lock file by the kernel's own list; None if nobody does by now, or the list does not tell."""
    inode = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as locks:
            for line in locks:
                words = line.split()
                if len(words) >= 6 and words[1] == "FLOCK" and words[5] == inode and int(words[4]) > 0:
                    return int(words[4])
    except (OSError, ValueError):
        pass
    return None


def _holder_by_text(fd: int) -> tuple[Holder, int | None]:
    """Return who holds a lock file by its text, which may be the last holder's, and under whose pid it is listed."""
    try:
        lines = os.pread(fd, 4096, 0).decode("utf-8", "replace").splitlines()
    except OSError:
        return Holder(), None
    found = dict(line.split(" ", 1) for line in lines[1:] if " " in line)
    pid, taken_by = (_number(found.get(key, "")) for key in ("pid", "taken-by"))
    return (Holder(pid, printable(found.get("command", ""), 200)) if pid else Holder()), taken_by


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else None


def _command_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096)
    except OSError:
        return printable(" ".join(sys.orig_argv), 200) if pid == os.getpid() else ""
    return printable(words.rstrip(b"\0").replace(b"\0", b" "), 200)


# --- the socket ---------------------------------------------------------------------------------------


def probe(sockaddr: bytes, socket_type: str, address_text: str) -> Holder | None:
    """Ask whether anybody holds the socket at an address; None means nobody.

    Each type is tried, because the kernel compares types before all else: a socket that is bound and does not listen
    yet refuses its own type like a dead one (ECONNREFUSED), but answers another type with EPROTOTYPE.

    Args:
        sockaddr: What the kernel is given.
        socket_type: For the text of errors.
        address_text: For the text of errors.

    Returns:
        The holder, with its pid where the kernel tells it (it does for listening sockets with room in their backlog).

    Raises:
        SocketError: It cannot be told, for instance because this user may not connect there.
    """
    is_held = False
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with translated("probe", socket_type, address_text):
            try:
                sock = socket.socket(socket.AF_UNIX, kind)
            except OSError as error:
                if error.errno == errno.EPROTONOSUPPORT:  # seqpacket on macOS: then nobody there has one either
                    continue
                raise
            with sock:
                sock.setblocking(False)
                try:
                    sock.connect(sockaddr)
                except OSError as error:
                    is_held = is_held or error.errno in _HELD
                    if error.errno not in (*_HELD, errno.ECONNREFUSED, errno.ENOENT):
                        raise
                    continue
                is_held = True
                pid = read_peer(sock).pid
                if pid:
                    return Holder.of(pid)
    return Holder() if is_held else None


def why_live(holder: Holder) -> str:
    """Say why a probed socket counts as live, naming its holder."""
    if holder.pid and not os.path.exists(f"/proc/{holder.pid}") and os.path.isdir("/proc/self"):
        return f"pid {holder.pid}, which listened on it, has ended, but another process still holds its socket"
    return f"a live socket of a program that does not use hostline's lock is there: {holder}"
