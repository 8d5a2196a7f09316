"""`hostline call` and `hostline describe`: JSON in, JSON out, and a description that people can read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hostline.cli.app import EXAMPLES
from hostline.cli.commands.call import parse_arguments
from hostline.cli.exits import ExitCode, UsageError
from hostline.cli.schemas import as_json, definition_text, method_text, type_text
from hostline.rpc.builtin import MethodDescription, ParameterDescription
from tests.cli.running import Running, accepts, environment, hostline, on_terminal, plain
from tests.leaks import wait_until

SHOP = Path(__file__).with_name("shop.py")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("shop") / "s"
    with Running("serve", f"{SHOP}:shop", "-a", path, ready="serving shop") as server:
        yield path
        assert server.stop() == 0


def result_of(*arguments: object, **options: Any) -> Any:
    done = hostline("call", *arguments, **options)
    assert (done.returncode, done.stderr) == (0, b"")
    return json.loads(done.stdout)


# --- call --------------------------------------------------------------------------------------------


def test_an_array_is_by_position_an_object_by_name_and_anything_else_the_only_argument(shop: Path) -> None:
    assert result_of(shop, "add", "[1, 4]") == 5
    assert result_of(shop, "add", '{"b": 4, "a": 1}') == 5
    assert result_of(shop, "add", "1") == 3
    assert result_of(shop, "echo", "[[1, 2]]") == [1, 2]
    assert result_of(shop, "echo", '{"value": {"a": null}}') == {"a": None}


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (None, ((), None)),
        ("[]", ((), None)),
        ('[1, "a"]', ((1, "a"), None)),
        ('{"a": 1}', ((), {"a": 1})),
        ('"a"', (("a",), None)),
        ("null", ((None,), None)),
        (b"1.5", ((1.5,), None)),
    ],
)
def test_what_the_arguments_mean(text: str | bytes | None, meaning: object) -> None:
    assert parse_arguments(text) == meaning


@pytest.mark.parametrize("text", ["", "hello", "[1", '{"a"}', "[" * 100_000, "'a'", b"\xff"])
def test_what_is_not_json_is_refused_in_words(text: str | bytes) -> None:
    with pytest.raises(UsageError, match="not JSON"):
        parse_arguments(text)


def test_a_dash_reads_standard_input(shop: Path) -> None:
    assert result_of(shop, "add", "-", input=b'{"a": 40, "b": 2}\n') == 42


def test_bytes_are_base64_both_ways_and_times_are_text(shop: Path) -> None:
    assert result_of(shop, "reverse", '"YWJj"') == "Y2Jh"
    assert result_of(shop, "reverse", '{"data": "YWJj"}') == "Y2Jh"
    assert result_of(shop, "buy", '[{"sku": "YWJj", "label": "YWJj"}]') == {"sku": "YWJj", "count": 1, "label": "YWJj"}
    assert hostline("call", shop, "reverse", '"no base64!"').returncode == ExitCode.INVALID_CALL
    assert result_of(shop, "when") == "2024-05-17T12:30:00Z"
    assert hostline("call", shop, "reverse", '"YWJj"', "--raw").stdout == b"cba"


def test_a_map_that_json_cannot_have_becomes_a_list_of_pairs(shop: Path) -> None:
    assert result_of(shop, "pairs") == [[1, "one"], [None, "none"]]


def test_on_a_terminal_the_result_is_indented_and_on_one_line_if_asked(shop: Path) -> None:
    code, shown = on_terminal("call", shop, "echo", '[{"a": [1, "é"]}]')
    assert (code, plain(shown)) == (0, '{\n  "a": [\n    1,\n    "é"\n  ]\n}\n')
    assert on_terminal("call", shop, "echo", '[{"a": [1]}]', "--json") == (0, '{"a":[1]}\n')
    code, shown = on_terminal("call", shop, "echo", json.dumps(["x" * 300]), columns=80)
    assert json.loads(plain(shown)) == "x" * 300


def test_it_waits_for_a_server_that_starts_later(sock_dir: Path) -> None:
    path = sock_dir / "late"
    with Running("call", path, "add", "[1]", "--wait", "15") as call:
        with Running("serve", f"{SHOP}:shop", "-a", path, ready="serving") as server:
            assert call.wait() == 0
            assert call.out == "3\n"
            assert server.stop() == 0


@pytest.mark.parametrize("seconds", ["inf", "1e308", "1e10", "1e9", "3e6"])
def test_however_long_a_time_limit_is_it_can_be_waited(shop: Path, seconds: str) -> None:
    assert result_of(shop, "add", "[1]", "--timeout", seconds, "--wait", seconds) == 3
    assert hostline("describe", shop, "--timeout", seconds).returncode == 0


def test_the_example_of_the_help_works_with_every_service(shop: Path) -> None:
    (line,) = [line for line, _ in EXAMPLES if " call " in line]
    _, _, name, *arguments = line.split()
    assert name == "payments"
    assert result_of(shop, *arguments)["service"] == "shop"


def test_values_that_json_lacks_are_written_all_the_same() -> None:
    assert as_json({b"k": [b"v"], 1: 2}) == b'{"aw==":["dg=="],"1":2}'
    assert as_json([{(1, 2): {"a": {None: 1}}}]) == b'[[[[1,2],{"a":[[null,1]]}]]]'
    assert as_json(msgspec.msgpack.Ext(5, b"x")) == b'{"extension":5,"data":"eA=="}'


# --- describe ----------------------------------------------------------------------------------------


def test_a_service_is_described_for_people(shop: Path) -> None:
    done = hostline("describe", shop)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert text.startswith("shop 2.1: 12 methods\nSells things.\n\nNot everything is in stock.\n")
    for block in (
        """
  add(a: int, b: int = 2) -> int
      Add two numbers.
      idempotent: a client may repeat it
