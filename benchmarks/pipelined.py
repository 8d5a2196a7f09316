"""How many calls one server process answers a second, when its callers cost next to nothing.

    python benchmarks/pipelined.py [--seconds 2] [--rounds 5] [--window 128] [--loop asyncio|uvloop] [--json]

The caller's frames are encoded beforehand and sent many at a time; the answers to the first are decoded and compared,
of the others the bytes are counted. So what is measured is the server: reads, decoding, handlers, encoding, writes.
Each kind of handler takes its turn in every round. A real client on the same machine costs as much as the server; see
`hostline bench throughput` for both together.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import hostline
from hostline.wire.codec import ClientHello, decode_hello, encode_call, encode_hello
from hostline.wire.codec import ServerHello as Greeting
from hostline.wire.frame import Frame, FrameDecoder

KINDS = ("inline", "instant")
ARGUMENT = "x" * 38

service = hostline.Service("pipelined")


@service.method(inline=True)
def inline(text: str) -> str:
    """Give back what came, on the loop itself."""
    return text


@service.method
async def instant(text: str) -> str:
    """Give back what came; never waits."""
    return text


class Caller:
    """One connection whose frames are ready."""

    def __init__(self, path: str, window: int) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.decoder = FrameDecoder()
        self.sock.sendall(encode_hello(ClientHello(program="pipelined")))
        names = [entry.name for entry in decode_hello(self.frames(1)[0].payload, Greeting).methods]
        # Two blocks for each kind, with ids of their own: one is sent while the other is answered.
        self.blocks = {
            kind: [
                b"".join(encode_call(first + n, names.index(kind), (ARGUMENT,)) for n in range(window))
                for first in (1, window + 1)
            ]
            for kind in KINDS
        }
        self.window = window
        self.sizes = {kind: self.check(kind) for kind in KINDS}

    def frames(self, count: int) -> list[Frame]:
        """Read so many frames."""
        found: list[Frame] = []
        while len(found) < count:
            found += self.decoder.receive_data(self.sock.recv(1 << 16))
        return found

    def check(self, kind: str) -> int:
        """Compare one block's answers, and return their size in bytes."""
        self.sock.sendall(self.blocks[kind][0])
        frames = self.frames(self.window)
        if sorted(frame.call_id for frame in frames) != list(range(1, self.window + 1)):
            raise SystemExit(f"{kind}: the answers are not those to the calls")
        if {bytes(frame.payload) for frame in frames} != {b"\xd9" + bytes([len(ARGUMENT)]) + ARGUMENT.encode()}:
            raise SystemExit(f"{kind}: an answer is not what was sent")
        return sum(16 + len(frame.payload) for frame in frames)

    def run(self, kind: str, seconds: float) -> float:
        """Return calls a second, up to two blocks of them under way."""
        blocks = self.blocks[kind]
        begun = time.monotonic()
        self.sock.sendall(blocks[0])
        count = 1
        while time.monotonic() < begun + seconds:
            self.sock.sendall(blocks[count % 2])
            self.skip(self.sizes[kind])
            count += 1
        self.skip(self.sizes[kind])
        return count * self.window / (time.monotonic() - begun)

    def skip(self, size: int) -> None:
        """Read so many bytes of answers."""
        while size:
            came = len(self.sock.recv(min(size, 1 << 18)))
            if not came:
                raise SystemExit("the server closed the connection")
            size -= came


def serve(path: str, loop: str) -> None:
    """Serve until the parent says otherwise."""
    if loop == "uvloop":
        import uvloop

        service.run(path, loop_factory=uvloop.new_event_loop)
    else:
        service.run(path)


def main() -> None:
    """Start a server, drive it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each share")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window", type=int, default=128, help="calls under way, half of them on their way back")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.loop)
        return
    path = hostline.unique_path("pipelined")
    command = [sys.executable, str(Path(__file__).resolve()), "--serve", path, "--loop", options.loop]
    with subprocess.Popen(command) as server:
        try:
            hostline.connect(path, wait=20).close()
            caller = Caller(path, options.window)
            rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for _ in range(options.rounds):
                for kind in KINDS:
                    rates[kind].append(caller.run(kind, options.seconds))
        finally:
            server.send_signal(signal.SIGTERM)
    medians = {kind: round(statistics.median(each)) for kind, each in rates.items()}
    core = "compiled core" if hostline.is_compiled() else "pure Python"
    if options.json:
        print(json.dumps({"core": core, "loop": options.loop, "calls_per_second": medians, "rounds": rates}))
        return
    print(f"one server process on {options.loop}, {core}, {os.cpu_count()} cores")
    for kind, median in medians.items():
        spread = f"{min(rates[kind]):,.0f} to {max(rates[kind]):,.0f}"
        print(f"{kind:8} {median:>10,} calls a second   ({spread})")


if __name__ == "__main__":
    main()
