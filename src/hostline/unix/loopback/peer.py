"""Who is on the other side of loopback TCP: somebody who has proved the key, and of whom nothing else is known."""

from __future__ import annotations

from typing import ClassVar, NoReturn

from hostline.errors import NoCredentialsError
from hostline.unix.credentials import Peer

__all__ = ["KeyPeer"]

_CREDENTIALS = ("gid", "groups", "pid", "uid")


class KeyPeer(Peer):
    """Stand for a holder of the key: whoever can read the key file, which is the server's user and root.

    Reading `uid`, `gid`, `groups` or `pid` raises `NoCredentialsError`. A made-up number would be worse: some rule
    somewhere would let it pass. A handler that reads one is answered for with `MethodDeniedError`.
    """

    __slots__ = ()

    has_credentials: ClassVar[bool] = False
    account: ClassVar[int] = -1  # one for all: what they prove is the same

    def __init__(self) -> None:
        self._pidfd = -1
        self._sock = None

    def __getattr__(self, name: str) -> NoReturn:
        # Called for what was never set: the four slots of the numbers.
        if name in _CREDENTIALS:
            raise NoCredentialsError(f"the peer's {name} is not known: {self.describe()} says nothing but that")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def describe(self) -> str:
        """Return words for a log line."""
        return "a holder of the tcp: key"

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return "KeyPeer()"
