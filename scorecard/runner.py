"""Run rows, each in a process and a session of its own, and judge the whole."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.tree import TREE

from scorecard.rows import Row

# Lines of a failed row's standard error that are shown.
TAIL = 15


def run_rows(chosen: list[Row], size: str, loop: str) -> Iterator[dict[str, Any]]:
    """Yield one line for each row, as soon as it has run; R33 comes last and knows what the others gave back."""
    lines: list[dict[str, Any]] = []
    for row in sorted(chosen, key=lambda row: (row.name == "R33", row.number)):
        line = run_in_process(row, size, loop)
        if row.name == "R33":
            add_what_others_gave_back(line, lines)
        lines.append(line)
        yield line


def run_in_process(row: Row, size: str, loop: str) -> dict[str, Any]:
    """Run a row in a fresh Python; one that hangs or dies is a row that failed."""
    begin = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "scorecard.one", row.name, size, loop],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=TREE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TREE / "src"), str(TREE)])},
            start_new_session=True,
        )
        try:
            out, _ = process.communicate(timeout=row.limit[size])
            line: dict[str, Any] = json.loads(out)
        except subprocess.TimeoutExpired:
            line = lost(row, size, f"it hung: no result after {row.limit[size]:g} seconds")
        except ValueError:
            process.wait()
            line = lost(row, size, f"its process ended with {process.returncode} and no result")
        finally:
            left = end_session(process)
        if left:
            line.setdefault("given_back", {})["processes_left"] = left
            line.update(outcome="failed", passed=False)
            line.setdefault("missed", []).append(f"{left} processes outlived the row")
        if line["outcome"] == "failed":
            errors.seek(0)
            line["errors"] = errors.read().decode(errors="replace").splitlines()[-TAIL:]
    line.setdefault("seconds", round(time.monotonic() - begin, 1))
    return line


def lost(row: Row, size: str, reason: str) -> dict[str, Any]:
    """Return the line of a row that gave none."""
    begun = {"row": row.name, "title": row.title, "size": size, "outcome": "failed", "passed": False}
    return {**begun, "missed": [reason], "numbers": {}, "criterion": row.criterion, "given_back": {}, "servers": 0}


def end_session(leader: subprocess.Popen[bytes]) -> int:
    """Kill what is left of a row's session; returns how many processes that were, beside one that hung itself."""
    has_hung = leader.poll() is None
    left = [pid for pid in session_members(leader.pid) if pid != leader.pid]
    for pid in [leader.pid, *left] if has_hung else left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    leader.wait()
    if leader.stdout is not None:
        leader.stdout.close()
    return 0 if has_hung else len(left)


def session_members(session: int) -> list[int]:
    """Return the processes of a session that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


def add_what_others_gave_back(line: dict[str, Any], others: list[dict[str, Any]]) -> None:
    """Let R33 speak for every row of the run: one that kept something fails it."""
    looked_at = [other for other in others if other.get("servers")]
    keepers = {other["row"]: other["given_back"] for other in others if any(other.get("given_back", {}).values())}
    line["numbers"] |= {
        "rows_looked_at": len(looked_at),
        "servers_looked_at": sum(other["servers"] for other in looked_at),
        "rows_that_kept_something": keepers,
    }
    if keepers:
        line.update(outcome="failed", passed=False)
        line.setdefault("missed", []).append(f"kept something: {', '.join(keepers)}")


def problems(lines: list[dict[str, Any]], *, is_ci: bool) -> list[str]:
    """Return why a run as a whole is no success; empty if it is."""
    found = []
    for line in lines:
        if line["outcome"] == "failed":
            found.append(f"{line['row']} failed: {'; '.join(line.get('missed') or ['no reason given'])}")
        elif line["outcome"] == "skipped" and is_ci:
            found.append(f"{line['row']} must run in CI and was skipped: {line.get('reason')}")
        if line["outcome"] != "skipped" and line.get("failed_as_it_must") is False:
            found.append(f"{line['row']}: the control met the criterion, so that the row proves nothing")
    return found
