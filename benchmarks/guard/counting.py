"""Count the instructions of a sequence with valgrind's cachegrind, which counts the same each time."""

from __future__ import annotations

import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence as Words
from pathlib import Path
from typing import Final

from benchmarks.guard.sequences import Sequence

# Seconds for one run under valgrind, on a machine that is busy with other things.
LIMIT: Final = 120
TREE: Final = Path(__file__).resolve().parent.parent.parent
# -P: with a directory on sys.path the import system reads it, and its files change.
PROGRAM: Final = ("-P", str(TREE / "benchmarks" / "guard" / "sequences.py"))
# glibc chooses its memcpy by the processor; these are switched off by whichever names this glibc knows, so that one
# processor counts like another.
SAME_ROUTINES: Final = "glibc.cpu.hwcaps=" + ",".join(
    f"-{name}"
    for name in (
        "AVX2_Usable",
        "AVX2",
        "AVX512F_Usable",
        "AVX512F",
        "AVX512VL",
        "AVX512BW",
        "EVEX",
        "ERMS",
        "FSRM",
        "RTM",
    )
)


class CannotCount(Exception):
    """Nothing can be counted here; the text says why and what to do."""


def valgrind() -> str:
    """Return the path of valgrind.

    Raises:
        CannotCount: It is not installed.
    """
    path = shutil.which("valgrind")
    if path is None:
        raise CannotCount("valgrind is not installed: install the package of that name (Debian: apt install valgrind)")
    return path


def environment(**more: str) -> dict[str, str]:
    """Return the few variables that a counted process gets: whatever else is set may not change its counts."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOSTLINE_PURE_PYTHON") if name in os.environ}
    return {
        **kept,
        "LC_ALL": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONNOUSERSITE": "1",
        "HOME": "/nonexistent",
        **more,
    }


def measure(sequence: Sequence, program: Words[str] = PROGRAM, runs: int = 1) -> list[float]:
    """Return the instructions of one operation, counted so often.

    Args:
        sequence: What is counted.
        program: The words behind the interpreter that run sequences; a test has another one.
        runs: How often.

    Raises:
        CannotCount: valgrind is not there, or a run failed.
    """
    valgrind()
    return [
        (count(sequence, 2 * sequence.count, program) - count(sequence, sequence.count, program)) / sequence.count
        for _ in range(runs)
    ]


def warm(sequence: Sequence, program: Words[str] = PROGRAM) -> None:
    """Run a sequence once without counting: what it imports is compiled to bytecode and kept, once."""
    execute([sys.executable, *program, sequence.name, "1"], environment())


def count(sequence: Sequence, operations: int, program: Words[str] = PROGRAM) -> int:
    """Return the instructions of a whole run with so many operations."""
    with tempfile.TemporaryDirectory(prefix="hlguard-", dir="/tmp") as directory:
        path = f"{directory}/s"
        words = [str(operations), path] if sequence.beside else [str(operations)]
        command = [sys.executable, *program, sequence.name, *words]
        counted = [
            *(valgrind(), "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"),
            *("--trace-children=no", f"--log-file={directory}/log"),
        ]
        beside = start_beside(sequence, operations, path) if sequence.beside else None
        try:
            output = execute([*counted, *command], environment(GLIBC_TUNABLES=SAME_ROUTINES))
        finally:
            if beside is not None:
                beside.send_signal(signal.SIGKILL)
                beside.wait()
                if beside.stdout is not None:
                    beside.stdout.close()
        with open(f"{directory}/log", encoding="utf-8", errors="replace") as file:
            log = file.read()
    found = re.search(r"I\s+refs:\s+([\d,]+)", log)
    if found is None:
        raise CannotCount(f"valgrind counted nothing for {sequence.name}:\n{log}{output}")
    return int(found[1].replace(",", ""))


def start_beside(sequence: Sequence, operations: int, path: str) -> subprocess.Popen[str]:
    """Start the other process; one that answers is waited for."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.guard.beside", sequence.beside, str(operations), path],
        env=environment(),
        cwd=TREE,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    if sequence.beside == "answer" and process.stdout is not None and process.stdout.readline() != "ready\n":
        process.kill()
        process.wait()
        raise CannotCount(f"the process beside {sequence.name} did not start")
    return process


def execute(command: list[str], variables: dict[str, str]) -> str:
    """Run a command to its end and return what it said."""
    try:
        done = subprocess.run(
            command,
            env=variables,
            cwd=TREE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotCount(f"no end after {LIMIT} seconds: {' '.join(command)}") from error
    output = done.stdout.decode(errors="replace")
    if done.returncode:
        raise CannotCount(f"failed with {done.returncode}: {' '.join(command)}\n{output}")
    return output


def spread(figures: Words[float]) -> float:
    """Return the distance between the lowest and the highest figure, as a share of their median."""
    return (max(figures) - min(figures)) / statistics.median(figures)
