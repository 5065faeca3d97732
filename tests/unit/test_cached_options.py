"""Every option of ``cached`` does what the reference says, for functions and methods, sync and async."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from cacheaside import MISSING, Cache, LoadTimeout, current_load
from cacheaside.engine.commands import Begin, Fetch, Place, Renew
from cacheaside.entry import NO_INCARNATION, PLACEHOLDER, Marker, digest, parse


@dataclasses.dataclass
class Post:
    id: int
    author_id: int
    title: str = "untitled"


def counted(cache: Cache, name: str) -> float:
    """The sum of a counter over all functions of a cache."""
    return sum(space[name] for space in cache.stats()["namespaces"].values())


def stored(cache: Cache, key: str) -> Any:
    """What stands in the slot of a key."""
    return parse(cache.store.perform(Fetch((cache.world.keys.value(key),)))[0])


# ---------------------------------------------------------------------------- keys


async def test_ns_and_key_name_the_entry(cache: Cache, paint: Any, ask: Any) -> None:
    @cache.cached(ns="posts", key="feed:{user_id}:page:{page}")
    @paint
    def feed(user_id: int, page: int = 1) -> str:
        return f"{user_id}/{page}"

    assert await ask(feed(7)) == "7/1"
    assert feed.key(7) == feed.key(user_id=7, page=1) == "posts:feed:7:page:1"
    assert cache.exists("posts:feed:7:page:1")
    assert not cache.exists("posts:feed:7:page:2")


async def test_without_a_key_all_arguments_tell_calls_apart(cache: Cache, paint: Any, ask: Any) -> None:
    @cache.cached(ns="sums")
    @paint
    def plus(a: int, b: int = 1, *more: int, **named: int) -> int:
        return a + b + sum(more) + sum(named.values())

    assert plus.key(1) == plus.key(a=1) == plus.key(1, 1) == plus.key(1, b=1)
    keys = {plus.key(1), plus.key(2), plus.key(1, 2), plus.key(1, 1, 3), plus.key(1, c=3), plus.key(True)}
    assert len(keys) == 6
    assert [await ask(plus(1)), await ask(plus(1, 2)), await ask(plus(1, 1, 3))] == [2, 3, 5]


# ---------------------------------------------------------------------------- ttl


@pytest.mark.parametrize("ttl", [60, 60.0, timedelta(minutes=1), lambda result: 60])
async def test_a_result_is_fresh_for_its_ttl_and_loaded_again_after(
    cache: Cache, clock: Any, paint: Any, ask: Any, ttl: Any
) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", ttl=ttl, jitter=0)
    @paint
    def f(a: int) -> int:
        loads.append(a)
        return len(loads)

    assert [await ask(f(1)), await ask(f(1))] == [1, 1]
    clock.tick(59.9)
    assert await ask(f(1)) == 1
    clock.tick(0.2)
    assert [await ask(f(1)), await ask(f(1))] == [2, 2]


async def test_the_ttl_may_depend_on_the_result(cache: Cache, clock: Any) -> None:
    @cache.cached(ns="n", key="{a}", ttl=lambda result: timedelta(seconds=result), jitter=0)
    def f(a: int) -> int:
        return a

    f(10), f(100), f(0)
    assert cache.ttl("n:10") == 10
    assert cache.ttl("n:100") == 100
    assert cache.ttl("n:0") is None, "a ttl of 0 is not cached"


async def test_without_a_ttl_the_one_of_the_cache_counts(clock: Any) -> None:
    with Cache("embedded://", ttl=42, clock=clock) as cache:

        @cache.cached(ns="n", key="k", jitter=0)
        def f() -> int:
            return 1

        f()
        assert cache.ttl("n:k") == 42


async def test_jitter_takes_up_to_its_share_off_the_ttl(cache: Cache) -> None:
    @cache.cached(ns="n", key="{a}", ttl=100, jitter=0.2)
    def f(a: int) -> int:
        return a

    for number, left in ((0.0, 100), (0.5, 90), (1.0, 80)):
        cache.world.random = lambda number=number: number
        f.refresh(1)
        assert cache.ttl("n:1") == pytest.approx(left)


# ---------------------------------------------------------------------------- tags


async def test_an_entry_ends_with_any_tag_of_its_arguments_or_its_result(
    cache: Cache, paint: Any, ask: Any
) -> None:
    loads: list[int] = []

    @cache.cached(ns="posts", key="{post_id}", tags=["posts", "post:{post_id}", "author:{result.author_id}"])
    @paint
    def get(post_id: int) -> Post:
        loads.append(post_id)
        return Post(post_id, author_id=post_id * 10)

    assert get.tags(1) == ("posts", "post:1")
    for tag in ("posts", "post:1", "author:10"):
        await ask(get(1))
        before = len(loads)
        await ask(get(1))
        assert len(loads) == before, f"a hit before {tag} is invalidated"
        assert cache.invalidate(tags=[tag])
        await ask(get(1))
        assert len(loads) == before + 1, f"a miss after {tag} is invalidated"
    assert cache.invalidate(tags=["post:2", "author:20"])
    await ask(get(1))
    assert len(loads) == before + 1, "other tags leave it alone"


@pytest.mark.parametrize(
    "tags",
    [
        lambda post_id: [f"post:{post_id}"],
        lambda post_id, result: [f"post:{post_id}", f"author:{result.author_id}"],
        lambda post: [f"post:{post.id}"],
    ],
    ids=["arguments", "both", "result"],
)
async def test_tags_may_be_a_function_of_arguments_and_result(cache: Cache, tags: Any) -> None:
    loads: list[int] = []

    @cache.cached(ns="posts", key="{post_id}", tags=tags)
    def get(post_id: int) -> Post:
        loads.append(post_id)
        return Post(post_id, 7)

    get(1), get(1)
    cache.invalidate(tags=["post:1"])
    get(1)
    assert len(loads) == 2


async def test_a_template_names_nothing_of_none_and_a_function_may(cache: Cache) -> None:
    @cache.cached(ns="posts", key="{post_id}", tags=["posts", "author:{result.author_id}"])
    def named(post_id: int) -> Post | None:
        return None

    @cache.cached(ns="drafts", key="{post_id}", tags=lambda post_id, result: [f"draft:{post_id}:{result}"])
    def computed(post_id: int) -> Post | None:
        return None

    assert named(1) is None
    assert named.peek(1) is None
    cache.invalidate(tags=["posts"])
    assert named.peek(1) is MISSING
    computed(1)
    assert computed.peek(1) is None
    cache.invalidate(tags=["draft:1:None"])
    assert computed.peek(1) is MISSING


async def test_one_tag_drops_entries_of_several_namespaces(cache: Cache) -> None:
    loads: list[str] = []

    @cache.cached(ns="users", key="{user}", tags=["user:{user}"])
    def profile(user: int) -> str:
        loads.append("profile")
        return "p"

    @cache.cached(ns="feeds", key="{user}", tags=["user:{user}"])
    def feed(user: int) -> str:
        loads.append("feed")
        return "f"

    profile(1), feed(1)
    cache.invalidate(tags=["user:1"])
    profile(1), feed(1)
    assert loads == ["profile", "feed"] * 2


async def test_without_l1_a_late_tag_on_redis_is_returned_and_not_stored(redis_cache: Cache) -> None:
    @redis_cache.cached(ns="posts", key="{post_id}", tags=["author:{result.author_id}"])
    def get(post_id: int) -> Post:
        return Post(post_id, 7)

    assert get(1) == Post(1, 7)
    assert get.peek(1) is MISSING
    assert counted(redis_cache, "late_unproven") == 1


# ---------------------------------------------------------------------------- tiers


async def test_an_l1_hit_asks_the_store_nothing(cache: Cache, paint: Any, ask: Any) -> None:
    @cache.cached(ns="n", key="{a}")
    @paint
    def f(a: int) -> int:
        return a

    await ask(f(1))
    cache.store.perform = None  # type: ignore[assignment]
    cache.store.aperform = None  # type: ignore[assignment]
    try:
        assert await ask(f(1)) == 1
    finally:
        del cache.store.perform, cache.store.aperform
    assert counted(cache, "hits_l1") == 1


async def test_without_l1_every_hit_is_one_of_the_store(cache: Cache, paint: Any, ask: Any) -> None:
    @cache.cached(ns="n", key="{a}", l1=False)
    @paint
    def f(a: int) -> int:
        return a

    assert [await ask(f(1)) for _ in range(3)] == [1, 1, 1]
    assert (counted(cache, "hits_l1"), counted(cache, "hits_l2"), counted(cache, "loads")) == (0, 2, 1)
    assert cache.stats()["l1"]["entries"] == 0


@pytest.mark.parametrize("seconds", [30, timedelta(seconds=30)])
async def test_l1_seconds_cap_the_stay_there(cache: Cache, clock: Any, seconds: Any) -> None:
    @cache.cached(ns="n", key="{a}", ttl=300, l1=seconds, jitter=0)
    def f(a: int) -> int:
        return a

    f(1)
    clock.tick(29)
    f(1)
    assert (counted(cache, "hits_l1"), counted(cache, "hits_l2")) == (1, 0)
    clock.tick(2)
    f(1)
    assert (counted(cache, "hits_l1"), counted(cache, "hits_l2"), counted(cache, "loads")) == (1, 1, 1)


async def test_without_l2_an_embedded_cache_is_all_there_is(cache: Cache, paint: Any, ask: Any) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", l2=False, tags=["all"])
    @paint
    def f(a: int) -> int:
        loads.append(a)
        return a

    await ask(f(1)), await ask(f(1))
    assert loads == [1]
    cache.invalidate(tags=["all"])
    await ask(f(1))
    assert loads == [1, 1]


async def test_without_l2_nothing_reaches_redis_and_nothing_is_believed_beside_it(
    redis_cache: Cache, paint: Any, ask: Any
) -> None:
    loads: list[int] = []

    @redis_cache.cached(ns="n", key="{a}", l2=False)
    @paint
    def f(a: int) -> int:
        loads.append(a)
        return len(loads)

    assert [await ask(f(1)), await ask(f(1)), await ask(f.refresh(1))] == [1, 2, 3]
    assert await ask(f.put(9, 1)) is False
    assert await ask(f.peek(1)) is MISSING
    assert await ask(f.invalidate(1))
    assert redis_cache.store.client.keys() == []


# ---------------------------------------------------------------------------- staleness


async def test_a_stale_value_is_served_while_one_caller_renews_it(cache: Cache, clock: Any) -> None:
    seen: list[int] = []
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", ttl=10, stale_while_revalidate=60, jitter=0)
    def f(a: int) -> int:
        loads.append(a)
        if len(loads) == 2:
            with ThreadPoolExecutor(1) as other:
                seen.append(other.submit(f, 1).result(5))
        return len(loads)

    assert f(1) == 1
    clock.tick(11)
    assert f(1) == 2, "the caller that renews it is answered with the new value"
    assert seen == [1], "others meanwhile with the old one"
    assert f(1) == 2


async def test_async_callers_are_not_kept_waiting_by_a_renewal(cache: Cache, clock: Any) -> None:
    loads: list[int] = []
    loading, go = asyncio.Event(), asyncio.Event()

    @cache.cached(ns="n", key="{a}", ttl=10, stale_while_revalidate=60, jitter=0)
    async def f(a: int) -> int:
        loads.append(a)
        if len(loads) == 2:
            loading.set()
            await go.wait()
        return len(loads)

    await f(1)
    clock.tick(11)
    renewing = asyncio.create_task(f(1))
    await loading.wait()
    assert await asyncio.gather(f(1), f(1), f(1)) == [1, 1, 1]
    go.set()
    assert await renewing == 2
    assert await f(1) == 2


async def test_past_the_stale_window_a_value_is_gone(cache: Cache, clock: Any, paint: Any, ask: Any) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", ttl=10, stale_while_revalidate=60, stale_if_error=60, jitter=0)
    @paint
    def f(a: int) -> int:
        loads.append(a)
        if len(loads) > 1:
            raise OSError("away")
        return 1

    await ask(f(1))
    clock.tick(70.1)
    with pytest.raises(OSError, match="away"):
        await ask(f(1))


async def test_an_error_is_covered_by_a_value_within_stale_if_error(
    cache: Cache, clock: Any, paint: Any, ask: Any
) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", ttl=10, stale_if_error=3600, jitter=0)
    @paint
    def f(a: int) -> int:
        loads.append(a)
        if len(loads) == 2:
            raise OSError("away")
        return len(loads)

    await ask(f(1))
    clock.tick(600)
    assert await ask(f(1)) == 1
    assert counted(cache, "stale") == 1
    assert await ask(f(1)) == 1
    assert len(loads) == 2, "for one lease a source that has just failed is not asked again"
    clock.tick(4)
    assert await ask(f(1)) == 3


async def test_an_error_without_a_value_is_the_callers_and_is_not_cached(
    cache: Cache, paint: Any, ask: Any
) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", stale_if_error=3600)
    @paint
    def f(a: int) -> int:
        loads.append(a)
        if len(loads) == 1:
            raise OSError("away")
        return len(loads)

    with pytest.raises(OSError, match="away"):
        await ask(f(1))
    assert await ask(f(1)) == 2


async def test_staleness_never_survives_an_invalidation(cache: Cache, clock: Any) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", ttl=10, stale_while_revalidate=60, stale_if_error=60, tags=["all"])
    def f(a: int) -> int:
        loads.append(a)
        if len(loads) > 1:
            raise OSError("away")
        return 1

    f(1)
    clock.tick(11)
    cache.invalidate(tags=["all"])
    with pytest.raises(OSError, match="away"):
        f(1)


async def test_background_refresh_answers_with_the_old_value_and_renews_behind(
    cache: Cache, clock: Any, paint: Any, ask: Any
) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", ttl=10, stale_while_revalidate=60, refresh="background", jitter=0)
    @paint
    def f(a: int) -> int:
        loads.append(a)
        return len(loads)

    await ask(f(1))
    clock.tick(11)
    assert await ask(f(1)) == 1
    await asyncio.gather(*cache.driver._tasks)
    cache.driver.close()
    assert await ask(f(1)) == 2
    assert len(loads) == 2


async def test_early_refresh_renews_the_sooner_the_costlier_the_load(
    cache: Cache, clock: Any, paint: Any, ask: Any
) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", ttl=100, early_refresh=1.0, jitter=0, l1=False, lease_ttl=60)
    @paint
    def f(a: int) -> int:
        loads.append(a)
        clock.tick(5)
        return len(loads)

    await ask(f(1))
    clock.tick(90)  # 10 s before the end; the load took 5 s
    cache.world.random = lambda: 0.5  # -5 * ln(0.5) = 3.5 s early
    assert await ask(f(1)) == 1
    cache.world.random = lambda: 0.9  # -5 * ln(0.1) = 11.5 s early
    assert await ask(f(1)) == 2


async def test_a_failed_early_refresh_is_nobodys_error(cache: Cache, clock: Any) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", ttl=100, early_refresh=1.0, jitter=0, l1=False, lease_ttl=60)
    def f(a: int) -> int:
        loads.append(a)
        clock.tick(5)
        if len(loads) == 2:
            raise OSError("away")
        return len(loads)

    f(1)
    cache.world.random = lambda: 1 - 1e-15
    assert f(1) == 1
    assert len(loads) == 2


async def test_a_hit_in_l1_is_renewed_early_as_well(cache: Cache, clock: Any) -> None:
    """The draw is made once per stay in L1: it ends that much sooner than the ttl."""
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", ttl=100, early_refresh=1.0, jitter=0, lease_ttl=60)
    def f(a: int) -> int:
        loads.append(a)
        clock.tick(5)
        return len(loads)

    cache.world.random = lambda: 0.9
    f(1)
    clock.tick(88)
    assert f(1) == 1
    clock.tick(1)
    assert f(1) == 2


# ---------------------------------------------------------------------------- what is stored


async def test_none_is_cached_as_any_result(cache: Cache, clock: Any, paint: Any, ask: Any) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", ttl=100, jitter=0)
    @paint
    def f(a: int) -> str | None:
        loads.append(a)
        return None

    assert [await ask(f(1)), await ask(f(1)), await ask(f.peek(1))] == [None] * 3
    assert loads == [1]
    assert cache.get("n:1") is None
    assert cache.ttl("n:1") == 100


async def test_negative_ttl_is_the_ttl_of_none(cache: Cache, clock: Any, paint: Any, ask: Any) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", ttl=100, negative_ttl=timedelta(seconds=5), jitter=0)
    @paint
    def f(a: int) -> int | None:
        loads.append(a)
        return a or None

    await ask(f(0)), await ask(f(0)), await ask(f(1))
    assert loads == [0, 1]
    clock.tick(6)
    await ask(f(0)), await ask(f(1))
    assert loads == [0, 1, 0]


async def test_a_negative_ttl_of_0_caches_no_none(cache: Cache, paint: Any, ask: Any) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", negative_ttl=0)
    @paint
    def f(a: int) -> int | None:
        loads.append(a)
        return a or None

    await ask(f(0)), await ask(f(0)), await ask(f(1)), await ask(f(1))
    assert loads == [0, 0, 1]


async def test_zero_false_and_empty_are_results_like_any_other(cache: Cache) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", l1=False)
    def f(a: int) -> int | bool | str | list[int]:
        loads.append(a)
        return (0, False, "", [])[a]  # type: ignore[return-value]

    assert [f(a) for a in range(4)] == [f(a) for a in range(4)] == [0, False, "", []]
    assert loads == [0, 1, 2, 3]


async def test_cache_if_says_what_is_stored(cache: Cache, paint: Any, ask: Any) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", cache_if=lambda result: result > 0)
    @paint
    def f(a: int) -> int:
        loads.append(a)
        return a

    await ask(f(0)), await ask(f(0)), await ask(f(1)), await ask(f(1))
    assert loads == [0, 0, 1]


async def test_a_result_over_max_value_is_answered_and_not_stored(clock: Any) -> None:
    with Cache("embedded://", max_value=100, clock=clock) as cache:

        @cache.cached(ns="n", key="{size}")
        def f(size: int) -> str:
            return "x" * size

        assert len(f(50)) == 50
        assert len(f(500)) == 500
        assert f.peek(50) == "x" * 50
        assert f.peek(500) is MISSING
        assert counted(cache, "too_large") == 1


# ---------------------------------------------------------------------------- timeouts


async def test_a_load_over_its_hard_timeout_raises(cache: Cache) -> None:
    never = threading.Event()

    @cache.cached(ns="n", key="sync", load_timeout=0.01)
    def f() -> int:
        never.wait(10)
        return 1

    @cache.cached(ns="n", key="async", load_timeout=(None, 0.01))
    async def g() -> int:
        await asyncio.Event().wait()
        return 1

    try:
        with pytest.raises(LoadTimeout):
            f()
        with pytest.raises(LoadTimeout):
            await g()
    finally:
        never.set()
    assert await g.peek() is MISSING


async def test_a_hard_timeout_is_covered_by_stale_if_error(cache: Cache, clock: Any) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="k", ttl=10, stale_if_error=60, load_timeout=0.01)
    async def f() -> int:
        loads.append(1)
        if len(loads) > 1:
            await asyncio.Event().wait()
        return 1

    await f()
    clock.tick(11)
    assert await f() == 1


async def test_past_the_soft_timeout_a_stale_value_is_served_and_the_load_goes_on(
    cache: Cache, clock: Any
) -> None:
    go = threading.Event()
    loads: list[int] = []

    @cache.cached(ns="n", key="k", ttl=10, stale_while_revalidate=60, load_timeout=(0.01, 10), jitter=0)
    def f() -> int:
        loads.append(1)
        if len(loads) == 2:
            go.wait(10)
        return len(loads)

    f()
    clock.tick(11)
    assert f() == 1
    go.set()
    cache.driver.close()  # waits for what goes on behind
    assert f() == 2
    assert len(loads) == 2


async def test_past_the_soft_timeout_an_async_load_goes_on_too(cache: Cache, clock: Any) -> None:
    go = asyncio.Event()
    loads: list[int] = []

    @cache.cached(ns="n", key="k", ttl=10, stale_while_revalidate=60, load_timeout=(0.01, 10), jitter=0)
    async def f() -> int:
        loads.append(1)
        if len(loads) == 2:
            await go.wait()
        return len(loads)

    await f()
    clock.tick(11)
    assert await f() == 1
    go.set()
    await asyncio.gather(*cache.driver._tasks)
    assert await f() == 2
    assert len(loads) == 2


async def test_a_soft_timeout_with_nothing_stale_waits_for_the_load(cache: Cache) -> None:
    passed = threading.Event()

    @cache.cached(ns="n", key="k", load_timeout=(0.01, 10))
    def f() -> int:
        passed.wait(0.03)
        return 1

    assert f() == 1
    assert f.peek() == 1


async def test_a_loader_in_a_thread_of_its_own_keeps_the_callers_context(cache: Cache) -> None:
    @cache.cached(ns="n", key="k", load_timeout=(5, 10), jitter=0)
    def f() -> int:
        load = current_load()
        assert load is not None
        load.ttl = 7
        return 1

    f()
    assert cache.ttl("n:k") == 7


# ---------------------------------------------------------------------------- others' loads


def abandoned(cache: Cache, key: str, lease: float) -> None:
    """What the loader of a process that has died leaves behind."""
    marker = Marker(PLACEHOLDER, b"x" * 12, NO_INCARNATION, cache.world.clock(), digest(b""))
    cache.store.perform(Begin((Place(cache.world.keys.value(key), marker.pack()),), (), lease, 60))


async def test_the_lease_of_a_dead_loader_ends_and_the_next_caller_loads(cache: Cache, clock: Any) -> None:
    @cache.cached(ns="n", key="{a}", wait_timeout=60)
    def f(a: int) -> int:
        return a

    abandoned(cache, "n:1", lease=3)
    start = clock()
    assert f(1) == 1
    assert 3 <= clock() - start < 3.1
    assert f.peek(1) == 1


async def test_after_wait_timeout_a_caller_loads_for_itself_and_leaves_the_placeholder(
    cache: Cache, clock: Any
) -> None:
    @cache.cached(ns="n", key="{a}", wait_timeout=2)
    def f(a: int) -> int:
        return a

    abandoned(cache, "n:1", lease=60)
    start = clock()
    assert f(1) == 1
    assert 2 <= clock() - start < 2.1
    assert type(stored(cache, "n:1")) is Marker
    assert f.peek(1) is MISSING


async def test_a_wait_timeout_of_0_waits_for_nobody(cache: Cache, clock: Any) -> None:
    @cache.cached(ns="n", key="{a}", wait_timeout=0)
    def f(a: int) -> int:
        return a

    abandoned(cache, "n:1", lease=60)
    start = clock()
    assert f(1) == 1
    assert clock() == start


async def test_lease_ttl_is_the_life_of_a_placeholder(cache: Cache, clock: Any) -> None:
    left: list[Any] = []

    @cache.cached(ns="n", key="k", lease_ttl=9)
    def f() -> int:
        clock.tick(8)
        left.append(type(stored(cache, "n:k")))
        clock.tick(2)
        left.append(stored(cache, "n:k"))
        return 1

    f()
    assert left == [Marker, None]
    assert f.peek() is MISSING, "a placeholder that ended is not committed over"


async def test_a_lease_is_renewed_while_its_loader_runs(cache: Cache, clock: Any) -> None:
    renewed = threading.Event()
    perform = cache.store.perform

    def watched(command: Any) -> Any:
        if type(command) is Renew:
            renewed.set()
        return perform(command)

    @cache.cached(ns="n", key="{a}", lease_ttl=0.03)
    def f(a: int) -> bool:
        return renewed.wait(10)

    @cache.cached(ns="n", key="async:{a}", lease_ttl=0.03)
    async def g(a: int) -> bool:
        while not renewed.is_set():
            await asyncio.sleep(0)
        return True

    cache.store.perform = watched  # type: ignore[method-assign]
    try:
        assert f(1)
        renewed.clear()
        assert await g(1)
    finally:
        del cache.store.perform


async def test_callers_at_the_same_time_share_one_load(cache: Cache) -> None:
    loads: list[int] = []
    go = asyncio.Event()

    @cache.cached(ns="n", key="{a}")
    async def f(a: int) -> list[int]:
        loads.append(a)
        await go.wait()
        return [a]

    calls = [asyncio.create_task(f(1)) for _ in range(10)]
    await asyncio.sleep(0)
    go.set()
    results = await asyncio.gather(*calls)
    assert loads == [1]
    assert results == [[1]] * 10
    assert len({id(result) for result in results}) == 10, "each waiter has a list of its own"
    assert counted(cache, "coalesced") == 9


async def test_an_error_reaches_all_waiters_and_the_next_call_tries_again(cache: Cache) -> None:
    loads: list[int] = []
    go = asyncio.Event()

    @cache.cached(ns="n", key="{a}")
    async def f(a: int) -> int:
        loads.append(a)
        await go.wait()
        if len(loads) == 1:
            raise OSError("away")
        return 2

    calls = [asyncio.create_task(f(1)) for _ in range(3)]
    await asyncio.sleep(0)
    go.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [OSError] * 3
    assert await f(1) == 2


async def test_when_the_leader_is_cancelled_the_next_waiter_leads(cache: Cache) -> None:
    loads: list[int] = []
    go = asyncio.Event()

    @cache.cached(ns="n", key="{a}")
    async def f(a: int) -> int:
        loads.append(a)
        await go.wait()
        return len(loads)

    leader = asyncio.create_task(f(1))
    await asyncio.sleep(0)
    waiter = asyncio.create_task(f(1))
    await asyncio.sleep(0)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    go.set()
    assert await waiter == 2
    assert await f(1) == 2


async def test_a_call_that_starts_after_an_invalidation_joins_no_load_from_before_it(cache: Cache) -> None:
    row = ["old"]
    reads: list[str] = []
    go = asyncio.Event()

    @cache.cached(ns="n", key="{a}", tags=["row:{a}"])
    async def f(a: int) -> str:
        reads.append(value := row[0])
        if len(reads) == 1:
            await go.wait()
        return value

    first = asyncio.create_task(f(1))
    await asyncio.sleep(0)
    row[0] = "new"
    await cache.ainvalidate(tags=["row:1"])
    assert await f(1) == "new"
    go.set()
    assert await first == "old", "its call began before"
    assert await f(1) == "new"


async def test_a_function_that_calls_itself_with_the_same_key_does_not_wait_for_itself(
    cache: Cache, paint: Any, ask: Any
) -> None:
    depth: list[int] = []

    @cache.cached(ns="n", key="{a}")
    def f(a: int) -> int:
        depth.append(a)
        return f(a) + 1 if len(depth) < 3 else 0

    @cache.cached(ns="n", key="async:{a}")
    async def g(a: int) -> int:
        depth.append(a)
        return await g(a) + 1 if len(depth) < 3 else 0

    assert f(1) == 2
    depth.clear()
    assert await g(1) == 2


# ---------------------------------------------------------------------------- codecs


class Opaque:
    """A class without declared fields."""

    def __init__(self, name: str) -> None:
        self.name = name


class Reversed:
    """A serializer of one's own."""

    name = "reversed"

    def encode(self, value: str) -> bytes:
        return value[::-1].encode()

    def decode(self, data: bytes) -> str:
        return bytes(data).decode()[::-1]


