"""Who is on the other side, and whether a rule admits them. Credentials are numbers from the kernel, never text.

A connection's credentials are those of the process that called `connect` (or, seen from a client, `listen`) at
that moment, like the right to use a file is that of `open`: a later setuid changes nothing. `SO_PEERCRED` names the
effective uid. Nothing is ever decided by pid or by /proc, because pids are reused; `Peer.pidfd` pins the process.

Source: unix(7), socket(7). On macOS and the BSDs `LOCAL_PEERCRED` gives the same without a pidfd.
"""

from __future__ import annotations

import errno
import functools
import grp
import os
import pwd
import socket
import struct
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

__all__ = [
    "CREDENTIALS_SIZE",
    "Peer",
    "Peers",
    "checked_id",
    "default_rule",
    "gid_of",
    "read_peer",
    "uid_of",
    "unpack_credentials",
]

_UCRED = struct.Struct("iII")

# Bytes of one SCM_CREDENTIALS or SO_PEERCRED value: struct ucred, pid_t uid_t gid_t.
CREDENTIALS_SIZE = _UCRED.size

# Not in Python's socket module; the same on every architecture but parisc and sparc, where the calls fail cleanly.
_SO_PEERGROUPS = 59  # Linux 4.13
_SO_PEERPIDFD = 77  # Linux 6.5

# Where the kernel shows a uid or gid that has no place in this user namespace.
_OVERFLOW_ID = 65534

# Bytes offered for SO_PEERGROUPS, four a group: nearly every user has fewer than 64. The kernel answers ERANGE when it
# is too little, and Python's getsockopt stops at 1024 bytes; a peer in more groups than that needs the C call.
_GROUPS_SIZES = (256, 1024)
_MAX_GROUPS = 65536  # NGROUPS_MAX

# Held while a pidfd is taken and while it is given up, so that one thread's first use and another's close cannot miss
# each other. One for all, because a `Peer` can be pickled; a fork waits for it, or it would stay held in the child.
_pidfd_lock = threading.RLock()
os.register_at_fork(before=_pidfd_lock.acquire, after_in_parent=_pidfd_lock.release, after_in_child=_pidfd_lock.release)


class Peer:
    """Hold what the kernel says about the other side.

    Attributes:
        pid: Process id at the time of connect, for people to read; 0 where it is outside this pid namespace.
        uid: Effective user id.
        gid: Effective group id.
        groups: Supplementary group ids; empty where the kernel does not tell.
        has_credentials: Whether all this is known: not over `tcp:`, where reading it raises `NoCredentialsError`.
    """

    __slots__ = ("_pidfd", "_sock", "gid", "groups", "pid", "uid")

    has_credentials: ClassVar[bool] = True

    def __init__(
        self, pid: int, uid: int, gid: int, groups: tuple[int, ...] = (), sock: socket.socket | None = None
    ) -> None:
        """Hold the given numbers.

        Args:
            pid: Process id.
            uid: Effective user id.
            gid: Effective group id.
            groups: Supplementary group ids.
            sock: The connected socket that `pidfd` asks; it stays the caller's.
        """
        self._pidfd = -1
        self.pid = pid
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self._sock = sock

    @property
    def account(self) -> int:
        """Return the number under which connections are counted: the uid, or -1 for all who came over `tcp:`."""
        return self.uid

    @property
    def pidfd(self) -> int | None:
        """Return a descriptor that pins the peer's process, or None where the kernel has none to give.

        It is taken at the first use, which is free of races at any time while the connection is open: the kernel keeps
        the process's identity with the socket, and never a later process of the same number. The descriptor is
        close-on-exec and this object's own: `close()` closes it.
        """
        with _pidfd_lock:
            if self._pidfd < 0 and self._sock is not None and sys.platform == "linux":
                try:
                    self._pidfd = self._sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
                except OSError:
                    # An older kernel, a closed connection, a process long reaped, or no free descriptor: identity
                    # rests on uid and gid, so that this is no reason to end anything.
                    return None
            return self._pidfd if self._pidfd >= 0 else None

    def close(self) -> None:
        """Close the pidfd, if one was taken, and let go of the socket; the numbers stay."""
        with _pidfd_lock:
            fd, self._pidfd, self._sock = self._pidfd, -1, None
            if fd >= 0:  # within the lock: behind its release a signal's exception would lose the number
                os.close(fd)

    def describe(self) -> str:
        """Return words for a log line: `uid 1000 (alice), pid 4711`."""
        return f"uid {_user_text(self.uid)}, pid {self.pid}" if self.pid else f"uid {_user_text(self.uid)}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Peer):
            return NotImplemented
        return (self.pid, self.uid, self.gid, self.groups) == (other.pid, other.uid, other.gid, other.groups)

    def __hash__(self) -> int:
        return hash((self.pid, self.uid, self.gid, self.groups))

    def __repr__(self) -> str:
        return f"Peer(pid={self.pid}, uid={self.uid}, gid={self.gid}, groups={self.groups})"

    def __del__(self) -> None:
        fd, self._pidfd = self._pidfd, -1
        if fd >= 0:
            os.close(fd)


