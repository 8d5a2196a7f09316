"""An `async def` handler without any `await` runs at once: no task, no slot, and everything else as in a task."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hostline
from hostline import Context, DeadlineExceededError, InternalError, OverloadedError, RemoteError
from tests.serving import ServerThread, loop_names, wait_until

KEPT: contextvars.ContextVar[int] = contextvars.ContextVar("KEPT", default=0)


@pytest.fixture
def address(sock_dir: Path) -> str:
    return str(sock_dir / "s")


@pytest.fixture(params=loop_names())
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Lost(Exception):
    """Declared."""


def passing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any) -> Any:
        return await function(*args)

    return wrapper


class Doubling:
    """An object that can be called."""

    async def __call__(self, number: int) -> int:
        return 2 * number

    async def tripled(self, number: int) -> int:
        return 3 * number


async def times(factor: int, number: int) -> int:
    return factor * number


def instant_service() -> hostline.Service:
    service = hostline.Service("instant")
    service.method(Doubling(), name="doubling")
    service.method(Doubling().tripled)
    service.method(functools.partial(times, 5), name="fivefold")

    @service.method
    async def wait() -> None:
        await asyncio.sleep(60)

    @service.method
    async def echo(text: str) -> str:
        return text

    @service.method
    @passing_on
    async def wrapped(text: str) -> str:
        return text

    @service.method
    async def note(number: int) -> int:
        before = KEPT.get()
        KEPT.set(number)
        return before

    @service.method
    async def who(context: Context) -> str:
        return f"{context.peer.pid} {context.method} {context.time_left > 1}"

    @service.method(raises=Lost)
    async def lose() -> None:
        raise Lost("under the sofa")

    @service.method
    async def leave(kind: str) -> None:
        raise {"exit": SystemExit(3), "stop": StopIteration(7), "cancelled": asyncio.CancelledError()}[kind]

    @service.method
    async def task_name() -> bool:
        return asyncio.current_task() is not None

    return service


def test_only_what_cannot_wait_is_instant() -> None:
    methods = instant_service().methods
    assert {name for name, method in methods.items() if method.is_instant} == {
        "doubling", "tripled", "fivefold", "echo", "note", "who", "lose", "leave", "task_name",
    }  # fmt: skip
    assert not methods["wrapped"].is_inline
    assert not methods["wait"].is_inline


@pytest.mark.parametrize(
    ("method", "argument", "result"),
    [("doubling", 4, 8), ("tripled", 4, 12), ("fivefold", 4, 20), ("echo", "x", "x"), ("wrapped", "x", "x")],
)
def test_whatever_can_be_called_answers(address: str, loop: str, method: str, argument: Any, result: Any) -> None:
    with ServerThread(instant_service(), address, loop=loop), hostline.connect(address) as line:
        assert line.call(method, argument) == result


def test_it_takes_no_slot(address: str, loop: str) -> None:
    with ServerThread(instant_service(), address, loop=loop, concurrency=1, queue=0) as server:
        with hostline.connect(address) as line, hostline.connect(address, ping_interval=0.5) as holding:
            with pytest.raises(DeadlineExceededError):
                holding.call("wait", timeout=0.3)
            assert wait_until(lambda: server.running_count == 0)
            batch = line.batch(timeout=5)
            with batch:
                waiting = batch.call("wait", timeout=1)
                answers = [batch.call("echo", str(number)) for number in range(10)]
                refused = batch.call("wrapped", "no slot")
            assert [answer.result() for answer in answers] == [str(number) for number in range(10)]
            assert isinstance(refused.exception(), OverloadedError)
            assert isinstance(waiting.exception(), DeadlineExceededError)


def test_a_context_variable_that_it_sets_is_its_own(address: str, loop: str) -> None:
    with ServerThread(instant_service(), address, loop=loop), hostline.connect(address) as line:
        assert [line.call("note", number) for number in (1, 2, 3)] == [0, 0, 0]


def test_it_gets_its_context(address: str, loop: str) -> None:
    with ServerThread(instant_service(), address, loop=loop), hostline.connect(address) as line:
        pid, method, has_time = line.call("who", timeout=10).split()
    assert int(pid) > 0
    assert (method, has_time) == ("who", "True")


def test_its_failures_are_those_of_a_task(address: str, loop: str) -> None:
    with ServerThread(instant_service(), address, loop=loop) as server, hostline.connect(address) as line:
        with pytest.raises(RemoteError, match="under the sofa"):
            line.call("lose")
        for kind in ("exit", "stop"):
            with pytest.raises(InternalError, match="reference"):
                line.call("leave", kind)
        with pytest.raises(hostline.CallCancelledError):
            line.call("leave", "cancelled")
        assert line.call("task_name") is False
        assert line.call("echo", "still here") == "still here"
        assert server.running_count == 0


def test_a_call_without_any_time_left_does_not_run(address: str, loop: str) -> None:
    with ServerThread(instant_service(), address, loop=loop), hostline.connect(address) as line:
        with pytest.raises(DeadlineExceededError):
            line.call("echo", "late", timeout=0)
