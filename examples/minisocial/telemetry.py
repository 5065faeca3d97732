"""Sends the app's spans and metrics away by OTLP, or shows its metrics to Prometheus, if told to.

| Variable | |
| --- | --- |
| ``OTEL_EXPORTER_OTLP_ENDPOINT`` | where a collector listens for OTLP over HTTP; spans and metrics go there |
| ``OTEL_METRICS_EXPORTER`` | ``otlp``, as without it; ``prometheus``: shown at ``/metrics``; ``none`` |

Without them nothing is set up and nothing is imported. FastAPI makes the span of a request by itself. Every
process has a ``service.instance.id`` of its own, which the SDK draws.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from fastapi import FastAPI, Response

SERVICE: Final = "minisocial"


def set_up(app: FastAPI, environment: Mapping[str, str] = os.environ) -> Callable[[], None]:
    """Set the providers of this process, once; what is returned sends the rest and ends them.

    Raises ValueError for a kind of exporter that is not known.
    """
    endpoint = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    kind = environment.get("OTEL_METRICS_EXPORTER") or ("otlp" if endpoint else "none")
    if kind not in ("otlp", "prometheus", "none"):
        raise ValueError(f"OTEL_METRICS_EXPORTER is 'otlp', 'prometheus' or 'none', not {kind!r}")
    made = []
    if endpoint:
        made.append(trace_by_otlp())
    if kind == "otlp":
        made.append(measure_by_otlp())
    elif kind == "prometheus":
        made.append(show_metrics(app))

    def end() -> None:
        for provider in made:
            provider.shutdown()

    return end


def trace_by_otlp() -> Any:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=resource())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider


def measure_by_otlp() -> Any:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    return measure(PeriodicExportingMetricReader(OTLPMetricExporter()))


def show_metrics(app: FastAPI) -> Any:
    """Answer ``/metrics``: for one process on a port, since another one would show its own numbers there."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_LATEST

    registry = CollectorRegistry()

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return measure(PrometheusMetricReader(registry=registry))


def measure(reader: Any) -> Any:
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider

    provider = MeterProvider([reader], resource=resource())
    metrics.set_meter_provider(provider)
    return provider


def resource() -> Any:
    """Who speaks: ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` overrule the name."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    return Resource.create({"service.name": SERVICE}).merge(OTELResourceDetector().detect())
