"""Replace a running server by its next version: no call fails, and none is run twice.

Started without arguments it plays all roles: it starts version 1, calls it all the time, starts version 2 beside it,
and goes on calling until that one answers.

Prints:

    version 1 answers
    version 2 answers
    version 1 has ended with exit code 0
    0 calls failed, 0 were run twice
"""

from __future__ import annotations

import os
import subprocess
import sys

import hostline

PATH = "./tickets.sock"
SEEN = "./tickets.seen"

tickets = hostline.Service("tickets")


@tickets.method
def sell(number: int) -> str:
    """Sell a ticket, which must not happen twice."""
    with open(SEEN, "a") as file:
        file.write(f"{number}\n")
    return os.environ["VERSION"]


def start(version: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, "serve"], env={**os.environ, "VERSION": str(version)})


def main() -> None:
    first = start(1)
    with hostline.connect(PATH, wait=10) as line:
        print("version", line.call("sell", 0, returns=str), "answers")
        second = start(2)
        failed, number, version = 0, 0, "1"
        while version != "2":
            number += 1
            try:
                version = line.call("sell", number, returns=str)
            except hostline.HostlineError:
                failed += 1
        print("version", version, "answers")
    print("version 1 has ended with exit code", first.wait(10))
    with open(SEEN) as file:
        sold = file.read().split()
    print(failed, "calls failed,", len(sold) - len(set(sold)), "were run twice")
    second.terminate()
    second.wait(10)


if __name__ == "__main__":
    if "serve" in sys.argv:
        tickets.run(PATH, takeover=True)
    else:
        main()
