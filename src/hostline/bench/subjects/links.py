"""A server and a driver over anything that carries messages: hostline's sockets and channels, blocking and asyncio.

A link is what one connection can do, as functions, so that little of ours stands between the timing and the library.
The two halves are twins: `Link` blocks, `AioLink` awaits.
"""

from __future__ import annotations

import asyncio
import os
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

from hostline.bench.subject import Driver, file_to_pass, timed
from hostline.bench.subjects.talk import (
    ECHO,
    FDS,
    HEADER,
    NUMBER,
    TRANSFER,
    check_number,
    pack_header,
    padding,
)  # fmt: skip

__all__ = ["AioLink", "AioLinkDriver", "Link", "LinkDriver", "answer", "answer_aio", "pass_on"]

# Messages that a batch has.
AT_ONCE = 256


@dataclass(slots=True)
class Link:
    """Hold what one blocking connection does.

    Attributes:
        send: Sends one message.
        recv: Receives one message of the given size; of a large one it may give memory that the next one overwrites.
        count: Receives so many messages of so many bytes each, and returns how many had them.
        close: Closes the connection.
        post: Sends one message that will be counted; `send` unless given.
        send_many: Sends many messages at once that will be counted.
        send_fds: Sends a message with descriptors.
        recv_fds: Receives one, closes its descriptors and returns how many they were.
    """

    send: Callable[[bytes | memoryview], object]
    recv: Callable[[int], bytes | memoryview]
    count: Callable[[int, int], int]
    close: Callable[[], object]
    post: Callable[[bytes], object] | None = None
    send_many: Callable[[Sequence[bytes]], object] | None = None
    send_fds: Callable[[bytes, list[int]], object] | None = None
    recv_fds: Callable[[], int] | None = None


def answer(link: Link) -> None:
    """Do what the headers of one connection ask for, until it ends with an exception of the library's."""
    while header := link.recv(HEADER.size):
        what, size, count = HEADER.unpack(header)
        if what == ECHO:
            for _ in range(count):
                link.send(link.recv(size))
        elif what == TRANSFER:
            for _ in range(count):
                link.send(NUMBER.pack(len(link.recv(size))))
        elif what == FDS and link.recv_fds is not None:
            for _ in range(count):
                link.send(NUMBER.pack(link.recv_fds()))
        else:
            link.send(NUMBER.pack(link.count(count, size)))


class LinkDriver(Driver):
    """Drive one blocking connection after another."""

    def __init__(self, connect: Callable[[], Link], is_lazy: bool) -> None:
        self._connect = connect
        self._link = None if is_lazy else connect()

    @property
    def link(self) -> Link:
        """The standing connection."""
        if self._link is None:
            self._link = self._connect()
        return self._link

    def echo(self, data: bytes) -> bytes:
        self.link.send(pack_header(ECHO, len(data), 1))
        self.link.send(data)
        return bytes(self.link.recv(len(data)))

    def latency(self, size: int, count: int) -> array[int]:
        link, data = self.link, padding(size)
        send, recv = link.send, link.recv
        send(pack_header(ECHO, size, count))

        def exchange() -> None:
            send(data)
            recv(size)

        return timed(exchange, count)

    def transfer(self, size: int, count: int) -> array[int]:
        link, data = self.link, padding(size)
        link.send(pack_header(TRANSFER, size, count))

        def send_one() -> None:
            link.send(data)
            check_number(link.recv(NUMBER.size), size, "bytes")

        return timed(send_one, count)

    def one_way(self, size: int, count: int, is_batched: bool) -> int:
        link, data = self.link, padding(size)
        begin = perf_counter_ns()
        link.send(pack_header(b"O", size, count))
        if is_batched and link.send_many is not None:
            for start in range(0, count, AT_ONCE):
                link.send_many([data] * min(AT_ONCE, count - start))
        else:
            post = link.post or link.send
            for _ in range(count):
                post(data)
        check_number(link.recv(NUMBER.size), count, "messages")
        return perf_counter_ns() - begin

    def reconnect(self, count: int) -> array[int]:
        self.close()
        header, data = pack_header(ECHO, 64, 1), padding(64)

        def once() -> None:
            link = self._connect()
            link.send(header)
            link.send(data)
            link.recv(64)
            link.close()

        return timed(once, count)

    def pass_fds(self, fds: int, count: int) -> array[int]:
        link, file = self.link, file_to_pass()
        send_fds = link.send_fds
        if send_fds is None:
            raise AttributeError("pass_fds")
        link.send(pack_header(FDS, 1, count))

        def pass_some() -> None:
            send_fds(b"f", [file] * fds)
            check_number(link.recv(NUMBER.size), fds, "descriptors")

        try:
            return timed(pass_some, count)
        finally:
            os.close(file)

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None


