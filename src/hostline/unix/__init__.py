"""The kernel's side of a Unix socket: addresses, socket files, sockets, credentials, descriptors, activation.

Knows system calls and what they do to each other. Knows no frames, no calls and no event loop.
"""
