"""What the figures of a run say: quantiles, medians, ratios. Arithmetic only."""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Sequence

from hostline.bench.results import Spread

__all__ = ["median_ratio", "quantile", "spread_of"]


def quantile(ordered: Sequence[int], share: float) -> int:
    """Return the value below which `share` of an ordered sequence lies."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def spread_of(nanoseconds: array[int]) -> Spread | None:
    """Return the quantiles of some times in microseconds, or None for none."""
    if not nanoseconds:
        return None
    ordered = sorted(nanoseconds)
    p50, p90, p99, p999 = (quantile(ordered, share) / 1000 for share in (0.5, 0.9, 0.99, 0.999))
    return Spread(p50, p90, p99, p999, len(ordered))


def median_ratio(rounds: Sequence[float], reference: Sequence[float], unit: str) -> float | None:
    """Return how many times the reference a subject took, the median over the rounds of the round's own ratio.

    Args:
        rounds: The subject's figure of each round.
        reference: The reference's figures of the same rounds.
        unit: "1/s" is turned over, so that above 1 is worse in every unit.
    """
    pairs = [
        (theirs, mine) if unit == "1/s" else (mine, theirs) for mine, theirs in zip(rounds, reference, strict=True)
    ]
    ratios = [over / under for over, under in pairs if under > 0]
    return statistics.median(ratios) if ratios else None
