"""The probes, in the order in which they run: each knows which columns it fills."""

from __future__ import annotations

from hostline.conformance.probes.files import long_path, mode_000, mode_022, ordinary, stale, symlink
from hostline.conformance.probes.stage import Abort, Probe, Stage
from hostline.conformance.probes.starts import close_foreign, close_own, contenders, second_start
from hostline.conformance.probes.traffic import full_backlog, inherited, short_fds, short_packet

__all__ = ["PROBES", "Abort", "Probe", "Stage"]

PROBES: tuple[Probe, ...] = (
    Probe(("mode_022",), mode_022),
    Probe(("mode_000",), mode_000),
    Probe(("stale",), stale),
    Probe(("ordinary",), ordinary),
    Probe(("symlink",), symlink),
    Probe(("long_path",), long_path),
    Probe(("second_start", "first_after"), second_start),
    Probe(("contenders",), contenders),
    Probe(("close_own",), close_own),
    Probe(("close_foreign",), close_foreign),
    Probe(("full_backlog",), full_backlog),
    Probe(("inherited",), inherited),
    Probe(("short_packet",), short_packet),
    Probe(("short_fds",), short_fds),
)
