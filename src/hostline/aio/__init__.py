"""The asyncio face: raw sockets, the client of services, and the server. It runs on asyncio's loop and on uvloop.

Its blocking twin, with the same names, is `hostline.sync`.
"""

from hostline.aio.batch import Batch
from hostline.aio.channels.opening import Channel, ChannelListener, channelpair, connect_channel, listen_channel
from hostline.aio.client import Line, connect
from hostline.aio.datagrams import Datagrams
from hostline.aio.interface import Interface
from hostline.aio.serving.server import Server
from hostline.aio.serving.service import Service
from hostline.aio.sockets import Connection, Listener, connect_socket, listen, socketpair
from hostline.aio.streams import Stream

__all__ = [
    "Batch",
    "Channel",
    "ChannelListener",
    "Connection",
    "Datagrams",
    "Interface",
    "Line",
    "Listener",
    "Server",
    "Service",
    "Stream",
    "channelpair",
    "connect",
    "connect_channel",
    "connect_socket",
    "listen",
    "listen_channel",
    "socketpair",
]
