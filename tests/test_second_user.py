"""Identity, tried with a real second user: what the mode forbids, what the rules refuse, and what each side is told."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hostline.errors import AccessDeniedError, EndOfStream, PeerGoneError, PeerRefusedError, SocketTimeoutError
from hostline.sync import sockets as sync_sockets
from hostline.unix.credentials import Peer, Peers
from tests.faces import Face, face_names, make_face
from tests.second_user import NOBODY, Fork, run_as

pytestmark = pytest.mark.root

CONNECTED = ("stream", "seqpacket")

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(params=face_names())
def face(request: pytest.FixtureRequest) -> Face:
    return make_face(request.param)


@pytest.fixture
def public_dir(sock_dir: Path) -> Path:
    """A directory that every user can enter."""
    sock_dir.chmod(0o755)
    return sock_dir


@pytest.fixture
def nobodys_dir(public_dir: Path) -> Path:
    """A directory in which only uid 65534 (and root) can make files."""
    directory = public_dir / "n"
    directory.mkdir(mode=0o700)
    os.chown(directory, NOBODY, NOBODY)
    directory.chmod(0o755)
    return directory


# Run as the other user, in a forked child.


def connect_and_receive(path: str, kind: str, server: Peers) -> bytes:
    with sync_sockets.connect_socket(path, kind, server=server, timeout=5) as client:  # type: ignore[call-overload]
        return client.recv(timeout=5)  # type: ignore[no-any-return]


def send_datagram(path: str) -> None:
    with sync_sockets.connect_socket(path, "datagram") as sender:
        sender.send(b"x", timeout=1)


def send_forged_credentials(path: str) -> None:
    import struct

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        forged = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("iII", 1, 0, 0))]
        sock.sendmsg([b"forged"], forged, 0, path)


# --- the mode ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONNECTED)
def test_a_socket_of_mode_0600_is_closed_to_others_by_the_kernel(face: Face, kind: str, public_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with face.listen(public_dir / "s", kind):
            with pytest.raises(AccessDeniedError) as caught:
                await asyncio.to_thread(
                    run_as, NOBODY, connect_and_receive, str(public_dir / "s"), kind, Peers.anyone()
                )
            error = caught.value
            assert (error.operation, error.socket_type, error.address) == ("connect", kind, str(public_dir / "s"))
            assert error.errno == 13
            assert isinstance(error, PermissionError)

    face.run(scenario)


def test_a_datagram_socket_of_mode_0600_is_closed_to_others(face: Face, public_dir: Path) -> None:
    async def scenario(face: Face) -> None:
        async with face.listen(public_dir / "s", "datagram") as receiver:
            with pytest.raises(AccessDeniedError):
                await asyncio.to_thread(run_as, NOBODY, send_datagram, str(public_dir / "s"))
            with pytest.raises(SocketTimeoutError):
                await receiver.recv(timeout=0)

    face.run(scenario)


def test_a_directory_closed_to_others_is_its_own_error(sock_dir: Path) -> None:
    with sync_sockets.listen(sock_dir / "s", mode=0o666):  # the directory is 0700
        with pytest.raises(AccessDeniedError):
            run_as(NOBODY, connect_and_receive, str(sock_dir / "s"), "stream", Peers.anyone())


# --- the server's rules ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONNECTED)
def test_a_peer_that_the_rule_refuses_is_closed_and_the_next_is_served(
    face: Face, kind: str, public_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="hostline")
    path = str(public_dir / "s")

    async def scenario(face: Face) -> None:
        async with face.listen(path, kind, mode=0o666, allow=Peers.same_user()) as listener:
            accepting = asyncio.create_task(listener.accept(timeout=10))
            with pytest.raises((EndOfStream, PeerGoneError)):
                await asyncio.to_thread(run_as, NOBODY, connect_and_receive, path, kind, Peers.anyone())
            assert not accepting.done()
            async with await face.connect_socket(path, kind), await accepting as served:
                assert served.peer.uid == 0

    face.run(scenario)
    assert any(
        "uid 65534 (nobody) is not admitted: the rule admits uid 0 (root)" in record.getMessage()
        for record in caplog.records
    )


@pytest.mark.parametrize(
    ("mode", "group", "gid", "groups", "is_admitted"),
    [
        (0o666, None, NOBODY, (), True),
        (0o660, 4711, 4711, (), True),
        (0o660, 4711, NOBODY, (4711,), True),
        (0o660, 4711, NOBODY, (4712,), None),  # the kernel refuses already
    ],
)
def test_the_default_rule_admits_whom_the_mode_admits(
    face: Face,
    mode: int,
    group: int | None,
    gid: int,
    groups: tuple[int, ...],
    is_admitted: bool | None,
    public_dir: Path,
) -> None:
    path = str(public_dir / "s")

    async def scenario(face: Face) -> None:
        async with face.listen(path, mode=mode, group=group) as listener:

            async def serve() -> Peer:
                async with await listener.accept(timeout=10) as served:
                    await served.send(b"welcome")
                    return served.peer  # type: ignore[no-any-return]

            serving = asyncio.create_task(serve())
            client = asyncio.to_thread(
                run_as, NOBODY, connect_and_receive, path, "stream", Peers.anyone(), gid=gid, groups=groups
            )
            if is_admitted is None:
                with pytest.raises(AccessDeniedError):
                    await client
                listener.close()
                with pytest.raises(ConnectionError):
                    await serving
            else:
                assert await client == b"welcome"
                peer = await serving
                assert (peer.uid, peer.gid, peer.groups) == (NOBODY, gid, groups)

    face.run(scenario)


def test_an_abstract_name_has_no_mode_so_that_the_rule_decides(face: Face) -> None:
    name = f"unix:@hostline-test-{os.getpid()}"

    async def scenario(face: Face) -> None:
        async with face.listen(name) as listener:
            accepting = asyncio.create_task(listener.accept(timeout=0.5))
            with pytest.raises((EndOfStream, PeerGoneError)):
                await asyncio.to_thread(run_as, NOBODY, connect_and_receive, name, "stream", Peers.anyone())
            with pytest.raises(SocketTimeoutError):
                await accepting

    face.run(scenario)


# --- the client's rules ------------------------------------------------------------------------------

IMPOSTOR = """
import sys
from hostline.sync.sockets import listen
from hostline.unix.credentials import Peers
with listen(sys.argv[1], sys.argv[2], mode=0o666, allow=Peers.anyone()) as listener:
    print("ready", flush=True)
    with listener.accept() as connection:
        try:
            print(repr(connection.recv(timeout=5)), flush=True)
        except EOFError:
            print("nothing came", flush=True)
