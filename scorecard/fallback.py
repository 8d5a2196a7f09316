"""R31: loopback TCP, where everybody on the host may connect and only who has the key gets in."""

from __future__ import annotations

import socket
import threading
from typing import Any

from tests.leaks import wait_until
from tests.second_user import NOBODY, run_as
from tests.serving import ServerThread
from tests.test_tcp import flood, key_of, knock, read_to_end, service

import hostline
from hostline.unix.loopback.keyfile import KeyFile
from scorecard.ground import Ground, charges
from scorecard.rows import Verdict, row

REQUESTS = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    b"SSH-2.0-x\r\n",
    b"\0" * 200,
)


def read_key(path: str) -> str:
    """As another user: what comes of reading the key file."""
    try:
        with open(path, "rb") as file:
            return f"read {len(file.read())} bytes"
    except PermissionError:
        return "PermissionError"


def bytes_told_to_strangers(key: KeyFile) -> int:
    """Return how many bytes those get who speak another protocol."""
    told = 0
    for request in REQUESTS:
        with knock(key) as sock:
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            told += len(read_to_end(sock))
    return told


@row(
    "R31",
    "Loopback TCP lets in who has the key",
    "bad handshakes of four kinds: 0 get in, a bystander's calls and new connections all succeed; other protocols"
    " read not one byte; another user cannot read the key. Control: the same who has the key must get in",
    ci={"handshakes": 20_000},
    full={"handshakes": 1_000_000},
)
def loopback(ground: Ground) -> Verdict:
    address = f"tcp:{ground.directory}/s"
    handshakes = ground.size["handshakes"]
    answered, errors = 0, list[str]()
    with ServerThread(service(), address, loop=ground.loop) as server:
        key = key_of(address)
        accepted: list[bytes] = []
        share = handshakes // 4
        attackers = [threading.Thread(target=flood, args=(key, share, accepted)) for _ in range(4)]
        with hostline.connect(address, max_size=1) as bystander:
            for attacker in attackers:
                attacker.start()
            while any(attacker.is_alive() for attacker in attackers):
                try:
                    answered += bystander.call("add", 1, 2, timeout=20) == 3
                    with hostline.connect(address, connect_timeout=20) as newcomer:
                        answered += newcomer.call("add", 3, 4, timeout=20) == 7
                except hostline.HostlineError as error:
                    errors.append(repr(error))
            for attacker in attackers:
                attacker.join()
        wait_until(lambda: server.stats().connections_refused >= 4 * share, 10)
        refused = server.stats().connections_refused
        told = bytes_told_to_strangers(key)
        other = run_as(NOBODY, read_key, str(ground.directory / "s")) if ground.is_root else "not tried without root"
        with hostline.connect(address, max_size=1) as line:
            control = {"with_the_key": line.call("add", 2, 2)}
            wait_until(lambda: not any(charges(line).values()), 10)
            ground.charge(**charges(line))
            ground.servers += 1
    numbers: dict[str, Any] = {"bad_handshakes": 4 * share, "accepted": len(accepted), "refused": refused}
    numbers |= {"bystander_answered": answered, "bystander_errors": len(errors)}
    numbers |= {"bytes_told_to_other_protocols": told, "key_read_by_another_user": other}
    return Verdict(
        numbers,
        {
            "0 got in": not accepted,
            "every one was refused": refused >= 4 * share,
            "the bystander was always served": not errors and answered > 0,
            "not one byte to other protocols": told == 0,
            "another user cannot read the key": not other.startswith("read"),
        },
        control,
        control["with_the_key"] == 4,
    )
