"""Trace a call through two services with OpenTelemetry: the spans of both sides belong to one trace.

A real program exports its spans to a collector; this one keeps them and prints them as a tree.

Prints:

    INTERNAL breakfast
      CLIENT kitchen/toast
        SERVER kitchen/toast
          CLIENT pantry/take
            SERVER pantry/take
"""

from __future__ import annotations

import asyncio

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import hostline
from hostline.bridges import otel

kept = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)
otel.instrument()

pantry = hostline.Service("pantry")
kitchen = hostline.Service("kitchen")


@pantry.method
async def take(what: str) -> str:
    return what


@kitchen.method
def toast(slices: int) -> int:
    with hostline.connect("./pantry.sock") as line:  # in a worker thread, where the span is the current one too
        line.call("take", "bread")
    return slices


def show(parent: int | None, depth: int) -> None:
    spans: tuple[ReadableSpan, ...] = kept.get_finished_spans()
    for span in spans:
        if (span.parent.span_id if span.parent else None) == parent:
            print(f"{'  ' * depth}{span.kind.name} {span.name}")
            show(span.context.span_id, depth + 1)


async def main() -> None:
    async with pantry.serve("./pantry.sock"), kitchen.serve("./kitchen.sock"):
        async with hostline.aio.connect("./kitchen.sock") as line:
            with trace.get_tracer("example").start_as_current_span("breakfast"):
                await line.call("toast", 2)
    show(None, 0)


asyncio.run(main())
