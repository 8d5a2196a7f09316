"""The blocking line: its pool, many threads, and the connections that are thrown away."""

from __future__ import annotations

import gc
import math
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.leaks import wait_until
from tests.serving import Conversation, Journal, ScriptedServer, ServerThread, held_service, takes_less_than

import hostline
from hostline.clock import poll_milliseconds
from hostline.errors import (
    ClosedError,
    ConnectTimeoutError,
    DeadlineExceededError,
    PeerRefusedError,
    UnavailableError,
)
from hostline.rpc.calling import LineSettings
from hostline.sync.caller import Caller
from hostline.sync.pool import Loan
from hostline.wire.codec import ServerHello, encode_hello, encode_reply
from hostline.wire.frame import Kind, encode_frame


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


@pytest.fixture
def server(address: str, journal: Journal, gate: threading.Event) -> Iterator[ServerThread]:
    service = held_service(journal, gate)

    @service.method(inline=True)
    def echo(value: int) -> int:
        return value

    @service.method
    async def later(value: int, seconds: float) -> int:
        import asyncio

        await asyncio.sleep(seconds)
        return value

    with ServerThread(service, address) as started:
        yield started


Submit = Callable[..., Any]


@pytest.fixture
def submit(gate: threading.Event) -> Iterator[Submit]:
    """Give `submit(function, *args, **keywords)`, which runs it in a thread and returns its future."""
    with ThreadPoolExecutor(64) as threads:
        yield threads.submit
        gate.set()


# --- sizes ---------------------------------------------------------------------------------------------


def test_one_thread_uses_one_connection(server: ServerThread, address: str) -> None:
    with hostline.connect(address) as line:
        for number in range(100):
            assert line.call("echo", number) == number
        assert line.pool_size == 1
        assert server.stats().connections_total == 1


def test_the_minimum_is_opened_at_once(server: ServerThread, address: str) -> None:
    with hostline.connect(address, min_size=4, max_size=6) as line:
        assert line.pool_size == 4
        assert wait_until(lambda: server.connection_count == 4)
    assert wait_until(lambda: server.connection_count == 0)


def test_the_maximum_is_kept_and_further_callers_wait_their_turn(
    server: ServerThread, address: str, journal: Journal, gate: threading.Event, submit: Submit
) -> None:
    with hostline.connect(address, max_size=3) as line:
        calls = [submit(line.call, "task", f"{number}") for number in range(10)]
        journal.wait_for("started", 3)
        time.sleep(0.1)
        assert journal.count("started") == 3
        assert (line.pool_size, server.connection_count) == (3, 3)
        gate.set()
        assert [call.result(5) for call in calls] == [f"{number}" for number in range(10)]
        assert server.stats().connections_total == 3


def test_waiting_for_a_place_ends_with_the_deadline(
    server: ServerThread, address: str, journal: Journal, gate: threading.Event, submit: Submit
) -> None:
    with hostline.connect(address, max_size=1) as line:
        held = submit(line.call, "task", "a")
        journal.wait_for("started a")
        with takes_less_than(2), pytest.raises(DeadlineExceededError, match="all 1 connections of the pool were busy"):
            line.call("echo", 1, timeout=0.1)
        gate.set()
        assert held.result(5) == "a"
        assert line.call("echo", 1) == 1


def test_a_connection_that_comes_back_as_the_first_in_line_gives_up_is_not_lost(
    server: ServerThread, address: str, submit: Submit
) -> None:
    with hostline.connect(address, max_size=1) as line:
        pool = line._pool
        loan = Loan()
        assert pool.acquire(loan, 1) is not None
        impatient = submit(line.call, "echo", 1, timeout=0.2)
        assert wait_until(lambda: pool.waiting_count == 1)
        patient = submit(line.call, "echo", 2, timeout=10)
        assert wait_until(lambda: pool.waiting_count == 2)
        with pool._lock:  # the impatient one's time runs out while it cannot take the lock
            time.sleep(0.4)
            pool._take_back(loan)
        with takes_less_than(2):
            assert patient.result(5) == 2
        try:
            assert impatient.result(5) == 1
        except DeadlineExceededError:
            pass
        assert (line.pool_size, pool.idle_count, pool.waiting_count) == (1, 1, 0)


