"""`hostline call`: one call from the shell, arguments and result in JSON; a stream is a JSON value on each line.

What JSON lacks, files have: `@PATH` is a descriptor or bytes, as the method's types say.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hostline.cli.exits import ExitCode, UsageError, greeted
from hostline.cli.options import Address, AnyServer, ServerUsers, server_rule, time_limit
from hostline.cli.terminal import escape, is_terminal, print_json, write_bytes

if TYPE_CHECKING:
    from hostline.cli.items import Streams
    from hostline.rpc.builtin import ServiceDescription
    from hostline.sync import Line

__all__ = ["EXAMPLES", "call", "parse_arguments", "print_result"]

EXAMPLES = """\b
Examples:
  hostline call payments charge '[{"id": 1, "sku": "tea", "quantity": 2, "price": 4.5}]'
  hostline call payments charge '{"order": {"id": 1, "sku": "tea", "quantity": 2, "price": 4.5}}'
  hostline call payments hostline.health
  hostline call ./x.sock greet '"world"' --timeout 0.5 --raw
  jq -c .orders orders.json | hostline call payments charge_all -
  hostline call payments ticks 10 | head -n 3
  hostline call payments total '{"plus": 5}' < numbers.jsonl
  hostline call archive store @photo.jpg > copy.jpg