async def test_codec_json_stores_json(cache: Cache) -> None:
    @cache.cached(ns="n", key="k", codec="json", l1=False)
    def f() -> Post:
        return Post(1, 7, "hello")

    assert f() == f() == Post(1, 7, "hello")
    assert json.loads(stored(cache, "n:k").payload) == {"id": 1, "author_id": 7, "title": "hello"}


async def test_codec_pickle_takes_any_class(cache: Cache) -> None:
    @cache.cached(ns="n", key="k", codec="pickle", l1=False)
    def f() -> Opaque:
        return Opaque("pickled")

    assert f() is not f()
    assert f().name == "pickled"


async def test_a_serializer_of_ones_own(cache: Cache) -> None:
    @cache.cached(ns="n", key="k", codec=Reversed(), l1=False)
    def f() -> str:
        return "abc"

    assert [f(), f()] == ["abc", "abc"]
    assert stored(cache, "n:k").payload == b"cba"


async def test_another_version_reads_old_entries_as_misses(cache: Cache, clock: Any) -> None:
    later = Cache(store=cache.store, clock=clock)
    loads: list[str] = []

    @cache.cached(ns="n", key="k", version=1)
    def before() -> str:
        loads.append("before")
        return "before"

    @later.cached(ns="n", key="k", version=2)
    def after() -> str:
        loads.append("after")
        return "after"

    assert before() == "before"
    assert after() == after() == "after"
    assert loads == ["before", "after"]


