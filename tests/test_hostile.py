"""Twenty thousand hostile connections leave nothing behind, and a peer with manners beside them notices nothing.

HOSTLINE_HOSTILE=20000   how many connections the long run makes
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hostline
from hostline.wire.codec import ClientHello, encode_call, encode_farewell, encode_hello
from hostline.wire.frame import HEADER, Kind, encode_frame
from tests.leaks import wait_until
from tests.second_user import Fork
from tests.serving import ServerProcess, ServerThread, descriptor_count, loop_names, resident_bytes

COUNT = int(os.environ.get("HOSTLINE_HOSTILE", "20000"))
MIB = 1 << 20

HELLO = encode_hello(ClientHello(program="hostile"))

# The methods of tests/service_program.py by number.
CHARGE, CHARGE_IN_THREAD, LOOK, PID = range(4)


# --- what they do --------------------------------------------------------------------------------------


def connected(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    deadline = time.monotonic() + 20
    while True:
        try:
            sock.connect(address)
            return sock
        except BlockingIOError:  # a full backlog, which the kernel does not wait for where there is a timeout
            if time.monotonic() > deadline:
                sock.close()
                raise
            time.sleep(0.001)


def call(number: int, method: int, *args: Any, time_left: float | None = None) -> bytes:
    return bytes(encode_call(number, method, args, None, time_left))


class Hostile:
    """One process's worth of hostile connections, in a repeatable order."""

    def __init__(self, address: str, seed: int) -> None:
        self.address = address
        self.rng = random.Random(seed)
        self.lingering: list[socket.socket] = []
        self.files = [os.open(os.devnull, os.O_RDONLY) for _ in range(253)]
        self.acts: list[Callable[[socket.socket], None]] = [
            self.behave,
            self.say_nothing,
            self.half_a_hello,
            self.half_a_header,
            self.half_a_frame,
            self.reset,
            self.garbage,
            self.garbage_after_hello,
            self.oversize,
            self.announce_descriptors,
            self.send_descriptors,
            self.send_descriptors_within_a_frame,
            self.leave_calls_behind,
            self.flood_and_leave,
            self.half_close,
            self.break_the_order,
            self.deep_arguments,
        ]

    def run(self, count: int) -> int:
        """Make `count` connections; returns how many were made."""
        made = 0
        while made < count:
            if self.rng.random() < 0.005:
                made += self.die_with_many(min(20, count - made))
                continue
            made += 1
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, PermissionError):
                sock = connected(self.address)
                try:
                    self.rng.choice(self.acts)(sock)
                finally:
                    if self.rng.random() < 0.05:
                        self.lingering.append(sock)
                    else:
                        sock.close()
            if len(self.lingering) > 100:
                self.lingering.pop(self.rng.randrange(100)).close()
        for sock in self.lingering:
            sock.close()
        return made

    def behave(self, sock: socket.socket) -> None:
        sock.sendall(HELLO + call(1, PID))
        received = b""
        while count_frames(received) < 2:  # the hello and the answer
            received += sock.recv(65536)

    def say_nothing(self, sock: socket.socket) -> None:
        pass

    def half_a_hello(self, sock: socket.socket) -> None:
        sock.sendall(HELLO[: self.rng.randrange(1, len(HELLO))])

    def half_a_header(self, sock: socket.socket) -> None:
        sock.sendall(HELLO + call(1, LOOK, 1)[: self.rng.randrange(1, HEADER.size)])

    def half_a_frame(self, sock: socket.socket) -> None:
        length = self.rng.choice([100, 10_000, 1_000_000])
        sock.sendall(HELLO + HEADER.pack(length, Kind.CALL, 0, 0, 1, LOOK) + bytes(self.rng.randrange(99)))

    def reset(self, sock: socket.socket) -> None:
        """Close with answers unread, which the kernel tells the server as a reset."""
        sock.sendall(HELLO + call(1, PID) + encode_frame(Kind.PING))

    def garbage(self, sock: socket.socket) -> None:
        sock.sendall(self.rng.randbytes(self.rng.randrange(1, 3000)))

    def garbage_after_hello(self, sock: socket.socket) -> None:
        sock.sendall(HELLO + self.rng.randbytes(self.rng.randrange(1, 3000)))

    def oversize(self, sock: socket.socket) -> None:
        sock.sendall(HELLO + HEADER.pack(self.rng.choice([(2 << 20) + 1, 1 << 30, 0xFFFFFFFF]), Kind.CALL, 0, 0, 1, 0))

    def announce_descriptors(self, sock: socket.socket) -> None:
        sock.sendall(HELLO + HEADER.pack(1, Kind.CALL, 0, self.rng.randrange(1, 0xFFFF), 1, LOOK) + b"\x90")

    def send_descriptors(self, sock: socket.socket) -> None:
        self.send_with_descriptors(sock, HELLO)
        self.send_with_descriptors(sock, call(1, PID))

    def send_descriptors_within_a_frame(self, sock: socket.socket) -> None:
        sock.sendall(HELLO + call(1, LOOK, 1)[:10])
        self.send_with_descriptors(sock, call(1, LOOK, 1)[10:])

    def send_with_descriptors(self, sock: socket.socket, data: bytes) -> None:
        fds = struct.pack(f"{len(self.files)}i", *self.files)
        sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])

    def leave_calls_behind(self, sock: socket.socket) -> None:
        calls = [call(n, self.rng.choice([CHARGE, LOOK]), n, 30.0, time_left=self.rng.choice([None, 0.01, 30]))
                 for n in range(1, self.rng.randrange(2, 10))]  # fmt: skip
        sock.sendall(HELLO + b"".join(calls))
        if self.rng.random() < 0.5:
            sock.sendall(encode_frame(Kind.CANCEL, 1))

    def flood_and_leave(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.sendall(HELLO + b"".join(call(n, LOOK, n) for n in range(1, 400)))

    def half_close(self, sock: socket.socket) -> None:
        sock.sendall(HELLO + call(1, CHARGE, 1, 30.0))
        sock.shutdown(self.rng.choice([socket.SHUT_WR, socket.SHUT_RD]))

    def break_the_order(self, sock: socket.socket) -> None:
        frames = [HELLO, call(1, CHARGE, 1, 30.0), encode_frame(Kind.REPLY, 1), encode_frame(Kind.CANCEL, 7),
                  encode_frame(Kind.PONG), encode_farewell("shutdown", "bye"), call(0, PID)]  # fmt: skip
        self.rng.shuffle(frames)
        sock.sendall(b"".join(frames))

    def deep_arguments(self, sock: socket.socket) -> None:
        sock.sendall(HELLO + encode_frame(Kind.CALL, 1, b"\x91" * 60_000, method=LOOK))

    def die_with_many(self, count: int) -> int:
        """Fork, open connections in every state, and be killed."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            held = []
            try:
                for _ in range(count):
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError, PermissionError):
                        sock = connected(self.address)
                        held.append(sock)
                        self.rng.choice(self.acts)(sock)
                os.write(writer, b"x")
                time.sleep(60)
            finally:
                os._exit(1)
        os.close(writer)
        os.read(reader, 1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        return count


def count_frames(data: bytes) -> int:
    """Return how many whole frames the bytes hold."""
    at = frames = 0
    while len(data) - at >= HEADER.size and (end := at + HEADER.size + HEADER.unpack_from(data, at)[0]) <= len(data):
        at = end
        frames += 1
    return frames


def attack(address: str, seed: int, count: int) -> int:
    return Hostile(address, seed).run(count)


# --- the runs ------------------------------------------------------------------------------------------


class Bystander:
    """A peer with manners: calls without a pause in a thread of its own, and remembers how long each took."""

    def __init__(self, address: str) -> None:
        self.delays: list[float] = []
        self.errors: list[BaseException] = []
        self._line = hostline.connect(address, max_size=1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(0.002):
            number += 1
            started = time.perf_counter()
            try:
                assert self._line.call("charge", number, timeout=15) == number
            except BaseException as error:
                self.errors.append(error)
                return
            self.delays.append(time.perf_counter() - started)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._line.close()


def run_attack(address: str, seed: int, count: int) -> int:
    """Attack from two processes at once; returns how many connections were made."""
    args = {"gid": os.getegid(), "groups": None}
    with Fork(os.geteuid(), attack, address, seed, count // 2, **args) as one:  # type: ignore[arg-type]
        with Fork(os.geteuid(), attack, address, seed + 1, count - count // 2, **args) as other:  # type: ignore[arg-type]
            return int(one.result(100)) + int(other.result(100))


@pytest.mark.parametrize("loop", loop_names())
@pytest.mark.parametrize(
    "count",
    [
        pytest.param(500, id="some"),
        pytest.param(COUNT, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(180)]),
    ],
)
def test_hostile_connections_leave_nothing_behind(sock_dir: Path, tmp_path: Path, loop: str, count: int) -> None:
    address = str(sock_dir / "s")
    with ServerProcess(address, "--loop", loop, "--concurrency", "500", log=tmp_path / "log") as server:
        bystander, monitor = Bystander(address), hostline.connect(address, max_size=1)
        try:
            warm_up = count // 10
            assert run_attack(address, 1, warm_up) == warm_up
            assert wait_until(lambda: monitor.call("hostline.stats")["connections"] == 2, 10)
            descriptors, memory = descriptor_count(server.pid), resident_bytes(server.pid)
            started = time.monotonic()
            assert run_attack(address, 1000, count - warm_up) == count - warm_up
            taken = time.monotonic() - started
            assert wait_until(lambda: monitor.call("hostline.stats")["connections"] == 2, 10)
            assert wait_until(lambda: monitor.call("hostline.stats")["calls"]["running"] <= 1)  # the bystander's
            stats = monitor.call("hostline.stats")
            assert wait_until(lambda: descriptor_count(server.pid) == descriptors), descriptor_count(server.pid)
            grown = resident_bytes(server.pid) - memory
        finally:
            bystander.close()
            monitor.close()
        assert bystander.errors == []
        delays = sorted(bystander.delays)
        print(
            f"{count} hostile connections in {taken:.1f} s on {loop}: descriptors {descriptors} before and after, "
            f"memory {grown / MIB:+.1f} MiB; {len(delays)} calls beside them, median "
            f"{statistics.median(delays) * 1e3:.1f} ms, p99 {delays[len(delays) * 99 // 100] * 1e3:.1f} ms, "
            f"longest {delays[-1] * 1e3:.0f} ms"
        )
        assert stats["calls"]["running"] <= 1
        assert stats["calls"]["waiting"] == 0
        assert stats["connections_total"] + stats["connections_refused"] >= count
        assert grown < 16 * MIB
        assert delays[len(delays) * 99 // 100] < 1.0
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("loop", loop_names())
def test_unasked_descriptors_are_kept_out_without_the_kernels_help_as_well(
    sock_dir: Path, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Linux before 6.16, where the kernel cannot be told to refuse them."""
    monkeypatch.setattr("hostline.unix.sockets.disallow_fds", lambda sock: False)
    address = str(sock_dir / "s")
    service = hostline.Service("plain")

    @service.method(inline=True)
    def pid() -> int:
        return os.getpid()

    with ServerThread(service, address, loop=loop) as server, hostline.connect(address) as bystander:
        bystander.call("pid")
        hostile = Hostile(address, 1)
        before = descriptor_count()
        most = 0
        for _ in range(200):
            with connected(address) as sock:
                hostile.send_with_descriptors(sock, HELLO)
                hostile.send_with_descriptors(sock, call(1, 0))
                sock.recv(65536)
                most = max(most, descriptor_count())
            bystander.call("pid")
        assert most <= before + 20  # the connections themselves; one message alone would have brought 253
        assert wait_until(lambda: server.connection_count == 1)
        assert descriptor_count() == before
        for fd in hostile.files:
            os.close(fd)
