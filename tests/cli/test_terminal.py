"""What peers wrote never reaches a terminal as it is, and never changes in a pipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostline.cli.terminal import Escaper, escape
from tests.cli.running import Running, hostline, on_terminal, plain

HOSTILE = b"a\x1b[31mred\x1b]0;title\x07\x9bC1 \xe2\x80\xae\x7f\rover\xff\n"
SHOWN = r"a\x1b[31mred\x1b]0;title\x07\x9bC1 \u202e\x7f\x0dover\xff" + "\n"
SHOP = Path(__file__).with_name("shop.py")


def is_harmless(text: str, keep: str) -> bool:
    return all(c.isprintable() or c in keep for c in text)


# --- the function ------------------------------------------------------------------------------------


@given(st.text())
def test_escaped_text_holds_nothing_that_a_terminal_obeys(text: str) -> None:
    assert is_harmless(escape(text), "\n\t")
    assert is_harmless(escape(text, keep=""), "")


@given(st.text(st.characters(categories=("L", "N", "P", "S"))))
def test_printable_text_passes(text: str) -> None:
    assert escape(text) == text


@given(st.binary(), st.lists(st.integers(0, 20), max_size=8))
@settings(deadline=None)
def test_a_stream_is_escaped_alike_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    whole = Escaper().feed(data, is_last=True)
    assert is_harmless(whole.replace("\r\n", ""), "\n\t")
    escaper = Escaper()
    shown, rest = "", data
    for cut in cuts:
        shown += escaper.feed(rest[:cut])
        rest = rest[cut:]
    assert shown + escaper.feed(rest, is_last=True) == whole


def test_line_ends_of_both_kinds_pass_and_a_lone_carriage_return_does_not() -> None:
    assert Escaper().feed(b"a\r\nb\nc\rd\r", is_last=True) == "a\r\nb\nc\\x0dd\\x0d"


def test_a_character_that_is_cut_in_two_is_shown_whole() -> None:
    escaper = Escaper()
    assert escaper.feed("é".encode()[:1]) + escaper.feed("é".encode()[1:]) == "é"
    assert Escaper().feed("é".encode()[:1], is_last=True) == r"\xc3"


# --- the commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stream", "seqpacket", "datagram"])
def test_cat_escapes_on_a_terminal_and_passes_bytes_on_in_a_pipe(sock_dir: Path, kind: str) -> None:
    path = sock_dir / "x"
    with Running("echo", path, "--type", kind, ready="listening") as server:
        piped = hostline("cat", path, "--type", kind, input=HOSTILE)
        assert (piped.returncode, piped.stdout) == (0, HOSTILE)
        # What is typed goes through the terminal's own editing, so the bytes come from a file.
        (sock_dir / "input").write_bytes(HOSTILE)
        assert shown_by_cat(path, kind, sock_dir / "input") == SHOWN
        assert shown_by_cat(path, kind, sock_dir / "input", "--raw") == HOSTILE.decode("utf-8", "surrogateescape")
        assert server.stop() == 0


def shown_by_cat(path: Path, kind: str, file: Path, *options: str) -> str:
    with file.open("rb") as stdin:
        code, shown = on_terminal("cat", path, "--type", kind, *options, stdin=stdin)
    assert code == 0
    return shown


def test_results_and_descriptions_are_escaped_on_a_terminal_and_stay_json(sock_dir: Path) -> None:
    path = sock_dir / "shop.sock"
    text = "a\x1b]0;title\x07b\x7f\x9bc\u202ed"
    with Running("serve", f"{SHOP}:shop", "-a", path, ready="serving shop") as server:
        for options in ([], ["--json"]):
            code, shown = on_terminal("call", path, "evil", *options)
            assert code == 0
            assert is_harmless(plain(shown), "\n")
            assert json.loads(plain(shown)) == text
        code, shown = on_terminal("call", path, "evil", "--raw")
        assert (code, shown) == (0, r"a\x1b]0;title\x07b\x7f\x9bc\u202ed" + "\n")
        assert json.loads(hostline("call", path, "evil").stdout) == text
        assert hostline("call", path, "evil", "--raw").stdout == text.encode() + b"\n"
        for options in ([], ["--json"]):
            code, shown = on_terminal("describe", path, *options)
            assert code == 0
            assert is_harmless(plain(shown), "\n")
            assert "Move the cursor" in shown
        code, shown = on_terminal("call", path, "buy", '[{"sku": "tea", "count": 0}]')
        assert (code, shown) == (7, "error: the method raised OutOfStock: no tea \\x1b[31mleft\n")
        assert server.stop() == 0
