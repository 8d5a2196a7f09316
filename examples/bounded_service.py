"""Bounds for each user: a call too many is refused by name, a stopped peer is found, and the charges can be read.

Prints:

    too many: uid ... has 3 calls running or waiting at shop, its most: max_calls_per_uid
    charged now: 1 connections, 1 running, 2 waiting
    charged after: 0 running, 0 waiting, 0 bytes
"""

from __future__ import annotations

import asyncio

import hostline

shop = hostline.Service("shop")


@shop.method
async def pack(seconds: float) -> float:
    """Take a while."""
    await asyncio.sleep(seconds)
    return seconds


async def main() -> None:
    bounds = {"concurrency": 1, "max_calls_per_uid": 3, "idle_timeout": 600.0}
    async with shop.serve("./shop.sock", **bounds):
        async with hostline.aio.connect("./shop.sock", ping_interval=5.0, ping_timeout=5.0) as line:
            async with asyncio.TaskGroup() as calls:
                for _ in range(3):
                    calls.create_task(line.call("pack", 0.2))
                await asyncio.sleep(0.05)
                try:
                    await line.call("pack", 0.2)
                except hostline.OverloadedError as error:
                    print("too many:", error)
                [user] = (await line.call("hostline.stats"))["users"]
                print(
                    f"charged now: {user['connections']} connections, {user['running']} running, "
                    f"{user['waiting']} waiting"
                )
            [user] = (await line.call("hostline.stats"))["users"]
            print(f"charged after: {user['running']} running, {user['waiting']} waiting, {user['bytes']} bytes")


asyncio.run(main())
