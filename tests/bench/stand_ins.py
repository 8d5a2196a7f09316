"""Subjects that fail in every way a peer can, for the engine's tests. Their processes import this module."""

from __future__ import annotations

import functools
import os
import sys
import time
from array import array

from hostline.bench.subject import Door, Driver, Subject
from hostline.bench.subjects import sockets


class Driven(Driver):
    """Bare sockets, with a fault."""

    def __init__(self, door: Door, fault: str) -> None:
        self._sockets = sockets.SUBJECTS[0].drive(door)
        self._fault = fault
        self._calls = 0

    def echo(self, data: bytes) -> bytes:
        return self._sockets.echo(data)

    def latency(self, size: int, count: int) -> array[int]:
        self._calls += 1
        if self._fault == "exits" and self._calls > 3:
            print("out of cheese", file=sys.stderr)
            os._exit(3)
        if self._fault == "hangs":
            time.sleep(3600)
        return self._sockets.latency(size, count)

    def one_way(self, size: int, count: int, is_batched: bool) -> int:
        return self._sockets.one_way(size, count, is_batched)

    def close(self) -> None:
        self._sockets.close()


def serve(door: Door, fault: str) -> None:
    if fault == "raises":
        raise RuntimeError("no server today")
    if fault == "silent":
        time.sleep(3600)
    if fault == "alters":
        # What comes back has the right length and other bytes.
        recv = sockets._recv_exactly
        sockets._recv_exactly = lambda sock, size: recv(sock, size).upper() if size != 16 else recv(sock, size)
    if fault == "loses":
        real = sockets.NUMBER

        class Fewer:
            size = real.size

            def pack(self, number: int) -> bytes:
                return real.pack(number - 1)

        sockets.NUMBER = Fewer()  # type: ignore[assignment]
    sockets.SUBJECTS[0].serve(door)


def subject(fault: str, *needs: str) -> Subject:
    return Subject(
        name=fault,
        layer="raw",
        transport="unix",
        style="blocking",
        workloads=frozenset({"latency", "one-way"}),
        serve=functools.partial(serve, fault=fault),
        drive=functools.partial(Driven, fault=fault),
        needs=needs,
    )


SUBJECTS = (
    subject("good"),
    subject("raises"),
    subject("silent"),
    subject("exits"),
    subject("hangs"),
    subject("alters"),
    subject("loses"),
    subject("missing", "no_such_library_here.at_all"),
)
