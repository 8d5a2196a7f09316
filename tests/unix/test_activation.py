"""Listening sockets that come from whoever started us, and that go to a command which we start."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import pty
import shutil
import signal
import socket
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.leaks import wait_until
from tests.unix.processes import TYPES, Child, import_path

from hostline.errors import AddressError
from hostline.unix import activation
from hostline.unix.activation import listen_fds, run_with_sockets
from hostline.unix.address import InheritedAddress, PathAddress, parse_address
from hostline.unix.credentials import Peers
from hostline.unix.listening import listening_socket

KINDS = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET, "datagram": socket.SOCK_DGRAM}
NOBODY = 65534


def outside(path: Path, socket_type: str, mode: int = 0o600) -> socket.socket:
    """Bind and listen as a service manager would."""
    sock = socket.socket(socket.AF_UNIX, KINDS[socket_type])
    sock.bind(str(path))
    path.chmod(mode)
    if socket_type != "datagram":
        sock.listen()
    return sock


def activated(
    fds: Sequence[int], work: Callable[[], Any], names: str | None = None, count: str = "", pid: str = ""
) -> Any:
    """Return what `work` returns in a process that was started with these descriptors at 3, 4, ..."""

    def hold() -> tuple[Any, None]:
        parked = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]
        for place, fd in enumerate(parked, 3):
            os.dup2(fd, place, inheritable=True)
        if not count:
            os.environ["LISTEN_FDS"] = str(len(fds))
        else:
            os.environ["LISTEN_FDS"] = count
            os.closerange(3 + len(fds), 100)
        os.environ["LISTEN_PID"] = pid or str(os.getpid())
        os.environ.pop("LISTEN_FDNAMES", None)
        if names is not None:
            os.environ["LISTEN_FDNAMES"] = names
        activation._answer = None
        return work(), None

    with Child(hold) as child:
        return child.answer


def facts(path: Path) -> tuple[int, ...]:
    """Return what may not change; the time of access does, whenever somebody connects."""
    status = path.lstat()
    return status.st_dev, status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_ctime_ns


# --- in ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["fd:4", "systemd:second"])
@pytest.mark.parametrize("socket_type", TYPES)
def test_an_inherited_socket_serves_and_its_file_is_never_touched(
    sock_dir: Path, socket_type: Any, written: str
) -> None:
    path = sock_dir / "s"

    def work() -> tuple[Any, ...]:
        before = facts(path)
        bound = listening_socket(parse_address(written), socket_type)
        with socket.socket(socket.AF_UNIX, KINDS[socket_type]) as client:
            client.connect(str(path))
            client.send(b"hello")
            bound.sock.settimeout(5)
            if socket_type == "datagram":
                received = bound.sock.recv(9)
            else:
                accepted, _ = bound.sock.accept()
                received = accepted.recv(9)
                accepted.close()
        bound.sock.setblocking(False)
        said = (received, bound.sock.get_inheritable(), bound.is_inherited, bound.sock.fileno())
        bound.close()
        return (*said, facts(path) == before)

    with outside(sock_dir / "first", "stream") as first, outside(path, socket_type) as second:
        answer = activated([first.fileno(), second.fileno()], work, "first:second")
    assert answer == (b"hello", False, True, 4, True)
    assert sorted(os.listdir(sock_dir)) == ["first", "s"]


def test_an_inherited_socket_becomes_non_blocking(sock_dir: Path) -> None:
    with outside(sock_dir / "s", "stream") as sock:
        assert activated([sock.fileno()], lambda: listening_socket(InheritedAddress(3)).sock.getblocking()) is False


def test_descriptors_are_listed_with_names_close_on_exec_and_the_variables_go(sock_dir: Path) -> None:
    def work() -> tuple[Any, ...]:
        first = listen_fds()
        left = [name for name in os.environ if name.startswith("LISTEN_")]
        flags = [os.get_inheritable(fd) for fd, _ in first]
        with Child(lambda: (listen_fds(), None)) as child:
            return first, left, flags, listen_fds(), child.answer

    with outside(sock_dir / "a", "stream") as one, outside(sock_dir / "b", "datagram") as two:
        fds = [one.fileno(), two.fileno()]
        listed, left, inheritable, again, in_child = activated(fds, work, "web")
    assert listed == again == [(3, "web"), (4, "unknown")]
    assert left == []
    assert inheritable == [False, False]
    assert in_child == []


def test_the_variables_can_be_left(sock_dir: Path) -> None:
    def work() -> Any:
        listen_fds(unset=False)
        return os.environ["LISTEN_FDS"]

    with outside(sock_dir / "a", "stream") as one:
        assert activated([one.fileno()], work) == "1"


@pytest.mark.parametrize(
    ("count", "pid"), [("", "1"), ("", "x"), ("x", ""), ("-1", ""), ("\u00b3", ""), ("9" * 30, ""), ("0", "")]
)
def test_variables_that_are_not_for_us_or_make_no_sense_mean_no_sockets(sock_dir: Path, count: str, pid: str) -> None:
    with outside(sock_dir / "a", "stream") as one:
        assert activated([one.fileno()], listen_fds, count=count, pid=pid) == []


def test_a_number_larger_than_what_is_open_ends_at_what_is_open(sock_dir: Path) -> None:
    with outside(sock_dir / "a", "stream") as one:
        assert activated([one.fileno()], listen_fds, "web", count="999999999") == [(3, "web")]


def refused(fds: Sequence[int], written: str, socket_type: Any = "stream", names: str | None = None) -> str:
    """Return the text with which an inherited socket is refused; it must still be open afterwards."""

    def work() -> str:
        with pytest.raises(AddressError) as caught:
            listening_socket(parse_address(written), socket_type)
        for place in range(3, 3 + len(fds)):
            os.fstat(place)
        return str(caught.value)

    answer = activated(fds, work, names)
    assert isinstance(answer, str)
    return answer


@pytest.mark.parametrize(("found", "asked"), list(itertools.permutations(TYPES, 2)))
def test_an_inherited_socket_of_another_type_is_refused(sock_dir: Path, found: str, asked: str) -> None:
    with outside(sock_dir / "s", found) as sock:
        text = refused([sock.fileno()], "fd:3", asked)
    assert f"descriptor 3 is a {found} socket where {asked} was asked for" in text


def test_what_is_no_listening_unix_socket_is_refused_in_words(sock_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unbound, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mute:
        assert "does not listen" in refused([unbound.fileno()], "fd:3")
        assert "is not bound" in refused([mute.fileno()], "fd:3", "datagram")
    one, two = socket.socketpair()
    with one, two:
        assert "does not listen" in refused([one.fileno()], "fd:3")
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        assert "is not a Unix socket" in refused([tcp.fileno()], "fd:3")
    with open("/dev/null") as null:
        assert "descriptor 3 is not a socket" in refused([null.fileno()], "fd:3")
        assert "descriptor 77 is not open" in refused([null.fileno()], "fd:77")


def test_a_name_that_is_missing_or_not_unique_is_refused_with_what_there_is(sock_dir: Path) -> None:
    with outside(sock_dir / "a", "stream") as one, outside(sock_dir / "b", "stream") as two:
        fds = [one.fileno(), two.fileno()]
        assert "there are api, web" in refused(fds, "systemd:mail", names="web:api")
        assert "write fd:3 or fd:4" in refused(fds, "systemd:web", names="web:web")


def test_a_process_started_without_sockets_is_told_so() -> None:
    with pytest.raises(AddressError, match="started without sockets"):
        listening_socket(InheritedAddress(name="web"))


@pytest.mark.parametrize("written", ["fd:3", "systemd:web"])
def test_an_inherited_socket_is_given_out_once(sock_dir: Path, written: str) -> None:
    def work() -> str:
        bound = listening_socket(parse_address("systemd:web"))
        with pytest.raises(AddressError) as caught:
            listening_socket(parse_address(written))
        bound.close()
        with pytest.raises(AddressError):
            listening_socket(parse_address(written))
        return str(caught.value)

    with outside(sock_dir / "s", "stream") as sock:
        assert "already used by another listener" in activated([sock.fileno()], work, "web")


@pytest.mark.parametrize("names", ["web", None])
def test_a_number_is_given_out_again_only_when_its_owner_is_closed(sock_dir: Path, names: str | None) -> None:
    def work() -> Any:
        number = 3
        if names is None:
            number = fcntl.fcntl(3, fcntl.F_DUPFD_CLOEXEC, 40)  # one that LISTEN_FDS does not count
        first = listening_socket(InheritedAddress(number))
        with pytest.raises(AddressError, match="already used by another listener here"):
            listening_socket(InheritedAddress(number))
        os.fstat(number)
        with outside(sock_dir / "later", "stream") as later:
            first.close()
            os.dup2(later.fileno(), number, inheritable=False)
        if names:
            with pytest.raises(AddressError, match="or was until it closed"):
                listening_socket(InheritedAddress(name=names))  # the number is another socket's by now
        second = listening_socket(InheritedAddress(number))
        first.close()
        os.fstat(number)
        second.close()
        return True

    with outside(sock_dir / "s", "stream") as sock:
        assert activated([sock.fileno()], work, names)


@pytest.mark.parametrize("number", [-1, 1 << 31, 99999999999999999999])
def test_a_number_that_cannot_be_a_descriptor_is_refused(number: int) -> None:
    with pytest.raises(AddressError, match="must be from 0 to 2147483647"):
        listening_socket(InheritedAddress(number))


@pytest.mark.parametrize("option", ["mode", "owner", "group"])
def test_an_inherited_socket_has_no_mode_or_owner_to_set(option: str) -> None:
    with pytest.raises(AddressError, match=f"{option} cannot be set on an inherited socket"):
        listening_socket(InheritedAddress(3), **{option: 0o600})  # type: ignore[arg-type]


def rule_of(sock: socket.socket) -> Peers:
    def work() -> Peers:
        return listening_socket(InheritedAddress(3)).rule

    answer = activated([sock.fileno()], work)
    assert isinstance(answer, Peers)
    return answer


def test_the_rule_of_an_inherited_socket_is_what_its_files_mode_says(sock_dir: Path) -> None:
    own = {0, os.geteuid()}
    for index, (mode, rule) in enumerate(
        [(0o600, Peers(uids=own)), (0o660, Peers(uids=own, gids=(os.getegid(),))), (0o666, Peers.anyone())]
    ):
        with outside(sock_dir / f"s{index}", "stream", mode) as sock:
            assert rule_of(sock) == rule


def test_an_inherited_socket_without_a_file_is_for_this_user_and_root(sock_dir: Path) -> None:
    with outside(sock_dir / "s", "stream", 0o666) as sock:
        (sock_dir / "s").unlink()
        assert rule_of(sock) == Peers.same_user()
        (sock_dir / "s").write_text("not a socket")
        (sock_dir / "s").chmod(0o666)
        assert rule_of(sock) == Peers.same_user()
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0hostline-test-{os.getpid()}")
        abstract.listen()
        assert rule_of(abstract) == Peers.same_user()


@pytest.mark.root
def test_a_strangers_file_in_the_place_of_ours_does_not_widen_the_rule(sock_dir: Path) -> None:
    sock_dir.chmod(0o1777)
    path = sock_dir / "s"
    with outside(path, "stream") as sock:
        path.unlink()
        with outside(path, "stream", 0o666):
            os.chown(path, NOBODY, NOBODY)
            assert rule_of(sock) == Peers.same_user()
            sock_dir.chmod(0o755)  # here only root could have put it
            assert rule_of(sock) == Peers.anyone()


# --- out -----------------------------------------------------------------------------------------------

DRIVER = """
import os, signal, sys
from hostline.unix.activation import run_with_sockets
from hostline.unix.address import PathAddress
from hostline.unix.listening import listening_socket

