"""A service: one method, one type for what it takes and one for what it gives."""

from __future__ import annotations

import msgspec

import hostline


class Order(msgspec.Struct):
    id: int
    sku: str
    quantity: int
    price: float


class Receipt(msgspec.Struct):
    order: int
    total: float


payments = hostline.Service("payments")


@payments.method
def charge(order: Order) -> Receipt:
    """Charge for an order."""
    return Receipt(order.id, order.quantity * order.price)


if __name__ == "__main__":
    payments.run(concurrency=10)
