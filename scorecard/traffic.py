"""R8, R9 and R10: a full backlog, a full descriptor table, and clients that take all the time there is."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faces import Face
from tests.leaks import wait_until
from tests.serving import ServerProcess
from tests.test_accept_loop import connect
from tests.test_connect_truth import connect_and_echo, echo_server, is_lied_to
from tests.test_hostile import HELLO

import hostline
from hostline.errors import HostlineError, SocketError
from hostline.limits import FRAME_TIMEOUT, HANDSHAKE_TIMEOUT
from hostline.wire.frame import HEADER, Kind
from scorecard.ground import Caller, Ground, cpu_seconds, p99, raise_descriptor_limit
from scorecard.rows import Skipped, Verdict, row

# --- R8 ------------------------------------------------------------------------------------------------


def connects_of_one_loop(path: Path, count: int, loop: str) -> collections.Counter[str]:
    """Connect so often at the same time from one loop; returns how each ended."""

    async def scenario(face: Face) -> list[str]:
        return list(await asyncio.gather(*(connect_and_echo(face, path, "stream", number) for number in range(count))))

    return collections.Counter(Face(loop).run(scenario))


def connects_of_threads(path: Path, count: int) -> collections.Counter[str]:
    """Connect so often from 50 threads; returns how each ended."""
    outcomes: collections.Counter[str] = collections.Counter()
    numbers = iter(range(count))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            message = b"%d" % number
            try:
                with hostline.connect_socket(path, timeout=5) as client:
                    client.send(message, timeout=10)
                    outcome = "echoed" if client.recv(timeout=10) == message else "wrong answer"
            except SocketError as error:
                outcome = type(error).__name__
            with lock:
                outcomes[outcome] += 1

    threads = [threading.Thread(target=work) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def connects_of_a_pool(ground: Ground, count: int) -> collections.Counter[str]:
    """Make so many calls at once on a blocking line whose pool has to open its connections."""
    outcomes: collections.Counter[str] = collections.Counter()
    lock = threading.Lock()
    with ground.serve("--backlog", "16"), hostline.connect(ground.address, max_size=100) as line:

        def work(first: int) -> None:
            for number in range(first, count, 100):
                try:
                    outcome = "echoed" if line.call("echo", number, timeout=15) == number else "wrong answer"
                except HostlineError as error:
                    outcome = type(error).__name__
                with lock:
                    outcomes[outcome] += 1

        threads = [threading.Thread(target=work, args=(first,)) for first in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return outcomes


# What a connect may end in, beside success: an error that says so.
HONEST = {"echoed", "ConnectTimeoutError", "ConnectRefusedError", "OverloadedError", "DeadlineExceededError"}


@row(
    "R8",
    "An honest connect",
    "2,000 connects at once against a backlog of 16, of one loop, of threads and of a pool: each is served or raises;"
    " none is told that it is connected when it is not. Control: asyncio's own connect must be lied to",
    ci={"connects": 2000},
    full={"connects": 2000},
)
def honest_connect(ground: Ground) -> Verdict:
    count = ground.size["connects"]
    if (limit := raise_descriptor_limit()) < count + 100:
        raise Skipped(f"a process may have {limit} descriptors here, and {count + 100} are needed")
    path = ground.directory / "e"
    outcomes = {}
    with echo_server(path, "stream"):
        outcomes["loop"] = connects_of_one_loop(path, count, ground.loop)
        outcomes["threads"] = connects_of_threads(path, count)
    outcomes["pool"] = connects_of_a_pool(ground, count)
    was_lied_to = is_lied_to(ground.directory / "f")
    return Verdict(
        {name: dict(found) for name, found in outcomes.items()},
        {
            **{f"{name}: each was served or raised": set(found) <= HONEST for name, found in outcomes.items()},
            **{f"{name}: none is missing": found.total() == count for name, found in outcomes.items()},
            **{f"{name}: most were served": found["echoed"] > count * 0.9 for name, found in outcomes.items()},
        },
        {"asyncio_was_told_connected_and_was_not": was_lied_to},
        was_lied_to,
    )


# --- R9 ------------------------------------------------------------------------------------------------

STOCK = """
import asyncio, logging, sys
logging.basicConfig(stream=sys.stderr)
async def serve(reader, writer):
    while data := await reader.read(1000):
        writer.write(data)
        await writer.drain()