for number in (signal.SIGINT, signal.SIGQUIT):  # ignored where the tests themselves run behind a shell's `&`
    signal.signal(number, signal.SIG_DFL)
count = int(sys.argv[1])
specs, command = sys.argv[2 : 2 + count], sys.argv[2 + count :]
names, bounds = [], []
for spec in specs:
    name, kind, path = spec.split("=")
    names.append(name)
    bounds.append(listening_socket(PathAddress(path), kind))
leak = os.dup2(os.open("/dev/null", os.O_RDONLY), 77, inheritable=True)
if os.environ.get("REVERSED"):
    names.reverse(), bounds.reverse()
sys.exit(run_with_sockets(bounds, names, command))
"""


def start(specs: Sequence[str], *command: str, **options: Any) -> subprocess.Popen[str]:
    """Start a process that runs the command with sockets made from `NAME=TYPE=PATH`."""
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(len(specs)), *specs, *command],
        env={**import_path(), **options.pop("env", {})},
        text=True,
        close_fds=False,  # where another user runs the tests, the interpreter is reached through a descriptor
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def run(specs: Sequence[str], *command: str, **options: Any) -> tuple[int, str, str]:
    with start(specs, *command, **options) as process:
        output, errors = process.communicate(timeout=15)
    return process.returncode, output, errors


@pytest.fixture
def python() -> str:
    if sys.executable.startswith("/proc/"):
        pytest.skip("the interpreter is reached through a descriptor, which the command does not inherit")
    return sys.executable


def test_the_command_gets_its_sockets_by_the_convention_and_nothing_else(sock_dir: Path) -> None:
    script = 'test "$LISTEN_PID" = $$ && echo own; echo "$LISTEN_FDS" "$LISTEN_FDNAMES"; ls -l /proc/$$/fd'
    specs = [f"web=stream={sock_dir}/a", f"log=datagram={sock_dir}/b", f"bus=seqpacket={sock_dir}/c"]
    code, output, errors = run(specs, "/bin/sh", "-c", script)
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[:2] == ["own", "3 web:log:bus"]
    found = {line.split(" -> ")[0].split()[-1]: line.split(" -> ")[1] for line in lines if " -> " in line}
    assert sorted(found) == ["0", "1", "2", "3", "4", "5"]
    assert all(found[fd].startswith("socket:") for fd in ("3", "4", "5"))
    assert sorted(os.listdir(sock_dir)) == ["a.lock", "b.lock", "c.lock"]


@pytest.mark.parametrize("env", [{}, {"REVERSED": "1"}], ids=["as opened", "crossed"])
def test_each_socket_arrives_at_its_place_blocking_whatever_numbers_we_had(
    sock_dir: Path, env: dict[str, str], python: str
) -> None:
    program = (
        "import os, socket\n"
        "for fd, name in enumerate(os.environ['LISTEN_FDNAMES'].split(':'), 3):\n"
        "    sock = socket.socket(fileno=os.dup(fd))\n"
        "    print(name, os.path.basename(sock.getsockname()), sock.type, os.get_blocking(fd))\n"
    )
    specs = [f"{name}={kind}={sock_dir}/{name}" for name, kind in zip("abc", TYPES, strict=True)]
    code, output, errors = run(specs, python, "-c", program, env=env)
    assert (code, errors) == (0, "")
    lines = [f"{name} {name} {int(KINDS[kind])} True" for name, kind in zip("abc", TYPES, strict=True)]
    assert output.splitlines() == (lines[::-1] if env else lines)


@pytest.mark.parametrize("socket_type", TYPES)
def test_a_client_that_comes_before_the_command_is_served(sock_dir: Path, socket_type: str, python: str) -> None:
    program = (
        "import sys, socket\n"
        "from hostline.unix.address import parse_address\n"
        "from hostline.unix.listening import listening_socket\n"
        "bound = listening_socket(parse_address('systemd:web'), sys.argv[1])\n"
        "bound.sock.setblocking(True)\n"
        "source = bound.sock if sys.argv[1] == 'datagram' else bound.sock.accept()[0]\n"
        "print(source.recv(9).decode()); source.close(); bound.close()\n"
    )
    path = sock_dir / "s"
    with start([f"web={socket_type}={path}"], "/bin/sh", "-c", 'read go; exec "$0" "$@"', python, "-c", program,
               socket_type, stdin=subprocess.PIPE) as process:  # fmt: skip
        assert wait_until(lambda: can_connect(path, socket_type))
        with socket.socket(socket.AF_UNIX, KINDS[socket_type]) as client:
            # The type is known from bind on, and connections are taken from listen on.
            assert wait_until(lambda: client.connect_ex(str(path)) == 0)
            client.send(b"hello")
            output, errors = process.communicate("go\n", timeout=15)
    assert (process.returncode, errors, output) == (0, "", "hello\n")
    assert os.listdir(sock_dir) == ["s.lock"]


def can_connect(path: Path, socket_type: str) -> bool:
    # Asked with another type, so that no connection of ours comes before the client's.
    kind = socket.SOCK_STREAM if socket_type == "datagram" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_UNIX, kind) as client:
        return client.connect_ex(str(path)) == errno.EPROTOTYPE and path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("/bin/sh", "-c", "exit 7"), 7, ""),
        (("true",), 0, ""),
        (("/bin/sh", "-c", "kill -KILL $$"), 137, ""),
        (("/bin/sh", "-c", "kill -TERM $$"), 143, ""),
        (("/bin/sh", "-c", "kill -PIPE $$; exit 3"), 141, ""),
        (("no-such-command",), 127, "hostline: cannot run 'no-such-command': No such file or directory\n"),
        (("/etc/passwd",), 126, "hostline: cannot run '/etc/passwd': Permission denied\n"),
        (("\x1b[2J",), 127, "hostline: cannot run '\\x1b[2J': No such file or directory\n"),
    ],
)
def test_the_commands_exit_code_is_ours_and_the_socket_file_is_unlinked(
    sock_dir: Path, command: tuple[str, ...], code: int, said: str
) -> None:
    assert run([f"web=stream={sock_dir}/s"], *command) == (code, "", said)
    assert os.listdir(sock_dir) == ["s.lock"]


def test_standard_streams_are_the_commands_own(sock_dir: Path) -> None:
    with start([f"web=stream={sock_dir}/s"], "/bin/sh", "-c", "cat; echo err >&2", stdin=subprocess.PIPE) as process:
        assert process.communicate("in and out", timeout=15) == ("in and out", "err\n")


def test_the_command_starts_with_no_signal_blocked_or_ignored(sock_dir: Path) -> None:
    code, output, _ = run([f"web=stream={sock_dir}/s"], "/bin/grep", "-E", "Sig(Blk|Ign)", "/proc/self/status")
    blocked, ignored = (int(line.split()[1], 16) for line in output.splitlines())
    assert (code, blocked) == (0, 0)
    assert ignored & ~(3 << 31) == 0  # 32 and 33 are glibc's own, which its posix_spawn ignores


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2"])
def test_a_signal_to_us_reaches_the_command_whose_answer_counts(sock_dir: Path, name: str) -> None:
    script = f"trap 'echo got {name}; exit 5' {name}; echo ready; while :; do read x || sleep 0.01; done"
    with start([f"web=stream={sock_dir}/s"], "/bin/sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert (sock_dir / "s").is_socket()
        process.send_signal(getattr(signal, f"SIG{name}"))
        output, _ = process.communicate(timeout=15)
    assert (process.returncode, output) == (5, f"got {name}\n")
    assert os.listdir(sock_dir) == ["s.lock"]


def test_ctrl_c_on_a_terminal_reaches_the_command_once(sock_dir: Path, python: str) -> None:
    program = (
        "import signal\n"
        "count = 0\n"
        "def note(number, frame):\n"
        "    global count\n"
        "    count += 1\n"
        "signal.signal(signal.SIGINT, note)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
        "print('ready', flush=True)\n"
        "while not count: signal.pause()\n"
        "print('interrupted', flush=True)\n"
        "signal.sigwait([signal.SIGUSR1])\n"
        "print('count', count, flush=True)\n"
    )
    with on_terminal(sock_dir, python, "-c", program) as (pid, terminal):
        read_until(terminal, b"ready")
        os.write(terminal, b"\x03")
        read_until(terminal, b"interrupted")
        os.kill(pid, signal.SIGUSR1)  # forwarded after any SIGINT that we held
        read_until(terminal, b"count 1\r\n")
        with pytest.raises(OSError, match="Input/output error"):  # the end of a terminal
            os.read(terminal, 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_terminal_that_goes_away_reaches_the_command(sock_dir: Path) -> None:
    script = f"trap 'echo hangup >{sock_dir}/said; exit 5' HUP; echo ready; while :; do sleep 0.01; done"
    with on_terminal(sock_dir, "/bin/sh", "-c", script) as (pid, terminal):
        read_until(terminal, b"ready")
        os.close(terminal)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    assert (sock_dir / "said").read_text() == "hangup\n"


@contextmanager
def on_terminal(sock_dir: Path, *command: str) -> Iterator[tuple[int, int]]:
    """Run a command with a socket as the leader of a terminal's session; give its pid and the terminal."""
    arguments = [sys.executable, "-c", DRIVER, "1", f"web=stream={sock_dir}/s", *command]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of every fork beside threads
        pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, arguments, import_path())
    try:
        yield pid, terminal
    finally:
        with suppress(OSError):
            os.close(terminal)
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def read_until(terminal: int, words: bytes) -> None:
    said = b""
    while words not in said:
        said += os.read(terminal, 1024)


