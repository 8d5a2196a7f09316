"""NumPy and Arrow read a received buffer where it is, and cannot write to it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hostline
from tests.serving import ServerThread

pytestmark = pytest.mark.ci_required

SIZES = [8_000, 8_000_000]
"""In the frame, and in sealed memory."""

numbers = hostline.Service("numbers")


@numbers.method
def count(size: int) -> hostline.Buffer:
    """Give the numbers from zero, as so many bytes of 64-bit integers."""
    import numpy as np

    return hostline.Buffer(np.arange(size // 8, dtype=np.int64))


@numbers.method
def total(data: hostline.Buffer) -> int:
    """Add up 64-bit integers."""
    import numpy as np

    return int(np.frombuffer(data, dtype=np.int64).sum())


@numbers.method
def rows(data: hostline.Buffer) -> int:
    """Count the rows of an Arrow table."""
    import pyarrow as pa

    return int(pa.ipc.open_stream(data).read_all().num_rows)


def address_of(view: memoryview) -> int:
    """Return where the bytes of a view are; it may be read-only."""
    python = ctypes.pythonapi
    described = (ctypes.c_byte * 256)()  # a Py_buffer, whose first member is the address
    python.PyObject_GetBuffer(ctypes.py_object(view), described, 0)
    try:
        return int(ctypes.cast(described, ctypes.POINTER(ctypes.c_size_t))[0])
    finally:
        python.PyBuffer_Release(described)


@pytest.fixture
def line(sock_dir: Path) -> Iterator[hostline.Line]:
    with ServerThread(numbers, sock_dir / "x"), hostline.connect(sock_dir / "x") as line:
        yield line


def numpy() -> Any:
    return pytest.importorskip("numpy", reason="numpy is not installed (it comes with the test extra)")


def arrow() -> Any:
    return pytest.importorskip("pyarrow", reason="pyarrow is not installed (it comes with the test extra)")


@pytest.mark.parametrize("size", SIZES)
def test_an_array_is_sent_without_a_copy_of_ours_and_read_where_it_arrived(line: hostline.Line, size: int) -> None:
    np = numpy()
    view = line.call("count", size, returns=hostline.Buffer)
    array = np.frombuffer(view, dtype=np.int64)
    assert array.ctypes.data == address_of(view)
    assert not array.flags.writeable
    assert not array.flags.owndata
    assert array[-1] == size // 8 - 1
    assert line.call("total", hostline.Buffer(array)) == int(array.sum())
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


@pytest.mark.parametrize("size", SIZES)
def test_arrow_reads_a_buffer_where_it_arrived(line: hostline.Line, size: int) -> None:
    numpy()
    pa = arrow()
    view = line.call("count", size, returns=hostline.Buffer)
    buffer = pa.py_buffer(view)
    assert buffer.address == address_of(view)
    assert not buffer.is_mutable
    assert pa.Array.from_buffers(pa.int64(), size // 8, [None, buffer])[-1].as_py() == size // 8 - 1


def test_an_arrow_table_travels_as_a_stream_of_its_own(line: hostline.Line) -> None:
    numpy()
    pa = arrow()
    table = pa.table({"number": pa.array(range(200_000), pa.int64())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert line.call("rows", hostline.Buffer(sink.getvalue())) == 200_000


@pytest.mark.parametrize("size", SIZES)
def test_an_array_keeps_the_memory_when_the_view_is_gone(line: hostline.Line, size: int) -> None:
    np = numpy()
    array = np.frombuffer(line.call("count", size, returns=hostline.Buffer), dtype=np.int64)
    part = array[1:3]
    del array
    assert part.tolist() == [1, 2]


def test_memory_in_pieces_is_refused_in_words() -> None:
    np = numpy()
    with pytest.raises(ValueError, match="not contiguous: copy it"):
        hostline.Buffer(np.arange(10)[::2])
