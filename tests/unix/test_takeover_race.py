"""Several processes want one path at the same instant: exactly one gets it, every time, and is the one reached there.

Four contenders live through all trials and are started together, within microseconds, by a flag in shared memory. In
some trials the winner is killed and leaves the file that the next trial is about; in some, a contender is killed in the
middle of the contest. The same contest run with the usual recipe (probe, unlink, bind) has to find double owners, or it
proves nothing.

HOSTLINE_RACE_TRIALS=2000   trials of the long test
"""

from __future__ import annotations

import mmap
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from tests.second_user import Fork
from tests.unix.processes import TYPES

from hostline.errors import AddressInUseError
from hostline.unix.address import PathAddress
from hostline.unix.listening import listening_socket

KINDS = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET, "datagram": socket.SOCK_DGRAM}
CONTENDERS = 4
TRIALS = int(os.environ.get("HOSTLINE_RACE_TRIALS", "2000"))

# Seconds within which a contender must answer; one that does not hangs.
PATIENCE = 10.0

# Bytes of one answer: short enough that a pipe takes it whole.
ANSWER_SIZE = 200


class Held(Protocol):
    """What a contender that won holds."""

    sock: socket.socket

    def close(self) -> None: ...


class Refused(Exception):
    """Another contender has the path; `pid` is the one that the refusal names."""

    def __init__(self, pid: int | None = None, text: str = "") -> None:
        super().__init__(text)
        self.pid = pid or 0


Contend = Callable[[str, str], Held]


def contend_properly(path: str, socket_type: Any) -> Held:
    try:
        return listening_socket(PathAddress(path), socket_type)
    except AddressInUseError as error:
        raise Refused(error.pid, error.reason) from error


class Naive:
    """The usual recipe: a socket that refuses connections is dead, so unlink it and bind."""

    def __init__(self, path: str, socket_type: str) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, KINDS[socket_type])
        self.sock.setblocking(False)
        try:
            with socket.socket(socket.AF_UNIX, KINDS[socket_type]) as asking:
                asking.setblocking(False)
                try:
                    asking.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)
                except FileNotFoundError:
                    pass
                else:
                    raise Refused
            self.sock.bind(path)
            if socket_type != "datagram":
                self.sock.listen()
        except OSError as error:
            self.sock.close()
            raise Refused from error
        except Refused:
            self.sock.close()
            raise

    def close(self) -> None:
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
        self.sock.close()


# --- contenders ----------------------------------------------------------------------------------------


class Contender:
    """One process that takes part in trial after trial."""

    def __init__(self, contend: Contend, path: str, start: mmap.mmap, others: list[Contender]) -> None:
        command, self.commands = os.pipe()
        self.answers, answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                random.seed()
                # What the coordinator holds must end with it, so that nobody outlives it.
                for fd in (self.commands, self.answers, *(fd for one in others for fd in (one.commands, one.answers))):
                    os.close(fd)
                take_part(contend, path, start, command, answer)
            finally:
                os._exit(1)
        os.close(command)
        os.close(answer)

    def tell(self, command: bytes) -> None:
        os.write(self.commands, command)

    def hear(self) -> bytes:
        """Return one answer, or nothing if the contender has died."""
        if not select.select([self.answers], [], [], PATIENCE)[0]:
            raise TimeoutError(f"contender {self.pid} hangs")
        return os.read(self.answers, ANSWER_SIZE).rstrip()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def forget(self) -> None:
        os.close(self.commands)
        os.close(self.answers)


@contextmanager
def stumbling(probability: float) -> Iterator[None]:
    """Pause for an instant before some of the system calls of the block.

    Left alone, a contender on a quiet machine of few cores often comes through within one turn of the scheduler, and
    there is no race to lose.
    """

    def stumble(frame: object, event: str, called: object) -> None:
        if event == "c_call" and random.random() < probability:
            time.sleep(random.random() * 1e-4)

    sys.setprofile(stumble)
    try:
        yield
    finally:
        sys.setprofile(None)


