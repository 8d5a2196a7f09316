"""A run that was written by hand, with plausible figures: see results_sample.json."""

from __future__ import annotations

from pathlib import Path

from hostline.bench.results import Results, decode_results

SAMPLE = Path(__file__).parent / "results_sample.json"


def sample() -> Results:
    return decode_results(SAMPLE.read_bytes())
