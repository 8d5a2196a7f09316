"""`hostline serve`: what it imports, where it listens, how it ends, and what it says when it cannot."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from hostline.aio import Service
from hostline.cli.commands import serve
from hostline.cli.exits import ExitCode
from hostline.rpc.settings import ServerSettings
from hostline.testing import ServeOptions
from tests.cli.running import Running, accepts, hostline
from tests.leaks import wait_until
from tests.tree import TREE

SHOP = Path(__file__).with_name("shop.py")


def serving(sock_dir: Path, target: object, *options: object, cwd: Path | None = None) -> str:
    """Serve a target until SIGTERM and return what was logged."""
    path = sock_dir / "x"
    with Running("serve", target, "-a", path, *options, ready="serving", cwd=cwd) as server:
        assert json.loads(hostline("call", path, "hostline.health").stdout)["status"] == "ok"
        assert server.stop() == ExitCode.OK
        assert server.out == ""
        assert not path.exists()
        return server.err


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_file_is_served_until_sigterm_and_ends_with_0(sock_dir: Path, loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed")
    log = serving(sock_dir, f"{SHOP}:shop", "--loop", loop)
    assert f"INFO hostline: serving shop on {sock_dir}/x" in log
    assert "stopped" in log


def test_a_module_is_found_in_the_working_directory(sock_dir: Path) -> None:
    (sock_dir / "package").mkdir()
    (sock_dir / "package" / "__init__.py").touch()
    (sock_dir / "package" / "app.py").write_text(
        "import helper\nfrom hostline import Service\nthing = Service('thing')"
    )
    (sock_dir / "helper.py").touch()
    serving(sock_dir, "package.app:thing", cwd=sock_dir)


def test_a_file_finds_what_lies_beside_it_and_the_name_may_be_left_out(sock_dir: Path) -> None:
    (sock_dir / "app.py").write_text("import helper\nfrom hostline import Service\nthing = also = Service('thing')")
    (sock_dir / "helper.py").touch()
    serving(sock_dir, f"{sock_dir}/app.py", cwd=Path("/"))


def test_a_file_named_like_a_module_of_python_takes_nobodys_place(sock_dir: Path) -> None:
    (sock_dir / "json.py").write_text("import dataclasses\nfrom hostline import Service\nthing = Service('thing')")
    serving(sock_dir, "./json.py:thing", cwd=sock_dir)


def test_the_example_is_served_under_its_bare_name(sock_dir: Path) -> None:
    environment = {"HOSTLINE_RUNTIME_DIR": str(sock_dir)}
    with Running("serve", "payments:payments", ready="serving", cwd=TREE / "examples", env=environment) as server:
        arguments = '[{"id": 1, "sku": "tea", "quantity": 2, "price": 4.5}]'
        done = hostline("call", "payments", "charge", arguments, env=environment)
        assert done.stdout == b'{"order":1,"total":9.0}\n'
        assert hostline("path", "payments", env=environment).stdout == f"{sock_dir}/payments.sock\n".encode()
        assert server.stop() == 0


def test_the_mode_and_the_group_are_those_asked_for(sock_dir: Path) -> None:
    path = sock_dir / "x"
    group = os.getgid()
    with Running("serve", f"{SHOP}:shop", "-a", path, "--mode", "0660", "--group", group, ready="serving") as server:
        status = path.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, group)
        assert server.stop() == 0


def test_what_peers_wrote_is_escaped_in_the_log(sock_dir: Path) -> None:
    path = sock_dir / "x"
    with Running("serve", f"{SHOP}:shop", "-a", path, ready="serving") as server:
        assert hostline("call", path, "complain", r'["\u001b]0;pwned\u0007\n\tend"]').returncode == ExitCode.INTERNAL
        server.wait_for("end")
        assert "ValueError: bad \\x1b]0;pwned\\x07\n\tend\n" in server.err
        assert not {c for c in server.err if not c.isprintable()} - set("\n\t")
        assert server.stop() == 0


def test_calls_that_run_are_finished_after_sigterm(sock_dir: Path) -> None:
    path = sock_dir / "x"
    with Running("serve", f"{SHOP}:shop", "-a", path, "--log-level", "warning") as server:
        assert wait_until(lambda: accepts(path), 10)
        with Running("call", path, "wait", "3") as call:

            def is_running() -> bool:
                return bool(json.loads(hostline("call", path, "hostline.stats").stdout)["calls"]["running"])

            assert wait_until(is_running, 10)
            assert server.stop() == 0
            assert (call.wait(), call.out) == (0, "null\n")
        assert server.err == ""


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nomodule:x", "there is no module 'nomodule'"),
        ("./none.py:x", "./none.py does not exist"),
        ("/tmp/:x", "/tmp/ is a directory"),
        (":x", "must be MODULE:SERVICE"),
        ("x:", "must be MODULE:SERVICE"),
        ("SHOP", "write which service to serve"),
        ("SHOP:shp", "has no 'shp'; the services in it are other, shop"),
        ("SHOP:not_a_service", "is a int, not a hostline.Service; the services in it are other, shop"),
        ("./empty.py:x", "there is no service in it"),
    ],
)
def test_what_cannot_be_served_is_said_in_words(sock_dir: Path, target: str, words: str) -> None:
    (sock_dir / "empty.py").touch()
    done = hostline("serve", target.replace("SHOP", str(SHOP)), cwd=sock_dir)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, b""), done
    assert words in done.stderr.decode()
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1


def test_a_module_that_fails_shows_its_own_traceback_only(sock_dir: Path) -> None:
    (sock_dir / "broken.py").write_text("def inner():\n    import nothing_of_this_name\n\ninner()\n")
    for target in ("broken:x", "./broken.py:x"):
        done = hostline("serve", target, cwd=sock_dir)
        assert done.returncode == ExitCode.FAILURE
        text = done.stderr.decode()
        assert text.startswith("Traceback (most recent call last):\n  File")
        assert text.count("  File ") == 2
        assert "ModuleNotFoundError: No module named 'nothing_of_this_name'" in text
        assert text.endswith("could not be imported: ModuleNotFoundError\n")
    (sock_dir / "program.py").write_text("raise SystemExit(3)\n")
    done = hostline("serve", "program:x", cwd=sock_dir)
    assert done.returncode == ExitCode.FAILURE
    assert b"__name__ == '__main__'" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_second_server_is_refused_and_a_killed_one_leaves_the_way_free(sock_dir: Path) -> None:
    path = sock_dir / "x"
    with Running("serve", f"{SHOP}:shop", "-a", path, ready="serving") as server:
        second = hostline("serve", f"{SHOP}:shop", "-a", path)
        assert second.returncode == ExitCode.CANNOT_LISTEN
        assert f"pid {server.process.pid}" in second.stderr.decode()
        server.stop(signal.SIGKILL)
        assert path.exists()
    serving(sock_dir, f"{SHOP}:shop")


# --- every way to the same bounds ----------------------------------------------------------------------


BOUNDS: dict[str, Any] = {
    "access_log": True,
    "concurrency": 3,
    "queue": 5,
    "threads": 2,
    "grace": 1.5,
    "max_frame_size": 1 << 18,
    "max_connections": 50,
    "max_connections_per_uid": 7,
    "max_connection_rate_per_uid": 9.0,
    "max_calls_per_uid": 11,
    "max_buffered_per_uid": 1 << 21,
    "max_descriptors_per_uid": 13,
    "idle_timeout": 60.0,
    "ping_interval": 2.0,
    "ping_timeout": 3.0,
}


def keywords_of(function: Any) -> set[str]:
    return {name for name in inspect.signature(function).parameters if name != "self"}


def test_each_bound_is_a_keyword_of_serve_run_the_plugin_and_the_command() -> None:
    settings = {field.name for field in dataclasses.fields(ServerSettings)}
    assert settings == {*BOUNDS, "offer_takeover"}
    assert settings <= keywords_of(Service.serve)
    assert keywords_of(Service.run) == keywords_of(Service.serve) | {
        "workers",
        "loop_factory",
        "on_start",
    }
    assert {*ServeOptions.__annotations__, "address", "grace"} == keywords_of(Service.serve)
    assert {*BOUNDS, "takeover", "no_offer", "workers"} <= keywords_of(serve.serve)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_command_and_run_hand_each_bound_on(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    given: list[ServerSettings] = []
    service = Service("bounds")
    monkeypatch.setattr("hostline.cli.loading.load_service", lambda target: service)
    monkeypatch.setattr("hostline.cli.forked.name_in_child", lambda target: service.name)
    monkeypatch.setattr(
        "hostline.aio.serving.service.run_in_workers", lambda *args, settings, **options: given.append(settings)
    )
    monkeypatch.setattr(Service, "_serving", lambda self, wanted, settings, allow, takeover: given.append(settings))
    monkeypatch.setattr("hostline.aio.serving.service.run_on", lambda *args: None)
    monkeypatch.setattr("hostline.cli.commands.serve._start_logging", lambda level, form: None)
    serve.serve("bounds:service", workers=workers, **BOUNDS)
    service.run(workers=workers, **BOUNDS)
    assert given == [ServerSettings(**BOUNDS)] * 2
