"""The compiled core and its source do the same: equal results, errors in equal words, and equal state afterwards.

Each test drives a compiled module and its pure twin, imported from the source beside it, with the same inputs. That is
for the floors that do no I/O; the compiled modules above them are proved by the whole suite, which runs both ways.
"""

from __future__ import annotations

import enum
import importlib
import os
import random
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hostline
from tests import core
from tests.fuzz import test_connections, test_frames
from tests.fuzz.harness import Case, inputs
from tests.golden import vectors

MODULES = (
    "hostline.wire.arriving",
    "hostline.wire.frame",
    "hostline.wire.codec",
    "hostline.wire.attached",
    "hostline.wire.budget",
    "hostline.protocol.flow",
    "hostline.protocol.outgoing",
    "hostline.protocol.reading",
    "hostline.protocol.states",
    "hostline.protocol.channels.batches",
    "hostline.protocol.channels.messages",
    "hostline.protocol.channels.values",
    "hostline.protocol.connection.base",
    "hostline.protocol.connection.client",
    "hostline.protocol.connection.server",
)
COUNT = 800

pytestmark = [
    pytest.mark.skipif(not hostline.is_compiled(), reason="the compiled core is not here: HOSTLINE_BUILD_EXT=yes"),
    *([] if core.IS_LEFT_OUT else [pytest.mark.ci_required]),
]


def gathered(modules: Iterable[ModuleType]) -> SimpleNamespace:
    """Return the modules by their last names."""
    return SimpleNamespace(**{module.__name__.rpartition(".")[2]: module for module in modules})


PURE = gathered(core.pure_twins(*MODULES)) if hostline.is_compiled() else None


@pytest.fixture(scope="module")
def pair() -> tuple[SimpleNamespace, SimpleNamespace]:
    """Give the pure twins and the compiled modules."""
    assert PURE is not None
    return PURE, gathered(importlib.import_module(name) for name in MODULES)


def plain(value: Any) -> Any:
    """Return a value in a form that does not know which twin it comes from."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, bool | int | float | str | bytes | None):
        return value
    if isinstance(value, memoryview | bytearray):
        return type(value).__name__, bytes(value), plain(getattr(value, "fds", None))
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return type(value).__name__, sorted(map(plain, value), key=repr)
    if isinstance(value, list | tuple | deque):
        return type(value).__name__, [plain(item) for item in value]
    if isinstance(value, Exception):
        return type(value).__name__, str(value)
    if isinstance(value, msgspec.Struct):
        return type(value).__name__, plain(msgspec.to_builtins(value))
    if isinstance(value, Owner) or callable(value):
        return repr(value)
    if type(value).__name__ == "Arriving":
        return "Arriving", value.arrived  # its memory was used before, by either twin
    kept = {name: plain(getattr(value, name)) for name in fields(value) if name != "space"}
    return type(value).__name__, kept


def fields(value: Any) -> list[str]:
    """Return the names of what an object of either twin keeps, by its pure class."""
    module = getattr(PURE, type(value).__module__.rpartition(".")[2])
    pure = getattr(module, type(value).__name__)
    if "__slots__" in vars(pure):
        return sorted(pure.__slots__)
    names = {"Connection": sorted(vars(PURE.base.Connection(1024)))}  # type: ignore[union-attr]
    made = {
        "ClientConnection": lambda: PURE.client.ClientConnection(),  # type: ignore[union-attr]
        "ServerConnection": lambda: PURE.server.ServerConnection(b""),  # type: ignore[union-attr]
    }
    return names.get(pure.__name__) or sorted(vars(made[pure.__name__]()))


class Owner:
    """Stands for a descriptor."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_closed = False

    def __repr__(self) -> str:
        return f"Owner({self.number}, {self.is_closed})"

    def close(self) -> None:
        self.is_closed = True


def outcome(call: Callable[[], Any]) -> Any:
    """Return what a call gives, or the class and the text of what it raises."""
    try:
        return "returned", plain(call())
    except Exception as error:
        return "raised", type(error).__name__, str(error)


