"""`hostline run`: listening sockets for a program that knows nothing of hostline."""

from __future__ import annotations

import json
import signal
import socket
import stat
import sys
from pathlib import Path

import pytest

from hostline.cli.commands.run import Wanted, wanted_sockets
from hostline.cli.exits import ExitCode, UsageError
from hostline.cli.options import SocketKind
from tests.cli.running import COMMAND, Running, abstract_name, hostline

SHOP = Path(__file__).with_name("shop.py")

CHILD = """
import json, os, socket, sys
count = int(os.environ["LISTEN_FDS"])
sockets = [socket.socket(fileno=fd) for fd in range(3, 3 + count)]
is_mine = os.environ["LISTEN_PID"] == str(os.getpid())
print(json.dumps([is_mine, os.environ["LISTEN_FDNAMES"], [int(s.type) for s in sockets]]), flush=True)
with sockets[0].accept()[0] as peer:
    peer.sendall(b"hello from the program")
sys.exit(7)
"""

ASGI_APP = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello over a lent socket"})
"""


def test_a_program_gets_its_sockets_in_order_with_names_and_its_exit_code_is_passed_on(sock_dir: Path) -> None:
    stream, datagram, abstract = sock_dir / "web.sock", sock_dir / "log.sock", abstract_name()
    arguments = ["-l", stream, "-l", abstract, "-l", datagram, "--type", "stream", "--type", "seqpacket"]
    arguments += ["--type", "datagram", "--mode", "0640", "--", sys.executable, "-c", CHILD]
    with Running("run", *arguments, ready="[true") as run:
        is_mine, names, types = json.loads(run.out)
        assert is_mine
        assert names.split(":") == ["web", abstract[6:], "log"]
        assert types == [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM]
        assert [stat.S_IMODE(path.stat().st_mode) for path in (stream, datagram)] == [0o640, 0o640]
        assert hostline("cat", stream).stdout == b"hello from the program"
        assert run.wait() == 7
        assert run.err == f"note: every local process can connect to {abstract}, unless the program checks its peers\n"
    assert not stream.exists()
    assert not datagram.exists()


@pytest.mark.ci_required
def test_a_web_server_is_lent_a_socket(sock_dir: Path) -> None:
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    (sock_dir / "app.py").write_text(ASGI_APP)
    path = sock_dir / "web.sock"
    command = [sys.executable, "-m", "uvicorn", "--fd", "3", "--lifespan", "off", "app:app"]
    with Running("run", "-l", path, *command, cwd=sock_dir, ready="Uvicorn running") as run:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        answer = hostline("cat", path, input=b"GET / HTTP/1.0\r\n\r\n").stdout
        assert b"hello over a lent socket" in answer.partition(b"\r\n\r\n")[2]  # perhaps in chunks
        run.stop()
    assert not path.exists()


def test_a_service_is_lent_a_socket_by_number_and_by_name(sock_dir: Path) -> None:
    path = sock_dir / "shop.sock"
    for address in ("fd:3", "systemd:shop"):
        serve = [*COMMAND, "serve", f"{SHOP}:shop", "--address", address]
        with Running("run", "-l", path, *serve, ready="serving shop") as run:
            assert hostline("call", path, "add", "[1]").stdout == b"3\n"
            assert run.stop() == 0


def test_signals_reach_the_program_and_its_end_by_one_is_told(sock_dir: Path) -> None:
    program = "import time; print('ready', flush=True); time.sleep(60)"
    with Running("run", "-l", sock_dir / "x", "--", sys.executable, "-c", program, ready="ready") as run:
        assert run.stop(signal.SIGTERM) == 128 + signal.SIGTERM
    assert not (sock_dir / "x").exists()


def test_what_follows_the_programs_name_is_the_programs(sock_dir: Path) -> None:
    done = hostline("run", "-l", sock_dir / "x", sys.executable, "-c", "import sys; print(sys.argv)", "-l", "--help")
    assert (done.returncode, done.stdout) == (0, b"['-c', '-l', '--help']\n")


def test_a_program_that_is_not_there_or_cannot_be_run_is_told_as_a_shell_does(sock_dir: Path) -> None:
    assert hostline("run", "-l", sock_dir / "x", "--", "no-such-program").returncode == 127
    assert hostline("run", "-l", sock_dir / "x", "--", str(sock_dir)).returncode == 126


def test_when_one_socket_cannot_be_made_the_others_go_and_the_program_is_not_run(sock_dir: Path) -> None:
    (sock_dir / "file").touch()
    program = ["--", sys.executable, "-c", "print('ran')"]
    done = hostline("run", "-l", sock_dir / "x", "-l", sock_dir / "file", *program)
    assert (done.returncode, done.stdout) == (ExitCode.CANNOT_LISTEN, b"")
    assert not (sock_dir / "x").exists()


def test_a_second_run_at_the_same_path_is_refused(sock_dir: Path) -> None:
    program = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]
    with Running("run", "-l", sock_dir / "x", "--", *program, ready="ready") as run:
        assert hostline("run", "-l", sock_dir / "x", "--", "true").returncode == ExitCode.CANNOT_LISTEN
        run.stop()


def test_clients_may_send_descriptors_only_where_that_was_asked_for(sock_dir: Path) -> None:
    program = """
import socket, sys
print("ready", flush=True)
peer = socket.socket(fileno=3).accept()[0]
data, fds, *_ = peer.recvmsg(100, socket.CMSG_SPACE(16))
print(data, len(fds), flush=True)
"""
    arguments = ["-l", sock_dir / "x", "--allow-fds", "--", sys.executable, "-c", program]
    with Running("run", *arguments, ready="ready") as run:
        assert hostline("cat", sock_dir / "x", "--send-fd", "/dev/null", input=b"hello").returncode == 0
        assert run.wait() == 0
        assert "b'hello' 1" in run.out


# --- one option for each socket, or for all ------------------------------------------------------------


def wanted(addresses: list[str], **options: list[object]) -> list[Wanted]:
    columns = {name: options.get(name, []) for name in ("types", "names", "modes", "owners", "groups", "backlogs")}
    return wanted_sockets(addresses, **columns)  # type: ignore[arg-type]


def test_an_option_given_once_counts_for_every_socket_that_can_have_it() -> None:
    one, two, three = wanted(
        ["./a.sock", "unix:@b", "c"],
        types=[SocketKind.STREAM, SocketKind.SEQPACKET, SocketKind.DATAGRAM],
        modes=[0o660],
        groups=["web"],
        backlogs=[5],
    )
    assert (one.mode, one.group, one.backlog, one.name) == (0o660, "web", 5, "a")
    assert (two.mode, two.group, two.backlog, two.name) == (None, None, 5, "b")
    assert (three.mode, three.group, three.backlog, three.name) == (0o660, "web", None, "c")


def test_an_option_given_for_each_belongs_to_them_in_order() -> None:
    one, two = wanted(["./a", "./b"], modes=[0o600, 0o666], names=["x", "y"])
    assert [(one.mode, one.name), (two.mode, two.name)] == [(0o600, "x"), (0o666, "y")]
    with pytest.raises(UsageError, match="--owner was given 2 times for 3 sockets"):
        wanted(["./a", "./b", "./c"], owners=[0, 1])


def test_a_name_is_made_of_the_address() -> None:
    names = [one.name for one in wanted(["/run/my app.sock", "unix:./x", "unix:@a/b:c", "payments", "./.sock"])]
    assert names == ["my_app", "x", "c", "payments", "unknown"]
