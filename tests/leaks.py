"""What a test may not leave behind: what `hostline.testing` looks for, and hostline's socket files."""

from __future__ import annotations

import stat
from pathlib import Path

from hostline.testing.leaks import Snapshot, open_descriptors, wait_until

__all__ = ["Snapshot", "open_descriptors", "stray_socket_files", "wait_until"]


def stray_socket_files(directory: Path) -> list[str]:
    """Return the socket files that hostline bound in `directory` and did not unlink.

    hostline's own are told from those that a test planted by the lock file beside them.
    """
    return [
        str(path)
        for path in sorted(directory.rglob("*"))
        if (stat.S_ISSOCK(path.lstat().st_mode) or _is_key_file(path))
        and path.with_name(path.name.removesuffix(".control") + ".lock").exists()
    ]


def _is_key_file(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode) and path.read_bytes().startswith(b"hostline tcp 1\n")
