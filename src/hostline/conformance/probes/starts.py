"""Probes of starting and closing: a live path, two at once, and what a clean close removes."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections import Counter

from hostline.conformance.probes.stage import CLOSE_TIMEOUT, Stage, dead_socket
from hostline.conformance.table import Cell

__all__ = ["close_foreign", "close_own", "contenders", "second_start"]

# Seconds from telling contenders to start until they do: both have to be forked by then.
RACE_DELAY = 0.05

# How many seconds the second contender is behind the first, in turn: which gap is the bad one depends on how long
# a peer's start takes.
RACE_GAPS = (0.0, 0.001, 0.003)


def second_start(stage: Stage) -> dict[str, Cell]:
    """Start a second server on a live path, look at the first, close the second, look at the first again."""
    path = stage.fresh() / "s.sock"
    first = stage.served(path)
    second = stage.serve(path)
    answers = stage.is_answering(path, first)
    if second.is_ready:
        robs = stage.is_held(path, second.child)
        refusal = Cell.miss("accepted, takes the path" if robs else "accepted, beside the first")
    elif second.failure is None:
        refusal = Cell.miss(second.words)
    else:
        said = second.failure.text + second.child.log()
        names = ", names the holder" if re.search(rf"\b{first.pid}\b", said) else ""
        refusal = Cell.ok(f"refused{names}: {second.words}", second.detail)
    second.child.terminate(CLOSE_TIMEOUT)
    second.child.kill()
    if first.has_exited:
        after = Cell.miss("died")
    elif answers and stage.is_answering(path, first):
        after = Cell.ok("reachable")
    elif os.path.lexists(path):
        after = Cell.miss("unreachable")
    else:
        after = Cell.miss("unreachable, path gone" if not answers else "path gone once the second closed")
    first.kill()
    return {"second_start": refusal, "first_after": after}


def contenders(stage: Stage) -> dict[str, Cell]:
    """Start two servers within a few milliseconds over a stale file, several times."""
    owners: Counter[int] = Counter()
    lost = 0
    for trial in range(stage.trials):
        path = stage.fresh() / "s.sock"
        dead_socket(path)
        at = time.monotonic() + RACE_DELAY
        gap = RACE_GAPS[trial % len(RACE_GAPS)]
        children = [stage.begin(path, at=at), stage.begin(path, at=at + gap)]
        starts = stage.finish(*children)
        ready = [start.child for start in starts if start.is_ready]
        owners[len(ready)] += 1
        lost += len(ready) == 1 and not stage.is_held(path, ready[0])
        for child in children:
            child.kill()
    if lost:
        return {"contenders": Cell.miss(f"owner unreachable in {lost} of {stage.trials}")}
    wrong = {number: times for number, times in sorted(owners.items()) if number != 1}
    if wrong:
        words = ", ".join(f"{number} owners in {times} of {stage.trials}" for number, times in wrong.items())
        return {"contenders": Cell.miss(words)}
    return {"contenders": Cell.ok(f"1 owner in {stage.trials} of {stage.trials}")}


def close_own(stage: Stage) -> dict[str, Cell]:
    """Close a server the way its documentation says and look for its file."""
    path = stage.fresh() / "s.sock"
    child = stage.served(path)
    if not child.terminate(CLOSE_TIMEOUT):
        child.kill()
        return {"close_own": Cell.error(f"still running {CLOSE_TIMEOUT:.0f} s after SIGTERM")}
    return {"close_own": Cell.miss("left behind") if os.path.lexists(path) else Cell.ok("removed")}


def close_foreign(stage: Stage) -> dict[str, Cell]:
    """Replace a server's file by the socket of somebody else, close the server, and look for the replacement."""
    path = stage.fresh() / "s.sock"
    child = stage.served(path)
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as successor:
        # Made beside it and renamed over it, so that its inode number cannot be the one just freed.
        beside = path.with_name("next.sock")
        successor.bind(str(beside))
        successor.listen()
        inode = beside.lstat().st_ino
        os.rename(beside, path)
        if not child.terminate(CLOSE_TIMEOUT):
            child.kill()
            return {"close_foreign": Cell.error(f"still running {CLOSE_TIMEOUT:.0f} s after SIGTERM")}
        is_left = os.path.lexists(path) and path.lstat().st_ino == inode
    return {"close_foreign": Cell.ok("left alone") if is_left else Cell.miss("removes somebody else's")}
