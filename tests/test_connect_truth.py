"""Connect tells the truth: a full backlog is waited out, or is an error that says so; nothing spins, nothing lies."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostline.aio import connecting
from hostline.errors import (
    ConnectRefusedError,
    ConnectTimeoutError,
    NotASocketError,
    SocketError,
)
from hostline.sync import sockets as sync_sockets
from hostline.unix.credentials import Peers
from tests.faces import Face, face_names, make_face, soon

CONNECTED = ("stream", "seqpacket")
KINDS = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET, "datagram": socket.SOCK_DGRAM}


@pytest.fixture(params=face_names())
def face(request: pytest.FixtureRequest) -> Face:
    return make_face(request.param)


@pytest.fixture(params=[name for name in face_names() if name != "sync"])
def loop_face(request: pytest.FixtureRequest) -> Face:
    return make_face(request.param)


@pytest.fixture(params=CONNECTED)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class FullServer:
    """Listen with a tiny backlog, fill it, and accept only when told to."""

    def __init__(self, path: Path, kind: str, backlog: int = 2) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX, KINDS[kind])
        self.listener.bind(str(path))
        self.listener.listen(backlog)
        self.listener.setblocking(False)
        self.sockets: list[socket.socket] = []
        while True:
            sock = socket.socket(socket.AF_UNIX, KINDS[kind])
            sock.setblocking(False)
            self.sockets.append(sock)
            try:
                sock.connect(str(path))
            except BlockingIOError:
                break

    def accept(self) -> bool:
        try:
            self.sockets.append(self.listener.accept()[0])
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        for sock in [self.listener, *self.sockets]:
            sock.close()
        self.path.unlink(missing_ok=True)


@pytest.fixture
def full(sock_dir: Path, kind: str) -> Iterator[FullServer]:
    server = FullServer(sock_dir / "s", kind)
    yield server
    server.close()


# --- a full backlog ----------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize("timeout", [0.0, 1.0])
def test_it_is_waited_for_until_the_deadline_and_the_error_says_so(
    face: Face, kind: str, full: FullServer, timeout: float
) -> None:
    async def scenario(face: Face) -> None:
        started, cpu = time.monotonic(), time.process_time()
        with pytest.raises(ConnectTimeoutError, match=r"backlog stayed full for \d+\.\d+ seconds") as caught:
            await face.connect_socket(full.path, kind, timeout=timeout)
        waited, cpu = time.monotonic() - started, time.process_time() - cpu
        assert timeout * 0.99 <= waited < timeout + 1.0
        error = caught.value
        assert (error.operation, error.socket_type, error.address) == ("connect", kind, str(full.path))
        assert error.errno == errno.EAGAIN
        assert isinstance(error, TimeoutError)
        if timeout:
            assert cpu < 0.05 * waited, f"{cpu:.3f} s of CPU in {waited:.3f} s of waiting"

    face.run(scenario)


def test_it_connects_when_there_is_room_again(face: Face, kind: str, full: FullServer) -> None:
    async def scenario(face: Face) -> None:
        connecting = asyncio.create_task(face.connect_socket(full.path, kind, timeout=10, server=Peers.anyone()))
        await asyncio.sleep(0.2)
        assert not connecting.done()
        assert full.accept()
        async with await asyncio.wait_for(connecting, 5) as client:
            while full.accept():
                pass
            await client.send(b"hello")
            served = full.sockets[-1]
            served.settimeout(5)
            assert served.recv(10) == b"hello"

    face.run(scenario)


def test_a_server_that_ends_while_others_wait_is_an_error_for_each(face: Face, kind: str, full: FullServer) -> None:
    async def scenario(face: Face) -> None:
        tasks = [asyncio.create_task(face.connect_socket(full.path, kind, timeout=10)) for _ in range(3)]
        await asyncio.sleep(0.1)
        full.listener.close()
        for task in tasks:
            with pytest.raises(ConnectRefusedError):
                await asyncio.wait_for(task, 5)

    face.run(scenario)


@pytest.mark.alone
def test_many_waiting_tasks_cost_no_more_than_one(loop_face: Face, kind: str, full: FullServer) -> None:
    async def scenario(face: Face) -> None:
        async def connect() -> None:
            with pytest.raises(ConnectTimeoutError):
                await face.connect_socket(full.path, kind, timeout=1.0)

        started = time.monotonic()
        tasks = [asyncio.create_task(connect()) for _ in range(200)]
        await asyncio.sleep(0.1)  # they have begun
        cpu = time.process_time()
        await asyncio.sleep(0.8)
        cpu = time.process_time() - cpu
        assert cpu < 0.05 * 0.8, f"{cpu:.3f} s of CPU in 0.8 s of waiting"
        await asyncio.gather(*tasks)
        assert time.monotonic() - started < 3

    loop_face.run(scenario)


def test_first_come_first_served_whatever_the_others_do(loop_face: Face, kind: str, full: FullServer) -> None:
    async def scenario(face: Face) -> None:
        order: list[int] = []

        async def connect(number: int, timeout: float = 10) -> None:
            async with await face.connect_socket(full.path, kind, timeout=timeout):
                order.append(number)

        tasks = []
        for number in range(12):
            # Some give up, some are cancelled: those behind them move on.
            tasks.append(asyncio.create_task(connect(number, 0.05 if number in (3, 4) else 10)))
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        for number in (0, 1, 7):
            tasks[number].cancel()
        await asyncio.sleep(0)
        while len(order) < 7:
            full.accept()
            await asyncio.sleep(0.001)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [2, 5, 6, 8, 9, 10, 11]
        assert [type(outcome) for outcome in outcomes] == [
            asyncio.CancelledError if number in (0, 1, 7) else ConnectTimeoutError if number in (3, 4) else type(None)
            for number in range(12)
        ]
        assert not connecting._lines[asyncio.get_running_loop()]

    loop_face.run(scenario)


def test_whoever_comes_later_does_not_push_in(loop_face: Face, kind: str, full: FullServer) -> None:
    async def scenario(face: Face) -> None:
        order: list[int] = []

        async def connect(number: int) -> None:
            async with await face.connect_socket(full.path, kind, timeout=10):
                order.append(number)

        first = asyncio.create_task(connect(1))
        await asyncio.sleep(0.2)  # it now tries some twenty times a second only
        assert full.accept()  # room for one, and somebody new comes at once
        later = asyncio.create_task(connect(2))
        await first
        assert order == [1]
        await soon(full.accept)
        await later

    loop_face.run(scenario)


def test_each_in_line_keeps_its_own_deadline(loop_face: Face, kind: str, full: FullServer) -> None:
    async def scenario(face: Face) -> None:
        ended: list[float] = []

        async def connect(timeout: float) -> None:
            with pytest.raises(ConnectTimeoutError):
                await face.connect_socket(full.path, kind, timeout=timeout)
            ended.append(timeout)

        started = time.monotonic()
        await asyncio.gather(*(connect(timeout) for timeout in (0.5, 0.1, 0.3, 0.0, 0.2)))
        assert ended == [0.0, 0.1, 0.2, 0.3, 0.5]
        assert 0.49 < time.monotonic() - started < 2

    loop_face.run(scenario)


def test_a_cancelled_connect_leaves_nothing(loop_face: Face, kind: str, full: FullServer) -> None:
    async def scenario(face: Face) -> None:
        before = len(os.listdir("/proc/self/fd"))
        tasks = [asyncio.create_task(face.connect_socket(full.path, kind, timeout=None)) for _ in range(20)]
        await asyncio.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) == before + 20
        for task in reversed(tasks):
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
        assert len(os.listdir("/proc/self/fd")) == before
        assert not connecting._lines[asyncio.get_running_loop()]

    loop_face.run(scenario)


# --- 2,000 connects against a backlog of 16 ----------------------------------------------------------

ECHO_SERVER = """
import selectors, socket, sys, time
listener = socket.socket(socket.AF_UNIX, getattr(socket, sys.argv[2]))
listener.bind(sys.argv[1])
listener.listen(16)
print("ready", flush=True)
selector = selectors.DefaultSelector()
selector.register(listener, selectors.EVENT_READ)
count = 0
while True:
    for key, _ in selector.select():
        if key.fileobj is listener:
            served, _ = listener.accept()
            selector.register(served, selectors.EVENT_READ)
            count += 1
            if count % 100 == 0:
                time.sleep(0.01)  # a server that is busy now and then
        else:
            data = key.fileobj.recv(100)
            if data:
                key.fileobj.send(data)
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()
"""


@contextlib.contextmanager
def echo_server(path: Path, kind: str) -> Iterator[None]:
    arguments = [sys.executable, "-c", ECHO_SERVER, str(path), f"SOCK_{kind.upper()}"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.kill()
            path.unlink(missing_ok=True)


async def connect_and_echo(face: Face, path: Path, kind: str, number: int) -> str:
    try:
        client = await face.connect_socket(path, kind, timeout=10)
    except SocketError as error:
        return type(error).__name__
    async with client:
        message = b"%d" % number
        await client.send(message, timeout=10)
        return "echoed" if await client.recv(timeout=10) == message else "wrong answer"


@pytest.mark.slow
def test_2000_connects_of_one_loop_against_a_backlog_of_16_all_get_through(
    loop_face: Face, kind: str, sock_dir: Path
) -> None:
    async def scenario(face: Face) -> None:
        gate = asyncio.Semaphore(400)  # open at once; the descriptors of this process are bounded

        async def one(number: int) -> str:
            async with gate:
                return await connect_and_echo(face, sock_dir / "s", kind, number)

        outcomes = await asyncio.gather(*(one(number) for number in range(2000)))
        assert collections.Counter(outcomes) == {"echoed": 2000}

    with echo_server(sock_dir / "s", kind):
        loop_face.run(scenario)


@pytest.mark.slow
def test_2000_connects_of_many_threads_against_a_backlog_of_16_all_get_through(kind: str, sock_dir: Path) -> None:
    outcomes: list[str] = []

    def worker(first: int) -> None:
        for number in range(first, first + 50):
            try:
                with sync_sockets.connect_socket(sock_dir / "s", kind, timeout=15) as client:  # type: ignore[call-overload]
                    message = b"%d" % number
                    client.send(message)
                    outcomes.append("echoed" if client.recv(timeout=10) == message else "wrong answer")
            except Exception as error:
                outcomes.append(f"{type(error).__name__}: {error}")

    with echo_server(sock_dir / "s", kind):
        threads = [threading.Thread(target=worker, args=(first,)) for first in range(0, 2000, 50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert collections.Counter(outcomes) == {"echoed": 2000}


def is_lied_to(path: Path) -> bool:
    """Whether asyncio's own connect says that it is connected where the backlog is full and it is not."""
    server = FullServer(path, "stream")

    async def connect() -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            try:
                await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, str(path)), 1)
                sock.getpeername()
            except TimeoutError:
                return False
            except OSError as error:
                return error.errno == errno.ENOTCONN  # connected, it said
        return False

    try:
        return asyncio.run(connect())
    finally:
        server.close()


