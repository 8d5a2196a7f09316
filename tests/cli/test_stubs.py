"""`hostline stubs`: a module that works, from a service that runs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostline.cli.exits import ExitCode
from tests.cli.running import Running, environment, hostline

SHOP = Path(__file__).with_name("shop.py")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("shop") / "s"
    with Running("serve", f"{SHOP}:shop", "-a", path, ready="serving shop") as server:
        yield path
        assert server.stop() == 0


def test_a_program_calls_the_service_through_the_module(shop: Path, tmp_path: Path) -> None:
    done = hostline("stubs", shop, "--output", tmp_path / "shop_client.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    program = f"""
import asyncio, hostline
from shop_client import AsyncShop, Item, OutOfStock, Shop

with hostline.connect({str(shop)!r}, Shop) as service:
    print(service.add(1), service.add(1, b=4), service.buy(Item("tea", label=b"x")))
    try:
        service.buy(Item("tea", 0))
    except OutOfStock as error:
        print(ascii(str(error)))

async def main():
    async with hostline.aio.connect({str(shop)!r}, AsyncShop) as service:
        print(await service.pairs())

asyncio.run(main())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=15, env=environment()
    )
    assert ran.stderr == ""
    assert ran.stdout.splitlines() == [
        "3 5 Item(sku='tea', count=1, label=b'x')",
        "'no tea \\x1b[31mleft'",
        "{1: 'one', None: 'none'}",
    ]


def test_the_module_goes_to_standard_output_with_nothing_that_a_terminal_obeys(shop: Path) -> None:
    done = hostline("stubs", shop)
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert text.startswith('"""Typed calls of the service shop 2.1.\n\nSells things.\n')
    assert "class Shop(hostline.Interface, typing.Protocol):" in text
    assert "Move the cursor \\x1b[2J\\x9b31m and turn the text round \\u202e." in text
    assert all(c.isprintable() or c == "\n" for c in text)
    assert hostline("stubs", shop).stdout == done.stdout


def test_the_interface_is_named_as_asked(shop: Path) -> None:
    assert (
        b"class AsyncStore(hostline.aio.Interface, typing.Protocol):"
        in hostline("stubs", shop, "--name", "Store").stdout
    )
    done = hostline("stubs", shop, "--name", "a b")
    assert (done.returncode, done.stderr) == (ExitCode.USAGE, b"error: name 'a b' cannot be the name of a class\n")


def test_a_file_that_cannot_be_written_and_a_service_that_is_not_there(shop: Path, tmp_path: Path) -> None:
    done = hostline("stubs", shop, "--output", tmp_path / "no" / "x.py")
    assert done.returncode == ExitCode.FAILURE
    assert b"x.py cannot be written: No such file or directory" in done.stderr
    kept = tmp_path / "kept.py"
    kept.write_text("kept")
    assert hostline("stubs", tmp_path / "nobody", "--output", kept).returncode == ExitCode.CANNOT_CONNECT
    assert kept.read_text() == "kept"


@pytest.mark.ci_required
def test_the_formatter_leaves_the_module_as_it_is(shop: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("ruff is not installed (it comes with the dev extra)")
    file = tmp_path / "shop_client.py"
    hostline("stubs", shop, "-o", file)
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--diff", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout
