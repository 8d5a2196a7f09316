"""A client written from the page on the wire format alone talks to a real service over a real socket."""

from __future__ import annotations

import ast
import datetime
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.golden import frame_bytes, vectors
from tests.leaks import wait_until
from tests.serving import ServerThread
from tests.wire import foreign_client
from tests.wire.foreign_client import CallFailed, Client, Violation, pack, unpack

import hostline
from hostline.limits import DEFAULT_MAX_FRAME_SIZE, MAX_CALLS_PER_CONNECTION, USUAL_MAX_FRAME_SIZE
from hostline.rpc.settings import ServerSettings


class OutOfStock(Exception):
    """As the service declares it."""


class Order(msgspec.Struct):
    id: int
    sku: str
    at: datetime.datetime | None = None


class Hall:
    """A service with a handler that waits, and knows who waits in it."""

    def __init__(self) -> None:
        self.service = hostline.Service("hall")
        self.gate = threading.Event()
        self.inside: list[str] = []
        self.cancelled: list[str] = []
        for function in (self.charge, self.fail, self.wait):
            self.service.method(raises=OutOfStock)(function)
        self.service.method(idempotent=True, inline=True)(self.echo)

    def charge(self, order: Order, quantity: int = 1, *, currency: str = "EUR") -> dict[str, Any]:
        return {"order": order.id, "sku": order.sku, "total": quantity * 4.5, "currency": currency, "at": order.at}

    def fail(self, how: str) -> None:
        raise OutOfStock("no tea") if how == "declared" else ValueError("a secret")

    def echo(self, value: Any) -> Any:
        return value

    def wait(self, name: str, ctx: hostline.Context) -> str:
        self.inside.append(name)
        while not self.gate.wait(0.01):
            if ctx.is_cancelled:
                self.cancelled.append(name)
                ctx.raise_if_cancelled()
        return name


@pytest.fixture
def hall() -> Iterator[Hall]:
    made = Hall()
    yield made
    made.gate.set()


@pytest.fixture
def server(hall: Hall, sock_dir: Path) -> Iterator[ServerThread]:
    with ServerThread(hall.service, sock_dir / "s") as running:
        yield running
        hall.gate.set()


@pytest.fixture
def client(server: ServerThread) -> Iterator[Client]:
    made = Client(server.address)
    yield made
    made.close()


# --- it is foreign ---------------------------------------------------------------------------------------


def test_it_needs_nothing_but_sockets_and_struct() -> None:
    tree = ast.parse(Path(foreign_client.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert imported == {"__future__", "socket", "struct", "sys", "typing"}


def test_it_runs_where_nothing_is_installed(server: ServerThread) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", foreign_client.__file__, server.address, "hostline.health"],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "'status': 'ok'" in done.stdout
    assert "'service': 'hall'" in done.stdout


# --- its MessagePack -------------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300)
)
trees = st.recursive(
    scalars, lambda i: st.lists(i, max_size=20) | st.dictionaries(st.text(max_size=40), i, max_size=20), max_leaves=40
)


@given(trees)
def test_its_encoding_is_the_one_that_the_library_writes_and_reads(value: Any) -> None:
    assert pack(value) == msgspec.msgpack.encode(value)
    assert unpack(pack(value)) == value


@pytest.mark.parametrize("size", [0, 15, 16, 31, 32, 255, 256, 65535, 65536])
def test_every_width_of_a_length_is_right(size: int) -> None:
    for value in ("x" * size, b"x" * size, [1] * size, {str(number): number for number in range(size)}):
        assert pack(value) == msgspec.msgpack.encode(value)
        assert unpack(pack(value)) == value


@given(st.datetimes(min_value=datetime.datetime(1, 1, 2), timezones=st.just(datetime.UTC)))  # noqa: DTZ001
def test_it_reads_timestamps_of_every_width(moment: datetime.datetime) -> None:
    assert unpack(msgspec.msgpack.encode(moment)) == pytest.approx(moment.timestamp(), abs=1e-5)


@pytest.mark.parametrize("vector", vectors("values"), ids=[v["what"] for v in vectors("values")])
def test_it_reads_every_golden_value(vector: dict[str, str]) -> None:
    unpack(bytes.fromhex(vector["hex"]))


@pytest.mark.parametrize("data", [b"", b"\x92\x01", b"\xc1", b"\x01\x02", b"\xd4\x05a", b"\xa5ab"])
def test_it_refuses_what_is_malformed(data: bytes) -> None:
    with pytest.raises(Violation):
        unpack(data)


# --- hello -----------------------------------------------------------------------------------------------


def test_it_learns_the_services_methods(client: Client, hall: Hall) -> None:
    assert list(client.methods) == [
        "charge", "fail", "wait", "echo", "hostline.describe", "hostline.health", "hostline.stats",
    ]  # fmt: skip
    assert client.idempotent == {"echo", "hostline.describe", "hostline.health", "hostline.stats"}
    assert client.features == ["cancel", "context", "deadline", "descriptors", "ping", "streams"]
    assert client.server_max_frame_size == USUAL_MAX_FRAME_SIZE


def test_it_says_the_golden_hello_but_for_its_name_and_features() -> None:
    golden = frame_bytes("client_hello")
    features = ["cancel", "context", "deadline", "descriptors", "ping", "streams"]
    hello = {"version": 1, "features": features, "max_frame_size": 1048576, "program": "example"}
    payload = foreign_client.MAGIC + pack(hello)
    assert foreign_client.HEADER.pack(len(payload), foreign_client.HELLO, 0, 0, 0, 0) + payload == golden


def test_it_is_told_why_it_is_refused(hall: Hall, sock_dir: Path) -> None:
    with ServerThread(hall.service, sock_dir / "s", allow=hostline.Peers(uids={4_000_000_000})) as server:
        client = Client(server.address)
        assert client.goaway is not None
        code, reason, last_call_id = client.goaway
        assert (code, last_call_id) == ("refused", 0)
        assert "uid" in reason
        client.close()


# --- calls -----------------------------------------------------------------------------------------------


def test_it_calls_by_position_by_name_and_with_defaults(client: Client) -> None:
    order = {"id": 1, "sku": "tea"}
    plain = {"order": 1, "sku": "tea", "total": 4.5, "currency": "EUR", "at": None}
    assert client.call("charge", order) == plain
    assert client.call("charge", order, 2) == plain | {"total": 9.0}
    assert client.call("charge", order, currency="GBP", time_left=5.0) == plain | {"currency": "GBP"}
    assert client.call("charge", quantity=3, order=order) == plain | {"total": 13.5}


def test_it_sends_and_reads_a_moment(client: Client) -> None:
    answer = client.call("charge", {"id": 1, "sku": "x", "at": "2026-01-02T03:04:05Z"})
    assert answer["at"] == datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC).timestamp()


