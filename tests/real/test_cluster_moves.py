"""A cluster in motion: slots that move and primaries that fail over, while readers and writers go on."""

from __future__ import annotations

import asyncio
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest

from cacheaside import Cache
from cacheaside.stores.topology import slot_of
from cacheaside.testing import ClusterServer, Server
from cacheaside.testing.servers import wait_until
from tests.conftest import SERVERS

KINDS = list(SERVERS) or ["none"]
IDS = range(12)


class Versions:
    """A table of versions, who has been told what, and when."""

    def __init__(self) -> None:
        self.versions = dict.fromkeys(IDS, 0)
        self.acknowledged = {id: [(0.0, 0)] for id in IDS}
        self.answers: list[tuple[float, int, int]] = []
        self.loads = 0
        self.refused = 0

    def reader(self, cache: Cache) -> Callable[[int], int]:
        @cache.cached(ns="rows", key="row:{id}", ttl=60, tags=["row:{id}"])
        def row(id: int) -> int:
            self.loads += 1
            return self.versions[id]

        return row

    def areader(self, cache: Cache) -> Callable[[int], Any]:
        @cache.cached(ns="rows", key="row:{id}", ttl=60, tags=["row:{id}"])
        async def row(id: int) -> int:
            self.loads += 1
            return self.versions[id]

        return row

    def write(self, cache: Cache, id: int) -> None:
        """A new version, invalidated by tag or by key in turn."""
        self.versions[id] += 1
        version = self.versions[id]
        what: dict[str, Any] = {"tags": [f"row:{id}"]} if version % 2 else {"keys": [f"rows:row:{id}"]}
        if cache.invalidate(**what):
            self.acknowledged[id].append((time.monotonic(), version))
        else:
            self.refused += 1

    def stale(self, lag: float = 0.0) -> list[tuple[float, int, int, int]]:
        """Answers older than what had been acknowledged ``lag`` seconds before their call began."""
        found: list[tuple[float, int, int, int]] = []
        for began, id, version in self.answers:
            times = self.acknowledged[id]
            newest = times[bisect_right(times, (began - lag, 10**9)) - 1][1]
            if version < newest:
                found.append((began, id, version, newest))
        return found


@contextmanager
def traffic(versions: Versions, url: str, **options: Any) -> Iterator[list[BaseException]]:
    """Two threads and a loop that read, and a writer, until the block ends; what they raised."""
    options.setdefault("l1_window", None)
    stop = threading.Event()
    errors: list[BaseException] = []

    def noted(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)

        return run

    def read() -> None:
        with Cache(url, **options) as cache:
            row = versions.reader(cache)
            while not stop.is_set():
                for id in IDS:
                    began = time.monotonic()
                    versions.answers.append((began, id, row(id)))

    def aread() -> None:
        async def one(row: Callable[[int], Any], id: int) -> None:
            began = time.monotonic()
            versions.answers.append((began, id, await row(id)))

        async def main() -> None:
            async with Cache(url, **options) as cache:
                row = versions.areader(cache)
                while not stop.is_set():
                    await asyncio.gather(*(one(row, id) for id in IDS))

        asyncio.run(main())

    def write() -> None:
        with Cache(url, invalidation_timeout=10, **options) as cache:
            while not stop.is_set():
                for id in IDS:
                    versions.write(cache, id)
                    stop.wait(0.002)

    threads = [threading.Thread(target=noted(work)) for work in (read, read, aread, write)]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def hits(url: str) -> bool:
    """Whether L2 serves every row: a second look loads nothing."""
    versions = Versions()
    with Cache(url, l1_window=None) as cache:
        row = versions.reader(cache)
        for id in IDS:
            row(id)
        versions.loads = 0
        for id in IDS:
            row(id)
    return versions.loads == 0


@pytest.mark.parametrize("kind", KINDS)
def test_slots_move_under_load(kind: str) -> None:
    """Of values and of tags, slowly, a key at a time: nobody is answered stale, and nobody with an error."""
    with ClusterServer(kind) as cluster:
        versions = Versions()
        with traffic(versions, cluster.url) as errors:
            with Cache(cluster.url, l1_window=None) as cache:
                names = [cache.world.keys.value("rows:row:1"), cache.world.keys.token("row:2")]
            moved = 0
            for _ in range(2):
                for name in names:
                    source = cluster.primary_of(name)
                    target = cluster.nodes[(cluster.nodes.index(source) + 1) % 3]
                    move = cluster.move(name, target)
                    for _ in range(4):
                        time.sleep(0.05)
                        moved += len(move.keys(1))
                    move.finish()
                    time.sleep(0.1)
        print(f"{len(versions.answers)} answers, {versions.loads} loads, {moved} keys moved under them")
        assert not errors
        assert not versions.stale()
        assert not versions.refused
        assert moved
        assert hits(cluster.url)


