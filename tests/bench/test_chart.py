"""The chart of a run: a valid file, the same bytes each time, with everything in it that was measured."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

pytest.importorskip("matplotlib", reason="charts need the extra bench")

from hostline.bench import chart
from hostline.bench.chart import check, draw, picture
from hostline.bench.results import Results
from tests.bench.sample import sample

WORKLOADS = ["latency", "transfer", "throughput", "connect", "fanin", "kinds", "fds"]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module", autouse=True)
def _fonts() -> None:
    picture(sample(), "fds")  # matplotlib keeps the files of its fonts open, which the leak check would see


def texts(svg: bytes) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def only(workload: str) -> Results:
    results = sample()
    return msgspec.structs.replace(results, measurements=[m for m in results.measurements if m.workload == workload])


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_chart_is_svg_and_names_every_subject_and_case_as_text(workload: str) -> None:
    found = texts(picture(sample(), workload))
    measured = only(workload).measurements
    assert {m.subject for m in measured} <= set(found)
    cases = dict.fromkeys(m.case for m in measured)
    assert [case for case in cases if not any(case in text for text in found)] == []
    assert any("further left is faster" in text or "further right is faster" in text for text in found)


def test_every_bar_has_its_ratio_beside_it() -> None:
    results = msgspec.structs.replace(
        sample(), measurements=[m for m in only("latency").measurements if m.case == "64 B"]
    )
    found = texts(picture(results, "latency"))
    for expected in ("0.31x", "1.0x", "1.6x", "24x", "45x", "bare C: 19.3 µs", "raw bytes", "typed calls"):
        assert expected in found
    assert found.count("1.6x") == 3


def test_the_same_results_give_the_same_bytes() -> None:
    for kind in ("svg", "png"):
        assert picture(sample(), "latency", format=kind) == picture(sample(), "latency", format=kind)
    svg = picture(sample(), "latency")
    assert b"<dc:date>" not in svg
    assert not re.search(rb"Matplotlib v\d", svg)


def test_a_chart_is_told_to_those_who_hear_it() -> None:
    root = ElementTree.fromstring(picture(sample(), "latency", ["64 B"]))
    assert root.get("role") == "img"
    assert root.findtext(f"{SVG}title") == "One round trip at a time: 64 B"
    assert "64 B: hostline 1.6x" in (root.findtext(f"{SVG}desc") or "")


def test_hostlines_bars_are_set_off_by_colour_and_weight() -> None:
    text = picture(sample(), "latency", ["64 B"]).decode()
    bold = [line for line in text.splitlines() if ">hostline<" in line]
    plain = [line for line in text.splitlines() if ">grpc<" in line]
    assert ["bold" in line or "700" in line for line in (*bold, *plain)] == [True, False]
    assert "fill: #007a5a" in text
    assert text.index("fill: #faf9f6") < text.index("fill: #007a5a"), "an opaque background comes first"


def test_all_text_is_at_least_11_pixels_high() -> None:
    points = [
        float(size) for size in re.findall(r"font(?:-size)?: (?:bold )?([\d.]+)px", picture(sample(), "fanin").decode())
    ]
    assert points
    assert min(points) * 96 / 72 >= 11  # user units of a width given in points


def test_names_are_drawn_as_they_are() -> None:
    results = only("fds")
    results.measurements[0].subject = "<b>&$x_1$"
    found = texts(picture(results, "fds"))
    assert "<b>&$x_1$" in found


def test_figures_that_cannot_be_drawn_are_left_out_and_the_rest_is_there() -> None:
    results = only("fds")
    results.measurements[1].ratio = math.nan
    results.measurements[2].ratio = None
    found = texts(picture(results, "fds"))
    assert "no ratio" in found
    assert {m.subject for m in results.measurements} <= set(found)


def test_a_run_without_any_usable_figure_still_gives_a_chart() -> None:
    results = only("fanin")
    for measurement in results.measurements:
        measurement.value = 0.0
    assert texts(picture(results, "fanin"))


def test_a_file_for_each_workload(tmp_path: Path) -> None:
    written = draw(sample(), tmp_path / "out.svg")
    assert [path.name for path in written] == ["out.svg", *(f"out-{name}.svg" for name in WORKLOADS[1:])]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written)
    assert written[0].read_bytes() == picture(sample(), "latency")


def test_png_is_png(tmp_path: Path) -> None:
    (written,) = draw(only("transfer"), tmp_path / "out.PNG")
    assert written.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_what_cannot_be_drawn_is_told_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"must end in \.svg or \.png"):
        check(tmp_path / "out.pdf")
    with pytest.raises(ValueError, match="there is no directory"):
        check(tmp_path / "none" / "out.svg")
    (tmp_path / "taken.svg").mkdir()
    with pytest.raises(ValueError, match="cannot be written"):
        check(tmp_path / "taken.svg")
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(msgspec.structs.replace(sample(), measurements=[]), tmp_path / "out.svg")
    with pytest.raises(ValueError, match="no latency of 2 KB"):
        picture(sample(), "latency", ["2 KB"])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"the extra hostline\[bench\]"):
        check(tmp_path / "out.svg")


def test_somebodys_own_style_changes_nothing() -> None:
    import matplotlib

    before = picture(sample(), "fds")
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "text.usetex": False, "figure.dpi": 30}):
        assert picture(sample(), "fds") == before
        assert matplotlib.rcParams["font.size"] == 30
    assert chart.FORMATS == (".svg", ".png")
