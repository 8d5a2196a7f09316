"""Run the table: every selected probe over every selected subject, one after the other."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostline._version import __version__
from hostline.conformance.probes import PROBES, Abort, Probe, Stage
from hostline.conformance.subjects import SUBJECTS, SubjectInfo, find_subject
from hostline.conformance.table import COLUMNS, Cell, Column, Report, Row, column_keys
from hostline.conformance.workshop import WorkshopError

__all__ = ["DEFAULT_TRIALS", "Step", "list_subjects", "run_conformance"]

# Races between two contenders, for each subject. Enough to show a peer that lets both win every time; a rare
# double win needs thousands, which hostline's own race test runs.
DEFAULT_TRIALS = 5

# Bytes of the temporary directory's own path; beyond it /tmp is used, so that socket paths below it fit.
LONGEST_TEMP = 40


@dataclass(frozen=True, slots=True)
class Step:
    """Say where a run is, before each probe.

    Attributes:
        subject: The title of the subject.
        column: The title of the first column that the probe fills.
        done: Probes done so far, over all subjects.
        total: Probes in all.
    """

    subject: str
    column: str
    done: int
    total: int


def list_subjects() -> list[tuple[SubjectInfo, str | None]]:
    """Return every known subject with its version, or None where its package is not installed."""
    return [(subject, subject.installed_version()) for subject in SUBJECTS]


def run_conformance(
    subjects: Sequence[str] | None = None,
    probes: Sequence[str] | None = None,
    progress: Callable[[Step], None] | None = None,
    *,
    trials: int = DEFAULT_TRIALS,
) -> Report:
    """Probe hostline and the installed peers.

    Args:
        subjects: Names as `list_subjects` gives them, or paths of `.py` files that are subjects; None for all.
        probes: Keys of columns; None for all.
        progress: Called before each probe.
        trials: How often two contenders race for a stale file.

    Returns:
        The report. Everything that was started has ended, and its files are gone.

    Raises:
        ValueError: A name is unknown, or `trials` is below one.
    """
    if trials < 1:
        raise ValueError(f"trials of {trials} must be at least 1")
    chosen = SUBJECTS if subjects is None else tuple(find_subject(name) for name in subjects)
    columns = _columns(probes)
    versions = [(subject, subject.installed_version()) for subject in chosen]
    present = [(subject, version) for subject, version in versions if version is not None]
    began = time.monotonic()
    with _short_directory() as base:
        rows = tuple(_rows(present, columns, base, trials, progress))
    return Report(
        columns=columns,
        rows=rows,
        not_installed=tuple(subject.name for subject, version in versions if version is None),
        facts={
            "hostline": __version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()}",
            "uid": os.geteuid(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "trials": trials,
        },
        seconds=time.monotonic() - began,
    )


def _columns(probes: Sequence[str] | None) -> tuple[Column, ...]:
    unknown = sorted(set(probes or ()) - set(column_keys()))
    if unknown:
        raise ValueError(f"unknown probe {unknown[0]!r}: there are {', '.join(column_keys())}")
    return tuple(column for column in COLUMNS if probes is None or column.key in probes)


@contextlib.contextmanager
def _short_directory() -> Iterator[Path]:
    """Give a private directory whose path leaves room in the 108 bytes of a socket address, and remove it."""
    where = tempfile.gettempdir()
    if len(os.fsencode(where)) > LONGEST_TEMP and os.access("/tmp", os.W_OK | os.X_OK):  # noqa: S108
        where = "/tmp"  # noqa: S108 - mkdtemp makes a directory in it that is ours alone
    path = Path(tempfile.mkdtemp(prefix="hlc-", dir=where))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _rows(
    subjects: list[tuple[SubjectInfo, str]],
    columns: tuple[Column, ...],
    base: Path,
    trials: int,
    progress: Callable[[Step], None] | None,
) -> Iterator[Row]:
    """Probe one subject after the other; the next is imported while this one is probed."""
    keys = {column.key for column in columns}
    plan = [probe for probe in PROBES if keys.intersection(probe.keys)]
    titles = {column.key: column.title for column in columns}
    with contextlib.ExitStack() as stack:

        def prepare(number: int) -> Stage:
            stage = Stage(subjects[number][0].module, base / str(number), trials)
            stack.callback(stage.close)
            return stage

        coming = prepare(0) if subjects else None
        for number, (subject, version) in enumerate(subjects):
            stage = coming or prepare(number)
            coming = prepare(number + 1) if number + 1 < len(subjects) else None
            began = time.monotonic()
            cells: dict[str, Cell] = {}
            for index, probe in enumerate(plan):
                if progress is not None:
                    title = next(titles[key] for key in probe.keys if key in titles)
                    progress(Step(subject.title, title, number * len(plan) + index, len(subjects) * len(plan)))
                cells.update(_probe(stage, probe))
            stage.close()
            wanted = {column.key: cells[column.key] for column in columns}
            yield Row(subject.name, subject.title, version, subject.is_hostline, wanted, time.monotonic() - began)


def _probe(stage: Stage, probe: Probe) -> dict[str, Cell]:
    """Run one probe; whatever goes wrong with it becomes its cells."""
    try:
        return probe.run(stage)
    except Abort as end:
        return dict.fromkeys(probe.keys, end.cell)
    except (WorkshopError, OSError) as error:
        return dict.fromkeys(probe.keys, Cell.error(f"probe failed: {type(error).__name__}", str(error)))
