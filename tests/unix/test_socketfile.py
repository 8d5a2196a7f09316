"""The life of a socket file: who gets a path, what is touched, what is left alone, and what remains afterwards."""

from __future__ import annotations

import fcntl
import gc
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.leaks import wait_until
from tests.unix.processes import TYPES, Child, import_path

from hostline.errors import (
    AccessDeniedError,
    AddressInUseError,
    AddressNotFoundError,
    NotASocketError,
    PathTooLongError,
    SocketError,
    UnsafeDirectoryError,
)
from hostline.unix import holders, socketfile
from hostline.unix.binding import bind_by_rename
from hostline.unix.socketfile import SocketFile

KINDS = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET, "datagram": socket.SOCK_DGRAM}
NOBODY = 65534


class Server:
    """A claimed, bound and listening socket file, and what a client needs to see that it serves."""

    def __init__(self, path: str | Path, socket_type: Any = "stream", **options: Any) -> None:
        self.file = SocketFile.claim(str(path), socket_type)
        try:
            self.sock = socket.socket(socket.AF_UNIX, KINDS[socket_type])
            self.file.bind(self.sock, **options)
            if socket_type != "datagram":
                self.sock.listen()
            self.status = self.file.widen()
        except BaseException:
            self.file.release()
            raise

    def close(self) -> None:
        self.file.release()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def plain_server(path: str | Path, socket_type: str, backlog: int | None = 16) -> socket.socket:
    """Bind as a program does that knows nothing of hostline; a backlog of None leaves out listen."""
    sock = socket.socket(socket.AF_UNIX, KINDS[socket_type])
    sock.bind(str(path))
    if socket_type != "datagram" and backlog is not None:
        sock.listen(backlog)
    return sock


def make_stale(path: Path, socket_type: str = "stream") -> None:
    plain_server(path, socket_type).close()
    assert path.is_socket()


def serves(path: Path, socket_type: str, server: socket.socket) -> bool:
    """Whether what a client sends to the path arrives at this very socket."""
    server.settimeout(5)
    with socket.socket(socket.AF_UNIX, KINDS[socket_type]) as client:
        client.connect(str(path))
        client.send(b"hello")
        if socket_type == "datagram":
            return server.recv(16) == b"hello"
        while True:  # probes leave connections behind that carry nothing
            accepted, _ = server.accept()
            with accepted:
                if accepted.recv(16) == b"hello":
                    return True


def look(path: Path) -> tuple[Any, ...]:
    """Return everything about a path that a refusal must not change."""
    status = path.lstat()
    content: Any = None
    if stat.S_ISREG(status.st_mode):
        content = path.read_bytes()
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISDIR(status.st_mode):
        content = sorted(os.listdir(path))
    return (status.st_dev, status.st_ino, status.st_mode, status.st_mtime_ns, status.st_ctime_ns, content)


# --- the plain life ----------------------------------------------------------------------------------


@pytest.mark.parametrize("socket_type", TYPES)
def test_a_claimed_path_serves_until_release_and_only_the_lock_file_remains(sock_dir: Path, socket_type: str) -> None:
    path = sock_dir / "s"
    with Server(path, socket_type) as server:
        assert serves(path, socket_type, server.sock)
        assert stat.S_IMODE(server.status.st_mode) == 0o600
        assert server.sock.getsockname() == str(path)  # what ss and lsof show
    assert os.listdir(sock_dir) == ["s.lock"]
    assert server.sock.fileno() == -1
    server.close()  # a second time changes nothing


def test_the_lock_file_is_private_names_the_holder_and_is_never_made_anew(sock_dir: Path) -> None:
    path, lock = sock_dir / "s", sock_dir / "s.lock"
    inodes = set()
    for _ in range(3):
        with Server(path):
            assert stat.S_IMODE(lock.stat().st_mode) == 0o600
            assert f"\npid {os.getpid()}\ncommand " in lock.read_text()
            inodes.add(lock.stat().st_ino)
    assert len(inodes) == 1


