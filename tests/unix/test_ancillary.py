"""One message with its descriptors: counted, close-on-exec, never silently cut, and none left on any path."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import product

import pytest
from tests.leaks import open_descriptors

from hostline.errors import DescriptorError, MessageTooLongError, PeerGoneError, TruncatedError
from hostline.limits import HARD_MAX_FDS
from hostline.unix.address import AbstractAddress, PathAddress
from hostline.unix.credentials import Peer
from hostline.unix.options import (
    allow_credentials,
    checked_max_fds,
    disallow_fds,
    forget_options,
    mark_packets,
)
from hostline.unix.passing.ancillary import Received, recv_datagram, recv_message, send_message
from hostline.unix.passing.descriptors import Fd, close_all

TYPES = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET, "datagram": socket.SOCK_DGRAM}

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=TYPES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pair(kind: str) -> Iterator[Pair]:
    """Give a sender and a receiver, non-blocking; packets are marked, and the kernel is not told to refuse."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, TYPES[kind])
    with sender, receiver:
        sender.setblocking(False)
        receiver.setblocking(False)
        if kind == "seqpacket":
            assert mark_packets(receiver)
        yield sender, receiver


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDONLY)
    yield fd
    os.close(fd)


def send_raw(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send as a peer does that keeps no rules."""
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def same_file(one: int, other: int) -> bool:
    return os.path.samestat(os.fstat(one), os.fstat(other))


# --- bytes -------------------------------------------------------------------------------------------


def test_a_message_arrives_with_nothing_beside_it(pair: Pair, kind: str) -> None:
    assert send_message(pair[0], (b"abc",), socket_type=kind) == 3
    assert recv_message(pair[1], 100, socket_type=kind) == Received(b"abc", [])


def test_pieces_are_sent_back_to_back(pair: Pair, kind: str) -> None:
    send_message(pair[0], (b"a", bytearray(b"b"), memoryview(b"c")), socket_type=kind)
    assert recv_message(pair[1], 100, socket_type=kind).data == b"abc"


def test_more_pieces_than_one_call_takes_are_no_error(pair: Pair, kind: str) -> None:
    sent = send_message(pair[0], [b"x"] * 3000, socket_type=kind)
    assert sent == (1024 if kind == "stream" else 3000)
    assert recv_message(pair[1], 5000, socket_type=kind).data == b"x" * sent


def test_descriptors_behind_more_empty_pieces_than_one_call_takes_are_not_dropped(pair: Pair, kind: str) -> None:
    with open(os.devnull, "rb") as null:
        pieces = [b""] * 1024 + [b"x"]
        if kind == "stream":
            with pytest.raises(ValueError, match="at least one byte"):
                send_message(pair[0], pieces, [null], socket_type=kind)
        else:
            assert send_message(pair[0], pieces, [null], socket_type=kind) == 1
            received = recv_message(pair[1], 100, 1, socket_type=kind)
            assert len(received.fds) == 1
            received.fds[0].close()


def test_nothing_there_is_a_blocking_error_that_comes_through(pair: Pair, kind: str) -> None:
    with pytest.raises(BlockingIOError):
        recv_message(pair[1], 100, socket_type=kind)
    with pytest.raises(BlockingIOError):
        recv_message(pair[1], 100, 4, socket_type=kind)


def test_a_full_buffer_is_a_blocking_error_that_comes_through(pair: Pair, kind: str) -> None:
    def fill() -> None:
        for _ in range(100_000):
            send_message(pair[0], (b"x" * 1000,), socket_type=kind)

    with pytest.raises(BlockingIOError):
        fill()


@pytest.mark.parametrize("size", [0, -1])
def test_a_receive_of_no_bytes_is_refused(pair: Pair, kind: str, size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        recv_message(pair[1], size, socket_type=kind)


@pytest.mark.parametrize("max_fds", [0, 3])
def test_an_empty_packet_is_no_end_and_the_end_is_no_packet(max_fds: int) -> None:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with receiver:
        mark_packets(receiver)
        with sender:
            for data in (b"", b"x", b""):
                send_message(sender, (data,), socket_type="seqpacket")
        for data in (b"", b"x", b""):
            assert recv_message(receiver, 10, max_fds, socket_type="seqpacket") == Received(data, [])
        for _ in range(2):
            assert recv_message(receiver, 10, max_fds, socket_type="seqpacket").is_end


def test_without_marks_an_empty_packet_is_still_no_end_while_the_other_side_lives_or_more_follows() -> None:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with receiver:
        with sender:
            send_message(sender, (b"",), socket_type="seqpacket")
            assert not recv_message(receiver, 10, socket_type="seqpacket").is_end
            send_message(sender, (b"",), socket_type="seqpacket")
            send_message(sender, (b"x",), socket_type="seqpacket")
        assert not recv_message(receiver, 10, socket_type="seqpacket").is_end
        assert recv_message(receiver, 10, socket_type="seqpacket").data == b"x"
        assert recv_message(receiver, 10, socket_type="seqpacket").is_end


@pytest.mark.parametrize("max_fds", [0, 3])
def test_the_end_of_a_stream_is_an_end(max_fds: int) -> None:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with receiver:
        sender.close()
        assert recv_message(receiver, 10, max_fds) == Received(b"", [], True)


@pytest.mark.parametrize("kind", ["seqpacket", "datagram"])
def test_a_packet_that_does_not_fit_is_an_error_and_the_next_is_intact(kind: str, pair: Pair) -> None:
    send_message(pair[0], (b"x" * 11,), socket_type=kind)
    send_message(pair[0], (b"y" * 10,), socket_type=kind)
    with pytest.raises(TruncatedError, match="max_size of 10 bytes"):
        recv_message(pair[1], 10, socket_type=kind)
    assert recv_message(pair[1], 10, socket_type=kind).data == b"y" * 10


@pytest.mark.parametrize("kind", ["seqpacket", "datagram"])
def test_a_packet_that_the_kernel_does_not_carry_is_an_error(kind: str, pair: Pair) -> None:
    with pytest.raises(MessageTooLongError):
        send_message(pair[0], (bytes(1 << 22),), socket_type=kind)


def test_sending_to_a_peer_that_has_gone_is_an_error_and_no_signal() -> None:
    program = """
import signal, socket
from hostline.errors import PeerGoneError
from hostline.unix.passing.ancillary import send_message
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
for fds in ((), (0,)):
    one, other = socket.socketpair()
    other.close()
    try:
        send_message(one, (b"x",), fds)
    except PeerGoneError as error:
        print(error.operation, error.socket_type)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=15)
    assert (result.returncode, result.stdout) == (0, "send stream\nsend stream\n")


