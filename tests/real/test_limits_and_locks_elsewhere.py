"""Rate limits, locks and presence on a cluster, and behind a sentinel whose primary dies."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from cacheaside import Cache, StoreUnavailable
from cacheaside.testing import ClusterServer, ReplicaSet
from cacheaside.toolkit import Presence, RateLimiter

USERS = [f"user {n}" for n in range(12)]
PATIENCE = 30.0


async def everything_works(url: str) -> None:
    async with Cache(url, l1_window=None) as cache:
        for algorithm in ("sliding-log", "sliding-counter", "gcra"):
            limiter = RateLimiter(cache, limits=[(3, 600), (5, 3600)], algorithm=algorithm)  # type: ignore[arg-type]
            for user in USERS:
                told = [await limiter.ahit(user), limiter.hit(user, 2), await limiter.ahit(user)]
                assert [one.allowed for one in told] == [True, True, False]
                assert all(one.known for one in told)
                await limiter.areset(user)
                assert limiter.peek(user).remaining == 3
        for user in USERS:
            async with cache.lock(user) as first:
                assert cache.lock(user).acquire(timeout=0) is None
            with cache.lock(user) as second:
                assert second.fence > first.fence
                assert not second.lost
        presence = Presence(cache)
        for user in USERS:
            assert await presence.aonline(user, 1)
            assert not presence.online(user, 2)
            assert not presence.offline(user, 1)
        assert presence.count() == len(USERS)
        page = await presence.awho()
        assert (sorted(page.users), page.cursor) == (sorted(USERS), None)
        for user in USERS:
            assert await presence.aoffline(user)
            assert not presence.is_online(user)
        assert presence.count() == 0


async def test_a_cluster_will_do(cluster: ClusterServer) -> None:
    await everything_works(cluster.url)
    for node in cluster.nodes:
        with node.client() as client:
            assert client.dbsize() > 0, "they are spread over all of it"


async def test_a_primary_behind_a_sentinel_will_do_and_a_promotion_takes_no_fence_back() -> None:
    with ReplicaSet() as servers:
        await everything_works(servers.url)
        with Cache(servers.url, l1_window=None) as cache:
            presence, fences = Presence(cache), list[int]()
            with cache.lock("reports") as held:
                fences.append(held.fence)
            # What the replica has not heard of: it must not matter.
            servers.nodes[1].pause()
            with cache.lock("reports") as held:
                fences.append(held.fence)
            servers.nodes[0].kill()
            servers.nodes[1].resume()
            until = time.monotonic() + PATIENCE
            while True:
                try:
                    with cache.lock("reports") as held:
                        fences.append(held.fence)
                    break
                except StoreUnavailable:
                    assert time.monotonic() < until
                    await asyncio.sleep(0.05)
            assert fences == sorted(set(fences))
            assert presence.online("ann")
            limiter: Any = RateLimiter(cache, 1, 60)
            assert limiter.hit("ann").known
