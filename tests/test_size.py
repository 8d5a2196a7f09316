"""Modules, functions and packages stay small enough to be read in one sitting, or say why not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src" / "hostline"

MODULE_LINES_WITH_REASON = 400
MODULE_LINES = 600
FUNCTION_LINES = 60  # without its docstring
PACKAGE_MODULES = 12

# Packages that are a shelf: one small module for each thing of a kind, and nothing that a reader must see together.
SHELVES = {"conformance/subjects"}


def has_reason(node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A long module or function explains itself in its docstring, in a sentence about its lines."""
    return re.search(r"\blines\b", ast.get_docstring(node) or "") is not None


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function, without decorators and docstring."""
    total = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        docstring = node.body[0]
        total -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return total


def complaints_about(text: str, name: str) -> Iterator[str]:
    """Yield one line for each thing in a module that is too long."""
    tree = ast.parse(text)
    lines = text.count("\n")
    if lines > MODULE_LINES:
        yield f"{name}: {lines} lines, and no reason is good enough over {MODULE_LINES}"
    elif lines > MODULE_LINES_WITH_REASON and not has_reason(tree):
        yield f"{name}: {lines} lines; over {MODULE_LINES_WITH_REASON} the docstring says why it has so many lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = function_lines(node)
            if length > FUNCTION_LINES and not has_reason(node):
                yield (
                    f"{name}:{node.lineno}: {node.name} has {length} lines; over {FUNCTION_LINES} it is split,"
                    " or its docstring says why it has so many lines"
                )


def test_modules_and_functions_are_short_or_say_why_not() -> None:
    complaints = [
        line
        for file in sorted(SOURCE.rglob("*.py"))
        for line in complaints_about(file.read_text(encoding="utf-8"), str(file.relative_to(SOURCE)))
    ]
    assert not complaints, "\n" + "\n".join(complaints)


def test_packages_hold_a_dozen_modules_at_most() -> None:
    counts = {
        str(package.relative_to(SOURCE)): len([file for file in package.glob("*.py") if not file.stem.startswith("__")])
        for package in (SOURCE, *SOURCE.rglob("*/"))
    }
    assert {name: count for name, count in counts.items() if count > PACKAGE_MODULES and name not in SHELVES} == {}


def test_the_checker_catches_what_is_too_long() -> None:
    long_function = "def f():\n" + "    x = 1\n" * 60
    explained = (
        'def f():\n    """Do it.\n\n    Sixty lines, because the steps share every name.\n    """\n'
        + "    x = 1\n" * 60
    )
    assert [*complaints_about(long_function, "m.py")] != []
    assert [*complaints_about(explained, "m.py")] == []
    assert [*complaints_about('def f():\n    """' + "\n" * 80 + '    """\n', "m.py")] == []
    assert [*complaints_about("x = 1\n" * 401, "m.py")] != []
    assert [*complaints_about('"""One table of so many lines, kept whole."""\n' + "x = 1\n" * 401, "m.py")] == []
    assert [*complaints_about('"""One table of so many lines, kept whole."""\n' + "x = 1\n" * 600, "m.py")] != []
