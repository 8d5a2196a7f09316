"""A subject for the tests of the table: right in every respect unless a knob below is turned.

The tests copy this file and append the knobs they turn, so that every verdict of every probe is seen to be reachable.
It is written on bare sockets and shares nothing with hostline but the names of the interface.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import stat
import struct
import time
from collections.abc import Callable

from hostline.conformance.subjects import Received

MODE: int | None = 0o600  # None: what the umask leaves
STARTS: bool | None = True  # None: neither starts nor fails
HANGS = False  # where something lies at the path
RECLAIMS = "dead"  # never | dead | socket (also a live one) | anything
FOLLOWS = False  # judges what a symlink points to
LOCKS = True
NAMES_HOLDER = True
UNLINKS = "own"  # own | always | never
STOPS = True  # on SIGTERM
SPOILS = ""  # what a failing start does to an ordinary file: overwrites | deletes
LONG = "works"  # works | names | vague | elsewhere | hangs
DIES_OF_SECOND = False  # a failing second start kills the first
CONNECT = "waits"  # waits | unconnected | claims | at once | spins | hangs | spins on | other error
FDS = "strict"  # strict | inheritable | silent | told | leaks | none
PACKETS = "strict"  # strict | silent | told | whole


# --- the server ---------------------------------------------------------------------------------------


def serve(path: str, ready: Callable[[], None]) -> None:
    if STARTS is None:
        time.sleep(60)
    if not STARTS:
        raise RuntimeError("planted failure")
    lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if LOCKS:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _refuse(path)
        _make_way(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            _bind(listener, path)
            inode = os.lstat(path).st_ino if LONG == "works" or len(path) < 100 else 0
            if not STOPS:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            try:
                ready()
                _answer(listener)
            finally:
                if UNLINKS == "always" or (UNLINKS == "own" and os.lstat(path).st_ino == inode):
                    os.unlink(path)
    finally:
        os.close(lock)


def _make_way(path: str) -> None:
    if HANGS and os.path.lexists(path):
        time.sleep(60)
    try:
        mode = (os.stat if FOLLOWS else os.lstat)(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISREG(mode) and SPOILS == "overwrites":
        with open(path, "r+b") as file:
            file.write(b"log started")
    if stat.S_ISREG(mode) and SPOILS == "deletes":
        os.unlink(path)
        raise ValueError("not a socket")
    if RECLAIMS == "anything" or (RECLAIMS == "socket" and stat.S_ISSOCK(mode)):
        os.unlink(path)
    elif RECLAIMS == "dead" and stat.S_ISSOCK(mode):
        if _is_live(path):
            _refuse(path)
        if not LOCKS:
            time.sleep(0.01)  # the window that a lock would close
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    elif not stat.S_ISSOCK(mode):
        raise ValueError(f"{path} is not a socket")


def _is_live(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == 0


def _holder(path: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.connect(path)
        return int(struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def _refuse(path: str) -> None:
    with contextlib.suppress(OSError):
        if DIES_OF_SECOND:
            os.kill(_holder(path), signal.SIGKILL)
        if NAMES_HOLDER:
            raise RuntimeError(f"held by pid {_holder(path)}")
    raise OSError(errno.EADDRINUSE, "in use")


def _bind(listener: socket.socket, path: str) -> None:
    if MODE is not None:
        os.fchmod(listener.fileno(), MODE)
    if len(path) < 100:
        listener.bind(path)
    elif LONG == "works":
        directory = os.open(os.path.dirname(path), os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
        os.close(directory)
    elif LONG == "elsewhere":
        listener.bind(path[:100])
    elif LONG == "hangs":
        time.sleep(60)
    else:
        raise OSError("path longer than 107 bytes" if LONG == "names" else "bad address")
    listener.listen()


def _answer(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(ConnectionError):
            connection.sendall(str(os.getpid()).encode())


# --- the client ---------------------------------------------------------------------------------------


def _open(path: str, timeout: float, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, kind)
    client.settimeout(timeout)
    if len(path) < 100:
        client.connect(path)
    else:
        directory = os.open(os.path.dirname(path), os.O_RDONLY)
        client.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
        os.close(directory)
    return client


def ask(path: str, timeout: float) -> str:
    with _open(path, timeout) as client:
        return client.recv(64).decode()


def connect(path: str, timeout: float) -> int | None:
    if CONNECT == "unconnected":
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()
    if CONNECT == "claims":
        return None
    if CONNECT == "at once":
        raise BlockingIOError(errno.EAGAIN, "try again")
    if CONNECT == "hangs":
        time.sleep(60)
    until = time.monotonic() + (60 if CONNECT == "spins on" else timeout)
    while time.monotonic() < until:
        if not CONNECT.startswith("spins"):
            select.select([], [], [], 0.02)
    if CONNECT == "other error":
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    raise TimeoutError("backlog full")


def receive_fds(path: str, max_fds: int, timeout: float) -> Received:
    with _open(path, timeout) as client:
        flags = 0 if FDS == "inheritable" else socket.MSG_CMSG_CLOEXEC
        data, control, _, _ = client.recvmsg(64, 1024, flags)
        fds = array.array("i")
        for _, _, content in control:
            fds.frombytes(content)
    kept, rest = list(fds[:max_fds]), list(fds[max_fds:])
    if FDS == "none":
        rest, kept = list(fds), []
    if rest and FDS == "leaks":
        raise ValueError("too many")
    for fd in rest:
        os.close(fd)
    if rest and FDS == "strict":
        for fd in kept:
            os.close(fd)
        raise ValueError("too many")
    return Received(data, kept, "a flag" if rest and FDS == "told" else "")


def receive_packet(path: str, size: int, timeout: float) -> Received:
    with _open(path, timeout, socket.SOCK_SEQPACKET) as client:
        data, _, flags, _ = client.recvmsg(4096 if PACKETS == "whole" else size)
    if PACKETS == "strict" and flags & socket.MSG_TRUNC:
        raise ValueError("cut")
    return Received(data, told="a flag" if PACKETS == "told" else "")
