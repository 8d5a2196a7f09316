"""Credit: how many bytes of items one side may still send on a stream, and when the other grants more.

Theory. Every stream begins with `STREAM_CREDIT` bytes of credit. An item costs its frame: the header and the payload,
and `FD_COST` for each of its descriptors.
A sender may send while it has any credit left, so that one item of whatever size always fits and the account may be
overdrawn by that item. The reader grants back what its program has taken, half the credit at a time. So a reader that
does not read holds back its own stream and nothing else, and what it has to keep is bounded by the credit and one
frame.
"""

from __future__ import annotations

from typing import Final

from hostline.errors import RemoteProtocolError
from hostline.limits import FD_COST, MAX_STREAM_CREDIT, STREAM_CREDIT
from hostline.wire.attached import Attached
from hostline.wire.frame import HEADER_SIZE

__all__ = ["Allowance", "Window", "item_cost"]

_GRANT_AT: Final = STREAM_CREDIT // 2
_FIRST: Final = STREAM_CREDIT
_MOST: Final = MAX_STREAM_CREDIT
_SIZE: Final = HEADER_SIZE
_FD_COST: Final = FD_COST


def item_cost(frame: bytearray) -> int:
    """Return what an item's frame takes of its stream's credit beside the header, in bytes."""
    size = len(frame) - _SIZE
    return size + _FD_COST * len(frame.fds) if type(frame) is Attached else size


class Allowance:
    """The sender's side: what may still be sent.

    Attributes:
        left: Bytes; below zero when the last item was larger than what was left.
        is_over: Whether the stream was ended; credit that crosses its end is of no use.
    """

    __slots__ = ("is_over", "left")

    def __init__(self) -> None:
        self.left = _FIRST
        self.is_over = False

    @property
    def may_send(self) -> bool:
        """Whether the next item may be sent now."""
        return self.left > 0 and not self.is_over

    def take(self, size: int) -> None:
        """Pay for an item that costs `size` bytes."""
        self.left -= _SIZE + size

    def grant(self, amount: int) -> None:
        """Add what the reader granted, in bytes.

        Raises:
            RemoteProtocolError: It is nothing, or more than anybody may have.
        """
        if amount < 1 or self.left + amount > _MOST:
            raise RemoteProtocolError(
                f"credit of {amount} bytes on top of {self.left}: must be 1 to {MAX_STREAM_CREDIT} in all"
            )
        self.left += amount


class Window:
    """The reader's side: what may still arrive, and what was taken and not granted again yet.

    Attributes:
        left: Bytes that the sender may still send.
    """

    __slots__ = ("_taken", "left")

    def __init__(self) -> None:
        self.left = _FIRST
        self._taken = 0

    def arrived(self, size: int) -> None:
        """Charge an item that costs `size` bytes.

        Raises:
            RemoteProtocolError: The sender had no credit left.
        """
        if self.left <= 0:
            raise RemoteProtocolError(f"item of {size} bytes without credit")
        self.left -= _SIZE + size

    def taken(self, size: int) -> int:
        """Note that the program took an item that costs `size` bytes; returns the bytes to grant now, mostly 0."""
        self._taken += _SIZE + size
        if self._taken < _GRANT_AT:
            return 0
        amount, self._taken = self._taken, 0
        self.left += amount
        return amount
