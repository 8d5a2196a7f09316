"""`hostline call` with files: descriptors and large bytes, given as @PATH and taken from standard output."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostline.cli.exits import ExitCode
from hostline.limits import MAX_BUFFER_SIZE
from tests.cli.running import COMMAND, PATIENCE, Running, environment, hostline, on_terminal, plain

ARCHIVE = Path(__file__).with_name("archive.py")
LARGE = bytes(range(256)) * 12_000


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("archive") / "s"
    with Running("serve", f"{ARCHIVE}:archive", "-a", path, ready="serving archive") as server:
        yield path
        assert server.stop() == 0


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small"
    path.write_bytes(b"hello")
    return path


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    return path


def output_of(*arguments: object, input: bytes = b"") -> bytes:
    done = hostline("call", *arguments, input=input)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def failure_of(*arguments: object, input: bytes = b"") -> tuple[int, str]:
    done = hostline("call", *arguments, input=input)
    assert done.stdout == b""
    return done.returncode, done.stderr.decode()


def test_describe_shows_what_is_a_descriptor_and_what_a_buffer(archive: Path) -> None:
    done = hostline("describe", archive)
    lines = [line.strip() for line in done.stdout.decode().splitlines()]
    assert "open_directory(path: str) -> Fd (directory)" in lines
    assert "sizes(files: stream of Fd, least: int = 0) -> stream of int" in lines
    assert "double(data: Buffer) -> Buffer" in lines


# --- arguments -----------------------------------------------------------------------------------------


def test_a_file_becomes_a_descriptor_where_the_method_takes_one(archive: Path, small: Path) -> None:
    assert output_of(archive, "size", f"@{small}") == b"5\n"
    assert output_of(archive, "size", json.dumps([f"@{small}"])) == b"5\n"
    assert output_of(archive, "size", json.dumps({"file": f"@{small}"})) == b"5\n"
    assert output_of(archive, "kind", f"@{small.parent}") == b'"directory"\n'


def test_standard_input_itself_is_a_descriptor_too(archive: Path, small: Path) -> None:
    assert output_of(archive, "kind", "@-", input=b"") == b'"pipe"\n'
    with small.open("rb") as file:
        done = subprocess.run(
            [*COMMAND, "call", str(archive), "size", "@-"],
            stdin=file,
            capture_output=True,
            env=environment(),
            timeout=PATIENCE,
        )
    assert (done.stdout, done.stderr) == (b"5\n", b"")


def test_the_bytes_of_a_file_become_a_buffer_or_bytes(archive: Path, small: Path, large: Path) -> None:
    assert output_of(archive, "double", f"@{small}") == b"hellohello"
    assert output_of(archive, "double", f"@{large}") == LARGE * 2, "more than a frame takes"
    assert output_of(archive, "double", "@-", input=LARGE) == LARGE * 2
    assert output_of(archive, "start", f"@{small}") == b'"aGVs"\n'
    assert output_of(archive, "double", '"YWJj"') == b"abcabc", "base64, as for bytes"


def test_a_text_stays_a_text(archive: Path, small: Path) -> None:
    assert output_of(archive, "greet", f'"@{small}"') == f'"@{small}"\n'.encode()
    assert output_of(archive, "echo", '"@"') == b'"@"\n'
    code, error = failure_of(archive, "greet", f"@{small}")
    assert code == ExitCode.USAGE
    assert f"greet takes no file there; a text is written with its quotes: '\"@{small}\"'" in error


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("size", "@/nowhere"), ExitCode.FAILURE, "/nowhere cannot be opened: No such file"),
        (("double", "@/"), ExitCode.FAILURE, "/ cannot be read: Is a directory"),
        (("size", "@"), ExitCode.USAGE, "@ names no file"),
        (("size", '"plain"'), ExitCode.INVALID_CALL, 'a descriptor is written as the file it is opened from: "@PATH"'),
        (("size", "3"), ExitCode.INVALID_CALL, 'a descriptor is written as the file it is opened from: "@PATH"'),
        (("size", "@/"), ExitCode.INVALID_CALL, "descriptor of kind directory is not allowed"),
        (("sizes", '{"least": 1, "x": "@-"}'), ExitCode.INVALID_CALL, "unknown"),
    ],
)
def test_what_cannot_be_sent_is_refused_in_words(
    archive: Path, arguments: tuple[str, ...], code: int, reason: str
) -> None:
    found, error = failure_of(archive, *arguments)
    assert reason in error
    assert found == code
    assert error.startswith("error: ")


def test_a_file_larger_than_any_argument_is_not_read_to_its_end(archive: Path, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(MAX_BUFFER_SIZE + 1)
    code, error = failure_of(archive, "double", f"@{sparse}")
    assert (code, f"exceeds the {MAX_BUFFER_SIZE} bytes" in error) == (ExitCode.FAILURE, True)


def test_standard_input_names_files_only_if_told_that_it_may(archive: Path, small: Path) -> None:
    named = json.dumps([f"@{small}"]).encode()
    for method, arguments, data in (("double", ("-",), named), ("sizes", (), json.dumps(f"@{small}").encode())):
        code, error = failure_of(archive, method, *arguments, input=data)
        assert (code, "unless --input-files is given" in error) == (ExitCode.USAGE, True)
    assert output_of(archive, "double", "-", "--input-files", input=named) == b"hellohello"
    code, error = failure_of(archive, "double", "-", "--input-files", input=b'["@-"]')
    assert (code, "standard input is used for something else" in error) == (ExitCode.USAGE, True)


# --- results -------------------------------------------------------------------------------------------


def test_what_a_descriptor_holds_goes_to_a_pipe(archive: Path, small: Path, large: Path) -> None:
    assert output_of(archive, "open_file", f'"{small}"') == b"hello"
    assert output_of(archive, "open_file", f'"{large}"') == LARGE
    assert output_of(archive, "pipe") == b"from a pipe"


def test_other_descriptors_are_shown_in_words(archive: Path, small: Path) -> None:
    assert output_of(archive, "open_directory", f'"{small.parent}"') == b'"<fd directory>"\n'
    assert output_of(archive, "open_to_write", f'"{small}"') == b'"<fd regular, 5 bytes>"\n'
    assert output_of(archive, "open_file", f'"{small}"', "--json") == b'"<fd regular, 5 bytes>"\n'
    assert json.loads(output_of(archive, "both", json.dumps([str(small), "YQ=="]))) == {"file": "<fd regular, 5 bytes>"}


def test_a_buffer_is_json_if_asked_for(archive: Path, small: Path) -> None:
    assert output_of(archive, "double", f"@{small}", "--json") == b'"aGVsbG9oZWxsbw=="\n'
    assert output_of(archive, "start", f"@{small}", "--raw") == b"hel"


def test_a_terminal_is_told_of_contents_and_shown_them_escaped_only_if_asked(archive: Path, small: Path) -> None:
    small.write_bytes(b"\x1b[2J")
    assert plain(on_terminal("call", archive, "open_file", f'"{small}"')[1]).strip() == '"<fd regular, 4 bytes>"'
    assert plain(on_terminal("call", archive, "double", f"@{small}")[1]).strip() == '"<buffer, 8 bytes>"'
    for arguments in (("open_file", f'"{small}"'), ("double", f"@{small}")):
        code, shown = on_terminal("call", archive, *arguments, "--raw")
        assert (code, shown.startswith(r"\x1b[2J")) == (0, True)


# --- streams -------------------------------------------------------------------------------------------


def test_items_are_shown_in_words_or_written_as_they_are(archive: Path, small: Path, large: Path) -> None:
    paths = json.dumps([[str(small), str(large)]])
    shown = output_of(archive, "open_all", paths).splitlines()
    assert shown == [b'"<fd regular, 5 bytes>"', b'"<fd regular, %d bytes>"' % len(LARGE)]
    assert output_of(archive, "open_all", paths, "--raw") == b"hello" + LARGE
    assert output_of(archive, "repeat", json.dumps([f"@{small}", 2])) == b'"aGVsbG8="\n' * 2
    assert output_of(archive, "repeat", json.dumps([f"@{large}", 2]), "--raw") == LARGE * 2
    assert output_of(archive, "repeat", '["@-", 2]', "--raw", input=b"ab") == b"abab"


def test_lines_of_standard_input_are_descriptors(archive: Path, small: Path, large: Path) -> None:
    lines = "".join(f'"@{path}"\n' for path in [small, large] * 20).encode()
    found = output_of(archive, "sizes", '{"least": 7}', "--input-files", input=lines).split()
    assert found == [b"7", str(len(LARGE)).encode()] * 20


def test_a_named_file_is_closed_when_it_was_sent(archive: Path, small: Path) -> None:
    """More items than a process may have descriptors."""
    lines = f'"@{small}"\n'.encode() * 300
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *COMMAND, "call", str(archive), "sizes", "--input-files"],
        input=lines,
        capture_output=True,
        env=environment(),
        timeout=PATIENCE,
    )
    assert (done.stdout.split(), done.stderr) == ([b"5"] * 300, b"")
    assert os.path.exists(small)
