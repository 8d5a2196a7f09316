"""Every file under examples/ runs, and prints what it says it prints.

The convention, which CONTRIBUTING explains as well:

- `NAME.py` is a program that runs to its end and exits with 0.
- `NAME_client.py` is run against `NAME_server.py`, or against `NAME.py` if that is the server. The server is started
  first and waited for; after the client it gets SIGTERM and must exit with 0. `payments_aio_client.py` finds
  `payments_aio_server.py`, `payments_aio.py`, `payments_server.py` or `payments.py`, in this order.
- `test_NAME.py` is run by pytest, and must pass.
- A docstring that ends with a paragraph `Prints:` and an indented block is a promise: the program's (the client's)
  output is compared with the block, `...` standing for anything.

Bare names lead into a fresh runtime directory. An example that imports something that is not installed is skipped.
"""

from __future__ import annotations

import ast
import doctest
import importlib.util
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.cli.running import hostline
from tests.leaks import wait_until
from tests.tree import TREE

EXAMPLES = TREE / "examples"
SERVER_START = 10.0
RUN_TIME = 15.0


# On a busy machine the first worker may have taken every connection before the second comes to it.
ALONE = {"workers_client.py"}


def server_of(client: Path) -> Path | None:
    """Return the server that a `NAME_client.py` talks to."""
    name = client.stem.removesuffix("_client")
    while name:
        for server in (client.with_name(f"{name}_server.py"), client.with_name(f"{name}.py")):
            if server.exists():
                return server
        name = name.rpartition("_")[0]
    return None


def programs(directory: Path = EXAMPLES) -> list[tuple[Path, Path | None]]:
    """Return (program, its server or None) for each example; servers stand with their clients."""
    files = sorted(directory.glob("*.py"))
    clients = [file for file in files if file.stem.endswith("_client")]
    servers = {server_of(client) for client in clients}
    alone = [file for file in files if file not in clients and file not in servers]
    return [(file, None) for file in alone] + [(client, server_of(client)) for client in clients]


def promised_output(file: Path) -> str | None:
    """Return the block behind `Prints:` in a docstring, or None."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    found = re.search(r"^Prints:\n\n((?: {4}.*\n?|\n)+)\Z", docstring, re.MULTILINE)
    return textwrap.dedent(found[1]).strip("\n") + "\n" if found else None


def is_test(file: Path) -> bool:
    """Say whether pytest runs an example."""
    return file.stem.startswith("test_")


def missing_imports(file: Path) -> list[str]:
    """Return the modules that an example imports and that are not here."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    here = {path.stem for path in file.parent.glob("*.py")}
    return sorted(name for name in names - here if importlib.util.find_spec(name) is None)


def listening_below(directory: Path) -> bool:
    """Say whether a socket below `directory` listens, or is bound and takes datagrams, or has its key file there."""
    if any(directory.glob("*.tcp")):
        return True
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as table:
        for line in table:
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and fields[7].startswith(f"{directory}/"):
                accepts, is_datagram = fields[3] == "00010000", fields[4] == "0002"
                if accepts or is_datagram:
                    return True
    return False


def start(file: Path, runtime: Path) -> subprocess.Popen[str]:
    """Start an example with `runtime` as its runtime directory and as its working directory."""
    path = os.pathsep.join(
        os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place
    )
    words = ["-m", "pytest", "-p", "no:cacheprovider", "--import-mode=prepend"] if is_test(file) else []
    return subprocess.Popen(
        [sys.executable, "-W", "error", *words, str(file)],
        env={**os.environ, "PYTHONPATH": path, "HOSTLINE_RUNTIME_DIR": str(runtime), "PYTHONUNBUFFERED": "1"},
        cwd=runtime,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], name: str) -> str:
    """Wait for a program, require that it succeeded, and return its output."""
    try:
        output, errors = process.communicate(timeout=RUN_TIME)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        pytest.fail(f"{name} did not end within {RUN_TIME} seconds; it printed:\n{output}{errors}")
    assert process.returncode == 0, f"{name} exited with {process.returncode}:\n{output}{errors}"
    return output


def run_example(program: Path, server: Path | None, runtime: Path) -> None:
    """Run an example, with its server where it has one, and compare what it prints."""
    if server is None:
        output = finish(start(program, runtime), program.name)
    else:
        serving = start(server, runtime)
        try:
            wait_until(lambda: listening_below(runtime) or serving.poll() is not None, SERVER_START)
            if serving.poll() is not None:
                finish(serving, server.name)
                pytest.fail(f"{server.name} ended before its client came")
            output = finish(start(program, runtime), program.name)
            serving.send_signal(signal.SIGTERM)
            finish(serving, server.name)
        finally:
            serving.kill()
            serving.communicate()
    promised = promised_output(program)
    if promised is not None:
        matches = doctest.OutputChecker().check_output(promised, output, doctest.ELLIPSIS)
        assert matches, f"{program.name} promises\n{promised}\nand printed\n{output}"


