"""Large bytes in calls: both faces, both loops, inline and in sealed memory, and peers whose memory is not sound."""

from __future__ import annotations

import array
import fcntl
import hashlib
import mmap
import os
import select
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import hostline
from hostline import Buffer, Fd
from hostline.errors import DescriptorError, InvalidArgumentError, OverloadedError
from hostline.limits import INLINE_BUFFER, MAX_BUFFER_SIZE
from hostline.unix.passing.memory import map_sealed, sealed_memory
from hostline.wire.attached import pack_buffer
from hostline.wire.codec import (
    ErrorCode,
    MethodEntry,
    ServerHello,
    decode_failure,
    encode_call,
    encode_hello,
    own_features,
)
from hostline.wire.frame import Frame, FrameDecoder, Kind
from tests.leaks import open_descriptors, wait_until
from tests.serving import AsyncLine, RawClient, ServerThread, Stage, loop_names, resident_bytes, stages

MIB = 1 << 20
SIZES = (0, 1, INLINE_BUFFER, INLINE_BUFFER + 1, 3 * MIB, 20 * MIB + 7)
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Image(msgspec.Struct):
    width: int
    pixels: Buffer
    mask: Buffer | None = None


def some_bytes(size: int) -> bytes:
    return bytes(range(256)) * (size // 256) + bytes(range(size % 256))


def mapped_bytes(server: ServerThread) -> int:
    return sum(user.mapped for user in server.stats().users)


class World:
    def __init__(self) -> None:
        self.service = hostline.Service("bytes")
        self.kept: list[Any] = []
        for function in (
            self.digest,
            self.echo,
            self.perhaps,
            self.make,
            self.brightest,
            self.keep,
            self.chunks,
            self.total,
        ):
            self.service.method(function)
        self.service.method(inline=True, name="digest_inline")(self.digest)

    def digest(self, data: Buffer) -> str:
        assert isinstance(data, memoryview)
        assert data.readonly
        return hashlib.sha256(data).hexdigest()

    async def echo(self, data: Buffer) -> Buffer:
        return data

    async def perhaps(self, data: Buffer | None) -> Buffer | None:
        return data

    def make(self, size: int, how: str) -> Buffer:
        data = some_bytes(size)
        return {"buffer": Buffer(data), "bytes": data, "bytearray": bytearray(data)}[how]  # type: ignore[return-value]

    def brightest(self, image: Image) -> tuple[int, int]:
        return max(image.pixels), 0 if image.mask is None else len(image.mask)

    def keep(self, data: Buffer) -> None:
        self.kept.append(data)

    async def chunks(self, count: int, size: int) -> AsyncIterator[Buffer]:
        for number in range(count):
            yield Buffer(bytes([number]) * size)

    def total(self, parts: Iterator[Buffer]) -> int:
        return sum(len(part) for part in parts)


@pytest.fixture(params=stages())
def stage(request: pytest.FixtureRequest, sock_dir: Path) -> Iterator[Stage]:
    made = Stage(*request.param, sock_dir)
    yield made
    made.close()


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.kept.clear()


# --- there and back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", ["digest", "digest_inline"])
def test_bytes_of_any_size_arrive(stage: Stage, world: World, size: int, method: str) -> None:
    stage.serve(world.service)
    data = some_bytes(size)
    assert stage.connect().call(method, Buffer(data)) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [1, 3 * MIB])
def test_a_result_may_be_one_or_none(stage: Stage, world: World, size: int) -> None:
    """A handler that returns what it was given returns a view."""
    stage.serve(world.service)
    line = stage.connect()
    assert line.call("perhaps", None, returns=Buffer | None) is None
    assert line.call("perhaps", Buffer(some_bytes(size)), returns=Buffer | None) == some_bytes(size)


@pytest.mark.parametrize("size", SIZES)
def test_they_come_back_as_a_read_only_view(stage: Stage, world: World, size: int) -> None:
    stage.serve(world.service)
    data = some_bytes(size)
    view = stage.connect().call("echo", Buffer(data), returns=Buffer)
    assert isinstance(view, memoryview)
    assert isinstance(view, Buffer)
    assert view.readonly
    assert view == data


