"""What a subject is: a server and a client of one library, each in a process of its own.

A module in `subjects/` or `peers/` has `SUBJECTS: tuple[Subject, ...]`. Importing it must not import the library that
it measures: that happens in `serve` and `drive`. Only the standard library is imported here, because every measured
process imports this.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns

__all__ = [
    "ABILITIES",
    "LAYERS",
    "STYLES",
    "TRANSPORTS",
    "Door",
    "Driver",
    "Subject",
    "WrongAnswerError",
    "file_to_pass",
    "timed",
]

# What a subject may be able to do, as `Subject.workloads` names it, and the method of its Driver that does it.
ABILITIES = {
    "latency": "latency",
    "transfer": "transfer",
    "pipelined": "pipelined",
    "one-way": "one_way",  # is_batched=False
    "batched": "one_way",  # is_batched=True
    "connect": "reconnect",
    "fanin": "latency",  # `drive` is called up to 1,000 times in one process, and the drivers take turns
    "kinds": "latency",  # and one_way, where it has "one-way": stream against seqpacket against datagram
    "fds": "pass_fds",
    "idle": "latency",  # 10,000 connections stand, held by `hold`
    "solo": "latency",  # no ability: except for "fanin", its server attends to one connection at a time
}
LAYERS = ("raw", "framed", "typed")
TRANSPORTS = ("unix", "seqpacket", "datagram", "tcp", "shm")
STYLES = ("c", "go", "blocking", "asyncio", "uvloop", "threads")


class WrongAnswerError(Exception):
    """What came back is not what was sent, or not all of it arrived: the subject's figures would mean nothing."""


@dataclass(slots=True)
class Door:
    """Say where the server listens.

    Attributes:
        transport: The subject's own.
        directory: A private directory, which the run removes; for anything that needs a file.
        path: A short socket path in it that does not exist yet.
        host: The loopback address.
        port: In the client's process what the server told with `ready`; 0 in the server's: let the kernel choose.
        workload: What will be asked of it: "latency", "fanin" and so on. Most need not care.
        tools: The directory that `Subject.prepare` got.
        on_ready: What `ready` calls; the run's own.
    """

    transport: str
    directory: str
    path: str
    host: str = "127.0.0.1"
    port: int = 0
    workload: str = "latency"
    tools: str = ""
    on_ready: Callable[[int], None] | None = None

    def ready(self, port: int = 0) -> None:
        """Tell the run that the server listens.

        Args:
            port: Where, if it is TCP.
        """
        if self.on_ready is not None:
            self.on_ready(port)


class Driver:
    """Drive one connection in the client's process; every method blocks until its work is done.

    A driver implements what its subject's `workloads` name. Times are nanoseconds of `time.perf_counter_ns`, collected
    in an array made before the first operation.
    """

    # Whether `grow` does what otherwise several drivers do.
    can_grow = False

    def pids(self) -> list[int]:
        """Return the processes that do the client's work, for their processor time and memory."""
        return [os.getpid()]

    def echo(self, data: bytes) -> bytes:
        """Return what the server gives back for `data`, which is ASCII; the run compares them, outside the timing."""
        raise AttributeError("echo")

    def latency(self, size: int, count: int) -> array[int]:
        """Return the time of each of `count` exchanges: `size` bytes there, as many back, one after the other."""
        raise AttributeError("latency")

    def transfer(self, size: int, count: int) -> array[int]:
        """Return the time of each of `count` transfers: `size` bytes one way, a small acknowledgement back.

        Raises:
            WrongAnswerError: The acknowledgement is not of `size` bytes.
        """
        raise AttributeError("transfer")

    def one_way(self, size: int, count: int, is_batched: bool) -> int:
        """Return the time until the receiver has confirmed that all `count` messages of `size` bytes arrived.

        Raises:
            WrongAnswerError: It counted another number.
        """
        raise AttributeError("one_way")

    def pipelined(self, size: int, count: int, window: int) -> int:
        """Return the time of `count` calls of which up to `window` are under way at once."""
        raise AttributeError("pipelined")

    def reconnect(self, count: int) -> array[int]:
        """Return the time of each of `count` times: connect, one exchange of 64 bytes, close."""
        raise AttributeError("reconnect")

    def pass_fds(self, fds: int, count: int) -> array[int]:
        """Return the time of each of `count` messages with `fds` descriptors, each answered by their number.

        The server closes what it receives before it answers.
        """
        raise AttributeError("pass_fds")

    def grow(self, clients: int) -> None:
        """Open or close connections until there are `clients`, which `latency` then uses in turn; if `can_grow`."""
        raise AttributeError("grow")

    def hold(self, count: int) -> Callable[[], None]:
        """Open `count` further connections that stay idle; return what closes them."""
        raise AttributeError("hold")

    def close(self) -> None:
        """Close the connection."""


def file_to_pass() -> int:
    """Return a descriptor of an ordinary file, for `pass_fds`; the caller's to close."""
    return os.open(__file__, os.O_RDONLY | os.O_CLOEXEC)


@dataclass(frozen=True, slots=True)
class Subject:
    """Describe one subject, and make its server and its client.

    Attributes:
        name: What tables call it; nothing else has it. Say what differs: "sockets over TCP", "grpc aio".
        layer: One of LAYERS.
        transport: One of TRANSPORTS.
        style: One of STYLES.
        workloads: What it can do, of ABILITIES' names.
        serve: Runs in the server's process: listens, calls `door.ready()`, and echoes, acknowledges and counts until
            SIGTERM, which arrives as SystemExit. It must not spin while nobody asks.
        drive: Runs in the client's process: connects and returns a driver.
        needs: Importable names of its libraries, and programs as "program:gcc".
        install: What to say where one is missing.
        prepare: Runs once before the run, in a directory for this: compiles. What it raises skips the subject.
        is_hostline: Whether it is hostline itself.
        is_quick: Whether it takes part in the quick mode.
    """

    name: str
    layer: str
    transport: str
    style: str
    workloads: frozenset[str]
    serve: Callable[[Door], None]
    drive: Callable[[Door], Driver]
    needs: tuple[str, ...] = ()
    install: str = "pip install 'hostline[bench]'"
    prepare: Callable[[str], None] | None = None
    is_hostline: bool = False
    is_quick: bool = False

    def __post_init__(self) -> None:
        unknown = self.workloads - ABILITIES.keys()
        if unknown or self.layer not in LAYERS or self.transport not in TRANSPORTS or self.style not in STYLES:
            raise ValueError(f"subject {self.name!r}: unknown layer, transport, style or workload {sorted(unknown)}")


def timed(operation: Callable[[], object], count: int) -> array[int]:
    """Return the time of each of `count` operations, in nanoseconds."""
    times = array("Q", bytes(8 * count))
    clock = perf_counter_ns
    for index in range(count):
        begin = clock()
        operation()
        times[index] = clock() - begin
    return times
