"""Run a function as another user, in a forked child: what only root can show.

The child gives its rights up before anything else and imports nothing afterwards, because the other user may not be
able to read this program's files.
"""

from __future__ import annotations

import json
import os
import select
import signal
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, Self

from hostline.clock import Deadline

__all__ = ["NOBODY", "OtherUser"]

# The user with no rights at all, on nearly every system.
NOBODY = 65534


class OtherUser:
    """Run a function as uid 65534.

    Args:
        function: What to run; it returns what JSON can hold.

    Raises:
        OSError: No process can be started.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        readable, writable = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 warns of a fork beside threads: the child takes no lock that they could hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            _be_nobody(function, readable, writable)
        os.close(writable)
        self._results = readable
        self._is_reaped = False

    def result(self, timeout: float = 10.0) -> Any:
        """Return what the function returned.

        Raises:
            RuntimeError: It raised something, with its text; or it did not answer in `timeout` seconds.
        """
        deadline = Deadline.after(timeout)
        answer = b""
        while True:
            if not select.select([self._results], [], [], deadline.remaining())[0]:
                raise RuntimeError(f"the child running as uid {NOBODY} did not answer within {timeout:g} seconds")
            data = os.read(self._results, 65536)
            if not data:
                break
            answer += data
        outcome = json.loads(answer or b'{"error": "it died"}')
        if "error" in outcome:
            raise RuntimeError(f"the child running as uid {NOBODY} failed: {outcome['error']}")
        return outcome["value"]

    def close(self) -> None:
        """End the child and wait for it; more than once is fine."""
        if not self._is_reaped:
            self._is_reaped = True
            os.kill(self.pid, signal.SIGKILL)  # it is not reaped yet, so that the number is still its own
            os.waitpid(self.pid, 0)
            os.close(self._results)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _be_nobody(function: Callable[[], Any], readable: int, writable: int) -> NoReturn:
    """Give up every right, run the function, send its result, and never return into the demo."""
    try:
        os.close(readable)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        outcome: dict[str, Any] = {"value": function()}
    except BaseException as error:  # whatever it is, it must not leave this function
        outcome = {"error": f"{type(error).__name__}: {error}"}
    try:
        os.write(writable, json.dumps(outcome).encode())
    finally:
        os._exit(0)
