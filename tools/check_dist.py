"""Build the wheels and the sdist into dist/, then try each in an empty environment, as an installer would.

A wheel with the compiled core, for this machine, and one without it, for any; the sdist with a compiler and with none.
"""

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
assert hostline.is_compiled() is (sys.argv[1] == "compiled"), hostline.is_compiled()
print("  import hostline", hostline.__version__, sys.argv[1], "from", hostline.__file__)
"""
BESIDE_SOURCES = (".pxd", ".pyx", ".pyi", ".so")  # what the modules are compiled with, and to
WARNING = "without its compiled core"
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
    "setup.py",
    "src/hostline/wire/frame.pxd",
    "src/hostline/unix/passing/mmsg.pyx",
    "tests/conftest.py",
    "docs/index.md",
)


def run(*command: str | Path, quiet: bool = False, **more: str) -> str:
    """Run a command away from the source tree and end with it where it fails; return what it wrote, if `quiet`."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment.pop("HOSTLINE_PURE_PYTHON", None)
    output = subprocess.PIPE if quiet else None
    done = subprocess.run(
        [str(word) for word in command],
        cwd="/",
        env={**environment, **more},
        stdout=output,
        stderr=subprocess.STDOUT if quiet else None,
    )
    if done.returncode:
        sys.stdout.write((done.stdout or b"").decode(errors="replace"))
        sys.exit(f"failed with {done.returncode}: {' '.join(map(str, command))}")
    return (done.stdout or b"").decode(errors="replace")


def build() -> tuple[Path, Path, Path]:
    """Build (compiled wheel, pure wheel, sdist); the sdist is known to be complete, for the wheels are made from it."""
    shutil.rmtree(DIST, ignore_errors=True)
    print("building the sdist, and the wheels from it")
    run(sys.executable, "-m", "build", "--outdir", DIST, TREE, quiet=True, HOSTLINE_BUILD_EXT="yes")
    compiled, sdist = next(DIST.glob("*.whl")), next(DIST.glob("*.tar.gz"))
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-cache-dir", "-w", DIST, sdist)
    run(*pip, quiet=True, HOSTLINE_BUILD_EXT="no")
    return compiled, next(DIST.glob("*-none-any.whl")), sdist


def check_contents(wheel: Path, sdist: Path, is_compiled: bool) -> None:
    """Fail if something that belongs in is left out, or a test got into the wheel."""
    names = set(zipfile.ZipFile(wheel).namelist())
    if missing := [name for name in MUST_BE_IN_WHEEL if name not in names]:
        sys.exit(f"{wheel.name} lacks {', '.join(missing)}")
    files = [path for path in (TREE / "src" / "hostline").rglob("*") if path.is_file()]
    sources = {str(path.relative_to(TREE / "src")) for path in files if path.suffix not in BESIDE_SOURCES}
    sources = {name for name in sources if "__pycache__" not in name}
    if missing := sorted(sources - names):
        sys.exit(f"{wheel.name} lacks {', '.join(missing)}: see package-data in pyproject.toml")
    core = {path.stem for path in files if path.suffix in (".pxd", ".pyx") and path.stem != "cheader"}
    compiled = {Path(name).name.partition(".")[0] for name in names if name.endswith(".so")}
    if compiled != (core if is_compiled else set()):
        sys.exit(
            f"{wheel.name} holds the compiled modules {', '.join(sorted(compiled)) or 'none'}, not those of the core"
        )
    if wheel.name.endswith("-none-any.whl") is is_compiled:
        sys.exit(f"{wheel.name} is named for the wrong machines")
    if strange := [name for name in names if not name.startswith(("hostline/", "hostline-"))]:
        sys.exit(f"{wheel.name} holds {', '.join(strange)}")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    if missing := [name for name in MUST_BE_IN_SDIST if name not in inside]:
        sys.exit(f"{sdist.name} lacks {', '.join(missing)}: see MANIFEST.in")
    # The benchmark's own C is source; what Cython makes of a module has that module's name.
    made = [
        name
        for name in inside
        if name.startswith("src/") and (name.endswith(".so") or (name.endswith(".c") and f"{name[:-2]}.py" in inside))
    ]
    if made:
        sys.exit(f"{sdist.name} holds what the build makes: {', '.join(made)}")


def try_it(artifact: Path, is_compiled: bool) -> None:
    """Install one artifact into an empty environment, first bare, then with the command."""
    print(f"trying {artifact.name}")
    what = "compiled" if is_compiled else "pure"
    with tempfile.TemporaryDirectory(prefix="hostline-dist-") as directory:
        run(sys.executable, "-m", "venv", directory)
        python = Path(directory, "bin", "python")
        pip = (python, "-m", "pip", "install", "-qq", "--disable-pip-version-check")
        run(*pip, artifact)
        run(python, "-W", "error", "-c", LIBRARY, what)
        run(*pip, f"hostline[cli] @ {artifact.as_uri()}")
        run(Path(directory, "bin", "hostline"), "--version")
        run(python, "-m", "hostline", "--help", quiet=True)


def try_without_compiler(sdist: Path) -> None:
    """Install the sdist where no compiler is: it installs, says what is missed, and fails only if told to."""
    print(f"trying {sdist.name} without a compiler")
    with tempfile.TemporaryDirectory(prefix="hostline-dist-") as directory:
        run(sys.executable, "-m", "venv", directory)
        python = Path(directory, "bin", "python")
        nothing = {"CC": "/bin/false", "PATH": str(python.parent)}
        pip = (python, "-m", "pip", "install", "--disable-pip-version-check", "--no-cache-dir", "-v")
        said = run(*pip, f"hostline[cli] @ {sdist.as_uri()}", quiet=True, HOSTLINE_BUILD_EXT="auto", **nothing)
        if WARNING not in said:
            sys.exit(f"{sdist.name} was installed without a compiler and without a warning")
        run(python, "-W", "error", "-c", LIBRARY, "pure")
        version = run(python, "-m", "hostline", "--version", quiet=True)
        if "pure Python" not in version or "HOSTLINE_BUILD_EXT=yes" not in version:
            sys.exit(f"hostline --version does not say how to get the compiled core:\n{version}")
        refused = subprocess.run(
            [*pip, "--force-reinstall", "--no-deps", sdist],
            cwd="/",
            env={**os.environ, **nothing, "HOSTLINE_BUILD_EXT": "yes"},
            capture_output=True,
        )
        if not refused.returncode:
            sys.exit("HOSTLINE_BUILD_EXT=yes was no error without a compiler")


def main() -> None:
    """Build, look inside, and try."""
    compiled, pure, sdist = build()
    for wheel in (compiled, pure):
        check_contents(wheel, sdist, is_compiled=wheel is compiled)
    for artifact in (compiled, pure, sdist):
        try_it(artifact, is_compiled=artifact is not pure)
    try_without_compiler(sdist)
    print(f"built {compiled.name}, {pure.name} and {sdist.name} in dist/")


if __name__ == "__main__":
    main()
