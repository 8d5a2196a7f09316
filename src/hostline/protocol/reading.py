"""How much to ask the kernel for in one read: little where little comes, a whole `READ_SIZE` where much does."""

from __future__ import annotations

from hostline.limits import LEAST_READ_SIZE, READ_SIZE

__all__ = ["next_read_size"]


def next_read_size(asked: int, came: int) -> int:
    """Return how many bytes to ask for in the next read.

    Args:
        asked: How many the last one asked for.
        came: How many it gave.
    """
    if came == asked:
        return min(4 * asked, READ_SIZE)
    if came < asked // 16:
        return max(asked // 2, LEAST_READ_SIZE)
    return asked