@pytest.mark.ci_required
@pytest.mark.parametrize(
    ("program", "server"),
    [pytest.param(*one, marks=pytest.mark.alone if one[0].name in ALONE else ()) for one in programs()],
    ids=lambda path: path.stem if path else "alone",
)
def test_the_example_runs_and_prints_what_it_promises(program: Path, server: Path | None, sock_dir: Path) -> None:
    missing = sorted({name for file in (program, server) if file for name in missing_imports(file)})
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    run_example(program, server, sock_dir)


def test_there_are_examples_and_each_client_has_a_server() -> None:
    found = programs()
    assert found
    assert [client.name for client, server in found if client.stem.endswith("_client") and server is None] == []


def test_every_example_says_what_it_shows() -> None:
    silent = [
        file.name
        for file in EXAMPLES.glob("*.py")
        if not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert silent == []


# --- the first screen ---------------------------------------------------------------------------------


def test_the_programs_of_the_readme_run_as_they_are_printed(sock_dir: Path) -> None:
    text = (TREE / "README.md").read_text(encoding="utf-8")
    service, *clients = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(clients) == 2
    (sock_dir / "payments.py").write_text(service)
    serving = start(sock_dir / "payments.py", sock_dir)
    try:
        assert wait_until(lambda: listening_below(sock_dir), SERVER_START)
        for number, client in enumerate(clients):
            file = sock_dir / f"client_{number}.py"
            file.write_text(client)
            assert finish(start(file, sock_dir), f"client {number}") == "Receipt(order=1, total=9.0)\n"
    finally:
        serving.terminate()
        serving.communicate()


@pytest.mark.parametrize("source", ["README.md", "examples/payments.py"])
def test_every_call_of_payments_in_a_shell_works_with_every_payments_service(sock_dir: Path, source: str) -> None:
    pages = ("README.md", "docs/tutorial/index.md", "docs/reference/command.md", "src/hostline/cli/commands/call.py")
    texts = [(TREE / page).read_text(encoding="utf-8") for page in pages]
    calls = {json for text in texts for json in re.findall(r"hostline call payments charge '(.*)'", text)}
    assert len(calls) == 2  # by position and by name
    program = (TREE / source).read_text(encoding="utf-8")
    if source.endswith(".md"):
        program = program.partition("```python\n")[2].partition("```")[0]
    (sock_dir / "payments.py").write_text(program)
    serving = start(sock_dir / "payments.py", sock_dir)
    try:
        assert wait_until(lambda: listening_below(sock_dir), SERVER_START)
        for arguments in calls:
            done = hostline("call", "payments", "charge", arguments, env={"HOSTLINE_RUNTIME_DIR": str(sock_dir)})
            assert (done.stdout, done.stderr) == (b'{"order":1,"total":9.0}\n', b"")
    finally:
        serving.terminate()
        serving.communicate()


# --- the runner itself -------------------------------------------------------------------------------

SERVER = '''"""Answer one client at a time."""
import os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with socket.socket(socket.AF_UNIX) as sock:
    sock.bind(os.path.join(os.environ["HOSTLINE_RUNTIME_DIR"], "x.sock"))
    sock.listen()
    while True:
        with sock.accept()[0] as peer:
            peer.sendall(b"hello")
'''
CLIENT = '''"""Ask.

Prints:

    got hello from ...
"""
import os, socket
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(os.path.join(os.environ["HOSTLINE_RUNTIME_DIR"], "x.sock"))
    print("got", sock.recv(100).decode(), "from", os.getpid())
'''


def test_a_client_is_run_against_its_server(tmp_path: Path, sock_dir: Path) -> None:
    (tmp_path / "greeting.py").write_text(SERVER)
    (tmp_path / "greeting_aio_client.py").write_text(CLIENT)
    ((program, server),) = programs(tmp_path)
    assert server == tmp_path / "greeting.py"
    run_example(program, server, sock_dir)


def test_a_broken_promise_and_a_failing_program_are_caught(tmp_path: Path, sock_dir: Path) -> None:
    (tmp_path / "wrong.py").write_text('"""Show.\n\nPrints:\n\n    one\n    two\n"""\nprint("one")\n')
    (tmp_path / "fails.py").write_text('"""Fail."""\nraise SystemExit("no")\n')
    (tmp_path / "right.py").write_text('"""Show.\n\nPrints:\n\n    one\n    two\n"""\nprint("one\\ntwo")\n')
    run_example(tmp_path / "right.py", None, sock_dir)
    for name, words in (("wrong.py", "promises"), ("fails.py", "exited with 1")):
        with pytest.raises(AssertionError, match=words):
            run_example(tmp_path / name, None, sock_dir)