def test_threads_that_call_without_a_pause_do_not_keep_others_from_their_turn(
    server: ServerThread, address: str, submit: Submit
) -> None:
    with hostline.connect(address, max_size=2) as line:
        stop = threading.Event()
        counts = [0] * 5

        def work(place: int) -> None:
            while not stop.is_set():
                line.call("echo", place, timeout=10)
                counts[place] += 1

        works = [submit(work, place) for place in range(5)]
        time.sleep(0.5)
        stop.set()
        for done in works:
            done.result(5)
        assert min(counts) > max(counts) / 3, counts


def test_connections_unused_for_long_are_closed_down_to_the_minimum(
    server: ServerThread, address: str, journal: Journal, gate: threading.Event, submit: Submit
) -> None:
    with hostline.connect(address, min_size=2, max_size=10, idle_lifetime=0.3) as line:
        calls = [submit(line.call, "task", f"{number}") for number in range(6)]
        journal.wait_for("started", 6)
        gate.set()
        for call in calls:
            call.result(5)
        assert line.pool_size == 6
        time.sleep(0.4)
        line.call("echo", 1)  # without a thread of its own the pool tidies up when it is used
        assert line.pool_size == 2
        assert wait_until(lambda: server.connection_count == 2)


def test_the_connection_used_last_is_used_first(server: ServerThread, address: str, submit: Submit) -> None:
    service_ids: set[int] = set()
    with hostline.connect(address, min_size=5, max_size=5) as line:
        for number in range(20):
            assert line.call("echo", number) == number
            service_ids.add(id(line._pool._pool._idle[-1][1]))
        assert len(service_ids) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"min_size": -1},
        {"max_size": 0},
        {"min_size": 5, "max_size": 3},
        {"idle_lifetime": 0},
        {"connect_timeout": -1},
        {"connect_timeout": 0},
        {"timeout": -1},
        {"wait": -1},
        {"reconnect_timeout": -1},
        {"max_frame_size": 10},
    ],
    ids=str,
)
def test_bounds_that_make_no_sense_are_refused(server: ServerThread, address: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        hostline.connect(address, **options)
    assert wait_until(lambda: server.connection_count == 0)


# --- what is thrown away -------------------------------------------------------------------------------


def test_a_connection_with_half_an_answer_is_thrown_away(address: str) -> None:
    def send_half(conversation: Conversation) -> None:
        conversation.greet()
        frame = conversation.read_call()
        conversation.send(encode_reply(frame.call_id, "x" * 1000)[:500])
        conversation.read_call()

    def answer(conversation: Conversation) -> None:
        conversation.greet()
        conversation.send(encode_reply(conversation.read_call().call_id, "whole"))
        conversation.read()

    with ScriptedServer(address, send_half, answer) as server, hostline.connect(address) as line:
        with pytest.raises(DeadlineExceededError):
            line.call("act", timeout=0.2)
        assert line.call("act") == "whole"
        assert len(server.conversations) == 2


def test_a_call_interrupted_by_an_exception_leaves_no_connection_behind_that_awaits_its_answer(
    server: ServerThread, address: str, journal: Journal, gate: threading.Event
) -> None:
    """As Control-C does, in the middle of the wait."""

    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with hostline.connect(address, max_size=1) as line:
            for number in range(10):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                with pytest.raises(Interrupted):
                    line.call("task", f"held {number}")
                assert line.call("echo", number) == number  # and its place in the pool is free
            journal.wait_for("cancelled", 10)
            assert line.pool_size == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_connections_that_died_while_idle_are_noticed_by_the_next_call(address: str, journal: Journal) -> None:
    gate = threading.Event()
    gate.set()
    with ServerThread(held_service(journal, gate), address):
        line = hostline.connect(address, min_size=5, max_size=5)
    with ServerThread(held_service(journal, gate), address) as server:
        for number in range(8):
            assert line.call("quick", f"{number}") == f"{number}"
        assert line.pool_size <= 5
        assert server.stats().methods["quick"] == 8
        line.close()


def test_errors_of_calls_do_not_cost_the_connection(server: ServerThread, address: str) -> None:
    with hostline.connect(address) as line:
        for _ in range(20):
            with pytest.raises(hostline.InvalidArgumentError):
                line.call("echo", "x")
            with pytest.raises(hostline.MethodNotFoundError):
                line.call("nothing")
            with pytest.raises(hostline.InvalidResultError):
                line.call("echo", 1, returns=str)
        assert server.stats().connections_total == 1


# --- threads -------------------------------------------------------------------------------------------


def test_many_threads_get_their_own_answers(server: ServerThread, address: str, submit: Submit) -> None:
    with hostline.connect(address, max_size=7) as line:

        def work(seed: int) -> int:
            rng = random.Random(seed)
            for number in range(100):
                value = seed * 1000 + number
                if rng.random() < 0.1:
                    try:
                        assert line.call("later", value, rng.random() * 0.004, timeout=0.002) == value
                    except DeadlineExceededError:
                        pass
                else:
                    assert line.call("echo", value) == value
            return seed

        works = [submit(work, seed) for seed in range(24)]
        assert [work.result(15) for work in works] == list(range(24))
        assert line.pool_size <= 7
        assert line._pool.waiting_count == 0
    server.wait_idle()
    assert wait_until(lambda: server.connection_count == 0)


def test_closing_wakes_those_who_wait_and_those_who_are_served(
    server: ServerThread, address: str, journal: Journal, submit: Submit
) -> None:
    line = hostline.connect(address, max_size=2)
    calls = [submit(line.call, "task", f"{number}", timeout=30) for number in range(6)]
    journal.wait_for("started", 2)
    assert wait_until(lambda: line._pool.waiting_count == 4)
    with takes_less_than(2):
        line.close()
        for call in calls:
            with pytest.raises(ClosedError):
                call.result(5)
    assert wait_until(lambda: server.connection_count == 0)
    journal.wait_for("cancelled", 2)
    assert line.pool_size == 0


def test_closing_wakes_those_who_wait_for_a_server_that_went_away(
    address: str, submit: Submit, journal: Journal, gate: threading.Event
) -> None:
    with ServerThread(held_service(journal, gate), address):
        line = hostline.connect(address, reconnect_timeout=20)
    call = submit(line.call, "quick", "x", timeout=20)
    time.sleep(0.2)
    with takes_less_than(3):
        line.close()
        with pytest.raises(ClosedError):
            call.result(10)


def test_closing_while_everybody_calls_never_hangs_nor_leaks(server: ServerThread, address: str) -> None:
    for _ in range(20):
        line = hostline.connect(address, max_size=4)
        ended: list[type[BaseException]] = []

        def work(line: hostline.Line = line, ended: list[type[BaseException]] = ended) -> None:
            try:
                while True:
                    line.call("echo", 1, timeout=10)
            except BaseException as error:
                ended.append(type(error))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.01)
        line.close()
        for thread in threads:
            thread.join(5)
            assert not thread.is_alive()
        assert set(ended) == {ClosedError}
    assert wait_until(lambda: server.connection_count == 0)


