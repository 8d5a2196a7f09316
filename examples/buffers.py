"""Send arrays of many megabytes: the handler and the caller read them where they arrived, without a copy.

Prints:

    the mean of 4000000 numbers is 0.499...
    8000000 numbers came back, read-only: True
    Arrow sees ... bytes at the same address
"""

from __future__ import annotations

import asyncio

import numpy as np
import pyarrow as pa

import hostline

numbers = hostline.Service("numbers")


@numbers.method
def mean(data: hostline.Buffer) -> float:
    """Read the caller's array; nothing is copied here."""
    return float(np.frombuffer(data, dtype=np.float64).mean())


@numbers.method
def twice(data: hostline.Buffer) -> hostline.Buffer:
    """Give back a larger one. `Buffer` wraps an array, and copies nothing before the result is sent."""
    array = np.frombuffer(data, dtype=np.float64)
    return hostline.Buffer(np.concatenate([array, array]))


async def main() -> None:
    path = hostline.unique_path("numbers")
    async with numbers.serve(path), hostline.aio.connect(path) as line:
        array = np.random.default_rng(7).random(4_000_000)
        print(f"the mean of {array.size} numbers is", await line.call("mean", hostline.Buffer(array)))

        # What comes is a memoryview of memory that nobody can change any more. It is unmapped with its last view.
        view = await line.call("twice", hostline.Buffer(array), returns=hostline.Buffer)
        received = np.frombuffer(view, dtype=np.float64)
        print(f"{received.size} numbers came back, read-only:", not received.flags.writeable)

        arrow = pa.py_buffer(view)
        assert arrow.address == received.ctypes.data  # noqa: S101 - this is what is shown
        print(f"Arrow sees {arrow.size} bytes at the same address")


if __name__ == "__main__":
    asyncio.run(main())
