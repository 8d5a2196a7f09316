"""A listening socket from an address: modes and owners at every instant, options, rules, and what is refused."""

from __future__ import annotations

import errno
import fcntl
import grp
import mmap
import os
import pwd
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.leaks import wait_until
from tests.second_user import Fork
from tests.unix.processes import TYPES, Child

from hostline.errors import AccessDeniedError, AddressError, AddressInUseError, NotASocketError
from hostline.unix.address import AbstractAddress, PathAddress, parse_address
from hostline.unix.credentials import Peers
from hostline.unix.listening import Bound, listening_socket

KINDS = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET, "datagram": socket.SOCK_DGRAM}
NOBODY = 65534
SO_PASSRIGHTS = 83


def bound_at(path: Path | str, socket_type: Any = "stream", **options: Any) -> Bound:
    return listening_socket(PathAddress(str(path)), socket_type, **options)


@contextmanager
def closing(bound: Bound) -> Iterator[Bound]:
    try:
        yield bound
    finally:
        bound.close()


def facts(path: Path) -> tuple[int, int, int]:
    status = path.lstat()
    assert stat.S_ISSOCK(status.st_mode)
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


# --- mode, owner and group -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, 0o600, 0o660, 0o666, 0o640, 0o777, 0o400, 0])
@pytest.mark.parametrize("umask", [0o022, 0o000, 0o077, 0o777])
@pytest.mark.parametrize("socket_type", TYPES)
def test_the_mode_is_the_one_asked_for_under_every_umask(
    sock_dir: Path, socket_type: str, umask: int, mode: int | None
) -> None:
    path = sock_dir / "s"
    with Child(lambda: bound_at(path, socket_type, mode=mode), umask=umask) as child:
        assert facts(path) == (0o600 if mode is None else mode, os.geteuid(), os.getegid())
        child.finish()
    assert os.listdir(sock_dir) == ["s.lock"]


@pytest.mark.parametrize("socket_type", TYPES)
def test_the_umask_of_the_process_is_left_alone(sock_dir: Path, socket_type: str) -> None:
    def umask() -> str:
        return next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Umask"))

    before = umask()
    with closing(bound_at(sock_dir / "s", socket_type, mode=0o666)):
        assert umask() == before


@pytest.mark.root
@pytest.mark.parametrize("by_name", [False, True], ids=["id", "name"])
@pytest.mark.parametrize("socket_type", TYPES)
def test_the_group_is_set_and_its_members_may_connect_and_others_may_not(
    sock_dir: Path, socket_type: str, by_name: bool, run_as: Callable[..., Any]
) -> None:
    sock_dir.chmod(0o755)
    path = sock_dir / "s"
    group = grp.getgrgid(NOBODY).gr_name if by_name else NOBODY

    def connect() -> int:
        with socket.socket(socket.AF_UNIX, KINDS[socket_type]) as client:
            return client.connect_ex(str(path))

    with closing(bound_at(path, socket_type, mode=0o660, group=group)) as bound:
        assert facts(path) == (0o660, 0, NOBODY)
        assert bound.rule == Peers(uids=(0,), gids=(NOBODY,))
        assert run_as(4321, connect, gid=NOBODY) == 0
        assert run_as(4321, connect, gid=4321, groups=(NOBODY,)) == 0
        assert run_as(4321, connect, gid=4321) == errno.EACCES


@pytest.mark.root
@pytest.mark.parametrize("socket_type", TYPES)
def test_the_file_is_given_to_another_user_and_still_unlinked_by_us(sock_dir: Path, socket_type: str) -> None:
    path = sock_dir / "s"
    with closing(bound_at(path, socket_type, owner=pwd.getpwuid(NOBODY).pw_name, group=NOBODY)) as bound:
        assert facts(path) == (0o600, NOBODY, NOBODY)
        assert bound.rule == Peers(uids=(0, NOBODY))
    assert os.listdir(sock_dir) == ["s.lock"]


@pytest.mark.root
def test_a_user_who_may_not_give_files_away_is_told_so_and_nothing_is_left(
    sock_dir: Path, run_as: Callable[..., Any]
) -> None:
    os.chown(sock_dir, NOBODY, NOBODY)
    for options in ({"owner": 0}, {"group": 0}):
        with pytest.raises(AccessDeniedError, match="only root may give a file"):
            run_as(NOBODY, lambda options=options: bound_at(sock_dir / "s", **options))
        assert os.listdir(sock_dir) == ["s.lock"]