def test_closing_ends_a_call_that_waits_to_be_greeted(address: str, submit: Submit) -> None:
    released = threading.Event()

    def say_nothing(_: Conversation) -> None:
        released.wait(10)

    with ScriptedServer(address, lambda conversation: conversation.greet(), say_nothing) as server:
        line = hostline.connect(address, connect_timeout=8)
        assert server.conversations[0].has_left.wait(10)
        call = submit(line.call, "act", timeout=20)
        assert wait_until(lambda: len(server.conversations) == 2)
        time.sleep(0.1)
        with takes_less_than(3):
            line.close()
            with pytest.raises(ClosedError):
                call.result(10)
        assert line.pool_size == 0
        released.set()


def test_closing_ends_a_call_that_waits_in_a_full_backlog(address: str, submit: Submit) -> None:
    import socket

    gate = threading.Event()
    gate.set()
    with ServerThread(held_service(Journal(), gate), address):
        line = hostline.connect(address, connect_timeout=15)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as crowd:
        Path(address).unlink(missing_ok=True)
        listener.bind(address)
        listener.listen(0)
        crowd.connect(address)
        call = submit(line.call, "quick", "x", timeout=20)
        assert wait_until(lambda: line.pool_size == 1 and line._pool.idle_count == 0)
        time.sleep(0.2)
        with takes_less_than(5):
            line.close()
            with pytest.raises(ClosedError):
                call.result(10)
    Path(address).unlink()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_exceptions_of_signal_handlers_never_cost_a_place_wherever_they_strike(
    server: ServerThread, address: str
) -> None:
    class Interrupted(BaseException):
        """Like KeyboardInterrupt, nothing that an `except Exception` takes for its own."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    rng = random.Random(5)
    interrupts = 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with hostline.connect(address, max_size=2) as line:
            end = time.monotonic() + 8
            while interrupts < 5000 and time.monotonic() < end:
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, rng.uniform(10e-6, 600e-6))
                        for number in range(20):
                            line.call("echo", number, timeout=5)
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except Interrupted:
                    interrupts += 1
                assert line.pool_size == line._pool.idle_count <= 2, f"after {interrupts} interrupts"
            assert interrupts > 200
            assert line.call("echo", 1) == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_exceptions_of_signal_handlers_never_cost_a_place_in_the_line_either(
    server: ServerThread, address: str, submit: Submit
) -> None:
    class Interrupted(BaseException):
        """Like KeyboardInterrupt."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    stop = threading.Event()

    def work(line: hostline.Line) -> None:
        while not stop.is_set():
            line.call("echo", 1, timeout=10)

    rng = random.Random(6)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with hostline.connect(address, max_size=2) as line:
            crowd = [submit(work, line) for _ in range(3)]
            end = time.monotonic() + 4
            interrupts = 0
            while interrupts < 2000 and time.monotonic() < end:
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, rng.uniform(10e-6, 1e-3))
                        for number in range(20):
                            line.call("echo", number, timeout=5)
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except Interrupted:
                    interrupts += 1
            stop.set()
            for done in crowd:
                done.result(15)
            assert interrupts > 50
            assert line.pool_size == line._pool.idle_count <= 2
            assert line._pool.waiting_count == 0
    finally:
        stop.set()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- waiting -------------------------------------------------------------------------------------------


