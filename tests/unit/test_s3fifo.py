"""S3-FIFO: the contract of a cachetools cache, its bounds, and what it keeps that others lose."""

from __future__ import annotations

import copy
from typing import Any

import cachetools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheaside import Cache
from cacheaside.errors import ConfigError
from cacheaside.stores.s3fifo import S3FIFOCache


def test_it_is_a_mapping():
    cache: Any = S3FIFOCache(4)
    cache["a"] = 1
    assert cache["a"] == cache.get("a") == 1
    assert "b" not in cache
    assert cache.get("b", 2) == cache.pop("b", 2) == 2
    assert cache.setdefault("c", 3) == 3
    assert dict(cache) == {"a": 1, "c": 3}
    assert cache.pop("a") == 1
    with pytest.raises(KeyError):
        cache["a"]
    with pytest.raises(KeyError):
        del cache["a"]
    assert (len(cache), cache.currsize, cache.maxsize) == (1, 1, 4)


def test_popitem_empties_it_and_then_raises():
    cache: Any = S3FIFOCache(3)
    cache.update(a=1, b=2, c=3)
    assert dict(cache.popitem() for _ in range(3)) == {"a": 1, "b": 2, "c": 3}
    with pytest.raises(KeyError, match="S3FIFOCache is empty"):
        cache.popitem()


def test_weights_are_bounded():
    cache: Any = S3FIFOCache(10, getsizeof=len)
    cache["a"] = "aaaa"
    cache["b"] = "bbbb"
    cache["c"] = "cccc"
    assert cache.currsize == 8
    cache["c"] = "cccccccccc"
    assert dict(cache) == {"c": "cccccccccc"}
    with pytest.raises(ValueError, match="too large"):
        cache["d"] = "d" * 11


def test_without_hits_the_oldest_goes_first():
    cache: Any = S3FIFOCache(3)
    for key in "abcde":
        cache[key] = key
    assert list(cache) == ["c", "d", "e"]


def test_a_scan_does_not_flush_what_is_in_use():
    """A hundred keys in use, then ten thousand that are asked for once: LRU keeps none of the hundred."""
    in_use = [f"hot {n}" for n in range(100)]
    kept = {}
    for policy in (S3FIFOCache, cachetools.LRUCache):
        cache: Any = policy(200)
        for _ in range(3):
            for key in in_use:
                cache.get(key) or cache.setdefault(key, 1)
        for n in range(10_000):
            cache[n] = 1
        kept[policy] = sum(key in cache for key in in_use)
    assert kept == {S3FIFOCache: 100, cachetools.LRUCache: 0}


def test_what_comes_back_soon_stays():
    """A key that has just left is still known by name, and starts in the main queue."""
    cache: Any = S3FIFOCache(10)
    for n in range(11):
        cache[n] = n
    assert 0 not in cache
    cache[0] = 0
    for n in range(20, 40):
        cache[n] = n
    assert 0 in cache


def test_a_dropped_key_is_not_remembered():
    """Only evictions say that the cache was too small for a key."""
    cache: Any = S3FIFOCache(10)
    cache["x"] = 1
    del cache["x"]
    cache["x"] = 1
    for n in range(10):
        cache[n] = n
    assert "x" not in cache


def test_a_copy_lives_its_own_life():
    cache: Any = S3FIFOCache(3)
    cache.update(a=1, b=2)
    twin = copy.copy(cache)
    twin["c"] = 3
    del twin["a"]
    assert dict(cache) == {"a": 1, "b": 2}
    assert [cache.popitem() for _ in range(2)] == [("a", 1), ("b", 2)]


def test_clear_forgets_everything():
    cache: Any = S3FIFOCache(3)
    for n in range(10):
        cache[n] = n
    cache.clear()
    check(cache)
    assert (len(cache), cache.currsize) == (0, 0)
    cache["a"] = 1
    assert cache.popitem() == ("a", 1)


def check(cache: Any) -> None:
    """What holds between any two operations."""
    small, main, ghost = set(cache._small), set(cache._main), set(cache._ghost)
    assert small | main == set(cache) == set(cache._hits)
    assert not small & main
    assert not ghost & set(cache)
    values = [cachetools.Cache.__getitem__(cache, key) for key in cache]  # without counting as hits
    assert cache.currsize == sum(map(cache.getsizeof, values)) <= cache.maxsize
    assert cache._small_size == sum(cache._small.values())
    assert all(0 <= hits <= 3 for hits in cache._hits.values())


keys = st.integers(0, 15)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("set"), keys, st.integers(0, 6)),
        st.tuples(st.just("get"), keys),
        st.tuples(st.just("pop"), keys),
        st.tuples(st.just("popitem")),
    ),
    max_size=80,
)


@given(operations, st.integers(1, 20))
def test_it_never_answers_what_was_not_stored_last(done: list[Any], maxsize: int):
    """Beside a plain dict: every value is the last one stored, and the books of the queues balance."""
    cache: Any = S3FIFOCache(maxsize, getsizeof=lambda value: value)
    stored: dict[int, int] = {}
    for name, *arguments in done:
        if name == "set":
            key, value = arguments
            if value <= maxsize:
                cache[key] = stored[key] = value
        elif name == "get":
            assert cache.get(*arguments) in (None, stored.get(*arguments))
        elif name == "pop":
            assert cache.pop(*arguments, None) in (None, stored.pop(*arguments, None))
        elif cache:
            key, value = cache.popitem()
            assert stored.pop(key) == value
            assert len(cache._ghost) <= len(cache)
        check(cache)


@pytest.mark.parametrize("policy", ["s3fifo", "lru", cachetools.FIFOCache])
def test_a_cache_takes_a_policy_by_name_or_class(policy: Any):
    with Cache("embedded://", l1_policy=policy, l1_entries=50) as cache:
        runs = []

        @cache.cached(ns="n", key="{x}")
        def double(x: int) -> int:
            runs.append(x)
            return 2 * x

        for x in range(100):
            assert double(x) == double(x) == 2 * x
        l1 = cache.stats()["l1"]
        assert l1["entries"] == 50
        assert l1["evictions"] == 50


def test_l1_by_s3fifo_keeps_what_is_in_use_through_a_scan():
    """The read buffer tells the policy of hits, and the bound by entries is shared out as that by bytes."""
    with Cache("embedded://", l1_policy="s3fifo", l1_entries=100) as cache:

        @cache.cached(ns="n", key="{x}")
        def same(x: int) -> int:
            return x

        for _ in range(4):
            for x in range(20):
                same(x)
        for x in range(1000, 2000):
            same(x)
        near = cache.near
        assert near is not None
        assert all(same.key(x) in near.entries for x in range(20))


@pytest.mark.parametrize("policy", ["fifo", None, 3, ["lru"]])
def test_an_unknown_policy_is_refused_by_name(policy: Any):
    with pytest.raises(ConfigError, match=r"l1_policy must be one of 'lru', 's3fifo' or a class"):
        Cache("embedded://", l1_policy=policy)
