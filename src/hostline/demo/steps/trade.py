"""Start the two services, and send the file of orders through them."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hostline.demo.book import Book, keep_book
from hostline.demo.model import CardDeclined, Orders, Payments, Placed
from hostline.demo.report import Step
from hostline.demo.steps.scene import Scene, money
from hostline.errors import InvalidArgumentError
from hostline.rpc.builtin import Health
from hostline.sync.client import Line, connect

__all__ = ["start", "trade"]

# Orders that are cancelled afterwards.
_CANCELLED = 5

# Orders between two movements of the progress bar.
_SHOW_EVERY = 25


def start(scene: Scene, step: Step) -> None:
    """Start the payment service and the order service, each a process of its own."""
    stage, screen = scene.stage, scene.screen
    payments = scene.children["payments"] = stage.start(
        "payments",
        "hostline.demo.payments",
        scene.payments,
        "--journal",
        scene.journal("payments").name,
        "--counter",
        f"./{os.path.basename(scene.counter)}",
    )
    orders = scene.children["orders"] = stage.start(
        "orders", "hostline.demo.orders", scene.orders, "--payments", scene.payments
    )
    payments.expect("serving")
    orders.expect("serving")
    screen.table(
        [
            ("payments", f"pid {payments.pid}", scene.payments),
            ("orders", f"pid {orders.pid}", scene.orders),
            ("this demo", f"pid {os.getpid()}", "calls orders, which calls payments"),
        ],
        "lll",
    )
    screen.line()
    step.facts["pids"] = {"payments": payments.pid, "orders": orders.pid, "demo": os.getpid()}
    for name, address, child in (("payments", scene.payments, payments), ("orders", scene.orders, orders)):
        with connect(address) as line:
            health: Health = line.call("hostline.health", returns=Health)
        is_it = (health.status, health.service, health.pid) == ("ok", name, child.pid)
        step.check(f"{name} answers hostline.health: {health.status}, pid {health.pid}", is_it)


@dataclass
class _Outcome:
    """What the customers saw.

    Attributes:
        placed: The answers to orders that went through.
        declined: Errors of orders whose cards were declined, by line.
        refused: Errors of malformed lines, by line.
    """

    placed: list[Placed] = field(default_factory=list)
    declined: dict[int, str] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)

    def totals(self) -> dict[str, int]:
        """Return the cents that customers were told they had paid, by currency."""
        totals: defaultdict[str, int] = defaultdict(int)
        for placed in self.placed:
            totals[placed.currency] += placed.cents
        return dict(totals)


def trade(scene: Scene, step: Step) -> None:
    """Send the file of orders through the order service, and compare with what the file alone says."""
    lines = scene.orders_file.read_bytes().splitlines()
    book = keep_book(lines)
    with connect(scene.orders) as line, scene.screen.progress("orders", len(lines)) as progress:
        outcome = _place_all(line, lines, progress)
    _show_counts(scene, step, book, outcome)
    _show_refused(scene, step, book, outcome)
    with connect(scene.payments, Payments) as payments:
        _compare_totals(scene, step, book, outcome, payments.totals())
        with connect(scene.orders, Orders) as orders:
            refunds = [orders.cancel(placed.order) for placed in outcome.placed[:_CANCELLED]]
            again = orders.cancel(outcome.placed[0].order)
        scene.totals = dict(book.totals)
        for refund in refunds:
            scene.totals[refund.currency] -= refund.cents
        step.check(
            f"{len(refunds)} orders cancelled, one of them twice: {len(refunds)} refunds, and the totals agree again",
            again == refunds[0] and payments.totals() == scene.totals,
        )


def _place_all(line: Line, lines: list[bytes], progress: Callable[[float], None]) -> _Outcome:
    """Send one line of the file after the other, as it is."""
    outcome = _Outcome()
    for number, text in enumerate(lines, 1):
        try:
            row = json.loads(text)
        except ValueError as error:
            # Nothing to be sent: what is no JSON is no order of any type.
            outcome.refused[number] = f"line {number} is not JSON: {error}"
            continue
        try:
            outcome.placed.append(line.call("place", row, returns=Placed, raises=[CardDeclined]))
        except CardDeclined as error:
            outcome.declined[number] = str(error)
        except InvalidArgumentError as error:
            outcome.refused[number] = str(error)
        if number % _SHOW_EVERY == 0:
            progress(number)
    return outcome


def _show_counts(scene: Scene, step: Step, book: Book, outcome: _Outcome) -> None:
    counts = (len(outcome.placed), len(outcome.declined), len(outcome.refused))
    first = next(iter(outcome.declined.values()), "")
    scene.screen.table(
        [
            (f"{counts[0]:,}", "paid"),
            (f"{counts[1]:,}", "declined by the payment service, like this one:"),
            (f"{counts[2]:,}", "malformed; the first of each kind, as its sender sees it, below"),
        ],
        "rl",
    )
    scene.screen.line()
    scene.screen.shown(f"CardDeclined: {first}")
    scene.screen.line()
    step.facts |= {
        "lines": book.lines,
        "good": counts[0] + counts[1],
        "charged": counts[0],
        "declined": counts[1],
        "malformed": counts[2],
    }


def _show_refused(scene: Scene, step: Step, book: Book, outcome: _Outcome) -> None:
    """Show the first error of each kind, and check every one."""
    kinds: list[dict[str, Any]] = []
    for number, fault in book.faults.items():
        if fault.kind not in [kind["kind"] for kind in kinds]:
            text = outcome.refused.get(number, "went through")
            kinds.append({"kind": fault.kind, "count": book.kinds[fault.kind], "line": number, "error": text})
    for kind in kinds:
        scene.screen.text(f"{kind['count']} x {kind['kind']} (line {kind['line']}):")
        scene.screen.shown(kind["error"])
    scene.screen.line()
    step.facts["kinds"] = kinds
    expected = (book.charged, book.declined, [*book.faults])
    step.check(
        f"{book.good:,} good and {len(book.faults):,} malformed lines: a count of the file without hostline agrees",
        expected == (len(outcome.placed), len(outcome.declined), [*outcome.refused]),
    )
    unnamed = [n for n, fault in book.faults.items() if not _names(outcome.refused.get(n, ""), fault.field)]
    step.check("every error names the field that is wrong, or the column where JSON ends", not unnamed)


def _names(error: str, field: str) -> bool:
    """Say whether an error tells its reader where to look."""
    return f".{field}`" in error or f"`{field}`" in error if field else "column" in error


def _compare_totals(scene: Scene, step: Step, book: Book, outcome: _Outcome, taken: Mapping[str, int]) -> None:
    """Compare what customers paid, what the payment service took, and what the file says."""
    paid = outcome.totals()
    currencies = sorted(book.totals.keys() | paid.keys() | taken.keys())
    rows: list[tuple[str, ...]] = [("", "file alone", "customers paid", "payments took")]
    for currency in currencies:
        amounts = (book.totals.get(currency, 0), paid.get(currency, 0), taken.get(currency, 0))
        rows.append((currency, *map(money, amounts)))
    scene.screen.line()
    scene.screen.table(rows, "lrrr", has_header=True)
    scene.screen.line()
    step.facts["totals"] = {"file": dict(book.totals), "paid": paid, "taken": dict(taken)}
    step.check("the totals agree to the cent", dict(book.totals) == paid == dict(taken))
