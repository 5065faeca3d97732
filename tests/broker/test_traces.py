"""The trace of who publishes goes on in who handles; nothing of what is published is in it."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from cacheaside import Cache, telemetry
from cacheaside.engine.commands import Run
from cacheaside.testing.servers import wait_until
from cacheaside.toolkit import Broker, Message
from cacheaside.toolkit.board import PUBLISH
from cacheaside.toolkit.messages import Types
from tests.broker.conftest import Heard


class Spans:
    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("cacheaside")

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        assert wait_until(lambda: len(self.named(name)) == 1, 20.0)
        return self.named(name)[0]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    made = Spans()
    monkeypatch.setattr(telemetry, "_tracer", made.tracer)
    return made


def parent(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def test_the_handler_s_span_is_a_child_of_the_publisher_s(cache: Cache, heard: Heard, spans: Spans) -> None:
    broker = Broker(cache)
    with spans.tracer.start_as_current_span("subscribing"):
        broker.subscribe("posts", heard)
    with spans.tracer.start_as_current_span("request"):
        broker.publish("posts", "post.created", "s3cret")
    request, publish, handle = map(spans.one, ("request", "cacheaside.publish", "cacheaside.handle"))
    assert parent(publish) == id_of(request)
    assert parent(handle) == id_of(publish)
    assert (publish.kind, handle.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    for span in (publish, handle):
        assert span.attributes == {"cacheaside.message.type": "post.created"}


async def test_what_an_async_handler_does_is_in_the_trace(acache: Cache, spans: Spans) -> None:
    async def handler(message: Message[str]) -> None:
        with spans.tracer.start_as_current_span("inside"):
            pass

    async with Broker(acache) as broker:
        await broker.asubscribe("posts", handler)
        with spans.tracer.start_as_current_span("request"):
            await broker.apublish("posts", "x", 1)
        inside = await asyncio.to_thread(spans.one, "inside")
        handle = await asyncio.to_thread(spans.one, "cacheaside.handle")
        assert parent(inside) == id_of(handle)
        assert inside.context is not None
        assert inside.context.trace_id == spans.one("request").context.trace_id  # type: ignore[union-attr]


def test_a_message_without_a_trace_begins_one(cache: Cache, heard: Heard, spans: Spans) -> None:
    """Not one below whatever went on where it was subscribed."""
    broker = Broker(cache)
    with spans.tracer.start_as_current_span("subscribing"):
        broker.subscribe("posts", heard)
    _, raw = Types(None).pack("x", 1, 0, {})
    cache.store.perform(Run(PUBLISH, (broker._board.head + "posts",), (raw,)))
    assert parent(spans.one("cacheaside.handle")) is None


def test_the_error_of_a_handler_is_on_its_span_without_its_words(
    cache: Cache, heard: Heard, spans: Spans
) -> None:
    broker = Broker(cache)
    heard.error = ValueError("s3cret")
    broker.subscribe("posts", heard)
    broker.publish("posts", "x", 1)
    handle = spans.one("cacheaside.handle")
    assert handle.attributes == {"cacheaside.message.type": "x", "error.type": "ValueError"}
    assert not handle.status.is_ok
    assert "s3cret" not in handle.to_json()
