"""The life of a key file: claim its path as a socket file's is claimed, listen, publish, take away only what is ours.

claim    the lock beside it, then a look: nothing there, or a key file whose server is gone
(listen) the caller's: the port must be ours before its number is told
publish  written under another name with mode 0600, then renamed over the stale one
release  unlink if it is still ours, let go of the lock
"""

from __future__ import annotations

import errno
import os
import socket
import stat

from hostline.errors import NotASocketError, SocketError
from hostline.unix.loopback.keyfile import HEADER, KeyFile
from hostline.unix.oserrors import file_kind, printable, translated
from hostline.unix.passing.descriptors import Fd
from hostline.unix.socketfile import SocketFile

__all__ = ["PortFile"]


class PortFile(SocketFile):
    """Own one key file's path: its lock, and from `publish` on the file.

    Everything that is true of a socket file's lock, directory and end is true here. What is stale needs no probe:
    whoever writes such a file holds the lock as long as it serves.
    """

    def publish(self, key: KeyFile) -> None:
        """Write the key file; at no instant can anybody else read it, nor a part of it be seen.

        Args:
            key: What it says; its port must be listening by now.

        Raises:
            NotASocketError: Something appeared at the path that is not a key file.
            AccessDeniedError: This user may not create a file there.
            SocketError: The directory was replaced since the claim, or the file system refused.
        """
        temporary = f"{self._name}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with translated("bind", self.socket_type, self.path):
            self._check_directory()
            self._look()
            self._discard(temporary)
            fd = Fd(os.open(temporary, flags, 0o600, dir_fd=self._dirfd))
            try:
                os.fchmod(fd.fileno(), 0o600)  # a umask may have taken the owner's own bits
                self._write(fd.fileno(), key.encode())
                os.rename(temporary, self._name, src_dir_fd=self._dirfd, dst_dir_fd=self._dirfd)
            except BaseException:
                fd.close()
                self._discard(temporary)
                raise
            # Held open, so that the inode's number stays ours and the comparison at the end means what it says.
            self._pin = fd
            status = os.fstat(fd.fileno())
            self._identity = (status.st_dev, status.st_ino)
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != 0o600:
                reason = f"the file system made it uid {status.st_uid} mode {stat.S_IMODE(status.st_mode):04o}"
                raise SocketError("bind", self.socket_type, printable(self.path), None, f"{reason}, not ours and 0600")

    def bind(self, sock: socket.socket, mode: int = 0, owner: int | None = None, group: int | None = None) -> None:
        """Refuse: a port is bound without a file."""
        raise SocketError("bind", self.socket_type, printable(self.path), None, "a key file is published, not bound")

    def _write(self, fd: int, data: bytes) -> None:
        written = os.write(fd, data)
        if written != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _look(self) -> os.stat_result | None:
        """Return what is at the path, None for nothing; refuse everything that is not a key file."""
        return self._look_at(self._name, self.path)

    def _look_at(self, name: str, path: str) -> os.stat_result | None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        with translated("bind", self.socket_type, path):
            try:
                status = os.stat(name, dir_fd=self._dirfd, follow_symlinks=False)
                is_ours = False
                if stat.S_ISREG(status.st_mode):
                    with Fd(os.open(name, flags, dir_fd=self._dirfd)) as fd:
                        status = os.fstat(fd.fileno())
                        is_ours = os.read(fd.fileno(), len(HEADER)) == HEADER
            except FileNotFoundError:
                return None
        # A temporary file of a server that was killed before it had written a byte.
        is_empty = name != self._name and stat.S_ISREG(status.st_mode) and not status.st_size
        if not is_ours and not (is_empty and status.st_uid == os.geteuid()):
            reason = f"{file_kind(status.st_mode)} is there, which is not a key file; it was left as it is"
            raise NotASocketError("bind", self.socket_type, printable(path), errno.EEXIST, reason)
        return status

    def _discard(self, temporary: str) -> None:
        if self._look_at(temporary, f"{self.path}.new") is not None:
            os.unlink(temporary, dir_fd=self._dirfd)

    def _clear(self) -> None:
        """Look once more, with the lock held; `publish` replaces what is stale."""
        self._look()
