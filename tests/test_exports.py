"""The public names: `__all__` is complete and sorted, every name resolves, and importing hostline stays light."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import hostline
from hostline import errors
from tests import core
from tests.tree import SOURCE

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages([str(SOURCE)], "hostline.")
    if not module.name.endswith("__main__")
    and not module.name.startswith(("hostline.conformance", "hostline.demo"))
    and not (core.IS_LEFT_OUT and module.name in core.sources() and core.sources()[module.name].suffix == ".pyx")
)


@pytest.mark.parametrize("name", ["hostline", *MODULES])
def test_every_name_in_all_exists_once(name: str) -> None:
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert len(exported) == len(set(exported))
    assert [item for item in exported if not hasattr(module, item)] == []


def test_the_public_names_are_listed_and_documented() -> None:
    assert hostline.__all__, "hostline has no public names"
    silent = [
        name
        for name in hostline.__all__
        if (inspect.isclass(value := getattr(hostline, name)) or inspect.isfunction(value))
        and not inspect.getdoc(value)
    ]
    assert silent == []


def test_a_star_import_brings_nothing_private() -> None:
    assert [name for name in hostline.__all__ if name.startswith("_") and name != "__version__"] == []


def test_every_error_is_exported_and_has_the_common_base() -> None:
    classes = {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, BaseException)
    }
    assert sorted(classes) == sorted(errors.__all__)
    assert [name for name, value in classes.items() if not issubclass(value, errors.HostlineError)] == []


def test_every_error_stands_in_the_tree_that_the_module_prints() -> None:
    tree = inspect.getdoc(errors) or ""
    assert [name for name in errors.__all__ if name not in tree] == []


def test_importing_hostline_loads_nothing_that_a_service_does_not_need() -> None:
    program = "import sys, hostline; print(*sorted(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=15
    ).stdout
    loaded = set(output.split())
    heavy = {"typer", "click", "rich", "uvloop", "psutil", "hypothesis", "pytest", "multiprocessing", "http.client"}
    assert loaded & heavy == set()
    assert {
        name
        for name in loaded
        if name.startswith(("hostline.cli", "hostline.demo", "hostline.conformance", "hostline.testing"))
    } == set()


def test_public_functions_name_their_types() -> None:
    unnamed = []
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            is_public = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
            if is_public and node.returns is None:
                unnamed.append(f"{file}:{node.lineno}: {node.name}")
    assert unnamed == []
