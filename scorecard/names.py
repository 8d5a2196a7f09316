"""R5 and R6: who owns a path, and who gets through it before its owner is ready."""

from __future__ import annotations

import os
import socket
import stat
import time
from pathlib import Path
from typing import Any

from tests.second_user import NOBODY, Fork
from tests.unix.test_takeover_race import KINDS, Naive, contend_properly, hold_contest

from hostline.unix.address import PathAddress
from hostline.unix.listening import listening_socket
from scorecard.ground import Ground
from scorecard.rows import Verdict, row


@row(
    "R5",
    "One owner of a path",
    "8 contenders over a stale file, some killed at random moments: never two owners, never none, the owner is the one"
    " reached, no live socket unlinked. Control: probe, unlink and bind must be found to have two owners",
    ci={"trials": 300, "contenders": 8, "control_trials": 5000},
    full={"trials": 10_000, "contenders": 8, "control_trials": 20_000},
)
def one_owner(ground: Ground) -> Verdict:
    trials, contenders = ground.size["trials"], ground.size["contenders"]
    options: dict[str, Any] = {"contenders": contenders, "timeout": 60.0 + trials}
    result = hold_contest(ground.directory / "s", contend_properly, trials, **options)
    naive = hold_contest(
        ground.directory / "n", Naive, ground.size["control_trials"], kills=False, until_fault=True, **options
    )
    return Verdict(
        {
            "trials": result.trials,
            "contenders": contenders,
            "trials_with_one_owner": result.owners[1],
            "trials_whose_only_winner_was_killed_midway": result.owners[0],
            "trials_with_more_owners": sum(count for owners, count in result.owners.items() if owners > 1),
            "refusals": result.refusals,
            "winners_killed": result.winners_killed,
            "killed_midway": result.killed_midway,
            "faults": len(result.faults),
        },
        {
            "no fault in any trial": not result.faults,
            "every trial was held": result.trials == trials,
            "at most one owner": set(result.owners) <= {0, 1},
            "contenders and winners were killed": result.winners_killed > 0 and result.killed_midway > 0,
        },
        {"trials_until_a_fault": naive.trials, "faults": len(naive.faults), "first": naive.faults[:1]},
        bool(naive.faults),
    )


# --- R6 ------------------------------------------------------------------------------------------------


def attack(path: str, stop: str) -> dict[str, int]:
    """As another user: connect, send and look at the mode as fast as it goes, until the file `stop` is there."""
    seen = {"tries": 0, "connects": 0, "datagrams": 0, "seen": 0, "wrong_modes": 0}
    kinds = list(KINDS.values())
    while True:
        seen["tries"] += 1
        if seen["tries"] % 64 == 0 and os.path.exists(stop):
            return seen
        try:
            status = os.lstat(path)
        except OSError:
            continue
        if stat.S_ISSOCK(status.st_mode):
            seen["seen"] += 1
            seen["wrong_modes"] += stat.S_IMODE(status.st_mode) != 0o600
        with socket.socket(socket.AF_UNIX, kinds[seen["tries"] % 3]) as sock:
            sock.setblocking(False)
            try:
                sock.connect(path)
                seen["connects"] += 1
                sock.send(b"in")
                seen["datagrams"] += 1
            except OSError:
                continue


class BindThenChmod:
    """The usual order: bind, listen, then change the mode."""

    def __init__(self, path: str, socket_type: str) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, KINDS[socket_type])
        self.sock.bind(path)
        if socket_type != "datagram":
            self.sock.listen()
        os.chmod(path, 0o600)

    def close(self) -> None:
        os.unlink(self.path)
        self.sock.close()


def under_attack(directory: Path, make: Any, starts: int) -> dict[str, int]:
    """Start a socket again and again at one path while another user tries to get in; returns what that user saw."""
    directory.mkdir()
    directory.chmod(0o755)
    path, stop = str(directory / "s"), directory / "stop"
    arrived = 0
    before = os.umask(0)  # the worst that a host may have
    try:
        with Fork(NOBODY, attack, path, str(stop)) as attacker:
            for number in range(starts):
                socket_type = ("stream", "seqpacket", "datagram")[number % 3]
                held = make(path, socket_type)
                time.sleep(0.0005)
                held.sock.setblocking(False)
                try:
                    if socket_type == "datagram":
                        held.sock.recv(10)
                    else:
                        held.sock.accept()[0].close()
                    arrived += 1
                except BlockingIOError:
                    pass
                held.close()
            stop.touch()
            return {**attacker.result(30.0), "arrived": arrived}
    finally:
        os.umask(before)


@row(
    "R6",
    "No moment in which others get in",
    "while sockets of all three types start at a path, another user who connects, sends and looks without pause gets"
    " 0 connects and 0 datagrams through and sees 0 modes other than 0600, with a umask of 0. Control: bind, listen,"
    " then chmod",
    ci={"starts": 1500, "control_starts": 6000},
    full={"starts": 30_000, "control_starts": 30_000},
)
def no_window(ground: Ground) -> Verdict:
    ground.need_root("the one who tries to get in is another user")

    def proper(path: str, socket_type: Any) -> Any:
        return listening_socket(PathAddress(path), socket_type)

    starts = ground.size["starts"]
    ours = under_attack(ground.directory / "ours", proper, starts)
    theirs = under_attack(ground.directory / "theirs", BindThenChmod, ground.size["control_starts"])
    got_in = {"connects", "datagrams", "wrong_modes", "arrived"}
    return Verdict(
        {"starts": starts, **ours},
        {
            **{f"0 {name}": ours[name] == 0 for name in sorted(got_in)},
            "the other user saw the sockets": ours["seen"] > 50,
        },
        theirs,
        any(theirs[name] for name in got_in),
    )
