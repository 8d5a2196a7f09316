"""trio: it has a client for Unix sockets and no listener."""

from __future__ import annotations

import os
import sys

import trio

from hostline.conformance.subjects import run_subject


async def _connect(path: str, timeout: float) -> int:
    with trio.fail_after(timeout):
        stream = await trio.open_unix_socket(path)
        return os.dup(stream.socket.fileno())


def connect(path: str, timeout: float) -> int | None:
    """Connect inside `fail_after`."""
    return int(trio.run(_connect, path, timeout))


def is_timeout(error: BaseException) -> bool:
    """Recognise trio's own error."""
    return isinstance(error, trio.TooSlowError)


if __name__ == "__main__":
    sys.exit(run_subject(sys.modules[__name__], sys.argv[1:]))
