"""Iterate what stream_server.py streams.

Prints:

    20.0 20.5 21.0 21.5
    the mean of them is 20.75
    68.0 68.9
"""

from __future__ import annotations

import msgspec

import hostline


class Reading(msgspec.Struct):
    sensor: str
    celsius: float


with hostline.connect("./weather.sock", wait=5) as line:
    readings = list(line.stream("history", "roof", 4, returns=Reading))
    print(*(reading.celsius for reading in readings))

    print("the mean of them is", line.call("mean", iter(readings), returns=float))

    # An endless stream is left like any loop; the handler is told.
    with line.stream("to_fahrenheit", (reading for reading in readings), returns=Reading) as converted:
        print(*(reading.celsius for reading, _ in zip(converted, range(2), strict=False)))
