"""What should come out, computed from the file of orders alone.

This shares no code with the services: no types, no msgspec, no totals of anybody. The demo compares the two.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ORDERS_FILE", "Book", "Fault", "keep_book"]

ORDERS_FILE = Path(__file__).with_name("orders.jsonl")

_FIELDS = ("id", "placed_at", "customer", "sku", "quantity", "price_cents", "currency", "card")
_CURRENCIES = ("EUR", "USD", "GBP", "SEK")
_DECLINED = ("tok_0002", "tok_9995")


@dataclass(frozen=True)
class Fault:
    """What is wrong with a line.

    Attributes:
        kind: In a few words.
        field: Which field; empty if the line holds none.
    """

    kind: str
    field: str


@dataclass
class Book:
    """What should come out.

    Attributes:
        lines: Lines of the file.
        declined: Orders whose cards are declined.
        charged: Orders that are paid.
        totals: Cents of these, by currency.
        faults: What is wrong with which line, by its number.
    """

    lines: int = 0
    declined: int = 0
    charged: int = 0
    totals: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    faults: dict[int, Fault] = field(default_factory=dict)

    @property
    def good(self) -> int:
        """Lines that are orders."""
        return self.charged + self.declined

    @property
    def kinds(self) -> Counter[str]:
        """How many lines are malformed in which way."""
        return Counter(fault.kind for fault in self.faults.values())


def keep_book(lines: Iterable[bytes]) -> Book:
    """Return what should come out of a file of orders.

    Args:
        lines: Its lines.
    """
    book = Book()
    for number, line in enumerate(lines, 1):
        book.lines += 1
        fault = _fault(line)
        if fault is not None:
            book.faults[number] = fault
            continue
        row = json.loads(line)
        if row["card"] in _DECLINED:
            book.declined += 1
        else:
            book.charged += 1
            book.totals[row["currency"]] += row["quantity"] * row["price_cents"]
    return book


def _fault(line: bytes) -> Fault | None:
    try:
        row = json.loads(line)
    except ValueError:
        return Fault("not JSON", "")
    for name in _FIELDS:
        if name not in row:
            return Fault("a field is missing", name)
    for name in row:
        if name not in _FIELDS:
            return Fault("a field too many", name)
    return _fault_of_values(row)


def _fault_of_values(row: dict[str, Any]) -> Fault | None:
    if not isinstance(row["customer"], str):
        return Fault("a number instead of text", "customer")
    words = row["sku"].split("-")
    if len(words) != 3 or row["sku"] != row["sku"].upper():
        return Fault("no article number", "sku")
    if row["quantity"] < 1:
        return Fault("negative quantity", "quantity")
    if row["quantity"] > 100:
        return Fault("quantity too big", "quantity")
    if not isinstance(row["price_cents"], int):
        return Fault("a price in quotes", "price_cents")
    if row["currency"] not in _CURRENCIES:
        return Fault("unknown currency", "currency")
    try:
        datetime.datetime.fromisoformat(row["placed_at"])
    except ValueError:
        return Fault("impossible date", "placed_at")
    return None
