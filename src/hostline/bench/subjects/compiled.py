"""C and Go over the same sockets, compiled where a compiler is there; C is what all others are measured against."""

from __future__ import annotations

import functools
import os
import subprocess
from array import array
from collections.abc import Callable
from pathlib import Path

from hostline.bench.subject import Door, Driver, Subject
from hostline.bench.subjects.sockets import listening_socket

__all__ = ["SUBJECTS", "compile_c", "compile_go"]

SOURCES = Path(__file__).resolve().parents[1] / "native"
# Seconds for a compiler; Go's builds its whole library the first time.
COMPILE_TIMEOUT = 120


def compile_c(directory: str) -> None:
    """Compile the C program into a directory.

    Raises:
        RuntimeError: The compiler refused.
    """
    _compile(["cc", "-O2", "-o", f"{directory}/c", str(SOURCES / "pingpong.c")], {})


def compile_go(directory: str) -> None:
    """Compile the Go program into a directory.

    Raises:
        RuntimeError: The compiler refused.
    """
    environment = {} if "HOME" in os.environ or "GOCACHE" in os.environ else {"GOCACHE": f"{directory}/go-cache"}
    _compile(["go", "build", "-o", f"{directory}/go", str(SOURCES / "pingpong.go")], environment)


def _compile(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=COMPILE_TIMEOUT, check=False,
        env={**os.environ, **environment}, cwd="/",
    )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(f"{command[0]} failed: {lines[0] if lines else done.returncode}")


def _serve(door: Door, language: str) -> None:
    """Bind, say so, and become the program, which inherits the listening socket."""
    listener = listening_socket(door)
    listener.set_inheritable(True)
    door.ready(listener.getsockname()[1] if door.transport == "tcp" else 0)
    binary = f"{door.tools}/{language}"
    workload = [door.workload] if language == "c" else []
    os.execv(binary, [binary, "serve", door.transport, *workload, str(listener.fileno())])  # noqa: S606 - on purpose: there is no shell in it


class _Program(Driver):
    """Speak to the client program, which is a child of this process."""

    can_grow = True

    def __init__(self, door: Door, language: str) -> None:
        where = str(door.port) if door.transport == "tcp" else door.path
        workload = [door.workload] if language == "c" else []
        command = [f"{door.tools}/{language}", "drive", door.transport, *workload, where]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _ask(self, line: str, data: bytes = b"") -> bytes:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:  # cannot be: both were asked for
            raise EOFError("the program has no pipes")
        try:
            stdin.write(line.encode() + b"\n" + data)
            stdin.flush()
        except BrokenPipeError:
            raise EOFError(f"the program ended with {self._process.wait(5)}") from None
        size = stdout.read(8)
        if len(size) < 8:
            raise SystemExit(1)  # its own words stand last on standard error
        return stdout.read(int.from_bytes(size, "little"))

    def pids(self) -> list[int]:
        return [self._process.pid]

    def grow(self, clients: int) -> None:
        self._ask(f"grow {clients}")

    def hold(self, count: int) -> Callable[[], None]:
        self._ask(f"hold {count}")

        def release() -> None:
            self._ask(f"release {count}")

        return release

    def echo(self, data: bytes) -> bytes:
        return self._ask(f"echo {len(data)}", data)

    def latency(self, size: int, count: int) -> array[int]:
        return array("Q", self._ask(f"latency {size} {count}"))

    def transfer(self, size: int, count: int) -> array[int]:
        return array("Q", self._ask(f"transfer {size} {count}"))

    def one_way(self, size: int, count: int, is_batched: bool) -> int:
        return int.from_bytes(self._ask(f"one_way {size} {count} {int(is_batched)}"), "little")

    def pipelined(self, size: int, count: int, window: int) -> int:
        return int.from_bytes(self._ask(f"pipelined {size} {count} {window}"), "little")

    def reconnect(self, count: int) -> array[int]:
        return array("Q", self._ask(f"reconnect {count}"))

    def pass_fds(self, fds: int, count: int) -> array[int]:
        return array("Q", self._ask(f"pass_fds {fds} {count}"))

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(5)


def _subject(name: str, transport: str, *workloads: str, is_quick: bool = False) -> Subject:
    language, compiler, package = ("go", "go", "golang") if name.startswith("Go") else ("c", "cc", "gcc")
    return Subject(
        name=name, layer="raw", transport=transport, style=language, workloads=frozenset(workloads),
        serve=functools.partial(_serve, language=language), drive=functools.partial(_Program, language=language),
        needs=(f"program:{compiler}",), install=f"install {package} with the system's packages",
        prepare=compile_go if language == "go" else compile_c, is_quick=is_quick,
    )  # fmt: skip


SUBJECTS = (
    _subject(
        "C", "unix", "latency", "transfer", "pipelined", "one-way", "batched", "connect", "fanin", "kinds", "fds",
        "idle", "solo", is_quick=True,
    ),
    _subject("C over TCP", "tcp", "latency", "transfer", "one-way", "batched", "connect", "fanin", is_quick=True),
    _subject("C seqpacket", "seqpacket", "kinds", "one-way", "batched", is_quick=True),
    _subject("C datagram", "datagram", "kinds", "one-way", "batched", is_quick=True),
    _subject("Go", "unix", "latency", "transfer"),
    _subject("Go over TCP", "tcp", "latency", "transfer"),
)  # fmt: skip
