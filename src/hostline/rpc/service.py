"""Services: a name and a set of methods, each a plain function that stays callable as it is.

A method's signature is its schema: what cannot be decoded or is ambiguous is refused where it is declared, not at
the first call. How a service is served is for the floor above (aio/serving/service.py).
"""

from __future__ import annotations

import dis
import enum
import functools
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar, overload

from hostline.rpc.attachments import kinds_allowed
from hostline.rpc.context import Context
from hostline.unix.credentials import Peers
from hostline.wire.codec import MethodEntry
from hostline.wire.schema import Signature

__all__ = ["Execution", "Method", "ServiceBase", "check_method_name"]

Handler = TypeVar("Handler", bound=Callable[..., Any])
Check = TypeVar("Check", bound=Callable[[], None])

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}\Z")


class Execution(enum.Enum):
    """How a handler runs: as a task on the loop, in a worker thread, or on the loop itself."""

    TASK = "task"
    WORKER = "worker"
    INLINE = "inline"


class Method:
    """Hold one method of a service.

    Attributes:
        name: What callers call it.
        function: The handler.
        execution: How it runs.
        is_inline: Whether it ends where it begins, on the loop itself, and so needs no task.
        is_instant: Whether it is `async def` and does.
        signature: How its arguments are decoded and described.
        raises: Exception classes that callers see by name and message; any other is an internal error to them.
        is_idempotent: Whether running it twice does no harm, so that a client may repeat it by itself.
        allow: Who may call it, beside the service's own rule; None for everybody that is connected.
        context_name: The parameter that takes the `Context`, or None.
        fd_kinds: The kinds of descriptor that its arguments allow.
    """

    __slots__ = (
        "allow",
        "context_name",
        "execution",
        "fd_kinds",
        "function",
        "is_idempotent",
        "is_inline",
        "is_instant",
        "name",
        "raises",
        "signature",
    )

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        inline: bool = False,
        idempotent: bool = False,
        raises: type[Exception] | Iterable[type[Exception]] = (),
        allow: Peers | None = None,
    ) -> None:
        self.name = check_method_name(name or str(getattr(function, "__name__", "")))
        self.function = function
        self.execution = _execution(self.name, function, inline)
        self.signature = Signature(function, injected=(Context,))
        is_alone = self.execution is Execution.TASK and self.signature.stream is None
        self.is_instant = is_alone and _never_waits(function)
        self.is_inline = self.is_instant or self.execution is Execution.INLINE
        self.context_name = self.signature.injected.get(Context)
        _check_streams(self.name, function, self.execution, self.signature)
        self.raises: tuple[type[Exception], ...] = (raises,) if isinstance(raises, type) else tuple(raises)
        for error in self.raises:
            if not _is_exception_class(error):
                raise TypeError(f"method {self.name}: raises= holds {error!r}, which is not an exception class")
        self.is_idempotent = idempotent
        self.allow = allow
        self.fd_kinds = frozenset[str]().union(*(kinds_allowed(p.annotation) for p in self.signature.parameters))

    @property
    def entry(self) -> MethodEntry:
        """What the server's hello says of this method."""
        signature = self.signature
        return MethodEntry(
            self.name,
            self.is_idempotent,
            signature.streams_result,
            signature.stream is not None,
            signature.takes_attached,
            signature.gives_attached,
        )

    def declared_name(self, error: BaseException) -> str | None:
        """Return the name under which callers see `error`, or None if the method does not declare it."""
        for cls in type(error).__mro__:
            if cls in self.raises:
                return cls.__name__
        return None

    def __repr__(self) -> str:
        return f"<Method {self.name} {self.execution.value}>"


def _is_exception_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def _check_streams(name: str, function: Callable[..., Any], execution: Execution, signature: Signature) -> None:
    """Refuse a stream that the handler could not iterate, or that nobody would see."""
    target: Any = function
    while isinstance(target, functools.partial):
        target = target.func
    target = target if inspect.isroutine(target) else type(target).__call__
    is_generator = inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target)
    if execution is Execution.INLINE and (signature.streams_result or signature.stream is not None):
        raise TypeError(f"method {name} streams: inline=True is for one quick answer")
    if is_generator and not signature.streams_result:
        raise TypeError(f"method {name} is a generator: annotate its result, -> Iterator[T] or -> AsyncIterator[T]")
    if signature.streams_result and execution is not Execution.WORKER and not inspect.isasyncgenfunction(target):
        raise TypeError(
            f"method {name} streams its result: write it as a generator (with `yield`), `async def` or `def`"
        )
    if signature.stream is not None and signature.is_stream_async is not (execution is Execution.TASK):
        want = "AsyncIterator" if execution is Execution.TASK else "Iterator"
        raise TypeError(
            f"method {name}: parameter {signature.stream.name!r} must be {want}[...] in this kind of handler"
        )


