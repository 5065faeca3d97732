"""Receives OTLP over HTTP as a collector does, and keeps what it was sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from google.protobuf.json_format import MessageToJson
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

OK, ERROR = 0, 2
"""Codes of a span's status; unset counts as fine."""
KINDS: Final[dict[str, Any]] = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
}


@dataclass
class Span:
    name: str
    trace: str
    id: str
    parent: str
    status: int
    attributes: dict[str, Any]
    json: str
    """All of it, in which no secret may be."""


@dataclass
class Metric:
    name: str
    unit: str
    kind: str
    """``sum``, ``gauge`` or ``histogram``."""
    monotonic: bool


@dataclass
class Received:
    endpoint: str
    spans: list[Span] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)
    resources: list[dict[str, Any]] = field(default_factory=list)

    def take(self, request: Any) -> None:
        for resource in getattr(request, "resource_spans", ()):
            self.resources.append(attributes(resource.resource))
            for scope in resource.scope_spans:
                self.spans += [span_of(span) for span in scope.spans]
        for resource in getattr(request, "resource_metrics", ()):
            self.resources.append(attributes(resource.resource))
            for scope in resource.scope_metrics:
                for one in scope.metrics:
                    kind = one.WhichOneof("data")
                    monotonic = kind == "sum" and one.sum.is_monotonic
                    self.metrics[one.name] = Metric(one.name, one.unit, kind, monotonic)

    def tree(self, trace: str) -> dict[str, Span]:
        """The spans of a trace, by their names and those of all above: ``GET > cacheaside.read``."""
        spans = {span.id: span for span in self.spans if span.trace == trace}

        def path(span: Span) -> str:
            above = spans.get(span.parent)
            return span.name if above is None else f"{path(above)} > {span.name}"

        return {path(span): span for span in spans.values()}


def span_of(span: Any) -> Span:
    return Span(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.status.code,
        attributes(span),
        MessageToJson(span),
    )


def attributes(holder: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in holder.attributes}


@contextmanager
def receiving() -> Iterator[Received]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.take(KINDS[self.path].FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        received = Received(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield received
        finally:
            server.shutdown()
            thread.join()