@pytest.mark.parametrize("how", ["buffer", "bytes", "bytearray"])
def test_a_handler_may_return_plain_bytes_of_any_size(stage: Stage, world: World, how: str) -> None:
    stage.serve(world.service)
    assert stage.connect().call("make", 2 * MIB, how, returns=Buffer) == some_bytes(2 * MIB)


def test_whatever_has_contiguous_bytes_can_be_sent(stage: Stage, world: World) -> None:
    stage.serve(world.service)
    line = stage.connect()
    numbers = array.array("d", range(200_000))
    for data in (numbers, bytearray(some_bytes(MIB)), memoryview(some_bytes(MIB)).cast("I")):
        assert line.call("digest", Buffer(data)) == hashlib.sha256(memoryview(data)).hexdigest()
    assert line.call("digest", b"small") == hashlib.sha256(b"small").hexdigest()


def test_they_are_fields_of_structs(stage: Stage, world: World) -> None:
    stage.serve(world.service)
    line = stage.connect()
    assert line.call("brightest", Image(1, Buffer(some_bytes(2 * MIB)))) == [255, 0]
    assert line.call("brightest", Image(1, Buffer(b"\1\2"), Buffer(bytes(2 * MIB)))) == [2, 2 * MIB]


def test_several_share_the_frame_and_the_rest_go_beside_it(stage: Stage, world: World) -> None:
    """Two that fit alone, and not together."""
    stage.serve(world.service)
    image = Image(1, Buffer(some_bytes(INLINE_BUFFER - 1)), Buffer(bytes(INLINE_BUFFER - 1)))
    assert stage.connect().call("brightest", image) == [255, INLINE_BUFFER - 1]


def test_they_are_items_of_streams(stage: Stage, world: World) -> None:
    stage.serve(world.service)
    line = stage.connect()
    assert line.call("total", (Buffer(bytes(MIB)) for _ in range(40))) == 40 * MIB
    sizes = []
    if isinstance(line, AsyncLine):

        async def iterate() -> None:
            async for part in line.line.stream("chunks", 20, MIB, returns=Buffer):
                sizes.append((part[0], len(part)))

        line.on_loop.run(iterate(), 20)
    else:
        sizes = [(part[0], len(part)) for part in line.line.stream("chunks", 20, MIB, returns=Buffer)]
    assert sizes == [(number, MIB) for number in range(20)]


def test_a_kept_view_stays_whatever_its_sender_does(stage: Stage, world: World) -> None:
    stage.serve(world.service)
    line = stage.connect()
    data = bytearray(some_bytes(2 * MIB))
    line.call("keep", Buffer(data))
    data[:10] = bytes(10)
    line.close()
    assert world.kept[0] == some_bytes(2 * MIB)


def test_a_result_is_what_it_was_when_the_handler_returned(sock_dir: Path) -> None:
    memory = bytearray(b"a" * MIB)
    service = hostline.Service("shared")

    @service.method(inline=True)
    def give() -> Buffer:
        return Buffer(memory)

    @service.method(inline=True)
    def change() -> None:
        memory[:] = b"b" * MIB

    with ServerThread(service, sock_dir / "s") as server, RawClient(server.address) as raw:
        raw.call(1, "give")
        select.select([raw.sock], [], [], 10)  # it has begun to leave, and its reader does not read
        with hostline.connect(server.address) as line:
            line.call("change")
        reply = raw.read()
    assert len(reply.payload) > MIB
    assert b"b" not in bytes(reply.payload[5:])


@pytest.mark.parametrize("size", [300_000, 1_000_000])
def test_a_small_buffer_does_not_keep_its_large_frame(sock_dir: Path, size: int) -> None:
    service = hostline.Service("two")
    kept: list[Buffer] = []

    @service.method(inline=True)
    def take(small: Buffer, large: Buffer) -> None:
        kept.extend((small, large))

    with ServerThread(service, sock_dir / "s") as server, hostline.connect(server.address) as line:
        line.call("take", Buffer(b"s" * 1000), Buffer(b"l" * size))
    small, large = (memoryview(view) for view in kept)
    assert (small, large) == (b"s" * 1000, b"l" * size)
    assert isinstance(small.obj, bytes)
    assert isinstance(large.obj, bytearray), "it is where it was received"


