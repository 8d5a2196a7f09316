"""Log records as JSON, one object a line, for any logger of the process.

The fields that hostline's own records carry (see docs/howto/watch-a-service.md), and those of every other record that
was logged with `extra=`, stand beside the message. A line is ASCII, without control characters: what peers wrote cannot
forge one.
"""

from __future__ import annotations

import datetime
import json
import logging
import math
from typing import Any, Final

__all__ = ["JSONFormatter"]

# What every record has; the rest came with `extra=`.
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "event", "taskName"}

# Levels of lists and maps in one field.
_DEPTH: Final = 4


class JSONFormatter(logging.Formatter):
    """Write each record as one JSON object: time, level, logger, message, event, the fields, and an exception's text.

    Times are in UTC as RFC 3339 has them. A field that is no JSON value is written as its `str()`. It never raises.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        entry: dict[str, Any] = {
            "time": _time(record.created),
            "level": str(record.levelname).lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if "event" in record.__dict__:
            entry["event"] = record.__dict__["event"]
        for name, value in record.__dict__.items():
            if name not in _OWN:
                entry[f"field_{name}" if name in entry else name] = value
        if text := self._exception(record):
            entry["exception"] = text
        if record.stack_info:
            entry["stack"] = record.stack_info
        line = json.dumps({_text(str(name)): _plain(value, _DEPTH) for name, value in entry.items()})
        return line.replace("\x7f", "\\u007f")  # the one control character that is ASCII and that JSON lets pass

    def _exception(self, record: logging.LogRecord) -> str | None:
        if record.exc_info and record.exc_info[0] is not None:
            try:
                return self.formatException(record.exc_info)
            except Exception:  # its own code is run for its text
                return f"{record.exc_info[0].__name__}: its text cannot be read"
        return record.exc_text


def _time(created: float) -> str | None:
    try:
        return datetime.datetime.fromtimestamp(created, datetime.UTC).isoformat(timespec="microseconds")
    except (ValueError, OverflowError, OSError, TypeError):
        return None


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # arguments that do not fit, or whose own code fails
        return f"{record.msg if isinstance(record.msg, str) else type(record.msg).__name__} (its arguments do not fit)"


def _plain(value: Any, depth: int) -> Any:
    """Return what JSON can hold of a value."""
    if isinstance(value, str):
        return _text(str.__str__(value))
    if value is None or isinstance(value, bool):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else str(value)
    if type(value) is int:
        return value if value.bit_length() <= 64 else hex(value)
    try:
        if depth and type(value) is dict:
            return {_text(str(key)): _plain(inner, depth - 1) for key, inner in value.items()}
        if depth and type(value) in (list, tuple):
            return [_plain(inner, depth - 1) for inner in value]
        return _text(str(value))
    except Exception:
        return f"<{type(value).__name__} that cannot be written>"


def _text(text: str) -> str:
    """Return text that every JSON parser takes: lone surrogates, which stand for undecodable bytes, are escaped."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
