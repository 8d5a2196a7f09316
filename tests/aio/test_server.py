"""The server around its connections: who gets in, how many, what happens when descriptors run out, and at the end."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.leaks import wait_until
from tests.second_user import NOBODY, Fork, run_as
from tests.serving import (
    BlockingLine,
    Journal,
    RawClient,
    ServerProcess,
    ServerThread,
    descriptor_count,
    held_service,
    loop_names,
    takes_less_than,
)

import hostline
from hostline.errors import (
    AccessDeniedError,
    AddressNotFoundError,
    MethodDeniedError,
    PeerRefusedError,
    SocketError,
    UnavailableError,
)
from hostline.rpc.settings import ServerSettings
from hostline.wire.codec import GoawayCode, decode_farewell
from hostline.wire.frame import Kind

root = pytest.mark.root


@pytest.fixture(params=loop_names())
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    made = threading.Event()
    yield made
    made.set()


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def address(sock_dir: Path) -> str:
    return str(sock_dir / "s")


def small_service() -> hostline.Service:
    service = hostline.Service("small")

    @service.method(inline=True)
    def echo(value: int) -> int:
        return value

    @service.method
    async def who(context: hostline.Context) -> list[int]:
        return [context.peer.pid, context.peer.uid, context.peer.gid, *context.peer.groups]

    @service.method(allow=hostline.Peers(uids=[0]))
    async def for_root() -> str:
        return "welcome"

    @service.method(allow=hostline.Peers(uids=[NOBODY]))
    def for_nobody() -> str:
        return "welcome"

    return service


# --- how many ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (ServerSettings(max_connections=3), "has 3 connections, its most"),
        (ServerSettings(max_connections_per_uid=3), f"uid {os.geteuid()} has 3 connections"),
    ],
    ids=["in all", "of one user"],
)
def test_connections_are_bounded_and_a_refused_one_learns_why(
    address: str, loop: str, settings: ServerSettings, words: str
) -> None:
    with ServerThread(small_service(), address, loop=loop, settings=settings) as server:
        clients = [RawClient(address) for _ in range(3)]
        with RawClient(address, hello=False) as refused:
            (frame,) = refused.read_until_end()
            farewell = decode_farewell(frame.payload)
            assert (frame.kind, farewell.code) == (Kind.GOAWAY, GoawayCode.LIMIT)
            assert words in farewell.reason
        with pytest.raises(UnavailableError, match=words) as caught:
            hostline.connect(address)
        assert caught.value.is_safe_to_repeat
        clients.pop().close()  # one place is free again
        with hostline.connect(address, wait=5) as line:
            assert line.call("echo", 1) == 1
        for client in clients:
            client.close()
        assert wait_until(lambda: server.connection_count == 0)
        assert server.do(lambda server: server.accounts.quotas.accounts) == {}
        stats = server.stats()
        assert stats.connections_total == 4
        assert stats.connections_refused >= 2


def test_a_line_waits_for_a_place_as_for_a_server_that_starts(address: str, loop: str) -> None:
    settings = ServerSettings(max_connections=1)
    with ServerThread(small_service(), address, loop=loop, settings=settings):
        first = RawClient(address)
        timer = threading.Timer(0.3, first.close)
        timer.start()
        with hostline.connect(address, wait=10) as line:
            assert line.call("echo", 1) == 1
        timer.join()


def test_a_thousand_connections_are_served_and_forgotten(address: str, loop: str) -> None:
    with ServerThread(small_service(), address, loop=loop) as server:
        before = descriptor_count()
        clients = [RawClient(address) for _ in range(1000)]
        for number, client in enumerate(clients):
            client.call(1, "echo", number)
        for client in clients:
            assert client.read().kind == Kind.REPLY
        assert server.connection_count == 1000
        for client in clients:
            client.close()
        assert wait_until(lambda: server.connection_count == 0)
        assert wait_until(lambda: descriptor_count() == before)


# --- who -----------------------------------------------------------------------------------------------


@pytest.fixture
def open_directory(sock_dir: Path) -> Path:
    """A directory that other users can enter."""
    sock_dir.chmod(0o755)
    return sock_dir


def call_as_blocking(address: str, *calls: tuple[Any, ...], **options: Any) -> list[Any]:
    line = BlockingLine(address, **options)
    try:
        return [line.call(*call) for call in calls]
    finally:
        line.close()


def call_as_async(address: str, *calls: tuple[Any, ...], **options: Any) -> list[Any]:
    async def main() -> list[Any]:
        async with hostline.aio.connect(address, **options) as line:
            return [await line.call(*call) for call in calls]

    return asyncio.run(main())


@pytest.fixture(params=[call_as_blocking, call_as_async], ids=["sync", "aio"])
def make_calls(request: pytest.FixtureRequest) -> Any:
    return request.param


@root
def test_at_mode_0600_the_kernel_keeps_other_users_out(open_directory: Path, loop: str, make_calls: Any) -> None:
    address = str(open_directory / "s")
    with ServerThread(small_service(), address, loop=loop), pytest.raises(AccessDeniedError):
        run_as(NOBODY, make_calls, address, ("echo", 1))


@root
def test_a_wide_mode_with_a_narrow_rule_tells_the_refused_user_why(
    open_directory: Path, loop: str, make_calls: Any, caplog: pytest.LogCaptureFixture
) -> None:
    address = str(open_directory / "s")
    with ServerThread(small_service(), address, loop=loop, mode=0o666, allow=hostline.Peers(uids=[0])) as server:
        with pytest.raises(PeerRefusedError) as caught:
            run_as(NOBODY, make_calls, address, ("echo", 1))
        assert f"uid {NOBODY}" in str(caught.value)
        assert "the rule admits uid 0" in str(caught.value)
        assert "small" in str(caught.value)
        assert make_calls(address, ("echo", 1)) == [1]
        assert server.stats().connections_refused == 1
    assert f"refused uid {NOBODY}" in caplog.text


@root
def test_an_admitted_user_is_known_by_uid_gid_pid_and_groups(open_directory: Path, loop: str, make_calls: Any) -> None:
    address = str(open_directory / "s")
    with ServerThread(small_service(), address, loop=loop, mode=0o666):
        ((pid, *numbers),) = run_as(NOBODY, make_calls, address, ("who",), gid=4321, groups=(4322, 4323))
        assert pid not in (0, os.getpid())
        assert numbers == [NOBODY, 4321, 4322, 4323]


@root
def test_group_members_are_admitted_where_the_mode_says_so(open_directory: Path, loop: str, make_calls: Any) -> None:
    address = str(open_directory / "s")
    with ServerThread(small_service(), address, loop=loop, mode=0o660, group=4322):
        assert run_as(NOBODY, make_calls, address, ("echo", 1), groups=(4322,)) == [1]
        with pytest.raises(AccessDeniedError):
            run_as(NOBODY, make_calls, address, ("echo", 1), groups=(4999,))


@root
def test_a_method_has_its_own_rule_beside_that_of_the_service(open_directory: Path, loop: str, make_calls: Any) -> None:
    address = str(open_directory / "s")
    with ServerThread(small_service(), address, loop=loop, mode=0o666):
        assert run_as(NOBODY, make_calls, address, ("for_nobody",)) == ["welcome"]
        with pytest.raises(MethodDeniedError, match=r"for_root: uid 65534 .* is not admitted"):
            run_as(NOBODY, make_calls, address, ("for_root",))
        assert make_calls(address, ("for_root",)) == ["welcome"]
        with pytest.raises(MethodDeniedError, match=r"for_nobody: uid 0 "):
            make_calls(address, ("for_nobody",))


@root
def test_abstract_names_admit_this_user_and_root_only(loop: str, make_calls: Any) -> None:
    address = f"unix:@hl-{os.getpid()}-{time.monotonic_ns()}"
    with ServerThread(small_service(), address, loop=loop):
        with pytest.raises(PeerRefusedError, match=f"uid {NOBODY}"):
            run_as(NOBODY, make_calls, address, ("echo", 1))
        assert make_calls(address, ("echo", 1)) == [1]


@root
def test_a_client_refuses_a_server_of_another_user_unless_told_to_trust_it(
    open_directory: Path, make_calls: Any
) -> None:
    os.chown(open_directory, NOBODY, NOBODY)
    address = str(open_directory / "s")
    ready, stop = os.pipe(), os.pipe()

    def serve() -> None:
        async def main() -> None:
            async with small_service().serve(address):
                os.write(ready[1], b"x")
                await asyncio.to_thread(os.read, stop[0], 1)

        asyncio.run(main())

    with Fork(NOBODY, serve) as server:
        if not select.select([ready[0]], [], [], 5)[0]:
            server.result(1)
        with pytest.raises(PeerRefusedError, match="nothing was sent") as caught:
            make_calls(address, ("echo", 1))
        assert f"uids=[{NOBODY}]" in str(caught.value)  # the text says how to trust it
        assert make_calls(address, ("echo", 1), server=hostline.Peers(uids=[NOBODY])) == [1]
        assert make_calls(address, ("echo", 1), server=hostline.Peers.anyone()) == [1]
        os.write(stop[1], b"x")
        server.result()
    for fd in (*ready, *stop):
        os.close(fd)


@root
def test_the_bound_for_one_user_leaves_room_for_another(open_directory: Path, loop: str, make_calls: Any) -> None:
    address = str(open_directory / "s")
    settings = ServerSettings(max_connections_per_uid=2)
    with ServerThread(small_service(), address, loop=loop, settings=settings, mode=0o666):
        clients = [RawClient(address) for _ in range(2)]
        with pytest.raises(UnavailableError, match="uid 0 has 2 connections"):
            hostline.connect(address)
        assert run_as(NOBODY, make_calls, address, ("echo", 1)) == [1]
        for client in clients:
            client.close()


# --- when descriptors run out --------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.alone
@pytest.mark.leaves_files
def test_a_server_without_a_free_descriptor_rests_and_comes_back(sock_dir: Path, tmp_path: Path, loop: str) -> None:
    address, log = str(sock_dir / "s"), tmp_path / "log"
    with ServerProcess(address, "--nofile", "64", "--loop", loop, log=log) as server:
        with hostline.connect(address) as line:
            assert line.call("pid") == server.pid
            crowd = []
            for _ in range(500):
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(address)
                crowd.append(sock)
            assert wait_until(lambda: descriptor_count(server.pid) >= 63)
            before, started = cpu_seconds(server.pid), time.monotonic()
            while time.monotonic() - started < 1.6:
                assert line.call("pid", timeout=5) == server.pid  # who is in is served as ever
                time.sleep(0.02)
            assert (cpu_seconds(server.pid) - before) / (time.monotonic() - started) < 0.25  # those calls included
            for sock in crowd:
                sock.close()
            with takes_less_than(2), hostline.connect(address, connect_timeout=5) as another:
                assert another.call("pid") == server.pid
        lines = [text for text in log.read_text().splitlines() if "EMFILE" in text]
        assert 1 <= len(lines) <= 5, lines


# --- the end -------------------------------------------------------------------------------------------


def test_those_in_the_backlog_are_sent_away_with_a_farewell_instead_of_a_reset(address: str, loop: str) -> None:
    with ServerThread(small_service(), address, loop=loop) as server:
        clients = []

        def fill_and_stop() -> asyncio.Task[None]:
            # On the server's own loop, so that it cannot accept any of them meanwhile.
            for _ in range(10):
                client = socket.socket(socket.AF_UNIX)
                client.connect(address)
                clients.append(client)
            return asyncio.get_running_loop().create_task(server.server.shutdown())

        stopping = server.on_loop.do(fill_and_stop)
        assert wait_until(stopping.done)
        for sock in clients:
            with RawClient.__new__(RawClient) as client:
                client.__dict__.update(sock=sock, frames=[], decoder=hostline_decoder())
                (frame,) = client.read_until_end()
                assert decode_farewell(frame.payload).code == GoawayCode.SHUTDOWN
        with pytest.raises(AddressNotFoundError):
            hostline.connect(address)


def hostline_decoder() -> Any:
    from hostline.wire.frame import FrameDecoder

    return FrameDecoder()


@pytest.mark.timeout(20)
def test_a_flood_of_connects_to_an_abstract_name_does_not_keep_a_server_from_stopping(loop: str) -> None:
    """There is no file to unlink, so that others go on coming for as long as they like."""
    name = f"hostline-test-flood-{os.getpid()}-{loop}"
    is_over = threading.Event()

    def flood() -> None:
        while not is_over.is_set():
            with socket.socket(socket.AF_UNIX) as sock:
                sock.setblocking(False)
                if sock.connect_ex(f"\0{name}") not in (0, errno.EAGAIN):
                    time.sleep(0.001)

    threads = [threading.Thread(target=flood) for _ in range(2)]
    server = ServerThread(small_service(), f"unix:@{name}", loop=loop)
    try:
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        with takes_less_than(8):
            server.stop()
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def test_a_server_whose_listening_socket_is_broken_stops_and_says_so(
    address: str, loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever shares a listening socket may shut it down; a server that stayed would keep its place for nothing."""
    with ServerThread(small_service(), address, loop=loop) as server:
        server.do(lambda server: server._bound.sock.shutdown(socket.SHUT_RDWR))
        with takes_less_than(5), pytest.raises(SocketError, match="shut the listening socket down"):
            server.on_loop.run(server.server.wait_closed())
        assert not os.path.exists(address)
        assert "cannot accept any more" in caplog.text
        with ServerThread(small_service(), address, loop=loop), hostline.connect(address) as line:
            assert line.call("echo", 1) == 1


