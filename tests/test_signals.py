"""A signal every millisecond during thousands of calls: none fails, none is answered wrongly, in neither face."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import hostline
from hostline.errors import DeadlineExceededError
from hostline.wire.codec import ServerHello, encode_hello, own_features
from tests.faces import every_millisecond
from tests.leaks import open_descriptors, wait_until
from tests.serving import ServerProcess, ServerThread, loop_factory_named, loop_names


@pytest.fixture
def server(sock_dir: Path) -> Iterator[ServerProcess]:
    with ServerProcess(sock_dir / "s") as started:
        yield started
        started.signal(signal.SIGTERM)
        assert started.wait() == 0


def call_many(address: str, count: int) -> int:
    """Make calls that return at once and some that wait; returns how many signals came meanwhile."""
    with hostline.connect(address) as line, every_millisecond() as seen:
        for number in range(count):
            assert line.call("look", number, 0.005 if number % 100 == 0 else 0.0) == number
        before = len(seen)
        assert line.call("look", 7, 0.2) == 7  # one wait, interrupted two hundred times
        assert len(seen) - before > 50
    return len(seen)


def test_blocking_calls_are_not_disturbed(server: ServerProcess) -> None:
    assert call_many(server.address, 3_000) > 100


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_hundred_thousand_blocking_calls_are_not_disturbed(server: ServerProcess) -> None:
    assert call_many(server.address, 100_000) > 1_000


def test_large_blocking_calls_are_not_disturbed(sock_dir: Path) -> None:
    """Sends and receives in many parts, each of which a signal may interrupt."""
    service = hostline.Service("large")

    @service.method
    async def echo(data: bytes) -> bytes:
        await asyncio.sleep(0.001)
        return data

    with ServerThread(service, sock_dir / "s"), hostline.connect(sock_dir / "s") as line:
        data = bytes(range(256)) * 3_900
        with every_millisecond():
            for _ in range(100):
                assert line.call("echo", data, returns=bytes) == data


def test_a_deadline_is_kept_under_signals(server: ServerProcess) -> None:
    """Each signal starts the wait anew, but not the time it has."""
    with hostline.connect(server.address) as line, every_millisecond():
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            line.call("look", 1, 30.0, timeout=0.3)
        assert 0.29 < time.monotonic() - started < 1.5


def test_connecting_is_not_disturbed(server: ServerProcess) -> None:
    with every_millisecond():
        for number in range(200):
            with hostline.connect(server.address) as line:
                assert line.call("look", number) == number


def test_waiting_for_a_place_in_the_pool_is_not_disturbed(server: ServerProcess) -> None:
    with hostline.connect(server.address, max_size=1) as line:
        thread = threading.Thread(target=line.call, args=("look", 1, 0.3))
        thread.start()
        with every_millisecond() as seen:
            while line._pool.idle_count:
                pass
            assert line.call("look", 2) == 2
            assert len(seen) > 50
        thread.join()


@pytest.mark.parametrize("loop", loop_names())
def test_calls_on_a_loop_are_not_disturbed(server: ServerProcess, loop: str) -> None:
    async def main() -> None:
        async with hostline.aio.connect(server.address) as line:
            for start in range(0, 3_000, 50):
                numbers = range(start, start + 50)
                assert await asyncio.gather(*(line.call("look", number) for number in numbers)) == list(numbers)
            assert await line.call("look", 7, 0.2) == 7

    with every_millisecond() as seen, asyncio.Runner(loop_factory=loop_factory_named(loop)) as runner:
        runner.run(main())
    assert len(seen) > 50


@pytest.mark.parametrize("loop", loop_names())
def test_a_server_is_not_disturbed(sock_dir: Path, loop: str) -> None:
    service = hostline.Service("disturbed")

    @service.method
    async def later(number: int) -> int:
        await asyncio.sleep(0.0005)
        return number

    @service.method
    def block(number: int) -> int:
        time.sleep(0.0005)
        return number

    answers: list[Any] = []

    def call(stop: Callable[[], None]) -> None:
        with hostline.connect(sock_dir / "s") as line:
            answers.extend(line.call("later" if number % 2 else "block", number) for number in range(300))
        stop()

    async def main() -> None:
        async with service.serve(sock_dir / "s"):
            done = asyncio.Event()
            loop = asyncio.get_running_loop()
            thread = threading.Thread(target=call, args=(lambda: void(loop.call_soon_threadsafe(done.set)),))
            thread.start()
            await done.wait()
            thread.join()

    with every_millisecond() as seen, asyncio.Runner(loop_factory=loop_factory_named(loop)) as runner:
        runner.run(main())
    assert answers == list(range(300))
    assert len(seen) > 50


def void(_: object) -> None:
    """Take a value and give none."""


@pytest.mark.parametrize("size", [0, 1 << 23])
def test_a_deadline_is_kept_under_signals_where_the_server_says_nothing(sock_dir: Path, size: int) -> None:
    """Nor takes anything; the time is not given anew with each signal."""
    service = hostline.Service("silent")

    @service.method
    def take(data: hostline.Buffer) -> int:
        return len(data)

    with silent(service, sock_dir / "s"), hostline.connect(sock_dir / "s") as line, every_millisecond():
        # Without signals even a wait that each of them begins anew comes to its end.
        end = threading.Timer(3.0, signal.setitimer, (signal.ITIMER_REAL, 0))
        end.start()
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            line.call("take", hostline.Buffer(bytes(size)), timeout=0.3)
        end.cancel()
        assert 0.29 < time.monotonic() - started < 1.5


@pytest.mark.parametrize("every", [0.05, 0.2])
def test_a_deadline_is_kept_where_the_server_reads_a_little_now_and_then(sock_dir: Path, every: float) -> None:
    service = hostline.Service("slow")

    @service.method
    def take(data: hostline.Buffer) -> int:
        return len(data)

    with silent(service, sock_dir / "s", every), hostline.connect(sock_dir / "s") as line:
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            line.call("take", hostline.Buffer(bytes(12 << 20)), timeout=0.3)
        assert 0.29 < time.monotonic() - started < 1.5


@contextmanager
def silent(service: hostline.Service, path: Path, every: float | None = None) -> Iterator[None]:
    """Greet as a service that takes no descriptors, then say nothing; read half a mebibyte at intervals, or nothing."""
    methods = [method.entry for method in service.methods.values()]
    features = own_features(has_descriptors=False)
    hello = encode_hello(ServerHello(service="s", max_frame_size=16 << 20, features=features, methods=methods))
    is_over = threading.Event()

    def serve() -> None:
        with listener.accept()[0] as sock:
            sock.sendall(hello)
            while not is_over.wait(every):
                sock.recv(512 << 10, socket.MSG_WAITALL)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join(10.0)


def test_descriptors_that_come_late_are_not_lost_under_signals(sock_dir: Path) -> None:
    """Later than the kernel waits by itself, and while signals end that wait: each comes, once."""
    service = hostline.Service("late")

    @service.method
    async def pipes(count: int) -> list[hostline.Fd]:
        await asyncio.sleep(0.15 if count == 4 else 0.002)
        made = []
        for _ in range(count):
            reader, writer = os.pipe()
            os.write(writer, b"x")
            os.close(writer)
            made.append(hostline.Fd(reader))
        return made

    with ServerThread(service, sock_dir / "s"), hostline.connect(sock_dir / "s") as line:
        line.call("pipes", 0, returns=list[hostline.Fd])
        before = open_descriptors()
        with every_millisecond() as seen:
            for number in range(60):
                fds = line.call("pipes", number % 5, returns=list[hostline.Fd])
                assert [os.read(fd.fileno(), 2) for fd in fds] == [b"x"] * (number % 5)
                for fd in fds:
                    fd.close()
        assert len(seen) > 100
        assert wait_until(lambda: open_descriptors() == before)
