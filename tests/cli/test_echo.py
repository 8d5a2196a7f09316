"""`hostline echo`, spoken to by hostline's own cat, by nc and by socat."""

from __future__ import annotations

import shutil
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.cli.running import Running, abstract_name, hostline

KINDS = ["stream", "seqpacket", "datagram"]


def program(*command: object, input: bytes) -> bytes:
    """Run another program and return its output; skip where it is missing."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run([*map(str, command)], input=input, capture_output=True, timeout=10, check=True).stdout


# --- the first server of every tutorial ----------------------------------------------------------------


@pytest.mark.ci_required
@pytest.mark.parametrize("client", ["nc", "socat", "hostline"])
def test_a_fixed_reply_prints_what_came_and_closes(sock_dir: Path, client: str) -> None:
    path = sock_dir / "example.sock"
    with Running("echo", path, "--reply", "Message received", ready="listening") as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for number in (1, 2):
            message = f"hello {number}".encode()
            if client == "nc":
                answer = program("nc", "-U", "-N", path, input=message)
            elif client == "socat":
                answer = program("socat", "-", f"UNIX-CONNECT:{path}", input=message)
            else:
                answer = hostline("cat", path, input=message).stdout
            assert answer == b"Message received\n"
        assert server.stop() == 0
        assert server.out == "Received: hello 1\nReceived: hello 2\n"


def test_what_came_stays_one_harmless_line(sock_dir: Path) -> None:
    with Running("echo", sock_dir / "x", "--reply", "ok", ready="listening") as server:
        assert hostline("cat", sock_dir / "x", input=b"a\x1b[31m\nReceived: b\r\n").stdout == b"ok\n"
        assert server.stop() == 0
        assert server.out == "Received: a\\x1b[31m\\x0aReceived: b\\x0d\n"


@pytest.mark.parametrize("kind", ["seqpacket", "datagram"])
def test_a_fixed_reply_to_a_packet_is_a_packet(kind: str) -> None:
    address = abstract_name()
    with Running("echo", address, "--type", kind, "--reply", "Got it!", ready="listening") as server:
        assert hostline("cat", address, "--type", kind, input=b"hello\n").stdout == b"Got it!\n"
        assert server.stop() == 0
        assert server.out == "Received: hello\n"


# --- echo ----------------------------------------------------------------------------------------------


@pytest.mark.ci_required
def test_nc_gets_its_bytes_back(sock_dir: Path) -> None:
    with Running("echo", sock_dir / "x", ready="listening") as server:
        data = bytes(range(256)) * 1000
        assert program("nc", "-U", "-N", sock_dir / "x", input=data) == data
        assert server.stop() == 0


@pytest.mark.ci_required
@pytest.mark.parametrize(("kind", "number"), [("stream", 1), ("seqpacket", 5)])
def test_socat_gets_its_bytes_back_from_a_file_and_an_abstract_name(sock_dir: Path, kind: str, number: int) -> None:
    name = abstract_name()
    places = [(str(sock_dir / "x"), f"UNIX-CONNECT:{sock_dir}/x"), (name, f"ABSTRACT-CONNECT:{name[6:]}")]
    for address, target in places:
        with Running("echo", address, "--type", kind, ready="listening") as server:
            assert program("socat", "-", f"{target},type={number}", input=b"hello") == b"hello"
            assert server.stop() == 0


def test_many_clients_at_once_get_their_own_bytes_back(sock_dir: Path) -> None:
    with Running("echo", sock_dir / "x", "-v", ready="listening") as server:
        clients = [socket.socket(socket.AF_UNIX) for _ in range(50)]
        try:
            for client in clients:
                client.settimeout(10)
                client.connect(str(sock_dir / "x"))
            for number, client in enumerate(clients):
                client.sendall(f"client {number}".encode())
            for number, client in enumerate(clients):
                assert client.recv(100) == f"client {number}".encode()
        finally:
            for client in clients:
                client.close()
        server.wait_for("8 bytes, ended")
        assert server.stop() == 0


def test_a_client_that_dies_ends_only_itself(sock_dir: Path) -> None:
    with Running("echo", sock_dir / "x", "--reply", "ok", "-v", ready="listening") as server:
        with Running("cat", sock_dir / "x", stdin=subprocess.PIPE) as victim:
            server.wait_for("connected")
            victim.stop(signal.SIGKILL)
        assert hostline("cat", sock_dir / "x", input=b"hello").stdout == b"ok\n"
        assert server.stop() == 0


def test_a_datagram_without_a_return_address_is_told_of_and_not_answered(sock_dir: Path) -> None:
    path = str(sock_dir / "x")
    with Running("echo", path, "--type", "datagram", "-v", ready="listening") as server:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"hello", path)
        server.wait_for("5 bytes from a socket without an address")
        assert server.stop() == 0


@pytest.mark.parametrize("kind", ["seqpacket", "datagram"])
def test_empty_packets_come_back_too(kind: str) -> None:
    address = abstract_name()
    with Running("echo", address, "--type", kind, ready="listening") as server:
        assert hostline("cat", address, "--type", kind, input=b"a\n\nb\n").stdout == b"a\n\nb\n"
        assert server.stop() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_descriptors_that_nobody_asked_for_do_not_end_the_server(kind: str) -> None:
    address = abstract_name()
    with Running("echo", address, "--type", kind, ready="listening") as server:
        hostline("cat", address, "--type", kind, "--send-fd", "/dev/null", "--wait", "0.1", input=b"x\n")
        assert hostline("cat", address, "--type", kind, "--wait", "0.5", input=b"hello\n").stdout == b"hello\n"
        assert server.stop() == 0