def test_idle_connections_hear_the_farewell_and_are_closed(address: str, loop: str) -> None:
    with ServerThread(small_service(), address, loop=loop) as server:
        clients = [RawClient(address) for _ in range(5)]
        greeting = RawClient(address, hello=False)  # has not introduced itself yet
        assert wait_until(lambda: server.connection_count == 6)
        with takes_less_than(2):
            server.stop()
        for client in (*clients, greeting):
            (frame,) = client.read_until_end()
            farewell = decode_farewell(frame.payload)
            assert (farewell.code, farewell.last_call_id) == (GoawayCode.SHUTDOWN, 0)
            client.close()


def test_the_farewell_names_the_last_call_that_is_answered(
    address: str, loop: str, gate: threading.Event, journal: Journal
) -> None:
    with ServerThread(held_service(journal, gate), address, loop=loop, concurrency=1) as server:
        with RawClient(address) as client:
            for number in (3, 4, 9):
                client.call(number, "task", f"{number}")
            assert wait_until(lambda: server.waiting_count == 2)
            stopping = server.on_loop.start(server.server.shutdown(10))
            frame = client.read()
            assert decode_farewell(frame.payload).last_call_id == 9
            client.call(10, "task", "late")
            gate.set()
            frames = client.read_until_end()
            assert [(frame.kind, frame.call_id) for frame in frames] == [(Kind.REPLY, n) for n in (3, 4, 9)]
            stopping.result(5)
        assert journal.count("started late") == 0


