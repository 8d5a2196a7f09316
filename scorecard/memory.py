"""R11, R14 and R15: what peers can make a server keep, map or take from others."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.leaks import wait_until
from tests.second_user import Fork, run_as
from tests.serving import RawClient, ServerThread, resident_bytes
from tests.test_buffers import CASES, memory, send_buffer, some_bytes
from tests.test_hostile import Hostile
from tests.test_quotas import ATTACKS, GREEDY, MODEST, SETTINGS, Greedy, costly_service

import hostline
from hostline.errors import DescriptorError
from hostline.unix.passing.memory import map_sealed
from hostline.wire.frame import Frame, Kind, encode_frame
from scorecard.ground import MIB, Ground, charges, forget_peak, p99, peak_bytes, ratio
from scorecard.rows import Verdict, row
from scorecard.service import add_methods

# Most that all the bombs together may make the server grow, and what its control group allows it.
GROWTH = 32 * MIB
GROUP_LIMIT = 256 * MIB

# A control group of its own, where version 1 of them is mounted.
GROUPS = Path("/sys/fs/cgroup/memory")

# --- R11 -----------------------------------------------------------------------------------------------


class Headers(Hostile):
    """Headers alone: that name too much, or much and bring little, or descriptors that do not come."""

    def __init__(self, address: str, seed: int) -> None:
        super().__init__(address, seed)
        self.acts = [
            self.oversize,
            self.half_a_frame,
            self.announce_descriptors,
            self.garbage_after_hello,
            self.half_a_header,
        ]


def send_headers(address: str, seed: int, count: int) -> int:
    """Send `count` hostile headers, each on a connection of its own."""
    return Headers(address, seed).run(count)


def bombs() -> list[bytes]:
    """Return arguments that are small on the wire and large, deep or endless when they are decoded."""
    wide = 1_000_000
    return [
        b"\x91" * 60_000,
        b"\x91" + b"\x81\xa1a" * 20_000 + b"\x80",
        b"\x91\xdd" + wide.to_bytes(4, "big") + b"\x80" * wide,
        b"\x91\xdd" + wide.to_bytes(4, "big") + b"\x90" * wide,
        b"\x91" + b"\xdd\x7f\xff\xff\xff" * 2000,
        b"\x91\xdf\x7f\xff\xff\xff\xa1a",
        b"\x91\xc6\x7f\xff\xff\xff" + b"x" * 100,
        b"\x91\xdb\x7f\xff\xff\xff" + b"x" * 100,
        b"\xdd\xff\xff\xff\xff",
        b"\x91\xc9\x7f\xff\xff\xff\x05" + b"x" * 100,
    ]


def send_bombs(address: str, rounds: int) -> int:
    """Call with each bomb so often; returns how many were answered or cost their sender the connection."""
    ended = 0
    for number in range(rounds):
        for bomb in bombs():
            with RawClient(address) as client:
                client.sock.sendall(encode_frame(Kind.CALL, number + 1, bomb, method=client.methods["echo"]))
                with contextlib.suppress(EOFError, ConnectionResetError):
                    client.read(30)
                ended += 1
    return ended


def send_sparse(address: str, rounds: int) -> dict[str, int]:
    """Send buffers in sparse memory, which cost their sender nothing; returns how they were answered."""
    seen = {"refused": 0, "taken": 0}
    with RawClient(address) as client:
        for number in range(1, rounds + 1):
            send_buffer(client, number, memory(64 * MIB, is_sparse=True), 0, 64 * MIB)
            seen["refused" if client.read(30).kind == Kind.ERROR else "taken"] += 1
    return seen


@contextlib.contextmanager
def memory_group(pid: int) -> Iterator[Path | None]:
    """Put a process into a control group of 256 MiB; None where that cannot be done."""
    group = GROUPS / f"hostline-scorecard-{pid}"
    try:
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        (group / "memory.limit_in_bytes").write_text(str(GROUP_LIMIT))
        (group / "cgroup.procs").write_text(str(pid))
        yield group
        (GROUPS / "cgroup.procs").write_text(str(pid))
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), 5)
        with contextlib.suppress(OSError):
            group.rmdir()


def grown_by_mapping() -> int:
    """Return how much one grows that maps what it was sent without a look."""
    with memory(64 * MIB, is_sparse=True) as fd, mmap.mmap(fd.fileno(), 64 * MIB, access=mmap.ACCESS_READ) as mapped:
        before = resident_bytes()
        sum(mapped[place] for place in range(0, 64 * MIB, 4096))
        return resident_bytes() - before


@row(
    "R11",
    "Memory bombs",
    "hostile headers, arguments that explode when decoded, and sparse memory, against a server in a control group of"
    " 256 MiB: its peak grows by at most 32 MiB and it lives. Control: mapping one sparse buffer of 64 MiB must cost"
    " more",
    ci={"headers": 8000, "bomb_rounds": 5, "sparse": 100},
    full={"headers": 1_000_000, "bomb_rounds": 2000, "sparse": 20_000},
)
def memory_bombs(ground: Ground) -> Verdict:
    size = ground.size
    with ground.serve("--with-descriptors", "--concurrency", "500") as server, memory_group(server.pid) as group:
        own = {"gid": os.getegid(), "groups": None}
        with Fork(os.geteuid(), send_headers, ground.address, 1, 300, **own) as fork:  # type: ignore[arg-type]
            fork.result(60)
        before = resident_bytes(server.pid)
        forget_peak(server.pid)
        with Fork(os.geteuid(), send_headers, ground.address, 2, size["headers"], **own) as fork:  # type: ignore[arg-type]
            sent = fork.result(3 * 3600)
        after_headers = peak_bytes(server.pid) - before
        ended = send_bombs(ground.address, size["bomb_rounds"])
        after_bombs = peak_bytes(server.pid) - before
        sparse = send_sparse(ground.address, size["sparse"])
        grown = peak_bytes(server.pid) - before
        is_alive = server.process.poll() is None
    control = grown_by_mapping()
    verdict = Verdict(
        {
            "hostile_headers": sent,
            "decode_bombs": ended,
            "sparse_buffers_refused": sparse["refused"],
            "peak_growth_kib": grown >> 10,
            "of_it_after_headers_kib": after_headers >> 10,
            "of_it_after_bombs_kib": after_bombs >> 10,
            "control_group": group is not None,
        },
        {
            "peak grows by at most 32 MiB": grown <= GROWTH,
            "the server lives": is_alive,
            "every sparse buffer was refused": sparse["taken"] == 0,
        },
        {"grown_by_mapping_kib": control >> 10},
        control > GROWTH,
    )
    if group is None:
        verdict.notes.append("without a control group, which cannot be made here: the growth alone is measured")
    return verdict


# --- R14 -----------------------------------------------------------------------------------------------

FUTURE_WRITE = 0x10


def table_misses(directory: Path) -> list[str]:
    """Return the cases of the table of kinds and seals that are not judged as they must be."""
    misses = []
    for name, make, text in CASES:
        try:
            map_sealed(make(directory), MIB)
            misses.append(f"{name}: taken")
        except DescriptorError as error:
            if not re.search(text, str(error)):
                misses.append(f"{name}: {error}")
    view = map_sealed(memory(MIB), MIB)
    if bytes(view) != some_bytes(MIB):
        misses.append("whole and sealed: other bytes")
    return misses


def race(client: RawClient, number: int, good: str) -> str:
    """Send a buffer whose memory is truncated or changed at the same time, or is sound; returns what became of it."""
    kind = ("truncated", "changed", "sound")[number % 3]
    if kind == "sound":
        send_buffer(client, number, memory(MIB), 0, MIB)
        return "sound" if is_reply(client.read(), good) else "torn"
    fd = memory(MIB, 0)
    held = mmap.mmap(fd.fileno(), MIB) if kind == "changed" else None
    if held is not None:
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | FUTURE_WRITE)
    copy = fd.dup()

    def disturb() -> None:
        for _ in range(20):
            if held is not None:
                held[:10] = os.urandom(10)
            else:
                os.ftruncate(copy.fileno(), 0)
                os.ftruncate(copy.fileno(), MIB)

    thread = threading.Thread(target=disturb)
    thread.start()
    send_buffer(client, number, fd, 0, MIB)
    answer = client.read()
    thread.join()
    copy.close()
    if held is not None:
        held.close()
    return "refused" if answer.kind == Kind.ERROR else "taken unsealed"


def is_reply(frame: Frame, text: str) -> bool:
    """Whether a frame is the reply that holds this text."""
    return frame.kind == Kind.REPLY and text.encode() in bytes(frame.payload)


def dies_of_truncation() -> int | None:
    """Return the signal that ends one who maps unsealed memory and reads it after it was truncated."""
    pid = os.fork()
    if pid == 0:
        import faulthandler

        faulthandler.disable()
        fd = memory(MIB, 0)
        mapped = mmap.mmap(fd.fileno(), MIB, access=mmap.ACCESS_READ)
        os.ftruncate(fd.fileno(), 0)
        mapped[5000]
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else None


@row(
    "R14",
    "Shared memory is safe to read",
    "a table of 16 kinds of memory and seals, each judged right; memory that is truncated or changed while it is sent"
    " never ends the server and is never read; sound memory is read whole. Control: a reader without the look must die"
    " of SIGBUS",
    ci={"races": 600},
    full={"races": 10_000},
)
def shared_memory(ground: Ground) -> Verdict:
    misses = table_misses(ground.directory)
    good = hashlib.sha256(some_bytes(MIB)).hexdigest()
    seen: dict[str, int] = {}
    with ground.serve("--with-descriptors") as server:
        with RawClient(ground.address) as client:
            for number in range(1, ground.size["races"] + 1):
                outcome = race(client, number, good)
                seen[outcome] = seen.get(outcome, 0) + 1
        is_alive = server.process.poll() is None
    died_of = dies_of_truncation()
    return Verdict(
        {"table": len(CASES) + 1, "table_misses": misses, "races": ground.size["races"], "outcomes": seen},
        {
            "the whole table is right": not misses and len(CASES) + 1 == 16,
            "0 deaths": is_alive,
            "0 torn reads, nothing unsealed taken": set(seen) == {"sound", "refused"},
        },
        {"a_naive_reader_died_of": None if died_of is None else signal.Signals(died_of).name},
        died_of == signal.SIGBUS,
    )


# --- R15 -----------------------------------------------------------------------------------------------


def call_and_time(address: str, count: int) -> tuple[list[float], list[str]]:
    """As the modest user: calls of several kinds; returns how long each took, and what failed."""
    delays: list[float] = []
    errors: list[str] = []
    with hostline.connect(address) as line:
        for number in range(count):
            begin = time.perf_counter()
            try:
                if number % 3 == 0:
                    line.call("echo", "x", timeout=20)
                elif number % 3 == 1:
                    line.call("echo_in_thread", "x", timeout=20)
                else:
                    line.call("give", 1000, timeout=20)
            except hostline.HostlineError as error:
                errors.append(repr(error))
            delays.append(time.perf_counter() - begin)
    return delays, errors


def untaken_descriptors(address: str) -> list[RawClient]:
    """Ask for descriptors and never read: more than may be on their way to one connection."""
    clients = [RawClient(address) for _ in range(8)]
    for number in range(1, 101):
        for client in clients:
            client.send_some(client.encode(number, "memory", 100))
        time.sleep(0.01)  # or most would be turned away for want of a place in the queue
    return clients


def mapped_buffers(address: str) -> list[RawClient]:
    """Keep sealed memory mapped in calls that do not end."""
    clients = [RawClient(address) for _ in range(4)]
    for number in range(1, 6):
        for client in clients:
            client.methods["digest"] = client.methods["hold_buffer"]
            send_buffer(client, number, memory(2 * MIB), 0, 2 * MIB)
    return clients


SLOTS: dict[str, Callable[[str], list[RawClient]] | None] = {
    **ATTACKS,
    "untaken descriptors": untaken_descriptors,
    "mapped buffers": mapped_buffers,
    "connection rate": None,
}


def isolate(slot: str, calls: int, ground: Ground) -> dict[str, Any]:
    """Let one user fill one of its bounds, and time another."""
    service = costly_service()
    add_methods(service, with_descriptors=True)
    address = str(ground.directory / slot.replace(" ", "-"))
    options: dict[str, Any] = {"settings": SETTINGS, "allow": hostline.Peers.anyone(), "mode": 0o666}
    with ServerThread(service, address, loop=ground.loop, **options) as server:
        # Who connects without end takes a core, which is no matter of the server: compare with one who does so in vain.
        idler = Greedy(f"{address}-nobody", None) if SLOTS[slot] is None else None
        try:
            unloaded, errors = run_as(MODEST, call_and_time, address, calls, timeout=600)
        finally:
            if idler is not None:
                idler.leave()
        greedy = Greedy(address, SLOTS[slot])
        try:
            time.sleep(0.2)
            loaded, more = run_as(MODEST, call_and_time, address, calls, timeout=600)
            had = [user for user in server.stats().users if user.uid == GREEDY]
        finally:
            greedy.leave()
        # Once without any is enough: who left may stand in the backlog still, and be taken from it for a moment.
        is_clear = wait_until(lambda: server.stats().users == [], 20)
        left = {} if is_clear else {user.uid: user.connections for user in server.stats().users}
        with hostline.connect(address, max_size=1) as line:
            wait_until(lambda: not any(charges(line).values()), 10)
            ground.charge(**charges(line))
        ground.servers += 1
    found = {"p99_ms": p99(loaded), "unloaded_p99_ms": p99(unloaded), "errors": len(errors + more), "left": len(left)}
    cost = (
        {
            name: getattr(had[0], name)
            for name in ("connections", "running", "waiting", "bytes", "descriptors", "mapped")
        }
        if had
        else {}
    )
    return {**found, "times": ratio(found["p99_ms"], found["unloaded_p99_ms"], 5.0), "greedy": cost}


@row(
    "R15",
    "One user does not touch another",
    "a user fills each of its bounds in turn (connections, their rate, begun frames, unread answers, running calls,"
    " threads, waiting calls, streams, descriptors, mapped memory): calls of another user all succeed, their p99 is at"
    " most three times the unloaded one (5 ms at least; for the rate of connections: the one beside a user who"
    " connects to nobody as fast), and afterwards nothing is charged. Control: while it lasts the greedy user is"
    " charged",
    ci={"calls": 600},
    full={"calls": 20_000},
    ci_limit=120.0,
)
def isolation(ground: Ground) -> Verdict:
    ground.need_root("two other users take part")
    import hostline.aio.serving.bounds.mapped as mapped

    mapped.MAX_MAPPED_PER_UID = 16 * MIB  # type: ignore[misc] # the default would need half a gibibyte of this machine
    found = {slot.replace(" ", "_"): isolate(slot, ground.size["calls"], ground) for slot in SLOTS}
    claims = {}
    for slot, result in found.items():
        claims[f"{slot}: every call succeeds"] = result["errors"] == 0
        claims[f"{slot}: p99 at most three times"] = result["times"] <= 3
        claims[f"{slot}: nothing charged afterwards"] = result["left"] == 0
    untaken = found["untaken_descriptors"]["greedy"]
    claims["untaken_descriptors: they are charged to who does not take them"] = untaken.get("descriptors", 0) > 0
    charged = [slot for slot, result in found.items() if any(result["greedy"].values())]
    held = {slot for slot in found if slot != "connection_rate"}
    return Verdict(found, claims, {"slots_charged_while_it_lasts": len(charged)}, held <= set(charged))
