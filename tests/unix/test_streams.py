"""What a stream brings is the same with the core and without, and no descriptor is lost, whatever came with it."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from tests import core
from tests.leaks import open_descriptors

import hostline
from hostline.errors import DescriptorError, SocketError
from hostline.limits import HARD_MAX_FDS
from hostline.unix.options import set_kernel_timeout
from hostline.unix.passing import streams

needs_core = [
    pytest.mark.skipif(not hostline.is_compiled(), reason="the compiled core is not here: HOSTLINE_BUILD_EXT=yes"),
    *([] if core.IS_LEFT_OUT else [pytest.mark.ci_required]),
]
WAYS = [
    pytest.param((streams._recv_stream, streams._recv_stream_into), id="python"),
    pytest.param((streams.recv_stream, streams.recv_stream_into), id="core", marks=needs_core),
]
NOW = socket.MSG_DONTWAIT

Ways = tuple[Callable[..., Any], Callable[..., Any]]


@pytest.fixture(params=WAYS)
def ways(request: pytest.FixtureRequest) -> Ways:
    found: Ways = request.param
    return found


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def send_with(sock: socket.socket, data: bytes, count: int, fd: int = 0) -> None:
    """Send bytes and a descriptor so many times."""
    numbers = fd.to_bytes(4, sys.byteorder) * count
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if count else [])


@contextmanager
def nothing_left() -> Iterator[None]:
    """Demand that no descriptor is open at the end that was not at the begin."""
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def told(read: Callable[[], Any]) -> Any:
    """Return what a read gives, or the error in its words, in a form that can be compared; closes what came."""
    try:
        data, fds = read()
    except OSError as error:
        return type(error), error.errno, str(error)
    assert fds is None or fds
    for fd in fds or ():
        assert not os.get_inheritable(fd.fileno())
        fd.close()
    return None if data is None else bytes(data), None if fds is None else len(fds)


def both(pair: tuple[socket.socket, socket.socket], ways: Ways, size: int, max_fds: int) -> Iterator[Any]:
    """Yield what the next reads give, of both kinds in turns."""
    into_bytes, into_memory = ways
    while True:
        yield told(lambda: into_bytes(pair[1], size, max_fds, NOW))
        yield told(lambda: into_memory(pair[1], memoryview(bytearray(size)), max_fds, NOW))


def test_bytes_alone_come_as_they_are(pair: Any, ways: Ways) -> None:
    reads = both(pair, ways, 8, 4)
    for data in (b"12345678", b"123456789abcdefgh", b"x"):
        pair[0].send(data)
        rest = data
        while rest:
            assert next(reads) == (rest[:8], None)
            rest = rest[8:]
    assert next(reads) == (None, None)
    assert next(reads) == (None, None)


@pytest.mark.parametrize("count", [1, 3, HARD_MAX_FDS])
def test_descriptors_come_owned_and_close_on_exec(pair: Any, ways: Ways, count: int) -> None:
    with nothing_left():
        reads = both(pair, ways, 100, count)
        for _ in range(2):
            send_with(pair[0], b"abc", count)
            assert next(reads) == (b"abc", count)


def test_descriptors_are_the_ones_that_were_sent_in_their_order(pair: Any, ways: Ways) -> None:
    files = [os.open(path, os.O_RDONLY) for path in ("/dev/null", "/dev/zero", "/etc/passwd")]
    try:
        for read in (
            lambda: ways[0](pair[1], 9, 3, NOW),
            lambda: ways[1](pair[1], memoryview(bytearray(9)), 3, NOW),
        ):
            numbers = b"".join(file.to_bytes(4, sys.byteorder) for file in files)
            pair[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
            _, fds = read()
            assert [os.fstat(fd.fileno()) for fd in fds] == [os.fstat(file) for file in files]
            for fd in fds:
                fd.close()
    finally:
        for file in files:
            os.close(file)


@pytest.mark.parametrize("max_fds", [1, 2, 3, 4])
def test_more_descriptors_than_there_may_be_are_refused_and_closed(pair: Any, ways: Ways, max_fds: int) -> None:
    """One more than fits shows whether the kernel's rounding lets it in."""
    with nothing_left():
        reads = both(pair, ways, 100, max_fds)
        for count in (max_fds + 1, HARD_MAX_FDS):
            for _ in range(2):
                send_with(pair[0], b"abc", count)
                kind, _, text = next(reads)
                assert kind is DescriptorError
                assert f"more descriptors than max_fds of {max_fds}" in text


