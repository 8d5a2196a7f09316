"""What a piece of code left behind: descriptors, threads and child processes, before and after.

Two snapshots are compared by what the kernel says a descriptor is; only what is reported is looked at more closely.
Knows nothing of pytest. Child processes are seen on Linux only.
"""

from __future__ import annotations

import gc
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any, Final

from hostline.unix.oserrors import file_kind, printable

__all__ = [
    "GRACE",
    "Snapshot",
    "child_processes",
    "command_line",
    "describe_descriptor",
    "open_descriptors",
    "wait_until",
]

# Seconds that threads and processes which were told to end get to do so.
GRACE: Final = 2.0
_INTERVAL: Final = 0.005

_KINDS: Final = {socket.SOCK_STREAM: "stream", socket.SOCK_DGRAM: "datagram", socket.SOCK_SEQPACKET: "seqpacket"}


@dataclass(frozen=True)
class Snapshot:
    """Hold what this process owns at one moment.

        before = Snapshot.take()
        ...
        assert before.what_is_left() == []

    Attributes:
        descriptors: What each open descriptor points to, as the kernel names it.
        threads: The threads that run.
        children: The process ids of the children, zombies among them.
    """

    descriptors: dict[int, str]
    threads: frozenset[threading.Thread]
    children: frozenset[int]

    @classmethod
    def take(cls) -> Snapshot:
        """Return what this process owns now, but for the helper that multiprocessing starts once and keeps."""
        tracker: Any = getattr(resource_tracker, "_resource_tracker", None)
        kept_fd, kept_pid = getattr(tracker, "_fd", None), getattr(tracker, "_pid", None)
        return cls(
            {fd: target for fd, target in open_descriptors().items() if fd != kept_fd},
            frozenset(threading.enumerate()),
            frozenset(child_processes() - {kept_pid}),
        )

    def differences(self, later: Snapshot) -> list[str]:
        """Return one line for each thing that `later` has too much, and for each descriptor it lost."""
        found = []
        for fd, target in sorted(later.descriptors.items()):
            before = self.descriptors.get(fd)
            if before is None:
                found.append(f"descriptor {fd} left open: {describe_descriptor(fd, target)}")
            elif before != target:
                now = describe_descriptor(fd, target)
                found.append(f"descriptor {fd} left open: {now}, where before the test there was {printable(before)}")
        found += [
            f"descriptor {fd} closed, though the test did not open it: {printable(target)}"
            for fd, target in sorted(self.descriptors.items())
            if fd not in later.descriptors
        ]
        threads = sorted(thread.name for thread in later.threads - self.threads)
        found += [f"thread left running: {name}" for name in threads]
        found += [
            f"child process left behind: pid {pid} {command_line(pid)}"
            for pid in sorted(later.children - self.children)
        ]
        return found

    def what_is_left(self, grace: float = GRACE) -> list[str]:
        """Return the differences that remain after a collection of garbage and a bounded wait.

        Args:
            grace: Seconds that what was told to end gets to do so.
        """
        found = self.differences(Snapshot.take())
        if found:
            gc.collect()
            wait_until(lambda: not self.differences(Snapshot.take()), grace)
            found = self.differences(Snapshot.take())
        return found


# --- descriptors -------------------------------------------------------------------------------------


def open_descriptors() -> dict[int, str]:
    """Return every open descriptor of this process with what it points to."""
    directory = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    found = {}
    for name in os.listdir(directory):
        try:
            found[int(name)] = _target(int(name), directory)
        except OSError:
            continue  # the descriptor of the listing itself
    return found


def _target(fd: int, directory: str) -> str:
    if directory == "/proc/self/fd":
        return os.readlink(f"{directory}/{fd}")
    status = os.fstat(fd)  # elsewhere the kernel has no name for it
    return f"{file_kind(status.st_mode)} {status.st_dev}:{status.st_ino}"


def describe_descriptor(fd: int, target: str) -> str:
    """Return what a descriptor is, in words.

    Args:
        fd: It stays its owner's and stays open.
        target: What `open_descriptors` says of it.

    Returns:
        For a socket its kind, whether it listens, and its addresses; for anything else the target.
    """
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return printable(target)
        copy = os.dup(fd)
        try:
            sock = socket.socket(fileno=copy)
        except OSError:
            os.close(copy)
            raise
        with sock:
            return f"{_describe_socket(sock)} ({printable(target)})"
    except OSError:
        return printable(target)  # closed in this moment, or of a kind without addresses


def _describe_socket(sock: socket.socket) -> str:
    words = [
        getattr(sock.family, "name", f"family {sock.family}"),
        _KINDS.get(sock.type, f"type {sock.type}"),
        "socket",
    ]
    if sock.type != socket.SOCK_DGRAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        words.append("that listens")
    if own := _address(sock.getsockname()):
        words.append(f"at {own}")
    try:
        peer = sock.getpeername()
    except OSError:
        return " ".join(words)
    words.append(f"connected to {_address(peer) or 'an unnamed socket'}")
    return " ".join(words)


def _address(name: Any) -> str:
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if isinstance(name, str):
        return printable(f"@{name[1:]}" if name.startswith("\0") else name)
    return ":".join(str(part) for part in name[:2]) if isinstance(name, tuple) else str(name or "")


# --- processes ---------------------------------------------------------------------------------------


def child_processes() -> set[int]:
    """Return the process ids of this process's children, zombies among them."""
    children: set[int] = set()
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:
        return children  # no Linux: there is no cheap way to know
    for thread in threads:
        try:
            with open(f"/proc/self/task/{thread}/children", encoding="ascii") as listing:
                children.update(int(pid) for pid in listing.read().split())
        except OSError:
            continue  # the thread has ended, or the kernel was built without the file
    return children


def command_line(pid: int) -> str:
    """Return the command of a process, for a message."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "(gone)"
    return printable(words) or "(a zombie: nobody waited for it)"


def wait_until(condition: Callable[[], object], timeout: float = 5.0, interval: float = _INTERVAL) -> bool:
    """Poll `condition` until it is true or `timeout` seconds have passed; return whether it became true."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(interval)
    return True
