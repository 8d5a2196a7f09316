"""Fixtures for every test: a short directory, both event loops and a second user.

The check that nothing is left behind is hostline's own pytest plugin, switched on in pyproject.toml.

HOSTLINE_TEST_LOOP=asyncio|uvloop|both   which loops `run_async` uses (both)
HOSTLINE_TEST_ALONE=only|without|all     whether the tests marked `alone` run, and the others (all); see tools/run-tests
HOSTLINE_CI=1                            a test that must run in CI and skips fails instead
"""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
from collections.abc import Callable, Coroutine, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from hostline.testing.plugin import has_failed, short_directory
from tests import core, second_user
from tests.leaks import stray_socket_files, wait_until

IN_CI = os.environ.get("HOSTLINE_CI") == "1"
MUST_RUN_IN_CI = ("root", "ci_required")
# Seconds for a test marked slow; all others have the 60 of pyproject.toml.
SLOW_TIMEOUT = 300

# A shared machine pauses for longer than one example takes: the suite's own time limits catch what hangs.
hypothesis.settings.register_profile("hostline", deadline=None)
hypothesis.settings.load_profile("hostline")


# --- the whole run -----------------------------------------------------------------------------------


def pytest_sessionstart() -> None:
    """Refuse to test a compiled core that is not made from this source."""
    if complaint := core.complaint():
        raise pytest.UsageError(complaint)


@pytest.fixture(scope="session", autouse=True)
def _own_runtime_directory() -> Iterator[None]:
    """Keep bare names out of the machine's real runtime directory."""
    directory = short_directory("hlrun-")
    before = os.environ.get("HOSTLINE_RUNTIME_DIR")
    os.environ["HOSTLINE_RUNTIME_DIR"] = str(directory)
    yield
    if before is None:
        del os.environ["HOSTLINE_RUNTIME_DIR"]
    else:
        os.environ["HOSTLINE_RUNTIME_DIR"] = before
    shutil.rmtree(directory, ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what another step runs, skip what needs root where there is none, give slow tests more time."""
    choice = os.environ.get("HOSTLINE_TEST_ALONE", "all")
    if choice not in ("only", "without", "all"):
        raise pytest.UsageError(f"HOSTLINE_TEST_ALONE={choice!r} is none of only, without, all")
    if choice != "all":  # not by -m, whose last word would win over the one in PYTEST_ARGS or give way to it
        left_out = {item for item in items if (item.get_closest_marker("alone") is not None) != (choice == "only")}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
    # Files with slow tests first, so that none of them is what the other processes wait for at the end.
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)
    for item in items:
        if os.geteuid() != 0 and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root, for real second users"))
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn skips that CI forbids into failures."""
    report = yield
    is_required = any(item.get_closest_marker(name) for name in MUST_RUN_IN_CI)
    if IN_CI and report.skipped and is_required and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} must run in CI and was skipped: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Let no module skip itself whole in CI: its marks would never be seen."""
    report = yield
    if IN_CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} must not be skipped whole in CI: {report.longrepr}"
    return report


# --- each test ---------------------------------------------------------------------------------------


@pytest.fixture
def sock_dir(request: pytest.FixtureRequest, hostline_dir: Path) -> Iterator[Path]:
    """Give a fresh, short, private directory; fail if hostline leaves a socket file in it.

    A test that leaves one on purpose (it kills the server, say) is marked `leaves_files`.
    """
    yield hostline_dir
    is_exempt = has_failed(request.node) or request.node.get_closest_marker("leaves_files")
    if not is_exempt and not wait_until(lambda: not stray_socket_files(hostline_dir), timeout=1.0):
        pytest.fail(f"socket files left behind: {', '.join(stray_socket_files(hostline_dir))}", pytrace=False)


# --- event loops -------------------------------------------------------------------------------------


def _loop_factories() -> list[str]:
    choice = os.environ.get("HOSTLINE_TEST_LOOP", "both")
    if choice not in ("asyncio", "uvloop", "both"):
        raise pytest.UsageError(f"HOSTLINE_TEST_LOOP={choice!r} is none of asyncio, uvloop, both")
    return ["asyncio", "uvloop"] if choice == "both" else [choice]


@pytest.fixture(params=_loop_factories())
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Give each event loop in turn, as a factory for `asyncio.Runner`."""
    if request.param == "asyncio":
        return asyncio.new_event_loop
    if IN_CI:
        import uvloop
    else:
        uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")
    return uvloop.new_event_loop  # type: ignore[no-any-return]


RunAsync = Callable[..., Any]


@pytest.fixture
def run_async(request: pytest.FixtureRequest, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> RunAsync:
    """Give `run_async(coroutine_or_function, *args)`, which runs it on asyncio's loop and, in a second test, on uvloop.

    It fails if tasks are still pending when the coroutine returns, or if the loop was told of an error nobody handled.
    """
    is_debug = loop_factory is asyncio.new_event_loop and not request.node.get_closest_marker("slow")

    def run(subject: Coroutine[Any, Any, Any] | Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
        unhandled: list[str] = []
        ends: list[BaseException] = []

        def on_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            error = context.get("exception")
            if isinstance(error, pytest.fail.Exception):
                ends.append(error)  # the timeout, raised by its signal: uvloop hands it here and would run on
                loop.stop()
            else:
                unhandled.append(_describe(context))

        async def main() -> Any:
            asyncio.get_running_loop().set_exception_handler(on_error)
            result = await (subject if inspect.iscoroutine(subject) else subject(*args))  # type: ignore[operator]
            pending = await _pending_tasks()
            assert not pending, f"tasks still pending: {pending}"
            return result

        with asyncio.Runner(debug=is_debug, loop_factory=loop_factory) as runner:
            try:
                result = runner.run(main())
            except RuntimeError:
                if ends:
                    raise ends[0] from None
                raise
        assert not unhandled, "the event loop was told of errors that nobody handled:\n" + "\n".join(unhandled)
        return result

    return run


async def _pending_tasks(grace: float = 1.0) -> list[asyncio.Task[Any]]:
    """Return the tasks beside this one that do not end within the grace."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + grace
    while True:
        pending = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if not pending or loop.time() >= deadline:
            return pending
        await asyncio.sleep(0.001)


def _describe(context: dict[str, Any]) -> str:
    return (
        f"{context.get('message')}: {context.get('exception')!r} {context.get('task') or context.get('handle') or ''}"
    )


# --- second users ------------------------------------------------------------------------------------


@pytest.fixture
def run_as() -> Callable[..., Any]:
    """Give `run_as(uid, function, *args)`: the result, or the exception, of the function run as that user."""
    return second_user.run_as


@pytest.fixture
def as_nobody() -> Iterator[Callable[..., Any]]:
    """Give `as_nobody(*arguments)`: a started `python ARGUMENTS...` as uid 65534; it is ended with the test."""
    started = []

    def start(*arguments: str, **options: Any) -> Any:
        process = second_user.python_as(second_user.NOBODY, *arguments, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
