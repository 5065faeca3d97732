"""Runs a function and keeps the spans that end meanwhile, with OpenTelemetry's SDK in this process."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from opentelemetry import trace

from cacheaside import telemetry
from cacheaside.errors import ConfigError
from cacheaside.metrics import every_cache

EXTRA = "trace needs OpenTelemetry's SDK: pip install 'cacheaside[trace]'"


class Recorded(Struct):
    """A span; times are nanoseconds since the epoch. ``parent`` and ``links`` are ids of other spans."""

    name: str
    id: str
    parent: str
    start: int
    end: int
    error: str = ""
    attributes: dict[str, Any] = {}
    links: list[str] = []


def recorded(fn: Callable[[], Any], name: str) -> tuple[list[Recorded], Exception | None]:
    """Call ``fn`` inside of a span of its name; the spans in the order of their beginnings, and its error.

    Refreshes in the background are waited for: caches are closed, which takes five seconds at most.
    """
    spans: list[Recorded] = []
    tracer = listen(spans)
    failure: Exception | None = None

    async def awaited(given: Any) -> None:
        try:
            await given
        finally:
            for cache in every_cache():
                await cache.aclose()

    try:
        with tracer.start_as_current_span(name):
            given = fn()
            if inspect.isawaitable(given):
                asyncio.run(awaited(given))
    except Exception as error:
        failure = error
    for cache in every_cache():
        cache.close()
    return sorted(spans, key=lambda span: (span.start, -span.end)), failure


def listen(spans: list[Recorded]) -> trace.Tracer:
    """Have spans noted as they end, beside what the application does with them."""
    try:
        from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
    except ModuleNotFoundError as error:
        raise ConfigError(EXTRA) from error

    class Notes(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            spans.append(noted(span))

    provider: Any = trace.get_tracer_provider()
    if not hasattr(provider, "add_span_processor"):  # the application has none of its own
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    provider.add_span_processor(Notes())
    telemetry.look()
    return trace.get_tracer("cacheaside")


def noted(span: Any) -> Recorded:
    return Recorded(
        name=span.name,
        id=f"{span.context.span_id:016x}",
        parent=f"{span.parent.span_id:016x}" if span.parent is not None else "",
        start=span.start_time,
        end=span.end_time,
        error="" if span.status.is_ok or span.status.is_unset else span.status.description or "error",
        attributes=dict(span.attributes or {}),
        links=[f"{link.context.span_id:016x}" for link in span.links],
    )
