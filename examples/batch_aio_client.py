"""Make many calls at once, on asyncio.

Prints:

    tea: 12
    milk: 3
    salt: 0
"""

from __future__ import annotations

import asyncio

import hostline


async def main() -> None:
    async with hostline.aio.connect("./shelf.sock", wait=5) as line:
        async with line.batch(timeout=2) as batch:
            counts = {sku: batch.call("count", sku, returns=int) for sku in ("tea", "milk", "salt")}
        for sku, call in counts.items():
            print(f"{sku}: {call.result()}")


asyncio.run(main())
