"""Hand a listening socket, with its file and its lock, from the process that owns them to the one that comes after.

Two processes that both have the socket share one queue of waiting connections, so nobody is refused while it changes
hands. The owner is asked on a control socket beside its own: `PATH.control`, mode 0600, or the abstract name with
`.control` behind it. It needs no lock of its own: whoever holds the socket's lock may bind there.

Knows which descriptors travel and how each is verified; what is said on the control socket, and when either side is the
owner, is decided in `protocol/takeover.py`. Sources: unix(7), flock(2).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat

from hostline.errors import AddressInUseError, HostlineError, SocketError
from hostline.unix.activation import socket_problem
from hostline.unix.address import AbstractAddress, Address, InheritedAddress, PathAddress, SocketType, within_directory
from hostline.unix.credentials import Peer, Peers, default_rule, read_peer
from hostline.unix.holders import close_in_child, fork_held_back
from hostline.unix.listening import Bound, checked_backlog, checked_file_options, listening_socket
from hostline.unix.options import allow_credentials, forget_options
from hostline.unix.oserrors import printable, translate, translated
from hostline.unix.passing.ancillary import Received, recv_message
from hostline.unix.passing.descriptors import Fd, close_all
from hostline.unix.socketfile import SocketFile
from hostline.unix.sockets import open_socket, prepare_connection

__all__ = ["MAX_HANDED_FDS", "Successor", "control_address", "control_socket", "has_ended", "own", "recv_handed"]

# The listening socket, and the lock where there is a file.
MAX_HANDED_FDS = 2

_SUFFIX = ".control"


def control_address(address: Address) -> PathAddress | AbstractAddress | None:
    """Return where the owner of an address can be asked for it; None for an inherited socket, which is not ours.

    Whoever lent an inherited socket keeps it open, so that a restart loses nothing anyway.
    """
    if isinstance(address, InheritedAddress):
        return None
    if isinstance(address, AbstractAddress):
        return AbstractAddress(address.name + _SUFFIX.encode())
    return PathAddress(address.path + _SUFFIX)


def control_socket(bound: Bound) -> Bound | None:
    """Return the socket on which a successor asks for another one, or None where it cannot be handed over.

    Args:
        bound: What may be handed over; it stays the caller's.

    Returns:
        A listening stream socket for this user and root only; the caller closes it.

    Raises:
        AddressError: The name with `.control` behind it is too long.
        SocketError: It cannot be made there.
    """
    address = control_address(bound.address)
    if isinstance(address, AbstractAddress):
        return listening_socket(address, "stream")
    owned = bound.owned()
    if address is None or owned is None:
        return None
    file = SocketFile.claim(address.path, "stream", has_lock=False)
    try:
        dirfd, _ = file.within("")
        if not os.path.sameopenfile(dirfd, owned.dirfd):
            raise SocketError("bind", "stream", printable(address.path), None, "the directory was replaced")
        sock = open_socket("stream")
        file.bind(sock)
        sock.listen(8)
        file.widen()
    except BaseException:
        file.release()
        raise
    return Bound(sock, address, "stream", Peers.same_user(), file)


class Successor:
    """Ask the owner of an address for its socket, and check what it gives.

    Nothing is owned before `own`, so that a failure leaves everything with the last owner.

    Args:
        address: What is to be taken over: a path or an abstract name.
        socket_type: Its type.
        mode: Permission bits that the file is expected to have; None for any.
        owner: The user that it is expected to belong to; None for any.
        group: The group that it is expected to belong to; None for any.

    Raises:
        ValueError: As for `listening_socket`.
        AddressError: As for `listening_socket`.
        SocketError: The directory is not there, or not safe.
    """

    def __init__(
        self,
        address: PathAddress | AbstractAddress,
        socket_type: SocketType = "stream",
        *,
        mode: int | None = None,
        owner: int | str | None = None,
        group: int | str | None = None,
    ) -> None:
        self.address = address
        self.socket_type: SocketType = socket_type
        self._expected = (mode, *checked_file_options(address, mode, owner, group))
        self._file = SocketFile.visit(address.path, socket_type) if isinstance(address, PathAddress) else None

    def connect(self) -> tuple[socket.socket, Peer] | None:
        """Return a connection to the owner, non-blocking, and who it is; None: nobody offers the address.

        Raises:
            BlockingIOError: The owner is busy with others; try again.
            PeerRefusedError: Somebody else than this user and root offers it.
            SocketError: It cannot be told.
        """
        control = control_address(self.address)
        if control is None:
            return None
        if isinstance(control, AbstractAddress):
            where = b"\0" + control.name
        elif self._file is None:
            return None
        else:
            dirfd, path = self._file.within(os.path.basename(control.path))
            where = within_directory(path, dirfd)
        sock = open_socket("stream", max_fds=MAX_HANDED_FDS)
        try:
            sock.connect(where)
            return sock, read_peer(sock)
        except BlockingIOError:
            sock.close()
            raise
        except OSError as error:
            sock.close()
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                return None
            raise translate(error, "connect", "stream", control.text) from error
        except BaseException:
            sock.close()
            raise

    def adopt(self, fds: list[Fd], identity: tuple[int, int]) -> Bound:
        """Return what the owner gave, verified; it is the owner's still, until `own`.

        Args:
            fds: The listening socket, and the lock if there is a file. They belong to this object from now on, also
                when this fails.
            identity: Device and inode of the file, as the owner knows them.

        Raises:
            SocketError: It is not what was asked for; the text says what differs.
            AddressInUseError: The file has another mode, owner or group than is wanted.
        """
        wanted = 1 if self._file is None else 2
        if len(fds) != wanted:
            close_all(fds)
            raise self._refused(f"{len(fds)} descriptors came where {wanted} belong")
        try:
            sock = self._socket_of(fds[0])
        except BaseException:
            close_all(fds)
            raise
        if self._file is None:
            return Bound(sock, self.address, self.socket_type, Peers.same_user())
        file, self._file = self._file, None
        try:
            status = file.adopt(sock, fds[1], identity)
            self._check_expected(status)
        except BaseException:
            file.release()
            raise
        rule = default_rule(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
        return Bound(sock, self.address, self.socket_type, rule, file)

    def _socket_of(self, fd: Fd) -> socket.socket:
        with translated("take over", self.socket_type, self.address.text):
            sock = socket.socket(fileno=fd.fileno())
            fd.detach()
        try:
            problem = socket_problem(sock, self.socket_type) or self._name_problem(sock)
            if problem:
                raise self._refused(f"the socket that was given {problem}")
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        return sock

    def _name_problem(self, sock: socket.socket) -> str:
        name = sock.getsockname()
        if isinstance(self.address, AbstractAddress):
            ours: str | bytes = b"\0" + self.address.name
            is_ours = name == ours
        else:
            # The directory may have another path where it was bound; its file is compared by inode.
            is_ours = isinstance(name, str) and os.path.basename(name) == os.path.basename(self.address.path)
            is_ours = is_ours or not hasattr(os, "O_PATH")  # bound elsewhere and renamed
        return "" if is_ours else f"is bound to {printable(name)}"

    def _check_expected(self, status: os.stat_result) -> None:
        found = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
        if all(want in (None, have) for want, have in zip(self._expected, found, strict=True)):
            return
        mode, uid, gid = self._expected
        asked = [f"mode {mode:04o}"] if mode is not None else []
        asked += [f"{what} {number}" for what, number in (("uid", uid), ("gid", gid)) if number is not None]
        reason = (
            f"a takeover leaves the file as it is, mode {found[0]:04o} uid {found[1]} gid {found[2]}, and "
            f"{', '.join(asked)} is asked for; stop the running server first"
        )
        raise AddressInUseError("take over", self.socket_type, printable(self.address.text), errno.EADDRINUSE, reason)

    def _refused(self, reason: str) -> SocketError:
        return SocketError("take over", self.socket_type, printable(self.address.text), None, reason)

    def close(self) -> None:
        """Let go of the directory; what was adopted is the caller's."""
        if self._file is not None:
            self._file.release()


