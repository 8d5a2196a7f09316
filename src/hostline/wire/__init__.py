"""Bytes and nothing else: frames, the encoding of what they carry, and the schema of a method.

This floor does no I/O, keeps no time and knows no sockets.
"""
