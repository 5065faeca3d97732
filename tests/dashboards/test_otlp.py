"""What the example sends by OTLP: the spans of a request, its metrics, and no secret in either."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from cacheaside.testing import Server
from examples.demo.graph import generate
from examples.minisocial import telemetry
from examples.minisocial.demo import fill, served, settings_for
from examples.minisocial.workers import serving

from .receiver import ERROR, OK, Metric, Received, receiving

FRESH, WRITTEN, FAILED, *AGAIN = (f"{n:032x}" for n in range(1, 9))
"""Ids of traces."""
CALLER = "00000000000000aa"
WORDS = "what nobody else should read"


class Asked:
    """Workers, of which one was asked four things, each within a trace; ``cookie`` is whose login it was."""

    def __init__(self, received: Received, ports: list[int], cookie: str, database: Path) -> None:
        self.received = received
        self.cookie = cookie
        for port in ports:
            self.connection = HTTPConnection("127.0.0.1", port, timeout=10)
            with closing(self.connection):
                for user in range(1, 20):  # a process looks now and then whether anybody traces
                    self.ask("GET", f"/users/{user}")
        with closing(self.connection):
            assert self.ask("GET", "/users/33", FRESH) == 200
            for trace in AGAIN:
                assert self.ask("GET", "/users/33", trace) == 200
            assert self.ask("PUT", "/me", WRITTEN, {"name": WORDS, "bio": WORDS}) == 200
            with closing(sqlite3.connect(database)) as behind:
                behind.execute("ALTER TABLE users RENAME TO gone")
            assert self.ask("GET", "/users/40", FAILED) == 500

    def ask(self, method: str, path: str, trace: str = "", body: Any = None) -> int:
        headers = {"Cookie": self.cookie}
        if trace:
            headers["traceparent"] = f"00-{trace}-{CALLER}-01"
        if body is not None:
            headers["Content-Type"] = "application/json"
        self.connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self.connection.getresponse()
        answer.read()
        return answer.status


@pytest.fixture(scope="module")
def asked(one_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """Two that have ended, and sent the rest."""
    directory = tmp_path_factory.mktemp("otlp")
    database = directory / "site.db"
    graph = generate(users=40, each=5)
    settings = settings_for(f"sqlite:///{database}", one_server.url, "otlp", 0.0)
    fill(settings, graph)
    with receiving() as received, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        with served(settings, graph, 2, 0.0) as (plan, cookie):
            done = Asked(received, [*plan.ports], cookie, database)
        yield done


def test_a_miss_is_below_its_request(asked: Asked) -> None:
    """Caller, request, endpoint, read; below that the load and the commit. Nothing has failed."""
    tree = asked.received.tree(FRESH)
    top = "GET /users/{user_id}"
    read = f"{top} > fastapi.endpoint > cacheaside.read"
    assert tree[top].parent == CALLER
    assert {path for path in tree if "cacheaside" in path} == {
        read, f"{read} > cacheaside.load", f"{read} > cacheaside.commit",
    }  # fmt: skip
    assert tree[read].attributes == {
        "cacheaside.namespace": "users",
        "cacheaside.outcome": "miss",
        "cacheaside.tier": "origin",
        "cache.hit": False,
    }
    assert tree[f"{read} > cacheaside.load"].attributes["cacheaside.namespace"] == "users"
    assert {span.status for span in tree.values()} == {OK}


def test_a_hit_in_l1_adds_nothing_to_its_request(asked: Asked) -> None:
    """On a machine so busy that L1 is late, one of five is enough."""
    trees = [asked.received.tree(trace) for trace in AGAIN]
    assert all(trees)
    assert not all("cacheaside" in " ".join(tree) for tree in trees), "none of five was one"


def test_a_write_s_invalidations_are_below_its_request(asked: Asked) -> None:
    """And acknowledged."""
    tree = asked.received.tree(WRITTEN)
    sent = tree["PUT /me > fastapi.endpoint > cacheaside.invalidate"]
    assert sent.attributes["cacheaside.acknowledged"] is True
    assert sent.attributes["cacheaside.tags"] > 0


def test_an_error_of_the_database_is_on_every_span_above(asked: Asked) -> None:
    """Its kind is, its words are not; nothing is stored."""
    tree = asked.received.tree(FAILED)
    top = "GET /users/{user_id}"
    endpoint = f"{top} > fastapi.endpoint"
    read = f"{endpoint} > cacheaside.read"
    failed = {path for path, span in tree.items() if span.status == ERROR}
    assert failed == {top, endpoint, read, f"{read} > cacheaside.load"}
    for path in (read, f"{read} > cacheaside.load"):
        assert tree[path].attributes["error.type"] == "OperationalError"
    assert f"{read} > cacheaside.commit" not in tree
    assert "no such table" not in "".join(span.json for span in asked.received.spans)


def test_no_span_has_a_secret_and_none_of_the_cache_s_a_value(asked: Asked) -> None:
    """FastAPI's have the path of the request; the cache's not even that."""
    token = asked.cookie.partition("=")[2]
    assert len(token) > 20
    assert len(asked.received.spans) > 60
    for span in asked.received.spans:
        assert token not in span.json
        assert WORDS not in span.json
        assert "@example.org" not in span.json
        if span.name.startswith("cacheaside."):
            assert not re.search(r"\b(33|40)\b", " ".join(map(str, span.attributes.values()))), span
            assert "cache.key" not in span.attributes


def test_processes_say_who_they_are(asked: Asked) -> None:
    """One service; each has drawn an instance of its own."""
    assert {one["service.name"] for one in asked.received.resources} == {"minisocial"}
    instances = {one["service.instance.id"] for one in asked.received.resources}
    assert len(instances) == 2
    assert all(re.fullmatch(r"[0-9a-f-]{36}", one) for one in instances)


def collector_s_name(metric: Metric, unit: str) -> str:
    """As the collector's Prometheus exporter names it: ``normalizeName`` of prometheus/otlptranslator."""
    tokens = re.findall(r"[a-zA-Z0-9:]+", metric.name)
    suffix = {"s": "seconds", "By": "bytes"}.get(unit, "")
    if suffix and suffix not in tokens:
        tokens.append(suffix)
    if metric.monotonic:
        tokens = [token for token in tokens if token != "total"] + ["total"]
    elif unit == "1" and metric.kind == "gauge":
        tokens.append("ratio")
    return "_".join(tokens)


