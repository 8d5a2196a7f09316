"""The proof of the key: exact bytes, and nothing that does not know the key gets further, whatever it sends."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tree import TREE

from hostline.errors import LocalProtocolError, RemoteProtocolError
from hostline.protocol.challenge import CHALLENGE_MAGIC, ClientChallenge, Lobby, ServerChallenge

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
CLIENT, SERVER = b"c" * 32, b"s" * 32
TRANSPORT = b"t" * 16 + b"127.0.0.1:8123"

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "vectors" / "challenge.json").read_text(encoding="utf-8")
)


def client(key: bytes = KEY, transport: bytes = TRANSPORT, nonce: bytes = CLIENT) -> ClientChallenge:
    return ClientChallenge(key, transport, nonce)


def server(key: bytes = KEY, transport: bytes = TRANSPORT, nonce: bytes = SERVER) -> ServerChallenge:
    return ServerChallenge(key, transport, nonce)


def feed(side: ClientChallenge | ServerChallenge, data: bytes) -> bytes:
    """Give a side bytes as a face does: never more than it wants."""
    answer = b""
    while data and side.wanted:
        wanted = side.wanted
        answer += side.receive_data(data[:wanted])
        data = data[wanted:]
    return answer


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_the_bytes_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    transport = bytes.fromhex(vector["start"]) + vector["endpoint"].encode()
    key = bytes.fromhex(vector["key"])
    begin, answer, proof = (
        bytes.fromhex("".join(part for part, _ in message["parts"])) for message in vector["messages"]
    )
    ours = client(key, transport, bytes.fromhex(vector["client_nonce"]))
    theirs = server(key, transport, bytes.fromhex(vector["server_nonce"]))
    assert ours.data_to_send() == begin
    assert theirs.receive_data(begin) == answer
    assert ours.receive_data(answer) == proof
    assert theirs.receive_data(proof) == b""
    assert ours.is_proven
    assert theirs.is_proven


@given(st.lists(st.integers(1, 40)))
def test_both_prove_the_key_however_the_bytes_are_cut(sizes: list[int]) -> None:
    ours, theirs = client(), server()
    cuts = iter(sizes)

    def deliver(data: bytes, side: ClientChallenge | ServerChallenge) -> bytes:
        answer = b""
        while data:
            size = min(next(cuts, 7), side.wanted)
            answer += side.receive_data(data[:size])
            data = data[size:]
        return answer

    deliver(deliver(deliver(ours.data_to_send(), theirs), ours), theirs)
    assert ours.is_proven
    assert theirs.is_proven
    assert (ours.wanted, theirs.wanted) == (0, 0)


@given(st.binary(min_size=1, max_size=200))
def test_a_server_answers_nothing_to_bytes_that_do_not_begin_with_the_magic(data: bytes) -> None:
    if CHALLENGE_MAGIC.startswith(data[:8]):
        data = b"G" + data
    side = server()
    with pytest.raises(RemoteProtocolError):
        assert feed(side, data) == b""
    assert not side.is_proven
    with pytest.raises(RemoteProtocolError):
        side.receive_data(b"x")


@pytest.mark.parametrize("first", [b"G", b"P", b"\x16", b"\x00", b"h", b"\xf2"])
def test_the_first_wrong_byte_ends_it(first: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="does not begin"):
        server().receive_data(first)


def test_another_version_is_refused_without_an_answer() -> None:
    with pytest.raises(RemoteProtocolError, match="version 2"):
        server().receive_data(CHALLENGE_MAGIC[:-1] + b"\x02" + CLIENT)


@given(st.binary(min_size=32, max_size=32))
def test_no_proof_but_the_right_one_is_taken(proof: bytes) -> None:
    side, right = server(), client()
    answer = side.receive_data(client().data_to_send())
    if proof == right.receive_data(answer):
        return
    with pytest.raises(RemoteProtocolError, match="does not know the key"):
        side.receive_data(proof)
    assert not side.is_proven


@given(st.binary(min_size=72, max_size=72))
def test_a_client_sends_its_proof_to_nobody_who_does_not_know_the_key(answer: bytes) -> None:
    for data in (answer, CHALLENGE_MAGIC + answer[8:]):
        side = client()
        with pytest.raises(RemoteProtocolError):
            assert side.receive_data(data) == b""
        assert not side.is_proven


@pytest.mark.parametrize("size", range(1, 40))
def test_a_beginning_that_is_cut_off_gets_no_answer(size: int) -> None:
    side = server()
    assert side.receive_data(client().data_to_send()[:size]) == b""
    assert side.wanted == 40 - size


@pytest.mark.parametrize("size", range(1, 72))
def test_a_servers_answer_that_is_cut_off_proves_nothing(size: int) -> None:
    ours = client()
    answer = server().receive_data(ours.data_to_send())
    assert ours.receive_data(answer[:size]) == b""
    assert not ours.is_proven


@pytest.mark.parametrize("size", range(1, 32))
def test_a_proof_that_is_cut_off_proves_nothing(size: int) -> None:
    ours, theirs = client(), server()
    proof = ours.receive_data(theirs.receive_data(ours.data_to_send()))
    theirs.receive_data(proof[:size])
    assert not theirs.is_proven


@pytest.mark.parametrize("index", range(72))
def test_one_changed_bit_in_the_servers_answer_is_refused(index: int) -> None:
    ours = client()
    answer = bytearray(server().receive_data(ours.data_to_send()))
    answer[index] ^= 1
    with pytest.raises(RemoteProtocolError):
        ours.receive_data(bytes(answer))


@pytest.mark.parametrize(
    ("theirs", "why"),
    [
        (server(key=OTHER_KEY), "another key"),
        (server(transport=b"u" * 16 + TRANSPORT[16:]), "another start of the server"),
        (server(transport=TRANSPORT[:-1] + b"4"), "another port"),
    ],
)
def test_a_server_with_another_key_start_or_port_is_refused(theirs: ServerChallenge, why: str) -> None:
    ours = client()
    with pytest.raises(RemoteProtocolError, match="does not know the key"):
        ours.receive_data(theirs.receive_data(ours.data_to_send()))


def test_a_nonce_sent_back_is_refused() -> None:
    ours = client()
    with pytest.raises(RemoteProtocolError, match="our own, sent back"):
        ours.receive_data(server(nonce=CLIENT).receive_data(client(nonce=b"x" * 32).data_to_send()))
    with pytest.raises(RemoteProtocolError, match="our own"):
        server().receive_data(CHALLENGE_MAGIC + SERVER)


def test_what_a_server_says_on_one_connection_proves_nothing_on_another() -> None:
    """An impostor without the key asks the server itself, on a second connection, for the proof that it lacks."""
    first, second = server(nonce=b"1" * 32), server(nonce=b"2" * 32)
    challenge = first.receive_data(CHALLENGE_MAGIC + CLIENT)
    reflected = second.receive_data(CHALLENGE_MAGIC + challenge[8:40])
    with pytest.raises(RemoteProtocolError, match="does not know the key"):
        first.receive_data(reflected[40:])
    assert not first.is_proven


def test_a_clients_proof_proves_nothing_as_a_servers() -> None:
    ours, theirs = client(), server()
    proof = ours.receive_data(theirs.receive_data(ours.data_to_send()))
    with pytest.raises(RemoteProtocolError):
        client().receive_data(CHALLENGE_MAGIC + SERVER + proof)


def test_a_conversation_that_was_overheard_opens_nothing_later() -> None:
    ours, then = client(), server(nonce=b"1" * 32)
    proof = ours.receive_data(then.receive_data(ours.data_to_send()))
    now = server(nonce=b"2" * 32)
    now.receive_data(ours.data_to_send())
    with pytest.raises(RemoteProtocolError, match="does not know the key"):
        now.receive_data(proof)


def test_a_side_that_is_given_more_than_it_wants_refuses() -> None:
    with pytest.raises(RemoteProtocolError, match="41 bytes came where 40 were wanted"):
        server().receive_data(client().data_to_send() + b"x")


@pytest.mark.parametrize(("key", "nonce"), [(b"", CLIENT), (KEY[:31], CLIENT), (KEY, b""), (KEY, CLIENT + b"x")])
def test_keys_and_nonces_have_their_size(key: bytes, nonce: bytes) -> None:
    with pytest.raises(LocalProtocolError, match="32 each"):
        ServerChallenge(key, TRANSPORT, nonce)


# --- the lobby ---------------------------------------------------------------------------------------


def test_nobody_loses_the_place_before_the_time_is_over() -> None:
    lobby: Lobby[str] = Lobby(2, 0.25)
    lobby.enter("first", 10.0)
    assert lobby.has_room()
    lobby.enter("second", 10.1)
    assert not lobby.has_room()
    assert lobby.overdue(10.24) is None
    assert lobby.room_at() == 10.25
    assert lobby.overdue(10.25) == "first"
    lobby.leave("first")
    assert lobby.has_room()
    assert lobby.guests() == ["second"]
    lobby.leave("first")  # more than once is fine
    assert len(lobby) == 1


def test_failed_proofs_are_all_counted_and_seldom_logged() -> None:
    lobby: Lobby[str] = Lobby()
    assert lobby.failed(10.0) == "a connection"
    assert [lobby.failed(10.0 + n / 2000) for n in range(1000)] == [None] * 1000
    assert lobby.failed(11.0) == "1001 connections"
    assert lobby.failures == 1002


# --- the page ----------------------------------------------------------------------------------------


def test_the_page_on_the_wire_format_says_what_the_code_does() -> None:
    """A proof made from the page's words alone is the one that the code makes."""
    page = (TREE / "docs" / "reference" / "wire.md").read_text(encoding="utf-8")
    section = page.partition("### Proving the key")[2].partition("\n## ")[0]
    assert CHALLENGE_MAGIC.hex(" ") in section
    assert "hostline server" in section
    parts = (b"hostline server\n", CHALLENGE_MAGIC, CLIENT, SERVER, TRANSPORT[:16], TRANSPORT[16:])
    proof = hmac.new(KEY, b"".join(parts), hashlib.sha256).digest()
    assert server().receive_data(client().data_to_send()) == CHALLENGE_MAGIC + SERVER + proof
    for size, name in ((40, "client"), (72, "server"), (32, "client")):
        assert f"| {name} | {size} |" in section
