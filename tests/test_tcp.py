"""Loopback TCP: who has not the key gets in nowhere and learns nothing, and what it cannot do it refuses in words."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hostline
from hostline.aio.serving.server import Server
from hostline.aio.serving.workers.scoreboard import Scoreboard
from hostline.aio.serving.workers.worker import Worker, WorkerServer
from hostline.errors import (
    AddressError,
    AddressInUseError,
    AddressNotFoundError,
    ConnectRefusedError,
    ConnectTimeoutError,
    DeadlineExceededError,
    HostlineError,
    InternalError,
    MethodDeniedError,
    NoCredentialsError,
    NotASocketError,
    PeerRefusedError,
    UnavailableError,
)
from hostline.limits import MAX_UNPROVEN
from hostline.protocol.challenge import CHALLENGE_MAGIC, ClientChallenge
from hostline.unix.address import parse_address
from hostline.unix.credentials import Peer, Peers
from hostline.unix.loopback.address import LoopbackAddress
from hostline.unix.loopback.keyfile import KeyFile, decode_key_file, new_key_file, read_key_file
from hostline.unix.loopback.peer import KeyPeer
from hostline.unix.loopback.sockets import loopback_listener
from hostline.wire.codec import ClientHello, encode_hello
from tests.leaks import wait_until
from tests.second_user import NOBODY, run_as
from tests.serving import LoopThread, ServerThread, Stage, stages, takes_less_than

# Handshakes of the flood. A million take some minutes: HOSTLINE_TEST_HANDSHAKES=1000000.
HANDSHAKES = int(os.environ.get("HOSTLINE_TEST_HANDSHAKES", "20000"))


def service() -> hostline.Service:
    made = hostline.Service("sums")

    @made.method
    def add(a: int, b: int) -> int:
        return a + b

    @made.method(inline=True)
    def uid(context: hostline.Context) -> int:
        return context.peer.uid

    @made.method
    def has_credentials(context: hostline.Context) -> bool:
        return context.peer.has_credentials

    @made.method(allow=Peers.same_user())
    def guarded() -> int:
        return 1

    @made.method(allow=Peers.anyone())
    def open_to_all() -> int:
        return 2

    return made


@pytest.fixture(params=stages())
def stage(request: pytest.FixtureRequest, sock_dir: Path) -> Iterator[Stage]:
    made = Stage(*request.param, sock_dir, "tcp:")
    yield made
    made.close()


@pytest.fixture
def server(sock_dir: Path) -> Iterator[ServerThread]:
    with ServerThread(service(), f"tcp:{sock_dir}/s") as made:
        yield made


def key_of(address: str) -> KeyFile:
    found = parse_address(address)
    assert isinstance(found, LoopbackAddress)
    return read_key_file(found, Peers.same_user())


def knock(key: KeyFile) -> socket.socket:
    """Connect to the port as anybody may."""
    return socket.create_connection((key.host, key.port), timeout=10)


def read_to_end(sock: socket.socket) -> bytes:
    """Return what comes until the other side closes; a reset is an end."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := sock.recv(4096):
            data += more
    return data


def connect_error(address: str, **options: Any) -> HostlineError:
    with pytest.raises(HostlineError) as caught, hostline.connect(address, **options):
        pass
    return caught.value


# --- the port: who has not the key ------------------------------------------------------------------------


@pytest.mark.root
def test_another_user_who_lacks_the_key_cannot_get_in(sock_dir: Path, server: ServerThread) -> None:
    sock_dir.chmod(0o755)
    key = key_of(server.address)
    address = server.address

    def read_the_file() -> str:
        return repr(connect_error(address))

    def guess(guessed: bytes, transport: bytes, host: str, port: int) -> tuple[bytes, bytes]:
        with socket.create_connection((host, port), timeout=10) as sock:
            challenge = ClientChallenge(guessed, transport, secrets.token_bytes(32))
            sock.sendall(challenge.data_to_send())
            answer = b""
            while len(answer) < 72:
                answer += sock.recv(72 - len(answer))
            sock.sendall(secrets.token_bytes(32) + b"\x10\0\0\0\x01" + b"\0" * 11)
            return answer, read_to_end(sock)

    assert "AccessDeniedError" in run_as(NOBODY, read_the_file)
    answer, rest = run_as(NOBODY, guess, secrets.token_bytes(32), key.transport, key.host, key.port)
    assert answer.startswith(CHALLENGE_MAGIC)
    assert key.key not in answer
    assert rest == b""
    assert server.stats().connections_total == 0
    assert wait_until(lambda: server.stats().connections_refused == 1)