def test_a_reset_is_an_error_of_the_peer() -> None:
    one, other = socket.socketpair()
    with one:
        one.send(b"unread")
        other.close()
        with pytest.raises(PeerGoneError):
            recv_message(one, 10, address="/run/x")


# --- descriptors -------------------------------------------------------------------------------------


def test_descriptors_arrive_in_order_and_the_senders_stay_open(pair: Pair, kind: str, null: int) -> None:
    readable, writable = os.pipe()
    with Fd(readable) as first, open(writable, "wb") as second:
        send_message(pair[0], (b"abc",), (first, second, null), socket_type=kind)
        received = recv_message(pair[1], 100, 3, socket_type=kind)
        assert received.data == b"abc"
        originals = (readable, writable, null)
        for fd, original in zip(received.fds, originals, strict=True):
            assert fd.fileno() != original
            assert same_file(fd.fileno(), original)
            assert not os.get_inheritable(fd.fileno())
        close_all(received.fds)
        for original in originals:
            os.fstat(original)


def test_a_child_started_at_once_sees_none_of_them(pair: Pair, kind: str, null: int) -> None:
    send_message(pair[0], (b"x",), (null,) * 5, socket_type=kind)
    received = recv_message(pair[1], 10, 5, socket_type=kind)
    program = "import os; print(sorted(int(name) for name in os.listdir('/proc/self/fd')))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, close_fds=False, timeout=15
    )
    inherited = set(map(int, result.stdout.strip("[]\n").split(",")))
    assert inherited.isdisjoint(fd.fileno() for fd in received.fds)
    close_all(received.fds)


