"""What an editor and a type checker know of `connect(address, Interface)`. Read by mypy and pyright, never run.

A line with `type: ignore[code]` is one that both must refuse: for one that does not, the comment is unused, and
that is an error too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Protocol, assert_type

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


Directory = Annotated[hostline.Fd, hostline.fd_kinds("directory")]


class Archive(hostline.Interface, Protocol):
    """A service that takes and gives descriptors and large bytes."""

    def store(self, data: hostline.Buffer) -> hostline.Fd: ...

    def load(self, file: hostline.Fd) -> hostline.Buffer: ...

    def open_directory(self, path: str) -> Directory: ...

    def parts(self, files: Iterator[hostline.Fd]) -> Iterator[hostline.Buffer]: ...


class AsyncArchive(hostline.aio.Interface, Protocol):
    """The same service, for asyncio."""

    async def store(self, data: hostline.Buffer) -> hostline.Fd: ...

    async def load(self, file: hostline.Fd) -> hostline.Buffer: ...


def descriptors_and_buffers(data: bytearray) -> None:
    """Send what has bytes, and use what came as a memoryview."""
    with hostline.connect("archive", Archive) as archive:
        with archive.store(hostline.Buffer(data)) as file:
            assert_type(file, hostline.Fd)
            assert_type(file.kind == "memfd", bool)
            received = archive.load(file)
            assert_type(received, hostline.Buffer)
            assert_type(len(received), int)
            assert_type(received.tobytes(), bytes)
            assert_type(memoryview(received)[1:3].tobytes(), bytes)
            assert_type(bytes(received), bytes)
            archive.store(received)  # wrapped or not, whatever came can be sent on
        with archive.open_directory("/") as directory:
            assert_type(directory, hostline.Fd)
        for part in archive.parts(iter([archive.open_directory("/")])):
            assert_type(part, hostline.Buffer)
        archive.store(3)  # type: ignore[arg-type]
        archive.load(hostline.Buffer(data))  # type: ignore[arg-type]
        received[0] = 1  # type: ignore[index]
    hostline.fd_kinds("folder")  # type: ignore[arg-type]


async def descriptors_and_buffers_on_asyncio() -> None:
    """Do the same from asyncio."""
    async with hostline.aio.connect("archive", AsyncArchive) as archive:
        with await archive.store(hostline.Buffer(b"x")) as file:
            assert_type(await archive.load(file), hostline.Buffer)
        await archive.store("x")  # type: ignore[arg-type]


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
