"""The shipped file of orders: made by its script, and malformed exactly where and how it says."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from tests.tree import TREE

from hostline.demo.book import ORDERS_FILE, keep_book
from hostline.demo.model import Order

LINES = ORDERS_FILE.read_bytes().splitlines()
BOOK = keep_book(LINES)


def complaint(line: bytes) -> str:
    """Return what the order service's own type says of a line; empty if it is an order."""
    try:
        row = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        return f"not JSON: {error}"
    try:
        msgspec.msgpack.decode(msgspec.msgpack.encode(row), type=Order)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def test_the_script_writes_the_shipped_file_to_the_byte() -> None:
    script = [sys.executable, str(TREE / "tools" / "make_orders.py")]
    assert subprocess.run(script, capture_output=True, check=True).stdout == ORDERS_FILE.read_bytes()


def test_one_line_in_fifty_is_malformed_in_each_of_ten_ways() -> None:
    assert (BOOK.lines, BOOK.good, len(BOOK.faults)) == (5_000, 4_900, 100)
    assert sorted((number - 1) // 50 for number in BOOK.faults) == list(range(100))
    assert len(BOOK.kinds) == 10
    assert set(BOOK.kinds.values()) == {10}


def test_the_book_and_the_services_type_agree_about_every_line() -> None:
    found = {number: text for number, line in enumerate(LINES, 1) if (text := complaint(line))}
    assert found.keys() == BOOK.faults.keys()
    for number, fault in BOOK.faults.items():
        assert fault.field in found[number], (number, fault, found[number])


def test_the_orders_look_like_a_day_of_a_shop() -> None:
    orders = [
        msgspec.json.decode(line, type=Order) for number, line in enumerate(LINES, 1) if number not in BOOK.faults
    ]
    assert [order.placed_at for order in orders] == sorted(order.placed_at for order in orders)
    assert {order.placed_at.date().isoformat() for order in orders} == {"2026-03-02"}
    assert {order.currency for order in orders} == {"EUR", "USD", "GBP", "SEK"}
    assert len({order.customer for order in orders}) > 1_000
    assert 20 < len({order.sku for order in orders}) < 50
    assert 0 < BOOK.declined < 150


@pytest.mark.parametrize(
    ("line", "kind", "field"),
    [
        (b"", "not JSON", ""),
        (b"[1, 2", "not JSON", ""),
        (b"{}", "a field is missing", "id"),
    ],
)
def test_the_book_names_what_is_wrong(line: bytes, kind: str, field: str) -> None:
    fault = keep_book([line]).faults[1]
    assert (fault.kind, fault.field) == (kind, field)
