"""The payment service: its methods first, and what makes it a process of the demo below.

python -m hostline.demo.payments                     serves `payments` in the runtime directory
hostline serve hostline.demo.payments:payments       the same
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable

from hostline.aio.serving.server import Server
from hostline.aio.serving.service import Service
from hostline.demo.journal import Journal
from hostline.demo.model import (
    CardDeclined,
    Charge,
    Order,
    Quote,
    Receipt,
    Refund,
    Settled,
    UnknownReceipt,
)
from hostline.demo.processes import end_with_parent, tell_parent
from hostline.demo.receipts import Counter
from hostline.errors import AddressInUseError, HostlineError

__all__ = ["main", "payments"]

# Seconds that the bank takes to answer.
_BANK = 0.005

# Seconds between two looks whether the address has become free.
_PATIENCE = 0.01

payments = Service("payments", version="1", doc="Takes money from cards and gives it back. None of it is real.")
journal = Journal()


@payments.method(inline=True, idempotent=True)
def quote(order: Order) -> Quote:
    """Return what an order would cost, and how much of that is tax."""
    cents = order.quantity * order.price_cents
    return Quote(order.id, cents, cents - round(cents / 1.19), order.currency)


@payments.method(raises=CardDeclined)
def charge(charge: Charge) -> Receipt:
    """Take money from a card; calling it twice takes it twice, so that no client repeats it by itself."""
    return journal.charge(charge)


@payments.method(raises=UnknownReceipt, idempotent=True)
def refund(receipt: int) -> Refund:
    """Give the money of a receipt back, once, however often it is called."""
    return journal.refund(receipt)


@payments.method
def settle(number: int) -> Settled:
    """Write a number into the journal, as slowly as a bank; calling it twice writes it twice."""
    time.sleep(_BANK)
    journal.settle(number)
    return Settled(number, os.getpid())


@payments.method(inline=True, idempotent=True)
def totals() -> dict[str, int]:
    """Return the cents taken and not given back, by currency."""
    return journal.totals()


# --- the process -------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        arguments: The command line behind the program's name.
    """
    parser = argparse.ArgumentParser(prog="python -m hostline.demo.payments", description=payments.doc)
    parser.add_argument("address", nargs="?", default="payments", help="where to serve: a bare name or a path")
    parser.add_argument("--journal", metavar="FILE", help="write what happens into this new file")
    parser.add_argument("--counter", metavar="ADDRESS", help="hand out the day's receipts at a socket of their own")
    parser.add_argument("--succeed", action="store_true", help="wait until whoever holds the address lets go of it")
    parser.add_argument("--leash", action="store_true", help="end when standard input ends")
    options = parser.parse_args(arguments)
    if options.counter and not options.journal:
        parser.error("--counter hands out receipts of a journal: name one with --journal")
    if options.leash:
        end_with_parent()
    global journal
    journal = Journal(options.journal)
    try:
        with Counter(options.counter, journal) if options.counter else contextlib.nullcontext():
            _run(options.address, lambda server: tell_parent("serving", server.address), is_patient=options.succeed)
    except HostlineError as error:
        sys.exit(f"payments: {error}")
    finally:
        journal.close()


def _run(address: str, on_start: Callable[[Server], None], *, is_patient: bool) -> None:
    """Serve; a patient one tries until the address is free."""
    has_told = False
    while True:
        try:
            payments.run(address, on_start=on_start)
            return
        except AddressInUseError as error:
            if not is_patient:
                raise
            if not has_told:
                has_told = True
                tell_parent("waiting", str(error))
            time.sleep(_PATIENCE)


if __name__ == "__main__":
    main()
