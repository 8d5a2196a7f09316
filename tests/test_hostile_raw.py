"""Hostile peers leave nothing behind: no descriptor, no thread, no task, and an honest client beside them is served."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hostline.errors import ClosedError, DescriptorError, EndOfStream, HostlineError, TruncatedError
from hostline.sync import sockets as sync_sockets
from hostline.unix import sockets as primitives
from hostline.unix.passing.descriptors import close_all
from tests.faces import Face, face_names, make_face
from tests.leaks import open_descriptors

# Connects COUNT times and misbehaves: nothing sent, half a message, unread data left behind, descriptors nobody asked
# for, too many of them, empty packets, and processes that are killed in the middle of it.
HOSTILE = """
import array, os, random, signal, socket, struct, sys
path, kind, count = sys.argv[1], getattr(socket, "SOCK_" + sys.argv[2].upper()), int(sys.argv[3])
random.seed(int(sys.argv[4]))
null = os.open(os.devnull, os.O_RDONLY)
def connect():
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.settimeout(None)
    while True:
        try:
            sock.connect(path)
            return sock
        except (BlockingIOError, InterruptedError):
            pass
def send_fds(sock, data, number):
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * number))])
def misbehave(sock):
    what = random.randrange(8)
    try:
        if what == 0:
            pass
        elif what == 1:
            sock.send(b"half a mess")
        elif what == 2:
            sock.send(b"echo")  # and leaves without reading
            sock.shutdown(socket.SHUT_RD)
        elif what == 3:
            send_fds(sock, b"x", random.choice([1, 2, 5, 253]))
        elif what == 4:
            sock.send(b"x" * 5000)
            send_fds(sock, b"y", 3)
        elif what == 5:
            sock.send(b"")
            sock.send(b"z")
        elif what == 6:
            sock.send(b"q")
            sock.setblocking(False)
            sock.send(b"r" * 60000)
        else:
            send_fds(sock, b"x", 1)
            send_fds(sock, b"x", 253)
    except OSError:
        pass
for number in range(count):
    if number % 100 == 0:
        pid = os.fork()
        if pid == 0:
            misbehave(connect())
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        continue
    with connect() as sock:
        misbehave(sock)
"""

HOSTILE_FLOOD = """
import array, os, socket, sys
null = os.open(os.devnull, os.O_RDONLY)
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    for number in range(int(sys.argv[2])):
        try:
            sock.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * 50))])
        except PermissionError:
            sock.send(b"y")
"""

HOSTILE_SENDER = """
import array, os, random, socket, sys
path, count = sys.argv[1], int(sys.argv[2])
null = os.open(os.devnull, os.O_RDONLY)
random.seed(7)
for number in range(count):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        data = random.choice([b"", b"x", b"y" * 2000])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * random.choice([1, 2, 3, 253])))]
        try:
            sock.sendmsg([data], rights if random.random() < 0.5 else [], 0, path)
        except PermissionError:
            pass
