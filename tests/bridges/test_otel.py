"""OpenTelemetry: a span on each side of a call, one the parent of the other, whichever way the call and handler run."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.cli.running import environment
from tests.leaks import wait_until
from tests.serving import Conversation, RawClient, ScriptedServer, ServerThread, Stage, stages
from tests.watched import RefusedError, shop

import hostline
from hostline.bridges import otel
from hostline.rpc.watching.tracing import hooks
from hostline.wire.frame import Flag, Kind, encode_frame

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Spans:
    """What was recorded."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    def wait(self, count: int) -> list[ReadableSpan]:
        """Return the spans that have ended, once there are so many."""
        assert wait_until(lambda: len(self.exporter.get_finished_spans()) >= count), self.names
        spans = list(self.exporter.get_finished_spans())
        assert len(spans) == count, self.names
        return spans

    @property
    def names(self) -> list[str]:
        return [f"{span.kind.name} {span.name}" for span in self.exporter.get_finished_spans()]

    def pair(self, count: int = 2) -> tuple[ReadableSpan, ReadableSpan]:
        """Return the last call's client span and server span, the one being the other's parent."""
        spans = self.wait(count)[-2:]
        client = next(span for span in spans if span.kind is trace.SpanKind.CLIENT)
        server = next(span for span in spans if span.kind is trace.SpanKind.SERVER)
        assert server.parent is not None
        assert server.parent.span_id == client.context.span_id
        assert server.parent.is_remote
        assert server.context.trace_id == client.context.trace_id
        return client, server


@pytest.fixture
def spans() -> Iterator[Spans]:
    recorded = Spans()
    otel.instrument(tracer_provider=recorded.provider)
    yield recorded
    otel.uninstrument()


@pytest.fixture(params=stages())
def stage(request: pytest.FixtureRequest, sock_dir: Path) -> Iterator[Stage]:
    face, loop = request.param
    made = Stage(face, loop, sock_dir)
    yield made
    made.close()


def traced_shop() -> hostline.Service:
    """Return a service whose handlers tell which span is the current one, with each item of a stream too."""
    service = hostline.Service("shop")

    def current() -> str:
        return format(trace.get_current_span().get_span_context().span_id, "016x")

    @service.method
    async def task() -> str:
        await asyncio.sleep(0)
        return current()

    @service.method
    def thread() -> str:
        return current()

    @service.method(inline=True)
    def quick() -> str:
        return current()

    @service.method
    async def stream() -> AsyncIterator[str]:
        for _ in range(3):
            yield current()
            await asyncio.sleep(0)

    @service.method
    def stream_in_thread() -> Iterator[str]:
        for _ in range(3):
            yield current()

    @service.method
    async def take(items: AsyncIterator[int]) -> str:
        async for _ in items:
            pass
        return current()

    return service


def hex_id(span: ReadableSpan) -> str:
    return format(span.context.span_id, "016x")


@pytest.mark.parametrize("method", ["task", "thread", "quick"])
def test_the_handler_runs_in_the_servers_span_which_is_the_clients_child(
    stage: Stage, spans: Spans, method: str
) -> None:
    stage.serve(traced_shop())
    said = stage.connect().call(method)
    client, server = spans.pair()
    assert said == hex_id(server)
    for span in (client, server):
        assert span.name == f"shop/{method}"
        assert span.attributes is not None
        assert {name: span.attributes[name] for name in ("rpc.system", "rpc.service", "rpc.method")} == {
            "rpc.system": "hostline", "rpc.service": "shop", "rpc.method": method,
        }  # fmt: skip
        assert span.status.status_code is trace.StatusCode.UNSET
    assert client.parent is None
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_the_callers_current_span_is_the_parent(stage: Stage, spans: Spans) -> None:
    stage.serve(traced_shop())
    line = stage.connect()

    def call() -> Any:
        return line.call("task")

    if stage.is_async:

        async def main() -> None:
            with spans.tracer.start_as_current_span("outer"):
                await asyncio.gather(*[line.line.call("task") for _ in range(3)])

        line.on_loop.run(main())
    else:
        with spans.tracer.start_as_current_span("outer"):
            for _ in range(3):
                call()
    done = spans.wait(7)
    outer = next(span for span in done if span.name == "outer")
    clients = [span for span in done if span.kind is trace.SpanKind.CLIENT]
    assert [span.parent.span_id for span in clients if span.parent] == [outer.context.span_id] * 3
    assert {span.context.trace_id for span in done} == {outer.context.trace_id}


