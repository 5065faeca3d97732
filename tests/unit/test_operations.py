"""The direct operations and their a-twins: the same answers, embedded and over Redis."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from cacheaside import MISSING, Cache, CodecError, InvalidationNotAcknowledged, StoreUnavailable
from cacheaside.engine.commands import Claim, Fetch, Invalidate

Do = Callable[..., Awaitable[Any]]


@pytest.fixture(params=["", "a"], ids=["sync", "async"])
def do(request: pytest.FixtureRequest, any_cache: Cache) -> Do:
    """Call an operation of the cache, or its a-twin."""

    async def call(operation: str, *args: Any, **kwargs: Any) -> Any:
        answer = getattr(any_cache, request.param + operation)(*args, **kwargs)
        return await answer if request.param else answer

    return call


def test_every_operation_that_speaks_to_the_store_has_its_a_twin() -> None:
    operations = [
        "get",
        "set",
        "delete",
        "exists",
        "get_many",
        "set_many",
        "expire",
        "ttl",
        "get_or_load",
        "invalidate",
        "delete_matching",
        "clear",
        "tag_keys",
        "explain",
        "reclaim",
    ]
    for name in operations:
        assert asyncio.iscoroutinefunction(getattr(Cache, f"a{name}")), name
        assert callable(getattr(Cache, name)), name


# ---------------------------------------------------------------------------- get and set


@pytest.mark.parametrize("value", [0, False, "", [], {}, None, 1.5, b"\0", "ü", {"a": [1, None]}])
async def test_what_is_set_is_got(do: Do, value: Any) -> None:
    assert await do("set", "n:k", value) is True
    got = await do("get", "n:k")
    assert (got, type(got)) == (value, type(value))
    assert await do("exists", "n:k") is True
    assert await do("get_many", ["n:k", "n:other"]) == {"n:k": value}


@pytest.mark.parametrize("value", [(1, 2), {3}, object()])
async def test_what_would_come_back_as_something_else_is_refused(do: Do, value: Any) -> None:
    """There is no annotation here to decode by."""
    with pytest.raises(CodecError, match=type(value).__name__):
        await do("set", "n:k", value)


async def test_what_is_missing_is_the_default(do: Do) -> None:
    assert await do("get", "n:k") is MISSING
    assert await do("get", "n:k", 7) == 7
    assert await do("get", "n:k", None) is None
    assert await do("exists", "n:k") is False
    assert await do("ttl", "n:k") is None
    assert await do("get_many", ["n:k", "n:l"]) == {}
    assert await do("get_many", []) == {}


async def test_a_cached_none_is_no_miss(do: Do) -> None:
    await do("set", "n:k", None)
    assert await do("get", "n:k", "default") is None
    assert await do("exists", "n:k") is True


async def test_a_value_got_is_the_callers_own(do: Do) -> None:
    given = [1]
    await do("set", "n:k", given)
    given.append(2)
    (await do("get", "n:k")).append(3)
    assert await do("get", "n:k") == [1]


@pytest.mark.parametrize("ttl", [60, 60.0, timedelta(minutes=1)])
async def test_a_value_stays_for_its_ttl(do: Do, clock: Any, ttl: Any) -> None:
    await do("set", "n:k", 1, ttl=ttl)
    assert await do("ttl", "n:k") == 60
    clock.tick(59)
    assert await do("get", "n:k") == 1
    assert await do("ttl", "n:k") == 1
    clock.tick(1)
    assert await do("get", "n:k") is MISSING
    assert await do("ttl", "n:k") is None
    assert await do("exists", "n:k") is False


async def test_without_a_ttl_the_one_of_the_cache_counts(do: Do) -> None:
    await do("set", "n:k", 1)
    assert await do("ttl", "n:k") == 300


async def test_setting_again_replaces_value_ttl_and_tags(do: Do) -> None:
    await do("set", "n:k", 1, ttl=10, tags=["old"])
    await do("set", "n:k", 2, ttl=20, tags=["new"])
    assert await do("ttl", "n:k") == 20
    await do("invalidate", tags=["old"])
    assert await do("get", "n:k") == 2
    await do("invalidate", tags=["new"])
    assert await do("get", "n:k") is MISSING


async def test_set_many_gives_every_value_its_ttl_and_tags_at_once(do: Do, clock: Any) -> None:
    values = {f"n:{i}": i for i in range(20)}
    assert await do("set_many", values, ttl=60, tags=["all"]) is True
    assert await do("get_many", values) == values
    assert [await do("ttl", key) for key in values] == [60] * 20
    await do("invalidate", tags=["all"])
    assert await do("get_many", values) == {}
    assert await do("set_many", {}) is True


async def test_expire_gives_another_ttl_and_keeps_value_and_tags(do: Do, clock: Any) -> None:
    await do("set", "n:k", "v", ttl=10, tags=["t"])
    assert await do("expire", "n:k", timedelta(hours=1)) is True
    assert await do("ttl", "n:k") == 3600
    clock.tick(11)
    assert await do("get", "n:k") == "v"
    await do("invalidate", tags=["t"])
    assert await do("get", "n:k") is MISSING
    assert await do("expire", "n:k", 60) is False, "an invalidated value does not come back"
    assert await do("expire", "n:missing", 60) is False


async def test_expire_revives_nothing_that_has_expired(do: Do, clock: Any) -> None:
    await do("set", "n:k", "v", ttl=10)
    clock.tick(10)
    assert await do("expire", "n:k", 60) is False
    assert await do("get", "n:k") is MISSING


async def test_expire_shortens_the_stay_in_l1_too(cache: Cache, clock: Any) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="k", ttl=100, jitter=0)
    def f() -> int:
        loads.append(1)
        return 1

    f(), f()
    assert cache.expire("n:k", 5)
    clock.tick(6)
    f()
    assert len(loads) == 2


# ---------------------------------------------------------------------------- get_or_load


async def test_get_or_load_loads_once(any_cache: Cache) -> None:
    loads: list[int] = []

    def load() -> list[int]:
        loads.append(1)
        return [len(loads)]

    async def aload() -> list[int]:
        return load()

    assert any_cache.get_or_load("n:k", load, ttl=60, tags=["t"]) == [1]
    assert any_cache.get_or_load("n:k", load, ttl=60, tags=["t"]) == [1]
    assert await any_cache.aget_or_load("n:k", aload, ttl=60, tags=["t"]) == [1]
    assert any_cache.ttl("n:k") == 60
    any_cache.invalidate(tags=["t"])
    assert await any_cache.aget_or_load("n:k", aload, tags=["t"]) == [2]
    assert any_cache.get("n:k") == [2]


async def test_get_or_load_of_callers_at_the_same_time_is_one_load(any_cache: Cache) -> None:
    loads: list[int] = []

    async def load() -> int:
        loads.append(1)
        await asyncio.sleep(0)
        return len(loads)

    assert await asyncio.gather(*(any_cache.aget_or_load("n:k", load) for _ in range(5))) == [1] * 5


async def test_get_or_load_believes_only_entries_with_its_tags(any_cache: Cache) -> None:
    """A value stored without a tag would survive the tag's invalidation."""
    any_cache.set("n:k", "untagged")
    assert any_cache.get_or_load("n:k", lambda: "tagged", tags=["t"]) == "tagged"


