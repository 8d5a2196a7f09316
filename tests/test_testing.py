"""The pytest plugin that hostline ships: each fixture proved, and each failure that it is there to give.

What a fixture gives is used here as its users do; where the plugin must fail a test, a project of one file is run by
a second pytest, which loads this plugin and no other.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

import hostline
from hostline.testing import FullBacklog, Serve, ServiceThread, Snapshot, Stall, StalledPeer, loop_factory
from hostline.testing.leaks import describe_descriptor
from tests.leaks import open_descriptors, wait_until
from tests.serving import loop_names, takes_less_than

PLUGIN = "hostline.testing.plugin"

Project = Callable[..., pytest.RunResult]


def greeter() -> hostline.Service:
    service = hostline.Service("greeter")

    @service.method
    async def greet(name: str) -> str:
        return f"hello {name}"

    @service.method(raises=KeyError)
    def find(name: str) -> str:
        raise KeyError(name)

    @service.method
    def fail() -> None:
        raise RuntimeError("not declared")

    return service


class Greeter(hostline.Interface, Protocol):
    def greet(self, name: str) -> str: ...


class AsyncGreeter(hostline.aio.Interface, Protocol):
    async def greet(self, name: str) -> str: ...


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Give `project(source, *options)`: pytest's result over a file of tests, with this plugin and no other."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(source: str, *options: str, ini: str = "", is_apart: bool = False) -> pytest.RunResult:
        pytester.makepyfile(test_it=source)
        settings = ["addopts = --strict-markers --strict-config", "filterwarnings = error", "hostline_leak_grace = 0.1"]
        pytester.makeini("\n".join(["[pytest]", *settings, ini]))
        start = pytester.runpytest_subprocess if is_apart else pytester.runpytest_inprocess
        return start("-p", PLUGIN, "-p", "no:cacheprovider", "-vv", *options)

    return run


# --- the plugin itself -------------------------------------------------------------------------------


def test_every_fixture_is_listed_with_what_it_gives(project: Project) -> None:
    result = project("", "--fixtures")
    text = result.stdout.str()
    listed = [line.split()[0] for line in text.splitlines() if line.startswith("hostline_")]
    assert set(listed) == {
        "hostline_dir",
        "hostline_foreign_holder",
        "hostline_full_backlog",
        "hostline_leak_check",
        "hostline_loop",
        "hostline_ordinary_file",
        "hostline_runtime_dir",
        "hostline_serve",
        "hostline_stale_file",
        "hostline_stalled_peer",
    }
    ours = text.partition("hostline.testing.plugin")[2]
    assert "no docstring available" not in ours.partition("fixtures defined from")[0]


def test_the_mark_and_the_settings_are_listed(project: Project) -> None:
    assert "hostline_leak_check(enabled=True)" in project("", "--markers").stdout.str()
    text = project("", "--help").stdout.str()
    assert "--hostline-loop" in text
    assert "hostline_leak_check (bool)" in text


def test_no_fixture_hides_another_of_the_users(project: Project) -> None:
    result = project("", "--fixtures", "-v")
    ours = result.stdout.str().partition("fixtures defined from hostline")[2].partition("fixtures defined from")[0]
    names = [line.split()[0] for line in ours.splitlines() if line[:1].isalpha()]
    assert [name for name in names if not name.startswith("hostline_")] == []


def test_naming_the_plugin_again_registers_it_once(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(f"pytest_plugins = [{PLUGIN!r}]")
    pytester.makepyfile("def test_it(hostline_dir, pytestconfig): pass")
    result = pytester.runpytest_subprocess("-p", PLUGIN)  # and by the entry point, where it is installed
    result.assert_outcomes(passed=1)


def test_the_plugin_can_be_left_out(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(hostline_dir): pass")
    result = pytester.runpytest_subprocess("-p", f"no:{PLUGIN}")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'hostline_dir' not found*"])


@pytest.mark.parametrize("module", ["hostline", "hostline.testing"])
def test_hostline_and_its_parts_for_tests_need_no_pytest(module: str) -> None:
    program = f"import sys, {module}; print('pytest' in sys.modules, 'hostline.testing.plugin' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=15)
    assert output.stdout == "False False\n"


def test_a_project_with_nothing_but_hostline_and_pytest_works(project: Project) -> None:
    source = """
        import asyncio
        import hostline

        payments = hostline.Service("payments")

        @payments.method
        def double(number: int) -> int:
            return 2 * number

        def test_blocking(hostline_serve):
            served = hostline_serve(payments)
            assert served.connect().call("double", 21) == 42

        def test_asyncio(hostline_serve):
            async def main():
                async with hostline_serve(payments).aio_connect() as line:
                    return await line.call("double", 4)
            assert asyncio.run(main()) == 8
    """
    result = project(source, "-W", "error", "--hostline-leak-check", is_apart=True)
    result.assert_outcomes(passed=2)


# --- places ------------------------------------------------------------------------------------------


def test_the_directory_is_short_private_and_empty(hostline_dir: Path) -> None:
    assert len(str(hostline_dir)) < 40
    assert stat.S_IMODE(hostline_dir.stat().st_mode) == 0o700
    assert list(hostline_dir.iterdir()) == []


def test_the_directory_is_removed_after_passing_and_failing_tests(project: Project, hostline_dir: Path) -> None:
    source = f"""
        import pytest
        @pytest.mark.parametrize("passes", [True, False])
        def test_it(hostline_dir, passes):
            (hostline_dir / "file").touch()
            with open({str(hostline_dir / "log")!r}, "a") as log:
                print(hostline_dir, file=log)
            assert passes
    """
    project(source).assert_outcomes(passed=1, failed=1)
    places = (hostline_dir / "log").read_text().split()
    assert len(set(places)) == 2
    assert [place for place in places if os.path.exists(place)] == []


def test_bare_names_lead_into_the_tests_own_runtime_directory(
    hostline_runtime_dir: Path, hostline_serve: Serve
) -> None:
    served = hostline_serve(greeter(), "greeter")
    assert served.address == str(hostline_runtime_dir / "greeter.sock")
    with hostline.connect("greeter") as line:
        assert line.call("greet", "you") == "hello you"


# --- services ----------------------------------------------------------------------------------------


class TestOnEitherLoop:
    @pytest.fixture(params=loop_names())
    def hostline_loop(self, request: pytest.FixtureRequest) -> str:
        """What users write to run on both loops."""
        return str(request.param)

    def test_a_service_answers_both_faces(self, hostline_serve: Serve, hostline_loop: str) -> None:
        served = hostline_serve(greeter())
        assert served.connect().call("greet", "you") == "hello you"

        async def main() -> str:
            async with served.aio_connect(AsyncGreeter) as line:
                return await line.greet("me")

        assert asyncio.run(main()) == "hello me"
        assert served.connect(Greeter).greet("all") == "hello all"
        assert served.stats().methods == {"greet": 3}
        assert served.stats().connections >= 1

    def test_a_service_stops_and_its_file_is_gone(self, hostline_serve: Serve) -> None:
        served = hostline_serve(greeter())
        served.stop()
        served.stop()
        assert not os.path.exists(served.address)
        with pytest.raises(hostline.AddressNotFoundError):
            served.connect()
        with pytest.raises(RuntimeError, match="greeter has stopped"):
            served.stats()


@pytest.mark.ci_required
def test_the_loop_is_the_one_that_was_asked_for(hostline_serve: Serve) -> None:
    pytest.importorskip("uvloop", reason="uvloop is not installed")
    service = hostline.Service("which")

    @service.method(inline=True)
    def loop() -> str:
        return type(asyncio.get_running_loop()).__module__.split(".")[0]

    assert hostline_serve(service, loop="uvloop").connect().call("loop") == "uvloop"
    assert hostline_serve(service, loop="asyncio").connect().call("loop") == "asyncio"


def test_several_services_have_addresses_of_their_own_and_options_reach_them(hostline_serve: Serve) -> None:
    one, other = hostline_serve(greeter(), mode=0o660, group=os.getegid()), hostline_serve(greeter())
    assert one.address != other.address
    assert stat.S_IMODE(os.stat(one.address).st_mode) == 0o660
    assert stat.S_IMODE(os.stat(other.address).st_mode) == 0o600


def test_a_taken_address_is_an_error_of_the_call(hostline_serve: Serve) -> None:
    served = hostline_serve(greeter())
    with pytest.raises(hostline.AddressInUseError):
        hostline_serve(greeter(), served.address)


def test_the_class_alone_serves_without_pytest(hostline_dir: Path) -> None:
    with ServiceThread(greeter(), hostline_dir / "s") as served:
        assert served.connect().call("greet", "you") == "hello you"
        with pytest.raises(hostline.InternalError):
            served.connect().call("fail")
    assert len(served.errors) == 1
    assert "greeter.fail failed for uid" in served.errors[0]
    assert served.errors[0].endswith("RuntimeError: not declared")
    assert served.left == []


def test_errors_are_the_servers_own(hostline_serve: Serve) -> None:
    quiet, noisy = hostline_serve(greeter()), hostline_serve(greeter(), check_errors=False)
    with pytest.raises(hostline.InternalError):
        noisy.connect().call("fail")
    logging.getLogger("hostline").error("somebody else's")
    assert quiet.errors == []
    assert len(noisy.errors) == 1


SERVED = """
    import asyncio, threading, time
    import hostline, pytest

    service = hostline.Service("service")
    gate = threading.Event()

    @service.method(raises=KeyError)
    def find() -> None:
        raise KeyError("declared")

    @service.method
    def fail() -> None:
        raise RuntimeError("not declared")

    @service.method
    async def hold() -> None:
        await asyncio.sleep(60)

    @service.method(inline=True)
    def leave_task() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)

    def hold_in_background(served):
        def call():
            with pytest.raises(hostline.HostlineError):
                served.connect().call("hold")
        thread = threading.Thread(target=call)
        thread.start()
        while served.stats().calls.running == 0:
            time.sleep(0.001)
        return thread
