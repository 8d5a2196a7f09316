"""A client in asyncio: many calls at once on one connection.

Prints:

    order 1: 9.00
    order 2: 18.00
    order 3: 27.00
"""

from __future__ import annotations

import asyncio

import hostline
from payments import Order, Receipt


async def main() -> None:
    async with hostline.aio.connect("payments") as line:
        orders = [Order(number, "tea", 2 * number, 4.5) for number in (1, 2, 3)]
        calls = [line.call("charge", order, returns=Receipt, timeout=0.5) for order in orders]
        for receipt in await asyncio.gather(*calls):
            print(f"order {receipt.order}: {receipt.total:.2f}")


asyncio.run(main())
