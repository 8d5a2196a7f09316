"""Each peer that is installed does what its subjects promise, in processes of its own, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hostline.bench.peers import multiprocessing as multiprocessing_peer
from hostline.bench.peers.iceoryx2 import PREFIX, SHARED_MEMORY
from hostline.bench.peers.shared import ECHO, TOTAL, Answers, CallDriver, MessageDriver, message_of, number_in
from hostline.bench.plan import Entry, find_entries
from hostline.bench.processes import Process
from hostline.bench.subject import ABILITIES, Door, WrongAnswerError

ENTRIES = {entry.subject.name: entry for entry in find_entries(["hostline.bench.peers"])}
TIMEOUT = 30.0
# Enough for a pipeline to fill twice, and for a batch that is not whole.
COUNT, WINDOW = 70, 16

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the benchmark measures Linux"),
    pytest.mark.ci_required,
]


class Pair:
    """A server and its client, as a run has them."""

    def __init__(self, entry: Entry, directory: Path) -> None:
        self.door: dict[str, Any] = {"directory": str(directory), "path": str(directory / "s"), "workload": "latency"}
        self.server = Process("serve", entry.module, entry.subject, self.door, None)
        try:
            self.door["port"] = self.server.answer(TIMEOUT).facts["port"]
            self.client = Process("drive", entry.module, entry.subject, self.door, None)
        except BaseException:
            self.server.close()
            raise
        self.client.answer(TIMEOUT)

    def ask(self, action: str, count: int = COUNT, **arguments: Any) -> array[int]:
        command = {"do": action, "size": 64, "count": count, "window": WINDOW, "is_batched": False, **arguments}
        answer = self.client.ask(command, TIMEOUT)
        return array("Q", [answer.facts["elapsed"]]) if "elapsed" in answer.facts else answer.times

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def start(tmp_path: Path, hostline_dir: Path) -> Iterator[Callable[[str], Pair]]:
    pairs = []

    def start(name: str) -> Pair:
        entry = ENTRIES[name]
        missing = entry.missing()
        if missing is not None:
            pytest.skip(missing)
        directory = hostline_dir / f"d{len(pairs)}"
        directory.mkdir(mode=0o700)
        pairs.append(Pair(entry, directory))
        return pairs[-1]

    yield start
    for pair in pairs:
        pair.close()


def shared_memory_of(owner: int) -> list[str]:
    return [file.name for file in SHARED_MEMORY.glob(f"{PREFIX}{owner}_*")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_a_peer_does_what_it_is_measured_by_and_goes_when_it_is_told_to(
    name: str, start: Callable[[str], Pair]
) -> None:
    pair = start(name)
    able = ENTRIES[name].subject.workloads
    pair.client.ask({"do": "check"}, TIMEOUT)  # three sizes of random text come back as they went
    # What is wrong ends the client with WrongAnswerError, which `ask` raises.
    if "latency" in able:
        assert len(pair.ask("latency")) == COUNT
        assert min(pair.ask("latency", size=16 << 10)) > 0
    if "transfer" in able:
        assert len(pair.ask("transfer", 3, size=1_000_000)) == 3
    if "pipelined" in able:
        assert pair.ask("pipelined")[0] > 0
        assert pair.ask("pipelined", 3)[0] > 0  # fewer than the window
    if "one-way" in able:
        assert pair.ask("one_way", size=200)[0] > 0
    if "batched" in able:
        assert pair.ask("one_way", size=200, is_batched=True)[0] > 0
        assert pair.ask("one_way", size=200, is_batched=True)[0] > 0  # counted from nothing again
    if "connect" in able:
        assert len(pair.ask("reconnect", 5)) == 5
    if "fanin" in able:
        for clients in (5, 2):
            pair.client.ask({"do": "grow", "clients": clients}, TIMEOUT)
            assert len(pair.ask("latency", 12)) == 12
    if "latency" in able:
        pair.client.ask({"do": "check"}, TIMEOUT)  # nothing of all this is left in a buffer
    pid = pair.server.pids[0]
    os.kill(pid, signal.SIGTERM)  # while the client is connected
    end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert end is not None
    assert end.si_status == 0, pair.server.last_words()
    pair.close()
    assert shared_memory_of(pid) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["grpc", "HTTP asyncio", "iceoryx2", "pynng REQ/REP", "pyzmq REQ/REP", "uvloop streams"]
)
def test_four_clients_of_one_server_get_answers(name: str, start: Callable[[str], Pair]) -> None:
    pair = start(name)
    entry = ENTRIES[name]
    others = [Process("drive", entry.module, entry.subject, pair.door, None) for _ in range(3)]
    command = {"do": "pipelined", "size": 64, "count": COUNT, "window": WINDOW}
    try:
        for other in others:
            other.answer(TIMEOUT)
        for client in (pair.client, *others):
            client.tell(command, TIMEOUT)
        for client in (pair.client, *others):
            assert client.answer(TIMEOUT).facts["elapsed"] > 0
    finally:
        for other in others:
            other.close()


def test_tcp_is_measured_without_nagles_algorithm(tmp_path: Path) -> None:
    """What the other peers do by themselves, multiprocessing is told to do."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        door = Door("tcp", str(tmp_path), "", port=listener.getsockname()[1])
        driver = multiprocessing_peer.ConnectionDriver(door)
        listener.accept()[0].close()
        with socket.socket(fileno=os.dup(driver.connection.fileno())) as sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        driver.close()


