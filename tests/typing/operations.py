"""Direct operations, contexts and settings of a cache."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, assert_type

from cacheaside import FOREVER, Cache, Dropped, Receipt, configure, current_load
from cacheaside.missing import Missing

assert_type(configure("redis://localhost:6379/0", prefix="mini", ttl=300), Cache)
assert_type(configure(Cache("embedded://")), Cache)


def number() -> int:
    return 1


async def anumber() -> int:
    return 1


def operations(cache: Cache) -> None:
    assert_type(cache.set("posts:1", {"id": 1}, ttl=timedelta(hours=1), tags=["post:1"]), bool)
    assert_type(cache.get("posts:1"), Any)
    assert_type(cache.get("posts:1", type=list[int]), list[int] | Missing | None)
    assert_type(cache.get("posts:1", "", type=int), int | str | None)
    assert_type(cache.get_many(["posts:1", "posts:2"]), dict[str, Any])
    assert_type(cache.get_many(["posts:1"], type=int), dict[str, int | None])
    assert_type(cache.set("posts:1", (1, 2), ttl=FOREVER, type=tuple[int, int]), bool)
    assert_type(cache.set_many({"posts:1": 1}, ttl=5), bool)
    assert_type(cache.get_or_load("posts:1", number, ttl=5, tags=["post:1"]), int)
    assert_type(cache.exists("posts:1"), bool)
    assert_type(cache.ttl("posts:1"), float | None)
    assert_type(cache.expire("posts:1", 5), bool)
    assert_type(cache.delete("posts:1", "posts:2"), Receipt)
    assert_type(cache.invalidate(tags=["post:1"], keys=["posts:1"], hold=3), Receipt)
    assert_type(cache.delete_matching("posts:*", progress=print), Dropped)
    assert_type(cache.clear("posts"), Dropped)
    assert_type(cache.tag_keys("post:1", count=10), list[str])
    assert_type(cache.explain("posts:1"), str)


async def async_operations() -> None:
    async with Cache("embedded://") as cache:
        assert_type(cache, Cache)
        assert_type(await cache.aget("posts:1", default=None), Any)
        assert_type(await cache.aget_or_load("posts:1", anumber), int)
        assert_type(await cache.aget("posts:1", type=int), int | Missing | None)
        assert_type(await cache.ainvalidate(tags=["post:1"]), Receipt)
        async with cache.transaction(), cache.mutating(tags=["post:1"], hold=30) as held:
            assert_type(held.receipt, Receipt | None)
        with cache.bypass(), cache.refreshing():
            assert_type(await cache.aclear(), Dropped)


def loader() -> None:
    load = current_load()
    if load is not None:
        load.ttl = 5.0
        load.tag("author:7")
