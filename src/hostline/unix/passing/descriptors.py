"""Own one descriptor: `Fd` closes itself, on every failure path and at the latest when nobody holds it any more.

Knows files, not sockets' messages: how descriptors travel is `ancillary.py`.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import stat
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import IO, Any, Literal, Protocol

from hostline.errors import DescriptorError

__all__ = ["DescriptorKind", "Fd", "HasFileno", "close_all", "kind_of"]

DescriptorKind = Literal[
    "regular", "directory", "pipe", "socket", "memfd", "character", "block", "path", "symlink", "other"
]

# Linux's O_PATH where this Python was built without it; such a descriptor names a file and cannot read it.
_O_PATH: int = getattr(os, "O_PATH", 0o10000000) if sys.platform == "linux" else 0


class HasFileno(Protocol):
    """Anything that can lend its descriptor: a file object, a socket, an `Fd`."""

    def fileno(self) -> int:
        """Return the descriptor's number; it stays the object's own."""
        ...


class Fd:
    """Own one open descriptor and close it.

    Closing happens in `close()`, at the end of a `with` block, or when the last reference goes. `detach()` and
    `open()` pass the ownership on. An `Fd` lent to `send(fds=...)` stays the sender's.
    """

    __slots__ = ("__weakref__", "_fd")

    def __init__(self, fd: int) -> None:
        """Take over an open descriptor.

        Args:
            fd: The number; from now on this object closes it.

        Raises:
            ValueError: The number is negative.
        """
        self._fd = -1  # __del__ also runs when the next line raises
        if fd < 0:
            raise ValueError(f"descriptor {fd} must be zero or more")
        self._fd = fd

    def fileno(self) -> int:
        """Return the number; the descriptor stays this object's own.

        Raises:
            DescriptorError: It was closed or handed on.
        """
        if self._fd < 0:
            raise DescriptorError(errno.EBADF, "this descriptor was closed or handed on")
        return self._fd

    @property
    def is_closed(self) -> bool:
        """Whether the descriptor was closed or handed on."""
        return self._fd < 0

    @property
    def kind(self) -> DescriptorKind:
        """What the descriptor is, as the kernel says: `regular`, `memfd`, `pipe`, `directory`, ...

        Decide by this before reading from a descriptor that a peer sent: a directory opens a way round a
        chroot, a pipe or a terminal can block for ever.

        Raises:
            DescriptorError: It was closed or handed on.
        """
        return kind_of(self.fileno())

    def close(self) -> None:
        """Close the descriptor; a second close does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def detach(self) -> int:
        """Hand the number to the caller, who has to close it from now on.

        Raises:
            DescriptorError: It was closed or handed on before.
        """
        fd = self.fileno()
        self._fd = -1
        return fd

    def dup(self) -> Fd:
        """Return a second descriptor of the same open file, close-on-exec, with an owner of its own.

        Raises:
            DescriptorError: It was closed or handed on, or this process has no free descriptor.
        """
        try:
            return Fd(fcntl.fcntl(self.fileno(), fcntl.F_DUPFD_CLOEXEC, 0))
        except DescriptorError:
            raise
        except OSError as error:
            raise DescriptorError(
                error.errno, f"descriptor {self._fd} cannot be duplicated: {error.strerror}"
            ) from error

    def open(self, mode: str = "rb", *, buffering: int = -1, encoding: str | None = None) -> IO[Any]:
        """Return a file object that takes the open file over, under a number of its own, and closes it.

        After a failure the descriptor is open and this object's own, as before.

        The position and the status flags are shared with whoever sent the descriptor: use `os.pread` on
        `fileno()` where the sender is not trusted.

        Args:
            mode: As for the builtin `open`; it must not ask for more than the descriptor allows.
            buffering: As for the builtin `open`.
            encoding: As for the builtin `open`.

        Raises:
            DescriptorError: It was closed or handed on, it is a directory or cannot do what the mode asks, or this
                process has no free descriptor.
            ValueError: As from the builtin `open`: the mode, or its combination with the rest, makes no sense.
            LookupError: As from the builtin `open`: there is no such encoding.
        """
        fd = self.fileno()
        # A layer that fails closes the descriptor it was given. So it gets a second one, and ours outlives the failure.
        with self.dup() as copy:
            try:
                name = f"<fd {copy.fileno()}>"
                file = open(  # noqa: SIM115 - the caller closes it
                    name, mode, buffering, encoding, opener=lambda _name, _flags: copy.detach()
                )
            except OSError as error:
                # io.UnsupportedOperation, which a pipe that is to be read and written gives, has no errno.
                reason = error.strerror or str(error)
                raise DescriptorError(
                    error.errno or errno.EINVAL, f"descriptor {fd} cannot be opened: {reason}"
                ) from error
        close_all([self])
        return file

    def __enter__(self) -> Fd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self, _close: Any = os.close) -> None:
        # os may be half gone at interpreter exit, hence the default argument.
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                _close(fd)
            except OSError:
                # Somebody closed the number behind our back. There is nobody to tell from here.
                pass

    def __repr__(self) -> str:
        if self._fd < 0:
            return "<Fd closed>"
        try:
            return f"<Fd {self._fd} {self.kind}>"
        except OSError as error:
            return f"<Fd {self._fd} {'not open' if error.errno == errno.EBADF else 'of unknown kind'}>"


def kind_of(fd: int) -> DescriptorKind:
    """Say what an open descriptor is.

    Args:
        fd: The descriptor; it stays the caller's.

    Raises:
        DescriptorError: It is not open; or it is a regular file or a memfd, and which of the two cannot be told now,
            for instance because this process has no free descriptor.
    """
    try:
        status = os.fstat(fd)
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    except OSError as error:
        raise DescriptorError(error.errno, f"descriptor {fd} is not open") from error
    if flags & _O_PATH:
        return "path"
    mode = status.st_mode
    if stat.S_ISREG(mode):
        return "memfd" if status.st_dev == _memfd_device() else "regular"
    for is_kind, name in _KINDS:
        if is_kind(mode):
            return name
    return "other"


_KINDS: tuple[tuple[Any, DescriptorKind], ...] = (
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "character"),
    (stat.S_ISBLK, "block"),
    (stat.S_ISLNK, "symlink"),
)


@functools.cache
def _memfd_device() -> int:
    """Return the device of the kernel's own tmpfs, on which memfds live and no path leads to; -1 without memfds.

    A failure that may pass is raised, and so is not kept: every memfd would be taken for a regular file ever after.
    Asking for seals would not do: files of any tmpfs answer. Nor would /proc's link text, which a name can imitate.
    """
    if sys.platform != "linux":
        return -1
    try:
        with Fd(os.memfd_create("hostline-probe", os.MFD_CLOEXEC)) as probe:
            return os.fstat(probe.fileno()).st_dev
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return -1
        reason = f"it cannot be told now whether a file is a memfd: {error.strerror}"
        raise DescriptorError(error.errno, reason) from error


def close_all(fds: Iterable[Fd]) -> None:
    """Close every descriptor, also when one of them fails to close."""
    for fd in fds:
        try:
            fd.close()
        except OSError:
            # An EIO of the file underneath: the number is free all the same.
            pass
