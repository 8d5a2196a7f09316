"""Whether the compiled core is in use, and how to do without it.

The core is the modules that every call passes through, from the socket to the handler: those with a `.pxd` beside them,
and `unix/passing/mmsg.pyx`. They run compiled where they were compiled (setup.py), and elsewhere as they stand: they do
the same then, and slower. With `HOSTLINE_PURE_PYTHON=1` in the environment they run as they stand.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import ClassVar

__all__ = ["advice", "describe_core", "is_compiled", "leave_out_core"]


class _SourceFinder:
    """Find the modules of one package in their source only."""

    _finders: ClassVar[dict[str, FileFinder]] = {}

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a module is.

        Raises:
            ModuleNotFoundError: It has no source, and so belongs to the core.
        """
        if path is None or not name.startswith("hostline."):
            return None
        place = next(iter(path))
        if place not in cls._finders:
            cls._finders[place] = FileFinder(place, (SourceFileLoader, [".py"]))
        spec = cls._finders[place].find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r} without the compiled core", name=name)
        return spec


def _is_left_out() -> bool:
    return os.environ.get("HOSTLINE_PURE_PYTHON", "") not in ("", "0")


def leave_out_core() -> None:
    """Have what is imported from now on run as it stands, if the environment asks for it."""
    if _is_left_out() and _SourceFinder not in sys.meta_path:
        sys.meta_path.insert(0, _SourceFinder)


def is_compiled() -> bool:
    """Say whether the compiled core is in use: a call costs half as much then, and nothing else differs.

    It is built from source or comes with a wheel, and is left out with `HOSTLINE_PURE_PYTHON=1` in the environment. All
    of its modules are compiled, or none.
    """
    file = getattr(sys.modules.get("hostline.wire.frame"), "__file__", None) or ".py"
    return not file.endswith(".py")


def describe_core() -> str:
    """Return `compiled core` or `pure Python`, as `hostline --version` prints it."""
    return "compiled core" if is_compiled() else "pure Python"


def advice() -> str:
    """Return how to get the compiled core where it was not built: pip does not show what the build said of it."""
    if is_compiled():
        return ""
    if _is_left_out():
        return "the compiled core is left out: HOSTLINE_PURE_PYTHON is set"
    return (
        "without the compiled core a call takes half as long again or more: see install-the-compiled-core in"
        " hostline's\ndocumentation, or install a C compiler and Python's headers, and then\n"
        "    HOSTLINE_BUILD_EXT=yes pip install --force-reinstall --no-cache-dir --no-binary hostline hostline"
    )


# Before any other module of hostline is imported: hostline/__init__.py names this one first.
leave_out_core()
