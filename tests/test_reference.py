"""The reference pages made from the source leave nothing out."""

from __future__ import annotations

import ast
import importlib.util
from types import ModuleType

import pytest

from hostline import errors, limits
from tests.tree import SOURCE, TREE


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mkdocs_hooks", TREE / "tools" / "mkdocs_hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, spec.name, module)
        spec.loader.exec_module(module)
    return module


def test_every_bound_is_listed_with_its_reason(hooks: ModuleType) -> None:
    listed = {name: limit.reason for limit in hooks.limits() for name in limit.names}
    assert listed.keys() == {name for name in vars(limits) if name.isupper()}
    assert [name for name, reason in listed.items() if len(reason.split()) < 5] == []


def test_every_error_is_listed_with_its_meaning(hooks: ModuleType) -> None:
    page = hooks.errors_page()
    assert [name for name in errors.__all__ if f"\n## {name}\n\n" not in page] == []
    attributes = {
        line.strip().split(":")[0]
        for node in ast.walk(ast.parse((SOURCE / "errors.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        for line in (ast.get_docstring(node) or "").partition("Attributes:\n")[2].splitlines()
        if line.startswith("    ") and not line.startswith("     ") and ":" in line
    }
    assert [name for name in attributes if f"| `{name}` | " not in page] == []


def test_sizes_are_written_for_people(hooks: ModuleType) -> None:
    assert hooks.written("64 << 10", 64 << 10) == "64 KiB"
    assert hooks.written("1 << 20", 1 << 20) == "1 MiB"
    assert hooks.written("0o600", 0o600) == "0o600"
    assert hooks.written("107 if linux else 103", 107) == "107"