def flood(key: KeyFile, count: int, accepted: list[bytes]) -> None:
    """Shake hands badly so often, in four ways; what the server says to one that it let in is added to `accepted`."""
    for number in range(count):
        with contextlib.suppress(OSError), socket.create_connection((key.host, key.port), timeout=20) as sock:
            # A reset at the end, or the ports of this host would run out.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            challenge = ClientChallenge(secrets.token_bytes(32), key.transport, secrets.token_bytes(32))
            sock.sendall(challenge.data_to_send() if number % 4 else secrets.token_bytes(40))
            if number % 4 == 0 or len(sock.recv(72)) != 72:
                continue
            sock.sendall(secrets.token_bytes(32) if number % 4 > 1 else challenge.data_to_send()[8:])
            if (extra := sock.recv(1)) != b"":
                accepted.append(extra)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_flood_of_bad_handshakes_lets_nobody_in_and_no_bystander_notices(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    server = stage.serve(service())
    key = key_of(stage.address)
    bystander = stage.connect()
    is_over = threading.Event()
    accepted: list[bytes] = []
    share = HANDSHAKES // len(stages()) // 4
    attackers = [threading.Thread(target=flood, args=(key, share, accepted)) for _ in range(4)]
    for attacker in attackers:
        attacker.start()

    def bystand() -> None:
        while any(attacker.is_alive() for attacker in attackers):
            assert bystander.call("add", 1, 2, timeout=20) == 3
            with hostline.connect(stage.address, connect_timeout=20) as newcomer:
                assert newcomer.call("add", 3, 4, timeout=20) == 7
        is_over.set()

    bystand()
    for attacker in attackers:
        attacker.join()
    assert is_over.is_set()
    assert accepted == []
    assert wait_until(lambda: server.stats().connections_refused == 4 * share, 5), server.stats()
    lines = [record for record in caplog.records if "did not prove the key" in record.getMessage()]
    assert 1 <= len(lines) <= 2 + HANDSHAKES // 100


def test_connections_that_stall_give_way_to_honest_ones(stage: Stage) -> None:
    server = stage.serve(service())
    key = key_of(stage.address)
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(knock(key)) for _ in range(MAX_UNPROVEN + 32)]
        for sock in stalled:
            sock.sendall(CHALLENGE_MAGIC)
        line = stage.connect()
        assert line.call("add", 1, 2) == 3
        assert server.stats().connections == 1
        assert wait_until(lambda: server.stats().connections_refused >= 1)


def test_a_connection_that_says_nothing_is_closed_in_time(
    sock_dir: Path, monkeypatch: pytest.MonkeyPatch, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    monkeypatch.setattr("hostline.aio.serving.doorkeeper.HANDSHAKE_TIMEOUT", 0.1)
    loop = "asyncio" if loop_factory is asyncio.new_event_loop else "uvloop"
    with ServerThread(service(), f"tcp:{sock_dir}/s", loop=loop) as server:
        key = key_of(server.address)
        for start in (b"", CHALLENGE_MAGIC, CHALLENGE_MAGIC + b"n" * 31):
            with knock(key) as sock, takes_less_than(5):
                sock.sendall(start)
                assert read_to_end(sock) == b""


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"POST /call HTTP/1.1\r\nContent-Length: 40\r\n\r\n" + b"x" * 40,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x10\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00hostline\x81\xa7version\x01",
        b"\xf1hl-key\x02" + b"n" * 32,
    ],
    ids=["GET", "POST", "TLS", "our own hello", "another version"],
)
def test_a_browser_or_anything_else_reads_not_one_byte(server: ServerThread, request_bytes: bytes) -> None:
    with knock(key_of(server.address)) as sock:
        sock.sendall(request_bytes)
        assert read_to_end(sock) == b""
    assert server.stats().connections_total == 0


def test_a_servers_own_answer_reflected_opens_nothing(server: ServerThread) -> None:
    key = key_of(server.address)
    with knock(key) as first, knock(key) as second:
        first.sendall(CHALLENGE_MAGIC + b"n" * 32)
        challenge = first.recv(72, socket.MSG_WAITALL)
        second.sendall(CHALLENGE_MAGIC + challenge[8:40])
        reflected = second.recv(72, socket.MSG_WAITALL)
        first.sendall(reflected[40:])
        assert read_to_end(first) == b""
        second.sendall(challenge[40:])
        assert read_to_end(second) == b""
    assert server.stats().connections_total == 0


def test_the_hello_may_follow_the_proof_in_one_write(server: ServerThread) -> None:
    key = key_of(server.address)
    with knock(key) as sock:
        challenge = ClientChallenge(key.key, key.transport, secrets.token_bytes(32))
        sock.sendall(challenge.data_to_send())
        sock.sendall(challenge.receive_data(sock.recv(72, socket.MSG_WAITALL)) + encode_hello(ClientHello(program="t")))
        assert b"hostline" in sock.recv(4096)


