"""`hostline diff`: two versions of a service, live or in files, and an exit code that a build can act on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostline.cli.exits import ExitCode
from tests.cli.running import Running, hostline, on_terminal, plain

SHOP = Path(__file__).with_name("shop.py")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("shop") / "s"
    with Running("serve", f"{SHOP}:shop", "-a", path, ready="serving shop") as server:
        yield path
        assert server.stop() == 0


@pytest.fixture
def old(shop: Path, tmp_path: Path) -> Path:
    """Give the description of the shop in a file."""
    file = tmp_path / "old.json"
    file.write_bytes(hostline("describe", shop, "--json").stdout)
    return file


def changed(file: Path, file_name: str, **changes: Any) -> Path:
    """Write another version beside a description: its first method, `add`, has other facts."""
    described = json.loads(file.read_bytes())
    described["methods"][0].update(changes)
    other = file.with_name(file_name)
    other.write_text(json.dumps(described))
    return other


def test_a_service_that_is_as_it_was_breaks_nobody(shop: Path, old: Path) -> None:
    for new in (shop, old):
        done = hostline("diff", old, new)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == b"shop 2.1 does not break callers of shop 2.1: no difference\n"


def test_what_breaks_comes_first_with_its_reason_and_an_exit_code(shop: Path, old: Path) -> None:
    new = changed(old, "new.json", is_idempotent=False, raises=["KeyError"])
    done = hostline("diff", shop, new)
    assert (done.returncode, done.stderr) == (ExitCode.INCOMPATIBLE, b"")
    head, first, *_, last = [line for line in done.stdout.decode().splitlines() if line]
    assert head.split() == ["Verdict", "Method", "What", "Why"]
    assert first.startswith("breaks   add")
    assert "no longer idempotent" in first
    assert last == "shop 2.1 breaks callers of shop 2.1: 1 breaking, 1 compatible"
    assert max(map(len, done.stdout.decode().splitlines())) <= 100


def test_what_is_compatible_is_told_with_exit_code_0(old: Path) -> None:
    done = hostline("diff", old, changed(old, "new.json", raises=["KeyError"]))
    assert done.returncode == 0
    assert b"fine     add     exception KeyError is declared" in done.stdout


def test_the_same_as_json(old: Path) -> None:
    new = changed(old, "new.json", returns={"type": "string"})
    done = hostline("diff", old, new, "--json")
    assert done.returncode == ExitCode.INCOMPATIBLE
    assert json.loads(done.stdout) == {
        "is_compatible": False,
        "old": "shop 2.1",
        "new": "shop 2.1",
        "changes": [
            {
                "is_breaking": True,
                "method": "add",
                "what": "result changed",
                "reason": "callers may receive what they do not take: str is not int",
            }
        ],
    }


def test_on_a_terminal_what_services_wrote_is_escaped(old: Path) -> None:
    new = changed(old, "new.json", name="add\x1b[2J\u202e")
    code, shown = on_terminal("diff", str(old), str(new))
    assert code == ExitCode.INCOMPATIBLE
    assert "add\\x1b[2J\\u202e" in "".join(plain(shown).split())
    assert "\u202e" not in shown


def test_a_file_that_is_no_description_is_refused(old: Path, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    done = hostline("diff", old, tmp_path / "x.json")
    assert done.returncode == ExitCode.FAILURE
    assert b"x.json is not what hostline describe --json writes: " in done.stderr
    done = hostline("diff", old, "nowhere.json")
    assert (done.returncode, done.stderr) == (1, b"error: nowhere.json cannot be read: No such file or directory\n")
    assert hostline("diff", tmp_path / "nobody", old).returncode == ExitCode.CANNOT_CONNECT
