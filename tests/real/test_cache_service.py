"""The cache service on real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from cacheaside import Cache
from cacheaside.testing import ClusterServer, ReplicaSet, available
from cacheaside.testing.servers import wait_until
from cacheaside.toolkit import Warmer
from examples.seed_keys import PostKeys

ANY = next(iter(available()), "none")


def test_dropping_a_pattern_scans_and_never_asks_for_all_keys(redis_url: str) -> None:
    with Cache(redis_url, prefix="p", l1_window=None) as cache, redis.Redis.from_url(redis_url) as client:
        for n in range(0, 3000, 500):
            cache.set_many({f"feed:{i}": i for i in range(n, n + 500)}, ttl=60)
        cache.set("other:1", 1)
        client.set("q:feed:1", "not ours")
        client.config_resetstat()
        assert cache.delete_matching("feed:*") == 3000
        stats = client.info("commandstats")
        assert "cmdstat_keys" not in stats
        assert stats["cmdstat_scan"]["calls"] >= 6
        assert sorted(client.keys("*")) == [b"p:other:1", b"q:feed:1"]


def test_everything_that_operations_store_has_an_end(redis_url: str) -> None:
    with Cache(redis_url, prefix="p", l1_window=None) as cache, redis.Redis.from_url(redis_url) as client:
        cache.set_many({f"n:{i}": "x" * 9000 * (i % 2) for i in range(50)}, ttl=60, tags=["t"])
        cache.set("n:1", 1)
        cache.get_or_load("n:new", lambda: 1, tags=["t"])
        cache.expire("n:2", 5)
        cache.invalidate(tags=["t"], hold=1)
        assert [key for key in client.keys("*") if client.pttl(key) <= 0] == []


class Posts:
    """A service that uses all of it: declared keys, direct operations, a warmer."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.asked: list[list[int]] = []
        self.find = cache.cached_many(key=PostKeys.post)(self._find)
        self.feed = cache.cached(key=PostKeys.feed)(self._feed)

    def _find(self, ids: list[int]) -> dict[int, str]:
        self.asked.append(ids)
        return {n: f"post {n}" for n in ids}

    def _feed(self, user_id: int, page: int) -> list[int]:
        return [user_id, page]


@pytest.fixture(scope="module")
def sentinels() -> Iterator[ReplicaSet]:
    with ReplicaSet() as group:
        yield group


@pytest.fixture(params=["cluster", "sentinels"])
def anywhere(request: pytest.FixtureRequest, clusters: Callable[[str], ClusterServer]) -> Iterator[Cache]:
    """A cache on a cluster, and one on what sentinels lead to."""
    there: Any = request.getfixturevalue("sentinels") if request.param == "sentinels" else clusters(ANY)
    with Cache(there.url, prefix="p", l1_window=None) as cache:
        cache.clear()
        yield cache


def test_the_whole_service_on_a_cluster_and_under_sentinels(anywhere: Cache) -> None:
    cache, posts = anywhere, Posts(anywhere)
    warmer = Warmer(cache, batch=40)
    warmer.add(posts.find, range(100), every=3600, name="posts")
    warmer.add(posts.feed, [(user, 1) for user in range(30)], name="feeds")
    report = warmer.run()
    assert (report.warmed, report.already_warm, report.failed, report.not_stored) == (130, 0, 0, 0)
    assert warmer.run().already_warm == 130
    assert [len(ids) for ids in posts.asked] == [40, 40, 20]

    assert cache.get(PostKeys.post(7), type=str) == "post 7"
    assert 800 < (cache.ttl(PostKeys.feed(3, 1)) or 0) <= 900
    cache.invalidate(tags=["feed:3", "post:7"])
    assert not cache.exists(PostKeys.feed(3, 1))
    assert not cache.exists(PostKeys.post(7))
    assert cache.set_many({PostKeys.comments(n): [n] for n in range(50)})
    assert len(cache.get_many([PostKeys.comments(n) for n in range(50)], type=list[int])) == 50

    told: list[int] = []
    dropped = cache.delete_matching("posts:*", progress=told.append)
    assert (dropped >= 178, dropped.complete, told[-1] == dropped) == (True, True, True)
    assert cache.get_many([PostKeys.post(n) for n in range(100)]) == {}

    other = Warmer(cache)
    other.add(posts.find, [1], every=3600, name="posts")
    with warmer, other:
        assert wait_until(lambda: bool(warmer.last or other.last))
    assert len(warmer.last) + len(other.last) == 1


def test_no_server_of_a_cluster_is_asked_for_all_its_keys(cluster: ClusterServer) -> None:
    with Cache(cluster.url, l1_window=None) as cache:
        cache.set_many({f"n:{i}": i for i in range(200)})
        for node in cluster.nodes:
            with node.client() as client:
                client.config_resetstat()
        assert cache.clear("n") == 200
    scanned = 0
    for node in cluster.nodes:
        with node.client() as client:
            stats = client.info("commandstats")
            assert "cmdstat_keys" not in stats
            scanned += "cmdstat_scan" in stats
    assert scanned >= 3