def test_negative_control_asyncio_hands_back_a_socket_that_is_not_connected(sock_dir: Path) -> None:
    """What these tests would find: the same server, the standard library's client."""
    was_lied_to = is_lied_to(sock_dir / "s")
    if not was_lied_to and sys.version_info >= (3, 14):
        pytest.skip("this Python's asyncio no longer does it")
    assert was_lied_to


# --- each refusal its own error ----------------------------------------------------------------------


@pytest.mark.parametrize("socket_type", list(KINDS))
@pytest.mark.parametrize("what", ["file", "directory", "dangling link"])
def test_something_else_than_a_socket(face: Face, socket_type: str, what: str, sock_dir: Path) -> None:
    path = sock_dir / "s"
    if what == "file":
        path.write_text("data")
    elif what == "directory":
        path.mkdir()
    else:
        path.symlink_to(sock_dir / "nothing")

    async def scenario(face: Face) -> None:
        expected = FileNotFoundError if what == "dangling link" else NotASocketError
        with pytest.raises(expected) as caught:
            await face.connect_socket(path, socket_type)
        assert isinstance(caught.value, SocketError)
        assert (caught.value.operation, caught.value.socket_type) == ("connect", socket_type)

    face.run(scenario)
    assert os.listdir(sock_dir) == ["s"]


