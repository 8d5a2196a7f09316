"""Pyro5: a Daemon with `unixsocket`, and a Proxy."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import Pyro5.api
import Pyro5.errors

from hostline.conformance.subjects import run_subject


class _Service:
    @Pyro5.api.expose  # type: ignore[untyped-decorator]
    def pid(self) -> str:
        return str(os.getpid())


def serve(path: str, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM leaves the `with`."""
    with Pyro5.api.Daemon(unixsocket=path) as daemon:
        daemon.register(_Service, "probe")
        ready()
        daemon.requestLoop()


def ask(path: str, timeout: float) -> str:
    """Make one call."""
    with Pyro5.api.Proxy(f"PYRO:probe@./u:{path}") as proxy:
        proxy._pyroTimeout = timeout
        return str(proxy.pid())


def connect(path: str, timeout: float) -> int | None:
    """Bind a proxy with a timeout."""
    proxy = Pyro5.api.Proxy(f"PYRO:probe@./u:{path}")
    proxy._pyroTimeout = timeout
    proxy._pyroBind()
    return None


def is_timeout(error: BaseException) -> bool:
    """Recognise Pyro5's own error."""
    return isinstance(error, Pyro5.errors.TimeoutError)


if __name__ == "__main__":
    sys.exit(run_subject(sys.modules[__name__], sys.argv[1:]))
