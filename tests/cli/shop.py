"""A service with a method for every way in which a call can end."""

from __future__ import annotations

import datetime
import time
from typing import Any

import msgspec

import hostline


class OutOfStock(Exception):
    """None is left."""


class Item(msgspec.Struct):
    """Something on a shelf."""

    sku: str
    count: int = 1
    label: bytes = b""


shop = hostline.Service("shop", version="2.1", doc="Sells things.\n\nNot everything is in stock.")
other = hostline.Service("other")
not_a_service = 3


@shop.method(idempotent=True)
def add(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


@shop.method(raises=OutOfStock)
def buy(item: Item, *, note: str | None = None) -> Item:
    """Buy an item.

    An empty one cannot be bought.
    """
    if not item.count:
        raise OutOfStock("no tea \x1b[31mleft")
    return item


@shop.method
def crash() -> None:
    raise RuntimeError("a secret")


@shop.method
def complain(text: str) -> None:
    raise ValueError(f"bad {text}")


@shop.method
async def wait(seconds: float) -> None:
    import asyncio

    await asyncio.sleep(seconds)


@shop.method
def block(seconds: float) -> None:
    time.sleep(seconds)


@shop.method(allow=hostline.Peers(uids=[54321]))
def private() -> None:
    pass


@shop.method
def reverse(data: bytes) -> bytes:
    return data[::-1]


@shop.method
def when() -> datetime.datetime:
    return datetime.datetime(2024, 5, 17, 12, 30, tzinfo=datetime.UTC)


@shop.method
def evil() -> str:
    """Move the cursor \x1b[2J\x9b31m and turn the text round \u202e."""
    return "a\x1b]0;title\x07b\x7f\x9bc\u202ed"


@shop.method
def pairs() -> dict[int | None, str]:
    """Name some numbers, in grün."""
    return {1: "one", None: "none"}


@shop.method
def echo(value: Any) -> Any:
    return value