async def test_another_return_type_reads_old_entries_as_misses(cache: Cache, clock: Any) -> None:
    later = Cache(store=cache.store, clock=clock)

    @cache.cached(ns="n", key="k")
    def before() -> int:
        return 1

    @later.cached(ns="n", key="k")
    def after() -> str:
        return "one"

    assert before() == 1
    assert after() == "one"


async def test_a_result_that_breaks_its_annotation_is_answered_and_not_cached(cache: Cache) -> None:
    @cache.cached(ns="n", key="k")
    def f() -> int:
        return "not a number"  # type: ignore[return-value]

    assert f() == "not a number"
    assert f.peek() is MISSING
    assert counted(cache, "unencodable") == 1


# ---------------------------------------------------------------------------- sharing


async def test_what_cannot_change_is_shared_and_what_can_is_not(cache: Cache, paint: Any, ask: Any) -> None:
    @cache.cached(ns="n", key="fixed")
    @paint
    def fixed() -> tuple[str, ...]:
        return ("a", "b")

    @cache.cached(ns="n", key="list")
    @paint
    def mutable() -> list[str]:
        return ["a", "b"]

    assert await ask(fixed()) is await ask(fixed())
    (await ask(mutable())).append("changed by the caller that loaded it")
    (await ask(mutable())).append("changed by a caller that hit")
    (await ask(mutable.peek())).append("changed by a peek")
    assert await ask(mutable()) == ["a", "b"]


