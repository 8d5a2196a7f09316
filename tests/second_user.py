"""Real second users: run a function, or a whole Python, as another uid.

The other user must reach the interpreter and the tree, which may both lie below a directory that only root can search
(an interpreter in root's home, a clone in a private directory). Both are therefore reached through descriptors that
root opened: `/proc/self/fd/N/...` starts at the directory itself and asks nothing of its parents.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import pickle
import select
import signal
import subprocess
import sys
import sysconfig
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NOBODY = 65534
TREE = Path(__file__).resolve().parent.parent


class Fork:
    """One function running in a forked child as another user.

    Args:
        uid: The user (and group) the child becomes, before the function is called.
        function: What to run; its result and its exception must survive pickling, or arrive as text.
        gid: The group; the uid's number when left out.
        groups: Supplementary groups of the child; None leaves them alone, which an unprivileged user must.
    """

    def __init__(
        self,
        uid: int,
        function: Callable[..., Any],
        *args: Any,
        gid: int | None = None,
        groups: tuple[int, ...] | None = (),
    ) -> None:
        readable, writable = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of every fork beside threads
            self.pid = os.fork()
        if self.pid == 0:
            os.close(readable)
            _run_child(writable, uid, uid if gid is None else gid, groups, function, args)
        os.close(writable)
        self._results = readable
        self._is_reaped = False

    def result(self, timeout: float = 15.0) -> Any:
        """Return what the function returned, or raise what it raised.

        Raises:
            TimeoutError: The child did not answer in `timeout` seconds; it was killed.
            RuntimeError: The child died, or its answer could not be pickled (then with its text).
        """
        deadline = time.monotonic() + timeout
        answer = bytearray()
        try:
            while True:
                if not select.select([self._results], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    raise TimeoutError(f"no result within {timeout} seconds")
                if not (data := os.read(self._results, 65536)):
                    break
                answer += data
        finally:
            self.kill()
        if not answer:
            raise RuntimeError("the child died without a result")
        succeeded, value = pickle.loads(bytes(answer))
        if succeeded:
            return value
        if isinstance(value, BaseException):
            raise value
        raise RuntimeError(value)

    def kill(self) -> None:
        """End the child, wait for it, and close the pipe; more than once is fine."""
        if not self._is_reaped:
            self._is_reaped = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self._results)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def run_as(
    uid: int,
    function: Callable[..., Any],
    *args: Any,
    gid: int | None = None,
    groups: tuple[int, ...] | None = (),
    timeout: float = 15.0,
) -> Any:
    """Run `function(*args)` in a forked child as `uid` and return its result, or raise its exception."""
    with Fork(uid, function, *args, gid=gid, groups=groups) as child:
        return child.result(timeout)


def _run_child(
    writable: int,
    uid: int,
    gid: int,
    groups: tuple[int, ...] | None,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    """Become the user, run the function, send the answer, and never return into the test."""
    answer: bytes
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
        asyncio._set_running_loop(None)
        _reach_imports_by_descriptor()
        if groups is not None:
            os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        answer = pickle.dumps((True, function(*args)))
    except BaseException as error:
        try:
            answer = pickle.dumps((False, error))
            pickle.loads(answer)
        except Exception:
            answer = pickle.dumps((False, "".join(traceback.format_exception(error))))
    try:
        sent = 0
        while sent < len(answer):
            sent += os.write(writable, answer[sent:])
    finally:
        os._exit(0)


def _reach_imports_by_descriptor() -> None:
    """Rewrite the import path of this (forked) process, so that later imports work as any user."""
    moved: dict[str, str] = {}
    for entry in sys.path:
        directory = entry or os.getcwd()
        if os.path.isdir(directory):
            moved[directory] = f"/proc/self/fd/{os.open(directory, os.O_PATH | os.O_CLOEXEC)}"
    longest_first = sorted(moved, key=len, reverse=True)

    def move(path: str) -> str:
        for old in longest_first:
            if path == old or path.startswith(old + os.sep):
                return moved[old] + path[len(old) :]
        return path

    sys.path[:] = [move(entry or os.getcwd()) for entry in sys.path]
    for module in list(sys.modules.values()):
        places = getattr(module, "__path__", None)
        if isinstance(places, list):
            places[:] = [move(place) for place in places]
    sys.path_importer_cache.clear()
    importlib.invalidate_caches()


@contextlib.contextmanager
def python_for_others() -> Iterator[tuple[str, dict[str, str], tuple[int, ...]]]:
    """Open a way to this interpreter, its packages and the source tree that every user can walk.

    Yields:
        The executable, the environment variables it needs, and the descriptors that the new process must inherit.
    """
    directories = [sys.base_prefix, sysconfig.get_path("purelib"), str(TREE / "src"), str(TREE)]
    fds = tuple(os.open(directory, os.O_PATH | os.O_CLOEXEC) for directory in directories)
    base, packages, source, tree = (f"/proc/self/fd/{fd}" for fd in fds)
    try:
        yield (
            f"{base}/bin/python{sys.version_info.major}.{sys.version_info.minor}",
            {
                "PYTHONHOME": base,
                "PYTHONPATH": os.pathsep.join([source, packages, tree]),
                "PYTHONDONTWRITEBYTECODE": "1",
                "LD_LIBRARY_PATH": f"{base}/lib",
                "PATH": os.defpath,
            },
            fds,
        )
    finally:
        for fd in fds:
            os.close(fd)


def python_as(uid: int, *arguments: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start `python ARGUMENTS...` as another user, with hostline and the test packages importable.

    Args:
        uid: The user and group to become.
        arguments: What stands behind `python`: `-m`, `hostline`, ... or `-c` and a program.
        env: Variables added to a small environment; nothing is inherited.
        options: Passed to `subprocess.Popen`; standard output and error are pipes, in text.

    Returns:
        The process; the caller waits for it and closes its pipes, best with `with` and `communicate(timeout=...)`.
    """
    with python_for_others() as (executable, variables, fds):
        return subprocess.Popen(
            [executable, *arguments],
            user=uid,
            group=uid,
            extra_groups=[],
            cwd="/",
            env={**variables, **(env or {})},
            pass_fds=(*fds, *options.pop("pass_fds", ())),
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                **options,
            },
        )