def test_collector_and_python_exporter_agree_on_names(
    asked: Asked, one_redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once ``collector.yaml`` has taken the unit 1 away; with it, gauges would be called ratios."""
    metrics = [one for one in asked.received.metrics.values() if one.name.startswith("cacheaside.")]
    by_collector = {collector_s_name(one, one.unit if one.unit != "1" else "") for one in metrics}
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
    settings = settings_for(f"sqlite:///{tmp_path / 'site.db'}", one_redis_url, "names", 0.0)
    with serving(settings, 1) as (port,), closing(HTTPConnection("127.0.0.1", port)) as connection:
        for path in ("/users/1", "/metrics"):
            connection.request("GET", path)
            text = connection.getresponse().read().decode()
    by_python = set(re.findall(r"^# TYPE (cacheaside_\w+)", text, re.MULTILINE))
    assert by_collector == by_python
    assert any(collector_s_name(one, one.unit).endswith("_ratio") for one in metrics)


def test_without_variables_nothing_is_set_up() -> None:
    app = FastAPI()
    before = len(app.routes)
    telemetry.set_up(app, {})()
    assert len(app.routes) == before


def test_an_exporter_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'statsd'"):
        telemetry.set_up(FastAPI(), {"OTEL_METRICS_EXPORTER": "statsd"})
