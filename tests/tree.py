"""The files that belong to the project: git's list, or in a copy without git everything but what was built."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
SOURCE = TREE / "src" / "hostline"

BUILT = {"build", "dist", "site", "__pycache__", "node_modules"}


def project_files() -> list[Path]:
    """Return the files under version control and those that could be added, or all but what was built."""
    listing = subprocess.run(
        ["git", "-C", str(TREE), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0 and listing.stdout:
        names = listing.stdout.decode().rstrip("\0").split("\0")
        return sorted({TREE / name for name in names if (TREE / name).is_file()})
    return sorted(_walk(TREE))


def _walk(directory: Path) -> Iterator[Path]:
    for path in directory.iterdir():
        is_built = path.name in BUILT or path.name.endswith(".egg-info")
        is_hidden = path.name.startswith(".") and path.name not in (".ci", ".gitignore")
        if is_built or is_hidden or path.is_symlink():
            continue
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path
