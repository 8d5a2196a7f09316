"""A service where Unix sockets are missing: loopback TCP, with a key that only this user can read."""

from __future__ import annotations

import hostline

payments = hostline.Service("payments")


@payments.method
def charge(quantity: int, price: float) -> float:
    """Return the total."""
    return quantity * price


if __name__ == "__main__":
    payments.run("tcp:payments")
