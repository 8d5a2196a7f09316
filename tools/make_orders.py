"""Write the demo's file of orders, the same bytes every time.

    python tools/make_orders.py > src/hostline/demo/orders.jsonl

One day of a shop that sells tea, coffee and what goes with them: 5,000 orders, one JSON object a line, in the order of
their times. In every block of fifty lines exactly one is malformed, ten of each of ten kinds. Some of the others
are paid with cards that the payment service declines.
"""

from __future__ import annotations

import datetime
import itertools
import json
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

ORDERS = 5_000
BLOCK = 50
DAY = datetime.datetime(2026, 3, 2, tzinfo=datetime.UTC)

# Article and price in euro cents.
CATALOGUE = {
    "TEA-ASSAM-250": 890,
    "TEA-DARJEELING-100": 1450,
    "TEA-EARLGREY-250": 790,
    "TEA-SENCHA-100": 1290,
    "TEA-GYOKURO-50": 2490,
    "TEA-ROOIBOS-500": 690,
    "TEA-MINT-100": 450,
    "TEA-OOLONG-100": 1890,
    "TEA-CHAI-250": 950,
    "TEA-PUERH-357": 3900,
    "COF-YIRGACHEFFE-250": 1190,
    "COF-YIRGACHEFFE-1000": 3990,
    "COF-SUMATRA-250": 1090,
    "COF-HUILA-500": 1790,
    "COF-KENYA-250": 1350,
    "COF-DECAF-500": 1690,
    "COF-HOUSE-1000": 2490,
    "CUP-ESPRESSO-4": 2490,
    "CUP-GLASS-2": 1590,
    "CUP-STONEWARE-1": 1290,
    "POT-CASTIRON-08": 5990,
    "POT-GLASS-12": 2790,
    "POT-KYUSU-03": 6900,
    "KIT-GRINDER-1": 8900,
    "KIT-SCALE-1": 3490,
    "KIT-V60-02": 1990,
    "KIT-FILTER-100": 590,
    "KIT-KETTLE-1": 7490,
    "KIT-WHISK-1": 1850,
    "SWT-CANDY-500": 550,
    "SWT-HONEY-250": 690,
    "SWT-SHORTBREAD-12": 420,
}

# Currency, share of the customers, and what a euro costs in it.
CURRENCIES = (("EUR", 0.58, 1.0), ("USD", 0.22, 1.08), ("GBP", 0.12, 0.86), ("SEK", 0.08, 11.2))

# Orders of each hour of the day, relative to each other.
HOURS = (2, 1, 1, 1, 1, 2, 5, 9, 14, 16, 15, 14, 18, 15, 12, 12, 13, 15, 18, 22, 24, 20, 12, 5)

# Tokens of test cards: the usual one, and two that are declined.
CARD, CARD_DECLINED, CARD_WITHOUT_FUNDS = "tok_4242", "tok_0002", "tok_9995"


class Dice:
    """Random choices made of `random()` alone, whose sequence for a seed is the same in every version of Python."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def below(self, count: int) -> int:
        """Return a whole number from 0 to `count - 1`."""
        return int(self._random() * count)

    def pick(self, options: tuple[Any, ...], weights: tuple[float, ...]) -> Any:
        """Return one of the options."""
        left = self._random() * sum(weights)
        for option, weight in zip(options, weights, strict=True):
            left -= weight
            if left < 0:
                return option
        return options[-1]

    def share(self) -> float:
        """Return a number from 0 up to 1."""
        return self._random()


def good_orders(dice: Dice) -> Iterator[dict[str, Any]]:
    """Yield the orders as they should be."""
    times = sorted(
        DAY + datetime.timedelta(hours=dice.pick(tuple(range(24)), HOURS), seconds=dice.below(3600))
        for _ in range(ORDERS)
    )
    skus = tuple(CATALOGUE)
    # The cheap things sell best.
    popularity = tuple(1000.0 / (CATALOGUE[sku] + 300) for sku in skus)
    for number, placed_at in enumerate(times, 1):
        # The square makes a few customers order often and most of them once or twice.
        customer = int(dice.share() ** 2 * 1800) + 1
        currency, _, rate = CURRENCIES[_country(customer)]
        sku = dice.pick(skus, popularity)
        quantity = dice.pick((1, 2, 3, 4, 6, 12, 24, 100), (52, 22, 9, 6, 5, 4, 1.5, 0.5))
        yield {
            "id": number,
            "placed_at": placed_at.isoformat().replace("+00:00", "Z"),
            "customer": f"C{customer:05d}",
            "sku": sku,
            "quantity": quantity,
            "price_cents": round(CATALOGUE[sku] * rate),
            "currency": currency,
            "card": dice.pick((CARD, CARD_DECLINED, CARD_WITHOUT_FUNDS), (98.8, 0.7, 0.5)),
        }


def _country(customer: int) -> int:
    """Return the index of a customer's currency: always the same one."""
    place = customer * 0.618034 % 1
    for index, (_, share, _) in enumerate(CURRENCIES):
        place -= share
        if place < 0:
            return index
    return 0


# --- what goes wrong ---------------------------------------------------------------------------------


def changed(order: dict[str, Any], **fields: Any) -> str:
    """Return the line of an order with other values."""
    return line(order | fields)


def line(order: dict[str, Any]) -> str:
    """Return an order as it stands in the file."""
    return json.dumps(order, separators=(",", ":"))


BAD_DATES = ("2026-02-30", "02.03.2026")

# Each makes a malformed line out of a good order; the number says how often this kind came before.
FAULTS: tuple[Callable[[dict[str, Any], int], str], ...] = (
    lambda order, n: line({key: value for key, value in order.items() if key != "sku"}),
    lambda order, n: changed(order, customer=int(order["customer"][1:])),
    lambda order, n: changed(order, quantity=-order["quantity"]),
    lambda order, n: changed(order, quantity=order["quantity"] * 1_000_000),
    lambda order, n: changed(order, currency=("BTC", "eur", "XAU", "DEM", "")[n % 5]),
    lambda order, n: changed(order, placed_at=order["placed_at"].replace("2026-03-02", BAD_DATES[n % 2])),
    lambda order, n: changed(order, price_cents=f"{order['price_cents'] / 100:.2f}"),
    lambda order, n: line(order)[: 40 + 7 * n],
    lambda order, n: changed(order, coupon=("SPRING", "WELCOME10", "TEATIME")[n % 3]),
    lambda order, n: changed(order, sku=order["sku"].lower().replace("-", " ")),
)  # fmt: skip


def lines() -> Iterator[str]:
    """Yield the file."""
    dice = Dice(20260302)
    faults = itertools.cycle(range(len(FAULTS)))
    bad_place = 0
    for index, order in enumerate(good_orders(dice)):
        if index % BLOCK == 0:
            bad_place = index + dice.below(BLOCK)
        if index == bad_place:
            yield FAULTS[next(faults)](order, index // BLOCK // len(FAULTS))
        else:
            yield line(order)


if __name__ == "__main__":
    sys.stdout.write("".join(f"{text}\n" for text in lines()))