async def test_an_error_of_a_load_is_the_callers_and_is_not_cached(any_cache: Cache) -> None:
    def fails() -> int:
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        any_cache.get_or_load("n:k", fails)
    assert any_cache.get_or_load("n:k", lambda: 1) == 1


# ---------------------------------------------------------------------------- dropping


async def test_delete_drops_keys(do: Do) -> None:
    await do("set_many", {"n:1": 1, "n:2": 2, "n:3": 3})
    receipt = await do("delete", "n:1", "n:2")
    assert receipt
    assert (receipt.keys, receipt.acknowledged, receipt.attempts, receipt.deferred) == (
        ("n:1", "n:2"),
        True,
        1,
        False,
    )
    assert await do("get_many", ["n:1", "n:2", "n:3"]) == {"n:3": 3}
    assert await do("delete", "n:never")
    assert await do("delete")


async def test_invalidate_drops_keys_and_everything_under_tags(do: Do) -> None:
    await do("set", "a:1", 1, tags=["red"])
    await do("set", "b:1", 1, tags=["red", "blue"])
    await do("set", "c:1", 1, tags=["blue"])
    await do("set", "d:1", 1)
    await do("set", "e:1", 1)
    receipt = await do("invalidate", keys=["d:1"], tags=["red"])
    assert (receipt.keys, receipt.tags) == (("d:1",), ("red",))
    assert await do("get_many", ["a:1", "b:1", "c:1", "d:1", "e:1"]) == {"c:1": 1, "e:1": 1}


