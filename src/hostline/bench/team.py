"""One subject at work: its server, its clients, and what they did in the case at hand."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path

from hostline.bench.plan import Case, Entry
from hostline.bench.processes import (
    Answer,
    Process,
    SubjectFailedError,
    cpu_seconds,
    forget_peak,
    peak_memory,
    resident_memory,
    signals_held,
)  # fmt: skip

__all__ = ["Tally", "Team"]

# A share is sized by what the warm-up took; with fewer operations than this one slow one decides.
MIN_COUNT = 5


@dataclass(slots=True)
class Tally:
    """Hold what one subject did in one case.

    Attributes:
        rounds: A figure for each round.
        times: Nanoseconds of every operation, where single ones were timed.
        operations: How many there were.
        cpu: Processor seconds of all its processes, or None where one of them could not be had.
        memory: Peak KiB by side.
        held_kib: KiB of the server's memory for each connection that it held idle, or None.
    """

    rounds: list[float] = field(default_factory=list)
    times: array[int] = field(default_factory=lambda: array("Q"))
    operations: int = 0
    cpu: float | None = 0.0
    memory: dict[str, int] = field(default_factory=dict)
    held_kib: float | None = None


class Team:
    """Run one subject's processes through the cases of one workload."""

    def __init__(self, entry: Entry, directory: Path, tools: Path, workload: str, pin: list[int] | None) -> None:
        self.entry = entry
        self.name = entry.subject.name
        self._pin = pin
        directory.mkdir(mode=0o700)
        self._door = {
            "directory": str(directory),
            "path": str(directory / "s"),
            "workload": workload,
            "tools": str(tools),
        }
        self._server: Process | None = None
        self._clients: list[Process] = []
        self._count = MIN_COUNT
        self._held_kib: float | None = None

    def _start(self, role: str) -> Process:
        entry = self.entry
        return Process(role, entry.module, entry.subject, self._door, self._pin)

    @property
    def server(self) -> Process:
        """The server's process."""
        if self._server is None:
            raise SubjectFailedError("its server is not there")
        return self._server

    def start_server(self) -> None:
        """Start the server without waiting for it."""
        with signals_held():
            self._server = self._start("serve")

    def start_client(self, timeout: float) -> None:
        """Wait until the server listens, and start the client without waiting for it."""
        self._door["port"] = self.server.answer(timeout).facts["port"]
        self._start_client()

    def _start_client(self) -> None:
        with signals_held():
            self._clients.append(self._start("drive"))

    def check(self, timeout: float) -> None:
        """Wait until the client is connected, and let it compare what comes back with what it sent."""
        self._clients[0].answer(timeout)
        self._clients[0].ask({"do": "check"}, timeout)

    def begin(self, case: Case, timeout: float) -> None:
        """Open the connections of a case, and warm up until it is known how many operations a share has."""
        self._set_up(case, timeout)
        count, one = MIN_COUNT, float("inf")
        while True:
            seconds, answers = self._measure(case, count, timeout)
            times = sorted(answers[0].times)
            # The quickest try, or a median: one that something else interrupted says nothing.
            one = min(one, times[len(times) // 2] / 1e9 if times else seconds / count)
            if one * count > case.seconds / 4 or count >= case.count:
                break
            count = min(count * 4, case.count)
        count = int(case.seconds / max(one, 1e-9))
        self._count = min(max(count, MIN_COUNT, case.clients // case.drivers), case.count)
        for process in (self.server, *self._clients):
            forget_peak(process.pids)

    def _set_up(self, case: Case, timeout: float) -> None:
        first = self._clients[0]
        first.ask({"do": "grow", "clients": 1 if case.drivers > 1 else case.clients}, timeout)
        self._held_kib = None
        if case.held:
            before = resident_memory(self.server.pids)
            first.ask({"do": "hold", "count": case.held}, timeout)
            self._held_kib = max(resident_memory(self.server.pids) - before, 0) / case.held
        while len(self._clients) < case.drivers:
            self._start_client()
            self._clients[-1].answer(timeout)
        if case.drivers > 1:
            for client in self._clients:
                client.ask({"do": "grow", "clients": max(case.clients // case.drivers, 1)}, timeout)

    def work(self, case: Case, tally: Tally, timeout: float) -> None:
        """Do one share, and note it."""
        cpu = cpu_seconds(self.server.pids)
        seconds, answers = self._measure(case, self._count, timeout)
        after = cpu_seconds(self.server.pids)
        operations = self._count * case.drivers
        for answer in answers:
            tally.times.extend(answer.times)
            if tally.cpu is not None:
                tally.cpu = None if answer.facts["cpu"] is None else tally.cpu + answer.facts["cpu"]
        if tally.cpu is not None:
            tally.cpu = None if cpu is None or after is None else tally.cpu + after - cpu
        tally.operations += operations
        if case.unit == "1/s":
            tally.rounds.append(operations / seconds)
        else:
            times = sorted(answers[0].times)
            if not times:
                raise SubjectFailedError("its client gave no times")
            tally.rounds.append(times[len(times) // 2] / 1000)

    def _measure(self, case: Case, count: int, timeout: float) -> tuple[float, list[Answer]]:
        """Have the drivers do `count` operations each at once; return the seconds it took and their answers."""
        command = {
            "do": case.action,
            "size": case.size,
            "count": count,
            "window": case.window,
            "is_batched": case.is_batched,
            "fds": case.fds,
        }
        clients = self._clients[: case.drivers]
        for client in clients:
            client.tell(command, timeout)
        answers = [client.answer(timeout) for client in clients]
        if len(answers) == 1 and "elapsed" in answers[0].facts:
            return answers[0].facts["elapsed"] / 1e9, answers
        begin = min(answer.facts["begin"] for answer in answers)
        end = max(answer.facts["end"] for answer in answers)
        return (end - begin) / 1e9, answers

    def finish(self, case: Case, tally: Tally, timeout: float) -> None:
        """Note the memory of a case, and close the connections and clients that only it needed."""
        tally.memory = {
            "client": sum(peak_memory(client.pids) for client in self._clients[: case.drivers]),
            "server": peak_memory(self.server.pids),
        }
        tally.held_kib = self._held_kib
        if case.held:
            self._clients[0].ask({"do": "release"}, timeout)
        if case.drivers > 1:
            _close(self._clients[1:])
            del self._clients[1:]

    def close(self) -> None:
        """End all processes; nothing of them runs afterwards."""
        _close(self._clients)
        self._clients.clear()
        if self._server is not None:
            self._server.close()
            self._server = None


def _close(processes: list[Process]) -> None:
    for process in processes:
        process.begin_to_end()
    for process in processes:
        process.close()
