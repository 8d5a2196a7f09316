"""The address of a service on loopback TCP: how it is written, and where its key file lies.

Knows the spelling only: reads no file, resolves no host name, and knows no host but this one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from hostline.errors import AddressError
from hostline.unix.oserrors import printable

__all__ = ["HOSTS", "LoopbackAddress", "endpoint_text", "parse_loopback"]

# The hosts that a port may be on. Not a name: what a resolver answers is not this program's decision. Not the rest of
# 127.0.0.0/8, which only Linux has.
HOSTS = ("127.0.0.1", "::1")

_PORT = re.compile(r"(?:\[(?P<host6>[^\[\]/]*)\]|(?P<host>[^\[\]/:]*)):(?P<port>[^/:]*)")
_LOCALHOST = {"localhost": "127.0.0.1"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_FORMS = "write tcp:NAME, tcp:PATH with a slash in it, or tcp:127.0.0.1:PORT"


@dataclass(frozen=True, slots=True)
class LoopbackAddress:
    """Name a service on loopback TCP by the file that holds its port and its key.

    Attributes:
        path: The key file's path.
        host: `127.0.0.1` or `::1`.
        port: The port where the address names one; None where the server takes a free one, which the file tells.
    """

    path: str
    host: str = "127.0.0.1"
    port: int | None = None

    @property
    def text(self) -> str:
        """How the address is written."""
        return f"tcp:{self.path}" if self.port is None else f"tcp:{endpoint_text(self.host, self.port)}"

    def __str__(self) -> str:
        return printable(self.text)


def endpoint_text(host: str, port: int) -> str:
    """Return a host and a port as one text: `127.0.0.1:8123`, `[::1]:8123`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_loopback(
    address: str, rest: str, named: Callable[[str], str], pathed: Callable[[str], str]
) -> LoopbackAddress:
    """Return what stands behind `tcp:`.

    Args:
        address: The whole address, for errors.
        rest: What stands behind `tcp:`; two slashes before a host or an absolute path are taken off.
        named: Returns the path of a file name in the runtime directory.
        pathed: Checks a path and returns it.

    Raises:
        AddressError: It is no path, no name and no port of this host.
    """
    rest = rest.removeprefix("//")
    if "/" in rest or rest.startswith("."):
        return LoopbackAddress(pathed(rest))
    found = _PORT.fullmatch(rest)
    if found:
        host = found["host"] if found["host6"] is None else found["host6"]
        return _on_port(address, _LOCALHOST.get(host.lower(), host), found["port"], named)
    if not _NAME.fullmatch(rest) or re.fullmatch(r"[0-9.]+", rest):
        raise AddressError(address, f"tcp: needs a place for port and key; {_FORMS}")
    if rest.endswith((".sock", ".tcp")):
        raise AddressError(
            address, f"is ambiguous: write tcp:./{rest} for a file here, or tcp:{rest.rpartition('.')[0]}"
        )
    return LoopbackAddress(named(f"{rest}.tcp"))


def _on_port(address: str, host: str, port: str, named: Callable[[str], str]) -> LoopbackAddress:
    if host not in HOSTS:
        reason = (
            f"host {host!r} is not this host's loopback (127.0.0.1, [::1] or localhost): the key protects "
            "against other users of this host, and nothing would be encrypted on a network"
        )
        raise AddressError(address, reason)
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) <= 65535):
        raise AddressError(address, f"port {port!r} must be 1 to 65535; {_FORMS} (the first two take a free port)")
    number = int(port)
    # The two families' ports are different ports, which different services may have.
    name = f"tcp-{number}.key" if host == HOSTS[0] else f"tcp6-{number}.key"
    return LoopbackAddress(named(name), host, number)
