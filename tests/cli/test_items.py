"""`hostline call` and `describe` with streams: each item on a line of its own, in and out."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostline.cli.exits import ExitCode
from tests.cli.running import COMMAND, PATIENCE, Running, environment, hostline, on_terminal, plain, redirected
from tests.leaks import wait_until

FEED = Path(__file__).with_name("feed.py")


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("feed")
    notes = directory / "notes"
    with Running(
        "serve", f"{FEED}:feed", "-a", directory / "s", ready="serving feed", env={"FEED_NOTES": str(notes)}
    ) as server:
        yield directory / "s"
        assert server.stop() == 0


@pytest.fixture
def notes(feed: Path) -> Path:
    """Give the file of the handlers' last words, empty."""
    file = feed.with_name("notes")
    file.write_text("")
    return file


def popen(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )


def output_of(*arguments: object, input: bytes = b"") -> bytes:
    done = hostline("call", *arguments, input=input)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


# --- results -------------------------------------------------------------------------------------------


def test_each_item_of_a_result_is_a_line(feed: Path) -> None:
    assert output_of(feed, "ticks", "3") == b"0\n1\n2\n"
    assert output_of(feed, "ticks", '{"to": 2}') == b"0\n1\n"
    assert output_of(feed, "ticks", "-", input=b"[2]") == b"0\n1\n"
    assert output_of(feed, "ticks", "0") == b""


