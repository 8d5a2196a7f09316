"""Unix domain sockets done right: typed calls, safe socket files, honest connects, identity and descriptors.

The blocking face is here by its bare names; the asyncio face, with the same names, is `hostline.aio`.
"""

# First, for it decides how all the others are imported.
from hostline._core import is_compiled  # isort: skip

from hostline import aio, errors, sync
from hostline._version import __version__
from hostline.aio.serving.service import Service
from hostline.aio.serving.subscriptions import Published, Subscription
from hostline.aio.serving.topics import Topic, TopicStats
from hostline.errors import *  # noqa: F403 - the whole error tree, as errors.__all__ names it
from hostline.rpc.attachments import fd_kinds
from hostline.rpc.batch_runs import BatchCall
from hostline.rpc.context import Context
from hostline.rpc.stubs import raises
from hostline.sync.batch import Batch
from hostline.sync.channels.opening import Channel, ChannelListener, channelpair, connect_channel, listen_channel
from hostline.sync.client import Line, connect
from hostline.sync.datagrams import Datagrams
from hostline.sync.interface import Interface
from hostline.sync.sockets import Connection, Listener, connect_socket, listen, socketpair
from hostline.sync.streams import Stream
from hostline.unix.address import unique_path
from hostline.unix.credentials import Peer, Peers
from hostline.unix.passing.descriptors import Fd
from hostline.unix.passing.memory import Buffer

__all__ = [
    "Batch",
    "BatchCall",
    "Buffer",
    "Channel",
    "ChannelListener",
    "Connection",
    "Context",
    "Datagrams",
    "Fd",
    "Interface",
    "Line",
    "Listener",
    "Peer",
    "Peers",
    "Published",
    "Service",
    "Stream",
    "Subscription",
    "Topic",
    "TopicStats",
    "__version__",
    "aio",
    "channelpair",
    "connect",
    "connect_channel",
    "connect_socket",
    "fd_kinds",
    "is_compiled",
    "listen",
    "listen_channel",
    "raises",
    "socketpair",
    "sync",
    "unique_path",
]
__all__ += errors.__all__
