"""Batches: cached by single id, partial hits, one load of what is missing."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from cacheaside import MISSING, Cache, ConfigError, LoadTimeout
from cacheaside.engine.commands import Begin, Place
from cacheaside.entry import NO_INCARNATION, PLACEHOLDER, Marker, digest


@dataclasses.dataclass
class Post:
    id: int
    author_id: int = 7


class Source:
    """Rows by id, and what was asked for."""

    def __init__(self, cache: Cache, paint: Any, **options: Any) -> None:
        self.asked: list[list[int]] = []
        self.rows = {i: Post(i) for i in range(1, 10)}
        self.error: Exception | None = None
        source = self

        @cache.cached_many(ns="posts", key="post:{id}", **{"tags": ["post:{id}"], "jitter": 0} | options)
        @paint
        def find(ids: Sequence[int]) -> dict[int, Post]:
            assert type(ids) is list
            source.asked.append(list(ids))
            if source.error is not None:
                raise source.error
            return {i: source.rows[i] for i in ids if i in source.rows}

        self.find = find


@pytest.fixture
def source(any_cache: Cache, paint: Any) -> Source:
    return Source(any_cache, paint)


# ---------------------------------------------------------------------------- reading


async def test_only_what_is_missing_is_loaded_and_in_one_call(source: Source, ask: Any) -> None:
    assert await ask(source.find([1, 2])) == {1: Post(1), 2: Post(2)}
    assert await ask(source.find([3, 2, 1, 4])) == {3: Post(3), 2: Post(2), 1: Post(1), 4: Post(4)}
    assert await ask(source.find([1, 2, 3, 4])) == {i: Post(i) for i in (1, 2, 3, 4)}
    assert source.asked == [[1, 2], [3, 4]]


async def test_answers_come_in_the_order_asked_for_each_once(source: Source, ask: Any) -> None:
    await ask(source.find([2]))
    assert list(await ask(source.find([3, 2, 3, 1, 2]))) == [3, 2, 1]
    assert source.asked == [[2], [3, 1]]


async def test_ids_that_the_source_does_not_have_are_remembered_as_absent(source: Source, ask: Any) -> None:
    assert await ask(source.find([1, 99])) == {1: Post(1)}
    assert await ask(source.find([99, 1])) == {1: Post(1)}
    assert source.asked == [[1, 99]]
    assert await ask(source.find.peek(99)) is None


async def test_nothing_asked_for_nothing_loaded(source: Source, ask: Any) -> None:
    assert await ask(source.find([])) == {}
    assert source.asked == []


@pytest.mark.parametrize("ids", [(1, 2), {1, 2}, range(1, 3), {1: "a", 2: "b"}])
async def test_any_iterable_of_ids_will_do(source: Source, ask: Any, ids: Any) -> None:
    assert await ask(source.find(ids)) == {1: Post(1), 2: Post(2)}
    assert await ask(source.find(i for i in ids)) == {1: Post(1), 2: Post(2)}
    assert await ask(source.find(ids=ids)) == {1: Post(1), 2: Post(2)}
    assert source.asked == [[1, 2]]


async def test_every_entry_ends_by_its_own_tag(any_cache: Cache, source: Source, ask: Any) -> None:
    await ask(source.find([1, 2, 3]))
    any_cache.invalidate(tags=["post:2"])
    await ask(source.find([1, 2, 3]))
    assert source.asked == [[1, 2, 3], [2]]


async def test_tags_of_the_result_belong_to_its_own_entry(cache: Cache, paint: Any, ask: Any) -> None:
    source = Source(cache, paint, tags=["author:{result.author_id}"])
    source.rows[2].author_id = 8
    await ask(source.find([1, 2, 99]))
    cache.invalidate(tags=["author:8"])
    await ask(source.find([1, 2, 99]))
    assert source.asked == [[1, 2, 99], [2]]


async def test_a_result_is_fresh_for_its_ttl(cache: Cache, clock: Any, paint: Any, ask: Any) -> None:
    source = Source(cache, paint, ttl=60, negative_ttl=5)
    await ask(source.find([1, 99]))
    clock.tick(6)
    await ask(source.find([1, 99]))
    clock.tick(55)
    await ask(source.find([1]))
    assert source.asked == [[1, 99], [99], [1]]


async def test_a_negative_ttl_of_0_remembers_no_absence(cache: Cache, paint: Any, ask: Any) -> None:
    source = Source(cache, paint, negative_ttl=0)
    await ask(source.find([1, 99]))
    await ask(source.find([1, 99]))
    assert source.asked == [[1, 99], [99]]


async def test_cache_if_and_l1_count_for_each_item(cache: Cache, paint: Any, ask: Any) -> None:
    source = Source(cache, paint, cache_if=lambda post: post is not None and post.id != 2, l1=False)
    await ask(source.find([1, 2, 99]))
    await ask(source.find([1, 2, 99]))
    assert source.asked == [[1, 2, 99], [2, 99]]
    assert cache.stats()["l1"]["entries"] == 0


async def test_without_l2_beside_redis_every_call_loads(redis_cache: Cache, paint: Any, ask: Any) -> None:
    source = Source(redis_cache, paint, l2=False)
    assert await ask(source.find([1, 99])) == await ask(source.find([1, 99])) == {1: Post(1)}
    assert source.asked == [[1, 99], [1, 99]]


async def test_items_are_the_callers_own(cache: Cache, paint: Any, ask: Any) -> None:
    source = Source(cache, paint)
    (await ask(source.find([1])))[1].author_id = 666
    (await ask(source.find([1])))[1].author_id = 666
    assert await ask(source.find([1])) == {1: Post(1, 7)}


async def test_other_arguments_are_passed_on_and_tell_keys_apart(cache: Cache, paint: Any, ask: Any) -> None:
    asked: list[Any] = []

    @cache.cached_many(ns="n", key="{tenant}:{id}:{deep}")
    @paint
    def find(ids: list[int], tenant: str = "acme", *, deep: bool = False) -> dict[int, str]:
        asked.append((ids, tenant, deep))
        return {i: f"{tenant}{i}" for i in ids}

    assert await ask(find([1])) == {1: "acme1"}
    assert await ask(find([1, 2], "shop")) == {1: "shop1", 2: "shop2"}
    assert await ask(find([1], tenant="acme", deep=False)) == {1: "acme1"}
    assert await ask(find([1], deep=True)) == {1: "acme1"}
    assert asked == [([1], "acme", False), ([1, 2], "shop", False), ([1], "acme", True)]


async def test_a_single_function_and_a_batch_may_share_their_entries(
    any_cache: Cache, source: Source, paint: Any, ask: Any
) -> None:
    """For one key and the same tags; whether None may be returned makes no difference."""
    loads: list[int] = []

    @any_cache.cached(ns="posts", key="post:{post_id}", tags=["post:{post_id}"])
    @paint
    def get(post_id: int) -> Post | None:
        loads.append(post_id)
        return source.rows.get(post_id)

    assert source.find.key(1) == get.key(1)
    await ask(source.find([1, 2, 98]))
    assert [await ask(get(1)), await ask(get(98))] == [Post(1), None]
    await ask(get(3)), await ask(get(99))
    assert await ask(source.find([1, 2, 3, 99])) == {i: Post(i) for i in (1, 2, 3)}
    assert (loads, source.asked) == ([3, 99], [[1, 2, 98]])


# ---------------------------------------------------------------------------- errors


async def test_an_error_is_the_callers_and_is_not_cached(source: Source, ask: Any) -> None:
    source.error = OSError("away")
    with pytest.raises(OSError, match="away"):
        await ask(source.find([1]))
    source.error = None
    assert await ask(source.find([1])) == {1: Post(1)}


async def test_an_error_is_covered_by_stale_values_if_all_have_one(
    cache: Cache, clock: Any, paint: Any, ask: Any
) -> None:
    source = Source(cache, paint, ttl=10, stale_if_error=60)
    await ask(source.find([1, 2]))
    clock.tick(11)
    source.error = OSError("away")
    assert await ask(source.find([1, 2])) == {1: Post(1), 2: Post(2)}
    with pytest.raises(OSError, match="away"):
        await ask(source.find([1, 3]))
    source.error = None
    source.rows[1] = Post(1, 99)
    assert (await ask(source.find([1])))[1].author_id == 99
    source.error = OSError("away")
    assert (await ask(source.find([1])))[1].author_id == 99, "what replaced the stale value was stored"


async def test_a_batch_over_its_hard_timeout_raises(cache: Cache) -> None:
    @cache.cached_many(ns="n", key="{id}", load_timeout=0.01)
    async def find(ids: list[int]) -> dict[int, int]:
        await asyncio.Event().wait()
        return {}

    with pytest.raises(LoadTimeout):
        await find([1])


async def test_what_is_no_dict_is_refused_with_the_name_of_the_function(
    cache: Cache, paint: Any, ask: Any
) -> None:
    @cache.cached_many(ns="n", key="{id}")
    @paint
    def find(ids):  # type: ignore[no-untyped-def]
        return [1]

    with pytest.raises(ConfigError, match=r"find: it must return a dict by id, not list"):
        await ask(find([1]))


@pytest.mark.parametrize("ids", ["12", b"34", 5, None])
async def test_what_is_no_list_of_ids_is_refused(source: Source, ids: Any) -> None:
    with pytest.raises(ConfigError, match=r"ids of .*find must be a list of ids"):
        source.find(ids)


async def test_ids_must_be_hashable(source: Source) -> None:
    with pytest.raises(ConfigError, match=r"ids of .*find must be hashable ids"):
        source.find([[1]])


# ---------------------------------------------------------------------------- at the same time


async def test_batches_at_the_same_time_load_what_they_share_once(cache: Cache) -> None:
    asked: list[list[int]] = []
    go = asyncio.Event()

    @cache.cached_many(ns="n", key="{id}")
    async def find(ids: list[int]) -> dict[int, int]:
        asked.append(ids)
        await go.wait()
        return {i: i * 10 for i in ids}

    first = asyncio.create_task(find([1, 2, 3]))
    await asyncio.sleep(0)
    second = asyncio.create_task(find([2, 3, 4]))
    while len(asked) < 2:
        await asyncio.sleep(0)
    go.set()
    assert await first == {1: 10, 2: 20, 3: 30}
    assert await second == {2: 20, 3: 30, 4: 40}
    assert asked == [[1, 2, 3], [4]]


async def test_an_invalidation_during_a_load_keeps_its_item_out_of_the_store(
    any_cache: Cache, source: Source
) -> None:
    @any_cache.cached_many(ns="n", key="{id}", tags=["t:{id}"])
    def find(ids: list[int]) -> dict[int, int]:
        any_cache.invalidate(tags=["t:1"], keys=["n:2"])
        return {i: i * 10 for i in ids}

    assert find([1, 2, 3]) == {1: 10, 2: 20, 3: 30}
    assert [find.peek(i) for i in (1, 2, 3)] == [MISSING, MISSING, 30]


async def test_a_dead_loader_of_one_item_is_waited_for_no_longer_than_its_lease(
    cache: Cache, clock: Any
) -> None:
    asked: list[list[int]] = []

    @cache.cached_many(ns="n", key="{id}", wait_timeout=60)
    def find(ids: list[int]) -> dict[int, int]:
        asked.append(ids)
        return {i: i * 10 for i in ids}

    marker = Marker(PLACEHOLDER, b"x" * 12, NO_INCARNATION, clock(), digest(b""))
    cache.store.perform(Begin((Place(cache.world.keys.value("n:2"), marker.pack()),), (), 3, 60))
    start = clock()
    assert find([1, 2]) == {1: 10, 2: 20}
    assert asked == [[1], [2]]
    assert 3 <= clock() - start < 3.1


# ---------------------------------------------------------------------------- modes and handles


async def test_bypass_and_refreshing(any_cache: Cache, source: Source, ask: Any) -> None:
    await ask(source.find([1]))
    source.rows[1] = Post(1, 99)
    with any_cache.bypass():
        assert await ask(source.find([1, 2])) == {1: Post(1, 99), 2: Post(2)}
    assert await ask(source.find([1])) == {1: Post(1, 7)}
    assert await ask(source.find.peek(2)) is MISSING
    with any_cache.refreshing():
        assert await ask(source.find([1])) == {1: Post(1, 99)}
    assert await ask(source.find([1])) == {1: Post(1, 99)}


async def test_handles_take_one_id_or_many(any_cache: Cache, source: Source, ask: Any) -> None:
    find = source.find
    assert (find.key(1), find.tags(1)) == ("posts:post:1", ("post:1",))
    assert await ask(find.peek(1)) is MISSING
    assert await ask(find.put(Post(1, 42), 1)) is True
    assert await ask(find([1])) == {1: Post(1, 42)}
    assert await ask(find.peek(1)) == Post(1, 42)
    assert await ask(find.uncached([1])) == {1: Post(1)}
    assert await ask(find.refresh([1, 2])) == {1: Post(1), 2: Post(2)}
    assert await ask(find([1, 2])) == {1: Post(1), 2: Post(2)}
    assert source.asked == [[1], [1, 2]]
    assert await ask(find.invalidate([1, 2]))
    assert [await ask(find.peek(i)) for i in (1, 2)] == [MISSING, MISSING]
    assert await ask(find.warm([1, 2, 3])) == 3
    source.asked.clear()
    await ask(find([1, 2, 3]))
    assert source.asked == []
    assert find.cache is any_cache


async def test_methods_classmethods_and_staticmethods(cache: Cache, ask: Any) -> None:
    class Repo:
        tenant = "acme"

        @cache.cached_many(ns="m", key="{self.tenant}:{id}")
        def method(self, ids: list[int]) -> dict[int, str]:
            return {i: f"{self.tenant}{i}" for i in ids}

        @cache.cached_many(ns="a", key="{self.tenant}:{id}")
        async def amethod(self, ids: list[int]) -> dict[int, str]:
            return {i: f"{self.tenant}{i}" for i in ids}

        @cache.cached_many(ns="c", key="{cls.tenant}:{id}")
        @classmethod
        def klass(cls, ids: list[int]) -> dict[int, str]:
            return {i: f"{cls.tenant}{i}" for i in ids}

        @cache.cached_many(ns="s", key="acme:{id}")
        @staticmethod
        def static(ids: list[int]) -> dict[int, str]:
            return {i: f"acme{i}" for i in ids}

    repo = Repo()
    for owner, name in (
        (repo, "method"),
        (repo, "amethod"),
        (repo, "klass"),
        (Repo, "klass"),
        (repo, "static"),
        (Repo, "static"),
    ):
        find = getattr(owner, name)
        assert await ask(find([1, 2])) == {1: "acme1", 2: "acme2"}
        assert find.key(1).endswith(":acme:1")
        assert await ask(find.peek(1)) == "acme1"
        await ask(find.invalidate([1]))
        assert await ask(find.peek(1)) is MISSING


async def test_a_mapping_annotation_says_the_type_of_one_item(cache: Cache) -> None:
    @cache.cached_many(ns="n", key="{id}", l1=False)
    def find(ids: list[int]) -> Mapping[int, tuple[int, str]]:
        return {i: (i, "a") for i in ids}

    assert find([1]) == find([1]) == {1: (1, "a")}


async def test_a_hit_is_one_round_trip_for_all_items(redis_cache: Cache, paint: Any, ask: Any) -> None:
    source = Source(redis_cache, lambda fn: fn)
    sent: list[str] = []
    perform = redis_cache.store.perform
    redis_cache.store.perform = lambda command: (  # type: ignore[method-assign]
        sent.append(type(command).__name__) or perform(command)
    )
    source.find([1, 2, 3])
    assert sent == ["Fetch", "Begin", "Commit"]
    sent.clear()
    source.find([1, 2, 3])
    assert sent == ["Fetch"]


def test_a_soft_timeout_of_a_batch_is_refused(cache: Cache) -> None:
    """It would be ignored: a batch has no stale value to give while it loads on."""
    with pytest.raises(ConfigError, match="load_timeout of cached_many has no soft part"):
        cache.cached_many(ns="n", key="{id}", load_timeout=(0.1, 1))


def test_late_tags_of_a_batch_are_proven_together(cache: Cache) -> None:
    """However many items there are: one command that reads their tokens, one heartbeat."""
    asked: list[str] = []
    perform = cache.store.perform

    def counting(command: Any) -> Any:
        asked.append(type(command).__name__)
        return perform(command)

    @cache.cached_many(ns="n", key="{id}", tags=["author:{result}"])
    def find(ids: list[int]) -> dict[int, int]:
        return {id: id % 3 for id in ids}

    cache.store.perform = counting  # type: ignore[method-assign]
    try:
        find(list(range(20)))
    finally:
        del cache.store.perform
    assert asked == ["Fetch", "Begin", "Begin", "Confirm", "Commit"]
    cache.invalidate(tags=["author:1"])
    assert [find.peek(id) for id in (0, 1, 2)] == [0, MISSING, 2]


def test_the_handles_of_a_decorated_bound_method_take_what_it_takes(cache: Cache) -> None:
    class Repository:
        def find(self, ids: list[int]) -> dict[int, int]:
            return {n: -n for n in ids}

    find = cache.cached_many(ns="bound", key="{id}")(Repository().find)
    assert find([1, 2]) == {1: -1, 2: -2}
    assert find.key(1) == "bound:1"
    assert find.peek(2) == -2
    assert find.warm([3]) == 1
    assert find.invalidate([1])
    assert not find.peek(1)