async def test_share_overrules_what_the_annotation_says(cache: Cache) -> None:
    @cache.cached(ns="n", key="shared", share=True)
    def shared() -> list[str]:
        return ["a"]

    @cache.cached(ns="n", key="own", share=False)
    def own() -> tuple[int, ...]:
        return (1000, 2000)

    shared()
    assert shared() is shared()
    own()
    assert own() is not own()


async def test_a_value_given_to_put_is_not_shared_either(cache: Cache, paint: Any, ask: Any) -> None:
    @cache.cached(ns="n", key="k")
    @paint
    def f() -> list[int]:
        return []

    given = [1]
    assert await ask(f.put(given))
    given.append(2)
    assert await ask(f()) == [1]


# ---------------------------------------------------------------------------- current_load


async def test_a_loader_may_set_its_ttl_or_forbid_storing(cache: Cache, paint: Any, ask: Any) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}", ttl=100, jitter=0)
    @paint
    def f(a: int) -> int:
        loads.append(a)
        load = current_load()
        assert load is not None
        assert load.key == f"n:{a}"
        if a == 1:
            load.ttl = 7
        if a == 2:
            load.store = False
        if a == 3:
            load.ttl = timedelta(seconds=9)  # type: ignore[assignment]
        return a

    assert current_load() is None
    for a in (1, 2, 3):
        await ask(f(a)), await ask(f(a))
    assert loads == [1, 2, 2, 3]
    assert cache.ttl("n:1") == 7
    assert cache.ttl("n:3") == 9
    assert current_load() is None


