"""Descriptors in calls: both faces, both loops, every way in and out, and peers that send what they should not.

That nothing is left open after any of it is seen to by the check that runs after every test.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import gc
import os
import resource
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

import hostline
from hostline import Fd, fd_kinds
from hostline.errors import (
    DeadlineExceededError,
    DescriptorError,
    InternalError,
    InvalidArgumentError,
    InvalidResultError,
    OverloadedError,
    RemoteProtocolError,
)
from hostline.limits import FD_COST, MAX_FDS_PER_FRAME, STREAM_CREDIT
from hostline.rpc.attachments import send_attached
from hostline.rpc.settings import ServerSettings
from hostline.unix.options import unread_by_peer
from hostline.unix.passing.inflight import FdsInFlight
from hostline.wire.attached import pack_buffer, pack_fd
from hostline.wire.codec import (
    ErrorCode,
    MethodEntry,
    ServerHello,
    decode_failure,
    decode_farewell,
    encode_call,
    encode_hello,
    encode_item,
    encode_reply,
)
from hostline.wire.frame import HEADER, Frame, Kind, encode_frame
from tests.leaks import open_descriptors, wait_until
from tests.second_user import NOBODY, Fork
from tests.serving import AsyncLine, Conversation, RawClient, ScriptedServer, ServerThread, Stage, loop_names, stages
from tests.test_batch import batched

PassedFd = Annotated[Fd, fd_kinds("directory", "path", "character")]


class Folder(msgspec.Struct):
    name: str
    files: list[Fd]
    extra: Fd | None = None


class World:
    """A service that takes and gives descriptors in every place."""

    def __init__(self) -> None:
        self.service = hostline.Service("files")
        self.kept: list[Any] = []
        self.gate = threading.Event()
        for function in (
            self.open_file, self.read_some, self.read_inline, self.keep, self.gather, self.total, self.total_async,
            self.open_many, self.open_many_async, self.swap, self.list_files, self.open_any, self.hold, self.closed,
            self.crowd, self.plain,
        ):  # fmt: skip
            self.service.method(function)
        self.service.method(inline=True, name="open_inline")(self.open_file)
        self.service.method(inline=True, name="read_quickly")(self.read_inline)

    def open_file(self, path: str) -> Fd:
        return Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def read_some(self, fd: Fd, size: int) -> bytes:
        return os.pread(fd.fileno(), size, 0)

    def read_inline(self, fd: Fd) -> bytes:
        return os.pread(fd.fileno(), 100, 0)

    def keep(self, fd: Fd) -> bool:
        self.kept.append(fd)
        return os.get_inheritable(fd.fileno())

    def gather(self, folder: Folder) -> list[str]:
        extra = [] if folder.extra is None else [folder.extra]
        return [os.pread(fd.fileno(), 100, 0).decode() for fd in [*folder.files, *extra]]

    def total(self, fds: Iterator[Fd]) -> int:
        return sum(os.fstat(fd.fileno()).st_size for fd in fds)

    async def total_async(self, fds: AsyncIterator[Fd]) -> int:
        return sum([os.fstat(fd.fileno()).st_size async for fd in fds])

    def open_many(self, path: str, count: int) -> Iterator[Fd]:
        for _ in range(count):
            yield Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    async def open_many_async(self, path: str, count: int) -> AsyncIterator[Fd]:
        for _ in range(count):
            yield Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    async def swap(self, one: Fd, other: Fd) -> tuple[Fd, Fd]:
        return other, one

    def list_files(self, directory: PassedFd) -> list[str]:
        return sorted(os.listdir(directory.fileno()))

    def open_any(self, path: str) -> PassedFd:
        return Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def hold(self, fd: Fd) -> None:
        self.gate.wait(10)

    def closed(self) -> Fd:
        fd = Fd(os.open("/dev/null", os.O_RDONLY))
        fd.close()
        return fd

    def crowd(self, count: int) -> list[Fd]:
        return [Fd(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)) for _ in range(count)]

    def plain(self, value: Any) -> Any:
        return value


@pytest.fixture(params=stages())
def stage(request: pytest.FixtureRequest, sock_dir: Path) -> Iterator[Stage]:
    made = Stage(*request.param, sock_dir)
    yield made
    made.close()


@pytest.fixture(params=loop_names())
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.gate.set()
    made.kept.clear()


@pytest.fixture
def poem(tmp_path: Path) -> Path:
    path = tmp_path / "poem"
    path.write_text("a hotline between the processes of one host")
    return path


def text_of(fd: Fd) -> str:
    return os.pread(fd.fileno(), 1000, 0).decode()


def items_of(line: Any, method: str, *args: Any, **options: Any) -> list[Any]:
    if isinstance(line, AsyncLine):

        async def iterate() -> list[Any]:
            return [item async for item in line.line.stream(method, *args, **options)]

        return line.on_loop.run(iterate(), 20)  # type: ignore[no-any-return]
    return list(line.line.stream(method, *args, **options))


# --- there and back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["open_file", "open_inline"])
def test_an_opened_file_is_a_result(stage: Stage, world: World, poem: Path, method: str) -> None:
    stage.serve(world.service)
    with stage.connect().call(method, str(poem), returns=Fd) as fd:
        assert text_of(fd) == poem.read_text()
        assert not os.get_inheritable(fd.fileno())


@pytest.mark.parametrize("method", ["read_some", "read_quickly"])
def test_a_file_is_an_argument_and_stays_the_callers(stage: Stage, world: World, poem: Path, method: str) -> None:
    stage.serve(world.service)
    line = stage.connect()
    more = (9,) if method == "read_some" else ()
    with poem.open() as file:
        assert line.call(method, file, *more)[:9] == b"a hotline"
        assert file.read() == poem.read_text()  # open, and where it was
    with Fd(os.open(poem, os.O_RDONLY)) as fd:
        assert line.call(method, fd, *more)[:9] == b"a hotline"
        assert not fd.is_closed


def test_a_handler_may_keep_what_it_was_given(stage: Stage, world: World, poem: Path) -> None:
    stage.serve(world.service)
    with poem.open() as file:
        assert stage.connect().call("keep", file) is False  # not for children either
    assert text_of(world.kept[0]) == poem.read_text()


def test_what_a_handler_does_not_keep_is_closed_when_it_returns(stage: Stage, world: World, poem: Path) -> None:
    stage.serve(world.service)
    line = stage.connect()
    before = len(open_descriptors())
    with poem.open() as file:
        for _ in range(50):
            line.call("read_some", file, 1)
    assert wait_until(lambda: len(open_descriptors()) <= before)


def test_descriptors_stand_wherever_the_types_say(stage: Stage, world: World, poem: Path, tmp_path: Path) -> None:
    stage.serve(world.service)
    line = stage.connect()
    other = tmp_path / "other"
    other.write_text("another")
    with poem.open() as a, other.open() as b:
        assert line.call("gather", Folder("f", [Fd(os.dup(b.fileno())), Fd(os.dup(a.fileno()))])) == [
            "another", poem.read_text(),
        ]  # fmt: skip
        folder = {"name": "f", "files": [a], "extra": b}
        assert line.call("gather", folder) == [poem.read_text(), "another"]
        first, second = line.call("swap", a, other=b, returns=tuple[Fd, Fd])
        with first, second:
            assert [text_of(first), text_of(second)] == ["another", poem.read_text()]


@pytest.mark.parametrize("method", ["total", "total_async"])
def test_an_argument_may_be_a_stream_of_them(stage: Stage, world: World, poem: Path, method: str) -> None:
    stage.serve(world.service)
    count = 4 * STREAM_CREDIT // FD_COST
    with poem.open() as file:
        assert stage.connect().call(method, (file for _ in range(count))) == count * poem.stat().st_size


@pytest.mark.parametrize("method", ["open_many", "open_many_async"])
def test_a_result_may_be_a_stream_of_them(stage: Stage, world: World, poem: Path, method: str) -> None:
    stage.serve(world.service)
    count = 4 * STREAM_CREDIT // FD_COST
    fds = items_of(stage.connect(), method, str(poem), count, returns=Fd)
    assert len({fd.fileno() for fd in fds}) == count
    assert {text_of(fd) for fd in fds} == {poem.read_text()}


def test_untyped_callers_get_descriptors_too(stage: Stage, world: World, poem: Path) -> None:
    stage.serve(world.service)
    with stage.connect().call("open_file", str(poem)) as fd:
        assert isinstance(fd, Fd)


def test_sockets_and_pipes_travel(stage: Stage, world: World) -> None:
    stage.serve(world.service)
    line = stage.connect()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        line.call("keep", theirs)
    read_end, write_end = os.pipe()
    with Fd(read_end), Fd(write_end) as pipe:
        line.call("keep", pipe)
    assert [fd.kind for fd in world.kept] == ["socket", "pipe"]


# --- what is refused -----------------------------------------------------------------------------------


def test_a_directory_needs_to_be_asked_for(stage: Stage, world: World, tmp_path: Path) -> None:
    stage.serve(world.service)
    line = stage.connect()
    (tmp_path / "x").touch()
    with Fd(os.open(tmp_path, os.O_RDONLY)) as directory:
        assert line.call("list_files", directory) == ["x"]
        with pytest.raises(InvalidArgumentError, match="kind directory is not allowed: memfd, pipe, regular, socket"):
            line.call("read_some", directory, 1)
    with pytest.raises(InvalidResultError, match="kind directory is not allowed"):
        line.call("open_any", str(tmp_path), returns=Fd)
    with line.call("open_any", str(tmp_path), returns=PassedFd) as fd:
        assert fd.kind == "directory"


@pytest.mark.parametrize("flags", [os.O_PATH, os.O_PATH | os.O_DIRECTORY], ids=["file", "directory"])
def test_a_descriptor_that_only_names_a_file_is_refused(stage: Stage, world: World, poem: Path, flags: int) -> None:
    stage.serve(world.service)
    target = poem.parent if flags & os.O_DIRECTORY else poem
    with Fd(os.open(target, flags)) as fd, pytest.raises(InvalidArgumentError, match="kind path is not allowed"):
        stage.connect().call("read_some", fd, 1)


def test_devices_are_refused(stage: Stage, world: World) -> None:
    stage.serve(world.service)
    with Fd(os.open("/dev/zero", os.O_RDONLY)) as fd, pytest.raises(InvalidArgumentError, match="kind character"):
        stage.connect().call("read_some", fd, 1)


def test_a_method_without_descriptors_gets_none(stage: Stage, world: World, poem: Path) -> None:
    stage.serve(world.service)
    line = stage.connect()
    with poem.open() as file, pytest.raises(InvalidArgumentError, match="descriptors and buffers are not declared"):
        line.call("plain", file)
    assert line.call("plain", 7) == 7


def test_values_of_other_types_are_refused_by_name(stage: Stage, world: World, poem: Path) -> None:
    stage.serve(world.service)
    line = stage.connect()
    with pytest.raises(InvalidArgumentError, match="argument `fd`: Expected `Fd`, got `int`"):
        line.call("read_some", 3, 1)
    with poem.open() as file, pytest.raises(InvalidArgumentError, match="argument `size`"):
        line.call("read_some", file, "nine")
    with pytest.raises(InvalidResultError, match="Expected `int`"):
        line.call("open_file", str(poem), returns=int)


def test_a_closed_one_is_refused_before_anything_is_sent(stage: Stage, world: World) -> None:
    server = stage.serve(world.service)
    line = stage.connect()
    fd = Fd(os.open("/dev/null", os.O_RDONLY))
    fd.close()
    with pytest.raises(InvalidArgumentError, match="closed or handed on"):
        line.call("read_some", fd, 1)
    with pytest.raises(InternalError):
        line.call("closed", returns=Fd)
    assert server.stats().calls.finished == 1


def test_more_than_a_frame_carries_is_an_error_that_says_what_to_do(
    stage: Stage, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    stage.serve(world.service)
    line = stage.connect()
    assert len(line.call("crowd", MAX_FDS_PER_FRAME, returns=list[Annotated[Fd, fd_kinds("character")]])) == 16
    with pytest.raises(InternalError):
        line.call("crowd", MAX_FDS_PER_FRAME + 1)
    caplog.clear()  # its traceback holds the handler's result
    with open("/dev/null") as file:
        with pytest.raises(
            InvalidArgumentError, match="more than 16 descriptors in one call or item: send them as a stream"
        ):
            line.call("gather", {"name": "f", "files": [file] * 17})
    assert line.call("plain", 1) == 1


def test_a_deadline_returns_what_came_with_the_call(stage: Stage, world: World, poem: Path) -> None:
    server = stage.serve(world.service, threads=1)
    line = stage.connect()
    with poem.open() as file:
        for _ in range(4):  # one in the only thread, the others waiting
            with pytest.raises(DeadlineExceededError):
                line.call("hold", file, timeout=0.05)
    world.gate.set()
    server.wait_idle()


def test_a_line_that_closes_leaves_nothing_open(stage: Stage, world: World, poem: Path) -> None:
    stage.serve(world.service)
    before = len(open_descriptors())
    line = stage.connect()
    with poem.open() as file:
        held = [line.start("hold", file, timeout=10) for _ in range(3)]
        assert wait_until(lambda: len(open_descriptors()) >= before + 4)
        line.close()
    for future in held:
        assert future.exception(5) is not None
    world.gate.set()
    assert wait_until(lambda: len(open_descriptors()) <= before)


@pytest.mark.parametrize("method", ["total", "total_async"])
def test_a_wrong_item_leaves_those_before_it_to_nobody(stage: Stage, world: World, poem: Path, method: str) -> None:
    """What the handler held is closed when it has failed, not when the collector runs."""
    stage.serve(world.service)
    line = stage.connect()
    gc.disable()
    try:
        with Fd(os.open(poem, os.O_RDONLY)) as fd, pytest.raises(InvalidArgumentError, match="item 2"):
            line.call(method, iter([fd, 7]))
        assert wait_until(lambda: not any("poem" in what for what in open_descriptors().values()))
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_items_of_a_call_that_never_ran_go_back(loop: str, world: World, sock_dir: Path, null: int, how: str) -> None:
    settings = ServerSettings(concurrency=1, threads=1)
    with ServerThread(world.service, sock_dir / "s", loop=loop, settings=settings) as server:

        def charged() -> int:
            return server.do(lambda server: server.accounts.stats())[0].descriptors

        client = RawClient(str(sock_dir / "s"))
        send_with(client.sock, announce(attached_call(client, 1, "hold", pack_fd(0)), 1), null)
        time_left = 0.2 if how == "deadline" else None
        client.sock.sendall(encode_call(2, client.methods["total"], (None,), None, time_left, has_items=True))
        for _ in range(5):
            send_with(client.sock, announce(encode_item(2, pack_fd(0)), 1), null)
        if how == "cancel":
            assert wait_until(lambda: charged() == 5)
            client.sock.sendall(encode_frame(Kind.CANCEL, 2))
        assert client.read().call_id == 2
        assert charged() == 0
        world.gate.set()
        assert client.read().call_id == 1
        client.close()


def test_a_call_that_is_made_while_another_is_encoded_has_its_own_descriptors(
    stage: Stage, world: World, poem: Path
) -> None:
    """Reading a value to be sent may run code of its own, which may make a call."""
    stage.serve(world.service)
    line = hostline.connect(stage.address)

    class Lazy:
        def __init__(self, fd: Fd) -> None:
            self.fd = fd
            self.said: list[str] = []

        def fileno(self) -> int:
            with pytest.raises(InvalidArgumentError, match="not declared for it"):
                line.call("plain", self.fd)
            self.said.append(line.call("read_some", self.fd, 9).decode())
            return self.fd.fileno()

    with line, Fd(os.open(poem, os.O_RDONLY)) as fd:
        lazy = Lazy(fd)
        assert line.call("read_some", lazy, 9).decode() == "a hotline"
        assert lazy.said == ["a hotline"]


def test_an_item_with_a_descriptor_for_a_stream_of_numbers_fails_its_call_alone(stage: Stage, poem: Path) -> None:
    """The hello says which methods take descriptors, not at which place: an untyped caller cannot know better."""
    service = hostline.Service("mixed")

    @service.method
    def add(fd: Fd, numbers: Iterator[int]) -> int:
        return sum(numbers)

    server = stage.serve(service)
    line = stage.connect()
    with Fd(os.open(poem, os.O_RDONLY)) as fd:
        with pytest.raises(InvalidArgumentError, match="argument `numbers`: item 1 is not of the expected type"):
            line.call("add", fd, iter([fd]))
        assert line.call("add", fd, iter([1, 2])) == 3
    assert server.stats().connections_total == 1


# --- hostile clients -----------------------------------------------------------------------------------


def attached_call(client: RawClient, call_id: int, method: str, *args: Any) -> bytearray:
    return encode_call(call_id, client.methods[method], args, None, None, 16 << 20)


def announce(frame: bytes | bytearray, count: int) -> bytearray:
    made = bytearray(frame)
    made[6:8] = count.to_bytes(2, "little")
    return made


def send_with(sock: socket.socket, data: bytes | bytearray, *fds: int) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    assert sock.sendmsg([data], ancillary) == len(data)


def farewell(client: RawClient) -> str:
    frames = client.read_until_end()
    assert frames
    assert frames[-1].kind == Kind.GOAWAY
    return decode_farewell(frames[-1].payload).reason


@pytest.fixture
def raw(loop: str, world: World, sock_dir: Path) -> Iterator[RawClient]:
    with ServerThread(world.service, sock_dir / "s", loop=loop) as server:
        client = RawClient(str(sock_dir / "s"))
        before = len(open_descriptors())
        yield client
        client.close()
        assert wait_until(lambda: server.connection_count == 0)
        assert wait_until(lambda: len(open_descriptors()) <= before)


@pytest.fixture
def null() -> Iterator[int]:
    with open("/etc/passwd", "rb") as file:
        yield file.fileno()


@pytest.mark.parametrize(("announced", "sent"), [(1, 0), (2, 1), (1, 2), (0, 1), (16, 15), (17, 16)])
def test_another_number_than_announced_ends_the_connection(
    raw: RawClient, null: int, announced: int, sent: int
) -> None:
    frame = announce(attached_call(raw, 1, "read_some", pack_fd(0), 9), announced)
    send_with(raw.sock, frame, *[null] * sent)
    assert "descriptors" in farewell(raw)


def test_more_than_fit_end_the_connection(raw: RawClient, null: int) -> None:
    send_with(raw.sock, announce(attached_call(raw, 1, "read_some", pack_fd(0), 9), 16), *[null] * 253)
    assert "descriptors" in farewell(raw)


@pytest.mark.parametrize("cut", [1, 6, 15, 16, 20])
def test_descriptors_that_come_late_end_the_connection(raw: RawClient, null: int, cut: int) -> None:
    frame = announce(attached_call(raw, 1, "read_some", pack_fd(0), 9), 1)
    send_with(raw.sock, frame[:cut])
    assert wait_until(lambda: unread_by_peer(raw.sock) == 0)  # read by itself
    with contextlib.suppress(BrokenPipeError):  # the header alone may have told
        send_with(raw.sock, frame[cut:], null)
    assert "descriptors" in farewell(raw)


@pytest.mark.parametrize("cut", [1, 6, 15, 16, 20])
def test_a_frame_may_be_cut_anywhere_behind_its_first_byte(raw: RawClient, null: int, cut: int) -> None:
    frame = announce(attached_call(raw, 1, "read_some", pack_fd(0), 4), 1)
    send_with(raw.sock, frame[:cut], null)
    assert wait_until(lambda: unread_by_peer(raw.sock) == 0)  # read by itself
    raw.sock.sendall(frame[cut:])
    answer = raw.read()
    assert (answer.kind, answer.call_id) == (Kind.REPLY, 1)


def test_frames_before_and_behind_in_one_write_get_nothing(raw: RawClient, null: int) -> None:
    before, behind = raw.encode(1, "plain", 1), raw.encode(3, "plain", 3)
    raw.sock.sendall(before)
    send_with(raw.sock, announce(attached_call(raw, 2, "read_some", pack_fd(0), 4), 1) + behind, null)
    assert {raw.read().call_id for _ in range(3)} == {1, 2, 3}


def test_descriptors_on_the_wrong_frame_of_a_write_end_the_connection(raw: RawClient, null: int) -> None:
    """They were sent with the first frame, and the second announces them: a reader cannot tell, and need not mind."""
    frame = announce(attached_call(raw, 2, "read_some", pack_fd(0), 4), 1)
    send_with(raw.sock, raw.encode(1, "plain", 1) + frame, null, null)
    assert "descriptors" in farewell(raw)


@pytest.mark.parametrize(
    ("places", "count", "text"),
    [
        ([pack_fd(0)], 2, "1 descriptors came that no value names"),
        ([pack_fd(1)], 1, "descriptor 1 of 1 is missing, or was named before"),
        ([pack_fd(0), pack_fd(0)], 1, "descriptor 0 of 1 is missing, or was named before"),
        ([msgspec.msgpack.Ext(1, b"")], 1, "descriptor's place of 0 bytes"),
        ([msgspec.msgpack.Ext(1, b"\0\0")], 1, "descriptor's place of 2 bytes"),
        ([msgspec.msgpack.Ext(2, b"\0" + (5).to_bytes(8, "little"))], 1, "Expected `Fd`|of kind|buffer"),
        ([msgspec.msgpack.Ext(3, b"\0")], 1, "Expected `Fd`"),
        ([None], 1, "Expected `Fd`, got `null`"),
    ],
)
def test_values_that_name_none_or_one_twice_fail_their_call_alone(
    raw: RawClient, null: int, places: list[Any], count: int, text: str
) -> None:
    import re

    args = {"name": "f", "files": places}
    send_with(raw.sock, announce(attached_call(raw, 1, "gather", args), count), *[null] * count)
    failure = decode_failure(raw.read().payload)
    assert failure.code == ErrorCode.INVALID_ARGUMENT
    assert re.search(text, failure.message), failure.message
    raw.call(2, "plain", 2)
    assert raw.read().call_id == 2


@pytest.mark.parametrize("kind", [Kind.CANCEL, Kind.PING, Kind.END, Kind.CREDIT])
def test_descriptors_on_other_frames_end_the_connection(raw: RawClient, null: int, kind: Kind) -> None:
    frame = HEADER.pack(4 if kind == Kind.CREDIT else 0, kind, 0, 1, 0 if kind == Kind.PING else 1, 0)
    send_with(raw.sock, frame + (b"\1\0\0\0" if kind == Kind.CREDIT else b""), null)
    assert "descriptors" in farewell(raw)


def test_descriptors_for_a_method_without_them_end_the_connection(raw: RawClient, null: int) -> None:
    send_with(raw.sock, announce(raw.encode(1, "plain", 1), 1), null)
    assert "1 descriptors with plain, which takes none" in farewell(raw)


def test_descriptors_with_items_that_have_none_end_the_connection(loop: str, sock_dir: Path, null: int) -> None:
    service = hostline.Service("mixed")

    @service.method
    def total(numbers: Iterator[int]) -> int:
        return sum(numbers)

    @service.method
    def look(fd: Fd) -> None: ...

    with ServerThread(service, sock_dir / "s", loop=loop):
        client = RawClient(str(sock_dir / "s"))
        client.sock.sendall(encode_call(1, client.methods["total"], (None,), has_items=True))
        send_with(client.sock, announce(encode_item(1, 5), 1), null)
        assert "which takes none" in farewell(client)
        client.close()


def test_a_service_without_descriptors_never_gets_any_installed(loop: str, sock_dir: Path, null: int) -> None:
    service = hostline.Service("plain")

    @service.method
    def add(a: int, b: int) -> int:
        return a + b

    with ServerThread(service, sock_dir / "s", loop=loop):
        client = RawClient(str(sock_dir / "s"))
        before = len(open_descriptors())
        try:
            send_with(client.sock, client.encode(1, "add", 1, 2), null)
        except PermissionError:
            pass  # this kernel says so at once (Linux 6.16)
        else:
            assert client.read().call_id == 1
        assert len(open_descriptors()) == before
        client.close()


def test_a_client_that_never_reads_holds_a_share_and_no_more(loop: str, world: World, sock_dir: Path) -> None:
    """The descriptors on their way to it are bounded, other clients are served, and all come back when it leaves."""
    with ServerThread(world.service, sock_dir / "s", loop=loop) as server:
        quiet = RawClient(str(sock_dir / "s"))
        for call_id in range(1, 201):
            quiet.call(call_id, "open_file", "/etc/passwd")
        assert wait_until(lambda: server.stats().calls.finished == 200)
        with hostline.connect(sock_dir / "s") as line:
            for _ in range(20):
                line.call("open_file", "/etc/passwd", returns=Fd).close()
        waiting = open_descriptors()
        assert (
            sum("/etc/passwd" in what for what in waiting.values()) >= 200 - 64
        )  # with us still, and not on their way
        quiet.close()
        assert wait_until(lambda: server.connection_count <= 1)
        assert wait_until(lambda: not any("/etc/passwd" in what for what in open_descriptors().values()))


def test_a_client_that_takes_them_again_gets_all(loop: str, world: World, sock_dir: Path) -> None:
    with ServerThread(world.service, sock_dir / "s", loop=loop):
        client = RawClient(str(sock_dir / "s"))
        client.decoder.max_fds = 16
        for call_id in range(1, 101):
            client.call(call_id, "open_file", "/etc/passwd")
        taken: set[int] = set()
        while len(taken) < 100:
            data, ancillary, flags, _ = client.sock.recvmsg(1 << 16, socket.CMSG_LEN(64))
            assert data
            assert not flags & socket.MSG_CTRUNC
            numbers = array.array("i", b"".join(value for _, _, value in ancillary))
            frames = client.decoder.receive_data(data, [Fd(number) for number in numbers])
            taken |= {frame.call_id for frame in frames if frame.fds}
        client.close()


def test_a_client_that_takes_none_in_time_is_cut_off(
    loop: str, world: World, sock_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostline.aio.serving.session.SLOW_READER_TIMEOUT", 0.2)
    with ServerThread(world.service, sock_dir / "s", loop=loop) as server:
        quiet = RawClient(str(sock_dir / "s"))
        for call_id in range(1, 101):
            quiet.call(call_id, "open_file", "/etc/passwd")
        assert wait_until(lambda: server.connection_count == 0)
        quiet.decoder.max_fds = 16
        kinds = []
        while data := quiet.sock.recvmsg(1 << 16, socket.CMSG_LEN(64)):
            if not data[0]:
                break
            numbers = array.array("i", b"".join(value for _, _, value in data[1]))
            frames = quiet.decoder.receive_data(data[0], [Fd(number) for number in numbers])
            kinds += [(frame.kind, frame.payload) for frame in frames]
        kind, payload = kinds[-1]
        assert kind == Kind.GOAWAY  # it may read on after all, and then learns why
        assert decode_farewell(payload).reason == "descriptors were not taken for 0.2 seconds"
        quiet.close()


def fail_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every descriptor that the server closes say that it failed."""
    close = Fd.close

    def fail(fd: Fd) -> None:
        is_open = not fd.is_closed
        close(fd)
        if is_open and threading.current_thread() is not threading.main_thread():
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Fd, "close", fail)