@pytest.mark.root
def test_a_directory_that_hands_down_its_group_is_told_by_the_rule(sock_dir: Path) -> None:
    os.chown(sock_dir, 0, NOBODY)
    sock_dir.chmod(0o2755)
    with closing(bound_at(sock_dir / "s", mode=0o660)) as bound:
        assert facts(sock_dir / "s") == (0o660, 0, NOBODY)
        assert bound.rule == Peers(uids=(0,), gids=(NOBODY,))


# --- at no instant more than was asked for ---------------------------------------------------------------


SEEN, ENTERED = 1, 2  # what the observer reports while it runs


def observe(flags: mmap.mmap, path: str, socket_type: str) -> tuple[set[str], set[tuple[int, int, int]]]:
    """Try to get in, and look, as fast as possible; return every answer and every (mode, uid, gid) seen."""
    answers: set[str] = set()
    seen: set[tuple[int, int, int]] = set()
    while not flags[0]:
        with socket.socket(socket.AF_UNIX, KINDS[socket_type]) as client:
            try:
                if socket_type == "datagram":
                    client.sendto(b"x", path)
                else:
                    client.connect(path)
                answers.add("in")
            except OSError as error:
                answers.add(errno.errorcode[error.errno or 0])
        try:
            status = os.lstat(path)
            seen.add((stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid))
        except FileNotFoundError:
            pass
        flags[SEEN] = bool(seen) and "EACCES" in answers
        flags[ENTERED] = bool(answers - {"ENOENT", "EACCES"})
    return answers, seen


def observed(
    sock_dir: Path, socket_type: str, start: Callable[[], Any], gid: int, until: int = SEEN
) -> tuple[tuple[set[str], set[tuple[int, int, int]]], None]:
    """Start and close at least 400 times, and until the observer, a second user, reports what is waited for.

    Returns:
        An answer for `Child`, which keeps nothing: what the observer was answered and what it saw.
    """
    sock_dir.chmod(0o755)
    flags = mmap.mmap(-1, 3)
    deadline = time.monotonic() + 10
    with Fork(NOBODY, observe, flags, str(sock_dir / "s"), socket_type, gid=gid) as observer:
        starts = 0
        while starts < 400 or not (flags[until] or time.monotonic() > deadline):
            start().close()
            starts += 1
        flags[0] = 1
        answer = observer.result()
    flags.close()
    return answer, None


@pytest.mark.root
@pytest.mark.parametrize("socket_type", TYPES)
def test_no_other_user_gets_past_the_mode_at_any_instant(sock_dir: Path, socket_type: str) -> None:
    def start() -> Bound:
        return bound_at(sock_dir / "s", socket_type)

    with Child(lambda: observed(sock_dir, socket_type, start, NOBODY), umask=0) as child:
        answers, seen = child.answer
    assert answers == {"ENOENT", "EACCES"}  # both: the observer saw the file, and never got further
    assert seen == {(0o600, 0, 0)}


@pytest.mark.root
@pytest.mark.parametrize("socket_type", TYPES)
def test_the_group_that_the_file_is_born_with_never_gets_in(sock_dir: Path, socket_type: str) -> None:
    def start() -> Bound:
        return bound_at(sock_dir / "s", socket_type, mode=0o660, group=4321)

    with Child(lambda: observed(sock_dir, socket_type, start, 0), umask=0) as child:
        answers, seen = child.answer
    assert answers == {"ENOENT", "EACCES"}
    assert seen <= {(0o600, 0, 0), (0o600, 0, 4321), (0o660, 0, 4321)}
    assert seen


@pytest.mark.root
@pytest.mark.parametrize("socket_type", TYPES)
def test_the_observer_does_catch_a_server_that_narrows_its_mode_after_bind(sock_dir: Path, socket_type: str) -> None:
    path = str(sock_dir / "s")

    class Careless:
        def __init__(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX, KINDS[socket_type])
            self.sock.bind(path)
            os.chmod(path, 0o600)
            if socket_type != "datagram":
                self.sock.listen()

        def close(self) -> None:
            os.unlink(path)
            self.sock.close()

    with Child(lambda: observed(sock_dir, socket_type, Careless, NOBODY, ENTERED), umask=0) as child:
        answers, _ = child.answer
    assert answers - {"ENOENT", "EACCES"}