def test_an_argument_beside_a_stream_is_what_it_was_when_the_call_began(sock_dir: Path, run_async: Any) -> None:
    """The caller's own generator runs while the call is still being sent, and may reuse what it was made of."""
    path = str(sock_dir / "s")
    size = 8 * MIB  # more than any send buffer takes at once
    may_read = threading.Event()
    seen: list[Frame] = []

    def read_late(listener: socket.socket) -> None:
        with listener.accept()[0] as sock:
            methods = [MethodEntry("both", streams_argument=True, takes_descriptors=True)]
            features = own_features(has_descriptors=False)  # so that it stands in the frame, whatever its size
            hello = ServerHello(service="s", features=features, max_frame_size=2 * size, methods=methods)
            sock.sendall(encode_hello(hello))
            assert may_read.wait(10.0)
            decoder = FrameDecoder(2 * size)
            while not any(frame.kind == Kind.CALL for frame in seen):
                seen.extend(decoder.receive_data(sock.recv(65536)))

    async def story() -> None:
        memory = bytearray(b"a") * size

        async def numbers() -> AsyncIterator[int]:
            memory[:] = bytes(size)
            may_read.set()
            yield 1

        async with hostline.aio.connect(path) as line:
            with pytest.raises(hostline.HostlineError):
                await line.call("both", Buffer(memory), numbers(), timeout=10.0)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        server = threading.Thread(target=read_late, args=(listener,))
        server.start()
        run_async(story)
        server.join(10.0)
    payload = next(bytes(frame.payload) for frame in seen if frame.kind == Kind.CALL)
    assert payload.count(b"a") >= size
    assert len(payload) - size < 100


def test_nothing_is_held_after_the_call(stage: Stage, world: World) -> None:
    server = stage.serve(world.service)
    line = stage.connect()
    data = Buffer(some_bytes(8 * MIB))
    line.call("digest", data)
    before, descriptors = resident_bytes(), len(open_descriptors())
    for _ in range(30):
        line.call("echo", data, returns=Buffer).release()
    assert resident_bytes() - before < 60 * MIB
    assert wait_until(lambda: len(open_descriptors()) <= descriptors)
    assert mapped_bytes(server) == 0


# --- what is refused -----------------------------------------------------------------------------------


def test_what_has_no_contiguous_bytes_is_refused_at_once() -> None:
    with pytest.raises(TypeError):
        Buffer("text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not contiguous"):
        Buffer(memoryview(bytes(10))[::2])


def test_more_than_one_buffer_may_hold_is_refused_at_once() -> None:
    with mmap.mmap(-1, MAX_BUFFER_SIZE + 1) as huge, pytest.raises(ValueError, match="exceeds the 268435456"):
        Buffer(huge)