def take_part(contend: Contend, path: str, start: mmap.mmap, command: int, answer: int) -> None:
    """Obey until the coordinator is gone: `G` and the type's number contend, `R` release, `C` say what arrived."""
    held: Held | None = None

    def say(words: str | bytes) -> None:
        os.write(answer, (words if isinstance(words, bytes) else words.encode())[:ANSWER_SIZE].ljust(ANSWER_SIZE))

    while what := os.read(command, 1):
        if what == b"G":
            socket_type = TYPES[int(os.read(command, 1))]
            number = start[0]
            say("ready")
            while start[0] == number:
                os.sched_yield()  # there may be more contenders than cores
            try:
                with stumbling(0.1):
                    held = contend(path, socket_type)
                say("owner")
            except Refused as refused:
                say(f"refused {refused.pid} {refused}")
            except BaseException as error:
                say(f"error {error!r}")
        elif what == b"C" and held is not None:
            try:
                say(held.sock.recv(8))
            except OSError:
                say("nothing")
        elif what == b"R" and held is not None:
            held.close()
            held = None
            say("released")


# --- the contest ---------------------------------------------------------------------------------------


@dataclass
class Result:
    """What a number of trials showed."""

    trials: int = 0
    owners: Counter[int] = field(default_factory=Counter)
    refusals: int = 0
    winners_killed: int = 0
    killed_midway: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


class Contest:
    """Coordinates the contenders, judges each trial, and kills some."""

    def __init__(self, contend: Contend, path: str, kills: bool, seed: int, contenders: int = CONTENDERS) -> None:
        self.contend, self.path, self.kills = contend, path, kills
        self.random = random.Random(seed)
        self.start = mmap.mmap(-1, 1)
        self.contenders: list[Contender] = []
        self.result = Result()
        for _ in range(contenders):
            self.spawn()

    def spawn(self) -> None:
        self.contenders.append(Contender(self.contend, self.path, self.start, self.contenders))

    def run(self, trials: int, until_fault: bool) -> Result:
        began = time.monotonic()
        try:
            for trial in range(trials):
                self.trial(trial, TYPES[trial % 3])
                if self.result.faults and until_fault:
                    break
        finally:
            for contender in self.contenders:
                contender.kill()
                contender.forget()
        self.result.seconds = time.monotonic() - began
        return self.result

    def trial(self, trial: int, socket_type: str) -> None:
        self.result.trials += 1
        if not os.path.lexists(self.path):
            with socket.socket(socket.AF_UNIX, KINDS[self.random.choice(TYPES)]) as dead:
                dead.bind(self.path)
        victim = self.random.choice(self.contenders) if self.kills and self.random.random() < 0.1 else None
        for contender in self.contenders:
            contender.tell(b"G%d" % TYPES.index(socket_type))
        for contender in self.contenders:
            assert contender.hear() == b"ready"
        self.start[0] = (self.start[0] + 1) % 256
        if victim is not None:
            time.sleep(self.random.random() * 0.002)  # somewhere in the time that it takes
            victim.kill()
            self.result.killed_midway += 1
        answers = {contender: contender.hear() for contender in self.contenders}
        owners = [one for one, answer in answers.items() if answer == b"owner" and one is not victim]
        self.result.owners[len(owners)] += 1
        for contender, answer in answers.items():
            if answer.startswith(b"error") or (not answer and contender is not victim):
                self.fault(trial, f"contender {contender.pid} failed: {answer!r}")
            elif answer.startswith(b"refused"):
                self.result.refusals += 1
                self.check_refusal(trial, answer.decode(), owners, victim)
        # With a contender killed in the middle, the others may all have been refused while it still held the lock.
        if len(owners) > 1 or (not owners and victim is None):
            self.fault(trial, f"{len(owners)} owners")
        self.end(trial, socket_type, owners, victim)

    def check_refusal(self, trial: int, answer: str, owners: list[Contender], victim: Contender | None) -> None:
        """Whoever is refused by hostline is told the pid of the one who has the path.

        A process that is being killed may let go of the lock an instant before it lets go of the socket, which tells no
        pid unless it listens.
        """
        possible = {one.pid for one in (*owners, *([victim] if victim else []))}
        is_dying = victim is not None and answer.startswith("refused 0 a live socket")
        if self.contend is contend_properly and int(answer.split()[1]) not in possible and not is_dying:
            killed = victim.pid if victim else None
            self.fault(trial, f"owner {[one.pid for one in owners]}, killed {killed}, {answer}")

    def end(self, trial: int, socket_type: str, owners: list[Contender], victim: Contender | None) -> None:
        for owner in owners:
            if len(owners) == 1 and not self.is_reached(owner, socket_type, trial):
                self.fault(trial, f"the owner {owner.pid} is not the one reached at the path")
        if victim is not None:
            self.replace(victim)
        if len(owners) == 1 and self.kills and self.random.random() < 0.15:
            owners[0].kill()
            self.replace(owners[0])
            self.result.winners_killed += 1
            if not os.path.lexists(self.path):
                self.fault(trial, "the file of a killed winner is gone")
            return
        for owner in owners:
            owner.tell(b"R")
            assert owner.hear() == b"released"
        if owners and os.path.lexists(self.path):
            self.fault(trial, "the file is still there after release")

    def is_reached(self, owner: Contender, socket_type: str, trial: int) -> bool:
        with socket.socket(socket.AF_UNIX, KINDS[socket_type]) as client:
            try:
                client.connect(self.path)
                if socket_type == "datagram":
                    token = b"%08d" % trial
                    client.send(token)
                    owner.tell(b"C")
                    return owner.hear() == token
            except OSError:
                return False
            raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            return bool(struct.unpack("iII", raw)[0] == owner.pid)

    def replace(self, contender: Contender) -> None:
        contender.forget()
        self.contenders.remove(contender)
        self.spawn()

    def fault(self, trial: int, text: str) -> None:
        self.result.faults.append(f"trial {trial}: {text}")


