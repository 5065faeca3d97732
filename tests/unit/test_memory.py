"""L1: bounded by entries and bytes, least recently used first, and closed to what was read too early."""

from __future__ import annotations

import math
import random
import threading

import cachetools
import pytest

from cacheaside import Cache
from cacheaside.stores import memory
from cacheaside.stores.memory import OVERHEAD, NearCache


def near_of(
    entries: int = 100, max_bytes: int = 10**6, max_value: int = 10**5, evict: type = cachetools.LRUCache
) -> NearCache:
    return NearCache(entries, max_bytes, max_value, evict)


def put(
    near: NearCache,
    key: str,
    *tags: str,
    value: object = None,
    until: float = 100,
    since: int | None = None,
    size: int = 10,
) -> None:
    """Put a result that was read just now, or at ``since``."""
    near.put(key, value or key, until, tags, near.now() if since is None else since, size)


def held(near: NearCache, *keys: str, now: float = 0) -> list[str]:
    return [key for key in keys if near.get(key, now) is not None]


# ---------------------------------------------------------------------------- entries


def test_what_is_put_is_found_until_its_end() -> None:
    near = near_of()
    put(near, "a", value=[1], until=100)
    entry = near.get("a", 99.9)
    assert entry is not None
    assert entry.value == [1]
    assert near.get("a", 100) is None
    assert near.get("b", 0) is None


def test_putting_again_replaces() -> None:
    near = near_of()
    put(near, "a", "t", value="old")
    put(near, "a", value="new", size=500)
    near.mark((), ("t",))
    entry = near.get("a", 0)
    assert entry is not None, "the new value does not carry the old one's tags"
    assert entry.value == "new"
    assert len(near.entries) == 1
    assert near.size == 500 + OVERHEAD


def test_a_value_above_max_value_stays_out_and_leaves_the_rest() -> None:
    near = near_of(max_value=100)
    put(near, "small", size=100)
    put(near, "large", size=101)
    assert held(near, "small", "large") == ["small"]


def test_a_value_above_the_whole_cache_stays_out() -> None:
    near = near_of(max_bytes=1000, max_value=10**6)
    put(near, "small")
    put(near, "large", size=2000)
    assert held(near, "small", "large") == ["small"]


# ---------------------------------------------------------------------------- bounds


def test_entries_are_bounded() -> None:
    near = near_of(entries=3)
    for key in "abcde":
        put(near, key)
    assert held(near, *"abcde") == ["c", "d", "e"]
    assert near.evictions == 2
    assert len(near.entries) == 3


def test_bytes_are_bounded_with_the_cost_of_an_entry() -> None:
    near = near_of(max_bytes=3 * (OVERHEAD + 100))
    for key in "abcde":
        put(near, key, size=100)
    assert held(near, *"abcde") == ["c", "d", "e"]
    assert near.size == 3 * (OVERHEAD + 100)
    put(near, "big", size=200 + OVERHEAD)
    assert held(near, *"abcde", "big") == ["e", "big"]


def test_what_was_read_lately_stays_longest() -> None:
    """A look-up leaves its key in a buffer, from which the policy learns at the next put."""
    near = near_of(entries=3)
    for key in "abc":
        put(near, key)
    near.get("a", 0)
    near.get("b", 0)
    put(near, "d")
    assert sorted(near.entries) == ["a", "b", "d"]
    near.get("a", 0)
    put(near, "e")
    assert sorted(near.entries) == ["a", "d", "e"]


def test_the_buffer_of_look_ups_is_bounded_and_may_name_what_is_gone() -> None:
    near = near_of(entries=3)
    put(near, "a")
    for _ in range(5000):
        near.get("a", 0)
    assert len(near.recent) == near.recent.maxlen == 1024
    near.mark(("a",), ())
    put(near, "b")
    assert not near.recent
    assert sorted(near.entries) == ["b"]


def test_a_hit_of_a_decorated_function_counts_as_a_look_up() -> None:
    with Cache("embedded://", l1_entries=2) as cache:
        near = cache.near
        assert near is not None

        @cache.cached(ns="n", key="{a}")
        def f(a: int) -> int:
            return a

        f(1), f(2), f(1), f(3)
        assert sorted(near.entries) == ["n:1", "n:3"]


@pytest.mark.parametrize(
    "evict", [cachetools.LRUCache, cachetools.LFUCache, cachetools.FIFOCache, cachetools.RRCache]
)
def test_any_policy_of_cachetools_keeps_the_books(evict: type) -> None:
    near = near_of(entries=5, max_bytes=3000, evict=evict)
    dice = random.Random(1)
    for _ in range(500):
        key = str(dice.randrange(20))
        match dice.randrange(4):
            case 0:
                near.get(key, 0)
            case 1:
                near.mark((key,), ())
            case _:
                put(near, key, size=dice.randrange(900))
        assert {*near.entries} == {*near._order}
        assert len(near.entries) <= 5
        assert near.size <= 3000


