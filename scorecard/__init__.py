"""The reliability scorecard: each promise of hostline as one row that is measured, with what must fail beside it.

A program of the source tree: `make scorecard`, `make scorecard FULL=1`, or `python -m scorecard ROW ...`. It stands on
the tests' own servers, second users and hostile peers, and needs what they need (`pip install -e ".[test]"`).
"""