def recv_handed(sock: socket.socket, size: int) -> Received:
    """Receive from an owner; a forked child of another thread will not keep what comes.

    Raises:
        BlockingIOError: Nothing is there.
        HostlineError: As from `recv_message`.
    """
    with fork_held_back():
        received = recv_message(sock, size, MAX_HANDED_FDS)
        close_in_child(received.fds)
    return received


def own(bound: Bound, *, backlog: int | None = None, max_fds: int = 0, credentials: bool = False) -> None:
    """Be the owner of what was adopted, as if it had been bound here; never fails, for nobody else owns it.

    Args:
        bound: From `Successor.adopt`.
        backlog: As for `listening_socket`.
        max_fds: As for `listening_socket`.
        credentials: As for `listening_socket`.
    """
    bound.own()
    try:
        forget_options(bound.sock)
        prepare_connection(bound.sock, bound.socket_type, max_fds)
        if credentials:
            allow_credentials(bound.sock)
        if bound.socket_type != "datagram":
            # Once more: from here on the kernel names this process to clients, and to ss, as the one that listens.
            bound.sock.listen(checked_backlog(backlog, bound.socket_type))
    except (OSError, HostlineError):
        return  # somebody shut the socket down; whoever accepts will be told


def has_ended(peer: Peer) -> bool:
    """Whether the process at the other side of a connection has ended; False where the kernel has no pidfd for it."""
    fd = peer.pidfd
    if fd is None:
        return False
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))
