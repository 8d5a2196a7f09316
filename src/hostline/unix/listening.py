"""A listening socket from an address: on a socket file, under an abstract name, or inherited.

Knows the order of the steps and what an address allows. What the steps do is in `socketfile.py`; waiting for peers
is the faces' work.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

from hostline.errors import AddressError
from hostline.limits import DEFAULT_BACKLOG, DEFAULT_MODE
from hostline.unix.activation import inherited_socket
from hostline.unix.address import (
    AbstractAddress,
    Address,
    InheritedAddress,
    LoopbackAddress,
    PathAddress,
    SocketType,
    runtime_directory,
)
from hostline.unix.credentials import Peers, checked_id, default_rule, gid_of, uid_of
from hostline.unix.holders import in_use, probe
from hostline.unix.options import allow_credentials, check_unix, checked_type, forget_options
from hostline.unix.oserrors import translated
from hostline.unix.socketfile import Owned, SocketFile
from hostline.unix.sockets import open_socket, prepare_connection

if TYPE_CHECKING:
    from hostline.unix.loopback.keyfile import KeyFile

__all__ = ["Bound", "checked_backlog", "checked_file_options", "listening_socket", "prepare_runtime_directory"]


class Bound:
    """Own a listening (for datagrams: a bound) socket, and its socket file where it has one.

    A forked child may go on using the socket, as servers that fork their workers do; the file and its lock stay the
    parent's.

    Attributes:
        sock: The socket: non-blocking and close-on-exec. It stays this object's own.
        address: Where it is reached.
        socket_type: `stream`, `seqpacket` or `datagram`.
        rule: Whom the file's mode admits, said a second time; for abstract names this user and root.
        is_inherited: Whether it came from the process that started us, to which the file belongs too.
        key: The port and key of a loopback listener, whose connections must prove it; otherwise None.
    """

    __slots__ = ("_file", "address", "is_inherited", "key", "rule", "sock", "socket_type")

    def __init__(
        self,
        sock: socket.socket,
        address: Address,
        socket_type: SocketType,
        rule: Peers,
        file: SocketFile | None = None,
        key: KeyFile | None = None,
    ) -> None:
        """Take over a socket and its file.

        Args:
            sock: A listening socket, or a bound one where it is a datagram socket.
            address: Where it is reached.
            socket_type: Its type.
            rule: Who is admitted unless the caller says otherwise.
            file: Its socket file, or None where there is none or it is not ours.
            key: What its key file says, where it has one.
        """
        self.sock = sock
        self.address = address
        self.socket_type = socket_type
        self.rule = rule
        self.is_inherited = isinstance(address, InheritedAddress)
        self.key = key
        self._file = file

    def close(self) -> None:
        """Unlink the socket file if it is still ours, close the socket, let go of the lock; more than once is fine."""
        if self._file is not None:
            self._file.release()
        self.sock.close()

    def owned(self) -> Owned | None:
        """Return what there is of a socket file to hand over; None where there is none of ours."""
        return None if self._file is None else self._file.owned()

    def own(self) -> None:
        """Own the file that was adopted, from now on; its last owner has given it up."""
        if self._file is not None:
            self._file.own()

    def give_up(self) -> None:
        """Let go of the file and the lock, for another process owns them now; the socket stays open here."""
        if self._file is not None:
            self._file.abandon()

    def unlink(self) -> None:
        """Unlink the socket file if it is still ours, so that nobody new connects; the socket and the lock stay."""
        if self._file is not None:
            self._file.unlink()

    def abandon(self) -> None:
        """Let go of the lock without unlinking, and close the socket here.

        For a forked child that does not serve: while it holds the socket, the address looks alive. The parent's socket
        is another descriptor and goes on.
        """
        if self._file is not None:
            self._file.abandon()
        self.sock.close()

    def __repr__(self) -> str:
        return f"<Bound {self.socket_type} {self.address}{' closed' if self.sock.fileno() < 0 else ''}>"


def listening_socket(
    address: Address,
    socket_type: SocketType = "stream",
    *,
    mode: int | None = None,
    owner: int | str | None = None,
    group: int | str | None = None,
    backlog: int | None = None,
    max_fds: int = 0,
    credentials: bool = False,
) -> Bound:
    """Return a socket that listens at an address, or receives there if it is a datagram socket.

    Args:
        address: Where, from `parse_address`.
        socket_type: `stream`, `seqpacket` or `datagram`.
        mode: Permission bits of the socket file; 0600 unless given.
        owner: User name or id that the file is given to.
        group: Group name or id that the file is given to.
        backlog: Connections that wait to be accepted; as many as the host allows unless given.
        max_fds: 0 has the kernel refuse descriptors sent to this socket and to those accepted from it, where it can.
        credentials: Whether each datagram comes with its sender's credentials.

    Returns:
        The socket and what belongs to it; the caller closes it.

    Raises:
        ValueError: The mode or the backlog is out of range, or there is no such user or group.
        AddressError: The address has no mode or owner, or cannot let in those whom the mode lets in; or an inherited
            socket is not what was asked for.
        SocketError: The kernel refused; see `SocketFile` for the subclasses.
    """
    check_unix(address)
    checked_type(socket_type)
    uid, gid = checked_file_options(address, mode, owner, group)
    backlog = checked_backlog(backlog, socket_type)
    if isinstance(address, InheritedAddress):
        return _inherited(address, socket_type, max_fds, credentials)
    if isinstance(address, AbstractAddress):
        return _at_abstract_name(address, socket_type, backlog, max_fds, credentials)
    wanted = DEFAULT_MODE if mode is None else mode
    prepare_runtime_directory(address, wanted)
    file = SocketFile.claim(address.path, socket_type)
    try:
        sock = _prepared_socket(socket_type, max_fds, credentials)
        file.bind(sock, wanted, uid, gid)
        _listen(sock, socket_type, backlog, address)
        status = file.widen()
        rule = default_rule(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
        return Bound(sock, address, socket_type, rule, file)
    except BaseException:
        file.release()
        raise


def _prepared_socket(socket_type: SocketType, max_fds: int, credentials: bool) -> socket.socket:
    """Return a new socket with every option that must be right before the first peer can reach it."""
    sock = open_socket(socket_type, max_fds=max_fds)
    try:
        if credentials:
            allow_credentials(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _listen(sock: socket.socket, socket_type: SocketType, backlog: int, address: Address) -> None:
    if socket_type != "datagram":
        with translated("listen", socket_type, address.text):
            sock.listen(backlog)


def _at_abstract_name(
    address: AbstractAddress, socket_type: SocketType, backlog: int, max_fds: int, credentials: bool
) -> Bound:
    sockaddr = b"\0" + address.name
    sock = _prepared_socket(socket_type, max_fds, credentials)
    try:
        with translated("bind", socket_type, address.text):
            try:
                sock.bind(sockaddr)
            except OSError as error:
                holder = probe(sockaddr, socket_type, address.text) if error.errno == errno.EADDRINUSE else None
                if holder is None:
                    raise
                raise in_use(socket_type, address.text, f"the name is taken by {holder}", holder) from error
        _listen(sock, socket_type, backlog, address)
        return Bound(sock, address, socket_type, Peers.same_user())
    except BaseException:
        sock.close()
        raise


def _inherited(address: InheritedAddress, socket_type: SocketType, max_fds: int, credentials: bool) -> Bound:
    sock = inherited_socket(address, socket_type)
    try:
        forget_options(sock)
        prepare_connection(sock, socket_type, max_fds)
        if credentials:
            allow_credentials(sock)
        return Bound(sock, address, socket_type, _rule_of_inherited(sock))
    except BaseException:
        sock.close()
        raise


def _rule_of_inherited(sock: socket.socket) -> Peers:
    """Return what the mode of an inherited socket's file says; this user and root where nothing sure can be read.

    The name is looked up again, so it is believed only where nobody but root and this user could have put another file
    there; otherwise a stranger's file of mode 0666 would open our socket to everybody.
    """
    name = sock.getsockname()
    if not isinstance(name, str) or not os.path.isabs(name):
        return Peers.same_user()
    trusted = (0, os.geteuid())
    try:
        file, directory = os.lstat(name), os.lstat(os.path.dirname(name))
    except OSError:
        return Peers.same_user()
    is_private = directory.st_uid in trusted and not directory.st_mode & 0o022
    if not stat.S_ISSOCK(file.st_mode) or not (is_private or file.st_uid in trusted):
        return Peers.same_user()
    return default_rule(stat.S_IMODE(file.st_mode), file.st_uid, file.st_gid)


# --- what the address and the caller allow -------------------------------------------------------------


def _check_mode(mode: int | None) -> None:
    if mode is None:
        return
    is_number = type(mode) is int  # True would be mode 0001
    if not is_number or not 0 <= mode <= 0o777:
        shown = f"{mode:#o}" if is_number else repr(mode)
        raise ValueError(f"mode {shown} must be permission bits from 0 to 0o777, such as 0o660")


def checked_file_options(
    address: Address, mode: int | None, owner: int | str | None, group: int | str | None
) -> tuple[int | None, int | None]:
    """Return the user and group id that a socket file is asked to have; errors as for `listening_socket`."""
    _check_mode(mode)
    if isinstance(address, AbstractAddress | InheritedAddress):
        _refuse_file_options(address, mode=mode, owner=owner, group=group)
    uid = uid_of(owner) if isinstance(owner, str) else None if owner is None else checked_id(owner, "owner")
    gid = gid_of(group) if isinstance(group, str) else None if group is None else checked_id(group, "group")
    return uid, gid


def checked_backlog(backlog: int | None, socket_type: SocketType) -> int:
    """Return how long the queue of `listen` is to be; errors as for `listening_socket`."""
    if backlog is None:
        return DEFAULT_BACKLOG
    if socket_type == "datagram":
        raise ValueError(f"backlog {backlog}: a datagram socket has none")
    if type(backlog) is not int or not 0 <= backlog <= 0x7FFFFFFF:
        raise ValueError(f"backlog {backlog!r} must be zero or more connections")
    return backlog


def _refuse_file_options(address: AbstractAddress | InheritedAddress, **options: object) -> None:
    given = [name for name, value in options.items() if value is not None]
    if not given:
        return
    if isinstance(address, AbstractAddress):
        reason = f"an abstract name has no {given[0]}: any local process may connect, and peers are checked; use a path"
    else:
        reason = f"{given[0]} cannot be set on an inherited socket: its file belongs to whoever made it"
    raise AddressError(address.text, reason)


def prepare_runtime_directory(address: PathAddress | LoopbackAddress, mode: int) -> None:
    """Make the runtime directory if the address lies in it; refuse a mode for people whom its own mode keeps out.

    Raises:
        AddressError: The mode would let in others.
        UnsafeDirectoryError: The directory is not private.
    """
    directory = os.path.dirname(address.path)
    if not os.path.isabs(directory):
        return
    try:
        private = runtime_directory(create=False)
    except (AddressError, OSError):
        return  # there is none to use, so the address cannot be a bare name, which would have failed earlier
    if directory != private:
        return
    if mode & 0o077:
        reason = (
            f"mode {mode:04o} would let in others, but bare names live in {private}, which only this user can enter; "
            "write a path in a directory that they can enter"
        )
        raise AddressError(address.text, reason)
    runtime_directory()