@pytest.mark.parametrize(
    "value", [None, [1, [2, {"a": b"\0" * 300}]], "ä" * 1000, list(range(5000)), {"x" * 40: -(2**63)}, bytes(900_000)]
)
def test_what_it_sends_comes_back(client: Client, value: Any) -> None:
    assert client.call("echo", value) == value


def test_its_calls_may_be_answered_in_any_order(client: Client, hall: Hall) -> None:
    slow = client.start("wait", "slow")
    assert wait_until(lambda: hall.inside == ["slow"])
    assert client.call("echo", "quick") == "quick"
    hall.gate.set()
    assert client.wait(slow) == "slow"


@pytest.mark.parametrize(
    ("method", "args", "code", "name", "words"),
    [
        ("fail", ("declared",), "declared", "OutOfStock", "no tea"),
        ("fail", ("otherwise",), "internal", "", "internal error in hall.fail (reference "),
        ("charge", ({"id": "x", "sku": "y"},), "invalid_argument", "", "charge: argument `order`: Expected `int`"),
        ("charge", (), "invalid_argument", "", "charge: argument `order` is missing"),
    ],
)
def test_it_reads_every_failure(client: Client, method: str, args: Any, code: str, name: str, words: str) -> None:
    with pytest.raises(CallFailed) as caught:
        client.call(method, *args)
    assert (caught.value.code, caught.value.name) == (code, name)
    assert caught.value.message.startswith(words)
    assert "secret" not in caught.value.message
    assert client.call("echo", 1) == 1, "the connection is still good"


def test_a_method_number_that_is_not_in_the_hello_is_one_calls_failure(client: Client) -> None:
    client.methods["ghost"] = 99
    with pytest.raises(CallFailed) as caught:
        client.call("ghost")
    assert caught.value.code == "not_found"
    assert client.call("echo", 1) == 1


def test_at_its_deadline_it_is_answered_and_the_handler_is_told(client: Client, hall: Hall) -> None:
    with pytest.raises(CallFailed) as caught:
        client.call("wait", "late", time_left=0.05)
    assert caught.value.code == "deadline"
    assert wait_until(lambda: hall.cancelled == ["late"])


def test_it_cancels_a_call_and_its_answer_still_comes(client: Client, hall: Hall) -> None:
    call_id = client.start("wait", "unwanted")
    assert wait_until(lambda: hall.inside == ["unwanted"])
    client.cancel(call_id)
    assert wait_until(lambda: hall.cancelled == ["unwanted"])
    client.ping()
    while client.cancelled:
        client.read()
    assert client.answers == {}
    assert client.call("echo", 1) == 1


