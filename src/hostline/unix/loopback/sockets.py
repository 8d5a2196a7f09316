"""Loopback sockets without waiting: listen on a port and tell it in a key file; begin and finish a connect.

Knows one host, this one. Who may talk is not decided here but by the proofs (protocol/challenge.py).
Sources: tcp(7), ip(7), socket(7).
"""

from __future__ import annotations

import errno
import os
import socket
import sys

from hostline.errors import AddressError, ConnectRefusedError, ConnectTimeoutError, PeerRefusedError, UnavailableError
from hostline.unix.credentials import Peers
from hostline.unix.listening import Bound, checked_backlog, prepare_runtime_directory
from hostline.unix.loopback.address import LoopbackAddress, endpoint_text
from hostline.unix.loopback.keyfile import KeyFile, new_key_file
from hostline.unix.loopback.portfile import PortFile
from hostline.unix.oserrors import printable, translate, translated

__all__ = [
    "begin_connect",
    "closed_early",
    "finish_connect",
    "loopback_listener",
    "not_proven",
    "open_loopback",
    "too_slow",
]


def open_loopback(host: str) -> socket.socket:
    """Return a new non-blocking, close-on-exec TCP socket that sends at once; it is the caller's.

    Raises:
        SocketError: This process has no free descriptor, or the host lacks the family.
    """
    with translated("socket", "stream", ""):
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            # A small call that follows a small call would otherwise wait for the acknowledgement of the first.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
    return sock


# --- listening ---------------------------------------------------------------------------------------


def loopback_listener(
    address: LoopbackAddress,
    *,
    mode: int | None = None,
    owner: int | str | None = None,
    group: int | str | None = None,
    backlog: int | None = None,
    allow: Peers | None = None,
) -> Bound:
    """Return a socket that listens on loopback TCP, its port and key told in a file that only this user can read.

    Args:
        address: Where.
        mode: As for a socket file; here nothing but 0600.
        owner: As for a socket file; here nothing.
        group: As for a socket file; here nothing.
        backlog: Connections that wait to be accepted.
        allow: Who may connect, so far as the key can tell.

    Returns:
        The socket and what belongs to it, `key` included; the caller closes it.

    Raises:
        ValueError: `backlog` is not a number of connections.
        AddressError: The key cannot keep the mode, the owner, the group or the rule that was asked for.
        AddressInUseError: A live server holds the key file, or the port.
        NotASocketError: Something else than a key file is there; it was not touched.
        SocketError: The kernel refused.
    """
    _check_options(address, mode, owner, group)
    _check_rule(address, allow)
    queue = checked_backlog(backlog, "stream")
    prepare_runtime_directory(address, 0o600)
    file = PortFile.claim(address.path, "stream")
    try:
        sock = _listening(address, queue)
        try:
            key = new_key_file(address.host, sock.getsockname()[1])
            file.publish(key)
        except BaseException:
            sock.close()
            raise
    except BaseException:
        file.release()
        raise
    return Bound(sock, address, "stream", Peers.same_user(), file, key)


def _listening(address: LoopbackAddress, backlog: int) -> socket.socket:
    sock = open_loopback(address.host)
    try:
        with translated("bind", "stream", address.text):
            if address.port is not None and sys.platform == "linux":
                # Connections of the last server that linger (TIME_WAIT) would keep the port from its successor for a
                # minute. On Linux this takes no port from anybody who listens, and nobody can take ours.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address.host, address.port or 0))
        with translated("listen", "stream", address.text):
            sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _check_options(address: LoopbackAddress, mode: int | None, owner: object, group: object) -> None:
    wide = mode is not None and mode != 0o600
    given = f"mode {mode:04o}" if wide else "an owner" if owner is not None else "a group" if group is not None else ""
    if given:
        reason = (
            f"the key file cannot have {given}: whoever can read the key can also pose as the server, so that it is "
            "0600 and its server's own; share a service between users by a Unix socket"
        )
        raise AddressError(address.text, reason)


def _check_rule(address: LoopbackAddress, allow: Peers | None) -> None:
    """Refuse a rule that is narrower than the key: who of those who can read it has come cannot be known."""
    if allow is None or allow.is_anyone or {0, os.geteuid()} <= allow.uids:
        return
    reason = (
        f"allow= admits {allow.describe()}, which cannot be checked: over tcp: the kernel does not say who connects, "
        f"and whoever can read the key is in (uid {os.geteuid()} and root); leave it out, or use a Unix socket"
    )
    raise AddressError(address.text, reason)


# --- connecting --------------------------------------------------------------------------------------


def begin_connect(sock: socket.socket, key: KeyFile, address: LoopbackAddress) -> bool:
    """Begin to connect; whether it is done already. Otherwise wait until the socket is writable and finish.

    Args:
        sock: A socket from `open_loopback`; it stays the caller's, also on failure.
        key: Where the server listens.
        address: For the error's text.

    Raises:
        ConnectRefusedError: Nobody listens on the port.
        SocketError: Another refusal.
    """
    try:
        sock.connect((key.host, key.port))
    except (BlockingIOError, InterruptedError):
        return False
    except OSError as error:
        raise _failed(error, key, address) from error
    _check_not_itself(sock, key, address)
    return True


def finish_connect(sock: socket.socket, key: KeyFile, address: LoopbackAddress) -> None:
    """Say how a connect ended whose socket has become writable.

    Raises:
        ConnectRefusedError: Nobody listens on the port.
        SocketError: Another refusal.
    """
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        error = OSError(number, os.strerror(number))
        raise _failed(error, key, address) from error
    _check_not_itself(sock, key, address)


def _check_not_itself(sock: socket.socket, key: KeyFile, address: LoopbackAddress) -> None:
    # With nobody listening, a socket whose own free port happens to be the one asked for connects to itself.
    try:
        is_itself = sock.getsockname() == sock.getpeername()
    except OSError as error:
        raise _failed(error, key, address) from error
    if is_itself:
        raise _failed(ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)), key, address)


def _failed(error: OSError, key: KeyFile, address: LoopbackAddress) -> OSError:
    if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET):
        where = endpoint_text(key.host, key.port)
        reason = f"a key file with nobody behind it; the server (pid {key.pid}) has ended, and {where} is free"
        return ConnectRefusedError("connect", "stream", str(address), error.errno, reason)
    return translate(error, "connect", "stream", printable(address.text))


def too_slow(address: LoopbackAddress, waited: float, *, is_connected: bool) -> ConnectTimeoutError:
    """Return the error for a server that did not answer in time.

    Args:
        address: Which.
        waited: Seconds since the first try.
        is_connected: Whether the kernel had connected, so that the proof did not come.
    """
    reason = "its proof of the key did not come" if is_connected else "its backlog stayed full"
    return ConnectTimeoutError("connect", "stream", str(address), None, f"{reason} within {waited:.3f} seconds")


def closed_early(address: LoopbackAddress) -> UnavailableError:
    """Return the error for a server that closed before it proved the key."""
    return UnavailableError(f"the server at {address} closed the connection before its proof of the key", True)


def not_proven(address: LoopbackAddress, key: KeyFile, why: Exception) -> PeerRefusedError:
    """Return the error for something on the port that does not know the key."""
    where = endpoint_text(key.host, key.port)
    return PeerRefusedError(
        f"what answers on {where} is not the server that wrote {printable(address.path)} ({why}): another program has "
        "taken its port; nothing was sent to it"
    )
