"""Give a socket its file: the two ways in which no instant shows a mode wider than asked for.

Knows one `bind` and the directory it goes to; whose path it is, and what becomes of the file, is `socketfile.py`.
Sources: unix(7), and for what `fchmod` on an unbound socket does, Linux's `unix_bind_bsd`.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket

from hostline.errors import AddressInUseError
from hostline.limits import MAX_SUN_PATH
from hostline.unix.address import through_directory
from hostline.unix.oserrors import printable

__all__ = ["bind_by_rename", "bind_in_place"]


def bind_in_place(sock: socket.socket, dirfd: int, path: str, mode: int) -> None:
    """Bind where the file is to be, with its mode right from its first instant (Linux).

    Linux gives the new file the mode of the socket's own inode, cut by the umask. So `fchmod` before `bind` can only
    narrow, and the umask of the process, which all threads share, is never touched. Binding under a private name and
    renaming would work too, but the kernel keeps the name given to `bind`: `ss` would show one that does not exist, and
    so would the return address of datagrams.

    Args:
        sock: An unbound socket.
        dirfd: The directory of `path`.
        path: Where.
        mode: Permission bits.
    """
    os.fchmod(sock.fileno(), mode)
    sock.bind(through_directory(_absolute(path), dirfd))


def _absolute(path: str) -> str:
    """Return a relative path from the root, if that fits: the kernel shows it to others, in other directories.

    `ss` prints it, and it is the return address of every datagram sent from the socket.
    """
    full = os.path.join(os.getcwd(), path.removeprefix("./"))
    return full if len(os.fsencode(full)) <= MAX_SUN_PATH else path


def bind_by_rename(sock: socket.socket, dirfd: int, path: str, mode: int) -> None:
    """Bind in a private directory and move the file to its place (macOS and the BSDs, where fchmod before bind fails).

    Args:
        sock: An unbound socket.
        dirfd: The directory of `path`, in which a 0700 directory is made for the moment.
        path: Where; nothing may be there, which the caller holds the lock for.
        mode: Permission bits.

    Raises:
        AddressInUseError: Something is at `path`.
    """
    directory, name = os.path.split(path)
    private = f".{secrets.token_hex(4)}"
    inner = f"{private}/s"
    os.mkdir(private, 0o700, dir_fd=dirfd)
    try:
        sock.bind(through_directory(os.path.join(directory, inner), dirfd, inner))
        os.chmod(inner, mode, dir_fd=dirfd)  # nobody else can enter the directory, so nobody swapped the name
        try:
            os.stat(name, dir_fd=dirfd, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(inner, name, src_dir_fd=dirfd, dst_dir_fd=dirfd)
        else:
            raise AddressInUseError("bind", "", printable(path), errno.EADDRINUSE, "the path was taken meanwhile")
    finally:
        try:
            os.unlink(inner, dir_fd=dirfd)
        except FileNotFoundError:
            pass  # it has been moved, or bind failed
        os.rmdir(private, dir_fd=dirfd)
