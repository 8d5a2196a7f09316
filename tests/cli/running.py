"""The command as its users start it: a process, with pipes or with a terminal of a known width."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tests.leaks import wait_until

COMMAND = (sys.executable, "-W", "error", "-m", "hostline")
PATIENCE = 15.0

_numbers = itertools.count()


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment in which a fresh Python imports what this one does, and no width or colour is forced."""
    forced = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "PYTHONIOENCODING")
    variables = {name: value for name, value in os.environ.items() if name not in forced}
    variables["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    return {**variables, "TERM": "xterm-256color", "PYTHONUTF8": "1", **(more or {})}


def abstract_name() -> str:
    """Return an abstract address that no other test uses."""
    return f"unix:@hostline-test-{os.getpid()}-{next(_numbers)}"


def accepts(path: Path) -> bool:
    """Say whether a server listens at a path; a socket file is there a moment before."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return False
        return True


def hostline(*arguments: object, input: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end with pipes.

    Args:
        arguments: What stands behind `hostline`.
        input: Its standard input.
        options: For `subprocess.run`; `env` is added to the environment.
    """
    more = options.pop("env", None)
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=input,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        env=environment(more),
        **options,
    )


def redirected(redirection: str, *arguments: object, timeout: float = PATIENCE) -> subprocess.CompletedProcess[bytes]:
    """Run the command with its standard streams as a shell redirects them, such as `>&-` or `>/dev/full`.

    Args:
        redirection: In the shell's words; what it leaves alone is a pipe, and the input empty.
        arguments: What stands behind `hostline`.
        timeout: Seconds until it must have ended.
    """
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout,
        check=False,
        env=environment(),
    )


class Running:
    """A command that runs beside the test; what it prints goes into files, so that it never waits for a reader.

    Args:
        arguments: What stands behind `hostline`.
        ready: What it writes to standard error when it is ready; None waits for nothing.
        options: For `subprocess.Popen`; `env` is added to the environment.
    """

    def __init__(self, *arguments: object, ready: str | None = None, **options: Any) -> None:
        self._out: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._err: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as above
        more = options.pop("env", None)
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=options.pop("stdout", self._out),
            stderr=self._err,
            env=environment(more),
            **options,
        )
        try:
            if ready is not None:
                self.wait_for(ready)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return _read(self._out).decode()

    @property
    def raw_out(self) -> bytes:
        """The same as bytes."""
        return _read(self._out)

    @property
    def err(self) -> str:
        """What it has written to standard error so far."""
        return _read(self._err).decode()

    def wait_for(self, text: str) -> None:
        """Wait until it has printed a text, on either stream."""
        wait_until(lambda: text in self.out + self.err or self.process.poll() is not None, PATIENCE)
        assert text in self.out + self.err

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self._out.close()
        self._err.close()


def _read(file: IO[bytes]) -> bytes:
    # pread: the position is the child's, who writes at it.
    return os.pread(file.fileno(), 1 << 24, 0)


def on_terminal(
    *arguments: object, columns: int = 100, typed: bytes = b"", stdin: IO[bytes] | None = None, **options: Any
) -> tuple[int, str]:
    """Run the command to its end on a terminal; return its exit code and what a screen would be sent.

    Args:
        arguments: What stands behind `hostline`.
        columns: How wide the terminal is.
        typed: What is typed, without echo; Ctrl-D (`\\x04`) at the start of a line ends the input.
        stdin: Standard input, instead of the terminal.
        options: For `subprocess.Popen`.
    """
    master, slave = pty.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        attributes = termios.tcgetattr(slave)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=slave if stdin is None else stdin,
            stdout=slave,
            stderr=slave,
            env=environment(),
            **options,
        )
    finally:
        os.close(slave)
    try:
        os.write(master, typed)
        shown = _read_terminal(master, time.monotonic() + PATIENCE)
        return process.wait(PATIENCE), shown.decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    finally:
        process.kill()
        process.wait()
        os.close(master)


def _read_terminal(master: int, deadline: float) -> bytes:
    shown = b""
    while select.select([master], [], [], max(0.0, deadline - time.monotonic()))[0]:
        try:
            data = os.read(master, 65536)
        except OSError as error:
            if error.errno == errno.EIO:  # nobody has the other end open any more
                return shown
            raise
        shown += data
    raise TimeoutError(f"the command did not end; it showed {shown!r}")


def plain(shown: str) -> str:
    """Return what a screen was sent without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)