def read_peer(sock: socket.socket) -> Peer:
    """Return who is on the other side of a connected socket.

    Args:
        sock: A connected stream or seqpacket socket; it stays the caller's, and the `Peer` asks it for the pidfd.

    Raises:
        OSError: The kernel does not tell.
    """
    if sys.platform == "linux":
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS_SIZE)
        pid, uid, gid = _UCRED.unpack(raw)
        return Peer(pid, uid, gid, _read_groups(sock), sock)
    return _read_peer_bsd(sock)


def unpack_credentials(raw: bytes) -> Peer | None:
    """Return the sender of one message from its SCM_CREDENTIALS value.

    This attributes a datagram and does not authorise: root may write any pid and uid, and what a process without that
    right sends is its real uid, not its effective one.

    Args:
        raw: The control message's data.

    Returns:
        The sender, without groups and pidfd, or None where the kernel did not know it: the datagram was queued before
        the receiver asked for credentials.
    """
    pid, uid, gid = _UCRED.unpack(raw)
    return None if pid == 0 and uid == _OVERFLOW_ID else Peer(pid, uid, gid)


def _read_groups(sock: socket.socket) -> tuple[int, ...]:
    for size in _GROUPS_SIZES:
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, size)
        except OSError as error:
            if error.errno != errno.ERANGE:
                return ()  # Linux before 4.13
        else:
            return struct.unpack(f"{len(raw) // 4}I", raw)
    return _read_groups_raw(sock)


