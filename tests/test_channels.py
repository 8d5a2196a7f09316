"""One contract for channels: both types, both faces, both loops; and many messages in one call on every socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

import hostline
from hostline.errors import (
    ClosedError,
    DescriptorError,
    EndOfStream,
    HostlineError,
    InvalidMessageError,
    LocalProtocolError,
    MessageTooLongError,
    PeerGoneError,
    PeerRefusedError,
    RemoteProtocolError,
    SocketTimeoutError,
    TruncatedError,
)
from hostline.protocol.channels.messages import HEADER, HELLO, MAGIC, VERSION
from hostline.unix.credentials import Peers
from tests.faces import Face, connected, face_names, make_face, soon
from tests.leaks import open_descriptors
from tests.second_user import NOBODY, run_as

TYPES = ("stream", "seqpacket")
KERNEL_TYPES = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET}


class Job(msgspec.Struct, tag=True):
    id: int
    name: str = ""


class Stop(msgspec.Struct, tag=True):
    reason: str


@dataclass
class Point:
    x: int


@pytest.fixture(params=face_names())
def face(request: pytest.FixtureRequest) -> Face:
    return make_face(request.param)


@pytest.fixture(params=[name for name in face_names() if name != "sync"])
def loop_face(request: pytest.FixtureRequest) -> Face:
    return make_face(request.param)


@pytest.fixture(params=TYPES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.asynccontextmanager
async def linked(
    face: Face, directory: Path, kind: str, client_options: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Any, Any]]:
    """Give (client, server side), linked through a listener at a socket file."""
    async with face.listen_channel(directory / "jobs", kind, **options) as listener:
        given = {key: options[key] for key in ("max_fds", "max_message_size") if key in options}
        client = await face.connect_channel(directory / "jobs", kind, **(client_options or given))
        async with client, await listener.accept(timeout=5) as served:
            yield client, served


@contextlib.asynccontextmanager
async def hostile(face: Face, directory: Path, kind: str, **options: Any) -> AsyncIterator[tuple[socket.socket, Any]]:
    """Give (a plain socket, the channel it reached)."""
    async with face.listen_channel(directory / "jobs", kind, **options) as listener:
        with socket.socket(socket.AF_UNIX, KERNEL_TYPES[kind]) as raw:
            raw.connect(str(directory / "jobs"))
            async with await listener.accept(timeout=5) as served:
                yield raw, served


def hello(max_fds: int = 0, max_message_size: int = 1 << 20) -> bytes:
    return HELLO.pack(MAGIC, VERSION, max_fds, max_message_size)


def frame(data: bytes, fds: int = 0, kind: int = 2) -> bytes:
    return HEADER.pack(len(data), kind, 0, fds) + data


def file_of(content: bytes) -> hostline.Fd:
    fd = os.memfd_create("test")
    os.write(fd, content)
    return hostline.Fd(fd)


# --- messages ----------------------------------------------------------------------------------------


def test_values_and_bytes_go_both_ways_typed(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with linked(face, sock_dir, kind) as (client, served):
            await client.send(Job(1, "tea"))
            assert await served.recv(Job, timeout=5) == Job(1, "tea")
            await served.send(Stop("done"), timeout=5)
            assert await client.recv(Job | Stop, timeout=5) == Stop("done")
            await client.send(Point(3))
            assert await served.recv(Point, timeout=5) == Point(3)
            await client.send({"a": [1, None]})
            assert await served.recv(timeout=5) == {"a": [1, None]}
            for data in (b"", b"plain", bytearray(b"x" * 1000), memoryview(b"abcd").cast("I")):
                await client.send_bytes(data)
                assert await served.recv_bytes(timeout=5) == bytes(data)

    face.run(scenario)


def test_iteration_ends_with_the_other_side_and_only_one_direction_ends(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with linked(face, sock_dir, kind) as (client, served):
            await client.send_many(range(3))
            client.shutdown()
            assert [value async for value in served] == [0, 1, 2]
            with pytest.raises(EndOfStream):
                await served.recv(timeout=5)
            await served.send("still here")
            assert await client.recv(str, timeout=5) == "still here"

    face.run(scenario)


def test_a_typed_iteration_goes_on_behind_a_wrong_message(kind: str) -> None:
    one, other = hostline.channelpair(kind)  # type: ignore[arg-type]
    with one, other:
        one.send_many([1, "two", 3])
        one.shutdown()
        got = []
        with pytest.raises(InvalidMessageError) as caught:
            for number in other.messages(int, timeout=5):
                got.append(number)  # noqa: PERF402 - what came before the error is looked at
        assert (got, caught.value.data) == ([1], b"\xa3two")
        assert list(other.messages(int, timeout=5)) == [3]


def test_a_typed_iteration_on_a_loop(loop_face: Face, kind: str) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.channelpair(kind)
        async with one, other:
            await one.send_many([Job(1), Job(2)])
            one.close()
            assert [job.id async for job in other.messages(Job, timeout=5)] == [1, 2]

    loop_face.run(scenario)


def test_what_a_client_sent_before_it_left_is_received(face: Face, kind: str, sock_dir: Path) -> None:
    """Also where it never waited to be accepted: its peer's hello meets a closed socket then."""

    async def scenario(face: Face) -> None:
        async with face.listen_channel(sock_dir / "jobs", kind) as listener:
            with socket.socket(socket.AF_UNIX, KERNEL_TYPES[kind]) as raw:
                raw.connect(str(sock_dir / "jobs"))
                raw.send(hello())
                raw.send(frame(b"last words"))
            async with await listener.accept(timeout=5) as served:
                assert await served.recv_bytes(timeout=5) == b"last words"
                with pytest.raises(EndOfStream):
                    await served.recv(timeout=5)
                with pytest.raises(PeerGoneError):
                    await served.send(1, timeout=5)

    face.run(scenario)


