"""What a receiver makes of one message of a channel: a value of the expected type, plain bytes, or a refusal.

A refusal is about this message alone; the descriptors of what is refused are closed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import msgspec

from hostline.errors import DescriptorError, InvalidMessageError
from hostline.protocol.channels.messages import Message
from hostline.unix.passing.descriptors import close_all
from hostline.wire.budget import SHALLOW, check_budget
from hostline.wire.codec import result_decoder

__all__ = ["plain_bytes", "value_reader", "without_fds"]


def value_reader(expected: Any) -> Callable[[Message], Any]:
    """Return what reads the value of a message as the type that the receiver expects.

    The reader raises `InvalidMessageError` for a message of another type, one that is not MessagePack, and one of plain
    bytes; it closes the descriptors of what it refuses.

    Args:
        expected: Any type that msgspec can decode into.

    Raises:
        TypeError: msgspec cannot decode into the type.
    """
    decoder, extent = result_decoder(expected)

    def read(message: Message) -> Any:
        try:
            if message.is_bytes:
                what = f"message of {len(message.data)} plain bytes, where a value was expected"
                raise InvalidMessageError(f"{what}: receive with recv_bytes", message.data)
            if extent or len(message.data) > SHALLOW:
                check_budget(message.data, extent)
            return decoder.decode(message.data)
        except InvalidMessageError:
            close_all(message.fds)
            raise
        except msgspec.ValidationError as error:
            close_all(message.fds)
            raise InvalidMessageError(f"message is not of the expected type: {error}", message.data) from error
        except Exception as error:  # the type's own checks may raise anything
            close_all(message.fds)
            raise InvalidMessageError(f"message cannot be decoded: {error}", message.data) from error

    return read


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
