"""A service that opens files for clients who could not open them, and takes files that it could not open itself.

Start it with `python open_file.py`, then run open_file_client.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import hostline

REPORTS = Path("reports")

archive = hostline.Service("archive")


@archive.method(raises=FileNotFoundError)
def open_report(name: str) -> hostline.Fd:
    """Open a report for reading. What is sent is a duplicate; this one closes when nobody holds it any more."""
    return hostline.Fd(os.open(REPORTS / Path(name).name, os.O_RDONLY))


@archive.method
def count_lines(file: hostline.Fd) -> int:
    """Count the lines of a file of the caller's; it closes itself when the handler is over."""
    count, place = 0, 0
    while data := os.pread(file.fileno(), 65536, place):  # the caller shares the position: do not move it
        count += data.count(b"\n")
        place += len(data)
    return count


@archive.method
def list_files(directory: Annotated[hostline.Fd, hostline.fd_kinds("directory")]) -> list[str]:
    """List a directory. Without fd_kinds only files, memfds, pipes and sockets are let in."""
    return sorted(os.listdir(directory.fileno()))


if __name__ == "__main__":
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / "may.txt").write_text("sold 3\nsold 4\n")
    archive.run("./archive.sock")
