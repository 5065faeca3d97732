"""What a tag has invalidated is freed from its list, and nothing else is."""

from __future__ import annotations

from cacheaside import Cache


def test_reclaiming_frees_only_what_was_invalidated(redis_url: str) -> None:
    """Entries stored after the invalidation, and those of other tags, stay and are still served."""
    with Cache(redis_url, reclaim_every=3600, l1_window=None) as cache:
        calls: list[int] = []

        @cache.cached(ns="posts", key="post:{id}", ttl=60, tags=["all", "post:{id}"])
        def post(id: int) -> int:
            calls.append(id)
            return id

        for number in range(1200):
            post(number)
        cache.invalidate(tags=["all"])
        cache.invalidate(tags=["post:3"])
        for number in range(10):
            post(number)
        before = len(calls)
        with cache.store.client as client:  # type: ignore[attr-defined]
            slots = len(client.keys("cacheaside:posts:*"))
            assert slots == 1200
            assert cache.reclaimer.round() == 1190
            assert len(client.keys("cacheaside:posts:*")) == 10
        assert [post(number) for number in range(10)] == list(range(10))
        assert len(calls) == before
        assert len(cache.tag_keys("all")) == 10
        assert cache.reclaimer.round() == 0


def test_without_lists_nothing_is_listed_or_reclaimed(redis_url: str) -> None:
    """index_limit=0 turns lists off; tags work all the same."""
    with Cache(redis_url, index_limit=0, l1_window=None) as cache:
        cache.set("posts:a", 1, tags=["all"])
        assert cache.tag_keys("all") == []
        cache.invalidate(tags=["all"])
        assert not cache.exists("posts:a")


def test_a_list_is_trimmed_to_its_limit(redis_url: str) -> None:
    """A tag's list does not grow with the entries: what ends first goes first."""
    with Cache(redis_url, index_limit=50, l1_window=None) as cache:
        for number in range(2000):
            cache.set(f"posts:{number}", number, tags=["all"])
        assert len(cache.tag_keys("all")) < 1000
