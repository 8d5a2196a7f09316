"""The subjects: one module for each, a server (and a client) written the way the peer's own documentation does it.

Defaults everywhere: where a peer has an option that would mend a row, the docs say so, and the verdict stays. To add
a peer, write a module with the functions that `program.py` lists and add a line here.
"""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path

from hostline._version import __version__
from hostline.conformance.program import Received, run_subject

__all__ = ["SUBJECTS", "Received", "SubjectInfo", "find_subject", "run_subject"]


@dataclass(frozen=True, slots=True)
class SubjectInfo:
    """Describe one subject.

    Attributes:
        name: What selects it.
        title: How the table calls it.
        module: Its module, or the path of a `.py` file.
        distribution: The package that has to be installed; None for the standard library and for files.
        is_hostline: Whether it is one of hostline's own faces.
    """

    name: str
    title: str
    module: str
    distribution: str | None = None
    is_hostline: bool = False

    def installed_version(self) -> str | None:
        """Return its version, or None where it is not installed; imports nothing."""
        if self.is_hostline:
            return __version__
        if self.module.endswith(".py"):
            return ""
        if self.distribution is None:
            return platform.python_version()
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None


def _subject(name: str, title: str, distribution: str | None = None, *, is_hostline: bool = False) -> SubjectInfo:
    return SubjectInfo(name, title, f"{__name__}.{name}", distribution, is_hostline)


SUBJECTS: tuple[SubjectInfo, ...] = (
    _subject("hostline_sync", "hostline.sync", is_hostline=True),
    _subject("hostline_aio", "hostline.aio", is_hostline=True),
    _subject("hostline_service", "hostline.Service", is_hostline=True),
    _subject("socket", "socket"),
    _subject("socketserver", "socketserver"),
    _subject("multiprocessing", "multiprocessing.connection"),
    _subject("asyncio", "asyncio"),
    _subject("uvloop", "uvloop", "uvloop"),
    _subject("anyio", "anyio", "anyio"),
    _subject("trio", "trio", "trio"),
    _subject("aiohttp", "aiohttp", "aiohttp"),
    _subject("uvicorn", "uvicorn", "uvicorn"),
    _subject("gunicorn", "gunicorn", "gunicorn"),
    _subject("grpc", "grpc", "grpcio"),
    _subject("pyzmq", "pyzmq", "pyzmq"),
    _subject("pynng", "pynng", "pynng"),
    _subject("rpyc", "rpyc", "rpyc"),
    _subject("pyro5", "Pyro5", "Pyro5"),
)


def find_subject(name: str) -> SubjectInfo:
    """Return a subject by its name, or one made of a `.py` file.

    Args:
        name: A name of the table, or the path of a file with a subject's functions.

    Raises:
        ValueError: There is no such subject or file.
    """
    if name.endswith(".py"):
        path = Path(name).resolve()
        if not path.is_file():
            raise ValueError(f"no file {name!r}")
        return SubjectInfo(path.stem, path.stem, str(path))
    for subject in SUBJECTS:
        if subject.name == name:
            return subject
    raise ValueError(f"unknown subject {name!r}: there are {', '.join(subject.name for subject in SUBJECTS)}")