def test_a_full_backlog_is_waited_out_until_the_calls_deadline(address: str) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(0)
        crowd = []
        for _ in range(1):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(address)
            crowd.append(sock)
        with takes_less_than(3), pytest.raises(ConnectTimeoutError):
            hostline.connect(address, connect_timeout=0.2)
        for sock in crowd:
            sock.close()


def test_a_connect_that_fails_before_the_deadline_is_not_called_a_deadline(address: str) -> None:
    """The server is there and does not greet: after `connect_timeout` that is the answer, not 20 seconds of nothing."""
    released = threading.Event()

    def greet_and_close(conversation: Conversation) -> None:
        conversation.greet()

    def say_nothing(_: Conversation) -> None:
        released.wait(10)

    with ScriptedServer(address, greet_and_close, say_nothing) as server:
        with hostline.connect(address, connect_timeout=0.3, reconnect_timeout=0.1) as line:
            assert server.conversations[0].has_left.wait(10)
            with takes_less_than(5), pytest.raises(hostline.SocketTimeoutError, match=r"no hello within 0\.3"):
                line.call("act", timeout=20)
            with takes_less_than(5), pytest.raises(DeadlineExceededError):
                line.call("act", timeout=0.1)
            assert line.pool_size == 0
        released.set()


def test_a_timeout_of_centuries_is_as_good_as_none(
    server: ServerThread, address: str, journal: Journal, gate: threading.Event, submit: Submit
) -> None:
    with hostline.connect(address, max_size=1) as line:
        held = submit(line.call, "task", "a", timeout=1e13)
        journal.wait_for("started a")
        waiting = submit(line.call, "echo", 1, timeout=1e13)
        time.sleep(0.1)
        gate.set()
        assert (held.result(5), waiting.result(5)) == ("a", 1)


