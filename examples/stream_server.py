"""A service that streams: readings out, readings in, and both at once.

Start it with `python stream_server.py`, then run stream_client.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import msgspec

import hostline


class Reading(msgspec.Struct):
    sensor: str
    celsius: float


weather = hostline.Service("weather")


@weather.method
def history(sensor: str, count: int) -> Iterator[Reading]:
    """Stream the last readings of a sensor; a `def`, so in a worker thread."""
    for number in range(count):
        yield Reading(sensor, 20.0 + number / 2)


@weather.method
async def mean(readings: AsyncIterator[Reading]) -> float:
    """Take any number of readings and return one number."""
    total, count = 0.0, 0
    async for reading in readings:
        total += reading.celsius
        count += 1
    return total / count if count else 0.0


@weather.method
async def to_fahrenheit(readings: AsyncIterator[Reading]) -> AsyncIterator[Reading]:
    """Send each reading back as it comes."""
    async for reading in readings:
        yield Reading(reading.sensor, reading.celsius * 9 / 5 + 32)


if __name__ == "__main__":
    weather.run("./weather.sock")