@pytest.mark.parametrize("place", [pack_fd(0), pack_buffer(0, 100)], ids=["fd", "buffer"])
@pytest.mark.parametrize("method", ["read_some", "read_quickly"])
def test_a_refused_descriptor_that_fails_to_close_fails_its_call_alone(
    loop: str, world: World, sock_dir: Path, monkeypatch: pytest.MonkeyPatch, place: Any, method: str
) -> None:
    with ServerThread(world.service, sock_dir / "s", loop=loop), open("/dev/zero", "rb") as device:
        client = RawClient(str(sock_dir / "s"))
        fail_to_close(monkeypatch)
        send_with(client.sock, announce(attached_call(client, 1, method, place, 1), 1), device.fileno())
        assert decode_failure(client.read().payload).code == ErrorCode.INVALID_ARGUMENT
        monkeypatch.undo()
        client.close()


@pytest.mark.parametrize("is_broken", [False, True], ids=["half", "broken"])
def test_a_descriptor_that_fails_to_close_does_not_keep_its_connection(
    loop: str, world: World, sock_dir: Path, null: int, monkeypatch: pytest.MonkeyPatch, is_broken: bool
) -> None:
    """What a peer sent may fail with EIO, if the file is its own: that must not stop the end of its connection."""
    with ServerThread(world.service, sock_dir / "s", loop=loop) as server:
        client = RawClient(str(sock_dir / "s"))
        fail_to_close(monkeypatch)
        frame = attached_call(client, 1, "read_some", pack_fd(0), 1)
        send_with(client.sock, announce(frame, 2 if is_broken else 1)[:-1], null)
        if not is_broken:
            client.sock.shutdown(socket.SHUT_RDWR)
        assert wait_until(lambda: server.connection_count == 0)
        monkeypatch.undo()
        client.close()


