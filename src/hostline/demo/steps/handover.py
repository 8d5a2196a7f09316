"""Have the payment service open a file, and read it elsewhere through its descriptor alone."""

from __future__ import annotations

import errno
import os
from collections import defaultdict

import msgspec

from hostline.demo.journal import read_journal
from hostline.demo.receipts import REQUEST, FileFacts, file_facts
from hostline.demo.report import Step
from hostline.demo.steps.otheruser import NOBODY, OtherUser
from hostline.demo.steps.scene import Scene
from hostline.sync.connection import Connection
from hostline.sync.sockets import connect_socket, socketpair
from hostline.unix.passing.descriptors import Fd

__all__ = ["handover"]

# Seconds to wait for a packet.
_PATIENCE = 10.0


class _Look(msgspec.Struct, frozen=True):
    """What one process can do with the file that it was handed.

    Attributes:
        facts: What it sees of it.
        reopened: The error's name when it opens the same file anew, empty if it could.
        written: The same for writing into it.
    """

    facts: FileFacts
    reopened: str
    written: str


def handover(scene: Scene, step: Step) -> None:
    """Receive the day's receipts by descriptor; as root, hand them on to a process that may open nothing."""
    if os.geteuid() == 0:
        here, there = socketpair("seqpacket", max_fds=1)
        # Forked before this process has the file, so that nobody's only way to it is the socket.
        with here, there, OtherUser(lambda: _look_as_nobody(there)) as nobody:
            file, theirs = _fetch(scene.counter)
            with file:
                mine = _look(file)
                here.send(msgspec.json.encode(theirs), fds=[file], timeout=_PATIENCE)
                try:
                    stranger = msgspec.convert(nobody.result(), _Look)
                except RuntimeError as error:
                    step.skip(f"Nobody else can be impersonated here: {error}")
                    stranger = mine
                receipts = os.pread(file.fileno(), theirs.size, 0)
    else:
        file, theirs = _fetch(scene.counter)
        with file:
            mine = stranger = _look(file)
            receipts = os.pread(file.fileno(), theirs.size, 0)
    _show(scene, step, theirs, mine.facts, stranger.facts)
    _check(scene, step, theirs, mine, stranger)
    _check_contents(scene, step, receipts)


def _fetch(counter: str) -> tuple[Fd, FileFacts]:
    """Ask the payment service for its receipts; the file is the caller's."""
    with connect_socket(counter, "seqpacket", max_fds=1, timeout=_PATIENCE) as connection:
        connection.send(REQUEST, timeout=_PATIENCE)
        return _receive(connection)


def _receive(connection: Connection) -> tuple[Fd, FileFacts]:
    data, fds = connection.recv_fds(timeout=_PATIENCE)
    return fds[0], msgspec.json.decode(data, type=FileFacts)


def _look_as_nobody(connection: Connection) -> object:
    file, _ = _receive(connection)
    with file:
        return msgspec.to_builtins(_look(file))


def _look(file: Fd) -> _Look:
    fd = file.fileno()
    return _Look(file_facts(fd), _try_open(f"/proc/self/fd/{fd}"), _try_write(fd))


def _try_open(path: str) -> str:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return ""


def _try_write(fd: int) -> str:
    try:
        os.write(fd, b"\n")
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return ""


def _show(scene: Scene, step: Step, theirs: FileFacts, mine: FileFacts, stranger: FileFacts) -> None:
    people = [("payments", theirs), ("this demo", mine)]
    if stranger.pid != mine.pid:
        people.append((f"uid {NOBODY}", stranger))
    rows = [("held by", "pid", "inode", "mode", "names", "bytes", "sha256")]
    for who, facts in people:
        rows.append(
            (
                who,
                str(facts.pid),
                str(facts.inode),
                f"{facts.mode:04o}",
                str(facts.links),
                f"{facts.size:,}",
                facts.sha256[:8],
            )
        )
    scene.screen.table(rows, "lrrrrrl", has_header=True)
    scene.screen.line()
    step.facts["seen_by"] = {who: msgspec.to_builtins(facts) for who, facts in people}


def _check(scene: Scene, step: Step, theirs: FileFacts, mine: _Look, stranger: _Look) -> None:
    views = (theirs, mine.facts, stranger.facts)
    step.check(
        "the same file everywhere: device, inode and checksum agree",
        len({(facts.device, facts.inode, facts.size, facts.sha256) for facts in views}) == 1,
    )
    step.check(
        "no path leads to it (0 names) and no permission helps (mode 0000): holding the descriptor is enough to read",
        theirs.links == 0 and theirs.mode == 0,
    )
    if not step.skipped:
        who = "this process" if stranger is mine else f"uid {NOBODY}"
        step.check(f"{who} cannot open it anew ({stranger.reopened or 'but could'})", stranger.reopened == "EACCES")
    step.check(
        f"it was handed over for reading: writing fails ({mine.written or 'but did not'})",
        mine.written == stranger.written == "EBADF",
    )


def _check_contents(scene: Scene, step: Step, receipts: bytes) -> None:
    totals: defaultdict[str, int] = defaultdict(int)
    count = 0
    for record in read_journal(receipts):
        totals[record.currency] += record.cents
        count += 1
    step.facts["receipts"] = count
    step.check(f"its {count:,} receipts and refunds add up to the totals of step 2", dict(totals) == scene.totals)
