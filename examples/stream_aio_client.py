"""Iterate what stream_server.py streams, on asyncio.

Prints:

    20.0 20.5 21.0
    the mean of 3 readings is 20.5
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

import hostline


class Reading(msgspec.Struct):
    sensor: str
    celsius: float


async def main() -> None:
    async with hostline.aio.connect("./weather.sock", wait=5) as line:
        async with line.stream("history", "roof", 3, returns=Reading) as history:
            readings = [reading async for reading in history]
        print(*(reading.celsius for reading in readings))

        async def measured() -> AsyncIterator[Reading]:
            for reading in readings:
                await asyncio.sleep(0.001)
                yield reading

        print(f"the mean of {len(readings)} readings is", await line.call("mean", measured(), returns=float))


asyncio.run(main())
