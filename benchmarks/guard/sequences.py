"""The sequences: each a small program that makes `count` operations and ends.

    python -P benchmarks/guard/sequences.py NAME COUNT [PATH]

Instructions are counted of two runs, one with twice as many operations as the other: the difference is theirs alone,
without start, warm-up and end. So nothing here may depend on the time, on chance or on another process's haste. The
collector is off; hashes, locale and the C library's choice of routines are set by whoever starts the program
(counting.py); and the process at the other end of a socket, which is not counted, pauses before each of its moves
(beside.py), so that this one is always found waiting.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

import hostline
from hostline.protocol.channels.messages import Messages
from hostline.protocol.channels.values import value_reader
from hostline.protocol.connection import ClientConnection, ServerConnection
from hostline.wire import codec

# Bytes of one read of a socket; what a face reads at once.
CHUNK: Final = 65536


class Note(msgspec.Struct):
    """What calls carry: some fields, and a text that makes it as long as a sequence wants."""

    id: int
    name: str
    text: str


def note(size: int) -> Note:
    """Return a note that is `size` bytes long when it is encoded."""
    result = Note(7, "guard", "")
    result.text = "x" * (size - len(msgspec.msgpack.encode(result)) - (1 if size < 256 else 2))
    while len(msgspec.msgpack.encode(result)) > size:
        result.text = result.text[1:]
    return result


@dataclass(frozen=True)
class Sequence:
    """One sequence.

    Attributes:
        name: Its key in the record.
        title: What one operation is.
        count: Operations in the shorter of the two runs, which is also the warm-up: enough for caches to fill and for
            the interpreter to specialize its code.
        run: Makes `count` operations, given the path of the socket that it shares with another process, if it does.
        beside: What that process does: a name of beside.py, or nothing.
    """

    name: str
    title: str
    count: int
    run: Callable[[int, str], None]
    beside: str = ""


# --- without a socket ------------------------------------------------------------------------------------


def pair(*methods: codec.MethodEntry) -> tuple[ClientConnection, ServerConnection]:
    """Return both sides of a connection that have greeted each other."""
    hello = codec.encode_hello(codec.ServerHello(service="guard", methods=list(methods)))
    client, server = ClientConnection("guard"), ServerConnection(hello)
    server.receive_data(b"".join(client.data_to_send()))
    client.receive_data(b"".join(server.data_to_send()))
    return client, server


def calls(count: int, argument: Any, kind: type) -> None:
    """Make calls and answer them, each with what it brought."""
    client, server = pair(codec.MethodEntry("echo"))
    arguments = msgspec.msgpack.Decoder(tuple[kind])  # type: ignore[valid-type]
    for number in range(count):
        _, sent = client.call("echo", (argument,), None, 5.0, number)
        for frame in server.receive_data(bytes(sent)):
            (value,) = arguments.decode(codec.split_call(frame)[1])
            server.reply(frame.call_id, codec.encode_reply(frame.call_id, value))
        for ticket, answer in client.receive_data(b"".join(server.data_to_send())):
            result = codec.decode_result(answer.payload, kind)
            if ticket != number or len(msgspec.msgpack.encode(result)) < 64:
                raise AssertionError(f"call {number}: {result!r:.80} for {ticket}")


def call_64(count: int, path: str) -> None:
    """64 bytes there and back."""
    calls(count, note(64), Note)


def call_1k(count: int, path: str) -> None:
    """1 KiB there and back."""
    calls(count, note(1024), Note)


def call_1m(count: int, path: str) -> None:
    """1 MiB of bytes there and back, which arrives in pieces."""
    client, server = pair(codec.MethodEntry("echo"))
    data = bytes(1_000_000)
    for number in range(count):
        _, sent = client.call("echo", (data,), None, 5.0, number)
        for start in range(0, len(sent), CHUNK):
            for frame in server.receive_data(bytes(sent[start : start + CHUNK])):
                (value,) = msgspec.msgpack.decode(codec.split_call(frame)[1])
                server.reply(frame.call_id, codec.encode_reply(frame.call_id, value))
        back = b"".join(server.data_to_send())
        answers = []
        for start in range(0, len(back), CHUNK):
            answers += client.receive_data(back[start : start + CHUNK])
        ((_, answer),) = answers
        if codec.decode_result(answer.payload, bytes) != data:
            raise AssertionError("another result than was sent")


def pipelined(count: int, path: str) -> None:
    """Calls that come a thousand at a time: what a server does to take them."""
    client, server = pair(codec.MethodEntry("echo"))
    argument = note(64)
    thousand = b"".join(client.call("echo", (argument,), None, 5.0, number)[1] for number in range(1000))
    arguments = msgspec.msgpack.Decoder(tuple[Note])
    taken = 0
    for _ in range(count // 1000):
        for start in range(0, len(thousand), CHUNK):
            for frame in server.receive_data(thousand[start : start + CHUNK]):
                arguments.decode(codec.split_call(frame)[1])
                server.finish(frame.call_id)
                taken += 1
    if taken != count:
        raise AssertionError(f"{taken} of {count} calls arrived")


def greeted() -> tuple[Messages, Messages]:
    """Return both ends of a channel that have greeted each other."""
    sender, receiver = Messages("stream"), Messages("stream")
    receiver.receive_data(sender.introduce())
    sender.receive_data(receiver.introduce())
    return sender, receiver


def one_way(count: int, path: str) -> None:
    """Messages of 200 bytes on a channel, a hundred at a time."""
    sender, receiver = greeted()
    message = note(197)
    taken = 0
    for _ in range(count // 100):
        receiver.receive_data(b"".join(sender.encode(message) for _ in range(100)))
        while (arrived := receiver.next_message()) is not None:
            taken += arrived is not None
    if taken != count:
        raise AssertionError(f"{taken} of {count} messages arrived")


def batched(count: int, path: str) -> None:
    """Messages of 200 bytes on a channel, 250 of them in one `send_many`, and what `recv_many` makes of them."""
    sender, receiver = greeted()
    values, read, taken = [bytes(200)] * 250, value_reader(bytes), 0
    for _ in range(count // 250):
        batch = sender.encode_many(values)
        while not batch.is_done:
            data = bytes(batch.buffers()[0][:CHUNK])
            batch.took_bytes(len(data))
            receiver.receive_data(data)
        while (first := receiver.next_message()) is not None:
            taken += len(read.read_ready(receiver, first, 250))
    if taken != count:
        raise AssertionError(f"{taken} of {count} messages arrived")


def large_message(count: int, path: str) -> None:
    """1 MB of plain bytes on a channel, received where they stay."""
    sender, receiver = greeted()
    data = bytes(1_000_000)
    for _ in range(count):
        head, rest = map(memoryview, sender.bytes_in_place(data))
        receiver.receive_data(bytes(head) + bytes(rest[:CHUNK]))
        rest = rest[CHUNK:]
        while (space := receiver.space) is not None:
            part = space[: min(2 * CHUNK, len(rest))]
            part[:] = rest[: len(part)]
            rest = rest[len(part) :]
            receiver.receive_data(part)
        message = receiver.next_message()
        if message is None or message.data != data:
            raise AssertionError("another message than was sent")


def items(count: int, path: str) -> None:
    """A stream of items of 64 bytes, with credit for them."""
    client, server = pair(codec.MethodEntry("watch", False, True))
    call_id, sent = client.call("watch", (), None, None, "ticket")
    (call,) = server.receive_data(bytes(sent))
    argument = note(64)
    for _ in range(count):
        server.item(call.call_id, codec.encode_item(call.call_id, argument))
        for _, frame in client.receive_data(b"".join(server.data_to_send())):
            codec.decode_result(frame.payload, Note)
            if credit := client.taken(call_id, frame.cost):
                server.receive_data(credit)


# --- one side of a socket --------------------------------------------------------------------------------


def blocking_call(count: int, path: str) -> None:
    """The blocking client."""
    argument = note(64)
    with hostline.connect(path, timeout=30.0) as line:
        for _ in range(count):
            line.call("echo", argument, returns=Note)


def asyncio_call(count: int, path: str) -> None:
    """The asyncio client on asyncio's own loop."""

    async def main() -> None:
        argument = note(64)
        async with hostline.aio.connect(path, timeout=30.0) as line:
            for _ in range(count):
                await line.call("echo", argument, returns=Note)

    asyncio.run(main())


