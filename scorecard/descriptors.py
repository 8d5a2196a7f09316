"""R3 and R4: descriptors that nobody asked for, and descriptors that nobody takes."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import resource
import socket
import struct
import threading
import time
from typing import Any

from tests.leaks import wait_until
from tests.second_user import NOBODY, Fork
from tests.serving import RawClient, ServerThread, descriptor_count
from tests.test_hostile import HELLO, call

import hostline
from hostline.unix.options import disallow_fds
from scorecard.ground import Caller, Ground, charges, p99, ratio
from scorecard.rows import Verdict, row
from scorecard.service import add_methods

# The most that one message carries in the kernel.
AT_ONCE = 253

# Messages in a second. The row asks whether they take descriptors, not who wins a race for two cores.
PACE = 100

# By name: how the server is started, and what must become of an offender.
WAYS = {
    "refused_by_the_kernel": (),
    "without_the_kernels_help": ("--older-kernel",),
    "declared_but_not_announced": ("--with-descriptors", "--older-kernel"),
}


def send_unasked(address: str, messages: int, caller: Caller) -> dict[str, int]:
    """Send descriptors in messages of 253, each on a connection of its own; returns what became of them."""
    null = os.open(os.devnull, os.O_RDONLY)
    fds = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{AT_ONCE}i", *[null] * AT_ONCE))]
    seen = {"sent": 0, "refused": 0, "cut": 0, "unnoticed": 0}
    caller.take()
    begin = time.monotonic()
    for number in range(messages):
        time.sleep(max(0.0, begin + number / PACE - time.monotonic()))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(address)
            seen["sent"] += AT_ONCE
            try:
                sock.sendall(HELLO)
                sock.sendmsg([call(1, 3)], fds)
            except PermissionError:
                seen["refused"] += 1
                continue
            except (BrokenPipeError, ConnectionResetError):
                seen["cut"] += 1
                continue
            seen["cut" if is_cut(sock) else "unnoticed"] += 1
    os.close(null)
    return seen


def is_cut(sock: socket.socket) -> bool:
    """Read what comes; whether the server closes within a second."""
    sock.settimeout(1.0)
    data = b""
    try:
        while more := sock.recv(65536):
            data += more
            if len(data) > 16 and data.count(b"pid") and data[-1:] != b"":
                sock.settimeout(0.05)
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    return True


def watch(pid: int, stop: threading.Event, most: list[int]) -> None:
    """Note the most descriptors that a process has at any look."""
    while not stop.wait(0.002):
        most[0] = max(most[0], descriptor_count(pid))


def attack_one_way(ground: Ground, options: tuple[str, ...], messages: int) -> dict[str, Any]:
    """Run one server against the flood, with a bystander beside it."""
    with ground.serve(*options) as server, Caller(ground.address, pause=0.001) as caller:
        unloaded = p99(caller.gather(1000))
        before, most, stop = descriptor_count(server.pid), [0], threading.Event()
        watcher = threading.Thread(target=watch, args=(server.pid, stop, most))
        watcher.start()
        try:
            seen = send_unasked(ground.address, messages, caller)
            loaded = p99(caller.take())
        finally:
            stop.set()
            watcher.join()
        wait_until(lambda: descriptor_count(server.pid) <= before, 10)
        delta = descriptor_count(server.pid) - before
    return {
        **seen,
        "most_at_once": most[0] - before,
        "delta": delta,
        "bystander_p99_ms": loaded,
        "unloaded_p99_ms": unloaded,
        "times": ratio(loaded, unloaded),
        "bystander_errors": len(caller.errors),
    }


def take_naively(messages: int) -> dict[str, int]:
    """Receive as the textbook does, and look at the table."""
    null = os.open(os.devnull, os.O_RDONLY)
    ours, theirs = socket.socketpair()
    before, got = descriptor_count(), []
    with ours, theirs:
        for _ in range(messages):
            theirs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("50i", *[null] * 50))])
            got += socket.recv_fds(ours, 1, 50)[1]
        grown = descriptor_count() - before
    for fd in [null, *got]:
        os.close(fd)
    return {"messages": messages, "descriptors_taken": grown}


@row(
    "R3",
    "Descriptors that nobody asked for",
    "none stays and no message fills the table, with SO_PASSRIGHTS and without it; where the server takes descriptors"
    " the offender is cut off at the first; a bystander's p99 is at most twice the unloaded one (2 ms at least)."
    " Control: a textbook receiver's table must fill",
    ci={"descriptors": 20_000},
    full={"descriptors": 1_000_000},
)
def unasked(ground: Ground) -> Verdict:
    messages = -(-ground.size["descriptors"] // AT_ONCE // len(WAYS)) + 1
    with socket.socket(socket.AF_UNIX) as sock:
        has_help = disallow_fds(sock)
    numbers: dict[str, Any] = {"kernel_can_refuse": has_help, "messages_each_way": messages}
    claims = {}
    for way, options in WAYS.items():
        found = numbers[way] = attack_one_way(ground, options, messages)
        claims[f"{way}: none stays"] = found["delta"] <= 0
        claims[f"{way}: the table never holds a message"] = found["most_at_once"] < AT_ONCE // 4
        claims[f"{way}: no error beside it"] = found["bystander_errors"] == 0
        claims[f"{way}: p99 at most twice"] = found["times"] <= 2
    claims["declared: every offender cut at its first"] = numbers["declared_but_not_announced"]["cut"] == messages
    if has_help:
        claims["the kernel refused every one"] = numbers["refused_by_the_kernel"]["refused"] == messages
    control = take_naively(10)
    verdict = Verdict(numbers, claims, control, control["descriptors_taken"] > AT_ONCE // 4)
    verdict.notes.append(
        "a service without descriptors on a kernel without SO_PASSRIGHTS does not notice them: the kernel drops them at"
        " its plain receive, so that nobody is cut there"
    )
    return verdict


# --- R4 ------------------------------------------------------------------------------------------------


def serve_until_told(directory: str, descriptors: int) -> None:
    """As another user, for root may have any number on their way: serve until the file `stop` is there."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    service = hostline.Service("memory")
    add_methods(service, with_descriptors=True)
    logging.disable(logging.CRITICAL)
    with ServerThread(service, f"{directory}/s"):
        while not os.path.exists(f"{directory}/stop"):
            time.sleep(0.01)