@pytest.mark.parametrize("method", ["open_inline", "open_file"])
def test_descriptors_that_wait_to_be_sent_are_the_users_too(
    loop: str, world: World, sock_dir: Path, method: str
) -> None:
    """Answers of a few bytes would fill this process's table long before their bytes are too many."""
    count = 600
    settings = ServerSettings(max_descriptors_per_uid=40)
    with ServerThread(world.service, sock_dir / "s", loop=loop, settings=settings) as server:
        quiet = RawClient(str(sock_dir / "s"))
        quiet.decoder.max_fds = 16
        most = 0
        for call_id in range(1, count + 1):
            quiet.call(call_id, method, "/etc/passwd")
            most = max(most, sum("/etc/passwd" in what for what in open_descriptors().values()))
        assert most <= 200  # those, a few of the test, and what handlers in threads are about to return
        kinds: dict[int, int] = {}
        while sum(kinds.values()) < count:
            data, ancillary, _, _ = quiet.sock.recvmsg(1 << 16, socket.CMSG_LEN(64))
            assert data
            numbers = array.array("i", b"".join(value for _, _, value in ancillary))
            for frame in quiet.decoder.receive_data(data, [Fd(number) for number in numbers]):
                kinds[frame.kind] = kinds.get(frame.kind, 0) + 1
                if frame.kind == Kind.ERROR:
                    assert decode_failure(frame.payload).code == ErrorCode.OVERLOADED
        assert kinds[Kind.REPLY] >= 64
        assert server.do(lambda server: server.accounts.stats())[0].descriptors == 0
        quiet.close()