def test_a_line_that_nobody_holds_any_more_closes_its_connections(server: ServerThread, address: str) -> None:
    line = hostline.connect(address)
    assert line.call("echo", 1) == 1
    reference = weakref.ref(line)
    with pytest.warns(ResourceWarning):  # of the socket: closing the line is the caller's business
        del line
    gc.collect()
    assert reference() is None
    assert wait_until(lambda: server.connection_count == 0)


def test_a_failed_connect_leaves_nothing_open(server: ServerThread, address: str) -> None:
    for _ in range(5):
        with pytest.raises(PeerRefusedError):
            hostline.connect(address, server=hostline.Peers(uids=[54321]), min_size=3)
    assert wait_until(lambda: server.connection_count == 0)


def test_the_repr_tells_the_state(server: ServerThread, address: str) -> None:
    line = hostline.connect(address)
    assert repr(line) == f"<Line {address}: 1 open, 1 idle>"
    line.close()
    assert repr(line) == f"<Line {address}: closed>"
    with pytest.raises(ClosedError):
        line.call("echo", 1)


def test_a_killed_pool_member_does_not_take_others_with_it(address: str) -> None:
    """One connection of several breaks in the middle of a call: only that call fails."""

    def answer_or_break(conversation: Conversation) -> None:
        conversation.greet()
        while True:
            frame = conversation.read_call()
            if b"break" in frame.payload:
                return
            time.sleep(0.05)
            conversation.send(encode_reply(frame.call_id, "answered"))

    with ScriptedServer(address, answer_or_break) as server, hostline.connect(address) as line:
        with ThreadPoolExecutor(8) as threads:
            good = [threads.submit(line.call, "act", "go on") for _ in range(4)]
            bad = threads.submit(line.call, "act", "break")
            assert [call.result(5) for call in good] == ["answered"] * 4
            with pytest.raises(UnavailableError):
                bad.result(5)
        assert sum(frame.kind == Kind.CALL for talk in server.conversations for frame in talk.calls) == 5


def test_a_server_that_sends_without_end_is_not_read_without_end() -> None:
    """A call that broke reads what is left: two frames and no more, however much comes."""
    import socket

    class Endless(socket.socket):
        size = 0

        def recv(self, *_: int) -> bytes:
            Endless.size += 65536
            assert Endless.size < 64 << 20, "read without end"
            return pings

    pings = encode_frame(Kind.PING, 0, b"") * 4096
    settings = LineSettings.of(
        "/tmp/x", server=None, timeout=1.0, connect_timeout=1.0, wait=0.0, reconnect_timeout=0.0, max_frame_size=65536
    )
    nobody: Any = None
    with Endless(socket.AF_UNIX) as sock:
        connection = Caller(sock, nobody, settings)
        connection.protocol.receive_data(encode_hello(ServerHello(service="s", methods=[])))
        assert connection.read_rest() == []
        assert Endless.size <= 1 << 20
        assert not connection.is_usable


@pytest.mark.parametrize("seconds", [30 * 86400.0, 1e13, 1e306, math.inf])
def test_a_wait_beyond_what_poll_takes_is_a_wait_all_the_same(seconds: float) -> None:
    one, other = hostline.socketpair()
    with one, other:
        sender = threading.Timer(0.05, other.send, [b"x"])
        sender.start()
        try:
            assert one.recv(timeout=seconds) == b"x"
        finally:
            sender.join()
    assert poll_milliseconds(seconds) in (0x7FFF_FFFF, None)


def test_a_double_takes_the_place_of_a_method_of_one_line(sock_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the tests of a program that calls, compiled or not."""
    service = hostline.Service("one")

    @service.method
    async def echo(value: int) -> int:
        return value

    with ServerThread(service, sock_dir / "s"), hostline.connect(sock_dir / "s") as line:
        with monkeypatch.context() as patch:
            patch.setattr(line, "call", lambda *_: "a double")
            assert line.call("echo", 1) == "a double"
        assert line.call("echo", 1) == 1
