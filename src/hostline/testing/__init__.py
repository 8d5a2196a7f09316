"""What tests of services need, for pytest and for any other runner.

With pytest installed the fixtures are there by themselves: `hostline.testing.plugin` is registered as a plugin, and
`pytest --fixtures` lists them. They are made of the classes here, which need no pytest.
"""

from hostline.testing.leaks import Snapshot, open_descriptors
from hostline.testing.peers import FullBacklog, Stall, StalledPeer, foreign_holder, make_ordinary_file, make_stale_file
from hostline.testing.serving import Serve, ServeOptions, ServiceThread, loop_factory

__all__ = [
    "FullBacklog",
    "Serve",
    "ServeOptions",
    "ServiceThread",
    "Snapshot",
    "Stall",
    "StalledPeer",
    "foreign_holder",
    "loop_factory",
    "make_ordinary_file",
    "make_stale_file",
    "open_descriptors",
]
