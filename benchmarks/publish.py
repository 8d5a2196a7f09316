"""Put one run of `hostline bench` into the documentation: its charts, and the tables of its page.

    python benchmarks/publish.py [RESULTS [DOCS]]

`make bench` calls it. RESULTS is benchmarks/results.json unless given, DOCS the folder docs. Whatever the pages show of
a run is made here from the one file, so that text and picture never come from two runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from hostline.bench.chart import picture
from hostline.bench.results import Results, decode_results
from hostline.bench.table import as_markdown, write_into

TREE = Path(__file__).resolve().parent.parent
# README's chart: one case, and of each library what most would choose first. The page has all of them.
FRONT_CASE = ("latency", "64 B")
FRONT_SUBJECTS = frozenset(
    {
        "C",
        "Go",
        "sockets",
        "hostline socket",
        "hostline channel",
        "multiprocessing",
        "asyncio streams",
        "uvloop streams",
        "pyzmq REQ/REP",
        "pynng REQ/REP",
        "iceoryx2",
        "hostline",
        "hostline asyncio",
        "hostline uvloop",
        "rpyc",
        "Pyro5 serpent",
        "grpc",
        "grpc aio",
        "HTTP",
    }
)
FRONT = "front.svg"


def main(results_path: Path, docs: Path) -> None:
    """Write the charts and the page.

    Args:
        results_path: What `hostline bench --json` wrote.
        docs: The folder with reference/bench.md.
    """
    results = decode_results(results_path.read_bytes())
    charts = docs / "reference" / "charts"
    charts.mkdir(exist_ok=True)
    for old in charts.glob("*.svg"):
        old.unlink()
    workloads = list(dict.fromkeys(m.workload for m in results.measurements))
    for workload in workloads:
        (charts / f"{workload}.svg").write_bytes(picture(results, workload))
    (charts / FRONT).write_bytes(picture(front(results), FRONT_CASE[0], [FRONT_CASE[1]]))
    write_into(docs / "reference" / "bench.md", as_markdown(results, lambda workload: f"charts/{workload}.svg"))
    print(f"wrote {docs / 'reference' / 'bench.md'} and {len(workloads) + 1} charts in {charts}")


def front(results: Results) -> Results:
    """Return what README shows."""
    kept = [m for m in results.measurements if m.subject in FRONT_SUBJECTS]
    return msgspec.structs.replace(results, measurements=kept)


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:]]
    main(*(given + [TREE / "benchmarks" / "results.json", TREE / "docs"][len(given) :]))