@pytest.mark.parametrize("kind", KINDS)
def test_slots_of_buckets_move_under_load_with_l1(kind: str) -> None:
    """What is published by the server that a slot goes to is not heard meanwhile: L1 is off, not wrong."""
    window = 0.5
    with ClusterServer(kind) as cluster:
        versions = Versions()
        with traffic(versions, cluster.url, l1_window=window) as errors:
            with Cache(cluster.url, l1_window=None) as cache:
                names = [cache.world.keys.token(f"row:{id}") for id in (1, 2, 3)]
            for name in names:
                source = cluster.primary_of(name)
                move = cluster.move(name, next(n for n in cluster.nodes if n is not source))
                for _ in range(4):
                    time.sleep(0.2)
                    move.keys(1)
                move.finish()
                time.sleep(1.0)
        assert not errors
        assert not versions.stale(window + 0.02)
        assert hits(cluster.url)


# ---------------------------------------------------------------------------- failovers


def kept_apart(cluster: ClusterServer, cache: Cache) -> tuple[int, Server, Server]:
    """A row whose value and whose tag live on two servers: it, and they."""
    for id in range(100):
        value, tag = cache.world.keys.value(f"rows:row:{id}"), cache.world.keys.token(f"row:{id}")
        if cluster.primary_of(value) is not cluster.primary_of(tag):
            return id, cluster.primary_of(value), cluster.primary_of(tag)
    raise AssertionError("all on one server")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lost", ["tag", "key"])
def test_what_a_failover_forgets_does_not_revive_a_value(kind: str, lost: str) -> None:
    """A rotation or a deletion is confirmed, the primary dies, and its replica has not heard of it."""
    with (
        ClusterServer(kind, replicas=1) as cluster,
        Cache(cluster.url, l1_window=None) as cache,
        Cache(cluster.url, l1_window=None) as late,
    ):
        id, of_value, of_tag = kept_apart(cluster, cache)
        versions = Versions()
        versions.versions[id] = 1
        row, again = versions.reader(cache), versions.reader(late)
        assert row(id) == row(id) == 1
        primary = of_tag if lost == "tag" else of_value
        replica = cluster.replica_of(primary)
        assert wait_until(lambda: in_step(primary, replica))
        cluster.lag(replica)
        versions.versions[id] = 2
        assert cache.invalidate(
            **({"tags": [f"row:{id}"]} if lost == "tag" else {"keys": [f"rows:row:{id}"]})
        )
        primary.kill()
        assert wait_until(lambda: cluster.primary_of("x") is not None and promoted(replica), 20)
        assert row(id) == again(id) == 2
        with Cache(cluster.url, l1_window=None) as fresh:
            assert versions.reader(fresh)(id) == 2
        assert wait_until(lambda: hits(cluster.url), 5.0)
        # Whoever it asked for the way may not have heard of the promotion yet: it asks again in a moment.
        assert wait_until(lambda: served(versions, lambda: (row(id), again(id))))
        assert row(id) == again(id) == 2


def served(versions: Versions, call: Callable[[], object]) -> bool:
    """Whether a second call loads nothing."""
    call()
    versions.loads = 0
    call()
    return versions.loads == 0


def in_step(primary: Server, replica: Server) -> bool:
    with primary.client() as one, replica.client() as other:
        return linked(replica) and bool(
            one.info("replication")["master_repl_offset"] == other.info("replication")["slave_repl_offset"]
        )


def linked(replica: Server) -> bool:
    """Whether it hears its primary."""
    with replica.client() as client:
        return bool(client.info("replication").get("master_link_status") == "up")


