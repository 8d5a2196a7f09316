"""Other processes for the tests of socket files: they hold something until they are told to end, or are killed."""

from __future__ import annotations

import fcntl
import os
import pickle
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

TYPES = ("stream", "seqpacket", "datagram")


def import_path() -> dict[str, str]:
    """Return the environment in which a fresh Python imports what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


class Child:
    """A forked process that calls `hold(*args)`, reports, and keeps what that returned until it is told to end.

    Args:
        hold: What to call; a pair `(answer, kept)` or anything else, which is kept.
        uid: The user and group to become first.
        umask: The umask to set first.
    """

    def __init__(self, hold: Callable[..., Any], *args: Any, uid: int | None = None, umask: int | None = None) -> None:
        reports, report = os.pipe()
        control, self._control = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of every fork beside threads
            self.pid = os.fork()
        if self.pid == 0:
            os.close(self._control)
            os.close(reports)
            _run(hold, args, report, control, uid, umask)
        os.close(control)
        os.close(report)
        self._reports = reports
        self._is_reaped = False
        try:
            self.answer = self._read(15.0)
        except BaseException:
            self.kill()
            raise

    def _read(self, timeout: float) -> Any:
        data = b""
        while select.select([self._reports], [], [], timeout)[0]:
            more = os.read(self._reports, 65536)
            data += more
            try:
                succeeded, value = pickle.loads(data)
            except (EOFError, pickle.UnpicklingError):
                if not more:
                    break
                continue
            if succeeded:
                return value
            raise value if isinstance(value, BaseException) else RuntimeError(value)
        raise RuntimeError("the child died or hung before it reported")

    def finish(self) -> int:
        """Have the child call `close()` on what it keeps and exit; return its exit code."""
        os.write(self._control, b"x")
        _, status = os.waitpid(self.pid, 0)
        self._is_reaped = True
        self._close()
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """End the child with SIGKILL; more than once is fine."""
        if not self._is_reaped:
            self._is_reaped = True
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._close()

    def _close(self) -> None:
        os.close(self._control)
        os.close(self._reports)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def _run(
    hold: Callable[..., Any], args: tuple[Any, ...], report: int, control: int, uid: int | None, umask: int | None
) -> None:
    code = 1
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
        # Out of the way of what a test places at 3, 4, ...
        report, control = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200) for fd in (report, control))
        if umask is not None:
            os.umask(umask)
        if uid is not None:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        kept = hold(*args)
        answer = None
        if isinstance(kept, tuple):
            answer, kept = kept
        os.write(report, pickle.dumps((True, answer)))
        if os.read(control, 1) and kept is not None:
            kept.close()
        code = 0
    except BaseException as error:
        try:
            message = pickle.dumps((False, error))
            pickle.loads(message)
        except Exception:
            message = pickle.dumps((False, "".join(traceback.format_exception(error))))
        os.write(report, message)
    finally:
        os._exit(code)