def test_health_says_draining_while_the_last_calls_run(
    address: str, loop: str, gate: threading.Event, journal: Journal
) -> None:
    with ServerThread(held_service(journal, gate), address, loop=loop) as server:
        with RawClient(address) as client:
            client.call(1, "task", "held")
            journal.wait_for("started held")
            assert server.do(lambda server: server.stats().connections) == 1
            stopping = server.on_loop.start(server.server.shutdown(10))
            assert client.read().kind == Kind.GOAWAY
            gate.set()
            assert client.read().kind == Kind.REPLY
            stopping.result(5)


def test_a_successor_may_start_while_the_last_calls_end(
    address: str, loop: str, gate: threading.Event, journal: Journal
) -> None:
    with ServerThread(held_service(journal, gate), address, loop=loop) as old:
        line = BlockingLine(address)
        held = line.start("task", "old")
        journal.wait_for("started old")
        stopping = old.on_loop.start(old.server.shutdown(10))
        assert wait_until(lambda: not os.path.exists(address))
        with ServerThread(small_service(), address, loop=loop):
            with hostline.connect(address) as other:
                assert other.call("echo", 1) == 1
            gate.set()
            assert held.result(5) == "old"
            stopping.result(5)
            assert os.path.exists(address)  # the old one did not take the new one's file away
            line.close()