# --- asyncio --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class AioLink:
    """Hold what one asyncio connection does; see Link."""

    send: Callable[[bytes | memoryview], Awaitable[object]]
    recv: Callable[[int], Awaitable[bytes | memoryview]]
    count: Callable[[int, int], Awaitable[int]]
    close: Callable[[], object]
    post: Callable[[bytes], Awaitable[object]] | None = None
    send_many: Callable[[Sequence[bytes]], Awaitable[object]] | None = None


async def answer_aio(link: AioLink) -> None:
    """Do what the headers of one connection ask for, until it ends with an exception of the library's."""
    while header := await link.recv(HEADER.size):
        what, size, count = HEADER.unpack(header)
        if what == ECHO:
            for _ in range(count):
                await link.send(await link.recv(size))
        elif what == TRANSFER:
            for _ in range(count):
                await link.send(NUMBER.pack(len(await link.recv(size))))
        else:
            await link.send(NUMBER.pack(await link.count(count, size)))


async def pass_on(link: AioLink, size: int) -> None:
    """Send back what comes, for connections without headers."""
    while data := await link.recv(size):
        await link.send(data)


class AioLinkDriver(Driver):
    """Drive asyncio connections from a loop that runs only while there is something to do."""

    can_grow = True

    def __init__(
        self,
        connect: Callable[[], Awaitable[AioLink]],
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None,
        is_plain: bool,
    ) -> None:
        self._connect = connect
        self._is_plain = is_plain
        self._runner = asyncio.Runner(loop_factory=loop_factory)
        self._links: list[AioLink] = []
        self.grow(1)

    def grow(self, clients: int) -> None:
        async def open_them() -> None:
            while len(self._links) > clients:
                self._links.pop().close()
            while len(self._links) < clients:
                self._links.append(await self._connect())

        self._runner.run(open_them())

    def _run(self, work: Callable[[AioLink], Any]) -> Any:
        return self._runner.run(work(self._links[0]))

    def echo(self, data: bytes) -> bytes:
        async def work(link: AioLink) -> bytes:
            if not self._is_plain:
                await link.send(pack_header(ECHO, len(data), 1))
            await link.send(data)
            return bytes(await link.recv(len(data)))

        answer: bytes = self._run(work)
        return answer

    def latency(self, size: int, count: int) -> array[int]:
        data, times, links = padding(size), array("Q", bytes(8 * count)), self._links

        async def work(link: AioLink) -> None:
            if not self._is_plain:
                await link.send(pack_header(ECHO, size, count))
            clock, number = perf_counter_ns, len(links)
            for index in range(count):
                link = links[index % number]
                begin = clock()
                await link.send(data)
                await link.recv(size)
                times[index] = clock() - begin

        self._run(work)
        return times

    def transfer(self, size: int, count: int) -> array[int]:
        data, times = padding(size), array("Q", bytes(8 * count))

        async def work(link: AioLink) -> None:
            await link.send(pack_header(TRANSFER, size, count))
            for index in range(count):
                begin = perf_counter_ns()
                await link.send(data)
                check_number(await link.recv(NUMBER.size), size, "bytes")
                times[index] = perf_counter_ns() - begin

        self._run(work)
        return times

    def one_way(self, size: int, count: int, is_batched: bool) -> int:
        data = padding(size)

        async def work(link: AioLink) -> int:
            begin = perf_counter_ns()
            await link.send(pack_header(b"O", size, count))
            if is_batched and link.send_many is not None:
                for start in range(0, count, AT_ONCE):
                    await link.send_many([data] * min(AT_ONCE, count - start))
            else:
                post = link.post or link.send
                for _ in range(count):
                    await post(data)
            check_number(await link.recv(NUMBER.size), count, "messages")
            return perf_counter_ns() - begin

        elapsed: int = self._run(work)
        return elapsed

    def close(self) -> None:
        async def close_them() -> None:
            for link in self._links:
                link.close()

        self._runner.run(close_them())
        self._runner.close()