def connect(count: int, path: str) -> None:
    """A client that connects for each call."""
    argument = note(64)
    for _ in range(count):
        with hostline.connect(path, timeout=30.0) as line:
            line.call("echo", argument, returns=Note)


def served(count: int, path: str) -> None:
    """A server, until its client has called `finish`."""
    service = hostline.Service("guard")

    @service.method(inline=True)
    def echo(value: Note) -> Note:
        return value

    @service.method
    async def task(value: Note) -> Note:
        return value

    async def main() -> None:
        finished = asyncio.Event()

        @service.method(inline=True)
        def finish() -> None:
            finished.set()

        async with service.serve(path):
            await finished.wait()

    asyncio.run(main())


# --- what none of it is hostline's -----------------------------------------------------------------------


def calibration(count: int, path: str) -> None:
    """The interpreter and msgspec at work that resembles the sequences', without any of hostline's code."""
    argument = note(64)
    decoder = msgspec.msgpack.Decoder(Note)
    open_calls: dict[int, Any] = {}
    queue: list[bytes] = []

    class Side:
        def __init__(self) -> None:
            self.total = 0

        def take(self, number: int, data: bytes, *, is_last: bool = False) -> Note:
            value = decoder.decode(memoryview(data)[4:])
            self.total += value.id
            if is_last or number < 0:
                raise ValueError(f"{number} of {len(data)} bytes")
            return value

    side = Side()
    for number in range(count):
        for _ in range(4):
            buffer = bytearray(4)
            msgspec.msgpack.Encoder().encode_into(argument, buffer, 4)
            buffer[0:4] = len(buffer).to_bytes(4, "little")
            open_calls[number] = argument
            queue.append(bytes(buffer))
            while queue:
                value = side.take(number, queue.pop())
                if (value.id, value.name) != (7, "guard") or open_calls.pop(number) is not argument:
                    raise AssertionError(value)


