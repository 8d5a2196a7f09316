"""The payment service once more, at three doors at once: two Unix sockets and one of loopback TCP.

`own.sock` has mode 0600. `open.sock` has mode 0666, and the rule of 0600 in so many words. Nothing is written into a
journal here, because over TCP anybody on this host may call.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys

from hostline.aio.serving.server import Server
from hostline.demo.loopback import listen_on_loopback
from hostline.demo.payments import payments
from hostline.demo.processes import end_with_parent, tell_parent
from hostline.errors import HostlineError
from hostline.unix.credentials import Peers

__all__ = ["OPEN", "OWN", "main"]

OWN, OPEN = "own.sock", "open.sock"


async def _serve(directory: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(payments.serve(os.path.join(directory, OWN), mode=0o600))
        await stack.enter_async_context(
            payments.serve(os.path.join(directory, OPEN), mode=0o666, allow=Peers.same_user())
        )
        tell_parent("serving", directory)
        try:
            bound, port = listen_on_loopback()
        except OSError as error:
            tell_parent("tcp", f"none: {error}")
        else:
            await stack.enter_async_context(Server(payments, bound))
            tell_parent("tcp", str(port))
        await stop.wait()


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        arguments: The command line behind the program's name.
    """
    parser = argparse.ArgumentParser(prog="python -m hostline.demo.doors", description="One service at three doors.")
    parser.add_argument("directory", help="where to put the socket files")
    parser.add_argument("--leash", action="store_true", help="end when standard input ends")
    options = parser.parse_args(arguments)
    if options.leash:
        end_with_parent()
    try:
        asyncio.run(_serve(options.directory))
    except HostlineError as error:
        sys.exit(f"doors: {error}")


if __name__ == "__main__":
    main()