def test_a_second_shutdown_without_grace_ends_the_wait_of_the_first(
    address: str, loop: str, gate: threading.Event, journal: Journal
) -> None:
    with ServerThread(held_service(journal, gate), address, loop=loop) as server:
        line = BlockingLine(address, reconnect_timeout=0.1)
        held = [line.start(name, name, timeout=20) for name in ("task", "thread", "stubborn")]
        journal.wait_for("started", 3)
        patient = server.on_loop.start(server.server.shutdown(60))
        assert wait_until(lambda: not os.path.exists(address))
        with takes_less_than(3):
            server.on_loop.run(server.server.shutdown(0))
            patient.result(5)
        for future in held:
            with pytest.raises(UnavailableError):
                future.result(5)
        journal.wait_for("cancelled", 2)
        line.close()
        gate.set()


def test_handlers_that_cannot_be_ended_are_left_behind_with_a_line_in_the_log(
    address: str, loop: str, gate: threading.Event, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    with ServerThread(held_service(journal, gate), address, loop=loop) as server:
        line = BlockingLine(address, reconnect_timeout=0.1)
        held = line.start("stubborn", "a")
        journal.wait_for("started a")
        with takes_less_than(4):
            server.on_loop.run(server.server.shutdown(0.1))
        with pytest.raises(UnavailableError):
            held.result(5)
        assert "left 1 handlers behind" in caplog.text
        line.close()
        gate.set()
        journal.wait_for("finished a")


def test_a_stopped_server_is_garbage(address: str, loop: str) -> None:
    import weakref

    server = ServerThread(small_service(), address, loop=loop)
    with hostline.connect(address) as line:
        line.call("echo", 1)
    reference = weakref.ref(server.server)
    server.stop()
    del server
    gc.collect()
    assert reference() is None
