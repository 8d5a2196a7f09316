"""Build the wheel and the sdist into dist/, then try each in an empty environment, as an installer would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
DIST = TREE / "dist"

# Run with nothing but the distribution and its requirements installed.
LIBRARY = """
import importlib.metadata, sys
import hostline
assert hostline.__version__ == importlib.metadata.version("hostline"), hostline.__version__
foreign = {"typer", "rich", "uvloop"} & set(sys.modules)
assert not foreign, f"import hostline brought {foreign}"
print("  import hostline", hostline.__version__, "from", hostline.__file__)
"""
MUST_BE_IN_WHEEL = (
    "hostline/py.typed",
    "hostline/__init__.py",
    "hostline/cli/__init__.py",
    "hostline/testing/plugin.py",
)
MUST_BE_IN_SDIST = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "Makefile",
    "tests/conftest.py",
    "docs/index.md",
)


def run(*command: str | Path, quiet: bool = False) -> None:
    """Run a command away from the source tree and end with it where it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    output = subprocess.PIPE if quiet else None
    done = subprocess.run(
        [str(word) for word in command],
        cwd="/",
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT if quiet else None,
    )
    if done.returncode:
        sys.stdout.write((done.stdout or b"").decode(errors="replace"))
        sys.exit(f"failed with {done.returncode}: {' '.join(map(str, command))}")


def build() -> list[Path]:
    """Build both and return [wheel, sdist]; the wheel is made from the sdist, so the sdist is known to be complete."""
    shutil.rmtree(DIST, ignore_errors=True)
    print("building the sdist, and the wheel from it")
    run(sys.executable, "-m", "build", "--outdir", DIST, TREE, quiet=True)
    return [next(DIST.glob("*.whl")), next(DIST.glob("*.tar.gz"))]


def check_contents(wheel: Path, sdist: Path) -> None:
    """Fail if something that belongs in is left out, or a test got into the wheel."""
    names = set(zipfile.ZipFile(wheel).namelist())
    if missing := [name for name in MUST_BE_IN_WHEEL if name not in names]:
        sys.exit(f"{wheel.name} lacks {', '.join(missing)}")
    sources = {str(path.relative_to(TREE / "src")) for path in (TREE / "src" / "hostline").rglob("*") if path.is_file()}
    sources = {name for name in sources if "__pycache__" not in name}
    if missing := sorted(sources - names):
        sys.exit(f"{wheel.name} lacks {', '.join(missing)}: see package-data in pyproject.toml")
    if strange := [name for name in names if not name.startswith(("hostline/", "hostline-"))]:
        sys.exit(f"{wheel.name} holds {', '.join(strange)}")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    if missing := [name for name in MUST_BE_IN_SDIST if name not in inside]:
        sys.exit(f"{sdist.name} lacks {', '.join(missing)}: see MANIFEST.in")


def try_it(artifact: Path) -> None:
    """Install one artifact into an empty environment, first bare, then with the command."""
    print(f"trying {artifact.name}")
    with tempfile.TemporaryDirectory(prefix="hostline-dist-") as directory:
        run(sys.executable, "-m", "venv", directory)
        python = Path(directory, "bin", "python")
        pip = (python, "-m", "pip", "install", "-qq", "--disable-pip-version-check")
        run(*pip, artifact)
        run(python, "-W", "error", "-c", LIBRARY)
        run(*pip, f"hostline[cli] @ {artifact.as_uri()}")
        run(Path(directory, "bin", "hostline"), "--version")
        run(python, "-m", "hostline", "--help", quiet=True)


def main() -> None:
    """Build, look inside, and try."""
    wheel, sdist = build()
    check_contents(wheel, sdist)
    for artifact in (wheel, sdist):
        try_it(artifact)
    print(f"built {wheel.name} and {sdist.name} in dist/")


if __name__ == "__main__":
    main()
