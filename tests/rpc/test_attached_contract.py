"""Descriptors and buffers in descriptions: what they say, the modules made of them, and what breaks old callers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import msgspec
import pytest
from tests.serving import LoopThread, ServerThread, loop_factory_named, loop_names

import hostline
from hostline.cli.schemas import definition_text, method_text
from hostline.rpc.builtin import ServiceDescription, describe_service
from hostline.rpc.contract.compatibility import compare
from hostline.rpc.contract.extensions import extended_schemas
from hostline.rpc.contract.inclusion import Types, differences
from hostline.rpc.contract.stub_writer import write_stubs

Directory = Annotated[hostline.Fd, hostline.fd_kinds("directory")]
AnyFile = Annotated[hostline.Fd, hostline.fd_kinds("regular", "memfd", "pipe", "socket", "directory")]

FD = {"x-hostline": {"type": "fd"}}
DIRECTORY = {"x-hostline": {"type": "fd", "kinds": ["directory"]}}
BUFFER = {"type": "string", "contentEncoding": "base64", "x-hostline": {"type": "buffer"}}


class Plain(msgspec.Struct):
    name: str


class Entry(msgspec.Struct):
    """A file of an archive."""

    name: str
    file: hostline.Fd
    parent: Directory | None = None
    parts: list[hostline.Buffer] = []
    others: dict[str, hostline.Fd] = {}


class Row(msgspec.Struct, array_like=True):
    name: str
    data: hostline.Buffer


class Nested(msgspec.Struct):
    name: str
    entries: list[Entry] = []


archive = hostline.Service("archive", version="1")


@archive.method
def open_file(path: str) -> hostline.Fd:
    """Open a file."""
    return hostline.Fd(os.open(path, os.O_RDONLY))


@archive.method
def open_directory(path: str) -> Directory:
    """Open a directory."""
    return hostline.Fd(os.open(path, os.O_RDONLY))


@archive.method
def names(directory: Directory) -> list[str]:
    """List what is in a directory."""
    return sorted(os.listdir(directory.fileno()))


@archive.method
def store(data: hostline.Buffer) -> hostline.Fd:
    """Keep bytes in a file of their own."""
    fd = hostline.Fd(os.memfd_create("stored"))
    os.write(fd.fileno(), memoryview(data))
    return fd


@archive.method
def double(data: hostline.Buffer) -> hostline.Buffer:
    """Return bytes twice."""
    return hostline.Buffer(data.tobytes() * 2)


@archive.method
def entry(path: str, parent: Directory | None = None) -> Entry:
    """Return a file with what is around it."""
    return Entry(path, open_file(path), parent, [hostline.Buffer(b"a" * 3_000_000)], {"again": open_file(path)})


@archive.method
def size(entry: Entry) -> int:
    """Count the bytes of a file and of its parts."""
    return os.fstat(entry.file.fileno()).st_size + sum(len(part) for part in entry.parts)


@archive.method
def pieces(data: hostline.Buffer, count: int) -> Iterator[hostline.Buffer]:
    """Return bytes a few times."""
    for _ in range(count):
        yield hostline.Buffer(data)


@archive.method
def total(files: Iterator[hostline.Fd]) -> int:
    """Count the bytes of many files."""
    return sum(os.fstat(file.fileno()).st_size for file in files)


def described(service: hostline.Service) -> ServiceDescription:
    """Return a description as a client gets it."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(describe_service(service)), type=ServiceDescription)


# --- schemas -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "schema"),
    [
        (hostline.Fd, FD),
        (Directory, DIRECTORY),
        (hostline.Buffer, BUFFER),
        (list[Directory], {"type": "array", "items": DIRECTORY}),
        (Directory | None, {"anyOf": [DIRECTORY, {"type": "null"}]}),
        (hostline.Buffer | None, {"anyOf": [BUFFER, {"type": "null"}]}),
        (dict[str, Directory], {"type": "object", "additionalProperties": DIRECTORY}),
        (Annotated[hostline.Buffer, msgspec.Meta(description="a")], {**BUFFER, "description": "a"}),
    ],
    ids=repr,
)
def test_a_schema_says_what_is_a_descriptor_and_what_is_a_buffer(type_: Any, schema: dict[str, Any]) -> None:
    assert extended_schemas([type_]) == ([schema], {})


