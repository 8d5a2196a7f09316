"""`hostline path`: what an address means here."""

from __future__ import annotations

from hostline.cli.options import Address
from hostline.cli.terminal import escape, is_terminal, write_bytes

__all__ = ["EXAMPLES", "path"]

EXAMPLES = """\b
Examples:
  hostline path payments                  /run/user/1000/hostline/payments.sock
  nc -U "$(hostline path payments)"       for programs that know paths only
"""


def path(address: Address) -> None:
    """Print where an address leads.

    For a bare name that is a path, which programs other than hostline can use. Nothing is made or opened. An
    abstract name is printed as unix:@NAME. For a tcp: address it is the path of its key file.

    Bare names live in $HOSTLINE_RUNTIME_DIR; unless that is set, in /run/hostline for root, whatever
    XDG_RUNTIME_DIR says, and for everybody else in hostline below $XDG_RUNTIME_DIR or /run/user/UID.
    """
    import os
    import sys

    from hostline.unix.address import LoopbackAddress, PathAddress, parse_address

    found = parse_address(address)
    text = found.path if isinstance(found, PathAddress | LoopbackAddress) else found.text
    if is_terminal(sys.stdout):
        print(escape(text, keep=""))
    else:
        write_bytes(os.fsencode(text) + b"\n")