Script = Callable[[SimpleNamespace], list[Any]]


def compare(pair: tuple[SimpleNamespace, SimpleNamespace], script: Script) -> list[Any]:
    """Run a script with each twin and demand the same story."""
    pure, compiled = script(pair[0]), script(pair[1])
    assert pure == compiled
    return pure


# --- the pairs themselves ----------------------------------------------------------------------------


def test_the_twins_are_what_they_are_said_to_be(pair: tuple[SimpleNamespace, SimpleNamespace]) -> None:
    for name, module in vars(pair[0]).items():
        assert module.__file__.endswith(".py"), name
    below = {name for name in core.sources() if name.startswith(("hostline.wire.", "hostline.protocol."))}
    compiled = {name.rpartition(".")[2] for name in below - {"hostline.wire.schema"}}
    assert {name for name, module in vars(pair[1]).items() if not module.__file__.endswith(".py")} == compiled
    assert pair[0].client.ClientConnection is not pair[1].client.ClientConnection
    assert pair[0].client.Connection is pair[0].base.Connection, "the pure twins use one another"


# --- frames ------------------------------------------------------------------------------------------


def decoder_story(twin: SimpleNamespace, case: Case, fds: dict[int, int], max_fds: int) -> list[Any]:
    decoder = twin.frame.FrameDecoder(case.about, max_fds)
    told: list[Any] = []
    for number, (_, piece) in enumerate(case.pieces()):
        owners = [Owner(i) for i in range(fds.get(number, 0))] or None
        told.append(outcome(lambda piece=piece, owners=owners: decoder.receive_data(piece, owners)))  # type: ignore[misc]
        told.append((decoder.is_partial, decoder.reserved_size, decoder.mark, plain(decoder)))
    told.append(outcome(decoder.close_held))
    return told


def test_decoders_cut_the_same_frames_and_refuse_the_same_headers(pair: Any) -> None:
    rng = random.Random(3)
    for _, case in inputs("frames", range(COUNT), test_frames.make):
        fds = {number: rng.randrange(4) for number in range(3)} if rng.random() < 0.3 else {}
        max_fds = rng.choice((0, 2))
        compare(pair, lambda twin, case=case, fds=fds, most=max_fds: decoder_story(twin, case, fds, most))  # type: ignore[misc]


def test_the_golden_frames_are_read_alike_however_they_are_cut(pair: Any) -> None:
    data = b"".join(bytes.fromhex(vector["hex"]) for vector in vectors("frames") if "hex" in vector)
    rng = random.Random(5)
    for cuts in ((), tuple(range(1, len(data))), *(tuple(rng.sample(range(1, len(data)), 9)) for _ in range(50))):
        case = Case(data, cuts, 1 << 20)
        compare(pair, lambda twin, case=case: decoder_story(twin, case, {}, 250))  # type: ignore[misc]


@settings(max_examples=300)
@given(
    header=st.tuples(
        st.sampled_from([0, 1, 17, 1024, 65_536, 1 << 31, (1 << 32) - 1]) | st.integers(0, (1 << 32) - 1),
        st.integers(0, 255),
        st.sampled_from([0, 1, 2, 4, 8, 16, 255]),
        st.sampled_from([0, 1, 2, 3, 65_535]),
        st.sampled_from([0, 1, (1 << 31), (1 << 32) - 1]),
        st.sampled_from([0, 1, (1 << 32) - 1]),
    ),
    rest=st.binary(max_size=40),
    max_fds=st.integers(0, 3),
    has_met=st.booleans(),
)
def test_every_header_has_one_verdict(header: Any, rest: bytes, max_fds: int, has_met: bool) -> None:
    def story(twin: Any) -> list[Any]:
        decoder = twin.FrameDecoder(1024, max_fds)
        if has_met:
            decoder.expect_frames()
        data = twin.HEADER.pack(*header) + rest
        return [outcome(lambda: decoder.receive_data(data, [Owner(0)] * (header[3] % 3))), plain(decoder)]

    assert PURE is not None
    assert story(PURE.frame) == story(importlib.import_module("hostline.wire.frame"))


