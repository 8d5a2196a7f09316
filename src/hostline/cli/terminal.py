r"""Text on a terminal: what peers wrote is escaped here, and nowhere else is it decided how.

A terminal obeys some of the bytes it is shown: they move the cursor, rename the window, or type for the user. Whatever
comes from another process therefore passes `escape` or an `Escaper` first: control characters (C0 and C1),
invisible and bidirectional ones, and bytes that are no UTF-8 become `\x1b` or `\u202e`.
"""

from __future__ import annotations

import codecs
import json
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from hostline.unix.oserrors import printable

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Escaper", "console", "escape", "is_terminal", "print_json", "write_bytes"]


def is_terminal(stream: TextIO) -> bool:
    """Say whether people read this stream directly; a closed one is no terminal."""
    try:
        return stream.isatty()
    except ValueError:
        return False


def escape(text: str, keep: str = "\n\t") -> str:
    """Return text that a terminal only shows.

    Args:
        text: What another process wrote.
        keep: Characters that pass all the same.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else printable(c) for c in text)


class Escaper:
    """Escape a stream of bytes piece by piece; a character cut by the end of a piece is shown with the next one."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._held = ""

    def feed(self, data: bytes, is_last: bool = False) -> str:
        """Return the text to show for the next bytes.

        Line ends of both kinds pass; a carriage return alone, which would let a line overwrite itself, does not.

        Args:
            data: The bytes.
            is_last: Whether nothing follows, so that nothing is held back.
        """
        text = self._held + self._decoder.decode(data, is_last)
        self._held = "" if is_last or not text.endswith("\r") else "\r"
        if self._held:
            text = text[:-1]
        return "\r\n".join(escape(part) for part in text.split("\r\n"))


def console(stream: TextIO | None = None) -> Console:
    """Return rich's console for a stream, standard output unless given.

    It colours nothing by guess, and takes no markup out of texts. In a pipe its tables are 100 columns wide.
    """
    from rich.console import Console

    file = sys.stdout if stream is None else stream
    width = None if is_terminal(file) or "COLUMNS" in os.environ else 100
    return Console(file=file, highlight=False, markup=False, emoji=False, width=width)


def print_json(encoded: bytes, *, is_pretty: bool) -> None:
    """Print one JSON value: on a terminal with everything escaped that it would obey, in a pipe as it is.

    Args:
        encoded: The value, as UTF-8.
        is_pretty: Whether to indent it, and to colour it where there is colour.
    """
    if not is_pretty:
        if is_terminal(sys.stdout):
            encoded = _escaped_json(encoded.decode()).encode()
        write_bytes(encoded + b"\n")
        return
    import msgspec

    text = _escaped_json(msgspec.json.format(encoded, indent=2).decode())
    from rich.highlighter import JSONHighlighter
    from rich.text import Text

    console().print(JSONHighlighter()(Text(text)), soft_wrap=True)


def _escaped_json(text: str) -> str:
    r"""Return the same JSON value with `\u001b` for what a terminal would obey; that occurs in strings only."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def write_bytes(data: bytes | memoryview) -> None:
    """Write bytes to standard output, all of them and at once."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def plain(value: Any) -> str:
    """Return one line of text for any value of a peer's."""
    return escape(str(value), keep="")