@contextlib.contextmanager
def worker_over_tcp(sock_dir: Path, factory: Any) -> Iterator[tuple[LoopThread, WorkerServer, Scoreboard]]:
    """Give what a worker process runs over tcp:, here in a thread and without a supervisor."""
    address = parse_address(f"tcp:{sock_dir}/s")
    assert isinstance(address, LoopbackAddress)
    board, (lifeline, alive) = Scoreboard(1), os.pipe()
    on_loop = LoopThread(factory, "worker")

    async def begin() -> WorkerServer:
        bound = loopback_listener(address)
        server = WorkerServer(service(), Worker(bound, board.take(0, 0.0, 0), lifeline, lambda: None))
        bound.is_inherited = False  # there is no supervisor that would unlink the key file
        await server.start()
        return server

    try:
        server = on_loop.run(begin())
        yield on_loop, server, board
        on_loop.run(server.shutdown())
    finally:
        on_loop.close()
        board.close()
        os.close(lifeline)
        os.close(alive)


def test_a_worker_that_stops_hears_out_who_is_at_the_proof(
    sock_dir: Path, monkeypatch: pytest.MonkeyPatch, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    monkeypatch.setattr("hostline.aio.serving.server.GREETING_TIMEOUT", 30.0)
    with worker_over_tcp(sock_dir, loop_factory) as (on_loop, server, board):
        key = key_of(server.address)
        with knock(key) as sock:
            challenge = ClientChallenge(key.key, key.transport, secrets.token_bytes(32))
            sock.sendall(challenge.data_to_send())
            answer = sock.recv(72, socket.MSG_WAITALL)
            stopped = on_loop.start(server.shutdown())
            assert wait_until(lambda: board.read(0.0)[0].state == "stopping")
            sock.sendall(challenge.receive_data(answer) + encode_hello(ClientHello(program="t")))
            said = read_to_end(sock)
        assert said.index(b"hostline") < said.index(b"is shutting down")
        stopped.result(10)


def test_a_worker_takes_one_at_a_time_and_counts_those_at_the_proof(
    sock_dir: Path, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    with worker_over_tcp(sock_dir, loop_factory) as (on_loop, server, board), contextlib.ExitStack() as stack:
        key = key_of(server.address)

        def burst() -> list[int]:
            """While the loop does nothing else, so that all of them wait."""
            for _ in range(5):
                stack.enter_context(knock(key))
            server._on_acceptable()
            return board.connections()

        assert on_loop.do(burst) == [1]
        assert wait_until(lambda: board.connections() == [5])


# --- the port: who has taken it ------------------------------------------------------------------------------


class Impostor:
    """Somebody on the port of a server that has ended, who keeps what clients send."""

    def __init__(self, address: str, answer: Callable[[bytes], bytes]) -> None:
        self.heard: list[bytes] = []
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.key = new_key_file("127.0.0.1", self._listener.getsockname()[1])
        path = Path(parse_address(address).path)  # type: ignore[union-attr]
        path.write_bytes(self.key.encode())
        path.chmod(0o600)
        self._path = path
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            with sock:
                sock.settimeout(10)
                heard = sock.recv(40, socket.MSG_WAITALL)
                if heard == b"end":
                    return
                with contextlib.suppress(OSError):
                    sock.sendall(self._answer(heard))
                    heard += read_to_end(sock)
                self.heard.append(heard)

    def __enter__(self) -> Impostor:
        return self

    def __exit__(self, *_: object) -> None:
        with knock(self.key) as sock:
            sock.sendall(b"end")
        self._thread.join(10)
        self._listener.close()
        self._path.unlink()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda heard: CHALLENGE_MAGIC + secrets.token_bytes(64), "does not know the key"),
        (lambda heard: heard + secrets.token_bytes(32), "our own, sent back"),
        (lambda heard: b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 60, "does not begin"),
        (lambda heard: b"SSH-2.0-x\r\n", "does not begin"),
    ],
    ids=["guesses", "reflects", "http", "short"],
)
def test_who_takes_a_dead_servers_port_gets_nothing_secret(
    stage: Stage, answer: Callable[[bytes], bytes], error: str
) -> None:
    with Impostor(stage.address, answer) as impostor:
        with pytest.raises(PeerRefusedError, match=error) as caught:
            stage.connect()
        assert "nothing was sent" in str(caught.value)
        assert wait_until(lambda: len(impostor.heard) == 1)
        assert len(impostor.heard[0]) == 40
        assert impostor.heard[0].startswith(CHALLENGE_MAGIC)
        assert impostor.key.key not in impostor.heard[0]


def test_an_impostor_that_closes_or_is_silent_is_told_as_such(stage: Stage) -> None:
    with Impostor(stage.address, lambda heard: b""), pytest.raises(ConnectTimeoutError, match="proof of the key"):
        stage.connect(connect_timeout=0.2)

    def close(heard: bytes) -> bytes:
        raise OSError

    with Impostor(stage.address, close), pytest.raises(UnavailableError, match="before its proof") as caught:
        stage.connect()
    assert caught.value.is_safe_to_repeat


