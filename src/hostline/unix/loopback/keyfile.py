"""The file that says on which port a service listens and holds the key that both sides prove: its text, and reading it.

What is read is trusted only from a file that nobody but its owner can have written or read: see `read_key_file`.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from dataclasses import dataclass, field

from hostline.errors import NotASocketError, PeerRefusedError
from hostline.limits import MAX_KEY_FILE_SIZE
from hostline.unix.credentials import Peer, Peers
from hostline.unix.loopback.address import HOSTS, LoopbackAddress, endpoint_text
from hostline.unix.oserrors import file_kind, printable, translate
from hostline.unix.passing.descriptors import Fd

__all__ = ["HEADER", "KeyFile", "new_key_file", "read_key_file"]

# The first line. A file that does not begin with it is not ours, and is never replaced.
HEADER = b"hostline tcp 1\n"

_TEXT = re.compile(
    rb"hostline tcp 1\nhost (?P<host>[0-9a-f.:]{3,39})\nport (?P<port>[1-9][0-9]{0,4})\nkey (?P<key>[0-9a-f]{64})\n"
    rb"pid (?P<pid>[0-9]{1,10})\nstart (?P<start>[0-9a-f]{32})\n"
)

_REASONS = {
    errno.EACCES: "this user may not read the key file",
    errno.ELOOP: "the key file is a symbolic link, which is not followed",
}

# No rule can name it.
_NO_ID = -1


@dataclass(frozen=True, slots=True)
class KeyFile:
    """Hold what a key file says.

    Attributes:
        host: Where the server listens: `127.0.0.1` or `::1`.
        port: Its port.
        key: The 32 bytes that both sides prove; never shown.
        pid: The server's process id, for people.
        start: 16 bytes that differ with every start of the server.
    """

    host: str
    port: int
    key: bytes = field(repr=False)
    pid: int
    start: bytes

    @property
    def transport(self) -> bytes:
        """What the proofs are bound to: this start of the server, and its port."""
        return self.start + endpoint_text(self.host, self.port).encode()

    def encode(self) -> bytes:
        """Return the file's text."""
        lines = f"host {self.host}\nport {self.port}\nkey {self.key.hex()}\npid {self.pid}\nstart {self.start.hex()}\n"
        return HEADER + lines.encode()


def new_key_file(host: str, port: int) -> KeyFile:
    """Return the key file of a server that starts now, with a new key."""
    return KeyFile(host, port, secrets.token_bytes(32), os.getpid(), secrets.token_bytes(16))


def decode_key_file(data: bytes) -> KeyFile | None:
    """Return what a key file's text says, or None: it is no key file."""
    found = _TEXT.fullmatch(data)
    if not found:
        return None
    host, port = found["host"].decode(), int(found["port"])
    if host not in HOSTS or port > 65535:
        return None
    key, start = (bytes.fromhex(found[name].decode()) for name in ("key", "start"))
    return KeyFile(host, port, key, int(found["pid"]), start)


def read_key_file(address: LoopbackAddress, server: Peers) -> KeyFile:
    """Read a service's key file, if nobody but its owner can have written or read it.

    Its owner is the one identity that loopback TCP has: whoever proves the key runs as that user, or as root.

    Args:
        address: Whose.
        server: Which owners are trusted.

    Raises:
        AddressNotFoundError: There is no such file.
        AccessDeniedError: This user may not read it.
        NotASocketError: Something else than a key file is there.
        PeerRefusedError: It belongs to somebody who is not trusted, or others may read or write it.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        with Fd(os.open(address.path, flags)) as fd:
            status = os.fstat(fd.fileno())
            data = os.read(fd.fileno(), MAX_KEY_FILE_SIZE + 1) if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.EISDIR):  # what open says of a socket, and of a directory
            raise _no_key_file(address, "something else than a file") from error
        failed = translate(error, "connect", "stream", address.text)
        failed.reason = _REASONS.get(error.errno or 0, failed.reason)
        raise failed from error
    if not data.startswith(HEADER):
        raise _no_key_file(address, file_kind(status.st_mode))
    _check_owner(address, status, server)
    found = decode_key_file(data)
    if found is None or (address.port is not None and (found.host, found.port) != (address.host, address.port)):
        reason = f"the key file {printable(address.path)} is damaged, or not this port's"
        raise NotASocketError("connect", "stream", str(address), None, reason)
    return found


def _no_key_file(address: LoopbackAddress, what: str) -> NotASocketError:
    reason = f"{printable(address.path)} is {what}, and no key file of hostline's"
    return NotASocketError("connect", "stream", str(address), None, reason)


def _check_owner(address: LoopbackAddress, status: os.stat_result, server: Peers) -> None:
    # Members of a group cannot be told from the file: any of its owner's groups may stand there.
    refusal = server.refusal(Peer(0, status.st_uid, _NO_ID))
    if refusal is not None:
        refusal += "" if not server.gids else "; by group a server cannot be known over tcp:"
    elif status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        refusal = f"its mode {mode:04o} lets others at the key, who could pose as the server; run chmod 0600 on it"
    if refusal is not None:
        path = printable(address.path)
        raise PeerRefusedError(f"the key file {path} is not trusted, and nothing was sent to its server: {refusal}")