def test_an_item_is_printed_as_it_comes(feed: Path, notes: Path) -> None:
    with popen("call", feed, "ticks", "[1000, 0.05]") as call:
        assert call.stdout is not None
        assert [call.stdout.readline() for _ in range(3)] == [b"0\n", b"1\n", b"2\n"]
        assert call.poll() is None
        call.send_signal(signal.SIGINT)
        assert call.wait(PATIENCE) == ExitCode.INTERRUPTED
        assert call.stderr is not None
        assert call.stderr.read() == b""
    assert wait_until(lambda: notes.read_text() == "ticks ended\n", PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_cancels_the_handler(feed: Path, notes: Path, number: int) -> None:
    with Running("call", feed, "forever", ready="31m5") as call:
        assert call.stop(number) == {signal.SIGTERM: ExitCode.TERMINATED, signal.SIGINT: ExitCode.INTERRUPTED}[number]
        assert call.err == ""
    assert wait_until(lambda: notes.read_text() == "forever ended\n", PATIENCE)


def test_a_reader_that_leaves_cancels_the_handler(feed: Path, notes: Path) -> None:
    with popen("call", feed, "forever") as call:
        assert call.stdout is not None
        call.stdout.readline()
        call.stdout.close()
        assert call.wait(PATIENCE) == ExitCode.BROKEN_PIPE
    assert wait_until(lambda: notes.read_text() == "forever ended\n", PATIENCE)


def test_on_a_terminal_items_are_lines_too_and_escaped(feed: Path) -> None:
    assert on_terminal("call", feed, "ticks", "2") == (0, "0\n1\n")
    code, shown = on_terminal("call", feed, "forever", "--timeout", "0.5")
    assert code == ExitCode.DEADLINE
    assert shown.startswith('"\\u001b[31m0"\n"\\u001b[31m1"\n')


def test_bytes_are_base64_or_raw(feed: Path) -> None:
    assert output_of(feed, "chunks", '"YWJj"') == b'"YWJj"\n"AP8="\n'
    assert output_of(feed, "chunks", '"YWJj"', "--raw") == b"abc\x00\xff"


def test_what_came_before_an_error_is_printed(feed: Path) -> None:
    done = hostline("call", feed, "ticks", '{"to": 2, "fails": true}')
    assert (done.returncode, done.stdout) == (ExitCode.METHOD_ERROR, b"0\n1\n")
    assert done.stderr == b"error: the method raised Dry: no more\n"


def test_a_stream_has_a_deadline_only_if_it_is_given(feed: Path) -> None:
    done = hostline("call", feed, "ticks", "[1000, 0.1]", "--timeout", "0.35")
    assert done.returncode == ExitCode.DEADLINE
    assert done.stdout.startswith(b"0\n1\n")


def test_wrong_arguments_are_refused_as_ever(feed: Path) -> None:
    for arguments in (["ticks", '"x"'], ["ticks"], ["scale"], ["total", '{"minus": 1}'], ["plain", '"x"'], ["no"]):
        done = hostline("call", feed, *arguments)
        assert (done.returncode, done.stdout) == (ExitCode.INVALID_CALL, b""), arguments
        assert done.stderr.count(b"\n") == 1
    assert output_of(feed, "plain", "-", input=b"5") == b"5\n"


# --- arguments -----------------------------------------------------------------------------------------


def test_the_items_of_an_argument_are_lines_of_the_input(feed: Path) -> None:
    numbers = b"1\n2\n\n 3 \r\n4"
    for arguments in ([], ["-"], ["[]"], ["{}"]):
        assert output_of(feed, "total", *arguments, input=numbers) == b"10\n"
    assert output_of(feed, "total", "5", input=numbers) == b"15\n"
    assert output_of(feed, "total", '{"plus": 5}', input=numbers) == b"15\n"
    assert output_of(feed, "total", input=b"") == b"0\n"
    many = range(100_000)
    assert output_of(feed, "total", input=b"".join(b"%d\n" % n for n in many)) == b"%d\n" % sum(many)


def test_the_stream_takes_its_place_among_other_arguments(feed: Path) -> None:
    line = b'{"sensor": "a"}\n'
    for arguments in ("2", "[2]", '{"by": 2}', '{"by": 2, "plus": 0}'):
        assert json.loads(output_of(feed, "scale", arguments, input=line)) == {"sensor": "a", "value": 1.0}
    done = hostline("call", feed, "total", '{"numbers": [1]}')
    assert done.returncode == ExitCode.USAGE
    assert done.stderr == b"error: numbers is a stream: its items are lines of standard input, a JSON value each\n"


def test_items_of_bytes_are_base64(feed: Path) -> None:
    assert output_of(feed, "join", "--raw", input=b'"YQ=="\n"Yg=="\n') == b"ab"
    assert output_of(feed, "join", '{"end": "Yw=="}', "--raw", input=b'"YQ=="\n') == b"ac"


def test_each_item_goes_and_is_answered_while_the_input_is_open(feed: Path) -> None:
    with popen("call", feed, "scale", "2") as call:
        assert call.stdin is not None
        assert call.stdout is not None
        for number in range(3):
            call.stdin.write(b'{"sensor": "a", "value": %d}\n' % number)
            call.stdin.flush()
            assert json.loads(call.stdout.readline()) == {"sensor": "a", "value": number * 2.0}
        call.stdin.close()
        assert call.wait(PATIENCE) == 0


def test_a_handler_that_wants_no_more_does_not_wait_for_the_input(feed: Path) -> None:
    with popen("call", feed, "first") as call:
        assert call.stdin is not None
        call.stdin.write(b"7\n")
        call.stdin.flush()
        assert call.wait(PATIENCE) == 0
        assert call.stdout is not None
        assert call.stdout.read() == b"7\n"


def test_a_line_that_is_not_json_is_named_and_nothing_before_it_is_lost(feed: Path, notes: Path) -> None:
    line = b'{"sensor": "a"}\n'
    done = hostline("call", feed, "scale", "2", input=line * 500 + b"\nnonsense\n" + line)
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith(b"error: line 502 of standard input is not JSON: ")
    assert done.stderr.count(b"\n") == 1
    assert done.stdout == b'{"sensor":"a","value":1.0}\n' * 500
    assert wait_until(lambda: notes.read_text() == "scale ended\n", PATIENCE)


def test_a_cut_input_is_no_whole_one_to_the_handler(feed: Path, notes: Path) -> None:
    done = hostline("call", feed, "total", input=b"1\n2\n[3\n4\n")
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, b"")
    assert done.stderr.startswith(b"error: line 3 of standard input is not JSON: ")
    assert wait_until(lambda: notes.read_text() == "total ended, cut\n", PATIENCE)


