"""The cache service of the seed: what is wrong there is right here."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import fakeredis
import pytest
from msgspec import Struct

from cacheaside import FOREVER, MISSING, Cache, CodecError, ConfigError, InvalidationNotAcknowledged, Key
from cacheaside.engine.commands import Invalidate, Scan
from cacheaside.errors import StoreUnavailable
from cacheaside.rawkeys import RawKeys
from cacheaside.stores.redis import RedisStore
from cacheaside.testing.chaos import StoreWrapper

Do = Callable[..., Awaitable[Any]]


@pytest.fixture(params=["", "a"], ids=["sync", "async"])
def do(request: pytest.FixtureRequest, any_cache: Cache) -> Do:
    """Call an operation of the cache, or its a-twin."""

    async def call(operation: str, *args: Any, **kwargs: Any) -> Any:
        answer = getattr(any_cache, request.param + operation)(*args, **kwargs)
        return await answer if request.param else answer

    return call


class Recorder(StoreWrapper):
    """Notes every command; from the ``last`` on it fails."""

    def __init__(self, store: Any, last: int = 10**9) -> None:
        super().__init__(store)
        self.commands: list[Any] = []
        self.last = last

    def around(self, command: Any) -> Any:
        self.commands.append(command)
        if len(self.commands) > self.last:
            raise StoreUnavailable("gone")
        return (yield command)


# ---------------------------------------------------------------------------- ttl


def test_set_many_stopped_anywhere_leaves_no_value_without_an_end() -> None:
    """The seed sets all, then gives each its ttl: what is stopped in between stays for ever."""
    stored = 0
    for last in range(6):
        server = fakeredis.FakeServer()
        client = fakeredis.FakeRedis(server=server)
        store = Recorder(RedisStore(RawKeys("p"), lambda c=client: c, lambda: None), last)
        cache = Cache(store=store, prefix="p", invalidation_timeout=0.001)
        stored += cache.set_many({f"n:{i}": "x" * 5000 * (i % 2) for i in range(20)}, ttl=60, tags=["t"])
        assert [key for key in client.keys("*") if client.pttl(key) <= 0] == []
        assert all(client.pttl(f"p:n:{i}") <= 60_000 for i in range(20))
    assert stored == 3, "the later ones got through"


@pytest.mark.parametrize("ttl", [0, 0.0, -1])
async def test_a_ttl_of_nothing_is_an_error_and_not_for_ever(do: Do, ttl: float) -> None:
    for operation, args in [
        ("set", ("n:k", 1)),
        ("set_many", ({"n:k": 1},)),
        ("get_or_load", ("n:k", lambda: 1)),
    ]:
        with pytest.raises(ConfigError, match="ttl must be more than 0"):
            await do(operation, *args, ttl=ttl)
    with pytest.raises(ConfigError, match="ttl must be more than 0"):
        await do("expire", "n:k", ttl)
    with pytest.raises(ConfigError, match="ttl must be more than 0"):
        Cache("embedded://", ttl=ttl)
    assert await do("get", "n:k") is MISSING


async def test_what_is_to_have_no_ttl_says_so_and_still_ends_one_day(do: Do, clock: Any) -> None:
    await do("set", "n:k", 1, ttl=FOREVER, tags=["t"])
    await do("set", "n:default", 1)
    clock.tick(9 * 365 * 86400)
    assert await do("get_many", ["n:k", "n:default"]) == {"n:k": 1}
    assert await do("ttl", "n:k") == pytest.approx(365 * 86400)
    await do("invalidate", tags=["t"])
    assert await do("exists", "n:k") is False


# ---------------------------------------------------------------------------- types


class Post(Struct, frozen=True):
    id: int
    title: str = ""


@dataclass
class Point:
    x: int
    y: int


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (Post(1, "a"), Post),
        (Point(1, 2), Point),
        ([Post(1)], list[Post]),
        ({1: Post(1)}, dict[int, Post]),
        ((1, "a"), tuple[int, str]),
        ({1, 2}, set[int]),
        (5, int | str),
    ],
)
async def test_what_is_set_with_a_type_is_got_with_it(do: Do, value: Any, wanted: Any) -> None:
    assert await do("set", "n:k", value, type=wanted) is True
    assert await do("get", "n:k", type=wanted) == value
    assert await do("get_many", ["n:k", "n:l"], type=wanted) == {"n:k": value}
    assert await do("set_many", {"n:l": value}, type=wanted) is True
    assert await do("get", "n:l", type=wanted) == value
    assert await do("get", "n:l") == value, "this process knows the type"


async def test_what_was_set_without_a_type_is_got_as_one_that_fits(do: Do) -> None:
    await do("set", "n:k", {"id": 1, "title": "a"})
    assert await do("get", "n:k", type=Post) == Post(1, "a")
    assert await do("get", "n:k", type=Point) is MISSING
    assert await do("get", "n:k", "none", type=list[int]) == "none"
    assert await do("get_many", ["n:k"], type=int) == {}
    assert await do("get", "n:k") == {"id": 1, "title": "a"}


async def test_what_was_set_as_another_type_is_no_value(do: Do) -> None:
    await do("set", "n:k", Point(1, 2), type=Point)
    assert await do("get", "n:k", type=Post) is MISSING
    assert await do("get", "n:k", type=dict[str, int]) is MISSING


async def test_a_cached_none_is_none_under_any_type(do: Do) -> None:
    await do("set", "n:k", None, type=Post)
    assert await do("get", "n:k", "default", type=Post) is None
    assert await do("get", "n:k", "default", type=Point) is None


async def test_a_decorated_function_and_typed_operations_share_their_entries(any_cache: Cache) -> None:
    loads: list[int] = []

    @any_cache.cached(ns="n", key="post:{post_id}")
    def post(post_id: int) -> Post | None:
        loads.append(post_id)
        return Post(post_id, "loaded")

    any_cache.set("n:post:1", Post(1, "set"), type=Post)
    assert post(1) == Post(1, "set")
    assert post(2) == any_cache.get("n:post:2", type=Post) == Post(2, "loaded")
    assert loads == [2]


async def test_get_or_load_with_a_type(any_cache: Cache) -> None:
    async def load() -> Post:
        return Post(1)

    assert any_cache.get_or_load("n:k", lambda: Post(1), type=Post) == Post(1)
    assert any_cache.get_or_load("n:k", lambda: Post(2), type=Post) == Post(1)
    assert await any_cache.aget_or_load("n:k", load, type=Post) == Post(1)
    assert any_cache.get("n:k", type=Post) == Post(1)


async def test_a_value_of_another_type_is_refused_when_it_is_set(do: Do) -> None:
    with pytest.raises(CodecError, match="str"):
        await do("set", "n:k", "text", type=int)
    with pytest.raises(CodecError):
        await do("get", "n:k", type=Key)
    assert await do("get", "n:k") is MISSING


def test_types_without_end_are_not_remembered_without_end(cache: Cache) -> None:
    for n in range(600):
        cache.get("n:k", type=Struct.__class__(f"S{n}", (Struct,), {"__annotations__": {"x": int}}))
        cache.set("n:k", 1, ttl=n + 1)
    assert len(cache._typed) <= 256
    assert len(cache._direct) <= 256


# ---------------------------------------------------------------------------- patterns


async def test_a_pattern_goes_through_the_keys_in_bounded_steps(any_cache: Cache, do: Do) -> None:
    """The seed asks for KEYS, which stops the whole server; nothing here could ask for it."""
    keys = [f"feed:{i}" for i in range(1200)]
    for n in range(0, 1200, 100):
        any_cache.set_many(dict.fromkeys(keys[n : n + 100], 1))
    any_cache.set("other:1", 1)
    store = any_cache.store = Recorder(any_cache.store)
    told: list[int] = []
    dropped = await do("delete_matching", "feed:*", progress=told.append)
    assert (dropped, dropped.complete) == (1200, True)
    assert told == sorted(told)
    assert told[-1] == 1200
    assert len(told) > 2
    assert max(len(c.slots) for c in store.commands if isinstance(c, Invalidate)) <= 500
    assert all(c.count <= 500 for c in store.commands if isinstance(c, Scan))
    assert any_cache.get_many(["feed:7", "other:1"]) == {"other:1": 1}


# ---------------------------------------------------------------------------- a store that fails


async def test_a_failing_store_is_a_miss_or_false_and_counted(any_cache: Cache, do: Do, clock: Any) -> None:
    any_cache.set("n:k", 1)
    any_cache.store = Recorder(any_cache.store, 0)
    any_cache.invalidation_timeout = 0.01
    answers = [
        await do("get", "n:k"),
        await do("get_many", ["n:k"]),
        await do("exists", "n:k"),
        await do("ttl", "n:k"),
        await do("expire", "n:k", 5),
        await do("set", "n:k", 2),
        await do("set_many", {"n:k": 2}),
        bool(await do("delete", "n:k")),
        await do("delete_matching", "n:*"),
        await do("clear", "n"),
        await do("clear"),
    ]
    assert answers == [MISSING, {}, False, None, False, False, False, False, 0, 0, 0]
    stats = any_cache.stats()
    assert stats["namespaces"]["(direct)"]["unavailable"] == 10
    assert stats["unacknowledged"] == 4


async def test_a_pattern_that_is_not_through_says_so(any_cache: Cache, do: Do, caplog: Any) -> None:
    for n in range(0, 600, 100):  # claims last seconds, and a busy machine takes its time
        assert any_cache.set_many({f"n:{i}": i for i in range(n, n + 100)})
    any_cache.store = Recorder(any_cache.store, 3)  # announced, scanned, one batch dropped
    any_cache.invalidation_timeout = 0.01
    with caplog.at_level(logging.ERROR, "cacheaside"):
        dropped = await do("delete_matching", "n:*")
    assert 0 < dropped < 600
    assert dropped.complete is False
    assert f"'n:*' ended after {dropped} keys, and is begun again" in caplog.text
    any_cache.raise_unacknowledged = True
    with pytest.raises(InvalidationNotAcknowledged, match="ended after 0 keys"):
        await do("clear", "n")


async def test_direct_operations_are_counted_once_there_are_any(any_cache: Cache, do: Do) -> None:
    assert any_cache.stats()["namespaces"] == {}
    await do("set", "n:k", 1)
    await do("get_many", ["n:k", "n:l"])
    counts = any_cache.stats()["namespaces"]["(direct)"]
    assert (counts["stored"], counts["hits_l2"], counts["unavailable"]) == (1, 1, 0)
