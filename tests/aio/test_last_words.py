"""The end of a connection is seen on both loops, also where the last bytes and the end arrive together.

A peer that closes with data unread makes poll(2) report POLLERR beside what there is to read. libuv then stops
watching the descriptor, so that a reader that takes the data and waits for the end waits for ever.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.leaks import wait_until
from tests.serving import Conversation, RawClient, ScriptedServer, ServerThread, descriptor_count, loop_names

import hostline
from hostline.errors import UnavailableError
from hostline.wire.codec import encode_reply
from hostline.wire.frame import Kind, encode_frame


@pytest.fixture(params=loop_names())
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def lasting_service(running: threading.Event, ended: threading.Event) -> hostline.Service:
    service = hostline.Service("lasting")

    @service.method(inline=True)
    def echo(value: int) -> int:
        return value

    @service.method
    async def last() -> None:
        running.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    return service


def leave_an_answer_unread(client: RawClient, last: bytes) -> None:
    """Get an answer and do not read it, send something more, and close."""
    client.call(1, "echo", 1)
    assert wait_until(lambda: client.sock.recv(1, 66) != b"")  # MSG_PEEK | MSG_DONTWAIT
    client.sock.sendall(last)
    client.close()


def test_clients_that_leave_with_an_answer_unread_are_forgotten(sock_dir: Path, loop: str) -> None:
    service = lasting_service(threading.Event(), threading.Event())
    with ServerThread(service, sock_dir / "s", loop=loop) as server:
        before = descriptor_count()
        for _ in range(100):
            # A last frame that wants no answer: where one is written, the broken pipe would tell.
            leave_an_answer_unread(RawClient(str(sock_dir / "s")), encode_frame(Kind.CANCEL, 77))
        assert wait_until(lambda: server.connection_count == 0)
        assert descriptor_count() == before


def test_the_last_call_of_such_a_client_is_cancelled(sock_dir: Path, loop: str) -> None:
    running, ended = threading.Event(), threading.Event()
    with ServerThread(lasting_service(running, ended), sock_dir / "s", loop=loop) as server:
        client = RawClient(str(sock_dir / "s"))
        leave_an_answer_unread(client, client.encode(2, "last"))
        assert wait_until(lambda: (server.connection_count, server.running_count) == (0, 0))
        assert ended.is_set() is running.is_set()


def test_a_server_that_goes_with_calls_unread_is_seen_by_its_client(sock_dir: Path, run_async: Any) -> None:
    """The loop is busy while the server answers one call and goes: the answer and the end are there at once."""

    def answer_one_and_go(conversation: Conversation) -> None:
        conversation.greet()
        frame = conversation.read_call()
        busy.wait(5)
        conversation.send(encode_reply(frame.call_id, "answered"))

    def answer(conversation: Conversation) -> None:
        conversation.greet()
        while True:
            conversation.send(encode_reply(conversation.read_call().call_id, "from the next"))

    busy = threading.Event()

    async def main() -> None:
        async with hostline.aio.connect(sock_dir / "s", timeout=4) as line:
            first = asyncio.ensure_future(line.call("act"))
            assert await asyncio.to_thread(wait_until, lambda: server.conversations[0].calls)
            others = [asyncio.ensure_future(line.call("act")) for _ in range(3)]
            await asyncio.sleep(0.05)
            busy.set()
            # Not a wait of the loop's: it must find both when it looks again.
            assert server.conversations[0].has_left.wait(5)
            started = time.monotonic()
            assert await first == "answered"
            for ended in await asyncio.gather(*others, return_exceptions=True):
                assert isinstance(ended, UnavailableError)
            assert time.monotonic() - started < 2, "the end was seen by deadline only"
            assert await line.call("act") == "from the next"

    with ScriptedServer(str(sock_dir / "s"), answer_one_and_go, answer) as server:
        run_async(main)
