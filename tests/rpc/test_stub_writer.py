"""A module written from a description: typed, formatted, right on both faces, and without any code of a peer's."""

from __future__ import annotations

import ast
import builtins
import datetime
import decimal
import importlib.util
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.rpc.rich import rich
from tests.rpc.wire_types import types_and_values
from tests.serving import LoopThread, ServerThread

import hostline
from hostline.rpc.builtin import MethodDescription, ParameterDescription, ServiceDescription, describe_service
from hostline.rpc.contract.source_text import Names, docstring, is_usable, literal
from hostline.rpc.contract.stub_writer import RESERVED, interface_name, write_stubs
from hostline.rpc.stubs import interface_methods


def travelled(service: hostline.Service) -> ServiceDescription:
    """Return a description as a client gets it."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(describe_service(service)), type=ServiceDescription)


def loaded(text: str, directory: Path, name: str = "generated_client") -> ModuleType:
    """Import the text of a module."""
    path = directory / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    yield loaded(write_stubs(travelled(rich)), tmp_path)
    del sys.modules["generated_client"]


def need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed (it comes with the dev extra)")


def run(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=directory, capture_output=True, text=True, check=False, timeout=100
    )


# --- the round trip ------------------------------------------------------------------------------------


def test_the_blocking_interface_calls_a_rich_service(client: Any, sock_dir: Path) -> None:
    item = client.Item("tea", label=b"\x00\xff", tags=["a"], kinds={"b"}, parent=client.Item("box"))
    now = datetime.datetime(2024, 5, 17, 12, 30, tzinfo=datetime.UTC)
    entry = client.Entry(
        now, now.date(), datetime.time(1, 2), datetime.timedelta(3), uuid.UUID(int=7), decimal.Decimal("1.50")
    )
    with ServerThread(rich, sock_dir / "x"), hostline.connect(sock_dir / "x", client.Rich) as service:
        assert service.add(1) == 4.5
        assert service.add(1, scale=2) == 6.0
        bought = service.buy(item, colour=client.Colour.RED)
        assert (bought.sku, bought.label, bought.colour, bought.kinds) == ("tea", b"\x00\xff", client.Colour.RED, {"b"})
        assert bought.notes == {"a": "b"}, "the service's own default, for a field that was left out"
        assert bought.parent == msgspec.structs.replace(item, notes={"a": "b"}, parent=bought.parent.parent)
        with pytest.raises(client.OutOfStock, match="no tea"):
            service.buy(client.Item("tea", 0))
        with pytest.raises(KeyError):
            service.buy(client.Item("?"))
        assert service.pet(client.Dog("Rex")) == client.Dog("Rex")
        assert service.pet(None) is None
        assert service.draw(client.Square(side=2.0)) == client.Square(colour=client.Colour.RED, side=2.0)
        assert service.move(client.Point(1, 2)) == (client.Point(2, 2), client.Span(1, 2))
        assert service.log(entry, client.Options()) == (entry, client.Options())
        words, numbers = {"a", "b'"}, {1: frozenset({"x"})}
        maps = service.maps({uuid.UUID(int=1): 1}, {client.Level.LOW: []}, numbers, {"k": [1]}, words, (1, 2))
        assert maps == ({uuid.UUID(int=1): 1}, {client.Level.LOW: []}, numbers, {"k": [1]}, words, [1, 2])
        odd = client.Odd(from_=1, list=[2])
        assert service.list(odd) == [odd]
        assert service.echo(self=1, value="v") == [1, "v"]
        assert service.nothing() is None
        assert client.call_shelf_take_one(service.line, 3) == (3, "x", b"")
        assert client.call_shelf_take_one(service.line, 3, line_=b"l") == (3, "x", b"l")
        with pytest.raises(client.OutOfStock):
            client.call_shelf_take_one(service.line, 0)
        client.call_close(service.line)


def test_the_blocking_interface_streams(client: Any, sock_dir: Path) -> None:
    point = client.Point
    with ServerThread(rich, sock_dir / "x"), hostline.connect(sock_dir / "x", client.Rich) as service:
        tea = client.Item("tea", notes={})
        assert list(service.restock(tea, times=3)) == [tea] * 3
        with pytest.raises(client.OutOfStock, match="no times"):
            next(service.restock(tea, 0))
        assert service.count(point(x) for x in range(5)) == 5
        assert service.count(iter([point(1), point(2)]), least=2) == 1
        assert list(service.shift(1, points=iter([point(1), point(2)]))) == [point(2), point(3)]
        assert list(client.call_shelf_all(service.line, iter([b"a", b"b"]), "c")) == [b"ac", b"bc"]


def test_the_asyncio_interface_calls_it_too(client: Any, sock_dir: Path) -> None:
    async def main() -> None:
        async with hostline.aio.connect(sock_dir / "x", client.AsyncRich) as service:
            assert await service.add(1, 3) == 6.0
            assert (await service.buy(client.Item("tea"))).parent == client.Item("tea", notes={"a": "b"})
            with pytest.raises(client.OutOfStock):
                await service.buy(client.Item("tea", 0))
            point = client.Point

            async def points() -> AsyncIterator[Any]:
                for x in range(5):
                    yield point(x)

            tea = client.Item("tea", notes={})
            assert [item async for item in service.restock(tea, 3)] == [tea] * 3
            with pytest.raises(client.OutOfStock):
                await anext(service.restock(tea, 0))
            assert await service.count(points(), 2) == 3
            assert await service.count(iter([point(1)])) == 1
            assert [p async for p in service.shift(1, points=points())] == [point(x + 1) for x in range(5)]
            shelf = client.call_shelf_all_aio(service.line, iter([b"a"]), line_="c")
            assert [part async for part in shelf] == [b"ac"]
            assert await client.call_shelf_take_one_aio(service.line, 3, "n") == (3, "n", b"")

    loop = LoopThread()
    try:
        with ServerThread(rich, sock_dir / "x"):
            loop.run(main())
    finally:
        loop.close()


@pytest.mark.timeout(120)
@pytest.mark.ci_required
def test_mypy_and_pyright_accept_the_module_and_refuse_wrong_calls(tmp_path: Path) -> None:
    need("mypy")
    need("pyright")
    (tmp_path / "rich_client.py").write_text("# pyright: strict\n" + write_stubs(travelled(rich)), encoding="utf-8")
    program = """\
