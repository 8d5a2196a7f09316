"""The conformance table: the same questions about socket hygiene to hostline and to every peer installed beside it.

    report = run_conformance(["hostline_sync", "asyncio"])
    report.rows, report.columns, report.as_json(), report.hostline_missed, report.exit_code

Every answer comes from real processes on real sockets. `subjects/` holds one small server program for each peer;
`program.py` and `foreman.py` are what runs in its processes, `workshop.py` and `probes/` the judge's side.
"""

from __future__ import annotations

from hostline.conformance.markdown import as_markdown
from hostline.conformance.run import Step, list_subjects, run_conformance
from hostline.conformance.subjects import SubjectInfo
from hostline.conformance.table import COLUMNS, Cell, Column, Report, Row, column_keys

__all__ = [
    "COLUMNS",
    "Cell",
    "Column",
    "Report",
    "Row",
    "Step",
    "SubjectInfo",
    "as_markdown",
    "column_keys",
    "list_subjects",
    "run_conformance",
]
