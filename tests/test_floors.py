"""A lower floor never imports a higher one, nor its neighbour: every import in the source is parsed and judged.

The table below is the architecture; `docs/design/floors.md` explains it. A new package gets a line here first.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src"

FLOORS: dict[int, tuple[str, ...]] = {
    0: ("errors", "limits", "clock", "_core", "_version"),
    1: ("unix", "wire"),
    2: ("protocol",),
    3: ("rpc",),
    4: ("sync", "aio"),
    5: ("bridges", "conformance", "demo", "bench"),
    6: ("cli", "testing", "__init__", "__main__"),
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}

# Imports between neighbours that are right all the same: (importer, imported).
NEIGHBOURS = {("__main__", "cli")}

# Floors 1 and 2 that decide and never wait: they take bytes and the time as arguments.
SANS_IO = ("wire", "protocol")
WAITING = {"asyncio", "concurrent", "multiprocessing", "select", "selectors", "signal", "socket", "ssl", "subprocess"}
WAITING |= {"threading", "time"}

# What `import hostline` may need beside the standard library, and what a function below floor 5 may import lazily.
REQUIRED = {"msgspec"}
OPTIONAL = {"uvloop"}


@dataclass(frozen=True)
class Import:
    """One imported module: where, of what, and whether inside a function."""

    file: Path
    line: int
    owner: str
    target: str
    is_lazy: bool

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


def imports_in(source: Path) -> Iterator[Import]:
    """Yield every import of every module under `source`, also those in functions and TYPE_CHECKING blocks."""
    for file in sorted(source.rglob("*.py")):
        module = file.relative_to(source).with_suffix("").parts
        owner = module[1]  # ("hostline", "unix", "address") belongs to unix, ("hostline", "errors") to errors
        package = module[:-1]
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
        for node, is_lazy in _walk(tree, is_lazy=False):
            for target in _targets(node, package, source):
                yield Import(file, getattr(node, "lineno", 0), owner, target, is_lazy)


def _walk(node: ast.AST, *, is_lazy: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        is_inside = is_lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield child, is_inside
        yield from _walk(child, is_lazy=is_inside)


def _targets(node: ast.AST, package: tuple[str, ...], source: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else ()
        base += tuple(node.module.split(".")) if node.module else ()
        return sorted({".".join(_module(base, alias.name, source)) for alias in node.names})
    if isinstance(node, ast.Call) and ast.unparse(node.func) in (
        "importlib.import_module",
        "import_module",
        "__import__",
    ):
        return [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
    return []


def _module(base: tuple[str, ...], name: str, source: Path) -> tuple[str, ...]:
    """Tell `from hostline import errors` (a module) from `from hostline import connect` (a name in one)."""
    path = source.joinpath(*base, name)
    return (*base, name) if path.with_suffix(".py").exists() or path.is_dir() else base


def complaint(found: Import) -> str | None:
    """Return what is wrong with an import between floors, or None."""
    parts = found.target.split(".")
    if parts[0] != "hostline":
        return None
    target = parts[1] if len(parts) > 1 else "__init__"
    for name in (found.owner, target):
        if name not in FLOOR_OF:
            return f"{found.place}: {name} is on no floor; add it to FLOORS in {Path(__file__).name}"
    here, there = FLOOR_OF[found.owner], FLOOR_OF[target]
    if target == found.owner or there < here or (found.owner, target) in NEIGHBOURS:
        if found.owner == "cli" and there == 5 and not found.is_lazy:
            return f"{found.place}: cli imports {found.target} at the top; floor 5 is imported inside the command"
        return None
    way = "sideways" if there == here else "up"
    return f"{found.place}: {found.owner} (floor {here}) imports {way}: {found.target} (floor {there})"


def outside_complaint(found: Import) -> str | None:
    """Return what is wrong with an import from outside the package, or None."""
    top = found.target.split(".")[0]
    if top in ("hostline", "__future__", "_typeshed", ""):  # _typeshed exists for type checkers only
        return None
    if found.owner in SANS_IO and top in WAITING:
        return f"{found.place}: {found.owner} does no I/O and never waits, but imports {top}"
    allowed = REQUIRED | (OPTIONAL if found.is_lazy else set())
    if top in sys.stdlib_module_names or top in allowed:
        return None
    if FLOOR_OF.get(found.owner, 0) >= 5 and found.owner not in ("__init__", "__main__"):
        return None
    return f"{found.place}: {found.owner} imports {top}, which is not a requirement of hostline"


def complaints_in(source: Path) -> list[str]:
    """Return what is wrong with the imports between floors under `source`."""
    return [text for found in imports_in(source) if (text := complaint(found)) is not None]


def outside_complaints_in(source: Path) -> list[str]:
    """Return what is wrong with the imports from outside the package under `source`."""
    return [text for found in imports_in(source) if (text := outside_complaint(found)) is not None]


def test_no_module_imports_up_or_sideways() -> None:
    complaints = complaints_in(SOURCE)
    assert not complaints, "\n" + "\n".join(complaints)


def test_the_lower_floors_need_nothing_but_msgspec_and_the_sans_io_floors_never_wait() -> None:
    complaints = outside_complaints_in(SOURCE)
    assert not complaints, "\n" + "\n".join(complaints)


def test_every_module_stands_on_a_floor() -> None:
    names = {path.stem for path in (SOURCE / "hostline").iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert names - set(FLOOR_OF) == set(), "add them to FLOORS"


# --- the checker itself ------------------------------------------------------------------------------

PLANTED = {
    "up": ("unix/sockets.py", "from hostline.rpc import service"),
    "up from the ground": ("errors.py", "import hostline.unix.address"),
    "up by a relative import": ("wire/frame.py", "from ..protocol import connection"),
    "up by a relative import of a package": ("wire/frame.py", "from .. import protocol"),
    "up, to the public names": ("demo/orders.py", "from hostline import connect"),
    "up, to the package itself": ("rpc/service.py", "import hostline"),
    "up, by name": ("rpc/service.py", "from hostline import aio"),
    "up, for types only": (
        "rpc/service.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hostline.aio import server",
    ),
    "up, inside a function": ("unix/sockets.py", "def connect():\n    from hostline.sync import client"),
    "up, by a string": ("unix/sockets.py", 'import importlib\nimportlib.import_module("hostline.sync")'),
    "sideways between faces": ("aio/client.py", "from hostline.sync.client import Client"),
    "sideways on floor 1": ("wire/frame.py", "from hostline.unix.passing.descriptors import Fd"),
    "sideways between services": ("demo/orders.py", "from hostline.conformance import probes"),
    "from no floor": ("surprise/module.py", "import hostline.errors"),
    "the command pays for floor 5 at its start": ("cli/main.py", "from hostline.demo import orders"),
}

ALLOWED = {
    "down": ("sync/client.py", "from hostline.rpc import service\nfrom hostline import errors, limits"),
    "inside a package": ("unix/sockets.py", "from .address import parse_address\nfrom hostline.unix import oserrors"),
    "lazily in the command": ("cli/main.py", "def demo():\n    from hostline.demo import orders"),
    "the command from __main__": ("__main__.py", "from hostline.cli import main"),
    "another project": ("unix/sockets.py", "import socket\nfrom collections import deque"),
}


def plant(directory: Path, where: str, text: str) -> None:
    for floor in FLOOR_OF:
        (directory / "hostline" / floor).mkdir(parents=True, exist_ok=True)
    for ground in FLOORS[0]:
        (directory / "hostline" / f"{ground}.py").touch()
    target = directory / "hostline" / where
    target.parent.mkdir(exist_ok=True)
    target.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("case", PLANTED)
def test_the_checker_catches_a_planted_violation(tmp_path: Path, case: str) -> None:
    where, text = PLANTED[case]
    plant(tmp_path, where, text)
    complaints = complaints_in(tmp_path)
    assert len(complaints) == 1
    assert f"{where}:{text.count(chr(10)) + 1}: " in complaints[0]


@pytest.mark.parametrize("case", ALLOWED)
def test_the_checker_lets_right_imports_pass(tmp_path: Path, case: str) -> None:
    where, text = ALLOWED[case]
    plant(tmp_path, where, text)
    assert complaints_in(tmp_path) == []


@pytest.mark.parametrize(
    ("where", "text", "word"),
    [
        ("wire/frame.py", "import socket", "never waits"),
        ("protocol/calls.py", "def now():\n    import time", "never waits"),
        ("unix/sockets.py", "import psutil", "not a requirement"),
        ("aio/serving/server.py", "import uvloop", "not a requirement"),
        ("__init__.py", "import rich", "not a requirement"),
    ],
)
def test_the_checker_catches_what_a_floor_may_not_need(tmp_path: Path, where: str, text: str, word: str) -> None:
    plant(tmp_path, where, text)
    complaints = outside_complaints_in(tmp_path)
    assert len(complaints) == 1
    assert word in complaints[0]


def test_the_checker_lets_a_lazy_uvloop_and_the_commands_libraries_pass(tmp_path: Path) -> None:
    plant(tmp_path, "aio/serving/server.py", "def loop():\n    import uvloop\nimport asyncio, msgspec")
    plant(tmp_path, "cli/main.py", "import rich, typer")
    assert outside_complaints_in(tmp_path) == []
