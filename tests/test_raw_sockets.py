"""One contract for raw sockets: every type, both faces, both loops."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hostline.aio import sockets as aio_sockets
from hostline.errors import (
    AccessDeniedError,
    AddressNotFoundError,
    ClosedError,
    ConnectRefusedError,
    DescriptorError,
    EndOfStream,
    LocalProtocolError,
    MessageTooLongError,
    PeerGoneError,
    SocketError,
    SocketTimeoutError,
    TruncatedError,
)
from hostline.sync import sockets as sync_sockets
from hostline.unix import room
from hostline.unix.address import AbstractAddress, PathAddress
from hostline.unix.credentials import Peer, Peers
from hostline.unix.passing.descriptors import Fd, close_all
from hostline.unix.room import Room
from tests.faces import Face, connected, every_millisecond, face_names, make_face, soon
from tests.leaks import open_descriptors, wait_until

CONNECTED = ("stream", "seqpacket")


@pytest.fixture(params=face_names())
def face(request: pytest.FixtureRequest) -> Face:
    return make_face(request.param)


@pytest.fixture(params=[name for name in face_names() if name != "sync"])
def loop_face(request: pytest.FixtureRequest) -> Face:
    return make_face(request.param)


@pytest.fixture(params=CONNECTED)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- bytes -------------------------------------------------------------------------------------------


def test_what_is_sent_arrives_in_both_directions(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with connected(face, sock_dir, kind) as (client, served):
            for data in (b"one", bytearray(b"two"), memoryview(b"three")):
                await client.send(data)
                assert await served.recv(timeout=5) == bytes(data)
                await served.send(data, timeout=5)
                assert await client.recv(timeout=5) == bytes(data)

    face.run(scenario)


def test_packets_keep_their_boundaries_and_streams_their_order(face: Face, kind: str) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair(kind)
        async with one, other:
            messages = [b"a", b"bb", b"c" * 1000, b"d"]
            for message in messages:
                await one.send(message)
            one.shutdown()
            got = [data async for data in other]
            assert got == messages if kind == "seqpacket" else b"".join(got) == b"".join(messages)

    face.run(scenario)


def test_an_empty_packet_is_delivered_and_is_no_end(face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair("seqpacket")
        async with one, other:
            for data in (b"", b"x", b""):
                await one.send(data)
            one.close()
            assert [data async for data in other] == [b"", b"x", b""]

    face.run(scenario)


def test_an_empty_send_on_a_stream_sends_nothing(face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair()
        async with one, other:
            await one.send(b"")
            await one.send(b"x")
            assert await other.recv(timeout=5) == b"x"

    face.run(scenario)


def test_a_large_send_on_a_stream_arrives_whole(face: Face, sock_dir: Path) -> None:
    data = os.urandom(1 << 16) * 80

    async def scenario(face: Face) -> None:
        async with connected(face, sock_dir, "stream") as (client, served):

            async def receive() -> bytes:
                got = bytearray()
                while len(got) < len(data):
                    got += await served.recv(timeout=5)
                return bytes(got)

            receiving = asyncio.create_task(receive())
            # A view of wider elements: what counts is bytes.
            await client.send(memoryview(data).cast("I"), timeout=10)
            assert await receiving == data

    face.run(scenario)


def test_the_end_is_raised_each_time_and_only_one_direction_ends(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with connected(face, sock_dir, kind) as (client, served):
            await client.send(b"last")
            client.shutdown()
            assert await served.recv(timeout=5) == b"last"
            for _ in range(2):
                with pytest.raises(EndOfStream):
                    await served.recv(timeout=5)
            await served.send(b"still here")
            assert await client.recv(timeout=5) == b"still here"
            with pytest.raises(PeerGoneError):
                await client.send(b"after shutdown")

    face.run(scenario)


def test_a_packet_that_does_not_fit_is_an_error_and_the_next_is_intact(face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair("seqpacket")
        async with one, other:
            await one.send(b"x" * 101)
            await one.send(b"y" * 100)
            with pytest.raises(TruncatedError, match="100 bytes"):
                await other.recv(100)
            assert await other.recv(100) == b"y" * 100

    face.run(scenario)


def test_a_packet_that_the_kernel_does_not_carry_is_an_error(face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair("seqpacket")
        async with one, other:
            with pytest.raises(MessageTooLongError):
                await one.send(bytes(1 << 22))
            await one.send(b"x")
            assert await other.recv() == b"x"

    face.run(scenario)


def test_a_receive_of_no_bytes_is_refused(face: Face, kind: str) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair(kind)
        async with one, other:
            with pytest.raises(ValueError, match="at least 1"):
                await one.recv(0)

    face.run(scenario)


def test_a_peer_that_leaves_with_data_unread_is_gone(face: Face, kind: str) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair(kind)
        async with one:
            await one.send(b"unread")
            other.close()
            with pytest.raises(PeerGoneError) as caught:
                await one.recv(timeout=5)
            assert caught.value.operation == "recv"
            with pytest.raises(PeerGoneError) as caught:
                await one.send(b"x")
            assert (caught.value.operation, caught.value.socket_type) == ("send", kind)

    face.run(scenario)


def test_a_killed_peer_is_seen_at_once(face: Face, kind: str, sock_dir: Path) -> None:
    program = f"""
import sys, time
from hostline.sync.sockets import connect_socket
with connect_socket(sys.argv[1], {kind!r}) as line:
    line.send(b"here")
    time.sleep(60)
