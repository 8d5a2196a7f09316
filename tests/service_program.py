"""A service in a process of its own, for the tests that send signals to servers: `python -m tests.service_program`.

Handlers write each of their runs to a journal file, one line in one `write`, so that the test can count what was run
also after the process was killed.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable

import hostline
from hostline.protocol.serving import supervision


def make_service(write: Callable[[str], None]) -> hostline.Service:
    service = hostline.Service("program")

    @service.method
    async def charge(number: int, seconds: float = 0.0) -> int:
        """Must not be run twice."""
        write(f"charge {number}")
        await asyncio.sleep(seconds)
        return number

    @service.method
    def charge_in_thread(number: int, seconds: float = 0.0) -> int:
        """Must not be run twice; blocks its thread."""
        write(f"charge {number}")
        time.sleep(seconds)
        return number

    @service.method(idempotent=True)
    async def look(number: int, seconds: float = 0.0) -> int:
        write(f"look {number}")
        await asyncio.sleep(seconds)
        return number

    @service.method(inline=True)
    def pid() -> int:
        return os.getpid()

    @service.method
    async def die(number: int) -> int:
        """End the process in the middle of the call."""
        write(f"die {number}")
        os.kill(os.getpid(), signal.SIGKILL)
        return number

    @service.method(idempotent=True)
    async def die_once(number: int, before: int) -> int:
        """End the process in the middle of the call, but only the process with this pid."""
        write(f"die_once {number}")
        if os.getpid() == before:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    @service.method
    def never() -> None:
        """Never return, and hear nothing."""
        write("never")
        while True:
            time.sleep(3600)

    @service.method
    async def deaf() -> None:
        """Never return, and swallow every cancellation."""
        write("deaf")
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                write("deaf to a cancellation")

    @service.method
    def fork_a_sleeper() -> int:
        """Leave a forked child behind that outlives this process."""
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        return child

    return service


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--loop", default="asyncio")
    parser.add_argument("--journal", default=os.devnull)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--queue", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--grace", type=float, default=8.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--settled", type=float, help="seconds after which a worker's end is followed by a start at once"
    )
    parser.add_argument("--nofile", type=int, help="the limit of open descriptors")
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    if options.nofile:
        resource.setrlimit(resource.RLIMIT_NOFILE, (options.nofile, options.nofile))
    if options.settled is not None:
        supervision.WORKER_SETTLED = options.settled
    journal = os.open(options.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    factory = None
    if options.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    make_service(lambda line: void(os.write(journal, f"{line}\n".encode()))).run(
        options.address,
        concurrency=options.concurrency,
        queue=options.queue,
        threads=options.threads,
        grace=options.grace,
        workers=options.workers,
        loop_factory=factory,
        on_start=lambda _: void(os.write(1, b"ready\n")),  # in one piece: several workers may say so at once
    )


def void(_: object) -> None:
    """Take a value and give none."""


if __name__ == "__main__":
    main()
