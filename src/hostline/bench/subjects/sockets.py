"""Python's own sockets, blocking, with no frame and no encoding: what the interpreter costs by itself."""

from __future__ import annotations

import array as arrays
import contextlib
import os
import selectors
import socket
from array import array
from collections.abc import Callable
from time import perf_counter_ns

from hostline.bench.subject import Door, Driver, Subject, file_to_pass, timed
from hostline.bench.subjects.talk import (
    ECHO,
    FDS,
    HEADER,
    NUMBER,
    ONE_WAY,
    TRANSFER,
    check_number,
    is_plain_echo,
    pack_header,
    padding,
)  # fmt: skip

__all__ = ["SUBJECTS", "listening_socket"]

READ_SIZE = 1 << 16
# What a batch of messages on a stream is sent with: one write of about so many bytes.
WRITE_SIZE = 1 << 16
# Descriptors that one message can bring here.
MAX_FDS = 16
KINDS = {
    "unix": socket.SOCK_STREAM,
    "tcp": socket.SOCK_STREAM,
    "seqpacket": socket.SOCK_SEQPACKET,
    "datagram": socket.SOCK_DGRAM,
}


def _socket(door: Door) -> socket.socket:
    sock = socket.socket(socket.AF_INET if door.transport == "tcp" else socket.AF_UNIX, KINDS[door.transport])
    if door.transport == "tcp":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _recv_exactly(sock: socket.socket, size: int) -> bytes:
    data = sock.recv(size)
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            return b""
        data += more
    return data


def _recv_into(sock: socket.socket, view: memoryview) -> None:
    while view:
        size = sock.recv_into(view)
        if not size:
            raise EOFError("the connection ended in the middle of a transfer")
        view = view[size:]


# --- servers --------------------------------------------------------------------------------------------


def listening_socket(door: Door) -> socket.socket:
    """Return a socket that is bound to the door, and listens unless it is for datagrams; the caller's to close."""
    sock = _socket(door)
    try:
        sock.bind((door.host, 0) if door.transport == "tcp" else door.path)
        if door.transport != "datagram":
            sock.listen(4096)
    except BaseException:
        sock.close()
        raise
    return sock


def _serve(door: Door) -> None:
    with listening_socket(door) as listener:
        if door.transport == "datagram":
            door.ready()
            _serve_datagrams(listener)
        door.ready(listener.getsockname()[1] if door.transport == "tcp" else 0)
        if door.workload in ("fanin", "idle"):
            _echo_to_many(listener)
        while True:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(ConnectionError):
                if door.transport == "tcp":
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if is_plain_echo(door):
                    while data := sock.recv(READ_SIZE):
                        sock.sendall(data)
                else:
                    _answer(sock, is_stream=door.transport != "seqpacket")


def _answer(sock: socket.socket, *, is_stream: bool) -> None:
    """Do what the headers of one connection ask for."""
    while header := _recv_exactly(sock, HEADER.size):
        what, size, count = HEADER.unpack(header)
        if what == ECHO:
            for _ in range(count):
                sock.sendall(_recv_exactly(sock, size))
        elif what == TRANSFER:
            view = memoryview(bytearray(size))
            for _ in range(count):
                _recv_into(sock, view)
                sock.sendall(NUMBER.pack(size))
        elif what == FDS:
            for _ in range(count):
                sock.sendall(NUMBER.pack(_recv_fds(sock)))
        elif is_stream:
            left = size * count
            while left:
                left -= len(sock.recv(min(READ_SIZE, left)))
            sock.sendall(NUMBER.pack(count))
        else:
            sock.sendall(NUMBER.pack(sum(len(sock.recv(READ_SIZE)) == size for _ in range(count))))