@pytest.mark.parametrize("method", ["stream", "stream_in_thread"])
def test_a_streams_spans_last_until_its_end(stage: Stage, spans: Spans, method: str) -> None:
    stage.serve(traced_shop())
    line = stage.connect()
    if stage.is_async:

        async def main() -> list[str]:
            return [item async for item in line.line.stream(method)]

        said = line.on_loop.run(main())
    else:
        said = [*line.line.stream(method)]
    client, server = spans.pair()
    assert said == [hex_id(server)] * 3
    assert client.name == f"shop/{method}"


def test_a_stream_that_is_left_and_one_that_is_never_begun_leave_no_open_span(sock_dir: Path, spans: Spans) -> None:
    with ServerThread(shop(), sock_dir / "s"), hostline.connect(sock_dir / "s") as line:
        line.stream("count", 3).close()
        with line.stream("count", 1_000_000) as items:
            next(items)
        client, server = spans.pair()
        assert client.status.status_code is trace.StatusCode.UNSET
        assert server.status.status_code is trace.StatusCode.UNSET
        assert server.attributes is not None
        assert server.attributes["hostline.outcome"] in ("cancelled", "disconnected")


def test_an_argument_that_is_a_stream_has_one_span_a_side(stage: Stage, spans: Spans) -> None:
    stage.serve(traced_shop())
    said = stage.connect().call("take", iter([1, 2]))
    _, server = spans.pair()
    assert said == hex_id(server)


def test_each_call_of_a_batch_has_its_spans(stage: Stage, spans: Spans) -> None:
    stage.serve(shop())
    line = stage.connect()
    if stage.is_async:

        async def main() -> None:
            async with line.line.batch() as batch:
                for method in ("task", "thread", "quick"):
                    batch.call(method, 1)
                batch.call("nothing")

        line.on_loop.run(main())
    else:
        with line.line.batch() as batch:
            for method in ("task", "thread", "quick"):
                batch.call(method, 1)
            batch.call("nothing")
    done = spans.wait(7)
    clients = {span.context.span_id: span for span in done if span.kind is trace.SpanKind.CLIENT}
    servers = [span for span in done if span.kind is trace.SpanKind.SERVER]
    assert sorted(clients[span.parent.span_id].name for span in servers if span.parent) == [
        "shop/quick", "shop/task", "shop/thread",
    ]  # fmt: skip
    (failed,) = [span for span in clients.values() if span.name == "shop/nothing"]
    assert failed.status.status_code is trace.StatusCode.ERROR


def test_a_failure_is_the_status_of_both_and_the_handlers_exception_is_recorded(stage: Stage, spans: Spans) -> None:
    stage.serve(shop())
    line = stage.connect()
    with pytest.raises(hostline.InternalError):
        line.call("boom", "no tea")
    client, server = spans.pair()
    assert {span.status.status_code for span in (client, server)} == {trace.StatusCode.ERROR}
    assert client.attributes is not None
    assert server.attributes is not None
    assert (client.attributes["error.type"], server.attributes["error.type"]) == ("InternalError", "internal")
    (recorded,) = server.events
    assert recorded.attributes is not None
    assert (recorded.name, recorded.attributes["exception.message"]) == ("exception", "no tea")
    assert "no tea" not in str(client.status.description)
    with pytest.raises(RefusedError):
        line.call("refuse", raises=[RefusedError])
    client, server = spans.pair(4)
    assert server.attributes is not None
    assert server.attributes["error.type"] == "declared"


def test_what_never_reached_a_handler_has_spans_too(stage: Stage, spans: Spans) -> None:
    stage.serve(shop())
    line = stage.connect()
    with pytest.raises(hostline.MethodNotFoundError):
        line.call("nothing")
    assert spans.wait(1)[0].status.status_code is trace.StatusCode.ERROR
    with pytest.raises(hostline.InvalidArgumentError):
        line.call("task", "x")
    _, server = spans.pair(3)
    assert server.attributes is not None
    assert server.attributes["error.type"] == "invalid_argument"
    with pytest.raises(hostline.DeadlineExceededError):
        line.call("wait", timeout=0.01)
    client, _ = spans.pair(5)
    assert client.attributes is not None
    assert client.attributes["error.type"] == "DeadlineExceededError"


def test_baggage_crosses_the_call(sock_dir: Path, spans: Spans) -> None:
    service = hostline.Service("shop")

    @service.method
    def who() -> object:
        return baggage.get_baggage("customer")

    with ServerThread(service, sock_dir / "s"), hostline.connect(sock_dir / "s") as line:
        token = context.attach(baggage.set_baggage("customer", "tea lover"))
        try:
            assert line.call("who") == "tea lover"
        finally:
            context.detach(token)
        assert line.call("who") is None


