"""What a receiver makes of one message of a channel: a value of the expected type, plain bytes, or a refusal.

A refusal is about this message alone; the descriptors of what is refused are closed.
"""

from __future__ import annotations

import errno
from typing import Any, Final

import msgspec

from hostline.errors import DescriptorError, HostlineError, InvalidMessageError
from hostline.protocol.channels.messages import Message, Messages
from hostline.unix.passing.descriptors import close_all
from hostline.wire.budget import SHALLOW, check_budget
from hostline.wire.codec import result_decoder

__all__ = ["ValueReader", "plain_bytes", "value_reader", "without_fds"]

_SHALLOW: Final = SHALLOW


class ValueReader:
    """Read the value of one message, or of many, as the type that the receiver expects; made by `value_reader`."""

    __slots__ = ("_decode", "_extent", "_is_open")

    def __init__(self, expected: Any) -> None:
        decoder, extent = result_decoder(expected)
        self._decode = decoder.decode
        self._extent = extent
        self._is_open = bool(extent)

    def __call__(self, message: Message) -> Any:
        """Return what `read` does."""
        return self.read(message)

    def read(self, message: Message) -> Any:
        """Return the value of a message; on failure its descriptors are closed.

        Raises:
            InvalidMessageError: It is of another type, no MessagePack, or plain bytes.
        """
        data = message.data
        try:
            if message.is_bytes:
                what = f"message of {len(data)} plain bytes, where a value was expected"
                raise InvalidMessageError(f"{what}: receive with recv_bytes", data)
            if self._is_open or len(data) > _SHALLOW:
                check_budget(data, self._extent)
            return self._decode(data)
        except InvalidMessageError:
            close_all(message.fds)
            raise
        except msgspec.ValidationError as error:
            close_all(message.fds)
            raise InvalidMessageError(f"message is not of the expected type: {error}", data) from error
        except Exception as error:  # the type's own checks may raise anything
            close_all(message.fds)
            raise InvalidMessageError(f"message cannot be decoded: {error}", data) from error

    def read_ready(self, messages: Messages, first: Message, max_count: int) -> list[Any]:
        """Return the values of a message and of those that are ready behind it, none of which may have descriptors.

        An error about one message is raised if it is the first; otherwise `messages` gives it next.

        Args:
            messages: What gives those behind it.
            first: The message.
            max_count: How many at most.
        """
        values: list[Any] = []
        message: Message | None = first
        while message is not None:
            try:
                if message.fds:
                    without_fds(message)
                values.append(self.read(message))
                message = messages.next_message() if len(values) < max_count else None
            except HostlineError as error:
                if not values:
                    raise
                messages.fail_later(error)
                break
        return values


def value_reader(expected: Any) -> ValueReader:
    """Return what reads the value of a message as the type that the receiver expects.

    Args:
        expected: Any type that msgspec can decode into.

    Raises:
        TypeError: msgspec cannot decode into the type.
    """
    return ValueReader(expected)


def plain_bytes(message: Message) -> bytes:
    """Return the bytes of a message that was sent as such; on failure its descriptors are closed.

    Raises:
        InvalidMessageError: It is a value.
    """
    if message.is_bytes:
        return message.data
    close_all(message.fds)
    raise InvalidMessageError("message is a value, where plain bytes were expected: receive with recv", message.data)


def without_fds(message: Message) -> Message:
    """Return a message that must have no descriptors; if it has, they are closed.

    Raises:
        DescriptorError: It has some.
    """
    if not message.fds:
        return message
    close_all(message.fds)
    raise DescriptorError(
        errno.EPERM,
        f"{len(message.fds)} descriptors came with the message and were closed: receive with recv_fds",
    )
