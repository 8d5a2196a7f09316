"""A service that is restarted under load: `python -m tests.takeover_program ADDRESS JOURNAL [OPTIONS]`.

Each run of a handler appends the id of its call to the journal, in one write; all generations share the file. What the
program prints: `ready` once it accepts, and `ended` when it returns from `run`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import time

import hostline


def make_service(journal: str, name: str = "shop") -> hostline.Service:
    service = hostline.Service(name)

    def note(ident: str) -> None:
        file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(file, f"{ident} {os.getpid()}\n".encode())
        os.close(file)

    @service.method(inline=True)
    def append(ident: str) -> int:
        """Must not be run twice."""
        note(ident)
        return os.getpid()

    @service.method
    async def append_slowly(ident: str, seconds: float) -> int:
        """Must not be run twice, and may be under way when the server is taken over."""
        note(ident)
        await asyncio.sleep(seconds)
        return os.getpid()

    @service.method
    def append_in_thread(ident: str, seconds: float) -> int:
        """Must not be run twice; blocks its thread."""
        note(ident)
        time.sleep(seconds)
        return os.getpid()

    @service.method(inline=True)
    def hang(seconds: float) -> None:
        """Keep the loop to itself."""
        time.sleep(seconds)

    return service


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("journal")
    parser.add_argument("--service", default="shop")
    parser.add_argument("--loop", default="asyncio")
    parser.add_argument("--takeover", action="store_true")
    parser.add_argument("--no-offer", action="store_true")
    options = parser.parse_args()
    factory = None
    if options.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    logging.basicConfig(level="INFO", format="%(process)d %(levelname)s %(message)s")
    make_service(options.journal, options.service).run(
        options.address,
        takeover=options.takeover,
        offer_takeover=not options.no_offer,
        loop_factory=factory,
        on_start=lambda _: print("ready", flush=True),
    )
    print("ended", flush=True)


if __name__ == "__main__":
    main()