# pyright: strict
from collections.abc import AsyncIterator, Iterator
from typing import assert_type

import hostline
from rich_client import AsyncRich, Cat, Colour, Dog, Item, Point, Rich, call_shelf_all, call_shelf_take_one

with hostline.connect("rich", Rich) as service:
    assert_type(service.add(1, scale=2.0), float)
    assert_type(service.buy(Item("tea"), colour=Colour.RED), Item)
    assert_type(service.pet(Cat()), Cat | Dog | None)
    assert_type(call_shelf_take_one(service.line, 1), tuple[int, str, bytes])
    assert_type(service.restock(Item("tea")), Iterator[Item])
    assert_type(service.count(Point(x, 0) for x in range(3)), int)
    assert_type(call_shelf_all(service.line, iter([b"a"])), Iterator[bytes])

async def points() -> AsyncIterator[Point]:
    yield Point(1, 2)

async def main() -> None:
    async with hostline.aio.connect("rich", AsyncRich) as service:
        assert_type(await service.count(points()), int)
        assert_type(await service.count(iter([Point(1, 2)])), int)
        assert_type(service.shift(1, points=points()), AsyncIterator[Point])
        assert_type([item async for item in service.restock(Item("tea"))], list[Item])

with hostline.connect("rich", Rich) as service:
    pass
