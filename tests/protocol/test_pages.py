"""The pages on the wire format and on the state machine say what the code does."""

from __future__ import annotations

import importlib.util
import re
import struct
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.golden import frame_bytes, vectors
from tests.tree import TREE

from hostline import limits
from hostline.protocol.connection import TRANSITIONS, Role, State
from hostline.wire.codec import FEATURES, ErrorCode, GoawayCode
from hostline.wire.frame import FLAGS, HEADER, Flag, Kind

PAGE = (TREE / "docs" / "reference" / "wire.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("protocol_docs", TREE / "tools" / "protocol_docs.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def section(title: str) -> str:
    """Return the text under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found[1]


def rows(title: str, first: str) -> list[list[str]]:
    """Return the cells of the table under a heading whose first column has this title."""
    table = re.search(rf"^\| {re.escape(first)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", section(title), re.MULTILINE)
    assert table, f"no table {first} under {title}"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


def test_the_parts_made_from_the_code_are_up_to_date(tool: ModuleType) -> None:
    stale = [page.name for page in tool.PAGES if page.read_text(encoding="utf-8") != tool.rendered(page)]
    assert stale == [], "run: python tools/protocol_docs.py"


def test_the_tool_writes_what_is_stale_and_checks_without_writing(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("by hand\n<!-- begin client-diagram -->\nold\n<!-- end client-diagram -->\nby hand too\n")
    monkeypatch.setattr(tool, "PAGES", (page,))
    monkeypatch.setattr(tool, "TREE", tmp_path)
    assert tool.main(["--check"]) == 1
    assert "old" in page.read_text()
    assert tool.main([]) == 0
    assert tool.main(["--check"]) == 0
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("by hand\n")
    assert text.endswith("by hand too\n")
    assert tool.main(["--what"]) == 2


@pytest.mark.parametrize("role", list(Role))
def test_the_diagram_has_every_transition_and_no_other(tool: ModuleType, role: Role) -> None:
    drawn = {
        (a, b, name)
        for a, b, names in re.findall(r"^ +(\w+) --> (\w+): (.+)$", tool.diagram(role), re.MULTILINE)
        for name in names.split(", ")
    }
    assert drawn == {
        (state.value, following.value, Kind(kind).name)
        for (side, state), row in TRANSITIONS.items()
        if side is role
        for kind, following in row.items()
    }


@pytest.mark.parametrize("role", list(Role))
def test_the_table_of_states_is_the_machine(role: Role) -> None:
    header = re.search(rf"^\| the {role.value} is \|(.*)\|$", PAGE, re.MULTILINE)
    assert header
    kinds = [Kind[name.strip()] for name in header[1].split("|")]
    found = {}
    for state, *cells in rows("States", f"the {role.value} is"):
        found[State(state)] = {k: State(cell) for k, cell in zip(kinds, cells, strict=True) if cell != "-"}
    assert found == {state: TRANSITIONS[role, state] for state in State}


def test_the_header_is_laid_out_as_the_table_says() -> None:
    table = rows("A frame", "Offset")
    assert [int(row[0]) for row in table] == [0, 4, 5, 6, 8, 12]
    assert sum(int(row[1]) for row in table) == HEADER.size
    codes = {1: "B", 2: "H", 4: "I"}
    assert "<" + "".join(codes[int(row[1])] for row in table) == HEADER.format
    assert struct.calcsize(HEADER.format) == 16


def test_every_kind_is_listed_with_its_number_and_flags() -> None:
    table = rows("A frame", "Kind")
    assert {(int(row[0]), row[1].strip("`")) for row in table} == {(int(kind), kind.name) for kind in Kind}
    for row in table:
        kind = Kind(int(row[0]))
        if row[5].startswith("reserved"):
            assert all(kind not in moves for moves in TRANSITIONS.values())
        else:
            assert sum(int(flag) for flag in row[4].split(",")) == FLAGS[kind]
            assert any(kind in moves for moves in TRANSITIONS.values())
    assert all(f"{int(flag)}, `{flag.name}`" in section("A frame") for flag in Flag)


@pytest.mark.parametrize(("title", "codes"), [("ERROR", ErrorCode), ("GOAWAY", GoawayCode)])
def test_every_code_is_listed(title: str, codes: type) -> None:
    listed = {row[0].strip("`") for row in rows(title, "Code")}
    assert listed == {value for name, value in vars(codes).items() if not name.startswith("_")}


def test_every_feature_is_listed() -> None:
    assert {row[0].strip("`") for row in rows("Handshake", "Feature")} == set(FEATURES)


def test_every_limit_that_is_named_has_the_value_it_has() -> None:
    named = [
        (name, int(number))
        for row in rows("Limits", "What")
        for name in re.findall(r"\(`([A-Z_]+)`\)", row[0])
        for number in re.findall(r"^\d+", row[1])
    ]
    assert len(named) >= 10
    assert [(name, number) for name, number in named if getattr(limits, name) != number] == []
    assert f"{limits.DEFAULT_MAX_FRAME_SIZE} bytes unless it says otherwise" in PAGE


def test_the_worked_conversation_holds_every_byte_of_its_frames() -> None:
    shown = re.search(r"<!-- begin conversation -->(.*)<!-- end conversation -->", PAGE, re.DOTALL)
    assert shown
    blocks = re.findall(r"```text\n(.*?)    ```", shown[1], re.DOTALL)
    parsed = [
        "".join(re.findall(r"^ {4}((?:[0-9a-f]{2} ?)+?)(?: {2,}|(?<=[0-9a-f]) (?=\S))", b, re.MULTILINE))
        for b in blocks
    ]
    expected = [frame_bytes(step["frame"]).hex() for step in vectors("conversation")]
    assert [block.replace(" ", "") for block in parsed] == expected


def test_the_golden_vectors_are_described() -> None:
    files = {path.name for path in (TREE / "tests" / "vectors").glob("*.json")}
    assert files == set(re.findall(r"^- `(\w+\.json)`", section("Golden vectors"), re.MULTILINE))
