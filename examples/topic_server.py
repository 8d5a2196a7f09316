"""A market that publishes its prices to whoever listens, and drops the oldest for those who cannot keep up.

Start it with `python topic_server.py`, then run topic_client.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

import hostline


class Price(msgspec.Struct):
    symbol: str
    cents: int


market = hostline.Service("market")
prices = hostline.Topic(Price, max_queue=1000, policy="drop_oldest")

# A method without arguments that streams the topic, and tells each subscriber what it lost.
market.topic("prices", prices)


@market.method
async def watch(symbol: str) -> AsyncIterator[Price]:
    """Stream the prices of one symbol, plain: for those who need not know what they lost."""
    async for price in prices.subscribe(where=lambda price: price.symbol == symbol):
        yield price


@market.method
def offer(symbol: str, cents: int) -> int:
    """Publish a price, from a worker thread here, and say how many subscribers it goes to."""
    return prices.publish(Price(symbol, cents))


@market.method(inline=True)
def counters() -> hostline.TopicStats:
    """Tell what became of the prices."""
    return prices.stats()


if __name__ == "__main__":
    # Each subscriber has one of the service's places for as long as it stays.
    market.run("./market.sock", concurrency=1000)
