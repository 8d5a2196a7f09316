"""A signal handler's exception at each point where Python may run one: nothing stays locked, held or on the disk.

Python looks for signals when a function begins and when one written in C has returned; a profiler is called at the same
points, which makes each of them repeatable.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tests.leaks import open_descriptors, wait_until
from tests.serving import ServerThread

import hostline
from hostline import ClosedError, LocalProtocolError, PeerGoneError, RemoteProtocolError, SocketTimeoutError, sync

# Where an exception strikes between a system call and the object that its descriptor belongs to, Python closes it.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

# More points than any call here has.
_MOST = 2_000


class Interrupt(BaseException):
    """What the signal handler raises."""


def is_interrupted(call: Callable[[], object], at: int) -> bool:
    """Make a call, with an exception at one of its points; False where it has fewer."""
    passed = -1  # the first point is behind setprofile itself

    def look(_frame: FrameType, what: str, _about: object) -> None:
        nonlocal passed
        if what in ("call", "c_return"):
            passed += 1
            if passed == at + 1:
                raise Interrupt

    try:
        sys.setprofile(look)
        call()
    except Interrupt:
        pass
    finally:
        sys.setprofile(None)
    return passed > at


def points() -> Iterator[int]:
    """Count the points, up to more than there are."""
    yield from range(_MOST)
    pytest.fail(f"more than {_MOST} points: is there an end?")


@pytest.fixture(autouse=True)
def no_word_of_finalizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no warning where a finalizer was what the exception struck: Python then goes on."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _unraisable: None)


def test_an_accept_that_was_interrupted_keeps_no_close_from_unlinking(sock_dir: Path) -> None:
    """Ctrl-C in the instant in which an accept ends, and the socket file of the server stayed."""
    for at in points():
        path = sock_dir / f"{at}.sock"
        listener = sync.listen(path)
        client = sync.connect_socket(path)
        before = open_descriptors()
        go_on = is_interrupted(lambda: listener.accept().close(), at)  # noqa: B023  # called at once
        for number in open_descriptors().keys() - before.keys():
            os.close(number)  # Python's own accept loses it between the system call and its socket object
        listener.close()
        client.close()
        assert not path.exists(), f"point {at}"
        assert listener.socket.fileno() < 0, f"point {at}"
        if not go_on:
            assert at > 20
            return


def use_stream(one: sync.Connection, other: sync.Connection) -> None:
    """Send and receive in each way that a stream has."""
    one.send(b"abc")
    other.recv(timeout=1)
    one.send_many([b"abc", b"def"])
    other.recv()


def use_packets(one: sync.Connection, other: sync.Connection) -> None:
    """Send and receive in each way that packets have."""
    one.send(b"abc", timeout=1)
    one.send_many([b"abc", b"def"], timeout=1)
    other.recv_many(10)


@pytest.mark.parametrize(("kind", "use"), [("stream", use_stream), ("seqpacket", use_packets)])
def test_a_connection_whose_calls_were_interrupted_goes_on_and_closes(
    kind: Any, use: Callable[[sync.Connection, sync.Connection], None]
) -> None:
    for at in points():
        one, other = sync.socketpair(kind)
        go_on = is_interrupted(lambda: use(one, other), at)  # noqa: B023  # called at once
        one.send(b"once more", timeout=1)
        assert other.recv(timeout=1)
        one.close()
        other.close()
        assert (one.socket.fileno(), other.socket.fileno()) == (-1, -1), f"point {at}"
        if not go_on:
            assert at > 40
            return


def test_a_datagram_socket_whose_calls_were_interrupted_closes() -> None:
    def use() -> None:
        one.send(b"abc")
        one.send_many([b"abc", b"def"])
        other.recv_many(10)

    for at in points():
        one, other = sync.socketpair("datagram")
        go_on = is_interrupted(use, at)
        one.close()
        other.close()
        assert (one.socket.fileno(), other.socket.fileno()) == (-1, -1), f"point {at}"
        if not go_on:
            assert at > 40
            return


def test_a_channel_whose_calls_were_interrupted_goes_on_and_closes() -> None:
    def use() -> None:
        one.send({"n": 1})
        other.recv(timeout=1)
        one.send_many([1, 2])
        other.recv_many(10)
        one.send(bytes(100_000), timeout=1)
        other.recv(timeout=1)

    for at in points():
        one, other = sync.channelpair()
        go_on = is_interrupted(use, at)
        # What had been read or half sent is lost. But nothing waits for a lock that nobody has: a lock that this thread
        # still held would be another LocalProtocolError.
        told = ""
        try:
            one.send("once more", timeout=0.05)
            other.recv(timeout=0.05)
        except LocalProtocolError as error:
            told = str(error)
        except (SocketTimeoutError, RemoteProtocolError, ClosedError, PeerGoneError):
            pass  # closed, where what had been read is lost
        one.close()
        other.close()
        assert not told or "cut off" in told, f"point {at}: {told}"
        assert (one.connection.socket.fileno(), other.connection.socket.fileno()) == (-1, -1), f"point {at}"
        if not go_on:
            assert at > 40
            return


@pytest.mark.parametrize("size", [30, 100_000])
def test_a_message_whose_receipt_was_interrupted_is_whole_or_nothing(size: int) -> None:
    """What had been taken from the kernel was lost, and the next message's bytes filled its place."""
    sent = [bytes([letter]) * size for letter in b"abcd"]
    for at in points():
        one, other = sync.channelpair()
        received: list[bytes] = []
        other.send(b"hello")
        one.recv(timeout=1)
        sender = threading.Thread(target=send_while_somebody_takes, args=(one, sent))
        sender.start()
        go_on = is_interrupted(lambda: received.append(other.recv(bytes)), at)  # noqa: B023  # called at once
        with suppress(SocketTimeoutError, ClosedError):
            while len(received) < len(sent):
                received.append(other.recv(bytes, timeout=0.05 if go_on else 10))
        other.close()
        sender.join()
        one.close()
        assert [message for message in received if message not in sent] == [], f"point {at}"
        if not go_on:
            assert at > 20
            assert received == sent
            return


