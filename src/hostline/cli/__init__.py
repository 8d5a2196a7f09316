"""The command `hostline`: one file for each sub-command, arguments in thin functions, work in plain ones below them.

Needs the extra `hostline[cli]` (typer, rich). What a single command needs is imported when it runs.
"""

from __future__ import annotations

import importlib.util
import sys

from hostline.cli.streams import open_missing, watch_output

__all__ = ["main"]

_NEEDED = ("typer", "rich")


def main() -> int:
    """Run the command with the arguments of this process; return its exit code, or leave with it."""
    open_missing()
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"error: the hostline command needs {' and '.join(missing)}, which the extra hostline[cli] brings: "
            'pip install "hostline[cli]"',
            file=sys.stderr,
        )
        return 1
    # What a service writes of itself may not fit into the terminal's encoding, and is shown all the same.
    watch_output()
    try:
        from hostline.cli.app import run

        run()
    except KeyboardInterrupt:
        return 130
    return 0