@pytest.mark.parametrize(("max_fds", "count"), list(product([1, 2, 3, 4, 16], [1, 2, 3, 4, 5, 17, HARD_MAX_FDS])))
def test_the_count_is_kept_exactly(pair: Pair, kind: str, null: int, max_fds: int, count: int) -> None:
    before = open_descriptors()
    send_raw(pair[0], b"x", [null] * count)
    if count <= max_fds:
        received = recv_message(pair[1], 10, max_fds, socket_type=kind)
        assert len(received.fds) == count
        close_all(received.fds)
    else:
        with pytest.raises(DescriptorError, match=f"more descriptors than max_fds of {max_fds}"):
            recv_message(pair[1], 10, max_fds, socket_type=kind)
    assert open_descriptors() == before


def test_as_many_as_the_kernel_carries_go_through(pair: Pair, kind: str, null: int) -> None:
    send_message(pair[0], (b"x",), [null] * HARD_MAX_FDS, socket_type=kind)
    received = recv_message(pair[1], 10, HARD_MAX_FDS, socket_type=kind)
    assert len(received.fds) == HARD_MAX_FDS
    close_all(received.fds)


def test_one_more_is_refused_before_the_kernel_is_asked(pair: Pair, kind: str, null: int) -> None:
    with pytest.raises(ValueError, match="254 descriptors in one message exceed the kernel's 253"):
        send_message(pair[0], (b"x",), [null] * (HARD_MAX_FDS + 1), socket_type=kind)


def test_unasked_descriptors_are_never_installed(pair: Pair, kind: str, null: int) -> None:
    # While the message is received nothing else runs, so that a number taken in between would show as a gap.
    lowest_free = os.dup(null)
    os.close(lowest_free)
    send_raw(pair[0], b"x", [null] * 20)
    if kind == "stream":
        assert recv_message(pair[1], 10, socket_type=kind) == Received(b"x", [])
    else:
        with pytest.raises(DescriptorError, match="none were asked for"):
            recv_message(pair[1], 10, socket_type=kind)
    after = os.dup(null)
    os.close(after)
    assert after == lowest_free


def test_where_the_kernel_can_it_refuses_them_at_the_sender(pair: Pair, kind: str, null: int) -> None:
    if not disallow_fds(pair[1]):
        pytest.skip("this kernel has no SO_PASSRIGHTS")
    with pytest.raises(DescriptorError, match="takes no descriptors") as caught:
        send_message(pair[0], (b"x",), (null,), socket_type=kind)
    assert caught.value.errno == errno.EPERM
    send_message(pair[0], (b"y",), socket_type=kind)
    assert recv_message(pair[1], 10, socket_type=kind).data == b"y"


@pytest.mark.parametrize("kind", ["seqpacket", "datagram"])
def test_descriptors_of_a_truncated_packet_are_closed(kind: str, pair: Pair, null: int) -> None:
    before = open_descriptors()
    send_raw(pair[0], b"x" * 20, [null] * 3)
    with pytest.raises(TruncatedError):
        recv_message(pair[1], 10, 3, socket_type=kind)
    assert open_descriptors() == before


def test_on_a_stream_they_come_with_the_byte_they_were_sent_with(null: int) -> None:
    sender, receiver = socket.socketpair()
    with sender, receiver:
        for data, fds in ((b"AAA", ()), (b"BBB", (null,)), (b"CCC", ())):
            send_message(sender, (data,), fds)
        first = recv_message(receiver, 100, 1)
        second = recv_message(receiver, 100, 1)
        # The kernel ends a read behind the bytes that carry descriptors, and starts it before them.
        assert (first.data, len(first.fds), second.data, second.fds) == (b"AAABBB", 1, b"CCC", [])
        close_all(first.fds)


