"""What the peers' modules share: four kinds of message, the answers to them, and drivers made of a send and a receive.

A message's first byte says what is wanted, so that one server does every workload; it is part of the message's size.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import struct
from array import array
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from time import perf_counter_ns
from typing import Any, ClassVar

from hostline.bench.subject import Driver, Subject, WrongAnswerError, timed

__all__ = [
    "BATCH",
    "CONNECT_SIZE",
    "Answers",
    "CallDriver",
    "MessageDriver",
    "SharedLoop",
    "message_of",
    "number_in",
    "require",
    "stop_signal",
    "times_of",
]

SUBJECTS: tuple[Subject, ...] = ()  # none here: the plan looks into every module

ECHO, TAKE, COUNT, TOTAL = (
    b"E",
    b"T",
    b"O",
    b"C",
)  # send it back; say how long it was; count it; say how many there were
_ECHO, _TAKE, _COUNT = ECHO[0], TAKE[0], COUNT[0]
_NUMBER = struct.Struct("!Q")

# Messages in one batch, where a peer can batch.
BATCH = 64
# Bytes of the one exchange of a connection that is opened for it.
CONNECT_SIZE = 64


class Answers:
    """Answer messages, and count those that want no answer."""

    def __init__(self) -> None:
        self.count = 0

    def to(self, message: bytes) -> bytes | None:
        """Return the answer to a message, or None where there is none."""
        kind = message[0]
        if kind == _ECHO:
            return message
        if kind == _COUNT:
            self.count += 1
            return None
        if kind == _TAKE:
            return _NUMBER.pack(len(message))
        count, self.count = self.count, 0
        return _NUMBER.pack(count)


def message_of(kind: bytes, size: int) -> bytes:
    """Return a message of `size` bytes, its kind included."""
    return kind + b"x" * (size - len(kind))


def number_in(message: bytes) -> int:
    """Return the number in an answer.

    Raises:
        WrongAnswerError: The answer is no number.
    """
    if len(message) != _NUMBER.size:
        raise WrongAnswerError(f"an answer of {len(message)} bytes, expected the {_NUMBER.size} of a number")
    number: int = _NUMBER.unpack(message)[0]
    return number


def require(actual: object, expected: object, what: str) -> None:
    """Compare what the server said with what was sent.

    Raises:
        WrongAnswerError: They differ.
    """
    if actual != expected:
        raise WrongAnswerError(f"the server says {actual!r} {what}, expected {expected!r}")


class MessageDriver(Driver):
    """Drive a connection that carries messages: a subclass gives `send` and `recv`, or `exchange`, and `close`."""

    send: Callable[[bytes], object]
    recv: Callable[[], bytes]

    def exchange(self, message: bytes) -> bytes:
        """Send a message and wait for the answer."""
        self.send(message)
        return self.recv()

    def echo(self, data: bytes) -> bytes:
        """Send data and return what came back."""
        return self.exchange(ECHO + data)[1:]

    def latency(self, size: int, count: int) -> array[int]:
        """Exchange messages, one after the other."""
        message, exchange = message_of(ECHO, size), self.exchange
        return timed(lambda: exchange(message), count)

    def transfer(self, size: int, count: int) -> array[int]:
        """Send large messages, each acknowledged by its length."""
        message, exchange = message_of(TAKE, size), self.exchange

        def operation() -> None:
            require(number_in(exchange(message)), size, "bytes arrived")

        return timed(operation, count)

    def pipelined(self, size: int, count: int, window: int) -> int:
        """Keep `window` messages under way, from one thread."""
        message, send, recv = message_of(ECHO, size), self.send, self.recv
        ahead = min(window, count)
        begin = perf_counter_ns()
        for _ in range(ahead):
            send(message)
        for _ in range(count - ahead):
            recv()
            send(message)
        for _ in range(ahead):
            recv()
        return perf_counter_ns() - begin

    def one_way(self, size: int, count: int, is_batched: bool) -> int:
        """Send messages that are only counted, then ask how many arrived."""
        if is_batched:
            raise AttributeError("one_way in batches")
        message, send = message_of(COUNT, size), self.send
        begin = perf_counter_ns()
        for _ in range(count):
            send(message)
        arrived = number_in(self.exchange(TOTAL))
        duration = perf_counter_ns() - begin
        require(arrived, count, "messages arrived")
        return duration

    def connected(self) -> MessageDriver:
        """Connect once more, as the first time."""
        raise NotImplementedError

    def reconnect(self, count: int) -> array[int]:
        """Connect, exchange one message, close."""
        message = message_of(ECHO, CONNECT_SIZE)

        def operation() -> None:
            other = self.connected()
            other.exchange(message)
            other.close()

        return timed(operation, count)


class CallDriver(Driver):
    """Drive typed calls: a subclass gives `value`, `text_of`, `call_echo`, `call_take` and `close`."""

    # Bytes that the encoding, the id and the name take beside the text.
    overhead: ClassVar[int] = 26
    # Calls the method that returns its argument, and the one that returns the length of the text in it.
    call_echo: Callable[[Any], Any]
    call_take: Callable[[Any], int]

    def value(self, text: str) -> Any:
        """Return what one call sends."""
        raise NotImplementedError

    def text_of(self, value: Any) -> str:
        """Return the text in a value."""
        raise NotImplementedError

    def sized(self, size: int) -> tuple[Any, int]:
        """Return a value that is about `size` bytes encoded, and the length of its text."""
        length = max(1, size - self.overhead)
        return self.value("x" * length), length

    def echo(self, data: bytes) -> bytes:
        """Call with data and return what came back."""
        return self.text_of(self.call_echo(self.value(data.decode("ascii")))).encode("ascii")

    def latency(self, size: int, count: int) -> array[int]:
        """Call, one after the other."""
        value, call = self.sized(size)[0], self.call_echo
        return timed(lambda: call(value), count)

    def transfer(self, size: int, count: int) -> array[int]:
        """Call with large arguments, each acknowledged by its length."""
        (value, length), call = self.sized(size), self.call_take

        def operation() -> None:
            require(call(value), length, "characters arrived")

        return timed(operation, count)

    def connected(self) -> CallDriver:
        """Connect once more, as the first time."""
        raise NotImplementedError

    def reconnect(self, count: int) -> array[int]:
        """Connect, call once, close."""
        value = self.sized(CONNECT_SIZE)[0]

        def operation() -> None:
            other = self.connected()
            other.call_echo(value)
            other.close()

        return timed(operation, count)


class SharedLoop:
    """One event loop for all asyncio drivers of a process: a thousand clients do not need a thousand loops."""

    _runner: ClassVar[asyncio.Runner | None] = None
    _users: ClassVar[int] = 0

    def __init__(self, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
        if SharedLoop._runner is None:
            SharedLoop._runner = asyncio.Runner(loop_factory=loop_factory)
        SharedLoop._users += 1

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end."""
        if SharedLoop._runner is None:
            work.close()
            raise RuntimeError("the event loop is closed")
        return SharedLoop._runner.run(work)

    def close(self) -> None:
        """Close the loop with its last user."""
        SharedLoop._users -= 1
        if not SharedLoop._users and SharedLoop._runner is not None:
            SharedLoop._runner.close()
            SharedLoop._runner = None


async def times_of(operation: Callable[[], Awaitable[object]], count: int) -> array[int]:
    """Return the time of each of `count` operations, in nanoseconds: the asyncio twin of `timed`."""
    times = array("Q", bytes(8 * count))
    clock = perf_counter_ns
    for index in range(count):
        begin = clock()
        await operation()
        times[index] = clock() - begin
    return times


@contextlib.contextmanager
def stop_signal() -> Iterator[asyncio.Event]:
    """Give an event that SIGTERM sets, for a server on an event loop."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    try:
        yield stop
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