# --- payloads ----------------------------------------------------------------------------------------


class Odd:
    """Cannot be encoded."""

    def __repr__(self) -> str:
        return "Odd()"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=8)
    | st.binary(max_size=40) | st.just(Odd()) | st.just(1 << 70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300)
@given(
    call_id=st.sampled_from([0, 1, (1 << 32) - 1]),
    method=st.sampled_from([0, 7, (1 << 32) - 1]),
    args=st.lists(VALUES, max_size=3).map(tuple),
    keywords=st.none() | st.dictionaries(st.text(max_size=4), VALUES, max_size=2),
    time_left=st.none() | st.floats() | st.integers(-3, 10**30),
    size=st.sampled_from([0, 16, 1024, 1 << 30]),
    has_items=st.booleans(),
    context=st.none() | st.dictionaries(st.text(max_size=6), st.text(max_size=30), max_size=3),
)
def test_calls_answers_and_items_are_written_and_read_alike(
    call_id: int, method: int, args: Any, keywords: Any, time_left: Any, size: int, has_items: bool, context: Any
) -> None:
    def story(codec: Any, frame: Any) -> list[Any]:
        call = lambda: codec.encode_call(call_id, method, args, keywords, time_left, size, has_items, None, context)  # noqa: E731
        told = [
            outcome(call),
            outcome(lambda: codec.encode_reply(call_id, args, size)),
            outcome(lambda: codec.encode_item(call_id, args, size)),
            outcome(lambda: codec.encode_failure(call_id, "internal", "E", repr(keywords), max(size, 1024))),
            outcome(lambda: codec.encode_credit(call_id, method)),
        ]
        if told[0][0] == "returned":
            decoder = frame.FrameDecoder(1 << 30)
            decoder.expect_frames()
            data = bytes(call())
            told.append(outcome(lambda: [codec.split_call(one) for one in decoder.receive_data(data)]))
        return told

    assert PURE is not None
    compiled = importlib.import_module("hostline.wire.codec"), importlib.import_module("hostline.wire.frame")
    assert story(PURE.codec, PURE.frame) == story(*compiled)


@settings(max_examples=300)
@given(payload=st.binary(max_size=60), flags=st.integers(0, 15))
def test_malformed_payloads_are_refused_in_the_same_words(payload: bytes, flags: int) -> None:
    def story(codec: Any, frame: Any) -> list[Any]:
        call = frame.Frame(2, flags, 0, 1, 0, payload)
        readers = (codec.decode_credit, codec.decode_failure, codec.decode_farewell, codec.hello_version)
        told = [outcome(lambda: codec.split_call(call)), outcome(lambda: codec.decode_result(payload, list[int]))]
        return told + [outcome(lambda reader=reader: reader(payload)) for reader in readers]  # type: ignore[misc]

    assert PURE is not None
    compiled = importlib.import_module("hostline.wire.codec"), importlib.import_module("hostline.wire.frame")
    assert story(PURE.codec, PURE.frame) == story(*compiled)


def test_the_walk_counts_alike(pair: Any) -> None:
    rng = random.Random(7)
    for _ in range(COUNT * 2):
        if rng.random() < 0.5:
            payload = bytes(rng.choice(b"\x01\x80\x81\x90\x91\x92\xa1\xc0\xc1\xc4\xc7\xd9\xdc\xdd\xde\xdf\xd4\x00\xff")
                            for _ in range(rng.randrange(30)))  # fmt: skip
        else:
            payload = bytearray(
                msgspec.msgpack.encode([{"a": [1, "x" * 40, b"y" * 300]}, None, 2.5] * rng.randrange(4))
            )
            for _ in range(rng.randrange(3)):
                payload[rng.randrange(len(payload))] = rng.randrange(256)
            payload = bytes(payload)
        depth, elements = rng.randrange(4), rng.randrange(20)
        compare(pair, lambda twin, p=payload, d=depth, e=elements: [outcome(lambda: twin.budget._walk(p, d, e))])  # type: ignore[misc]


