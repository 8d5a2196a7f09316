"""What a service promises, as data: richer schemas, typed modules written from them, and whether two of them agree.

Knows descriptions only: no live service, no socket. Everything that a description holds was written by a peer.
"""
