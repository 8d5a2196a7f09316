"""The life of one socket file: claim it, bind it, open it to those it is for, and take away only what is ours.

    claim    the lock beside it, then a look: nothing there, or a socket that nobody holds, which is unlinked
    bind     with the mode already right when the name appears; what appeared is verified
    (listen) the caller's
    widen    owner, group and the rest of the mode, on the very inode that was bound
    release  unlink if it is still ours, close the socket, let go of the lock

or, where the owner hands it over to another process:

    visit    the directory, without the lock
    adopt    the socket, the lock and the file, each verified
    own      once the last owner has given them up

Knows no addresses but paths and decides nothing about who may connect. Sources: unix(7), flock(2). So many lines
because all the steps share one state, which nothing else should see.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import sys
import weakref
from typing import NamedTuple, Self

from hostline.errors import (
    AddressNotFoundError,
    ClosedError,
    NotASocketError,
    SocketError,
    UnsafeDirectoryError,
)
from hostline.limits import DEFAULT_MODE
from hostline.unix.address import DIRECTORY_FLAGS, SocketType, check_name_length, within_directory
from hostline.unix.binding import bind_by_rename, bind_in_place
from hostline.unix.holders import Holder, LockFile, in_use, open_fd, probe, why_live
from hostline.unix.oserrors import file_kind, printable, translate, translated
from hostline.unix.passing.descriptors import Fd

__all__ = ["Owned", "SocketFile"]

_log = logging.getLogger("hostline.unix")

# Dead sockets removed from one path before we give up: each round needs a program that ignores the lock and dies.
_MAX_ATTEMPTS = 8


class Owned(NamedTuple):
    """Hold what the owner of a socket file can hand over.

    Attributes:
        identity: Device and inode of the file.
        lock_fd: The descriptor of the lock; it stays the owner's.
        dirfd: The directory of both; likewise.
    """

    identity: tuple[int, int]
    lock_fd: int
    dirfd: int


class SocketFile:
    """Own one path: its lock, and from `bind` on its socket file and the socket.

    Made by `claim`. A forked child lets go of the lock by itself and never unlinks (`abandon`), so that a child that
    outlives its parent does not keep the path taken.

    Attributes:
        path: As claimed.
        socket_type: The type that will be bound.
    """

    def __init__(self, path: str, socket_type: SocketType) -> None:
        """Prepare an object that owns nothing yet; use `claim`."""
        self.path = path
        self.socket_type = socket_type
        self._name = os.path.basename(path)
        self._pid = os.getpid()
        self._directory: Fd | None = None
        self._pin: Fd | None = None
        self._lock: LockFile | None = None
        self._sock: socket.socket | None = None
        self._identity: tuple[int, int] | None = None
        self._handed: tuple[int, int] | None = None
        self._mode = DEFAULT_MODE
        self._owner = -1
        self._group = -1
        _alive.add(self)

    @classmethod
    def claim(cls, path: str, socket_type: SocketType, *, has_lock: bool = True) -> Self:
        """Take the lock of a path and clear away a socket that nobody holds any more.

        A world-writable directory without the sticky bit is refused: there everybody may rename or unlink our socket
        file and put their own in its place, and clients would talk to them. (With the bit, as in /tmp, others can only
        be first.) A directory that a group may write to is its owner's decision to trust that group. The directory's
        owner is trusted, whoever it is, and so are the owners of those above it: they may rename or replace whatever is
        in it, our socket file too. A service that must not trust them needs a directory of its own.

        Args:
            path: Where the socket file will be; a relative one is resolved now.
            socket_type: What will be bound there.
            has_lock: False where the caller holds another lock that keeps out everybody who may come here.

        Returns:
            The claim, which holds the lock until `release`.

        Raises:
            AddressInUseError: A live server holds the path, by its lock or by answering.
            NotASocketError: Something else than a socket is there; it was not touched.
            UnsafeDirectoryError: Others could replace the socket file.
            AddressNotFoundError: The directory does not exist.
            AccessDeniedError: This user may not lock here, or cannot tell whether the socket there is alive.
            PathTooLongError: The path cannot be reached.
        """
        check_name_length(path)
        file = cls(path, socket_type)
        try:
            file._open_directory()
            # Looked at before the lock is made, so that a refusal leaves not even a lock file behind.
            file._look()
            if has_lock:
                file._lock = LockFile.take(file._dirfd, path, socket_type)
            file._clear()
        except BaseException:
            file.abandon()
            raise
        return file

    @classmethod
    def visit(cls, path: str, socket_type: SocketType) -> SocketFile:
        """Open the directory of a path that another process owns and may hand over (`adopt`); errors as for `claim`."""
        check_name_length(path)
        file = cls(path, socket_type)
        file._open_directory()
        return file

    def adopt(self, sock: socket.socket, lock: Fd, identity: tuple[int, int]) -> os.stat_result:
        """Take what the owner of the path handed over; it is owned, and unlinked at the end, only from `own` on.

        Args:
            sock: The socket that is bound to the path; it belongs to this object from now on, also when this fails.
            lock: The owner's descriptor of the lock file; likewise.
            identity: Device and inode of the socket file, as the owner knows them.

        Returns:
            The file's status.

        Raises:
            SocketError: The path leads to another file or directory by now, or the lock is none.
        """
        self._sock = sock
        with translated("take over", self.socket_type, self.path):
            try:
                self._check_directory()
                self._lock = LockFile.adopt(lock, self._dirfd, self.path, self.socket_type)
                status = self._lstat()
                if status is None or not stat.S_ISSOCK(status.st_mode) or (status.st_dev, status.st_ino) != identity:
                    reason = "somebody replaced the socket file"
                    raise SocketError("take over", self.socket_type, printable(self.path), None, reason)
                self._pin_file()
                self._verify_identity(identity)
            except BaseException:
                lock.close()
                raise
        self._handed = identity
        return status

    def own(self) -> None:
        """Be the owner of what was adopted: its last owner has given it up."""
        self._identity = self._handed
        if self._lock is not None:
            self._lock.sign()

    def owned(self) -> Owned | None:
        """Return what can be handed over, or None: nothing is bound, or it is not this process's."""
        if self._identity is None or self._lock is None or self._pid != os.getpid():
            return None
        return Owned(self._identity, self._lock.fileno(), self._dirfd)

    def bind(
        self, sock: socket.socket, mode: int = DEFAULT_MODE, owner: int | None = None, group: int | None = None
    ) -> None:
        """Bind a socket to the path; at no instant is the file open to more than was asked for.

        Where an owner or a group is asked for, the file starts with the owner's bits only, because the others would
        hold for the group that this process happens to have.

        Args:
            sock: An unbound socket of the claimed type; it belongs to this object from now on, also when this fails.
            mode: Permission bits in the end; the process umask narrows them until `widen`.
            owner: User id in the end, or None to keep our own.
            group: Group id in the end, or None to keep the one that the file gets.

        Raises:
            AddressInUseError: Something appeared at the path in this instant, bound by a program without our lock.
            AccessDeniedError: This user may not create a file there.
            SocketError: The path leads to another directory than it did when it was claimed, or the file system made
                something else than was asked for.
        """
        self._sock = sock
        self._mode = mode
        self._owner = -1 if owner is None else owner
        self._group = -1 if group is None else group
        first = mode if owner is None and group is None else mode & 0o700
        bind = bind_in_place if sys.platform == "linux" else bind_by_rename
        with translated("bind", self.socket_type, self.path):
            self._check_directory()
            try:
                bind(sock, self._dirfd, self.path, first)
                status = self._lstat()
                if status is None:
                    self._remove_astray(sock)
                    raise self._replaced()
                self._verify(status, first)
                self._identity = (status.st_dev, status.st_ino)
            except OSError:
                raise
            except BaseException:  # a signal handler's
                self._recognise(sock)
                raise
            self._pin_file()
            self._verify_identity(self._identity)

    def widen(self) -> os.stat_result:
        """Give the file its owner, its group and its full mode, and verify all three.

        To be called after `listen`, for datagram sockets after `bind`. The owner comes first: the group's bits must
        never hold for the group that the file had before.

        Returns:
            The file's status, from which the default rule about peers is read.

        Raises:
            AccessDeniedError: This user may not give the file away.
            SocketError: The file is not what was asked for.
        """
        if self._identity is None:
            raise SocketError("chmod", self.socket_type, printable(self.path), None, "nothing is bound")
        with translated("chmod", self.socket_type, self.path):
            status = self._stat()
            if self._owner >= 0 or self._group >= 0:
                self._chown()
            if stat.S_IMODE(status.st_mode) != self._mode:
                self._chmod()
            status = self._stat()
            there = self._lstat()
            if there is None or (there.st_dev, there.st_ino) != self._identity:
                raise SocketError("chmod", self.socket_type, printable(self.path), None, "somebody replaced the file")
        asked = (self._mode, self._owner, self._group)
        got = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
        if any(want not in (-1, have) for want, have in zip(asked, got, strict=True)):
            reason = (
                f"mode {got[0]:04o} uid {got[1]} gid {got[2]} is not what was asked for "
                f"(mode {asked[0]:04o} uid {asked[1]} gid {asked[2]}, -1 for any)"
            )
            raise SocketError("chmod", self.socket_type, printable(self.path), None, reason)
        return status

    def release(self) -> None:
        """Unlink the file if it is still ours, close the socket, let go of the lock; more than once is fine.

        A file that somebody put in place of ours stays. In a forked child nothing is unlinked.
        """
        self.unlink()
        if self._sock is not None:
            self._sock.close()
        self.abandon()

    def unlink(self) -> None:
        """Unlink the file if it is still ours and keep the rest: the socket goes on, but nobody new finds it."""
        if self._pid != os.getpid():
            self.abandon()
        identity, self._identity = self._identity, None
        if identity is not None:
            # Before anything is closed: the pin (elsewhere the bound socket) holds our inode, so its number cannot
            # have been given to another file, and the comparison means what it says. Under the lock: no successor of
            # ours can be at the path yet.
            try:
                there = self._lstat()
                if there is not None and (there.st_dev, there.st_ino) == identity:
                    os.unlink(self._name, dir_fd=self._dirfd)
            except OSError as error:
                # Privileges dropped since, or a file system gone read-only. The next server finds a dead socket and
                # reclaims it; there is no reason to fail a shutdown.
                _log.warning(
                    "cannot unlink %s: %s",
                    printable(self.path),
                    error.strerror,
                    extra={"event": "unlink_failed", "address": self.path},
                )
            except BaseException:  # a signal handler's: whoever releases again does it
                self._identity = identity
                raise

    def abandon(self) -> None:
        """Let go of the lock, of the path and of the socket; the file stays, and the socket is not closed here.

        For a forked child, where the path is the parent's, and where the socket is handed on to another process. The
        socket is its caller's again: whoever gave it to `bind` closes it.
        """
        self._identity = None
        self._sock = None
        for held in (self._lock, self._pin, self._directory):
            if held is not None:
                held.close()

    def within(self, name: str) -> tuple[int, str]:
        """Return the path's directory, whose descriptor stays this object's own, and the path of a file in it."""
        return self._dirfd, os.path.join(os.path.dirname(self.path), name)

    @property
    def _dirfd(self) -> int:
        if self._directory is None:
            raise ClosedError(f"nothing is claimed at {printable(self.path)}")
        return self._directory.fileno()

    def _open_directory(self) -> None:
        directory = os.path.dirname(self.path) or "."
        try:
            self._directory = open_fd(directory, DIRECTORY_FLAGS)
        except FileNotFoundError as error:
            reason = "the directory does not exist; make it first"
            raise AddressNotFoundError("bind", self.socket_type, printable(self.path), error.errno, reason) from error
        except OSError as error:
            raise translate(error, "bind", self.socket_type, self.path) from error
        mode = os.fstat(self._dirfd).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            reason = (
                f"the directory's mode {stat.S_IMODE(mode):04o} lets everybody replace files in it; "
                "run chmod o-w on it, or use a bare name"
            )
            raise UnsafeDirectoryError("bind", self.socket_type, printable(self.path), None, reason)

    def _check_directory(self) -> None:
        """Refuse to go on when the path leads to another directory than the one that is locked and looked into.

        `bind` is given the path, so that `ss` and `getsockname` show it, and a link above may have been repointed.
        """
        try:
            there = os.stat(os.path.dirname(self.path) or ".")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._replaced() from error
        ours = os.fstat(self._dirfd)
        if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            raise self._replaced()

    def _replaced(self) -> SocketError:
        reason = "the directory was replaced while binding"
        return SocketError("bind", self.socket_type, printable(self.path), None, reason)

    def _recognise(self, sock: socket.socket) -> None:
        """Have `release` unlink what was bound, if it was, when an exception came before it was looked at."""
        status = self._lstat() if sock.getsockname() else None
        if status is not None and stat.S_ISSOCK(status.st_mode) and status.st_uid == os.geteuid():
            self._identity = (status.st_dev, status.st_ino)

    def _remove_astray(self, sock: socket.socket) -> None:
        """Close a socket that was bound in another directory than ours, and unlink its file.

        Which file is its own, no call tells. But once it is closed, nobody holds the file; so a socket of our user that
        was held and no longer is can go, as the next claim there would clear it away. One that others hold stays.
        """
        where = os.fsdecode(sock.getsockname())
        try:
            before = os.lstat(where)
            was_held = probe(os.fsencode(where), self.socket_type, self.path) is not None
            sock.close()
            is_dead = was_held and probe(os.fsencode(where), self.socket_type, self.path) is None
            is_ours = is_dead and stat.S_ISSOCK(before.st_mode) and before.st_uid == os.geteuid()
            if is_ours and _same(before, os.lstat(where)):
                os.unlink(where)
        except FileNotFoundError:
            pass  # it lay in our directory after all, and somebody unlinked it
        except OSError as error:
            _log.warning(
                "cannot unlink %s, which was bound astray: %s",
                printable(where),
                error,
                extra={"event": "unlink_failed", "address": where},
            )

    def _lstat(self) -> os.stat_result | None:
        try:
            return os.stat(self._name, dir_fd=self._dirfd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _stat(self) -> os.stat_result:
        """Return the status of our inode, whatever has happened to its name."""
        if self._pin is not None:
            return os.fstat(self._pin.fileno())
        return os.stat(self._name, dir_fd=self._dirfd, follow_symlinks=False)

    def _look(self) -> os.stat_result | None:
        """Return what is at the path, None for nothing; refuse everything that is not a socket."""
        with translated("bind", self.socket_type, self.path):
            status = self._lstat()
        if status is not None and not stat.S_ISSOCK(status.st_mode):
            reason = f"{file_kind(status.st_mode)} is there, which is not a socket; it was left as it is"
            raise NotASocketError("bind", self.socket_type, printable(self.path), errno.EEXIST, reason)
        return status

    def _clear(self) -> None:
        """Unlink sockets that nobody holds until nothing is left at the path; called with the lock held."""
        for _ in range(_MAX_ATTEMPTS):
            found = self._look()
            if found is None:
                return
            # Through the directory that is locked and looked into: what the path leads to may change meanwhile.
            holder = probe(within_directory(self.path, self._dirfd), self.socket_type, self.path)
            if holder is not None:
                raise in_use(self.socket_type, self.path, why_live(holder), holder)
            with translated("unlink", self.socket_type, self.path):
                self._check_directory()
                again = self._lstat()
                # The lock keeps out every hostline. A program without it may have bound here since the probe; this
                # look does not exclude that, but leaves it microseconds.
                if again is not None and _same(found, again):
                    os.unlink(self._name, dir_fd=self._dirfd)
        raise in_use(self.socket_type, self.path, "dead sockets appear here again and again", Holder())

    def _verify(self, status: os.stat_result, mode: int) -> None:
        """Check what `bind` made: our socket, open to nobody whom the mode does not name (a umask may narrow it)."""
        problem = ""
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
            problem = f"{file_kind(status.st_mode)} of uid {status.st_uid} is there instead of our socket"
        elif stat.S_IMODE(status.st_mode) & ~mode:
            self._identity = (status.st_dev, status.st_ino)  # ours all the same, so release takes it away
            problem = f"the file system gave it mode {stat.S_IMODE(status.st_mode):04o} where {mode:04o} was asked for"
        if problem:
            raise SocketError("bind", self.socket_type, printable(self.path), None, problem)

    def _pin_file(self) -> None:
        """Open the inode itself, where the platform can.

        What is changed through it cannot be a file that took our name, and while it is open the kernel cannot give the
        inode's number to another file.
        """
        if hasattr(os, "O_PATH"):
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            self._pin = open_fd(self._name, flags, dir_fd=self._dirfd)

    def _verify_identity(self, identity: tuple[int, int]) -> None:
        if self._pin is not None:
            status = os.fstat(self._pin.fileno())
            if (status.st_dev, status.st_ino) != identity:
                raise SocketError("bind", self.socket_type, printable(self.path), None, "somebody replaced the file")

    def _chown(self) -> None:
        try:
            if self._pin is not None:
                os.chown(f"/proc/self/fd/{self._pin.fileno()}", self._owner, self._group)
            else:
                os.chown(self._name, self._owner, self._group, dir_fd=self._dirfd, follow_symlinks=False)
        except PermissionError as error:
            failed = translate(error, "chown", self.socket_type, self.path)
            failed.reason = "only root may give a file to another user, or to a group that this user is not in"
            raise failed from error

    def _chmod(self) -> None:
        if self._pin is not None:
            os.chmod(f"/proc/self/fd/{self._pin.fileno()}", self._mode)
        else:
            os.chmod(self._name, self._mode, dir_fd=self._dirfd, follow_symlinks=False)


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether two looks saw the same file: file systems reuse inode numbers at once, times tell them apart."""
    return (one.st_dev, one.st_ino, one.st_ctime_ns) == (other.st_dev, other.st_ino, other.st_ctime_ns)


_alive: weakref.WeakSet[SocketFile] = weakref.WeakSet()


def _abandon_in_child() -> None:
    for file in list(_alive):
        file.abandon()


os.register_at_fork(after_in_child=_abandon_in_child)
