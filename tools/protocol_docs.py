"""Write the parts of two pages that are made from the code and the golden vectors, or check that they are up to date.

    python tools/protocol_docs.py            writes docs/reference/wire.md and docs/design/protocol.md
    python tools/protocol_docs.py --check    exits with 1 if a page differs from what would be written

A part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; what is outside of such marks is written by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TREE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TREE / "src"))

from hostline.protocol.states import TRANSITIONS, Role, State  # noqa: E402 - the source need not be installed
from hostline.wire.frame import Kind  # noqa: E402

VECTORS = TREE / "tests" / "vectors"
PAGES = (TREE / "docs" / "reference" / "wire.md", TREE / "docs" / "design" / "protocol.md")
MARKED = re.compile(
    r"(?P<begin><!-- begin (?P<name>[\w-]+) -->\n)(?P<text>.*?)(?P<end><!-- end (?P=name) -->)", re.DOTALL
)
HEX_COLUMN = 40


def main(arguments: list[str]) -> int:
    """Write or check every page; returns the exit status."""
    is_check = arguments == ["--check"]
    if arguments and not is_check:
        print(f"usage: {Path(__file__).name} [--check]", file=sys.stderr)
        return 2
    stale = [page for page in PAGES if page.read_text(encoding="utf-8") != rendered(page)]
    for page in stale:
        if is_check:
            print(f"{page.relative_to(TREE)} is out of date: run tools/protocol_docs.py", file=sys.stderr)
        else:
            page.write_text(rendered(page), encoding="utf-8")
            print(f"wrote {page.relative_to(TREE)}")
    return 1 if is_check and stale else 0


def rendered(page: Path) -> str:
    """Return a page with its marked parts made anew.

    Raises:
        KeyError: A mark names a part that nothing makes.
    """
    return MARKED.sub(lambda m: f"{m['begin']}\n{PARTS[m['name']]()}\n\n{m['end']}", page.read_text(encoding="utf-8"))


def vectors(name: str) -> list[dict[str, Any]]:
    """Return the golden vectors of one file."""
    loaded: list[dict[str, Any]] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


# --- the state machine -------------------------------------------------------------------------------


def edges(role: Role) -> Iterator[tuple[State, State, list[str]]]:
    """Yield each pair of states of one side with the frames that lead from the first to the second."""
    for state in State:
        row = TRANSITIONS[role, state]
        for following in State:
            names = [Kind(kind).name for kind, target in sorted(row.items()) if target is following]
            if names:
                yield state, following, names


def diagram(role: Role) -> str:
    """Return one side's states as a mermaid diagram; sending a farewell and violations are the only other ways."""
    lines = ["```mermaid", "stateDiagram-v2", "    direction LR", "    [*] --> opening"]
    lines += [f"    {a.value} --> {b.value}: {', '.join(names)}" for a, b, names in edges(role)]
    lines += ["    closed --> [*]", "```"]
    return "\n".join(lines)


def transitions(role: Role) -> str:
    """Return one side's states as a table: the frame that arrives, and the state that follows."""
    kinds = sorted({kind for (side, _), row in TRANSITIONS.items() if side is role for kind in row})
    lines = [
        f"| the {role.value} is | {' | '.join(Kind(kind).name for kind in kinds)} |",
        "|---" * (len(kinds) + 1) + "|",
    ]
    for state in State:
        row = TRANSITIONS[role, state]
        cells = [row[kind].value if kind in row else "-" for kind in kinds]
        lines.append(f"| {state.value} | {' | '.join(cells)} |")
    return "\n".join(lines)


# --- the vectors -------------------------------------------------------------------------------------


def conversation() -> str:
    """Return the worked conversation, every byte of it explained."""
    frames = {vector["name"]: vector for vector in vectors("frames")}
    lines = []
    for number, step in enumerate(vectors("conversation"), 1):
        arrow = "client -> server" if step["from"] == "client" else "server -> client"
        lines += [f"{number}. {arrow}: {step['what']}", "", "    ```text"]
        lines += [f"    {spaced(part):<{HEX_COLUMN}} {meaning}" for part, meaning in frames[step["frame"]]["parts"]]
        lines += ["    ```", ""]
    return "\n".join(lines).rstrip()


def challenge() -> str:
    """Return the first golden proof of a key, every byte of it explained."""
    vector = vectors("challenge")[0]
    lines = [f"start {vector['start']}, endpoint `{vector['endpoint']}`", ""]
    for number, message in enumerate(vector["messages"], 1):
        lines += [f"{number}. from the {message['from']}: {message['what']}", "", "    ```text"]
        lines += [f"    {spaced(part)}  {meaning}" for part, meaning in message["parts"]]
        lines += ["    ```", ""]
    return "\n".join(lines).rstrip()


def spaced(digits: str) -> str:
    """Return hexadecimal digits with a space behind every byte, long texts without."""
    return digits if len(digits) * 3 / 2 > HEX_COLUMN else " ".join(re.findall("..", digits))


def values() -> str:
    """Return the table of values and their bytes."""
    lines = ["| A value | for example | is written |", "|---|---|---|"]
    lines += [f"| {v['what']} | `{v['python']}` | `{v['hex']}` |" for v in vectors("values")]
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {
    "client-diagram": lambda: diagram(Role.CLIENT),
    "server-diagram": lambda: diagram(Role.SERVER),
    "client-transitions": lambda: transitions(Role.CLIENT),
    "server-transitions": lambda: transitions(Role.SERVER),
    "conversation": conversation,
    "challenge": challenge,
    "values": values,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
