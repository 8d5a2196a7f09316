"""Hand a file over by descriptor, on a raw seqpacket socket beside the payment service.

The file has no name in any directory and no permission bit for anybody: whoever holds a descriptor reads it, and
nobody else can.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
from types import TracebackType
from typing import Self

import msgspec

from hostline.demo.journal import Journal
from hostline.errors import ClosedError, HostlineError
from hostline.sync.connection import Connection
from hostline.sync.sockets import listen
from hostline.unix.passing.descriptors import Fd

__all__ = ["REQUEST", "Counter", "FileFacts", "file_facts"]

# What somebody sends who wants the day's receipts.
REQUEST = b"receipts"

# Seconds for a visitor of the counter to say what he wants.
_PATIENCE = 5.0

_log = logging.getLogger("hostline.demo")


class FileFacts(msgspec.Struct, frozen=True):
    """What one process sees of an open file."""

    pid: int
    device: int
    inode: int
    links: int
    mode: int
    size: int
    sha256: str


def file_facts(fd: int) -> FileFacts:
    """Return what this process sees of an open regular file.

    Args:
        fd: The descriptor; it stays the caller's, and its position where it was.
    """
    status = os.fstat(fd)
    digest = hashlib.sha256()
    position = 0
    while data := os.pread(fd, 1 << 16, position):
        digest.update(data)
        position += len(data)
    return FileFacts(
        os.getpid(),
        status.st_dev,
        status.st_ino,
        status.st_nlink,
        status.st_mode & 0o777,
        position,
        digest.hexdigest(),
    )


class Counter:
    """Answer each request for the day's receipts with a descriptor, in a thread of its own, as long as the context.

    Args:
        address: Where to listen.
        journal: What the receipts are taken from; it must have a file.

    Raises:
        ValueError: The journal has no file.
        SocketError: The address cannot be listened on.
    """

    def __init__(self, address: str, journal: Journal) -> None:
        if journal.path is None:
            raise ValueError("the counter hands out receipts of a journal with a file: name one")
        self._path = journal.path
        self._listener = listen(address, "seqpacket")
        self._thread = threading.Thread(target=self._serve, name="counter", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for connection in self._listener:
            with connection:
                try:
                    self._answer(connection)
                except ClosedError:
                    return
                except (HostlineError, OSError) as error:
                    _log.warning("a visitor of the counter went away without receipts: %s", error)

    def _answer(self, connection: Connection) -> None:
        if connection.recv(timeout=_PATIENCE) == REQUEST:
            with self._receipts() as file:
                facts = msgspec.json.encode(file_facts(file.fileno()))
                connection.send(facts, fds=[file], timeout=_PATIENCE)

    def _receipts(self) -> Fd:
        """Return the receipts written so far, in a file that nothing but its descriptor leads to, open for reading."""
        with open(self._path, "rb") as journal:
            data = journal.read()
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(self._path) or ".") as named:
            named.write(data)
            named.flush()
            file = Fd(os.open(named.name, os.O_RDONLY | os.O_CLOEXEC))
            os.fchmod(file.fileno(), 0)
        return file  # leaving the block has unlinked the name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.close()
        self._thread.join()