@pytest.mark.leaves_files
def test_a_key_file_with_nobody_behind_it_is_told(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        key = new_key_file("127.0.0.1", taken.getsockname()[1])
    path = stage.directory / "s"
    path.write_bytes(key.encode())
    path.chmod(0o600)
    with pytest.raises(ConnectRefusedError, match=f"nobody behind it; the server \\(pid {os.getpid()}\\) has ended"):
        stage.connect()
    stage.serve(service())  # and the next server replaces it
    assert stage.connect().call("add", 1, 2) == 3


# --- the key file ------------------------------------------------------------------------------------------


def test_the_file_is_0600_whatever_the_umask_and_goes_with_the_server(sock_dir: Path) -> None:
    program = f"""
import os, sys; os.umask(0o777 if len(sys.argv) > 1 else 0)
import asyncio, hostline
async def main():
    async with hostline.Service("x").serve("tcp:{sock_dir}/s"):
        print(oct(os.stat("{sock_dir}/s").st_mode), os.stat("{sock_dir}/s").st_nlink, sorted(os.listdir("{sock_dir}")))
asyncio.run(main())
"""
    for more in ((), ("tight",)):
        done = subprocess.run([sys.executable, "-c", program, *more], capture_output=True, text=True, timeout=15)
        assert done.stdout.strip() == "0o100600 1 ['s', 's.lock']", done.stderr
        assert not (sock_dir / "s").exists()


def test_each_start_has_a_new_key(sock_dir: Path) -> None:
    keys = []
    for _ in range(2):
        with ServerThread(service(), f"tcp:{sock_dir}/s") as server:
            keys.append(key_of(server.address))
    assert keys[0].key != keys[1].key
    assert keys[0].start != keys[1].start
    assert keys[0].key.hex() not in repr(keys[0])
    assert str(keys[0].key) not in repr(keys[0])


def test_a_live_server_is_not_robbed(server: ServerThread) -> None:
    before = key_of(server.address)
    with pytest.raises(AddressInUseError, match=f"pid {os.getpid()}"):
        ServerThread(service(), server.address)
    assert key_of(server.address) == before


def test_of_many_that_start_at_once_exactly_one_serves(sock_dir: Path) -> None:
    address = f"tcp:{sock_dir}/s"
    for _ in range(5):
        (sock_dir / "s").write_bytes(new_key_file("127.0.0.1", 9).encode())  # stale
        barrier = threading.Barrier(4)
        served: list[ServerThread] = []
        refused: list[BaseException] = []

        def start(
            barrier: threading.Barrier = barrier,
            served: list[ServerThread] = served,
            refused: list[BaseException] = refused,
        ) -> None:
            barrier.wait(10)
            try:
                served.append(ServerThread(service(), address))
            except AddressInUseError as error:
                refused.append(error)

        starters = [threading.Thread(target=start) for _ in range(4)]
        for starter in starters:
            starter.start()
        for starter in starters:
            starter.join(10)
        assert (len(served), len(refused)) == (1, 3)
        with hostline.connect(address) as line:
            assert line.call("add", 1, 2) == 3
        served[0].stop()
        assert not (sock_dir / "s").exists()


def untouched(found: os.stat_result) -> tuple[int, ...]:
    """Return what a write or a new mode would change; a look changes the time of the last look."""
    return found.st_ino, found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@pytest.mark.parametrize("what", ["file", "empty", "directory", "socket", "symlink", "fifo", "to a key file"])
def test_what_is_no_key_file_is_refused_by_both_and_left_alone(sock_dir: Path, what: str) -> None:
    path = sock_dir / "s"
    with contextlib.ExitStack() as stack:
        if what == "directory":
            path.mkdir()
        elif what == "socket":
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(str(path))
        elif what == "fifo":
            os.mkfifo(path)
        elif what == "symlink":
            path.symlink_to("/etc/passwd")
        elif what == "to a key file":
            (sock_dir / "t").write_bytes(new_key_file("127.0.0.1", 9).encode())
            path.symlink_to("t")
        else:
            path.write_text("" if what == "empty" else "port 8123\n")
        before = untouched(path.lstat())
        with pytest.raises(NotASocketError):
            ServerThread(service(), f"tcp:{path}")
        assert isinstance(connect_error(f"tcp:{path}"), NotASocketError)
        assert untouched(path.lstat()) == before
        assert not (sock_dir / "s.lock").exists()
        path.rmdir() if what == "directory" else path.unlink()


def test_a_stranger_under_the_temporary_name_is_left_alone(sock_dir: Path) -> None:
    other = sock_dir / "s.new"
    other.write_text("my notes")
    with pytest.raises(NotASocketError, match=r"s\.new"):
        ServerThread(service(), f"tcp:{sock_dir}/s")
    assert other.read_text() == "my notes"
    other.write_text("")  # what a server leaves that was killed at the wrong moment
    with ServerThread(service(), f"tcp:{sock_dir}/s"):
        assert not other.exists()


def test_only_our_own_file_is_unlinked(sock_dir: Path) -> None:
    path = sock_dir / "s"
    with ServerThread(service(), f"tcp:{path}"):
        path.unlink()
        path.write_bytes(b"somebody else's")
    assert path.read_bytes() == b"somebody else's"
    path.unlink()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604, 0o602, 0o620])
