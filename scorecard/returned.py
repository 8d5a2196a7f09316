"""R33: what is charged to a user comes back. Every row with a server looks; this one shows that the look sees."""

from __future__ import annotations

import time

from tests.leaks import wait_until
from tests.serving import RawClient

import hostline
from scorecard.ground import Ground, charges
from scorecard.rows import Verdict, row


@row(
    "R33",
    "Everything charged comes back",
    "after every row that ran a server, `hostline.stats` charges nobody anything beside the one who asks, and"
    " descriptors, threads and child processes are as before. Control: while clients hold calls, unread answers and"
    " descriptors the same look must find them",
    ci={"clients": 20},
    full={"clients": 1000},
)
def returned(ground: Ground) -> Verdict:
    found: dict[str, int] = {}
    with ground.serve("--with-descriptors"):
        clients = [RawClient(ground.address) for _ in range(ground.size["clients"])]
        for client in clients:
            client.call(1, "later", 1, 30.0)
            client.send_some(client.encode(2, "numbers", 100_000))
            for number in range(3, 10):
                client.send_some(client.encode(number, "memory", 100))
        with hostline.connect(ground.address, max_size=1) as line:
            wait_until(lambda: charges(line)["running"] and charges(line)["connections"] == len(clients), 10)
            found = charges(line)
            begin = time.monotonic()
            for client in clients:
                client.close()
            wait_until(lambda: not any(charges(line).values()), 20)
            left = charges(line)
            seconds = time.monotonic() - begin
    return Verdict(
        {"clients": len(clients), "left": sum(left.values()), "seconds_until_zero": round(seconds, 2)},
        {"nothing is charged": not any(left.values())},
        {"charged_while_they_hold": found},
        found["connections"] == len(clients) and found["running"] > 0,
    )
