"""What a run was made on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from typing import Any

from tests.tree import TREE

import hostline


def machine_facts(loop: str) -> dict[str, Any]:
    """Return what a reader of the figures must know of the machine and the versions."""
    return {
        "hostline": hostline.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "kernel": platform.release(),
        "system": platform.machine(),
        "python": platform.python_version(),
        "loop": loop,
        "uvloop": version_of("uvloop"),
        "msgspec": version_of("msgspec"),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "uid": os.geteuid(),
    }


def version_of(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Return the commit of the tree, with `+` where files differ from it; None outside of git."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(TREE), *words], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    name = git("rev-parse", "--short=12", "HEAD")
    return f"{name}+" if name and git("status", "--porcelain", "--untracked-files=no") else name or None
