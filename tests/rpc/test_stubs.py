"""Typed callers without a line: what an interface may declare, and what its methods ask the line for."""

from __future__ import annotations

import inspect
import socket
from typing import Any, Protocol

import msgspec
import pytest

import hostline
from hostline.errors import MethodNotFoundError
from hostline.rpc.stubs import (
    bind_interface,
    check_interface,
    interface_methods,
    raises,
    with_timeout,
)


class Order(msgspec.Struct):
    id: int


class OutOfStock(Exception):
    """No tea."""


class Shop(hostline.Interface, Protocol):
    """What a shop does."""

    @raises(OutOfStock, KeyError)
    def price(self, order: Order, where: str = "here", *, extra: float = 0.0) -> float:
        """Return the price."""
        ...

    def close_till(self) -> None: ...

    def _private(self) -> None: ...

    constant = 3


class AsyncShop(hostline.aio.Interface, Protocol):
    async def price(self, order: Order) -> float: ...


class Supermarket(Shop, Protocol):
    def price(self, order: Order, where: str = "there", *, extra: float = 0.0) -> float: ...

    def park(self, plate: str, /) -> list[Order]: ...


class Recorder:
    """A line that only remembers what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any], dict[str, Any]]] = []

    def invoke(self, name: str, args: tuple[Any, ...], keywords: dict[str, Any], **options: Any) -> str:
        self.asked.append((name, args, keywords, options))
        return f"result of {name}"


def bound(interface: Any, line: Any = None, timeout: float | None = None) -> Any:
    base = hostline.Interface
    return bind_interface(interface, base, interface_methods(interface, base), line or Recorder(), timeout, False)


# --- what an interface declares --------------------------------------------------------------------------


def test_an_interface_is_its_public_functions() -> None:
    price, close = interface_methods(Shop, hostline.Interface)
    assert (price.name, price.returns, price.raises, price.is_async) == ("price", float, (OutOfStock, KeyError), False)
    assert str(price.signature) == "(order: 'Order', where: 'str' = 'here', *, extra: 'float' = 0.0) -> 'float'"
    assert (close.name, close.returns, close.raises) == ("close_till", type(None), ())


def test_what_parents_declare_belongs_to_it_and_may_be_declared_anew() -> None:
    methods = {method.name: method for method in interface_methods(Supermarket, hostline.Interface)}
    assert list(methods) == ["price", "close_till", "park"]
    assert methods["price"].signature.parameters["where"].default == "there"


def test_an_interface_of_the_asyncio_face_declares_async_methods() -> None:
    (price,) = interface_methods(AsyncShop, hostline.aio.Interface)
    assert price.is_async


def refused(interface: type) -> str:
    with pytest.raises(TypeError) as caught:
        interface_methods(interface, hostline.Interface)
    return str(caught.value)


def test_a_class_that_cannot_be_an_interface_is_refused_with_the_reason() -> None:
    class Plain:
        def price(self, order: Order) -> float: ...

    class Empty(hostline.Interface, Protocol): ...

    class Silent(hostline.Interface, Protocol):
        def price(self, order: Order): ...  # type: ignore[no-untyped-def]

    class Stars(hostline.Interface, Protocol):
        def price(self, *orders: Order) -> float: ...

    class DoubleStars(hostline.Interface, Protocol):
        def price(self, **orders: Order) -> float: ...

    class Unknown(hostline.Interface, Protocol):
        def price(self) -> Nonsense: ...  # type: ignore[name-defined]  # noqa: F821

    class Undecodable(hostline.Interface, Protocol):
        def price(self) -> list[socket.socket]: ...

    assert refused(Plain) == "interface Plain does not inherit hostline.Interface"
    assert refused(AsyncShop) == "interface AsyncShop does not inherit hostline.Interface"
    assert refused(Empty) == "interface Empty declares no methods"
    assert refused(Silent) == "interface method Silent.price has no result annotation; write `-> TYPE`, or `-> None`"
    assert refused(Stars) == "interface method Stars.price: *orders is variadic; name each argument"
    assert refused(DoubleStars) == "interface method DoubleStars.price: *orders is variadic; name each argument"
    assert refused(Unknown).startswith("interface method Unknown.price: annotation cannot be resolved: name 'Nonsense'")
    assert "interface method Undecodable.price: type socket.socket is not supported" in refused(Undecodable)


@pytest.mark.parametrize("name", ["close", "with_timeout", "line"])
def test_a_method_cannot_take_the_name_of_what_every_interface_has(name: str) -> None:
    namespace: dict[str, Any] = {name: lambda self: None}
    namespace[name].__annotations__ = {"return": None}
    interface = type("Clash", (hostline.Interface,), namespace)
    assert refused(interface) == f"interface method Clash.{name}: every interface has its own `{name}`"


def test_methods_that_the_service_lacks_are_named_all_at_once() -> None:
    methods = interface_methods(Supermarket, hostline.Interface)
    check_interface(methods, ["price", "close_till", "park", "more"], "shop")
    text = r"^service 'shop' has no method close_till, park: it has other, price$"
    with pytest.raises(MethodNotFoundError, match=text):
        check_interface(methods, ["price", "hostline.health", "other"], "shop")
    with pytest.raises(MethodNotFoundError, match="it has none"):
        check_interface(methods, [], "shop")


def test_an_interface_of_the_other_kind_of_function_is_refused() -> None:
    class Mixed(hostline.Interface, Protocol):
        async def price(self) -> float: ...

    with pytest.raises(TypeError, match=r"interface method Mixed.price must be declared with `def` here"):
        bound(Mixed)

    class AsyncMixed(hostline.aio.Interface, Protocol):
        def price(self) -> float: ...

    base = hostline.aio.Interface
    with pytest.raises(TypeError, match=r"interface method AsyncMixed.price must be declared with `async def` here"):
        bind_interface(AsyncMixed, base, interface_methods(AsyncMixed, base), Recorder(), None, is_async=True)


# --- what its methods do -------------------------------------------------------------------------------


def test_a_method_asks_the_line_for_what_it_was_given() -> None:
    line = Recorder()
    shop = bound(Shop, line, 2.5)
    assert shop.price(Order(1), extra=1.0) == "result of price"
    assert line.asked == [
        ("price", (Order(1),), {"extra": 1.0}, {"returns": float, "timeout": 2.5, "raises": (OutOfStock, KeyError)})
    ]


def test_what_is_given_by_name_is_sent_by_name() -> None:
    """The service may have its parameters in another order: a name must not become a place on the way."""
    line = Recorder()
    bound(Shop, line).price(where="x", order=Order(1))
    assert line.asked[0][1:3] == ((), {"where": "x", "order": Order(1)})


@pytest.mark.parametrize(
    ("args", "keywords", "text"),
    [
        ((), {}, "price() missing a required argument: 'order'"),
        ((1, 2, 3), {}, "price() too many positional arguments"),
        ((1,), {"order": 1}, "price() multiple values for argument 'order'"),
        ((), {"orders": 1}, "price() got an unexpected keyword argument 'orders'"),
    ],
)
def test_a_wrong_call_fails_here_and_nothing_is_sent(
    args: tuple[Any, ...], keywords: dict[str, Any], text: str
) -> None:
    line = Recorder()
    with pytest.raises(TypeError) as caught:
        bound(Shop, line).price(*args, **keywords)
    assert str(caught.value) == text
    assert line.asked == []


def test_an_argument_may_be_called_self_or_line() -> None:
    class Odd(hostline.Interface, Protocol):
        def take(this, self: int, name: int, args: int) -> int: ...  # noqa: N805

    line = Recorder()
    bound(Odd, line).take(self=1, name=2, args=3)
    assert line.asked[0][2] == {"self": 1, "name": 2, "args": 3}


def test_a_bound_interface_looks_like_what_it_was_declared_as() -> None:
    shop = bound(Shop)
    assert Shop in type(shop).__mro__
    assert type(shop).__name__ == "Shop"
    assert type(shop).__doc__ == "What a shop does."
    assert shop.price.__name__ == "price"
    assert shop.price.__doc__ == "Return the price."
    assert list(inspect.signature(shop.price).parameters) == ["order", "where", "extra"]
    assert shop.constant == 3


def test_with_timeout_is_a_copy_on_the_same_line() -> None:
    line = Recorder()
    shop = bound(Shop, line, 2.5)
    hurried = with_timeout(shop, 0.1)
    hurried.close_till()
    shop.close_till()
    assert [options["timeout"] for *_, options in line.asked] == [0.1, 2.5]
    assert hurried.line is shop.line is line
    assert type(hurried) is type(shop)


def test_declaring_exceptions_leaves_the_function_as_it_was() -> None:
    def function() -> None: ...

    assert raises(OutOfStock)(function) is function
