"""The three socket types side by side: what happens to the borders between messages.

Prints:

    stream    b'onetwo'
    seqpacket b'one', b'two', b''
    datagram  b'one', b'two', b''
"""

from __future__ import annotations

import hostline

left, right = hostline.socketpair("stream")
with left, right:
    left.send(b"one")
    left.send(b"two")
    print("stream   ", right.recv())

left, right = hostline.socketpair("seqpacket")
with left, right:
    for packet in (b"one", b"two", b""):
        left.send(packet)
    # An empty packet is a message like any other; only the end of the connection raises EndOfStream.
    print("seqpacket", ", ".join(repr(right.recv()) for _ in range(3)))

first, second = hostline.socketpair("datagram")
with first, second:
    for datagram in (b"one", b"two", b""):
        first.send(datagram)
    print("datagram ", ", ".join(repr(second.recv()) for _ in range(3)))
