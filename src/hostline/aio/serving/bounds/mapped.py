"""Buffers that came with a call: charged to its user before they are mapped, until the call has ended."""

from __future__ import annotations

from functools import partial

from hostline.aio.serving.running import RunningCall
from hostline.errors import OverloadedError
from hostline.limits import MAX_MAPPED_PER_UID
from hostline.rpc.attachments import ArrivedValues
from hostline.rpc.dispatch import Invocation, bind

__all__ = ["bind_arguments", "release_buffers"]


def bind_arguments(call: RunningCall) -> Invocation:
    """Check a call's arguments; the descriptors and buffers that came with them are the handler's from now on.

    Raises:
        InvalidArgumentError: An argument is wrong; all that came is closed.
        OverloadedError: Its user has too much here; the same.
    """
    if not call.fds:
        return bind(call.method, call.payload, call.is_named, call.context, call.inlet)
    arrived = ArrivedValues(call.take_fds(), call.method.fd_kinds, partial(_charge, call))
    try:
        return bind(call.method, call.payload, call.is_named, call.context, call.inlet, arrived)
    except BaseException:
        release_buffers(call)
        raise


def _charge(call: RunningCall, size: int) -> None:
    account = call.calls.account
    total = account.mapped + size
    if total > MAX_MAPPED_PER_UID:
        raise OverloadedError(
            f"buffers of {account.who} would take {total} bytes here, and {MAX_MAPPED_PER_UID} are the most"
        )
    account.mapped = total
    call.mapped += size


def release_buffers(call: RunningCall) -> None:
    """Take a call's buffers off its user's account: it has ended."""
    call.calls.account.mapped -= call.mapped
    call.mapped = 0
