"""Socket pairs for a Python that is made to look as if it had no Unix sockets, whose own would need them."""

from __future__ import annotations

import socket
from typing import Any


def socketpair(*_: Any) -> tuple[socket.socket, socket.socket]:
    """Return two connected TCP sockets, as Python makes them where there are no Unix sockets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _address = listener.accept()
    return one, other
