"""One connection at the server, seen from peers without manners: what they cost, and when they are cut off."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.leaks import wait_until
from tests.second_user import Fork
from tests.serving import (
    Journal,
    RawClient,
    ServerThread,
    held_service,
    loop_names,
    resident_bytes,
    takes_less_than,
)

import hostline
from hostline.limits import FRAMES_PER_TURN, HIGH_WATER, MAX_CALLS_PER_CONNECTION
from hostline.wire.codec import ClientHello, ErrorCode, GoawayCode, decode_failure, decode_farewell, encode_hello
from hostline.wire.frame import HEADER, Frame, Kind, encode_frame

MIB = 1 << 20


@pytest.fixture(params=loop_names())
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    made = threading.Event()
    yield made
    made.set()


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def address(sock_dir: Path) -> str:
    return str(sock_dir / "s")


def giving_service() -> hostline.Service:
    """A service whose answers are as large, and whose handlers as slow, as the caller likes."""
    service = hostline.Service("giving")

    @service.method(inline=True)
    def give(size: int) -> bytes:
        return b"x" * size

    @service.method
    async def give_later(size: int) -> bytes:
        return b"x" * size

    @service.method
    def give_from_thread(size: int) -> bytes:
        return b"x" * size

    @service.method(inline=True)
    def dawdle(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    @service.method(inline=True, raises=ValueError)
    def complain(size: int) -> None:
        raise ValueError("x" * size)

    return service


def farewell_of(frames: list[Frame]) -> Any:
    assert frames, "the server said nothing before it closed"
    assert frames[-1].kind == Kind.GOAWAY
    return decode_farewell(frames[-1].payload)


# --- what a handler leaves ---------------------------------------------------------------------------


def test_a_handler_that_fails_when_nobody_waits_any_more_is_in_the_log(
    address: str, loop: str, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    service = hostline.Service("late")

    @service.method
    def fail_late() -> None:
        gate.wait(10)
        raise ZeroDivisionError("a fault that shows late")

    @service.method
    async def obey() -> None:
        await asyncio.sleep(10)

    with ServerThread(service, address, loop=loop) as server, RawClient(address) as client:
        client.call(1, "fail_late", time_left=0.05)
        client.call(2, "obey", time_left=0.05)
        assert {decode_failure(client.read().payload).code for _ in range(2)} == {ErrorCode.DEADLINE}
        gate.set()
        server.wait_idle()
        [record] = [record for record in caplog.records if record.exc_info]
        assert "late.fail_late failed" in record.getMessage()


# --- time limits ---------------------------------------------------------------------------------------


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostline.aio.serving.session.HANDSHAKE_TIMEOUT", 0.3)
    monkeypatch.setattr("hostline.aio.serving.session.FRAME_TIMEOUT", 0.3)
    monkeypatch.setattr("hostline.aio.serving.session.SLOW_READER_TIMEOUT", 0.3)


HELLO = encode_hello(ClientHello(program="raw"))


@pytest.mark.usefixtures("short_limits")
@pytest.mark.parametrize("first_bytes", [b"", HELLO[:1], HELLO[:-1]], ids=["nothing", "one byte", "all but one"])
def test_a_peer_that_does_not_introduce_itself_is_cut_off(address: str, loop: str, first_bytes: bytes) -> None:
    with ServerThread(giving_service(), address, loop=loop) as server, RawClient(address, hello=False) as client:
        client.sock.sendall(first_bytes)
        with takes_less_than(3):
            farewell = farewell_of(client.read_until_end())
        assert (farewell.code, farewell.reason) == (GoawayCode.TIMEOUT, "no hello within 0.3 seconds")
        assert server.connection_count == 0


@pytest.mark.usefixtures("short_limits")
def test_a_frame_that_comes_in_drips_is_cut_off_though_bytes_keep_coming(address: str, loop: str) -> None:
    with ServerThread(giving_service(), address, loop=loop) as server, RawClient(address) as client:
        frame = client.encode(1, "give", 10)
        with takes_less_than(3), pytest.raises((BrokenPipeError, ConnectionResetError)):
            for place in range(200):
                client.sock.sendall(frame[place % 10 : place % 10 + 1] if place else frame[:1])
                time.sleep(0.02)
        assert server.connection_count == 0


@pytest.mark.usefixtures("short_limits")
def test_frames_of_any_kind_that_come_in_halves_are_progress(address: str, loop: str) -> None:
    ping = encode_frame(Kind.PING)
    with ServerThread(giving_service(), address, loop=loop), RawClient(address) as client:
        client.sock.sendall(ping[:9])
        for _ in range(10):
            time.sleep(0.1)
            client.sock.sendall(ping[9:] + ping[:9])
        client.sock.sendall(ping[9:])
        assert {client.read().kind for _ in range(10)} == {Kind.PONG}


@pytest.mark.usefixtures("short_limits")
def test_a_peer_that_is_idle_between_frames_stays(address: str, loop: str) -> None:
    with ServerThread(giving_service(), address, loop=loop), RawClient(address) as client:
        time.sleep(0.7)
        client.call(1, "give", 10)
        assert client.read().kind == Kind.REPLY


@pytest.mark.usefixtures("short_limits")
def test_each_frame_has_the_time_for_itself(address: str, loop: str) -> None:
    with ServerThread(giving_service(), address, loop=loop), RawClient(address) as client:
        stream = b"".join(client.encode(number, "give", 10) for number in range(1, 9))
        step = len(stream) // 16  # never at the end of a frame, so that one is always begun
        for start in range(0, len(stream), step):
            client.sock.sendall(stream[start : start + step])
            time.sleep(0.04)
        assert [client.read().call_id for _ in range(8)] == list(range(1, 9))


@pytest.mark.usefixtures("short_limits")
def test_a_frame_that_we_ourselves_do_not_read_on_is_not_held_against_its_sender(
    address: str, loop: str, gate: threading.Event, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostline.aio.serving.calls.MAX_CALLS_PER_CONNECTION", 4)
    with ServerThread(held_service(journal, gate), address, loop=loop) as server, RawClient(address) as client:
        large = "x" * 200_000  # more than one read takes, so that the last frame stays begun
        for number in range(1, 5):
            client.call(number, "task", f"{number}")
        journal.wait_for("started", 4)
        sending = threading.Thread(target=client.call, args=(5, "task", large))
        sending.start()
        time.sleep(0.8)
        assert server.connection_count == 1
        gate.set()
        assert sorted(client.read().call_id for _ in range(5)) == [1, 2, 3, 4, 5]
        sending.join()


@pytest.mark.usefixtures("short_limits")
@pytest.mark.parametrize("method", ["give", "give_later", "give_from_thread"])
def test_a_reader_that_does_not_read_is_cut_off_and_costs_nothing_afterwards(
    address: str, loop: str, method: str
) -> None:
    with ServerThread(giving_service(), address, loop=loop, concurrency=8) as server, RawClient(address) as client:
        for number in range(1, 41):
            client.call(number, method, 200_000)
        assert wait_until(lambda: server.connection_count == 0, 5)
        server.wait_idle()
        with RawClient(address) as other:
            other.call(1, method, 10)
            assert other.read().kind == Kind.REPLY


# --- floods --------------------------------------------------------------------------------------------


def flood(client: RawClient, make: Callable[[int], bytes], count: int, seconds: float) -> int:
    """Send up to `count` frames without reading anything, until the server has taken nothing for a while."""
    sent = 0
    waiting = b""
    quiet_since = time.monotonic()
    ends = quiet_since + seconds
    while time.monotonic() < ends and time.monotonic() - quiet_since < 0.2:
        if not waiting:
            if sent == count:
                break
            batch = min(2000, count - sent)
            waiting = b"".join(make(number) for number in range(sent + 1, sent + batch + 1))
            sent += batch
        taken = client.send_some(waiting)
        if taken:
            waiting = waiting[taken:]
            quiet_since = time.monotonic()
        else:
            time.sleep(0.002)
    return sent


FLOODS: dict[str, Callable[[RawClient, int], bytes]] = {
    "small answers": lambda client, number: client.encode(number, "give", 10),
    "answers below the mark": lambda client, number: client.encode(number, "give", 200_000),
    "large answers": lambda client, number: client.encode(number, "give", MIB - 100),
    "large answers of tasks": lambda client, number: client.encode(number, "give_later", MIB - 100),
    "large answers of threads": lambda client, number: client.encode(number, "give_from_thread", MIB - 100),
    "long errors": lambda client, number: client.encode(number, "complain", 4000),
    "unknown methods": lambda _, number: encode_frame(Kind.CALL, number, b"\x90", method=999),
    "wrong arguments": lambda client, number: client.encode(number, "give_later", "x" * 10),
    "pings": lambda _, number: encode_frame(Kind.PING),
    "cancels": lambda client, number: encode_frame(Kind.CANCEL, number),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_a_peer_that_never_reads_stays_in_its_own_socket(address: str, loop: str, kind: str) -> None:
    with ServerThread(giving_service(), address, loop=loop) as server, hostline.connect(address) as bystander:
        bystander.call("give", 1)
        with RawClient(address) as client:
            client.decoder = None  # type: ignore[assignment]
            before = resident_bytes()
            most = before
            done = threading.Event()

            def watch() -> None:
                nonlocal most
                while not done.wait(0.01):
                    most = max(most, resident_bytes())

            watcher = threading.Thread(target=watch)
            watcher.start()
            delays = []
            try:
                flooder = threading.Thread(
                    target=flood, args=(client, lambda number: FLOODS[kind](client, number), 100_000, 2.5)
                )
                flooder.start()
                while flooder.is_alive():
                    started = time.perf_counter()
                    bystander.call("give", 1, timeout=10)
                    delays.append(time.perf_counter() - started)
                    time.sleep(0.005)
                flooder.join()
            finally:
                done.set()
                watcher.join()
            # 64 handlers may have an answer of a mebibyte each, and it encoded, before their peer is found not to read.
            assert most - before < 160 * MIB, f"{(most - before) / MIB:.1f} MiB more than before"
            # The flood is tens of mebibytes: whoever had to wait for it would wait for seconds.
            assert max(delays) < 5.0
            assert statistics.median(delays) < 1.0
        assert wait_until(lambda: server.connection_count == 1)
        server.wait_idle()


@pytest.mark.alone
def test_a_flood_of_slow_inline_calls_leaves_the_others_their_turns(address: str, loop: str) -> None:
    """Sixty-four kibibytes hold some 2,000 such calls: served in one go they would take two seconds."""
    with ServerThread(giving_service(), address, loop=loop), hostline.connect(address) as bystander:
        with RawClient(address) as client:
            client.sock.sendall(b"".join(client.encode(number, "dawdle", 0.001) for number in range(1, 2000)))
            delays = []
            for _ in range(3):
                started = time.perf_counter()
                bystander.call("give", 1, timeout=20)
                delays.append(time.perf_counter() - started)
            # Its turn comes after one of theirs, or two where the call arrives in between.
            assert max(delays) < 0.001 * FRAMES_PER_TURN * 2 + 0.5
            assert client.read().kind == Kind.REPLY


def test_no_more_calls_are_taken_from_a_peer_than_it_may_have_open(
    address: str, loop: str, gate: threading.Event, journal: Journal
) -> None:
    with ServerThread(held_service(journal, gate), address, loop=loop, concurrency=10_000) as server:
        with RawClient(address) as client:
            flood(client, lambda number: client.encode(number, "task", "x"), 20_000, 1.5)
            journal.wait_for("started", MAX_CALLS_PER_CONNECTION)
            assert server.running_count == MAX_CALLS_PER_CONNECTION
            assert journal.count("started") == MAX_CALLS_PER_CONNECTION
        assert wait_until(lambda: server.running_count == 0)
        assert journal.count("cancelled") == MAX_CALLS_PER_CONNECTION


def test_answers_of_one_turn_that_are_not_read_stay_below_the_mark(address: str, loop: str) -> None:
    """A few kilobytes of calls may not make the server hold tens of megabytes of answers."""
    with ServerThread(giving_service(), address, loop=loop) as server, RawClient(address) as client:
        client.sock.sendall(b"".join(client.encode(number, "give", 250_000) for number in range(1, 129)))

        def unsent() -> int:
            sizes: list[int] = server.do(lambda server: [session._outgoing.size for session in server._sessions])
            return sum(sizes)

        assert wait_until(lambda: unsent() > HIGH_WATER)
        time.sleep(0.1)
        assert unsent() <= HIGH_WATER + 2 * 250_100
        assert sorted(client.read().call_id for _ in range(128)) == list(range(1, 129))


def test_a_queue_that_one_peer_fills_has_a_place_for_another(
    address: str, loop: str, gate: threading.Event, journal: Journal
) -> None:
    service = held_service(journal, gate)
    with (
        ServerThread(service, address, loop=loop, concurrency=1, queue=4) as server,
        RawClient(address) as greedy,
        RawClient(address) as modest,
    ):
        for number in range(1, 6):
            greedy.call(number, "task", str(number))
        assert wait_until(lambda: server.waiting_count == 4)
        modest.call(1, "task", "modest")
        frame = greedy.read()
        assert (frame.call_id, decode_failure(frame.payload).code) == (5, ErrorCode.OVERLOADED)
        assert server.waiting_count == 4
        gate.set()
        assert modest.read().kind == Kind.REPLY
        assert sorted(greedy.read().call_id for _ in range(4)) == [1, 2, 3, 4]
        server.wait_idle()


def test_a_peer_that_does_not_read_gets_no_new_handler_started(address: str, loop: str, journal: Journal) -> None:
    service = hostline.Service("counting")
    count = 0

    @service.method
    async def give(size: int) -> bytes:
        nonlocal count
        count += 1
        return b"x" * size

    with ServerThread(service, address, loop=loop, concurrency=4) as server, RawClient(address) as client:
        # In one piece: the server stops reading early, and a hundred small sends may not fit into the socket's buffer.
        client.sock.sendall(b"".join(client.encode(number, "give", 500_000) for number in range(1, 101)))
        settled = -1
        while settled != count:
            settled = count
            time.sleep(0.1)
        # What fits above the mark, the socket's own buffer, and one answer for each slot.
        assert count <= HIGH_WATER // 500_000 + 1 + 4 + 2
        # Once it reads, everything is answered.
        assert sorted(client.read().call_id for _ in range(100)) == list(range(1, 101))
        server.wait_idle()


@pytest.mark.parametrize("method", ["give", "give_later", "give_from_thread"])
@pytest.mark.parametrize("size", [10, 5_000, 100_000, 600_000])
def test_a_slow_reader_that_does_read_gets_every_answer_once(address: str, loop: str, method: str, size: int) -> None:
    count = 1000 if size < 100_000 else 100
    with ServerThread(giving_service(), address, loop=loop) as server, RawClient(address) as client:
        calls = b"".join(client.encode(number, method, size) for number in range(1, count + 1))
        sending = threading.Thread(target=client.sock.sendall, args=(calls,))
        sending.start()
        ids = []
        for number in range(count):
            frame = client.read()
            assert frame.kind == Kind.REPLY, decode_failure(frame.payload)
            ids.append(frame.call_id)
            if number % max(1, count // 20) == 0:
                time.sleep(0.005)
        assert sorted(ids) == list(range(1, count + 1))
        sending.join()
        server.wait_idle()


def test_a_queue_full_of_wrong_calls_does_not_end_the_server(
    address: str, loop: str, gate: threading.Event, journal: Journal
) -> None:
    with ServerThread(held_service(journal, gate), address, loop=loop, concurrency=1, queue=2000) as server:
        first = RawClient(address)
        first.call(1, "stubborn", "first")
        journal.wait_for("started first")
        clients = [RawClient(address) for _ in range(8)]
        for client in clients:
            client.sock.sendall(b"".join(client.encode(number, "task", 5) for number in range(1, 241)))
        assert wait_until(lambda: server.waiting_count == 8 * 240)
        gate.set()
        for client in clients:
            codes = {decode_failure(client.read().payload).code for _ in range(240)}
            assert codes == {ErrorCode.INVALID_ARGUMENT}
            client.close()
        assert first.read().kind == Kind.REPLY
        first.close()
        server.wait_idle()


# --- cancelling and leaving ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["task", "thread"])
def test_a_cancel_reaches_a_running_handler(
    address: str, loop: str, gate: threading.Event, journal: Journal, method: str
) -> None:
    with ServerThread(held_service(journal, gate), address, loop=loop) as server, RawClient(address) as client:
        client.call(7, method, "a")
        journal.wait_for("started a")
        client.sock.sendall(encode_frame(Kind.CANCEL, 7))
        frame = client.read()
        assert (frame.kind, frame.call_id) == (Kind.ERROR, 7)
        assert decode_failure(frame.payload).code == ErrorCode.CANCELLED
        journal.wait_for("cancelled a")
        client.sock.sendall(encode_frame(Kind.CANCEL, 7) + encode_frame(Kind.CANCEL, 999))  # too late, and unknown
        client.call(8, "quick", "b")
        assert client.read().call_id == 8
        server.wait_idle()
        assert server.stats().calls.cancelled == 1


def test_a_cancel_takes_a_waiting_call_out_of_the_queue(
    address: str, loop: str, gate: threading.Event, journal: Journal
) -> None:
    with ServerThread(held_service(journal, gate), address, loop=loop, concurrency=1) as server:
        with RawClient(address) as client:
            client.call(1, "task", "first")
            client.call(2, "task", "second")
            client.call(3, "task", "third")
            assert wait_until(lambda: server.waiting_count == 2)
            client.sock.sendall(encode_frame(Kind.CANCEL, 2))
            assert decode_failure(client.read().payload).code == ErrorCode.CANCELLED
            gate.set()
            assert [client.read().call_id for _ in range(2)] == [1, 3]
        assert journal.count("started second") == 0
        server.wait_idle()


def test_an_id_may_be_used_again_once_it_was_answered(
    address: str, loop: str, gate: threading.Event, journal: Journal
) -> None:
    """Also while the handler of the cancelled call, which hears nothing, still runs."""
    with ServerThread(held_service(journal, gate), address, loop=loop) as server, RawClient(address) as client:
        client.call(5, "stubborn", "old")
        journal.wait_for("started old")
        client.sock.sendall(encode_frame(Kind.CANCEL, 5))
        assert decode_failure(client.read().payload).code == ErrorCode.CANCELLED
        client.call(5, "task", "new")
        journal.wait_for("started new")
        gate.set()
        frame = client.read()
        assert (frame.kind, frame.call_id, frame.payload) == (Kind.REPLY, 5, b"\xa3new")
        server.wait_idle()
        with pytest.raises(TimeoutError):
            client.read(timeout=0.1)


@pytest.mark.parametrize("method", ["task", "thread"])
@pytest.mark.parametrize("ending", ["close", "reset", "half-close"])
def test_the_calls_of_a_peer_that_leaves_are_cancelled(
    address: str, loop: str, gate: threading.Event, journal: Journal, method: str, ending: str
) -> None:
    with ServerThread(held_service(journal, gate), address, loop=loop, concurrency=3) as server:
        with RawClient(address) as client:
            for number in range(1, 7):
                client.call(number, method, f"{number}")
            assert wait_until(lambda: (server.running_count, server.waiting_count) == (3, 3))
            journal.wait_for("started", 3)
            if ending == "half-close":
                client.sock.shutdown(socket.SHUT_WR)
            elif ending == "reset":
                client.sock.sendall(encode_frame(Kind.PING))  # its answer is never read, so that the close resets
                assert wait_until(lambda: client.sock.recv(1, socket.MSG_PEEK), 2)
                client.close()
            else:
                client.close()
            journal.wait_for("cancelled", 3)
        server.wait_idle()
        assert journal.count("started") == 3
        assert wait_until(lambda: server.connection_count == 0)


def call_and_wait(address: str, flood_first: bool) -> None:
    """Make calls that hold, tell so by the count of them at the server, and wait to be killed."""
    client = RawClient(address)
    if flood_first:
        flood(client, lambda number: client.encode(number, "task", f"{number}"), 50_000, 10)
    else:
        client.call(1, "task", "1")
        client.call(2, "thread", "2")
    time.sleep(60)


@pytest.mark.parametrize("flood_first", [False, True], ids=["two calls", "while nothing is read from it"])
def test_the_calls_of_a_peer_that_is_killed_are_cancelled(
    address: str, loop: str, gate: threading.Event, journal: Journal, flood_first: bool
) -> None:
    count = MAX_CALLS_PER_CONNECTION if flood_first else 2
    with ServerThread(held_service(journal, gate), address, loop=loop, concurrency=1000) as server:
        with Fork(os.geteuid(), call_and_wait, address, flood_first, gid=os.getegid(), groups=None) as child:
            journal.wait_for("started", count)
            os.kill(child.pid, signal.SIGKILL)
            with takes_less_than(2):
                journal.wait_for("cancelled", count)
        server.wait_idle()
        assert wait_until(lambda: server.connection_count == 0)
        assert journal.count("started") == count


# --- the protocol --------------------------------------------------------------------------------------


def header(length: int = 0, kind: int = Kind.CALL, flags: int = 0, fds: int = 0, call_id: int = 1) -> bytes:
    return HEADER.pack(length, kind, flags, fds, call_id, 0)


VIOLATIONS: dict[str, tuple[bool, bytes, str]] = {
    "http": (False, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "kind|exceeds"),
    "zeros": (False, bytes(64), "kind 0"),
    "wrong magic": (False, encode_frame(Kind.HELLO, 0, b"lineline\x80"), "magic"),
    "hello of another version": (False, encode_hello(ClientHello(version=99, program="x")), "version 99"),
    "large hello": (False, header(1 << 30, Kind.HELLO, call_id=0), "exceeds"),
    "call before hello": (False, encode_frame(Kind.CALL, 1, b"\x90"), "out of place"),
    "second hello": (True, HELLO, "out of place"),
    "reply": (True, encode_frame(Kind.REPLY, 1, b"\xc0"), "out of place"),
    "unknown kind": (True, header(kind=77), "kind 77"),
    "unknown flag": (True, header(flags=0x80), "flags"),
    "announced descriptors": (True, header(fds=3), "3 descriptors"),
    "too large": (True, header((2 << 20) + 1), "exceeds max_frame_size"),
    "enormous": (True, header(0xFFFF_FFFF), "exceeds max_frame_size"),
    "id 0": (True, encode_frame(Kind.CALL, 0, b"\x90"), "id 0"),
    "id twice": (True, encode_frame(Kind.CALL, 1, b"\x91\xa1a") * 2, "in flight already"),
    "deadline cut short": (True, encode_frame(Kind.CALL, 1, b"\x90", flags=1), "time left"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_ends_the_connection_with_a_reason_and_nothing_else(
    address: str, loop: str, gate: threading.Event, journal: Journal, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    has_greeted, data, words = VIOLATIONS[name]
    with ServerThread(held_service(journal, gate), address, loop=loop) as server, RawClient(address) as bystander:
        with RawClient(address, hello=has_greeted) as client:
            client.sock.sendall(data)
            farewell = farewell_of(client.read_until_end())
            assert farewell.code in (GoawayCode.PROTOCOL, GoawayCode.VERSION)
            assert any(word in farewell.reason for word in words.split("|")), farewell.reason
        assert wait_until(lambda: server.connection_count == 1)
        server.wait_idle()
        bystander.call(1, "quick", "still here")
        assert bystander.read().kind == Kind.REPLY
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "broke the protocol" in record.getMessage()
    assert f"pid {os.getpid()}" in record.getMessage()


def test_a_method_number_beyond_the_hello_fails_that_call_only(address: str, loop: str) -> None:
    with ServerThread(giving_service(), address, loop=loop), RawClient(address) as client:
        client.sock.sendall(encode_frame(Kind.CALL, 1, b"\x90", method=200))
        failure = decode_failure(client.read().payload)
        assert failure.code == ErrorCode.NOT_FOUND
        assert "200" in failure.message
        client.call(2, "give", 1)
        assert client.read().kind == Kind.REPLY


@pytest.mark.parametrize("method", ["give", "give_later"])
@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", b"\x91", b"\x81\x01\x02", b"\xdd\xff\xff\xff\xff", b"\x91" * 500, b"\x90\x90", b"\xa3abc"],
    ids=lambda payload: payload[:6].hex() or "empty",
)
def test_arguments_that_are_no_arguments_fail_that_call_only(
    address: str, loop: str, method: str, payload: bytes
) -> None:
    with ServerThread(giving_service(), address, loop=loop) as server, RawClient(address) as client:
        number = client.methods[method]
        client.sock.sendall(encode_frame(Kind.CALL, 1, payload, method=number))
        client.sock.sendall(encode_frame(Kind.CALL, 2, struct.pack("<Q", 10**6) + payload, flags=3, method=number))
        for call_id in (1, 2):
            frame = client.read()
            assert (frame.kind, frame.call_id) == (Kind.ERROR, call_id)
            assert decode_failure(frame.payload).code == ErrorCode.INVALID_ARGUMENT
        server.wait_idle()


def test_pings_are_answered(address: str, loop: str) -> None:
    with ServerThread(giving_service(), address, loop=loop), RawClient(address) as client:
        client.sock.sendall(encode_frame(Kind.PING))
        assert client.read().kind == Kind.PONG


def test_answers_to_pipelined_calls_leave_together(address: str, loop: str) -> None:
    """A hundred answers in a few system calls, not a hundred: what a pipelining client is there for."""
    with ServerThread(giving_service(), address, loop=loop), RawClient(address) as client:
        client.sock.sendall(b"".join(client.encode(number, "give", 1) for number in range(1, 101)))
        reads = 0
        frames: list[Frame] = []
        while len(frames) < 100:
            frames += client.decoder.receive_data(client.sock.recv(1 << 16))
            reads += 1
        assert reads <= 20
        assert [frame.call_id for frame in frames] == list(range(1, 101))


# --- many at once --------------------------------------------------------------------------------------


def test_random_cancellations_leave_nothing_behind(address: str, loop: str, journal: Journal) -> None:
    """Calls and cancels in one stream: each call is answered exactly once, and every slot comes back."""
    service = hostline.Service("pausing")

    @service.method
    async def pause(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    with ServerThread(service, address, loop=loop, concurrency=16, queue=10_000) as server:
        with RawClient(address) as client:
            pieces = []
            for number in range(1, 3001):
                pieces.append(client.encode(number, "pause", number % 7))
                if number % 3 == 0:
                    pieces.append(encode_frame(Kind.CANCEL, max(1, number - number % 5)))
            sending = threading.Thread(target=client.sock.sendall, args=(b"".join(pieces),))
            sending.start()
            ids = [client.read().call_id for _ in range(3000)]
            sending.join()
            assert sorted(ids) == list(range(1, 3001))
            with pytest.raises(TimeoutError):
                client.read(timeout=0.1)
        server.wait_idle()
