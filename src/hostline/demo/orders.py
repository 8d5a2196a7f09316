"""The order service: places orders and has them paid by the payment service, in blocking code.

python -m hostline.demo.orders               serves `orders` in the runtime directory, calls `payments` there
"""

from __future__ import annotations

import argparse
import sys

from hostline.aio.serving.service import Service
from hostline.demo.model import CardDeclined, Charge, Order, Payments, Placed, Refund, UnknownOrder
from hostline.demo.processes import end_with_parent, tell_parent
from hostline.errors import HostlineError
from hostline.sync.client import connect

__all__ = ["main", "make_orders"]


def make_orders(payments: Payments) -> Service:
    """Return the order service.

    Args:
        payments: Where the money comes from; it stays the caller's.
    """
    orders = Service("orders", version="1", doc="Places orders and cancels them.")
    receipts: dict[int, int] = {}

    @orders.method(raises=CardDeclined)
    def place(order: Order) -> Placed:
        """Place an order and pay for it."""
        cents = order.quantity * order.price_cents
        receipt = payments.charge(Charge(order.id, cents, order.currency, order.card))
        receipts[order.id] = receipt.number
        return Placed(order.id, receipt.number, receipt.cents, receipt.currency)

    @orders.method(raises=UnknownOrder, idempotent=True)
    def cancel(order: int) -> Refund:
        """Cancel an order and get the money back, once, however often it is called."""
        if order not in receipts:
            raise UnknownOrder(f"order {order} was not placed here")
        return payments.refund(receipts[order])

    return orders


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        arguments: The command line behind the program's name.
    """
    parser = argparse.ArgumentParser(prog="python -m hostline.demo.orders", description="The demo's order service.")
    parser.add_argument("address", nargs="?", default="orders", help="where to serve: a bare name or a path")
    parser.add_argument("--payments", default="payments", metavar="ADDRESS", help="where the payment service is")
    parser.add_argument("--leash", action="store_true", help="end when standard input ends")
    options = parser.parse_args(arguments)
    if options.leash:
        end_with_parent()
    try:
        with connect(options.payments, Payments, wait=5.0) as payments:
            make_orders(payments).run(options.address, on_start=lambda server: tell_parent("serving", server.address))
    except HostlineError as error:
        sys.exit(f"orders: {error}")


if __name__ == "__main__":
    main()
