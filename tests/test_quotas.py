"""One user at each of its bounds, another beside it: real second users, real sockets, and everything back to zero."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hostline
from hostline.errors import OverloadedError, UnavailableError
from hostline.rpc.settings import ServerSettings
from hostline.wire.codec import ErrorCode, GoawayCode, decode_failure, decode_farewell, encode_call, encode_item
from hostline.wire.frame import Frame, Kind, encode_frame
from tests.leaks import wait_until
from tests.second_user import Fork, run_as
from tests.serving import (
    AsyncLine,
    BlockingLine,
    RawClient,
    ServerProcess,
    ServerThread,
    loop_names,
    resident_bytes,
    stages,
    takes_less_than,
)

MIB = 1 << 20
GREEDY, MODEST = 12_001, 12_002


@pytest.fixture(params=loop_names())
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def address(sock_dir: Path) -> str:
    sock_dir.chmod(0o755)
    return str(sock_dir / "s")


def costly_service() -> hostline.Service:
    """A service whose calls take as long, and whose answers are as large, as the caller likes."""
    service = hostline.Service("costly")

    @service.method(inline=True)
    def give(size: int) -> bytes:
        return b"x" * size

    @service.method
    async def give_later(size: int) -> bytes:
        return b"x" * size

    @service.method
    async def take(data: bytes) -> int:
        await asyncio.sleep(0)  # without an await it would take no slot
        return len(data)

    @service.method
    async def hold(data: bytes) -> None:
        await asyncio.sleep(60)

    @service.method
    def block(data: bytes, context: hostline.Context) -> None:
        context.wait_cancelled(60)

    @service.method
    async def add_up(pieces: AsyncIterator[bytes]) -> int:
        return sum([len(piece) async for piece in pieces])

    @service.method
    async def echo(text: str) -> str:
        await asyncio.sleep(0)
        return text

    @service.method
    def echo_in_thread(text: str) -> str:
        return text

    return service


SETTINGS = ServerSettings(
    concurrency=16,
    queue=64,
    threads=4,
    max_connections_per_uid=60,
    max_connection_rate_per_uid=200.0,
    max_buffered_per_uid=8 * MIB,
    max_frame_size=MIB,
)


def users(server: ServerThread) -> dict[int, Any]:
    return {user.uid: user for user in server.stats().users}


# --- what the greedy user does, in a process of its own -------------------------------------------------


def open_all(address: str) -> list[RawClient]:
    """Connect until the server sends one away."""
    clients = []
    while True:
        client = RawClient(address, hello=False)
        clients.append(client)
        client.sock.settimeout(0.05)
        with contextlib.suppress(TimeoutError):
            frame = client.read(0.05)
            assert decode_farewell(frame.payload).code == GoawayCode.LIMIT
            return clients


def connect_without_end(address: str, is_over: Callable[[], bool]) -> None:
    while not is_over():
        with contextlib.suppress(OSError):
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.setblocking(False)
                sock.connect(address)
            finally:
                sock.close()


def half_frames(address: str) -> list[RawClient]:
    clients = [RawClient(address) for _ in range(50)]
    for client in clients:
        frame = client.encode(1, "take", b"x" * (MIB - 100))
        client.send_some(frame[: len(frame) // 2])
    return clients


def unread_answers(address: str) -> list[RawClient]:
    clients = [RawClient(address) for _ in range(50)]
    for client in clients:
        for number in range(1, 5):
            client.send_some(client.encode(number, "give" if number % 2 else "give_later", 900_000))
    return clients


def endless_calls(method: str, size: int, connections: int, count: int) -> Callable[[str], list[RawClient]]:
    def attack(address: str) -> list[RawClient]:
        clients = [RawClient(address) for _ in range(connections)]
        sending = list(clients)
        for number in range(1, count + 1):
            for client in list(sending):
                call = client.encode(number, method, b"x" * size)
                if client.send_some(call) < len(call):
                    sending.remove(client)  # the rest of this call would have to come first
        return clients

    return attack


def endless_streams(address: str) -> list[RawClient]:
    clients = [RawClient(address) for _ in range(40)]
    for client in clients:
        for number in (1, 2):
            call = encode_call(number, client.methods["add_up"], (None,), None, None, 16 * MIB, True)
            client.send_some(bytes(call))
            client.send_some(Frame(Kind.ITEM, 0, 0, number, 0, b"").payload)
    return clients


ATTACKS: dict[str, Callable[[str], list[RawClient]]] = {
    "connections": open_all,
    "half frames": half_frames,
    "unread answers": unread_answers,
    "running tasks": endless_calls("hold", 10, 4, 10),
    "threads": endless_calls("block", 10, 4, 10),
    "waiting calls": endless_calls("hold", 10, 20, 50),
    "large waiting calls": endless_calls("hold", 150_000, 50, 10),
    "streams": endless_streams,
}


class Greedy:
    """The greedy user, at work until it is told to leave."""

    def __init__(self, address: str, attack: Callable[[str], list[RawClient]] | None) -> None:
        self._ready, self._say_ready = os.pipe()
        self._told, self._tell = os.pipe()
        self._fork = Fork(GREEDY, self._work, address, attack)
        os.close(self._say_ready)
        os.close(self._told)
        assert select.select([self._ready], [], [], 15)[0], "the greedy user did not get so far"
        if not os.read(self._ready, 1):
            self.leave()

    def _work(self, address: str, attack: Callable[[str], list[RawClient]] | None) -> None:
        if attack is None:
            os.write(self._say_ready, b"x")
            connect_without_end(address, lambda: bool(select.select([self._told], [], [], 0)[0]))
            return
        try:
            clients = attack(address)
        except BaseException:
            os.close(self._say_ready)
            raise
        os.write(self._say_ready, b"x")
        os.read(self._told, 1)
        for client in clients:
            client.close()

    def leave(self) -> None:
        os.write(self._tell, b"x")
        try:
            self._fork.result()
        finally:
            os.close(self._ready)
            os.close(self._tell)


def call_modestly(address: str) -> int:
    """Make calls of all kinds, on one connection and on new ones; returns how many succeeded."""
    count = 0
    for _ in range(3):
        with hostline.connect(address) as line:
            for number in range(10):
                assert line.call("echo", f"{number}", timeout=10) == f"{number}"
                assert line.call("echo_in_thread", f"{number}", timeout=10) == f"{number}"
                assert len(line.call("give", 1000, timeout=10)) == 1000
                assert line.call("take", b"x" * 500_000, timeout=10) == 500_000
                count += 4
    return count


@pytest.mark.root
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", [*ATTACKS, "connection rate"])
def test_a_user_at_its_bound_touches_no_other_and_leaves_nothing_behind(address: str, loop: str, kind: str) -> None:
    allow = hostline.Peers.anyone()
    with ServerThread(costly_service(), address, loop=loop, settings=SETTINGS, allow=allow, mode=0o666) as server:
        run_as(MODEST, call_modestly, address, timeout=20)
        before = resident_bytes()
        greedy = Greedy(address, ATTACKS.get(kind))
        try:
            assert run_as(MODEST, call_modestly, address, timeout=60) == 120
            if kind != "connection rate":
                assert users(server)[GREEDY].connections >= 4
            # The bound twice over, the answers of sixteen handlers, and what two other users and Python need.
            assert resident_bytes() - before < 80 * MIB
        finally:
            greedy.leave()
        assert wait_until(lambda: users(server) == {}, 10), users(server)
        assert run_as(MODEST, call_modestly, address, timeout=60) == 120


# --- where the bounds are ---------------------------------------------------------------------------------


def farewell_of(client: RawClient) -> Any:
    frames = client.read_until_end()
    assert frames
    assert frames[-1].kind == Kind.GOAWAY
    return decode_farewell(frames[-1].payload)


def test_calls_of_one_user_beyond_the_bound_are_overloaded_by_name(address: str, loop: str) -> None:
    settings = ServerSettings(concurrency=2, max_calls_per_uid=5)
    with ServerThread(costly_service(), address, loop=loop, settings=settings) as server:
        with RawClient(address) as one, RawClient(address) as other:
            for number in (1, 2, 3):
                one.call(number, "hold", b"")
            assert wait_until(lambda: server.running_count == 2 and server.waiting_count == 1)
            for number in (1, 2, 3):
                other.call(number, "hold", b"")
            failure = decode_failure(other.read().payload)
            assert failure.code == ErrorCode.OVERLOADED
            text = f"uid {os.geteuid()} has 5 calls running or waiting at costly, its most: max_calls_per_uid"
            assert failure.message == text
            [user] = users(server).values()
            assert (user.connections, user.running, user.waiting) == (2, 2, 3)
        assert wait_until(lambda: users(server) == {})


def test_a_waiting_stream_whose_items_would_overfill_the_account_is_turned_down(address: str, loop: str) -> None:
    settings = ServerSettings(concurrency=1, max_buffered_per_uid=2 * MIB, max_frame_size=MIB)
    with ServerThread(costly_service(), address, loop=loop, settings=settings) as server:
        with RawClient(address) as client:

            def stream(number: int) -> bytes:
                return bytes(encode_call(number, client.methods["add_up"], (None,), None, None, MIB, True))

            client.sock.sendall(stream(1) + b"".join(stream(number) for number in range(2, 8)))
            sender = threading.Thread(
                target=lambda: [client.sock.sendall(bytes(encode_item(n, b"x" * 900_000, MIB))) for n in range(2, 8)]
            )
            sender.start()
            failure = decode_failure(client.read().payload)
            assert failure.code == ErrorCode.OVERLOADED
            assert "its most: max_buffered_per_uid" in failure.message
            sender.join(10)
            assert users(server)[os.geteuid()].bytes < 4 * MIB
        assert wait_until(lambda: users(server) == {})


def test_faster_than_the_rate_a_client_waits_and_is_let_in(address: str, loop: str) -> None:
    settings = ServerSettings(max_connection_rate_per_uid=5.0)
    with ServerThread(costly_service(), address, loop=loop, settings=settings) as server:
        clients = [RawClient(address, hello=False) for _ in range(30)]
        assert farewell_of(clients[-1]).code == GoawayCode.BUSY
        for client in clients:
            client.close()
        with hostline.connect(address) as line:
            assert line.call("echo", "in") == "in"
        with AsyncLineOn(address, loop) as line:
            assert line.call("echo", "in") == "in"
        with pytest.raises(UnavailableError, match="more than 5 connections a second") as caught:
            for _ in range(30):
                hostline.connect(address, connect_timeout=0.02).close()
        assert type(caught.value) is UnavailableError
        assert server.stats().connections_refused > 0


@contextlib.contextmanager
def AsyncLineOn(address: str, loop: str, **options: Any) -> Iterator[AsyncLine]:  # noqa: N802 - stands for a class
    line = AsyncLine(address, loop=loop, **options)
    try:
        yield line
    finally:
        line.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_connections": 0}, "max_connections of 0 must be at least 1"),
        ({"max_calls_per_uid": 0}, "max_calls_per_uid of 0 must be at least 1"),
        ({"max_connection_rate_per_uid": 0.0}, "math.inf is no bound"),
        ({"max_buffered_per_uid": MIB}, r"max_buffered_per_uid of 1048576 bytes must be at least 4194304, two frames"),
        ({"idle_timeout": 0.0}, "idle_timeout of 0.0 seconds must be above 0; None turns it off"),
        ({"ping_timeout": -1.0}, "ping_timeout of -1.0 seconds must be above 0"),
        ({"concurrency": 0}, "concurrency of 0 must be at least 1"),
        ({"queue": -1}, "queue of -1 must be 0 or more"),
        ({"threads": 0}, "threads of 0 must be at least 1"),
        ({"grace": math.nan}, "grace of nan seconds must be 0 or more"),
        ({"max_frame_size": 1}, "max_frame_size of 1 bytes must lie between"),
    ],
)
def test_bounds_that_make_no_sense_are_refused_with_value_and_fix(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        costly_service().serve("x", **options)
    with pytest.raises(ValueError, match=text):  # before anything is forked: a worker could only fail
        costly_service().run("x", workers=2, **options)


# --- honest users -----------------------------------------------------------------------------------------


def test_large_answers_that_are_read_cut_nobody_off(address: str, loop: str) -> None:
    """Sixty-four answers of a mebibyte at the same time are more than the bound, and all arrive."""
    settings = ServerSettings(max_buffered_per_uid=8 * MIB, max_frame_size=MIB)
    with ServerThread(costly_service(), address, loop=loop, settings=settings) as server:
        with AsyncLineOn(address, loop) as one, AsyncLineOn(address, loop) as other:
            calls = [line.start("give_later", MIB - 100, timeout=60) for _ in range(32) for line in (one, other)]
            assert [len(call.result(60)) for call in calls] == [MIB - 100] * 64
            assert one.call("echo", "still here") == "still here"
            assert server.stats().connections_total == 2, "nobody had to connect again"
            assert wait_until(lambda: [user.bytes for user in users(server).values()] == [0])
        assert wait_until(lambda: users(server) == {})


@pytest.mark.slow
def test_many_large_arguments_that_come_in_pieces_all_arrive(address: str, loop: str) -> None:
    """Two hundred mebibytes, all begun at once, where eight may be kept."""
    settings = ServerSettings(max_buffered_per_uid=8 * MIB, max_frame_size=MIB)
    with ServerThread(costly_service(), address, loop=loop, settings=settings) as server:
        clients = [RawClient(address) for _ in range(200)]
        rest = {client: memoryview(client.encode(1, "take", b"x" * (MIB - 100))) for client in clients}
        before = resident_bytes()
        most = 0
        ends = time.monotonic() + 120
        while rest and time.monotonic() < ends:
            for client in list(rest):
                sent = client.send_some(bytes(rest[client][: 48 << 10]))
                rest[client] = rest[client][sent:]
                if not rest[client]:
                    del rest[client]
            most = max(most, sum(user.bytes for user in users(server).values()))
        assert not rest
        assert most <= 2 * 8 * MIB + MIB + 1000, "twice the bound, and the frame that went beyond it"
        assert resident_bytes() - before < 100 * MIB
        for client in clients:
            while (frame := client.read(60)).kind == Kind.PONG:
                pass  # signs of life while it was not read
            assert frame.kind == Kind.REPLY
            client.close()
        assert wait_until(lambda: users(server) == {})


@pytest.mark.parametrize("with_streams", [False, True])
def test_a_full_account_comes_free_by_itself(address: str, loop: str, with_streams: bool) -> None:
    """Waiting arguments fill the account, and what must end first for them to run needs more to be read."""
    settings = ServerSettings(concurrency=2, max_buffered_per_uid=3 * MIB, max_frame_size=MIB)
    with ServerThread(costly_service(), address, loop=loop, settings=settings) as server:
        with AsyncLineOn(address, loop) as streaming, AsyncLineOn(address, loop) as calling:
            go_on = threading.Event()

            async def pieces() -> AsyncIterator[bytes]:
                for number in range(20):
                    if number == 2:
                        while not go_on.is_set():  # noqa: ASYNC110 - set from the test's thread
                            await asyncio.sleep(0.01)
                    yield b"x" * 100_000

            if with_streams:
                sums = [streaming.start("add_up", pieces(), timeout=60) for _ in range(2)]
                assert wait_until(lambda: server.running_count == 2)
            else:
                sums = []
            calls = [calling.start("take", b"x" * 900_000, timeout=60) for _ in range(30)]
            if with_streams:
                assert wait_until(lambda: users(server)[os.geteuid()].bytes >= 2 * MIB)
            go_on.set()
            assert [call.result(60) for call in calls] == [900_000] * 30
            assert [total.result(60) for total in sums] == [2_000_000] * len(sums)
        assert wait_until(lambda: users(server) == {})


def test_a_stream_that_starts_while_the_account_is_full_is_read(address: str, loop: str) -> None:
    settings = ServerSettings(concurrency=1, max_buffered_per_uid=2 * MIB, max_frame_size=MIB)
    with ServerThread(costly_service(), address, loop=loop, settings=settings) as server:
        clients = [RawClient(address) for _ in range(5)]
        holding, streaming, *others = clients
        holding.call(1, "hold", b"")
        assert wait_until(lambda: server.running_count == 1)
        streaming.sock.sendall(bytes(encode_call(1, streaming.methods["add_up"], (None,), None, None, MIB, True)))
        assert wait_until(lambda: server.waiting_count == 1)
        for client in others:
            client.call(1, "take", b"x" * 900_000)
        assert wait_until(lambda: users(server)[os.geteuid()].bytes >= 2 * MIB)
        streaming.sock.sendall(bytes(encode_item(1, b"x" * 1000, MIB)) + encode_frame(Kind.END, 1))
        assert wait_until(lambda: server.do(lambda server: len(server.accounts.quotas.accounts[os.geteuid()].line)) > 0)
        holding.sock.sendall(encode_frame(Kind.CANCEL, 1))
        for client in clients:
            while (frame := client.read()).kind == Kind.PONG:
                pass
            assert frame.kind == (Kind.ERROR if client is holding else Kind.REPLY)
            client.close()
        assert wait_until(lambda: users(server) == {})


# --- time limits ------------------------------------------------------------------------------------------


def test_five_hundred_that_drip_are_cut_off_while_others_are_served(
    address: str, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostline.aio.serving.session.HANDSHAKE_TIMEOUT", 1.0)
    monkeypatch.setattr("hostline.aio.serving.session.FRAME_TIMEOUT", 1.0)
    with ServerThread(costly_service(), address, loop=loop) as server:
        dripping = [RawClient(address, hello=number % 2 == 0) for number in range(500)]
        ends = time.monotonic() + 10
        place = 0
        served = 0
        call = dripping[0].encode(1, "take", b"x" * 100_000)
        while server.connection_count and time.monotonic() < ends:
            for client in dripping:
                with contextlib.suppress(OSError):
                    client.send_some(call[place : place + 1] if client.methods else b"h"[: place < 1])
            place += 1
            with hostline.connect(address) as line:
                assert line.call("echo", "served", timeout=5) == "served"
                served += 1
        assert wait_until(lambda: users(server) == {}, 10)
        assert served >= 3
        for client in dripping:
            client.close()


def test_unread_answers_below_the_mark_are_cut_off_too_where_the_user_has_too_many(
    address: str, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostline.aio.serving.session.SLOW_READER_TIMEOUT", 0.5)
    settings = ServerSettings(max_buffered_per_uid=4 * MIB, max_frame_size=MIB)
    with ServerThread(costly_service(), address, loop=loop, settings=settings) as server:
        clients = [RawClient(address) for _ in range(8)]
        with hostline.connect(address) as bystander:
            for client in clients:
                client.call(1, "give", 800_000)
                assert bystander.call("echo", "read") == "read"
            assert wait_until(lambda: server.connection_count <= 5, 10)
            assert bystander.call("echo", "read") == "read"
        for client in clients:
            client.close()
        assert wait_until(lambda: users(server) == {})


def test_a_slow_reader_that_reads_on_stays(address: str, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostline.aio.serving.session.SLOW_READER_TIMEOUT", 0.4)
    with ServerThread(costly_service(), address, loop=loop, concurrency=8) as server, RawClient(address) as client:
        for number in range(1, 9):
            client.call(number, "give_later", MIB - 100)
        total = 0
        while total < 8 * (MIB - 100):
            data = client.sock.recv(1 << 16)
            assert data, "cut off though it reads all the time"
            total += len(data)
            time.sleep(0.012)
        assert server.connection_count == 1


@pytest.mark.parametrize("stage_kind", stages())
def test_an_idle_connection_is_closed_and_the_next_call_makes_another(
    stage_kind: tuple[str, str], address: str
) -> None:
    face, loop = stage_kind
    with ServerThread(costly_service(), address, loop=loop, idle_timeout=0.3) as server:
        line: Any = AsyncLine(address, loop=loop) if face == "aio" else BlockingLine(address)
        try:
            for count in (1, 2):
                call = line.start("hold", b"", timeout=0.7)
                with pytest.raises(hostline.DeadlineExceededError):
                    call.result(5)
                assert line.call("echo", "here") == "here"
                assert server.stats().connections_total >= count
                assert wait_until(lambda: server.connection_count == 0)
        finally:
            line.close()
        with RawClient(address) as client:
            farewell = farewell_of(client)
            assert (farewell.code, farewell.reason) == (GoawayCode.TIMEOUT, "idle for 0.3 seconds")


# --- peers that are stopped ---------------------------------------------------------------------------------


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("stage_kind", stages())
def test_calls_end_soon_after_the_server_was_stopped(stage_kind: tuple[str, str], address: str) -> None:
    face, loop = stage_kind
    options: dict[str, Any] = {"ping_interval": 0.2, "ping_timeout": 0.5}
    with ServerProcess(address, "--loop", loop) as server:
        line: Any = AsyncLine(address, loop=loop, **options) if face == "aio" else BlockingLine(address, **options)
        try:
            quiet = line.start("charge", 1, 1.5, timeout=20)
            quiet.result(10)  # a server that only takes its time is alive
            waiting = line.start("charge", 2, 15.0, timeout=20)
            time.sleep(0.3)
            with stopped(server.pid), takes_less_than(6):
                text = "no answer to a ping for 0.5 seconds: the server is stopped or stuck; it may or may not"
                with pytest.raises(UnavailableError, match=re.escape(text)):
                    waiting.result(10)
            assert line.call("charge", 3, timeout=10) == 3
        finally:
            line.close()
        server.signal(signal.SIGTERM)
        server.wait()


@pytest.mark.parametrize("stage_kind", stages())
def test_a_batch_ends_soon_after_the_server_was_stopped(stage_kind: tuple[str, str], address: str) -> None:
    face, loop = stage_kind
    options: dict[str, Any] = {"ping_interval": 0.2, "ping_timeout": 0.5}
    with ServerProcess(address, "--loop", loop) as server:
        line: Any = AsyncLine(address, loop=loop, **options) if face == "aio" else BlockingLine(address, **options)
        try:
            with stopped(server.pid), takes_less_than(6):
                with pytest.raises(UnavailableError, match=r"no answer to a ping for 0\.5 seconds"):
                    batch_of_one(line, "charge", 1)
            assert batch_of_one(line, "charge", 2) == 2
        finally:
            line.close()
        server.signal(signal.SIGTERM)
        server.wait()


def batch_of_one(line: Any, method: str, *args: Any) -> Any:
    """Make a call in a batch, over either face."""

    async def on_loop() -> Any:
        async with line.line.batch(timeout=20) as batch:
            call = batch.call(method, *args)
        return call.result()

    if isinstance(line, AsyncLine):
        return line.on_loop.run(on_loop(), 30)
    with line.line.batch(timeout=20) as batch:
        call = batch.call(method, *args)
    return call.result()


@pytest.mark.parametrize("stage_kind", stages())
@pytest.mark.parametrize("is_batch", [False, True])
def test_a_call_that_was_long_in_sending_is_asked_for_before_it_is_given_up(
    stage_kind: tuple[str, str], is_batch: bool, address: str
) -> None:
    face, loop = stage_kind
    service = costly_service()

    @service.method(inline=True)
    def hang(seconds: float) -> None:
        time.sleep(seconds)

    @service.method
    async def ponder(data: bytes, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return len(data)

    options: dict[str, Any] = {"ping_interval": 0.3, "ping_timeout": 1.2}
    with ServerThread(service, address, loop=loop), RawClient(address) as other:
        line: Any = AsyncLine(address, loop=loop, **options) if face == "aio" else BlockingLine(address, **options)
        try:
            assert line.call("take", b"") == 0
            other.call(1, "hang", 0.9)
            call = batch_of_one if is_batch else BlockingLine.call if face == "sync" else AsyncLine.call
            assert call(line, "ponder", b"x" * (MIB - 100), 2.0) == MIB - 100
        finally:
            line.close()


CLIENT = """
import asyncio, sys, hostline
line = hostline.connect(sys.argv[1])
print("ready", flush=True)
line.call("hold", b"", timeout=60)
"""


def test_a_client_that_was_stopped_is_cut_off(address: str, loop: str) -> None:
    import subprocess

    options: dict[str, Any] = {"ping_interval": 0.2, "ping_timeout": 0.5}
    with ServerThread(costly_service(), address, loop=loop, **options) as server:
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, address],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        )
        try:
            assert wait_until(lambda: server.running_count == 1, 10)
            time.sleep(1.2)
            assert server.running_count == 1, "a client that waits answers pings"
            with stopped(client.pid):
                assert wait_until(lambda: server.connection_count == 0, 6)
                assert server.running_count == 0
        finally:
            client.kill()
            client.wait(10)
            assert client.stdout is not None
            client.stdout.close()
        assert wait_until(lambda: users(server) == {})


def test_a_server_that_does_not_read_a_client_for_a_while_is_not_taken_for_stopped(
    address: str, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostline.aio.serving.calls.MAX_CALLS_PER_CONNECTION", 2)
    with (
        ServerThread(costly_service(), address, loop=loop),
        AsyncLineOn(address, loop, ping_interval=0.3, ping_timeout=1.5) as line,
    ):
        calls = [line.start("hold", b"", timeout=4) for _ in range(5)]
        for call in calls:
            with pytest.raises(hostline.DeadlineExceededError):
                call.result(15)


def test_overloaded_is_the_error_a_caller_sees(address: str, loop: str) -> None:
    with ServerThread(costly_service(), address, loop=loop, concurrency=1, max_calls_per_uid=1) as server:
        with AsyncLineOn(address, loop) as line:
            held = line.start("hold", b"", timeout=20)
            assert wait_until(lambda: server.running_count == 1)
            with pytest.raises(OverloadedError, match=f"uid {os.geteuid()} has 1 calls"):
                line.call("echo", "no")
            held.cancel()
