"""What the steps share: the stage, the services that run on it, and what earlier steps found."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from hostline.demo.book import ORDERS_FILE
from hostline.demo.processes import Child, Stage
from hostline.demo.screen import Screen

__all__ = ["Scene", "money", "own_command"]


@dataclass
class Scene:
    """Hold one run.

    Attributes:
        stage: The processes and directories.
        screen: Where things are shown.
        orders_file: The file of orders.
        children: The services by name.
        totals: Cents by currency that the payment service must have at this point.
        doors_directory: Where the sockets of `doors` are.
        tcp_port: Where `doors` listens on loopback TCP; 0 for nowhere.
    """

    stage: Stage
    screen: Screen
    orders_file: Path = ORDERS_FILE
    children: dict[str, Child] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    doors_directory: Path = Path()
    tcp_port: int = 0

    @property
    def is_quick(self) -> bool:
        """Whether the run is to be short."""
        return self.stage.is_quick

    @property
    def payments(self) -> str:
        """The payment service's address."""
        return str(self.stage.directory / "payments.sock")

    @property
    def orders(self) -> str:
        """The order service's address."""
        return str(self.stage.directory / "orders.sock")

    @property
    def counter(self) -> str:
        """Where the payment service hands out receipts."""
        return str(self.stage.directory / "counter.sock")

    def journal(self, name: str) -> Path:
        """Return the journal of one payment service."""
        return self.stage.directory / f"{name}.journal"


def own_command(*, is_absolute: bool = False) -> list[str]:
    """Return how the `hostline` command is written here: by its path, if it is not on the user's.

    Args:
        is_absolute: Whether the words must work for others too, who have a path of their own.
    """
    script = sys.argv[0] if sys.argv else ""
    found = shutil.which("hostline")
    is_script = os.path.basename(script) == "hostline" and os.path.exists(script)
    if is_script and (found is None or not os.path.samefile(found, script)):
        return [os.path.abspath(script) if is_absolute else script]
    if found is None:
        return [sys.executable, "-m", "hostline"]
    return [found if is_absolute else "hostline"]


def money(cents: int) -> str:
    """Return an amount as people write it."""
    sign = "-" if cents < 0 else ""
    return f"{sign}{abs(cents) // 100:,}.{abs(cents) % 100:02d}"
