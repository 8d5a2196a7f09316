"""Whatever goes wrong in a takeover, exactly one server owns the socket afterwards, and it serves."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

import hostline
from hostline.errors import AddressInUseError, HostlineError, SocketError
from hostline.protocol import takeover as protocol
from hostline.protocol.channels.messages import HEADER, Messages
from hostline.protocol.takeover import VERSION, Ask, Code, Give, Message, Ready, Refused, Released
from hostline.rpc.takeover import talk
from hostline.rpc.takeover.asking import Wanted, listen_blocking, taking_over
from hostline.rpc.takeover.offering import Offer
from hostline.rpc.takeover.talk import Talk
from hostline.unix import handing, sockets
from hostline.unix.address import parse_address
from hostline.unix.credentials import Peer
from hostline.unix.handing import Successor
from hostline.unix.listening import Bound, listening_socket
from hostline.unix.passing.descriptors import Fd, close_all
from hostline.wire.codec import ClientHello, encode_hello
from hostline.wire.frame import Kind
from tests.generations import Program
from tests.leaks import wait_until
from tests.second_user import NOBODY, Fork, run_as
from tests.serving import RawClient, ServerThread, loop_names
from tests.takeover_program import make_service


@pytest.fixture(params=loop_names())
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def start(sock_dir: Path, journal: Path, loop: str) -> Iterator[Callable[..., Program]]:
    """Give `start(*options)`: a program on this loop at `sock_dir / "s"`; all are ended with the test."""
    with contextlib.ExitStack() as stack:

        def begin(*options: str, address: object = None) -> Program:
            where = sock_dir / "s" if address is None else address
            return stack.enter_context(Program(where, journal, *options, loop=loop))

        yield begin


@pytest.fixture
def old(sock_dir: Path, journal: Path, loop: str) -> Iterator[ServerThread]:
    """Give a server in this process."""
    with ServerThread(make_service(str(journal)), sock_dir / "s", loop=loop) as server:
        yield server


class Caller:
    """A successor that a test leads by the hand.

    Args:
        address: Of the server that is asked.
    """

    def __init__(self, address: object) -> None:
        self.successor = Successor(parse_address(str(address)))  # type: ignore[arg-type]
        connected = None
        while connected is None:
            with contextlib.suppress(BlockingIOError):  # others are in the backlog
                connected = self.successor.connect()
                assert connected is not None, "nobody offers"
        self.talk = Talk(*connected, is_taker=True)
        self.fds: list[Fd] = []

    def ask(self, service: str = "shop", version: int = VERSION, kind: str = "stream") -> None:
        self.talk.send(Ask(version, os.getpid(), service, kind))

    def hear(self, timeout: float = 10.0) -> Message | None:
        """Return the next message; None at the end."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            found = [*self.talk.receive()]
            if found:
                message, fds = found[0]
                self.fds += fds
                return message
            if self.talk.has_ended:
                return None
            time.sleep(0.002)
        raise TimeoutError("nothing was said")

    def refusal(self) -> Refused:
        message = self.hear()
        assert isinstance(message, Refused), message
        return message

    def close(self) -> None:
        close_all(self.fds)
        self.talk.close()
        self.successor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def pid_at(address: object) -> int:
    with hostline.connect(str(address)) as line:
        return int(line.call("append", "pid", returns=int))


def assert_goes_on(server: ServerThread, sock_dir: Path) -> None:
    """The server serves, owns its lock and its file, and offers itself."""
    assert pid_at(sock_dir / "s") == os.getpid()
    with pytest.raises(AddressInUseError):
        listening_socket(parse_address(str(sock_dir / "s")))
    with Caller(sock_dir / "s") as next_one:
        next_one.ask()
        assert isinstance(next_one.hear(), Give)
    assert sorted(os.listdir(sock_dir)) == ["s", "s.control", "s.lock"]


# --- those who connect meanwhile -------------------------------------------------------------------------


