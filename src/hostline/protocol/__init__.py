"""Decisions without I/O: what a connection may do next, which call runs, which pooled connection serves.

Nothing here waits, reads a clock or touches a socket; the time is an argument, and what is to be done is returned.
"""
