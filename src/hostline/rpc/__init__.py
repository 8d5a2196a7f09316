"""Services and their callers without I/O: methods, contexts, how a call becomes a result or an error, typed stubs.

This floor knows frames and identities; handlers run in the faces above, which own threads and loops.
"""
