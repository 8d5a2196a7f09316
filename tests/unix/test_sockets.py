"""Connect and accept without waiting, each failure its own error; the blocking connect waits in the kernel."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faces import every_millisecond

from hostline.clock import NEVER, Deadline
from hostline.errors import (
    AddressError,
    AddressNotFoundError,
    ConnectRefusedError,
    ConnectTimeoutError,
    NotASocketError,
    PeerRefusedError,
    SocketError,
)
from hostline.unix import options, sockets
from hostline.unix.address import AbstractAddress, InheritedAddress, PathAddress, SocketType
from hostline.unix.credentials import Peers
from hostline.unix.sockets import (
    accept_one,
    accept_peer,
    check_server,
    connect_blocking,
    is_connected,
    open_socket,
    socketpair,
    try_connect,
)

TYPES: tuple[SocketType, ...] = ("stream", "seqpacket", "datagram")
CONNECTED: tuple[SocketType, ...] = ("stream", "seqpacket")


@pytest.fixture(params=CONNECTED)
def kind(request: pytest.FixtureRequest) -> SocketType:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def address(sock_dir: Path) -> PathAddress:
    return PathAddress(str(sock_dir / "s"))


@pytest.fixture
def listener(kind: SocketType, address: PathAddress) -> Iterator[socket.socket]:
    with listening(kind, address) as sock:
        yield sock


def listening(kind: SocketType, address: PathAddress, backlog: int = 16) -> socket.socket:
    sock = open_socket(kind)
    sock.bind(address.path)
    if kind != "datagram":
        sock.listen(backlog)
    return sock


def fill(kind: SocketType, address: PathAddress) -> list[socket.socket]:
    """Fill the backlog; return those that are in it."""
    inside = []
    while True:
        sock = open_socket(kind)
        if not try_connect(sock, address, kind):
            sock.close()
            return inside
        inside.append(sock)


# --- opening -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("socket_type", TYPES)
def test_new_sockets_do_not_block_and_are_close_on_exec(socket_type: SocketType) -> None:
    one, other = socketpair(socket_type)
    with open_socket(socket_type) as sock, one, other:
        for each in (sock, one, other):
            assert not each.getblocking()
            assert not each.get_inheritable()
            assert each.type == options.KERNEL_TYPES[socket_type]


def test_an_unknown_type_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'packet' is none of stream, seqpacket, datagram"):
        open_socket("packet")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'packet'"):
        socketpair("packet")  # type: ignore[arg-type]


@pytest.mark.parametrize("max_fds", [-1, 254])
def test_an_impossible_bound_on_descriptors_is_refused(max_fds: int) -> None:
    with pytest.raises(ValueError, match="max_fds"):
        open_socket("stream", max_fds=max_fds)
    with pytest.raises(ValueError, match="max_fds"):
        socketpair("stream", max_fds=max_fds)


# --- connecting --------------------------------------------------------------------------------------


def test_connect_is_verified(kind: SocketType, address: PathAddress, listener: socket.socket) -> None:
    with open_socket(kind) as sock:
        assert not is_connected(sock)
        assert try_connect(sock, address, kind)
        assert is_connected(sock)
        assert try_connect(sock, address, kind)  # it is connected, whoever asks


def test_a_full_backlog_is_told_from_failure(kind: SocketType, address: PathAddress) -> None:
    with listening(kind, address, 3), open_socket(kind) as sock:
        inside = fill(kind, address)
        assert not try_connect(sock, address, kind)
        assert not is_connected(sock)
        for other in inside:
            other.close()


@pytest.mark.parametrize("socket_type", TYPES)
def test_nothing_there(socket_type: SocketType, address: PathAddress) -> None:
    with open_socket(socket_type) as sock, pytest.raises(AddressNotFoundError) as caught:
        try_connect(sock, address, socket_type)
    error = caught.value
    assert (error.operation, error.socket_type, error.address) == ("connect", socket_type, address.path)
    assert error.errno == errno.ENOENT


@pytest.mark.parametrize("socket_type", TYPES)
@pytest.mark.parametrize("how", ["try", "blocking"])
def test_a_socket_file_with_nobody_behind_it(socket_type: SocketType, how: str, address: PathAddress) -> None:
    listening(socket_type, address).close()
    with pytest.raises(ConnectRefusedError) as caught:
        connect(how, address, socket_type)
    assert (caught.value.operation, caught.value.errno) == ("connect", errno.ECONNREFUSED)


@pytest.mark.parametrize("socket_type", TYPES)
@pytest.mark.parametrize("how", ["try", "blocking"])
def test_something_else_than_a_socket(socket_type: SocketType, how: str, address: PathAddress) -> None:
    Path(address.path).write_text("data")
    with pytest.raises(NotASocketError, match="an ordinary file"):
        connect(how, address, socket_type)
    assert Path(address.path).read_text() == "data"


@pytest.mark.parametrize("how", ["try", "blocking"])
@pytest.mark.parametrize("tried", TYPES)
@pytest.mark.parametrize("actual", TYPES)
def test_the_wrong_type_is_an_error_that_names_the_right_one(
    how: str, tried: SocketType, actual: SocketType, address: PathAddress
) -> None:
    with listening(actual, address):
        if tried == actual:
            connect(how, address, tried)
            return
        with pytest.raises(SocketError, match=f"type='{actual}'") as caught:
            connect(how, address, tried)
        assert caught.value.errno == errno.EPROTOTYPE


def connect(how: str, address: PathAddress, socket_type: SocketType) -> None:
    if how == "blocking":
        connect_blocking(address, socket_type, Deadline.after(1.0)).close()
        return
    with open_socket(socket_type) as sock:
        assert try_connect(sock, address, socket_type)


def test_a_symbolic_link_is_followed_as_the_kernel_does(
    kind: SocketType, address: PathAddress, listener: socket.socket, sock_dir: Path
) -> None:
    os.symlink(address.path, sock_dir / "link")
    connect("try", PathAddress(str(sock_dir / "link")), kind)


def test_a_path_that_does_not_fit_is_reached_all_the_same(kind: SocketType, sock_dir: Path) -> None:
    deep = sock_dir
    while len(str(deep)) < 150:
        deep = deep / "directory"
    deep.mkdir(parents=True)
    address = PathAddress(str(deep / "s"))
    with open_socket(kind) as listener:
        with sockets.kernel_address(address) as raw:
            listener.bind(raw)
        listener.listen()
        connect("try", address, kind)
        connect("blocking", address, kind)


def test_abstract_names_are_reached(kind: SocketType) -> None:
    address = AbstractAddress(f"hostline-test-{os.getpid()}-{kind}".encode())
    with open_socket(kind) as listener:
        listener.bind(b"\0" + address.name)
        listener.listen()
        connect_blocking(address, kind, Deadline.after(1.0)).close()


def test_an_inherited_listening_socket_is_no_place_to_connect_to() -> None:
    with open_socket("stream") as sock, pytest.raises(AddressError, match="listening socket"):
        try_connect(sock, InheritedAddress(fd=3))


@pytest.mark.alone
def test_the_blocking_connect_waits_out_a_full_backlog(kind: SocketType, address: PathAddress) -> None:
    with listening(kind, address, 1) as listener:
        inside = fill(kind, address)

        def make_room() -> None:
            for _ in range(2):
                accepted = accept_one(listener)
                assert accepted is not None
                accepted.close()

        timer = threading.Timer(0.2, make_room)
        timer.start()
        started, cpu = time.monotonic(), time.process_time()
        with connect_blocking(address, kind, Deadline.after(10.0)) as sock:
            assert is_connected(sock)
            assert sock.gettimeout() is None
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16) == bytes(16)
        assert 0.1 < time.monotonic() - started < 5.0
        assert time.process_time() - cpu < 0.1
        timer.join()
        for other in inside:
            other.close()


@pytest.mark.alone
@pytest.mark.parametrize("timeout", [0.0, 0.0001, 0.3])
def test_the_blocking_connect_gives_up_at_the_deadline_and_says_why(
    kind: SocketType, address: PathAddress, timeout: float
) -> None:
    with listening(kind, address, 1):
        inside = fill(kind, address)
        started, cpu = time.monotonic(), time.process_time()
        with pytest.raises(ConnectTimeoutError, match=r"backlog stayed full for \d+\.\d+ seconds") as caught:
            connect_blocking(address, kind, Deadline.after(timeout))
        assert timeout <= time.monotonic() - started < timeout + 1.0
        assert time.process_time() - cpu < 0.1
        assert (caught.value.operation, caught.value.address) == ("connect", address.path)
        for other in inside:
            other.close()


def test_signals_do_not_make_the_blocking_connect_lie(kind: SocketType, address: PathAddress) -> None:
    with listening(kind, address, 1) as listener:
        inside = fill(kind, address)
        accepted: list[socket.socket | None] = []
        with every_millisecond() as signals:
            started = time.monotonic()
            with pytest.raises(ConnectTimeoutError):
                connect_blocking(address, kind, Deadline.after(0.3))
            assert 0.3 <= time.monotonic() - started < 2.0
            assert len(signals) > 20
            timer = threading.Timer(0.1, lambda: accepted.extend(accept_one(listener) for _ in range(2)))
            timer.start()
            with connect_blocking(address, kind, Deadline.after(10.0)) as sock:
                assert is_connected(sock)
            timer.join()
        inside += filter(None, accepted)
        for other in inside:
            other.close()


def test_an_exception_from_a_signal_handler_ends_the_wait_and_leaks_nothing(
    kind: SocketType, address: PathAddress
) -> None:
    class Enough(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Enough

    with listening(kind, address, 1):
        inside = fill(kind, address)
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Enough):
                connect_blocking(address, kind, NEVER)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        for other in inside:
            other.close()


# --- the server's identity ---------------------------------------------------------------------------


def test_a_trusted_server_is_returned_and_another_is_refused_in_words(
    kind: SocketType, address: PathAddress, listener: socket.socket
) -> None:
    with open_socket(kind) as sock:
        try_connect(sock, address, kind)
        peer = check_server(sock, Peers.same_user(), address, kind)
        assert (peer.uid, peer.pid) == (os.geteuid(), os.getpid())
        peer.close()
        with pytest.raises(PeerRefusedError) as caught:
            check_server(sock, Peers(uids=[54321]), address, kind)
    text = str(caught.value)
    assert text.startswith(f"the server at {address.path} runs as uid {os.geteuid()} ")
    assert "the rule admits uid 54321" in text
    assert text.endswith(f"to trust it pass server=hostline.Peers(uids=[{os.geteuid()}])")


# --- accepting ---------------------------------------------------------------------------------------


def test_accept_gives_a_close_on_exec_socket_that_does_not_block_or_nothing(
    kind: SocketType, address: PathAddress, listener: socket.socket
) -> None:
    assert accept_one(listener) is None
    with open_socket(kind) as client:
        try_connect(client, address, kind)
        accepted = accept_one(listener)
        assert accepted is not None
        with accepted:
            assert not accepted.getblocking()
            assert not accepted.get_inheritable()


def test_accept_says_who_came_and_whether_they_are_admitted(
    kind: SocketType, address: PathAddress, listener: socket.socket
) -> None:
    with open_socket(kind) as one, open_socket(kind) as other:
        assert accept_peer(listener, Peers.same_user(), kind) is None
        try_connect(one, address, kind)
        try_connect(other, address, kind)
        admitted = accept_peer(listener, Peers.same_user(), kind)
        refused = accept_peer(listener, Peers(uids=[54321]), kind)
        assert admitted is not None
        assert refused is not None
        with admitted.sock, refused.sock:
            assert admitted.peer.pid == refused.peer.pid == os.getpid()
            assert admitted.refusal is None
            assert refused.refusal is not None
            assert "54321" in refused.refusal


def test_what_the_kernel_says_about_the_listening_socket_comes_through() -> None:
    with open_socket("stream") as sock, pytest.raises(OSError, match="Invalid argument") as caught:
        accept_one(sock)
    assert caught.value.errno == errno.EINVAL