@pytest.mark.parametrize("socket_type", list(KINDS))
def test_a_socket_file_with_nobody_behind_it(face: Face, socket_type: str, sock_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, KINDS[socket_type]) as dead:
        dead.bind(str(sock_dir / "s"))

    async def scenario(face: Face) -> None:
        with pytest.raises(ConnectRefusedError) as caught:
            await face.connect_socket(sock_dir / "s", socket_type)
        assert caught.value.errno == errno.ECONNREFUSED
        assert isinstance(caught.value, ConnectionRefusedError)

    face.run(scenario)


@pytest.mark.parametrize("actual", list(KINDS))
@pytest.mark.parametrize("tried", list(KINDS))
def test_the_wrong_type_is_an_error_that_names_the_right_one(
    face: Face, tried: str, actual: str, sock_dir: Path
) -> None:
    if tried == actual:
        return

    async def scenario(face: Face) -> None:
        async with face.listen(sock_dir / "s", actual):
            with pytest.raises(SocketError, match=f"use type='{actual}'"):
                await face.connect_socket(sock_dir / "s", tried)

    face.run(scenario)


def test_a_symbolic_link_to_a_server_is_followed(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        (sock_dir / "link").symlink_to(sock_dir / "s")
        async with face.listen(sock_dir / "s", kind):
            async with await face.connect_socket(sock_dir / "link", kind) as client:
                assert client.peer.pid == os.getpid()

    face.run(scenario)


def test_a_server_that_is_not_trusted_gets_no_byte(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with face.listen(sock_dir / "s", kind) as listener:
            with pytest.raises(PermissionError, match="nothing was sent to it"):
                await face.connect_socket(sock_dir / "s", kind, server=Peers(uids=[54321]))
            async with await listener.accept(timeout=5) as served:
                with pytest.raises(EOFError):
                    await served.recv(timeout=5)

    face.run(scenario)
