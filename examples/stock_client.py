"""A client with an interface: editor and type checker complete and check every call.

Prints:

    9 left
    out of stock: 3 of coffee left, 100 wanted
    wrong: take: argument `count`: Expected `int`, got `str` - at `count`
    counting by hand takes too long
    {'tea': 9, 'coffee': 3}
"""

from __future__ import annotations

from typing import Protocol

import hostline


class OutOfStock(Exception):
    """What the service raises; it arrives as this class."""


class Stock(hostline.Interface, Protocol):
    """What the service offers."""

    @hostline.raises(OutOfStock)
    def take(self, sku: str, count: int = 1) -> int: ...

    def look(self) -> dict[str, int]: ...

    def count_by_hand(self, seconds: float) -> int: ...


with hostline.connect("stock", Stock, timeout=5.0) as stock:
    print(stock.take("tea", count=3), "left")
    try:
        stock.take("coffee", 100)
    except OutOfStock as error:
        print("out of stock:", error)
    try:
        stock.line.call("take", "tea", count="two")  # by name and unchecked, as a shell would
    except hostline.InvalidArgumentError as error:
        print("wrong:", error)
    try:
        stock.with_timeout(0.05).count_by_hand(60.0)
    except hostline.DeadlineExceededError:
        print("counting by hand takes too long")
    print(stock.look())