def test_they_are_told_inside_structs_of_both_layouts() -> None:
    _, definitions = extended_schemas([Entry, Row])
    fields = definitions["Entry"]["properties"]
    assert (fields["file"], fields["parent"]["anyOf"][0], fields["parts"]["items"]) == (FD, DIRECTORY, BUFFER)
    assert fields["others"]["additionalProperties"] == FD
    assert definitions["Row"]["prefixItems"] == [{"type": "string"}, BUFFER]
    assert definitions["Row"]["x-hostline"] == {"tag": None, "fields": ["name", "data"]}


def test_people_read_them_as_types() -> None:
    service = described(archive)
    lines = [method_text(method) for method in service.methods]
    assert lines[:5] == [
        "open_file(path: str) -> Fd",
        "open_directory(path: str) -> Fd (directory)",
        "names(directory: Fd (directory)) -> list[str]",
        "store(data: Buffer) -> Fd",
        "double(data: Buffer) -> Buffer",
    ]
    assert lines[7:] == ["pieces(data: Buffer, count: int) -> stream of Buffer", "total(files: stream of Fd) -> int"]
    assert definition_text("Entry", service.definitions["Entry"]) == [
        "Entry",
        "    name: str",
        "    file: Fd",
        "    parent: Fd (directory) | None = None",
        "    parts: list[Buffer] = []",
        "    others: dict[str, Fd] = {}",
    ]


