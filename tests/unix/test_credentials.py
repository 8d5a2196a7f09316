"""Peers are known by numbers from the kernel, and rules admit by uid and gid only."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.second_user import NOBODY, Fork

from hostline.unix.credentials import Peer, Peers, default_rule, read_peer, unpack_credentials


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        yield ours, theirs


# --- reading -----------------------------------------------------------------------------------------


def test_read_peer_gives_the_numbers_of_the_other_side(pair: tuple[socket.socket, socket.socket]) -> None:
    peer = read_peer(pair[0])
    assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.geteuid(), os.getegid())
    assert sorted(peer.groups) == sorted(os.getgroups())
    peer.close()


def test_peer_reads_well_and_compares_by_value(pair: tuple[socket.socket, socket.socket]) -> None:
    peer, same = read_peer(pair[0]), read_peer(pair[1])
    assert peer == same
    assert hash(peer) == hash(same)
    assert peer != Peer(peer.pid, peer.uid + 1, peer.gid, peer.groups)
    assert peer != "uid 0"
    assert repr(Peer(1, 2, 3, (4,))) == "Peer(pid=1, uid=2, gid=3, groups=(4,))"


@pytest.mark.root
@pytest.mark.parametrize("count", [0, 3, 64, 65, 256, 257, 400])
def test_all_groups_are_read_however_many(count: int, sock_dir: Path) -> None:
    os.chmod(sock_dir, 0o755)
    path = str(sock_dir / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.listen()
        groups = tuple(range(5000, 5000 + count))
        with Fork(NOBODY, connect_and_wait, path, groups=groups) as child:
            sock, _ = listener.accept()
            with sock:
                peer = read_peer(sock)
                assert (peer.uid, peer.gid, peer.pid) == (NOBODY, NOBODY, child.pid)
                assert sorted(peer.groups) == list(groups)


def connect_and_wait(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.recv(1)


@pytest.mark.root
def test_credentials_are_those_of_the_moment_of_connect(sock_dir: Path) -> None:
    path = str(sock_dir / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with Fork(0, connect_then_become_nobody, path):
            sock, _ = listener.accept()
            with sock:
                assert sock.recv(1) == b"x"
                assert read_peer(sock).uid == 0


def connect_then_become_nobody(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        sock.send(b"x")
        sock.recv(1)


# --- pidfd -------------------------------------------------------------------------------------------


def pidfd_or_skip(peer: Peer) -> int:
    fd = peer.pidfd
    if fd is None:
        pytest.skip("this kernel has no SO_PEERPIDFD")
    return fd


def test_pidfd_is_taken_once_is_close_on_exec_and_closes_with_the_peer(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    peer = read_peer(pair[0])
    fd = pidfd_or_skip(peer)
    assert peer.pidfd == fd
    assert not os.get_inheritable(fd)
    peer.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert peer.pidfd is None
    peer.close()


class Interrupted:
    """A socket whose answer about the pidfd is a fresh descriptor, and comes after `meanwhile`."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.meanwhile = meanwhile
        self.answers: list[int] = []

    def getsockopt(self, *_: object) -> int:
        self.answers.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        self.meanwhile()
        return self.answers[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="pidfds are Linux's")
def test_a_close_by_another_thread_while_the_pidfd_is_taken_leaves_none_open() -> None:
    closer = threading.Thread(target=lambda: peer.close())

    def meanwhile() -> None:
        closer.start()
        closer.join(0.3)  # it has to wait until the pidfd is in its place

    sock: Any = Interrupted(meanwhile)
    peer = Peer(1, 2, 3, (), sock)
    _ = peer.pidfd
    closer.join()
    assert peer.pidfd is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(sock.answers[0])


@pytest.mark.skipif(sys.platform != "linux", reason="pidfds are Linux's")
def test_two_threads_that_ask_for_the_pidfd_first_get_the_same_one() -> None:
    got: list[int | None] = []
    other = threading.Thread(target=lambda: got.append(peer.pidfd))

    def meanwhile() -> None:
        if other.ident is None:
            other.start()
            other.join(0.3)

    sock: Any = Interrupted(meanwhile)
    peer = Peer(1, 2, 3, (), sock)
    got.append(peer.pidfd)
    other.join()
    peer.close()
    assert got[0] == got[1]
    assert len(sock.answers) == 1


def test_pidfd_tells_when_the_process_ends(sock_dir: Path) -> None:
    path = str(sock_dir / "s")
    program = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with subprocess.Popen([sys.executable, "-c", program, path]) as process:
            sock, _ = listener.accept()
            with sock:
                peer = read_peer(sock)
                fd = pidfd_or_skip(peer)
                poller = select.poll()
                poller.register(fd, select.POLLIN)
                assert poller.poll(0) == []
                process.kill()
                assert poller.poll(5000) != []
                peer.close()


def test_pidfd_after_the_connection_was_closed_is_none(pair: tuple[socket.socket, socket.socket]) -> None:
    peer = read_peer(pair[0])
    pair[0].close()
    assert peer.pidfd is None
    assert peer.uid == os.geteuid()


