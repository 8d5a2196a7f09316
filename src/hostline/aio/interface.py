"""The base of typed interfaces: what an object from `connect(address, Interface)` can do beside its calls."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from hostline.rpc.stubs import with_timeout

if TYPE_CHECKING:
    from hostline.aio.client import Line

__all__ = ["Interface"]


class Interface(Protocol):
    """Describe a service by inheriting this and `typing.Protocol`; the bodies of the methods are never run.

    class Payments(hostline.aio.Interface, Protocol):
        async def charge(self, order: Order) -> Receipt: ...

    async with hostline.aio.connect("payments", Payments) as payments:
        receipt = await payments.charge(order)
    """

    def with_timeout(self, timeout: float) -> Self:
        """Return the same line with another timeout, in seconds, for each call."""
        stub: Self = with_timeout(self, timeout)
        return stub

    @property
    def line(self) -> Line:
        """The `Line` underneath."""
        line: Line = vars(self)["_line"]
        return line

    async def close(self) -> None:
        """Close the line."""
        await self.line.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
