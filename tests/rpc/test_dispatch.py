"""Between a frame and a handler: arguments put in place, and failures as the caller and the log see them."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from tests.leaks import wait_until
from tests.serving import ServerThread

import hostline
from hostline.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    InvalidResultError,
    OverloadedError,
    RemoteError,
)
from hostline.rpc.context import Context
from hostline.rpc.dispatch import Refusal, bind, describe_failure
from hostline.rpc.service import Method
from hostline.unix.credentials import Peer
from hostline.wire.codec import ErrorCode

PEER = Peer(4711, 1000, 1000)
CONTEXT = Context(PEER, "m", 1)


class OutOfStock(Exception):
    """No tea."""


class Mute(Exception):
    """An exception that cannot be put into words."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def plain(a: int, b: str = "two") -> Any:
    return a, b


def first(ctx: Context, a: int, b: str = "two") -> Any:
    return ctx, a, b


def middle(a: int, ctx: Context, b: str = "two") -> Any:
    return ctx, a, b


def last(a: int, b: str = "two", *, ctx: Context) -> Any:
    return ctx, a, b


async def waiting(a: int, ctx: Context) -> Any:
    return ctx, a


def payload(*args: Any, **keywords: Any) -> tuple[bytes, bool]:
    return msgspec.msgpack.encode((args, keywords) if keywords else args), bool(keywords)


# --- bind ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("args", "keywords"), [((1, "b"), {}), ((1,), {"b": "b"}), ((), {"a": 1, "b": "b"})])
def test_arguments_are_put_in_place(args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    assert bind(Method(plain), *payload(*args, **keywords), None).run() == (1, "b")


@pytest.mark.parametrize("function", [first, middle, last])
@pytest.mark.parametrize(("args", "keywords"), [((1, "b"), {}), ((1,), {"b": "b"}), ((), {"a": 1, "b": "b"})])
def test_the_context_is_put_in_place_wherever_it_stands(
    function: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    assert bind(Method(function), *payload(*args, **keywords), CONTEXT).run() == (CONTEXT, 1, "b")


def test_an_async_handler_gives_its_coroutine() -> None:
    coroutine = bind(Method(waiting), *payload(5), CONTEXT).run()
    assert asyncio.run(coroutine) == (CONTEXT, 5)


def test_a_wrong_argument_is_told_before_anything_runs() -> None:
    ran = []

    def function(a: int) -> None:
        ran.append(a)

    with pytest.raises(InvalidArgumentError, match="argument `a`: Expected `int`, got `str`"):
        bind(Method(function), *payload("x"), None)
    assert ran == []


class Fussy(msgspec.Struct):
    value: int

    def __post_init__(self) -> None:
        raise LookupError("a secret of the service")


@pytest.mark.parametrize("is_async", [False, True])
def test_a_bug_in_a_types_own_check_fails_as_the_handler_would(is_async: bool) -> None:
    """It must not escape where arguments are decoded, on the loop, and it is no fault of the caller."""
    ran = []

    def function(value: Fussy) -> None:
        ran.append(value)

    async def later(value: Fussy) -> None:
        ran.append(value)

    invocation = bind(Method(later if is_async else function), *payload({"value": 1}), None)
    with pytest.raises(LookupError, match="a secret of the service"):
        if is_async:
            asyncio.run(invocation.run())
        else:
            invocation.run()
    assert ran == []


# --- failures ------------------------------------------------------------------------------------------


def described(error: BaseException, **options: Any) -> Refusal:
    return describe_failure("shop", Method(plain, **options), error, PEER, 42)


def test_a_declared_exception_is_seen_by_name_and_message_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert described(OutOfStock("no tea"), raises=OutOfStock) == Refusal("declared", "OutOfStock", "no tea")
    assert caplog.records == []


def test_a_declared_exception_without_words_still_arrives() -> None:
    assert described(Mute(), raises=Mute) == Refusal("declared", "Mute", "")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a secret"),
        OutOfStock("a secret"),
        SystemExit("a secret"),
        KeyboardInterrupt("a secret"),
        OverloadedError("a secret"),
        DeadlineExceededError("a secret"),
        RemoteError("Secret", "a secret"),
        InternalError("a secret"),
        InvalidArgumentError("a secret"),
        InvalidResultError("a secret"),
        ExceptionGroup("a secret", [ValueError("a secret")]),
    ],
)
def test_of_anything_else_the_caller_sees_a_reference_and_the_log_everything(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "hostline"):
        refusal = described(error, raises=KeyError)
    assert (refusal.code, refusal.name) == (ErrorCode.INTERNAL, "")
    assert "secret" not in refusal.message
    assert type(error).__name__ not in refusal.message
    (record,) = caplog.records
    reference = refusal.message.partition("(reference ")[2].partition(" ")[0]
    assert len(reference) == 8
    assert f"reference {reference}" in record.getMessage()
    assert record.getMessage().startswith("shop.plain failed for uid 1000 pid 4711, call 42")
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_a_result_that_cannot_be_sent_is_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    assert "its result cannot be sent in shop.plain" in described(InvalidResultError("x")).message
    assert "internal error in shop.plain" in described(ValueError("x")).message


def test_two_failures_have_two_references(caplog: pytest.LogCaptureFixture) -> None:
    assert described(ValueError()).message != described(ValueError()).message


def test_an_exception_that_cannot_be_put_into_words_is_logged_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    assert described(Mute()).code == ErrorCode.INTERNAL
    assert len(caplog.records) == 1


def test_all_threads_that_wait_on_one_context_are_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that come while the first of them makes the event that they wait for."""
    context = Context(PEER, "m", 1)
    both_wait = threading.Semaphore(0)
    others: list[threading.Thread] = []
    first_made: list[threading.Event] = []

    def waiting() -> None:
        context.wait_cancelled(10.0)
        both_wait.release()

    def slowly_made() -> threading.Event:
        event = made()
        if not others:
            others.append(threading.Thread(target=waiting))
            others[0].start()
            time.sleep(0.2)  # for the other to come by; whether it waits for us cannot be seen
            first_made.append(event)
        return event

    made = threading.Event
    monkeypatch.setattr(
        "hostline.rpc.context.threading", SimpleNamespace(Event=slowly_made, TIMEOUT_MAX=threading.TIMEOUT_MAX)
    )
    first = threading.Thread(target=waiting)
    first.start()
    assert wait_until(lambda: bool(first_made) and context._ended is first_made[0], 5.0)
    context.end()
    assert both_wait.acquire(timeout=5.0)
    assert both_wait.acquire(timeout=5.0), "one of two threads was not woken"
    for thread in (first, *others):
        thread.join(5.0)


class Words(str):
    """As a translation is, made when it is looked at."""

    __slots__ = ()


class TranslatedError(Exception):
    def __str__(self) -> str:
        return Words("said otherwise")


@pytest.mark.parametrize("kind", ["worker", "inline", "task", "instant"])
def test_an_exception_whose_text_is_no_plain_str_is_answered(kind: str, sock_dir: Path) -> None:
    service = hostline.Service("words")

    def fail() -> None:
        raise TranslatedError

    async def fail_at_once() -> None:
        raise TranslatedError

    async def fail_later() -> None:
        await asyncio.sleep(0)
        raise TranslatedError

    function = {"task": fail_later, "instant": fail_at_once}.get(kind, fail)
    service.method(name="fail", raises=[TranslatedError], inline=kind == "inline")(function)
    with ServerThread(service, sock_dir / "s") as server, hostline.connect(server.address) as line:
        with pytest.raises(TranslatedError):
            line.call("fail", raises=[TranslatedError], timeout=5.0)
        server.wait_idle()
