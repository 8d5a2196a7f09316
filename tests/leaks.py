"""What a test may not leave behind: descriptors, threads, child processes and hostline's socket files."""

from __future__ import annotations

import gc
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

# Seconds that threads and processes which were told to end get to do so.
GRACE = 2.0


@dataclass(frozen=True)
class Snapshot:
    """Hold what this process owns at one moment."""

    descriptors: dict[int, str]
    threads: frozenset[threading.Thread]
    children: frozenset[int]

    @classmethod
    def take(cls) -> Snapshot:
        """Return what this process owns now."""
        tracker: Any = resource_tracker._resource_tracker
        return cls(
            {fd: target for fd, target in open_descriptors().items() if fd != tracker._fd},
            frozenset(threading.enumerate()),
            frozenset(child_processes() - {tracker._pid}),
        )

    def differences(self, later: Snapshot) -> list[str]:
        """Return one line for each thing that `later` has too much, and for each descriptor it lost."""
        found = [
            f"descriptor {fd} left open: {target}"
            for fd, target in sorted(later.descriptors.items())
            if self.descriptors.get(fd) != target
        ]
        found += [
            f"descriptor {fd} closed, though the test did not open it: {target}"
            for fd, target in sorted(self.descriptors.items())
            if fd not in later.descriptors
        ]
        found += [f"thread left running: {thread.name}" for thread in later.threads - self.threads]
        found += [
            f"child process left behind: pid {pid} {command_line(pid)}"
            for pid in sorted(later.children - self.children)
        ]
        return found

    def what_is_left(self, grace: float = GRACE) -> list[str]:
        """Return the differences that remain after a collection of garbage and a bounded wait."""
        found = self.differences(Snapshot.take())
        if found:
            gc.collect()
            wait_until(lambda: not self.differences(Snapshot.take()), grace)
            found = self.differences(Snapshot.take())
        return found


def open_descriptors() -> dict[int, str]:
    """Return every open descriptor of this process with what it points to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the descriptor of the listing itself
    return found


def child_processes() -> set[int]:
    """Return the process ids of this process's children, zombies among them."""
    children: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
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
            return (
                file.read().replace(b"\0", b" ").decode(errors="replace").strip() or "(a zombie: nobody waited for it)"
            )
    except OSError:
        return "(gone)"


def stray_socket_files(directory: Path) -> list[str]:
    """Return the socket files that hostline bound in `directory` and did not unlink.

    hostline's own are told from those that a test planted by the lock file beside them.
    """
    return [
        str(path)
        for path in sorted(directory.rglob("*"))
        if stat.S_ISSOCK(path.lstat().st_mode) and path.with_name(path.name + ".lock").exists()
    ]


def wait_until(condition: Callable[[], object], timeout: float = 5.0, interval: float = 0.005) -> bool:
    """Poll `condition` until it is true or `timeout` seconds have passed; return whether it became true."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(interval)
    return True
