"""One call at the server, from its arrival to its end, and how its handler is run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hostline.clock import Deadline
from hostline.rpc.context import Context, enter_context
from hostline.rpc.dispatch import Invocation
from hostline.rpc.service import Method
from hostline.unix.passing.descriptors import Fd

if TYPE_CHECKING:
    from hostline.aio.serving.calls import Calls
    from hostline.aio.serving.streams import Inlet, Outlet

__all__ = ["RunningCall", "contained", "send_all", "send_all_from_thread"]


async def contained(invocation: Invocation) -> Any:
    """Run an `async def` handler; one that exits fails like any other, and does not end the service."""
    try:
        return await invocation.run()
    except SystemExit as error:
        raise RuntimeError(f"handler exited with {error.code!r}") from error


async def send_all(invocation: Invocation, outlet: Outlet) -> None:
    """Run an async generator and send what it yields."""
    enter_context(outlet.call.context)
    generator = invocation.run()
    try:
        async for item in generator:
            await outlet.send(item)
    except SystemExit as error:
        raise RuntimeError(f"handler exited with {error.code!r}") from error
    finally:
        await generator.aclose()


def send_all_from_thread(invocation: Invocation, outlet: Outlet) -> None:
    """Run a generator, or take any other iterator that a handler returns, and send what it yields."""
    iterator = iter(invocation.run())
    try:
        for item in iterator:
            outlet.send_from_thread(item)
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


class RunningCall:
    """Hold one call from its arrival to its end."""

    __slots__ = (
        "call_id",
        "calls",
        "context",
        "deadline",
        "fds",
        "held",
        "inlet",
        "is_ended",
        "is_named",
        "mapped",
        "method",
        "outlet",
        "payload",
        "task",
        "timer",
    )

    def __init__(
        self,
        calls: Calls,
        call_id: int,
        method: Method,
        payload: bytes | memoryview,
        is_named: bool,
        deadline: Deadline,
        fds: Sequence[Fd] = (),
    ) -> None:
        self.calls = calls
        self.call_id = call_id
        self.method = method
        self.payload = payload
        self.is_named = is_named
        self.deadline = deadline
        self.fds = fds  # that came with its arguments, until these are decoded
        self.mapped = 0  # bytes of the buffers among its arguments
        self.context: Context | None = None
        self.task: asyncio.Task[Any] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.is_ended = False
        self.held = 0  # bytes of arguments and items that no handler has taken yet
        self.inlet: Inlet | None = None  # of the argument that is a stream
        self.outlet: Outlet | None = None  # of a result that is one

    def take_fds(self) -> Sequence[Fd]:
        """Return what came with the arguments, once, and take it off the account."""
        fds, self.fds = self.fds, ()
        self.calls.release_fds(len(fds))
        return fds

    def let_go(self) -> None:
        """Hold nothing of the handler any more: what it held may be descriptors, which are to close now."""
        if self.inlet is not None:
            self.inlet.end(None)
        for gate in (self.inlet, self.outlet):
            if gate is not None:
                gate.let_go()
        self.task = self.inlet = self.outlet = None

    def was_told(self, failure: BaseException) -> bool:
        """Say whether a failure is what a stream raised to tell the handler that its call is over."""
        return any(gate is not None and failure is gate.reason for gate in (self.inlet, self.outlet))