def _read_groups_raw(sock: socket.socket) -> tuple[int, ...]:
    import ctypes

    buffer = (ctypes.c_uint32 * _MAX_GROUPS)()
    length = ctypes.c_uint32(ctypes.sizeof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, buffer, ctypes.byref(length)) != 0:
        # Left out, the groups can only make a rule admit less.
        return ()
    return tuple(buffer[: length.value // 4])


def _read_peer_bsd(sock: socket.socket) -> Peer:
    """Read struct xucred and the pid: SOL_LOCAL is 0, LOCAL_PEERCRED 1, LOCAL_PEERPID 2 (macOS only)."""
    raw = sock.getsockopt(0, 1, 76)
    _version, uid, count = struct.unpack_from("IIh", raw)
    groups = struct.unpack_from(f"{max(0, min(count, 16))}I", raw, 12)
    try:
        pid = sock.getsockopt(0, 2)
    except OSError:
        pid = 0
    return Peer(pid, uid, groups[0] if groups else _OVERFLOW_ID, tuple(groups[1:]), sock)


@dataclass(frozen=True, slots=True)
class Peers:
    """Say which peers are admitted: one that matches any uid or any gid.

    Names are looked up once, when the rule is made, so that a slow or failing directory service never decides about
    a connection.

    Attributes:
        uids: User ids, after construction also those of `users`.
        gids: Group ids, after construction also those of `groups`; the peer's effective group and its supplementary
            ones count.
        users: User names.
        groups: Group names.
    """

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    is_anyone: bool = field(default=False, kw_only=True)

    _ROOT: ClassVar[int] = 0

    def __init__(
        self,
        uids: Iterable[int] = (),
        gids: Iterable[int] = (),
        users: Iterable[str] = (),
        groups: Iterable[str] = (),
        *,
        is_anyone: bool = False,
    ) -> None:
        """Make a rule.

        Args:
            uids: User ids that are admitted.
            gids: Group ids whose members are admitted.
            users: User names that are admitted.
            groups: Group names whose members are admitted.
            is_anyone: Admit every peer; `Peers.anyone()` reads better.

        Raises:
            ValueError: A name is not known on this host, or a number cannot be an id.
            TypeError: A single string stands where a list of names belongs.
        """
        if isinstance(users, str) or isinstance(groups, str):
            raise TypeError("users and groups are lists of names: write users=['alice']")
        user_names, group_names = tuple(users), tuple(groups)
        set_field = object.__setattr__
        set_field(self, "uids", frozenset(map(checked_id, uids)) | frozenset(map(uid_of, user_names)))
        set_field(self, "gids", frozenset(map(checked_id, gids)) | frozenset(map(gid_of, group_names)))
        set_field(self, "users", user_names)
        set_field(self, "groups", group_names)
        set_field(self, "is_anyone", is_anyone)

    @classmethod
    def anyone(cls) -> Peers:
        """Return the rule that admits every peer."""
        return cls(is_anyone=True)

    @classmethod
    def same_user(cls) -> Peers:
        """Return the rule that admits this process's effective uid, and root."""
        return cls(uids=(os.geteuid(), cls._ROOT))

    def __or__(self, other: Peers) -> Peers:
        """Return the rule that admits whom either of the two admits."""
        if not isinstance(other, Peers):
            return NotImplemented
        rule = Peers(self.uids | other.uids, self.gids | other.gids, is_anyone=self.is_anyone or other.is_anyone)
        object.__setattr__(rule, "users", self.users + other.users)
        object.__setattr__(rule, "groups", self.groups + other.groups)
        return rule

    def refusal(self, peer: Peer) -> str | None:
        """Say why a peer is not admitted.

        Args:
            peer: Who it is.

        Returns:
            The reason in words, or None: the peer is admitted.
        """
        if self.is_anyone:
            return None
        if not peer.has_credentials:
            return f"the rule admits {self.describe()}, and over tcp: the kernel does not say who is calling"
        if peer.uid in self.uids:
            return None
        if self.gids and (peer.gid in self.gids or not self.gids.isdisjoint(peer.groups)):
            return None
        return f"uid {_user_text(peer.uid)} is not admitted: the rule admits {self.describe()}"

    def describe(self) -> str:
        """Return whom the rule admits, in words: `uid 0 (root), 1000 (alice)`."""
        if self.is_anyone:
            return "anyone"
        parts = []
        if self.uids:
            parts.append("uid " + ", ".join(_user_text(uid) for uid in sorted(self.uids)))
        if self.gids:
            parts.append("members of gid " + ", ".join(_group_text(gid) for gid in sorted(self.gids)))
        return " and ".join(parts) if parts else "nobody"


def default_rule(mode: int, owner_uid: int, group_gid: int) -> Peers:
    """Return the rule that says what a socket file's mode says, a second time.

    Connecting needs write permission. So the owner's bit admits the owner, the group's bit the members of the group,
    and the last one everybody; this process's own effective uid and root are always admitted.

    Args:
        mode: The file's permission bits.
        owner_uid: The file's owner.
        group_gid: The file's group.
    """
    if mode & 0o002:
        return Peers.anyone()
    own = Peers(uids=(os.geteuid(), 0, owner_uid))
    return own | Peers(gids=(group_gid,)) if mode & 0o020 else own


def checked_id(number: int, what: str = "") -> int:
    """Return a number that can be a user or group id.

    Args:
        number: The id.
        what: Whose it is, to begin the error's text.

    Raises:
        ValueError: It cannot.
    """
    # -1 means "no such id" to the kernel, and "leave it" to chown; True would silently be uid 1.
    if type(number) is not int or not 0 <= number < 0xFFFFFFFF:
        raise ValueError(f"{what} {number!r} is not a user or group id".lstrip())
    return number


def uid_of(name: str) -> int:
    """Return the id of a user.

    Raises:
        ValueError: This host knows no such user.
    """
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ValueError(f"user {name!r} does not exist on this host") from None


def gid_of(name: str) -> int:
    """Return the id of a group.

    Raises:
        ValueError: This host knows no such group.
    """
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ValueError(f"group {name!r} does not exist on this host") from None


# Cached: a refused peer must not be able to make us ask a directory service again and again.
@functools.lru_cache(maxsize=256)
def _user_text(uid: int) -> str:
    try:
        return f"{uid} ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return str(uid)


@functools.lru_cache(maxsize=256)
def _group_text(gid: int) -> str:
    try:
        return f"{gid} ({grp.getgrgid(gid).gr_name})"
    except KeyError:
        return str(gid)
