"""What an editor and a type checker know of `connect(address, Interface)`. Read by mypy and pyright, never run.

A line with `type: ignore[code]` is one that both must refuse: for one that does not, the comment is unused, and
that is an error too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, assert_type

import msgspec

import hostline


class Order(msgspec.Struct):
    """Something to pay for."""

    id: int
    price: float


class Receipt(msgspec.Struct):
    """Something paid."""

    order: int
    total: float


class Payments(hostline.Interface, Protocol):
    """The service, for blocking code."""

    def charge(self, order: Order, *, note: str = "") -> Receipt: ...

    @hostline.raises(KeyError)
    def find(self, number: int) -> Order | None: ...


class AsyncPayments(hostline.aio.Interface, Protocol):
    """The same service, for asyncio."""

    async def charge(self, order: Order, *, note: str = "") -> Receipt: ...


def blocking() -> None:
    """Call by method, with everything checked."""
    with hostline.connect("payments", Payments) as payments:
        assert_type(payments, Payments)
        assert_type(payments.charge(Order(1, 2.0)), Receipt)
        assert_type(payments.charge(Order(1, 2.0), note="late").total, float)
        assert_type(payments.with_timeout(0.5).charge(Order(1, 2.0)), Receipt)
        assert_type(payments.find(1), Order | None)
        payments.find("1")  # type: ignore[arg-type]
        payments.charge("tea")  # type: ignore[arg-type]
        payments.charge(Order(1, 2.0), notes="late")  # type: ignore[call-arg]
        payments.refund(Order(1, 2.0))  # type: ignore[attr-defined]
        payments.charge(Order(1, 2.0)).sum  # type: ignore[attr-defined]  # noqa: B018
        with payments.line.batch(timeout=1) as batch:
            charged = batch.submit(payments.charge, Order(1, 2.0), note="late")
            assert_type(charged, hostline.BatchCall[Receipt])
            assert_type(charged.result(), Receipt)
            batch.submit(payments.charge, "tea")  # type: ignore[arg-type]
    with hostline.connect("payments") as line:
        assert_type(line, hostline.Line)


async def asynchronous() -> None:
    """Call by method from asyncio."""
    async with hostline.aio.connect("payments", AsyncPayments) as payments:
        assert_type(payments, AsyncPayments)
        assert_type(await payments.charge(Order(1, 2.0)), Receipt)
        await payments.charge("tea")  # type: ignore[arg-type]
        async with payments.line.batch() as batch:
            assert_type(batch.submit(payments.charge, Order(1, 2.0)).result(), Receipt)
            batch.submit(payments.charge, "tea")  # type: ignore[arg-type]
        payments.refund(Order(1, 2.0))  # type: ignore[attr-defined]
    awaited = await hostline.aio.connect("payments", AsyncPayments)
    assert_type(awaited, AsyncPayments)
    async with hostline.aio.connect("payments") as line:
        assert_type(line, hostline.aio.Line)


service = hostline.Service("payments")


@service.method
def charge(order: Order) -> Receipt:
    """Stay what it is: a plain function that can be called."""
    return Receipt(order.id, order.price)


@service.method(inline=True)
async def later(order: Order) -> Receipt:
    """Stay a coroutine function."""
    return Receipt(order.id, order.price)


def errors_are_public() -> None:
    """Catch what the package exports."""
    try:
        charge(Order(1, 2.0))
    except hostline.OverloadedError as error:
        assert_type(error.message, str)
    except hostline.SocketError as error:
        assert_type(error.operation, str)


def methods_stay_functions() -> None:
    """Call a method as the function it is."""
    plain: Callable[[Order], Receipt] = charge
    assert_type(plain(Order(1, 2.0)), Receipt)
    charge("tea")  # type: ignore[arg-type]