def _execution(name: str, function: Callable[..., Any], inline: bool) -> Execution:
    if inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(type(function).__call__):
        return Execution.TASK
    own_call = type(function).__call__  # an object that can be called, if it is no function
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(own_call):
        if inline:
            raise TypeError(f"method {name} is async: inline=True is for a quick `def` that runs on the loop itself")
        return Execution.TASK
    return Execution.INLINE if inline else Execution.WORKER


def _never_waits(function: Callable[..., Any]) -> bool:
    """Say whether an `async def` has no `await`, `async for` or `async with`, so that it ends where it begins."""
    target: Any = function
    while isinstance(target, functools.partial):
        target = target.func
    target = target if inspect.isroutine(target) else type(target).__call__
    code = getattr(getattr(target, "__func__", target), "__code__", None)
    if not inspect.iscode(code) or not code.co_flags & inspect.CO_COROUTINE:
        return False
    return all(instruction.opname != "SEND" for instruction in dis.get_instructions(code))


def check_method_name(name: str) -> str:
    """Return a usable name.

    Raises:
        ValueError: It is empty, too long or holds other characters than letters, digits, `_`, `.` and `-`.
    """
    if not _NAME.match(name):
        raise ValueError(
            f"name {name!r}: use 1 to 128 letters, digits, '_', '.' or '-', beginning with a letter or '_'"
        )
    return name


class ServiceBase:
    """Collect methods under a name.

    Args:
        name: The service's name, also its address unless another is given.
        version: The service's own version, for `describe`.
        doc: What it does, for `describe`.

    Attributes:
        methods: The methods by name, in the order of their declaration.
        checks: What `hostline.health` runs.
    """

    def __init__(self, name: str, *, version: str = "", doc: str = "") -> None:
        self.name = check_method_name(name)
        self.version = version
        self.doc = inspect.cleandoc(doc)
        self.methods: dict[str, Method] = {}
        self.checks: list[Callable[[], None]] = []

    def health_check(self, function: Check, /) -> Check:
        """Declare a check that `hostline.health` runs: it raises if the service cannot do its work.

        It runs on the loop itself, so it must be quick: look at something, do not ask somebody. The text of what it
        raises is shown to callers.

        Raises:
            TypeError: It is an `async def`.
        """
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"health check {function.__name__} is async: it runs on the loop itself and must not wait")
        self.checks.append(function)
        return function

    @overload
    def method(self, function: Handler, /) -> Handler: ...

    @overload
    def method(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        inline: bool = False,
        idempotent: bool = False,
        raises: type[Exception] | Iterable[type[Exception]] = (),
        allow: Peers | None = None,
    ) -> Callable[[Handler], Handler]: ...

    def method(self, function: Any = None, /, **options: Any) -> Any:
        """Declare a function as a method; the function itself is returned unchanged.

        An `async def` runs on the loop. A `def` runs in one of the service's worker threads, so it may block.

        Args:
            function: The handler; left out when options are given.
            **options: Any of the following.
            name: What callers call it; the function's own name when left out.
            inline: Run a quick `def` on the loop itself: the fastest way, and nothing else is served meanwhile.
            idempotent: Running it twice does no harm: a client may repeat it when a connection breaks.
            raises: Exception classes that callers see by name and message.
            allow: Who may call it, beside the rule for connecting.

        Raises:
            TypeError: The signature cannot be served; the text says which parameter and why.
            ValueError: The name is not usable or taken.
        """
        if function is None:
            return lambda handler: self._add(handler, options)
        return self._add(function, options)

    def _add(self, function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
        method = Method(function, **options)
        if method.name.startswith("hostline."):
            raise ValueError(f"method {method.name}: names beginning with 'hostline.' are the library's own")
        if method.name in self.methods:
            raise ValueError(f"method {method.name} is declared twice in service {self.name}")
        self.methods[method.name] = method
        return function

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {', '.join(self.methods) or 'no methods'}>"
