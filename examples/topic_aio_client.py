"""Subscribe to one symbol of what topic_server.py publishes, on asyncio.

Prints:

    tea: 450
"""

from __future__ import annotations

import asyncio

import msgspec

import hostline


class Price(msgspec.Struct):
    symbol: str
    cents: int


async def main() -> None:
    async with hostline.aio.connect("./market.sock", wait=5) as line:

        async def publish() -> None:
            """Publish until somebody gets it."""
            while not await line.call("offer", "tea", 450):  # noqa: ASYNC110 - who subscribes is known to the server alone
                await asyncio.sleep(0.01)

        publishing = asyncio.create_task(publish())
        async with line.stream("watch", "tea", returns=Price) as prices:
            price = await anext(prices)
            print(f"{price.symbol}: {price.cents}")
        await publishing


asyncio.run(main())
