"""Services as declarations: what a method is, what is refused where it stands, and what the hello says of it."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from hostline.rpc.context import Context
from hostline.rpc.service import Execution, Method, ServiceBase, check_method_name
from hostline.unix.credentials import Peers
from hostline.wire.codec import MethodEntry


class OutOfStock(Exception):
    """No tea."""


class NoMilk(OutOfStock):
    """No milk either."""


def plain(a: int) -> int:
    return a


async def waiting(a: int) -> int:
    return a


class Shop:
    async def sell(self, what: str) -> str:
        return what

    def price(self, what: str) -> float:
        return 1.0

    async def __call__(self, what: str) -> str:
        return what


# --- declaring ---------------------------------------------------------------------------------------


def test_a_declared_function_stays_what_it_was() -> None:
    service = ServiceBase("shop")
    assert service.method(plain) is plain
    assert service.method(name="other", idempotent=True)(plain) is plain
    assert list(service.methods) == ["plain", "other"]
    assert [m.is_idempotent for m in service.methods.values()] == [False, True]


@pytest.mark.parametrize(
    ("function", "inline", "execution"),
    [
        (plain, False, Execution.WORKER),
        (plain, True, Execution.INLINE),
        (waiting, False, Execution.TASK),
        (Shop().sell, False, Execution.TASK),
        (Shop().price, False, Execution.WORKER),
        (Shop(), False, Execution.TASK),
        (functools.partial(waiting, 1), False, Execution.TASK),
        (functools.partial(plain, 1), False, Execution.WORKER),
    ],
)
def test_how_a_handler_runs_follows_from_what_it_is(function: Any, inline: bool, execution: Execution) -> None:
    method = Method(function, name="m", inline=inline)
    assert method.execution is execution
    assert repr(method) == f"<Method m {execution.value}>"


def test_an_async_handler_is_not_quick() -> None:
    with pytest.raises(TypeError, match="method waiting is async: inline=True is for a quick `def`"):
        ServiceBase("s").method(inline=True)(waiting)


def test_a_generator_streams_its_result_and_says_so() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    async def later() -> AsyncIterator[int]:
        yield 1

    def unsaid():  # type: ignore[no-untyped-def]
        yield 1

    service = ServiceBase("s")
    for function, execution in ((numbers, Execution.WORKER), (later, Execution.TASK)):
        service.method(function)
        assert service.methods[function.__name__].execution is execution
        assert service.methods[function.__name__].signature.streams_result
    with pytest.raises(TypeError, match="method unsaid is a generator: annotate its result"):
        service.method(unsaid)


def test_a_signature_that_cannot_be_served_is_refused_where_it_stands() -> None:
    def bare(a) -> None: ...  # type: ignore[no-untyped-def]

    service = ServiceBase("s")
    with pytest.raises(TypeError, match="parameter 'a' has no annotation"):
        service.method(bare)
    assert service.methods == {}


@pytest.mark.parametrize("name", ["a", "_", "charge", "orders.charge-v2", "A1_", "x" * 128])
def test_names_of_letters_digits_and_three_signs_are_taken(name: str) -> None:
    assert check_method_name(name) == name
    assert ServiceBase(name).name == name


@pytest.mark.parametrize("name", ["", "1a", ".a", "-a", "a b", "a/b", "ä", "a\n", "x" * 129, "<lambda>", "a\0"])
def test_other_names_are_refused_with_what_would_do(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"use 1 to 128 letters, digits, '_', '\.' or '-', beginning with a letter"
    ) as caught:
        check_method_name(name)
    assert repr(name) in str(caught.value)
    with pytest.raises(ValueError, match="use 1 to 128"):
        ServiceBase(name)


def test_a_name_is_declared_once() -> None:
    service = ServiceBase("shop")
    service.method(plain)
    with pytest.raises(ValueError, match="method plain is declared twice in service shop"):
        service.method(plain)


def test_the_librarys_own_names_are_not_taken() -> None:
    with pytest.raises(ValueError, match=r"names beginning with 'hostline.' are the library's own"):
        ServiceBase("shop").method(name="hostline.health")(plain)


def test_a_handler_without_a_name_needs_one() -> None:
    service = ServiceBase("shop")
    with pytest.raises(ValueError, match="name '': use 1 to 128"):
        service.method(functools.partial(plain, 1))
    with pytest.raises(ValueError, match="name '<lambda>'"):
        service.method(lambda: None)
    service.method(name="part")(functools.partial(plain, 1))
    assert "part" in service.methods


def test_a_service_says_what_it_is() -> None:
    service = ServiceBase("shop", version="1.2", doc="    Sells tea.\n\n    And milk.\n    ")
    assert (service.version, service.doc.strip()) == ("1.2", "Sells tea.\n\nAnd milk.")
    assert repr(service) == "<ServiceBase 'shop': no methods>"
    service.method(plain)
    assert repr(service) == "<ServiceBase 'shop': plain>"


def test_what_the_hello_says_of_a_method() -> None:
    assert Method(plain).entry == MethodEntry("plain", False)
    assert Method(plain, name="get", idempotent=True).entry == MethodEntry("get", True)


def test_who_may_call_is_kept_with_the_method() -> None:
    rule = Peers(uids={7})
    assert Method(plain, allow=rule).allow is rule
    assert Method(plain).allow is None


# --- the context -------------------------------------------------------------------------------------


def test_a_method_knows_whether_its_handler_asks_for_the_context() -> None:
    def asks(context: Context, a: int) -> None: ...
    def may_ask(a: int, ctx: Context | None = None) -> None: ...

    assert Method(asks).context_name == "context"
    assert Method(may_ask).context_name == "ctx"
    assert Method(plain).context_name is None
    assert [p.name for p in Method(asks).signature.parameters] == ["a"]


# --- declared exceptions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raises", "error", "name"),
    [
        ((), OutOfStock(), None),
        (OutOfStock, OutOfStock(), "OutOfStock"),
        ((OutOfStock,), OutOfStock(), "OutOfStock"),
        ([OutOfStock, NoMilk], NoMilk(), "NoMilk"),
        (OutOfStock, NoMilk(), "OutOfStock"),
        (NoMilk, OutOfStock(), None),
        ((KeyError, LookupError), KeyError("x"), "KeyError"),
        (LookupError, KeyError("x"), "LookupError"),
        (Exception, ValueError(), "Exception"),
        (Exception, SystemExit(), None),
        (iter([OutOfStock]), OutOfStock(), "OutOfStock"),
    ],
)
def test_an_exception_is_seen_under_the_nearest_declared_name(
    raises: Any, error: BaseException, name: str | None
) -> None:
    assert Method(plain, raises=raises).declared_name(error) == name


@pytest.mark.parametrize("raises", [BaseException, SystemExit, int, "OutOfStock", [OutOfStock()], (OutOfStock, None)])
def test_only_exception_classes_are_declared(raises: Any) -> None:
    with pytest.raises(TypeError, match=r"method plain: raises= holds .*, which is not an exception class"):
        Method(plain, raises=raises)
