"""R12: the harness of tests/fuzz with more inputs."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.fuzz import harness, mutate, test_connections, test_frames, test_harness, test_payloads
from tests.serving import descriptor_count, resident_bytes

from scorecard.facts import version_of
from scorecard.ground import Ground
from scorecard.rows import Verdict, row

TARGETS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "frames": (test_frames.make, test_frames.check),
    "payloads": (test_payloads.make_payload, test_payloads.check_payload),
    "arguments": (test_payloads.make_arguments, test_payloads.check_arguments),
    "server": (test_connections.make_for_server, test_connections.check_server),
    "client": (test_connections.make_for_client, test_connections.check_client),
}


# Parts of a run, each with inputs of its own and a look at the memory behind it.
PARTS = 8

# Most objects that a half of the run may keep, the lists of this row among them; and the resident bytes by which it may
# grow, for the allocator keeps what the largest inputs, in thousands of pieces, once took.
KEPT = 1000
LARGEST = 8 << 20


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
    "structured inputs for every parser (frames, payloads, arguments, both sides of a conversation): no error of"
    " another class, none takes a second of processor time, memory in proportion, no descriptor and no object is kept."
    " Control: a decoder that takes one byte more than it should must be caught",
    ci={"inputs": 80_000, "seed": 12},
    full={"inputs": 50_000_000, "seed": 12},
    full_limit=24 * 3600.0,
)
def fuzzed(ground: Ground) -> Verdict:
    inputs, seed = ground.size["inputs"], ground.size["seed"]
    numbers: dict[str, Any] = {"inputs": 0, "seed": seed}
    for name, (make, check) in TARGETS.items():
        harness.fuzz(name, make, check, 300, seed=seed + 1)  # what is made once and kept
    descriptors, begin = descriptor_count(), time.monotonic()
    memories, blocks = [], []
    for part in range(PARTS):
        for name, (make, check) in TARGETS.items():
            tally = harness.fuzz(name, make, check, inputs * harness.SHARES[name] // 100 // PARTS, seed=seed + part)
            numbers["inputs"] += tally.total
            counts = numbers.setdefault(name, {})
            for outcome, count in tally.counts.items():
                counts[outcome.value] = counts.get(outcome.value, 0) + count
        mutate.marks.cache_clear()
        gc.collect()
        memories.append(resident_bytes())
        blocks.append(sys.getallocatedblocks())
    grown = memories[-1] - memories[PARTS // 2 - 1]
    kept = blocks[-1] - blocks[PARTS // 2 - 1]
    numbers |= {
        "inputs_a_second": round(numbers["inputs"] / (time.monotonic() - begin)),
        "grown_kib": grown >> 10,
        "objects_kept": kept,
    }
    for name, (make, check) in TARGETS.items():
        harness.check_memory(name, make, check, range(100), seed=seed)
    was_found = is_fault_found()
    verdict = Verdict(
        numbers,
        {
            "no input broke a parser": True,
            "all inputs were made": numbers["inputs"] >= inputs * 0.99,
            "no descriptor": descriptor_count() == descriptors,
            "no object is kept over the second half": kept < KEPT,
            "resident memory grows by less than the largest inputs take": grown < LARGEST,
        },
        {"a_decoder_off_by_one_was_caught": was_found},
        was_found,
    )
    if version_of("atheris") is None:
        verdict.notes.append("without coverage guidance: Atheris is not installed")
    return verdict
