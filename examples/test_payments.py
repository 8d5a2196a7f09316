"""Tests of a service: both faces, a time limit, a file that a killed server left, and nothing left behind.

Run with pytest; hostline brings the fixtures.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import hostline
from hostline.testing import Serve, Stall
from payments import Order, Receipt, payments

pytestmark = pytest.mark.hostline_leak_check


def test_an_order_is_charged(hostline_serve: Serve) -> None:
    line = hostline_serve(payments).connect()
    assert line.call("charge", Order(1, "tea", 2, 4.5), returns=Receipt) == Receipt(1, 9.0)


def test_an_order_is_charged_from_asyncio(hostline_serve: Serve) -> None:
    served = hostline_serve(payments)

    async def main() -> Receipt:
        async with served.aio_connect() as line:
            receipt: Receipt = await line.call("charge", Order(1, "tea", 2, 4.5), returns=Receipt)
            return receipt

    assert asyncio.run(main()) == Receipt(1, 9.0)
    assert served.stats().calls.finished == 1


def test_a_service_that_hangs_costs_no_more_than_the_timeout(hostline_stalled_peer: Stall) -> None:
    with hostline.connect(hostline_stalled_peer(payments).address) as line:
        with pytest.raises(hostline.DeadlineExceededError):
            line.call("charge", Order(1, "tea", 2, 4.5), timeout=0.1)


def test_a_restart_after_a_kill_finds_the_old_file_and_takes_its_place(
    hostline_serve: Serve, hostline_stale_file: Path
) -> None:
    assert hostline_serve(payments, hostline_stale_file).connect().call("hostline.health")["status"] == "ok"