def test_a_claim_that_is_forgotten_lets_go_of_the_lock(sock_dir: Path) -> None:
    file: SocketFile | None = SocketFile.claim(str(sock_dir / "s"), "stream")
    del file
    gc.collect()
    Server(sock_dir / "s").close()


def test_release_finds_the_file_after_chdir_and_after_the_directory_was_renamed(
    sock_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = sock_dir / "before", sock_dir / "after"
    before.mkdir()
    monkeypatch.chdir(before)
    with Server("./s"):
        monkeypatch.chdir("/")
        before.rename(after)
        assert (after / "s").is_socket()
    assert os.listdir(after) == ["s.lock"]


@pytest.mark.parametrize("length", [150, 1000])
@pytest.mark.parametrize("socket_type", TYPES)
def test_a_path_longer_than_the_kernels_field_is_served_and_unlinked(
    sock_dir: Path, socket_type: str, length: int
) -> None:
    directory = sock_dir.joinpath(*["d" * 100] * (length // 101))
    directory.mkdir(parents=True)
    path = directory / "s"
    with Server(path, socket_type, mode=0o640) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        with pytest.raises(AddressInUseError):
            SocketFile.claim(str(path), "stream")
        assert server.sock.fileno() >= 0
    assert os.listdir(directory) == ["s.lock"]


def test_a_name_that_fits_no_address_is_refused_before_anything_is_made(sock_dir: Path) -> None:
    with pytest.raises(PathTooLongError):
        SocketFile.claim(str(sock_dir / ("n" * 120)), "stream")
    assert os.listdir(sock_dir) == []


# --- a live server is never robbed ---------------------------------------------------------------------


@pytest.mark.parametrize("second_type", TYPES)
@pytest.mark.parametrize("socket_type", TYPES)
def test_a_second_start_is_refused_naming_pid_and_command_and_the_first_keeps_serving(
    sock_dir: Path, socket_type: str, second_type: str
) -> None:
    path = sock_dir / "s"
    with Server(path, socket_type) as server:
        before = look(path)
        with pytest.raises(AddressInUseError) as caught:
            SocketFile.claim(str(path), second_type)  # type: ignore[arg-type]
        assert caught.value.pid == os.getpid()
        assert "python" in caught.value.command
        assert f"pid {os.getpid()} ({caught.value.command})" in str(caught.value)
        assert look(path) == before
        assert serves(path, socket_type, server.sock)


@pytest.mark.parametrize("socket_type", TYPES)
def test_another_process_is_refused_and_named_too(sock_dir: Path, socket_type: str) -> None:
    path = sock_dir / "s"
    with Child(Server, path, socket_type) as child:
        with pytest.raises(AddressInUseError) as caught:
            SocketFile.claim(str(path), socket_type)  # type: ignore[arg-type]
        assert caught.value.pid == child.pid
        assert str(child.pid) in str(caught.value)
        assert child.finish() == 0
    assert os.listdir(sock_dir) == ["s.lock"]
    Server(path, socket_type).close()


@pytest.mark.parametrize("second_type", TYPES)
@pytest.mark.parametrize("socket_type", TYPES)
def test_a_live_socket_of_a_program_without_our_lock_is_left_serving(
    sock_dir: Path, socket_type: str, second_type: str
) -> None:
    path = sock_dir / "s"
    with plain_server(path, socket_type) as plain:
        before = look(path)
        with pytest.raises(AddressInUseError) as caught:
            SocketFile.claim(str(path), second_type)  # type: ignore[arg-type]
        # The kernel keeps no credentials for datagram sockets.
        assert caught.value.pid == (None if socket_type == "datagram" else os.getpid())
        assert "python" in caught.value.command or socket_type == "datagram"
        assert look(path) == before
        assert serves(path, socket_type, plain)
    path.unlink()


@pytest.mark.parametrize("socket_type", ["stream", "seqpacket"])
def test_a_socket_that_is_bound_and_does_not_listen_yet_counts_as_live(sock_dir: Path, socket_type: str) -> None:
    path = sock_dir / "s"
    with plain_server(path, socket_type, backlog=None) as plain:
        with pytest.raises(AddressInUseError):
            SocketFile.claim(str(path), socket_type)  # type: ignore[arg-type]
        plain.listen()
        assert serves(path, socket_type, plain)
    path.unlink()


@pytest.mark.parametrize("socket_type", ["stream", "seqpacket"])
def test_a_full_backlog_counts_as_live(sock_dir: Path, socket_type: str) -> None:
    path = sock_dir / "s"
    waiting = []
    with plain_server(path, socket_type, backlog=0):
        for _ in range(100):
            client = socket.socket(socket.AF_UNIX, KINDS[socket_type])
            client.setblocking(False)
            waiting.append(client)
            if client.connect_ex(str(path)):
                break
        else:
            pytest.fail("the backlog never became full")
        with pytest.raises(AddressInUseError):
            SocketFile.claim(str(path), socket_type)  # type: ignore[arg-type]
        assert path.is_socket()
        for client in waiting:
            client.close()
    path.unlink()


def test_a_datagram_socket_that_receives_from_one_sender_only_counts_as_live(sock_dir: Path) -> None:
    path = sock_dir / "s"
    with plain_server(path, "datagram") as plain, plain_server(sock_dir / "other", "datagram"):
        plain.connect(str(sock_dir / "other"))
        with pytest.raises(AddressInUseError):
            SocketFile.claim(str(path), "datagram")
        assert path.is_socket()
    path.unlink()


def test_a_server_stays_safe_when_a_cleaner_removed_its_lock_file(sock_dir: Path) -> None:
    path = sock_dir / "s"
    with Server(path) as server:
        (sock_dir / "s.lock").unlink()
        with pytest.raises(AddressInUseError):
            SocketFile.claim(str(path), "stream")
        assert serves(path, "stream", server.sock)


def test_the_holder_is_named_by_the_kernel_where_the_lock_files_text_is_older(sock_dir: Path) -> None:
    def hold() -> Any:
        lock = open(sock_dir / "s.lock", "w+")  # noqa: SIM115 - the child keeps it
        lock.write("hostline lock: x\npid 1\ncommand somebody else\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        return lock

    with Child(hold) as child, pytest.raises(AddressInUseError) as caught:
        SocketFile.claim(str(sock_dir / "s"), "stream")
    assert caught.value.pid == child.pid
    assert "somebody else" not in str(caught.value)


def test_the_holders_command_is_escaped(sock_dir: Path) -> None:
    program = sock_dir / "\x1b[2J\x07\n"
    program.write_text(
        "import sys; from hostline.unix.socketfile import SocketFile\n"
        "file = SocketFile.claim(sys.argv[1], 'stream'); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, str(program), str(sock_dir / "s")]
    # close_fds: where another user runs the tests, the interpreter is reached through an inherited descriptor.
    options: dict[str, Any] = {"env": import_path(), "text": True, "close_fds": False}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(AddressInUseError) as caught:
            SocketFile.claim(str(sock_dir / "s"), "stream")
        assert (sock_dir / "s.lock").read_text().count("\n") == 3
        assert "\x1b" not in (sock_dir / "s.lock").read_text()
    assert caught.value.pid == holder.pid
    assert "\\x1b[2J\\x07\\x0a" in caught.value.command
    assert str(caught.value).isprintable()


# --- a dead socket is reclaimed ------------------------------------------------------------------------


@pytest.mark.parametrize("socket_type", TYPES)
@pytest.mark.parametrize("dead_type", TYPES)
def test_a_dead_socket_file_is_reclaimed_whatever_its_type(sock_dir: Path, socket_type: str, dead_type: str) -> None:
    path = sock_dir / "s"
    make_stale(path, dead_type)
    with Server(path, socket_type) as server:
        assert serves(path, socket_type, server.sock)


@pytest.mark.parametrize("socket_type", TYPES)
@pytest.mark.parametrize("make", [Server, plain_server])
def test_what_a_killed_server_leaves_is_reclaimed(sock_dir: Path, socket_type: str, make: Callable[..., Any]) -> None:
    path = sock_dir / "s"
    with Child(make, path, socket_type) as child:
        with pytest.raises(AddressInUseError):
            SocketFile.claim(str(path), "stream")
        child.kill()
    assert path.is_socket()
    with Server(path, socket_type) as server:
        assert serves(path, socket_type, server.sock)


def test_a_forked_child_that_outlives_its_killed_parent_does_not_hold_the_lock(sock_dir: Path) -> None:
    path = sock_dir / "s"
    readable, writable = os.pipe()
    reports, report = os.pipe()

    def hold() -> Any:
        server = Server(path)
        orphan = os.fork()
        if orphan == 0:
            server.sock.close()  # a child that keeps the socket keeps the path alive in truth: see test_listening
            os.write(report, b"x")
            os.close(writable)
            os.read(readable, 1)  # until the test closes the last copy of the other end
            os._exit(0)
        os.close(writable)
        os.read(reports, 1)
        return orphan, server

    with Child(hold) as child:
        orphan = child.answer
        child.kill()
    assert _state(orphan) != "Z"
    with Server(path) as server:
        assert serves(path, "stream", server.sock)
        assert _state(orphan) != "Z"
    for fd in (writable, readable, reports, report):
        os.close(fd)
    assert wait_until(lambda: _state(orphan) == "Z")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def test_a_forked_child_neither_unlinks_nor_frees_what_is_its_parents(sock_dir: Path) -> None:
    path = sock_dir / "s"
    with Server(path) as server:

        def release() -> None:
            assert server.file._lock is not None
            server.close()
            server.sock.close()

        Child(release).finish()
        assert path.is_socket()
        with pytest.raises(AddressInUseError):
            SocketFile.claim(str(path), "stream")
        assert serves(path, "stream", server.sock)


def test_a_socket_that_this_user_may_not_ask_is_not_taken_for_dead(sock_dir: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may connect to everything; the test below covers it with a second user")
    path = sock_dir / "s"
    with plain_server(path, "stream"):
        path.chmod(0)
        with pytest.raises(AccessDeniedError, match="cannot be told"):
            SocketFile.claim(str(path), "stream")
    assert path.is_socket()
    path.unlink()
    (sock_dir / "s.lock").unlink()


@pytest.mark.root
@pytest.mark.leaves_files
def test_another_users_private_socket_is_not_taken_for_dead(sock_dir: Path, run_as: Callable[..., Any]) -> None:
    sock_dir.chmod(0o1777)
    path = sock_dir / "s"
    with plain_server(path, "stream"):
        path.chmod(0o600)
        with pytest.raises(AccessDeniedError, match="cannot be told"):
            run_as(NOBODY, SocketFile.claim, str(path), "stream")
    assert path.is_socket()


# --- what is not ours is not touched -------------------------------------------------------------------

THINGS: dict[str, Callable[[Path], Any]] = {
    "file": lambda path: path.write_bytes(b"precious"),
    "empty file": lambda path: path.touch(),
    "directory": lambda path: (path.mkdir(), (path / "inside").touch()),
    "symlink to a file": lambda path: ((path.parent / "t").write_bytes(b"precious"), path.symlink_to("t")),
    "symlink to a directory": lambda path: path.symlink_to("/tmp"),
    "symlink to a dead socket": lambda path: (make_stale(path.parent / "t"), path.symlink_to("t")),
    "dangling symlink": lambda path: path.symlink_to("nowhere"),
    "symlink to itself": lambda path: path.symlink_to(path.name),
    "named pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("socket_type", TYPES)
@pytest.mark.parametrize("thing", THINGS)
def test_what_is_no_socket_is_refused_and_left_exactly_as_it_was(sock_dir: Path, thing: str, socket_type: str) -> None:
    path = sock_dir / "s"
    THINGS[thing](path)
    before = {name: look(sock_dir / name) for name in os.listdir(sock_dir)}
    with pytest.raises(NotASocketError) as caught:
        SocketFile.claim(str(path), socket_type)  # type: ignore[arg-type]
    assert {name: look(sock_dir / name) for name in os.listdir(sock_dir)} == before
    assert "it was left as it is" in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.root
def test_a_device_is_refused_and_left_as_it_was(sock_dir: Path) -> None:
    path = sock_dir / "s"
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    before = look(path)
    with pytest.raises(NotASocketError, match="a character device"):
        SocketFile.claim(str(path), "stream")
    assert look(path) == before


@pytest.mark.parametrize("socket_type", TYPES)
def test_a_file_that_took_our_place_is_left_at_release(sock_dir: Path, socket_type: str) -> None:
    path = sock_dir / "s"
    with Server(path, socket_type):
        path.unlink()
        path.write_bytes(b"theirs")
        before = look(path)
    assert look(path) == before


def test_a_socket_that_took_our_place_is_left_at_release_and_serves(sock_dir: Path) -> None:
    path = sock_dir / "s"
    with Server(path):
        path.unlink()
        theirs = plain_server(path, "stream")
    assert serves(path, "stream", theirs)
    theirs.close()
    path.unlink()


def test_our_inode_number_is_not_reused_while_we_hold_the_path_even_if_the_socket_was_closed(sock_dir: Path) -> None:
    path = sock_dir / "s"
    with Server(path) as server:
        ours = path.stat().st_ino
        server.sock.close()  # a server that the socket was lent to may do that
        path.unlink()
        for _ in range(100):
            make_stale(path)
            assert path.stat().st_ino != ours
            path.unlink()
        make_stale(path)
    assert path.is_socket()
    path.unlink()


def test_our_file_is_unlinked_even_if_the_socket_was_closed_by_whom_it_was_lent_to(sock_dir: Path) -> None:
    with Server(sock_dir / "s") as server:
        server.sock.close()
    assert os.listdir(sock_dir) == ["s.lock"]


def test_release_is_quiet_when_the_file_is_gone(sock_dir: Path) -> None:
    with Server(sock_dir / "s"):
        (sock_dir / "s").unlink()


@pytest.mark.root
@pytest.mark.leaves_files
def test_release_after_privileges_were_dropped_logs_and_leaves_a_file_that_is_reclaimed(sock_dir: Path) -> None:
    path = sock_dir / "s"
    sock_dir.chmod(0o755)

    def hold() -> Any:
        server = Server(path)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        return server

    with Child(hold) as child:
        assert child.finish() == 0
    assert path.is_socket()
    Server(path).close()


# --- the way to the directory changes meanwhile --------------------------------------------------------


class Crossroads:
    """Two directories, and a link that leads to the first until it is turned."""

    def __init__(self, sock_dir: Path) -> None:
        self.old, self.new, self.link = sock_dir / "old", sock_dir / "new", sock_dir / "link"
        self.old.mkdir()
        self.new.mkdir()
        self.link.symlink_to(self.old)
        self.path = self.link / "s"

    def turn(self) -> None:
        (self.link.parent / "fresh").symlink_to(self.new)
        (self.link.parent / "fresh").rename(self.link)

    def turn_before(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def turned(*args: Any) -> Any:
            self.turn()
            return original(*args)

        monkeypatch.setattr(owner, name, turned)


@pytest.mark.parametrize("socket_type", TYPES)
def test_a_live_socket_is_not_unlinked_when_its_path_leads_elsewhere_by_now(
    sock_dir: Path, monkeypatch: pytest.MonkeyPatch, socket_type: Any
) -> None:
    roads = Crossroads(sock_dir)
    with plain_server(roads.old / "s", socket_type) as plain:
        make_stale(roads.new / "s")
        roads.turn_before(monkeypatch, socketfile, "probe")
        with pytest.raises(AddressInUseError):
            SocketFile.claim(str(roads.path), socket_type)
        assert serves(roads.old / "s", socket_type, plain)
    (roads.old / "s").unlink()
    (roads.new / "s").unlink()


def test_a_dead_socket_is_left_when_its_path_leads_elsewhere_by_now(
    sock_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roads = Crossroads(sock_dir)
    make_stale(roads.old / "s")
    roads.turn_before(monkeypatch, socketfile, "probe")
    with pytest.raises(SocketError, match="the directory was replaced while binding"):
        SocketFile.claim(str(roads.path), "stream")
    (roads.old / "s").unlink()


@pytest.mark.parametrize("is_missing", [False, True])
def test_nothing_is_bound_when_the_path_leads_elsewhere_after_the_claim(sock_dir: Path, is_missing: bool) -> None:
    roads = Crossroads(sock_dir)
    file = SocketFile.claim(str(roads.path), "stream")
    roads.turn()
    if is_missing:
        roads.new.rmdir()
    with pytest.raises(SocketError, match="the directory was replaced while binding"):
        file.bind(socket.socket(socket.AF_UNIX))
    file.release()
    assert is_missing or os.listdir(roads.new) == []


@pytest.mark.parametrize("socket_type", TYPES)
def test_a_socket_that_went_astray_while_binding_leaves_no_file(
    sock_dir: Path, monkeypatch: pytest.MonkeyPatch, socket_type: Any
) -> None:
    roads = Crossroads(sock_dir)
    roads.turn_before(monkeypatch, socketfile, "bind_in_place")
    with pytest.raises(SocketError, match="the directory was replaced while binding"):
        Server(roads.path, socket_type)
    assert os.listdir(roads.new) == []
    assert os.listdir(roads.old) == ["s.lock"]


def test_a_socket_of_others_where_ours_went_astray_is_left(sock_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roads = Crossroads(sock_dir)
    others = []

    def bind(sock: socket.socket, _dirfd: int, path: str, _mode: int) -> None:
        roads.turn()
        sock.bind(path)
        (roads.new / "s").unlink()
        others.append(plain_server(roads.new / "s", "stream"))

    monkeypatch.setattr(socketfile, "bind_in_place", bind)
    with pytest.raises(SocketError, match="the directory was replaced while binding"):
        Server(roads.path)
    with others[0]:
        assert serves(roads.new / "s", "stream", others[0])
    (roads.new / "s").unlink()


# --- a fork in another thread meanwhile ----------------------------------------------------------------


@pytest.mark.parametrize("instant", ["_open", "_lock"])
def test_a_child_forked_by_another_thread_while_the_lock_is_taken_does_not_keep_it(
    sock_dir: Path, monkeypatch: pytest.MonkeyPatch, instant: str
) -> None:
    original, children = getattr(holders, instant), []
    forker = threading.Thread(target=lambda: children.append(Child(lambda: None)))

    def interrupted(*args: Any) -> Any:
        result = original(*args)
        forker.start()
        forker.join(0.5)  # between the opening and the entry the fork has to wait until we go on
        return result

    with monkeypatch.context() as patch:
        patch.setattr(holders, instant, interrupted)
        file = SocketFile.claim(str(sock_dir / "s"), "stream")
    forker.join()
    with children[0]:
        with pytest.raises(AddressInUseError):
            SocketFile.claim(str(sock_dir / "s"), "stream")
        file.release()
        SocketFile.claim(str(sock_dir / "s"), "stream").release()


def test_what_appears_between_claim_and_bind_is_refused_and_left(sock_dir: Path) -> None:
    path = sock_dir / "s"
    file = SocketFile.claim(str(path), "stream")
    with plain_server(path, "stream") as theirs:
        with pytest.raises(AddressInUseError):
            file.bind(socket.socket(socket.AF_UNIX))
        file.release()
        assert serves(path, "stream", theirs)
    path.unlink()


def test_a_name_swapped_after_bind_is_neither_opened_up_nor_given_away(sock_dir: Path) -> None:
    path, decoy = sock_dir / "s", sock_dir / "decoy"
    decoy.write_bytes(b"secret")
    decoy.chmod(0o600)
    file = SocketFile.claim(str(path), "stream")
    sock = socket.socket(socket.AF_UNIX)
    file.bind(sock, 0o666, group=os.getegid())
    sock.listen()
    path.rename(sock_dir / "moved")
    path.symlink_to("decoy")
    before = look(decoy)
    with pytest.raises(SocketError, match="somebody replaced the file"):
        file.widen()
    file.release()
    assert look(decoy) == before
    assert path.is_symlink()
    (sock_dir / "moved").unlink()


def test_nothing_is_left_when_a_file_cannot_be_given_away(sock_dir: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may give files away; test_listening covers it with a second user")
    with pytest.raises(AccessDeniedError, match="only root"):
        Server(sock_dir / "s", owner=0)
    assert os.listdir(sock_dir) == ["s.lock"]


def test_widen_needs_a_bound_socket(sock_dir: Path) -> None:
    file = SocketFile.claim(str(sock_dir / "s"), "stream")
    with pytest.raises(SocketError, match="nothing is bound"):
        file.widen()
    file.release()


# --- the lock file -------------------------------------------------------------------------------------


def test_a_symlink_in_the_locks_place_is_not_followed(sock_dir: Path) -> None:
    target = sock_dir / "target"
    target.write_bytes(b"precious")
    (sock_dir / "s.lock").symlink_to("target")
    before = look(target)
    with pytest.raises(NotASocketError, match="taken by a symbolic link"):
        SocketFile.claim(str(sock_dir / "s"), "stream")
    assert look(target) == before


def test_a_dangling_symlink_in_the_locks_place_makes_nothing(sock_dir: Path) -> None:
    (sock_dir / "s.lock").symlink_to("target")
    with pytest.raises(NotASocketError):
        SocketFile.claim(str(sock_dir / "s"), "stream")
    assert os.listdir(sock_dir) == ["s.lock"]


@pytest.mark.parametrize(
    ("make", "words"), [(os.mkdir, "a directory"), (os.mkfifo, "a named pipe")], ids=["directory", "pipe"]
)
def test_other_things_in_the_locks_place_are_named(sock_dir: Path, make: Callable[[Path], None], words: str) -> None:
    make(sock_dir / "s.lock")
    with pytest.raises(NotASocketError, match=words):
        SocketFile.claim(str(sock_dir / "s"), "stream")


def test_another_programs_lock_file_is_locked_and_its_content_kept(sock_dir: Path) -> None:
    lock = sock_dir / "s.lock"
    lock.write_text("1234\n/var/lib/somewhere\n")
    with Server(sock_dir / "s"), open(lock) as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert lock.read_text() == "1234\n/var/lib/somewhere\n"


def test_a_hard_link_in_the_locks_place_is_not_written_to(sock_dir: Path) -> None:
    precious = sock_dir / "precious"
    precious.touch()
    os.link(precious, sock_dir / "s.lock")
    with Server(sock_dir / "s"):
        pass
    assert precious.read_bytes() == b""


@pytest.mark.root
def test_a_lock_file_that_this_user_may_not_open_is_named_with_its_owner(
    sock_dir: Path, run_as: Callable[..., Any]
) -> None:
    sock_dir.chmod(0o1777)
    Server(sock_dir / "s").close()
    with pytest.raises(AccessDeniedError, match="belongs to uid 0 with mode 0600"):
        run_as(NOBODY, SocketFile.claim, str(sock_dir / "s"), "stream")


@pytest.mark.root
def test_a_lock_that_root_holds_is_named_to_another_user_who_can_open_it(
    sock_dir: Path, run_as: Callable[..., Any]
) -> None:
    sock_dir.chmod(0o1777)
    with Server(sock_dir / "s"):
        (sock_dir / "s.lock").chmod(0o666)
        with pytest.raises(AddressInUseError) as caught:
            run_as(NOBODY, SocketFile.claim, str(sock_dir / "s"), "stream")
        assert caught.value.pid == os.getpid()


@pytest.mark.root
def test_a_lock_file_whose_owner_could_take_it_away_is_refused(sock_dir: Path) -> None:
    sock_dir.chmod(0o1777)
    (sock_dir / "s.lock").touch()
    os.chown(sock_dir / "s.lock", NOBODY, NOBODY)
    with pytest.raises(AccessDeniedError, match="belongs to uid 65534, who could take it away"):
        SocketFile.claim(str(sock_dir / "s"), "stream")
    sock_dir.chmod(0o755)
    Server(sock_dir / "s").close()


# --- the directory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o777, 0o702, 0o733])
def test_a_directory_in_which_anybody_can_replace_files_is_refused(sock_dir: Path, mode: int) -> None:
    directory = sock_dir / "open"
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(UnsafeDirectoryError, match="chmod o-w"):
        SocketFile.claim(str(directory / "s"), "stream")
    assert os.listdir(directory) == []


@pytest.mark.parametrize("mode", [0o1777, 0o700, 0o755, 0o770, 0o775])
def test_a_sticky_a_private_and_a_groups_directory_will_do(sock_dir: Path, mode: int) -> None:
    directory = sock_dir / "good"
    directory.mkdir()
    directory.chmod(mode)
    Server(directory / "s").close()


def test_a_missing_directory_is_named_as_missing(sock_dir: Path) -> None:
    with pytest.raises(AddressNotFoundError, match="the directory does not exist; make it first"):
        SocketFile.claim(str(sock_dir / "no" / "s"), "stream")


def test_a_file_where_the_directory_should_be_is_not_found(sock_dir: Path) -> None:
    (sock_dir / "file").touch()
    with pytest.raises(AddressNotFoundError, match="not a directory"):
        SocketFile.claim(str(sock_dir / "file" / "s"), "stream")


@pytest.mark.root
def test_a_directory_that_this_user_may_not_write_to_is_denied(sock_dir: Path, run_as: Callable[..., Any]) -> None:
    sock_dir.chmod(0o755)
    with pytest.raises(AccessDeniedError):
        run_as(NOBODY, SocketFile.claim, str(sock_dir / "s"), "stream")
    assert os.listdir(sock_dir) == []


# --- the form for systems where fchmod before bind does nothing ----------------------------------------


@pytest.fixture
def by_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socketfile, "bind_in_place", bind_by_rename)


@pytest.mark.usefixtures("by_rename")
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
@pytest.mark.parametrize("socket_type", TYPES)
def test_binding_by_rename_gives_the_same_file_and_leaves_nothing(sock_dir: Path, socket_type: str, mode: int) -> None:
    path = sock_dir / "s"
    with Server(path, socket_type, mode=mode) as server:
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert sorted(os.listdir(sock_dir)) == ["s", "s.lock"]
        assert serves(path, socket_type, server.sock)
    assert os.listdir(sock_dir) == ["s.lock"]


@pytest.mark.usefixtures("by_rename")
def test_binding_by_rename_reclaims_refuses_and_cleans_up_like_the_other_form(sock_dir: Path) -> None:
    path = sock_dir / "s"
    make_stale(path)
    with Server(path), pytest.raises(AddressInUseError):
        Server(path)
    file = SocketFile.claim(str(path), "stream")
    path.write_bytes(b"theirs")
    with pytest.raises(AddressInUseError):
        file.bind(socket.socket(socket.AF_UNIX))
    file.release()
    assert sorted(os.listdir(sock_dir)) == ["s", "s.lock"]
    assert path.read_bytes() == b"theirs"


@pytest.mark.usefixtures("by_rename")
def test_binding_by_rename_works_where_only_the_private_name_is_too_long(sock_dir: Path) -> None:
    directory = sock_dir / ("d" * (100 - len(str(sock_dir))))
    directory.mkdir()
    path = directory / "s"
    assert len(str(path)) < 107 < len(str(directory / ".12345678" / "s"))
    with Server(path) as server:
        assert serves(path, "stream", server.sock)
