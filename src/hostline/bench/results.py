"""What a run of the benchmark found: one document, which the table, the chart and `--json` are made of.

Knows nothing of how it was measured. Times are microseconds, sizes KiB, unless the name says otherwise.
"""

from __future__ import annotations

import msgspec

from hostline._version import __version__

__all__ = ["Measurement", "Results", "Skipped", "Spread", "decode_results", "encode_results"]


class Spread(msgspec.Struct, frozen=True):
    """Hold the quantiles of all operations of all rounds, in microseconds an operation.

    Attributes:
        p50: The median.
        p90: What nine of ten operations stayed below.
        p99: What 99 of 100 stayed below.
        p999: What 999 of 1,000 stayed below; with fewer than 1,000 operations this is the slowest one.
        count: How many operations there were.
    """

    p50: float
    p90: float
    p99: float
    p999: float
    count: int


class Measurement(msgspec.Struct, kw_only=True):
    """Hold what one subject did in one case.

    Attributes:
        workload: "latency", "transfer", "throughput", "connect", "fanin", "kinds" or "fds".
        case: Which of the workload's cases: "64 B", "pipelined", "100 clients" and so on.
        subject: The subject's name, which no other has in this case.
        layer: What the user gets: "raw" bytes, "framed" messages, "typed" calls.
        transport: "unix", "seqpacket", "datagram", "tcp" or "shm".
        style: "c", "go", "blocking", "asyncio", "uvloop" or "threads".
        is_hostline: Whether it is hostline itself.
        unit: "us" of one operation (lower is better), "1/s" (higher is better), "KiB" of the server's own memory for an
            idle connection (lower is better).
        rounds: One figure for each round, in `unit`; of single operations it is the round's median.
        value: The median of `rounds`.
        ratio: How many times the reference's time in the same case, the median of the rounds' own ratios;
            rates are inverted, so that above 1 is worse everywhere. None where there is no reference.
        reference: The subject that `ratio` is against, or None.
        spread: The quantiles, where single operations were timed.
        cpu_seconds_per_million: Client and server together, user and system, for a million operations.
        peak_memory_kib: The most memory that each side's process held, by "client" and "server".
    """

    workload: str
    case: str
    subject: str
    layer: str
    transport: str
    style: str
    is_hostline: bool
    unit: str
    rounds: list[float]
    value: float
    ratio: float | None = None
    reference: str | None = None
    spread: Spread | None = None
    cpu_seconds_per_million: float | None = None
    peak_memory_kib: dict[str, int] = msgspec.field(default_factory=dict)


class Skipped(msgspec.Struct, frozen=True):
    """Say why a subject has no figures, or not all of them.

    Attributes:
        subject: Its name.
        reason: In words, with what to install where that helps.
    """

    subject: str
    reason: str


class Results(msgspec.Struct, kw_only=True):
    """Hold one whole run.

    Attributes:
        version: hostline's version.
        began: When it began, UTC, ISO 8601.
        seconds: How long it took.
        is_quick: Whether it was the quick mode, whose figures are coarse.
        pinned: The processor cores that the processes of a workload were kept to, by workload; the others were free.
            A subject that spins on shared memory is free in all of them: on one core it would wait for itself.
        machine: Facts of the machine, by name: "cpu", "kernel", "python" and so on.
        rounds: How many rounds there were; fewer for the slowest cases.
        measurements: In the order of the plan.
        skipped: What could not take part, and why.
    """

    version: str = __version__
    began: str
    seconds: float
    is_quick: bool
    pinned: dict[str, list[int]]
    machine: dict[str, str]
    rounds: int
    measurements: list[Measurement]
    skipped: list[Skipped]


def encode_results(results: Results) -> bytes:
    """Return the document as indented JSON, with a line's end."""
    return msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n"


def decode_results(data: bytes) -> Results:
    """Return the document that `encode_results` wrote.

    Raises:
        ValueError: It is none.
    """
    try:
        return msgspec.json.decode(data, type=Results)
    except msgspec.DecodeError as error:
        raise ValueError(f"not the results of a benchmark: {error}") from error
