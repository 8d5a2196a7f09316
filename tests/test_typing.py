"""`connect(address, Interface)` is understood by mypy, by pyright, and by the editors that pyright drives.

`tests/typing/interfaces.py` holds what must be accepted and, marked with `type: ignore[code]`, what must be refused.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tree import TREE

pytestmark = [pytest.mark.timeout(120), pytest.mark.ci_required]

EXAMPLE = TREE / "tests" / "typing" / "interfaces.py"
MARK = re.compile(r"\s*# type: ignore\[([a-z-]+)\].*")


def need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed (it comes with the dev extra)")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=TREE, capture_output=True, text=True, check=False, timeout=100
    )


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Give a copy of the examples without the marks."""
    copy = tmp_path / "bare.py"
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    copy.write_text("\n".join([*(MARK.sub("", line) for line in lines), "# pyright: strict", ""]), encoding="utf-8")
    return copy


@pytest.fixture
def marked() -> dict[int, str]:
    """Give the marked lines with the code of the error that mypy must report."""
    found = {
        number: match[1]
        for number, line in enumerate(EXAMPLE.read_text(encoding="utf-8").splitlines(), start=1)
        if (match := MARK.search(line))
    }
    assert len(found) >= 6
    return found


def test_mypy_accepts_the_examples_and_finds_each_mark_needed() -> None:
    need("mypy")
    result = run("mypy", "--strict", str(EXAMPLE))
    assert result.returncode == 0, result.stdout


def test_mypy_refuses_exactly_what_is_marked(bare: Path, marked: dict[int, str]) -> None:
    need("mypy")
    result = run("mypy", "--strict", "--no-pretty", "--hide-error-context", str(bare))
    found = {int(line): code for line, code in re.findall(r"bare\.py:(\d+): error: .*\[([a-z-]+)\]", result.stdout)}
    assert found == marked, result.stdout


def pyright(path: Path) -> list[tuple[int, str]]:
    """Return the lines of pyright's errors and their texts."""
    need("pyright")
    result = run("pyright", "--pythonpath", sys.executable, "--outputjson", str(path))
    diagnostics = json.loads(result.stdout)["generalDiagnostics"]
    return [(item["range"]["start"]["line"] + 1, item["message"]) for item in diagnostics]


def test_pyright_accepts_the_examples() -> None:
    assert pyright(EXAMPLE) == []


def test_pyright_refuses_exactly_what_is_marked(bare: Path, marked: dict[int, str]) -> None:
    found = pyright(bare)
    assert {line for line, _ in found} == set(marked), found


# --- what an editor shows ------------------------------------------------------------------------------

PROGRAM = """\
import hostline
from typing import Protocol


class Payments(hostline.Interface, Protocol):
    def charge(self, order: int, *, note: str = "") -> float: ...


class AsyncPayments(hostline.aio.Interface, Protocol):
    async def charge(self, order: int, *, note: str = "") -> float: ...


with hostline.connect("payments", Payments) as payments:
    payments.


async def main() -> None:
    async with hostline.aio.connect("payments", AsyncPayments) as payments:
        payments.


with hostline.connect("payments") as line:
    line.
"""


class Editor:
    """As much of an editor as it takes to ask pyright's language server what may stand at a place."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pyright.langserver", "--stdio"],
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._last_id = 0
        folder = {"uri": directory.as_uri(), "name": "tests"}
        self.ask("initialize", {
            "processId": os.getpid(), "rootUri": directory.as_uri(), "workspaceFolders": [folder], "capabilities": {},
        })  # fmt: skip
        self.tell("initialized", {})

    def tell(self, method: str, parameters: Any) -> None:
        self._send({"method": method, "params": parameters})

    def ask(self, method: str, parameters: Any) -> Any:
        self._last_id += 1
        self._send({"id": self._last_id, "method": method, "params": parameters})
        while True:
            message = self._receive()
            if message.get("id") == self._last_id and "method" not in message:
                return message.get("result")
            if "method" in message and "id" in message:  # the server asks something itself
                wanted = message["params"].get("items", []) if message.get("params") else []
                self._send({"id": message["id"], "result": [None] * len(wanted) or None})

    def names_at(self, uri: str, line: int, character: int) -> set[str]:
        """Return the names that may stand there."""
        where = {"textDocument": {"uri": uri}, "position": {"line": line, "character": character}}
        result = self.ask("textDocument/completion", where)
        items = result["items"] if isinstance(result, dict) else result
        return {item["label"] for item in items}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        length = 0
        while header := self._process.stdout.readline().strip():
            name, _, value = header.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        message: dict[str, Any] = json.loads(self._process.stdout.read(length))
        return message


@pytest.fixture
def editor(tmp_path: Path) -> Iterator[Editor]:
    need("pyright")
    config = {
        "venvPath": str(Path(sys.prefix).parent),
        "venv": Path(sys.prefix).name,
        "extraPaths": [str(TREE / "src")],
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
    started = Editor(tmp_path)
    yield started
    started.close()


def test_an_editor_completes_the_methods_of_an_interface(editor: Editor, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    uri = path.as_uri()
    opened = {"uri": uri, "languageId": "python", "version": 1, "text": PROGRAM}
    editor.tell("textDocument/didOpen", {"textDocument": opened})
    lines = PROGRAM.splitlines()
    places = [(number, len(line)) for number, line in enumerate(lines) if re.search(r"\w\.$", line)]
    blocking, asynchronous, plain = (editor.names_at(uri, line, character) for line, character in places)
    assert {"charge", "with_timeout", "close"} <= blocking
    assert {"charge", "with_timeout", "close"} <= asynchronous
    assert {"call", "invoke", "close"} <= plain
    assert "charge" not in plain
