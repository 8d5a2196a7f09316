"""Many packets in one call do what one call for each does: sent, refused and received alike, core or not."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests import core

from hostline.unix.address import PathAddress
from hostline.unix.options import allow_credentials, mark_packets
from hostline.unix.passing import ancillary, packets
from hostline.unix.passing.packets import recv_waiting, send_packets

pytestmark = [
    pytest.mark.skipif(not packets._HAS_MMSG, reason="the compiled core is not here: HOSTLINE_BUILD_EXT=yes"),
    *([] if core.IS_LEFT_OUT else [pytest.mark.ci_required]),
]
KINDS = {"seqpacket": socket.SOCK_SEQPACKET, "datagram": socket.SOCK_DGRAM}


@contextmanager
def sockets(kind: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, KINDS[kind])
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        if kind == "seqpacket":
            assert mark_packets(other) is not False
        yield one, other


def told(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return type(error).__name__, str(error), getattr(error, "errno", None)


def received(sock: socket.socket, kind: str, size: int = 1000, count: int = 100, **options: Any) -> Any:
    """Return all that waits, errors in their places, and the calls that it took."""
    story: list[Any] = []
    for _ in range(20):
        found, error = recv_waiting(sock, size, 0, count, socket_type=kind, **options)
        story.append([(one.data, one.is_end, one.sender, one.peer, len(one.fds)) for one in found])
        story.append((type(error).__name__, str(error)))
        if not found and error is None:
            return story
    return story


Story = Callable[[], Any]


def both_ways(monkeypatch: pytest.MonkeyPatch, story: Story) -> Any:
    """Run a story with the core and without, and demand that it is the same."""
    compiled = story()
    with monkeypatch.context() as patch:
        patch.setattr(packets, "_HAS_MMSG", False)
        pure = story()
    assert compiled == pure
    return compiled


@pytest.mark.parametrize("kind", KINDS)
def test_what_fits_is_sent_and_the_rest_is_counted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def story() -> Any:
        with sockets(kind) as (one, other):
            many = [memoryview(bytes([i % 256]) * (i % 300)) for i in range(1000)]
            counts = [told(lambda: send_packets(one, many, socket_type=kind)) for _ in range(2)]
            first = received(other, kind)
            counts.append(told(lambda: send_packets(one, many[:5], socket_type=kind)))
            return counts, first, received(other, kind, count=2)

    counts, _, _ = both_ways(monkeypatch, story)
    assert 0 < counts[0] < 1000
    assert counts[1][0] == "BlockingIOError"
    assert counts[2] == 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_packet_that_is_refused_ends_the_call_before_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def story() -> Any:
        with sockets(kind) as (one, other):
            many = [memoryview(b"a"), memoryview(b"b"), memoryview(bytes(1 << 22)), memoryview(b"c")]
            sent = [told(lambda n=n: send_packets(one, many[n:], socket_type=kind)) for n in (0, 2, 3)]  # type: ignore[misc]
            story = [sent, received(other, kind)]
            other.close()
            story += [told(lambda: send_packets(one, many, socket_type=kind)) for _ in range(2)]
            one.close()
            return [*story, told(lambda: send_packets(one, many, socket_type=kind))]

    (sent, *_) = both_ways(monkeypatch, story)
    assert sent[0] == 2
    assert sent[1][0] == "MessageTooLongError"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_too_long_is_lost_alone_and_in_its_place(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def story() -> Any:
        with sockets(kind) as (one, other):
            for data in (b"", b"12345", b"123456", b"", b"x", b"1234567", b"12345678", b"y"):
                one.send(data)
            return received(other, kind, 5)

    found = both_ways(monkeypatch, story)
    assert [name for name, _ in found[1::2]] == ["TruncatedError"] * 3 + ["NoneType"] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_descriptors_that_nobody_asked_for_are_refused_in_their_place(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def story() -> Any:
        with sockets(kind) as (one, other):
            for data, count in ((b"a", 0), (b"b", 1), (b"c", 0), (b"d", 9), (b"e", 0)):
                socket_fds = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join([(0).to_bytes(4, "little")] * count))]
                one.sendmsg([data], socket_fds if count else [])
            before = len(os.listdir("/proc/self/fd"))
            found = received(other, kind)
            assert len(os.listdir("/proc/self/fd")) == before
            return found

    found = both_ways(monkeypatch, story)
    assert [name for name, _ in found[1::2]][:2] == ["DescriptorError"] * 2


def test_the_end_is_left_for_the_next_receive(monkeypatch: pytest.MonkeyPatch) -> None:
    def story() -> Any:
        with sockets("seqpacket") as (one, other):
            for data in (b"a", b"", b"b", b""):
                one.send(data)
            one.shutdown(socket.SHUT_WR)
            found = received(other, "seqpacket")
            return found, ancillary.recv_message(other, 10, socket_type="seqpacket").is_end

    (found, is_end) = both_ways(monkeypatch, story)
    assert [data for data, *_ in found[0]] == [b"a", b"", b"b", b""]
    assert is_end


def test_a_reset_is_told_once_behind_what_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def story() -> Any:
        with sockets("seqpacket") as (one, other):
            other.send(b"unread")
            one.send(b"a")
            one.send(b"b")
            one.close()
            return received(other, "seqpacket")

    both_ways(monkeypatch, story)


@pytest.mark.parametrize("has_credentials", [False, True])
def test_senders_and_their_credentials_are_the_same(
    has_credentials: bool, sock_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = iter(range(100))

    def story() -> Any:
        number = next(paths)
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as named,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hidden,
        ):
            path = str(sock_dir / f"r{number}")
            receiver.bind(path)
            receiver.setblocking(False)
            if has_credentials:
                allow_credentials(receiver)
            named.bind(str(sock_dir / "näme"))
            hidden.bind(b"\0hostline-test-mmsg\0x")
            many = [memoryview(b"1"), memoryview(b"")]
            counts = []
            for sender, to in ((named, path), (nameless, os.fsencode(path)), (hidden, path)):
                sender.setblocking(False)
                counts.append(send_packets(sender, many, to=to, socket_type="datagram"))
            missing = str(sock_dir / "missing")
            refused = told(lambda: send_packets(nameless, many, to=missing, socket_type="datagram"))
            long = told(lambda: send_packets(nameless, many, to="x" * 200, socket_type="datagram"))
            found = received(receiver, "datagram", has_credentials=has_credentials)
            os.unlink(sock_dir / "näme")
            os.unlink(path)
            return counts, refused, long, found

    (counts, refused, _, found) = both_ways(monkeypatch, story)
    assert counts == [2, 2, 2]
    assert refused[0] != "OSError"
    assert [data for data, *_ in found[0]] == [b"1", b""] * 3
    assert [peer is not None for *_, peer, _ in found[0]] == [has_credentials] * 6


def test_a_sender_whose_path_fills_its_address_is_named_as_it_is(
    sock_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no room for a zero at its end then, and the kernel counts one byte more than it writes."""
    path = (str(sock_dir / "long") + "g" * 108).encode()[:108]
    address = struct.pack("@H", socket.AF_UNIX) + path
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        # Python's own bind wants the zero.
        assert ctypes.CDLL(None).bind(sender.fileno(), address, len(address)) == 0
        receiver.bind(str(sock_dir / "r"))

        def story() -> Any:
            for _ in range(3):
                sender.sendto(b"x", str(sock_dir / "r"))
            return received(receiver, "datagram")

        found = both_ways(monkeypatch, story)[0]
        assert [one[2] for one in found] == [PathAddress(os.fsdecode(path))] * 3


def test_large_packets_are_received_whole_whatever_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def story() -> Any:
        with sockets("seqpacket") as (one, other):
            for number in range(6):
                one.send(bytes([number]) * 30_000)
            return received(other, "seqpacket", 30_000), received(other, "seqpacket", 1 << 20)

    found, _ = both_ways(monkeypatch, story)
    assert [len(data) for data, *_ in found[0]] == [30_000] * 6


def test_a_size_that_no_memory_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from hostline.unix.passing import mmsg

    with sockets("seqpacket") as (_, other):
        with pytest.raises(ValueError, match="out of range"):
            mmsg.recv_packets(other.fileno(), 0, 32, 1, 0)
        with pytest.raises(ValueError, match="out of range"):
            mmsg.recv_packets(other.fileno(), 1 << 50, 32, 1, 0)
        with pytest.raises(ValueError, match="out of range"):
            mmsg.recv_packets(other.fileno(), 10, 1000, 1, 0)
        with pytest.raises(ValueError, match="too long"):
            mmsg.send_packets(other.fileno(), [b"x"], b"x" * 108, 0)
