"""What the compiled core saves: frames and calls without I/O, and packets; compiled and pure Python in turns.

    python benchmarks/core.py [--rounds 7] [--count 20000] [--only NAME] [--json]

Every round runs each side in a process of its own; the figure is the median of the rounds' best, in microseconds. With
`--worker NAME COUNT` it runs one case once and prints nothing: for `valgrind --tool=callgrind`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import hostline
from hostline.protocol.connection import ClientConnection, ServerConnection
from hostline.protocol.outgoing import Outgoing
from hostline.unix.options import mark_packets
from hostline.unix.passing.packets import recv_waiting, send_packets
from hostline.wire.budget import Extent, check_budget
from hostline.wire.codec import (
    MethodEntry,
    ServerHello,
    decode_result,
    encode_call,
    encode_hello,
    encode_item,
    encode_reply,
    split_call,
)
from hostline.wire.frame import FrameDecoder

Run = Callable[[int], None]
ARGUMENTS = ("order-1234", 12, [1, 2, 3])


def encode_calls(count: int) -> None:
    for _ in range(count):
        encode_call(7, 3, ARGUMENTS, None, 2.5)


def encode_replies(count: int) -> None:
    for _ in range(count):
        encode_reply(7, "order-1234")


def encode_items(count: int) -> None:
    for _ in range(count):
        encode_item(7, "order-1234")


def decode_frames(count: int) -> None:
    decoder = FrameDecoder()
    decoder.expect_frames()
    data = bytes(encode_call(7, 3, ARGUMENTS, None, 2.5))
    for _ in range(count):
        decoder.receive_data(data)


def decode_many_frames(count: int) -> None:
    """Sixteen frames in each read."""
    decoder = FrameDecoder()
    decoder.expect_frames()
    data = bytes(encode_call(7, 3, ARGUMENTS, None, 2.5)) * 16
    for _ in range(count // 16):
        decoder.receive_data(data)


def queue_frames(count: int) -> None:
    """A frame queued, offered and sent."""
    outgoing = Outgoing()
    frame = bytes(64)
    for _ in range(count):
        outgoing.append(frame)
        outgoing.buffers()
        outgoing.sent(64)


def walk_payloads(count: int) -> None:
    """A payload of 40,000 values, each counted once."""
    payload = b"\xdc\x9c\x40" + b"\x01\xa3abc\xd9\x20" + bytes(32) + b"\x01" * 39_997
    for _ in range(count // 40_000 + 1):
        check_budget(
            payload, Extent.DEEP, max_depth=10, max_elements=40_010
        )  # fewer than bytes, or the size alone proves it


def pair_calls(count: int) -> None:
    """A call there and its answer back, through both connections, from the arguments to the decoded result."""
    hello = encode_hello(ServerHello(service="shop", methods=[MethodEntry("hostline.health"), MethodEntry("order")]))
    client, server = ClientConnection("bench"), ServerConnection(hello)
    server.receive_data(b"".join(client.data_to_send()))
    client.receive_data(b"".join(server.data_to_send()))
    ticket = object()
    for _ in range(count):
        _, frame = client.call("order", ARGUMENTS, None, 2.5, ticket)
        for call in server.receive_data(bytes(frame)):
            split_call(call)
            server.reply(call.call_id, encode_reply(call.call_id, "done", server.max_reply_size))
        for data in server.data_to_send():
            for _, answer in client.receive_data(bytes(data)):
                decode_result(answer.payload, str)


def packets(count: int, kind: socket.SocketKind, name: str, at_once: int) -> None:
    """Packets of 200 bytes sent and received, as many at once as the receiver's queue takes."""
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        if name == "seqpacket":
            mark_packets(other)
        many = [memoryview(bytes(200))] * at_once
        for _ in range(count // at_once):
            send_packets(one, many, socket_type=name)
            recv_waiting(other, 65_536, 0, at_once, socket_type=name)


CASES: dict[str, Run] = {
    "a packet there": lambda count: packets(count, socket.SOCK_SEQPACKET, "seqpacket", 64),
    "a datagram there": lambda count: packets(count, socket.SOCK_DGRAM, "datagram", 8),
    "encode a call": encode_calls,
    "encode a reply": encode_replies,
    "encode an item": encode_items,
    "decode a frame": decode_frames,
    "decode a frame of sixteen": decode_many_frames,
    "queue and send a frame": queue_frames,
    "count a value": walk_payloads,
    "a call and its answer": pair_calls,
}


def measure(count: int, only: str | None) -> dict[str, float]:
    """Return the microseconds that one operation of each case takes: the best of three."""
    found = {}
    for name, run in CASES.items():
        if only in (None, name):
            run(min(count, 1000))
            took = []
            for _ in range(3):
                begin = time.process_time_ns()
                run(count)
                took.append(time.process_time_ns() - begin)
            found[name] = min(took) / count / 1000
    return found


def measured(is_pure: bool, arguments: argparse.Namespace) -> dict[str, float]:
    """Return what a process of its own measures."""
    command = [sys.executable, __file__, "--count", str(arguments.count), "--measure"]
    command += ["--only", arguments.only] if arguments.only else []
    environment = {**os.environ, "HOSTLINE_PURE_PYTHON": "1" if is_pure else "0"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=300)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    """Run the rounds and print the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "COUNT"))
    arguments = parser.parse_args()
    if arguments.worker:
        CASES[arguments.worker[0]](int(arguments.worker[1]))
        return
    if arguments.measure:
        print(json.dumps(measure(arguments.count, arguments.only)))
        return
    if not hostline.is_compiled():
        sys.exit("there is no compiled core to compare with: build it with HOSTLINE_BUILD_EXT=yes")
    rounds = [(measured(True, arguments), measured(False, arguments)) for _ in range(arguments.rounds)]
    figures = {
        name: {
            "pure": statistics.median(pure[name] for pure, _ in rounds),
            "compiled": statistics.median(compiled[name] for _, compiled in rounds),
            "ratio": statistics.median(pure[name] / compiled[name] for pure, compiled in rounds),
        }
        for name in rounds[0][0]
    }
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{'microseconds each':28} {'pure':>8} {'compiled':>9} {'ratio':>6}")
    for name, figure in figures.items():
        print(f"{name:28} {figure['pure']:8.3f} {figure['compiled']:9.3f} {figure['ratio']:6.1f}")


if __name__ == "__main__":
    main()