async def test_invalidating_nothing_asks_nothing(do: Do) -> None:
    receipt = await do("invalidate")
    assert receipt
    assert receipt.attempts == 0


async def test_a_tag_is_one_however_it_is_spelled(do: Do) -> None:
    await do("set", "n:k", 1, tags=["author:Jo Ann"])
    await do("invalidate", tags=["author:Jo%20Ann"])
    assert await do("get", "n:k") is MISSING


async def test_a_hold_keeps_values_out(do: Do, any_cache: Cache) -> None:
    loads: list[int] = []

    @any_cache.cached(ns="n", key="{a}", tags=["t:{a}"])
    def f(a: int) -> int:
        loads.append(a)
        return len(loads)

    await do("invalidate", keys=["n:1"], tags=["t:2"], hold=10)
    for a in (1, 1, 2, 2, 3, 3):
        f(a)
    assert loads == [1, 1, 2, 2, 3]
    await do("invalidate", keys=["n:1"], tags=["t:2"])
    loads.clear()
    for a in (1, 1, 2, 2):
        f(a)
    assert loads == [1, 1, 2, 2], "an invalidation without a hold leaves it standing"


async def test_a_hold_ends_by_itself(cache: Cache, clock: Any) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", tags=["t:{a}"])
    def f(a: int) -> int:
        loads.append(a)
        return a

    cache.invalidate(keys=["n:1"], tags=["t:2"], hold=timedelta(seconds=10))
    clock.tick(9.9)
    f(1), f(1), f(2), f(2)
    assert loads == [1, 1, 2, 2]
    clock.tick(0.2)
    loads.clear()
    f(1), f(1), f(2), f(2)
    assert loads == [1, 2]


async def test_delete_matching_drops_what_matches_and_tells_its_progress(do: Do) -> None:
    await do("set_many", {f"posts:feed:{i}": i for i in range(30)} | {"posts:post:1": 1, "users:feed:1": 1})
    seen: list[int] = []
    assert await do("delete_matching", "posts:feed:*", progress=seen.append) == 30
    assert seen[-1] == 30
    assert await do("get_many", ["posts:feed:1", "posts:post:1", "users:feed:1"]) == {
        "posts:post:1": 1,
        "users:feed:1": 1,
    }
    assert await do("delete_matching", "posts:feed:*", progress=seen.append) == 0


async def test_clear_drops_a_namespace_or_everything(do: Do) -> None:
    await do("set_many", {"posts:1": 1, "posts:2:3": 1, "postscript:1": 1})
    assert await do("clear", "posts") == 2
    assert await do("exists", "postscript:1")
    assert await do("clear") == 1
    assert not await do("exists", "postscript:1")


async def test_clear_leaves_other_prefixes_alone(clock: Any, redis_store: Any, redis_cache: Cache) -> None:
    redis_store.client.set("elsewhere:n:k", b"1")
    redis_cache.set("n:k", 1)
    assert redis_cache.clear() == 1
    assert redis_store.client.get("elsewhere:n:k") == b"1"


async def test_dropping_drops_from_l1(cache: Cache) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", tags=["t:{a}"])
    def f(a: int) -> int:
        loads.append(a)
        return a

    for drop in (
        lambda: cache.delete("n:1"),
        lambda: cache.invalidate(tags=["t:1"]),
        lambda: cache.delete_matching("n:*"),
        lambda: cache.clear("n"),
        lambda: cache.clear(),
        lambda: cache.set("n:1", "not an int, which f would not believe"),
    ):
        f(1), f(1)
        loads.clear()
        drop()
        f(1)
        assert loads == [1]


