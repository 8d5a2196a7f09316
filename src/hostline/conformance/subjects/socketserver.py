"""The standard library's `socketserver`; its documentation's client is a plain socket, which has a row of its own."""

from __future__ import annotations

import os
import socket
import socketserver
import sys
from collections.abc import Callable

from hostline.conformance.subjects import run_subject


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(str(os.getpid()).encode())


def serve(path: str, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM leaves the `with`, which calls `server_close`."""
    with socketserver.UnixStreamServer(path, _Handler) as server:
        ready()
        server.serve_forever()


def ask(path: str, timeout: float) -> str:
    """Connect and read."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        client.connect(path)
        return client.recv(64).decode()


if __name__ == "__main__":
    sys.exit(run_subject(sys.modules[__name__], sys.argv[1:]))
