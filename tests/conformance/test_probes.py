"""Every probe tells right from wrong: each verdict is reached by a server planted for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hostline.conformance import COLUMNS, Cell, column_keys, run_conformance
from hostline.conformance.probes import stage, starts

PLANTED = Path(__file__).with_name("planted.py")

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the planted server uses Linux's own ways")
pytestmark = linux_only


def probe(directory: Path, keys: list[str] | None, **knobs: object) -> dict[str, Cell]:
    """Run probes over a copy of the planted subject with some knobs turned."""
    subject = directory / "planted_copy.py"
    lines = [f"{name} = {value!r}" for name, value in knobs.items()]
    subject.write_text("\n".join([PLANTED.read_text(), *lines, ""]))
    (row,) = run_conformance([str(subject)], keys, trials=3).rows
    return row.cells


def test_a_server_that_is_right_gets_ok_everywhere(sock_dir: Path) -> None:
    cells = probe(sock_dir, None)
    assert {key: cell.verdict for key, cell in cells.items()} == dict.fromkeys(column_keys(), "ok"), cells


# Column, knobs, verdict, a piece of what was observed.
CASES: list[tuple[str, dict[str, object], str, str]] = [
    ("mode_022", {"MODE": None}, "ok", "0755"),
    ("mode_000", {"MODE": None}, "miss", "0777"),
    ("mode_000", {"MODE": 0o660}, "miss", "0660"),
    ("mode_022", {"MODE": 0o622}, "ok", "0600"),
    ("mode_022", {"STARTS": False}, "error", "does not start: RuntimeError"),
    ("stale", {"RECLAIMS": "never"}, "miss", "fails: OSError EADDRINUSE"),
    ("stale", {"STARTS": False}, "error", "does not start"),
    ("ordinary", {"RECLAIMS": "anything"}, "miss", "replaced (data lost)"),
    ("ordinary", {"SPOILS": "overwrites"}, "miss", "overwritten (data lost)"),
    ("ordinary", {"SPOILS": "deletes"}, "miss", "deleted (data lost)"),
    ("symlink", {"RECLAIMS": "anything"}, "miss", "replaces a link to a file"),
    ("symlink", {"RECLAIMS": "socket", "FOLLOWS": True}, "miss", "replaces a link to a dead socket"),
    ("long_path", {"LONG": "names"}, "ok", "error names limit 107"),
    ("long_path", {"LONG": "vague"}, "miss", "vague: bad address"),
    ("long_path", {"LONG": "elsewhere", "UNLINKS": "never"}, "miss", "starts under another name"),
    ("second_start", {"NAMES_HOLDER": False}, "ok", "refused: OSError EADDRINUSE"),
    ("second_start", {}, "ok", "refused, names the holder: RuntimeError"),
    ("second_start", {"RECLAIMS": "socket", "LOCKS": False}, "miss", "accepted, takes the path"),
    ("first_after", {"RECLAIMS": "socket", "LOCKS": False, "UNLINKS": "never"}, "miss", "unreachable"),
    ("first_after", {"RECLAIMS": "socket", "LOCKS": False}, "miss", "unreachable, path gone"),
    ("first_after", {"DIES_OF_SECOND": True}, "miss", "died"),
    ("contenders", {"RECLAIMS": "socket", "LOCKS": False}, "miss", "2 owners in"),
    ("contenders", {"LOCKS": False}, "miss", "2 owners in"),
    ("contenders", {"RECLAIMS": "never"}, "miss", "0 owners in 3 of 3"),
    ("close_own", {"UNLINKS": "never"}, "miss", "left behind"),
    ("close_own", {"UNLINKS": "always"}, "ok", "removed"),
    ("close_foreign", {"UNLINKS": "always"}, "miss", "removes somebody else's"),
    ("close_foreign", {"UNLINKS": "never"}, "ok", "left alone"),
    ("full_backlog", {"CONNECT": "unconnected"}, "miss", "returns unconnected"),
    ("full_backlog", {"CONNECT": "claims"}, "miss", "claims success"),
    ("full_backlog", {"CONNECT": "at once"}, "miss", "error at once: BlockingIOError EAGAIN"),
    ("full_backlog", {"CONNECT": "spins"}, "miss", "spins (CPU "),
    ("full_backlog", {"CONNECT": "hangs"}, "miss", "still waiting 2.5 s past its timeout"),
    ("full_backlog", {"CONNECT": "spins on"}, "miss", "past its timeout, spins (CPU "),
    ("full_backlog", {"CONNECT": "other error"}, "miss", "waits 1.0 s, then ConnectionResetError"),
    ("full_backlog", {}, "ok", "waits 1.0 s, then TimeoutError"),
    ("inherited", {"FDS": "inheritable"}, "miss", "inheritable"),
    ("inherited", {"FDS": "none"}, "error", "0 of 1 arrived"),
    ("short_packet", {"PACKETS": "silent"}, "miss", "cut to 16 of 64 bytes in silence"),
    ("short_packet", {"PACKETS": "told"}, "ok", "told by a flag"),
    ("short_packet", {"PACKETS": "whole"}, "ok", "delivered whole"),
    ("short_fds", {"FDS": "silent"}, "miss", "1 of 3 in silence"),
    ("short_fds", {"FDS": "told"}, "ok", "1 of 3, told by a flag"),
    ("short_fds", {"FDS": "leaks"}, "miss", "ValueError, 3 left open"),
]


# On a machine that others keep busy a loop gets too little of a processor to be seen.
@pytest.mark.parametrize(
    ("key", "knobs", "verdict", "observed"),
    [pytest.param(*case, marks=pytest.mark.alone if "spins (CPU" in case[3] else ()) for case in CASES],
)
def test_the_probe_judges_the_planted_server(
    sock_dir: Path, key: str, knobs: dict[str, object], verdict: str, observed: str
) -> None:
    cell = probe(sock_dir, [key], **knobs)[key]
    assert cell.verdict == verdict, cell
    assert observed in cell.observed


@pytest.mark.parametrize(
    ("key", "knobs", "verdict", "observed"),
    [
        ("mode_022", {"STARTS": None}, "error", "does not start: neither starts nor fails"),
        ("ordinary", {"HANGS": True}, "miss", "kept, but neither starts nor fails"),
        ("symlink", {"HANGS": True}, "miss", "link to a file: neither starts nor fails"),
        ("long_path", {"LONG": "hangs"}, "miss", "neither starts nor fails"),
        ("second_start", {"HANGS": True, "LOCKS": False}, "miss", "neither starts nor fails"),
        ("close_own", {"STOPS": False}, "error", "still running 1 s after SIGTERM"),
        ("close_foreign", {"STOPS": False}, "error", "still running 1 s after SIGTERM"),
    ],
)
def test_the_probe_gives_up_on_a_server_that_hangs(
    sock_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    knobs: dict[str, object],
    verdict: str,
    observed: str,
) -> None:
    monkeypatch.setattr(stage, "START_TIMEOUT", 1.0)
    monkeypatch.setattr(starts, "CLOSE_TIMEOUT", 1.0)
    test_the_probe_judges_the_planted_server(sock_dir, key, knobs, verdict, observed)


def test_every_column_can_be_ok_and_can_be_missed() -> None:
    missed = {key for key, _, verdict, _ in CASES if verdict == "miss"}
    assert missed | {"mode_022"} == {column.key for column in COLUMNS}


def test_the_usual_mode_is_missed_by_a_server_that_widens_it(sock_dir: Path) -> None:
    # chmod after bind, as uvicorn does it; fchmod before it can only narrow.
    subject = sock_dir / "wide.py"
    extra = "\n_old = _bind\ndef _bind(listener, path):\n    _old(listener, path)\n    os.chmod(path, 0o666)\n"
    subject.write_text(PLANTED.read_text() + extra)
    (row,) = run_conformance([str(subject)], ["mode_022", "mode_000"]).rows
    assert [(cell.verdict, cell.observed) for cell in row.cells.values()] == [("miss", "0666"), ("miss", "0666")]


@pytest.mark.parametrize(
    ("functions", "applicable"),
    [
        ("def serve(path, ready): raise OSError('no')", {"ordinary", "mode_022"}),
        ("def connect(path, timeout): raise TimeoutError", {"full_backlog"}),
        ("", set()),
    ],
)
def test_a_missing_function_gives_na_with_a_reason(sock_dir: Path, functions: str, applicable: set[str]) -> None:
    subject = sock_dir / "partial.py"
    subject.write_text(functions + "\n")
    keys = ["mode_022", "ordinary", "full_backlog", "inherited", "short_packet", "short_fds"]
    (row,) = run_conformance([str(subject)], keys).rows
    assert {key for key, cell in row.cells.items() if cell.verdict != "n/a"} == applicable
    assert all(cell.detail for cell in row.cells.values() if cell.verdict == "n/a")


def test_a_client_that_vanishes_is_an_error_and_no_verdict(sock_dir: Path) -> None:
    subject = sock_dir / "vanishing.py"
    subject.write_text("import os\ndef connect(path, timeout): os._exit(3)\nreceive_fds = connect\n")
    (row,) = run_conformance([str(subject)], ["full_backlog"]).rows
    assert row.cells["full_backlog"].verdict == "error"