def test_a_client_that_takes_none_is_looked_at_ever_less_often(
    loop: str, world: World, sock_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look costs the loop, and a hostile user may have many connections: at 1 kHz 200 of them took a whole core."""
    looks = 0
    has_room = FdsInFlight.has_room

    def look(in_flight: FdsInFlight, count: int) -> bool:
        nonlocal looks
        looks += 1
        return has_room(in_flight, count)

    monkeypatch.setattr(FdsInFlight, "has_room", look)
    monkeypatch.setattr("hostline.aio.serving.session.SLOW_READER_TIMEOUT", 1.0)
    with ServerThread(world.service, sock_dir / "s", loop=loop) as server:
        quiet = RawClient(str(sock_dir / "s"))
        for call_id in range(1, 101):
            quiet.call(call_id, "open_inline", "/etc/passwd")
        assert wait_until(lambda: server.connection_count == 0)
        quiet.close()
    assert looks < 64 + 50


@pytest.mark.root
def test_many_that_never_read_do_not_touch_a_bystander(sock_dir: Path) -> None:
    """As another user, for root may have any number on their way: 32 clients take descriptors and never read."""
    os.chown(sock_dir, NOBODY, NOBODY)
    assert Fork(NOBODY, serve_among_hoarders, str(sock_dir / "s")).result(60) == {"Fd": 300}


def serve_among_hoarders(path: str) -> dict[str, int]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))
    world = World()
    outcomes: dict[str, int] = {}
    with ServerThread(world.service, path):
        hoarders = [RawClient(path) for _ in range(32)]
        for call_id in range(1, 9):
            for hoarder in hoarders:
                hoarder.call(call_id, "open_file", "/etc/passwd")
        with hostline.connect(path) as line:
            for _ in range(300):
                try:
                    with line.call("open_file", "/etc/passwd", returns=Fd) as fd:
                        outcome = type(fd).__name__
                except hostline.errors.HostlineError as error:
                    outcome = str(error)
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
        for hoarder in hoarders:
            hoarder.close()
    return outcomes


@pytest.mark.parametrize("face", ["sync", "aio"])
def test_a_batch_without_room_for_descriptors_says_so(
    sock_dir: Path, face: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> Any:
        raise DescriptorError(errno.EMFILE, "only 0 of the descriptors sent could be taken")

    async def on_loop(line: Any) -> Any:
        async with line.batch(timeout=10) as batch:
            call = batch.call("open_file", "/etc/passwd", returns=Fd, idempotent=True)
        return call.exception()

    with ServerThread(World().service, sock_dir / "s"):
        stage = Stage(face, "asyncio", sock_dir)
        line = stage.connect()
        line.call("open_file", "/etc/passwd", returns=Fd).close()
        monkeypatch.setattr(f"hostline.{face}.caller.recv_stream", refuse)
        if stage.is_async:
            error = line.on_loop.run(on_loop(line.line))
        else:
            with line.line.batch(timeout=10) as batch:
                call = batch.call("open_file", "/etc/passwd", returns=Fd, idempotent=True)
            error = call.exception()
        stage.close()
    assert (type(error), str(error)) == (RemoteProtocolError, "only 0 of the descriptors sent could be taken")


@pytest.mark.root
@pytest.mark.parametrize("face", ["sync", "aio"])
def test_too_many_on_their_way_fail_the_call_and_not_the_line(sock_dir: Path, face: str) -> None:
    os.chown(sock_dir, NOBODY, NOBODY)
    assert Fork(NOBODY, call_while_too_many_wait, str(sock_dir / "s"), face).result(60) == ["OverloadedError", "fine"]


def call_while_too_many_wait(path: str, face: str) -> list[str]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    world = World()
    with ServerThread(world.service, path), open("/etc/passwd", "rb") as file:
        stage = Stage(face, "asyncio", Path(path).parent)
        line = stage.connect()
        ours, theirs = socket.socketpair()
        said = []
        with ours, theirs:
            for _ in range(80):  # until the kernel refuses
                try:
                    send_with(ours, b"x", file.fileno())
                except OSError:
                    break
            try:
                line.call("read_some", file, 1)
            except OverloadedError as error:
                said.append(type(error).__name__)
        said.append("fine" if line.call("read_some", file, 1) == b"r" else "odd")
        stage.close()
    return said


class Refusing:
    """Let the server's kernel take no more descriptors, where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused = 0
        self.left = 1
        self._real = send_attached
        monkeypatch.setattr("hostline.aio.serving.session.send_attached", self)

    def __call__(self, sock: socket.socket, buffers: Any, fds: Any) -> int:
        if self.left:
            self.left -= 1
            self.refused += 1
            raise OverloadedError("too many descriptors of this user are on their way")
        return self._real(sock, buffers, fds)


@pytest.mark.parametrize("method", ["open_many", "open_many_async"])
@pytest.mark.parametrize("count", [1, 3, 12, 30])
def test_a_stream_that_lost_an_item_never_ends_as_if_it_were_whole(
    stage: Stage, world: World, poem: Path, monkeypatch: pytest.MonkeyPatch, method: str, count: int
) -> None:
    """Also where its end is queued behind the item that the kernel does not take."""
    stage.serve(world.service)
    line = stage.connect()
    refusing = Refusing(monkeypatch)
    with pytest.raises(OverloadedError, match="too many descriptors of this user"):
        items_of(line, method, str(poem), count, returns=Fd)
    assert refusing.refused == 1
    assert len(items_of(line, method, str(poem), 2, returns=Fd)) == 2


# --- hostile servers -----------------------------------------------------------------------------------


def give(act: Any) -> Any:
    """Play a server whose method 0 gives descriptors; `act` answers its one call."""

    def play(conversation: Conversation) -> None:
        assert conversation.read().kind == Kind.HELLO
        entries = [MethodEntry("act", gives_descriptors=True)]
        conversation.sock.sendall(encode_hello(ServerHello(service="script", methods=entries)))
        act(conversation, conversation.read_call())
        wait_until(lambda: False, 0.2)

    return play


@pytest.mark.parametrize("face", stages())
@pytest.mark.parametrize(
    ("announced", "sent", "places", "text"),
    [
        (1, 0, [pack_fd(0)], "announces 1 descriptors, and 0 came"),
        (0, 1, [1], "1 descriptors came that no frame announced|announces 0"),
        (1, 2, [pack_fd(0)], "announces 1 descriptors, and 2 came"),
        (2, 2, [pack_fd(0)], "1 descriptors came that no value names"),
        (1, 1, [pack_fd(0), pack_fd(0)], "was named before"),
        (1, 40, [pack_fd(0)], "sent more descriptors than max_fds of 16"),
    ],
)
def test_a_server_that_sends_others_than_it_says_is_found_out(
    face: tuple[str, str], sock_dir: Path, null: int, announced: int, sent: int, places: list[Any], text: str
) -> None:
    def answer(conversation: Conversation, call: Frame) -> None:
        send_with(conversation.sock, announce(encode_reply(call.call_id, places), announced), *[null] * sent)

    before = len(open_descriptors())
    stage = Stage(*face, sock_dir)
    server = ScriptedServer(stage.address, give(answer))
    try:
        line = stage.connect()
        with pytest.raises(hostline.errors.HostlineError, match=text):
            line.call("act", returns=list[Fd])
    finally:
        stage.close()
        server.close()
    assert wait_until(lambda: len(open_descriptors()) <= before)


@pytest.mark.parametrize("face", stages())
def test_descriptors_for_a_call_that_was_given_up_are_closed(face: tuple[str, str], sock_dir: Path, null: int) -> None:
    has_given_up = threading.Event()

    def answer(conversation: Conversation, call: Frame) -> None:
        has_given_up.wait(10)
        send_with(conversation.sock, announce(encode_reply(call.call_id, [pack_fd(0)]), 1), null)

    stage = Stage(*face, sock_dir)
    server = ScriptedServer(stage.address, give(answer))
    try:
        line = stage.connect()
        before = len(open_descriptors())
        with pytest.raises(DeadlineExceededError):
            line.call("act", returns=list[Fd], timeout=0.05)
        has_given_up.set()
        wait_until(lambda: False, 0.3)
        assert len(open_descriptors()) <= before
    finally:
        stage.close()
        server.close()


# --- declaring -----------------------------------------------------------------------------------------


def test_kinds_must_be_of_those_there_are() -> None:
    with pytest.raises(ValueError, match="descriptor kind 'file' is none of regular, "):
        fd_kinds("file")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="would allow no descriptor"):
        fd_kinds()


