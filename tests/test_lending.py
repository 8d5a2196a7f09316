"""A listener can be lent: others accept from it, while its file stays safe and stays ours to unlink."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hostline.aio import sockets as aio_sockets
from hostline.sync import sockets as sync_sockets
from tests.leaks import wait_until

MODULES = [pytest.param(sync_sockets, id="sync"), pytest.param(aio_sockets, id="aio")]

ASGI_APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello over a lent socket"})
"""

WSGI_APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello over a lent socket"]
"""


# What a service manager does: the socket as descriptor 3, and two variables that say so.
BY_LISTEN_FDS = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])
"""


class UnixHTTP(http.client.HTTPConnection):
    """Speak HTTP to a socket file."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(str(self.path))


def get(path: Path) -> bytes:
    connection = UnixHTTP(path)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read()
    finally:
        connection.close()


def ask(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        sock.sendall(b"ping\n")
        return sock.recv(100)


# From Python 3.13 on asyncio removes a socket's file when its server closes, unless it is told not to.
LEAVE_THE_FILE: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


async def pong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"pong " + await reader.readline())
    await writer.drain()
    writer.close()


@pytest.mark.parametrize("module", MODULES)
def test_asyncio_start_unix_server_takes_the_socket(module: Any, sock_dir: Path, run_async: Callable[..., Any]) -> None:
    async def main() -> None:
        listener = module.listen(sock_dir / "s")
        assert (sock_dir / "s").stat().st_mode & 0o777 == 0o600
        server = await asyncio.start_unix_server(pong, sock=listener.socket)
        assert await asyncio.to_thread(ask, sock_dir / "s") == b"pong ping\n"
        server.close()
        listener.close()

    run_async(main)
    assert not (sock_dir / "s").exists()


@pytest.mark.parametrize("module", MODULES)
def test_socketserver_takes_the_socket(module: Any, sock_dir: Path) -> None:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"pong " + self.rfile.readline())

    listener = module.listen(sock_dir / "s")
    server = socketserver.ThreadingUnixStreamServer(str(sock_dir / "s"), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener.socket
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        assert ask(sock_dir / "s") == b"pong ping\n"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        listener.close()
    assert not (sock_dir / "s").exists()


@pytest.mark.ci_required
@pytest.mark.parametrize("module", MODULES)
def test_aiohttp_takes_the_socket(module: Any, sock_dir: Path) -> None:
    web = pytest.importorskip("aiohttp.web", reason="aiohttp is not installed")

    async def main() -> bytes:
        async def hello(request: Any) -> Any:
            return web.Response(text="hello over a lent socket")

        app = web.Application()
        app.router.add_get("/", hello)
        runner = web.AppRunner(app)
        await runner.setup()
        listener = module.listen(sock_dir / "s")
        await web.SockSite(runner, listener.socket).start()
        try:
            return await asyncio.to_thread(get, sock_dir / "s")
        finally:
            await runner.cleanup()
            listener.close()

    assert asyncio.run(main()) == b"hello over a lent socket"
    assert not (sock_dir / "s").exists()


@pytest.mark.ci_required
@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("how", ["by number", "by LISTEN_FDS"])
@pytest.mark.parametrize("server", ["uvicorn", "gunicorn"])
def test_web_servers_take_the_descriptor(module: Any, server: str, how: str, sock_dir: Path) -> None:
    pytest.importorskip(server, reason=f"{server} is not installed")
    (sock_dir / "lent_app.py").write_text(ASGI_APP if server == "uvicorn" else WSGI_APP)
    listener = module.listen(sock_dir / "s")
    number = listener.fileno() if how == "by number" else 3
    if server == "uvicorn":
        arguments = ["uvicorn", "--fd", str(number), "--app-dir", str(sock_dir), "lent_app:app"]
    else:
        arguments = ["gunicorn", "--chdir", str(sock_dir), "lent_app:app"]
        if how == "by number":
            arguments[1:1] = ["--bind", f"fd://{number}"]
        if has_control_socket():
            arguments[1:1] = ["--no-control-socket"]
    launch = ["-c", BY_LISTEN_FDS, str(listener.fileno())] if how == "by LISTEN_FDS" else ["-m"]
    process = subprocess.Popen(
        [sys.executable, *launch, *arguments],
        pass_fds=[listener.fileno()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=sock_dir,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    try:
        # The listener is there before the server, so that the request simply waits in the backlog.
        assert wait_until(lambda: answers(process, sock_dir / "s"), 15)
        assert (sock_dir / "s").stat().st_mode & 0o777 == 0o600
    finally:
        process.terminate()
        assert wait_until(lambda: process.poll() is not None, 10)
    if (server, how) != ("gunicorn", "by number"):
        # The server has gone; the file is still there, and ours. Only gunicorn unlinks what it was lent by number.
        assert (sock_dir / "s").is_socket()
    listener.close()
    assert not (sock_dir / "s").exists()


def answers(process: subprocess.Popen[bytes], path: Path) -> bool:
    assert process.poll() is None, f"the server ended with {process.returncode}"
    try:
        return get(path) == b"hello over a lent socket"
    except TimeoutError:
        return False


def has_control_socket() -> bool:
    """Say whether this gunicorn opens a control socket of its own, which has no place in this test."""
    from gunicorn.config import KNOWN_SETTINGS

    return any("--no-control-socket" in (setting.cli or ()) for setting in KNOWN_SETTINGS)


@pytest.mark.parametrize("module", MODULES)
def test_the_lender_accepts_again_when_the_borrower_is_done(
    module: Any, sock_dir: Path, run_async: Callable[..., Any]
) -> None:
    async def main() -> None:
        listener = module.listen(sock_dir / "s")
        borrowed = socket.socket(fileno=os.dup(listener.fileno()))
        server = await asyncio.start_unix_server(pong, sock=borrowed, **LEAVE_THE_FILE)
        try:
            assert await asyncio.to_thread(ask, sock_dir / "s") == b"pong ping\n"
        finally:
            server.close()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(sock_dir / "s"))
            accepted = listener.accept(timeout=5)
            (await accepted if module is aio_sockets else accepted).close()
        listener.close()

    run_async(main)
    assert not (sock_dir / "s").exists()


def test_grpc_cannot_take_one() -> None:
    """Its Python package binds by itself, to a path only; the day this fails the documentation can say so."""
    pytest.importorskip("grpc", reason="grpcio is not installed")
    program = """
import concurrent.futures, grpc
from hostline.sync.sockets import listen
server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
with listen("unix:@hostline-test-grpc") as listener:
    for address in (f"fd:{listener.fileno()}", f"unix-fd:{listener.fileno()}"):
        try:
            print(server.add_insecure_port(address))
        except RuntimeError as error:
            print("Failed to bind" in str(error))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=15)
    assert result.stdout == "True\nTrue\n", result.stderr