def test_a_file_that_others_can_read_or_write_is_not_trusted(stage: Stage, mode: int) -> None:
    stage.serve(service())
    (stage.directory / "s").chmod(mode)
    with pytest.raises(PeerRefusedError, match=f"mode {mode:04o} lets others at the key.*chmod 0600"):
        stage.connect()


@pytest.mark.root
def test_a_file_of_another_user_is_trusted_only_if_asked_for(stage: Stage) -> None:
    stage.serve(service())
    os.chown(stage.directory / "s", NOBODY, NOBODY)
    with pytest.raises(PeerRefusedError, match=f"uid {NOBODY} .*is not admitted"):
        stage.connect()
    with pytest.raises(PeerRefusedError, match="by group a server cannot be known"):
        stage.connect(server=Peers(gids=[NOBODY]))
    assert stage.connect(server=Peers(uids=[NOBODY])).call("add", 1, 2) == 3


GOOD = KeyFile("127.0.0.1", 8123, b"k" * 32, 4711, b"s" * 16).encode()


def test_a_key_file_is_read_back() -> None:
    for key in (KeyFile("127.0.0.1", 1, b"k" * 32, 0, b"s" * 16), new_key_file("::1", 65535)):
        assert decode_key_file(key.encode()) == key
    assert len(new_key_file("127.0.0.1", 65535).encode()) < 250


@pytest.mark.parametrize(
    "damaged",
    [GOOD[:size] for size in range(0, len(GOOD), 7)]
    + [
        GOOD + b"\n",
        GOOD.replace(b"8123", b"65536"),
        GOOD.replace(b"8123", b"0"),
        GOOD.replace(b"8123", b"08123"),
        GOOD.replace(b"127.0.0.1", b"10.0.0.1"),
        GOOD.replace(b"127.0.0.1", b"127.0.0.2"),
        GOOD.replace(b"6b6b", b"6B6B", 1),
        GOOD.replace(b"tcp 1", b"tcp 2"),
        GOOD.replace(b"\n", b"\r\n"),
        GOOD.replace(b"pid 4711", b"pid -1"),
    ],
)
def test_a_damaged_key_file_is_refused(sock_dir: Path, damaged: bytes) -> None:
    assert decode_key_file(damaged) is None
    (sock_dir / "s").write_bytes(damaged)
    (sock_dir / "s").chmod(0o600)
    assert isinstance(connect_error(f"tcp:{sock_dir}/s"), NotASocketError)


