"""hostline's typed calls: a Service, and the blocking and the asyncio client."""

from __future__ import annotations

from array import array
from time import perf_counter_ns
from typing import Any

import msgspec

from hostline.bench.subject import Door, Driver, Subject, timed

__all__ = ["SUBJECTS"]

# Bytes of a Ping that are not its text, as it is encoded.
OVERHEAD = 26


class Ping(msgspec.Struct):
    """What the calls carry: three fields, of which the text makes up the size."""

    id: int
    name: str
    text: str


def ping(size: int) -> Ping:
    """Return a Ping of about `size` bytes encoded."""
    return Ping(7, "ping", "x" * max(size - OVERHEAD, 0))


def _address(door: Door) -> str:
    return f"tcp:{door.path}" if door.transport == "tcp" else door.path


def _service() -> Any:
    import hostline

    service = hostline.Service("bench")

    @service.method(inline=True)
    def echo(value: Ping) -> Ping:
        return value

    return service


def _serve(door: Door) -> None:
    _service().run(_address(door), on_start=lambda _server: door.ready())


class _Calls(Driver):
    def __init__(self, door: Door) -> None:
        import hostline

        self._line = hostline.connect(_address(door))

    def echo(self, data: bytes) -> bytes:
        answer: Ping = self._line.call("echo", Ping(1, "check", data.decode()), returns=Ping)
        return answer.text.encode()

    def latency(self, size: int, count: int) -> array[int]:
        call, value = self._line.call, ping(size)
        return timed(lambda: call("echo", value, returns=Ping), count)

    def close(self) -> None:
        self._line.close()


SUBJECTS = (
    Subject(
        name="hostline", layer="typed", transport="unix", style="blocking", workloads=frozenset({"latency"}),
        serve=_serve, drive=_Calls, is_hostline=True, is_quick=True,
    ),
)  # fmt: skip
