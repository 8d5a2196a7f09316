"""hostline's sockets and channels, blocking: bytes that keep the rules of the kernel, and whole messages."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from hostline.bench.subject import Door, Driver, Subject
from hostline.bench.subjects.links import Link, LinkDriver, answer
from hostline.bench.subjects.talk import ECHO, HEADER, NUMBER

__all__ = ["SUBJECTS"]

READ_SIZE = 1 << 16
MAX_FDS = 16
TYPES = {"unix": "stream", "seqpacket": "seqpacket", "datagram": "datagram"}


def _close_all(fds: list[Any]) -> int:
    for fd in fds:
        fd.close()
    return len(fds)


def _stream(connection: Any) -> Link:
    """Return the link over a stream, whose messages are so many bytes."""
    recv, send = connection.recv, connection.send

    spaces: dict[int, memoryview] = {}

    def recv_exactly(size: int) -> bytes | memoryview:
        if size <= READ_SIZE:
            data: bytes = recv(size)
            while len(data) < size:
                data += recv(size - len(data))
            return data
        # Received where it stays, in memory that is used again, as a program that takes large data does.
        if size not in spaces:
            spaces[size] = memoryview(bytearray(size))
        come, space = 0, spaces[size]
        while come < size:
            come += connection.recv_into(space[come:])
        return space

    def count(number: int, size: int) -> int:
        left = number * size
        while left:
            left -= len(recv(min(READ_SIZE, left)))
        return number

    return Link(
        send, recv_exactly, count, connection.close,
        send_many=lambda messages: send(b"".join(messages)),
        send_fds=lambda data, fds: send(data, fds=fds),
        recv_fds=lambda: _close_all(connection.recv_fds(1)[1]),
    )  # fmt: skip


def _packets(connection: Any) -> Link:
    recv_many = connection.recv_many

    def count(number: int, size: int) -> int:
        right, left = 0, number
        while left:
            messages = recv_many(min(64, left), READ_SIZE)
            right += sum(len(message) == size for message in messages)
            left -= len(messages)
        return right

    return Link(
        connection.send, lambda _size: connection.recv(READ_SIZE), count, connection.close,
        send_many=connection.send_many,
    )  # fmt: skip


def _channel(channel: Any) -> Link:
    """Return the link over a channel; what is counted are values, which `send_many` and `recv_many` carry."""

    def count(number: int, size: int) -> int:
        right, left = 0, number
        while left:
            messages = channel.recv_many(min(256, left), bytes)
            right += sum(len(message) == size for message in messages)
            left -= len(messages)
        return right

    return Link(
        channel.send_bytes, lambda _size: channel.recv_bytes(), count, channel.close,
        post=channel.send, send_many=channel.send_many,
        send_fds=lambda data, fds: channel.send_bytes(data, fds=fds),
        recv_fds=lambda: _close_all(channel.recv_bytes_fds()[1]),
    )  # fmt: skip


def _link(connection: Any, transport: str, is_channel: bool) -> Link:
    if is_channel:
        return _channel(connection)
    return _stream(connection) if transport == "unix" else _packets(connection)


def _serve(door: Door, is_channel: bool) -> None:
    from hostline import errors, sync

    kind: Any = TYPES[door.transport]
    if kind == "datagram":
        _serve_datagrams(door)
    listen: Callable[..., Any] = sync.listen_channel if is_channel else sync.listen
    with listen(door.path, kind, max_fds=MAX_FDS) as listener:
        door.ready()
        for connection in listener:
            with connection, contextlib.suppress(errors.SocketError, errors.EndOfStream):
                answer(_link(connection, door.transport, is_channel))


def _serve_datagrams(door: Door) -> None:
    from hostline import sync

    with sync.listen(door.path, "datagram") as sock:
        door.ready()
        while True:
            header, sender, *_ = sock.recv_from()
            what, size, count = HEADER.unpack(header)
            if what == ECHO:
                for _ in range(count):
                    data, sender, *_ = sock.recv_from()
                    sock.send(data, sender)
            else:
                right, left = 0, count
                while left:
                    messages = sock.recv_many(min(64, left))
                    right += sum(len(message[0]) == size for message in messages)
                    left -= len(messages)
                sock.send(NUMBER.pack(right), sender)


def _connect(door: Door, is_channel: bool) -> Link:
    from hostline import sync

    kind: Any = TYPES[door.transport]
    if is_channel:
        return _link(sync.connect_channel(door.path, kind, max_fds=MAX_FDS), door.transport, True)
    if kind != "datagram":
        return _link(sync.connect_socket(door.path, kind, max_fds=MAX_FDS), door.transport, False)
    from hostline.unix.address import parse_address

    # The answers need an address of our own, so one socket is bound and says each time where to. What is only counted
    # leaves through a connected one: there the kernel tells when the receiver's full queue has room again.
    server = parse_address(door.path)
    sock, posting = sync.listen(f"{door.path}.client", "datagram"), sync.connect_socket(door.path, "datagram")

    def close() -> None:
        sock.close()
        posting.close()

    return Link(
        lambda data: sock.send(data, server),
        lambda _size: sock.recv(),
        lambda _number, _size: 0,
        close,
        post=posting.send,
        send_many=posting.send_many,
    )


def _drive(door: Door, is_channel: bool) -> Driver:
    return LinkDriver(lambda: _connect(door, is_channel), is_lazy=door.workload == "connect")


def _subject(name: str, transport: str, *workloads: str, is_quick: bool = False) -> Subject:
    is_channel = "channel" in name
    return Subject(
        name=name, layer="framed" if is_channel else "raw", transport=transport, style="blocking",
        workloads=frozenset(workloads), serve=functools.partial(_serve, is_channel=is_channel),
        drive=functools.partial(_drive, is_channel=is_channel), is_hostline=True, is_quick=is_quick,
    )  # fmt: skip


SUBJECTS = (
    _subject("hostline socket", "unix", "latency", "transfer", "one-way", "batched", "connect", "kinds", "fds"),
    _subject("hostline socket seqpacket", "seqpacket", "kinds", "one-way", "batched"),
    _subject("hostline socket datagram", "datagram", "kinds", "one-way", "batched"),
    _subject(
        "hostline channel", "unix", "latency", "transfer", "one-way", "batched", "connect", "kinds", "fds",
        is_quick=True,
    ),
    _subject("hostline channel seqpacket", "seqpacket", "kinds", "one-way", "batched"),
)  # fmt: skip