def test_a_forked_child_leaves_the_file_and_lets_go_of_the_lock(sock_dir: Path) -> None:
    program = f"""
import asyncio, os, hostline, warnings
warnings.simplefilter("ignore")
async def main():
    async with hostline.Service("x").serve("tcp:{sock_dir}/s") as server:
        pid = os.fork()
        if pid == 0:
            server._bound.close()
            os._exit(0 if os.path.exists("{sock_dir}/s") else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert os.path.exists("{sock_dir}/s")
        pid = os.fork()
        if pid == 0:
            import time; time.sleep(60)
    async with hostline.Service("x").serve("tcp:{sock_dir}/s"):
        print("served again")
    os.kill(pid, 9)
    os.waitpid(pid, 0)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert done.stdout == "served again\n", done.stderr


def test_a_client_that_read_the_file_before_a_restart_reads_it_again(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"tcp:127.0.0.1:{port}"
    for _ in range(3):  # the same port, a new key each time
        server = stage.serve(service(), address)
        line = stage.connect(address)
        assert line.call("add", 1, 2) == 3
        line.close()
        server.stop()


# --- what it cannot do ---------------------------------------------------------------------------------------


def test_credentials_are_refused_in_words_and_never_made_up(stage: Stage) -> None:
    stage.serve(service())
    line = stage.connect()
    assert line.call("has_credentials") is False
    assert line.call("open_to_all") == 2
    with pytest.raises(MethodDeniedError, match="uid: the peer's uid is not known"):
        line.call("uid")
    with pytest.raises(MethodDeniedError, match=r"guarded: the rule admits uid .* tcp: the kernel does not say"):
        line.call("guarded")


def test_a_peer_by_key_has_no_number_that_a_rule_could_let_pass() -> None:
    peer = KeyPeer()
    for name in ("uid", "gid", "groups", "pid"):
        with pytest.raises(NoCredentialsError, match=f"the peer's {name} is not known"):
            getattr(peer, name)
    with pytest.raises(AttributeError):
        _ = peer.color  # type: ignore[attr-defined]
    assert peer.pidfd is None
    assert peer.account == -1
    assert peer != KeyPeer()
    assert peer == peer
    assert peer != Peer(0, 0, 0)
    assert len({peer, KeyPeer()}) == 2
    assert repr(peer) == "KeyPeer()"
    peer.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": 0o660}, "mode 0660"),
        ({"mode": 0o666}, "pose as the server"),
        ({"owner": 1000}, "an owner"),
        ({"group": 0}, "a group"),
        ({"allow": Peers(uids=[54321])}, "cannot be checked"),
        ({"allow": Peers()}, "cannot be checked"),
        ({"allow": Peers(gids=[0])}, "cannot be checked"),
        ({"takeover": True}, "cannot be taken over"),
    ],
)
def test_a_rule_that_the_key_cannot_keep_is_refused_at_the_start(
    sock_dir: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(AddressError, match=words):
        ServerThread(service(), f"tcp:{sock_dir}/s", **options)
    assert list(sock_dir.iterdir()) == []


@pytest.mark.parametrize("allow", [Peers.same_user(), Peers.anyone(), Peers.same_user() | Peers(uids=[54321])])
def test_a_rule_that_the_key_keeps_is_taken(sock_dir: Path, allow: Peers) -> None:
    with ServerThread(service(), f"tcp:{sock_dir}/s", allow=allow, mode=0o600):
        with hostline.connect(f"tcp:{sock_dir}/s") as line:
            assert line.call("add", 1, 2) == 3


def test_who_has_one_account_with_all_has_no_share_of_it(sock_dir: Path) -> None:
    with ServerThread(service(), f"tcp:{sock_dir}/s", allow=Peers.anyone(), concurrency=16) as server:
        bounds, share = server.do(lambda served: (served.accounts.quotas.bounds, served.accounts.share))
        assert share == 16
        assert bounds.connection_rate_per_uid is None


def test_a_backlog_that_is_no_number_of_connections_is_refused(sock_dir: Path) -> None:
    with pytest.raises(ValueError, match="backlog -1 must be zero or more"):
        ServerThread(service(), f"tcp:{sock_dir}/s", backlog=-1)
    assert list(sock_dir.iterdir()) == []


@pytest.mark.parametrize("face", [hostline, hostline.sync.sockets])
def test_raw_sockets_and_channels_are_refused_in_words(sock_dir: Path, face: Any) -> None:
    address = f"tcp:{sock_dir}/s"
    for open_ in (hostline.listen, hostline.listen_channel, hostline.connect_socket, hostline.connect_channel):
        with pytest.raises(AddressError, match="services and their clients"):
            open_(address)
    for kind in ("seqpacket", "datagram"):
        with pytest.raises(AddressError, match="services and their clients"):
            hostline.listen(address, kind)  # type: ignore[call-overload]


def test_raw_sockets_and_channels_are_refused_on_a_loop_too(sock_dir: Path, run_async: Any) -> None:
    async def main() -> None:
        address = f"tcp:{sock_dir}/s"
        aio = hostline.aio
        for open_ in (aio.listen, aio.listen_channel, aio.connect_socket, aio.connect_channel):
            with pytest.raises(AddressError, match="services and their clients"):
                await open_(address)

    run_async(main)


def test_descriptors_are_refused_in_words_and_buffers_go_in_the_frame(stage: Stage, sock_dir: Path) -> None:
    made = hostline.Service("files")
    null = hostline.Fd(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    @made.method
    def size_of(file: hostline.Fd) -> int:
        return os.fstat(file.fileno()).st_size

    @made.method
    def opened() -> hostline.Fd:
        return null

    @made.method
    def doubled(data: hostline.Buffer) -> hostline.Buffer:
        return hostline.Buffer(bytes(memoryview(data)) * 2)

    server = stage.serve(made)
    line = stage.connect()
    with pytest.raises(HostlineError, match="descriptors cannot travel"):
        line.call("size_of", null)
    with pytest.raises(InternalError, match="its result cannot be sent"):
        line.call("opened", returns=hostline.Fd)
    null.close()
    answer = line.call("doubled", hostline.Buffer(b"x" * 1000), returns=hostline.Buffer)
    assert bytes(memoryview(answer)) == b"x" * 2000
    assert server.do(lambda served: served.max_fds) == 0


def test_descriptors_that_a_client_says_it_takes_are_not_sent_over_tcp(server: ServerThread) -> None:
    key = key_of(server.address)
    with knock(key) as sock:
        challenge = ClientChallenge(key.key, key.transport, secrets.token_bytes(32))
        sock.sendall(challenge.data_to_send())
        hello = ClientHello(program="t", features=["descriptors", "streams"])
        sock.sendall(challenge.receive_data(sock.recv(72, socket.MSG_WAITALL)) + encode_hello(hello))
        assert b"descriptors" not in sock.recv(4096)
        assert server.do(lambda served: [s._protocol.takes_descriptors for s in served._sessions]) == [False]


# --- on the loops and between processes ----------------------------------------------------------------------


def test_calls_and_the_rest_of_a_life(stage: Stage) -> None:
    server = stage.serve(service())
    line = stage.connect()
    assert [line.call("add", number, 1) for number in range(50)] == list(range(1, 51))
    assert server.connection_count == 1
    server.stop()
    with pytest.raises((UnavailableError, AddressNotFoundError, DeadlineExceededError)):
        line.call("add", 1, 2, timeout=0.3)
    stage.serve(service())
    assert line.call("add", 1, 2) == 3


def test_a_stream_on_a_connection_that_was_closed_as_idle_is_sent_on_another(stage: Stage) -> None:
    served = service()

    @served.method
    def count(to: int) -> Iterator[int]:
        yield from range(to)

    @served.method
    def total(numbers: Iterator[int]) -> int:
        return sum(numbers)

    server = stage.serve(served, idle_timeout=0.2)
    line = stage.connect()

    async def counted() -> list[int]:
        return [number async for number in line.line.stream("count", 3, returns=int)]

    for _ in range(2):
        assert wait_until(lambda: server.connection_count == 0)
        assert line.call("total", iter([1, 2])) == 3
        assert wait_until(lambda: server.connection_count == 0)
        found = line.on_loop.run(counted()) if stage.is_async else list(line.line.stream("count", 3, returns=int))
        assert found == [0, 1, 2]


def test_both_ends_send_at_once_and_listen_on_loopback_only(server: ServerThread) -> None:
    with hostline.connect(server.address) as line:
        assert line.call("add", 1, 2) == 3

        def look(served: Server) -> list[Any]:
            session = next(iter(served._sessions))
            return [
                served._bound.sock.getsockname()[0],
                served._bound.sock.get_inheritable(),
                session._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0,
                session._sock.get_inheritable(),
            ]

        assert server.do(look) == ["127.0.0.1", False, True, False]


def test_a_line_that_is_closed_while_it_waits_for_a_proof_ends_soon(sock_dir: Path) -> None:
    address = f"tcp:{sock_dir}/s"
    with ServerThread(service(), address):
        line = hostline.connect(address, min_size=1, max_size=2, reconnect_timeout=30, connect_timeout=30)
        line.call("add", 1, 2)
    with Impostor(address, lambda heard: b""):
        ended = threading.Event()

        def call() -> None:
            with contextlib.suppress(HostlineError):
                line.call("add", 1, 2, timeout=30)
            ended.set()

        caller = threading.Thread(target=call)
        caller.start()
        line.close()
        assert ended.wait(5)
        caller.join()


def test_the_other_family_and_the_name_of_loopback(sock_dir: Path) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this host has no IPv6 loopback")
        port = probe.getsockname()[1]
    with ServerThread(service(), f"tcp:[::1]:{port}") as server, hostline.connect(server.address) as line:
        assert line.call("add", 1, 2) == 3
    with ServerThread(service(), f"tcp:localhost:{port}") as server:
        assert server.server.address == f"tcp:127.0.0.1:{port}"
        with hostline.connect(f"tcp://127.0.0.1:{port}") as line:
            assert line.call("add", 1, 2) == 3


def test_a_port_that_somebody_else_has_is_refused(sock_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(AddressInUseError):
            ServerThread(service(), f"tcp:127.0.0.1:{taken.getsockname()[1]}")


def test_a_bare_name_lies_beside_the_socket_of_the_same_name(sock_dir: Path) -> None:
    with ServerThread(service(), "sums"), ServerThread(service(), "tcp:sums"):
        for address in ("sums", "tcp:sums"):
            with hostline.connect(address) as line:
                assert line.call("add", 1, 2) == 3


WITHOUT = """
import socket
del socket.AF_UNIX
socket.socketpair = __import__("tests.tcp_pairs", fromlist=["x"]).socketpair
import asyncio, sys, hostline
made = hostline.Service("sums")
@made.method
def add(a: int, b: int) -> int:
    return a + b