def send_while_somebody_takes(channel: sync.Channel, messages: list[bytes]) -> None:
    with suppress(PeerGoneError):
        channel.send_many(messages)


def test_a_close_that_was_interrupted_can_be_repeated_by_whoever_leaves_last(sock_dir: Path) -> None:
    """A signal handler closes what its own thread waits for, wherever in the call it comes."""
    for at in itertools.count():
        path = sock_dir / f"{at}.sock"
        listener = sync.listen(path)
        client = sync.connect_socket(path)
        passed = -1

        def close(_frame: FrameType, what: str, _about: object, at: int = at) -> None:
            nonlocal passed
            if what in ("call", "c_return"):
                passed += 1
                if passed == at + 1:
                    listener.close()  # noqa: B023  # called at once

        try:
            sys.setprofile(close)
            listener.accept(timeout=5).close()
        except ClosedError:
            pass
        finally:
            sys.setprofile(None)
        client.close()
        if passed <= at:
            listener.close()
            break
        assert not path.exists(), f"point {at}"
        assert listener.socket.fileno() < 0, f"point {at}"
    assert at > 20


def test_a_signal_handler_that_sends_where_it_interrupted_a_send_is_refused() -> None:
    """It waited for itself; now it is told, and what was interrupted goes on."""
    one, other = sync.socketpair()
    told: list[BaseException] = []

    def send(_number: int, _frame: FrameType | None) -> None:
        try:
            one.send(b"from the handler")
        except LocalProtocolError as error:
            told.append(error)
        other.socket.recv(1 << 22)  # so that what waits goes on

    before = signal.signal(signal.SIGALRM, send)
    try:
        with closing(one), closing(other):
            signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
            one.send(bytes(3_000_000))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert told
    assert "sends here" in str(told[0])


@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_a_close_that_was_interrupted_is_finished(kind: Any, sock_dir: Path) -> None:
    """The file and the descriptors stayed, and a second close did nothing."""
    for at in points():
        path = sock_dir / f"{at}.sock"
        before = open_descriptors()
        listener = sync.listen(path, kind)
        go_on = is_interrupted(listener.close, at)
        if listener.is_closed:  # nobody closes it again, at the end of a block
            assert not path.exists(), f"point {at}"
            assert open_descriptors() == before, f"point {at}"
        listener.close()
        assert not path.exists(), f"point {at}"
        assert open_descriptors() == before, f"point {at}"
        if not go_on:
            assert at > 12
            return


@pytest.mark.parametrize("kind", ["stream", "channel"])
def test_a_close_of_a_connection_that_was_interrupted_is_finished(kind: str) -> None:
    for at in points():
        before = open_descriptors()
        one, other = sync.channelpair() if kind == "channel" else sync.socketpair()
        go_on = is_interrupted(one.close, at)
        if not one.is_closed:
            one.close()
        other.close()
        assert open_descriptors() == before, f"point {at}"
        if not go_on:
            assert at > 10
            return