"""

# JSON read from standard input. Four times what fits into the largest frame, because JSON is the longer spelling.
_MAX_INPUT = 64 << 20


_Method = Annotated[str, typer.Argument(metavar="METHOD", help="The method's name.", show_default=False)]
_Arguments = Annotated[
    str | None,
    typer.Argument(
        metavar="JSON|@PATH",
        help="An array: arguments by position. An object: by name. Anything else: the only argument. -: read it "
        "from standard input, unless a stream is. Bytes are written in base64, times as in ISO 8601. @PATH, or "
        '"@PATH" inside JSON: that file, where the method takes a descriptor or bytes; @- standard input.',
        show_default=False,
    ),
]
_Wait = Annotated[
    float,
    typer.Option("--wait", metavar="SECONDS", help="Keep trying so long while no server listens there yet."),
]
_Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        help="Seconds to wait for the answer, 30 unless given; inf for no limit, as for streams unless given.",
        show_default=False,
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on one line, as in a pipe.")]
_Raw = Annotated[
    bool, typer.Option("--raw", help="Print a result that is text or bytes as it is, without quotes or base64.")
]
_InputFiles = Annotated[
    bool, typer.Option("--input-files", help='Let JSON from standard input name files as well, as "@PATH".')
]


def call(
    address: Address,
    method: _Method,
    arguments: _Arguments = None,
    timeout: _Timeout = None,
    wait: _Wait = 0.0,
    server_user: ServerUsers = None,
    any_server: AnyServer = False,
    json: _Json = False,
    raw: _Raw = False,
    input_files: _InputFiles = False,
) -> int:
    """Call a method of a service and print its result.

    On a terminal the result is indented, in a pipe it is JSON on one line. Bytes are shown in base64. A result that is
    a buffer, or the descriptor of a file or a pipe, is written to a pipe as it is.

    Of a result that is a stream each item is printed as it comes, as JSON on one line. Of an argument that is a stream
    the items are read from standard input, as JSON on one line each.
    """
    if json and raw:
        raise UsageError("--json and --raw contradict each other")
    rule = server_rule(server_user, any_server)
    is_piped = arguments == "-"
    args, keywords = ((), None) if is_piped else parse_arguments(arguments)
    from hostline import sync
    from hostline.cli.files import holds_name
    from hostline.cli.schemas import ANYTHING
    from hostline.limits import DEFAULT_CALL_TIMEOUT, DEFAULT_CONNECT_TIMEOUT, HARD_MAX_FRAME_SIZE

    limit = DEFAULT_CALL_TIMEOUT if timeout is None else time_limit(timeout)
    settings: dict[str, Any] = {
        "server": rule,
        "timeout": limit,
        "connect_timeout": min(limit, DEFAULT_CONNECT_TIMEOUT),
        "wait": time_limit(wait, "--wait"),
        "max_frame_size": HARD_MAX_FRAME_SIZE,
    }
    with greeted():
        line = sync.connect(address, **settings)
    asked = _Asked(line, method, arguments, input_files=input_files)
    with line:
        # What standard input is for, the service knows; otherwise only a method that says no is asked about.
        streams = asked.streams() if is_piped or holds_name((args, keywords)) else None
        if is_piped and (streams is None or streams.parameter is None):
            args, keywords = parse_arguments(_read_input())
        if streams is None:
            show = partial(print_result, is_raw=raw, is_one_line=json)
            streams = _call_plain(asked, args, keywords, show)
        if streams is None:
            return ExitCode.OK
        seconds = math.inf if timeout is None else limit
        if streams.parameter is None:
            args, keywords = streams.arguments(args, keywords)
            with line.open_stream(method, args, keywords, returns=ANYTHING, timeout=seconds) as items:
                for item in items:
                    print_result(item, is_raw=raw, is_one_line=True)
            return ExitCode.OK
    from hostline import aio
    from hostline.cli.items import Conversation

    is_one_line = json or streams.method.streams_result
    show = partial(print_result, is_raw=raw, is_one_line=is_one_line)
    conversation = Conversation(streams, args, keywords, seconds, show)
    return conversation.run(lambda: aio.connect(address, **settings))


class _Asked:
    """One method, and what the service says of it: asked once, and only if it is needed.

    Args:
        line: Where to.
        method: The method's name.
        arguments: As they stand on the command line.
        input_files: Whether standard input may name files.
    """

    def __init__(self, line: Line, method: str, arguments: str | None, *, input_files: bool) -> None:
        from hostline.cli.files import Files

        self.line = line
        self.method = method
        is_piped = arguments == "-"
        self.files = Files(may_open=not is_piped or input_files, has_input=not is_piped)
        self._arguments = arguments
        self._input_files = Files(may_open=input_files, has_input=False)
        self._service: ServiceDescription | None = None

    def service(self) -> ServiceDescription:
        """Return the service's description."""
        from hostline.rpc.builtin import ServiceDescription

        if self._service is None:
            self._service = self.line.invoke("hostline.describe", returns=ServiceDescription)
        return self._service

    def streams(self) -> Streams | None:
        """Return what is a stream in the method; None if nothing is, or if the service does not tell."""
        from hostline.cli.items import streams_of
        from hostline.errors import CallError

        try:
            streams = streams_of(self.service(), self.method, self.files, self._input_files)
        except CallError:
            return None
        if streams is not None and streams.parameter is not None:
            self.files.has_input = False
        return streams

    def typed(
        self, args: tuple[Any, ...], keywords: dict[str, Any] | None
    ) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
        """Return the arguments with bytes, buffers and descriptors in place of texts."""
        from hostline.cli.schemas import typed_arguments

        args, keywords = typed_arguments(self.service(), self.method, args, keywords, self.files)
        if args == (self._arguments,):
            hint = f"a text is written with its quotes: '\"{escape(str(args[0]))}\"'"
            raise UsageError(f"{self.method} takes no file there; {hint}")
        return args, keywords

    def gives_buffer(self) -> bool:
        """Say whether the result is a buffer: small ones arrive as bytes do."""
        from hostline.errors import CallError
        from hostline.rpc.contract.schemas import string_kind

        try:
            described = next((m for m in self.service().methods if m.name == self.method), None)
        except CallError:
            return False
        return described is not None and string_kind(described.returns) == "Buffer"