def test_a_partial_send_carries_them_on_its_first_byte_only(null: int) -> None:
    sender, receiver = socket.socketpair()
    with sender, receiver:
        sender.setblocking(False)
        data = bytes(1 << 22)
        sent = send_message(sender, (data,), (null,))
        assert 0 < sent < len(data)
        total, fds = 0, []
        while total < sent:
            received = recv_message(receiver, 1 << 20, 4)
            total += len(received.data)
            fds += received.fds
        assert len(fds) == 1
        close_all(fds)


def test_on_a_stream_they_need_a_byte(null: int) -> None:
    sender, receiver = socket.socketpair()
    with sender, receiver:
        for empty in ((b"",), (), (b"", bytearray())):
            with pytest.raises(ValueError, match="at least one byte"):
                send_message(sender, empty, (null,))


@pytest.mark.parametrize("kind", ["seqpacket", "datagram"])
def test_a_packet_may_carry_them_without_a_byte(kind: str, pair: Pair, null: int) -> None:
    send_message(pair[0], (b"",), (null,), socket_type=kind)
    received = recv_message(pair[1], 10, 1, socket_type=kind)
    assert (received.data, len(received.fds), received.is_end) == (b"", 1, False)
    close_all(received.fds)


def test_a_descriptor_that_is_not_open_cannot_be_sent(pair: Pair, kind: str, null: int) -> None:
    closed = Fd(os.dup(null))
    closed.close()
    with pytest.raises(DescriptorError):
        send_message(pair[0], (b"x",), (null, closed), socket_type=kind)
    gone = os.dup(null)
    os.close(gone)
    with pytest.raises(DescriptorError, match="not open"):
        send_message(pair[0], (b"x",), (null, gone), socket_type=kind)
    with pytest.raises(DescriptorError, match="closed"):
        send_message(pair[0], (b"x",), (-1,), socket_type=kind)


def test_a_full_table_is_an_error_of_this_message_only() -> None:
    program = """
import os, resource, socket
from hostline.errors import DescriptorError
from hostline.unix.passing.ancillary import recv_message, send_message
from hostline.unix.options import mark_packets
for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
    name = "stream" if kind == socket.SOCK_STREAM else "seqpacket"
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    mark_packets(other)
    send_message(one, (b"x",), [0] * 8, socket_type=name)
    send_message(one, (b"y",), socket_type=name)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for free in (5, 0):
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        filler = []
        try:
            while True:
                filler.append(os.dup(0))
        except OSError:
            pass
        for _ in range(free):
            os.close(filler.pop())
        before = len(filler)
        try:
            recv_message(other, 10, 8, socket_type=name)
        except DescriptorError as error:
            print(error.errno, error.strerror.split(":")[0])
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in filler:
            os.close(fd)
        print(recv_message(other, 10, 8, socket_type=name).data)
        send_message(one, (b"x",), [0] * 8, socket_type=name)
        send_message(one, (b"y",), socket_type=name)
    one.close(); other.close()
import gc; gc.collect()
print(len(os.listdir("/proc/self/fd")) <= 5)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=15)
    assert result.returncode == 0, result.stderr
    each = (
        "24 only 5 of the descriptors sent could be taken\nb'y'\n"
        "24 only 0 of the descriptors sent could be taken\nb'y'\n"
    )
    assert result.stdout == each * 2 + "True\n"


@pytest.mark.root
def test_too_many_on_their_way_is_an_error_in_words(as_nobody) -> None:  # type: ignore[no-untyped-def]
    program = """
import resource, socket
from hostline.errors import DescriptorError
from hostline.unix.passing.ancillary import send_message
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
one, other = socket.socketpair()
one.setblocking(False)
try:
    for _ in range(200):
        send_message(one, (b"x",), (0,))
except DescriptorError as error:
    print(error.errno, error.strerror)