def test_a_cancelled_call_with_items_under_way_leaves_nothing(stage: Stage, world: World, poem: Path) -> None:
    server = stage.serve(world.service)
    line = stage.connect()
    if not isinstance(line, AsyncLine):
        with line.line.stream("open_many", str(poem), 1000, returns=Fd) as stream:
            next(stream).close()
    else:

        async def take_one() -> None:
            async with line.line.stream("open_many_async", str(poem), 1000, returns=Fd) as stream:
                (await anext(stream)).close()
                await asyncio.sleep(0.05)

        line.on_loop.run(take_one())
    server.wait_idle()
    assert wait_until(lambda: not any(str(poem) in what for what in open_descriptors().values()))


# --- batches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", stages())
def test_a_batch_tells_what_is_wrong_with_the_descriptors_that_came(
    face: tuple[str, str], sock_dir: Path, null: int
) -> None:
    def answer(conversation: Conversation, call: Frame) -> None:
        send_with(conversation.sock, announce(encode_reply(call.call_id, [pack_fd(0)]), 1), *[null] * 40)

    stage = Stage(*face, sock_dir)
    server = ScriptedServer(stage.address, give(answer))
    try:
        [call] = batched(stage.connect(), lambda batch: [batch.call("act", returns=list[Fd])])
        with pytest.raises(RemoteProtocolError, match="sent more descriptors than max_fds of 16"):
            call.result()
    finally:
        stage.close()
        server.close()


def test_a_batch_that_gave_a_call_up_keeps_no_connection_for_its_descriptors(sock_dir: Path, null: int) -> None:
    """They would stay unread in the pool, and with the server's user, for as long as nobody calls."""
    has_ended = threading.Event()

    def answer(conversation: Conversation, call: Frame) -> None:
        assert conversation.read().kind == Kind.CANCEL
        with contextlib.suppress(ConnectionError):  # it has gone before the answer, or between that and the look
            send_with(conversation.sock, announce(encode_reply(call.call_id, [pack_fd(0)]), 1), null)
            assert conversation.sock.recv(1) == b""
        has_ended.set()

    server = ScriptedServer(str(sock_dir / "s"), give(answer))
    try:
        with hostline.connect(sock_dir / "s") as line:
            with line.batch(timeout=0.5) as batch:  # long enough for the call to be sent on a busy machine
                call = batch.call("act", returns=list[Fd])
            assert isinstance(call.exception(), DeadlineExceededError)
            assert has_ended.wait(5)
    finally:
        server.close()