async def test_a_loader_may_add_tags(cache: Cache, paint: Any, ask: Any) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="k", tags=["known"])
    @paint
    def f() -> int:
        loads.append(1)
        load = current_load()
        assert load is not None
        load.tag("author:7", "known")
        return 1

    await ask(f()), await ask(f())
    assert len(loads) == 1
    cache.invalidate(tags=["author:7"])
    await ask(f())
    assert len(loads) == 2


async def test_a_tag_of_a_loader_is_written_as_any_other(cache: Cache) -> None:
    """A space is escaped wherever a tag comes from, so that the same text drops it."""
    loads: list[int] = []

    @cache.cached(ns="n", key="k")
    def f() -> int:
        loads.append(1)
        load = current_load()
        assert load is not None
        load.tag("author:Jo Ann")
        return 1

    f(), f()
    assert len(loads) == 1
    cache.invalidate(tags=["author:Jo Ann"])
    f()
    assert len(loads) == 2


async def test_current_load_is_the_innermost(cache: Cache) -> None:
    keys: list[str] = []

    @cache.cached(ns="n", key="inner")
    def inner() -> int:
        keys.append(current_load().key)  # type: ignore[union-attr]
        return 1

    @cache.cached(ns="n", key="outer")
    def outer() -> int:
        inner()
        keys.append(current_load().key)  # type: ignore[union-attr]
        return 2

    outer()
    assert keys == ["n:inner", "n:outer"]


