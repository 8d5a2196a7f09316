"""One call at the server, from its arrival to its end, and how its handler is run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hostline.clock import Deadline
from hostline.rpc.context import Context
from hostline.rpc.dispatch import Invocation
from hostline.rpc.service import Method

if TYPE_CHECKING:
    from hostline.aio.serving.session import Session

__all__ = ["RunningCall", "contained"]


async def contained(invocation: Invocation) -> Any:
    """Run an `async def` handler; one that exits fails like any other, and does not end the service."""
    try:
        return await invocation.run()
    except SystemExit as error:
        raise RuntimeError(f"handler exited with {error.code!r}") from error


class RunningCall:
    """Hold one call from its arrival to its end."""

    __slots__ = (
        "call_id",
        "context",
        "deadline",
        "is_ended",
        "is_named",
        "method",
        "payload",
        "session",
        "task",
        "timer",
    )

    def __init__(
        self, session: Session, call_id: int, method: Method, payload: bytes, is_named: bool, deadline: Deadline
    ) -> None:
        self.session = session
        self.call_id = call_id
        self.method = method
        self.payload = payload
        self.is_named = is_named
        self.deadline = deadline
        self.context: Context | None = None
        self.task: asyncio.Task[Any] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.is_ended = False