def _call_plain(
    asked: _Asked, args: tuple[Any, ...], keywords: dict[str, Any] | None, show: Callable[[Any], None]
) -> Streams | None:
    """Call a method and print its result; one with streams is not called, and what the service says of it returned."""
    from hostline.errors import InvalidArgumentError, LocalProtocolError

    try:
        result = _make_call(asked, args, keywords)
    except (InvalidArgumentError, LocalProtocolError):  # what the line says, before anything is sent, of a stream too
        streams = asked.streams()
        if streams is None:
            raise
        return streams
    show(memoryview(result) if isinstance(result, bytes) and asked.gives_buffer() else result)
    return None


def _read_input() -> bytes:
    data = sys.stdin.buffer.read(_MAX_INPUT + 1)
    if len(data) > _MAX_INPUT:
        raise UsageError(f"more than {_MAX_INPUT} bytes of JSON on standard input")
    return data


def parse_arguments(text: str | bytes | None) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
    """Return the arguments by position and by name that a JSON text means.

    Args:
        text: The text, or None for no arguments.

    Raises:
        UsageError: It is not JSON.
    """
    import msgspec

    if text is None:
        return (), None
    if isinstance(text, str) and text.startswith("@"):
        return (text,), None
    try:
        encoded = text.encode() if isinstance(text, str) else text
        value = msgspec.json.decode(encoded)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        hint = ""
        if isinstance(text, str) and text[:1] not in '[{"-0123456789':
            hint = "; a text is written with its quotes: '\"hello\"'"
        raise UsageError(f"the arguments are not JSON: {error}{hint}") from error
    if isinstance(value, list):
        return tuple(value), None
    if isinstance(value, dict):
        return (), value
    return (value,), None


_LACKING = ("`bytes`, got `str`", "`Buffer`, got `str`")


def _make_call(asked: _Asked, args: tuple[Any, ...], keywords: dict[str, Any] | None) -> Any:
    """Call a method; where it takes bytes, texts in base64 are decoded for it, and files that they name are opened.

    JSON has no bytes. Only a service that refuses the texts, before anything ran, is asked which of them it takes as
    bytes, and one that may be sent a file, so that every other call costs one round trip.
    """
    from hostline.cli.files import holds_name
    from hostline.cli.schemas import ANYTHING
    from hostline.errors import InvalidArgumentError

    line, method = asked.line, asked.method
    is_typed = holds_name((args, keywords))
    if is_typed:
        args, keywords = asked.typed(args, keywords)
    try:
        return line.invoke(method, args, keywords, returns=ANYTHING)
    except InvalidArgumentError as refusal:
        if "`Fd`, got " in str(refusal):
            hint = 'a descriptor is written as the file it is opened from: "@PATH"'
            raise InvalidArgumentError(f"{refusal}; {hint}") from None
        if is_typed or not any(words in str(refusal) for words in _LACKING):
            raise
        return line.invoke(method, *asked.typed(args, keywords), returns=ANYTHING)


def print_result(result: Any, *, is_raw: bool = False, is_one_line: bool = False) -> None:
    """Print the result of a call.

    Args:
        result: What MessagePack gave; a memoryview is a buffer.
        is_raw: Print text and bytes as they are; on a terminal they are escaped all the same.
        is_one_line: Print JSON on one line also on a terminal.
    """
    from hostline.cli.files import is_readable, show_content
    from hostline.cli.schemas import as_json
    from hostline.unix.passing.descriptors import Fd

    is_on_terminal = is_terminal(sys.stdout)
    is_content = isinstance(result, memoryview) or (isinstance(result, Fd) and is_readable(result))
    if is_content and (is_raw or not (is_on_terminal or is_one_line)):
        show_content(result)
        return
    if isinstance(result, memoryview) and not is_one_line:
        result = f"<buffer, {len(result)} bytes>"
    if is_raw and isinstance(result, str | bytes):
        if is_on_terminal:
            text = result if isinstance(result, str) else result.decode("utf-8", "surrogateescape")
            print(escape(text))
        elif isinstance(result, str):
            write_bytes(result.encode() + b"\n")
        else:
            write_bytes(result)
        return
    print_json(as_json(result), is_pretty=is_on_terminal and not is_one_line)
