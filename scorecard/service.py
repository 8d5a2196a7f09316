"""The service that rows are measured on, in a process of its own: `python -m scorecard.service ADDRESS OPTIONS...`.

The methods of tests/service_program.py, and some that take values, buffers and descriptors.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any

from tests.service_program import make_service, void

import hostline
from hostline import Buffer, Fd


def add_methods(service: hostline.Service, *, with_descriptors: bool) -> None:
    """Enter what tests/service_program.py has not."""
    if "echo" not in service.methods:

        @service.method(inline=True)
        def echo(value: Any) -> Any:
            return value

    @service.method
    async def later(number: int, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return number

    @service.method
    def numbers(count: int) -> Iterator[int]:
        yield from range(count)

    if with_descriptors:

        @service.method
        def digest(data: Buffer) -> str:
            return hashlib.sha256(data).hexdigest()

        @service.method
        async def hold_buffer(data: Buffer) -> None:
            await asyncio.sleep(60)

        @service.method
        def memory(size: int) -> Fd:
            fd = Fd(os.memfd_create("scorecard", os.MFD_CLOEXEC))
            os.write(fd.fileno(), b"x" * size)
            return fd


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--loop", default="asyncio")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--connections", type=int, default=4096)
    parser.add_argument("--backlog", type=int)
    parser.add_argument("--nofile", type=int, help="the limit of open descriptors")
    parser.add_argument("--with-descriptors", action="store_true")
    parser.add_argument("--older-kernel", action="store_true", help="as if the kernel could not refuse descriptors")
    parser.add_argument("--handshake-timeout", type=float)
    parser.add_argument("--frame-timeout", type=float)
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = options.nofile or hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit if options.nofile else hard))
    change_the_library(options)
    factory = None
    if options.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    service = make_service(void)
    add_methods(service, with_descriptors=options.with_descriptors)
    service.run(
        options.address,
        backlog=options.backlog,
        concurrency=options.concurrency,
        max_connections=options.connections,
        max_connections_per_uid=options.connections,
        loop_factory=factory,
        on_start=lambda _: void(os.write(1, b"ready\n")),
    )


def change_the_library(options: argparse.Namespace) -> None:
    """Shorten times that a run of seconds could not see, and take away what only newer kernels have."""
    import hostline.aio.serving.session as session
    import hostline.unix.sockets as sockets

    if options.older_kernel:
        sockets.disallow_fds = lambda sock: False  # type: ignore[assignment]
    if options.handshake_timeout:
        session.HANDSHAKE_TIMEOUT = options.handshake_timeout  # type: ignore[misc]
    if options.frame_timeout:
        session.FRAME_TIMEOUT = options.frame_timeout  # type: ignore[misc]


if __name__ == "__main__":
    main()
