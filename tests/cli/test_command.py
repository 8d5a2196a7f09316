"""The command as a whole: help, versions, completion, what it loads, what it says without its libraries, its page."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from hostline import __version__, is_compiled
from hostline.cli.app import app
from hostline.cli.exits import ExitCode
from tests.cli.running import environment, hostline, on_terminal, plain
from tests.tree import TREE

PAGE = (TREE / "docs" / "reference" / "command.md").read_text(encoding="utf-8")
ROOT: Any = typer.main.get_command(app)
NAMES = list(ROOT.commands)


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=15, env=environment()
    )


def test_the_version_names_python_the_core_and_the_platform() -> None:
    done = hostline("--version")
    text = done.stdout.decode().partition("\n")[0]
    assert done.returncode == 0
    assert text.startswith(f"hostline {__version__}, {platform.python_implementation()} {platform.python_version()}, ")
    assert text.endswith(f"{platform.system()} {platform.release()} {platform.machine()}")
    assert f", {'compiled core' if is_compiled() else 'pure Python'}, " in text


def test_the_version_says_what_is_missed_without_the_compiled_core() -> None:
    done = hostline("--version", env={"HOSTLINE_PURE_PYTHON": "1"})
    first, _, rest = done.stdout.decode().partition("\n")
    assert ", pure Python, " in first
    assert rest == "the compiled core is left out: HOSTLINE_PURE_PYTHON is set\n"


@pytest.mark.parametrize("name", NAMES)
def test_each_command_explains_itself_with_examples(name: str) -> None:
    command = ROOT.commands[name]
    assert command.help
    assert command.epilog.startswith("\b\nExamples:\n  ")
    summary = command.help.splitlines()[0]
    assert len(summary) <= 65, "it is cut in the list of commands"
    assert [option.name for option in command.params if not option.help] == []
    done = hostline(name, "-h")
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert text.startswith(f"Usage: hostline {name} ")
    assert "{" not in text.splitlines()[0]
    assert "Examples:" in text


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_help_fits_into_a_terminal_of_any_width(columns: int) -> None:
    code, shown = on_terminal("--help", columns=columns)
    assert code == 0
    assert [line for line in shown.splitlines() if len(line) > columns] == []
    for exit_code in ExitCode:
        assert f" {exit_code.value} {exit_code.meaning} " in " ".join(shown.split())


def test_the_help_lists_every_command_and_every_exit_code() -> None:
    text = hostline("--help").stdout.decode()
    for name in NAMES:
        summary = ROOT.commands[name].help.splitlines()[0]
        assert f"\n  {name:<13}{summary}\n" in text
    for code in ExitCode:
        assert f"\n  {code.value:<5}{code.meaning[:50]}" in text


def test_the_page_shows_every_command_with_every_option() -> None:
    missing = []
    for name, command in ROOT.commands.items():
        _, found, section = PAGE.partition(f"\n## {name}\n")
        assert found, name
        section = section.partition("\n## ")[0]
        for parameter in command.params:
            missing += [
                f"{name} {option}" for option in parameter.opts if option[0] == "-" and f"`{option}" not in section
            ]
        missing += [f"{name}: {line}" for line in command.epilog.splitlines()[2:] if line.strip() not in section]
    assert missing == []


def test_a_shell_completes_commands() -> None:
    done = hostline(env={"_HOSTLINE_COMPLETE": "complete_bash", "COMP_WORDS": "hostline c", "COMP_CWORD": "1"})
    assert done.stdout.split() == [b"call", b"cat", b"conformance"]


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_libraries_it_names_the_extra(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from hostline.cli import main; sys.exit(main())"
    done = python(program, "--version")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"needs {missing}, which the extra hostline[cli] brings" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_one_command_needs_is_not_loaded_by_another() -> None:
    heavy = {
        "hostline.conformance",
        "hostline.demo",
        "hostline.cli.exchange",
        "hostline.cli.items",
        "hostline.cli.schemas",
        "uvloop",
    }
    program = "import sys, hostline.cli.app; print(*sorted(sys.modules))"
    assert set(python(program).stdout.split()) & heavy == set()


def test_the_module_is_the_command() -> None:
    assert python("import runpy; runpy.run_module('hostline', run_name='__main__')", "--version").returncode == 0


# --- small commands --------------------------------------------------------------------------------------


def test_path_prints_where_an_address_leads(sock_dir: Path) -> None:
    variables = {"HOSTLINE_RUNTIME_DIR": str(sock_dir)}
    for address, found in (("payments", f"{sock_dir}/payments.sock"), ("unix:/x.sock", "/x.sock"), ("@a", "unix:@a")):
        assert hostline("path", address, env=variables).stdout == f"{found}\n".encode()
    assert list(sock_dir.iterdir()) == []


def test_path_says_where_bare_names_live() -> None:
    text = " ".join(hostline("path", "--help").stdout.decode().split())
    assert "in /run/hostline for root, whatever XDG_RUNTIME_DIR says" in text


def test_the_conformance_table_fits_into_100_columns() -> None:
    arguments = ["conformance", "hostline_sync", "socket", "--probe", "mode_000", "--probe", "ordinary", "--details"]
    code, shown = on_terminal(*arguments, columns=100)
    assert code == 0
    report = plain(shown).rpartition("The socket file")[2]
    assert max(map(len, report.splitlines())) <= 100
    assert "✗ 0777" in report
    assert "✓ 0600" in report
    assert "  mode, umask 000: 0777" in report
    assert "hostline misses nothing." in report


def test_the_conformance_table_is_there_as_json_and_markdown() -> None:
    done = hostline("conformance", "hostline_sync", "--probe", "mode_022", "--json")
    (subject,) = json.loads(done.stdout)["subjects"]
    assert (done.returncode, done.stderr) == (0, b"")
    assert subject["cells"]["mode_022"]["verdict"] == "ok"
    done = hostline("conformance", "hostline_sync", "--probe", "mode_022", "--markdown")
    assert "| Subject | mode, umask 022 |" in done.stdout.decode()


def test_the_subjects_and_questions_are_listed() -> None:
    text = hostline("conformance", "--list").stdout.decode()
    assert "hostline_sync" in text
    assert "mode_022" in text
    listed = json.loads(hostline("conformance", "--list", "--json").stdout)
    assert {subject["name"] for subject in listed["subjects"]} >= {"hostline_sync", "asyncio"}
    assert listed["columns"][0]["key"] == "mode_022"


def test_the_demo_is_called_with_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import hostline.demo
    from hostline.cli.commands.demo import demo

    calls: list[dict[str, bool]] = []
    monkeypatch.setattr(hostline.demo, "run", lambda **options: calls.append(options) or 1)
    assert demo(quick=True) == 1
    assert demo(json=True) == 1
    assert calls == [{"quick": True, "json_output": False}, {"quick": False, "json_output": True}]
