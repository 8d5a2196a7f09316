"""The report's looks: plain in a pipe, coloured on a terminal, never wider than it, never obeyed by it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import sys
import termios
from collections.abc import Callable
from typing import TextIO

import pytest

from hostline.demo.screen import RichScreen, Screen, choose_screen


def shown(act: Callable[[Screen], None], width: int = 80) -> list[str]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    act(Screen(stream, width))
    stream.seek(0)
    return stream.read().splitlines()


def on_terminal(act: Callable[[TextIO], None], columns: int = 80) -> str:
    """Return what `act` writes on a pseudo terminal."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with open(other, "w", encoding="utf-8") as terminal:
        act(terminal)
    output = b""
    while True:
        try:
            data = os.read(main, 65536)
        except OSError:
            break
        if not data:
            break
        output += data
    os.close(main)
    return output.decode()


@pytest.mark.parametrize("width", [40, 80, 120, 500])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    def act(screen: Screen) -> None:
        screen.heading("1. Title", "word " * 60)
        screen.text("word " * 60)
        screen.shown("word " * 60)
        screen.verdict(True, "word " * 60)

    lines = shown(act, width)
    assert max(map(len, lines)) < min(width, 120)
    assert len(lines) > 6


def test_texts_of_others_cannot_command_the_terminal() -> None:
    def act(screen: Screen) -> None:
        screen.text("a\x1b[2Jb")
        screen.shown("a\x07b")
        screen.table([("a\x1bb", "c")], "ll")
        screen.verdict(False, "a\x1bb")

    assert not any("\x1b" in line or "\x07" in line for line in shown(act))


def test_a_table_is_aligned_as_asked() -> None:
    lines = shown(lambda screen: screen.table([("a", "1"), ("bcd", "100")], "lr"))
    assert lines == ["   a      1", "   bcd  100"]


def test_an_encoding_without_the_letters_is_no_reason_to_stop() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Screen(stream).text("caf\u00e9")
    stream.seek(0)
    assert stream.read() == "   caf\\xe9\n"


def test_a_pipe_gets_plain_lines_and_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    screen = choose_screen(is_silent=False)
    with screen.progress("orders", 10) as progress:
        progress(5)
    screen.verdict(True, "it holds")
    assert capsys.readouterr().out == "   ok  it holds\n"


def test_a_silent_screen_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    screen = choose_screen(is_silent=True)
    screen.heading("1. Title", "sentence")
    assert capsys.readouterr().out == ""


def test_standard_output_may_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    choose_screen(is_silent=False).line("nobody reads this")


def test_a_terminal_gets_colour_and_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)

    def act(terminal: TextIO) -> None:
        screen = RichScreen(terminal, 80)
        with screen.progress("orders", 10) as progress:
            progress(10)
        screen.verdict(True, "it holds")
        screen.verdict(False, "it [b]does[/b] not")

    output = on_terminal(act)
    assert "orders" in output
    assert "\x1b[32mok\x1b[0m  it holds" in output
    assert "FAILED" in output
    assert "it [b]does[/b] not" in output


def test_without_rich_a_terminal_gets_the_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)

    def act(terminal: TextIO) -> None:
        monkeypatch.setattr(sys, "stdout", terminal)
        choose_screen(is_silent=False).verdict(True, "it holds")
        monkeypatch.undo()

    assert on_terminal(act) == "   ok  it holds\r\n"
