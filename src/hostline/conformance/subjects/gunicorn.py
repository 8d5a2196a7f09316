"""gunicorn as a custom application, one worker, its own settings otherwise. It brings no client."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from gunicorn.app.base import BaseApplication

from hostline.conformance.subjects import run_subject


def _application(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]


class _Application(BaseApplication):  # type: ignore[misc]
    def __init__(self, path: str, ready: Callable[[], None]) -> None:
        self._path = path
        self._ready = ready
        super().__init__()

    def load_config(self) -> None:
        self.cfg.set("bind", f"unix:{self._path}")
        self.cfg.set("when_ready", lambda _server: self._ready())
        # Its second socket, for `gunicornc`, is none of this table's business.
        if "control_socket_disable" in self.cfg.settings:
            self.cfg.set("control_socket_disable", True)

    def load(self) -> Callable[..., Iterable[bytes]]:
        return _application


def serve(path: str, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM, which gunicorn handles itself."""
    _Application(path, ready).run()


if __name__ == "__main__":
    sys.exit(run_subject(sys.modules[__name__], sys.argv[1:]))