# I/O sequences are short: each operation waits for pauses of the process at the other end.
ALL: Final = (
    Sequence("calibration", "interpreter and msgspec alone", 1500, calibration),
    Sequence("call_64", "call and answer of 64 B, no socket", 1000, call_64),
    Sequence("call_1k", "call and answer of 1 KiB, no socket", 1000, call_1k),
    Sequence("call_1m", "call and answer of 1 MB, no socket", 25, call_1m),
    Sequence("pipelined", "call taken of 1,000 pipelined, no socket", 4000, pipelined),
    Sequence("one_way", "one-way message of 200 B of 100, no socket", 4000, one_way),
    Sequence("batched", "message of 200 B of a batch of 250, no socket", 4000, batched),
    Sequence("large_message", "message of 1 MB, no socket", 25, large_message),
    Sequence("items", "item of a stream, no socket", 2000, items),
    Sequence("blocking_call", "call, blocking client", 150, blocking_call, "answer"),
    Sequence("asyncio_call", "call, asyncio client", 150, asyncio_call, "answer"),
    Sequence("connect", "connect, call and close, blocking client", 40, connect, "answer"),
    Sequence("served_inline", "call served, inline handler", 150, served, "call echo"),
    Sequence("served_task", "call served, async handler", 150, served, "call task"),
    Sequence("served_connect", "connection with one call served", 40, served, "connect echo"),
)
BY_NAME: Final = {sequence.name: sequence for sequence in ALL}


def main(arguments: list[str]) -> None:
    """Run one sequence, and end at once."""
    name, count, path = [*arguments, ""][:3]
    sequence = BY_NAME[name]
    gc.collect()
    gc.disable()
    sequence.run(int(count), path)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
