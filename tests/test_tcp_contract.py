"""The contract of a call holds over loopback TCP as it does over a Unix socket: the same tests, another address.

Only what a Unix socket alone can do is left out, by name and with the reason; tests/test_tcp.py says what happens there
instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import test_call_contract as contract
from tests import test_streams as streams
from tests.serving import Stage, stages

NEEDS_A_UNIX_SOCKET = {
    "test_a_handler_knows_who_calls_and_how_long_they_wait": "no credentials",
    "test_each_call_on_a_connection_has_its_own_id": "reads the peer's pid",
    "test_an_undeclared_exception_shows_no_details_to_the_caller_and_all_of_them_in_the_log": "logs the peer's pid",
    "test_a_server_run_by_somebody_else_gets_not_one_byte": "the kernel's word for the server's user",
    "test_a_refused_peer_is_told_the_reason_in_words": "a rule about the caller's user",
    "test_a_method_can_be_kept_from_those_who_may_connect": "a rule about the caller's user",
    "test_a_service_can_be_reached_by_every_kind_of_address": "is about the other addresses",
    "test_a_service_can_be_given_a_listening_socket": "is about descriptors",
    "test_a_stream_that_began_is_never_repeated": "its server is a script, which proves no key",
    "test_a_ping_in_the_middle_of_an_item_is_answered_behind_it": "its server is a script, which proves no key",
}


def _taken(module: object) -> dict[str, object]:
    return {
        name: value
        for name, value in vars(module).items()
        if name.startswith("test_") and "stage" in inspect.signature(value).parameters
    }


SHARED = _taken(contract) | _taken(streams)
globals().update({name: test for name, test in SHARED.items() if name not in NEEDS_A_UNIX_SOCKET})

gate = contract.gate
journal = contract.journal
kind = streams.kind
world = streams.world


@pytest.fixture(params=stages())
def stage(request: pytest.FixtureRequest, sock_dir: Path) -> Iterator[Stage]:
    face, loop = request.param
    made = Stage(face, loop, sock_dir, "tcp:")
    yield made
    made.close()


def test_every_exception_is_still_a_test() -> None:
    assert NEEDS_A_UNIX_SOCKET.keys() - SHARED.keys() == set()
    assert len(SHARED) > 60
