"""Probes of the socket file itself: its mode, and what a start does to whatever lies at the path."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from hostline.conformance.probes.stage import Abort, Stage, dead_socket
from hostline.conformance.table import Cell

__all__ = ["long_path", "mode_000", "mode_022", "ordinary", "stale", "symlink"]

# Bytes of the too-long path: past the 108 of Linux and the 104 of the others.
LONG_PATH_SIZE = 120


def mode_022(stage: Stage) -> dict[str, Cell]:
    """Look at the mode of a new socket file under the usual umask."""
    return {"mode_022": _mode(stage, 0o022)}


def mode_000(stage: Stage) -> dict[str, Cell]:
    """Look at the mode of a new socket file under a umask that removes nothing."""
    return {"mode_000": _mode(stage, 0o000)}


def _mode(stage: Stage, umask: int) -> Cell:
    path = stage.fresh() / "s.sock"
    child = stage.served(path, umask=umask)
    bits = stat.S_IMODE(path.lstat().st_mode)
    child.kill()
    # Connecting needs the write bit and nothing else, so 0755 keeps others out as 0600 does.
    if bits & stat.S_IWOTH:
        return Cell.miss(f"{bits:04o}", "every local user may connect")
    if bits & stat.S_IWGRP:
        return Cell.miss(f"{bits:04o}", "the whole group may connect")
    return Cell.ok(f"{bits:04o}")


def stale(stage: Stage) -> dict[str, Cell]:
    """Kill a server with SIGKILL and start the next one over the file it left."""
    path = stage.fresh() / "s.sock"
    stage.served(path).kill()
    if not os.path.lexists(path):
        return {"stale": Cell.not_applicable("a killed server leaves no file")}
    start = stage.serve(path)
    if not start.is_ready:
        return {"stale": Cell.miss(f"fails: {start.words}", start.detail)}
    is_reachable = stage.is_held(path, start.child)
    start.child.kill()
    return {"stale": Cell.ok("restarts") if is_reachable else Cell.miss("starts, unreachable")}


def ordinary(stage: Stage) -> dict[str, Cell]:
    """Start a server where an ordinary file lies."""
    path = stage.fresh() / "s.sock"
    content = b"somebody's only copy\x00" * 40
    path.write_bytes(content)
    before = path.stat()
    start = stage.serve(path)
    damage = _damage(path, before, content)
    start.child.kill()
    if damage:
        return {"ordinary": Cell.miss(f"{damage} (data lost)", start.detail)}
    if start.is_ready or start.failure is None:
        return {"ordinary": Cell.miss(f"kept, but {start.words}")}
    return {"ordinary": Cell.ok(f"kept, {start.words}", start.detail)}


def _damage(path: Path, before: os.stat_result, content: bytes) -> str:
    """Say what happened to an ordinary file, or nothing."""
    try:
        after = path.lstat()
    except FileNotFoundError:
        return "deleted"
    if (after.st_dev, after.st_ino) != (before.st_dev, before.st_ino) or not stat.S_ISREG(after.st_mode):
        return "replaced"
    return "" if path.read_bytes() == content else "overwritten"


def symlink(stage: Stage) -> dict[str, Cell]:
    """Start servers where symlinks lie: to a file, to nothing, and to the socket of a dead server."""
    directory = stage.fresh()
    target, nothing, dead = directory / "file", directory / "nothing", directory / "dead"
    target.write_bytes(b"pointed at")
    dead_socket(dead)
    inode = dead.lstat().st_ino
    links = {
        "a file": (directory / "l1", target),
        "nothing": (directory / "l2", nothing),
        "a dead socket": (directory / "l3", dead),
    }
    for link, aim in links.values():
        link.symlink_to(aim)
    begun = [stage.begin(link) for link, _ in links.values()]  # together: some peers retry for seconds
    starts = dict(zip(links, stage.finish(*begun), strict=True))
    wrong = []
    for name, (link, aim) in links.items():
        starts[name].child.kill()
        if not link.is_symlink() or os.readlink(link) != str(aim):
            wrong.append(f"replaces a link to {name}")
        elif starts[name].is_ready or starts[name].failure is None:
            wrong.append(f"link to {name}: {starts[name].words}")
    if not target.is_file() or target.read_bytes() != b"pointed at":
        wrong.append("damages the file behind a link")
    if os.path.lexists(nothing):
        wrong.append("creates what a dangling link points to")
    if not os.path.lexists(dead) or dead.lstat().st_ino != inode:
        wrong.append("removes the socket behind a link")
    if wrong:
        return {"symlink": Cell.miss("; ".join(wrong))}
    first = starts["a file"]
    return {"symlink": Cell.ok(f"untouched, {first.words}", first.detail)}


def long_path(stage: Stage) -> dict[str, Cell]:
    """Start a server on a path that the kernel's address field cannot hold."""
    base = stage.fresh()
    fill = LONG_PATH_SIZE - len(os.fsencode(base)) - len("//s.sock")
    if fill < 1:
        raise Abort(Cell.error("the temporary directory's own path is too long"))
    directory = base / ("d" * fill)
    directory.mkdir(mode=0o700)
    path = directory / "s.sock"
    start = stage.serve(path)
    if start.is_ready:
        if not os.path.lexists(path) or not stage.is_held(path, start.child):
            cell = Cell.miss("starts under another name")
        elif not stage.is_answering(path, start.child):
            cell = Cell.miss("starts, but its own client cannot reach it")
        else:
            cell = Cell.ok("works")
        start.child.kill()
        return {"long_path": cell}
    if start.failure is None:
        start.child.kill()
        return {"long_path": Cell.miss(start.words)}
    text = start.failure.text.replace(str(path), "PATH")
    if limit := re.search(r"\b10[3-8]\b", text):
        return {"long_path": Cell.ok(f"error names limit {limit[0]}", start.detail)}
    return {"long_path": Cell.miss(f"vague: {text.partition(';')[0][:60]}", start.detail)}