# --- what protocol/ decides --------------------------------------------------------------------------


def test_credit_is_kept_alike(pair: Any) -> None:
    def story(twin: SimpleNamespace, rng: random.Random) -> list[Any]:
        window, allowance = twin.flow.Window(), twin.flow.Allowance()
        told: list[Any] = []
        for _ in range(60):
            size = rng.choice((0, 1, 100, 70_000, 300_000))
            act = rng.choice((window.arrived, window.taken, allowance.take, allowance.grant))
            told += [outcome(lambda act=act, size=size: act(size)), plain(window), plain(allowance)]  # type: ignore[misc]
            told.append(allowance.may_send)
        return told

    for seed in range(200):
        compare(pair, lambda twin, seed=seed: story(twin, random.Random(seed)))  # type: ignore[misc]


def test_what_waits_to_be_sent_is_kept_alike(pair: Any) -> None:
    def story(twin: SimpleNamespace, rng: random.Random) -> list[Any]:
        outgoing = twin.outgoing.Outgoing()
        told: list[Any] = []
        for number in range(40):
            choice = rng.random()
            if choice < 0.5:
                data: Any = bytes(twin.frame.encode_frame(6, rng.randrange(1, 4), bytes(rng.randrange(9))))
                if rng.random() < 0.3:
                    data = twin.attached.Attached(data)
                    data.fds = [Owner(number)]
                outgoing.append(data)
            elif choice < 0.9:
                told += [plain(outgoing.buffers()), plain(outgoing.fds())]
                most = sum(map(len, outgoing.buffers()))
                if most:
                    outgoing.sent(rng.randrange(most + 1))
            elif choice < 0.95:
                told.append(outgoing.replace_end(rng.randrange(1, 4), twin.frame.encode_frame(7, 1)))
            elif outgoing.fds():
                told.append(outgoing.first())
                outgoing.replace_first(twin.frame.encode_frame(7, 1))
            told.append(plain(outgoing))
        outgoing.clear()
        return [*told, plain(outgoing)]

    for seed in range(300):
        compare(pair, lambda twin, seed=seed: story(twin, random.Random(seed)))  # type: ignore[misc]


def server_story(twin: SimpleNamespace, case: Case, seed: int) -> list[Any]:
    rng = random.Random(seed)
    codec = twin.codec
    hello = codec.encode_hello(codec.ServerHello(service="s", methods=[codec.MethodEntry("a", False, True, True)]))
    server = twin.server.ServerConnection(hello, case.about[0], rng.choice((0, 3)))
    told: list[Any] = []
    for _, piece in case.pieces():
        told.append(outcome(lambda piece=piece: server.receive_data(piece)))  # type: ignore[misc]
        for call_id in sorted(server.in_flight):
            frame = codec.encode_reply(call_id, "done")
            act = rng.choice(
                (
                    lambda: None,
                    lambda call_id=call_id, frame=frame: server.reply(call_id, frame),
                    lambda call_id=call_id: server.fail(call_id, "internal", "E", "text"),
                    lambda call_id=call_id, frame=frame: server.item(call_id, frame),
                    lambda call_id=call_id: server.end(call_id),
                    lambda call_id=call_id: server.taken(call_id, 200_000),
                    lambda call_id=call_id: server.finish(call_id),
                )
            )
            told.append(outcome(act))
        if rng.random() < 0.1:
            told.append(outcome(server.ping))
        if rng.random() < 0.05:
            told.append(outcome(lambda: server.go_away("shutdown", "leaving")))
        if rng.random() < 0.5:
            told.append(plain(server.data_to_send()))
        told.append((server.is_partial, server.answers_pings, server.takes_descriptors, plain(server)))
    return told