def promoted(server: Server) -> bool:
    with server.client() as client:
        return bool(
            client.info("replication")["role"] == "master"
            and client.execute_command("CLUSTER INFO")["cluster_state"] == "ok"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_primaries_are_handed_over_and_die_under_load(kind: str) -> None:
    """Handed over and back, then killed: never stale, and served again without a restart of anybody."""
    with ClusterServer(kind, replicas=1) as cluster:
        versions = Versions()
        with traffic(versions, cluster.url) as errors:
            time.sleep(0.3)
            primary = cluster.nodes[0]
            replica = cluster.replica_of(primary)
            for node in (replica, primary):
                cluster.promote(node)
                # Nobody votes for a successor of one server twice within four seconds, and who gets no votes
                # waits for eight.
                time.sleep(1.5)
            assert wait_until(lambda: linked(replica))
            primary.kill()
            # The replica is sure of it first; the others may take the cluster for down a while longer.
            assert wait_until(lambda: promoted(replica) and cluster.in_order(), 60)
            time.sleep(0.5)
            before = versions.loads
            time.sleep(0.5)
            served = len(versions.answers)
        print(f"{len(versions.answers)} answers, {versions.loads} loads, {versions.refused} unacknowledged")
        assert not errors
        assert not versions.stale()
        assert before
        assert served
        assert wait_until(lambda: hits(cluster.url), 20)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lost", ["tag", "key"])
def test_a_slot_that_comes_back_brings_nothing_that_is_believed(kind: str, lost: str) -> None:
    """It goes to another server, which forgets an invalidation in a failover, and comes back."""
    with (
        ClusterServer(kind, replicas=1) as cluster,
        Cache(cluster.url, l1_window=None) as writer,
        Cache(cluster.url, l1_window=None) as bystander,
    ):
        id, of_value, of_tag = kept_apart(cluster, writer)
        keys = writer.world.keys
        name = keys.token(f"row:{id}") if lost == "tag" else keys.value(f"rows:row:{id}")
        home = of_tag if lost == "tag" else of_value
        other = next(node for node in cluster.nodes if node not in (of_tag, of_value))
        versions = Versions()
        row, unaware = versions.reader(writer), versions.reader(bystander)
        assert row(id) == unaware(id) == 0
        cluster.move(name, other).finish()
        replica = cluster.replica_of(other)
        assert wait_until(lambda: in_step(other, replica))
        cluster.lag(replica)
        versions.versions[id] = 1
        assert writer.invalidate(
            **({"tags": [f"row:{id}"]} if lost == "tag" else {"keys": [f"rows:row:{id}"]})
        )
        other.kill()
        assert wait_until(lambda: promoted(replica) and cluster.in_order(), 60)
        cluster.move(name, home).finish()
        assert [row(id), unaware(id)] == [1, 1]
        with Cache(cluster.url, l1_window=None) as fresh:
            assert versions.reader(fresh)(id) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_was_asked_a_moment_ago_is_asked_again_when_a_slot_has_come_back(kind: str) -> None:
    """Whoever goes on reading there hears that the slot is back from others, for another one has moved."""
    with (
        ClusterServer(kind, replicas=1) as cluster,
        Cache(cluster.url, l1_window=None) as writer,
        Cache(cluster.url, l1_window=None) as bystander,
    ):
        id, home, _ = kept_apart(cluster, writer)
        other, third = (node for node in cluster.nodes if node is not home)
        keys = writer.world.keys
        name = keys.value(f"rows:row:{id}")
        versions = Versions()

        def plain(cache: Cache) -> Callable[[int], int]:
            return cache.cached(ns="rows", key="row:{id}", ttl=60)(lambda id: versions.versions.get(id, 0))

        row, unaware = plain(writer), plain(bystander)
        on_home = [i for i in range(100, 300) if cluster.primary_of(keys.value(f"rows:row:{i}")) is home]
        busy, errand = on_home[0], on_home[1]
        assert row(id) == unaware(id) == unaware(busy) == unaware(errand) == 0
        cluster.move(name, other).finish()
        twin = next(i for i in count(1000) if slot_of(keys.value(f"rows:row:{i}")) == slot_of(name))
        assert unaware(twin) == 0, "the slot is known to be elsewhere"
        replica = cluster.replica_of(other)
        assert wait_until(lambda: in_step(other, replica))
        cluster.lag(replica)
        versions.versions[id] = 1
        assert writer.invalidate(keys=[f"rows:row:{id}"])
        other.kill()
        assert wait_until(lambda: promoted(replica) and cluster.in_order(), 60)
        back, away = cluster.move(name, home), cluster.move(keys.value(f"rows:row:{errand}"), third)
        back.keys()
        away.keys()
        time.sleep(1.1)
        assert unaware(busy) == 0, "home has just said who it is"
        back.finish()
        away.finish()
        assert unaware(errand) == 0, "sent to the third, it asks who holds what"
        assert unaware(id) == 1
