"""The command's tree: which sub-commands there are, in which order, and `--version`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from hostline.cli.commands import bench, call, conformance, demo, describe, diff, echo, path, serve, stubs
from hostline.cli.commands import cat as cat_command
from hostline.cli.commands import run as run_command
from hostline.cli.exits import ExitCode, report_output, reported
from hostline.cli.streams import OutputError, close_output

__all__ = ["app", "run"]

EXAMPLES = (
    ("hostline demo", "see it work, in under a minute"),
    ("hostline serve ./payments.py", "serve a service"),
    ("hostline describe payments", "what it offers, and how to call it"),
    ("hostline call payments hostline.health", "call what every service answers"),
    ("hostline echo /tmp/x.sock", "a server to try things with"),
    ("hostline cat /tmp/x.sock", "talk to any Unix socket"),
)


class _Command(TyperCommand):
    """A command whose usage line names required arguments without braces."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line."""
        return [re.sub("[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]


class _Group(TyperGroup):
    """The command itself; its sub-commands are listed in the order they are added."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the sub-commands."""
        return list(self.commands)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples and the exit codes, each meaning wrapped beside its code."""
        with formatter.section("Examples"):
            formatter.write_dl(EXAMPLES, col_max=40)
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code.value), code.meaning) for code in ExitCode])
        formatter.write_paragraph()
        formatter.write_text("Every command explains itself with --help.")


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    # Plain text: it reads the same in a pipe, a pager and a narrow window, and takes half the time to appear.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if not is_asked:
        return
    import platform

    from hostline._core import advice, describe_core
    from hostline._version import __version__

    python = f"{platform.python_implementation()} {platform.python_version()}"
    machine = f"{platform.system()} {platform.release()} {platform.machine()}"
    print(f"hostline {__version__}, {python}, {describe_core()}, {machine}")
    if text := advice():
        print(text)
    raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the versions and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Unix domain sockets done right: safe socket files, known peers, typed calls."""


def _add(name: str, function: Callable[..., int | None], examples: str, **settings: Any) -> None:
    app.command(name, cls=_Command, epilog=examples, **settings)(reported(function))


_add("serve", serve.serve, serve.EXAMPLES)
_add("call", call.call, call.EXAMPLES)
_add("describe", describe.describe, describe.EXAMPLES)
_add("stubs", stubs.stubs, stubs.EXAMPLES)
_add("diff", diff.diff, diff.EXAMPLES)
_add("echo", echo.echo, echo.EXAMPLES)
_add("cat", cat_command.cat, cat_command.EXAMPLES)
_add(
    "run",
    run_command.run,
    run_command.EXAMPLES,
    options_metavar="-l ADDRESS [OPTIONS] --",
    # What follows the program's name is the program's, also without the two dashes.
    context_settings={"allow_interspersed_args": False},
)
_add("path", path.path, path.EXAMPLES)
_add("demo", demo.demo, demo.EXAMPLES)
_add("conformance", conformance.conformance, conformance.EXAMPLES)
_add("bench", bench.bench, bench.EXAMPLES)


def run() -> None:
    """Run the command with the arguments of this process, and leave with its exit code."""
    try:
        try:
            app(prog_name="hostline")
        finally:
            sys.stdout.flush()  # what --help and --version wrote; a command has seen to its own
    except BrokenPipeError:
        close_output()
        sys.exit(ExitCode.BROKEN_PIPE)
    except OutputError as error:
        sys.exit(report_output(error))
