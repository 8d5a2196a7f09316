"""The accept loop survives a full descriptor table: no spin, one line a second, others go on, and it resumes."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostline.protocol.serving.accepting import Accepting
from tests.faces import Face, face_names, make_face

# Runs with 64 descriptors. Echoes on every connection; a byte on standard input makes it close half of them, another
# ends it. Prints its CPU time at the end.
BLOCKING = """
import logging, sys, threading, time, resource
from hostline.sync.sockets import listen
from hostline.errors import HostlineError
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
connections = []
def echo(connection):
    try:
        for data in connection:
            connection.send(data)
    except HostlineError:
        pass
    connection.close()
def serve():
    for connection in listener:
        connections.append(connection)
        threading.Thread(target=echo, args=(connection,), daemon=True).start()
listener = listen(sys.argv[1])
thread = threading.Thread(target=serve)
thread.start()
print("ready", flush=True)
sys.stdin.readline()
for connection in connections[:len(connections) // 2]:
    connection.close()
sys.stdin.readline()
listener.close()
thread.join()
print(time.process_time())
"""

ON_A_LOOP = """
import asyncio, logging, sys, time
from hostline.aio.sockets import listen
from hostline.errors import HostlineError
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
connections = []
async def echo(connection):
    try:
        async for data in connection:
            await connection.send(data)
    except HostlineError:
        pass
    connection.close()
async def main():
    loop = asyncio.get_running_loop()
    tasks = set()
    async def serve():
        async for connection in listener:
            connections.append(connection)
            tasks.add(asyncio.create_task(echo(connection)))
    listener = listen(sys.argv[1])
    serving = asyncio.create_task(serve())
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    for connection in connections[:len(connections) // 2]:
        connection.close()
    await loop.run_in_executor(None, sys.stdin.readline)
    listener.close()
    await serving
    for connection in connections:
        connection.close()
    await asyncio.gather(*tasks)
    print(time.process_time())
if sys.argv[2] == "uvloop":
    import uvloop
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
else:
    asyncio.run(main())
"""


@pytest.fixture(params=face_names())
def server(request: pytest.FixtureRequest, sock_dir: Path) -> Iterator[subprocess.Popen[str]]:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    program = BLOCKING if request.param == "sync" else ON_A_LOOP
    process = subprocess.Popen(
        ["prlimit", "--nofile=64:64", sys.executable, "-c", program, str(sock_dir / "s"), request.param],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.stderr.read() if process.stderr else ""
        yield process
        process.kill()


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    sock.connect(str(path))
    return sock


def is_served(sock: socket.socket, timeout: float) -> bool:
    sock.settimeout(timeout)
    try:
        sock.send(b"?")
        return sock.recv(1) == b"?"
    except OSError:
        return False


def command(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")


@pytest.mark.alone
@pytest.mark.slow
def test_a_full_table_stops_neither_those_connected_nor_the_loop(server: subprocess.Popen[str], sock_dir: Path) -> None:
    seconds = 3.0
    clients: list[socket.socket] = []
    try:
        clients += [connect(sock_dir / "s") for _ in range(100)]
        # They are accepted in the order they came.
        count = next(number for number, client in enumerate(clients) if not is_served(client, 0.5))
        served, waiting = clients[:count], clients[count:]
        assert 30 < len(served) < 64
        before = cpu_seconds(server.pid)
        end = time.monotonic() + seconds
        rounds = 0
        while time.monotonic() < end:
            assert all(is_served(client, 1.0) for client in served[::10])
            rounds += 1
            time.sleep(0.05)
        cpu = cpu_seconds(server.pid) - before
        assert cpu < 0.15 * seconds, f"{cpu:.2f} s of CPU in {seconds} s, {rounds} rounds of echoes included"
        assert not any(is_served(client, 0.05) for client in waiting[:5])
        command(server)  # closes half of its connections
        started = time.monotonic()
        assert is_served(waiting[0], 3.0)
        resumed = time.monotonic() - started
        assert resumed < 1.0, f"it took {resumed:.2f} s to go on"
        command(server)
        _, log = server.communicate(timeout=10)
    finally:
        for client in clients:
            client.close()
    assert server.returncode == 0, log
    lines = log.splitlines()
    assert 1 <= len(lines) <= seconds + 5, log
    assert all(re.match(r"accept on .*/s: too many open files \(EMFILE\)", line) for line in lines), log
    assert not (sock_dir / "s").exists()


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("name", face_names())
def test_a_connection_that_closes_ends_the_rest_early(name: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with face.listen(sock_dir / "s") as listener:
            accepting = Accepting("x", rest=60.0)
            getattr(listener, "endpoint", listener)._accepting = accepting
            first = await face.connect_socket(sock_dir / "s")
            served = await listener.accept(timeout=5)
            accepting.failed(errno.EMFILE, time.monotonic())
            second = await face.connect_socket(sock_dir / "s")
            waiting = asyncio.create_task(listener.accept(timeout=30))
            await asyncio.sleep(0.15)
            assert not waiting.done()
            served.close()
            (await asyncio.wait_for(waiting, 5)).close()
            for client in (first, second):
                client.close()

    make_face(name).run(scenario)


def test_a_peer_that_leaves_before_it_is_accepted_disturbs_nothing(sock_dir: Path) -> None:
    from hostline.sync import sockets

    with sockets.listen(sock_dir / "s") as listener:
        connect(sock_dir / "s").close()
        with connect(sock_dir / "s") as client:
            seen: list[Any] = []
            for _ in range(2):
                with listener.accept(timeout=5) as connection:
                    seen.append(connection.peer.pid)
                    if client.fileno() < 0:
                        break
            assert seen == [os.getpid()] * 2
