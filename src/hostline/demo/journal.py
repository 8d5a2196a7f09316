"""The payment service's journal: what it did, one JSON object a line, and the sums of it.

Every line is written with one system call before the call that caused it is answered, so a process that ends by
SIGTERM leaves no half line. There is no fsync: losing power is not what the demo shows.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import msgspec

from hostline.demo.model import CardDeclined, Charge, Receipt, Refund, UnknownReceipt
from hostline.unix.passing.descriptors import Fd

__all__ = ["Journal", "Record", "read_journal"]


class Record(msgspec.Struct, frozen=True):
    """One line: a charge, a refund or a settled number, and when, on this host's monotonic clock in seconds."""

    kind: str
    at: float
    number: int
    order: int = 0
    cents: int = 0
    currency: str = ""


class Journal:
    """Write what happened and keep the sums; used by several worker threads at once.

    Args:
        path: The file; None keeps the sums and writes nothing.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._file = Fd(os.open(path, flags, 0o600)) if path is not None else None
        self._lock = threading.Lock()
        self._receipts: dict[int, Receipt] = {}
        self._refunds: dict[int, Refund] = {}
        self._totals: defaultdict[str, int] = defaultdict(int)

    def charge(self, charge: Charge) -> Receipt:
        """Take the money and write the receipt.

        Raises:
            CardDeclined: The card is one of the test cards that are declined.
        """
        reason = _DECLINED.get(charge.card)
        if reason is not None:
            raise CardDeclined(f"order {charge.order}: {reason}")
        with self._lock:
            receipt = Receipt(len(self._receipts) + 1, charge.order, charge.cents, charge.currency)
            self._write("charge", receipt.number, receipt.order, receipt.cents, receipt.currency)
            self._receipts[receipt.number] = receipt
            self._totals[receipt.currency] += receipt.cents
        return receipt

    def refund(self, number: int) -> Refund:
        """Give the money of a receipt back; a second time returns the same refund.

        Raises:
            UnknownReceipt: There is no such receipt.
        """
        with self._lock:
            if number in self._refunds:
                return self._refunds[number]
            receipt = self._receipts.get(number)
            if receipt is None:
                raise UnknownReceipt(f"receipt {number} was not written here")
            self._write("refund", number, receipt.order, -receipt.cents, receipt.currency)
            refund = self._refunds[number] = Refund(number, receipt.order, receipt.cents, receipt.currency)
            self._totals[receipt.currency] -= receipt.cents
        return refund

    def settle(self, number: int) -> None:
        """Write a number; writing it twice writes two lines."""
        with self._lock:
            self._write("settle", number)

    def totals(self) -> dict[str, int]:
        """Return the cents taken and not given back, by currency."""
        with self._lock:
            return dict(self._totals)

    def _write(self, kind: str, number: int, order: int = 0, cents: int = 0, currency: str = "") -> None:
        if self._file is not None:
            record = Record(kind, time.monotonic(), number, order, cents, currency)
            os.write(self._file.fileno(), msgspec.json.encode(record) + b"\n")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


# The tokens of the test cards that a bank declines.
_DECLINED = {"tok_0002": "the bank declined the card", "tok_9995": "the card has insufficient funds"}


def read_journal(data: bytes, **wanted: Any) -> Iterator[Record]:
    """Yield the lines of a journal whose fields are as wanted."""
    for line in data.splitlines():
        record = msgspec.json.decode(line, type=Record)
        if all(getattr(record, name) == value for name, value in wanted.items()):
            yield record