def test_an_item_of_another_type_is_the_service_s_to_refuse(feed: Path) -> None:
    done = hostline("call", feed, "total", input=b'1\n"x"\n')
    assert (done.returncode, done.stdout) == (ExitCode.INVALID_CALL, b"")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_call_that_waits_for_input(feed: Path, notes: Path, number: int) -> None:
    with popen("call", feed, "scale", "2") as call:
        assert call.stdin is not None
        assert call.stdout is not None
        call.stdin.write(b'{"sensor": "a"}\n')
        call.stdin.flush()
        call.stdout.readline()
        call.send_signal(number)
        expected = {signal.SIGTERM: ExitCode.TERMINATED, signal.SIGINT: ExitCode.INTERRUPTED}[number]
        assert call.wait(PATIENCE) == expected
        assert call.stderr is not None
        assert call.stderr.read() == b""
    assert wait_until(lambda: notes.read_text() == "scale ended\n", PATIENCE)


def test_a_reader_that_leaves_ends_a_call_with_input_open(feed: Path, notes: Path) -> None:
    with popen("call", feed, "scale", "2") as call:
        assert call.stdin is not None
        assert call.stdout is not None
        call.stdout.close()
        call.stdin.write(b'{"sensor": "a"}\n')
        call.stdin.flush()
        assert call.wait(PATIENCE) == ExitCode.BROKEN_PIPE
        assert call.stderr is not None
        assert call.stderr.read() == b""
    assert wait_until(lambda: notes.read_text() == "scale ended\n", PATIENCE)


def test_an_input_that_never_comes_is_given_up_at_the_deadline(feed: Path) -> None:
    started = time.monotonic()
    with popen("call", feed, "total", "--timeout", "0.3") as call:
        assert call.wait(PATIENCE) == ExitCode.DEADLINE
    assert time.monotonic() - started < PATIENCE


def test_items_are_typed_on_a_terminal(feed: Path) -> None:
    code, shown = on_terminal("call", feed, "total", typed=b"1\n2\n\x04")
    assert (code, plain(shown)) == (0, "3\n")


def test_an_input_that_cannot_be_read_is_one_line(feed: Path) -> None:
    done = redirected("0>/dev/null", "call", feed, "total")
    assert (done.returncode, done.stdout) == (ExitCode.FAILURE, b"")
    assert done.stderr == f"error: standard input cannot be read: {os.strerror(errno.EBADF)}\n".encode()
    assert redirected("<&-", "call", feed, "total").stdout == b"0\n"


# --- describe ------------------------------------------------------------------------------------------


def test_streams_are_described(feed: Path) -> None:
    text = hostline("describe", feed).stdout.decode()
    for line in (
        "ticks(to: int, pause: float = 0.0, *, fails: bool = False) -> stream of int",
        "total(numbers: stream of int, plus: int = 0) -> int",
        "scale(by: int, readings: stream of Reading, *, plus: float = 0) -> stream of Reading",
        'join(parts: stream of bytes, /, *, end: bytes = "") -> bytes',
        "plain(value: int) -> int",
    ):
        assert f"\n  {line}\n" in text
    described = {m["name"]: m for m in json.loads(hostline("describe", feed, "--json").stdout)["methods"]}
    assert described["ticks"]["streams_result"] is True
    assert described["ticks"]["returns"] == {"type": "integer"}
    assert [p["is_stream"] for p in described["total"]["parameters"]] == [True, False]
    assert described["total"]["parameters"][0]["schema"] == {"type": "integer"}
