"""What an installer, a type checker and a package page read agrees with the source."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import hostline
from tests.tree import SOURCE, TREE

PROJECT: dict[str, Any] = tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]

# Where the name of a distribution is not the name that is imported.
IMPORT_NAMES = {"grpcio": "grpc", "pyro5": "Pyro5", "pyzmq": "zmq", "prometheus-client": "prometheus_client"}
IMPORT_NAMES |= {"opentelemetry-api": "opentelemetry", "opentelemetry-sdk": "opentelemetry"}


def distribution(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]


def test_the_version_is_written_once_and_told_everywhere() -> None:
    assert hostline.__version__ == importlib.metadata.version("hostline")
    assert f'__version__ = "{hostline.__version__}"' in (SOURCE / "_version.py").read_text(encoding="utf-8")
    assert "version" in PROJECT["project"]["dynamic"]


def test_msgspec_is_the_only_requirement() -> None:
    assert [distribution(text) for text in PROJECT["project"]["dependencies"]] == ["msgspec"]


@pytest.mark.parametrize("extra", ["cli", "uvloop", "prometheus", "otel", "test", "peers", "bench", "docs", "dev"])
def test_the_extras_have_lower_bounds(extra: str) -> None:
    for requirement in EXTRAS[extra]:
        own = requirement.startswith("hostline[")
        assert own or re.fullmatch(r"[A-Za-z0-9-]+(\[\w+\])?>=[\d.]+(,<2)?", requirement), requirement


def test_the_servers_that_a_socket_is_lent_to_come_with_the_test_extra() -> None:
    text = (TREE / "tests" / "test_lending.py").read_text(encoding="utf-8")
    lent_to = {name for name in ("aiohttp", "grpcio", "gunicorn", "uvicorn") if IMPORT_NAMES.get(name, name) in text}
    assert len(lent_to) == 4
    assert lent_to - set(map(distribution, EXTRAS["test"])) == set(), "their tests would be skipped"


def test_every_foreign_import_belongs_to_a_requirement_or_an_extra() -> None:
    requirements = [*PROJECT["project"]["dependencies"], *(text for texts in EXTRAS.values() for text in texts)]
    known = {IMPORT_NAMES.get(name.lower(), name) for name in map(distribution, requirements)}
    imported: dict[str, Path] = {}
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported.update({alias.name.split(".")[0]: file for alias in node.names})
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                imported[node.module.split(".")[0]] = file
    foreign = imported.keys() - sys.stdlib_module_names - {"hostline", "_typeshed"}
    assert foreign - known == set(), {name: str(imported[name]) for name in foreign - known}


def test_the_command_exists() -> None:
    from hostline.cli import main

    assert callable(main)
    assert PROJECT["project"]["scripts"] == {"hostline": "hostline.cli:main"}


def test_the_pytest_plugin_is_found_under_the_name_of_its_module() -> None:
    """So `-p` of that name works with and without the entry point, and never registers it twice."""
    plugins = PROJECT["project"]["entry-points"]["pytest11"]
    assert plugins == {"hostline.testing.plugin": "hostline.testing.plugin"}
    assert importlib.util.find_spec("hostline.testing.plugin") is not None


def test_types_and_data_files_are_shipped() -> None:
    assert (SOURCE / "py.typed").is_file()
    shipped = PROJECT["tool"]["setuptools"]["package-data"]
    globs = [
        (package.replace(".", "/").removeprefix("hostline").strip("/"), glob)
        for package in shipped
        for glob in shipped[package]
    ]
    covered = {path for place, glob in globs for path in (SOURCE / place).glob(glob)}
    data = {path for path in SOURCE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".so")}
    assert data - covered == set(), "add them to package-data in pyproject.toml"


def test_every_directory_of_modules_is_a_package() -> None:
    directories = {path.parent for path in SOURCE.rglob("*.py")}
    assert [str(path) for path in directories if not (path / "__init__.py").is_file()] == []


def test_the_oldest_python_is_the_same_everywhere() -> None:
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert PROJECT["tool"]["mypy"]["python_version"] == oldest
    assert PROJECT["tool"]["pyright"]["pythonVersion"] == oldest
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert f"Programming Language :: Python :: {oldest}" in PROJECT["project"]["classifiers"]


def test_the_changelog_has_a_place_for_this_version() -> None:
    text = (TREE / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## (Unreleased|{re.escape(hostline.__version__)})", text, re.MULTILINE)


def test_the_licence_is_whole() -> None:
    text = (TREE / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


def test_every_makefile_target_says_what_it_does() -> None:
    text = (TREE / "Makefile").read_text(encoding="utf-8")
    phony = re.findall(r"^\.PHONY: (\w+)$", text, re.MULTILINE)
    described = re.findall(r"^(\w+):[^\n]*## ", text, re.MULTILINE)
    assert phony == described
    assert {"demo", "test", "check", "bench", "docs", "build", "clean"} <= set(phony)
