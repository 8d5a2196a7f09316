"""hostline's sockets and channels on asyncio, on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from typing import Any

from hostline.bench.subject import Door, Driver, Subject
from hostline.bench.subjects.links import AioLink, AioLinkDriver, answer_aio, pass_on
from hostline.bench.subjects.talk import is_plain_echo

__all__ = ["SUBJECTS", "loop_factory"]

READ_SIZE = 1 << 16


def loop_factory(style: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the loop of a style."""
    if style != "uvloop":
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _stream(connection: Any) -> AioLink:
    recv = connection.recv

    spaces: dict[int, memoryview] = {}

    async def recv_exactly(size: int) -> bytes | memoryview:
        if size <= READ_SIZE:
            data: bytes = await recv(size)
            while len(data) < size:
                data += await recv(size - len(data))
            return data
        # Received where it stays, in memory that is used again, as a program that takes large data does.
        if size not in spaces:
            spaces[size] = memoryview(bytearray(size))
        come, space = 0, spaces[size]
        while come < size:
            come += await connection.recv_into(space[come:])
        return space

    async def count(number: int, size: int) -> int:
        left = number * size
        while left:
            left -= len(await recv(min(READ_SIZE, left)))
        return number

    return AioLink(
        connection.send, recv_exactly, count, connection.close,
        send_many=lambda messages: connection.send(b"".join(messages)),
    )  # fmt: skip


def _channel(channel: Any) -> AioLink:
    async def count(number: int, size: int) -> int:
        right, left = 0, number
        while left:
            messages = await channel.recv_many(min(256, left), bytes)
            right += sum(len(message) == size for message in messages)
            left -= len(messages)
        return right

    return AioLink(
        channel.send_bytes, lambda _size: channel.recv_bytes(), count, channel.close,
        post=channel.send, send_many=channel.send_many,
    )  # fmt: skip


def _serve(door: Door, style: str, is_channel: bool) -> None:
    from hostline import aio, errors

    make = _channel if is_channel else _stream
    listen: Callable[..., Any] = aio.listen_channel if is_channel else aio.listen

    async def attend(connection: Any) -> None:
        with contextlib.suppress(errors.SocketError, errors.EndOfStream), contextlib.closing(connection):
            link = make(connection)
            if not is_plain_echo(door):
                await answer_aio(link)
            elif is_channel:
                await pass_on(link, READ_SIZE)
            else:  # a plain echo of whatever came
                link.recv = connection.recv
                await pass_on(link, READ_SIZE)

    async def serve() -> None:
        tasks = set()
        async with listen(door.path) as listener:
            door.ready()
            async for connection in listener:
                task = asyncio.ensure_future(attend(connection))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    with asyncio.Runner(loop_factory=loop_factory(style)) as runner:
        runner.run(serve())


def _drive(door: Door, style: str, is_channel: bool) -> Driver:
    from hostline import aio

    async def connect() -> AioLink:
        if is_channel:
            return _channel(await aio.connect_channel(door.path))
        return _stream(await aio.connect_socket(door.path))

    return AioLinkDriver(connect, loop_factory(style), is_plain_echo(door))


def _subject(name: str, style: str, *workloads: str) -> Subject:
    is_channel = "channel" in name
    return Subject(
        name=name, layer="framed" if is_channel else "raw", transport="unix", style=style,
        workloads=frozenset(workloads), serve=functools.partial(_serve, style=style, is_channel=is_channel),
        drive=functools.partial(_drive, style=style, is_channel=is_channel), is_hostline=True,
        needs=("uvloop",) if style == "uvloop" else (), install="pip install 'hostline[uvloop]'",
    )  # fmt: skip


ALL = ("latency", "transfer", "one-way", "batched")
SUBJECTS = (
    _subject("hostline socket asyncio", "asyncio", *ALL),
    _subject("hostline socket uvloop", "uvloop", *ALL),
    _subject("hostline channel asyncio", "asyncio", *ALL, "fanin"),
    _subject("hostline channel uvloop", "uvloop", *ALL),
)