"""
    wrong = program + '    service.add("1")\n    service.buy()\n'
    (tmp_path / "right.py").write_text(program, encoding="utf-8")
    (tmp_path / "wrong.py").write_text(wrong, encoding="utf-8")
    cache = str(tmp_path / "cache")
    done = run("mypy", "--strict", "--cache-dir", cache, "rich_client.py", "right.py", directory=tmp_path)
    assert done.returncode == 0, done.stdout
    done = run("mypy", "--strict", "--cache-dir", cache, "wrong.py", directory=tmp_path)
    assert "[arg-type]" in done.stdout
    assert "[call-arg]" in done.stdout
    files = ["rich_client.py", "right.py", "wrong.py"]
    done = run("pyright", "--pythonpath", sys.executable, "--outputjson", *files, directory=tmp_path)
    found = [(Path(d["file"]).name, d["message"]) for d in json.loads(done.stdout)["generalDiagnostics"]]
    assert [item for item in found if item[0] != "wrong.py"] == []
    assert len(found) == 2


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_type_reads_and_writes_what_the_service_s_own_does(data: st.DataObject, tmp_path: Path) -> None:
    own, values = data.draw(types_and_values())
    service = hostline.Service("any")

    def echo(value: Any) -> Any: ...

    echo.__annotations__ = {"value": own, "return": own}
    service.method(echo)
    module: Any = loaded(write_stubs(travelled(service)), tmp_path, "any_client")
    (method,) = interface_methods(module.Any, hostline.Interface)
    value = data.draw(values)
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=method.returns)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(read), type=own) == value


# --- form ----------------------------------------------------------------------------------------------


def test_the_same_service_gives_the_same_text() -> None:
    assert write_stubs(travelled(rich)) == write_stubs(travelled(rich)) == write_stubs(describe_service(rich))


def test_the_header_says_of_what_it_was_made_and_how() -> None:
    text = write_stubs(travelled(rich))
    assert text.startswith('"""Typed calls of the service rich 1.0.\n')
    assert f"Made by `hostline stubs` (hostline {hostline.__version__})" in text
    assert "hostline.aio.connect(ADDRESS, AsyncRich)" in text


def test_a_service_without_methods_is_a_module_all_the_same(tmp_path: Path) -> None:
    module = loaded(write_stubs(describe_service(hostline.Service("empty"))), tmp_path, "empty_client")
    assert module.__all__ == []


def test_an_interface_may_be_named_and_makes_way_for_nothing() -> None:
    assert "class Item(hostline.Interface, typing.Protocol):" in write_stubs(describe_service(rich), "Item")
    assert "class Item_(msgspec.Struct):" in write_stubs(describe_service(rich), "Item")
    for name in ("class", "a b", "__x", "x)", "größe\n", ""):
        with pytest.raises(ValueError, match="cannot be the name of a class"):
            write_stubs(describe_service(rich), name)


@pytest.mark.parametrize(
    ("service", "name"),
    [("payments", "Payments"), ("order-book", "OrderBook"), ("a.b_c", "ABC"), ("_", "Service"), ("int", "Int")],
)
def test_an_interface_is_called_like_its_service(service: str, name: str) -> None:
    assert interface_name(service) == name


def test_an_interface_does_not_take_the_name_of_a_type() -> None:
    service = hostline.Service("order")
    order = msgspec.defstruct("Order", [("id", int)])

    def place(order: Any) -> None: ...

    place.__annotations__["order"] = order
    service.method(place)
    text = write_stubs(describe_service(service))
    assert "class Order(msgspec.Struct):" in text
    assert "class OrderService(hostline.Interface, typing.Protocol):" in text


def test_streams_are_typed_where_a_method_has_the_name_of_their_module(tmp_path: Path) -> None:
    numbers = ParameterDescription("collections", True, True, True, {"type": "integer"}, is_stream=True)
    methods = [
        MethodDescription(name, "", "task", False, [numbers], {"type": "integer"}, [], True)
        for name in ("collections", "shelf.all")
    ]
    text = write_stubs(ServiceDescription("any", "", "", 1, methods, {}))
    assert "import collections.abc as collections_\n" in text
    module = loaded(text, tmp_path)
    for interface, base in ((module.Any, hostline.Interface), (module.AsyncAny, hostline.aio.Interface)):
        (method,) = interface_methods(interface, base)
        assert (method.streams_result, method.returns) == (True, int)


def test_every_name_that_an_interface_has_of_its_own_is_reserved() -> None:
    for base in (hostline.Interface, hostline.aio.Interface):
        own = {name for name in (*dir(base), *dir(type(base))) if not name.startswith("_")}
        assert own <= RESERVED


