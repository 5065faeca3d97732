"""Our stores keep the contract that every store must keep, and what is their own."""

from __future__ import annotations

from typing import Any

import pytest

from cacheaside.engine.commands import (
    NOT_A_STRING,
    Begin,
    Claim,
    Commit,
    Fetch,
    Forget,
    Members,
    Place,
    Renew,
)
from cacheaside.entry import CLAIM
from cacheaside.stores import embedded
from cacheaside.stores.embedded import EmbeddedStore
from cacheaside.stores.redis import RedisStore
from cacheaside.testing import FakeClock
from cacheaside.testing.contract import (
    KEYS,
    OTHER,
    SLOT,
    TOKEN,
    StoreContract,
    Wait,
    fill,
    placeholder,
    token,
    value,
)
from tests.aging import aged


class TestEmbedded(StoreContract):
    @pytest.fixture
    def store(self, clock: FakeClock) -> EmbeddedStore:
        return EmbeddedStore(2**20, clock)

    @pytest.fixture
    def wait(self, clock: FakeClock) -> Wait:
        return clock.tick


class TestRedis(StoreContract):
    """Over a Redis of this process; tests/real has the servers."""

    @pytest.fixture
    def store(self, redis_store: RedisStore) -> RedisStore:
        return redis_store

    @pytest.fixture
    def wait(self, redis_store: RedisStore) -> Wait:
        return aged(redis_store.client)


# ---------------------------------------------------------------------------- Redis only


def test_redis_is_told_lives_in_milliseconds_and_never_none(redis_store: Any) -> None:
    client = redis_store.client
    redis_store.perform(Begin((Place(SLOT, placeholder(1)),), ((TOKEN, token(1)),), 0.5, 20))
    assert 0 < client.pttl(SLOT) <= 500
    assert 19_000 < client.pttl(TOKEN) <= 20_000
    redis_store.perform(Renew(((SLOT, placeholder(1)),), 10))
    assert 9_000 < client.pttl(SLOT) <= 10_000
    redis_store.perform(
        Commit((fill(SLOT, placeholder(1), value(1), ttl=30),), extend=((TOKEN, 60), (TOKEN, 5)))
    )
    assert 29_000 < client.pttl(SLOT) <= 30_000
    assert 59_000 < client.pttl(TOKEN) <= 60_000
    redis_store.perform(Claim(((SLOT, placeholder(2, CLAIM)),), (), 0.0001, 20))
    assert all(client.pttl(key) != -1 for key in client.scan_iter()), "nothing of ours lives for ever"


async def test_other_types_and_empty_strings_are_left_alone(redis_store: Any) -> None:
    """Only Redis is shared with others."""
    client = redis_store.client
    client.rpush(SLOT, "a list")
    client.set(OTHER, b"")
    for ask in ("perform", "aperform"):
        answer = getattr(redis_store, ask)(Fetch((SLOT, OTHER)))
        assert list(await answer if ask == "aperform" else answer) == [None, b""]
        answer = getattr(redis_store, ask)(
            Begin((Place(SLOT, placeholder(1)), Place(OTHER, placeholder(2))), (), 60, 60)
        )
        begun = await answer if ask == "aperform" else answer
        assert begun.slots == (NOT_A_STRING, NOT_A_STRING)
    assert client.lrange(SLOT, 0, -1) == [b"a list"]
    assert client.get(OTHER) == b""


# ---------------------------------------------------------------------------- embedded only


def test_the_embedded_store_is_bounded_and_drops_what_was_used_longest_ago(clock: Any) -> None:
    store = EmbeddedStore(10 * 1256, clock)
    for i in range(10):
        store.perform(Claim(((f"k{i}", b"x" * 1000),), (), 60, 60))
    store.perform(Fetch(("k0",)))
    store.perform(Claim((("new", b"x" * 1000),), (), 60, 60))
    there = store.perform(Fetch(tuple(f"k{i}" for i in range(10))))
    assert [i for i, raw in enumerate(there) if raw is None] == [1]


def test_a_value_larger_than_the_embedded_store_leaves_its_slot_empty(clock: Any) -> None:
    store = EmbeddedStore(2000, clock)
    store.perform(Claim(((SLOT, placeholder(1)),), (), 60, 60))
    store.perform(Commit((fill(SLOT, placeholder(1), value(1, b"x" * 5000)),)))
    assert store.perform(Fetch((SLOT,))) == [None]


def test_lists_of_the_embedded_store_are_bounded(clock: Any) -> None:
    store = EmbeddedStore(2**20, clock, index_limit=3)
    index = KEYS.tag_index("t")
    for i in range(5):
        store.perform(Commit((), index=((index, f"n:{i}", clock() + 100 + i),)))
    assert store.perform(Members(index, 0, 10)) == ["n:2", "n:3", "n:4"]


def test_many_tags_do_not_fill_the_embedded_store_with_lists(
    clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "MOST_LISTED", 10)
    store = EmbeddedStore(2**20, clock)
    for i in range(6):
        store.perform(Commit((), index=((KEYS.tag_index(f"short:{i}"), "n:k", clock() + 5),)))
    clock.tick(6)
    for i in range(100):
        store.perform(Commit((), index=((KEYS.tag_index(f"t:{i}"), "n:k", clock() + 100),)))
        assert store._listed == sum(map(len, store._index.values())) <= 10
        assert len(store._index) <= 10
    assert store.perform(Members(KEYS.tag_index("t:99"), 0, 10)) == ["n:k"]
    assert store.perform(Members(KEYS.tag_index("t:0"), 0, 10)) == []
    store.perform(Forget(KEYS.tag_index("t:99"), ("n:k",)))
    assert store._listed == sum(map(len, store._index.values()))
