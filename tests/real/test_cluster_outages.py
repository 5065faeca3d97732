"""Servers of a cluster that go away and come back: who reads from the others notices nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from cacheaside import Cache
from cacheaside.breaker import FAILURES
from cacheaside.events import Event
from cacheaside.stores.cluster import ClusterStore
from cacheaside.testing import ClusterServer, Server
from cacheaside.testing.servers import wait_until
from tests.conftest import SERVERS
from tests.real.test_outages import call

DEADLINE = 0.25
"""The timeout of these caches, seconds."""
BACK_WITHIN = 3.0
IDS = range(24)

both = pytest.mark.parametrize("colour", ["sync", "async"])


@pytest.fixture(scope="module", params=list(SERVERS) or ["none"])
def three(request: pytest.FixtureRequest) -> Iterator[ClusterServer]:
    """It serves the slots that it has, when others are gone."""
    with ClusterServer(request.param) as cluster:
        for node in cluster.nodes:
            with node.client() as client:
                client.config_set("cluster-require-full-coverage", "no")
        yield cluster


@pytest.fixture
def cluster(three: ClusterServer) -> ClusterServer:
    """The same, when what the test before has done to it is over; it is empty."""
    assert wait_until(three.in_order, 30)
    for node in three.nodes:
        with node.client() as client:
            client.flushall()
    return three


class Rows:
    """Rows whose values and tags live on one server each, so that one that is away has no part in others."""

    def __init__(self, cluster: ClusterServer, cache: Cache, colour: str) -> None:
        self.loads = 0
        self.version = 0

        def row(id: int) -> int:
            self.loads += 1
            return self.version

        async def arow(id: int) -> int:
            return row(id)

        self.read: Callable[[int], Any] = cache.cached(ns="rows", key="row:{id}", ttl=60, early_refresh=None)(
            row if colour == "sync" else arow
        )
        self.places = {id: cluster.primary_of(cache.world.keys.value(f"rows:row:{id}")) for id in IDS}

    def on(self, server: Server) -> list[int]:
        return [id for id, place in self.places.items() if place is server]

    def elsewhere(self, server: Server) -> list[int]:
        return [id for id, place in self.places.items() if place is not server]


async def timed(rows: Rows, ids: list[int]) -> list[float]:
    taken = []
    for id in ids:
        began = time.monotonic()
        assert await call(rows.read, id) == rows.version
        taken.append(time.monotonic() - began)
    return taken


@both
@pytest.mark.parametrize("how", ["silent", "dead"])
async def test_who_needs_a_server_that_is_away_waits_for_it_a_few_times_and_the_others_never(
    cluster: ClusterServer, colour: str, how: str
) -> None:
    seen: list[Event] = []
    server = cluster.nodes[0]
    async with Cache(cluster.url, timeout=DEADLINE, l1_window=None, on_event=seen.append) as cache:
        rows = Rows(cluster, cache, colour)
        here, there = rows.on(server)[:4], rows.elsewhere(server)[:8]
        await timed(rows, [*here, *there])
        (server.pause if how == "silent" else server.kill)()
        try:
            first = await timed(rows, here)
            assert set(cast(ClusterStore, cache.store).gates.failing) <= {("127.0.0.1", server.port)}, (
                "no other is to blame"
            )
            assert sum(taken > 0.9 * DEADLINE for taken in first) <= 3
            assert max(first) < DEADLINE + 0.2
            rows.loads = 0
            others = await timed(rows, there * 5)
            assert not rows.loads, "they are served as ever"
            assert sorted(others)[len(others) // 2] < 0.05
            again = await timed(rows, here * 5)
            assert sorted(again)[len(again) // 2] < 0.02, "nobody waits any more"
            health = cache.health()
            assert not health.ok
            assert str(server.port) in health.trouble
        finally:
            (server.resume if how == "silent" else server.start)()
        assert wait_until(lambda: cache.health().ok, BACK_WITHIN)
        assert wait_until(cluster.in_order, 30)  # it serves nobody for two seconds, by its own rules
        rows.loads = 0
        await timed(rows, here)
        await timed(rows, here)
        assert rows.loads <= len(here), "a server that was restarted is empty"
        assert [e.name for e in seen].count("disconnect") == 1
        assert seen[-1].name == "connect"


async def test_a_server_that_is_away_is_asked_after_once_a_second(
    cluster: ClusterServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = cluster.nodes[0]
    looks: list[float] = []

    def counted(store: ClusterStore) -> None:
        looks.append(time.monotonic())
        look_again(store)

    look_again = ClusterStore.look_again
    monkeypatch.setattr(ClusterStore, "look_again", counted)
    async with Cache(cluster.url, timeout=DEADLINE, l1_window=None) as cache:
        rows = Rows(cluster, cache, "sync")
        await timed(rows, rows.on(server)[:4])
        server.kill()
        try:
            await timed(rows, rows.on(server)[:4])
            assert not cache.health().ok
            assert not wait_until(lambda: len(looks) > 20, 3.0), "it refuses at once, which is no rest"
            assert len(looks) > 2
        finally:
            server.start()
        assert wait_until(lambda: cache.health().ok, BACK_WITHIN)


async def test_a_cluster_that_is_silent_from_the_start_keeps_nobody_waiting(cluster: ClusterServer) -> None:
    """Nobody has said yet who holds what, and those that are asked for it are away."""
    seen: list[Event] = []
    for node in cluster.nodes:
        node.pause()
    try:
        async with Cache(cluster.url, timeout=DEADLINE, l1_window=None, on_event=seen.append) as cache:

            @cache.cached(ns="rows", key="row:{id}", ttl=60)
            def row(id: int) -> int:
                return id

            end, taken = time.monotonic() + 4, []
            while time.monotonic() < end:
                began = time.monotonic()
                assert row(1) == 1
                taken.append(time.monotonic() - began)
                await asyncio.sleep(0.02)
            # Each is to blame for what it was asked first.
            assert sum(seconds > 0.9 * DEADLINE for seconds in taken) <= FAILURES * len(cluster.nodes)
            assert sorted(taken)[len(taken) // 2] < 0.05
            assert not [e for e in seen if e.name == "connect"], "none answers"
            for node in cluster.nodes:
                node.resume()
            assert wait_until(lambda: cache.health().ok, BACK_WITHIN)
    finally:
        for node in cluster.nodes:
            node.resume()


@pytest.mark.parametrize("kind", list(SERVERS) or ["none"])
def test_who_is_idle_hears_of_a_successor(kind: str) -> None:
    """A server that never comes back; whoever is told so sends this process nothing to do."""
    with (
        ClusterServer(kind, replicas=1) as cluster,
        Cache(cluster.url, timeout=DEADLINE, l1_window=None) as cache,
    ):
        rows = Rows(cluster, cache, "sync")
        server = cluster.nodes[0]
        server.kill()
        for id in rows.on(server)[:4]:
            rows.read(id)
        assert not cache.health().ok
        assert wait_until(lambda: cache.health().ok, 30)


async def test_reads_of_one_tick_that_meet_a_silent_server_are_all_answered(cluster: ClusterServer) -> None:
    server = cluster.nodes[1]
    async with Cache(cluster.url, timeout=DEADLINE, l1_window=None) as cache:
        rows = Rows(cluster, cache, "async")
        await asyncio.gather(*(rows.read(id) for id in IDS))
        server.pause()
        try:
            for _ in range(3):
                assert await asyncio.gather(*(rows.read(id) for id in IDS)) == [0] * len(IDS)
            assert str(server.port) in cache.health().trouble
            assert cache.health().trouble.count("127.0.0.1") == 1, "no other server is to blame"
            rows.loads = 0
            began = time.monotonic()
            await asyncio.gather(*(rows.read(id) for id in IDS))
            assert time.monotonic() - began < 0.9 * DEADLINE
            assert rows.loads == len(rows.on(server))
        finally:
            server.resume()
        assert wait_until(lambda: cache.health().ok, BACK_WITHIN)


@both
async def test_what_is_invalidated_while_its_server_is_away_is_never_served_again(
    cluster: ClusterServer, colour: str
) -> None:
    server = cluster.nodes[2]
    async with Cache(cluster.url, timeout=DEADLINE, invalidation_timeout=0.1, l1_window=None) as cache:
        rows = Rows(cluster, cache, colour)
        (id, *_), (other, *_) = rows.on(server), rows.elsewhere(server)
        await timed(rows, [id, other])
        server.pause()
        try:
            rows.version = 1
            drop = cache.invalidate if colour == "sync" else cache.ainvalidate
            assert not await call(drop, keys=[f"rows:row:{id}"])
            assert await call(drop, keys=[f"rows:row:{other}"])
            assert await timed(rows, [id, other])
            assert cache.health().owed == 1
        finally:
            server.resume()
        assert await timed(rows, [id] * 20)
        assert wait_until(cluster.in_order, 30)
        assert wait_until(lambda: cache.health().ok and not cache.health().owed, BACK_WITHIN)
        assert await timed(rows, [id, other])
        rows.loads = 0
        assert await timed(rows, [id, other])
        assert not rows.loads


@both
async def test_what_is_owed_to_a_server_that_is_away_is_not_repeated_to_the_others(
    cluster: ClusterServer, colour: str
) -> None:
    server = cluster.nodes[1]
    async with Cache(cluster.url, timeout=DEADLINE, invalidation_timeout=0.1, l1_window=None) as cache:
        rows, keys = Rows(cluster, cache, colour), cache.world.keys

        def announced_on(id: int) -> Server:
            return cluster.primary_of(keys.channel(keys.bucket(f"rows:row:{id}")))

        here = rows.on(server)[0]
        there = [id for id in rows.elsewhere(server) if announced_on(id) is not server][:3]
        await timed(rows, [here, *there])
        server.pause()
        try:
            rows.version = 1
            drop = cache.invalidate if colour == "sync" else cache.ainvalidate
            assert not await call(drop, keys=[f"rows:row:{id}" for id in (here, *there)])
            assert wait_until(lambda: cache.health().owed == 1, 5.0)
            await timed(rows, there)
            rows.loads = 0
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                await timed(rows, there)
                await asyncio.sleep(0.05)
            assert not rows.loads
        finally:
            server.resume()
        assert wait_until(lambda: cache.health().ok and not cache.health().owed, BACK_WITHIN)


@pytest.mark.parametrize("kind", list(SERVERS) or ["none"])
@both
async def test_a_cluster_that_is_down_keeps_nobody_waiting(kind: str, colour: str) -> None:
    """A slot that nobody serves: all servers say so, of every key."""
    with ClusterServer(kind) as cluster:
        async with Cache(cluster.url, timeout=2, l1_window=None) as cache:
            rows = Rows(cluster, cache, colour)
            server = cluster.nodes[0]
            there = rows.elsewhere(server)[:4]
            await timed(rows, there)
            with server.client() as client:
                client.execute_command("CLUSTER", "DELSLOTS", 0)

            def down() -> bool:
                return not any(cluster.in_order() for _ in range(2))

            assert wait_until(down, 10)
            end = time.monotonic() + 1
            while time.monotonic() < end:
                await timed(rows, there)
            taken = await timed(rows, there * 10)
            assert sorted(taken)[len(taken) // 2] < 0.02
            with server.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTS", 0)
            assert wait_until(cluster.in_order, 20)
            await timed(rows, there)
            rows.loads = 0
            await timed(rows, there)
            assert not rows.loads