"""

    async def scenario(face: Face) -> None:
        async with face.listen(sock_dir / "s", kind) as listener:
            arguments = [sys.executable, "-c", program, str(sock_dir / "s")]
            with subprocess.Popen(arguments) as process:  # noqa: ASYNC220
                async with await listener.accept(timeout=10) as served:
                    assert await served.recv(timeout=5) == b"here"
                    process.kill()
                    started = time.monotonic()
                    with pytest.raises(EndOfStream):
                        await served.recv(timeout=5)
                    assert time.monotonic() - started < 2

    face.run(scenario)


# --- deadlines ---------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize("timeout", [0.0, 0.15])
def test_a_receive_gives_up_at_its_deadline(face: Face, kind: str, timeout: float) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair(kind)
        async with one, other:
            started, cpu = time.monotonic(), time.process_time()
            with pytest.raises(SocketTimeoutError) as caught:
                await one.recv(timeout=timeout)
            assert timeout - 0.002 <= time.monotonic() - started < timeout + 1
            assert time.process_time() - cpu < 0.1
            assert (caught.value.operation, caught.value.socket_type) == ("recv", kind)
            await other.send(b"later")
            assert await one.recv(timeout=0.0) == b"later"

    face.run(scenario)


@pytest.mark.alone
def test_a_send_gives_up_at_its_deadline(face: Face, kind: str) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair(kind)
        async with one, other:
            started, cpu = time.monotonic(), time.process_time()
            with pytest.raises(SocketTimeoutError) as caught:
                for _ in range(10_000):
                    await one.send(bytes(30_000), timeout=0.2)
            assert 0.198 <= time.monotonic() - started < 5
            assert time.process_time() - cpu < 1
            assert caught.value.operation == "send"

    face.run(scenario)


def test_a_stream_that_was_cut_off_in_the_middle_takes_no_more(face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair()
        async with one, other:
            with pytest.raises(SocketTimeoutError):
                await one.send(bytes(1 << 22), timeout=0.05)
            with pytest.raises(LocalProtocolError, match=r"cut off after \d+ of 4194304 bytes"):
                await one.send(b"x", timeout=5)
            assert len(await other.recv()) > 0

    face.run(scenario)


def test_an_accept_gives_up_at_its_deadline(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with face.listen(sock_dir / "s", kind) as listener:
            for timeout in (0.0, 0.1):
                with pytest.raises(SocketTimeoutError) as caught:
                    await listener.accept(timeout=timeout)
                assert caught.value.operation == "accept"
                assert caught.value.address == str(sock_dir / "s")

    face.run(scenario)


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_that_makes_no_sense_is_refused(face: Face, timeout: float) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair()
        async with one, other:
            with pytest.raises(ValueError, match="timeout"):
                await one.recv(timeout=timeout)
            with pytest.raises(ValueError, match="timeout"):
                await one.send(b"x", timeout=timeout)

    face.run(scenario)


# --- closing -----------------------------------------------------------------------------------------


def test_what_is_closed_says_so(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with face.listen(sock_dir / "s", kind) as listener:
            one, other = face.socketpair(kind)
            async with other:
                for endpoint in (one, listener):
                    assert not endpoint.is_closed
                    endpoint.close()
                    endpoint.close()
                    assert endpoint.is_closed
                    with pytest.raises(ClosedError):
                        endpoint.fileno()
                    assert "closed" in repr(endpoint)
                for use in (one.recv, one.recv_fds, lambda: one.send(b"x"), listener.accept):
                    with pytest.raises(ClosedError):
                        await use()
                with pytest.raises(ClosedError):
                    one.shutdown()
            assert [connection async for connection in listener] == []

    face.run(scenario)


@pytest.mark.parametrize("timeout", [None, 30.0])
@pytest.mark.parametrize("what", ["recv", "recv_fds", "send", "accept", "recv_from", "send datagram", "send to"])
def test_close_wakes_whoever_waits(face: Face, what: str, timeout: float | None, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        path = sock_dir / "s"
        if what == "accept":
            endpoint = face.listen(path)
            others = []
            waiting = endpoint.accept
        elif what == "recv_from":
            endpoint = face.listen(path, "datagram")
            others = []
            waiting = endpoint.recv_from
        elif what in ("send datagram", "send to"):
            receiver = face.listen(path, "datagram")
            endpoint = (
                face.listen(sock_dir / "t", "datagram")
                if what == "send to"
                else await face.connect_socket(path, "datagram")
            )
            others = [receiver]
            to = path if what == "send to" else None

            async def waiting(timeout: float | None) -> None:
                while True:
                    await endpoint.send(b"x", to, timeout=timeout)
        else:
            endpoint, other = face.socketpair(max_fds=1)
            others = [other]

            async def waiting(timeout: float | None) -> None:
                while True:
                    await (endpoint.send(bytes(65536), timeout=timeout) if what == "send" else recv(timeout=timeout))

            recv = getattr(endpoint, what, None)
        task = asyncio.create_task(waiting(timeout=timeout))
        await asyncio.sleep(0.1)
        assert not task.done()
        endpoint.close()
        assert not path.exists() or what.startswith("send")
        with pytest.raises(ClosedError):
            await asyncio.wait_for(task, 5)
        for other in others:
            other.close()

    face.run(scenario)


def test_leaving_the_block_unlinks_the_socket_file(face: Face, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        for kind in ("stream", "seqpacket", "datagram"):
            async with face.listen(sock_dir / "s", kind) as endpoint:
                assert (sock_dir / "s").is_socket()
                assert endpoint.type == kind
            assert not (sock_dir / "s").exists()

    face.run(scenario)


def test_accepting_ends_when_somebody_shuts_the_listening_socket_down(face: Face, kind: str, sock_dir: Path) -> None:
    """Poll goes on calling it readable, and an accept that does not wait says only that there is nobody."""

    async def scenario(face: Face) -> None:
        async with face.listen(sock_dir / "s", kind) as listener:
            listener.socket.shutdown(socket.SHUT_RDWR)
            with pytest.raises(SocketError, match="shut the listening socket down"):
                await listener.accept(timeout=5)

    face.run(scenario)


@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_a_listen_that_finds_no_descriptor_for_its_wakeup_leaves_nothing(
    kind: str, sock_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "eventfd", refuse)
        with pytest.raises(SocketError, match="no free descriptor"):
            sync_sockets.listen(sock_dir / "s", kind)
        with pytest.raises(SocketError, match="no free descriptor"):
            sync_sockets.socketpair("datagram")
    assert not (sock_dir / "s").exists()
    sync_sockets.listen(sock_dir / "s", kind).close()


def test_iterating_a_listener_ends_when_it_is_closed(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        listener = face.listen(sock_dir / "s", kind)
        accepted = []

        async def serve() -> None:
            async for connection in listener:
                accepted.append(connection)  # noqa: PERF401

        task = asyncio.create_task(serve())
        clients = [await face.connect_socket(sock_dir / "s", kind) for _ in range(3)]
        await soon(lambda: len(accepted) == 3)
        listener.close()
        await asyncio.wait_for(task, 5)
        for endpoint in accepted + clients:
            endpoint.close()

    face.run(scenario)


# --- two in one direction, cancellation, threads -----------------------------------------------------


def test_a_second_task_in_the_same_direction_is_refused(loop_face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair(kind)
        async with one, other, face.listen(sock_dir / "s", kind) as listener:
            receiving = asyncio.create_task(one.recv())
            accepting = asyncio.create_task(listener.accept())

            async def flood() -> None:
                while True:
                    await one.send(bytes(60_000))

            sending = asyncio.create_task(flood())
            await asyncio.sleep(0.05)
            with pytest.raises(LocalProtocolError, match="another task is receiving"):
                await one.recv()
            with pytest.raises(LocalProtocolError, match="another task is sending"):
                await one.send(b"x")
            with pytest.raises(LocalProtocolError, match="another task"):
                await listener.accept()
            await other.send(b"for the first")
            assert await receiving == b"for the first"
            for task in (sending, accepting):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    loop_face.run(scenario)


def test_a_cancelled_receive_loses_nothing(loop_face: Face, kind: str) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair(kind)
        async with one, other:
            got = []
            for number in range(200):
                task = asyncio.create_task(one.recv())
                await asyncio.sleep(0)
                if number % 2:
                    await other.send(b"%d," % number)  # ready and cancelled in the same turn
                if number % 3 == 0:
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    got.append(await task)
                except asyncio.CancelledError:
                    pass
            expected = b"".join(b"%d," % number for number in range(1, 200, 2))
            while sum(map(len, got)) < len(expected):
                got.append(await one.recv(timeout=5))
            assert b"".join(got) == expected
            with pytest.raises(SocketTimeoutError):
                await one.recv(timeout=0)

    loop_face.run(scenario)


def test_a_cancelled_accept_loses_nobody(loop_face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with face.listen(sock_dir / "s", kind) as listener:
            accepted, clients = [], []
            for _ in range(50):
                task = asyncio.create_task(listener.accept())
                await asyncio.sleep(0)
                clients.append(await face.connect_socket(sock_dir / "s", kind))
                task.cancel()
                try:
                    accepted.append(await task)
                except asyncio.CancelledError:
                    pass
            while len(accepted) < 50:
                accepted.append(await listener.accept(timeout=5))
            for endpoint in accepted + clients:
                endpoint.close()

    loop_face.run(scenario)


def test_a_send_cancelled_in_the_middle_of_a_stream_ends_it(loop_face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair()
        async with one, other:
            task = asyncio.create_task(one.send(bytes(1 << 22)))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(LocalProtocolError, match="cut off"):
                await one.send(b"x")

    loop_face.run(scenario)


def test_cancelled_waits_leave_no_handler_behind(loop_face: Face, kind: str) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair(kind)
        async with one, other:
            for _ in range(20):
                task = asyncio.create_task(one.recv())
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            assert not asyncio.get_running_loop().remove_reader(one.fileno())

    loop_face.run(scenario)


def test_close_beside_a_cancellation_raises_one_of_the_two_and_nothing_else(loop_face: Face, kind: str) -> None:
    async def scenario(face: Face) -> None:
        for order in ("close", "cancel"):
            one, other = face.socketpair(kind)
            async with other:
                task = asyncio.create_task(one.recv())
                await asyncio.sleep(0)
                for step in (one.close, task.cancel) if order == "close" else (task.cancel, one.close):
                    step()
                with pytest.raises((ClosedError, asyncio.CancelledError)):
                    await task

    loop_face.run(scenario)


def test_a_number_given_to_another_file_at_once_is_not_touched(loop_face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair()
        task = asyncio.create_task(one.recv())
        await asyncio.sleep(0)
        number = one.fileno()
        one.close()
        readable, writable = os.pipe()
        try:
            assert readable == number  # the kernel gives out the lowest
            called = asyncio.Event()
            asyncio.get_running_loop().add_reader(readable, called.set)
            with pytest.raises(ClosedError):
                await task
            os.write(writable, b"x")
            await asyncio.wait_for(called.wait(), 5)
            asyncio.get_running_loop().remove_reader(readable)
        finally:
            os.close(readable)
            os.close(writable)
        other.close()

    loop_face.run(scenario)


def test_many_threads_share_one_connection(kind: str) -> None:
    one, other = sync_sockets.socketpair(kind)  # type: ignore[call-overload]
    each, threads = 200, 4

    def send(number: int) -> None:
        for count in range(each):
            one.send(b"%d:%06d;" % (number, count), timeout=10)

    def answer() -> None:
        for _ in range(each * threads):
            one.recv(1, timeout=10)

    got = bytearray()

    def receive() -> None:
        while len(got) < each * threads * 9:
            got.extend(other.recv(timeout=10))
        for _ in range(each * threads):
            other.send(b"!", timeout=10)

    with one, other:
        workers = [threading.Thread(target=send, args=(number,)) for number in range(threads)]
        workers += [threading.Thread(target=target) for target in (answer, receive)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(15)
    messages = bytes(got).split(b";")[:-1]
    for number in range(threads):
        mine = [message for message in messages if message.startswith(b"%d:" % number)]
        assert mine == [b"%d:%06d" % (number, count) for count in range(each)]


def test_large_sends_of_two_threads_do_not_mix() -> None:
    one, other = sync_sockets.socketpair()
    size = 1 << 20
    with one, other:
        senders = [threading.Thread(target=one.send, args=(letter * size,)) for letter in (b"a", b"b")]
        for sender in senders:
            sender.start()
        got = bytearray()
        while len(got) < 2 * size:
            got += other.recv(1 << 18, timeout=10)
        for sender in senders:
            sender.join(10)
    assert bytes(got) in (b"a" * size + b"b" * size, b"b" * size + b"a" * size)


def test_close_while_many_threads_wait_wakes_every_one(sock_dir: Path) -> None:
    outcomes: list[type[BaseException]] = []

    def wait(call: Any) -> None:
        try:
            call()
        except Exception as error:
            outcomes.append(type(error))

    one, other = sync_sockets.socketpair()
    listener = sync_sockets.listen(sock_dir / "s")
    threads = [threading.Thread(target=wait, args=(call,)) for call in [one.recv] * 5 + [listener.accept] * 5]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    one.close()
    listener.close()
    assert not (sock_dir / "s").exists()
    for thread in threads:
        thread.join(5)
    assert outcomes == [ClosedError] * 10
    other.close()


@pytest.mark.slow
def test_closing_and_using_at_the_same_moment_never_touches_a_strangers_descriptor() -> None:
    outcomes: set[str] = set()

    def use(endpoint: Any) -> None:
        try:
            while True:
                endpoint.recv(timeout=5)
        except Exception as error:
            outcomes.add(type(error).__name__)

    for _ in range(500):
        one, other = sync_sockets.socketpair()
        other.send(b"x")
        threads = [threading.Thread(target=use, args=(one,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        one.close()
        readable, writable = os.pipe()  # takes the number, if it is free
        os.write(writable, b"not yours")
        for thread in threads:
            thread.join(5)
        assert os.read(readable, 100) == b"not yours"
        for fd in (readable, writable):
            os.close(fd)
        other.close()
    assert outcomes == {"ClosedError"}


def test_a_signal_handler_may_close_what_its_own_thread_waits_for(sock_dir: Path) -> None:
    import signal

    for make, wait in (
        (lambda: sync_sockets.listen(sock_dir / "s"), "accept"),
        (lambda: sync_sockets.listen(sock_dir / "s", "datagram"), "recv"),
    ):
        endpoint = make()
        before = signal.signal(signal.SIGALRM, lambda *_, endpoint=endpoint: endpoint.close())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(ClosedError):
                getattr(endpoint, wait)(timeout=10)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert not (sock_dir / "s").exists()


# --- signals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 10.0])
def test_signals_every_millisecond_disturb_nothing(kind: str, timeout: float | None, sock_dir: Path) -> None:
    path = sock_dir / "s"
    rounds = 300

    def echo() -> None:
        for _ in range(3):
            time.sleep(0.02)
            with listener.accept(timeout=10) as served:
                for data in served:
                    served.send(data)

    with sync_sockets.listen(path, kind, backlog=0) as listener:  # type: ignore[call-overload]
        thread = threading.Thread(target=echo)
        with every_millisecond() as seen:
            thread.start()
            for _ in range(3):
                with sync_sockets.connect_socket(path, kind, timeout=10) as client:  # type: ignore[call-overload]
                    for number in range(rounds):
                        client.send(b"%d" % number, timeout=timeout)
                        assert client.recv(timeout=timeout) == b"%d" % number
            thread.join(10)
            started = time.monotonic()
            with pytest.raises(SocketTimeoutError):
                listener.accept(timeout=0.1)
            assert 0.1 <= time.monotonic() - started < 1
        assert len(seen) > 20


def test_signals_do_not_make_a_large_send_or_a_wait_for_it_fail() -> None:
    one, other = sync_sockets.socketpair()
    data = os.urandom(1 << 16) * 64
    got = bytearray()

    def receive() -> None:
        while len(got) < len(data):
            got.extend(other.recv(timeout=10))
            time.sleep(0.0005)

    with one, other, every_millisecond():
        thread = threading.Thread(target=receive)
        thread.start()
        one.send(data)
        thread.join(10)
    assert got == data


# --- who and where -----------------------------------------------------------------------------------


def test_connections_know_type_address_and_peer(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with connected(face, sock_dir, kind) as (client, served):
            for end in (client, served):
                assert end.type == kind
                assert end.address == str(sock_dir / "pair")
                assert (end.peer.pid, end.peer.uid) == (os.getpid(), os.geteuid())
                assert end.socket.fileno() == end.fileno()
                assert str(sock_dir) in repr(end)

    face.run(scenario)


def test_refused_peers_are_closed_and_logged_and_the_next_is_accepted(
    face: Face, kind: str, sock_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="hostline")

    async def scenario(face: Face) -> None:
        async with face.listen(sock_dir / "s", kind, allow=Peers(uids=[54321])) as listener:
            refused = await face.connect_socket(sock_dir / "s", kind)
            with pytest.raises(SocketTimeoutError):
                await listener.accept(timeout=0.1)
            with pytest.raises(EndOfStream):
                await refused.recv(timeout=5)
            refused.close()

    face.run(scenario)
    (record,) = [record for record in caplog.records if record.name == "hostline"]
    assert record.levelname == "INFO"
    assert f"refused pid {os.getpid()}" in record.getMessage()
    assert "the rule admits uid 54321" in record.getMessage()


def test_abstract_names_work(face: Face, kind: str) -> None:
    name = f"unix:@hostline-test-{os.getpid()}"

    async def scenario(face: Face) -> None:
        async with face.listen(name, kind) as listener:
            client = await face.connect_socket(name, kind)
            async with client, await listener.accept(timeout=5) as served:
                await client.send(b"x")
                assert await served.recv(timeout=5) == b"x"
                assert client.address == name

    face.run(scenario)


def test_a_path_that_does_not_fit_works(face: Face, kind: str, sock_dir: Path) -> None:
    deep = sock_dir
    while len(str(deep)) < 150:
        deep = deep / "directory"
    deep.mkdir(parents=True)

    async def scenario(face: Face) -> None:
        async with connected(face, deep, kind) as (client, served):
            await client.send(b"x")
            assert await served.recv(timeout=5) == b"x"

    face.run(scenario)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "packet"}, "'packet' is none of"),
        ({"max_fds": 254}, "max_fds"),
        ({"credentials": True}, "credentials=True is for datagrams"),
        ({"type": "datagram", "allow": Peers.anyone()}, "allow= needs connections"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_made(
    face: Face, options: dict[str, Any], message: str, sock_dir: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        face.module.listen(sock_dir / "s", **options)
    assert os.listdir(sock_dir) == []


def test_a_rule_about_who_receives_datagrams_is_refused(face: Face, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        with pytest.raises(ValueError, match="server= needs a connection"):
            await face.connect_socket(sock_dir / "s", "datagram", server=Peers.same_user())

    face.run(scenario)


# --- descriptors -------------------------------------------------------------------------------------


def test_descriptors_travel_with_any_message(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with connected(face, sock_dir, kind, max_fds=4) as (client, served):
            with (sock_dir / "file").open("wb+") as file, Fd(os.open(os.devnull, os.O_RDONLY)) as null:
                file.write(b"contents")
                file.flush()
                await client.send(b"with", fds=[file, null, null.fileno()])
                await client.send(b"without")
                data, fds = await served.recv_fds(4, timeout=5)
                assert (data, len(fds)) == (b"with", 3)
                with fds[0].open() as received:
                    received.seek(0)
                    assert received.read() == b"contents"
                assert [fd.kind for fd in fds[1:]] == ["character"] * 2
                assert not any(os.get_inheritable(fd.fileno()) for fd in fds[1:])
                close_all(fds)
                assert await served.recv_fds(timeout=5) == (b"without", [])
                assert not null.is_closed

    face.run(scenario)


def test_a_large_stream_send_carries_its_descriptors_once(face: Face, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with connected(face, sock_dir, "stream", max_fds=4) as (client, served):
            size = 1 << 21
            sending = asyncio.create_task(client.send(bytes(size), fds=[0, 1], timeout=10))
            got, fds = 0, []
            while got < size:
                data, some = await served.recv_fds(timeout=5)
                got += len(data)
                fds += some
            await sending
            assert len(fds) == 2
            close_all(fds)

    face.run(scenario)


def test_without_being_asked_for_none_come_in(face: Face, kind: str, sock_dir: Path) -> None:
    """Where the kernel can refuse them the sender gets the error; the message before and after goes through."""

    async def scenario(face: Face) -> None:
        async with connected(face, sock_dir, kind) as (client, served):
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(DescriptorError, match="takes no descriptors"):
                await client.send(b"x", fds=[0])
            await client.send(b"y")
            assert await served.recv(timeout=5) == b"y"
            assert len(os.listdir("/proc/self/fd")) == before

    if not has_passrights():
        pytest.skip("this kernel has no SO_PASSRIGHTS")
    face.run(scenario)


def has_passrights() -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, 83, 0)
        except OSError:
            return False
    return True


def allow_rights_again(endpoint: Any) -> None:
    """Make the kernel deliver descriptors again, as one does that has no SO_PASSRIGHTS."""
    try:
        endpoint.socket.setsockopt(socket.SOL_SOCKET, 83, 1)
    except OSError:
        pass


def test_on_an_older_kernel_none_come_in_either(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with connected(face, sock_dir, kind) as (client, served):
            allow_rights_again(served)
            before = len(os.listdir("/proc/self/fd"))
            await client.send(b"x", fds=[0] * 20)
            if kind == "stream":
                assert await served.recv_fds(timeout=5) == (b"x", [])  # the kernel has dropped them
                assert len(os.listdir("/proc/self/fd")) == before
            else:
                with pytest.raises(DescriptorError, match="none were asked for"):
                    await served.recv_fds(timeout=5)
                assert served.is_closed
                assert len(os.listdir("/proc/self/fd")) < before

    face.run(scenario)


def test_too_many_end_the_connection_and_nothing_is_left(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with connected(face, sock_dir, kind, max_fds=2) as (client, served):
            before = len(os.listdir("/proc/self/fd"))
            await client.send(b"x", fds=[0] * 3)
            with pytest.raises(DescriptorError, match="more descriptors than max_fds of 2"):
                await served.recv_fds(timeout=5)
            assert served.is_closed
            assert len(os.listdir("/proc/self/fd")) < before
            with pytest.raises((EndOfStream, PeerGoneError)):
                await client.recv(timeout=5)

    face.run(scenario)


def test_recv_takes_no_descriptors_in_silence(face: Face, kind: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with connected(face, sock_dir, kind, max_fds=2) as (client, served):
            await client.send(b"x", fds=[0])
            with pytest.raises(DescriptorError, match="receive with recv_fds"):
                await served.recv(timeout=5)
            assert served.is_closed

    face.run(scenario)


def test_descriptors_without_a_byte_are_refused_on_a_stream_and_fine_on_seqpacket(face: Face, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair("stream", max_fds=1)
        async with one, other:
            with pytest.raises(ValueError, match="at least one byte"):
                await one.send(b"", fds=[0])
            with pytest.raises(ValueError, match="254 descriptors"):
                await one.send(b"x", fds=[0] * 254)
        one, other = face.socketpair("seqpacket", max_fds=1)
        async with one, other:
            await one.send(b"", fds=[0])
            data, fds = await other.recv_fds(timeout=5)
            assert (data, len(fds)) == (b"", 1)
            close_all(fds)

    face.run(scenario)


# --- datagrams ---------------------------------------------------------------------------------------


def test_datagrams_keep_their_boundaries_also_when_empty(face: Face, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with face.listen(sock_dir / "r", "datagram") as receiver:
            async with await face.connect_socket(sock_dir / "r", "datagram") as sender:
                for data in (b"one", b"", b"x" * 60_000):
                    await sender.send(data)
                    assert await receiver.recv(timeout=5) == data
                await sender.send(b"")
                assert await receiver.recv_from(timeout=5) == (b"", None, [], None)

    face.run(scenario)


def test_the_largest_datagram_of_a_default_sender_fits(face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair("datagram")
        async with one, other:
            size = one.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            while True:
                try:
                    await one.send(bytes(size))
                    break
                except MessageTooLongError:
                    size -= 32
            assert len(await other.recv(timeout=5)) == size > 100_000

    face.run(scenario)


def test_a_datagram_that_does_not_fit_is_an_error_and_the_next_is_intact(face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair("datagram")
        async with one, other:
            await one.send(b"x" * 11)
            await one.send(b"y" * 10)
            with pytest.raises(TruncatedError):
                await other.recv(10, timeout=5)
            assert await other.recv(10, timeout=5) == b"y" * 10
            with pytest.raises(MessageTooLongError):
                await one.send(bytes(1 << 22))

    face.run(scenario)


def test_a_datagram_can_be_answered(face: Face, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with face.listen(sock_dir / "a", "datagram") as one, face.listen(sock_dir / "b", "datagram") as other:
            await one.send(b"question", str(sock_dir / "b"))
            question = await other.recv_from(timeout=5)
            assert question.sender == PathAddress(str(sock_dir / "a"))
            await other.send(b"answer", question.sender)
            assert (await one.recv_from(timeout=5)).data == b"answer"
        name = f"unix:@hostline-test-{os.getpid()}"
        async with face.listen(name, "datagram") as one:
            await one.send(b"to myself", name)
            assert (await one.recv_from(timeout=5)).sender == AbstractAddress(name[6:].encode())

    face.run(scenario)


def test_each_datagram_says_who_sent_it_if_asked_to(face: Face, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with face.listen(sock_dir / "r", "datagram", credentials=True, max_fds=2) as receiver:
            async with await face.connect_socket(sock_dir / "r", "datagram") as sender:
                await sender.send(b"x", fds=[0])
                datagram = await receiver.recv_from(timeout=5)
                assert datagram.peer == Peer(os.getpid(), os.getuid(), os.getgid())
                assert len(datagram.fds) == 1
                close_all(datagram.fds)

    face.run(scenario)


@pytest.mark.alone
@pytest.mark.parametrize("is_connected", [True, False])
def test_a_full_queue_is_waited_for_until_the_deadline_without_spinning(
    face: Face, is_connected: bool, sock_dir: Path
) -> None:
    async def scenario(face: Face) -> None:
        path = sock_dir / "r"
        async with face.listen(path, "datagram") as receiver:
            sender = (
                await face.connect_socket(path, "datagram") if is_connected else face.listen(sock_dir / "s", "datagram")
            )
            to = None if is_connected else path
            async with sender:
                sent = 0
                with pytest.raises(SocketTimeoutError) as caught:
                    while True:
                        await sender.send(b"%d" % sent, to, timeout=0.0)
                        sent += 1
                started, cpu = time.monotonic(), time.process_time()
                with pytest.raises(SocketTimeoutError) as caught:
                    await sender.send(b"x", to, timeout=0.5)
                assert 0.49 <= time.monotonic() - started < 2
                assert time.process_time() - cpu < 0.1
                assert (caught.value.operation, caught.value.address) == ("send", str(path))
                waiting = asyncio.create_task(sender.send(b"%d" % sent, to, timeout=5))
                await asyncio.sleep(0.02)
                for number in range(sent + 1):
                    assert await receiver.recv(timeout=5) == b"%d" % number
                await waiting

    face.run(scenario)


@contextlib.asynccontextmanager
async def unconnected(face: Face, directory: Path, data: bytes) -> AsyncIterator[tuple[Any, Any, Path]]:
    """Give a sender without a peer, a receiver that can take no more of `data`, and the receiver's path."""
    path = directory / "r"
    async with face.listen(path, "datagram") as receiver, face.listen(directory / "s", "datagram") as sender:
        with pytest.raises(SocketTimeoutError):
            while True:
                await sender.send(data, path, timeout=0.0)
        yield sender, receiver, path


