"""The blocking face: raw sockets, and the client of services. Its twin with the same names is `hostline.aio`.

There is no blocking server: `Service.run()` drives the one in `hostline.aio`.
"""

from hostline.sync.batch import Batch
from hostline.sync.channels.opening import Channel, ChannelListener, channelpair, connect_channel, listen_channel
from hostline.sync.client import Line, connect
from hostline.sync.datagrams import Datagrams
from hostline.sync.interface import Interface
from hostline.sync.sockets import Connection, Listener, connect_socket, listen, socketpair
from hostline.sync.streams import Stream

__all__ = [
    "Batch",
    "Channel",
    "ChannelListener",
    "Connection",
    "Datagrams",
    "Interface",
    "Line",
    "Listener",
    "Stream",
    "channelpair",
    "connect",
    "connect_channel",
    "connect_socket",
    "listen",
    "listen_channel",
    "socketpair",
]
