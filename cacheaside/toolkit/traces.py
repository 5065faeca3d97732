"""The trace of a message: its handlers' spans are children of the span that published it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from opentelemetry import context, propagate
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from cacheaside.telemetry import failing, tracer


@contextmanager
def sending(type: str) -> Generator[dict[str, str]]:
    """Around publishing; yields the trace context that goes with the message."""
    with _span("cacheaside.publish", SpanKind.PRODUCER, type):
        trace: dict[str, str] = {}
        propagate.inject(trace)
        yield trace


@contextmanager
def receiving(type: str, trace: Mapping[str, str]) -> Generator[None]:
    """Around a handler."""
    token = context.attach(propagate.extract(trace, context=Context()))
    try:
        with _span("cacheaside.handle", SpanKind.CONSUMER, type):
            yield
    finally:
        context.detach(token)


@contextmanager
def _span(name: str, kind: SpanKind, type: str) -> Generator[None]:
    asked = tracer()
    if asked is None:
        yield
        return
    with (
        asked.start_as_current_span(
            name,
            kind=kind,
            attributes={"cacheaside.message.type": type},
            record_exception=False,
            set_status_on_exception=False,
        ) as span,
        failing(span),
    ):
        yield