async def test_a_value_read_just_before_a_set_does_not_settle_in_l1_behind_it(cache: Cache) -> None:
    @cache.cached(ns="n", key="k")
    def f():  # type: ignore[no-untyped-def]
        return "old"

    perform = cache.store.perform

    def reading_first(command: Any) -> Any:
        if type(command) is Claim:
            assert f() == "old"
        return perform(command)

    f()
    cache.store.perform = reading_first  # type: ignore[method-assign]
    try:
        cache.set("n:k", "new")
    finally:
        del cache.store.perform
    assert f() == "new"


async def test_a_function_and_the_operations_see_one_entry(any_cache: Cache) -> None:
    @any_cache.cached(ns="n", key="{a}")
    def typed(a: int) -> tuple[int, ...]:
        return (a, a)

    @any_cache.cached(ns="m", key="{a}")
    def untyped(a):  # type: ignore[no-untyped-def]
        return [a]

    typed(1)
    assert any_cache.get("n:1") == (1, 1)
    any_cache.set("m:1", ["set"])
    assert untyped(1) == ["set"]


# ---------------------------------------------------------------------------- looking


async def test_tag_keys_lists_what_was_stored_under_a_tag(do: Do, clock: Any) -> None:
    await do("set", "n:late", 1, ttl=60, tags=["t", "u"])
    await do("set", "n:soon", 1, ttl=30, tags=["t"])
    assert await do("tag_keys", "t") == ["n:soon", "n:late"]
    assert await do("tag_keys", "t", start=1) == ["n:late"]
    assert await do("tag_keys", "t", count=1) == ["n:soon"]
    assert await do("tag_keys", "u") == ["n:late"]
    assert await do("tag_keys", "never") == []


async def test_explain_says_in_words_what_a_read_would_find(do: Do, any_cache: Cache, clock: Any) -> None:
    assert "holds nothing" in await do("explain", "n:k")
    await do("set", "n:k", 1, ttl=60, tags=["t"])
    clock.tick(10)
    words = await do("explain", "n:k")
    for part in ("n:k", "10.0 s old", "fresh for 50.0 s", "tag t valid"):
        assert part in words
    (token,) = re.findall(r"tag t valid \(([0-9a-f]+)\)", words)
    (stored,) = any_cache.store.perform(Fetch((any_cache.world.keys.token("t"),)))
    assert len(token) == 8
    assert stored.hex().endswith(token)
    await do("invalidate", tags=["t"])
    assert "tag t invalidated" in await do("explain", "n:k")
    await do("invalidate", tags=["t"], hold=10)
    assert "tag t held" in await do("explain", "n:k")
    await do("invalidate", keys=["n:k"], hold=10)
    assert "is held" in await do("explain", "n:k")


async def test_explain_names_the_tier(cache: Cache, redis_cache: Cache) -> None:
    @cache.cached(ns="n", key="k", ttl=60, jitter=0)
    def f() -> int:
        return 1

    assert "L1 does not hold it" in cache.explain("n:k")
    f()
    assert "L1 holds it for 60.0 s" in cache.explain("n:k")
    assert "L1 is off" in redis_cache.explain("n:k")


async def test_stats_count_by_namespace_and_show_l1(cache: Cache) -> None:
    @cache.cached(ns="posts", key="{a}")
    def f(a: int) -> int:
        return a

    f(1), f(1), f(2)
    stats = cache.stats()
    posts = stats["namespaces"]["posts"]
    assert (posts["hits_l1"], posts["misses"], posts["loads"], posts["stored"]) == (1, 2, 2, 2)
    assert stats["l1"]["on"] is True
    assert stats["l1"]["entries"] == 2
    assert stats["l1"]["bytes"] > 0
    assert stats["flights"] == 0


