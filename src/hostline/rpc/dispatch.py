"""Between a frame and a handler: which method, which arguments, and what a failure looks like to the caller.

A caller sees a declared exception by name and message. Of anything else it sees that the method failed, and a
reference that leads to the full record in the server's log.
"""

from __future__ import annotations

import contextvars
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from operator import methodcaller
from typing import Any, Final, NamedTuple

from hostline.errors import (
    InvalidArgumentError,
    InvalidResultError,
    NoCredentialsError,
    OverloadedError,
    SlowSubscriberError,
)
from hostline.rpc.attachments import ArrivedValues, UnclaimedError
from hostline.rpc.context import Context, StoppedError
from hostline.rpc.service import Execution, Method
from hostline.rpc.watching.fields import event
from hostline.unix.credentials import Peer
from hostline.wire.codec import ErrorCode

__all__ = ["Invocation", "Refusal", "bind", "describe_failure"]

logger: Final = logging.getLogger("hostline")


class Invocation:
    """A handler and its checked arguments, ready to run.

    Attributes:
        function: The handler.
        args: Its arguments by position.
        keywords: Those by name.
    """

    __slots__ = ("args", "function", "keywords")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.function = function
        self.args = args
        self.keywords = keywords

    def run(self) -> Any:
        """Call the handler; for an `async def` this makes the coroutine."""
        if self.keywords:
            return self.function(*self.args, **self.keywords)
        return self.function(*self.args)

    def run_instant(self) -> Any:
        """Run an `async def` handler that never waits from its beginning to its end, in a context of its own."""
        return contextvars.copy_context().run(_run_to_end, self.run())


def _run_to_end(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise RuntimeError(f"{coroutine} waited, though there is no await in it")


class Refusal(NamedTuple):
    """A call's failure as it goes onto the wire."""

    code: str
    name: str
    message: str


def bind(
    method: Method,
    payload: bytes | memoryview,
    is_named: bool,
    context: Context | None,
    items: Any = None,
    arrived: ArrivedValues | None = None,
) -> Invocation:
    """Check a call's arguments and put them in place.

    Args:
        method: What is called.
        payload: The encoded arguments.
        is_named: Whether some are named.
        context: The call's context, where the method asks for it.
        items: What to iterate for the argument that is a stream, where the method has one.
        arrived: The descriptors and buffers that came with the call, if any.

    Raises:
        InvalidArgumentError: An argument is wrong; the handler must not run.
        OverloadedError: There is no room for what came with it; nor then.
    """
    try:
        if arrived is None:
            args, keywords = method.signature.decode(payload, is_named)
        else:
            args, keywords = arrived.read(partial(methodcaller("decode", payload, is_named), method.signature))
    except (InvalidArgumentError, OverloadedError):
        raise
    except UnclaimedError as error:
        raise InvalidArgumentError(str(error)) from error
    except Exception as error:  # a type's own check failed; that is no verdict on the caller's value
        return _failing(method, error)
    if items is not None:
        args, keywords = method.signature.place_stream(items, args, keywords)
    if method.context_name is not None:
        args, keywords = method.signature.inject(method.context_name, context, args, keywords)
    return Invocation(method.function, args, keywords)


def _failing(method: Method, error: Exception) -> Invocation:
    """Return an invocation that fails as the handler would, and so is answered and logged in the same way."""

    def fail() -> None:
        raise error

    async def fail_later() -> None:
        raise error

    async def fail_at_the_first_item() -> AsyncIterator[None]:
        raise error
        yield

    if method.execution is not Execution.TASK:
        return Invocation(fail, (), {})
    return Invocation(fail_at_the_first_item if method.signature.streams_result else fail_later, (), {})


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a `__str__` of the service's own; the name still arrives
        return ""


def describe_failure(service: str, method: Method, error: BaseException, peer: Peer, call_id: int) -> Refusal:
    """Turn what a handler raised into what the caller may know; anything undeclared is logged in full here."""
    name = method.declared_name(error)
    if name is not None:
        return Refusal(ErrorCode.DECLARED, name, _text(error))
    if isinstance(error, StoppedError):
        return Refusal(ErrorCode.UNAVAILABLE, "", f"{method.name}: {error}")
    if isinstance(error, SlowSubscriberError):
        return Refusal(ErrorCode.DECLARED, SlowSubscriberError.__name__, str(error))  # our own text, and no fault
    if isinstance(error, NoCredentialsError):
        return Refusal(ErrorCode.DENIED, "", f"{method.name}: {error}")
    if isinstance(error, InvalidResultError):
        # Our own encoder refused the handler's result: the caller may know that, the value stays here.
        what = "its result cannot be sent"
    else:
        what = "internal error"
    reference = secrets.token_hex(4)
    text = f"{what} in {service}.{method.name} (reference {reference} in the server's log)"
    who = f"uid {peer.uid} pid {peer.pid}" if peer.has_credentials else peer.describe()
    logger.error(
        "%s.%s failed for %s, call %s, reference %s",
        service, method.name, who, call_id, reference,
        exc_info=error,
        extra=event(
            "handler_failed", peer, service=service, method=method.name, call_id=call_id, reference=reference
        ),
    )  # fmt: skip
    return Refusal(ErrorCode.INTERNAL, "", text)