def test_a_policy_that_drops_by_itself_takes_its_entries_along() -> None:
    ticks = iter(range(1000))
    near = NearCache(
        10, 10**6, 10**5, lambda size, getsizeof: cachetools.TTLCache(size, 3, next_of(ticks), getsizeof)
    )
    for key in "abcdefgh":
        put(near, key)
    assert {*near.entries} == {*near._order}
    assert len(near.entries) < 8


def next_of(ticks):  # type: ignore[no-untyped-def]
    return lambda: next(ticks)


def test_no_entries_is_no_l1() -> None:
    with Cache("embedded://", l1_entries=0) as cache:

        @cache.cached(ns="n", key="k")
        def f() -> int:
            return 1

        f(), f()
        assert cache.stats()["l1"]["entries"] == 0
        assert cache.stats()["namespaces"]["n"]["hits_l2"] == 1


# ---------------------------------------------------------------------------- marks


def test_a_mark_drops_keys_and_everything_under_tags() -> None:
    near = near_of()
    put(near, "a", "red")
    put(near, "b", "red", "blue")
    put(near, "c", "blue")
    put(near, "d")
    near.mark(("d",), ("red",))
    assert held(near, *"abcd") == ["c"]


def test_nothing_read_before_a_mark_settles_after_it() -> None:
    near = near_of()
    before = near.now()
    near.mark(("a",), ("t",))
    put(near, "a", since=before)
    put(near, "b", "t", since=before)
    put(near, "c", since=before)
    assert held(near, *"abc") == ["c"]
    put(near, "a")
    put(near, "b", "t")
    assert held(near, *"abc") == ["a", "b", "c"]


def test_a_tag_and_a_key_of_one_name_have_marks_of_their_own() -> None:
    near = near_of()
    before = near.now()
    near.mark((), ("a",))
    put(near, "a", since=before)
    assert held(near, "a") == ["a"]


def test_a_mark_that_is_forgotten_forbids_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MARKS", 4)
    near = near_of()
    before = near.now()
    near.mark(("a",), ())
    near.mark(tuple("uvwxyz"), ())
    assert len(near._marks) == 4
    put(near, "a", since=before)
    assert held(near, "a") == []
    assert not near.unmarked(("t",), before), "it can't be shown any more"
    put(near, "a")
    assert held(near, "a") == ["a"]


def test_unmarked_says_whether_no_tag_was_invalidated_since() -> None:
    near = near_of()
    before = near.now()
    assert near.unmarked(("t", "u"), before)
    near.mark(("t",), ())
    assert near.unmarked(("t", "u"), before), "a key is no tag"
    near.mark((), ("u",))
    assert not near.unmarked(("t", "u"), before)
    assert near.unmarked(("t",), before)
    assert near.unmarked(("t", "u"), near.now())


def test_clearing_drops_what_matches_and_closes_to_everything_read_before() -> None:
    near = near_of()
    before = near.now()
    put(near, "posts:1")
    put(near, "users:1")
    near.clear("posts:*")
    assert held(near, "posts:1", "users:1") == ["users:1"]
    put(near, "posts:1", since=before)
    put(near, "other:1", since=before)
    assert held(near, "posts:1", "other:1") == []
    near.clear()
    assert near.entries == {}
    assert near.size == 0


def test_tags_are_forgotten_with_their_last_entry() -> None:
    near = near_of(entries=1)
    for number in range(10):
        put(near, f"k{number}", f"t{number}")
    assert len(near._tags) == 1


# ---------------------------------------------------------------------------- horizon and bypass


def test_nothing_is_served_at_or_after_the_horizon() -> None:
    near = near_of()
    put(near, "a", until=math.inf)
    near.horizon = 50
    assert held(near, "a", now=49.9) == ["a"]
    assert held(near, "a", now=50) == []
    assert near.limit == 50
    near.horizon = 60
    assert held(near, "a", now=50) == ["a"]


def test_while_anybody_bypasses_the_compiled_path_is_closed() -> None:
    near = near_of()
    near.bypass(True)
    near.bypass(True)
    near.bypass(False)
    assert near.limit == 0
    near.horizon = 70
    assert near.limit == 0
    near.bypass(False)
    assert near.limit == 70


# ---------------------------------------------------------------------------- threads


def test_threads_may_put_get_mark_and_clear_at_once() -> None:
    near = near_of(entries=50, max_bytes=50 * (OVERHEAD + 50))
    wrong: list[str] = []
    started = threading.Barrier(4)

    def work(seed: int) -> None:
        dice = random.Random(seed)
        started.wait()
        try:
            for _ in range(3000):
                key = str(dice.randrange(100))
                match dice.randrange(10):
                    case 0:
                        near.mark((key,), (key,))
                    case 1 if dice.random() < 0.05:
                        near.clear("*7*")
                    case 2 | 3 | 4:
                        put(near, key, key, size=dice.randrange(100))
                    case _:
                        entry = near.get(key, 0)
                        if entry is not None and entry.value != key:
                            wrong.append(key)
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert {*near.entries} == {*near._order}
    assert len(near.entries) <= 50