def _recv_fds(sock: socket.socket) -> int:
    """Receive one message with descriptors, close them and return how many they were."""
    fds = arrays.array("i")
    _data, ancillary, _flags, _address = sock.recvmsg(8, socket.CMSG_LEN(MAX_FDS * fds.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    for fd in fds:
        os.close(fd)
    return len(fds)


def _serve_datagrams(sock: socket.socket) -> None:
    while True:
        header, sender = sock.recvfrom(READ_SIZE)
        what, size, count = HEADER.unpack(header)
        if what == ECHO:
            for _ in range(count):
                data, sender = sock.recvfrom(READ_SIZE)
                sock.sendto(data, sender)
        else:
            sock.sendto(NUMBER.pack(sum(len(sock.recv(READ_SIZE)) == size for _ in range(count))), sender)


def _echo_to_many(listener: socket.socket) -> None:
    """Send back what comes on any connection; blocking sockets, looked after by epoll."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _events in selector.select():
                sock = key.fileobj
                if not isinstance(sock, socket.socket):
                    continue
                if sock is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                elif data := sock.recv(READ_SIZE):
                    sock.sendall(data)
                else:
                    selector.unregister(sock)
                    sock.close()


# --- the client -----------------------------------------------------------------------------------------


class _Sockets(Driver):
    can_grow = True

    def __init__(self, door: Door) -> None:
        self._door = door
        self._is_plain = is_plain_echo(door)
        self._socks: list[socket.socket] = []
        # The server of connections that come and go has one at a time, so the first is made when it is needed.
        if door.workload != "connect":
            self.grow(1)

    def _connect(self) -> socket.socket:
        door = self._door
        sock = _socket(door)
        try:
            if door.transport == "datagram":
                sock.bind(f"{door.path}.{len(self._socks)}.{os.getpid()}")
            sock.connect((door.host, door.port) if door.transport == "tcp" else door.path)
        except BaseException:
            sock.close()
            raise
        return sock

    def grow(self, clients: int) -> None:
        while len(self._socks) > clients:
            self._socks.pop().close()
        while len(self._socks) < clients:
            self._socks.append(self._connect())

    def hold(self, count: int) -> Callable[[], None]:
        held = [self._connect() for _ in range(count)]

        def release() -> None:
            for sock in held:
                sock.close()

        return release

    def echo(self, data: bytes) -> bytes:
        if not self._socks:
            self.grow(1)
        sock = self._socks[0]
        if not self._is_plain:
            sock.sendall(pack_header(ECHO, len(data), 1))
        sock.sendall(data)
        return _recv_exactly(sock, len(data))

    def latency(self, size: int, count: int) -> array[int]:
        if not self._socks:
            self.grow(1)
        data = padding(size)
        if len(self._socks) > 1:
            return self._round_robin(data, count)
        sock = self._socks[0]
        if not self._is_plain:
            sock.sendall(pack_header(ECHO, size, count))
        send, recv = sock.sendall, sock.recv

        def exchange() -> None:
            send(data)
            answer = recv(READ_SIZE)
            while len(answer) < size:
                answer += recv(READ_SIZE)

        return timed(exchange, count)

    def _round_robin(self, data: bytes, count: int) -> array[int]:
        times = array("Q", bytes(8 * count))
        socks = self._socks
        for index in range(count):
            sock = socks[index % len(socks)]
            begin = perf_counter_ns()
            sock.sendall(data)
            _recv_exactly(sock, len(data))
            times[index] = perf_counter_ns() - begin
        return times

    def transfer(self, size: int, count: int) -> array[int]:
        sock, data = self._socks[0], padding(size)
        sock.sendall(pack_header(TRANSFER, size, count))

        def send_one() -> None:
            sock.sendall(data)
            check_number(_recv_exactly(sock, NUMBER.size), size, "bytes")

        return timed(send_one, count)

    def one_way(self, size: int, count: int, is_batched: bool) -> int:
        sock, data = self._socks[0], padding(size)
        is_stream = self._door.transport in ("unix", "tcp")
        begin = perf_counter_ns()
        sock.sendall(pack_header(ONE_WAY, size, count))
        if is_batched and is_stream:
            at_once = max(WRITE_SIZE // size, 1)
            for start in range(0, count, at_once):
                # Joined each time, as a program would that has its messages apart.
                sock.sendall(b"".join([data] * min(at_once, count - start)))
        else:
            send = sock.sendall if is_stream else sock.send
            for _ in range(count):
                send(data)
        check_number(_recv_exactly(sock, NUMBER.size), count, "messages")
        return perf_counter_ns() - begin

    def pipelined(self, size: int, count: int, window: int) -> int:
        sock = self._socks[0]
        begin = perf_counter_ns()
        sock.sendall(pack_header(ECHO, size, count))
        for start in range(0, count, window):
            at_once = min(window, count - start) * size
            sock.sendall(padding(at_once))
            _recv_exactly(sock, at_once)
        return perf_counter_ns() - begin

    def reconnect(self, count: int) -> array[int]:
        self.close()
        data = padding(64)

        def once() -> None:
            with self._connect() as sock:
                sock.sendall(data)
                _recv_exactly(sock, len(data))

        return timed(once, count)

    def pass_fds(self, fds: int, count: int) -> array[int]:
        sock, file = self._socks[0], file_to_pass()
        sock.sendall(pack_header(FDS, 1, count))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, arrays.array("i", [file] * fds))]

        def pass_some() -> None:
            sock.sendmsg([b"f"], rights)
            check_number(_recv_exactly(sock, NUMBER.size), fds, "descriptors")

        try:
            return timed(pass_some, count)
        finally:
            os.close(file)

    def close(self) -> None:
        while self._socks:
            self._socks.pop().close()


def _subject(name: str, transport: str, *workloads: str, is_quick: bool = False) -> Subject:
    return Subject(
        name=name, layer="raw", transport=transport, style="blocking", workloads=frozenset(workloads), serve=_serve,
        drive=_Sockets, is_quick=is_quick,
    )  # fmt: skip


SUBJECTS = (
    _subject(
        "sockets", "unix", "latency", "transfer", "pipelined", "one-way", "batched", "connect", "fanin", "kinds", "fds",
        "idle", "solo", is_quick=True,
    ),
    _subject("sockets over TCP", "tcp", "latency", "transfer", "one-way", "batched", "connect", is_quick=True),
    _subject("sockets seqpacket", "seqpacket", "kinds", "one-way", is_quick=True),
    _subject("sockets datagram", "datagram", "kinds", "one-way", is_quick=True),
)  # fmt: skip