# ---------------------------------------------------------------------------- handles and kinds


def repo_of(cache: Cache, loads: list[int]) -> Any:
    class Posts:
        tenant = "acme"

        @cache.cached(ns="m", key="{self.tenant}:{a}", tags=["post:{a}"])
        def method(self, a: int) -> int:
            loads.append(a)
            return a * 10

        @cache.cached(ns="c", key="{a}", tags=["post:{a}"])
        @classmethod
        def klass(cls, a: int) -> int:
            assert cls is Posts
            loads.append(a)
            return a * 10

        @cache.cached(ns="s", key="{a}", tags=["post:{a}"])
        @staticmethod
        def static(a: int) -> int:
            loads.append(a)
            return a * 10

        @staticmethod
        @cache.cached(ns="t", key="{a}", tags=["post:{a}"])
        def below(a: int) -> int:
            loads.append(a)
            return a * 10

        @cache.cached(ns="am", key="{self.tenant}:{a}", tags=["post:{a}"])
        async def amethod(self, a: int) -> int:
            loads.append(a)
            return a * 10

        @cache.cached(ns="ac", key="{a}", tags=["post:{a}"])
        @classmethod
        async def aklass(cls, a: int) -> int:
            assert cls is Posts
            loads.append(a)
            return a * 10

        @cache.cached(ns="as", key="{a}", tags=["post:{a}"])
        @staticmethod
        async def astatic(a: int) -> int:
            loads.append(a)
            return a * 10

        @staticmethod
        @cache.cached(ns="at", key="{a}", tags=["post:{a}"])
        async def abelow(a: int) -> int:
            loads.append(a)
            return a * 10

    return Posts


