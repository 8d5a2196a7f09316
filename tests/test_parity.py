"""The two faces are twins: same files, classes, names, parameters, defaults and first docstring lines.

`async` and `await` are the visible difference. The source is compared, not the running objects, so that a difference is
found also where a decorator would hide it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.tree import SOURCE

# What differs on purpose: "file:name what" -> why. What is presence, kind, parameters, decorators or summary.
EXCEPTIONS: dict[str, str] = {
    "client.py:Connecting presence": "`await connect(...)` and `async with connect(...)` need an object that is both",
    "client.py:Line.__init__ parameters": "the asyncio line has one connection, which carries all calls, and no pool",
    "client.py:Line.pool_size presence": "the asyncio line has no pool",
    "client.py:connect parameters": "the asyncio line has no pool to be configured",
    "loopback.py:proven_socket parameters": "a blocking wait has to be told of a close, a task is cancelled",
    "streams.py:Stream.__init__ parameters": "made by the line alone; the blocking one has a connection to give back",
}

# Files with the same job in both faces whose classes nobody outside the face meets, and which must differ inside.
OWN_WAYS = {
    "caller.py": "one call at a time, read in the caller's own thread; on a loop, many in flight and one reader",
}

# The async face has its own names for these; both count as the same method.
TWINS = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "aclose": "close",
}
COMPARED_MAGIC = {"__init__", "__call__", "__enter__", "__exit__", "__iter__", "__next__"}
COMPARED_DECORATORS = {"property", "cached_property", "classmethod", "staticmethod"}


@dataclass(frozen=True)
class Shape:
    """What of a public name both faces share."""

    kind: str
    parameters: tuple[str, ...]
    decorators: frozenset[str]
    summary: str


def shapes(text: str) -> dict[str, Shape]:
    """Return the public classes, functions and methods of a module by qualified name."""
    return dict(_shapes(ast.parse(text).body, ""))


def _shapes(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Shape]]:
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, Shape("class", (), frozenset(), _summary(node))
            yield from _shapes(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = TWINS.get(node.name, node.name)
            decorators = frozenset(ast.unparse(item).split(".")[-1] for item in node.decorator_list)
            # Of an overloaded function the implementation is compared; the typing tests judge the rest.
            if (name in COMPARED_MAGIC or not name.startswith("_")) and "overload" not in decorators:
                summary = "" if name in COMPARED_MAGIC else _summary(node)
                yield (
                    prefix + name,
                    Shape("function", _parameters(node.args), decorators & COMPARED_DECORATORS, summary),
                )


def _summary(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return (ast.get_docstring(node) or "").split("\n")[0]


def _parameters(arguments: ast.arguments) -> tuple[str, ...]:
    """Return one text for each parameter: kind, name, default."""

    def write(argument: ast.arg, kind: str, default: ast.expr | None) -> str:
        text = kind + argument.arg
        return text if default is None else f"{text}={ast.unparse(default)}"

    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + [*arguments.defaults]
    texts = [
        write(argument, "positional-only " if index < len(arguments.posonlyargs) else "", default)
        for index, (argument, default) in enumerate(zip(positional, defaults, strict=True))
    ]
    if arguments.vararg:
        texts.append(write(arguments.vararg, "*", None))
    texts += [
        write(argument, "keyword-only ", default)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg:
        texts.append(write(arguments.kwarg, "**", None))
    return tuple(texts)


def differences(name: str, blocking: str, asynchronous: str) -> Iterator[tuple[str, str]]:
    """Yield ("file:name what", difference) for each public name on which the two modules disagree."""
    ours, theirs = shapes(blocking), shapes(asynchronous)
    for key in sorted(ours.keys() | theirs.keys()):
        place = f"{name}:{key}"
        owner = key.rpartition(".")[0]
        if owner and (owner not in ours or owner not in theirs):
            continue  # the class itself is missing, and named
        if key not in theirs or key not in ours:
            yield f"{place} presence", f"is missing in {'aio' if key in ours else 'sync'}/"
            continue
        for field in ("kind", "parameters", "decorators", "summary"):
            left, right = getattr(ours[key], field), getattr(theirs[key], field)
            if left != right:
                yield f"{place} {field}", f"differ:\n    sync: {left}\n    aio:  {right}"


def twins() -> list[str]:
    """Return the files that exist in both faces."""
    faces = [{path.name for path in (SOURCE / face).glob("*.py")} for face in ("sync", "aio")]
    return sorted((faces[0] & faces[1]) - {"__init__.py", *OWN_WAYS})


def found_differences() -> dict[str, str]:
    return {
        place: text
        for name in twins()
        for place, text in differences(
            name,
            (SOURCE / "sync" / name).read_text(encoding="utf-8"),
            (SOURCE / "aio" / name).read_text(encoding="utf-8"),
        )
    }


def test_the_faces_are_twins() -> None:
    assert twins(), "no file exists in both faces"
    found = {place: text for place, text in found_differences().items() if place not in EXCEPTIONS}
    assert not found, "\n" + "\n".join(f"{place} {text}" for place, text in found.items())


def test_every_exception_is_still_needed() -> None:
    assert [name for name in OWN_WAYS for face in ("sync", "aio") if not (SOURCE / face / name).exists()] == []
    assert EXCEPTIONS.keys() - found_differences().keys() == set()


BLOCKING = '''
class Connection:
    """Hold one connection."""

    def __init__(self, sock, *, max_fds=0): ...
    def __enter__(self): ...
    def _private(self): ...
    @property
    def peer(self):
        """Who is there."""
    def send(self, data, /, *, fds=(), timeout=None):
        """Send the data.

        Returns: nothing
        """
'''


def test_async_words_are_no_difference() -> None:
    twin = BLOCKING.replace("def send", "async def send").replace("__enter__", "__aenter__").replace("_private", "_own")
    assert [*differences("connection.py", BLOCKING, twin)] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("timeout=None", "timeout=5.0"),
        ("timeout=None", "deadline=None"),
        ("data, /, *", "data, *"),
        ("*, fds=()", "fds=()"),
        ("def send", "def write"),
        ("Send the data.", "Write the data."),
        ("max_fds=0", "max_fds=1"),
        ("    @property\n", ""),
        ("class Connection", "class AsyncConnection"),
    ],
)
def test_the_checker_catches_a_planted_difference(old: str, new: str) -> None:
    assert old in BLOCKING
    assert [*differences("connection.py", BLOCKING, BLOCKING.replace(old, new))] != []
