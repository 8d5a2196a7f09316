"""Python source made from texts of a peer: identifiers and literals that can be nothing else.

Whatever a service calls itself, no text of it reaches a module but through here. Literals are written the way
`ruff format` leaves them.
"""

from __future__ import annotations

import builtins
import inspect
import keyword
import math
import re
import unicodedata
from collections.abc import Iterable
from typing import Any, Final

__all__ = ["WIDTH", "Names", "docstring", "exploded", "is_usable", "literal", "statement"]

# A formatter's usual line, and less than this project's own: what fits here is left alone under both.
WIDTH: Final = 88

_BUILTINS: Final = frozenset(dir(builtins))
_SHORT_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


def is_usable(name: str) -> bool:
    """Say whether a name can stand in source as it is, and means itself there.

    Names that begin with two underscores are rewritten inside classes; names in another normal form are rewritten by
    the parser.
    """
    return (
        name.isidentifier()
        and not keyword.iskeyword(name)
        and not name.startswith("__")
        and name != "_"
        and unicodedata.normalize("NFKC", name) == name
    )


class Names:
    """Give each thing in one scope an identifier of its own.

    Args:
        taken: Identifiers that nothing here may have.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._counts: dict[str, int] = {}  # so that a thousand equal names take a thousand steps

    def give(self, wanted: str, otherwise: str, *, avoid_builtins: bool = False) -> str:
        """Return the wanted name if it is usable and free, else one like it.

        Args:
            wanted: What the peer calls the thing.
            otherwise: What to call it if nothing usable is left of that; an identifier.
            avoid_builtins: Whether the name would hide a builtin from the whole module.
        """
        name = wanted if is_usable(wanted) else _cleaned(wanted, otherwise)
        number = self._counts.get(name, 1)
        candidate = name if number == 1 else f"{name}_{number}"
        while candidate in self._taken or (avoid_builtins and candidate in _BUILTINS) or not is_usable(candidate):
            candidate = f"{name}_" if number == 1 else f"{name}_{number}"
            number += 1
        self._taken.add(candidate)
        self._counts[name] = number
        return candidate


def _cleaned(text: str, otherwise: str) -> str:
    """Return an identifier that resembles a text: ASCII letters, digits and single underscores."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", text)[:80].strip("_")
    if not name:
        return otherwise
    return name if name[0].isalpha() else f"{otherwise}_{name}"


def literal(value: Any) -> str | None:
    """Return the literal of a plain value, or None for one that has none: containers, NaN, infinity."""
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int):
        # Python refuses to read decimal numbers beyond 4,300 digits.
        return repr(value) if value.bit_length() < 128 else hex(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bytes):
        body = "".join(chr(b) if 32 <= b < 127 and b not in b"\\\"'" else f"\\x{b:02x}" for b in value)
        return f'b"{body}"'
    return None


def _text(text: str) -> str:
    # Double quotes, unless that would need escapes which single ones do not: the formatter's own rule. With both
    # kinds inside, the double ones are spelled by number, so that there is nothing left to choose.
    if '"' in text and "'" not in text:
        return f"'{_escaped(text)}'"
    return '"' + _escaped(text).replace('"', "\\x22") + '"'


def _escaped(text: str) -> str:
    return "".join(map(_escaped_character, text))


def _escaped_character(character: str) -> str:
    if character in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[character]
    if character.isprintable():
        return character
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def docstring(text: str, indent: str) -> list[str]:
    """Return a text as the lines of a docstring; none for a text without a word.

    Args:
        text: Any text.
        indent: What stands before each line.
    """
    # One kind of line end, as Python's own parser would read it; form feeds and the like are escaped below.
    plain = text.replace("\r\n", "\n").replace("\r", "\n").expandtabs()
    lines = inspect.cleandoc("\n".join(line.rstrip() for line in plain.split("\n"))).strip().split("\n")
    escaped = [_escaped(line).rstrip() for line in lines]
    # Three quotes would end it; one at either edge would touch those that begin and end it.
    body = "\n".join(escaped).replace('"""', "\\x22" * 3)
    if not body:
        return []
    if body[0] == '"':
        body = "\\x22" + body[1:]
    if body[-1] == '"':
        body = body[:-1] + "\\x22"
    first, *rest = body.split("\n")
    if not rest:
        return [f'{indent}"""{first}"""']
    return [f'{indent}"""{first}', *(f"{indent}{line}" if line else "" for line in rest), f'{indent}"""']


def statement(line: str) -> str:
    """Return a line that the formatter leaves alone; a long one says so."""
    return line if len(line) <= WIDTH else f"{line}  # fmt: skip"


def exploded(head: str, items: list[str], tail: str, indent: str) -> list[str]:
    """Return a bracketed list on one line where it fits, else one item a line with the comma that keeps it so.

    Args:
        head: What stands before the items, with the bracket.
        items: The items.
        tail: What stands behind them, with the bracket.
        indent: What stands before each line.
    """
    one_line = f"{indent}{head}{', '.join(items)}{tail}"
    if len(one_line) <= WIDTH or not items:
        return [statement(one_line)]
    lines = [f"{indent}{head}", *(f"{indent}    {item}," for item in items), f"{indent}{tail}"]
    if any(len(line) > WIDTH for line in lines):
        lines[-1] += "  # fmt: skip"
    return lines
