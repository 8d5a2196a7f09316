"""The tables of a run: what is in them, in which order, at which width, and on a page."""

from __future__ import annotations

import io
import re
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from hostline.bench.arranged import arrange, in_short, number, ratio_text, selected
from hostline.bench.results import Results, decode_results, encode_results
from hostline.bench.table import BEGIN, END, as_markdown, print_results, write_into
from hostline.cli.terminal import escape
from tests.bench.sample import sample


def printed(results: Results, width: int, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(file=file, highlight=False, markup=False, emoji=False, width=width)
    print_results(results, console, lambda text: escape(text, keep=""))
    file.flush()
    return raw.getvalue().decode(encoding)


def only(case: str = "64 B") -> Results:
    results = sample()
    return msgspec.structs.replace(
        results, measurements=[m for m in results.measurements if (m.workload, m.case) == ("latency", case)]
    )


def test_a_run_survives_its_json() -> None:
    results = sample()
    assert encode_results(decode_results(encode_results(results))) == encode_results(results)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_tables_fit_and_name_every_subject_on_one_line(width: int) -> None:
    results = sample()
    text = printed(results, width)
    tables = text.partition("In short")[0]
    assert max(map(len, tables.splitlines())) <= width
    for measurement in results.measurements:
        assert f"   {measurement.subject} " in tables
    for case in arrange(results):
        assert f"{case.workload}, {case.name}: " in tables


def test_a_long_name_is_wrapped_under_itself() -> None:
    results = only()
    results.measurements[3].subject = "a library whose name is much longer than anybody would want it to be"
    lines = [line.rstrip() for line in printed(results, 80).splitlines()]
    (first,) = [n for n, line in enumerate(lines) if "a library" in line]
    assert lines[first].startswith("   a library whose name")
    assert lines[first + 1].startswith("   ")
    assert re.match(r"   \w", lines[first + 1])
    assert max(map(len, lines[:30])) <= 80


def test_subjects_stand_by_layer_and_the_fastest_first() -> None:
    (case,) = arrange(only())
    assert [layer for layer, _ in case.layers] == ["raw", "framed", "typed"]
    for _, found in case.layers:
        ratios = [m.ratio for m in found]
        assert ratios == sorted(ratios, key=lambda ratio: ratio or 0)
    text = printed(only(), 100)
    places = [text.index(f"\n {name} ") for name in ("raw bytes", "  C", "  Go", "typed calls", "  rpyc", "  grpc aio")]
    assert places == sorted(places)


def test_workloads_stand_in_one_order_however_they_were_measured() -> None:
    results = sample()
    expected = [(case.workload, case.name) for case in arrange(results)]
    results.measurements.sort(key=lambda m: m.workload)
    assert [(case.workload, case.name) for case in arrange(results)] == expected


def test_rates_are_ordered_from_the_highest_where_there_is_no_reference() -> None:
    case = next(c for c in arrange(sample()) if c.workload == "fanin")
    for _, found in case.layers:
        assert [m.value for m in found] == sorted((m.value for m in found), reverse=True)


def test_figures_stand_in_their_columns() -> None:
    results = only()
    (ours,) = [m for m in results.measurements if m.subject == "hostline"]
    ours.value, ours.ratio, ours.cpu_seconds_per_million = 31.54, 1.634, 33.3
    ours.rounds, ours.peak_memory_kib = [30.0, 31.54, 40.0], {"client": 10 << 10, "server": 20 << 10}
    assert ours.spread is not None
    ours.spread = msgspec.structs.replace(ours.spread, p90=41.0, p99=52.0, p999=630.0)
    (line,) = [line for line in printed(results, 120).splitlines() if line.startswith("   hostline   ")]
    figures = ["unix", "blocking", "1.6x", "31.5", "30.0-40.0", "41.0", "52.0", "630", "33.3", "10+20"]
    assert line.split() == ["hostline", *figures]
    (narrow,) = [line for line in printed(results, 80).splitlines() if line.startswith("   hostline   ")]
    assert narrow.split() == ["hostline", "unix", "1.6x", "31.5", "52.0", "33.3", "10+20"]


def test_columns_without_a_figure_are_left_out() -> None:
    results = sample()
    results.measurements = [m for m in results.measurements if m.workload == "fanin"]
    for measurement in results.measurements:
        measurement.cpu_seconds_per_million = None
    head = printed(results, 120)
    assert "a second" in head
    for absent in ("x C", "p99", "CPU"):
        assert absent not in head.partition("In short")[0].partition("raw bytes")[0]


def test_it_says_in_short_where_hostline_stands_also_where_another_is_faster() -> None:
    cases = {(case.workload, case.name): in_short(case) for case in arrange(sample())}
    assert cases["latency", "64 B"] == "latency, 64 B, typed calls: hostline 1.6x C; the best other, rpyc, 12x"
    slower = cases["throughput", "one-way 200 B"] or ""
    assert "hostline channel 3.1x C; the best other, pyzmq REQ/REP, 2.3x" in slower
    assert cases["fanin", "1 client"] is None


def test_what_was_skipped_is_told_and_obeyed_by_no_terminal() -> None:
    text = printed(sample(), 100)
    assert "iceoryx2 is not installed: pip install 'hostline[bench]'" in text
    assert r"\x1b[31mfatal" in text
    assert "\x1b[31m" not in text
    assert "5 rounds" in text
    assert "kernel Linux 6.18.44" in " ".join(text.split())


def test_an_output_in_ascii_gets_no_other_character() -> None:
    assert "p50 us" in printed(sample(), 100, "ascii")


def test_a_selection_keeps_what_the_ratios_are_against() -> None:
    results = selected(sample(), ["latency"], ["grpc"])
    assert {m.workload for m in results.measurements} == {"latency"}
    assert {m.subject for m in results.measurements} == {"C", "grpc", "grpc TCP", "grpc aio"}
    with pytest.raises(ValueError, match=r"no workload 'nope'.*latency, transfer"):
        selected(sample(), ["nope"], [])
    with pytest.raises(ValueError, match=r"no subject 'rp'.*rpyc"):
        selected(sample(), [], ["rp"])


def test_numbers_have_the_digits_that_count() -> None:
    assert [number(value) for value in (0.0, 0.1234, 6.2, 31.54, 472.4, 1_850_400.0, 999.6)] == [
        "0", "0.123", "6.20", "31.5", "472", "1,850,000", "1,000",
    ]  # fmt: skip
    assert [ratio_text(value) for value in (None, 0.314, 1.0, 1.44, 9.96, 24.4, 1234.0)] == [
        "", "0.31x", "1.0x", "1.4x", "10.0x", "24x", "1,200x",
    ]  # fmt: skip


# --- on a page ---------------------------------------------------------------------------------------


def test_markdown_has_every_figure_and_links_the_charts() -> None:
    text = as_markdown(sample(), lambda workload: f"charts/{workload}.svg")
    assert "### latency\n\n![latency: " in text
    assert "](charts/latency.svg)" in text
    (row,) = [line for line in text.partition("**1 KB**")[0].splitlines() if line.startswith("| **hostline** |")]
    assert row.startswith("| **hostline** | typed | unix | blocking | 1.6x | 31.3 |")
    for measurement in sample().measurements:
        assert f"| {measurement.subject} |" in text or f"| **{measurement.subject}** |" in text
    widths = {line.count("|") for line in text.partition("**1 KB**")[0].splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_markdown_escapes_what_a_page_would_obey() -> None:
    results = only()
    results.measurements[0].subject = "a|b <c> [d](e)"
    assert r"a\|b \<c\> \[d\](e)" in as_markdown(results)


def test_only_the_part_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "bench.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\nafter\n")
    write_into(page, "new\n")
    write_into(page, "new\n")
    assert page.read_text() == f"before\n\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no part between"):
        write_into(page, "new\n")
