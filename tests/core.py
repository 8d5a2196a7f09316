"""The compiled core as the tests see it: its modules, whether one is older than its source, and its pure twins."""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import hostline
from tests.tree import SOURCE

ROOT = SOURCE.parent
# What both twins share: the classes of errors, so that one `except` catches either's.
SHARED = ("hostline.errors", "hostline.limits", "hostline.clock", "hostline._version", "hostline._core")


# Whether this run does without the core on purpose.
IS_LEFT_OUT = (
    os.environ.get("HOSTLINE_PURE_PYTHON", "") not in ("", "0") or os.environ.get("HOSTLINE_BUILD_EXT") == "no"
)


def name_of(path: Path) -> str:
    """Return the module that a file below src/ is the source of."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def sources() -> dict[str, Path]:
    """Return what setup.py compiles: modules with a .pxd beside their .py, and every .pyx."""
    found = [path.with_suffix(".py") for path in SOURCE.rglob("*.pxd") if path.with_suffix(".py").exists()]
    return {name_of(path): path for path in sorted([*found, *SOURCE.rglob("*.pyx")])}


def made_from(source: Path) -> set[Path]:
    """Return the files that a compiled module is made from: its own, and each .pxd that one of them names."""
    seen: set[Path] = set()
    waiting = [source, source.with_suffix(".pxd")]
    while waiting:
        path = waiting.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        if path.suffix in (".pxd", ".pyx"):
            names = re.findall(r"^\s*(?:from|cimport) (hostline[\w.]*)", path.read_text(encoding="utf-8"), re.MULTILINE)
            waiting += [ROOT.joinpath(*name.split(".")).with_suffix(".pxd") for name in names]
    return seen


def stale(compiled: dict[str, Path], files: dict[str, Path]) -> list[str]:
    """Return a sentence for each compiled module that is older than what it is made from."""
    found = []
    for name, library in compiled.items():
        age = library.stat().st_mtime
        newer = sorted(str(path.relative_to(ROOT)) for path in made_from(files[name]) if path.stat().st_mtime > age)
        if newer:
            found.append(f"{name} was compiled before {', '.join(newer)} changed")
    return found


def compiled_here() -> dict[str, Path]:
    """Return the modules of the core that this interpreter would load compiled, with their files."""
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    return {
        name: library
        for name, source in sources().items()
        for library in [source.with_suffix(suffix) for suffix in suffixes]
        if library.exists()
    }


def complaint() -> str:
    """Return why this run would test something else than the source, or nothing."""
    if not hostline.is_compiled():
        return ""
    compiled = compiled_here()
    problems = stale(compiled, sources())
    problems += [f"{name} is not compiled, and others are" for name in sources().keys() - compiled.keys()]
    if not problems:
        return ""
    return (
        "the compiled core is not that of this source: "
        + "; ".join(problems)
        + ". `make test` builds it anew, and so does `python setup.py build_ext --inplace`; HOSTLINE_PURE_PYTHON=1 runs"
        " without it"
    )


@contextlib.contextmanager
def _only_the_source() -> Iterator[None]:
    class Finder:
        @staticmethod
        def find_spec(name: str, path: list[str] | None = None, target: ModuleType | None = None) -> object:
            if path is None or not name.startswith("hostline."):
                return None
            loader = (importlib.machinery.SourceFileLoader, [".py"])
            spec = importlib.machinery.FileFinder(next(iter(path)), loader).find_spec(name)
            if spec is None:
                raise ModuleNotFoundError(f"no source for {name}", name=name)
            return spec

    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.meta_path.remove(Finder)  # type: ignore[arg-type]


def pure_twins(*names: str) -> list[ModuleType]:
    """Import modules from their source, beside those that are loaded, and with them all they import of hostline."""
    package = sys.modules["hostline"]
    before = {name: module for name, module in sys.modules.items() if name.startswith("hostline.")}
    attributes = dict(vars(package))
    for name in before.keys() - set(SHARED):
        del sys.modules[name]
    try:
        with _only_the_source():
            return [importlib.import_module(name) for name in names]
    finally:
        for name in [name for name in sys.modules if name.startswith("hostline.")]:
            del sys.modules[name]
        sys.modules.update(before)
        vars(package).update(attributes)
