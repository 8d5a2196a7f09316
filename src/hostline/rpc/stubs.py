"""Typed callers: a class of annotated methods becomes an object whose methods call the service.

An interface is a `typing.Protocol` that also inherits `hostline.Interface` (or `hostline.aio.Interface`), so that
editors and type checkers complete and check every call. Its bodies are never run.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from hostline.errors import MethodNotFoundError
from hostline.wire.codec import result_decoder
from hostline.wire.schema import item_type

__all__ = [
    "InterfaceMethod",
    "bind_interface",
    "check_interface",
    "interface_call",
    "interface_methods",
    "raises",
    "with_timeout",
]

Function = TypeVar("Function", bound=Callable[..., Any])

_RAISES = "__hostline_raises__"
_METHOD = "__hostline_method__"


class InterfaceMethod(NamedTuple):
    """One method of an interface.

    Attributes:
        name: Its name at the service.
        function: What the interface declares; never run.
        signature: Its parameters, without `self`.
        returns: The type its result is decoded into.
        raises: Exception classes that arrive as themselves.
        is_async: Whether it is declared with `async def`, or its result as an asynchronous stream.
        streams_result: Whether its result is a stream; `returns` is the type of its items then.
    """

    name: str
    function: Callable[..., Any]
    signature: inspect.Signature
    returns: Any
    raises: tuple[type[Exception], ...]
    is_async: bool
    streams_result: bool = False


def raises(*errors: type[Exception]) -> Callable[[Function], Function]:
    """Declare, on an interface's method, which exceptions of the service arrive as these classes."""

    def mark(function: Function) -> Function:
        setattr(function, _RAISES, errors)
        return function

    return mark


def interface_methods(interface: type, base: type) -> list[InterfaceMethod]:
    """Return the methods that an interface declares, those of its parents up to `base` included.

    Raises:
        TypeError: The class does not inherit `base`, a method lacks a result annotation or has one that nothing can be
            decoded into, or takes variadic arguments, or has the name of one of `base`'s own.
    """
    if base not in interface.__mro__:
        name = "hostline.aio.Interface" if ".aio." in base.__module__ else "hostline.Interface"
        raise TypeError(f"interface {interface.__name__} does not inherit {name}")
    methods: dict[str, InterfaceMethod] = {}
    for cls in reversed(interface.__mro__):
        if cls in base.__mro__ or cls is object:
            continue
        for name, function in vars(cls).items():
            if not name.startswith("_") and inspect.isfunction(function):
                if hasattr(base, name):
                    raise TypeError(
                        f"interface method {interface.__name__}.{name}: every interface has its own `{name}`"
                    )
                methods[name] = _method(interface.__name__, name, function)
    if not methods:
        raise TypeError(f"interface {interface.__name__} declares no methods")
    return list(methods.values())


def _method(owner: str, name: str, function: Callable[..., Any]) -> InterfaceMethod:
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[1:]
    for parameter in parameters:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise TypeError(f"interface method {owner}.{name}: *{parameter.name} is variadic; name each argument")
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise TypeError(f"interface method {owner}.{name}: annotation cannot be resolved: {error}") from error
    if "return" not in hints:
        raise TypeError(f"interface method {owner}.{name} has no result annotation; write `-> TYPE`, or `-> None`")
    stream = item_type(hints["return"])
    returns, is_async = hints["return"], inspect.iscoroutinefunction(function)
    if stream is not None:
        if is_async:
            raise TypeError(f"interface method {owner}.{name} returns a stream: declare it with `def`, not `async def`")
        returns, is_async = stream
    try:
        result_decoder(returns)
    except TypeError as error:
        raise TypeError(f"interface method {owner}.{name}: {error}") from error
    return InterfaceMethod(
        name,
        function,
        signature.replace(parameters=parameters),
        returns,
        tuple(getattr(function, _RAISES, ())),
        is_async,
        stream is not None,
    )


