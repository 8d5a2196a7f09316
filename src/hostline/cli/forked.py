"""Load the service of `MODULE:SERVICE` in a process of its own, so that the one which forks workers never imports it.

A module that was imported once stays as it was; what a worker forked later is to read again must not be there yet.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from hostline.cli.exits import CommandError, ExitCode, report
from hostline.cli.loading import load_service

if TYPE_CHECKING:
    from hostline.aio import Service

__all__ = ["loaded_here", "name_in_child"]


def loaded_here(target: str) -> Service:
    """Return the service that a target names; what is wrong with it is printed, and ends this process.

    Raises:
        SystemExit: It cannot be loaded.
    """
    try:
        return load_service(target)
    except CommandError as error:
        raise SystemExit(int(report(error))) from error


def name_in_child(target: str) -> str:
    """Return the name of the service that a target names, without importing it here.

    Raises:
        SystemExit: It cannot be loaded; the reason has been printed, as if it had been loaded here.
    """
    sys.stdout.flush()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _tell_name(target, writer)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        name = pipe.readline().strip()  # a line: what the module forked may hold the pipe open for as long as it likes
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # whoever started us ignores SIGCHLD, and the code is lost
        code = 0 if name else 1
    if code > 0:
        raise SystemExit(code)
    if code < 0 or not name:
        raise CommandError(f"{target} could not be imported: the process that tried ended early", ExitCode.FAILURE)
    return name


def _tell_name(target: str, writer: int) -> NoReturn:
    code = 1
    try:
        os.write(writer, f"{loaded_here(target).name}\n".encode())
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
