"""Hand an open file to another process: the receiver needs neither its path nor the right to open it.

Prints:

    received a regular file of 15 bytes: the day's books
"""

from __future__ import annotations

import os
import tempfile

import hostline

ours, theirs = hostline.socketpair("seqpacket", max_fds=1)

child = os.fork()
if child == 0:
    # The other process. Without max_fds=1 no descriptor would be let in at all.
    ours.close()
    data, fds = theirs.recv_fds(timeout=5.0)
    with fds[0].open("rb") as file:  # takes the descriptor over, and closes it
        content = file.read()
    print(f"received a {data.decode()} file of {len(content)} bytes: {content.decode()}", flush=True)
    os._exit(0)

theirs.close()
with tempfile.TemporaryFile() as books:
    books.write(b"the day's books")
    books.seek(0)
    ours.send(b"regular", fds=[books])
ours.close()
os.waitpid(child, 0)
