"""The page of metrics and spans lists those that exist, all of them, with their attributes."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from cacheaside import Cache
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "reference" / "metrics-and-spans.md").read_text("utf-8")

USED = """
import asyncio, json, sys, time
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, Histogram, InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

reader, exporter, provider = InMemoryMetricReader(), InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
metrics.set_meter_provider(MeterProvider([reader]))
trace.set_tracer_provider(provider)

from cacheaside import Cache, telemetry
from cacheaside.toolkit import Blacklist, Broker, DurableBroker, RateLimiter, RefreshTokens, SessionStore

telemetry.look()
cache = Cache(sys.argv[1], prefix="metrics-and-spans")

@cache.cached(ns="one", key="{a}")
def one(a): return a

@cache.cached(ns="slow", key="k", l1=False)
async def slow(): await asyncio.sleep(0.05)

@cache.cached_many(ns="many", key="{id}")
def many(ids): return {id: id for id in ids}

@cache.updates(ns="one", key="{a}")
def update(a): return a

async def together(): await asyncio.gather(slow(), slow())

one(1), update(1), one.refresh(1), one.put(2, 1), one.peek(99), many([1, 2]), asyncio.run(together())
cache.get("one:1"), cache.get_or_load("one:2", lambda: 1), cache.invalidate(tags=["t"])
limiter = RateLimiter(cache, 2, 60, name="login")
limiter.hit("ann"), limiter.peek("ann")
sessions, refresh = SessionStore(cache), RefreshTokens(cache)
session = sessions.create("ann", {})
sessions.get(session.token), sessions.update(session.token, {"a": 1}), sessions.extend(session.token)
sessions.delete(sessions.rotate(session.token).token)
refresh.revoke(refresh.rotate(refresh.issue("ann").token).token)
Blacklist(cache).contains("token")
broker, durable, heard = Broker(cache), DurableBroker(cache, group="g"), []
broker.subscribe("posts", heard.append), durable.subscribe("orders", heard.append)
broker.publish("posts", "post"), durable.publish("orders", "order")
until = time.monotonic() + 20
while (len(heard) < 2 or not cache.stats()["propagation"]["messages"]) and time.monotonic() < until:
    time.sleep(0.01)
found = {}
for scope in reader.get_metrics_data().resource_metrics[0].scope_metrics:
    for metric in scope.metrics:
        kind = {Gauge: "gauge", Histogram: "histogram"}.get(type(metric.data), "counter")
        names = {name for point in metric.data.data_points for name in point.attributes}
        found[metric.name] = kind, metric.unit, sorted(names - {"cacheaside.cache"})
cache.clear("one"), cache.clear("many"), cache.clear("slow")
cache.close()
spans = {}
for span in exporter.get_finished_spans():
    spans.setdefault(span.name, set()).update(span.attributes)
json.dump([found, {name: sorted(attributes) for name, attributes in spans.items()}], sys.stdout)
"""


@pytest.fixture(scope="module")
def used(request: pytest.FixtureRequest) -> Any:
    """The instruments and the spans of a process that has used everything."""
    url = request.getfixturevalue("servers")("redis").url
    run = subprocess.run([sys.executable, "-c", USED, url], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def rows(heading: str) -> Iterator[list[str]]:
    section = re.split(rf"^## {heading}$", PAGE, flags=re.MULTILINE)[1].split("\n## ")[0]
    for line in re.findall(r"^\| (`cacheaside\..+) \|$", section, re.MULTILINE):
        yield [cell.strip() for cell in re.split(r" ?\|(?= |$)", line)]


def quoted(cell: str) -> list[str]:
    return sorted(re.findall(r"`([^`]+)`", cell))


def test_the_page_lists_the_instruments_that_exist(used: Any) -> None:
    listed = {quoted(name)[0]: [kind, unit, quoted(names)] for name, kind, unit, names, _ in rows("Metrics")}
    assert listed == used[0]


def spans_of_the_page() -> dict[str, list[str]]:
    return {name: quoted(names) for cells, names, _ in rows("Spans") for name in quoted(cells)}


def test_spans_have_the_attributes_that_the_page_lists(used: Any) -> None:
    listed = spans_of_the_page() | {"cacheaside.refresh": spans_of_the_page()["cacheaside.read"]}
    assert {name: listed[name] for name in used[1]} == used[1]
    assert {name for name, attributes in listed.items() if attributes} <= set(used[1])


NAMED = {
    "run": 1,
    "arun": 1,
    "_run": 1,
    "_arun": 1,
    "Spawn": 1,
    "drive": 4,
    "operation": 0,
    "_span": 0,
    "_noted": 0,
}
"""Functions that take the name of a span, and in which place."""


def names_in_the_source() -> Iterator[str]:
    for path in sorted((ROOT / "cacheaside").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            place = NAMED.get(called)
            name = node.args[place] if place is not None and place < len(node.args) else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                kind = "presence." if path.name == "presence.py" else ""
                yield f"cacheaside.{kind}{name.value.removeprefix('cacheaside.')}"


def test_the_page_lists_the_spans_that_exist() -> None:
    assert set(spans_of_the_page()) == {*names_in_the_source(), "cacheaside.invalidate"}


def test_every_part_of_stats_is_in_its_reference() -> None:
    text = (ROOT / "docs" / "reference" / "stats.md").read_text("utf-8")
    with Cache("embedded://") as cache:
        stats = cache.stats()
    parts = dict(re.findall(r'^\| `"(\w+)"` \| (.+) \|$', text, re.MULTILINE))
    assert set(parts) == set(stats)
    for part in ("l1", "store", "propagation"):
        assert [name for name in stats[part] if f"`{name}`" not in parts[part]] == [], part
