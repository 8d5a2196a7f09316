"""What measures processor time runs alone: beside other tests it would fail for what they do."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parent
CLOCKS = {"process_time", "thread_time", "cpu_seconds"}


def unmarked(source: str) -> list[str]:
    """Return the tests that read a clock of processor time, or call what does, without the mark."""
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
            names = {
                part.attr if isinstance(part, ast.Attribute) else part.id
                for part in ast.walk(node)
                if isinstance(part, (ast.Attribute, ast.Name))
            }
            marks = {ast.unparse(decorator) for decorator in node.decorator_list}
            if names & CLOCKS and "pytest.mark.alone" not in marks:
                found.append(node.name)
    return found


def test_each_test_of_processor_time_is_marked_alone() -> None:
    found = {
        f"{path.relative_to(TESTS)}: {name}"
        for path in sorted(TESTS.rglob("test_*.py"))
        for name in unmarked(path.read_text(encoding="utf-8"))
    }
    assert found == set()


def test_a_test_without_the_mark_is_found() -> None:
    source = "def test_it():\n    assert time.process_time() - spent < 0.1\n"
    assert unmarked(source) == ["test_it"]
    assert unmarked(f"@pytest.mark.alone\n{source}") == []
