"""The contract of a store, kept by real servers: what fakeredis only plays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from cacheaside.connection import aconnect, aconnect_node, connect, connect_node
from cacheaside.facts import ServerFacts
from cacheaside.stores.cluster import ClusterStore
from cacheaside.stores.redis import RedisStore
from cacheaside.stores.topology import Topology
from cacheaside.testing import ClusterServer
from cacheaside.testing.contract import KEYS, StoreContract, Wait
from cacheaside.urls import Endpoint, parse_url
from tests.aging import aged

PATIENCE = 10.0
"""Seconds for one command: some of the contract's are large, and what it asks for is not speed."""


def patient(url: str) -> Endpoint:
    return replace(parse_url(url), timeout=PATIENCE)


class TestRedis(StoreContract):
    @pytest.fixture(params=["ifeq", "scripts"])
    def store(self, request: pytest.FixtureRequest, redis_url: str) -> Iterator[RedisStore]:
        """With ``SET ... IFEQ`` where the server has it, and by scripts alone, as on older ones."""
        endpoint = patient(redis_url)
        learnt: list[ServerFacts] = []
        store = RedisStore(
            KEYS,
            lambda: connect(endpoint, learnt.append),
            lambda: aconnect(endpoint, learnt.append),
            has_ifeq=lambda: request.param == "ifeq" and bool(learnt) and learnt[-1].has_ifeq,
            timeout=PATIENCE,
        )
        yield store
        store.close()

    @pytest.fixture
    def wait(self, store: RedisStore) -> Wait:
        return aged(store.client)


class TestCluster(StoreContract):
    @pytest.fixture
    def store(self, cluster: ClusterServer) -> Iterator[ClusterStore]:
        endpoint = patient(cluster.url)
        store = ClusterStore(
            KEYS,
            Topology(endpoint.hosts),
            lambda address, told: connect_node(endpoint, address, told),
            lambda address, told: aconnect_node(endpoint, address, told),
            lambda address, facts: None,
            timeout=PATIENCE,
        )
        yield store
        store.close()

    @pytest.fixture
    def wait(self, cluster: ClusterServer) -> Wait:
        def wait(seconds: float) -> None:
            for node in cluster.nodes:
                with node.client() as client:
                    aged(client)(seconds)

        return wait
