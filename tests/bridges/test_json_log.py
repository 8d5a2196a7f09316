"""JSON log lines: one object a line whatever is logged, with every field that a record carries."""

from __future__ import annotations

import datetime
import json
import logging
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostline.bridges.json_log import JSONFormatter


def written(message: object = "x", *args: object, **extra: Any) -> dict[str, Any]:
    """Return what one line holds."""
    record = logging.makeLogRecord({"name": "n", "levelname": "INFO", "msg": message, "args": args, **extra})
    line = JSONFormatter().format(record)
    assert line.isascii()
    assert line.isprintable()
    entry: dict[str, Any] = json.loads(line)
    line.encode("utf-8")
    return entry


class Odd:
    """Nothing of it can be read."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def test_a_line_has_its_time_with_the_zone_its_level_and_its_message() -> None:
    entry = written("%s sold %d", "tea", 2, event="sold", service="shop")
    assert (entry["level"], entry["logger"], entry["message"]) == ("info", "n", "tea sold 2")
    assert (entry["event"], entry["service"]) == ("sold", "shop")
    time = datetime.datetime.fromisoformat(entry["time"])
    assert time.tzinfo is not None
    assert abs((datetime.datetime.now(datetime.UTC) - time).total_seconds()) < 60


@given(st.text() | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_any_text_stays_on_one_line(text: str) -> None:
    entry = written("%s", text, method=text)
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert entry["message"] == entry["method"] == text


def test_an_exceptions_text_is_in_the_line() -> None:
    try:
        raise ValueError('two\nlines "}')
    except ValueError:
        entry = written("failed", exc_info=sys.exc_info())
    assert entry["exception"].startswith("Traceback")
    assert 'ValueError: two\nlines "}' in entry["exception"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None), (True, True), (3, 3), (1.5, 1.5), (math.nan, "nan"), (-math.inf, "-inf"),
        (1 << 200, hex(1 << 200)),
        ([1, (2, "b")], [1, [2, "b"]]), ({"a": {1: b"\xff"}}, {"a": {"1": "b'\\xff'"}}),
        (Odd(), "<Odd that cannot be written>"), ([Odd()], ["<Odd that cannot be written>"]),
    ],
)  # fmt: skip
def test_a_field_of_any_type_is_written(value: Any, shown: Any) -> None:
    assert written(field=value)["field"] == shown


def test_odd_records_are_written_all_the_same() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert written(endless=endless)["endless"][0][0]
    assert "do not fit" in written("%d %d", "x")["message"]
    assert "do not fit" in written("%s", Odd())["message"]
    assert "do not fit" in written(Odd())["message"]
    assert written(created=math.nan)["time"] is None
    assert written(created="soon")["time"] is None
    assert written(level="mine")["field_level"] == "mine"
    assert written(levelname=None)["level"] == "none"
