"""`serve` inside a loop and `run` for a whole program."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.leaks import wait_until
from tests.serving import ServerProcess, loop_factory_named, loop_names
from tests.tree import TREE

import hostline
from hostline.aio.serving.server import Server
from hostline.errors import AddressError, AddressInUseError, LocalProtocolError, UnavailableError


def small_service() -> hostline.Service:
    service = hostline.Service("small")

    @service.method(inline=True)
    def echo(value: int) -> int:
        return value

    @service.method
    def double(value: int) -> int:
        return 2 * value

    return service


# --- serve ---------------------------------------------------------------------------------------------


def test_serve_is_awaited_or_entered(run_async: Any, sock_dir: Path) -> None:
    address = sock_dir / "s"

    async def main() -> None:
        service = small_service()
        async with service.serve(address) as server, hostline.aio.connect(address) as line:
            assert server.address == str(address)
            assert await line.call("echo", 1) == 1
        assert not address.exists()
        server = await service.serve(address)
        async with hostline.aio.connect(address) as line:
            assert await line.call("double", 2) == 4
        await server.shutdown()
        await server.shutdown()  # safe to repeat
        await server.wait_closed()
        assert not address.exists()

    run_async(main)


def test_a_server_is_started_once(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        async with small_service().serve(sock_dir / "s") as server:
            with pytest.raises(LocalProtocolError):
                await server.start()
        with pytest.raises(LocalProtocolError):
            await server.start()

    run_async(main)


def test_a_bare_service_is_served_under_its_own_name(run_async: Any) -> None:
    async def main() -> None:
        async with small_service().serve() as server, hostline.aio.connect("small") as line:
            assert server.address.endswith("/small.sock")
            assert await line.call("echo", 1) == 1

    run_async(main)


def test_the_socket_file_has_the_mode_asked_for(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        for mode in (None, 0o600, 0o660, 0o666):
            async with small_service().serve(sock_dir / "s", mode=mode):
                assert stat.S_IMODE((sock_dir / "s").stat().st_mode) == (mode or 0o600)

    run_async(main)


def test_a_second_server_is_refused_and_the_first_goes_on(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        service = small_service()
        async with service.serve(sock_dir / "s"), hostline.aio.connect(sock_dir / "s") as line:
            with pytest.raises(AddressInUseError, match=str(os.getpid())):
                await service.serve(sock_dir / "s")
            assert await line.call("echo", 1) == 1
            async with hostline.aio.connect(sock_dir / "s") as another:
                assert await another.call("echo", 2) == 2

    run_async(main)


def test_one_service_may_be_served_at_two_addresses(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        service = small_service()
        async with service.serve(sock_dir / "a"), service.serve(sock_dir / "b"):
            for name in ("a", "b"):
                async with hostline.aio.connect(sock_dir / name) as line:
                    assert await line.call("double", 3) == 6

    run_async(main)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concurrency": 0}, "concurrency of 0"),
        ({"queue": -1}, "queue of -1"),
        ({"threads": 0}, "threads of 0"),
        ({"max_frame_size": 10}, "max_frame_size of 10"),
        ({"max_frame_size": 1 << 40}, "max_frame_size"),
        ({"mode": 0o1777}, "mode"),
        ({"backlog": -1}, "backlog"),
    ],
)
def test_an_option_out_of_range_is_refused_and_nothing_is_left(
    run_async: Any, sock_dir: Path, options: dict[str, Any], words: str
) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=words):
            await small_service().serve(sock_dir / "s", **options)
        assert not (sock_dir / "s").exists()
        async with small_service().serve(sock_dir / "s"):  # the lock was let go as well
            pass

    run_async(main)


def test_a_mode_for_an_abstract_name_is_refused(run_async: Any) -> None:
    async def main() -> None:
        with pytest.raises(AddressError, match="abstract"):
            await small_service().serve(f"unix:@hl-{os.getpid()}", mode=0o600)

    run_async(main)


def test_a_service_with_more_names_than_a_hello_holds_is_refused_at_the_server(run_async: Any, sock_dir: Path) -> None:
    service = hostline.Service("wordy")
    for number in range(1000):
        service.method(name=f"{'x' * 100}{number}")(lambda: None)

    async def main() -> None:
        with pytest.raises(ValueError, match="hello"):
            await service.serve(sock_dir / "s")
        assert not (sock_dir / "s").exists()

    run_async(main)


def test_everything_of_a_server_ends_with_it(run_async: Any, sock_dir: Path) -> None:
    """Handlers of all kinds under way, connections open: afterwards no task, no thread, no descriptor, no file."""
    service = hostline.Service("busy")

    @service.method
    async def wait() -> None:
        await asyncio.sleep(60)

    @service.method
    def block(context: hostline.Context) -> None:
        context.wait_cancelled(60)

    async def main() -> None:
        before = set(os.listdir("/proc/self/fd"))
        threads = threading.active_count()
        async with service.serve(sock_dir / "s", grace=0.05) as server:
            line = await hostline.aio.connect(sock_dir / "s")
            calls = [asyncio.create_task(line.call(name)) for name in ("wait", "block") for _ in range(5)]
            while server.admission.running_count < 10:  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.001)
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(result) for result in results} == {UnavailableError}
        await line.close()
        assert server.admission.running_count == 0
        assert wait_until(lambda: threading.active_count() == threads)
        assert set(os.listdir("/proc/self/fd")) == before

    run_async(main)


# --- run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", loop_names())
def test_run_serves_in_a_thread_that_is_not_the_main_one(sock_dir: Path, loop: str) -> None:
    """No signals arrive there: the program around it stops the server."""
    service, started = small_service(), threading.Event()
    servers: list[Server] = []
    factory = loop_factory_named(loop)

    def on_start(server: Server) -> None:
        servers.append(server)
        started.set()

    thread = threading.Thread(
        target=service.run, args=(sock_dir / "s",), kwargs={"loop_factory": factory, "on_start": on_start}
    )
    thread.start()
    assert started.wait(5)
    (server,) = servers
    assert loop in type(server.loop).__module__
    with hostline.connect(sock_dir / "s") as line:
        assert line.call("double", 4) == 8
    asyncio.run_coroutine_threadsafe(server.shutdown(), server.loop)
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("loop", loop_names())
def test_run_in_the_main_thread_ends_with_a_signal_and_gives_the_handlers_back(sock_dir: Path, loop: str) -> None:
    service = small_service()
    answers: list[int] = []

    def call_then_stop() -> None:
        with hostline.connect(sock_dir / "s", wait=5) as line:
            answers.append(line.call("echo", 7))
        os.kill(os.getpid(), signal.SIGTERM)

    caller = threading.Thread(target=call_then_stop)
    service.run(sock_dir / "s", loop_factory=loop_factory_named(loop), on_start=lambda _: caller.start())
    caller.join()
    assert answers == [7]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_failing_on_start_leaves_nothing_behind(sock_dir: Path) -> None:
    def fail(_: Server) -> None:
        raise RuntimeError("not today")

    with pytest.raises(RuntimeError, match="not today"):
        small_service().run(sock_dir / "s", on_start=fail)
    assert not (sock_dir / "s").exists()


def test_run_where_somebody_serves_already_raises(run_async: Any, sock_dir: Path) -> None:
    async def main() -> None:
        async with small_service().serve(sock_dir / "s"):
            with pytest.raises(AddressInUseError):
                await asyncio.to_thread(small_service().run, sock_dir / "s")

    run_async(main)


@pytest.mark.leaves_files
def test_a_killed_server_is_followed_by_the_next(sock_dir: Path) -> None:
    with ServerProcess(sock_dir / "s") as first:
        with hostline.connect(sock_dir / "s") as line:
            assert line.call("pid") == first.pid
            first.kill()
            assert (sock_dir / "s").exists()
            with ServerProcess(sock_dir / "s") as second:
                assert line.call("pid") == second.pid


def test_an_interrupt_from_the_terminal_ends_the_program_even_inside_a_handler(sock_dir: Path) -> None:
    """`KeyboardInterrupt` is not a failure of one call: Control-C has to work in programs of every kind."""
    service = hostline.Service("interrupted")

    @service.method(inline=True)
    def interrupt() -> None:
        raise KeyboardInterrupt

    def call() -> None:
        with hostline.connect(sock_dir / "s", wait=5, reconnect_timeout=0.1) as line, pytest.raises(UnavailableError):
            line.call("interrupt")

    caller = threading.Thread(target=call)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        service.run(sock_dir / "s", on_start=lambda _: caller.start())
    assert time.monotonic() - started < 5
    caller.join()
    assert not (sock_dir / "s").exists()


STUBBORN = """
import asyncio, os, signal, sys, threading, time
import hostline
from tests.serving import loop_factory_named

service = hostline.Service("stubborn")

@service.method
async def hang() -> None:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

def own_handler(number, frame):
    pass

def keep_asking(server):
    def ask():
        with hostline.connect(sys.argv[1], timeout=30) as line:
            try:
                line.call("hang")
            except hostline.HostlineError:
                pass
    threading.Thread(target=ask, daemon=True).start()
    def insist():
        time.sleep(0.3)
        while not ended.wait(0.02):
            os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=insist).start()

ended = threading.Event()
signal.signal(signal.SIGTERM, own_handler)
service.run(sys.argv[1], grace=0.1, on_start=keep_asking, loop_factory=loop_factory_named(sys.argv[2]))
ended.set()
assert signal.getsignal(signal.SIGTERM) is own_handler
print("ended")
"""


@pytest.mark.parametrize("loop", loop_names())
def test_signals_without_end_do_not_kill_a_server_that_leaves_a_handler_behind(sock_dir: Path, loop: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUBBORN, str(sock_dir / "s"), loop],
        capture_output=True, text=True, timeout=20, env={**os.environ, "PYTHONPATH": str(TREE)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
    assert "destroyed" not in done.stderr
    assert not (sock_dir / "s").exists()