def client_story(twin: SimpleNamespace, case: Case, seed: int) -> list[Any]:
    rng = random.Random(seed)
    client = twin.client.ClientConnection("p", case.about[0])
    told: list[Any] = []
    for _, piece in case.pieces():
        told.append(outcome(lambda piece=piece: client.receive_data(piece)))  # type: ignore[misc]
        for number in range(rng.randrange(4)):
            method = rng.choice([*client.methods, "nothing"])
            has_items = client.takes_items(method)
            ticket, left = f"t{number}", rng.choice((None, 1.5))
            words = {"k": number} if number else None
            told.append(
                outcome(
                    lambda m=method, n=number, k=words, w=left, t=ticket, h=has_items: client.call(m, (n,), k, w, t, h)  # type: ignore[misc]
                )
            )
        for call_id in sorted(client.in_flight):
            act = rng.choice(
                (
                    lambda: None,
                    lambda call_id=call_id: client.item(call_id, "x" * rng.choice((1, 900))),
                    lambda call_id=call_id: client.end(call_id),
                    lambda call_id=call_id: client.cancel(call_id),
                    lambda call_id=call_id: client.taken(call_id, 200_000),
                    lambda call_id=call_id: client.forget(call_id),
                )
            )
            told.append((outcome(act), client.may_send(call_id), client.was_not_run(call_id)))
        told.append((client.is_usable, client.max_fds, plain(client.data_to_send()), plain(client)))
    client.close_held()
    return told


def test_servers_keep_the_same_books_whatever_a_client_says(pair: Any) -> None:
    for index, case in inputs("server", range(COUNT), test_connections.make_for_server):
        compare(pair, lambda twin, case=case, index=index: server_story(twin, case, index))  # type: ignore[misc]


def test_clients_keep_the_same_books_whatever_a_server_says(pair: Any) -> None:
    for index, case in inputs("client", range(COUNT), test_connections.make_for_client):
        compare(pair, lambda twin, case=case, index=index: client_story(twin, case, index))  # type: ignore[misc]


# --- channels ----------------------------------------------------------------------------------------


