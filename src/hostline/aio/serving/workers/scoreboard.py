"""What worker processes tell of themselves: a table in memory that they share, one row for each.

Made before the first fork, so that all see the same pages. A worker writes its own row and no other, the supervisor
empties the row of one that is gone. Every cell is eight bytes, aligned and stored at once, so that no reader sees half
of a number; nobody waits for anybody, and a worker that is killed leaves nothing locked.
"""

from __future__ import annotations

import mmap
import os
import resource
import sys
from typing import Final

from hostline.rpc.builtin import CallCounts, WorkerStats

__all__ = ["Row", "Scoreboard", "resident_memory"]

# The cells of a row. The pid is filled in last and emptied first: a row without one is free.
_PID, _STARTED, _MEMORY, _CONNECTIONS, _RESTARTS, _STATE = range(6)
_COUNTS: Final = ("running", "waiting", "finished", "failed", "overloaded", "cancelled")
_FIRST_COUNT: Final = 6

_STATES: Final = ("starting", "serving", "stopping")
_SERVING: Final = _STATES.index("serving")
_CELLS: Final = _FIRST_COUNT + len(_COUNTS)


class Scoreboard:
    """Hold the table.

    Args:
        rows: Workers at once, at most.
    """

    def __init__(self, rows: int) -> None:
        self._map = mmap.mmap(-1, rows * _CELLS * 8)
        self._cells = memoryview(self._map).cast("q")
        self._rows = rows

    def close(self) -> None:
        """Let go of the memory here; other processes keep theirs."""
        self._cells.release()
        self._map.close()

    def clear(self, number: int) -> None:
        """Empty the row of a worker that is gone."""
        for cell in range(_CELLS):
            self._cells[number * _CELLS + cell] = 0

    def take(self, number: int, started_at: float, restarts: int) -> Row:
        """Fill a free row for this process and return it.

        Args:
            number: Which, from 0 on.
            started_at: Monotonic time at which this process was started.
            restarts: What is told of that.
        """
        return Row(self, self._cells, number * _CELLS, started_at, restarts)

    def connections(self) -> list[int]:
        """Return the connections of each worker that accepts."""
        cells, end = self._cells, self._rows * _CELLS
        return [cells[row + _CONNECTIONS] for row in range(0, end, _CELLS) if cells[row + _STATE] == _SERVING]

    def read(self, now: float) -> list[WorkerStats]:
        """Return what is known of every worker, in the order of the rows.

        Args:
            now: The present monotonic time.
        """
        found = []
        for start in range(0, self._rows * _CELLS, _CELLS):
            row = self._cells[start : start + _CELLS].tolist()
            # The row may have been emptied, and given to another worker, while it was copied.
            if row[_PID] and row[_PID] == self._cells[start + _PID]:
                counts = CallCounts(*row[_FIRST_COUNT:])
                uptime = max(0.0, now - row[_STARTED] / 1e9)
                facts = (row[_MEMORY], row[_CONNECTIONS], row[_RESTARTS], counts)
                found.append(WorkerStats(row[_PID], _STATES[row[_STATE]], uptime, *facts))
        return found


class Row:
    """One worker's own row."""

    __slots__ = ("_cells", "_start", "board")

    def __init__(self, board: Scoreboard, cells: memoryview[int], start: int, started_at: float, restarts: int) -> None:
        self.board = board
        self._cells = cells
        self._start = start
        cells[start + _STARTED] = int(started_at * 1e9)
        cells[start + _RESTARTS] = restarts
        cells[start + _MEMORY] = resident_memory()
        cells[start + _PID] = os.getpid()

    @property
    def connections(self) -> int:
        """Connections open now."""
        return self._cells[self._start + _CONNECTIONS]

    @connections.setter
    def connections(self, count: int) -> None:
        self._cells[self._start + _CONNECTIONS] = count

    def note(self, connections: int, counts: CallCounts) -> None:
        """Write down what this process does now."""
        cells, start = self._cells, self._start
        cells[start + _MEMORY] = resident_memory()
        cells[start + _CONNECTIONS] = connections
        for number, name in enumerate(_COUNTS, start + _FIRST_COUNT):
            cells[number] = getattr(counts, name)

    def tell(self, state: str) -> None:
        """Say what this process does: `serving`, or `stopping`; it begins with `starting`."""
        self._cells[self._start + _STATE] = _STATES.index(state)


def resident_memory() -> int:
    """Return the bytes of memory that this process has in use; where only its highest is known (macOS), that."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