def test_a_killed_holder_leaves_the_command_serving_and_the_path_not_free(sock_dir: Path) -> None:
    path = sock_dir / "s"
    with start([f"web=stream={path}"], "/bin/sh", "-c", "echo $$; cat", stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        command = int(process.stdout.readline())
        process.kill()
        process.wait()
        os.kill(command, 0)
        with pytest.raises(OSError, match="another process still holds its socket"):
            listening_socket(PathAddress(str(path)))
    assert wait_until(lambda: not os.path.exists(f"/proc/{command}") or is_zombie(command))
    listening_socket(PathAddress(str(path))).close()


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(
    ("names", "command", "part"),
    [
        ([], ["true"], "0 names for 1 sockets"),
        (["a:b"], ["true"], "'a:b' must be"),
        ([""], ["true"], "'' must be"),
        (["a\nb"], ["true"], "must be"),
        (["n" * 256], ["true"], "must be"),
        (["é"], ["true"], "must be"),
        (["web"], [], "the command is empty"),
    ],
)
def test_what_cannot_be_passed_on_is_refused_and_the_sockets_are_closed(
    sock_dir: Path, names: list[str], command: list[str], part: str
) -> None:
    bound = listening_socket(PathAddress(str(sock_dir / "s")))
    with pytest.raises(ValueError, match=part):
        run_with_sockets([bound], names, command)
    assert os.listdir(sock_dir) == ["s.lock"]
    assert bound.sock.fileno() == -1


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is missing")
@pytest.mark.parametrize(
    ("socket_type", "flags"), [("stream", []), ("seqpacket", ["--seqpacket"]), ("datagram", ["-d"])]
)
def test_systemds_own_activation_is_understood(sock_dir: Path, socket_type: str, flags: list[str], python: str) -> None:
    program = (
        "import sys\n"
        "from hostline.unix.address import parse_address\n"
        "from hostline.unix.listening import listening_socket\n"
        "bound = listening_socket(parse_address('systemd:web'), sys.argv[1])\n"
        "bound.sock.setblocking(True)\n"
        "source = bound.sock if sys.argv[1] == 'datagram' else bound.sock.accept()[0]\n"
        "print(source.recv(9).decode()); source.close(); bound.close()\n"
    )
    path = sock_dir / "s"
    environment = f"--setenv=PYTHONPATH={import_path()['PYTHONPATH']}"
    command = [python, "-c", program, socket_type]
    arguments = ["systemd-socket-activate", *flags, "-l", str(path), "--fdname=web", environment, *command]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        with socket.socket(socket.AF_UNIX, KINDS[socket_type]) as client:
            assert wait_until(lambda: client.connect_ex(str(path)) == 0)
            client.send(b"hello")
            output, _ = process.communicate(timeout=10)
    assert (process.returncode, output) == (0, "hello\n")
    assert stat.S_ISSOCK(path.lstat().st_mode)
