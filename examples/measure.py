"""Measure from a program: two rounds of round trips, hostline beside bare sockets, as ratios.

Prints:

    64 B: sockets is the measure
    64 B: hostline takes ... times as long
"""

from __future__ import annotations

from hostline.bench.plan import find_entries, make_plan
from hostline.bench.run import run

entries = [entry for entry in find_entries() if entry.subject.name in ("sockets", "hostline")]
results = run(make_plan(["latency"], is_quick=True, rounds=2, entries=entries))

small = {m.subject: m for m in results.measurements if m.case == "64 B"}
hostline = small["hostline"]
print(f"64 B: {hostline.reference} is the measure")
print(f"64 B: hostline takes {hostline.ratio:.1f} times as long")