def arrivals(rng: random.Random, header: Any, greeting: bytes) -> list[tuple[bytes, int]]:
    """Return the reads of a channel, each with how many descriptors come with it: mostly right, sometimes not."""
    stream, counts = [greeting], [0]
    for _ in range(rng.randrange(8)):
        count = rng.choice((0, 0, 0, 1, 2, 3))
        data = msgspec.msgpack.encode("x" * rng.choice((0, 3, 60, 3000, 90_000)))
        kind, zero = rng.choice((1, 1, 1, 2, 2, 3) if rng.random() < 0.2 else (1, 2)), int(rng.random() < 0.02)
        length = len(data) if rng.random() < 0.95 else rng.randrange(1 << 32)
        stream.append(header.pack(length, kind, zero, count) + data)
        counts.append(count if rng.random() < 0.95 else rng.randrange(4))
    most = rng.choice((3, 100, 70_000, 200_000))
    reads: list[tuple[bytes, int]] = []
    for data, count in zip(stream, counts, strict=True):
        while True:
            cut = rng.randrange(1, max(most, len(data) // 3))
            if reads and not count and rng.random() < 0.5:
                reads[-1] = reads[-1][0] + data[:cut], reads[-1][1]
            else:
                reads.append((data[:cut], count))
            data, count = data[cut:], 0
            if not data:
                break
    return reads


def channel_story(twin: SimpleNamespace, seed: int) -> list[Any]:
    rng = random.Random(seed)
    twin.arriving._used.clear()  # what was used before decides how large the space is
    kind = rng.choice(("stream", "stream", "seqpacket"))
    messages = twin.messages.Messages(kind, rng.choice((None, 100, 100_000)), 2)
    greeting = twin.messages.HELLO.pack(b"hostchan", 1 if rng.random() < 0.98 else 2, 1, rng.choice((50, 1 << 20)))
    reads = arrivals(rng, twin.messages.HEADER, greeting)
    read = twin.values.value_reader(rng.choice((str, int, Any)))
    told: list[Any] = []
    number = 0
    for data, count in reads:
        owners = [Owner(number + index) for index in range(count)]
        number += count
        while True:
            space = messages.space
            part: Any = data
            if space is not None and rng.random() < 0.8:
                part = space[: len(data)]
                part[:] = data[: len(part)]
            told.append(outcome(lambda part=part, owners=owners: messages.receive_data(part, owners)))  # type: ignore[misc]
            told.append((messages.unfinished, messages.space is None, plain(messages.hello), plain(owners)))
            data, owners = data[len(part) :], []
            if not data:
                break
        choice = rng.random()
        if choice < 0.5:
            told.append(outcome(messages.next_message))
        elif choice < 0.9:
            told.append(outcome(lambda: many(twin, messages, read, 3)))
        elif choice < 0.93:
            messages.fail_later(hostline.HostlineError("later"))
        if rng.random() < 0.3:
            told.append(plain(messages))
        for value in (b"x" * rng.choice((1, 60, 20_000)), Odd()) if rng.random() < 0.1 else ():
            fds = rng.choice((0, 0, 2))
            told.append(outcome(lambda value=value, fds=fds: messages.encode(value, fds)))  # type: ignore[misc]
            told.append(outcome(lambda value=value, fds=fds: messages.encode_bytes(value, fds)))  # type: ignore[misc]
            told.append(outcome(lambda value=value, fds=fds: messages.bytes_in_place(value, fds)))  # type: ignore[misc]
            told.append(outcome(lambda value=value: offered(messages.encode_many([1, value, 2]))))  # type: ignore[misc]
    messages.close()
    return [*told, plain(messages)]


def many(twin: SimpleNamespace, messages: Any, read: Any, count: int) -> list[Any]:
    first = messages.next_message()
    return [] if first is None else read.read_ready(messages, first, count)


def offered(batch: Any) -> list[Any]:
    return [bytes(piece) for piece in (batch.buffers() if batch.is_stream else batch.packets())]


def test_channels_give_and_refuse_the_same_messages(pair: Any) -> None:
    for seed in range(COUNT):
        compare(pair, lambda twin, seed=seed: channel_story(twin, seed))  # type: ignore[misc]


# --- the comparison itself ---------------------------------------------------------------------------


def test_a_twin_that_differs_is_caught(pair: Any) -> None:
    """One byte more in a bound, another word in an error, a count that is not kept."""

    class Generous(pair[1].frame.FrameDecoder):  # type: ignore[misc, name-defined]
        def __init__(self, max_frame_size: int, max_fds: int = 0) -> None:
            super().__init__(max_frame_size + 1, max_fds)

    class Forgetful(pair[1].server.ServerConnection):  # type: ignore[misc, name-defined]
        def finish(self, call_id: int) -> bool:
            return call_id in self.in_flight

    Generous.__name__, Forgetful.__name__ = "FrameDecoder", "ServerConnection"
    Generous.__module__, Forgetful.__module__ = "hostline.wire.frame", "hostline.protocol.connection.server"
    for name, where, planted, story, make in (
        ("frame", "FrameDecoder", Generous, lambda twin, case, _: decoder_story(twin, case, {}, 0), test_frames.make),
        ("server", "ServerConnection", Forgetful, server_story, test_connections.make_for_server),
    ):
        module = SimpleNamespace(**{**vars(getattr(pair[1], name)), where: planted})
        broken = SimpleNamespace(**{**vars(pair[1]), name: module})
        with pytest.raises(AssertionError):
            for index, case in inputs(name, range(300), make):
                compare((pair[0], broken), lambda twin, case=case, index=index, story=story: story(twin, case, index))  # type: ignore[misc]


def test_a_compiled_module_that_is_older_than_its_source_is_caught(tmp_path: Path) -> None:
    name = "hostline.protocol.connection.client"
    source = core.sources()[name]
    names = {path.name for path in core.made_from(source)}
    assert {"client.py", "client.pxd", "base.pxd", "cheader.pxd", "flow.pxd", "frame.pxd"} <= names
    library = tmp_path / "client.so"
    library.touch()
    assert core.stale({name: library}, {name: source}) == []
    os.utime(library, (1, 1))
    (sentence,) = core.stale({name: library}, {name: source})
    assert sentence.startswith(f"{name} was compiled before hostline/protocol/connection/base.pxd, ")