def test_a_close_that_was_interrupted_wakes_whoever_waits(sock_dir: Path) -> None:
    for at in points():
        path = sock_dir / f"{at}.sock"
        listener = sync.listen(path)
        ended: list[BaseException] = []

        def accept(listener: Any = listener, ended: list[BaseException] = ended) -> None:
            try:
                listener.accept(timeout=20)
            except BaseException as error:
                ended.append(error)  # noqa: B023  # not the loop's

        thread = threading.Thread(target=accept)
        thread.start()
        while not listener._users:
            time.sleep(0.0005)
        go_on = is_interrupted(listener.close, at)
        listener.close()
        thread.join(5)
        assert [type(error) for error in ended] == [ClosedError], f"point {at}"
        assert not path.exists(), f"point {at}"
        if not go_on:
            assert at > 12
            return


@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_a_listen_that_was_interrupted_leaves_no_file(kind: Any, sock_dir: Path) -> None:
    for at in points():
        path = sock_dir / f"{at}.sock"
        before = open_descriptors()
        made: list[Any] = []
        go_on = is_interrupted(lambda: made.append(sync.listen(path, kind)), at)  # noqa: B023  # called at once
        if made:
            made[0].close()
        made.clear()
        assert open_descriptors() == before, f"point {at}"
        assert not path.exists(), f"point {at}"
        if not go_on:
            assert at > 100
            return


@pytest.mark.parametrize("is_many", [False, True])
def test_a_wait_for_room_that_was_interrupted_keeps_no_descriptor(is_many: bool, sock_dir: Path) -> None:
    def send() -> None:
        with suppress(SocketTimeoutError):
            if is_many:
                sender.send_many([b"x"], sock_dir / "r", timeout=0.003)
            else:
                sender.send(b"x", sock_dir / "r", timeout=0.003)

    with sync.listen(sock_dir / "r", "datagram"):
        for at in points():
            sender = sync.listen(sock_dir / "s", "datagram")
            with suppress(SocketTimeoutError):
                while True:
                    sender.send(b"x", sock_dir / "r", timeout=0)
            before = open_descriptors()
            go_on = is_interrupted(send, at)
            assert open_descriptors() == before, f"point {at}"
            sender.close()
            assert sender.socket.fileno() < 0, f"point {at}"
            if not go_on:
                assert at > 80
                return


@pytest.mark.parametrize("is_many", [False, True])
@pytest.mark.parametrize("timeout", [None, 20.0])
def test_a_large_send_that_was_interrupted_is_never_continued_by_another(is_many: bool, timeout: float | None) -> None:
    """The kernel had taken a part, and the next send went behind it as if it had not."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Interrupt

    one, other = sync.socketpair()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with closing(one), closing(other):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Interrupt):
                if is_many:
                    one.send_many([b"x" * 100_000] * 30, timeout=timeout)
                else:
                    one.send(b"x" * 3_000_000, timeout=timeout)
            with pytest.raises(LocalProtocolError, match="cut off"):
                one.send(b"y", timeout=1)
            with pytest.raises(LocalProtocolError, match="cut off"):
                one.send_many([b"y"], timeout=1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_stream_whose_close_was_interrupted_gives_its_connection_back(sock_dir: Path) -> None:
    """The pool counted it as busy for ever."""
    service = hostline.Service("counting")

    @service.method
    async def count() -> AsyncIterator[int]:
        for number in itertools.count():
            yield number

    @service.method
    async def echo(value: int) -> int:
        return value

    with ServerThread(service, sock_dir / "s"), hostline.connect(sock_dir / "s", max_size=1) as line:
        for at in points():
            stream = line.stream("count", returns=int)
            assert next(stream) == 0
            go_on = is_interrupted(stream.close, at)
            del stream
            assert line.call("echo", at, timeout=5) == at, f"point {at}"
            assert line.pool_size == line._pool.idle_count == 1
            if not go_on:
                return


def test_a_call_that_was_interrupted_spoils_none_behind_it(sock_dir: Path) -> None:
    service = hostline.Service("echo")

    @service.method
    async def echo(value: int) -> int:
        return value

    with ServerThread(service, sock_dir / "s"), hostline.connect(sock_dir / "s", max_size=1) as line:
        for at in points():
            go_on = is_interrupted(lambda: line.call("echo", -1, timeout=5), at)
            assert line.call("echo", at, timeout=5) == at, f"point {at}"
            assert line.pool_size == line._pool.idle_count == 1
            if not go_on:
                return


def test_a_close_of_a_line_that_was_interrupted_can_be_repeated(sock_dir: Path) -> None:
    with ServerThread(hostline.Service("nothing"), sock_dir / "s") as server:
        for at in points():
            line = hostline.connect(sock_dir / "s", min_size=2)
            assert wait_until(lambda: server.stats().connections == 2)
            go_on = is_interrupted(line.close, at)
            line.close()
            assert wait_until(lambda: server.stats().connections == 0), f"point {at}"
            assert line.pool_size == 0, f"point {at}"
            if not go_on:
                return