"""


def in_served(body: str) -> str:
    return SERVED + "\n" + "\n".join(f"    {line}" for line in body.strip().splitlines())


def test_an_undeclared_error_fails_the_test_unless_it_is_expected(project: Project) -> None:
    source = in_served(
        """
def test_undeclared(hostline_serve):
    with pytest.raises(hostline.InternalError):
        hostline_serve(service).connect().call("fail")

def test_expected(hostline_serve):
    served = hostline_serve(service, check_errors=False)
    with pytest.raises(hostline.InternalError):
        served.connect().call("fail")
    assert "RuntimeError: not declared" in served.errors[0]

def test_declared(hostline_serve):
    with pytest.raises(KeyError):
        hostline_serve(service).connect().call("find", raises=[KeyError])

def test_failing(hostline_serve):
    hostline_serve(service).connect().call("fail")

def test_on_the_loop(hostline_serve):
    hostline_serve(service).connect().call("leave_task")
"""
    )
    result = project(source)
    result.assert_outcomes(passed=4, failed=1, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_undeclared*",
            "the service under test:",
            "  service.fail failed for uid *: RuntimeError: not declared",
            "*ERROR at teardown of test_on_the_loop*",
            "*ZeroDivisionError*",
        ]
    )


def test_a_handler_that_is_left_fails_the_test_unless_it_is_expected(project: Project) -> None:
    source = in_served(
        """