# --- attacks -------------------------------------------------------------------------------------------

EVIL = [
    'x"""\nimport os\nos.abort()\n"""',
    "x'''\nraise SystemExit\n'''",
    "\\",
    '\\"""\nraise SystemExit\n"""',
    '"',
    "x = __import__('os').abort()",
    "a): pass\nraise SystemExit\nclass B(",
    "\n\nraise SystemExit",
    "\rraise SystemExit",
    "\x0craise SystemExit\x0b\x85\u2028",
    "{__import__('os').abort()}",
    "# type: ignore\n# fmt: off",
    "\u202eabc\x00\x1b[31m",
    "import",
    "None",
    "__class__",
    "__init__",
    "hostline",
    "msgspec",
    "typing",
    "ﬁ",
    "\N{GREEK QUESTION MARK}",
    "",
]


def hostile(evil: str) -> ServiceDescription:
    """Describe a service that says the same evil thing wherever it may say anything."""
    text = {"type": "string", "default": evil, "description": evil, "title": evil}
    struct = {
        "type": "object",
        "description": evil,
        "properties": {
            "type": {"enum": [evil]},
            evil: text,
            "x": {"enum": [evil, 1]},
            "n": {"default": {evil: [evil]}},
        },
        "required": ["type"],
        "x-hostline": {"tag": evil, "tag_field": "type"},
    }
    definitions = {
        evil: struct,
        f"{evil} enum": {"enum": [evil, "other"], "x-hostline": {"members": [[evil, evil]]}, "description": evil},
        f"{evil} array": {"type": "array", "prefixItems": [text], "x-hostline": {"fields": [evil], "tag": evil}},
        f"{evil} odd": {"type": evil, "format": evil, "x-hostline": evil},
    }
    references = [{"$ref": f"#/$defs/{name}"} for name in definitions]
    parameters = [
        ParameterDescription(name, is_required, is_positional, is_named, {"anyOf": references}, evil, is_stream)
        for name in (evil, "self", "line")
        for is_stream in (False, True)
        for is_required in (False, True)
        for is_positional in (False, True)
        for is_named in (False, True)
    ]
    methods = [
        MethodDescription(name, evil, evil, False, given, references[0], [evil, "KeyError"], bool(given[1:]))
        for name in (evil, f"{evil} x", "close", "list", "fine")
        for given in (parameters[:1], [], parameters)
    ]
    return ServiceDescription(evil, evil, evil, 1, methods, definitions, {evil: evil})


CALLS = {"field", "convert", "raises", "invoke", "open_stream", "append", "tuple"}
TOP = (
    ast.Expr,
    ast.Import,
    ast.ImportFrom,
    ast.Assign,
    ast.AnnAssign,
    ast.ClassDef,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
)


def foreign_code(text: str) -> list[str]:
    """Return what stands in a module that no stub has."""
    tree = ast.parse(text)
    found = [ast.unparse(node) for node in tree.body if not isinstance(node, TOP)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant | ast.Call):
            found.append(ast.unparse(node))
        if isinstance(node, ast.Import):
            allowed = {"builtins", "collections.abc", "datetime", "decimal", "enum", "typing", "uuid"}
            allowed |= {"hostline", "msgspec"}
            found += [alias.name for alias in node.names if alias.name not in allowed]
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "?")
            found += [ast.unparse(node)] if name not in CALLS else []
        if isinstance(node, ast.JoinedStr | ast.Raise | ast.NamedExpr | ast.Delete | ast.Global):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("evil", EVIL)
def test_nothing_that_a_service_says_becomes_code(evil: str, tmp_path: Path) -> None:
    text = write_stubs(hostile(evil))
    assert foreign_code(text) == []
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "type: ignore" not in "".join(line.partition("  #")[2] for line in text.splitlines())
    loaded(text, tmp_path, "hostile_client")


def test_the_checker_of_attacks_sees_them() -> None:
    for text in ("import os", "x = open('f')", "raise SystemExit", "f'{x}'", "x.y", "if x: pass"):
        assert foreign_code(text), text