async def main(address):
    async with made.serve(address):
        def blocking():
            with hostline.connect(address) as line:
                return line.call("add", 1, 2)
        async with hostline.aio.connect(address) as line:
            print(await line.call("add", 3, 4), await asyncio.to_thread(blocking))
asyncio.run(main(sys.argv[1]))
for attempt in (
    lambda: hostline.connect("sums"), lambda: hostline.connect("/nowhere/s"), lambda: hostline.listen(sys.argv[2]),
    lambda: made.run(sys.argv[2]), lambda: hostline.connect_socket(sys.argv[2]), lambda: hostline.socketpair(),
):
    try:
        attempt()
    except hostline.AddressError as error:
        print(error)
"""


def test_where_there_are_no_unix_sockets_services_run_and_the_rest_says_what_to_use(sock_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, f"tcp:{sock_dir}/s", f"{sock_dir}/u"],
        capture_output=True,
        text=True,
        timeout=20,
        cwd=Path(__file__).parent.parent,
    )
    lines = done.stdout.splitlines()
    assert lines[:1] == ["7 3"], done.stderr
    assert len(lines) == 7
    assert all("no AF_UNIX" in line and "tcp:NAME" in line for line in lines[1:])


# --- addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "text", "name"),
    [
        ("tcp:/run/app/x", "tcp:/run/app/x", "x"),
        ("tcp:///run/app/x", "tcp:/run/app/x", "x"),
        ("tcp:./x", "tcp:./x", "x"),
        ("tcp:a/b", "tcp:./a/b", "b"),
        ("tcp:127.0.0.1:8123", "tcp:127.0.0.1:8123", "tcp-8123.key"),
        ("tcp://127.0.0.1:8123", "tcp:127.0.0.1:8123", "tcp-8123.key"),
        ("tcp:localhost:1", "tcp:127.0.0.1:1", "tcp-1.key"),
        ("tcp:[::1]:65535", "tcp:[::1]:65535", "tcp6-65535.key"),
    ],
)
def test_addresses_are_read_and_written(written: str, text: str, name: str) -> None:
    address = parse_address(written)
    assert isinstance(address, LoopbackAddress)
    assert address.text == text
    assert os.path.basename(address.path) == name
    assert parse_address(address.text) == address
    assert parse_address(address) is address


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("tcp:", "needs a place"),
        ("tcp:127.0.0.1", "needs a place"),
        ("tcp:8123", "needs a place"),
        ("tcp:0.0.0.0:8123", "not this host's loopback"),
        ("tcp:10.1.2.3:8123", "nothing would be encrypted"),
        ("tcp:example.org:80", "not this host's loopback"),
        ("tcp:127.0.0.2:80", "not this host's loopback"),
        ("tcp:[::]:80", "not this host's loopback"),
        ("tcp::80", "not this host's loopback"),
        ("tcp:127.0.0.1:0", "must be 1 to 65535"),
        ("tcp:127.0.0.1:65536", "must be 1 to 65535"),
        ("tcp:127.0.0.1:x", "must be 1 to 65535"),
        ("tcp:127.0.0.1:", "must be 1 to 65535"),
        ("tcp:127.0.0.1:٣", "must be 1 to 65535"),
        ("tcp:::1:80", "needs a place"),
        ("tcp:a b", "needs a place"),
        ("tcp:x.sock", "ambiguous"),
        ("tcp:/run/", "directory"),
        ("tcp:" + "x" * 300, "exceeds the limit"),
    ],
)
def test_addresses_that_cannot_be_used_say_why(written: str, words: str) -> None:
    with pytest.raises(AddressError, match=re.escape(words)):
        parse_address(written)


# --- the command ---------------------------------------------------------------------------------------------


def test_the_command_serves_calls_describes_and_says_where(sock_dir: Path) -> None:
    (sock_dir / "sums.py").write_text(
        "import hostline\nsums = hostline.Service('sums')\n"
        "@sums.method\ndef add(a: int, b: int) -> int:\n    return a + b\n"
    )
    address = f"tcp:{sock_dir}/s"
    with subprocess.Popen(
        [sys.executable, "-m", "hostline", "serve", "sums:sums", "--address", address],
        cwd=sock_dir,
        stderr=subprocess.PIPE,
    ) as serving:
        try:
            for words, expected in (
                (["call", address, "add", "[1, 2]", "--wait", "10"], "3"),
                (["describe", address], "add"),
                (["path", address], f"{sock_dir}/s"),
            ):
                done = subprocess.run(
                    [sys.executable, "-m", "hostline", *words], capture_output=True, text=True, timeout=20
                )
                assert done.returncode == 0, done.stderr
                assert expected in done.stdout
            refused = subprocess.run(
                [sys.executable, "-m", "hostline", "cat", address],
                capture_output=True,
                text=True,
                timeout=20,
                stdin=subprocess.DEVNULL,
            )
            assert refused.returncode == 2
            assert "services and their clients" in refused.stderr
        finally:
            serving.terminate()
            serving.communicate(timeout=10)
    assert serving.returncode == 0
    assert not (sock_dir / "s").exists()
