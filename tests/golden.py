"""The golden vectors of tests/vectors/, loaded for the tests that compare code and pages with them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).resolve().parent / "vectors"


@cache
def vectors(name: str) -> list[dict[str, Any]]:
    """Return the entries of one file."""
    loaded: list[dict[str, Any]] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def frame_bytes(name: str) -> bytes:
    """Return the bytes of one golden frame."""
    return bytes.fromhex(next(vector["hex"] for vector in vectors("frames") if vector["name"] == name))


def names(name: str) -> list[str]:
    """Return the names of one file's entries, as ids for parametrized tests."""
    return [vector["name"] for vector in vectors(name)]