""",
        """
  buy(item: Item, *, note: str | None = None) -> Item
      Buy an item.

      An empty one cannot be bought.
      raises OutOfStock
""",
        """
  Item
      sku: str
      count: int = 1
      label: bytes = ""
      Something on a shelf.
""",
        """
Errors

  OutOfStock
      None is left.
""",
    ):
        assert block in text


def test_a_description_is_shown_in_any_encoding(shop: Path) -> None:
    done = hostline("describe", shop, env={"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"in gr\\xfcn" in done.stdout


def test_the_whole_description_is_there_as_json(shop: Path) -> None:
    done = hostline("describe", shop, "--json")
    described = json.loads(done.stdout)
    assert described["name"] == "shop"
    assert [method["name"] for method in described["methods"]][:2] == ["add", "buy"]
    assert described["definitions"]["Item"]["required"] == ["sku"]


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({}, "Any"),
        ({"type": "integer"}, "int"),
        ({"type": "string", "contentEncoding": "base64"}, "bytes"),
        ({"type": "string", "format": "date-time"}, "datetime"),
        ({"type": "array", "items": {"$ref": "#/$defs/Order"}}, "list[Order]"),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "set[int]"),
        ({"type": "array"}, "list"),
        ({"type": "string", "x-hostline": {"type": "datetime"}}, "datetime"),
        ({"type": "string", "format": "decimal"}, "Decimal"),
        ({"type": "array", "items": {"type": "integer"}, "x-hostline": {"type": "tuple"}}, "tuple[int, ...]"),
        ({"type": "object", "x-hostline": {"keys": {"type": "integer"}}}, "dict[int, Any]"),
        (
            {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False},
            "tuple[int, str]",
        ),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "dict[str, float]"),
        ({"type": "object"}, "dict"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "str | None"),
        ({"enum": ["a", 1]}, '"a" | 1'),
        ({"type": ["string", "null"]}, "str | None"),
    ],
)
def test_a_schema_is_written_as_a_python_type(schema: dict[str, Any], text: str) -> None:
    assert type_text(schema) == text


def test_a_schema_without_end_is_cut() -> None:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    assert type_text(schema).endswith("list[...]" + "]" * 20)


def test_a_signature_shows_what_is_positional_and_what_is_named() -> None:
    def text(*flags: str) -> str:
        parameters = [
            ParameterDescription(f"p{n}", "r" in flag, "p" in flag, "n" in flag, {"type": "integer"})
            for n, flag in enumerate(flags)
        ]
        return method_text(MethodDescription("m", "", "task", False, parameters, {"type": "null"}, []))

    assert text() == "m() -> None"
    assert text("rpn") == "m(p0: int) -> None"
    assert text("rp") == "m(p0: int, /) -> None"
    assert text("rn") == "m(*, p0: int) -> None"
    assert text("rp", "pn", "n") == "m(p0: int, /, p1: int = ..., *, p2: int = ...) -> None"


def test_bounds_and_names_of_definitions_are_shown() -> None:
    schema = {"properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"]}
    assert definition_text("T", schema) == ["T", "    n: int  (>= 0, <= 9)"]
    assert definition_text("Color", {"enum": ["red", "blue"]}) == ['Color = "red" | "blue"']


def test_a_service_that_lies_about_its_schemas_spoils_only_their_lines(sock_dir: Path) -> None:
    program = f"""
import hostline, msgspec
from hostline.rpc import builtin
from hostline.aio.serving import server
def lie(service):
    broken = builtin.ParameterDescription("x", True, True, True, {{"anyOf": 3}})
    bad = builtin.MethodDescription("bad", "Its doc.", "task", False, [broken], {{"$ref": 5}}, [])
    good = builtin.MethodDescription("good", "", "task", False, [], {{"type": "null"}}, [])
    return builtin.ServiceDescription("liar", "", "", 1, [bad, good], {{"T": 5, "U": {{"properties": []}}}})
server.describe_service = lie
hostline.Service("liar").run({str(sock_dir / "x")!r})
"""
    with subprocess.Popen([sys.executable, "-c", program], env=environment()) as liar:
        try:
            assert wait_until(lambda: accepts(sock_dir / "x"), 10)
            done = hostline("describe", sock_dir / "x")
        finally:
            liar.terminate()
    assert (done.returncode, done.stderr) == (0, b"")
    assert "  bad(its schema cannot be read)\n      Its doc.\n" in done.stdout.decode()
    assert "  good() -> None\n" in done.stdout.decode()
    assert "  T (its schema cannot be read)\n" in done.stdout.decode()