def test_without_a_free_descriptor_there_is_no_pidfd_and_no_error(as_subprocess: Callable[[str], str]) -> None:
    answer = as_subprocess(
        """
        import os, resource, socket
        from hostline.unix.credentials import read_peer
        one, other = socket.socketpair(socket.AF_UNIX)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        try:
            while True:
                os.dup(1)
        except OSError:
            pass
        peer = read_peer(one)
        print(peer.uid == os.geteuid(), peer.pidfd)
        """
    )
    assert answer == "True None"


@pytest.fixture
def as_subprocess() -> Callable[[str], str]:
    def run(program: str) -> str:
        lines = program.splitlines()
        indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        text = "\n".join(line[indent:] for line in lines)
        result = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=15)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    return run


# --- rules -------------------------------------------------------------------------------------------


def test_a_rule_admits_by_uid_gid_or_supplementary_group() -> None:
    rule = Peers(uids=[1000], gids=[50])
    assert rule.refusal(Peer(1, 1000, 1)) is None
    assert rule.refusal(Peer(1, 7, 50)) is None
    assert rule.refusal(Peer(1, 7, 8, (49, 50))) is None
    assert rule.refusal(Peer(1, 7, 8, (49,))) is not None


def test_a_refusal_names_who_and_whom_the_rule_admits() -> None:
    reason = Peers(uids=[0, 123456]).refusal(Peer(9, 65534, 65534))
    assert reason == "uid 65534 (nobody) is not admitted: the rule admits uid 0 (root), 123456"
    reason = Peers(gids=[0]).refusal(Peer(9, 123456, 1))
    assert reason == "uid 123456 is not admitted: the rule admits members of gid 0 (root)"
    both = Peers(uids=[0], gids=[123456]).refusal(Peer(9, 65534, 65534))
    assert both == "uid 65534 (nobody) is not admitted: the rule admits uid 0 (root) and members of gid 123456"


def test_an_empty_rule_admits_nobody() -> None:
    assert Peers().refusal(Peer(1, 0, 0)) == "uid 0 (root) is not admitted: the rule admits nobody"


def test_names_are_resolved_at_construction() -> None:
    rule = Peers(users=["root"], groups=["root"])
    assert (rule.uids, rule.gids) == ({0}, {0})
    assert (rule.users, rule.groups) == (("root",), ("root",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"users": ["no-such-user-here"]}, "user 'no-such-user-here' does not exist"),
        ({"groups": ["no-such-group-here"]}, "group 'no-such-group-here' does not exist"),
        ({"uids": [-1]}, "-1 is not a user or group id"),
        ({"gids": [0xFFFFFFFF]}, "is not a user or group id"),
        ({"uids": [True]}, "True is not a user or group id"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Peers(**arguments)


@pytest.mark.parametrize("field", ["users", "groups"])
def test_a_single_string_is_not_taken_for_a_list_of_names(field: str) -> None:
    with pytest.raises(TypeError, match="list"):
        Peers(**{field: "root"})  # type: ignore[arg-type]


def test_same_user_admits_this_user_and_root() -> None:
    rule = Peers.same_user()
    assert rule.uids == {0, os.geteuid()}
    assert rule.refusal(Peer(1, 0, 0)) is None
    assert rule.refusal(Peer(1, os.geteuid(), 0)) is None
    assert rule.refusal(Peer(1, 54321, 0)) is not None


def test_anyone_admits_everybody() -> None:
    assert Peers.anyone().refusal(Peer(1, 54321, 54321)) is None
    assert Peers.anyone().describe() == "anyone"


def test_rules_are_values_that_can_be_joined() -> None:
    assert Peers(uids=[1]) == Peers(uids=(1, 1))
    assert hash(Peers(uids=[1])) == hash(Peers(uids={1}))
    joined = Peers(uids=[1], users=["root"]) | Peers(gids=[2])
    assert (joined.uids, joined.gids, joined.users) == ({0, 1}, {2}, ("root",))
    assert (Peers() | Peers.anyone()).is_anyone
    with pytest.raises(AttributeError):
        joined.uids = frozenset()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("mode", "admitted", "refused"),
    [
        (0o600, [(0, 0), (500, 0), (None, 0)], [(501, 60), (501, 0)]),
        (0o640, [(0, 0), (500, 0)], [(501, 60)]),  # connecting needs write permission
        (0o660, [(0, 0), (500, 0), (501, 60)], [(501, 61)]),
        (0o666, [(0, 0), (501, 61)], []),
        (0o622, [(501, 61)], []),
        (0o644, [(0, 0)], [(501, 60)]),
    ],
)
def test_the_default_rule_says_what_the_mode_says(
    mode: int, admitted: list[tuple[int | None, int]], refused: list[tuple[int, int]]
) -> None:
    rule = default_rule(mode, 500, 60)
    for uid, gid in admitted:
        assert rule.refusal(Peer(1, os.geteuid() if uid is None else uid, gid)) is None
    for uid, gid in refused:
        assert rule.refusal(Peer(1, uid, gid)) is not None


def test_credentials_of_one_message_are_unpacked() -> None:
    assert unpack_credentials(struct.pack("iII", 5, 6, 7)) == Peer(5, 6, 7)
    assert unpack_credentials(struct.pack("iII", 0, 6, 7)) == Peer(0, 6, 7)  # from outside this pid namespace
    assert unpack_credentials(struct.pack("iII", 0, 65534, 65534)) is None  # queued before anybody asked