def test_one_user_has_a_bound_and_gets_it_back(stage: Stage, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostline.aio.serving.bounds.mapped.MAX_MAPPED_PER_UID", 5 * MIB)
    server = stage.serve(world.service)
    line = stage.connect()
    text = f"buffers of uid {os.geteuid()} would take 6291456 bytes here, and 5242880 are"
    with pytest.raises(OverloadedError, match=text):
        line.call("digest", Buffer(bytes(6 * MIB)))
    for _ in range(5):
        line.call("digest", Buffer(bytes(4 * MIB)))
    assert mapped_bytes(server) == 0


def test_a_call_that_gets_no_thread_gives_its_bytes_back(
    stage: Stage, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("hostline.rpc.workers.Workers.submit", no_thread)
    server = stage.serve(world.service)
    with pytest.raises(OverloadedError, match="cannot start a thread"):
        stage.connect().call("digest", Buffer(bytes(MIB)))
    assert mapped_bytes(server) == 0


def test_other_types_are_refused_by_name(stage: Stage, world: World) -> None:
    stage.serve(world.service)
    line = stage.connect()
    with pytest.raises(InvalidArgumentError, match="argument `data`: Expected `Buffer`, got `int`"):
        line.call("digest", 5)
    with (
        open("/dev/null") as file,
        pytest.raises(InvalidArgumentError, match=r"kind character is not|Expected `Buffer`"),
    ):
        line.call("digest", file)
    with pytest.raises(InvalidArgumentError, match="large ones travel as hostline"):
        line.call("digest", bytes(2 * MIB))


# --- memory that is not what it should be --------------------------------------------------------------


def memory(size: int, seals: int = SEALS, *, is_sparse: bool = False, may_seal: bool = True) -> Fd:
    fd = Fd(os.memfd_create("test", os.MFD_CLOEXEC | (os.MFD_ALLOW_SEALING if may_seal else 0)))
    if is_sparse:
        os.ftruncate(fd.fileno(), size)
    else:
        os.write(fd.fileno(), some_bytes(size))
    if seals:
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, seals)
    return fd


def plain_file(tmp_path: Path) -> Fd:
    path = tmp_path / "plain"
    path.write_bytes(some_bytes(MIB))
    return Fd(os.open(path, os.O_RDONLY))


def in_shared_memory() -> Fd:
    path = f"/dev/shm/hostline-test-{os.getpid()}"
    with open(path, "wb") as file:
        file.write(some_bytes(MIB))
    fd = Fd(os.open(path, os.O_RDONLY))
    os.unlink(path)
    return fd


def end_of_a_pipe() -> Fd:
    readable, writable = os.pipe()
    os.close(writable)
    return Fd(readable)


CASES: list[tuple[str, Any, str]] = [
    ("unsealed", lambda _: memory(MIB, 0), "not sealed"),
    ("not sealable", lambda _: memory(MIB, 0, may_seal=False), "not sealed"),
    ("no write seal", lambda _: memory(MIB, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW), "not sealed"),
    ("no shrink seal", lambda _: memory(MIB, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW), "not sealed"),
    ("no grow seal", lambda _: memory(MIB, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK), "not sealed"),
    ("future writes only", lambda _: memory(MIB, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | 0x10), "not sealed"),
    ("sparse", lambda _: memory(MIB, is_sparse=True), "sparse"),
    ("smaller", lambda _: memory(MIB - 1), "came in memory of 1048575"),
    ("larger", lambda _: memory(MIB + 1), "came in memory of 1048577"),
    ("a plain file", plain_file, "kind regular, not in a memfd"),
    ("a file in shared memory", lambda _: in_shared_memory(), "kind regular, not in a memfd"),
    ("a directory", lambda path: Fd(os.open(path, os.O_RDONLY)), "kind directory"),
    ("a device", lambda _: Fd(os.open("/dev/zero", os.O_RDONLY)), "kind character"),
    ("a pipe", lambda _: end_of_a_pipe(), "kind pipe"),
    ("only a name", lambda path: Fd(os.open(path, os.O_PATH)), "kind path"),
]


@pytest.mark.parametrize(("make", "text"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_only_sealed_whole_memory_is_mapped(tmp_path: Path, make: Any, text: str) -> None:
    before = len(open_descriptors())
    fd = make(tmp_path)
    with pytest.raises(DescriptorError, match=text):
        map_sealed(fd, MIB)
    assert len(open_descriptors()) == before


@pytest.mark.parametrize("size", [0, MAX_BUFFER_SIZE + 1, 1 << 62])
def test_a_size_out_of_bounds_is_refused_before_anything_is_mapped(size: int) -> None:
    with pytest.raises(DescriptorError, match="1 to 268435456 are taken"):
        map_sealed(memory(MIB), size)


def test_what_is_sent_is_sealed_for_good() -> None:
    with sealed_memory(memoryview(some_bytes(MIB))) as fd:
        with pytest.raises(PermissionError):
            os.ftruncate(fd.fileno(), 1)
        with pytest.raises(PermissionError):
            os.pwrite(fd.fileno(), b"x", 0)
        with Fd(os.open(f"/proc/self/fd/{fd.fileno()}", os.O_RDWR)) as other, pytest.raises(PermissionError):
            os.pwrite(other.fileno(), b"x", 0)  # opened anew, and sealed all the same


def test_it_is_mapped_also_where_the_kernel_shares_no_write_sealed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux before 6.7 refuses MAP_SHARED of write-sealed memory, whatever the protection; MAP_PRIVATE is taken."""
    real = mmap.mmap

    def before_6_7(number: int, size: int, flags: int = mmap.MAP_SHARED, *args: Any, **options: Any) -> mmap.mmap:
        if flags & mmap.MAP_SHARED and fcntl.fcntl(number, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE:
            raise PermissionError(1, "Operation not permitted")
        return real(number, size, flags, *args, **options)

    monkeypatch.setattr(mmap, "mmap", before_6_7)
    view = map_sealed(sealed_memory(memoryview(some_bytes(MIB))), MIB)
    assert view.readonly
    assert view == some_bytes(MIB)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="before that, mmap keeps a descriptor of its own")
def test_a_mapping_holds_no_descriptor() -> None:
    before = len(open_descriptors())
    view = map_sealed(sealed_memory(memoryview(some_bytes(MIB))), MIB)
    assert len(open_descriptors()) == before
    assert view[255] == 255


@pytest.fixture(params=loop_names())
def raw(request: pytest.FixtureRequest, world: World, sock_dir: Path) -> Iterator[RawClient]:
    with ServerThread(world.service, sock_dir / "s", loop=request.param) as server:
        client = RawClient(str(sock_dir / "s"))
        yield client
        assert mapped_bytes(server) == 0
        client.close()


def send_buffer(client: RawClient, call_id: int, fd: Fd, index: int, size: int) -> None:
    frame = encode_call(call_id, client.methods["digest"], (pack_buffer(index, size),), None, None, 16 << 20)
    frame[6:8] = (1).to_bytes(2, "little")
    with fd:
        client.sock.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd.fileno()]))])


def test_a_peers_memory_is_checked_and_its_call_fails_alone(raw: RawClient) -> None:
    cases = [
        (memory(MIB, 0), 0, MIB, "not sealed"),
        (memory(64 * MIB, is_sparse=True), 0, 64 * MIB, "sparse"),
        (memory(MIB), 0, MIB + 1, "came in memory of"),
        (memory(MIB), 1, MIB, "descriptor 1 of 1 is missing"),
        (memory(MIB), 0, 1 << 63, "are taken|would take"),
    ]
    for call_id, (fd, index, size, text) in enumerate(cases, 1):
        send_buffer(raw, call_id, fd, index, size)
        failure = decode_failure(raw.read().payload)
        assert failure.code == ErrorCode.INVALID_ARGUMENT
        assert any(part in failure.message for part in text.split("|")), failure.message
    send_buffer(raw, 99, memory(MIB), 0, MIB)
    answer = raw.read()
    assert (answer.kind, answer.call_id) == (Kind.REPLY, 99)


@pytest.mark.slow
def test_memory_that_is_truncated_meanwhile_kills_nobody(raw: RawClient) -> None:
    """Unsealed memory is never mapped, so that shrinking it while it is looked at cannot end the reader."""
    for call_id in range(1, 501):
        fd = memory(MIB, 0)
        copy = fd.dup()
        send_buffer(raw, call_id, fd, 0, MIB)
        os.ftruncate(copy.fileno(), 0)
        copy.close()
        assert decode_failure(raw.read().payload).code == ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize("face", ["sync", "aio"])
def test_a_connection_asks_for_a_larger_buffer_once(sock_dir: Path, face: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel gives no more, each large frame would pay for asking again."""
    asked: list[socket.socket] = []

    def refuse(sock: socket.socket) -> bool:
        asked.append(sock)
        return False

    monkeypatch.setattr(f"hostline.{face}.caller.widen", refuse)
    data = some_bytes(MIB)
    with ServerThread(World().service, sock_dir / "s"):
        stage = Stage(face, "asyncio", sock_dir)
        line = stage.connect()
        for _ in range(3):
            assert line.call("digest", Buffer(data)) == hashlib.sha256(data).hexdigest()
        stage.close()
    assert len(asked) == 1


def test_only_who_waits_in_the_kernel_is_given_a_time_for_it(sock_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[int] = []
    monkeypatch.setattr("hostline.sync.caller.set_kernel_timeout", lambda _sock, option, _time: options.append(option))
    with ServerThread(World().service, sock_dir / "s"), hostline.connect(sock_dir / "s") as line:
        assert line.call("digest", Buffer(b"")) == hashlib.sha256(b"").hexdigest()
    assert options == ([socket.SO_RCVTIMEO] if hostline.is_compiled() else [])