other.close()
one.close()
one, other = socket.socketpair()
print(send_message(one, (b"x",), (0,)))
"""
    process = as_nobody("-c", program)
    output, errors = process.communicate(timeout=15)
    assert process.returncode == 0, errors
    number, _, text = output.partition(" ")
    assert int(number) == errno.ETOOMANYREFS
    assert "too many descriptors of this user are on their way" in text
    assert output.endswith("\n1\n")  # it recovers when they are taken or dropped


# --- datagrams ---------------------------------------------------------------------------------------


def test_a_datagram_says_what_its_sender_is_bound_to(sock_dir) -> None:  # type: ignore[no-untyped-def]
    receiver, sender = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    path = str(sock_dir / "r")
    with receiver, sender:
        receiver.bind(path)
        sender.sendto(b"1", path)
        assert recv_datagram(receiver, 10).sender is None
        sender.bind(str(sock_dir / "s"))
        sender.sendto(b"2", path)
        assert recv_datagram(receiver, 10).sender == PathAddress(str(sock_dir / "s"))
    os.unlink(path)
    os.unlink(sock_dir / "s")


def test_hostile_sender_names_are_data_and_nothing_else(sock_dir, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(sock_dir)
    path = str(sock_dir / "r")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        name = f"hostline-test-{os.getpid()}".encode()
        cases = [
            (b"\0" + name + b";uid=0;\n\x1b[2J\xff\0", AbstractAddress(name + b";uid=0;\n\x1b[2J\xff\0")),
            (b"relative", None),  # means another file here
            (os.fsencode(sock_dir) + b"/;uid=0;\n\xff", PathAddress(f"{sock_dir}/;uid=0;\n\udcff")),
        ]
        for raw, expected in cases:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.bind(raw)
                sender.sendto(b"x", path)
                got = recv_datagram(receiver, 10).sender
                assert got == expected
                assert str(got).isprintable()
                if raw[:1] != b"\0":
                    os.unlink(raw)
    os.unlink(path)


def test_credentials_come_with_every_datagram_also_beside_descriptors(null: int) -> None:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver:
        allow_credentials(receiver)
        expected = Peer(os.getpid(), os.getuid(), os.getgid())
        send_message(sender, (b"x",), socket_type="datagram")
        assert recv_datagram(receiver, 10, has_credentials=True) == (b"x", None, [], expected)
        send_message(sender, (b"",), (null, null), socket_type="datagram")
        datagram = recv_datagram(receiver, 10, 2, has_credentials=True)
        assert (datagram.data, len(datagram.fds), datagram.peer) == (b"", 2, expected)
        close_all(datagram.fds)
        send_raw(sender, b"x", [null] * 3)
        with pytest.raises(DescriptorError):
            recv_datagram(receiver, 10, 2, has_credentials=True)
        send_raw(sender, b"x", [null])
        with pytest.raises(DescriptorError, match="none were asked for"):
            recv_datagram(receiver, 10, has_credentials=True)


def test_a_datagram_queued_before_credentials_were_asked_for_has_no_peer() -> None:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver:
        sender.send(b"early")
        allow_credentials(receiver)
        datagram = recv_datagram(receiver, 10, has_credentials=True)
        assert datagram.data == b"early"
        assert datagram.peer in (None, Peer(os.getpid(), os.getuid(), os.getgid()))


# --- options -----------------------------------------------------------------------------------------


def test_options_that_an_inherited_socket_brings_are_forgotten(null: int) -> None:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with sender, receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        forget_options(receiver)
        assert receiver.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED) == 0
        send_message(sender, (b"x",), (null,) * 4)
        received = recv_message(receiver, 10, 4)
        assert len(received.fds) == 4
        close_all(received.fds)


def test_options_that_do_not_apply_are_reported_and_not_raised() -> None:
    with socket.socket(socket.AF_INET) as other:
        assert disallow_fds(other) in (True, False)
        assert mark_packets(other) in (True, False)


@pytest.mark.parametrize("max_fds", [-1, HARD_MAX_FDS + 1])
def test_a_bound_on_descriptors_that_the_kernel_cannot_keep_is_refused(max_fds: int) -> None:
    with pytest.raises(ValueError, match="between 0 and 253"):
        checked_max_fds(max_fds)


def test_received_descriptors_are_close_on_exec_by_their_own_flag(pair: Pair, kind: str, null: int) -> None:
    send_message(pair[0], (b"x",), (null,), socket_type=kind)
    (fd,) = recv_message(pair[1], 10, 1, socket_type=kind).fds
    assert fcntl.fcntl(fd.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    fd.close()
