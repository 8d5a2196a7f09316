"""Measure hostline beside bare sockets, C, Go and the libraries a user would pick instead.

    results = run(make_plan(["latency"], is_quick=True), on_progress)

`subject.py` says what a subject is, `subjects/` and `peers/` hold them, `run.py` lets them take turns, `results.py` is
what comes out. This module imports nothing: a subject's own process must not pay for what it does not use.
"""
