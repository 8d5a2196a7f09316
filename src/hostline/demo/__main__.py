"""The demo as a program: `python -m hostline.demo [--quick] [--json]`."""

from __future__ import annotations

import argparse
import sys

from hostline.demo import run


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hostline.demo", description="Two services, a file of orders, a report."
    )
    parser.add_argument("--quick", action="store_true", help="take less than half of the time")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end and nothing else")
    options = parser.parse_args()
    return run(quick=options.quick, json_output=options.json)


if __name__ == "__main__":
    sys.exit(main())
