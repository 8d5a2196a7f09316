"""The fields of a server's log lines, beside their sentences: what a JSON formatter shows and a search looks for."""

from __future__ import annotations

from typing import Any, Final

from hostline.unix.credentials import Peer

__all__ = ["ACCESS_LOGGER", "event"]

# The logger of the line for each finished call.
ACCESS_LOGGER: Final = "hostline.access"


def event(name: str, peer: Peer | None = None, **fields: Any) -> dict[str, Any]:
    """Return what belongs into `extra=` of a log call.

    Args:
        name: What happened, in snake case: the same for every line of its kind, whatever its words.
        peer: Whom it is about; its `peer_uid` and `peer_pid` are among the fields where the kernel told them.
        **fields: Further facts: `service`, `address`, `method`, `call_id`, `reference`, `reason`, ...
    """
    told: dict[str, Any] = {"event": name, **fields}
    if peer is not None and peer.has_credentials:
        told["peer_uid"], told["peer_pid"] = peer.uid, peer.pid
    return told