def hold_contest(
    path: Path,
    contend: Contend,
    trials: int,
    kills: bool = True,
    until_fault: bool = False,
    *,
    contenders: int = CONTENDERS,
    timeout: float = 100.0,
) -> Result:
    seed = random.randrange(1 << 32)

    def work() -> Result:
        return Contest(contend, str(path), kills, seed, contenders).run(trials, until_fault)

    with Fork(os.geteuid(), work, gid=os.getegid(), groups=None) as coordinator:
        result = coordinator.result(timeout=timeout)
    assert isinstance(result, Result)
    print(f"\nseed {seed}: {result}")
    return result


def assert_right(result: Result, trials: int) -> None:
    assert result.faults == []
    assert result.trials == trials
    assert set(result.owners) <= {0, 1}
    assert result.owners[0] <= result.killed_midway
    assert result.refusals >= trials * 2


@pytest.mark.leaves_files
def test_one_contender_of_four_gets_a_dead_path_in_each_of_a_hundred_trials(sock_dir: Path) -> None:
    assert_right(hold_contest(sock_dir / "s", contend_properly, 100), 100)


@pytest.mark.slow
@pytest.mark.ci_required
@pytest.mark.timeout(110)
@pytest.mark.leaves_files
def test_one_contender_of_four_gets_a_dead_path_in_each_of_thousands_of_trials(sock_dir: Path) -> None:
    result = hold_contest(sock_dir / "s", contend_properly, TRIALS)
    assert_right(result, TRIALS)
    assert result.winners_killed > TRIALS * 0.05
    assert result.killed_midway > TRIALS * 0.03


@pytest.mark.timeout(110)
@pytest.mark.leaves_files
def test_the_contest_does_find_double_owners_of_a_recipe_without_a_lock(sock_dir: Path) -> None:
    result = hold_contest(sock_dir / "s", Naive, 5000, kills=False, until_fault=True)
    assert result.faults