# --- options of the socket -------------------------------------------------------------------------------


@pytest.mark.parametrize("socket_type", TYPES)
def test_the_socket_is_non_blocking_close_on_exec_and_takes_no_descriptors(sock_dir: Path, socket_type: str) -> None:
    with closing(bound_at(sock_dir / "s", socket_type)) as bound:
        assert bound.sock.type == KINDS[socket_type]
        assert not bound.sock.getblocking()
        assert not bound.sock.get_inheritable()
        for fd in map(int, os.listdir("/proc/self/fd")):
            try:
                flags = fcntl.fcntl(fd, fcntl.F_GETFD)
            except OSError:
                continue
            target = os.readlink(f"/proc/self/fd/{fd}")
            assert flags & fcntl.FD_CLOEXEC or str(sock_dir) not in target
        try:
            assert bound.sock.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS) == 0
        except OSError:
            pytest.skip("this kernel has no SO_PASSRIGHTS")


def test_descriptors_are_let_in_where_asked_for(sock_dir: Path) -> None:
    with closing(bound_at(sock_dir / "s", max_fds=1)) as bound:
        try:
            assert bound.sock.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS) == 1
        except OSError:
            pytest.skip("this kernel has no SO_PASSRIGHTS")


def test_credentials_are_asked_for_before_the_first_datagram_can_arrive(sock_dir: Path) -> None:
    with closing(bound_at(sock_dir / "s", "datagram", credentials=True)) as bound:
        assert bound.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED) == 1


@pytest.mark.parametrize("socket_type", ["stream", "seqpacket"])
def test_the_backlog_is_the_one_asked_for(sock_dir: Path, socket_type: str) -> None:
    path = sock_dir / "s"
    clients = []
    with closing(bound_at(path, socket_type, backlog=3)):
        for _ in range(10):
            client = socket.socket(socket.AF_UNIX, KINDS[socket_type])
            client.setblocking(False)
            clients.append(client)
            if client.connect_ex(str(path)) == errno.EAGAIN:
                break
    assert len(clients) - 1 == 4  # Linux queues one more than the number
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"mode": 0o1600}, "mode 0o1600 must be permission bits from 0 to 0o777, such as 0o660"),
        ({"mode": -1}, "mode -0o1 must"),
        ({"mode": True}, "mode True must"),
        ({"mode": "0660"}, "mode '0660' must"),
        ({"owner": "no-such-user"}, "user 'no-such-user' does not exist"),
        ({"group": "no-such-group"}, "group 'no-such-group' does not exist"),
        ({"owner": -1}, "owner -1"),
        ({"group": 2**32}, "group 4294967296"),
        ({"backlog": -1}, "backlog -1 must be zero or more"),
        ({"socket_type": "tcp"}, "'tcp' is none of stream"),
        ({"socket_type": "datagram", "backlog": 5}, "a datagram socket has none"),
    ],
)
def test_a_wrong_option_is_named_with_its_bounds_and_nothing_is_made(
    sock_dir: Path, options: dict[str, Any], part: str
) -> None:
    with pytest.raises(ValueError) as caught:
        bound_at(sock_dir / "s", **options)
    assert part in str(caught.value)
    assert os.listdir(sock_dir) == []


# --- whom the default rule admits ------------------------------------------------------------------------


def test_the_rule_says_what_the_mode_says(sock_dir: Path) -> None:
    own, group = {os.geteuid(), 0}, os.getegid()
    for mode, rule in [
        (None, Peers(uids=own)),
        (0o644, Peers(uids=own)),
        (0o660, Peers(uids=own, gids=(group,))),
        (0o666, Peers.anyone()),
    ]:
        with closing(bound_at(sock_dir / "s", mode=mode)) as bound:
            assert bound.rule == rule


# --- bare names ------------------------------------------------------------------------------------------