def test_left(hostline_serve):
    test_left.thread = hold_in_background(hostline_serve(service, grace=0.05))

def test_expected(hostline_serve):
    test_expected.thread = hold_in_background(hostline_serve(service, grace=0.05, check_handlers=False))

def test_failing(hostline_serve):
    test_failing.thread = hold_in_background(hostline_serve(service, grace=30))
    assert False

def test_end():
    for test in (test_left, test_expected, test_failing):
        test.thread.join(5)
        assert not test.thread.is_alive()
"""
    )
    with takes_less_than(15):
        result = project(source)
    result.assert_outcomes(passed=3, failed=1, errors=1)
    result.stdout.fnmatch_lines(["  service: calls left 0.05 s after it was told to stop: 1 running and 0 waiting"])


def test_a_handler_that_blocks_the_loop_is_told_and_ends_nothing_else(
    hostline_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostline.testing.serving._LOOP_TIMEOUT", 0.2)
    service, gate, began = hostline.Service("blocked"), threading.Event(), threading.Event()

    @service.method(inline=True)
    def block() -> None:
        began.set()
        gate.wait(10)

    served = ServiceThread(service, hostline_dir / "s", grace=0.0)

    def call() -> None:
        with pytest.raises(hostline.HostlineError), hostline.connect(served.address) as line:
            line.call("block", timeout=0.2)

    caller = threading.Thread(target=call)
    caller.start()
    assert began.wait(5)
    served.stop()
    assert "a handler blocks it" in served.left[0]
    gate.set()
    caller.join()
    assert wait_until(lambda: not any("hostline-test-blocked" in t.name for t in threading.enumerate()))
    served._server.loop.run_until_complete(served._server.shutdown(0))  # what only a test of this can still do
    served._server.loop.close()


@pytest.mark.ci_required
@pytest.mark.parametrize(("ini", "option", "loop"), [("uvloop", "", "uvloop"), ("uvloop", "asyncio", "asyncio")])
def test_the_loop_comes_from_the_configuration_and_the_command_line(
    project: Project, ini: str, option: str, loop: str
) -> None:
    pytest.importorskip("uvloop", reason="uvloop is not installed")
    source = f"def test_it(hostline_loop): assert hostline_loop == {loop!r}"
    options = [f"--hostline-loop={option}"] if option else []
    project(source, *options, ini=f"hostline_loop = {ini}").assert_outcomes(passed=1)


def test_a_loop_that_there_is_not_is_refused_in_words(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    result = project("", ini="hostline_loop = trio", is_apart=True)
    result.stderr.fnmatch_lines(["*hostline_loop = trio is neither asyncio nor uvloop*"])
    monkeypatch.setitem(sys.modules, "uvloop", None)
    source = in_served("def test_it(hostline_serve): hostline_serve(service, loop='uvloop')")
    project(source).stdout.fnmatch_lines(["hostline_serve: uvloop is not installed: pip install hostline?uvloop?"])
    with pytest.raises(ValueError, match="neither asyncio nor uvloop"):
        loop_factory("trio")


# --- peers that fail ---------------------------------------------------------------------------------


def test_a_silent_peer_runs_connect_into_its_timeout(hostline_stalled_peer: Stall, run_async: Any) -> None:
    peer = hostline_stalled_peer()
    with pytest.raises(hostline.SocketTimeoutError), takes_less_than(5):
        hostline.connect(peer.address, connect_timeout=0.1)

    async def main() -> None:
        with pytest.raises(hostline.SocketTimeoutError):
            await hostline.aio.connect(peer.address, connect_timeout=0.1)

    run_async(main)
    assert wait_until(lambda: peer.connection_count == 2)


@pytest.mark.parametrize("methods", [["greet"], greeter()], ids=["names", "service"])
def test_a_peer_that_greets_leaves_calls_unanswered(hostline_stalled_peer: Stall, methods: Any) -> None:
    with hostline.connect(hostline_stalled_peer(methods).address) as line:
        with pytest.raises(hostline.DeadlineExceededError), takes_less_than(5):
            line.call("greet", "you", timeout=0.1)


def test_stalled_peers_have_addresses_of_their_own_and_take_names_in_a_list(hostline_stalled_peer: Stall) -> None:
    assert hostline_stalled_peer().address != hostline_stalled_peer().address
    with pytest.raises(TypeError, match="write \\['greet'\\]"):
        hostline_stalled_peer("greet")


def test_a_stalled_peer_ends_with_its_context(hostline_dir: Path) -> None:
    with StalledPeer(hostline_dir / "s") as peer, socket.socket(socket.AF_UNIX) as sock:
        sock.connect(peer.address)
        assert wait_until(lambda: peer.connection_count == 1)
        peer.close()
        sock.settimeout(5)
        assert sock.recv(1) == b""
    assert not os.path.exists(peer.address)


def test_a_full_backlog_is_waited_out(hostline_full_backlog: FullBacklog, run_async: Any) -> None:
    with pytest.raises(hostline.ConnectTimeoutError), takes_less_than(5):
        hostline.connect_socket(hostline_full_backlog.address, timeout=0.1)

    async def main() -> None:
        with pytest.raises(hostline.ConnectTimeoutError):
            await hostline.aio.connect_socket(hostline_full_backlog.address, timeout=0.1)

    run_async(main)


def test_a_full_backlog_makes_room(hostline_full_backlog: FullBacklog) -> None:
    arrived: list[bytes] = []

    def connect() -> None:
        with hostline.connect_socket(hostline_full_backlog.address, timeout=10) as connection:
            arrived.append(bytes(connection.recv(10)))

    client = threading.Thread(target=connect)
    client.start()
    with hostline_full_backlog.accept() as sock:
        sock.sendall(b"at last")
        client.join(10)
    assert arrived == [b"at last"]


def test_a_stale_file_is_reclaimed(hostline_stale_file: Path, hostline_serve: Serve) -> None:
    assert stat.S_ISSOCK(hostline_stale_file.lstat().st_mode)
    assert hostline_stale_file.with_name("stale.sock.lock").exists()
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(str(hostline_stale_file))
    assert hostline_serve(greeter(), hostline_stale_file).connect().call("greet", "you") == "hello you"


def test_a_foreign_holder_is_refused_and_left_alone(hostline_foreign_holder: Path, hostline_serve: Serve) -> None:
    before = hostline_foreign_holder.lstat()
    with pytest.raises(hostline.AddressInUseError):
        hostline_serve(greeter(), hostline_foreign_holder)
    assert hostline_foreign_holder.lstat() == before
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(hostline_foreign_holder))


def test_an_ordinary_file_is_refused_and_left_alone(hostline_ordinary_file: Path, hostline_serve: Serve) -> None:
    with pytest.raises(hostline.NotASocketError):
        hostline_serve(greeter(), hostline_ordinary_file)
    assert hostline_ordinary_file.read_bytes() == b"not a socket\n"


# --- what is left behind -----------------------------------------------------------------------------

LEAKS = """
    import os, socket, subprocess, sys, threading
    import pytest

    kept = []
    own = os.open(os.devnull, os.O_RDONLY)

    def leak():
        kept.append(socket.socket(socket.AF_UNIX))

    def test_clean():
        socket.socket(socket.AF_UNIX).close()

    def test_socket(hostline_dir):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(hostline_dir / "left.sock"))
        sock.listen()
        kept.append(sock)

    def test_pipe():
        kept.append(os.pipe())

    def test_closed():
        os.close(own)

    def test_thread():
        thread = threading.Thread(target=threading.Event().wait, args=(60,), name="straggler", daemon=True)
        thread.start()

    def test_child():
        kept.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))

    def test_failing():
        leak()
        assert False

    @pytest.fixture
    def tidy():
        sock = socket.socket(socket.AF_UNIX)
        yield sock
        sock.close()

    def test_fixture(tidy):
        pass

    @pytest.mark.hostline_leak_check(enabled=False)
    def test_excepted():
        leak()
