"""Subscribe to what topic_server.py publishes.

Prints:

    tea: 450, dropped before it: 0
    milk: 120, dropped before it: 0
    2 published, 0 subscribers now
"""

from __future__ import annotations

import threading
import time

import msgspec

import hostline


class Price(msgspec.Struct):
    symbol: str
    cents: int


def publish() -> None:
    """Publish two prices once there is a subscriber."""
    while line.call("counters", returns=hostline.TopicStats).subscribers == 0:
        time.sleep(0.01)
    line.call("offer", "tea", 450)
    line.call("offer", "milk", 120)


def subscribers() -> int:
    return line.call("counters", returns=hostline.TopicStats).subscribers


with hostline.connect("./market.sock", wait=5) as line:
    publisher = threading.Thread(target=publish)
    publisher.start()
    # A stream has no deadline unless it is given one: a subscription lasts until either side ends it.
    with line.stream("prices", returns=hostline.Published[Price]) as published:
        for item in published:
            print(f"{item.value.symbol}: {item.value.cents}, dropped before it: {item.dropped}")
            if item.value.symbol == "milk":
                break
    publisher.join()
    while subscribers():  # the server hears of the end a moment later
        time.sleep(0.01)
    counters = line.call("counters", returns=hostline.TopicStats)
    print(f"{counters.published} published, {counters.subscribers} subscribers now")
