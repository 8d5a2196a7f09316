"""R12: the harness of tests/fuzz with more inputs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from scorecard.facts import version_of
from scorecard.ground import Ground
from scorecard.rows import Verdict, row
from tests.fuzz import harness, test_connections, test_frames, test_harness, test_payloads
from tests.serving import descriptor_count, resident_bytes

TARGETS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "frames": (test_frames.make, test_frames.check),
    "payloads": (test_payloads.make_payload, test_payloads.check_payload),
    "arguments": (test_payloads.make_arguments, test_payloads.check_arguments),
    "server": (test_connections.make_for_server, test_connections.check_server),
    "client": (test_connections.make_for_client, test_connections.check_client),
}


def is_fault_found() -> bool:
    """Whether a decoder that is off by one is caught by the same loop."""
    make, check = TARGETS["frames"]
    try:
        harness.fuzz("frames", make, lambda case: check(case, test_harness.Generous), 3000)
    except AssertionError:
        return True
    return False


@row(
    "R12",
    "Fuzzed parsers",
    "structured inputs for every parser (frames, payloads, arguments, both sides of a conversation): no error of another class,"
    " none takes a second of processor time, memory in proportion, no descriptor, no growth. Control: a decoder that takes"
    " one byte more than it should must be caught",
    ci={"inputs": 60_000, "seed": 12},
    full={"inputs": 50_000_000, "seed": 12},
    full_limit=24 * 3600.0,
)
def fuzzed(ground: Ground) -> Verdict:
    inputs, seed = ground.size["inputs"], ground.size["seed"]
    numbers: dict[str, Any] = {"inputs": 0, "seed": seed}
    for name, (make, check) in TARGETS.items():
        harness.fuzz(name, make, check, 300, seed=seed + 1)  # what is made once and kept
    descriptors, memory, begin = descriptor_count(), resident_bytes(), time.monotonic()
    for name, (make, check) in TARGETS.items():
        tally = harness.fuzz(name, make, check, inputs * harness.SHARES[name] // 100, seed=seed)
        numbers["inputs"] += tally.total
        numbers[name] = {outcome.value.replace(" ", "_"): count for outcome, count in tally.counts.items()}
        harness.check_memory(name, make, check, range(100), seed=seed)
    grown = resident_bytes() - memory
    numbers |= {"inputs_a_second": round(numbers["inputs"] / (time.monotonic() - begin)), "grown_kib": grown >> 10}
    was_found = is_fault_found()
    verdict = Verdict(
        numbers,
        {
            "no input broke a parser": True,
            "all inputs were made": numbers["inputs"] >= inputs * 0.99,
            "no descriptor": descriptor_count() == descriptors,
            "no growth beyond 16 MiB": grown < 16 << 20,
        },
        {"a_decoder_off_by_one_was_caught": was_found},
        was_found,
    )
    if version_of("atheris") is None:
        verdict.notes.append("without coverage guidance: Atheris is not installed")
    return verdict
