"""A stock whose prices and quantities are asked for one by one.

Start it with `python batch_server.py`, then run batch_client.py.
"""

from __future__ import annotations

import hostline

STOCK = {"tea": 12, "milk": 3, "salt": 0}

shelf = hostline.Service("shelf")


@shelf.method(inline=True, idempotent=True, raises=KeyError)
def count(sku: str) -> int:
    """Return how many there are."""
    return STOCK[sku]


@shelf.method(raises=ValueError)
def take(sku: str, quantity: int) -> int:
    """Take some, and return how many are left."""
    if STOCK[sku] < quantity:
        raise ValueError(f"only {STOCK[sku]} of {sku}")
    STOCK[sku] -= quantity
    return STOCK[sku]


if __name__ == "__main__":
    shelf.run("./shelf.sock")
