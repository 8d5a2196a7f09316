"""What the two services say to each other: types, errors, and the interfaces that callers see.

A type is its own check: an order that does not fit is refused before any code of the service runs.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from hostline.rpc.stubs import raises
from hostline.sync.interface import Interface

__all__ = [
    "CardDeclined",
    "Charge",
    "Currency",
    "Order",
    "Orders",
    "Payments",
    "Placed",
    "Quote",
    "Receipt",
    "Refund",
    "Settled",
    "UnknownOrder",
    "UnknownReceipt",
]

Currency = Literal["EUR", "USD", "GBP", "SEK"]


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One order of a customer; money is in cents."""

    id: Annotated[int, Meta(ge=1)]
    placed_at: Annotated[datetime.datetime, Meta(tz=True)]
    customer: Annotated[str, Meta(pattern=r"^C[0-9]{5}$")]
    sku: Annotated[str, Meta(pattern=r"^[A-Z]{3}-[A-Z0-9]+-[0-9]+$")]
    quantity: Annotated[int, Meta(ge=1, le=100)]
    price_cents: Annotated[int, Meta(ge=1, le=200_000)]
    currency: Currency
    card: Annotated[str, Meta(pattern=r"^tok_[0-9]{4}$")]


class Quote(msgspec.Struct, frozen=True):
    """What an order would cost, and how much of that is tax."""

    order: int
    cents: int
    tax_cents: int
    currency: Currency


class Charge(msgspec.Struct, frozen=True):
    """Money to be taken from a card."""

    order: int
    cents: Annotated[int, Meta(ge=1)]
    currency: Currency
    card: str


class Receipt(msgspec.Struct, frozen=True):
    """Money that was taken from a card."""

    number: int
    order: int
    cents: int
    currency: Currency


class Refund(msgspec.Struct, frozen=True):
    """Money that was given back."""

    receipt: int
    order: int
    cents: int
    currency: Currency


class Placed(msgspec.Struct, frozen=True):
    """The answer to an order that went through."""

    order: int
    receipt: int
    cents: int
    currency: Currency


class Settled(msgspec.Struct, frozen=True):
    """The answer to a numbered call, with the process that ran it."""

    number: int
    pid: int


class CardDeclined(Exception):
    """Report that the bank does not pay."""


class UnknownReceipt(Exception):
    """Report a receipt that this service did not write."""


class UnknownOrder(Exception):
    """Report an order that was never placed here."""


class Payments(Interface, Protocol):
    """The payment service, as its callers see it."""

    def quote(self, order: Order) -> Quote:
        """Return what an order would cost."""
        ...

    @raises(CardDeclined)
    def charge(self, charge: Charge) -> Receipt:
        """Take money from a card."""
        ...

    @raises(UnknownReceipt)
    def refund(self, receipt: int) -> Refund:
        """Give the money of a receipt back, once, however often it is called."""
        ...

    def settle(self, number: int) -> Settled:
        """Write a number into the journal, as slowly as a bank."""
        ...

    def totals(self) -> dict[str, int]:
        """Return the cents taken and not given back, by currency."""
        ...


class Orders(Interface, Protocol):
    """The order service, as its callers see it."""

    @raises(CardDeclined)
    def place(self, order: Order) -> Placed:
        """Place an order and pay for it."""
        ...

    @raises(UnknownOrder)
    def cancel(self, order: int) -> Refund:
        """Cancel an order and get the money back."""
        ...
