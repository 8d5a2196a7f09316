"""Make many calls at once: one write, and an outcome for each.

Prints:

    tea: 12
    milk: 3
    salt: 0
    3 left
    ValueError: only 3 of milk
    [12, 3]
"""

from __future__ import annotations

from typing import Protocol

import hostline


class Shelf(hostline.Interface, Protocol):
    def count(self, sku: str) -> int: ...
    @hostline.raises(ValueError)
    def take(self, sku: str, quantity: int) -> int: ...


with hostline.connect("./shelf.sock", wait=5) as line:
    with line.batch(timeout=2) as batch:
        counts = {sku: batch.call("count", sku, returns=int) for sku in ("tea", "milk", "salt")}
    for sku, call in counts.items():
        print(f"{sku}: {call.result()}")

    with line.batch(timeout=2) as batch:
        taken = batch.call("take", "milk", 0, returns=int)
        refused = batch.call("take", "milk", 9, returns=int, raises=[ValueError])
    print(taken.result(), "left")
    print(f"{type(refused.exception()).__name__}: {refused.exception()}")

# The same, completed and checked by editors and type checkers.
with hostline.connect("./shelf.sock", Shelf) as shelf:
    with shelf.line.batch() as batch:
        for sku in ("tea", "milk"):
            batch.submit(shelf.count, sku)
    print(batch.results())