def test_without_room_for_descriptors_none_is_installed(pair: Any, ways: Ways) -> None:
    with nothing_left():
        reads = both(pair, ways, 100, 0)
        for _ in range(2):
            send_with(pair[0], b"abc", 2)
            assert next(reads) == (b"abc", None)


def test_reading_into_memory_ends_where_descriptors_came(pair: Any, ways: Ways) -> None:
    def read(size: int) -> Any:
        return told(lambda: ways[1](pair[1], memoryview(bytearray(size)), 3, NOW))

    with nothing_left():
        for data, count in ((b"ab", 0), (b"cd", 0), (b"ef", 2), (b"gh", 0), (b"ij", 0)):
            send_with(pair[0], data, count)
        assert read(100) == (b"abcdef", 2)
        assert read(3) == (b"ghi", None)
        assert read(100) == (b"j", None)
        send_with(pair[0], b"kl", 0)
        send_with(pair[0], b"mn", 4)
        kind, _, text = read(100)
        assert kind is DescriptorError
        assert "max_fds of 3" in text


def test_a_large_message_is_put_into_memory_whole(ways: Ways) -> None:
    data = os.urandom(300_000)
    one, other = socket.socketpair()
    with one, other:
        sender = threading.Thread(target=one.sendall, args=(data,))
        sender.start()
        memory = bytearray(len(data))
        done = 0
        while done < len(data):
            came, fds = ways[1](other, memoryview(memory)[done:], 2, NOW)
            done += len(came) if came is not None else 0
            assert fds is None
        sender.join()
        assert memory == data


def test_the_end_is_no_bytes(pair: Any, ways: Ways) -> None:
    reads = both(pair, ways, 10, 2)
    pair[0].send(b"abc")
    pair[0].close()
    assert [next(reads) for _ in range(3)] == [(b"abc", None), (b"", None), (b"", None)]


def test_into_memory_the_end_behind_bytes_waits_for_the_next_read(pair: Any, ways: Ways) -> None:
    pair[0].send(b"abc")
    pair[0].close()
    assert [told(lambda: ways[1](pair[1], memoryview(bytearray(9)), 2, NOW)) for _ in range(2)] == [
        (b"abc", None),
        (b"", None),
    ]


@pytest.mark.parametrize("max_fds", [0, 2])
@pytest.mark.parametrize("which", [0, 1])
def test_a_socket_that_is_closed_or_reset_says_so(ways: Ways, max_fds: int, which: int) -> None:
    one, other = socket.socketpair()
    with one, other:
        other.send(b"unread")
        one.close()

        def read() -> Any:
            space = 10 if which == 0 else memoryview(bytearray(10))
            return told(lambda: ways[which](other, space, max_fds, NOW))

        reset = read()
        assert issubclass(reset[0], SocketError)
        assert "reset" in reset[2].lower()
        other.close()
        closed = read()
        assert issubclass(closed[0], SocketError)
        pure = streams._recv_stream if which == 0 else streams._recv_stream_into
        space: Any = 10 if which == 0 else memoryview(bytearray(10))
        assert closed == told(lambda: pure(other, space, max_fds, NOW))  # type: ignore[operator]


def table_is_full(which: int, ways: Ways) -> Sequence[Any]:
    """Read descriptors for which there is no number left, then some for which there is."""
    one, other = socket.socketpair()
    space: Any = 10 if which == 0 else memoryview(bytearray(10))
    said = []
    for free in (2, 0):
        send_with(one, b"x", 5)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = len(os.listdir("/proc/self/fd")) - 1
        highest = max(map(int, os.listdir("/proc/self/fd"))) + 1
        filler = [os.dup(0) for _ in range(highest - used)]
        filler += [os.dup(0) for _ in range(4)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(filler) + 1, limits[1]))
        for _ in range(free):
            os.close(filler.pop())
        said.append(told(lambda: ways[which](other, space, 5, NOW))[1:])
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in filler:
            os.close(fd)
        send_with(one, b"y", 5)
        said.append(told(lambda: ways[which](other, space, 5, NOW)))
    one.close()
    other.close()
    return said


@pytest.mark.parametrize("which", [0, 1])
def test_a_full_table_is_said_and_what_came_is_closed(ways: Ways, which: int) -> None:
    with nothing_left():
        (no, text), fine, (also_no, also_text), also_fine = table_is_full(which, ways)
    assert (no, also_no) == (24, 24)
    assert "only 2 of the descriptors" in text
    assert "only 0 of the descriptors" in also_text
    assert fine == also_fine == (b"y", 5)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("max_fds", [0, 2])
