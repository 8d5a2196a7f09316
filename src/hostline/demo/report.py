"""What one run found, step by step: claims that hold or do not, and the facts behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hostline.demo.screen import Screen

__all__ = ["Check", "Report", "Step"]


@dataclass(frozen=True)
class Check:
    """A claim, and whether it holds."""

    claim: str
    ok: bool


@dataclass
class Step:
    """Collect what one step finds, and show it at once.

    Attributes:
        name: In one word, for programs.
        title: For people.
        screen: Where it is shown.
        checks: Its claims.
        facts: Its figures, for programs.
        skipped: Why it, or a part of it, was left out; empty if nothing was.
        seconds: How long it took.
    """

    name: str
    title: str
    screen: Screen
    checks: list[Check] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every claim holds."""
        return all(check.ok for check in self.checks)

    def check(self, claim: str, ok: bool) -> None:
        """Say whether a claim holds; one that does not makes the whole run fail."""
        self.checks.append(Check(claim, ok))
        self.screen.verdict(ok, claim)

    def skip(self, reason: str) -> None:
        """Say why something is left out."""
        self.skipped = reason
        self.screen.text(reason)

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "name": self.name,
            "title": self.title,
            "ok": self.ok,
            "skipped": self.skipped or None,
            "seconds": round(self.seconds, 3),
            "checks": [{"claim": check.claim, "ok": check.ok} for check in self.checks],
            "facts": self.facts,
        }


@dataclass
class Report:
    """Collect the steps of one run.

    Attributes:
        facts: About the machine and the run.
        steps: In their order.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    @property
    def checks(self) -> list[Check]:
        """Every claim of every step."""
        return [check for step in self.steps for check in step.checks]

    @property
    def ok(self) -> bool:
        """Whether every claim holds."""
        return all(check.ok for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {"ok": self.ok, **self.facts, "steps": [step.as_json() for step in self.steps]}
