"""The buffers that users have with a server: bytes mapped for calls that have not ended, counted before they are."""

from __future__ import annotations

from functools import partial

from hostline.aio.serving.running import RunningCall
from hostline.errors import OverloadedError
from hostline.limits import MAX_MAPPED_PER_UID
from hostline.protocol.serving.quotas import owner_in_words
from hostline.rpc.attachments import ArrivedValues
from hostline.rpc.dispatch import Invocation, bind

__all__ = ["MappedBuffers"]


class MappedBuffers:
    """Count the bytes of buffers by the user who sent them."""

    __slots__ = ("_by_uid",)

    def __init__(self) -> None:
        self._by_uid: dict[int, int] = {}

    @property
    def total(self) -> int:
        """Bytes of all users together."""
        return sum(self._by_uid.values())

    def bind(self, call: RunningCall) -> Invocation:
        """Check a call's arguments; the descriptors and buffers that came with them are the handler's from now on.

        Raises:
            InvalidArgumentError: An argument is wrong; all that came is closed.
            OverloadedError: Its user has too much here; the same.
        """
        if not call.fds:
            return bind(call.method, call.payload, call.is_named, call.context, call.inlet)
        arrived = ArrivedValues(call.take_fds(), call.method.fd_kinds, partial(self._charge, call))
        try:
            return bind(call.method, call.payload, call.is_named, call.context, call.inlet, arrived)
        except BaseException:
            self.release(call)
            raise

    def _charge(self, call: RunningCall, size: int) -> None:
        uid = call.calls.peer.account
        total = self._by_uid.get(uid, 0) + size
        if total > MAX_MAPPED_PER_UID:
            reason = (
                f"buffers of {owner_in_words(uid)} would take {total} bytes here, and {MAX_MAPPED_PER_UID} are the most"
            )
            raise OverloadedError(reason)
        self._by_uid[uid] = total
        call.mapped += size

    def release(self, call: RunningCall) -> None:
        """Take a call's buffers off the account: it has ended."""
        if not call.mapped:
            return
        uid = call.calls.peer.account
        left = self._by_uid.get(uid, 0) - call.mapped
        call.mapped = 0
        if left > 0:
            self._by_uid[uid] = left
        else:
            self._by_uid.pop(uid, None)
