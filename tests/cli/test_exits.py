"""Each exit code, by a real run that ends in it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hostline import errors
from hostline.cli.exits import ExitCode, exit_code_of, greeted
from hostline.conformance import COLUMNS, Cell, Report, Row
from tests.cli.running import Running, accepts, hostline
from tests.leaks import wait_until
from tests.second_user import NOBODY
from tests.tree import TREE

SHOP = Path(__file__).with_name("shop.py")
TALKS_TO_ANY = b"hostline cat talks to any Unix socket\n"


@pytest.fixture
def shop(sock_dir: Path) -> Iterator[Path]:
    """Serve the shop, one call at a time and none waiting."""
    path = sock_dir / "shop.sock"
    with Running(
        "serve", f"{SHOP}:shop", "--address", path, "--concurrency", 1, "--queue", 0, ready="serving shop"
    ) as server:
        yield path
        assert server.stop() == ExitCode.OK, server.err


def test_each_way_a_call_can_fail_has_its_own_code_and_one_line_of_error(shop: Path) -> None:
    cases: list[tuple[tuple[object, ...], ExitCode, str]] = [
        (("add", "[1]"), ExitCode.OK, ""),
        (("add", "not json"), ExitCode.USAGE, "not JSON"),
        (("private",), ExitCode.REFUSED, "54321"),
        (("wait", "5", "--timeout", "0.2"), ExitCode.DEADLINE, "wait"),
        (("buy", '[{"sku": "tea", "count": 0}]'), ExitCode.METHOD_ERROR, "the method raised OutOfStock: no tea"),
        (("crash",), ExitCode.INTERNAL, "crash"),
        (("nothing",), ExitCode.INVALID_CALL, "no method"),
        (("add", '["one"]'), ExitCode.INVALID_CALL, "`a`"),
    ]
    for arguments, code, words in cases:
        done = hostline("call", shop, *arguments)
        assert (done.returncode, done.stderr.count(b"\n")) == (code, 1 if code else 0), (arguments, done)
        assert words in done.stderr.decode()
        assert b"secret" not in done.stderr
        assert b"\x1b" not in done.stderr
        assert not code or done.stderr.startswith(b"error: ")


def test_an_overloaded_service_is_unavailable(shop: Path) -> None:
    with Running("call", shop, "wait", "10") as busy:

        def is_refused() -> bool:
            done = hostline("call", shop, "add", "[1]")
            assert done.returncode in (ExitCode.OK, ExitCode.UNAVAILABLE), done
            return done.returncode == ExitCode.UNAVAILABLE

        assert wait_until(is_refused, 10)
        assert busy.stop(signal.SIGINT) == ExitCode.INTERRUPTED
        assert busy.err == ""


def test_nothing_at_the_address_cannot_be_connected_to(sock_dir: Path) -> None:
    (sock_dir / "file").write_text("kept")
    for arguments in (["describe", sock_dir / "none"], ["cat", sock_dir / "none"], ["call", sock_dir / "file", "x"]):
        done = hostline(*arguments)
        assert done.returncode == ExitCode.CANNOT_CONNECT, done
        assert done.stderr.startswith(b"error: connect stream ")
    for target in ("none", "file"):
        done = hostline("cat", sock_dir / target, "--type", "datagram", input=b"x\n")
        assert done.returncode == ExitCode.CANNOT_CONNECT, done


def test_what_does_not_speak_hostline_breaks_the_protocol(sock_dir: Path) -> None:
    with Running("echo", sock_dir / "x", ready="listening") as server:
        for arguments in (["call", sock_dir / "x", "add", "[1]"], ["describe", sock_dir / "x"]):
            done = hostline(*arguments)
            assert done.returncode == ExitCode.PROTOCOL, done
            assert done.stderr.startswith(b"error: ")
            assert done.stderr.endswith(b"\nhint: what answers there does not speak hostline; " + TALKS_TO_ANY)
        assert server.stop() == ExitCode.OK


def test_a_server_of_another_protocol_version_is_told_from_one_that_is_no_hostline() -> None:
    for text, notes in (
        ("server speaks protocol version 2, this client 1", []),
        ("frame kind 47 is unknown", ["what"]),
    ):
        with pytest.raises(errors.RemoteProtocolError) as caught, greeted():
            raise errors.RemoteProtocolError(text)
        assert [note.split()[0] for note in getattr(caught.value, "__notes__", [])] == notes


def test_a_second_server_cannot_listen_and_the_first_goes_on(sock_dir: Path) -> None:
    (sock_dir / "file").write_text("kept")
    with Running("echo", sock_dir / "x", ready="listening") as server:
        second = hostline("echo", sock_dir / "x")
        assert second.returncode == ExitCode.CANNOT_LISTEN, second
        assert f"pid {server.process.pid}" in second.stderr.decode()
        assert hostline("echo", sock_dir / "file").returncode == ExitCode.CANNOT_LISTEN
        assert hostline("echo", sock_dir / "no" / "x").returncode == ExitCode.CANNOT_LISTEN
        assert hostline("cat", sock_dir / "x", input=b"hello").stdout == b"hello"
        assert server.stop() == ExitCode.OK
    assert (sock_dir / "file").read_text() == "kept"


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "cat",
        "cat nats://x",
        "cat DIR/",
        "cat DIR/x --type strange",
        "cat DIR/x --mode 0600",
        "cat DIR/x --listen --server-user 0",
        "cat DIR/x --type datagram --server-user 0",
        "call x y --timeout -1",
        "call x y --timeout nan",
        "call x y --server-user root --any-server",
        "call x y --server-user nosuchuser",
        "call x y --raw --json",
        "echo DIR/x --mode 888",
        "echo DIR/x --owner nosuchuser",
        "echo unix:@x --mode 0600",
        f"echo DIR/{'x' * 200}",
        "run -l DIR/x",
        "run -l DIR/x --mode 600 --mode 600 -- true",
        "run -l DIR/x --name a:b -- true",
        "conformance --json --markdown",
        "conformance nobody",
    ],
)
def test_a_wrong_command_line_is_usage(sock_dir: Path, line: str) -> None:
    done = hostline(*line.replace("DIR", str(sock_dir)).split())
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, b""), done
    assert b"Traceback" not in done.stderr
    assert b"rror: " in done.stderr


def test_a_file_that_cannot_be_opened_is_a_failure(sock_dir: Path) -> None:
    done = hostline("cat", sock_dir / "x", "--send-fd", sock_dir / "none")
    assert done.returncode == ExitCode.FAILURE, done
    assert b"cannot open" in done.stderr


def test_a_reader_who_leaves_ends_the_command_quietly(sock_dir: Path) -> None:
    with Running("echo", sock_dir / "x", ready="listening") as server:
        with Running("cat", sock_dir / "x", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
            stdin, stdout = cat.process.stdin, cat.process.stdout
            assert stdin
            assert stdout
            stdin.write(b"hello\n")
            stdin.flush()
            assert stdout.readline() == b"hello\n"
            stdout.close()
            stdin.write(b"again\n")
            stdin.flush()
            assert cat.wait() == ExitCode.BROKEN_PIPE
            assert cat.err == ""
        assert server.stop() == ExitCode.OK


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_without_a_traceback_and_its_socket_file_goes(
    sock_dir: Path, number: int, code: int
) -> None:
    path = sock_dir / "x"
    with Running("cat", path, "--listen") as cat:
        assert wait_until(path.exists, 10)  # not until it says that it listens: a signal may come at any time
        assert cat.stop(number) == code
        assert (cat.out, cat.err.strip()) in (("", ""), ("", f"listening at {path} (stream)"))
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["stream", "seqpacket", "datagram"])
def test_a_server_that_is_told_to_stop_ends_with_0(sock_dir: Path, kind: str, number: int) -> None:
    path = sock_dir / "x"
    with Running("echo", path, "--type", kind, ready="listening") as server:
        assert server.stop(number) == ExitCode.OK
        assert server.out == ""
    assert not path.exists()


@pytest.mark.root
def test_another_user_is_refused(sock_dir: Path, as_nobody: Callable[..., Any]) -> None:
    path = sock_dir / "x"
    sock_dir.chmod(0o755)
    with Running("echo", path, ready="listening") as server:
        client = as_nobody("-m", "hostline", "cat", str(path))
        _, words = client.communicate(timeout=10)
        assert client.returncode == ExitCode.REFUSED, words
        assert "error: connect stream" in words
        assert server.stop() == ExitCode.OK


@pytest.mark.root
@pytest.mark.leaves_files
def test_a_server_of_another_user_is_not_talked_to_unless_trusted(
    sock_dir: Path, as_nobody: Callable[..., Any]
) -> None:
    sock_dir.chmod(0o755)
    os.chown(sock_dir, NOBODY, NOBODY)
    path = sock_dir / "x"
    as_nobody("-m", "hostline", "echo", str(path), "--mode", "0666")
    assert wait_until(lambda: accepts(path), 10)
    for arguments in (["describe", path], ["call", path, "x"], ["cat", path, "--server-user", "root"]):
        done = hostline(*arguments)
        assert done.returncode == ExitCode.REFUSED, done
        assert b"\nhint: --server-user NAME or --any-server" in done.stderr
        assert b"hostline.Peers" not in done.stderr
    assert hostline("describe", path, "--any-server").returncode == ExitCode.PROTOCOL
    assert hostline("describe", path, "--server-user", "65534").returncode == ExitCode.PROTOCOL
    assert hostline("cat", path, input=b"hello").stdout == b"hello"


def test_a_miss_of_hostline_fails_the_conformance_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import hostline.conformance as package
    from hostline.cli.commands.conformance import conformance

    column = COLUMNS[0]

    def run_with(is_hostline: bool) -> int | None:
        row = Row("x", "x", "1", is_hostline, {column.key: Cell.miss("0777")})
        facts = dict.fromkeys(("hostline", "python", "system", "uid", "trials", "date"), "1")
        monkeypatch.setattr(package, "run_conformance", lambda *_, **__: Report((column,), (row,), facts=facts))
        return conformance()

    assert run_with(is_hostline=True) == ExitCode.CONFORMANCE_MISS
    assert run_with(is_hostline=False) is None


# --- the table ---------------------------------------------------------------------------------------


def test_the_codes_are_distinct_and_documented() -> None:
    assert len({code.value for code in ExitCode}) == len(list(ExitCode))
    page = (TREE / "docs" / "reference" / "command.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\d+)` \| (.+?) \|$", page, re.MULTILINE))
    assert rows == {str(code.value): code.meaning[0].upper() + code.meaning[1:] + "." for code in ExitCode}


def test_every_error_of_hostline_has_a_code_beside_the_general_failure() -> None:
    general = {
        "CallError",  # a base class, never raised itself
        "HostlineError",
        "SocketError",
        "ConnectTimeoutError",  # with any other operation than connect, which never happens
        "ClosedError",  # this program's own doing
        "DescriptorError",
        "MessageTooLongError",
        "TruncatedError",
        "InvalidMessageError",  # of channels, which the command does not use
        "WorkersFailedError",  # the workers said above what is wrong
    }
    samples = {}
    for name in errors.__all__:
        cls = getattr(errors, name)
        if issubclass(cls, errors.SocketError):
            samples[name] = cls("recv", "stream", "/x")
        else:
            has_two = issubclass(cls, errors.AddressError | errors.WorkersFailedError)
            samples[name] = cls("x", "y") if has_two else cls("x")
    assert {name for name, error in samples.items() if exit_code_of(error) == ExitCode.FAILURE} == general


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.AddressNotFoundError("connect", "stream", "/x", 2), ExitCode.CANNOT_CONNECT),
        (errors.AddressNotFoundError("bind", "stream", "/x", 2), ExitCode.CANNOT_LISTEN),
        (errors.AddressNotFoundError("send", "datagram", "/x", 2), ExitCode.CANNOT_CONNECT),
        (errors.AccessDeniedError("bind", "stream", "/x", 13), ExitCode.REFUSED),
        (errors.ConnectTimeoutError("connect", "stream", "/x", 11), ExitCode.CANNOT_CONNECT),
        (errors.SocketTimeoutError("connect", "stream", "/x"), ExitCode.CANNOT_CONNECT),
        (errors.SocketTimeoutError("recv", "stream", "/x"), ExitCode.DEADLINE),
        (errors.SocketError("connect", "stream", "/x", 91), ExitCode.CANNOT_CONNECT),
        (errors.PeerGoneError("recv", "stream", "/x", 104), ExitCode.UNAVAILABLE),
        (errors.PathTooLongError("/x", "too long"), ExitCode.USAGE),
    ],
)
def test_a_refused_system_call_is_judged_by_its_operation(error: errors.HostlineError, code: ExitCode) -> None:
    assert exit_code_of(error) == code
