"""A service in two processes on one socket.

`hostline serve workers_server:primes --workers 2` does the same, and reads this file anew at each SIGHUP.
"""

from __future__ import annotations

import os

import hostline

primes = hostline.Service("primes")


@primes.method(idempotent=True)
def count(below: int) -> tuple[int, int]:
    """Count the primes below a number, which is work for a processor; also return the process that did it."""
    found = sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, below))
    return found, os.getpid()


if __name__ == "__main__":
    primes.run(workers=2)
