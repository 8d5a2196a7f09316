"""Its client: `nc -U ./first.sock` or `hostline cat ./first.sock` does as well.

Prints:

    Message received
"""

from __future__ import annotations

import hostline

with hostline.connect_socket("./first.sock", timeout=5.0) as connection:
    connection.send(b"hello")
    print(connection.recv(timeout=5.0).decode(), end="")
