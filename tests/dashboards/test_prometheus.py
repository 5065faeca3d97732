"""Every expression of dashboards and rules is a number in a Prometheus that scrapes the running example."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from urllib.request import urlopen

import pytest

from cacheaside.testing import Server
from examples.demo.graph import generate
from examples.minisocial.client import Connection
from examples.minisocial.demo import fill, served, settings_for
from examples.minisocial.load import Generator, Plan
from tests.conftest import SERVERS

from .prometheus import (
    Expression,
    Prometheus,
    boards,
    chosen,
    compared,
    expressions,
    misspelled,
    silent,
    variables,
    wait_for,
)


async def traffic(plan: Plan) -> None:
    """Reads and writes in both workers, a message, and passwords until they are refused."""
    one, two = list(plan.cookies)[:2]
    connection = Connection(plan.ports[0])
    talk = {"title": "hello", "with_users": [two]}
    made = (await connection.ask("POST", "/conversations", plan.cookies[one], talk)).json()
    path = f"/conversations/{made['id']}/messages"
    assert (await connection.ask("POST", path, plan.cookies[one], {"body": "x"})).status == 201
    wrong = {"email": "nobody@example.org", "password": "wrong password"}
    answers = [await connection.ask("POST", "/login", body=wrong) for _ in range(4)]
    assert [answer.status for answer in answers] == [401, 401, 401, 429]
    await connection.aclose()
    tally = await Generator(plan).run(3.0, rate=100.0)
    assert (tally.failed, tally.stale, tally.wrong) == (0, 0, 0), tally.first_problem


@pytest.fixture(scope="module")
def server(servers: Callable[[str], Server]) -> Iterator[Server]:
    """One that may be killed."""
    kind = servers(next(iter(SERVERS), "none")).kind
    with Server(kind) as started:
        yield started


@pytest.fixture(scope="module")
def prometheus(
    promtool: str, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """It has scraped two workers before, during and after traffic."""
    directory = tmp_path_factory.mktemp("prometheus")
    graph = generate(users=40, each=5)
    settings = settings_for(f"sqlite:///{directory / 'site.db'}", server.url, "dashboards", 0.0)
    fill(settings, graph)
    settings = replace(settings, logins_per_minute=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
        with served(settings, graph, 2, 0.2) as (plan, _), Prometheus(directory, plan.ports) as started:
            wait_for(lambda: started.ask("up") == [1, 1], started.failure)
            asyncio.run(traffic(plan))
            yield started


def test_every_expression_is_a_number(prometheus: Prometheus) -> None:
    """Those of panels, recording rules and alerts; the alerts' thresholds apart."""
    asked = list(expressions())
    assert len(asked) > 60
    wait_for(lambda: not silent(prometheus, asked), lambda: "\n".join(silent(prometheus, asked)))


def test_every_template_variable_has_something_to_choose_from(prometheus: Prometheus) -> None:
    for name, board in boards():
        for variable, query in variables(board).items():
            found = prometheus.values(chosen(query, variables(board)))
            assert found, f"{name}: {variable}"


def test_both_workers_are_told_apart(prometheus: Prometheus) -> None:
    """Each has its own series, of one service."""
    assert prometheus.ask("count(count by (instance) (cacheaside_coherence_coherent))") == [2]
    assert prometheus.ask("count(count by (job) (cacheaside_coherence_coherent))") == [1]


def test_nothing_is_wrong_with_the_example(prometheus: Prometheus) -> None:
    """L1 is on and coherent in both; no alert even begins to wait."""
    wait_for(lambda: prometheus.ask("cacheaside_coherence_coherent") == [1, 1])
    wait_for(lambda: prometheus.get("alerts")["alerts"] == [], lambda: str(prometheus.get("alerts")))


def test_a_misspelled_metric_is_found_in_every_expression(prometheus: Prometheus) -> None:
    """So nothing hides behind another metric, or a constant."""
    wrong = [Expression(one.where, text) for one in expressions() for text in misspelled(one.text)]
    assert len(wrong) > 70
    assert silent(prometheus, wrong) == [f"{one.where}: {one.text}" for one in wrong]


def test_when_redis_goes_both_workers_show_it(prometheus: Prometheus, server: Server) -> None:
    """As soon as somebody asks them; two alerts begin to wait. All is well again when it is back."""

    def waiting() -> set[tuple[str, str]]:
        for port in prometheus.targets:
            urlopen(f"http://127.0.0.1:{port}/trending", timeout=10).close()
        alerts = prometheus.get("alerts")["alerts"]
        return {(one["labels"]["alertname"], one["labels"].get("instance", "")) for one in alerts}

    instances = prometheus.values("label_values(up, instance)")
    wanted = {(name, one) for name in ("CacheasideBreakerOpen", "CacheasideNotCoherent") for one in instances}
    server.kill()
    try:
        wait_for(lambda: waiting() >= wanted, lambda: str(waiting()))
        assert prometheus.ask("cacheaside_breaker_state") == [2, 2]
        assert prometheus.ask("cacheaside_coherence_coherent") == [0, 0]
    finally:
        server.start()
    wait_for(lambda: not waiting() & wanted, lambda: str(waiting()))


def test_an_expression_that_is_no_promql_is_found(prometheus: Prometheus) -> None:
    with pytest.raises(AssertionError, match="parse error"):
        silent(prometheus, [Expression("here", "sum(")])


def test_a_number_that_is_none_is_found(prometheus: Prometheus) -> None:
    """A ratio of nothing to nothing."""
    assert silent(prometheus, [Expression("here", "0 * up / (0 * up)")]) == ["here: 0 * up / (0 * up)"]


@pytest.mark.parametrize(
    ("expr", "without"),
    [
        ("a / (b > 0) < 0.8", "a / (b > bool 0) < bool 0.8"),
        ('a{b!="1", c=~"2"} == 0', 'a{b!="1", c=~"2"} == bool 0'),
    ],
)
def test_thresholds_are_taken_from_alerts(expr: str, without: str) -> None:
    assert compared(expr) == without


def test_a_variable_that_nobody_defines_is_found() -> None:
    assert chosen('a{job=~"$job"}[$__rate_interval]', ["job"]) == 'a{job=~".*"}[30s]'
    with pytest.raises(AssertionError, match="nobody defines"):
        chosen('a{job=~"$jobs"}', ["cache"])


def test_misspelling_leaves_labels_alone() -> None:
    expr = 'sum by (cacheaside_cache) (cacheaside_flights{cacheaside_cache="x"})'
    assert list(misspelled(expr)) == [expr.replace("flights", "flightsx")]
