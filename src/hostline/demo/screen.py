"""Show the report: coloured and with a progress bar on a terminal, as plain lines in a pipe, or not at all.

The lines are the same everywhere; rich, where it is installed, adds colour and the bar. Texts are ASCII, and whatever
else comes along (a path, a message) is escaped.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TextIO

from hostline.unix.oserrors import printable

__all__ = ["RichScreen", "Screen", "Style", "choose_screen"]

Style = Literal["", "title", "faint", "good", "bad", "shown"]

# Columns of a report that nobody looks at directly, and the most that are comfortable to read.
_WIDTH, _MAX_WIDTH = 80, 120

_INDENT = "   "


class Screen:
    """Write plain lines.

    Args:
        stream: Where to; None shows nothing.
        width: Columns.
    """

    def __init__(self, stream: TextIO | None, width: int = _WIDTH) -> None:
        self._stream = stream
        self.width = min(width, _MAX_WIDTH) - 1  # some terminals begin a new line behind the last column

    def line(self, text: str = "", style: Style = "") -> None:
        """Write one line as it is."""
        if self._stream is not None:
            encoding = self._stream.encoding or "ascii"
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            self._stream.flush()

    def heading(self, text: str, sentence: str) -> None:
        """Begin a part: its heading, and what it shows."""
        self.line()
        self.line(text, "title")
        self.text(sentence, "faint")
        self.line()

    def text(self, text: str, style: Style = "", *, hanging: int = 0) -> None:
        """Write a paragraph, wrapped; `hanging` columns more from the second line on."""
        wrapped = textwrap.wrap(
            printable(text, 2000),
            self.width,
            initial_indent=_INDENT,
            subsequent_indent=_INDENT + " " * hanging,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in wrapped:
            self.line(line, style)

    def shown(self, text: str) -> None:
        """Write what a program or an error says, word for word, set off from our own words."""
        for line in textwrap.wrap(
            printable(text, 2000),
            self.width,
            initial_indent=_INDENT + "  ",
            subsequent_indent=_INDENT + "    ",
            break_long_words=False,
            break_on_hyphens=False,
        ):
            self.line(line, "shown")

    def table(self, rows: Sequence[Sequence[str]], align: str, *, has_header: bool = False) -> None:
        """Write a table.

        Args:
            rows: Its cells.
            align: For each column `l` or `r`.
            has_header: Whether the first row names the columns.
        """
        widths = [max(len(row[index]) for row in rows) for index in range(len(align))]
        for number, row in enumerate(rows):
            cells = [
                cell.rjust(width) if side == "r" else cell.ljust(width)
                for cell, width, side in zip(row, widths, align, strict=True)
            ]
            text = printable("  ".join(cells).rstrip(), 2000)
            self.line(_INDENT + text, "faint" if has_header and number == 0 else "")

    def verdict(self, ok: bool, claim: str) -> None:
        """Write whether a claim holds."""
        word = "ok" if ok else "FAILED"
        style: Style = "good" if ok else "bad"
        self.text(f"{word}  {claim}", style, hanging=len(word) + 2)

    @contextlib.contextmanager
    def progress(self, label: str, total: float) -> Iterator[Callable[[float], None]]:
        """Yield a function that says how much has been done; only a terminal shows it."""
        yield lambda done: None


class RichScreen(Screen):
    """Write the same lines in colour, and a bar while something takes its time.

    Args:
        stream: A terminal.
        width: Columns.

    Raises:
        ImportError: rich is not installed.
    """

    _STYLES = {  # noqa: RUF012 - never changed
        "": "",
        "title": "bold cyan",
        "faint": "dim",
        "good": "green",
        "bad": "bold red",
        "shown": "yellow",
    }

    def __init__(self, stream: TextIO, width: int) -> None:
        from rich.console import Console

        super().__init__(stream, width)
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)

    def line(self, text: str = "", style: Style = "") -> None:
        """Write one line as it is."""
        from rich.text import Text

        first, _, rest = text.strip().partition("  ")
        if style in ("good", "bad") and first in ("ok", "FAILED"):
            self._console.print(Text.assemble(_INDENT, (first, self._STYLES[style]), "  ", rest), soft_wrap=True)
        else:
            self._console.print(Text(text, "" if style in ("good", "bad") else self._STYLES[style]), soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, label: str, total: float) -> Iterator[Callable[[float], None]]:
        """Yield a function that says how much has been done; the bar goes away at the end."""
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (TextColumn(_INDENT + "{task.description}", markup=False), BarColumn(), TaskProgressColumn())
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda done: bar.update(task, completed=done)


def choose_screen(*, is_silent: bool) -> Screen:
    """Return the screen that fits standard output.

    Args:
        is_silent: Whether nothing is to be shown.
    """
    stream = sys.stdout
    # A program started with standard output closed has None there.
    if is_silent or stream is None:
        return Screen(None)
    width = shutil.get_terminal_size((_WIDTH, 24)).columns
    if stream.isatty():
        with contextlib.suppress(ImportError):
            return RichScreen(stream, width)
    return Screen(stream, width)
