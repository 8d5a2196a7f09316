"""The first server of many an article on Unix sockets: read a message, answer it, close.

What differs from the usual version: nothing is deleted before the start, a second start is refused, the file is 0600,
and it is gone when the program ends.
"""

from __future__ import annotations

import contextlib
import signal

import hostline

signal.signal(signal.SIGTERM, signal.default_int_handler)

with contextlib.suppress(KeyboardInterrupt), hostline.listen("./first.sock") as listener:
    for connection in listener:
        with connection:
            message = connection.recv(1024, timeout=5.0)
            print("received:", message, "from uid", connection.peer.uid, flush=True)
            connection.send(b"Message received\n")
