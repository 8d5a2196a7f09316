"""The arithmetic: quantiles, ratios and choices that are known beforehand."""

from __future__ import annotations

from array import array

import pytest

from hostline.bench.figures import median_ratio, quantile, spread_of
from hostline.bench.plan import SLOW, WORKLOADS, find_entries, make_plan
from hostline.bench.results import Measurement, Results, decode_results, encode_results
from hostline.bench.subject import Subject


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    # The rounds' ratios are 2, 3 and 10; the ratio of the medians would be 20 / 4.
    assert median_ratio([8.0, 30.0, 20.0], [4.0, 10.0, 2.0], "us") == 3.0


def test_the_ratio_of_a_rate_is_turned_over() -> None:
    assert median_ratio([50.0, 100.0, 200.0], [100.0, 400.0, 600.0], "1/s") == 3.0


def test_a_ratio_needs_a_round() -> None:
    assert median_ratio([], [], "us") is None


def test_quantiles_are_values_that_occurred() -> None:
    times = array("Q", range(1000, 1_001_000, 1000))
    spread = spread_of(times)
    assert spread is not None
    assert (spread.p50, spread.p90, spread.p99, spread.p999, spread.count) == (501.0, 901.0, 991.0, 1000.0, 1000)
    assert quantile([7], 0.999) == 7
    assert spread_of(array("Q")) is None


def test_what_is_no_document_is_refused() -> None:
    for data in (b"", b"{}", b"[1]", b"\xff"):
        with pytest.raises(ValueError, match="not the results"):
            decode_results(data)


def test_a_document_survives_json() -> None:
    one = Measurement(
        workload="latency", case="64 B", subject="C", layer="raw", transport="unix", style="c", is_hostline=False,
        unit="us", rounds=[1.5, 2.0], value=1.75,
    )  # fmt: skip
    results = Results(
        began="2025-01-01T00:00:00+00:00", seconds=1.0, is_quick=True, pinned={"latency": [0]},
        machine={"cpu": "x"}, rounds=2,
        measurements=[one], skipped=[],
    )  # fmt: skip
    assert decode_results(encode_results(results)) == results


def test_names_choose_subjects_by_their_first_words() -> None:
    names = [entry.subject.name for entry in make_plan(["kinds"], subjects=["Hostline Socket"]).entries]
    assert names == [
        "C", "hostline socket", "hostline socket seqpacket", "hostline socket datagram", "sockets",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"workloads": ["speed"]}, "unknown workload 'speed'"),
        ({"subjects": ["grcp"]}, "unknown subject 'grcp'"),
        ({"rounds": 0}, "0 rounds"),
        ({"pin": []}, "cannot keep to cores"),
    ],
)
def test_what_cannot_be_planned_is_said(arguments: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make_plan(**arguments)  # type: ignore[arg-type]


def test_subjects_are_unique_and_say_what_they_are() -> None:
    names = [entry.subject.name for entry in find_entries()]
    assert len(names) == len(set(names))
    with pytest.raises(ValueError, match="unknown layer"):
        Subject("x", "rubber", "unix", "c", frozenset(), serve=print, drive=print)  # type: ignore[arg-type]


def test_cases_have_one_name_each_and_the_quick_mode_leaves_out_what_exists() -> None:
    full = [(case.workload, case.name) for case in make_plan().cases]
    quick = [(case.workload, case.name) for case in make_plan(is_quick=True).cases]
    assert len(full) == len(set(full))
    assert {workload for workload, _ in full} == {workload for workload, _ in quick} == set(WORKLOADS)
    assert set(full) - set(quick) == SLOW