async def test_reclaim_frees_what_a_tag_invalidated(do: Do) -> None:
    await do("set", "n:1", 1, tags=["t"])
    await do("set", "n:2", 2, tags=["t"])
    await do("invalidate", tags=["t"])
    await do("set", "n:2", 3, tags=["t"])
    assert await do("reclaim", "t") == 1
    assert await do("tag_keys", "t") == ["n:2"]
    assert await do("get", "n:2") == 3


# ---------------------------------------------------------------------------- without a store


class Away:
    """A store that nobody answers for, until it is ``back``."""

    def __init__(self, after: int = 10**9) -> None:
        self.asked = self.invalidations = 0
        self.after = after

    def perform(self, command: Any) -> Any:
        self.asked += 1
        self.invalidations += type(command) is Invalidate
        if self.asked <= self.after:
            raise StoreUnavailable("refused")
        return None

    async def aperform(self, command: Any) -> Any:
        return self.perform(command)


async def test_an_unreachable_store_is_a_miss_and_false_never_an_error(clock: Any, caplog: Any) -> None:
    cache = Cache(store=Away(), clock=clock, invalidation_timeout=1)
    cache.driver._sleep = clock.tick
    with caplog.at_level(logging.WARNING, "cacheaside"):
        assert cache.get("n:k") is MISSING
        assert cache.get_many(["n:k"]) == {}
        assert cache.exists("n:k") is False
        assert cache.ttl("n:k") is None
        assert cache.set("n:k", 1) is False
        assert cache.expire("n:k", 1) is False
        assert cache.get_or_load("n:k", lambda: 5) == 5
        assert "did not answer" in cache.explain("n:k")
        assert not cache.delete("n:k")
    assert "answered as a miss" in caplog.text
    assert "not acknowledged" in caplog.text


async def test_an_unacknowledged_invalidation_is_repeated_counted_and_false(clock: Any) -> None:
    store = Away()
    cache = Cache(store=store, clock=clock, invalidation_timeout=2)
    cache.driver._sleep = clock.tick
    start = clock()
    receipt = cache.invalidate(keys=["n:k"], tags=["t"])
    assert not receipt
    assert receipt.attempts == store.invalidations > 3
    assert clock() - start <= 2
    assert cache.stats()["unacknowledged"] == 1


async def test_an_invalidation_that_gets_through_in_time_is_acknowledged(clock: Any) -> None:
    cache = Cache(store=Away(after=3), clock=clock)
    cache.driver._sleep = clock.tick
    receipt = cache.invalidate(tags=["t"])
    assert receipt
    assert receipt.attempts == 4


async def test_an_unacknowledged_invalidation_raises_where_asked_to(clock: Any) -> None:
    cache = Cache(store=Away(), clock=clock, invalidation_timeout=0.001, on_unacknowledged="raise")
    with pytest.raises(InvalidationNotAcknowledged, match="n:k"):
        cache.invalidate(keys=["n:k"])
    with pytest.raises(InvalidationNotAcknowledged, match="n:k"):
        await cache.ainvalidate(keys=["n:k"])


async def test_explain_says_who_would_load_it_and_what_would_make_it_a_miss(cache: Cache, clock: Any) -> None:
    """For a function's own call, too; and what was last heard of the key or one of its tags."""

    @cache.cached(ns="n", key="{a}", tags=["t:{a}"])
    async def f(a: int) -> int:
        return a

    @cache.cached_many(ns="m", key="{id}")
    def many(ids: list[int]) -> dict[int, int]:
        return {id: id for id in ids}

    await f(1)
    words = await f.explain(1)
    assert words == await cache.aexplain("n:1")
    assert "f" in words.partition("loaded by ")[2].partition(";")[0]
    assert "a miss when n:1, tag t:1 is invalidated" in words
    assert "last invalidation" not in words
    cache.invalidate(tags=["t:1"])
    clock.tick(3)
    words = await f.explain(1)
    assert "a miss when" not in words
    assert "last invalidation heard here: tag t:1, 3.0 s ago" in words
    many([7])
    assert "m:7: L1 holds it" in many.explain(7)