# --- modules -------------------------------------------------------------------------------------------


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    path = tmp_path / "archive_client.py"
    path.write_text(write_stubs(described(archive)), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("archive_client", path)
    assert spec
    assert spec.loader
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules["archive_client"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["archive_client"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"hello")
    return path


@pytest.mark.parametrize("loop_name", loop_names())
def test_the_blocking_interface_passes_descriptors_and_buffers(
    client: Any, file: Path, sock_dir: Path, loop_name: str
) -> None:
    large = b"ab" * 1_500_000
    with (
        ServerThread(archive, sock_dir / "x", loop=loop_name),
        hostline.connect(sock_dir / "x", client.Archive) as service,
    ):
        with service.open_file(str(file)) as fd:
            assert os.pread(fd.fileno(), 9, 0) == b"hello"
        with service.open_directory(str(file.parent)) as directory:
            assert "file" in service.names(directory)
            with pytest.raises(hostline.InvalidArgumentError, match="kind regular is not allowed: directory"):
                service.names(hostline.Fd(os.open(file, os.O_RDONLY)))
            entry = service.entry(str(file), directory)
        assert (entry.file.kind, entry.parent.kind, entry.others["again"].kind) == ("regular", "directory", "regular")
        assert entry.parts[0] == b"a" * 3_000_000
        entry.parts = [hostline.Buffer(part) for part in entry.parts]
        assert service.size(entry) == 3_000_005
        with service.store(hostline.Buffer(large)) as stored:
            assert os.pread(stored.fileno(), 4_000_000, 0) == large
        for data in (b"", b"x", large):
            assert service.double(hostline.Buffer(data)) == data * 2
        assert [bytes(piece) for piece in service.pieces(hostline.Buffer(b"p"), 3)] == [b"p"] * 3
        assert service.total(entry.file.dup() for _ in range(40)) == 200
        for owner in (entry.file, entry.parent, *entry.others.values()):
            owner.close()


@pytest.mark.parametrize("loop_name", loop_names())
def test_the_asyncio_interface_does_so_too(client: Any, file: Path, sock_dir: Path, loop_name: str) -> None:
    large = b"ab" * 1_500_000

    async def main() -> None:
        async with hostline.aio.connect(sock_dir / "x", client.AsyncArchive) as service:
            with await service.open_directory(str(file.parent)) as directory:
                assert "file" in await service.names(directory)
            entry = await service.entry(str(file))
            entry.parts = [hostline.Buffer(part) for part in entry.parts]
            assert await service.size(entry) == 3_000_005
            with await service.store(hostline.Buffer(large)) as stored:
                assert os.pread(stored.fileno(), 4_000_000, 0) == large
            assert await service.double(hostline.Buffer(large)) == large * 2
            assert [len(piece) async for piece in service.pieces(hostline.Buffer(large), 2)] == [len(large)] * 2
            assert await service.total(iter([entry.file] * 3)) == 15
            entry.file.close()

    loop = LoopThread(loop_factory_named(loop_name))
    try:
        with ServerThread(archive, sock_dir / "x", loop=loop_name):
            loop.run(main())
    finally:
        loop.close()


def test_the_module_says_the_kinds() -> None:
    text = write_stubs(described(archive))
    directory = 'typing.Annotated[hostline.Fd, hostline.fd_kinds("directory")]'
    assert f") -> {directory}:" in text
    assert "def store(self, data: hostline.Buffer) -> hostline.Fd:" in text
    assert f"    parent: {directory} | None = None\n" in text


def test_the_module_s_types_describe_themselves_as_the_service_s_own_do(client: Any) -> None:
    own, made = (extended_schemas([cls])[1]["Entry"]["properties"] for cls in (Entry, client.Entry))
    assert made == own


@pytest.mark.timeout(120)
@pytest.mark.ci_required
def test_mypy_accepts_the_module_and_refuses_wrong_calls(tmp_path: Path) -> None:
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed (it comes with the dev extra)")
    (tmp_path / "archive_client.py").write_text(write_stubs(described(archive)), encoding="utf-8")
    program = """\
from typing import assert_type
import hostline
from archive_client import Archive, AsyncArchive, Entry

with hostline.connect("archive", Archive) as service:
    assert_type(service.store(hostline.Buffer(b"x")), hostline.Fd)
    assert_type(service.double(hostline.Buffer(b"x")).tobytes(), bytes)
    assert_type(service.entry("x", service.open_directory("/")), Entry)

async def main() -> None:
    async with hostline.aio.connect("archive", AsyncArchive) as service:
        assert_type(await service.store(hostline.Buffer(b"x")), hostline.Fd)
"""
    (tmp_path / "right.py").write_text(program, encoding="utf-8")
    wrong = program + "        await service.store(3)\n        await service.names(hostline.Buffer(b''))\n"
    (tmp_path / "wrong.py").write_text(wrong, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [*command, "archive_client.py", "right.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout
    done = subprocess.run([*command, "wrong.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stdout.count("[arg-type]") == 2, done.stdout


@pytest.mark.parametrize("kinds", [["hologram"], [], 5, ['"); import os; os.abort(); ("'], [["directory"]], None])
def test_kinds_that_a_peer_made_up_do_not_reach_the_module(kinds: Any) -> None:
    service = hostline.Service("archive")
    service.method(open_file)
    description = described(service)
    description.methods[0].returns["x-hostline"]["kinds"] = kinds
    text = write_stubs(description)
    assert "def open_file(self, path: str) -> hostline.Fd:" in text
    assert "fd_kinds" not in text
    assert method_text(description.methods[0])


# --- versions ------------------------------------------------------------------------------------------


def takes(received: Any, sent: Any) -> list[str]:
    """Return why values of one type are not taken by another."""
    (s,), sender = extended_schemas([sent])
    (r,), receiver = extended_schemas([received])
    return differences(s, Types(sender), r, Types(receiver))


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        (AnyFile, hostline.Fd),
        (AnyFile, Directory),
        (Directory | None, Directory),
        (hostline.Buffer, bytes),
        (hostline.Buffer | None, bytes | None),
        (list[AnyFile], list[Directory]),
        (Entry, Entry),
        (Row, Row),
        (Nested, Plain),
    ],
    ids=repr,
)
def test_wider_kinds_take_narrower_ones_and_a_buffer_takes_bytes(wide: Any, narrow: Any) -> None:
    assert takes(wide, narrow) == []
    assert takes(wide, wide) == takes(narrow, narrow) == []
    if wide is not narrow:
        assert takes(narrow, wide)


@pytest.mark.parametrize(
    ("received", "sent", "reason"),
    [
        (Directory, hostline.Fd, "kind memfd or pipe or regular or socket is not taken by Fd (directory)"),
        (hostline.Fd, Directory, "kind directory is not taken by Fd"),
        (hostline.Fd | None, Directory | None, "kind directory is not taken by Fd"),
        (int, hostline.Fd, "Fd is not int"),
        (hostline.Fd, int, "int is not Fd"),
        (hostline.Fd, hostline.Buffer, "Buffer is not Fd"),
        (bytes, hostline.Buffer, "Buffer is not bytes"),
        (str, hostline.Buffer, "Buffer is not str"),
        (hostline.Buffer, str, "str is not Buffer"),
        (Any, hostline.Fd, "Fd has no place where the type is Any"),
        (Any, list[Nested], "list of Nested has no place where the type is Any"),
        (Plain, Entry, "file: is not known, and descriptors and buffers are not ignored"),
        (Plain, Nested, "entries: is not known, and descriptors and buffers are not ignored"),
    ],
    ids=repr,
)
def test_what_a_descriptor_or_a_buffer_is_not_taken_for(received: Any, sent: Any, reason: str) -> None:
    assert reason in "\n".join(takes(received, sent))


def method(argument: Any, result: Any) -> ServiceDescription:
    def handler(a: Any) -> Any: ...

    handler.__annotations__ = {"a": argument, "return": result}
    service = hostline.Service("shop")
    service.method(name="m")(handler)
    return described(service)


@pytest.mark.parametrize(
    ("old", "new", "argument", "result"),
    [
        (hostline.Fd, AnyFile, (False, "type of a widened"), (True, "result widened")),
        (AnyFile, Directory, (True, "type of a narrowed"), (False, "result narrowed")),
        (hostline.Fd, Directory, (True, "type of a changed"), (True, "result changed")),
        (hostline.Fd, str, (True, "type of a changed"), (True, "result changed")),
        (bytes, hostline.Buffer, (False, "type of a widened"), (True, "result widened")),
        (hostline.Buffer, bytes, (True, "type of a narrowed"), (False, "result narrowed")),
        (Plain, Nested, (False, "type of a widened"), (True, "result widened")),
    ],
    ids=repr,
)
def test_arguments_may_widen_and_results_may_narrow(
    old: Any, new: Any, argument: tuple[bool, str], result: tuple[bool, str]
) -> None:
    found = compare(method(old, None), method(new, None))
    assert [(change.is_breaking, change.what) for change in found] == [argument]
    found = compare(method(None, old), method(None, new))
    assert [(change.is_breaking, change.what) for change in found] == [result]


def test_an_old_caller_with_bytes_is_served_by_a_new_buffer(sock_dir: Path) -> None:
    with ServerThread(archive, sock_dir / "x"), hostline.connect(sock_dir / "x") as line:
        assert line.call("double", b"x" * 300_000, returns=hostline.Buffer) == b"x" * 600_000


def test_an_old_caller_s_call_fails_on_a_field_with_a_descriptor_it_does_not_know(file: Path, sock_dir: Path) -> None:
    with ServerThread(archive, sock_dir / "x"), hostline.connect(sock_dir / "x") as line:
        with pytest.raises(hostline.InvalidResultError, match="no value names"):
            line.call("entry", str(file), returns=Plain)
        assert line.call("size", entry(str(file))) == 3_000_005, "the connection is whole"


def test_what_a_method_does_not_take_is_refused_before_it_is_sent(file: Path, sock_dir: Path) -> None:
    """A value of type `Any` has no place for it either, which is why diff calls that breaking."""
    with ServerThread(archive, sock_dir / "x"), hostline.connect(sock_dir / "x") as line:
        with hostline.Fd(os.open(file, os.O_RDONLY)) as fd:
            for value, name in ((fd, "Fd"), (hostline.Buffer(b"x"), "Buffer")):
                for argument in (value, [value], {"a": value}):
                    with pytest.raises(hostline.InvalidArgumentError, match=f"type {name} cannot be sent here"):
                        line.call("open_file", argument)
