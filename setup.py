"""Build the compiled core: every module with a `.pxd` beside its `.py`, and every `.pyx`.

The same `.py` files run uncompiled; nothing but speed depends on this. The rest of the build is in pyproject.toml.

HOSTLINE_BUILD_EXT=auto   compile if that is possible, and say so if it is not (the default)
HOSTLINE_BUILD_EXT=yes    compile, or fail
HOSTLINE_BUILD_EXT=no     do not compile
"""

import os
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path("src")
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

# Annotations are for readers and type checkers: with `annotation_typing` they would change what the code does.
# The rest is what Python does, and stays.
DIRECTIVES = {"language_level": 3, "annotation_typing": False, "binding": True, "embedsignature": False}

WARNING = """
hostline: installed as pure Python, without its compiled core: {reason}.
    Everything works; encoding and decoding take {cost} as long. To get the core: install a C compiler and Python's
    headers (Debian: apt install gcc python3-dev), then
        HOSTLINE_BUILD_EXT=yes pip install --force-reinstall --no-cache-dir --no-binary hostline hostline
    To be told nothing: HOSTLINE_BUILD_EXT=no.
"""
COST = "three to four times"


def core() -> list[Path]:
    """Return the sources that are compiled, below src/."""
    typed = [path.with_suffix(".py") for path in SOURCE.rglob("*.pxd") if path.with_suffix(".py").exists()]
    return sorted([*typed, *(SOURCE.rglob("*.pyx") if sys.platform == "linux" else ())])


def extensions() -> list[Extension]:
    """Return an extension for each; on ELF systems without exported names but the one that the interpreter calls."""
    flags = [] if sys.platform == "win32" else ["-O2", "-g0", "-fvisibility=hidden"]
    return [
        Extension(".".join(path.relative_to(SOURCE).with_suffix("").parts), [str(path)], extra_compile_args=flags)
        for path in core()
    ]


def choice() -> str:
    """Return what HOSTLINE_BUILD_EXT says."""
    value = os.environ.get("HOSTLINE_BUILD_EXT") or "auto"
    if value not in ("auto", "yes", "no"):
        sys.exit(f"HOSTLINE_BUILD_EXT={value!r} is none of auto, yes, no")
    return value


def obstacle() -> str:
    """Say why nothing can be compiled here, or nothing: a compiler is tried, with Python's headers."""
    try:
        import Cython  # noqa: F401
    except ImportError:
        return "Cython is not installed"
    command = build_ext(Distribution())
    command.finalize_options()
    from setuptools._distutils.ccompiler import new_compiler
    from setuptools._distutils.sysconfig import customize_compiler

    with tempfile.TemporaryDirectory() as directory:
        probe = Path(directory, "probe.c")
        probe.write_text("#include <Python.h>\nint probe(void) { return PY_MAJOR_VERSION; }\n")
        compiler = new_compiler()
        customize_compiler(compiler)
        said = os.dup(2)
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            compiler.compile([str(probe)], output_dir=directory, include_dirs=command.include_dirs)
        except Exception:
            return "there is no C compiler that works, or Python's headers are missing"
        finally:
            os.dup2(said, 2)
            os.close(said)
    return ""


def warn(reason: str) -> None:
    """Say what is missing, and how to get it; pip shows it with -v."""
    print(WARNING.format(reason=reason, cost=COST), file=sys.stderr)


class BuildCore(build_ext):
    """Compile all of the core or nothing of it: its modules use one another's C structures."""

    def get_source_files(self) -> list[str]:
        """Return what belongs into the sdist: never the C that is made of it."""
        return [str(path) for pattern in ("*.pxd", "*.pyx") for path in SOURCE.rglob(pattern)]

    def run(self) -> None:
        """Make the C, and compile it."""
        try:
            self.make_c()
            self.parallel = self.parallel or os.cpu_count()
            super().run()
        except (Exception, SystemExit) as error:
            for path in self.built():
                path.unlink(missing_ok=True)
            if choice() == "yes":
                raise
            warn(f"{type(error).__name__}: {error}")
            self.extensions = []

    def make_c(self) -> None:
        """Turn the sources of the extensions into C, below build/: one directory for each version of Python."""
        from Cython.Build import cythonize

        made = cythonize(
            [Extension(extension.name, extension.sources) for extension in self.extensions],
            build_dir=f"build/core-{sys.implementation.cache_tag}",
            nthreads=os.cpu_count() or 1,
            quiet=True,
            compiler_directives=DIRECTIVES,
        )
        sources = {extension.name: extension.sources for extension in made}
        for extension in self.extensions:
            extension.sources = sources[extension.name]

    def built(self) -> list[Path]:
        """Return where the compiled modules go, in place and in the build."""
        names = [path.relative_to(SOURCE).with_suffix(SUFFIX) for path in core()]
        places = [SOURCE] if self.inplace or self.editable_mode else [Path(self.build_lib)]
        return [place / name for place in places for name in names]


def main() -> None:
    """Build with the core, or say why without."""
    modules = [] if choice() == "no" else extensions()
    if modules and choice() == "auto" and (reason := obstacle()):
        if {"bdist_wheel", "editable_wheel", "build", "build_ext", "install", "develop"} & set(sys.argv):
            warn(reason)
        modules = []
    if not modules and {"editable_wheel", "develop", "--inplace"} & set(sys.argv):
        for path in core():  # what an earlier build left in place would be imported all the same
            (SOURCE / path.relative_to(SOURCE).with_suffix(SUFFIX)).unlink(missing_ok=True)
    setup(ext_modules=modules, cmdclass={"build_ext": BuildCore})


if __name__ == "__main__":
    main()
