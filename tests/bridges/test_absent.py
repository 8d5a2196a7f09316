"""Without the extras: nothing of hostline imports them, the bridge that needs one says which, all else goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.running import environment

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("prometheus_client", "opentelemetry"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program in a Python that has none of the extras."""
    command = [sys.executable, "-W", "error", "-c", BLOCKER + program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=15, env=environment())


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("prometheus", 'prometheus-client is not installed; the extra hostline[prometheus] brings it: pip install "'),
        (
            "otel",
            'opentelemetry-api is not installed; the extra hostline[otel] brings it: pip install "hostline[otel]"',
        ),
    ],
)
def test_a_bridge_without_its_extra_names_it(module: str, text: str) -> None:
    done = run(f"import hostline.bridges.{module}")
    assert done.returncode == 1
    assert text in done.stderr.splitlines()[-1]


def test_everything_else_goes_on_without_them(sock_dir: Path) -> None:
    program = """
import hostline
from hostline.bridges.json_log import JSONFormatter
from tests.watched import shop
from hostline.testing.serving import ServiceThread
with ServiceThread(shop(), sys.argv[1], access_log=True) as running:
    print(running.connect().call("task", 1))
"""
    done = run(program, sock_dir / "s")
    assert (done.stdout, done.stderr, done.returncode) == ("2\n", "", 0)


def test_the_command_names_the_extra_that_it_lacks(sock_dir: Path) -> None:
    (sock_dir / "app.py").write_text("import hostline\nshop = hostline.Service('shop')\n", encoding="utf-8")
    program = "from hostline.cli import main\nsys.argv[0] = 'hostline'\nsys.exit(main())"
    done = run(program, "serve", f"{sock_dir}/app.py", "-a", sock_dir / "s", "--metrics", sock_dir / "m")
    assert done.returncode == 1
    assert done.stderr.startswith("error: prometheus-client is not installed; the extra hostline[prometheus] brings it")


def test_importing_hostline_brings_neither_in() -> None:
    program = "import sys, hostline, hostline.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=15, env=environment()
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded & {"prometheus_client", "opentelemetry"} == set()
    assert "hostline.bridges" not in done.stdout.split()