"""
LEAKING = ["test_socket", "test_pipe", "test_closed", "test_thread", "test_child"]


@pytest.mark.parametrize("way", ["option", "ini"])
def test_the_check_of_every_test_fails_those_that_leave_something(project: Project, way: str) -> None:
    options, ini = (["--hostline-leak-check"], "") if way == "option" else ([], "hostline_leak_check = true")
    result = project(LEAKS, "-W", "ignore", *options, ini=ini, is_apart=True)
    result.assert_outcomes(passed=8, failed=1, errors=5)
    text = result.stdout.str()
    assert [name for name in LEAKING if f"ERROR at teardown of {name} " not in text] == []
    result.stdout.fnmatch_lines(
        [
            "left behind:",
            "  descriptor * left open: AF_UNIX stream socket that listens at /*/left.sock (socket:*)",
            "  descriptor * left open: pipe:*",
            "  descriptor * left open: pipe:*",
            "  descriptor * closed, though the test did not open it: /dev/null",
            "  thread left running: straggler",
            "  descriptor * left open: pipe:*",
            "  child process left behind: pid * -c input()",
        ]
    )


def test_a_grace_that_is_no_number_is_refused_in_words(project: Project) -> None:
    result = project("", "-o", "hostline_leak_grace=soon", is_apart=True)
    result.stderr.fnmatch_lines(["*hostline_leak_grace = soon is no number of seconds*"])


def test_without_being_asked_for_nothing_is_checked(project: Project) -> None:
    project(LEAKS, "-W", "ignore", is_apart=True).assert_outcomes(passed=8, failed=1)


def test_one_test_opts_in_by_the_fixture_or_by_the_mark(project: Project) -> None:
    source = """
        import os
        import pytest

        def test_fixture(hostline_leak_check):
            os.open(os.devnull, os.O_RDONLY)

        @pytest.mark.hostline_leak_check
        def test_mark():
            os.open(os.devnull, os.O_RDONLY)

        @pytest.mark.hostline_leak_check
        class TestMark:
            def test_of_a_class(self):
                os.open(os.devnull, os.O_RDONLY)

        def test_neither():
            os.open(os.devnull, os.O_RDONLY)

        @pytest.mark.hostline_leak_check("yes")
        def test_wrong():
            pass
    """
    result = project(source, is_apart=True)
    result.assert_outcomes(passed=4, errors=4)
    reported = result.stdout.str().partition("short test summary")[0]
    assert reported.count("left open: /dev/null") == 3
    result.stdout.fnmatch_lines(["*takes enabled=True or enabled=False*"])


def test_a_module_opts_in_and_what_wider_fixtures_hold_is_no_leak(project: Project) -> None:
    source = """
        import os
        import pytest

        pytestmark = pytest.mark.hostline_leak_check

        @pytest.fixture(scope="module")
        def shared():
            fd = os.open(os.devnull, os.O_RDONLY)
            yield fd
            os.close(fd)

        def test_one(shared): pass
        def test_two(shared): pass
    """
    project(source).assert_outcomes(passed=2)


def test_descriptors_are_told_in_words() -> None:
    def said(fd: int) -> str:
        return describe_descriptor(fd, open_descriptors()[fd])

    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        assert said(server.fileno()).startswith(f"AF_INET stream socket that listens at {host}:{port} (socket:")
        with socket.create_connection((host, port)) as client:
            assert f"connected to {host}:{port}" in said(client.fileno())
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        assert said(one.fileno()).startswith("AF_UNIX seqpacket socket connected to an unnamed socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as named:
        named.bind("\0hostline-testing-\n")
        assert r"AF_UNIX datagram socket at @hostline-testing-\x0a" in said(named.fileno())
    with open(os.devnull, encoding="ascii") as file:
        assert said(file.fileno()) == "/dev/null"


def test_a_descriptor_that_became_another_is_told_with_both() -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    before = Snapshot.take()
    os.close(fd)
    with open("/dev/zero", "rb") as file:
        assert file.fileno() == fd
        expected = f"descriptor {fd} left open: /dev/zero, where before the test there was /dev/null"
        assert before.what_is_left(grace=0) == [expected]


# --- beside other plugins ----------------------------------------------------------------------------

ASYNC_TESTS = """
    import hostline, pytest

    service = hostline.Service("service")

    @service.method
    def double(number: int) -> int:
        return 2 * number

    @pytest.mark.{mark}
    async def test_call(hostline_leak_check, hostline_serve):
        async with hostline_serve(service).aio_connect() as line:
            assert await line.call("double", 4) == 8

    @pytest.mark.{mark}
    async def test_deadline(hostline_leak_check, hostline_stalled_peer):
        async with hostline.aio.connect(hostline_stalled_peer(service).address) as line:
            with pytest.raises(hostline.DeadlineExceededError):
                await line.call("double", 4, timeout=0.05)
"""


@pytest.mark.ci_required
@pytest.mark.parametrize("mark", ["anyio", "asyncio"])
def test_the_fixtures_work_in_async_tests(project: Project, mark: str) -> None:
    module = {"anyio": "anyio.pytest_plugin", "asyncio": "pytest_asyncio.plugin"}[mark]
    pytest.importorskip(module, reason=f"{module.partition('.')[0]} is not installed")
    source, ini = ASYNC_TESTS.format(mark=mark), "asyncio_default_fixture_loop_scope = function"
    if mark == "anyio":
        source += "\n    @pytest.fixture\n    def anyio_backend(): return 'asyncio'"
        ini = ""
    project(source, "-p", module, ini=ini, is_apart=True).assert_outcomes(passed=2)
