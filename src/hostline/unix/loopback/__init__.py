"""Loopback TCP where Unix sockets are missing: the address, the file with port and key, the sockets. No protocol."""