"""


@pytest.fixture(params=face_names())
def face(request: pytest.FixtureRequest) -> Face:
    return make_face(request.param)


@pytest.fixture(params=["SO_PASSRIGHTS", "an older kernel"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "an older kernel":
        monkeypatch.setattr(primitives, "disallow_fds", lambda sock: False)
    return str(request.param)


def hostile(program: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)])


def watch_descriptors(most: list[int], stop: threading.Event) -> None:
    while True:
        most.append(len(os.listdir("/proc/self/fd")))
        if stop.wait(0.01):
            return


async def serve_hostile(face: Face, path: Path, kind: str, count: int, max_fds: int) -> None:
    """Echo to whoever comes, and to one honest client all the time, until the hostile processes have ended."""
    served = 0
    tasks: set[asyncio.Task[None]] = set()
    gate = asyncio.Semaphore(50)

    async def echo(connection: Any) -> None:
        async with gate, connection:
            try:
                while True:
                    data, fds = await connection.recv_fds(timeout=10)
                    close_all(fds)
                    await connection.send(data, timeout=0.2)
            except (HostlineError, EOFError):
                return

    async def accept(listener: Any) -> None:
        nonlocal served
        try:
            while True:
                connection = await listener.accept()
                served += 1
                task = asyncio.create_task(echo(connection))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        except ClosedError:
            return

    async with face.listen(path, kind, max_fds=max_fds, backlog=64) as listener:
        accepting = asyncio.create_task(accept(listener))
        processes = [hostile(HOSTILE, path, kind, count // 2, seed) for seed in (1, 2)]
        async with await face.connect_socket(path, kind) as honest:
            number = 0
            while any(process.poll() is None for process in processes):
                message = b"%d" % number
                await honest.send(message, timeout=5)
                assert await honest.recv(timeout=5) == message
                number += 1
        assert [process.wait() for process in processes] == [0, 0]
        deadline = time.monotonic() + 15
        while tasks or served < count:
            assert time.monotonic() < deadline, f"{len(tasks)} of {served} connections are still served"
            await asyncio.sleep(0.01)
        listener.close()
        await accepting
    assert served == count + 1
    assert number > 10


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("max_fds", [0, 2])
@pytest.mark.parametrize("kind", ["stream", "seqpacket"])
def test_thousands_of_hostile_connections_leave_no_descriptor(
    face: Face, kind: str, kernel: str, max_fds: int, sock_dir: Path
) -> None:
    count = int(os.environ.get("HOSTLINE_HOSTILE_CONNECTIONS", "800"))
    before = open_descriptors()
    face.run(serve_hostile, sock_dir / "s", kind, count, max_fds)
    assert open_descriptors() == before


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["stream", "seqpacket"])
def test_twenty_thousand_hostile_connections_leave_no_descriptor(kind: str, sock_dir: Path) -> None:
    face = make_face(face_names()[-1])
    before = open_descriptors()
    face.run(serve_hostile, sock_dir / "s", kind, 20_000, 2)
    assert open_descriptors() == before


def test_a_flood_of_unasked_descriptors_never_touches_the_table(face: Face, kernel: str, sock_dir: Path) -> None:
    messages = 2000  # of 50 descriptors each

    async def scenario(face: Face) -> None:
        most: list[int] = []
        stop = threading.Event()
        watcher = threading.Thread(target=watch_descriptors, args=(most, stop))
        async with face.listen(sock_dir / "s") as listener:
            process = hostile(HOSTILE_FLOOD, sock_dir / "s", messages)
            async with await listener.accept(timeout=10) as served:
                watcher.start()
                got = 0
                try:
                    while True:
                        got += len(await served.recv(timeout=10))
                except EndOfStream:
                    pass
                finally:
                    stop.set()
                    watcher.join()
            assert process.wait() == 0
        assert got >= messages  # the bytes came, with or without an error at the sender
        assert max(most) - min(most) <= 2  # the watcher's own

    face.run(scenario)


def test_hostile_datagrams_harm_nobody(face: Face, kernel: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with face.listen(sock_dir / "s", "datagram") as receiver:
            before = open_descriptors()
            process = hostile(HOSTILE_SENDER, sock_dir / "s", 500)
            honest = await face.connect_socket(sock_dir / "s", "datagram")
            got = 0
            sending = asyncio.create_task(send_numbers(honest, 200))
            while got < 200 or process.poll() is None:
                try:
                    data = await receiver.recv(1000, timeout=0.2)
                except (TruncatedError, DescriptorError):
                    continue
                except TimeoutError:
                    continue
                if data.startswith(b"honest"):
                    assert data == b"honest %d" % got
                    got += 1
            await sending
            honest.close()
            assert process.wait() == 0
            assert open_descriptors() == before

    face.run(scenario)


async def send_numbers(sender: Any, count: int) -> None:
    for number in range(count):
        await sender.send(b"honest %d" % number, timeout=10)


def test_names_of_peers_are_escaped_wherever_they_are_shown(sock_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="hostline")
    path = os.fsencode(sock_dir) + b"/\x1b[31m\n\xff"
    with sync_sockets.listen(os.fsdecode(path), backlog=0) as listener:
        assert repr(listener).isprintable()
        with sync_sockets.connect_socket(os.fsdecode(path)) as client:
            assert repr(client).isprintable()
            with pytest.raises(TimeoutError) as caught:
                client.recv(timeout=0)
            assert str(caught.value).isprintable()
            with listener.accept(timeout=5) as served:
                assert repr(served).isprintable()
    assert all(record.getMessage().isprintable() for record in caplog.records)
