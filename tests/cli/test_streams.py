"""Standard streams that are closed, full or left by their reader: no traceback, no hang, a code that is documented."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostline.cli.exits import ExitCode
from tests.cli.running import Running, hostline, redirected

SHOP = Path(__file__).with_name("shop.py")
FULL = b"error: standard output cannot be written: No space left on device\n"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("streams") / "s"
    with Running("serve", f"{SHOP}:shop", "-a", path, ready="serving shop") as server:
        yield path
        assert server.stop() == 0


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_dev_null(shop: Path, redirection: str) -> None:
    for arguments in (["call", shop, "add", "[1]"], ["describe", shop], ["path", "x"], ["--help"], ["--version"]):
        done = redirected(redirection, *arguments)
        assert (done.returncode, done.stderr) == (ExitCode.OK, b""), done
        assert bool(done.stdout) == (">&-" not in redirection.split())
    assert redirected(redirection, "call", shop, "crash").returncode == ExitCode.INTERNAL


def test_a_closed_input_is_empty(shop: Path) -> None:
    done = redirected("<&-", "call", shop, "add", "-")
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith(b"error: the arguments are not JSON: ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_cat_ends_when_its_streams_are_closed(sock_dir: Path, redirection: str) -> None:
    with Running("echo", sock_dir / "x", "--reply", "hello", ready="listening") as server:
        done = redirected(redirection, "cat", sock_dir / "x")
        assert (done.returncode, done.stderr) == (ExitCode.OK, b""), done
        assert server.stop() == ExitCode.OK


def test_a_program_that_is_run_inherits_the_streams_and_gets_its_socket_as_3(sock_dir: Path) -> None:
    program = "test -S /dev/fd/3 && test -c /dev/fd/0 && test -c /dev/fd/1 && test -c /dev/fd/2"
    done = redirected("<&- >&- 2>&-", "run", "-l", sock_dir / "x", "--", "/bin/sh", "-c", program)
    assert done.returncode == 0, done


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_output_that_cannot_be_written_is_one_line_and_a_failure(shop: Path, sock_dir: Path) -> None:
    for arguments in (
        ["call", shop, "add", "[1]"],
        ["call", shop, "when", "--raw"],
        ["describe", shop],
        ["describe", shop, "--json"],
        ["path", "x"],
        ["--help"],
        ["call", "--help"],
        ["--version"],
        ["conformance", "--list"],
    ):
        done = redirected(">/dev/full", *arguments)
        assert (done.returncode, done.stderr) == (ExitCode.FAILURE, FULL), done
    with Running("echo", sock_dir / "x", ready="listening") as server:
        (sock_dir / "input").write_text("hello")
        done = redirected(f">/dev/full <{sock_dir / 'input'}", "cat", sock_dir / "x")
        assert (done.returncode, done.stderr) == (ExitCode.FAILURE, FULL), done
        assert server.stop() == ExitCode.OK


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_the_exit_code_is_right_also_where_the_error_cannot_be_told(shop: Path) -> None:
    assert redirected("2>/dev/full", "call", shop, "crash").returncode == ExitCode.INTERNAL


def test_what_does_not_fit_into_the_encoding_of_the_output_is_escaped(shop: Path) -> None:
    done = hostline("describe", shop, env={"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"})
    assert b"in gr\\xfcn" in done.stdout
