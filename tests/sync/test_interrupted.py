"""A signal handler's exception at each point where Python may run one: nothing stays locked, held or on the disk.

Python looks for signals when a function begins and when one written in C has returned; a profiler is called at the same
points, which makes each of them repeatable.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tests.leaks import open_descriptors

from hostline import ClosedError, LocalProtocolError, RemoteProtocolError, SocketTimeoutError, sync

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
        # still held would be a LocalProtocolError.
        with suppress(SocketTimeoutError, RemoteProtocolError):
            one.send("once more", timeout=0.05)
            other.recv(timeout=0.05)
        one.close()
        other.close()
        assert (one.connection.socket.fileno(), other.connection.socket.fileno()) == (-1, -1), f"point {at}"
        if not go_on:
            assert at > 40
            return


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