async def drain_until_done(receiver: Any, waiting: asyncio.Task[Any]) -> None:
    """Receive until a send has ended, which the test may learn only after all has been received."""
    deadline = time.monotonic() + 15
    while not waiting.done():
        assert time.monotonic() < deadline, "nobody woke the sender"
        with contextlib.suppress(SocketTimeoutError):
            await receiver.recv(timeout=0.05)


@pytest.fixture
def only_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a wait for room end by what the kernel says, and not because time has passed."""
    for name in ("CONNECT_RETRY_FIRST", "CONNECT_RETRY_LONGEST", "DATAGRAM_LOOK_AGAIN"):
        monkeypatch.setattr(room, name, 60.0)


# One that fills the receiver's queue first, and one that fills the sender's own buffer first.
@pytest.mark.parametrize("size", [1, 60_000])
@pytest.mark.parametrize("is_many", [False, True])
def test_a_sender_without_a_peer_is_woken_when_there_is_room(
    face: Face, size: int, is_many: bool, sock_dir: Path, only_woken: None
) -> None:
    async def scenario(face: Face) -> None:
        data = b"x" * size
        async with unconnected(face, sock_dir, data) as (sender, receiver, path):
            if is_many:
                waiting = asyncio.create_task(sender.send_many([data] * 100, path, timeout=30))
            else:
                waiting = asyncio.create_task(sender.send(data, path, timeout=30))
            await asyncio.sleep(0.02)
            assert not waiting.done()
            await drain_until_done(receiver, waiting)
            assert await waiting == (100 if is_many else None)

    face.run(scenario)


def test_a_sender_to_a_receiver_that_is_connected_to_it_is_woken_when_there_is_room(
    face: Face, sock_dir: Path, only_woken: None
) -> None:
    """Its queue has no bound then, and it takes no other connection."""

    async def scenario(face: Face) -> None:
        data = b"x" * 1000
        async with (
            face.listen(sock_dir / "s", "datagram") as sender,
            face.listen(sock_dir / "r", "datagram") as receiver,
        ):
            receiver.socket.connect(str(sock_dir / "s"))
            with pytest.raises(SocketTimeoutError):
                while True:
                    await sender.send(data, sock_dir / "r", timeout=0.0)
            waiting = asyncio.create_task(sender.send(data, sock_dir / "r", timeout=30))
            await asyncio.sleep(0.02)
            assert not waiting.done()
            await drain_until_done(receiver, waiting)
            await waiting

    face.run(scenario)


@pytest.mark.parametrize("size", [1, 60_000])
def test_waiting_for_room_neither_spins_nor_keeps_a_descriptor(
    face: Face, size: int, sock_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(face: Face) -> None:
        data = b"x" * size
        async with unconnected(face, sock_dir, data) as (sender, _, path):
            before = open_descriptors()
            with pytest.raises(SocketTimeoutError) as caught:
                await sender.send(data, path, timeout=0.6)
            assert caught.value.address == str(path)
            assert 2 <= len(looks) <= 5
            with pytest.raises(SocketTimeoutError) as caught:
                await sender.send_many([data, data], path, timeout=0.05)
            assert caught.value.sent_count == 0
            assert open_descriptors() == before

    looks: list[float] = []
    look = Room.look
    monkeypatch.setattr(Room, "look", lambda self, left: (looks.append(left), look(self, left))[1])
    face.run(scenario)


def test_waiting_for_room_ends_when_the_receiver_goes(face: Face, sock_dir: Path, only_woken: None) -> None:
    async def scenario(face: Face) -> None:
        async with unconnected(face, sock_dir, b"x") as (sender, receiver, path):
            before = open_descriptors()
            waiting = asyncio.create_task(sender.send(b"x", path, timeout=30))
            await soon(lambda: len(open_descriptors()) > len(before))
            receiver.socket.close()  # as the kernel does it when a process ends: the file stays
            with pytest.raises(ConnectRefusedError):
                await asyncio.wait_for(waiting, 10)
            assert len(open_descriptors()) == len(before) - 1

    face.run(scenario)


def test_waiting_for_room_follows_what_becomes_of_the_receiver(face: Face, sock_dir: Path) -> None:
    """Nothing wakes a sender of these; it tries again after a while."""

    async def scenario(face: Face) -> None:
        async with unconnected(face, sock_dir, b"x") as (sender, receiver, path):
            waiting = asyncio.create_task(sender.send(b"x", path, timeout=10))
            await asyncio.sleep(0.02)
            receiver.socket.shutdown(socket.SHUT_RD)
            with pytest.raises(PeerGoneError):
                await waiting
        async with unconnected(face, sock_dir, b"x") as (sender, receiver, path):
            waiting = asyncio.create_task(sender.send(b"x", path, timeout=10))
            await asyncio.sleep(0.02)
            async with face.listen(sock_dir / "o", "datagram"):
                receiver.socket.connect(str(sock_dir / "o"))
                with pytest.raises(AccessDeniedError, match="one sender only"):
                    await waiting
        async with unconnected(face, sock_dir, b"x") as (sender, receiver, path):
            waiting = asyncio.create_task(sender.send(b"x", path, timeout=10))
            await asyncio.sleep(0.02)
            path.rename(sock_dir / "old")
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as new:
                new.bind(str(path))
                await waiting
                assert new.recv(10) == b"x"
            path.unlink()
            (sock_dir / "old").rename(path)

    face.run(scenario)


def test_a_wait_for_room_without_a_free_descriptor_tries_again_and_again(
    face: Face, sock_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(face: Face) -> None:
        async with unconnected(face, sock_dir, b"x") as (sender, receiver, path):
            before = open_descriptors()
            waiting = asyncio.create_task(sender.send(b"x", path, timeout=10))
            await asyncio.sleep(0.05)
            assert open_descriptors() == before
            assert await receiver.recv(timeout=5) == b"x"
            await waiting

    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Room, "_open", none_left)
    face.run(scenario)


def test_a_cancelled_wait_for_room_keeps_no_descriptor(loop_face: Face, sock_dir: Path, only_woken: None) -> None:
    async def scenario(face: Face) -> None:
        async with unconnected(face, sock_dir, b"x") as (sender, receiver, path):
            before = open_descriptors()
            for _ in range(3):
                waiting = asyncio.create_task(sender.send(b"x", path))
                await soon(lambda: len(open_descriptors()) == len(before) + 1)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                assert open_descriptors() == before
            await receiver.recv(timeout=5)
            await sender.send(b"x", path, timeout=5)

    loop_face.run(scenario)


def test_a_close_wakes_whoever_waits_for_room(face: Face, sock_dir: Path, only_woken: None) -> None:
    async def scenario(face: Face) -> None:
        async with unconnected(face, sock_dir, b"x") as (sender, _, path):
            before = open_descriptors()
            waiting = asyncio.create_task(sender.send(b"x", path))
            await soon(lambda: len(open_descriptors()) > len(before))
            sender.close()
            with pytest.raises(ClosedError):
                await asyncio.wait_for(waiting, 10)
            left = open_descriptors()
            assert left.keys() < before.keys()
            assert left.items() <= before.items()

    face.run(scenario)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of a fork beside threads
def test_a_forked_child_has_nothing_of_its_parents_waits_for_room(sock_dir: Path, only_woken: None) -> None:
    with (
        sync_sockets.listen(sock_dir / "r", "datagram") as receiver,
        sync_sockets.listen(sock_dir / "s", "datagram") as s,
    ):
        with pytest.raises(SocketTimeoutError):
            while True:
                s.send(b"x", sock_dir / "r", timeout=0)
        before = open_descriptors().keys()
        waiting = threading.Thread(target=lambda: s.send(b"x", sock_dir / "r", timeout=10))
        waiting.start()
        # Known to whoever closes it in a child: a fork between its making and that is nobody's to see.
        assert wait_until(lambda: any(waits._watcher for waits in list(room._rooms)))
        assert open_descriptors().keys() != before
        pid = os.fork()
        if pid == 0:
            os._exit(len(open_descriptors().keys() - before))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        receiver.recv(timeout=5)
        waiting.join(5)
        assert not waiting.is_alive()
        assert open_descriptors().keys() == before


def test_sending_nowhere_is_an_error_in_words(face: Face, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with face.listen(sock_dir / "s", "datagram") as sender:
            with pytest.raises(LocalProtocolError, match="to="):
                await sender.send(b"x")
            with pytest.raises(AddressNotFoundError) as caught:
                await sender.send(b"x", sock_dir / "nothing")
            assert (caught.value.operation, caught.value.address) == ("send", str(sock_dir / "nothing"))

    face.run(scenario)


def test_a_receiver_that_has_gone_is_an_error(face: Face, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        receiver = face.listen(sock_dir / "r", "datagram")
        async with await face.connect_socket(sock_dir / "r", "datagram") as sender:
            receiver.close()
            with pytest.raises(ConnectRefusedError):
                await sender.send(b"x")
            with pytest.raises(PeerGoneError):
                await sender.send(b"x")

    face.run(scenario)


def test_unasked_descriptors_on_a_datagram_are_an_error_and_the_socket_lives(face: Face, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with face.listen(sock_dir / "r", "datagram") as receiver:
            allow_rights_again(receiver)
            async with await face.connect_socket(sock_dir / "r", "datagram") as sender:
                before = len(os.listdir("/proc/self/fd"))
                await sender.send(b"hostile", fds=[0] * 10)
                await sender.send(b"honest")
                with pytest.raises(DescriptorError, match="none were asked for"):
                    await receiver.recv(timeout=5)
                assert await receiver.recv(timeout=5) == b"honest"
                assert len(os.listdir("/proc/self/fd")) == before

    face.run(scenario)


# --- fork --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of a fork beside threads
def test_a_forked_child_may_accept_and_close_without_harm_to_the_parent(sock_dir: Path) -> None:
    with sync_sockets.listen(sock_dir / "s") as listener:
        waiting = threading.Thread(target=lambda: accepted.append(listener.accept(timeout=10)))
        accepted: list[Any] = []
        waiting.start()
        one, other = sync_sockets.socketpair()
        held = threading.Thread(target=lambda: accepted.append(one.recv(timeout=10)))
        held.start()
        time.sleep(0.05)
        pid = os.fork()
        if pid == 0:
            listener.close()  # would unlink, or wake the parent's thread
            one.close()  # would end the parent's connection
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert (sock_dir / "s").is_socket()
        other.send(b"still connected")
        held.join(5)
        with sync_sockets.connect_socket(sock_dir / "s"):
            waiting.join(5)
        assert accepted[0] == b"still connected"
        accepted[1].close()
        one.close()
        other.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_may_go_on_with_a_connection_that_its_parent_closes() -> None:
    one, other = sync_sockets.socketpair()
    with other:
        pid = os.fork()
        if pid == 0:
            try:
                one.send(one.recv(timeout=10))
            finally:
                os._exit(0)
        one.close()
        other.send(b"x")
        assert other.recv(timeout=5) == b"x"
        os.waitpid(pid, 0)


# --- the kernel's refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize("socket_type", ["stream", "seqpacket", "datagram"])
def test_refusals_carry_operation_type_address_and_errno(face: Face, socket_type: str, sock_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        with pytest.raises(AddressNotFoundError) as caught:
            await face.connect_socket(sock_dir / "s", socket_type)
        error = caught.value
        assert (error.operation, error.socket_type, error.address, error.errno) == (
            "connect",
            socket_type,
            str(sock_dir / "s"),
            errno.ENOENT,
        )

    face.run(scenario)


def test_a_directory_without_permission_is_its_own_error(face: Face, sock_dir: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may enter every directory; tests/test_second_user.py tries it as another user")
    closed = sock_dir / "closed"
    closed.mkdir(mode=0o000)

    async def scenario(face: Face) -> None:
        with pytest.raises(AccessDeniedError):
            await face.connect_socket(closed / "s")

    face.run(scenario)
    closed.chmod(0o700)


def test_both_faces_export_the_same_names() -> None:
    assert sync_sockets.__all__ == aio_sockets.__all__


# --- into memory that is there ---------------------------------------------------------------------------


def test_bytes_of_a_stream_are_received_where_the_caller_wants_them(face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair()
        async with one, other:
            content = os.urandom(1 << 20)
            sending = asyncio.create_task(one.send(content, timeout=10))
            space = bytearray(len(content) + 5)
            come = 0
            while come < len(content):
                count = await other.recv_into(memoryview(space)[come:-5], timeout=10)
                assert count > 0
                come += count
            await sending
            assert space == content + bytes(5)
            with pytest.raises(SocketTimeoutError):
                await other.recv_into(space, timeout=0.01)
            await one.send(b"abc")
            assert await other.recv_into(array("I", [0, 0]), timeout=5) == 3
            with pytest.raises(ValueError, match="buffer of 0 bytes"):
                await other.recv_into(bytearray())
            one.close()
            with pytest.raises(EndOfStream):
                await other.recv_into(space, timeout=5)
        with pytest.raises(ClosedError):
            await other.recv_into(space)

    face.run(scenario)


def test_packets_are_not_received_into_memory_and_descriptors_need_their_method(face: Face) -> None:
    async def scenario(face: Face) -> None:
        one, other = face.socketpair("seqpacket")
        async with one, other:
            with pytest.raises(LocalProtocolError, match="packets are received whole"):
                await other.recv_into(bytearray(9))
        one, other = face.socketpair(max_fds=1)
        async with one, other:
            before = len(open_descriptors())
            await one.send(b"x", fds=[0])
            with pytest.raises(DescriptorError, match="receive with recv_fds"):
                await other.recv_into(bytearray(9), timeout=5)
            assert other.is_closed
            assert len(open_descriptors()) <= before

    face.run(scenario)
