"""Calls with streams: an argument's items from standard input, a result's to standard output, a JSON value each line.

Which parameter is a stream, the service says itself (`hostline.describe`). Input goes by asyncio, because a line may be
long in coming while results arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hostline.cli.exits import CommandError, ExitCode, UsageError
from hostline.cli.files import Files
from hostline.cli.schemas import ANYTHING
from hostline.limits import READ_SIZE
from hostline.rpc.builtin import MethodDescription, ParameterDescription, ServiceDescription

if TYPE_CHECKING:
    from hostline.aio import Line as AsyncLine

__all__ = ["Conversation", "Streams", "streams_of"]

# The longest line taken as one item, in bytes: as much as a JSON text without streams. A line without an end would
# otherwise be gathered in memory for ever.
_LONGEST_LINE: Final = 64 << 20

# Seconds without a result after which, behind a malformed line, none is expected for the items before it; and seconds
# after which a handler that never stops is not waited for any longer.
_QUIET: Final = 1.0
_LONGEST_REST: Final = 10.0


class Streams(NamedTuple):
    """What a service says of a method that has a stream.

    Attributes:
        service: All of its description, for the types that the method names.
        method: The method.
        parameter: The one that is a stream, if any is.
        files: Opens the files that arguments name.
        input_files: Opens those that items name.
    """

    service: ServiceDescription
    method: MethodDescription
    parameter: ParameterDescription | None
    files: Files
    input_files: Files

    def arguments(
        self, args: tuple[Any, ...], keywords: dict[str, Any] | None, items: Any = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return all arguments of a call, with bytes, buffers and descriptors where the method takes them.

        Args:
            args: By position, without the stream.
            keywords: By name, without the stream.
            items: What stands for the stream.

        Raises:
            UsageError: The stream itself was given by its name.
        """
        named = dict(keywords or {})
        if self.parameter is None:
            return self._typed(args, named)
        name = self.parameter.name
        if name in named:
            raise UsageError(f"{name} is a stream: its items are lines of standard input, a JSON value each")
        places = [p.name for p in self.method.parameters if p.is_positional]
        place = places.index(name) if self.parameter.is_positional else len(args) + 1
        if place > len(args) or (named and self.parameter.is_named):
            args, named = self._typed(args, {**named, name: None})
            return args, {**named, name: items}
        args, named = self._typed((*args[:place], None, *args[place:]), named)
        return (*args[:place], items, *args[place + 1 :]), named

    def item(self, value: Any) -> Any:
        """Return an item of the argument, with bytes, buffers and descriptors where it holds them."""
        from hostline.cli.schemas import typed_arguments

        if self.parameter is None:
            return value
        name = self.parameter.name
        _, keywords = typed_arguments(self.service, self.method.name, (), {name: value}, self.input_files)
        return value if keywords is None else keywords[name]

    def _typed(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        from hostline.cli.schemas import typed_arguments

        args, typed = typed_arguments(self.service, self.method.name, args, keywords, self.files)
        return args, typed or {}


def streams_of(service: ServiceDescription, method: str, files: Files, input_files: Files) -> Streams | None:
    """Return what a service says of a method's streams; None if it has none.

    Args:
        service: What it says of itself.
        method: The method's name.
        files: Opens the files that arguments name.
        input_files: Opens those that items name.
    """
    described = next((candidate for candidate in service.methods if candidate.name == method), None)
    if described is None:
        return None
    parameter = next((p for p in described.parameters if p.is_stream), None)
    if not described.streams_result and parameter is None:
        return None
    return Streams(service, described, parameter, files, input_files)


@dataclass
class Conversation:
    """A call whose argument is what standard input holds.

    Attributes:
        streams: What the service says of the method.
        args: The other arguments by position.
        keywords: The other arguments by name.
        timeout: Seconds for the whole of it; `math.inf` for no limit.
        show: Prints a result, or an item of it.
    """

    streams: Streams
    args: tuple[Any, ...]
    keywords: dict[str, Any] | None
    timeout: float
    show: Callable[[Any], None]
    _shown_count: int = field(default=0, init=False)

    def run(self, connect: Callable[[], Awaitable[AsyncLine]]) -> int:
        """Make the call and return the command's exit code.

        Args:
            connect: Opens a line.

        Raises:
            UsageError: A line of the input is not JSON.
            HostlineError: The call failed.
        """
        try:
            asyncio.run(self._run(connect))
        except asyncio.CancelledError:
            return ExitCode.TERMINATED
        return ExitCode.OK

    async def _run(self, connect: Callable[[], Awaitable[AsyncLine]]) -> None:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        name = self.streams.method.name
        args, keywords = self.streams.arguments(self.args, self.keywords, self._items())
        async with await connect() as line:
            if not self.streams.method.streams_result:
                self.show(await line.invoke(name, args, keywords, returns=ANYTHING, timeout=self.timeout))
                return
            async with line.open_stream(name, args, keywords, returns=ANYTHING, timeout=self.timeout) as results:
                async for item in results:
                    self._shown_count += 1
                    self.show(item)

    async def _items(self) -> AsyncIterator[Any]:
        """Yield the items that standard input holds; blank lines are none."""
        import msgspec

        number = 0
        async with contextlib.aclosing(_input_lines()) as lines:
            async for line in lines:
                number += 1
                if not line.strip():
                    continue
                try:
                    value = msgspec.json.decode(line)
                except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                    await self._rest()
                    raise UsageError(f"line {number} of standard input is not JSON: {error}") from error
                yield self.streams.item(value)

    async def _rest(self) -> None:
        """Wait for what the handler makes of the items it has.

        It is cancelled then: an end of the stream would tell it that these were all.
        """
        if not self.streams.method.streams_result:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_REST):
                shown = -1
                while shown != self._shown_count:
                    shown = self._shown_count
                    await asyncio.sleep(_QUIET)


async def _input_lines() -> AsyncGenerator[bytes]:
    """Yield the lines of standard input, without their ends, as they can be read.

    A thread reads, a block ahead at most. It is a daemon: a read of standard input cannot be interrupted, and must not
    keep the program.

    Raises:
        UsageError: A line is too long.
        CommandError: The input cannot be read.
    """
    loop = asyncio.get_running_loop()
    blocks: asyncio.Queue[bytes | OSError] = asyncio.Queue()
    is_wanted = threading.Semaphore()
    held = bytearray()
    threading.Thread(
        target=_read_blocks, args=(loop, blocks, is_wanted), name="hostline-call-input", daemon=True
    ).start()
    while block := await blocks.get():
        if isinstance(block, OSError):
            raise CommandError(f"standard input cannot be read: {block.strerror}")
        *lines, rest = block.split(b"\n")
        for line in lines:
            held += line
            yield bytes(held)
            held.clear()
        held += rest
        if len(held) > _LONGEST_LINE:
            raise UsageError(f"a line of more than {_LONGEST_LINE} bytes on standard input")
        is_wanted.release()
    if held:
        yield bytes(held)


def _read_blocks(
    loop: asyncio.AbstractEventLoop, blocks: asyncio.Queue[bytes | OSError], is_wanted: threading.Semaphore
) -> None:
    block: bytes | OSError = b"-"
    while block and not isinstance(block, OSError):
        is_wanted.acquire()
        try:
            block = os.read(sys.stdin.fileno(), READ_SIZE)
        except OSError as error:
            block = error
        try:
            loop.call_soon_threadsafe(blocks.put_nowait, block)
        except RuntimeError:
            return  # the call is over, and the loop closed