def test_a_bare_name_makes_the_private_directory_and_serves_there(
    sock_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTLINE_RUNTIME_DIR", str(sock_dir / "run"))
    with closing(listening_socket(parse_address("payments"))):
        assert facts(sock_dir / "run" / "payments.sock")[0] == 0o600
        assert (sock_dir / "run").stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("mode", [0o660, 0o606, 0o601])
def test_a_bare_name_cannot_be_opened_to_others_and_the_error_says_to_use_a_path(
    sock_dir: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    monkeypatch.setenv("HOSTLINE_RUNTIME_DIR", str(sock_dir / "run"))
    with pytest.raises(AddressError, match="write a path in a directory that they can enter"):
        listening_socket(parse_address("payments"), mode=mode)
    assert os.listdir(sock_dir) == []


# --- abstract names --------------------------------------------------------------------------------------


def abstract() -> AbstractAddress:
    return AbstractAddress(f"hostline-test-{os.getpid()}-{os.urandom(4).hex()}".encode())


@pytest.mark.parametrize("socket_type", TYPES)
def test_an_abstract_name_is_for_this_user_and_root_and_goes_with_its_socket(socket_type: Any) -> None:
    address = abstract()
    with closing(listening_socket(address, socket_type)) as bound:
        assert bound.sock.getsockname() == b"\0" + address.name
        assert bound.rule == Peers.same_user()
        with pytest.raises(AddressInUseError) as caught:
            listening_socket(address, socket_type)
        assert caught.value.pid == (None if socket_type == "datagram" else os.getpid())
        assert str(address) in str(caught.value)
    listening_socket(address, socket_type).close()


@pytest.mark.parametrize("option", ["mode", "owner", "group"])
def test_an_abstract_name_has_no_mode_and_no_owner(option: str) -> None:
    with pytest.raises(AddressError, match=f"an abstract name has no {option}"):
        listening_socket(abstract(), **{option: 0o600})


# --- failures --------------------------------------------------------------------------------------------


def test_an_ordinary_file_is_left_and_nothing_of_ours_appears(sock_dir: Path) -> None:
    (sock_dir / "s").write_bytes(b"precious")
    with pytest.raises(NotASocketError):
        bound_at(sock_dir / "s")
    assert os.listdir(sock_dir) == ["s"]
    assert (sock_dir / "s").read_bytes() == b"precious"


def test_a_failure_after_bind_takes_the_file_away(sock_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        assert (sock_dir / "s").is_socket()
        raise KeyboardInterrupt

    monkeypatch.setattr("hostline.unix.socketfile.SocketFile.widen", fail)
    with pytest.raises(KeyboardInterrupt):
        bound_at(sock_dir / "s")
    assert os.listdir(sock_dir) == ["s.lock"]


def test_close_is_harmless_twice_and_after_a_lender_closed_the_socket(sock_dir: Path) -> None:
    bound = bound_at(sock_dir / "s")
    bound.sock.close()
    bound.close()
    bound.close()
    assert os.listdir(sock_dir) == ["s.lock"]
    assert "closed" in repr(bound)


# --- forks -----------------------------------------------------------------------------------------------


def test_a_child_that_keeps_the_socket_keeps_the_path_alive_and_abandon_ends_that(sock_dir: Path) -> None:
    path = sock_dir / "s"
    readable, writable = os.pipe()
    reports, report = os.pipe()

    def hold() -> Any:
        bound = bound_at(path)
        child = os.fork()
        if child == 0:
            os.write(report, b"x")  # past the fork's own hooks
            os.close(writable)
            os.read(readable, 1)
            bound.abandon()
            os.read(readable, 1)  # until the test closes the last copy of the other end
            os._exit(0)
        os.close(writable)
        os.read(reports, 1)
        return child, bound

    with Child(hold) as parent:
        child = parent.answer
        parent.kill()
    with pytest.raises(AddressInUseError, match=f"pid {parent.pid}, which listened on it, has ended, but another"):
        bound_at(path)
    os.write(writable, b"x")
    bounds: list[Bound] = []

    def is_free() -> bool:
        try:
            bounds.append(bound_at(path))
        except AddressInUseError:
            return False
        return True

    assert wait_until(is_free)
    os.kill(child, 0)
    bounds[0].close()
    for fd in (writable, readable, reports, report):
        os.close(fd)