def test_a_call_in_a_handler_continues_the_trace(sock_dir: Path, spans: Spans) -> None:
    front = hostline.Service("front")
    with ServerThread(shop(), sock_dir / "s"), hostline.connect(sock_dir / "s") as inner:

        @front.method
        def ask(number: int) -> int:
            answer: int = inner.call("quick", number)
            return answer

        with ServerThread(front, sock_dir / "f"), hostline.connect(sock_dir / "f") as line:
            assert line.call("ask", 1) == 2
            done = spans.wait(4)
    by_id = {span.context.span_id: span for span in done}
    span = next(span for span in done if span.name == "shop/quick" and span.kind is trace.SpanKind.SERVER)
    way = [span.name]
    while span.parent is not None:
        span = by_id[span.parent.span_id]
        way.append(span.name)
    assert way == ["shop/quick", "shop/quick", "front/ask", "front/ask"]


# --- on the wire ---------------------------------------------------------------------------------------


def with_context(client: RawClient, call_id: int, texts: bytes) -> bytes:
    return encode_frame(Kind.CALL, call_id, texts + b"\x91\x07", flags=Flag.CONTEXT, method=client.methods["quick"])


def test_a_foreign_clients_traceparent_is_the_parent_and_nonsense_begins_a_new_trace(
    sock_dir: Path, spans: Spans
) -> None:
    with ServerThread(shop(), sock_dir / "s") as server, RawClient(server.address) as client:
        client.sock.sendall(with_context(client, 1, b"\x81\xabtraceparent\xd9\x37" + PARENT.encode()))
        client.read()
        client.sock.sendall(with_context(client, 2, b"\x82\xabtraceparent\xa300-\xa5other\xa0"))
        client.read()
        client.call(3, "quick", 1)
        client.read()
        first, second, third = spans.wait(3)
    assert format(first.context.trace_id, "032x") == TRACE
    assert second.parent is None
    assert third.parent is None
    assert len({span.context.trace_id for span in (first, second, third)}) == 3


def test_nothing_is_sent_to_a_server_that_does_not_know_it(sock_dir: Path, spans: Spans) -> None:
    flags: list[int] = []

    def old(conversation: Conversation) -> None:
        from hostline.wire.codec import MethodEntry, ServerHello, encode_hello, encode_reply

        assert conversation.read().kind == Kind.HELLO
        features = ["cancel", "deadline", "ping", "streams"]
        methods = [MethodEntry("quick")]
        conversation.send(encode_hello(ServerHello(service="old", features=features, methods=methods)))
        call = conversation.read()
        flags.append(call.flags)
        conversation.send(bytes(encode_reply(call.call_id, 1)))

    with ScriptedServer(str(sock_dir / "s"), old), hostline.connect(sock_dir / "s") as line:
        assert line.call("quick", 1) == 1
    assert flags == [Flag.DEADLINE]


def test_without_a_configured_sdk_nothing_is_sent(sock_dir: Path) -> None:
    otel.instrument(tracer_provider=trace.NoOpTracerProvider())
    try:
        span = hooks.tracer.call("shop", "quick") if hooks.tracer else None
        assert span is not None
        assert span.carrier is None
        with ServerThread(shop(), sock_dir / "s"), hostline.connect(sock_dir / "s") as line:
            assert line.call("quick", 1) == 2
    finally:
        otel.uninstrument()
    assert not otel.is_instrumented()


def test_a_propagator_that_fails_costs_the_span_and_not_the_call(
    sock_dir: Path, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(propagate, "inject", fail)
    monkeypatch.setattr(spans.provider.sampler, "should_sample", fail)
    with ServerThread(shop(), sock_dir / "s"), hostline.connect(sock_dir / "s") as line:
        assert line.call("quick", 1) == 2
        assert line.call("task", 1) == 2


PROGRAM = """
import json, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
import hostline
from hostline.bridges import otel

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
otel.instrument()
with hostline.connect(sys.argv[1]) as line:
    line.call("task", 1)
(span,) = exporter.get_finished_spans()
print(json.dumps([span.context.trace_id, span.context.span_id]))
"""


def test_the_context_crosses_processes(sock_dir: Path, spans: Spans) -> None:
    with ServerThread(shop(), sock_dir / "s"):
        command = [sys.executable, "-c", PROGRAM, str(sock_dir / "s")]
        said = subprocess.run(command, capture_output=True, check=True, timeout=15, env=environment()).stdout
        (server,) = spans.wait(1)
    assert server.parent is not None
    assert [server.context.trace_id, server.parent.span_id] == json.loads(said)
