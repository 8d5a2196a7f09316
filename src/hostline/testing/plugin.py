"""The pytest plugin: fixtures for services, for peers that fail, and for what a test leaves behind.

pytest finds it by the entry point; `-p no:hostline.testing.plugin` leaves it out. The fixtures are plain ones, so that
they work in blocking tests and in those of pytest-asyncio and anyio alike. What they give is made in the modules
beside this one; here it is bound to the life of a test.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Unpack

import pytest

from hostline.aio.serving.service import Service
from hostline.rpc.service import ServiceBase
from hostline.testing.leaks import GRACE, Snapshot
from hostline.testing.peers import FullBacklog, Stall, StalledPeer, foreign_holder, make_ordinary_file, make_stale_file
from hostline.testing.serving import GRACE as SERVE_GRACE
from hostline.testing.serving import Serve, ServeOptions, ServiceThread, loop_factory
from hostline.unix.address import Address

__all__ = ["has_failed", "short_directory"]

LOOPS: Final = ("asyncio", "uvloop")
MARK: Final = "hostline_leak_check"
GRACE_SETTING: Final = "hostline_leak_grace"

_HAS_FAILED: Final = pytest.StashKey[bool]()
# Characters of a service's name that its socket file keeps.
_MAX_FILE_NAME: Final = 32


# --- hooks -------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options, each on the command line and in the configuration file."""
    group = parser.getgroup("hostline")
    group.addoption("--hostline-loop", choices=LOOPS, help="event loop of the services that hostline_serve runs")
    group.addoption(
        "--hostline-leak-check", action="store_true", default=None, help="run every test with hostline_leak_check"
    )
    parser.addini("hostline_loop", f"event loop of the services that hostline_serve runs: {' or '.join(LOOPS)}")
    parser.addini(MARK, "run every test with the fixture of this name", type="bool", default=False)
    parser.addini(
        GRACE_SETTING, "seconds that what a test told to end gets for it, 2 when left out", default=str(GRACE)
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and refuse settings that make no sense."""
    config.addinivalue_line(
        "markers",
        f"{MARK}(enabled=True): fail if the test leaves descriptors, threads or child processes behind;"
        " enabled=False excepts it where every test is checked",
    )
    choice = config.getini("hostline_loop")
    if choice and choice not in LOOPS:
        raise pytest.UsageError(f"hostline_loop = {choice} is neither {' nor '.join(LOOPS)}")
    _leak_grace(config)


def _leak_grace(config: pytest.Config) -> float:
    text = config.getini(GRACE_SETTING)
    try:
        return float(text)
    except ValueError:
        raise pytest.UsageError(f"{GRACE_SETTING} = {text} is no number of seconds") from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember failures: what a failed test leaves behind is no second failure."""
    report = yield
    if report.failed:
        item.stash[_HAS_FAILED] = True
    return report


def has_failed(node: pytest.Item) -> bool:
    """Return whether a test has failed so far; a traceback keeps its objects alive."""
    return node.stash.get(_HAS_FAILED, False)


# --- places ------------------------------------------------------------------------------------------


def short_directory(prefix: str = "hl-") -> Path:
    """Return a fresh 0700 directory whose name leaves room in the 108 bytes of a socket address."""
    base = "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()  # noqa: S108 - made with a fresh name, 0700
    return Path(tempfile.mkdtemp(prefix=prefix, dir=os.path.realpath(base)))


@pytest.fixture
def hostline_dir() -> Iterator[Path]:
    """A fresh private directory for socket files, removed after the test.

    Its path has fewer than 40 characters, where that of tmp_path often leaves too few of the 107 that a socket's
    path may have.
    """
    directory = short_directory()
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def hostline_runtime_dir(hostline_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of the test's own: bare names such as "payments" lead there, in child processes too."""
    directory = hostline_dir / "run"
    directory.mkdir(0o700)
    monkeypatch.setenv("HOSTLINE_RUNTIME_DIR", str(directory))
    return directory


# --- services ----------------------------------------------------------------------------------------


@pytest.fixture
def hostline_loop(pytestconfig: pytest.Config) -> str:
    """The event loop of the services that hostline_serve runs: "asyncio" or "uvloop".

    From --hostline-loop, else hostline_loop in the configuration file, else asyncio. Override it with a parametrized
    fixture of this name to run on both.
    """
    return str(pytestconfig.getoption("hostline_loop") or pytestconfig.getini("hostline_loop") or "asyncio")


@pytest.fixture
def hostline_serve(request: pytest.FixtureRequest, hostline_dir: Path, hostline_loop: str) -> Iterator[Serve]:
    """Serve in background threads: what is given is a function that takes a Service and starts it.

    What hostline_serve(service) returns has address, connect(), aio_connect(), stats() and errors. Without an address
    it gets a file in hostline_dir; the options of Service.serve may follow. It is stopped after the test, which fails
    if a call still runs grace seconds (2) later, or if the server logged an error, such as an exception that its method
    does not declare. check_handlers=False and check_errors=False switch that off.
    """
    started: list[tuple[ServiceThread, bool, bool]] = []

    def serve(
        service: Service,
        address: str | os.PathLike[str] | Address | None = None,
        *,
        loop: str | None = None,
        grace: float = SERVE_GRACE,
        check_errors: bool = True,
        check_handlers: bool = True,
        **options: Unpack[ServeOptions],
    ) -> ServiceThread:
        choice = loop or hostline_loop
        try:
            loop_factory(choice)
        except (ModuleNotFoundError, ValueError) as error:
            pytest.fail(f"hostline_serve: {error}", pytrace=False)
        number = f"-{len(started) + 1}" if started else ""
        where = hostline_dir / f"{service.name[:_MAX_FILE_NAME]}{number}.sock" if address is None else address
        served = ServiceThread(service, where, loop=choice, grace=grace, **options)
        started.append((served, check_errors, check_handlers))
        return served

    yield serve
    is_failed = has_failed(request.node)
    problems: list[str] = []
    for served, check_errors, check_handlers in reversed(started):
        served.stop(0 if is_failed else None)
        problems += served.errors if check_errors else []
        problems += served.left if check_handlers else []
    if problems and not is_failed:
        pytest.fail("the service under test:\n  " + "\n  ".join(problems), pytrace=False)


# --- peers that fail ---------------------------------------------------------------------------------


@pytest.fixture
def hostline_stalled_peer(hostline_dir: Path) -> Iterator[Stall]:
    """Start servers that take every connection and never answer, to test time limits.

    hostline_stalled_peer() does not even greet: connect() runs into its connect_timeout.
    hostline_stalled_peer(["charge"]), or with a Service in place of the names, greets, offers these methods, and leaves
    every call unanswered. What it returns has address and connection_count.
    """
    with contextlib.ExitStack() as stack:
        count = 0

        def stall(methods: ServiceBase | Iterable[str] | None = None) -> StalledPeer:
            nonlocal count
            count += 1
            return stack.enter_context(StalledPeer(hostline_dir / f"stalled-{count}.sock", methods))

        yield stall


@pytest.fixture
def hostline_full_backlog(hostline_dir: Path) -> Iterator[FullBacklog]:
    """A server whose backlog is full: on Linux connecting to its address waits until the deadline.

    accept() makes room and returns the server's end of the connection that waited, which the test closes.
    """
    with FullBacklog(hostline_dir / "full.sock") as backlog:
        yield backlog


@pytest.fixture
def hostline_stale_file(hostline_dir: Path) -> Path:
    """The path of a socket file that nobody holds, as a server leaves it that was killed: to be reclaimed."""
    path = hostline_dir / "stale.sock"
    make_stale_file(path)
    return path


@pytest.fixture
def hostline_foreign_holder(hostline_dir: Path) -> Iterator[Path]:
    """The path of a live server that knows nothing of hostline's lock: to be refused, and left alone."""
    path = hostline_dir / "foreign.sock"
    with foreign_holder(path):
        yield path


@pytest.fixture
def hostline_ordinary_file(hostline_dir: Path) -> Path:
    """The path of an ordinary file where a socket is expected, holding b"not a socket" and a newline: to be refused."""
    path = hostline_dir / "ordinary.sock"
    make_ordinary_file(path)
    return path


# --- what is left behind -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _hostline_process_wide_descriptors() -> None:
    """Open now what libraries open once and keep, so that no single test is blamed: libuv's signal pipe."""
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.new_event_loop().close()


@pytest.fixture
def hostline_leak_check(
    request: pytest.FixtureRequest, _hostline_process_wide_descriptors: None
) -> Iterator[Snapshot | None]:
    """Fail the test if it leaves descriptors, threads or child processes behind, or closes what is not its own.

    The failure says what each is. Opt in by asking for this fixture (first, so that the others end before it looks),
    by @pytest.mark.hostline_leak_check, or for every test by hostline_leak_check = true in the configuration file or
    --hostline-leak-check; @pytest.mark.hostline_leak_check(enabled=False) excepts a test.
    """
    before = Snapshot.take()
    yield before
    if not has_failed(request.node):
        left = before.what_is_left(_leak_grace(request.config))
        if left:
            pytest.fail("left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def _hostline_leak_check_where_asked(request: pytest.FixtureRequest) -> None:
    """Begin the check before the test's own fixtures, where a mark or the configuration asks for it."""
    if _is_leak_check_asked(request.node, request.config):
        request.getfixturevalue("hostline_leak_check")


def _is_leak_check_asked(node: Any, config: pytest.Config) -> bool:
    mark = node.get_closest_marker(MARK)
    if mark is not None:
        unknown = sorted(mark.kwargs.keys() - {"enabled"})
        if mark.args or unknown:
            pytest.fail(f"the mark {MARK} takes enabled=True or enabled=False", pytrace=False)
        return bool(mark.kwargs.get("enabled", True))
    return bool(config.getoption(MARK) or config.getini(MARK))
