"""The process at the other end of a sequence's socket; it is not counted, and pauses before each of its moves.

python -m benchmarks.guard.beside "answer" COUNT PATH
python -m benchmarks.guard.beside "call echo" COUNT PATH
"""

from __future__ import annotations

import socket
import sys
import time
from typing import Final

import msgspec
from benchmarks.guard.sequences import Note, note

import hostline
from hostline.protocol.connection import ServerConnection
from hostline.wire import codec

# Seconds. A counted process comes to its next wait in less; where a busy machine keeps it longer now and then, a read
# more or less is a fraction of a per cent.
PAUSE: Final = 0.004
# Seconds in which a process under valgrind has started.
PATIENCE: Final = 60.0


def answer(path: str) -> None:
    """Serve one connection after the other, until somebody ends this process."""
    hello = codec.encode_hello(codec.ServerHello(service="guard", methods=[codec.MethodEntry("echo")]))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            sock, _ = listener.accept()
            with sock:
                converse(sock, ServerConnection(hello))


def converse(sock: socket.socket, server: ServerConnection) -> None:
    """Answer what one client asks."""
    send(sock, server)
    while data := sock.recv(65536):
        for frame in server.receive_data(data):
            (value,) = msgspec.msgpack.decode(codec.split_call(frame)[1])
            server.reply(frame.call_id, codec.encode_reply(frame.call_id, value))
        send(sock, server)


def send(sock: socket.socket, server: ServerConnection) -> None:
    """Send what there is to send, after a pause."""
    if frames := server.data_to_send():
        time.sleep(PAUSE)
        sock.sendall(b"".join(frames))


def call(method: str, count: int, path: str) -> None:
    """Call so often."""
    argument = note(64)
    with hostline.connect(path, timeout=30.0) as line:
        for _ in range(count):
            time.sleep(PAUSE)
            line.call(method, argument, returns=Note)
        time.sleep(PAUSE)
        line.call("finish")


def connect(method: str, count: int, path: str) -> None:
    """Connect, call and close so often."""
    argument = note(64)
    for _ in range(count):
        with hostline.connect(path, timeout=30.0) as line:
            time.sleep(PAUSE)
            line.call(method, argument, returns=Note)
            time.sleep(PAUSE)
        time.sleep(PAUSE)
    with hostline.connect(path, timeout=30.0) as line:
        line.call("finish")


def await_server(path: str) -> None:
    """Wait until somebody listens."""
    end = time.monotonic() + PATIENCE
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) == 0:
                return
        if time.monotonic() > end:
            raise SystemExit("no server came")
        time.sleep(0.05)


def main(task: str, count: int, path: str) -> None:
    """Do it."""
    what, _, method = task.partition(" ")
    if what == "answer":
        answer(path)
        return
    await_server(path)
    time.sleep(0.1)
    {"call": call, "connect": connect}[what](method, count, path)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
