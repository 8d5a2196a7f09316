"""A service with errors that callers may see, a deadline that handlers may see, and a method only root may call."""

from __future__ import annotations

import asyncio

import hostline

stock = hostline.Service("stock", version="1.0", doc="What is on the shelves.")

shelves = {"tea": 12, "coffee": 3}


class OutOfStock(Exception):
    """There is not enough of it."""


@stock.method(raises=OutOfStock)
async def take(sku: str, count: int = 1) -> int:
    """Take some off the shelf; returns how many are left."""
    if shelves.get(sku, 0) < count:
        raise OutOfStock(f"{shelves.get(sku, 0)} of {sku} left, {count} wanted")
    shelves[sku] -= count
    return shelves[sku]


@stock.method(idempotent=True, inline=True)
def look() -> dict[str, int]:
    """Return what is there. Quick, so it runs on the event loop itself; harmless, so a client may repeat it."""
    return shelves


@stock.method
async def count_by_hand(seconds: float) -> int:
    """Take a long time. If the caller's deadline passes first, this is cancelled here as well."""
    await asyncio.sleep(seconds)
    return sum(shelves.values())


@stock.method
def recount(ctx: hostline.Context) -> str:
    """Show what a handler may know of its caller, and stop when nobody waits any more."""
    if ctx.wait_cancelled(0.01):
        return "nobody waits"
    return f"for uid {ctx.peer.uid}, {ctx.time_left:.0f} seconds left"


@stock.method(allow=hostline.Peers(uids=[0]))
def reset() -> None:
    """Only root may."""
    shelves.clear()


if __name__ == "__main__":
    stock.run(concurrency=16, queue=64)
