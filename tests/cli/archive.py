"""A service that takes and gives descriptors and buffers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any

import hostline

archive = hostline.Service("archive")


@archive.method
def open_file(path: str) -> hostline.Fd:
    return hostline.Fd(os.open(path, os.O_RDONLY))


@archive.method
def open_to_write(path: str) -> hostline.Fd:
    return hostline.Fd(os.open(path, os.O_WRONLY))


@archive.method
def open_directory(path: str) -> Annotated[hostline.Fd, hostline.fd_kinds("directory")]:
    return hostline.Fd(os.open(path, os.O_RDONLY))


@archive.method
def open_all(paths: list[str]) -> Iterator[hostline.Fd]:
    for path in paths:
        yield open_file(path)


@archive.method
def pipe() -> hostline.Fd:
    """Give a pipe that does not wait, as its reader's flag says."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.write(writer, b"from a pipe")
    os.close(writer)
    return hostline.Fd(reader)


@archive.method
def size(file: hostline.Fd) -> int:
    return os.fstat(file.fileno()).st_size


@archive.method
def kind(file: Annotated[hostline.Fd, hostline.fd_kinds("regular", "directory", "pipe", "character")]) -> str:
    return file.kind


@archive.method
def sizes(files: Iterator[hostline.Fd], least: int = 0) -> Iterator[int]:
    for file in files:
        yield max(least, size(file))


@archive.method
def double(data: hostline.Buffer) -> hostline.Buffer:
    return hostline.Buffer(data.tobytes() * 2)


@archive.method
def repeat(data: hostline.Buffer, count: int) -> Iterator[hostline.Buffer]:
    for _ in range(count):
        yield hostline.Buffer(data)


@archive.method
def start(data: bytes) -> bytes:
    return data[:3]


@archive.method
def both(path: str, data: hostline.Buffer) -> dict[str, hostline.Fd]:
    return {"file": open_file(path)}


@archive.method
def greet(name: str) -> str:
    return name


@archive.method
def echo(value: Any) -> Any:
    return value
