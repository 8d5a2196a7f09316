"""Descriptors and buffers in arguments, results and items: taken out for one frame, put back from one that came.

Who sends keeps what is theirs: a descriptor is duplicated when its frame is made. Who receives owns what came, and an
`Fd` that nobody holds any more closes itself. What arrives must be of a kind that the type allows, and every
descriptor must be named by a value, once; otherwise the call fails and all of them are closed.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import socket
import typing
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from hostline.errors import DescriptorError, OverloadedError
from hostline.limits import INLINE_BUFFER, LOW_WATER, MAX_FDS_PER_FRAME
from hostline.unix.passing.ancillary import send_message
from hostline.unix.passing.descriptors import DescriptorKind, Fd, close_all
from hostline.unix.passing.memory import (
    BUFFER_TYPES,
    HAS_SEALED_MEMORY,
    Buffer,
    bytes_of,
    check_buffer_size,
    map_sealed,
    sealed_memory,
)
from hostline.wire.attached import (
    FD_CODE,
    attach_type,
    pack_buffer,
    pack_fd,
    place_for,
    reading,
    unpack_buffer,
    unpack_fd,
)
from hostline.wire.schema import types_inside

if typing.TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = [
    "DEFAULT_KINDS",
    "ArrivedValues",
    "Attachments",
    "UnclaimedError",
    "fd_kinds",
    "kinds_allowed",
    "read_attached",
    "send_attached",
]

T = TypeVar("T")

_KINDS: Final = typing.get_args(DescriptorKind)

# What is taken unless a type says otherwise. A directory opens a way round a chroot, an O_PATH descriptor names what
# its receiver cannot see; terminals and devices do things when they are read.
DEFAULT_KINDS: Final[frozenset[str]] = frozenset({"regular", "memfd", "pipe", "socket"})

# Under this keyword a schema says which kinds a descriptor may be of.
_KEYWORD: Final = "x-hostline"


class UnclaimedError(ValueError):
    """Say, inside the library, that descriptors came which no value names; the call fails because of it."""


def fd_kinds(*kinds: DescriptorKind) -> msgspec.Meta:
    """Say which kinds of descriptor a type allows.

        def list_files(directory: Annotated[Fd, fd_kinds("directory")]) -> list[str]: ...

    Without it, `Fd` allows regular files, memfds, pipes and sockets. The kinds hold for all the descriptors in the
    arguments of a method together, and for all in its result.

    Args:
        *kinds: `regular`, `memfd`, `pipe`, `socket`, `directory`, `path` (O_PATH), `character`, `block`, `symlink`,
            `other`.

    Raises:
        ValueError: There is none, or one is not of these.
    """
    for kind in kinds:
        if kind not in _KINDS:
            raise ValueError(f"descriptor kind {kind!r} is none of {', '.join(_KINDS)}")
    if not kinds:
        raise ValueError("fd_kinds() without a kind would allow no descriptor at all")
    return msgspec.Meta(extra_json_schema={_KEYWORD: {"type": "fd", "kinds": sorted(set(kinds))}})


@functools.lru_cache(maxsize=1024)
def _kinds_allowed(annotation: Any) -> frozenset[str]:
    kinds: set[str] = set()
    named: set[int] = set()
    found = types_inside(annotation)
    for info in found:
        extra = info.extra_json_schema if isinstance(info, msgspec.inspect.Metadata) else None
        if extra and "kinds" in extra.get(_KEYWORD, {}):
            kinds.update(extra[_KEYWORD]["kinds"])
            named.add(id(typing.cast(msgspec.inspect.Metadata, info).type))
    plain = (info for info in found if isinstance(info, msgspec.inspect.CustomType) and info.cls is Fd)
    if any(id(info) not in named for info in plain):
        kinds |= DEFAULT_KINDS
    return frozenset(kinds)


def kinds_allowed(annotation: Any) -> frozenset[str]:
    """Return the kinds of descriptor that a type allows; for untyped values the default ones."""
    if annotation is Any:
        return DEFAULT_KINDS
    try:
        return _kinds_allowed(annotation)
    except TypeError:  # not hashable: Annotated with a dict, say
        return _kinds_allowed.__wrapped__(annotation)


def send_attached(sock: socket.socket, buffers: Sequence[ReadableBuffer], fds: Sequence[Fd]) -> int:
    """Send what fits now, with descriptors on its first byte; returns how many bytes left.

    Raises:
        BlockingIOError: Nothing fits.
        OverloadedError: The kernel takes no more descriptors of this user, or the receiver none; nothing was sent.
        SocketError: The peer is gone.
    """
    try:
        return send_message(sock, buffers, fds, flags=socket.MSG_DONTWAIT)
    except DescriptorError as error:
        raise OverloadedError(error.strerror or str(error)) from error


class Attachments:
    """Take descriptors and buffers out of what is encoded for one frame.

    Args:
        max_frame_size: The largest payload the other side takes, in bytes.
        may_pass: Whether descriptors can travel to the other side at all.

    Attributes:
        fds: What is to ride on the frame, each owned by it.
        pieces: Large buffers that stand in the frame and are not copied into it.
    """

    __slots__ = ("_may_pass", "_room", "fds", "pieces")

    def __init__(self, max_frame_size: int, may_pass: bool) -> None:
        self.fds: list[Fd] = []
        self.pieces: list[memoryview] = []
        self._may_pass = may_pass
        self._room = min(max_frame_size // 2, INLINE_BUFFER)  # the other half is for what is no buffer

    def take_out(self, value: Any) -> Any:
        """Return what stands in the payload for a descriptor or a buffer.

        Raises:
            TypeError: It is neither.
            DescriptorError: It is closed, or there are too many.
            OverloadedError: This process has no free one.
        """
        if isinstance(value, BUFFER_TYPES):
            return self._buffer(value)
        if not hasattr(value, "fileno"):
            raise TypeError(f"Encoding objects of type {type(value).__qualname__} is unsupported")
        if not self._may_pass:
            raise DescriptorError(errno.EOPNOTSUPP, "descriptors cannot travel on this connection")
        self._check_count()
        number = value.fileno()
        if number < 0:
            raise DescriptorError(errno.EBADF, "a descriptor to be sent is closed")
        try:
            self.fds.append(Fd(fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 0)))
        except OSError as error:
            reason = f"descriptor {number} cannot be sent: {(error.strerror or '').lower()}"
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise OverloadedError(reason) from error
            raise DescriptorError(error.errno, reason) from error
        return pack_fd(len(self.fds) - 1)

    def _buffer(self, value: Buffer) -> Any:
        view = bytes_of(value)
        if view.nbytes <= self._room or not (self._may_pass and HAS_SEALED_MEMORY):
            self._room -= view.nbytes
            if view.nbytes < LOW_WATER:
                return view
            self.pieces.append(view)
            return place_for(len(self.pieces) - 1)
        self._check_count()
        try:
            self.fds.append(sealed_memory(view))
        except DescriptorError as error:
            raise OverloadedError(error.strerror or str(error)) from error
        return pack_buffer(len(self.fds) - 1, view.nbytes)

    def _check_count(self) -> None:
        if len(self.fds) >= MAX_FDS_PER_FRAME:
            reason = f"more than {MAX_FDS_PER_FRAME} descriptors in one call or item: send them as a stream"
            raise DescriptorError(errno.EMSGSIZE, reason)

    def discard(self) -> None:
        """Close what was taken out: the frame will not be sent."""
        close_all(self.fds)
        self.fds = []


class ArrivedValues:
    """Put the descriptors and buffers of one received frame where they belong.

    Args:
        fds: What came with the frame; it is this object's from now on.
        kinds: The kinds of descriptor that are allowed.
        charge: Called with the size of each buffer before it is mapped, in bytes; raises OverloadedError to refuse it.
    """

    __slots__ = ("_charge", "_fds", "_kinds")

    def __init__(self, fds: Sequence[Fd], kinds: frozenset[str], charge: Callable[[int], None] | None = None) -> None:
        self._fds: list[Fd | None] = list(fds)
        self._kinds = kinds
        self._charge = charge

    def find(self, code: int, data: memoryview) -> Any:
        """Return the descriptor, or the bytes of the buffer, that an extension in the payload stands for.

        Raises:
            ValueError: There is none, or it may not be what it is.
        """
        try:
            if code == FD_CODE:
                return self._fd(unpack_fd(data))
            index, size = unpack_buffer(data)
            fd = self._claim(index)
            check_buffer_size(size)
            if self._charge is not None:
                self._charge(size)
            return map_sealed(fd, size)
        except OSError as error:  # mostly DescriptorError, but a peer's own file may also fail to close
            raise ValueError(error.strerror or str(error)) from error

    def _fd(self, index: int) -> Fd:
        fd = self._claim(index)
        try:
            kind = fd.kind
            if kind in self._kinds:
                return fd
            raise ValueError(f"descriptor of kind {kind} is not allowed: {', '.join(sorted(self._kinds)) or 'none'}")
        except BaseException:
            fd.close()
            raise

    def _claim(self, index: int) -> Fd:
        fd = self._fds[index] if index < len(self._fds) else None
        if fd is None:
            raise ValueError(f"descriptor {index} of {len(self._fds)} is missing, or was named before")
        self._fds[index] = None
        return fd

    def finish(self) -> None:
        """Close what no value named.

        Raises:
            UnclaimedError: There was some.
        """
        left = self._drop()
        if left:
            raise UnclaimedError(f"{left} descriptors came that no value names")

    def _drop(self) -> int:
        left = [fd for fd in self._fds if fd is not None]
        self._fds = []
        close_all(left)
        return len(left)

    def read(self, decode: Callable[[], T]) -> T:
        """Decode the frame's payload, and see that every descriptor found its place; all are closed on failure."""
        try:
            value = reading(self, decode)
            self.finish()
        except BaseException:
            self._drop()
            raise
        return value


def read_attached(fds: Sequence[Fd], annotation: Any, decode: Callable[[], T]) -> T:
    """Decode a payload that came with descriptors, as the type says which kinds it allows."""
    return ArrivedValues(fds, kinds_allowed(annotation)).read(decode)


def _as_fd(value: Any) -> Fd:
    if isinstance(value, Fd):
        return value
    raise ValueError(f"Expected `Fd`, got `{_described(value)}`")


def _as_buffer(value: Any) -> memoryview:
    if isinstance(value, memoryview):
        return value
    if isinstance(value, bytes):
        return memoryview(value)
    raise ValueError(f"Expected `Buffer`, got `{_described(value)}`")


def _described(value: Any) -> str:
    return "null" if value is None else type(value).__name__


attach_type(Fd, _as_fd, {_KEYWORD: {"type": "fd"}})
attach_type(
    Buffer,
    _as_buffer,
    {"type": "string", "contentEncoding": "base64", _KEYWORD: {"type": "buffer"}},
    in_place=memoryview,
)