"""


@pytest.mark.parametrize("kind", CONNECTED)
def test_a_server_of_another_user_is_refused_before_it_gets_a_byte(
    face: Face, kind: str, nobodys_dir: Path, as_nobody: Start
) -> None:
    path = str(nobodys_dir / "s")
    process = as_nobody("-c", IMPOSTOR, path, kind)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    async def scenario(face: Face) -> None:
        with pytest.raises(PeerRefusedError) as caught:
            await face.connect_socket(path, kind)
        text = str(caught.value)
        assert f"the server at {path} runs as uid 65534 (nobody), pid {process.pid}" in text
        assert "the rule admits uid 0 (root)" in text
        assert "server=hostline.Peers(uids=[65534])" in text

    face.run(scenario)
    assert process.stdout.readline() == "nothing came\n"
    assert process.wait(10) == 0


def test_a_server_of_another_user_is_trusted_if_the_client_says_so(
    face: Face, nobodys_dir: Path, as_nobody: Start
) -> None:
    path = str(nobodys_dir / "s")
    process = as_nobody("-c", IMPOSTOR, path, "stream")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    async def scenario(face: Face) -> None:
        async with await face.connect_socket(path, server=Peers(uids=[NOBODY])) as client:
            assert client.peer.uid == NOBODY
            await client.send(b"hello")

    face.run(scenario)
    assert process.stdout.readline() == "b'hello'\n"
    assert process.wait(10) == 0


def test_an_unprivileged_client_trusts_root(public_dir: Path) -> None:
    path = str(public_dir / "s")
    with sync_sockets.listen(path, mode=0o666) as listener:
        with Fork(NOBODY, connect_with_the_default_rule, path) as child:
            with listener.accept(timeout=10) as served:
                served.send(b"x")
                assert child.result() == b"x"


def connect_with_the_default_rule(path: str) -> bytes:
    with sync_sockets.connect_socket(path, timeout=5) as client:
        return client.recv(timeout=5)


# --- who it was --------------------------------------------------------------------------------------


def test_groups_and_pidfd_of_another_user_are_known(public_dir: Path) -> None:
    path = str(public_dir / "s")
    with sync_sockets.listen(path, mode=0o666) as listener:
        with Fork(NOBODY, connect_and_receive, path, "stream", Peers.anyone(), groups=(3000, 3001)) as child:
            with listener.accept(timeout=10) as served:
                peer = served.peer
                assert peer == Peer(child.pid, NOBODY, NOBODY, (3000, 3001))
                pidfd = peer.pidfd
                if pidfd is not None:
                    assert f"Pid:\t{child.pid}\n" in Path(f"/proc/self/fdinfo/{pidfd}").read_text()
                served.send(b"x")
                child.result()
                deadline = time.monotonic() + 5
                while pidfd is not None and f"Pid:\t{child.pid}\n" in Path(f"/proc/self/fdinfo/{pidfd}").read_text():
                    assert time.monotonic() < deadline


def test_a_datagram_is_attributed_to_its_sender_who_cannot_forge(public_dir: Path) -> None:
    path = str(public_dir / "s")
    with sync_sockets.listen(path, "datagram", mode=0o666, credentials=True) as receiver:
        run_as(NOBODY, send_datagram, path)
        peer = receiver.recv_from(timeout=5).peer
        assert peer is not None
        assert (peer.uid, peer.gid) == (NOBODY, NOBODY)
        with pytest.raises(PermissionError):
            run_as(NOBODY, send_forged_credentials, path)
        with pytest.raises(SocketTimeoutError):
            receiver.recv(timeout=0)