async def main():
    server = await asyncio.start_unix_server(serve, sys.argv[1], backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def starve(pid: int, log: Path, path: Path, seconds: float, clients: int, ask: Callable[[], bool]) -> dict[str, Any]:
    """Connect more clients than a server can hold, ask one that it holds for some seconds, then make room."""
    socks: list[socket.socket] = []
    try:
        for _ in range(clients):
            socks.append(connect(path))
            socks[-1].sendall(HELLO)  # or they would be cut, and said so in the log, for saying nothing
        wait_until(lambda: "EMFILE" in log.read_text() or "Errno 24" in log.read_text(), 5)
        lines, cpu, begin = len(log.read_text().splitlines()), cpu_seconds(pid), time.monotonic()
        asked = answered = 0
        while time.monotonic() - begin < seconds:
            asked += 1
            answered += ask()
            time.sleep(0.2)
        taken = time.monotonic() - begin
        used = cpu_seconds(pid) - cpu
        written = len(log.read_text().splitlines()) - lines
        for sock in socks[: clients - 5]:
            sock.close()
        freed = time.monotonic()
        has_resumed = ask_anew(path)
        resumed = time.monotonic() - freed
    finally:
        for sock in socks:
            sock.close()
    return {
        "clients": clients,
        "seconds": round(taken, 1),
        "cpu_percent": round(100 * used / taken, 1),
        "log_lines_a_second": round(written / taken, 2),
        "asked": asked,
        "answered": answered,
        "resumed_after_seconds": round(resumed, 2) if has_resumed else None,
    }


def ask_anew(path: Path) -> bool:
    """Connect and exchange a hello, or a byte with a server that echoes."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(4)
        try:
            sock.connect(str(path))
            sock.sendall(HELLO)
            return bool(sock.recv(1000))
        except OSError:
            return False


@contextlib.contextmanager
def stock_server(path: Path, log: Path) -> Iterator[subprocess.Popen[str]]:
    """Run asyncio's own server with 64 descriptors."""
    with log.open("wb") as errors:
        command = ["prlimit", "--nofile=64:64", sys.executable, "-c", STOCK, str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@row(
    "R9",
    "A full descriptor table",
    "a server with 64 descriptors and 500 clients: at most 5 % of a core, at most one line a second in its log, calls"
    " on existing connections are all answered, and it accepts within a second of descriptors coming free. Control:"
    " asyncio's own server must miss both of the first",
    ci={"clients": 500, "seconds": 5},
    full={"clients": 500, "seconds": 30},
)
def full_table(ground: Ground) -> Verdict:
    log, seconds, clients = ground.directory / "log", ground.size["seconds"], ground.size["clients"]
    with ServerProcess(
        ground.address, "--loop", ground.loop, "--nofile", "64", log=log, program="scorecard.service"
    ) as server:
        with hostline.connect(ground.address, max_size=1) as line:

            def ask() -> bool:
                return bool(line.call("echo", 7, timeout=10) == 7)

            ask()
            before = len(os.listdir(f"/proc/{server.pid}/fd"))
            numbers = starve(server.pid, log, Path(ground.address), seconds, clients, ask)
            wait_until(lambda: line.call("hostline.stats")["connections"] == 1, 10)
        ground.look_at(server, ground.address, before)
        server.signal(15)
        server.wait(30)
    stock, stock_log = ground.directory / "t", ground.directory / "stock-log"
    with stock_server(stock, stock_log) as process, connect(stock) as held:

        def ask_stock() -> bool:
            held.send(b"?")
            return bool(select.select([held], [], [], 5)[0]) and held.recv(1) == b"?"

        control = starve(process.pid, stock_log, stock, min(seconds, 3), clients, ask_stock)
    odd = [text for text in log.read_text().splitlines() if not re.search(r"EMFILE", text)]
    return Verdict(
        {**numbers, "other_log_lines": odd[:2]},
        {
            "at most 5 % of a core": numbers["cpu_percent"] <= 5,
            "at most one line a second": numbers["log_lines_a_second"] <= 1 + 1 / seconds,
            "every call answered": numbers["answered"] == numbers["asked"] > 0,
            "accepts within a second": (numbers["resumed_after_seconds"] or 99) <= 1.0,
            "nothing else in the log": not odd,
        },
        control,
        control["cpu_percent"] > 5 and control["log_lines_a_second"] > 2,
    )


# --- R10 -----------------------------------------------------------------------------------------------


# Seconds between two bytes of one client. They drip evenly: a burst of thousands at once would be another attack.
DRIP = 2.0


def drip(address: str, count: int, until: float) -> list[float]:
    """Send one byte now and then on many connections; returns after how many seconds each was cut.

    A third says nothing but the start of a hello, the others begin a frame after a whole one.
    """
    poller, begin, begun = select.poll(), {}, {}
    slow = HELLO + HEADER.pack(1000, Kind.CALL, 0, 0, 1, 0)
    for number in range(count):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        sock.connect(address)
        begun[sock.fileno()], begin[sock.fileno()] = sock, time.monotonic()
        with contextlib.suppress(OSError):
            sock.sendall(HELLO[:3] if number % 3 == 0 else slow)
        sock.setblocking(False)
        poller.register(sock, select.POLLIN | select.POLLHUP)
    cut: list[float] = []
    rest: list[socket.socket] = []
    dripped = time.monotonic()
    end = max(begin.values()) + until
    while begun and time.monotonic() < end:
        for fd, _ in poller.poll(10):
            sock = begun[fd]
            try:
                is_over = not sock.recv(65536)
            except OSError as error:
                is_over = not isinstance(error, BlockingIOError)
            if is_over:
                cut.append(time.monotonic() - begin[fd])
                poller.unregister(fd)
                begun.pop(fd).close()
        rest = rest or list(begun.values())
        due = int(len(begun) * (time.monotonic() - dripped) / DRIP) or 1
        dripped = time.monotonic()
        for _ in range(min(due, len(rest))):
            with contextlib.suppress(OSError):
                rest.pop().send(b"\0")
    for sock in begun.values():
        sock.close()
    return cut


@row(
    "R10",
    "Clients that take their time",
    "clients that send a byte now and then, within a hello or a frame, are all cut off by their deadline and a"
    " second; p99 of new clients beside them is at most 50 ms, or three times the unloaded one on a machine that is"
    " busy itself. Control: asyncio's own server must keep them",
    ci={"clients": 500, "handshake_timeout": 3.0, "frame_timeout": 4.0},
    full={"clients": 5000, "handshake_timeout": HANDSHAKE_TIMEOUT, "frame_timeout": FRAME_TIMEOUT},
)
def slow_clients(ground: Ground) -> Verdict:
    size = ground.size
    if (limit := raise_descriptor_limit()) < size["clients"] + 100:
        raise Skipped(f"a process may have {limit} descriptors here, and {size['clients'] + 100} are needed")
    times = ("--handshake-timeout", str(size["handshake_timeout"]), "--frame-timeout", str(size["frame_timeout"]))
    bound = max(size["handshake_timeout"], size["frame_timeout"]) + 1.0
    with ground.serve(*times, "--connections", str(size["clients"] + 100)):
        with Caller(ground.address, is_newcomer=True, pause=0.005) as newcomer:
            unloaded = p99(newcomer.gather(300))
            cut = drip(ground.address, size["clients"], bound + 5)
            loaded = p99(newcomer.take())
    path = ground.directory / "t"
    with stock_server(path, ground.directory / "stock-log"):
        kept = 20 - len(drip(str(path), 20, 4.0))
    return Verdict(
        {
            "clients": size["clients"],
            "cut": len(cut),
            "last_cut_after_seconds": round(max(cut, default=0.0), 2),
            "first_cut_after_seconds": round(min(cut, default=0.0), 2),
            "deadline_and_a_second": bound,
            "new_clients_p99_ms": loaded,
            "unloaded_p99_ms": unloaded,
            "new_clients_errors": len(newcomer.errors),
        },
        {
            "all were cut": len(cut) == size["clients"],
            "none after its deadline and a second": max(cut, default=99.0) <= bound,
            "no new client failed": not newcomer.errors,
            "p99 of new clients": loaded <= max(50.0, 3 * unloaded),
        },
        {"clients": 20, "kept_after_4_seconds": kept},
        kept > 0,
    )
