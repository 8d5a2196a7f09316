"""A client in blocking code.

Prints:

    order 1: 9.00
"""

from __future__ import annotations

import hostline
from payments import Order, Receipt

with hostline.connect("payments") as line:
    receipt = line.call("charge", Order(1, "tea", 2, 4.5), returns=Receipt, timeout=0.5)
    print(f"order {receipt.order}: {receipt.total:.2f}")