KINDS = ["method", "klass", "static", "below", "amethod", "aklass", "astatic", "abelow"]


@pytest.mark.parametrize("through", ["instance", "class"])
@pytest.mark.parametrize("kind", KINDS)
async def test_every_handle_works_on_every_kind_of_function(
    any_cache: Cache, ask: Any, kind: str, through: str
) -> None:
    loads: list[int] = []
    posts = repo_of(any_cache, loads)
    owner = posts() if through == "instance" or "method" in kind else posts
    f = getattr(owner, kind)

    assert f.key(1).endswith("acme:1" if "method" in kind else ":1")
    assert f.key(a=1) == f.key(1)
    assert f.tags(1) == ("post:1",)
    assert await ask(f.peek(1)) is MISSING
    assert [await ask(f(1)), await ask(f(a=1)), await ask(f.peek(1))] == [10, 10, 10]
    assert loads == [1]
    assert await ask(f.refresh(1)) == 10
    assert await ask(f.uncached(1)) == 10
    assert loads == [1, 1, 1]
    assert await ask(f.put(77, 1)) is True
    assert [await ask(f(1)), await ask(f.peek(a=1))] == [77, 77]
    assert await ask(f.invalidate(1))
    assert await ask(f.peek(1)) is MISSING
    assert await ask(f.warm([1, (2,), {"a": 3}])) == 3
    loads.clear()
    assert [await ask(f(a)) for a in (1, 2, 3)] == [10, 20, 30]
    assert loads == []
    any_cache.invalidate(tags=["post:2"])
    await ask(f(2)), await ask(f(3))
    assert loads == [2]
    assert f.cache is any_cache