@pytest.mark.parametrize("ways", WAYS[1:], indirect=True)
def test_the_core_waits_in_the_kernel_until_something_comes_or_time_is_over(
    pair: Any, ways: Ways, which: int, max_fds: int
) -> None:
    space: Any = 10 if which == 0 else memoryview(bytearray(10))
    set_kernel_timeout(pair[1], socket.SO_RCVTIMEO, 0.02)
    begin = time.monotonic()
    assert told(lambda: ways[which](pair[1], space, max_fds, 0)) == (None, None)
    assert time.monotonic() - begin >= 0.015
    set_kernel_timeout(pair[1], socket.SO_RCVTIMEO, 30)
    waker = threading.Timer(0.05, send_with, (pair[0], b"abc", max_fds))
    waker.start()
    assert told(lambda: ways[which](pair[1], space, max_fds, 0)) == (b"abc", max_fds or None)
    waker.join()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("ways", WAYS[1:], indirect=True)
def test_a_signal_ends_the_cores_wait_and_its_handler_may_raise(pair: Any, ways: Ways, which: int) -> None:
    space: Any = 10 if which == 0 else memoryview(bytearray(10))
    seen: list[int] = []

    def fail(*_: object) -> None:
        raise KeyError("of a handler")

    set_kernel_timeout(pair[1], socket.SO_RCVTIMEO, 30)
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        assert told(lambda: ways[which](pair[1], space, 2, 0)) == (None, None)
        assert seen == [1]
        signal.signal(signal.SIGALRM, fail)
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        with pytest.raises(KeyError, match="of a handler"):
            ways[which](pair[1], space, 2, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    send_with(pair[0], b"x", 2)
    with nothing_left():
        send_with(pair[0], b"y", 0)
    assert told(lambda: ways[which](pair[1], space, 2, NOW)) == (b"x", 2)


@pytest.mark.parametrize("ways", WAYS[1:], indirect=True)
def test_the_core_refuses_sizes_that_make_no_sense(pair: Any, ways: Ways) -> None:
    into_bytes, into_memory = ways
    for size, max_fds in ((0, 1), (-1, 1), (1, -1), (1, HARD_MAX_FDS + 1)):
        with pytest.raises(ValueError, match="out of range"):
            into_bytes(pair[1], size, max_fds, NOW)
    for max_fds in (-1, HARD_MAX_FDS + 1):
        with pytest.raises(ValueError, match="out of range"):
            into_memory(pair[1], memoryview(bytearray(1)), max_fds, NOW)
    with pytest.raises(BufferError):
        into_memory(pair[1], memoryview(b"constant"), 1, NOW)


WITHOUT_MEMORY = """
import gc, os, socket, sys
import _testcapi
from hostline.unix.passing.streams import recv_stream, recv_stream_into

gc.disable()
one, other = socket.socketpair()
numbers = (0).to_bytes(4, sys.byteorder) * 40
space = memoryview(bytearray(100))

def read():
    if sys.argv[1] == "0":
        return recv_stream(other, 100, 60, socket.MSG_DONTWAIT)
    return recv_stream_into(other, space, 60, socket.MSG_DONTWAIT)

# Fds in front, so that freed memory is not simply taken again, and kept: nothing of what is received is let go.
def attempt(start):
    one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
    got = None
    failed = False
    _testcapi.set_nomemory(start, start + 1)
    try:
        got = read()
    except MemoryError:
        failed = True
    _testcapi.remove_mem_hooks()
    if got is not None:
        assert len(got[1]) == 40
        for fd in got[1]:
            fd.close()
    else:
        try:  # it was not received at all
            for fd in recv_stream(other, 100, 60, socket.MSG_DONTWAIT)[1] or ():
                fd.close()
        except TypeError:
            pass
    return failed

count = len(os.listdir("/proc/self/fd"))
failures = 0
for start in range(1, 400):
    failures += attempt(start)
    now = len(os.listdir("/proc/self/fd"))
    assert now == count, (start, now, count)
print(failures)
"""


@pytest.mark.parametrize("which", ["0", "1"])
@pytest.mark.skipif(not hostline.is_compiled(), reason="the compiled core is not here: HOSTLINE_BUILD_EXT=yes")
def test_where_memory_ends_no_descriptor_is_left(which: str) -> None:
    """Each allocation of a read fails in turn: what the kernel has installed by then is closed all the same."""
    pytest.importorskip("_testcapi", reason="this Python was built without it")
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY, which], capture_output=True, text=True, timeout=60, env={**os.environ}
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 40  # an owner each, at the least
    assert not result.stderr
