"""A service with streams of every kind, and a file in which its handlers say how they ended."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec

import hostline

feed = hostline.Service("feed")


class Reading(msgspec.Struct):
    sensor: str
    value: float = 0.5


class Dry(Exception):
    """No more is coming."""


def note(text: str) -> None:
    with Path(os.environ["FEED_NOTES"]).open("a") as file:
        file.write(f"{text}\n")


@feed.method(raises=Dry)
def ticks(to: int, pause: float = 0.0, *, fails: bool = False) -> Iterator[int]:
    """Count."""
    try:
        for number in range(to):
            yield number
            time.sleep(pause)
        if fails:
            raise Dry("no more")
    finally:
        note("ticks ended")


@feed.method
async def forever() -> AsyncIterator[str]:
    number = 0
    try:
        while True:
            yield f"\x1b[31m{number}"
            number += 1
            await asyncio.sleep(0.01)
    finally:
        note("forever ended")


@feed.method
def chunks(first: bytes) -> Iterator[bytes]:
    yield first
    yield b"\x00\xff"


@feed.method
async def total(numbers: AsyncIterator[int], plus: int = 0) -> int:
    is_whole = False
    try:
        async for number in numbers:
            plus += number
        is_whole = True
    finally:
        note(f"total ended, {'whole' if is_whole else 'cut'}")
    return plus


@feed.method
async def first(numbers: AsyncIterator[int]) -> int:
    async for number in numbers:
        return number
    return -1


@feed.method
async def scale(by: int, readings: AsyncIterator[Reading], *, plus: float = 0) -> AsyncIterator[Reading]:
    """Scale each."""
    try:
        async for reading in readings:
            yield Reading(reading.sensor, reading.value * by + plus)
    finally:
        note("scale ended")


@feed.method
def join(parts: Iterator[bytes], /, *, end: bytes = b"") -> bytes:
    return b"".join(parts) + end


@feed.method
def plain(value: int) -> int:
    return value
