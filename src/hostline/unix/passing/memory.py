"""Large bytes: `Buffer`, and the sealed memory in which they travel to another process.

A memfd is mapped only when its seals say that nobody can shrink, grow or write it any more: otherwise its owner could
change the bytes while they are read, or end the reader with SIGBUS. Its pages must exist as well, for a sparse one
costs its sender nothing and is paid for by whoever reads it.
"""

from __future__ import annotations

import abc
import errno
import fcntl
import mmap
import os
import sys
import typing
from typing import TYPE_CHECKING, Any, Final, Protocol

from hostline.errors import DescriptorError
from hostline.limits import MAX_BUFFER_SIZE
from hostline.unix.passing.descriptors import Fd, kind_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    class _Array(Protocol):
        """An array of NumPy's: before Python 3.12 its annotations do not say that it has bytes."""

        @property
        def __array_interface__(self) -> dict[str, Any]: ...


__all__ = [
    "BUFFER_TYPES",
    "HAS_SEALED_MEMORY",
    "Buffer",
    "bytes_of",
    "check_buffer_size",
    "map_sealed",
    "sealed_memory",
]

HAS_SEALED_MEMORY: bool = sys.platform == "linux" and hasattr(os, "memfd_create")

_MFD_NOEXEC_SEAL = 0x8  # Linux 6.3, and not in every Python
_SEALS: int = (
    fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL if HAS_SEALED_MEMORY else 0
)
_NEEDED: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE if HAS_SEALED_MEMORY else 0
# MAP_PRIVATE: before Linux 6.7 a shared mapping of write-sealed memory fails with EPERM, also one that only reads. As
# nobody can write, the pages are the same either way. Since Python 3.13 the mapping need not keep a descriptor open.
_MAP_OPTIONS: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
_BLOCK = 512  # what st_blocks counts in, whatever the file system's own blocks are


class Buffer(abc.ABC):  # noqa: B024 - for its `register`: a memoryview is one
    """Bytes of any size, as argument, result, or field of either.

    Whoever sends wraps what has them: `Buffer(array)`. Nothing is copied until the call is made. Whoever receives gets
    a read-only `memoryview`, which NumPy and Arrow read without a copy; `isinstance(view, Buffer)` is true of it.

    As an annotation it says that up to 256 MiB may come: what does not fit into a frame travels in sealed memory.
    """

    __slots__ = ()

    def __new__(cls, data: ReadableBuffer | _Array) -> Buffer:
        """Wrap bytes, a bytearray, a memoryview, an array: anything contiguous that has bytes.

        Args:
            data: It must not change until the call that sends it has returned.

        Raises:
            TypeError: It has no bytes to read.
            ValueError: Its memory is not contiguous, or it exceeds 256 MiB.
        """
        view = memoryview(typing.cast("ReadableBuffer", data))
        if not view.c_contiguous:
            raise ValueError("buffer's memory is not contiguous: copy it into one piece first")
        if view.nbytes > MAX_BUFFER_SIZE:
            raise ValueError(f"buffer of {view.nbytes} bytes exceeds the {MAX_BUFFER_SIZE} of one Buffer")
        wrapped = object.__new__(_Wrapped)
        wrapped.view = view.toreadonly().cast("B") if view.nbytes else memoryview(b"")
        return wrapped

    if TYPE_CHECKING:
        # What wrapped bytes and a memoryview have in common.
        @property
        def nbytes(self) -> int:  # noqa: D102
            ...
        def __len__(self) -> int: ...
        def __getitem__(self, index: slice) -> memoryview: ...
        def __buffer__(self, flags: int) -> memoryview: ...
        def tobytes(self) -> bytes:  # noqa: D102
            ...


Buffer.register(memoryview)


class _Wrapped(Buffer):
    """Bytes to be sent."""

    __slots__ = ("view",)
    view: memoryview

    @property
    def nbytes(self) -> int:
        return self.view.nbytes

    def __len__(self) -> int:
        return self.view.nbytes

    def __getitem__(self, index: slice) -> memoryview:
        return self.view[index]

    def __buffer__(self, flags: int) -> memoryview:  # since Python 3.12
        return self.view

    def tobytes(self) -> bytes:
        return self.view.tobytes()

    def __repr__(self) -> str:
        return f"<Buffer of {self.view.nbytes} bytes>"


# For `isinstance`: Python's own question to an abstract class comes last.
BUFFER_TYPES: Final[tuple[type[Any], ...]] = (memoryview, _Wrapped, Buffer)


def bytes_of(buffer: Buffer) -> memoryview:
    """Return the bytes of a buffer as a view of one dimension."""
    return buffer.view if isinstance(buffer, _Wrapped) else memoryview(buffer).cast("B")


def sealed_memory(view: memoryview) -> Fd:
    """Return memory of its own that holds a copy of some bytes and that nobody can change any more.

    Args:
        view: Bytes, one dimension.

    Raises:
        DescriptorError: This process has no free descriptor, or no memory.
    """
    try:
        try:
            fd = Fd(os.memfd_create("hostline-buffer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _MFD_NOEXEC_SEAL))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            fd = Fd(os.memfd_create("hostline-buffer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))  # before Linux 6.3
        try:
            written = 0
            while written < len(view):
                written += os.write(fd.fileno(), view[written:])
            fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            fd.close()
            raise
    except OSError as error:
        raise DescriptorError(error.errno, f"no memory for a buffer of {len(view)} bytes: {error.strerror}") from error
    return fd


def check_buffer_size(size: int) -> None:
    """Refuse a size that no buffer in sealed memory has; raises DescriptorError."""
    if not 0 < size <= MAX_BUFFER_SIZE:
        raise DescriptorError(errno.EINVAL, f"buffer of {size} bytes: 1 to {MAX_BUFFER_SIZE} are taken")


def map_sealed(fd: Fd, size: int) -> memoryview:
    """Return the bytes in sealed memory that a peer sent, read-only; they stay for as long as the view is held.

    Args:
        fd: The memory; it is closed, also on failure.
        size: How many bytes the peer says there are.

    Raises:
        DescriptorError: It is something else, it is not sealed, it is sparse, or it is of another size.
    """
    with fd:
        number = fd.fileno()
        if not HAS_SEALED_MEMORY:
            raise DescriptorError(errno.ENOTSUP, "sealed memory came, which this platform does not have")
        check_buffer_size(size)
        if (kind := kind_of(number)) != "memfd":
            raise DescriptorError(errno.EINVAL, f"buffer came in a descriptor of kind {kind}, not in a memfd")
        seals = fcntl.fcntl(number, fcntl.F_GET_SEALS)
        if seals & _NEEDED != _NEEDED:
            raise DescriptorError(errno.EPERM, f"buffer's memory is not sealed (seals {seals:#x}): it could change")
        status = os.fstat(number)
        if status.st_size != size:
            raise DescriptorError(errno.EINVAL, f"buffer of {size} bytes came in memory of {status.st_size}")
        if status.st_blocks * _BLOCK < size:
            raise DescriptorError(
                errno.EINVAL, f"buffer's memory is sparse: {status.st_blocks * _BLOCK} of {size} bytes"
            )
        try:
            mapped: Any = mmap.mmap(number, size, mmap.MAP_PRIVATE, mmap.PROT_READ, **_MAP_OPTIONS)
        except OSError as error:
            raise DescriptorError(error.errno, f"buffer of {size} bytes cannot be mapped: {error.strerror}") from error
    return memoryview(mapped)