def test_cancelling_what_is_answered_already_does_no_harm(client: Client) -> None:
    call_id = client.start("echo", 1)
    while call_id not in client.answers:
        client.read()
    client._send(foreign_client.CANCEL, call_id=call_id)
    assert client.call("echo", 2) == 2


def test_it_is_turned_away_when_there_is_no_room(hall: Hall, sock_dir: Path) -> None:
    with ServerThread(hall.service, sock_dir / "s", settings=ServerSettings(concurrency=1, queue=1)) as server:
        client = Client(server.address)
        first = client.start("wait", "runs")
        second = client.start("wait", "waits")
        with pytest.raises(CallFailed) as caught:
            client.call("wait", "too much")
        assert caught.value.code == "overloaded"
        hall.gate.set()
        assert [client.wait(first), client.wait(second)] == ["runs", "waits"]
        client.close()


def test_many_calls_in_flight_are_all_answered(client: Client, hall: Hall) -> None:
    hall.gate.set()
    ids = [client.start("wait", str(number)) for number in range(MAX_CALLS_PER_CONNECTION + 50)]
    assert [client.wait(call_id) for call_id in ids] == [str(number) for number in range(len(ids))]


def test_a_result_that_it_cannot_take_is_a_failure_it_can(server: ServerThread) -> None:
    client = Client(server.address, max_frame_size=1024)
    assert client.call("echo", "x" * 1000) == "x" * 1000
    with pytest.raises(CallFailed) as caught:
        client.call("echo", "x" * 2000)
    assert caught.value.code == "internal"
    assert "its result cannot be sent" in caught.value.message
    client.close()


# --- ping ------------------------------------------------------------------------------------------------


def test_its_pings_are_answered(client: Client) -> None:
    client.ping()
    client.ping()
    assert client.pong_count == 2


def test_a_burst_of_pings_is_answered_at_least_once_and_at_most_as_often(client: Client) -> None:
    client._socket.sendall(foreign_client.HEADER.pack(0, foreign_client.PING, 0, 0, 0, 0) * 1000)
    assert client.call("echo", 1) == 1
    assert 1 <= client.pong_count <= 1000


# --- farewell --------------------------------------------------------------------------------------------


def test_at_a_shutdown_it_learns_which_calls_are_answered(client: Client, hall: Hall, server: ServerThread) -> None:
    running = client.start("wait", "running")
    assert wait_until(lambda: hall.inside == ["running"])
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    while client.goaway is None:
        client.read()
    code, reason, last_call_id = client.goaway
    assert (code, last_call_id) == ("shutdown", running)
    assert "hall is shutting down" in reason
    with pytest.raises(Violation, match="farewell"):
        client.start("echo", 1)
    client.goaway = None  # a call that crosses the farewell on the wire
    late = client.start("echo", "late")
    client.goaway = [code, reason, last_call_id]
    hall.gate.set()
    assert client.wait(running) == "running"
    with pytest.raises(EOFError):
        client.read()
    assert late not in client.answers
    stopping.join()


def test_it_may_say_farewell_itself_and_still_be_answered(client: Client, hall: Hall) -> None:
    running = client.start("wait", "running")
    client._send(foreign_client.GOAWAY, payload=pack(["shutdown", "done", 0]))
    hall.gate.set()
    assert client.wait(running) == "running"


@pytest.mark.parametrize(
    "vector", [v for v in vectors("malformed") if v["receiver"] == "server"], ids=lambda v: v["name"]
)
def test_what_the_page_forbids_is_answered_with_a_farewell_that_says_why(
    hall: Hall, sock_dir: Path, vector: dict[str, Any]
) -> None:
    settings = ServerSettings(max_frame_size=DEFAULT_MAX_FRAME_SIZE)
    with (
        ServerThread(hall.service, sock_dir / "s", settings=settings) as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock,
    ):
        sock.settimeout(10)
        sock.connect(server.address)
        sock.sendall(b"".join(frame_bytes(name) for name in vector["before"]) + bytes.fromhex(vector["hex"]))
        received = bytearray()
        try:
            while chunk := sock.recv(65536):
                received += chunk
        except ConnectionResetError:
            pass  # what it sent was not read to its end
    assert vector["error"].encode() in received or not received


def test_a_client_that_goes_cancels_its_calls(client: Client, hall: Hall) -> None:
    client.start("wait", "abandoned")
    assert wait_until(lambda: hall.inside == ["abandoned"])
    client.close()
    assert wait_until(lambda: hall.cancelled == ["abandoned"])