async def test_a_method_called_through_its_class_is_the_same_function(cache: Cache) -> None:
    loads: list[int] = []
    posts = repo_of(cache, loads)
    one = posts()
    assert posts.method(one, 1) == one.method(1) == 10
    assert posts.method.key(one, 1) == one.method.key(1)
    assert loads == [1]
    assert one.method.__self__ is one
    assert one.method.__wrapped__(2) == 20


async def test_objects_of_one_class_share_entries_unless_the_key_tells_them_apart(cache: Cache) -> None:
    class Posts:
        def __init__(self, tenant: str) -> None:
            self.tenant = tenant

        @cache.cached(ns="shared")
        def shared(self, a: int) -> str:
            return self.tenant

        @cache.cached(ns="own", key="{self.tenant}:{a}")
        def own(self, a: int) -> str:
            return self.tenant

    class Special(Posts):
        pass

    red, blue = Posts("red"), Posts("blue")
    assert [red.shared(1), blue.shared(1)] == ["red", "red"]
    assert Special("green").shared(1) == "green", "the class is part of a default key"
    assert [red.own(1), blue.own(1)] == ["red", "blue"]


async def test_refresh_replaces_what_other_callers_hit(cache: Cache, paint: Any, ask: Any) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="k")
    @paint
    def f() -> int:
        loads.append(1)
        return len(loads)

    assert await ask(f()) == 1
    assert await ask(f.refresh()) == 2
    assert await ask(f()) == 2


async def test_put_follows_the_options_of_the_function(cache: Cache, paint: Any, ask: Any) -> None:
    @cache.cached(ns="n", key="k", ttl=9, jitter=0, cache_if=lambda result: result > 0, tags=["t"])
    @paint
    def f() -> int:
        return 1

    assert await ask(f.put(5)) is True
    assert cache.ttl("n:k") == 9
    assert await ask(f.put(-5)) is False
    assert await ask(f.peek()) is MISSING, "what was there is older than the value that is not stored"
    assert await ask(f.put(6)) is True
    cache.invalidate(tags=["t"])
    assert await ask(f.peek()) is MISSING


async def test_warm_of_nothing_does_nothing(cache: Cache, paint: Any, ask: Any) -> None:
    @cache.cached(ns="n", key="k")
    @paint
    def f() -> int:
        raise AssertionError("not called")

    assert await ask(f.warm([])) == 0


async def test_a_commit_that_was_refused_is_counted_and_the_caller_answered(cache: Cache) -> None:
    @cache.cached(ns="n", key="k")
    def f() -> int:
        cache.delete("n:k")
        return 1

    assert f() == 1
    assert f.peek() is MISSING
    assert counted(cache, "refused") == 1


async def test_a_hit_is_one_round_trip_and_a_miss_three(redis_cache: Cache) -> None:
    sent: list[str] = []
    perform = redis_cache.store.perform

    @redis_cache.cached(ns="n", key="k", tags=["a", "b"])
    def f() -> int:
        return 1

    redis_cache.store.perform = lambda command: (  # type: ignore[method-assign]
        sent.append(type(command).__name__) or perform(command)
    )
    f()
    assert sent == ["Fetch", "Begin", "Commit"]
    sent.clear()
    f()
    assert sent == ["Fetch"]
