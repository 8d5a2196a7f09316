"""A service that is watched, with a handler of every kind, for the tests of logs, metrics and traces."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import hostline


class RefusedError(Exception):
    """The service says no."""


def shop(name: str = "shop") -> hostline.Service:
    """Return a service with a handler of every kind."""
    service = hostline.Service(name)

    @service.method
    async def task(number: int) -> int:
        return number + 1

    @service.method
    def thread(number: int) -> int:
        return number + 1

    @service.method(inline=True)
    def quick(number: int) -> int:
        return number + 1

    @service.method(raises=RefusedError)
    def refuse() -> None:
        raise RefusedError("no\ntea")

    @service.method
    async def boom(text: str) -> None:
        raise ValueError(text)

    @service.method
    async def wait() -> None:
        await asyncio.sleep(60)

    @service.method
    async def count(last: int) -> AsyncIterator[int]:
        for number in range(last):
            yield number

    @service.method
    def count_in_thread(last: int) -> Iterator[int]:
        yield from range(last)

    @service.method
    async def total(numbers: AsyncIterator[int]) -> int:
        return sum([number async for number in numbers])

    return service


class Records(logging.Handler):
    """Keep what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def of(self, event: str) -> list[dict[str, Any]]:
        """Return the fields of the records of one event."""
        return [vars(record) for record in list(self.records) if getattr(record, "event", None) == event]