def hoard_and_call(directory: str, hoarders: int, for_each: int, calls: int) -> dict[str, Any]:
    """Ask for descriptors on many connections that are never read, and on one that is."""
    path = f"{directory}/s"
    wait_until(lambda: os.path.exists(path), 15)
    fine, errors = 0, collections.Counter[str]()
    greedy = [RawClient(path) for _ in range(hoarders)]
    for call_id in range(1, for_each + 1):
        for client in greedy:
            client.call(call_id, "memory", 100)
    with hostline.connect(path, max_size=1) as line:
        for _ in range(calls):
            try:
                with line.call("memory", 100, returns=hostline.Fd, timeout=10):
                    fine += 1
            except hostline.HostlineError as error:
                errors[type(error).__name__] += 1
    for client in greedy:
        client.close()
    with hostline.connect(path, max_size=1) as line:
        wait_until(lambda: not any(charges(line).values()), 10)
        charged = charges(line)
    return {"fine": fine, "errors": dict(errors), "charged": charged}


def fill_naively(descriptors: int) -> dict[str, Any]:
    """As another user: what a server without a bound of its own meets."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    pairs = [socket.socketpair() for _ in range(16)]
    sent = 0
    failure = ""
    with contextlib.ExitStack() as stack, open(os.devnull, "rb") as null:
        for pair in pairs:
            for sock in pair:
                stack.enter_context(sock)
        fds = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", null.fileno()))]
        try:
            for _ in range(descriptors):
                for ours, _ in pairs:
                    ours.sendmsg([b"x"], fds)
                    sent += 1
        except OSError as error:
            failure = error.strerror or ""
        innocent, other = pairs[0]
        del innocent
        try:
            other.sendmsg([b"x"], fds)
            is_innocent_served = True
        except OSError:
            is_innocent_served = False
    return {"sent": sent, "failure": failure, "a_bystander_is_served": is_innocent_served}


@row(
    "R4",
    "Descriptors that nobody takes",
    "as nobody with 256 descriptors: 64 clients ask for descriptors and never read; a bystander gets 1,000 of 1,000."
    " Control: a sender without a bound must be refused by the kernel, the bystander with it",
    ci={"hoarders": 64, "for_each": 8, "calls": 1000, "descriptors": 256},
    full={"hoarders": 64, "for_each": 8, "calls": 20_000, "descriptors": 256},
)
def hoarded(ground: Ground) -> Verdict:
    ground.need_root("root may have any number of descriptors on their way, so the server runs as nobody")
    size = ground.size
    place = ground.directory / "n"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    with Fork(NOBODY, serve_until_told, str(place), size["descriptors"]) as server:
        with Fork(NOBODY, hoard_and_call, str(place), size["hoarders"], size["for_each"], size["calls"]) as clients:
            found = clients.result(3600)
        (place / "stop").touch()
        server.result(60)
    with Fork(NOBODY, fill_naively, size["descriptors"]) as fork:
        control = fork.result(60)
    ground.servers += 1
    ground.charge(**found.pop("charged"))
    return Verdict(
        {**size, **found},
        {"the bystander got every one": found["fine"] == size["calls"]},
        control,
        not control["a_bystander_is_served"],
    )