@pytest.mark.timeout(120)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(st.sampled_from("\"'\\\n\r\t #a_é\x00\u2028{}[]();,.:=*") | st.characters(codec="utf-8"), max_size=30))
def test_no_text_at_all_becomes_code(evil: str) -> None:
    assert foreign_code(write_stubs(hostile(evil))) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
SCHEMA_KEYS = ["type", "enum", "anyOf", "$ref", "properties", "required", "items", "prefixItems", "default", "const"]
SCHEMA_KEYS += ["minItems", "maxItems", "uniqueItems", "format", "additionalProperties", "x-hostline", "description"]
SCHEMA_KEYS += ["contentEncoding"]
schemas: st.SearchStrategy[Any] = st.recursive(
    json_values | st.sampled_from(["object", "array", "string", "integer", "#/$defs/A", {"type": "object"}]),
    lambda inner: st.dictionaries(st.sampled_from(SCHEMA_KEYS), inner | st.lists(inner, max_size=2), max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(schemas, schemas, schemas)
def test_malformed_schemas_make_a_module_all_the_same(one: Any, other: Any, returns: Any) -> None:
    parameter = ParameterDescription("a", False, True, True, other if isinstance(other, dict) else {}, other)
    method = MethodDescription("m", "", "", False, [parameter], returns if isinstance(returns, dict) else {}, [])
    text = write_stubs(ServiceDescription("s", "", "", 1, [method], {"A": one, "B": other}))
    assert foreign_code(text) == []


def test_definitions_that_grow_without_end_are_cut() -> None:
    itself = {"anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/A"}], "default": 1}
    field = {"type": "object", "properties": {"a": itself}}
    write_stubs(ServiceDescription("s", "", "", 1, [], {"A": itself, "B": field}))
    write_stubs(ServiceDescription("s", "", "", 1, [], {"-" * n: {"enum": ["a"]} for n in range(5000)}))
    inner = {str(n): {"type": "array", "prefixItems": [{"$ref": f"#/$defs/{n + 1}"}] * 4} for n in range(40)}
    method = MethodDescription("m", "", "", False, [], {"$ref": "#/$defs/0"}, [])
    assert len(write_stubs(ServiceDescription("s", "", "", 1, [method], inner))) < 5000


# --- parts ---------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary()
)
def test_a_literal_means_its_value(value: Any) -> None:
    written = literal(value)
    assert written is not None
    assert written.isprintable()
    assert ast.literal_eval(written) == value
    assert type(ast.literal_eval(written)) is type(value)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab \"'\\\n\r\t\x0c") | st.characters(codec="utf-8")))
def test_a_docstring_is_one_constant(text: str) -> None:
    lines = docstring(text, "")
    assert all(line.isprintable() and line == line.rstrip() for line in lines)
    body = ast.parse("\n".join(lines)).body
    assert len(body) == len(lines[:1])
    if body:
        assert isinstance(body[0], ast.Expr)
        assert isinstance(body[0].value, ast.Constant)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=6) | st.sampled_from(["a", "class", "list", "__a", "_", "ﬁ", "a-b"]), max_size=8))
def test_each_name_is_usable_and_given_once(wanted: list[str]) -> None:
    names = Names({"a"})
    given_names = [names.give(name, "other", avoid_builtins=True) for name in wanted]
    assert len(set(given_names) | {"a"}) == len(given_names) + 1
    assert all(is_usable(name) and name not in dir(builtins) for name in given_names)


@pytest.mark.ci_required
@pytest.mark.timeout(60)
def test_the_formatter_leaves_every_module_as_it_is(tmp_path: Path) -> None:
    need("ruff")
    (tmp_path / "rich.py").write_text(write_stubs(travelled(rich)), encoding="utf-8")
    for number, evil in enumerate(
        [*EVIL, "x" * 200, "'\"", "'", " a\n   b\n c ", "\ta", 'say "it"', "\\N{BULLET} \\x41"]
    ):
        (tmp_path / f"evil_{number}.py").write_text(write_stubs(hostile(evil)), encoding="utf-8")
    for width in ("88", "120"):
        done = run("ruff", "format", "--isolated", "--diff", "--line-length", width, ".", directory=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