def check_interface(methods: Iterable[InterfaceMethod], served: Iterable[str], service: str) -> None:
    """Refuse an interface that asks for methods the service does not have.

    Raises:
        MethodNotFoundError: Names them all.
    """
    have = set(served)
    missing = [method.name for method in methods if method.name not in have]
    if missing:
        known = ", ".join(sorted(name for name in have if not name.startswith("hostline."))) or "none"
        raise MethodNotFoundError(f"service {service!r} has no method {', '.join(missing)}: it has {known}")


def bind_interface(
    interface: type, base: type, methods: Iterable[InterfaceMethod], line: Any, timeout: float | None, is_async: bool
) -> Any:
    """Return an object of the interface whose methods call through `line`.

    Args:
        interface: The class.
        base: The face's own base, whose methods (`close`, `with_timeout`, ...) are inherited.
        methods: What `interface_methods` found.
        line: The face's line; its `invoke` and `open_stream` take name, args, keywords, returns, timeout, raises.
        timeout: Seconds for each call, or None for the line's own.
        is_async: Whether the face awaits.

    Raises:
        TypeError: A method is `async def` on the blocking face, or the other way round.
    """
    namespace: dict[str, Any] = {"__doc__": interface.__doc__, "__module__": interface.__module__}
    for method in methods:
        if method.is_async is not is_async and method.streams_result:
            want = "AsyncIterator" if is_async else "Iterator"
            raise TypeError(f"interface method {interface.__name__}.{method.name} must return {want}[...] here")
        if method.is_async is not is_async:
            want = "async def" if is_async else "def"
            raise TypeError(f"interface method {interface.__name__}.{method.name} must be declared with `{want}` here")
        namespace[method.name] = _caller(method)
    cls = type(interface.__name__, (interface,), namespace)
    stub: Any = object.__new__(cls)
    stub.__dict__.update(_line=line, _timeout=timeout)
    return stub


def with_timeout(stub: Any, timeout: float) -> Any:
    """Return a copy of a bound interface, on the same line, with its own timeout for each call in seconds."""
    copy: Any = object.__new__(type(stub))
    copy.__dict__.update(vars(stub), _timeout=timeout)
    return copy


def _caller(method: InterfaceMethod) -> Callable[..., Any]:
    name, returns, errors = method.name, method.returns, method.raises

    if method.streams_result:

        @functools.wraps(method.function)
        def stream(self: Any, /, *args: Any, **keywords: Any) -> Any:
            _check_call(method, args, keywords)
            return self._line.open_stream(name, args, keywords, returns=returns, timeout=self._timeout, raises=errors)

        setattr(stream, _METHOD, method)
        return stream

    @functools.wraps(method.function)
    def call(self: Any, /, *args: Any, **keywords: Any) -> Any:
        _check_call(method, args, keywords)
        return self._line.invoke(name, args, keywords, returns=returns, timeout=self._timeout, raises=errors)

    setattr(call, _METHOD, method)
    return call


def interface_call(
    caller: Any, args: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[Any, float | None, InterfaceMethod]:
    """Return the line, the timeout in seconds and the declaration behind a bound interface's method, for a batch.

    Args:
        caller: The method, as `payments.charge`.
        args: What it is to be called with, by position.
        keywords: And by name.

    Raises:
        TypeError: It is no method of an object from `connect(address, Interface)`, or the arguments do not fit it.
    """
    method, stub = getattr(caller, _METHOD, None), getattr(caller, "__self__", None)
    if not isinstance(method, InterfaceMethod) or stub is None:
        raise TypeError(f"{caller!r} is no method of an interface: give payments.charge, or use `call` with a name")
    _check_call(method, args, keywords)
    return stub._line, stub._timeout, method


def _check_call(method: InterfaceMethod, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Fail a wrong call here, as it would on the function itself, before anything is sent."""
    try:
        method.signature.bind(*args, **keywords)
    except TypeError as error:
        unknown = [name for name in keywords if name not in method.signature.parameters]
        reason = f"got an unexpected keyword argument {unknown[0]!r}" if unknown else str(error)
        raise TypeError(f"{method.name}() {reason}") from None