def test_shared_memory_of_the_killed_is_removed_by_the_next(start: Callable[[str], Pair]) -> None:
    killed = start("iceoryx2")
    pid = killed.server.pids[0]
    assert shared_memory_of(pid)
    for process in (killed.client, killed.server):
        os.kill(process.pids[0], signal.SIGKILL)
        process.close()
    assert shared_memory_of(pid)
    next_one = start("iceoryx2")
    assert shared_memory_of(pid) == []
    assert shared_memory_of(next_one.server.pids[0])


def test_a_server_that_polls_rests_when_nobody_asks(start: Callable[[str], Pair]) -> None:
    """Most of a core would be 100 hundredths of a second; a wide bound, because it is no measurement."""
    pair = start("iceoryx2")
    pair.ask("latency")
    ticks = []
    for pause in (0.3, 1.0):
        time.sleep(pause)  # no event says that nothing happened
        fields = Path(f"/proc/{pair.server.pids[0]}/stat").read_text().rsplit(")", 1)[1].split()
        ticks.append(int(fields[11]) + int(fields[12]))
    assert ticks[1] - ticks[0] < os.sysconf("SC_CLK_TCK") * 0.6


def test_importing_a_peer_module_imports_no_peer() -> None:
    libraries = sorted({need for entry in ENTRIES.values() for need in entry.subject.needs})
    modules = sorted({entry.module for entry in ENTRIES.values()})
    code = f"import sys, {', '.join(modules)}; print(*[name for name in {libraries!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []


def test_every_workload_that_peers_can_do_is_covered() -> None:
    done = {"latency", "transfer", "pipelined", "one-way", "batched", "connect", "fanin"}
    assert {word for entry in ENTRIES.values() for word in entry.subject.workloads} == done
    assert done <= ABILITIES.keys()


# --- what finds a wrong server out -----------------------------------------------------------------------


class Loopback(MessageDriver):
    """A driver whose server is `Answers`, or one that lies."""

    def __init__(self, lie: Callable[[bytes], bytes] = bytes) -> None:
        self.answers, self.sent, self.lie = Answers(), [], lie
        self.send = self.keep
        self.recv = lambda: self.sent.pop(0)

    sent: list[bytes]

    def keep(self, message: bytes) -> None:
        answer = self.answers.to(message)
        if answer is not None:
            self.sent.append(self.lie(answer))


def test_a_message_driver_agrees_with_an_honest_server() -> None:
    driver = Loopback()
    assert driver.echo(b"abc") == b"abc"
    assert len(driver.latency(64, 3)) == len(driver.transfer(1000, 3)) == 3
    assert driver.pipelined(64, 20, 8) > 0
    assert driver.one_way(200, 20, False) > 0
    assert number_in(driver.exchange(TOTAL)) == 0
    assert driver.sent == []


def test_a_wrong_confirmation_is_found_out() -> None:
    liar = Loopback(lambda answer: answer[:-1] + bytes([answer[-1] ^ 1]))
    with pytest.raises(WrongAnswerError, match="bytes arrived, expected 1000"):
        liar.transfer(1000, 1)
    with pytest.raises(WrongAnswerError, match="messages arrived, expected 7"):
        liar.one_way(200, 7, False)
    with pytest.raises(WrongAnswerError, match="expected the 8 of a number"):
        number_in(b"short")


def test_a_message_has_the_size_that_is_asked_for() -> None:
    assert len(message_of(ECHO, 64)) == 64
    assert message_of(ECHO, 64)[:1] == ECHO


def test_a_call_that_lost_text_is_found_out() -> None:
    class Short(CallDriver):
        def value(self, text: str) -> str:
            return text

    driver = Short()
    driver.call_take = lambda text: len(text) - 1
    with pytest.raises(WrongAnswerError, match="characters arrived"):
        driver.transfer(1000, 1)
