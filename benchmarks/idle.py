"""Idle connections: what each costs the server in memory, and whether calls are slower beside them.

    python benchmarks/idle.py [--count 10000] [--loop asyncio] [--calls 2000] [--json]

A server holds `--count` connections that have said hello and are silent. What its resident memory has grown by, divided
by their number, is the cost of one; kernel memory is not in it. Calls are timed with bare sockets: on ten connections
while there are only these, and beside the others on the ten and on thousands of them in turn. The limit of open files
must be above the count. It ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import hostline
from hostline.wire.codec import ClientHello, encode_call, encode_hello, encode_reply
from hostline.wire.frame import Kind

SHARES = 4  # of the connections; one is held here, where their calls are timed
FEW = 10
ROUNDS = 5

service = hostline.Service("idle")

HELLO = encode_hello(ClientHello(program="idle"))
CALL = bytes(encode_call(1, 0, (1,)))
REPLY = bytes(encode_reply(1, 1))


@service.method(inline=True)
def echo(number: int) -> int:
    """Give back what came."""
    return number


def raise_limit() -> None:
    """Open as many files as this process may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def serve(path: str, loop: str, count: int) -> None:
    """Serve until terminated."""
    raise_limit()
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    most = count + FEW + 10
    service.run(path, loop_factory=factory, max_connections=most, max_connections_per_uid=most)


def hold(path: str, count: int) -> None:
    """Hold connections until the input ends."""
    raise_limit()
    held = [met(path) for _ in range(count)]
    print("held", len(held), flush=True)
    sys.stdin.read()


def met(path: str) -> socket.socket:
    """Connect and exchange the hello."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    sock.sendall(HELLO)
    if Kind(sock.recv(4096)[4]) is not Kind.HELLO:
        raise SystemExit("the server sent a connection away")
    return sock


def memory_of(pid: int) -> int:
    """Return what a process has of its own and shares in proportion, in bytes."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024


def time_calls(socks: list[socket.socket], count: int) -> list[int]:
    """Call on each connection in turn, and return nanoseconds, the shortest first."""
    times = []
    for number in range(count):
        sock = socks[number % len(socks)]
        begin = time.perf_counter_ns()
        sock.sendall(CALL)
        reply = sock.recv(4096)
        times.append(time.perf_counter_ns() - begin)
        if reply != REPLY:
            raise SystemExit(f"answer {reply!r}, where {REPLY!r} belongs")
    return sorted(times)


def wait_for(path: str) -> socket.socket:
    """Connect to a server that is starting."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return met(path)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def run(loop: str, count: int, calls: int) -> dict[str, float]:
    """Measure once."""
    raise_limit()
    with tempfile.TemporaryDirectory(prefix="hl", dir="/tmp") as directory:
        path = f"{directory}/s"
        arguments = [sys.executable, __file__, "--serve", path, "--loop", loop, "--count", str(count)]
        server = subprocess.Popen(arguments)
        holders: list[subprocess.Popen[str]] = []
        socks: list[socket.socket] = []
        times: dict[str, list[list[int]]] = {"few": [], "few beside": [], "any": []}
        try:
            socks = [wait_for(path)] + [met(path) for _ in range(FEW - 1)]
            time_calls(socks, calls)
            times["few"] = [time_calls(socks, calls) for _ in range(ROUNDS)]
            before = memory_of(server.pid)
            for _ in range(SHARES - 1):
                arguments = [sys.executable, __file__, "--hold", path, "--count", str(count // SHARES)]
                holders.append(subprocess.Popen(arguments, stdin=-1, stdout=-1, text=True))
            socks += [met(path) for _ in range(count // SHARES)]
            for holder in holders:
                if holder.stdout is None or holder.stdout.readline() != f"held {count // SHARES}\n":
                    raise SystemExit("a holder failed: is the limit of open files high enough?")
            memory = memory_of(server.pid) - before
            for _ in range(ROUNDS):
                times["few beside"].append(time_calls(socks[:FEW], calls))
                times["any"].append(time_calls(socks[FEW:], calls))
        finally:
            for holder in holders:
                holder.communicate()
            for sock in socks:
                sock.close()
            server.terminate()
            server.wait(60)
    held = count // SHARES * SHARES
    result = {"connections": held, "bytes_each": memory / held}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        for kind, rounds in times.items():
            values = [one[int(len(one) * share)] / 1000 for one in rounds]
            result[f"{name} {kind}"] = statistics.median(values)
    return result


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=2_000)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--hold", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.loop, options.count)
    elif options.hold:
        hold(options.hold, options.count)
    else:
        result = run(options.loop, options.count, options.calls)
        if options.json:
            print(json.dumps(result))
        else:
            print(f"{options.loop}, {result['connections']:.0f} idle connections")
            print(f"memory of each  {result['bytes_each'] / 1024:.1f} KiB")
            for name in ("p50", "p99"):
                few = result[f"{name} few"]
                for kind in ("few beside", "any"):
                    mine = result[f"{name} {kind}"]
                    print(
                        f"{name} of a call  {few:.0f} us with {FEW} alone, {kind}: {mine:.0f}, {mine / few:.2f} times"
                    )


if __name__ == "__main__":
    main()
