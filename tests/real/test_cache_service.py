"""The cache service on real servers."""

from __future__ import annotations

import redis

from cacheaside import Cache


def test_dropping_a_pattern_scans_and_never_asks_for_all_keys(redis_url: str) -> None:
    with Cache(redis_url, prefix="p") as cache, redis.Redis.from_url(redis_url) as client:
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
    with Cache(redis_url, prefix="p") as cache, redis.Redis.from_url(redis_url) as client:
        cache.set_many({f"n:{i}": "x" * 9000 * (i % 2) for i in range(50)}, ttl=60, tags=["t"])
        cache.set("n:1", 1)
        cache.get_or_load("n:new", lambda: 1, tags=["t"])
        cache.expire("n:2", 5)
        cache.invalidate(tags=["t"], hold=1)
        assert [key for key in client.keys("*") if client.pttl(key) <= 0] == []
