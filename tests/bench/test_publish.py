"""What the documentation shows of a run: page and charts are of one file, and name what there is."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("matplotlib", reason="charts need the extra bench")

from hostline.bench.arranged import TITLES
from hostline.bench.plan import WORKLOADS, find_entries
from hostline.bench.results import decode_results
from hostline.bench.subject import LAYERS, STYLES, TRANSPORTS
from hostline.bench.table import BEGIN, END
from tests.bench.sample import SAMPLE
from tests.tree import TREE

PAGE = TREE / "docs" / "reference" / "bench.md"
RESULTS = TREE / "benchmarks" / "results.json"


@pytest.fixture(scope="module")
def publish() -> ModuleType:
    spec = importlib.util.spec_from_file_location("publish", TREE / "benchmarks" / "publish.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.picture(decode_results(SAMPLE.read_bytes()), "fds")  # matplotlib keeps the files of its fonts open
    return module


def test_page_and_charts_come_from_one_file(publish: ModuleType, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    (reference / "charts").mkdir(parents=True)
    (reference / "charts" / "gone.svg").touch()
    (reference / "bench.md").write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    publish.main(SAMPLE, tmp_path)
    page = (reference / "bench.md").read_text(encoding="utf-8")
    linked = re.findall(r"!\[[^\]]*\]\((charts/\w+\.svg)\)", page)
    assert len(linked) == 7
    assert {*linked, "charts/front.svg"} == {f"charts/{path.name}" for path in (reference / "charts").iterdir()}
    assert "hostline 0.1.0, full run of 2026-01-02T03:04:05+00:00" in page
    front = (reference / "charts" / "front.svg").read_text(encoding="utf-8")
    assert ">hostline<" in front
    assert "hostline TCP" not in front


@pytest.mark.skipif(not RESULTS.exists(), reason="make bench has not been run: the page and README have no figures")
def test_the_page_shows_the_run_that_is_kept(publish: ModuleType) -> None:
    made = publish.as_markdown(decode_results(RESULTS.read_bytes()), lambda workload: f"charts/{workload}.svg")
    shown = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == made.strip()
    for chart in re.findall(r"\((charts/[^)]+)\)", shown):
        assert (PAGE.parent / chart).exists()
    readme = (TREE / "README.md").read_text(encoding="utf-8")
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme):
        assert (TREE / picture).exists()
    assert not decode_results(RESULTS.read_bytes()).is_quick


def test_readmes_chart_names_subjects_that_there_are(publish: ModuleType) -> None:
    assert publish.FRONT_SUBJECTS - {entry.subject.name for entry in find_entries()} == set()


def test_the_page_explains_every_word() -> None:
    text = PAGE.read_text(encoding="utf-8").partition(BEGIN)[0]
    assert [word for word in (*WORKLOADS, *STYLES, *TRANSPORTS) if f"`{word}`" not in text] == []
    assert [layer for layer in LAYERS if f"| {layer} |" not in text] == []
    assert [name for name in WORKLOADS if name not in TITLES] == []
