"""Batches of calls: collected in a block, sent together at its end, each with its own outcome.

What is sent when, and what is made again, is decided below (rpc/batching.py).
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from hostline.rpc.batch_runs import BatchCall, BatchRun
from hostline.rpc.batching import CallQueue
from hostline.rpc.calling import LineSettings

__all__ = ["Batch"]

T = TypeVar("T")
P = ParamSpec("P")


class Batch(CallQueue):
    """Collect calls, and make them all at the end of the block; made by `Line.batch`.

    After the block each call has its result or its exception. The block itself raises neither. When an exception leaves
    the block nothing is sent.
    """

    def __init__(
        self,
        settings: LineSettings,
        line: object,
        timeout: float | None,
        max_in_flight: int,
        send: Callable[[BatchRun], None],
        is_closed: Callable[[], bool],
    ) -> None:
        super().__init__(settings, line, timeout, max_in_flight)
        self._send = send
        self._is_closed = is_closed

    def submit(self, method: Callable[P, T], /, *args: P.args, **keywords: P.kwargs) -> BatchCall[T]:
        """Queue a call of a method of an interface, typed like the method itself.

            charged = batch.submit(payments.charge, order)

        Args:
            method: A method of an object from `connect(address, Interface)`, whose line this batch is of.
            *args: Its arguments by position.
            **keywords: Its arguments by name.

        Raises:
            LocalProtocolError: The block has ended, the method streams, or the interface is on another line.
            TypeError: It is no such method, or the arguments do not fit it.
        """
        return self._submit(method, args, keywords)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        run = self._leave(error, self._is_closed)
        if run is None:
            return
        try:
            self._send(run)
        except BaseException as interruption:
            self._abandon(interruption)
            raise
