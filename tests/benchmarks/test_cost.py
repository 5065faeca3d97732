"""What a call costs, as ratios to the least that it could cost. The limits are promises of the docs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from statistics import median
from threading import Lock
from typing import Any

import cachetools
import msgspec
import pytest
import redis
import redis.asyncio

from cacheaside import Cache

pytestmark = pytest.mark.benchmark


class Post(msgspec.Struct, frozen=True):
    id: int
    title: str
    body: str
    author: int


def make(n: int) -> Post:
    return Post(n, f"post {n}", "What a day it was. " * 8, n % 7)


decode = msgspec.msgpack.Decoder(Post).decode


# In this process: beside a locked LRU dictionary


@pytest.fixture
def local() -> Iterator[dict[str, Any]]:
    with Cache("embedded://") as cache:

        @cachetools.cached(cachetools.LRUCache(1024), lock=Lock())
        def bare(n: int) -> Post:
            return make(n)

        @cache.cached(ns="template", key="post:{n}", tags=["post:{n}"])
        def by_template(n: int) -> Post:
            return make(n)

        @cache.cached(ns="default", tags=["post:{n}"])
        def by_default(n: int) -> Post:
            return make(n)

        @cache.cached(ns="async", key="post:{n}", tags=["post:{n}"])
        async def by_await(n: int) -> Post:
            return make(n)

        class Repository:
            @cache.cached(ns="method", key="post:{n}", tags=["post:{n}"])
            def get(self, n: int) -> Post:
                return make(n)

            @cachetools.cached(cachetools.LRUCache(1024), lock=Lock())
            def bare(self, n: int) -> Post:
                return make(n)

        yield {**locals(), "repository": Repository()}
        assert {counts["loads"] for counts in cache.stats()["namespaces"].values()} <= {1}


BARE = {"cachetools.cached, locked": "bare(42)"}


async def test_l1_hit_with_a_key_template(race, local):
    times = await race("L1 hit, key template", BARE | {"cacheaside": "by_template(42)"}, local)
    assert times.ratio("cacheaside", *BARE) <= 1.2


async def test_l1_hit_with_the_default_key(race, local):
    times = await race("L1 hit, default key", BARE | {"cacheaside": "by_default(42)"}, local)
    assert times.ratio("cacheaside", *BARE) <= 1.2


async def test_l1_hit_of_a_method(race, local):
    bare = {"cachetools.cached, locked": "repository.bare(42)"}
    times = await race("L1 hit, method", bare | {"cacheaside": "repository.get(42)"}, local)
    assert times.ratio("cacheaside", *bare) <= 1.2


async def test_l1_hit_of_an_async_function(race, local):
    times = await race("L1 hit, async", BARE | {"cacheaside": "await by_await(42)"}, local)
    assert times.ratio("cacheaside", *BARE) <= 1.8


# In Redis: beside a bare GET


@pytest.fixture
async def remote(one_redis_url: str) -> AsyncIterator[dict[str, Any]]:
    cache = Cache(one_redis_url)
    client = redis.Redis.from_url(one_redis_url)
    aclient = redis.asyncio.Redis.from_url(one_redis_url)
    client.mset({f"post:{n}": msgspec.msgpack.encode(make(n)) for n in range(100)})

    def bare(n: int) -> Post:
        return decode(client.get(f"post:{n}"))

    async def abare(n: int) -> Post:
        return decode(await aclient.get(f"post:{n}"))

    @cache.cached(ns="sync", key="post:{n}", tags=["post:{n}"], l1=False)
    def ours(n: int) -> Post:
        return make(n)

    @cache.cached(ns="async", key="post:{n}", tags=["post:{n}"], l1=False)
    async def aours(n: int) -> Post:
        return make(n)

    async def at_once(function: Callable[[int], Any]) -> list[Post]:
        return await asyncio.gather(*map(function, range(100)))

    assert ours(42) == bare(42)
    assert await at_once(aours) == await at_once(abare)
    yield locals()
    loads = {ns: counts["loads"] for ns, counts in cache.stats()["namespaces"].items()}
    assert loads == {"sync": 1, "async": 100}
    client.close()
    await aclient.aclose()
    await cache.aclose()


async def test_l2_hit(race, remote):
    times = await race("L2 hit, one tag", {"redis-py GET": "bare(42)", "cacheaside": "ours(42)"}, remote)
    assert times.ratio("cacheaside", "redis-py GET") <= 1.2


async def test_l2_hit_on_asyncio(race, remote):
    calls = {"redis-py GET": "await abare(42)", "cacheaside": "await aours(42)"}
    times = await race("L2 hit, one tag, asyncio", calls, remote)
    assert times.ratio("cacheaside", "redis-py GET") <= 1.3


async def test_a_hundred_l2_hits_at_once(race, remote):
    """Each with a tag of its own: two hundred keys in one MGET."""
    calls = {"redis-py GET": "await at_once(abare)", "cacheaside": "await at_once(aours)"}
    times = await race("L2 hit, one of 100 at once, asyncio", calls, remote, each=100)
    assert times.ratio("cacheaside", "redis-py GET") <= 0.45


# Invalidation


def test_invalidating_a_large_tag_costs_what_a_small_one_costs(one_redis_url, table):
    """Every tag is invalidated once, when all of its entries are still valid."""
    pairs, large, small = 5, 100_000, 10
    with Cache(one_redis_url, reclaim_every=None) as cache:
        for start in range(0, large, 1000):
            entries = {f"n:{n}": n for n in range(start, start + 1000)}
            assert cache.set_many(entries, tags=[f"large {i}" for i in range(pairs)])
        assert cache.set_many({f"m:{n}": n for n in range(small)}, tags=[f"small {i}" for i in range(pairs)])
        assert cache.get("n:7") == cache.get("m:7") == 7
        cache.invalidate(tags=["another"])  # the server learns the script

        def seconds(tag: str) -> float:
            begin = time.perf_counter()
            assert cache.invalidate(tags=[tag])
            return time.perf_counter() - begin

        times = [(seconds(f"small {i}"), seconds(f"large {i}")) for i in range(pairs)]
        assert cache.get("n:7", None) is cache.get("m:7", None) is None
    ratio = median(b / a for a, b in times)
    table("Invalidate a tag", f"{small} entries", f"{median(a for a, _ in times) * 1e6:.2f} us", "1.00x")
    table("", f"{large} entries", f"{median(b for _, b in times) * 1e6:.2f} us", f"{ratio:.2f}x")
    assert ratio <= 3