@pytest.mark.leaves_files
def test_whoever_was_accepted_a_moment_before_is_greeted_before_the_goodbye(
    old: ServerThread, start: Any, sock_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostline.aio.serving.server.GREETING_TIMEOUT", 30.0)
    with RawClient(str(sock_dir / "s"), hello=False) as client:
        assert wait_until(lambda: old.connection_count == 1)
        start("--takeover").ready()
        client.sock.sendall(encode_hello(ClientHello(program="t")))
        assert [frame.kind for frame in client.read_until_end()] == [Kind.HELLO, Kind.GOAWAY]


# --- the new one ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["connected", "asked", "given", "ready"])
def test_a_successor_that_leaves_changes_nothing(old: ServerThread, sock_dir: Path, step: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Caller(sock_dir / "s") as caller:
        if step != "connected":
            caller.ask()
            assert isinstance(caller.hear(), Give)
        if step == "asked":
            caller.talk.sock.send(HEADER.pack(100, 1, 0, 0))  # half a message
        if step == "ready":
            with contextlib.suppress(HostlineError):
                old.on_loop.do(lambda: (caller.talk.send(Ready()), caller.close()))  # before the server can look
    assert_goes_on(old, sock_dir)
    assert wait_until(lambda: len(os.listdir("/proc/self/fd")) == before)


@pytest.mark.parametrize("step", ["prepare", "given"])
def test_a_successor_that_is_killed_changes_nothing(old: ServerThread, sock_dir: Path, step: str) -> None:
    program = textwrap.dedent(f"""
        import os, signal
        from hostline.rpc.takeover import asking
        from hostline.unix.address import parse_address
        def die(*_): os.kill(os.getpid(), signal.SIGKILL)
        if {step!r} == "given":
            asking.Successor.adopt = die
        asking.listen_blocking(asking.Wanted(parse_address({str(sock_dir / "s")!r})), "shop", die)
    """)
    assert subprocess.run([sys.executable, "-c", program], timeout=15, check=False).returncode == -signal.SIGKILL
    assert_goes_on(old, sock_dir)


def test_a_successor_that_fails_to_start_says_so_and_changes_nothing(old: ServerThread, sock_dir: Path) -> None:
    def fail(bound: Bound) -> None:
        raise RuntimeError("no licence")

    with pytest.raises(RuntimeError, match="no licence"):
        listen_blocking(Wanted(parse_address(str(sock_dir / "s"))), "shop", fail)
    assert_goes_on(old, sock_dir)


def test_a_successor_that_is_told_to_stop_while_it_waits_stops(start: Any, sock_dir: Path) -> None:
    first = start().ready()
    with hostline.connect(str(sock_dir / "s")) as line:
        first.process.send_signal(signal.SIGSTOP)
        second = start("--takeover")
        try:
            with Caller(sock_dir / "s"):  # its place in the queue shows that the other one waits there
                assert wait_until(lambda: _waits_at(sock_dir / "s.control") >= 2, 10)
            second.process.terminate()
            assert second.wait() == 0
        finally:
            first.process.send_signal(signal.SIGCONT)
        assert line.call("append", "x", returns=int) == first.pid
    first.process.terminate()
    assert first.wait() == 0


def _waits_at(path: Path) -> int:
    """Return how many connections a socket has, accepted or not."""
    with open("/proc/net/unix", encoding="utf-8") as table:
        return sum(line.split()[-1] == str(path) and line.split()[3] == "00000000" for line in table)


# --- the old one ends -----------------------------------------------------------------------------------

DYING = """
import os, signal, sys
from hostline.rpc.takeover import offering
from hostline.protocol.takeover import Give
step = sys.argv.pop(1)
real = offering.Offer._give
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
def give_and_die(self, visit):
    real(self, visit)
    die()
if step == "asked":
    offering.Offer._give = die
elif step == "given":
    offering.Offer._give = give_and_die
elif step == "ready":
    offering.Offer._release = die
from tests.takeover_program import main
main()
"""


@pytest.mark.parametrize("step", ["asked", "given", "ready"])
def test_when_the_old_one_is_killed_the_new_one_serves(start: Any, sock_dir: Path, journal: Path, step: str) -> None:
    path = sock_dir / "s"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-c", DYING, step, str(path), str(journal)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as dying:
        try:
            assert dying.stdout is not None
            assert dying.stdout.readline() == "ready\n"
            inode = os.stat(path).st_ino
            new = start("--takeover").ready()
            assert dying.wait(10) == -signal.SIGKILL
        finally:
            dying.kill()
    assert pid_at(path) == new.pid
    if step != "asked":
        assert os.stat(path).st_ino == inode, "the socket was handed over, and yet another one was made"
    with pytest.raises(AddressInUseError) as refused:
        listening_socket(parse_address(str(path)))
    assert refused.value.pid == new.pid
    newest = start("--takeover").ready()
    assert new.wait() == 0
    newest.process.terminate()
    assert newest.wait() == 0


@pytest.mark.leaves_files  # nobody who offers follows, who would clear away the dead one's control socket
@pytest.mark.parametrize("step", ["asked", "given", "ready"])
def test_where_the_kernel_has_no_pidfd_the_end_of_the_connection_tells(
    sock_dir: Path, journal: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Peer, "pidfd", property(lambda _: None))
    path = sock_dir / "s"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-c", DYING, step, str(path), str(journal)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as dying:
        try:
            assert dying.stdout is not None
            assert dying.stdout.readline() == "ready\n"
            inode = os.stat(path).st_ino
            bound = listen_blocking(Wanted(parse_address(str(path))), "shop", lambda bound: bound)
            assert dying.wait(10) == -signal.SIGKILL
        finally:
            dying.kill()
    assert step == "asked" or os.stat(path).st_ino == inode
    bound.close()


def test_an_old_one_that_stops_meanwhile_says_so(start: Any, sock_dir: Path) -> None:
    first = start().ready()
    with Caller(sock_dir / "s") as caller:
        caller.ask()
        assert isinstance(caller.hear(), Give)
        first.process.terminate()
        assert caller.refusal().code == Code.STOPPING
    assert first.wait() == 0
    assert os.listdir(sock_dir) == ["s.lock"]


def test_a_start_that_meets_a_stopping_server_starts_anew(sock_dir: Path, old: ServerThread) -> None:
    steps = taking_over(Wanted(parse_address(str(sock_dir / "s"))), "shop", lambda bound: bound)
    holder = Caller(sock_dir / "s")
    try:
        old.on_loop.do(lambda: next(steps))  # it has asked, and the server had no chance to look
        stopping = old.on_loop.start(old.server.shutdown(0.0))
        stopping.result(5)
        bound = listen_on(steps)
    finally:
        holder.close()
    assert os.stat(sock_dir / "s").st_nlink == 1
    bound.close()


def listen_on(steps: Any) -> Any:
    """Drive a takeover that has begun."""
    try:
        while True:
            wait = next(steps)
            select.select([] if wait.fd is None else [wait.fd], [], [], max(0.0, wait.until - time.monotonic()))
    except StopIteration as end:
        return end.value


def test_an_old_one_that_does_not_answer_keeps_everything(old: ServerThread, sock_dir: Path) -> None:
    with hostline.connect(str(sock_dir / "s")) as line:
        line.call("hang", 0.0)
        wanted = Wanted(parse_address(str(sock_dir / "s")))

        def hold() -> Any:
            with pytest.raises(AddressInUseError, match="did not answer in time"):
                listen_blocking(wanted, "shop", lambda bound: bound, timeout=0.2)

        old.on_loop.do(hold)  # on its own loop, which therefore cannot answer
    assert_goes_on(old, sock_dir)


def test_a_release_that_comes_too_late_is_taken_back(old: ServerThread, sock_dir: Path) -> None:
    """The turning point: the successor has said ready and waits no longer when the server would release."""
    caller = Caller(sock_dir / "s")
    caller.ask()
    assert isinstance(caller.hear(), Give)

    def late() -> list[Any]:
        caller.talk.send(Ready())
        return [*caller.talk.last_look()]

    assert old.on_loop.do(late) == []
    caller.close()
    assert_goes_on(old, sock_dir)


@pytest.mark.leaves_files
def test_a_release_that_came_in_time_is_found_by_the_last_look(start: Any, sock_dir: Path) -> None:
    first = start().ready()
    with Caller(sock_dir / "s") as caller:
        caller.ask()
        assert isinstance(caller.hear(), Give)
        caller.talk.send(Ready())
        assert first.wait() == 0
        assert [type(message) for message, _ in caller.talk.last_look()] == [Released]


# --- two, and others -------------------------------------------------------------------------------------


def test_of_two_successors_one_is_refused_in_words(old: ServerThread, start: Any, sock_dir: Path) -> None:
    with Caller(sock_dir / "s") as first:
        first.ask()
        assert isinstance(first.hear(), Give)
        second = start("--takeover")
        assert second.wait() == 1
        assert f"pid {os.getpid()} is taking over at this moment" in second.log
    assert_goes_on(old, sock_dir)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"service": "store"}, "service 'shop' is here, and 'store' is asked for"),
        ({"version": 2}, "takeover version 2 is asked for, and this server speaks 1"),
        ({"kind": "datagram"}, "a stream socket is here, and datagram is asked for"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(
    old: ServerThread, sock_dir: Path, options: dict[str, Any], words: str
) -> None:
    with Caller(sock_dir / "s") as caller:
        caller.ask(**options)
        assert words in caller.refusal().reason
        assert caller.hear() is None
    assert_goes_on(old, sock_dir)


def test_another_mode_than_the_files_is_refused_in_words(old: ServerThread, sock_dir: Path) -> None:
    wanted = Wanted(parse_address(str(sock_dir / "s")), mode=0o660)
    with pytest.raises(AddressInUseError, match=r"leaves the file as it is, mode 0600 .* and mode 0660 is asked for"):
        listen_blocking(wanted, "shop", lambda bound: bound)
    assert_goes_on(old, sock_dir)


def test_a_server_that_does_not_offer_itself_is_not_taken_over(sock_dir: Path, journal: Path, loop: str) -> None:
    with ServerThread(make_service(str(journal)), sock_dir / "s", loop=loop, offer_takeover=False):
        assert not (sock_dir / "s.control").exists()
        with pytest.raises(AddressInUseError, match="does not offer itself to be taken over"):
            listen_blocking(Wanted(parse_address(str(sock_dir / "s"))), "shop", lambda bound: bound)


@pytest.mark.root
def test_another_user_may_not_ask_at_an_abstract_name(sock_dir: Path, journal: Path, loop: str) -> None:
    address = f"unix:@{sock_dir.name}"

    def ask() -> str:
        with Caller(address) as caller:
            with contextlib.suppress(HostlineError):
                caller.ask()
            return caller.refusal().reason

    with ServerThread(make_service(str(journal)), address, loop=loop):
        assert f"uid {NOBODY}" in run_as(NOBODY, ask)
        assert pid_at(address) == os.getpid()


@pytest.mark.root
def test_another_user_may_not_even_connect_to_the_control_file(old: ServerThread, sock_dir: Path) -> None:
    os.chmod(sock_dir, 0o755)

    def connect() -> str:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(str(sock_dir / "s.control"))
            except PermissionError:
                return "denied"
        return "let in"

    assert run_as(NOBODY, connect) == "denied"


@pytest.mark.root
@pytest.mark.leaves_files
@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_what_another_user_offers_is_not_taken(sock_dir: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    os.chmod(sock_dir, 0o1777)
    address = str(sock_dir / "s") if kind == "path" else f"unix:@{sock_dir.name}"
    where = f"{address}.control" if kind == "path" else f"\0{sock_dir.name}.control"
    ready = sock_dir / "ready"

    def squat() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(where)
            sock.listen()
            if kind == "path":
                os.chmod(where, 0o666)
            ready.touch()
            signal.pause()

    with Fork(NOBODY, squat):
        assert wait_until(ready.exists)
        bound = listen_blocking(Wanted(parse_address(address)), "shop", lambda bound: bound)
        bound.close()
    assert "is not taken" in caplog.text
    assert f"uid {NOBODY}" in caplog.text


# --- hostile peers ---------------------------------------------------------------------------------------


def connect_raw(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(str(path))
    return sock


HELLO_BYTES = Messages("stream", 1024, 2).introduce()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n" * 10,
        b"\0" * 100,
        HELLO_BYTES + HEADER.pack(1 << 20, 1, 0, 0),
        HELLO_BYTES + HEADER.pack(3, 1, 0, 0) + b"\xc1\xc1\xc1",
        HELLO_BYTES + HEADER.pack(1, 1, 0, 0) + b"\x80",
        HELLO_BYTES + HEADER.pack(1, 1, 0, 1) + b"\x80",
        HELLO_BYTES + Messages("stream", 1024, 2).encode(Ready()),
        HELLO_BYTES + Messages("stream", 1024, 2).encode(Released()),
        HELLO_BYTES + Messages("stream", 1024, 2).encode(Give(1, 1, "x", 1, 1)),
    ],
    ids=["http", "zeros", "huge", "no-msgpack", "no-message", "announced-fd", "ready-first", "released", "give"],
)
def test_whoever_talks_nonsense_is_sent_away(old: ServerThread, sock_dir: Path, data: bytes) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with connect_raw(sock_dir / "s.control") as sock:
        sock.sendall(data)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(4096):
                pass
    assert_goes_on(old, sock_dir)
    assert wait_until(lambda: len(os.listdir("/proc/self/fd")) == before)


@pytest.mark.parametrize("data", [b"", HELLO_BYTES[:7], HELLO_BYTES, HELLO_BYTES + HEADER.pack(100, 1, 0, 0) + b"\x83"])
def test_whoever_says_nothing_or_half_is_sent_away_in_time(
    old: ServerThread, sock_dir: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HANDSHAKE_TIMEOUT", 0.1)
    with connect_raw(sock_dir / "s.control") as sock:
        sock.sendall(data)
        came = b""
        with contextlib.suppress(ConnectionResetError):
            while more := sock.recv(4096):
                came += more
        assert b"no ask came within" in came
    assert_goes_on(old, sock_dir)


def test_a_successor_that_never_gets_ready_is_sent_away_in_time(
    old: ServerThread, sock_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "TAKEOVER_READY_TIMEOUT", 0.1)
    with Caller(sock_dir / "s") as caller:
        caller.ask()
        assert isinstance(caller.hear(), Give)
        assert caller.refusal().code == Code.LATE
    monkeypatch.undo()
    assert_goes_on(old, sock_dir)


def test_unasked_descriptors_are_not_kept(old: ServerThread, sock_dir: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with connect_raw(sock_dir / "s.control") as sock, contextlib.suppress(OSError):
        socket.send_fds(sock, [HELLO_BYTES + HEADER.pack(1, 1, 0, 2) + b"\x80"], [0, 1])
        while sock.recv(4096):
            pass
    assert_goes_on(old, sock_dir)
    assert wait_until(lambda: len(os.listdir("/proc/self/fd")) == before)


@pytest.mark.parametrize("reason", ["too many", "no room"])
def test_descriptors_that_a_successor_cannot_take_end_it_in_words(
    old: ServerThread, sock_dir: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def give_too_many(self: Offer, visit: Any) -> None:
        visit.talk.send(Give(VERSION, 1, "x", 1, 1), [0, 1, 2])

    def receive_without_room(*arguments: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            return handing.recv_handed(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    if reason == "too many":
        monkeypatch.setattr(Offer, "_give", give_too_many)
    else:
        monkeypatch.setattr(talk, "recv_handed", receive_without_room)
    with pytest.raises(AddressInUseError, match="descriptors"):
        listen_blocking(Wanted(parse_address(str(sock_dir / "s"))), "shop", lambda bound: bound)
    monkeypatch.undo()
    assert_goes_on(old, sock_dir)


def test_a_crowd_of_successors_is_bounded(old: ServerThread, sock_dir: Path) -> None:
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(Caller(sock_dir / "s")) for _ in range(20)]
        refused: set[int] = set()

        def count() -> int:
            refused.update(n for n, caller in enumerate(crowd) for said, _ in caller.talk.receive() if said)
            return len(refused)

        assert wait_until(lambda: count() >= 12)
        assert count() == 12
    assert_goes_on(old, sock_dir)


def test_a_control_socket_that_somebody_shut_down_ends_the_offer_only(
    old: ServerThread, sock_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    offering: Any = old.server._offering
    old.on_loop.do(lambda: offering._offer._control.sock.shutdown(socket.SHUT_RDWR))
    assert wait_until(lambda: "cannot be taken over any more" in caplog.text)
    assert pid_at(sock_dir / "s") == os.getpid()
    assert sorted(os.listdir(sock_dir)) == ["s", "s.lock"]


def test_a_shortage_of_descriptors_makes_the_offer_rest(
    old: ServerThread, sock_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from hostline.rpc.takeover import offering

    calls: list[float] = []

    def accept_peer(*arguments: Any) -> Any:
        calls.append(time.monotonic())
        if len(calls) == 1:
            raise OSError(errno.EMFILE, "no descriptor left")
        return sockets.accept_peer(*arguments)

    monkeypatch.setattr(offering, "accept_peer", accept_peer)
    with Caller(sock_dir / "s") as caller:
        caller.ask()
        assert isinstance(caller.hear(), Give)
    assert calls[1] - calls[0] > 0.9, "it did not rest"
    assert "EMFILE" in caplog.text


def test_what_is_no_listening_socket_of_that_address_is_not_taken(sock_dir: Path) -> None:
    with listening_socket(parse_address(str(sock_dir / "s"))).sock as sock:
        right = Fd(os.dup(sock.fileno()))
        successor = Successor(parse_address(str(sock_dir / "other")))  # type: ignore[arg-type]
        with pytest.raises(SocketError, match="is bound to"):
            successor.adopt([right, Fd(os.open("/dev/null", os.O_RDONLY))], (1, 1))
        successor.close()
    for wrong in ("/dev/null", None):
        fd = os.open(wrong, os.O_RDONLY) if wrong else socket.socket(socket.AF_UNIX).detach()
        successor = Successor(parse_address(str(sock_dir / "s")))  # type: ignore[arg-type]
        with pytest.raises(SocketError):
            successor.adopt([Fd(fd), Fd(os.open("/dev/null", os.O_RDONLY))], (1, 1))
        successor.close()
    os.unlink(sock_dir / "s")


@pytest.mark.leaves_files
def test_a_file_that_somebody_replaced_is_not_taken(old: ServerThread, sock_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(sock_dir / "o"))
        other.listen()
        os.rename(sock_dir / "s", sock_dir / "kept")
        os.rename(sock_dir / "o", sock_dir / "s")
        with pytest.raises(SocketError, match="somebody replaced the socket file"):
            listen_blocking(Wanted(parse_address(str(sock_dir / "s"))), "shop", lambda bound: bound)
        os.rename(sock_dir / "kept", sock_dir / "s")
    assert_goes_on(old, sock_dir)


@pytest.mark.leaves_files
def test_a_lock_file_that_somebody_replaced_is_not_taken(old: ServerThread, sock_dir: Path) -> None:
    os.rename(sock_dir / "s.lock", sock_dir / "kept")
    (sock_dir / "s.lock").touch(0o600)
    with pytest.raises(SocketError, match="not the lock that was given"):
        listen_blocking(Wanted(parse_address(str(sock_dir / "s"))), "shop", lambda bound: bound)
    os.rename(sock_dir / "kept", sock_dir / "s.lock")
    assert_goes_on(old, sock_dir)


def test_a_directory_that_leads_elsewhere_by_now_is_another_address(sock_dir: Path, journal: Path, loop: str) -> None:
    for name in ("one", "two"):
        (sock_dir / name).mkdir(0o700)
    link = sock_dir / "link"
    link.symlink_to("one")
    with ServerThread(make_service(str(journal)), link / "s", loop=loop):
        link.unlink()
        link.symlink_to("two")
        bound = listen_blocking(Wanted(parse_address(str(link / "s"))), "shop", lambda bound: bound)
        assert (sock_dir / "two" / "s").exists()
        bound.close()
        assert pid_at(sock_dir / "one" / "s") == os.getpid()


def test_a_directory_that_is_repointed_while_it_is_taken_is_refused(sock_dir: Path, journal: Path, loop: str) -> None:
    for name in ("one", "two"):
        (sock_dir / name).mkdir(0o700)
    link = sock_dir / "link"
    link.symlink_to("one")
    with ServerThread(make_service(str(journal)), link / "s", loop=loop):
        steps = taking_over(Wanted(parse_address(str(link / "s"))), "shop", lambda bound: bound)
        next(steps)
        link.unlink()
        link.symlink_to("two")
        with pytest.raises(SocketError, match="directory was replaced"):
            listen_on(steps)
        assert pid_at(sock_dir / "one" / "s") == os.getpid()
    assert os.listdir(sock_dir / "two") == []


# --- servers of other kinds ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stream", "seqpacket", "datagram"])
def test_a_blocking_program_hands_any_socket_over(sock_dir: Path, kind: Any) -> None:
    address = parse_address(str(sock_dir / "s"))
    old = listening_socket(address, kind)
    offer = Offer.open(old, "plain")
    assert offer is not None
    assert offer.deadline is None
    taken: list[Bound] = []
    thread = threading.Thread(
        target=lambda: taken.append(listen_blocking(Wanted(address, kind), "plain", lambda bound: bound))
    )
    thread.start()
    assert wait_until(offer.step)
    thread.join()
    assert offer.taken_by == os.getpid()
    old.close()
    assert (sock_dir / "s").exists()
    assert taken[0].rule == hostline.Peers(uids=(os.geteuid(), 0))
    with pytest.raises(AddressInUseError):
        listening_socket(address, kind)
    with socket.socket(socket.AF_UNIX, taken[0].sock.type) as client:
        client.connect(str(sock_dir / "s"))
    taken[0].close()
    assert os.listdir(sock_dir) == ["s.lock"]
    listening_socket(address, kind).close()


def test_both_may_run_on_one_loop(run_async: Any, sock_dir: Path, journal: Path) -> None:
    service = make_service(str(journal))

    async def main() -> None:
        async with service.serve(sock_dir / "s") as old:
            async with hostline.aio.connect(str(sock_dir / "s")) as line:
                await line.call("append", "a")
                async with service.serve(sock_dir / "s", takeover=True):
                    await old.wait_closed()
                    await line.call("append", "b")
            assert sorted(os.listdir(sock_dir)) == ["s.lock"]

    run_async(main())


def test_a_forked_child_of_the_old_one_holds_nothing(old: ServerThread, sock_dir: Path) -> None:
    def look() -> list[str]:
        names = []
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                names.append(os.readlink(f"/proc/self/fd/{fd}"))
        return [name for name in names if str(sock_dir) in name]

    def listening() -> int:
        count = 0
        for fd in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                    with socket.socket(fileno=os.dup(fd)) as sock:
                        count += sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return count

    with Caller(sock_dir / "s") as caller:
        caller.ask()
        assert isinstance(caller.hear(), Give)
        assert listening() >= 2
        assert run_as(os.geteuid(), listening, gid=os.getegid(), groups=None) == 0
        assert run_as(os.geteuid(), look, gid=os.getegid(), groups=None) == []


def test_a_name_that_leaves_no_room_for_control_is_served_all_the_same(
    tmp_path: Path, sock_dir: Path, journal: Path, loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    address = sock_dir / ("d" * 60) / ("s" * 88)
    address.parent.mkdir(0o700)
    with ServerThread(make_service(str(journal)), address, loop=loop):
        assert pid_at(address) == os.getpid()
        assert "cannot be taken over by a successor" in caplog.text


def test_a_long_path_is_taken_over(sock_dir: Path, journal: Path, loop: str) -> None:
    address = sock_dir / ("d" * 200) / "s"
    address.parent.mkdir(0o700)
    with ServerThread(make_service(str(journal)), address, loop=loop):
        bound = listen_blocking(Wanted(parse_address(str(address))), "shop", lambda bound: bound)
        assert (address.parent / "s").exists()
        bound.close()
        assert os.listdir(address.parent) == ["s.lock"]


def test_after_a_crash_of_the_successor_the_address_is_free(start: Any, sock_dir: Path) -> None:
    first = start().ready()
    second = start("--takeover").ready()
    assert first.wait() == 0
    second.process.kill()
    second.wait()
    third = start("--takeover").ready()
    assert pid_at(sock_dir / "s") == third.pid
    third.process.terminate()
    assert third.wait() == 0
    assert os.listdir(sock_dir) == ["s.lock"]
