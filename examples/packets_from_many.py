"""Datagrams with the sender's credentials, for the article's challenge: its pool server on SOCK_DGRAM.

Prints:

    from pid of this program: True, uid known: True, says b'job 1'
    reply: b'done 1'
"""

from __future__ import annotations

import os

import hostline

with (
    hostline.listen("./jobs.sock", "datagram", credentials=True) as jobs,
    hostline.listen("./worker.sock", "datagram") as worker,
):
    worker.send(b"job 1", to="./jobs.sock")
    job = jobs.recv_from(timeout=5.0)
    is_us = job.peer is not None and job.peer.pid == os.getpid()
    print(f"from pid of this program: {is_us}, uid known: {job.peer is not None}, says {job.data!r}")
    jobs.send(b"done 1", to=job.sender)
    print("reply:", worker.recv(timeout=5.0))