def test_messages_behind_an_unread_hello_are_received(face: Face, kind: str, sock_dir: Path) -> None:
    """The kernel reports on seqpacket that something was left unread before it gives the packets that wait."""

    async def scenario(face: Face) -> None:
        async with hostile(face, sock_dir, kind) as (raw, served):
            for data in (hello(), frame(b"one"), frame(b"two")):
                raw.send(data)
            raw.close()
            got = []
            with pytest.raises(EndOfStream):
                while True:
                    got.append(await served.recv_bytes(timeout=5))
            assert got == [b"one", b"two"]

    face.run(scenario)


def test_the_listener_hands_out_channels_until_it_is_closed(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        listener = face.listen_channel(sock_dir / "jobs", kind)
        seen = []

        async def serve() -> None:
            async for channel in listener:
                async with channel:
                    seen.append(await channel.recv(int, timeout=5))
                    await channel.send(-seen[-1])

        serving = asyncio.create_task(serve())
        for number in range(3):
            async with await face.connect_channel(sock_dir / "jobs", kind) as channel:
                assert channel.peer.pid == os.getpid()
                assert channel.type == listener.type == kind
                assert channel.address == listener.address == str(sock_dir / "jobs")
                await channel.send(number)
                assert await channel.recv(int, timeout=5) == -number
        listener.close()
        await serving
        assert seen == [0, 1, 2]
        assert listener.is_closed
        assert not (sock_dir / "jobs").exists()

    face.run(scenario)


def test_large_messages_arrive_whole_and_in_order(face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.channelpair(max_message_size=8 << 20)
        async with one, other:
            large = os.urandom(1 << 20) * 7
            sending = asyncio.create_task(one.send_bytes(large, timeout=10))
            assert await other.recv_bytes(timeout=10) == large
            await sending
            await one.send(1)
            assert await other.recv(int, timeout=5) == 1

    face.run(scenario)


def test_a_large_message_that_stalls_and_comes_in_pieces_is_kept_with_its_descriptors(
    face: Face, sock_dir: Path
) -> None:
    async def scenario(face: Face) -> None:
        content = os.urandom(1 << 20)
        before = len(open_descriptors())
        async with hostile(face, sock_dir, "stream", max_fds=2) as (raw, served):
            data = frame(content, fds=2) + frame(b"next", fds=1)
            raw.send(hello())
            with file_of(b"one") as one, file_of(b"two") as two:
                socket.send_fds(raw, [data[:100]], [one.fileno(), two.fileno()])
            sent = 100
            while sent < len(content):
                with pytest.raises(SocketTimeoutError):
                    await served.recv_bytes_fds(timeout=0.01)
                if not face.is_blocking:
                    receiving = asyncio.create_task(served.recv_bytes_fds())
                    await asyncio.sleep(0.01)
                    receiving.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await receiving
                sent += raw.send(data[sent : min(sent + 150_000, len(content) + 8)])
            with file_of(b"three") as three:
                socket.send_fds(raw, [data[len(content) + 8 :]], [three.fileno()])
            for wanted, names in ((content, [b"one", b"two"]), (b"next", [b"three"])):
                got, fds = await served.recv_bytes_fds(timeout=5)
                assert got == wanted
                assert [os.pread(fd.fileno(), 9, 0) for fd in fds] == names
                for fd in fds:
                    fd.close()
        assert len(open_descriptors()) == before

    face.run(scenario)


def test_a_large_message_with_descriptors_arrives_from_a_channel_whatever_holds_it(face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.channelpair(max_fds=1)
        async with one, other:
            content = os.urandom(1 << 20)
            for data in (content, bytearray(content), memoryview(content).cast("I")):
                with file_of(b"x") as file:
                    sending = asyncio.create_task(one.send_bytes(data, fds=[file], timeout=10))
                    got, (fd,) = await other.recv_bytes_fds(timeout=10)
                    await sending
                assert got == content
                assert os.pread(fd.fileno(), 9, 0) == b"x"
                fd.close()
            sending = asyncio.create_task(one.send(content[:-9], timeout=10))
            assert await other.recv(bytes, timeout=10) == content[:-9]
            await sending

    face.run(scenario)


def test_a_close_in_the_middle_of_a_large_message_ends_both_sides(face: Face, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        before = len(open_descriptors())
        async with hostile(face, sock_dir, "stream", max_fds=1) as (raw, served):
            with file_of(b"x") as file:
                socket.send_fds(raw, [hello()], [])
                socket.send_fds(raw, [frame(bytes(1 << 20), fds=1)[:100_000]], [file.fileno()])
            receiving = asyncio.create_task(served.recv_bytes_fds())
            await soon(lambda: len(open_descriptors()) > before)
            await asyncio.sleep(0.02)
            served.close()
            with pytest.raises(ClosedError):
                await receiving
        await soon(lambda: len(open_descriptors()) == before)

    face.run(scenario)


def test_a_sender_that_leaves_in_the_middle_of_a_large_message_is_gone_not_ended(face: Face, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with hostile(face, sock_dir, "stream") as (raw, served):
            raw.send(hello() + frame(bytes(1 << 20))[:100_000])
            raw.close()
            with pytest.raises(PeerGoneError, match="after 100000 bytes of a message of at least 1048584"):
                await served.recv_bytes(timeout=5)

    face.run(scenario)


def test_one_waits_to_receive_while_another_sends_first(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with face.listen_channel(sock_dir / "jobs", kind) as listener:
            async with await face.connect_channel(sock_dir / "jobs", kind) as client:
                receiving = asyncio.create_task(client.recv(int, timeout=5))
                sending = asyncio.create_task(client.send(1, timeout=5))
                await asyncio.sleep(0.02)
                assert not sending.done()  # nobody has accepted, so that nobody knows what it takes
                async with await listener.accept(timeout=5) as served:
                    await sending
                    assert await served.recv(int, timeout=5) == 1
                    await served.send(2)
                    assert await receiving == 2

    face.run(scenario)


# --- refusals that are about one message ---------------------------------------------------------------


def test_a_wrong_message_is_named_by_its_field_and_the_channel_lives(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with linked(face, sock_dir, kind, max_fds=1) as (client, served):
            before = len(open_descriptors())
            with file_of(b"x") as file:
                await client.send({"type": "Job", "id": "no"}, fds=[file])
            with pytest.raises(InvalidMessageError, match=r"Expected `int`, got `str` - at `\$\.id`") as caught:
                await served.recv_fds(Job, timeout=5)
            assert b"no" in caught.value.data
            assert len(open_descriptors()) == before
            await client.send_bytes(b"plain")
            with pytest.raises(InvalidMessageError, match="receive with recv_bytes"):
                await served.recv(timeout=5)
            await client.send(1)
            with pytest.raises(InvalidMessageError, match="receive with recv"):
                await served.recv_bytes(timeout=5)
            await client.send(Job(2))
            assert await served.recv(Job, timeout=5) == Job(2)

    face.run(scenario)


def test_a_type_that_cannot_be_received_costs_no_message(face: Face, kind: str) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.channelpair(kind)
        async with one, other:
            await one.send(1)
            with pytest.raises(TypeError):
                await other.recv(Job | Point | int, timeout=5)
            assert await other.recv(timeout=5) == 1

    face.run(scenario)


def test_a_message_too_large_is_refused_at_the_sender_with_bound_and_fix(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        options = {"max_message_size": 100_000}
        async with linked(face, sock_dir, kind, options, max_message_size=1000) as (client, served):
            with pytest.raises(MessageTooLongError, match="the other side's max_message_size 1000; raise it there"):
                await client.send_bytes(bytes(1001), timeout=5)
            with pytest.raises(MessageTooLongError, match="this side's max_message_size 1000"):
                await served.send_bytes(bytes(1001), timeout=5)
            with pytest.raises(InvalidMessageError, match="cannot be encoded"):
                await client.send(object())
            await client.send_bytes(bytes(1000))
            assert len(await served.recv_bytes(timeout=5)) == 1000

    face.run(scenario)


def test_a_packet_is_bounded_by_the_send_buffer_and_the_text_says_what_to_do(face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.channelpair("seqpacket", max_message_size=1 << 20)
        async with one, other:
            with pytest.raises(MessageTooLongError, match='that one packet carries here; use type="stream"') as caught:
                await one.send_bytes(bytes(1 << 19), timeout=5)
            most = int(str(caught.value).split("exceeds the ")[1].split()[0])
            await one.send_bytes(bytes(most), timeout=5)
            assert len(await other.recv_bytes(timeout=5)) == most
            with pytest.raises(MessageTooLongError):
                await one.send_bytes(bytes(most + 1), timeout=5)

    face.run(scenario)


@pytest.mark.parametrize("options", [{"max_message_size": 0}, {"max_fds": 254}, {"type": "datagram"}])
def test_options_that_cannot_be_kept_are_refused_and_nothing_stays(
    face: Face, options: dict[str, Any], sock_dir: Path
) -> None:
    async def scenario(face: Face) -> None:
        with pytest.raises(ValueError):
            face.channelpair(**options)
        with pytest.raises(ValueError):
            face.listen_channel(sock_dir / "jobs", **options)
        async with face.listen_channel(sock_dir / "there"):
            with pytest.raises(ValueError):
                await face.connect_channel(sock_dir / "there", **options)

    face.run(scenario)


# --- descriptors -------------------------------------------------------------------------------------


def test_descriptors_come_with_their_own_message(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with linked(face, sock_dir, kind, max_fds=3) as (client, served):
            files = [file_of(bytes((65 + index,))) for index in range(6)]
            await client.send("none")
            await client.send("two", fds=files[:2])
            await client.send_bytes(b"none")
            await client.send_bytes(b"three" * 10_000, fds=[file.fileno() for file in files[2:5]])
            await client.send("one", fds=files[5:])
            await client.send("none")
            for file in files:
                file.close()

            def letters(fds: list[hostline.Fd]) -> bytes:
                found = b"".join(os.pread(fd.fileno(), 1, 0) for fd in fds)
                assert not any(os.get_inheritable(fd.fileno()) for fd in fds)
                for fd in fds:
                    fd.close()
                return found

            assert await served.recv(timeout=5) == "none"
            value, fds = await served.recv_fds(str, timeout=5)
            assert (value, letters(fds)) == ("two", b"AB")
            assert await served.recv_bytes_fds(timeout=5) == (b"none", [])
            data, fds = await served.recv_bytes_fds(timeout=5)
            assert (len(data), letters(fds)) == (50_000, b"CDE")
            value, fds = await served.recv_fds(timeout=5)
            assert (value, letters(fds)) == ("one", b"F")
            assert await served.recv_fds(timeout=5) == ("none", [])

    face.run(scenario)


def test_descriptors_that_are_not_received_as_such_are_closed_and_said(face: Face, kind: str) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.channelpair(kind, max_fds=1)
        async with one, other:
            with file_of(b"x") as file:
                before = len(open_descriptors())
                await one.send(1, fds=[file])
                await one.send(2)
                with pytest.raises(DescriptorError, match="receive with recv_fds"):
                    await other.recv(timeout=5)
                assert len(open_descriptors()) == before
                assert await other.recv(timeout=5) == 2
                with pytest.raises(DescriptorError, match="exceed the max_fds 1 that the other side takes"):
                    await one.send(3, fds=[file, file])
                await one.send(4)
                assert await other.recv(timeout=5) == 4

    face.run(scenario)


def test_descriptors_of_messages_that_nobody_received_are_closed_with_the_channel(face: Face, kind: str) -> None:
    async def scenario(face: Face) -> None:
        before = len(open_descriptors())
        one, other = face.channelpair(kind, max_fds=1)
        async with one, other:
            with file_of(b"x") as file:
                for number in range(3):
                    await one.send(number, fds=[file])
            _, fds = await other.recv_fds(timeout=5)
            fds[0].close()
        assert len(open_descriptors()) == before

    face.run(scenario)


# --- strangers and attackers ---------------------------------------------------------------------------


def test_a_stranger_is_refused_in_words_and_the_channel_closed(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        for action in ("recv", "send"):
            async with hostile(face, sock_dir, kind) as (raw, served):
                raw.send(b"GET / HTTP/1.1\r\n\r\n")
                with pytest.raises(RemoteProtocolError, match="no hostline channel: it begins with b'GET / HT'"):
                    await (served.recv(timeout=5) if action == "recv" else served.send(1, timeout=5))
                assert served.is_closed
                with pytest.raises(ClosedError, match=r"this (channel|connection) to .*jobs was closed"):
                    await served.recv(timeout=5)

    face.run(scenario)


def test_a_client_of_calls_and_a_channel_refuse_each_other_in_words(sock_dir: Path) -> None:
    service = hostline.Service("calls")

    async def main() -> None:
        async with service.serve(sock_dir / "calls"):
            async with await hostline.aio.connect_channel(sock_dir / "calls") as channel:
                with pytest.raises((RemoteProtocolError, PeerGoneError)):
                    await channel.send(1, timeout=5)

    asyncio.run(main())
    with hostline.listen_channel(sock_dir / "jobs") as listener:
        caller = threading.Thread(target=lambda: _call(sock_dir / "jobs"))
        caller.start()
        with listener.accept(timeout=5) as channel, pytest.raises(RemoteProtocolError, match="as hostline's calls do"):
            channel.recv(timeout=5)
        caller.join()


def _call(path: Path) -> None:
    with contextlib.suppress(HostlineError), hostline.connect(path, connect_timeout=2, reconnect_timeout=0) as line:
        line.call("x", timeout=2)


def test_a_message_that_breaks_off_is_no_clean_end(face: Face, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        for data, text in (
            (hello()[:9], "after 9 bytes of the hello of at least 16"),
            (hello() + frame(b"x" * 100)[:50], "after 50 bytes of a message of at least 108"),
            (hello() + frame(b"")[:3], "after 3 bytes of a message of at least 8"),
        ):
            async with hostile(face, sock_dir, "stream") as (raw, served):
                raw.send(data)
                raw.close()
                with pytest.raises(PeerGoneError, match=text):
                    async for _ in served:
                        pass

    face.run(scenario)


def test_a_peer_that_says_nothing_and_leaves_has_ended_cleanly(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        for has_read in (True, False):
            for data in (b"", hello()):
                async with hostile(face, sock_dir, kind) as (raw, served):
                    if has_read:
                        raw.recv(100)
                    if data:
                        raw.send(data)
                    raw.close()
                    assert [value async for value in served] == []

    face.run(scenario)


def test_a_peer_that_left_our_messages_unread_has_not_ended_cleanly(face: Face, kind: str) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.channelpair(kind)
        async with one, other:
            await other.send(1)
            await one.send(2)
            await other.send(3)
            other.close()
            assert [await one.recv(timeout=5) for _ in range(2)] == [1, 3]
            for _ in range(2):
                with pytest.raises(PeerGoneError, match="left messages unread"):
                    await one.recv(timeout=5)

    face.run(scenario)


def test_a_send_to_a_side_that_closes_without_a_hello_says_why_that_may_be(
    face: Face, kind: str, sock_dir: Path
) -> None:
    async def scenario(face: Face) -> None:
        async with face.listen(sock_dir / "jobs", kind) as listener:
            async with await face.connect_channel(sock_dir / "jobs", kind) as client:
                (await listener.accept(timeout=5)).close()
                with pytest.raises(PeerGoneError, match="closed before it introduced itself: it does not admit"):
                    await client.send(1, timeout=5)

    face.run(scenario)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (frame(b"x", kind=9), "kind 9 is unknown"),
        (HEADER.pack(101, 1, 0, 0), "exceeds max_message_size 100"),
        (frame(b"x", fds=2), "announces 2 descriptors, and 0 came"),
        (frame(b"x", fds=3), "exceeds max_fds 2"),
    ],
)
def test_a_violation_ends_the_channel_behind_what_was_good(
    face: Face, kind: str, data: bytes, text: str, sock_dir: Path
) -> None:
    async def scenario(face: Face) -> None:
        async with hostile(face, sock_dir, kind, max_message_size=100, max_fds=2) as (raw, served):
            for part in (hello(), frame(b"good"), data):
                raw.send(part)
            assert await served.recv_bytes(timeout=5) == b"good"
            with pytest.raises(RemoteProtocolError, match=text):
                await served.recv_bytes(timeout=5)
            assert served.is_closed

    face.run(scenario)


def test_no_hostile_peer_costs_a_descriptor(face: Face, kind: str, sock_dir: Path) -> None:
    """Unsolicited, too many, too few, and with half a message: whatever came is closed."""
    message = frame(b"x" * 50, fds=1)
    attacks: list[list[tuple[bytes, int]]] = [
        [(hello(), 1)],
        [(hello(), 0), (frame(b"x"), 1)],
        [(hello(), 0), (frame(b"x", fds=1), 2)],
        [(hello(), 0), (frame(b"x", fds=2), 1)],
        [(hello(), 0), (frame(b"x"), 5)],
        [(hello(), 0), (message[:4], 1)],
        [(hello(), 0), (message[:20], 1)],
        [(hello(), 0), (message[:20], 1), (message[20:], 1)],
        [(b"GET / HTTP/1.1\r\n", 1)],
        [(hello(), 0), (frame(b"x", fds=1, kind=7), 1)],
    ]

    async def scenario(face: Face) -> None:
        async with face.listen_channel(sock_dir / "jobs", kind, max_fds=2, max_message_size=100) as listener:
            with file_of(b"x") as file:
                before = len(open_descriptors())
                for _ in range(5):
                    for attack in attacks:
                        with socket.socket(socket.AF_UNIX, KERNEL_TYPES[kind]) as raw:
                            raw.connect(str(sock_dir / "jobs"))
                            for data, count in attack:
                                fds = file.fileno().to_bytes(4, "little") * count
                                raw.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if count else [])
                        async with await listener.accept(timeout=5) as served:
                            with pytest.raises((RemoteProtocolError, DescriptorError, PeerGoneError)):
                                for _ in range(2):  # what was good before the violation comes first
                                    await served.recv_bytes(timeout=5)
                assert len(open_descriptors()) == before

    face.run(scenario)


def test_a_sender_killed_in_the_middle_is_an_error_and_leaks_nothing(face: Face, sock_dir: Path) -> None:
    program = (
        "import sys, os, hostline\n"
        "channel = hostline.connect_channel(sys.argv[1], max_fds=1)\n"
        "channel.send('ready', fds=[0])\n"
        "channel.send_bytes(bytes(1 << 20), fds=[0])\n"
    )

    async def scenario(face: Face) -> None:
        before = len(open_descriptors())
        async with face.listen_channel(sock_dir / "jobs", max_fds=1) as listener:
            process = await asyncio.to_thread(start, program, str(sock_dir / "jobs"))
            async with await listener.accept(timeout=15) as served:
                value, fds = await served.recv_fds(str, timeout=15)
                assert value == "ready"
                fds[0].close()
                # The message does not fit into the socket's buffer, so that its sender is in the middle of it now.
                await soon(lambda: _state(process.pid) == "S")
                process.kill()
                process.wait()
                with pytest.raises(PeerGoneError, match="bytes of a message of at least 1048584"):
                    await served.recv_bytes_fds(timeout=5)
        assert len(open_descriptors()) == before

    face.run(scenario)


def start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program, *arguments])


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.root
def test_another_user_is_refused_unless_admitted(sock_dir: Path) -> None:
    sock_dir.chmod(0o755)
    path = sock_dir / "jobs"

    def client() -> str:
        try:
            with hostline.connect_channel(path, server=Peers(uids=[0])) as channel:
                channel.send("hello", timeout=5)
                return f"sent as {os.getuid()}"
        except HostlineError as error:
            return type(error).__name__

    with hostline.listen_channel(path, mode=0o666, allow=Peers(uids=[NOBODY])) as listener:
        heard: list[Any] = []

        def serve() -> None:
            with listener.accept(timeout=15) as channel:
                heard.extend((channel.peer.uid, channel.recv(str, timeout=5)))

        thread = threading.Thread(target=serve)
        thread.start()
        assert run_as(NOBODY, client) == f"sent as {NOBODY}"
        thread.join()
        assert heard == [NOBODY, "hello"]
        with pytest.raises(PeerRefusedError):
            hostline.connect_channel(path, server=Peers(uids=[NOBODY]))


# --- time --------------------------------------------------------------------------------------------


def test_a_receive_that_gave_up_in_the_middle_loses_nothing(face: Face, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with hostile(face, sock_dir, "stream", max_fds=1) as (raw, served):
            data = frame(b"x" * 100, fds=1)
            raw.send(hello()[:5])
            with pytest.raises(SocketTimeoutError):
                await served.recv(timeout=0.01)
            raw.send(hello()[5:])
            with file_of(b"x") as file:
                socket.send_fds(raw, [data[:3]], [file.fileno()])
            for start, end in ((3, 20), (20, 107)):
                with pytest.raises(SocketTimeoutError):
                    await served.recv_bytes_fds(timeout=0.01)
                raw.send(data[start:end])
            if not face.is_blocking:
                receiving = asyncio.create_task(served.recv_bytes_fds())
                await asyncio.sleep(0.01)
                receiving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await receiving
            raw.send(data[107:] + frame(b"next"))
            got, fds = await served.recv_bytes_fds(timeout=5)
            assert (got, len(fds)) == (b"x" * 100, 1)
            fds[0].close()
            assert await served.recv_bytes(timeout=5) == b"next"

    face.run(scenario)


def test_a_send_cut_off_in_the_middle_is_refused_ever_after_and_says_so(face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.channelpair(max_message_size=4 << 20)
        async with one, other:
            with pytest.raises(SocketTimeoutError):
                await one.send_bytes(bytes(4 << 20), timeout=0.05)
            for _ in range(2):
                with pytest.raises(LocalProtocolError, match=r"an earlier send was cut off after \d+ of 4194312 bytes"):
                    await one.send(1, timeout=1)
            await other.send("the other way works")
            assert await one.recv(str, timeout=5) == "the other way works"

    face.run(scenario)


def test_a_cancelled_send_is_like_one_that_gave_up(loop_face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.channelpair(max_message_size=4 << 20)
        async with one, other:
            sending = asyncio.create_task(one.send_bytes(bytes(4 << 20)))
            await asyncio.sleep(0.02)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            with pytest.raises(LocalProtocolError, match="cut off"):
                await one.send(1)

    loop_face.run(scenario)


def test_a_packet_that_was_not_taken_in_time_leaves_the_channel_usable(face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.channelpair("seqpacket")
        async with one, other:
            count = 0
            with pytest.raises(SocketTimeoutError):
                while True:
                    await one.send_bytes(bytes(50_000), timeout=0.02)
                    count += 1
            for _ in range(count):
                assert len(await other.recv_bytes(timeout=5)) == 50_000
            await one.send("after")
            assert await other.recv(str, timeout=5) == "after"

    face.run(scenario)


@pytest.mark.alone
def test_a_silent_peer_costs_no_more_than_the_timeout(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with hostile(face, sock_dir, kind) as (_, served):
            receiving = asyncio.create_task(served.recv(timeout=0.3))
            started = time.monotonic()
            with pytest.raises(SocketTimeoutError):
                await served.send(1, timeout=0.05)  # while another waits for the same hello
            assert time.monotonic() - started < 0.25
            with pytest.raises(SocketTimeoutError):
                await receiving

    face.run(scenario)


def test_a_close_ends_a_call_that_waits(face: Face, kind: str) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.channelpair(kind)
        async with one, other:
            receiving = asyncio.create_task(one.recv(timeout=10))
            await asyncio.sleep(0.05)
            one.close()
            with pytest.raises(ClosedError):
                await receiving
            with pytest.raises(ClosedError):
                await one.send(1)
            with pytest.raises(ClosedError):
                one.fileno()
            one.close()
            assert "closed" in repr(one)

    face.run(scenario)


def test_many_threads_share_a_blocking_channel(kind: str) -> None:
    one, other = hostline.channelpair(kind)  # type: ignore[arg-type]
    got: list[int] = []
    with one, other:
        receivers = [threading.Thread(target=lambda: got.extend(other.messages(int))) for _ in range(3)]
        senders = [
            threading.Thread(target=lambda start=start: [one.send(n) for n in range(start, start + 200)])
            for start in (0, 200, 400)
        ]
        for thread in receivers + senders:
            thread.start()
        for thread in senders:
            thread.join()
        one.shutdown()
        for thread in receivers:
            thread.join()
    assert sorted(got) == [*range(600)]


def test_a_pair_works_across_a_fork(kind: str) -> None:
    one, other = hostline.channelpair(kind)  # type: ignore[arg-type]
    with one, other:
        one._receiving.acquire()  # as if a thread of the parent were receiving at the fork
        pid = os.fork()
        if pid == 0:
            try:
                other.close()
                one.send(one.recv(int, timeout=5) + 1, timeout=5)
            finally:
                os._exit(0)
        one._receiving.release()
        other.send(41)
        assert other.recv(int, timeout=5) == 42
        os.waitpid(pid, 0)


def test_a_peer_that_floods_does_not_keep_the_loop_for_itself(loop_face: Face, kind: str) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.channelpair(kind)
        async with one, other:
            turns = 0

            async def others() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0)
                    turns += 1

            for receive_many in (False, True):
                stop = threading.Event()
                flooding = threading.Thread(target=flood, args=(one.connection.socket, stop))
                flooding.start()
                ticking = asyncio.create_task(others())
                turns, received = 0, 0
                while received < 3000:
                    received += len(await other.recv_many(64)) if receive_many else 1 + await other.recv(int)
                stop.set()
                ticking.cancel()
                await asyncio.wait([ticking])
                is_empty = False
                while flooding.is_alive() or not is_empty:
                    try:
                        is_empty = not await other.recv_many(1000, timeout=0.01)
                    except SocketTimeoutError:
                        is_empty = True
                flooding.join()
                assert turns >= 5

    loop_face.run(scenario)


def flood(sock: socket.socket, stop: threading.Event) -> None:
    """Send the value 0 again and again from a thread, as fast as it is taken."""
    data = frame(b"\x00", kind=1) * (500 if sock.type == socket.SOCK_STREAM else 1)
    rest = data
    while not stop.is_set() or len(rest) < len(data):
        with contextlib.suppress(BlockingIOError):
            rest = rest[sock.send(rest) :] or data


@pytest.mark.parametrize("seed", range(3))
def test_descriptors_find_their_message_however_a_stream_is_cut(face: Face, seed: int, sock_dir: Path) -> None:
    """Against the kernel itself: random messages, cut at random, with descriptors whose files name their message."""
    random = Random(seed)

    async def scenario(face: Face) -> None:
        before = len(open_descriptors())
        async with hostile(face, sock_dir, "stream", max_fds=4) as (raw, served):
            raw.send(hello())
            for start in range(0, 120, 12):
                sizes = [random.choice((0, 1, 7, 100, 3000)) for _ in range(12)]
                counts = [random.choice((0, 0, 1, 4)) for _ in range(12)]
                plain = b""
                for index, (size, count) in enumerate(zip(sizes, counts, strict=True), start):
                    data = frame(bytes(size), fds=count)
                    files = [file_of(b"%d.%d" % (index, number)) for number in range(count)]
                    if files:
                        if plain:
                            raw.send(plain)
                        plain, cut = b"", random.randint(1, len(data))
                        socket.send_fds(raw, [data[:cut]], [file.fileno() for file in files])
                        data = data[cut:]
                        for file in files:
                            file.close()
                    plain += data
                    if plain and random.random() < 0.7:
                        cut = random.randint(0, len(plain))
                        raw.send(plain[:cut])
                        plain = plain[cut:]
                if plain:
                    raw.send(plain)
                for index, (size, count) in enumerate(zip(sizes, counts, strict=True), start):
                    data, fds = await served.recv_bytes_fds(timeout=5)
                    assert len(data) == size
                    assert [os.pread(fd.fileno(), 20, 0) for fd in fds] == [b"%d.%d" % (index, n) for n in range(count)]
                    for fd in fds:
                        fd.close()
        assert len(open_descriptors()) == before

    face.run(scenario)


# --- many in one call ----------------------------------------------------------------------------------


def test_many_values_in_one_call(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with linked(face, sock_dir, kind) as (client, served):
            jobs = [Job(number, "x" * 150) for number in range(100)]
            assert await client.send_many(jobs, timeout=5) == 100
            got: list[Job] = []
            calls = 0
            while len(got) < 100:
                some = await served.recv_many(32, Job, timeout=5)
                assert 1 <= len(some) <= 32
                got += some
                calls += 1
            assert got == jobs
            assert calls <= 6
            assert await client.send_many([]) == 0
            with pytest.raises(SocketTimeoutError):
                await served.recv_many(1, timeout=0.01)
            with pytest.raises(ValueError, match="max_count"):
                await served.recv_many(0)
            client.shutdown()
            with pytest.raises(EndOfStream):
                await served.recv_many(5, timeout=5)

    face.run(scenario)


def test_a_wrong_one_of_many_is_raised_in_its_place(face: Face, kind: str) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.channelpair(kind, max_fds=1)
        async with one, other:
            await one.send_many([1, 2, "three", 4])
            with file_of(b"x") as file:
                before = len(open_descriptors())
                await one.send(5, fds=[file])
            await one.send(6)
            assert await other.recv_many(10, int, timeout=5) == [1, 2]
            with pytest.raises(InvalidMessageError) as caught:
                await other.recv_many(10, int, timeout=5)
            assert caught.value.data == b"\xa5three"
            assert await other.recv_many(10, int, timeout=5) == [4]
            with pytest.raises(DescriptorError):
                await other.recv(int, timeout=5)
            assert await other.recv_many(10, int, timeout=5) == [6]
            assert len(open_descriptors()) == before - 1

    face.run(scenario)


def test_the_count_of_many_that_were_not_all_taken_is_exact(face: Face, kind: str) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.channelpair(kind)
        async with one, other:
            with pytest.raises(SocketTimeoutError) as caught:
                await one.send_many([b"%06d" % number + bytes(10_000) for number in range(500)], timeout=0.05)
            sent = caught.value.sent_count
            assert sent is not None
            assert 0 < sent < 500
            if kind == "stream":
                with contextlib.suppress(LocalProtocolError):  # unless the cut fell between two messages
                    await one.send(1, timeout=0)
            one.close()
            got = []
            with contextlib.suppress(EndOfStream, PeerGoneError):
                while True:
                    got += await other.recv_many(64, bytes, timeout=5)
            assert [int(data[:6]) for data in got] == [*range(sent)]

    face.run(scenario)


def test_a_cancelled_send_of_many_says_how_many(loop_face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair("seqpacket")
        async with one, other:
            counts = []

            async def send() -> None:
                try:
                    await one.send_many([bytes(50_000)] * 100)
                except asyncio.CancelledError as error:
                    counts.append(vars(error)["sent_count"])
                    raise

            sending = asyncio.create_task(send())
            await asyncio.sleep(0.02)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            one.close()
            assert len([data async for data in other]) == counts[0] > 0

    loop_face.run(scenario)


def test_errors_before_the_first_of_many_count_none(face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.channelpair()
        async with one, other:
            with pytest.raises(InvalidMessageError) as caught:
                await one.send_many([1, object()])
            assert caught.value.sent_count == 0
            assert await one.send_many([2]) == 1
            assert await other.recv_many(5) == [2]
            other.close()
            with pytest.raises(PeerGoneError) as gone:
                await one.send_many([3])
            assert gone.value.sent_count == 0

    face.run(scenario)


def test_many_packets_on_a_raw_connection(face: Face, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with connected(face, sock_dir, "seqpacket") as (client, served):
            packets = [b"%d" % number for number in range(40)] + [b""]
            assert await client.send_many(packets) == 41
            got = []
            while len(got) < 41:
                got += await served.recv_many(32, timeout=5)
            assert got == packets
            await client.send_many([b"fits", b"does not fit", b"ok"])
            assert await served.recv_many(10, 5, timeout=5) == [b"fits"]
            with pytest.raises(TruncatedError):
                await served.recv_many(10, 5, timeout=5)
            assert await served.recv_many(10, 5, timeout=5) == [b"ok"]
            with pytest.raises(MessageTooLongError) as caught:
                await client.send_many([b"one", bytes(1 << 20), b"three"])
            assert caught.value.sent_count == 1
            await client.send(b"two")
            client.close()
            assert await served.recv_many(10, timeout=5) == [b"one", b"two"]
            with pytest.raises(EndOfStream):
                await served.recv_many(10, timeout=5)

    face.run(scenario)


def test_many_pieces_on_a_raw_stream_and_no_packets_there(face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair()
        async with one, other:
            assert await one.send_many([b"", b"a", b"", b"bc"] * 1000) == 4000
            one.shutdown()
            got = bytearray()
            async for data in other:
                got += data
            assert got == b"abc" * 1000
            with pytest.raises(LocalProtocolError, match="a stream has no packets"):
                await other.recv_many(1)

    face.run(scenario)


def test_descriptors_among_many_packets(face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair("seqpacket", max_fds=1)
        async with one, other:
            with file_of(b"x") as file:
                before = len(open_descriptors())
                await one.send(b"plain")
                await one.send(b"with", fds=[file])
                (first, none), (second, fds) = await other.recv_many_fds(5, timeout=5)
                assert (first, none, second, len(fds)) == (b"plain", [], b"with", 1)
                fds[0].close()
                await one.send(b"plain")
                await one.send(b"with", fds=[file])
                assert await other.recv_many(5, timeout=5) == [b"plain"]
                with pytest.raises(DescriptorError, match="recv_many_fds"):
                    await other.recv_many(5, timeout=5)
                assert other.is_closed
                assert len(open_descriptors()) <= before

    face.run(scenario)


def test_many_datagrams_to_a_place(face: Face, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with (
            face.listen(sock_dir / "to", "datagram", credentials=True, max_fds=1) as receiver,
            face.listen(sock_dir / "from", "datagram") as sender,
        ):
            with pytest.raises(LocalProtocolError, match="not connected") as nowhere:
                await sender.send_many([b"x"])
            assert nowhere.value.sent_count == 0
            assert await sender.send_many([b"a", b"", b"too long", b"d"], to=sock_dir / "to", timeout=5) == 4
            got = await receiver.recv_many(10, 5, timeout=5)
            assert [datagram.data for datagram in got] == [b"a", b""]
            assert got[0].peer is not None
            assert got[0].peer.pid == os.getpid()
            with pytest.raises(TruncatedError):
                await receiver.recv(5, timeout=5)
            assert [datagram.data for datagram in await receiver.recv_many(10, 5, timeout=5)] == [b"d"]
            with pytest.raises(SocketTimeoutError) as caught:
                await sender.send_many([b"%d" % number for number in range(1000)], to=sock_dir / "to", timeout=0.05)
            sent = caught.value.sent_count
            assert sent is not None
            assert 0 < sent < 1000
            left = []
            with contextlib.suppress(SocketTimeoutError):
                while True:
                    left += await receiver.recv_many(64, timeout=0)
            assert [datagram.data for datagram in left] == [b"%d" % number for number in range(sent)]

    face.run(scenario)


def test_many_datagrams_on_a_connected_socket(face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair("datagram")
        async with one, other:
            sending = asyncio.create_task(one.send_many([b"%d" % number for number in range(300)], timeout=10))
            got = []
            while len(got) < 300:
                got += [datagram.data for datagram in await other.recv_many(64, timeout=5)]
            assert await sending == 300
            assert got == [b"%d" % number for number in range(300)]

    face.run(scenario)
