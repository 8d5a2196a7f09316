"""The blocking face: raw sockets, and the client of services. Its twin with the same names is `hostline.aio`.

There is no blocking server: `Service.run()` drives the one in `hostline.aio`.
"""

from hostline.sync.client import Line, connect
from hostline.sync.datagrams import Datagrams
from hostline.sync.interface import Interface
from hostline.sync.sockets import Connection, Listener, connect_socket, listen, socketpair

__all__ = [
    "Connection",
    "Datagrams",
    "Interface",
    "Line",
    "Listener",
    "connect",
    "connect_socket",
    "listen",
    "socketpair",
]
