"""One row in a process of its own: `python -m scorecard.one ROW SIZE LOOP`.

The result is one JSON object on standard output; whatever the row's parts print goes to standard error.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
import traceback
from typing import Any

from scorecard import rows
from scorecard.ground import Ground
from scorecard.rows import Row, Skipped, Verdict


def run_row(row: Row, size: str, loop: str) -> dict[str, Any]:
    """Run a row and return its line."""
    line: dict[str, Any] = {"row": row.name, "title": row.title, "size": size, "outcome": "failed", "passed": False}
    begin = time.monotonic()
    ground = Ground(row.full if size == "full" else row.ci, is_full=size == "full", loop=loop)
    line["asked"] = ground.size
    verdict = Verdict()
    try:
        verdict = row.run(ground)
        if verdict.has_passed:
            line.update(outcome="passed", passed=True)
        line["missed"] = verdict.misses
    except Skipped as skipped:
        line.update(outcome="skipped", reason=str(skipped))
    except Exception as error:
        line["missed"] = [f"{type(error).__name__}: {error}"]
        traceback.print_exc()
    ground.close()
    line |= {"numbers": verdict.numbers, "criterion": row.criterion}
    if verdict.control is not None:
        line |= {"control": verdict.control, "failed_as_it_must": verdict.has_control_failed is True}
    if verdict.notes:
        line["notes"] = verdict.notes
    line |= {"servers": ground.servers, "given_back": ground.given_back, "left": ground.left[:5]}
    if any(ground.given_back.values()) and line["outcome"] != "skipped":
        line.update(outcome="failed", passed=False)
        line.setdefault("missed", []).append("something was not given back")
    line["seconds"] = round(time.monotonic() - begin, 1)
    return line


def main() -> None:
    """Run the row that the command line names."""
    name, size, loop = sys.argv[1:]
    out = os.dup(1)
    os.dup2(2, 1)
    faulthandler.enable()
    line = run_row(rows.load()[name], size, loop)
    os.write(out, json.dumps(line).encode())


if __name__ == "__main__":
    main()
