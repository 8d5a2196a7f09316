"""The process that imports one subject once and forks a fresh process for every command.

Forking, because most probes start several servers and importing some peers takes longer than probing them. Commands
arrive on standard input and events leave on standard output, one JSON object a line. Only this process signals and
reaps the others, so that no process id can be reused under a signal; when its standard input ends it kills what is left
and goes. Its other side is `workshop.py`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import os
import selectors
import signal
import socket
import sys
from types import ModuleType
from typing import Any

from hostline.conformance.program import ABILITIES, describe_error, perform


class _Foreman:
    """Fork, signal and reap the processes of one subject."""

    def __init__(self, subject: ModuleType, logs: str, out: int) -> None:
        self._subject = subject
        self._logs = logs
        self._out = out
        self._pids: dict[int, int] = {}  # by command id
        self._buffer = b""
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._wake_in.setblocking(False)

    def emit(self, ident: int, event: str, **facts: Any) -> None:
        """Write one event; one write below PIPE_BUF each, so that processes sharing the pipe do not mix lines."""
        _write(self._out, ident, event, **facts)

    def run(self) -> int:
        """Obey until standard input ends; in a forked child, return that child's exit status."""
        signal.set_wakeup_fd(self._wake_in.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(self._wake_out, selectors.EVENT_READ)
            self.emit(0, "hello", can=[name for name in ABILITIES if hasattr(self._subject, name)])
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if self._wake_out.fileno() in ready:
                    self._wake_out.recv(4096)
                    self._reap()
                if 0 not in ready:
                    continue
                chunk = os.read(0, 65536)
                if not chunk:
                    break
                *lines, self._buffer = (self._buffer + chunk).split(b"\n")
                for line in lines:
                    command = json.loads(line)
                    if command["do"] == "signal":
                        self._signal(command["id"], command["number"])
                    elif self._fork(command["id"]):
                        selector.close()
                        return perform(self._subject, command, functools.partial(self.emit, command["id"]))
        for pid in self._pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        return 0

    def _fork(self, ident: int) -> bool:
        """Fork a process for one command; return whether this is the new one."""
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            with contextlib.suppress(PermissionError, ProcessLookupError):
                os.setpgid(pid, pid)
            self._pids[ident] = pid
            self.emit(ident, "forked", pid=pid)
            return False
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._wake_out.close()
        self._wake_in.close()
        for fd, name, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, f"{self._logs}/{ident}", os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        ):
            opened = os.open(name, flags, 0o600)
            os.dup2(opened, fd)
            os.close(opened)
        os.dup2(1, 2)
        return True

    def _signal(self, ident: int, number: int) -> None:
        pid = self._pids.get(ident)
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            # SIGKILL means that the whole server dies, workers included; everything else goes to its main process.
            os.killpg(pid, number) if number == signal.SIGKILL else os.kill(pid, number)

    def _reap(self) -> None:
        for ident, pid in list(self._pids.items()):
            # Looked at before it is reaped: until then the number is not reused, and the rest of the group can go too.
            if hasattr(os, "waitid"):
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    continue
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
            reaped, status, usage = os.wait4(pid, os.WNOHANG)
            if reaped:
                del self._pids[ident]
                code = os.waitstatus_to_exitcode(status)
                self.emit(ident, "exit", status=code, cpu=usage.ru_utime + usage.ru_stime)


def _write(out: int, ident: int, event: str, **facts: Any) -> None:
    os.write(out, json.dumps({"id": ident, "event": event, **facts}).encode() + b"\n")


def _load(name: str) -> ModuleType:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location("conformance_subject", name)
    if spec is None or spec.loader is None:
        raise ImportError(f"no subject in {name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main(arguments: list[str]) -> int:
    """Import a subject, a module's name or a `.py` file, and obey."""
    module, logs = arguments
    out = os.dup(1)
    os.dup2(2, 1)  # what a subject prints goes to the log
    try:
        subject = _load(module)
    except Exception as error:
        _write(out, 0, "failed", failure=describe_error(error))
        return 1
    return _Foreman(subject, logs, out).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
