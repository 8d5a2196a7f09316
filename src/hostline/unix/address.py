"""Addresses: what may be written, what it means, and how a path that is too long is bound or connected all the same.

Knows the spelling and the runtime directory; opens no socket. Sources: unix(7), the XDG base directory specification.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from hostline.errors import AddressError, AddressNotFoundError, PathTooLongError, UnsafeDirectoryError
from hostline.limits import MAX_SUN_PATH
from hostline.unix.loopback.address import LoopbackAddress, parse_loopback
from hostline.unix.oserrors import file_kind, printable, translated

__all__ = [
    "AbstractAddress",
    "Address",
    "InheritedAddress",
    "LoopbackAddress",
    "PathAddress",
    "SocketType",
    "parse_address",
    "reachable",
    "runtime_directory",
    "unique_path",
]

SocketType = Literal["stream", "seqpacket", "datagram"]

KNOWN = "a path with a slash, a bare name, unix:PATH, unix:@NAME, tcp:NAME, fd:NUMBER or systemd:NAME"

_BARE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")

# NAME_MAX of every common file system, less the `.lock` that is made beside a socket file.
_MAX_FILE_NAME = 255 - len(".lock")

# The largest number that the kernel's interfaces can name as a descriptor.
MAX_FD = 0x7FFFFFFF

# Opens a directory only to name it: needs no read permission on it where O_PATH exists.
DIRECTORY_FLAGS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class PathAddress:
    """Name a socket file.

    Attributes:
        path: The path, decoded as `os.fsdecode` does; a relative one begins with a dot after `parse_address`.
    """

    path: str

    @property
    def text(self) -> str:
        """How the address is written."""
        return _dotted(self.path)

    def __str__(self) -> str:
        return printable(self.text)


@dataclass(frozen=True, slots=True)
class AbstractAddress:
    """Name a socket in Linux's abstract namespace: no file, no mode, gone with its last descriptor.

    Attributes:
        name: The name without its leading NUL byte.
    """

    name: bytes

    @property
    def text(self) -> str:
        """How the address is written."""
        return f"unix:@{os.fsdecode(self.name)}"

    def __str__(self) -> str:
        return printable(self.text)


@dataclass(frozen=True, slots=True)
class InheritedAddress:
    """Name a listening socket that this process was started with.

    Attributes:
        fd: Its descriptor, or None where it is named.
        name: Its name in `LISTEN_FDNAMES`, or None where it is numbered.
    """

    fd: int | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """How the address is written."""
        return f"systemd:{self.name}" if self.fd is None else f"fd:{self.fd}"

    def __str__(self) -> str:
        return printable(self.text)


Address = PathAddress | AbstractAddress | InheritedAddress | LoopbackAddress


def parse_address(address: str | bytes | os.PathLike[str] | os.PathLike[bytes] | Address) -> Address:
    """Return what a written address means.

    A bare name becomes a path in the runtime directory, which is not made here. Bytes and path objects are always
    paths.

    Args:
        address: `/run/x.sock`, `./x.sock`, `unix:PATH`, `payments`, `unix:@name`, `tcp:payments`, `tcp:127.0.0.1:8123`,
            `fd:3`, `systemd:NAME`, a path object, or an address already parsed.

    Raises:
        AddressError: It is none of these; the text names what is known.
        UnsafeDirectoryError: It is a bare name and the runtime directory exists but is not private.
    """
    if isinstance(address, Address):
        return address
    if isinstance(address, bytes | os.PathLike):
        return _path(address, os.fsdecode(address))
    if not isinstance(address, str):
        raise AddressError(address, f"must be text, bytes or a path object: {KNOWN}")
    if not address:
        raise AddressError(address, f"is empty; write {KNOWN}")
    if "\0" in address:
        raise AddressError(address, "contains a NUL byte; an abstract name is written unix:@NAME")
    if address.startswith("@"):
        return _abstract(address, address[1:])
    scheme = _SCHEME.match(address)
    if scheme:
        return _with_scheme(address, scheme[1], address[scheme.end() :])
    if "/" in address or address.startswith("."):
        return _path(address, address)
    return _bare_name(address)


def _with_scheme(address: str, scheme: str, rest: str) -> Address:
    if scheme == "unix":
        if rest.startswith("@"):
            return _abstract(address, rest[1:])
        if rest.startswith("//") and not rest.startswith("///"):
            raise AddressError(address, "names a host; a path is written unix:PATH or unix:///ABSOLUTE/PATH")
        return _path(address, rest[2:] if rest.startswith("///") else rest)
    if scheme == "tcp":
        return parse_loopback(address, rest, _in_runtime_directory, lambda path: _path(address, path).path)
    if scheme == "fd":
        # Ten digits hold every int; Python itself refuses to read thousands of them.
        if not (rest.isascii() and rest.isdecimal() and len(rest) <= 10 and int(rest) <= MAX_FD):
            raise AddressError(address, "fd: takes the number of an open descriptor, such as fd:3")
        return InheritedAddress(fd=int(rest))
    if scheme == "systemd":
        if not rest:
            raise AddressError(address, "systemd: takes a name from LISTEN_FDNAMES")
        return InheritedAddress(name=rest)
    hint = f"; a path is written ./{address}" if "/" in rest and not rest.startswith("//") else ""
    raise AddressError(address, f"unknown scheme {scheme}: where {KNOWN} is known{hint}")


def _path(address: object, path: str) -> PathAddress:
    if not path:
        raise AddressError(address, "the path is empty")
    if "\0" in path:
        raise AddressError(address, "contains a NUL byte")
    if os.path.basename(path) in ("", ".", ".."):
        raise AddressError(address, "names a directory, not a socket file in it")
    return PathAddress(_dotted(path))


def _dotted(path: str) -> str:
    """Return a path that is no bare name and shows no scheme, so that it can be read back."""
    return path if path.startswith(("/", "./", "../")) else f"./{path}"


def _abstract(address: object, name: str) -> AbstractAddress:
    if not sys.platform.startswith("linux"):
        raise AddressError(address, "abstract names exist on Linux only; use a path or a bare name")
    encoded = os.fsencode(name)
    if not encoded:
        raise AddressError(address, "the abstract name is empty")
    if len(encoded) > MAX_SUN_PATH:
        raise AddressError(address, f"abstract name of {len(encoded)} bytes exceeds the limit of {MAX_SUN_PATH}")
    return AbstractAddress(encoded)


def _bare_name(name: str) -> PathAddress:
    if not _BARE_NAME.fullmatch(name):
        raise AddressError(name, f"is not a bare name (letters, digits, dot, dash, underscore); write {KNOWN}")
    if name.endswith(".sock"):
        raise AddressError(name, f"is ambiguous: write ./{name} for a file here, or {name[:-5]} for the name")
    return PathAddress(_in_runtime_directory(f"{name}.sock"))


def _in_runtime_directory(file_name: str) -> str:
    name, _, ending = file_name.rpartition(".")
    if len(file_name) > _MAX_FILE_NAME:
        limit = _MAX_FILE_NAME - len(ending) - 1
        raise AddressError(name, f"bare name of {len(name)} bytes exceeds the limit of {limit}")
    return os.path.join(runtime_directory(create=False), file_name)


# --- the runtime directory ---------------------------------------------------------------------------


def runtime_directory(create: bool = True) -> str:
    """Return the private directory in which bare names live.

    `$HOSTLINE_RUNTIME_DIR`; else `/run/hostline` for root; else `hostline` in `$XDG_RUNTIME_DIR` or `/run/user/UID`.
    Never a place in `/tmp`: whoever comes first could take the name there.

    Args:
        create: Make the directory, mode 0700, if it does not exist.

    Raises:
        AddressError: A variable holds a relative path.
        UnsafeDirectoryError: The directory is not a directory, not ours, or open to others; the text names the fix.
        AddressNotFoundError: It cannot be made because the directory above it does not exist.
        AccessDeniedError: This user may not make it.
    """
    directory = _runtime_directory()
    with translated("use", "directory", directory):
        try:
            status = os.lstat(directory)
        except FileNotFoundError:
            if not create:
                return directory
            status = _make_private(directory)
    problem = ""
    if not stat.S_ISDIR(status.st_mode):
        problem = f"it is {file_kind(status.st_mode)}, not a directory; remove it"
    elif status.st_uid != os.geteuid():
        problem = f"it belongs to uid {status.st_uid}, not to uid {os.geteuid()}; remove it or use another one"
    elif status.st_mode & 0o077:
        problem = f"its mode {status.st_mode & 0o7777:04o} lets others in; run chmod 0700 on it"
    if problem:
        advice = "set HOSTLINE_RUNTIME_DIR to use another directory"
        raise UnsafeDirectoryError("use", "directory", printable(directory), None, f"{problem} ({advice})")
    return directory


def _runtime_directory() -> str:
    for variable, below in (("HOSTLINE_RUNTIME_DIR", ""), ("XDG_RUNTIME_DIR", "hostline")):
        if variable == "XDG_RUNTIME_DIR" and os.geteuid() == 0:
            return "/run/hostline"
        value = os.environ.get(variable)
        if value:
            if not os.path.isabs(value):
                raise AddressError(value, f"{variable} must hold an absolute path")
            return os.path.normpath(os.path.join(value, below))
    return f"/run/user/{os.geteuid()}/hostline"


def _make_private(directory: str) -> os.stat_result:
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass  # another process was faster; the checks that follow judge what it made
    except FileNotFoundError as error:
        advice = "the directory above it does not exist; set HOSTLINE_RUNTIME_DIR or XDG_RUNTIME_DIR"
        raise AddressNotFoundError("use", "directory", printable(directory), error.errno, advice) from error
    return os.lstat(directory)


def unique_path(prefix: str = "hostline") -> str:
    """Return a path in the runtime directory that nothing else uses, short enough for every kernel interface.

    Args:
        prefix: How the file name begins; a bare name.

    Raises:
        AddressError: The prefix is not a bare name.
        PathTooLongError: The runtime directory's own path leaves no room.
        UnsafeDirectoryError: The runtime directory is not private.
    """
    if not _BARE_NAME.fullmatch(prefix):
        raise AddressError(prefix, "the prefix must be a bare name: letters, digits, dot, dash, underscore")
    path = os.path.join(runtime_directory(), f"{prefix}-{os.getpid()}-{secrets.token_hex(4)}.sock")
    size = len(os.fsencode(path))
    if size > MAX_SUN_PATH:
        advice = f"shorten the prefix of {len(prefix)} bytes, or set HOSTLINE_RUNTIME_DIR to a shorter directory"
        raise PathTooLongError(printable(path), f"path of {size} bytes exceeds the limit of {MAX_SUN_PATH}; {advice}")
    return path


# --- paths that do not fit ---------------------------------------------------------------------------


@contextmanager
def reachable(path: str) -> Iterator[bytes]:
    """Yield what `bind` or `connect` must be given to reach a path, however long it is.

    The kernel's address field holds 107 bytes of a path. On Linux a longer one goes through an open descriptor of its
    directory (`/proc/self/fd/N/NAME`), which is closed at the end of the block.

    Args:
        path: The path of a `PathAddress`.

    Raises:
        PathTooLongError: There is no way round: not Linux, no /proc, or the file name alone is too long.
        AddressNotFoundError: The directory of a long path does not exist.
        AccessDeniedError: This user may not enter the directory of a long path.
    """
    encoded = os.fsencode(path)
    if len(encoded) <= MAX_SUN_PATH:
        yield encoded
        return
    check_name_length(path)
    with translated("open", "directory", os.path.dirname(path) or "."):
        dirfd = os.open(os.path.dirname(path) or ".", DIRECTORY_FLAGS)
    try:
        yield through_directory(path, dirfd)
    finally:
        os.close(dirfd)


def through_directory(path: str, dirfd: int, name: str | None = None) -> bytes:
    """Return what the kernel must be given to reach `path`, whose directory is open as `dirfd`.

    The path itself where it fits, so that `ss`, `lsof` and `getsockname` show it.

    Args:
        path: The path.
        dirfd: A directory above it; it stays the caller's.
        name: The path from there; its last part unless given.

    Raises:
        PathTooLongError: It fits in neither form.
    """
    encoded = os.fsencode(path)
    if len(encoded) <= MAX_SUN_PATH:
        return encoded
    around = f"/proc/self/fd/{dirfd}/".encode()
    below = os.fsencode(os.path.basename(path) if name is None else name)
    if not sys.platform.startswith("linux") or not os.path.isdir("/proc/self/fd"):
        raise _too_long(path, len(encoded), MAX_SUN_PATH, "path")
    if len(around) + len(below) > MAX_SUN_PATH:
        raise _too_long(path, len(below), MAX_SUN_PATH - len(around), f"path of {len(encoded)} bytes: its last part")
    return around + below


def within_directory(path: str, dirfd: int) -> bytes:
    """Return what the kernel must be given to reach the last part of `path` in the very directory open as `dirfd`.

    Whatever has become of the path meanwhile: a link above it may lead elsewhere by now. Where the platform has no such
    form, or the last part is too long for it, this is what `through_directory` gives.

    Args:
        path: The path.
        dirfd: Its directory; it stays the caller's.

    Raises:
        PathTooLongError: It fits in no form.
    """
    within = f"/proc/self/fd/{dirfd}/".encode() + os.fsencode(os.path.basename(path))
    if len(within) <= MAX_SUN_PATH and sys.platform.startswith("linux") and os.path.isdir("/proc/self/fd"):
        return within
    return through_directory(path, dirfd)


def check_name_length(path: str) -> None:
    """Refuse a last part that fits no address, before the file system is asked about it.

    Raises:
        PathTooLongError: The path is too long and so is its last part.
    """
    size, name_size = len(os.fsencode(path)), len(os.fsencode(os.path.basename(path)))
    limit = MAX_SUN_PATH - len("/proc/self/fd/0/")
    if size > MAX_SUN_PATH and name_size > limit:
        raise _too_long(path, name_size, limit, f"path of {size} bytes: its last part")


def _too_long(path: str, size: int, limit: int, what: str) -> PathTooLongError:
    directory, name = os.path.split(path)
    short = name if len(os.fsencode(name)) <= 20 else f"{os.path.splitext(name)[0][:12]}.sock"
    if len(os.fsencode(directory)) > 60 and what == "path":
        fix = f"use a directory with a shorter path, or the bare name {os.path.splitext(short)[0]!r}"
    else:
        fix = f"a shorter one would be {printable(os.path.join(directory, short))!r}"
    return PathTooLongError(printable(path, 120), f"{what} of {size} bytes exceeds the limit of {limit}; {fix}")
