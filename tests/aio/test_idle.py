"""Connections that say nothing: a server holds many of them, and each costs little."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving import loop_names

from hostline.wire.codec import ClientHello, encode_hello
from hostline.wire.frame import Kind

COUNT = 1_000
MOST_EACH = 12 << 10

PROGRAM = """
import sys
import hostline

loop_factory = None
if sys.argv[2] == "uvloop":
    import uvloop
    loop_factory = uvloop.new_event_loop
hostline.Service("idle").run(sys.argv[1], loop_factory=loop_factory)
"""


@pytest.fixture
def many_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < COUNT + 200:
        pytest.skip(f"a process may have {before[1]} open files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], COUNT + 200), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def met(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(encode_hello(ClientHello(program="idle")))
        assert sock.recv(4096)[4] == Kind.HELLO
    except BaseException:
        sock.close()
        raise
    return sock


def met_soon(path: Path) -> socket.socket:
    deadline = time.monotonic() + 10
    while True:
        try:
            return met(path)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def own_memory_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what memory a process has of its own")
@pytest.mark.parametrize("loop", loop_names())
def test_an_idle_connection_costs_its_server_at_most_12_kib(loop: str, sock_dir: Path, many_files: None) -> None:
    path = sock_dir / "s"
    held: list[socket.socket] = []
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(path), loop]) as server:
        try:
            held.append(met_soon(path))
            held += [met(path) for _ in range(50)]  # what the first ones make grow is not each one's
            before = own_memory_of(server.pid)
            held += [met(path) for _ in range(COUNT)]
            each = (own_memory_of(server.pid) - before) / COUNT
        finally:
            for sock in held:
                sock.close()
            server.terminate()
    assert 512 < each <= MOST_EACH, f"{each:.0f} bytes each"
